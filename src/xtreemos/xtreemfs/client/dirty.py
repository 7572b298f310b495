"""What was written to one file and is not yet on its OSDs: ranges of bytes, newest wins, cut into pieces worth a request.

Pure. The file is seen as buckets of `BUCKET_BYTES`; in each lie disjoint extents in order. An extent that is being sent ("flying") is no
longer changed: writes over it make new extents, which are not taken before the old one has landed, so an OSD never gets two
writes of one place at the same time. Reads lay flying and then waiting extents over what the OSDs answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview

BUCKET_BYTES = 1 << 20  # a full one is sent at once; also the most that one request carries
EXTENT_COST_BYTES = (
    16 << 10
)  # what holding and sending an extent costs, whatever its length; counts against the bound over all files
KEEP_BYTES = 1 << 18  # a write at least so long is kept where it arrived; shorter ones are copied (the buffer they came in is long)


@dataclass(slots=True, eq=False)
class Extent:
    """Bytes `data` at `start`; `data` is a bytearray of ours, or a view that nobody changes."""

    start: int
    data: Buffer

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.start + len(self.data)

    def owned(self) -> bytearray:
        """Return the data as a bytearray that may be changed."""
        if not isinstance(self.data, bytearray):
            self.data = bytearray(self.data)
        return self.data


class DirtyFile:
    """The unwritten bytes of one file. `waiting_bytes` and `flying_bytes` count them, `waiting_count` the extents that wait."""

    __slots__ = ("_buckets", "flying", "flying_bytes", "waiting_bytes", "waiting_count")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Extent]] = {}
        self.flying: list[Extent] = []
        self.waiting_bytes = 0
        self.waiting_count = 0
        self.flying_bytes = 0

    @property
    def total_bytes(self) -> int:
        """All bytes that it holds."""
        return self.waiting_bytes + self.flying_bytes

    @property
    def cost_bytes(self) -> int:
        """What it costs to hold: small pieces cost more than their bytes."""
        return self.total_bytes + EXTENT_COST_BYTES * (self.waiting_count + len(self.flying))

    def __bool__(self) -> bool:
        return bool(self.waiting_bytes or self.flying_bytes)

    def write(self, offset: int, data: Buffer) -> bool:
        """Take bytes written at `offset` (>= 0). Return whether a bucket is full now, so worth sending."""
        view = memoryview(data)
        full = False
        at = 0
        while at < len(view):
            index, inside = divmod(offset + at, BUCKET_BYTES)
            part = view[at : at + BUCKET_BYTES - inside]
            full |= self._write_in(index, offset + at, part)
            at += len(part)
        return full

    def _write_in(self, index: int, start: int, data: memoryview) -> bool:
        extents = self._buckets.setdefault(index, [])
        end = start + len(data)
        if extents and extents[-1].end == start and len(data) < KEEP_BYTES:  # the usual case: going on where the last one ended
            self.waiting_bytes += len(data)
            extents[-1].owned().extend(data)
            return len(extents[-1].data) == BUCKET_BYTES
        first = bisect_left(extents, start, key=lambda e: e.end)
        last = first
        while last < len(extents) and extents[last].start <= end:
            last += 1
        touched = extents[first:last]
        before = sum(len(e.data) for e in touched)
        merged = _merge(touched, start, data)
        extents[first:last] = [merged]
        self.waiting_count += 1 - len(touched)
        self.waiting_bytes += len(merged.data) - before
        return len(merged.data) == BUCKET_BYTES

    def take(self, *, full_only: bool = False, bytes_max: int = 1 << 62, count_max: int = 1 << 62) -> list[Extent]:
        """Move extents from waiting to flying, in file order, until `bytes_max` or `count_max` is reached; only whole buckets with `full_only`.

        Those under which something still flies are left.
        """
        taken: list[Extent] = []
        got = 0
        for index in sorted(self._buckets):
            keep: list[Extent] = []
            for extent in self._buckets[index]:
                held = got >= bytes_max or len(taken) >= count_max or (full_only and len(extent.data) < BUCKET_BYTES)
                if held or any(f.start < extent.end and extent.start < f.end for f in self.flying):
                    keep.append(extent)
                    continue
                taken.append(extent)
                got += len(extent.data)
            if keep:
                self._buckets[index] = keep
            else:
                del self._buckets[index]
            if got >= bytes_max or len(taken) >= count_max:
                break
        self.flying += taken
        self.flying_bytes += got
        self.waiting_bytes -= got
        self.waiting_count -= len(taken)
        return taken

    def landed(self, extent: Extent) -> None:
        """An extent given by `take` is on its OSDs, or given up. Unknown ones (cleared meanwhile) are ignored."""
        if extent in self.flying:
            self.flying.remove(extent)
            self.flying_bytes -= len(extent.data)

    def overlay(self, offset: int, length: int) -> list[tuple[int, memoryview]]:
        """Return what lies over a range, as (position in the file, bytes), to be laid on in this order."""
        end = offset + length
        found = [_cut(e, offset, end) for e in self.flying if e.start < end and offset < e.end]
        if self.waiting_bytes and length:
            for index in range(offset // BUCKET_BYTES, (end - 1) // BUCKET_BYTES + 1):
                found += [_cut(e, offset, end) for e in self._buckets.get(index, ()) if e.start < end and offset < e.end]
        return found

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether `overlay` has every byte of the range (length >= 1), so that no OSD need be asked."""
        at = offset
        for start, data in sorted((start, len(data)) for start, data in self.overlay(offset, length)):
            if start > at:
                return False
            at = max(at, start + data)
        return at >= offset + length

    def truncate(self, size: int) -> None:
        """Forget what waits at or behind byte `size`. What flies has to be waited for by whoever truncates."""
        for index in [i for i in self._buckets if (i + 1) * BUCKET_BYTES > size]:
            keep = []
            for extent in self._buckets[index]:
                if extent.start >= size:
                    self.waiting_bytes -= len(extent.data)
                    self.waiting_count -= 1
                    continue
                if extent.end > size:
                    self.waiting_bytes -= extent.end - size
                    extent.data = memoryview(extent.data)[: size - extent.start]
                keep.append(extent)
            if keep:
                self._buckets[index] = keep
            else:
                del self._buckets[index]

    def punch(self, offset: int, length: int) -> None:
        """Forget what waits in a range (a hole is made there)."""
        end = offset + length
        for index in [i for i in self._buckets if i * BUCKET_BYTES < end and (i + 1) * BUCKET_BYTES > offset]:
            keep: list[Extent] = []
            for extent in self._buckets[index]:
                keep += _without(extent, offset, end)
            self.waiting_bytes += sum(len(e.data) for e in keep) - sum(len(e.data) for e in self._buckets[index])
            self.waiting_count += len(keep) - len(self._buckets[index])
            if keep:
                self._buckets[index] = keep
            else:
                del self._buckets[index]

    def clear(self) -> int:
        """Forget everything; return how many bytes that was."""
        lost = self.total_bytes
        self._buckets.clear()
        self.flying.clear()
        self.waiting_bytes = self.waiting_count = self.flying_bytes = 0
        return lost

    def extents(self) -> Iterator[Extent]:
        """Everything held: flying, then waiting in file order."""
        yield from self.flying
        for index in sorted(self._buckets):
            yield from self._buckets[index]


def _merge(touched: list[Extent], start: int, data: memoryview) -> Extent:
    """Lay `data` at `start` over extents that overlap or touch it."""
    if not touched:
        return Extent(start, data if len(data) >= KEEP_BYTES else bytearray(data))
    end = start + len(data)
    low, high = touched[0], touched[-1]
    if low.start >= start and high.end <= end:
        return Extent(start, data if len(data) >= KEEP_BYTES else bytearray(data))
    if low is high and low.start <= start and end <= low.end:
        low.owned()[start - low.start : end - low.start] = data
        return low
    joined = bytearray()
    begin = min(low.start, start)
    if low.start < start:
        joined += memoryview(low.data)[: start - low.start]
    joined += data
    if high.end > end:
        joined += memoryview(high.data)[end - high.start :]
    return Extent(begin, joined)


def _cut(extent: Extent, begin: int, end: int) -> tuple[int, memoryview]:
    """The part of an extent in [begin, end), which is not empty."""
    start = max(extent.start, begin)
    return start, memoryview(extent.data)[start - extent.start : min(extent.end, end) - extent.start]


def _without(extent: Extent, begin: int, end: int) -> list[Extent]:
    """What is left of an extent without [begin, end)."""
    if extent.end <= begin or extent.start >= end:
        return [extent]
    view = memoryview(bytes(extent.data))
    left = [Extent(extent.start, view[: begin - extent.start])] if extent.start < begin else []
    return left + ([Extent(end, view[end - extent.start :])] if extent.end > end else [])
