"""What the next mount process has to know if this one is killed: rows in memory that outlives it. No I/O.

    inode   the kernel knows it: attributes, pages and names of it may be cached there
    dirty   bytes of it were taken and are not at the OSDs: if we die they are lost, which its open files have to hear
    file    an open file, by the handle that the kernel shows us
    passed  a file of the OSD that the kernel reads by itself (`passthrough`), or that is perhaps still mapped
    lock    a file lock that the MRC gave us, and the handle that it was taken through

Rows have one size; the kind is its last byte and is written last (and cleared first), so that a row that is there is whole, wherever
the kill comes. Slot 0 is the head. The memory is shared: another process maps it and reads the rows.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, Literal, NamedTuple

from xtreemos.xtreemfs.protocol import LockRow

SLOTS_MAX: Final = 1 << 20  # 48 MiB; pages of it are taken only as rows come. More, and nothing can be taken over
MAGIC: Final = 0x584F534C_00000001  # with the version of the layout

LockKind = Literal["p", "b"]

_HEAD = Struct("<QIIB")  # magic, how often it was taken over, slots used, whether rows did not fit
_ROW = Struct("<QQQQQIxxxB")  # five numbers, a short one, the kind
_BYTES = _ROW.size
_KIND_AT = _BYTES - 1
LEDGER_BYTES: Final = SLOTS_MAX * _BYTES


class _Kind(IntEnum):
    FREE = 0
    INODE = 1
    DIRTY = 2
    FILE = 3
    LOCK = 4
    PASSED = 5


class KeptLock(NamedTuple):
    """A lock, and the handle of the open file that it was taken through."""

    fh: int
    row: LockRow


class Ledger:
    """The rows. One thread; whoever made the memory says whether another process can have it."""

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        """Take over the rows that are in `memory` (of `LEDGER_BYTES`, zeros if fresh); memory of its own if none is given.

        Raises:
            ValueError: another version wrote it, or rows are missing in it.
        """
        self._memory = mmap.mmap(-1, LEDGER_BYTES) if memory is None else memory
        self._slots: dict[tuple[int, int], int] = {}
        self._locks: dict[tuple[int, LockKind, int], list[int]] = {}
        self._free: list[int] = []
        self._end = 1
        self.generation = 0
        """How often it was taken over."""
        magic, generation, end, overflown = _HEAD.unpack_from(self._memory)
        if magic:
            if magic != MAGIC or overflown:
                raise ValueError("what the former mount process has left cannot be taken over")
            self.generation, self._end = generation + 1, end
            self._read()
        self._write_head()

    def _write_head(self, *, overflown: bool = False) -> None:
        _HEAD.pack_into(self._memory, 0, MAGIC, self.generation, self._end, overflown)

    def _read(self) -> None:
        for slot, row in self._rows():
            kind = row[6]
            if kind == _Kind.LOCK:
                lock = _lock_of(row).row
                self._locks.setdefault((lock.ino, lock.kind, lock.owner), []).append(slot)
            elif kind:
                self._slots[kind, row[0]] = slot
            else:
                self._free.append(slot)

    def _rows(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        for slot in range(1, self._end):
            yield slot, _ROW.unpack_from(self._memory, slot * _BYTES)

    def _put(self, kind: _Kind, *numbers: int, short: int = 0) -> int:
        if self._free:
            slot = self._free.pop()
        elif self._end < SLOTS_MAX:
            slot = self._end
            self._end += 1
            self._write_head()
        else:
            self._write_head(overflown=True)
            return 0
        five = (*numbers, 0, 0, 0, 0, 0)[:5]
        _ROW.pack_into(self._memory, slot * _BYTES, *five, short, kind)
        return slot

    def _clear(self, slot: int) -> None:
        if slot:
            self._memory[slot * _BYTES + _KIND_AT] = 0
            self._free.append(slot)

    def _add(self, kind: _Kind, first: int, *more: int, short: int = 0) -> None:
        if (kind, first) not in self._slots:
            self._slots[kind, first] = self._put(kind, first, *more, short=short)

    def _remove(self, kind: _Kind, first: int) -> None:
        self._clear(self._slots.pop((kind, first), 0))

    # ----------------------------------------------------------------------------------------------------------- writing

    def know(self, ino: int) -> None:
        """The kernel knows an inode from now on."""
        self._add(_Kind.INODE, ino)

    def forget(self, ino: int) -> None:
        """The kernel knows it no more."""
        self._remove(_Kind.INODE, ino)

    def note_dirty(self, ino: int) -> None:
        """Bytes of a file are with us alone."""
        self._add(_Kind.DIRTY, ino)

    def note_clean(self, ino: int) -> None:
        """None are."""
        self._remove(_Kind.DIRTY, ino)

    def open(self, fh: int, ino: int, flags: int) -> None:
        """A file was opened under this handle."""
        self._add(_Kind.FILE, fh, ino, short=flags)

    def close(self, fh: int) -> None:
        """It was closed."""
        self._remove(_Kind.FILE, fh)

    def pass_by(self, ino: int, number: int) -> None:
        """The kernel has the OSD's file of an inode under this number; 0: closed, but perhaps still mapped."""
        self._remove(_Kind.PASSED, ino)
        self._add(_Kind.PASSED, ino, number)

    def end_pass(self, ino: int) -> None:
        """It has it no more."""
        self._remove(_Kind.PASSED, ino)

    def lock(self, fh: int, ino: int, kind: LockKind, owner: int, rows: list[LockRow]) -> None:
        """An owner has these locks on a file now, and no others."""
        for slot in self._locks.pop((ino, kind, owner), ()):
            self._clear(slot)
        if rows:
            self._locks[ino, kind, owner] = [
                self._put(_Kind.LOCK, row.ino, row.owner, row.start, row.end, fh << 2 | row.write << 1 | (row.kind == "p"), short=row.pid)
                for row in rows
            ]  # fmt: skip

    # ----------------------------------------------------------------------------------------------------------- reading

    def inodes(self) -> list[int]:
        """Return what the kernel knows."""
        return [first for kind, first in self._slots if kind == _Kind.INODE]

    def dirty(self) -> set[int]:
        """Return the files of which bytes were not at the OSDs."""
        return {first for kind, first in self._slots if kind == _Kind.DIRTY}

    def files(self) -> list[tuple[int, int, int]]:
        """Return rows of (handle, inode, flags of the open)."""
        return [(row[0], row[1], row[5]) for row in self._all(_Kind.FILE)]

    def passed(self) -> dict[int, int]:
        """Return inode -> number of what the kernel has of the OSD's files."""
        return {row[0]: row[1] for row in self._all(_Kind.PASSED)}

    def _all(self, wanted: _Kind) -> list[tuple[int, ...]]:
        return [_ROW.unpack_from(self._memory, slot * _BYTES) for (kind, _first), slot in self._slots.items() if kind == wanted]

    def locks(self) -> list[KeptLock]:
        """Return all locks."""
        slots = [slot for held in self._locks.values() for slot in held]
        return [_lock_of(_ROW.unpack_from(self._memory, slot * _BYTES)) for slot in slots]

    def __len__(self) -> int:
        return len(self._slots) + sum(map(len, self._locks.values()))


def _lock_of(row: tuple[int, ...]) -> KeptLock:
    ino, owner, start, end, packed, pid, _kind = row
    return KeptLock(packed >> 2, LockRow(ino, "p" if packed & 1 else "b", owner, start, end, bool(packed & 2), pid))
