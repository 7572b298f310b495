"""One column: a plain file of bytes and beside it a file of sums, kept in step. Synchronous; one thread changes it at a time.

Beside a change others may read: such a reader may meet a block between its bytes and its sum, gets `Mismatch`, and asks again alone.
What a mismatch *means* (damage, or a torn write after a crash) is not known here: `trusted` is set by who knows what was synced.

The sums file begins with a header that holds the file's fence: it is written before the first change of a new epoch and synced with it.
Whatever fails in the middle of a change (no space, a bad disk) leaves bytes of unknown content behind; their sums are made anew from what
is there, so that a failed write is no damage. If that fails too, `trusted` ends.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from zlib import crc32

from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.model import SUM_BYTES
from xtreemos.xtreemfs.osd import blocks
from xtreemos.xtreemfs.osd.blocks import HOLE, NO_ZERO, Buffer, fits, stored
from xtreemos.xtreemfs.osd.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, File

SLOT_BYTES = 512
HEADER_BYTES = 2 * SLOT_BYTES
"""Two places for the header, written in turn: one that was torn leaves the other."""
STEP_BYTES = 1 << 20  # read at a time by `check`
_HEADER = struct.Struct("<8sQQ")
_CHECK = struct.Struct("<I")
_MAGIC = b"XOSUMS1\n"


class Mismatch(Exception):  # not an error of ours: it may be a race, a torn write or damage
    """Blocks (numbers, ascending) that do not fit their sums."""

    def __init__(self, bad: list[int]) -> None:
        super().__init__(f"blocks {bad[:8]} do not fit their sums")
        self.bad = bad


def _header(raw: bytes) -> Fence | None:
    if len(raw) < _HEADER.size + _CHECK.size:
        return None
    magic, epoch, layout = _HEADER.unpack_from(raw)
    (check,) = _CHECK.unpack_from(raw, _HEADER.size)
    return Fence(epoch, layout) if magic == _MAGIC and check == crc32(raw[: _HEADER.size]) else None


class Column:
    """An open column. `trusted`: a block that does not fit its sum is damage; else its sum is old and the bytes are taken."""

    def __init__(self, data: File, sums: File, *, trusted: bool) -> None:
        self.data = data
        self.sums = sums
        self.trusted = trusted
        self.lent = False
        """Somebody else had it open for writing when we opened it."""
        self.length, self.blocks = data.size()
        self._slot = 1
        self.fence = self._read_header()
        if not self.trusted:  # a crash may have kept sums of blocks that it did not keep
            self.sums.truncate(HEADER_BYTES + 4 * -(-self.length // SUM_BYTES))

    def close(self) -> None:
        """Close both files."""
        self.data.close()
        self.sums.close()

    # ------------------------------------------------------------------------------------------------------------ header

    def _read_header(self) -> Fence:
        raw = self.sums.pread(HEADER_BYTES, 0) or b""
        found = [(fence, slot) for slot in (0, 1) if (fence := _header(raw[slot * SLOT_BYTES :])) is not None]
        if not found:
            self.trusted = self.trusted and not any(raw)
            return Fence()
        fence, self._slot = max(found, key=lambda pair: (pair[0].epoch, pair[0].layout_version))
        return fence

    def raise_fence(self, fence: Fence) -> None:
        """Remember a larger epoch or layout version; durable with the next sync."""
        raised = Fence(max(fence.epoch, self.fence.epoch), max(fence.layout_version, self.fence.layout_version))
        if raised == self.fence:
            return
        head = _HEADER.pack(_MAGIC, raised.epoch, raised.layout_version)
        self.sums.pwrite(head + _CHECK.pack(crc32(head)), (1 - self._slot) * SLOT_BYTES)
        self._slot, self.fence = 1 - self._slot, raised

    # -------------------------------------------------------------------------------------------------------------- sums

    def _load(self, first: int, count: int, *, wait: bool = True) -> array[int] | None:
        raw = self.sums.pread(count * 4, HEADER_BYTES + first * 4, wait=wait)
        if raw is None:
            return None
        found = array("I", raw[: len(raw) // 4 * 4])
        found.extend([HOLE] * (count - len(found)))
        return found

    def _load_now(self, first: int, count: int) -> array[int]:
        found = self._load(first, count)
        assert found is not None
        return found

    def _store(self, first: int, sums: array[int]) -> None:
        self.sums.pwrite(sums.tobytes(), HEADER_BYTES + first * 4)

    def _covered(self, block: int, length: int) -> int:
        """How many bytes of a block there are in a column of `length` bytes."""
        return min(SUM_BYTES, max(0, length - block * SUM_BYTES))

    # ----------------------------------------------------------------------------------------------------------- reading

    def read(self, at: int, length: int, *, wait: bool = True, verify: bool = True) -> tuple[memoryview, tuple[int, ...]] | None:
        """Read a range; fewer bytes only at the end of the column.

        Args:
            at: first byte.
            length: bytes.
            wait: if False, only what is in memory.
            verify: if False, sums are those of what is there, whatever is stored.

        Returns:
            The bytes and the CRC-32 of each block part; None if that would have waited for the disk.

        Raises:
            Mismatch: some of the blocks do not fit. OSError: the disk failed.
        """
        total = self.length
        end = min(at + length, total)
        if at >= end:
            return memoryview(b""), ()
        first = at // SUM_BYTES
        begin = first * SUM_BYTES
        upto = min(-(-end // SUM_BYTES) * SUM_BYTES, total)
        raw = self.data.pread(upto - begin, begin, wait=wait)
        if raw is None:
            return None
        sums = self._load(first, -(-upto // SUM_BYTES) - first, wait=wait)
        if sums is None:
            return None
        if not verify:
            there = memoryview(raw)[at - begin : end - begin]
            return there, blocks.sums_of(there, at)
        view = memoryview(raw)
        crcs, bad = [], []
        for number, sum_ in enumerate(sums):
            block = view[number * SUM_BYTES : (number + 1) * SUM_BYTES]
            crc = crc32(block)
            crcs.append(crc)
            if not fits(sum_, crc, min(SUM_BYTES, upto - begin - number * SUM_BYTES)):
                bad.append(first + number)
        if bad or len(raw) < upto - begin:
            raise Mismatch(bad or [first + len(raw) // SUM_BYTES])
        found = view[at - begin : end - begin]
        if at != begin:
            crcs[0] = crc32(found[: SUM_BYTES - (at - begin)])
        if end != upto and not (len(crcs) == 1 and at != begin):
            last = (len(crcs) - 1) * SUM_BYTES
            crcs[-1] = crc32(view[max(last, at - begin) : end - begin])
        return found, tuple(crcs)

    def _old_block(self, block: int, length: int, sum_: int) -> bytes:
        """Bytes of a block that a change leaves in part; checked, or damage would get a fresh sum."""
        old = self.data.pread(length, block * SUM_BYTES) or b""
        if self.trusted and not fits(sum_, crc32(old), length):
            raise Mismatch([block])
        return old.ljust(length, b"\0")

    def is_in_memory(self, at: int, length: int) -> bool:
        """Whether a write there would not wait for the disk: what it must read is in memory."""
        block, last = at // SUM_BYTES, (at + length - 1) // SUM_BYTES
        if self._load(block, last - block + 1, wait=False) is None:
            return False
        for edge in {block, last}:
            there = self._covered(edge, self.length)
            if there and self.data.pread(there, edge * SUM_BYTES, wait=False) is None:
                return False
        return True

    # ---------------------------------------------------------------------------------------------------------- changing

    def write(self, at: int, data: Buffer, crcs: tuple[int, ...]) -> None:
        """Write bytes whose block parts have these CRC-32s (the caller checked them).

        Raises:
            Mismatch: a block of which a part stays is damaged; nothing was written. OSError: see the module.
        """
        view = memoryview(data)
        end = at + len(view)
        if at == end:
            return
        length = self.length
        first, last = at // SUM_BYTES, (end - 1) // SUM_BYTES
        sums = self._load_now(first, last - first + 1)
        cut = 0
        for number, (block, inside, take) in enumerate(blocks.parts(at, len(view))):
            covered = self._covered(block, length)
            sums[number] = self._sum_after(block, inside, view[cut : cut + take], crcs[number], sums[number], covered)
            cut += take
        try:
            self._fill_gap(first * SUM_BYTES)
            self.data.pwrite(view, at)
            self._store(first, sums)
        except OSError:
            self._retake(min(first, length // SUM_BYTES), last + 1)
            raise
        self.length, self.blocks = self.data.size()

    def _sum_after(self, block: int, inside: int, part: memoryview, crc: int, sum_: int, covered: int) -> int:
        """Stored sum of a block of `covered` bytes after `part` (with this CRC) was put at `inside`."""
        if not covered:
            sum_ = HOLE  # whatever a crash left behind the end
        after = inside + len(part)
        if inside == 0 and after >= covered:
            return stored(crc)
        if inside >= covered and sum_ not in (HOLE, NO_ZERO):  # appended: the old bytes need not be read
            return stored(crc32(part, blocks.zeros_after(sum_, inside - covered)))
        if sum_ == HOLE and self.trusted:
            old: bytes = bytes(covered)
        else:
            old = self._old_block(block, covered, sum_) if covered else b""
        head = crc32(old[:inside].ljust(inside, b"\0"))
        return stored(crc32(old[after:], crc32(part, head)))

    def _fill_gap(self, until: int) -> None:
        """The last block, if only partly there, grows by zeros when something is put behind it."""
        block, there = divmod(self.length, SUM_BYTES)
        if not there or until <= self.length:
            return
        sums = self._load_now(block, 1)
        grown = min(SUM_BYTES, until - block * SUM_BYTES)
        if sums[0] == NO_ZERO:
            old = self._old_block(block, there, sums[0])
            sums[0] = stored(crc32(bytes(grown - there), crc32(old)))
        else:
            sums[0] = blocks.zeros_after(sums[0], grown - there)
        self._store(block, sums)

    def truncate(self, length: int) -> None:
        """Set the length. Raises as `write` does."""
        if length == self.length:
            return
        block, keep = divmod(length, SUM_BYTES)
        sums: array[int] | None = None
        if length < self.length and keep:
            sums = self._load_now(block, 1)
            if sums[0] != HOLE or not self.trusted:
                old = self._old_block(block, self._covered(block, self.length), sums[0])
                sums[0] = stored(crc32(memoryview(old)[:keep]))
        try:
            if length > self.length:
                self._fill_gap(length)
                self.data.truncate(length)
            else:
                self.data.truncate(length)
                self.sums.truncate(HEADER_BYTES + 4 * -(-length // SUM_BYTES))
                if sums is not None:
                    self._store(block, sums)
        except OSError:
            self._retake(block, block + 1)
            raise
        self.length, self.blocks = self.data.size()

    def allocate(self, at: int, length: int, how: str) -> None:
        """As `OsdAllocate`: a(llocate), k(eep size), p(unch), z(ero). Raises as `write` does."""
        if how in ("a", "k"):
            try:
                if how == "a":
                    self._fill_gap(at + length)
                self.data.allocate(FALLOC_KEEP_SIZE if how == "k" else 0, at, length)
            except OSError:
                self._retake(self.length // SUM_BYTES, self.length // SUM_BYTES + 1)
                raise
            self.length, self.blocks = self.data.size()
            return
        if how == "z" and at + length > self.length:
            self.truncate(at + length)
        end = min(at + length, self.length)
        if at < end:
            self._zero(at, end - at, FALLOC_KEEP_SIZE | (FALLOC_PUNCH_HOLE if how == "p" else FALLOC_ZERO_RANGE))
        self.length, self.blocks = self.data.size()

    def _zero(self, at: int, length: int, mode: int) -> None:
        first, last = at // SUM_BYTES, (at + length - 1) // SUM_BYTES
        sums = self._load_now(first, last - first + 1)
        for number, (block, inside, take) in enumerate(blocks.parts(at, length)):
            covered = self._covered(block, self.length)
            if inside == 0 and take >= covered:
                sums[number] = HOLE
            elif sums[number] != HOLE or not self.trusted:
                old = bytearray(self._old_block(block, covered, sums[number]))
                old[inside : inside + take] = bytes(take)
                sums[number] = stored(crc32(old))
        try:
            try:
                self.data.allocate(mode, at, length)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                for begin in range(at, at + length, STEP_BYTES):  # a file system without this: zeros, written
                    self.data.pwrite(bytes(min(STEP_BYTES, at + length - begin)), begin)
            self._store(first, sums)
        except OSError:
            self._retake(first, last + 1)
            raise

    def _retake(self, first: int, upto: int) -> None:
        """After a change that failed half-way: sums are made of what is there."""
        try:
            self.length, self.blocks = self.data.size()
            self.retake(list(range(first, min(upto, -(-self.length // SUM_BYTES)))))
        except OSError:
            self.trusted = False

    def retake(self, bad: list[int]) -> None:
        """Take blocks as they are: make their sums anew."""
        for block in bad:
            data = self.data.pread(SUM_BYTES, block * SUM_BYTES) or b""
            self._store(block, array("I", [stored(crc32(data))]))

    # ------------------------------------------------------------------------------------------------------------- whole

    def check(self, at: int) -> tuple[int, list[int]]:
        """Compare STEP_BYTES from `at` on with their sums; returns (where to go on, blocks that do not fit)."""
        try:
            self.read(at, STEP_BYTES)
        except Mismatch as mismatch:
            return at + STEP_BYTES, mismatch.bad
        return at + STEP_BYTES, []

    def seek(self, at: int, what: str) -> int:
        """Position of the next data ("d") or hole ("h") at or after `at`; -1: none."""
        if at >= self.length:
            return -1
        return self.data.seek(at, os.SEEK_DATA if what == "d" else os.SEEK_HOLE)

    def refresh(self) -> None:
        """Read the length again: a passthrough descriptor may have changed it."""
        self.length, self.blocks = self.data.size()

    def sync(self) -> None:
        """Make bytes and sums durable (names are the disk's business)."""
        self.data.sync()
        self.sums.sync()
