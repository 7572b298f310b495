"""The MRC's log: numbered records in segments, each checked by its sum, appended and made durable in groups.

A segment `log.SEQ` (number of its first record, 16 hex digits) is allocated whole, so appending never needs space that is not there: header
`magic 8 | first seq u64 | crc u32 | 0 u32`, then records `length u32 | crc u32 | seq u64 | durable u64 | payload`, then zeros. `crc` is the
CRC-32 of everything behind it. `durable` is the last record that was known to be on the disk when this one was written: that is how
recovery tells a torn tail (records after it claim nothing: it is cut, and told) from damage in the middle (a later record says that the
bad one had been on the disk: acknowledged commands are lost, so nothing starts).

It knows no commands: a payload is bytes. All of it is synchronous; when to sync is the driver's business.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xtreemos.xtreemfs.mrc.disk import Disk, File
from xtreemos.xtreemfs.mrc.errors import LogDamaged, StoreBroken

SEGMENT_BYTES: Final = 16 << 20
RECORD_BYTES_MAX: Final = 1 << 20
PREFIX: Final = "log."
MAGIC: Final = b"XOSMRCL1"
_HEADER = struct.Struct("<8sQII")
_ZEROS: Final = bytes(1 << 16)
_RECORD = struct.Struct("<IIQQ")
_SUMMED = struct.Struct("<QQ")
_SEARCH_AHEAD: Final = 1 << 20  # how far beyond a bad record a later one may be numbered


class Record(NamedTuple):
    """One record as it was found."""

    seq: int
    durable: int
    payload: bytes


class Torn(NamedTuple):
    """A tail that was cut: `bytes` of `segment` from `at` on; the next record would have been `seq`."""

    segment: str
    at: int
    bytes: int
    seq: int


@dataclass
class Recovered:
    """What a log held: records in order without gaps, and what was cut off, if anything."""

    records: list[Record] = field(default_factory=list)
    torn: Torn | None = None


def encode_record(seq: int, durable: int, payload: bytes) -> bytes:
    """Return the bytes of one record."""
    rest = _SUMMED.pack(seq, durable)
    return struct.pack("<II", len(payload), zlib.crc32(payload, zlib.crc32(rest))) + rest + payload


def _header(first: int) -> bytes:
    return _HEADER.pack(MAGIC, first, zlib.crc32(MAGIC + first.to_bytes(8, "little")), 0)


def _first_of(data: bytes) -> int | None:
    """Return the number in a segment's header, None if that is no header."""
    if len(data) < _HEADER.size:
        return None
    magic, first, crc, _zero = _HEADER.unpack_from(data)
    good = magic == MAGIC and crc == zlib.crc32(MAGIC + int(first).to_bytes(8, "little"))
    return int(first) if good else None


def _record_at(data: bytes, at: int) -> Record | None:
    if at + _RECORD.size > len(data):
        return None
    length, crc, seq, durable = _RECORD.unpack_from(data, at)
    start = at + _RECORD.size
    if not 0 < length <= RECORD_BYTES_MAX or start + length > len(data):
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(_SUMMED.pack(seq, durable))) != crc:
        return None
    return Record(seq, durable, payload)


def _later_witness(data: bytes, at: int, seq: int) -> Record | None:
    """Return a good record after the bad place `at` which says that record `seq` had been on the disk; None if there is none."""
    end = len(data.rstrip(b"\0"))
    for place in range(at, end):
        length, _crc, number, durable = _RECORD.unpack_from(data, place) if place + _RECORD.size <= len(data) else (0, 0, 0, 0)
        if 0 < length <= RECORD_BYTES_MAX and seq <= number <= seq + _SEARCH_AHEAD and seq <= durable < number:
            found = _record_at(data, place)
            if found is not None:
                return found
    return None


def _written(data: bytes, at: int) -> int:
    """Return how many bytes from `at` on there are before the zeros at the end: a segment is mostly such zeros."""
    end = len(data)
    while end - at >= len(_ZEROS) and data[end - len(_ZEROS) : end] == _ZEROS:
        end -= len(_ZEROS)
    return len(data[at:end].rstrip(b"\0"))


def recover(disk: Disk) -> Recovered:
    """Read all segments, check them, and cut a torn tail off (durably).

    Raises:
        LogDamaged: something in the middle cannot be read; nothing was changed.
    """
    found = Recovered()
    names = [name for name in disk.names() if name.startswith(PREFIX)]
    for index, name in enumerate(names):
        _recover_segment(disk, name, found, last=index == len(names) - 1)
    return found


def _recover_segment(disk: Disk, name: str, found: Recovered, *, last: bool) -> None:
    data = disk.read(name)
    first = _first_of(data)
    expected = found.records[-1].seq + 1 if found.records else first
    if first is None or first != expected:
        seq = expected or 0
        if last and first is None and _later_witness(data, 0, seq) is None:
            _cut(disk, name, Torn(name, 0, len(data.rstrip(b"\0")), seq), found)
            return
        raise LogDamaged(f"{name} does not begin with record {expected}", "see docs/protocols/mrc.md, Repair")
    at, seq = _HEADER.size, first
    while (record := _record_at(data, at)) is not None and record.seq == seq:
        found.records.append(record)
        at += _RECORD.size + len(record.payload)
        seq += 1
    rest = _written(data, at)
    if not rest:
        return
    witness = _later_witness(data, at, seq)
    if witness is not None or not last:
        told = f"record {witness.seq} says it was written" if witness else "a later segment exists"
        raise LogDamaged(f"{name}: record {seq} at byte {at} cannot be read, but {told}", "see docs/protocols/mrc.md, Repair")
    _cut(disk, name, Torn(name, at, rest, seq), found)


def salvage(disk: Disk) -> Torn | None:
    """Cut a damaged log where the damage begins, and remove what comes after: those commands are lost.

    Returns:
        Where it was cut; None if it is whole.
    """
    names = [name for name in disk.names() if name.startswith(PREFIX)]
    found = Recovered()
    for index, name in enumerate(names):
        data = disk.read(name)
        first = _first_of(data)
        expected = found.records[-1].seq + 1 if found.records else first
        at, seq = (0, expected or 0) if first is None or first != expected else (_HEADER.size, first)
        while at and (record := _record_at(data, at)) is not None and record.seq == seq:
            found.records.append(record)
            at += _RECORD.size + len(record.payload)
            seq += 1
        rest = _written(data, at)
        if rest or not at:
            for later in names[index + 1 :]:
                disk.remove(later)
            torn = Torn(name, at, rest, seq)
            _cut(disk, name, torn, found)
            return torn
    return None


def _cut(disk: Disk, name: str, torn: Torn, found: Recovered) -> None:
    if torn.at == 0:
        disk.remove(name)
    else:
        file = disk.open(name)
        try:
            file.resize(torn.at)
        finally:
            file.close()
    if torn.bytes:
        found.torn = torn


class Log:
    """The writing side. `append` orders records; `sync` makes all appended ones durable. One owner."""

    def __init__(self, disk: Disk, last: int, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Go on after record `last`, in a segment of its own: what was recovered is never written to again."""
        self._disk = disk
        self._segment_bytes = segment_bytes
        self.last = last
        """Number of the last record appended."""
        self.durable = last
        """Number of the last record known to be on the disk."""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._file: File | None = None
        self._at = 0
        self._closed = False
        self._flight: tuple[bytes, int] = (b"", 0)
        self.segments: list[tuple[str, int]] = [
            (name, int(name.removeprefix(PREFIX), 16)) for name in disk.names() if name.startswith(PREFIX)
        ]
        """(name, number of its first record), ascending."""

    def reserve(self, size: int) -> None:
        """Make sure that a record of `size` payload bytes can be appended.

        Raises:
            OSError(ENOSPC): there is no room for a new segment; nothing changed. StoreBroken: see `sync`.
        """
        if size > RECORD_BYTES_MAX:
            raise StoreBroken(f"a record of {size} bytes is too large")
        if self._file is not None and self._at + self._pending_bytes + _RECORD.size + size <= self._segment_bytes:
            return
        self.sync()  # so that a segment is durable whole before the next one begins
        name = f"{PREFIX}{self.last + 1:016x}"
        if any(held == name for held, _first in self.segments):  # left by a start that wrote nothing
            self._disk.remove(name)
            self.segments = [row for row in self.segments if row[0] != name]
        file = self._disk.create(name, self._segment_bytes)
        if self._file is not None:
            self._file.close()
        self._file, self._at = file, _HEADER.size
        self._write(0, _header(self.last + 1))
        self.segments.append((name, self.last + 1))

    def append(self, payload: bytes) -> int:
        """Append a record after `reserve`; returns its number. It is in memory only until `sync`."""
        self.last += 1
        data = encode_record(self.last, self.durable, payload)
        self._pending.append(data)
        self._pending_bytes += len(data)
        return self.last

    def take(self) -> tuple[bytes, int, int]:
        """Hand over what is pending for `write_out` in another thread: (bytes, offset, number of the last record)."""
        data, at = b"".join(self._pending), self._at
        self._pending.clear()
        self._at += len(data)
        self._pending_bytes = 0
        self._flight = data, at
        return data, at, self.last

    def landed(self, last: int) -> None:
        """`write_out` of what `take` gave has returned: records up to `last` are on the disk."""
        if last > self.durable:  # else `sync` was there first
            self.durable = last
            self._flight = b"", 0

    def write_out(self, data: bytes, at: int) -> None:
        """Write and sync what `take` gave; touches nothing else, so it may run in a thread. StoreBroken as `sync`."""
        if not data or self._file is None:
            return
        self._write(at, data)
        try:
            self._file.sync()
        except OSError as error:
            raise StoreBroken(f"the MRC's log cannot be written: {error}", "look at its disk, then start it again") from error

    def sync(self) -> None:
        """Return when every appended record is on the disk.

        Raises:
            StoreBroken: the disk failed. Nobody knows what is on it: the process must end, and recover.
        """
        if self.durable == self.last:
            return
        flying, flying_at = self._flight
        if flying:  # a thread may not have written it yet: the same bytes to the same place do no harm
            self._write(flying_at, flying)
        data, at, last = self.take()
        if data:
            self.write_out(data, at)
        else:
            self.write_out(flying, flying_at)
        self.landed(last)

    def _write(self, at: int, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(at, data)
        except OSError as error:
            raise StoreBroken(f"the MRC's log cannot be written: {error}", "look at its disk, then start it again") from error

    def trim(self, upto: int) -> None:
        """Remove segments of which every record is at most `upto` (the store has them durably)."""
        while len(self.segments) > 1 and self.segments[1][1] <= upto + 1:
            self._disk.remove(self.segments.pop(0)[0])

    def close(self) -> None:
        """Sync and close."""
        if not self._closed:
            self._closed = True
            self.sync()
            if self._file is not None:
                self._file.close()
