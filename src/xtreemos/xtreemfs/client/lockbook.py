"""The file locks that programs of this mount hold at one MRC, so that a session that is opened again can bring them back. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.protocol import LockRow

Kind = Literal["p", "b"]


class LockBook:
    """Rows by (MRC, inode, kind, owner); a new lock replaces what its owner had in its range."""

    def __init__(self, ledger: Ledger) -> None:
        """Make it empty; what changes is noted in the ledger, too."""
        self._ledger = ledger
        self._through: dict[tuple[int, Kind, int], int] = {}
        """(inode, kind, owner) -> the handle it was last locked through."""
        self._rows: dict[tuple[str, int, Kind, int], list[LockRow]] = {}
        self._lost: set[tuple[int, Kind, int]] = set()

    def lose(self, mrc: str, row: LockRow) -> None:
        """A lock was given to somebody else while the MRC was away: its owner's descriptors are good for nothing any more."""
        self.remove(mrc, row.ino, row.kind, row.owner)
        self._lost.add((row.ino, row.kind, row.owner))

    def is_lost(self, ino: int, owners: set[tuple[Kind, int]]) -> bool:
        """Whether one of these owners has lost a lock on a file."""
        return bool(self._lost) and any((ino, kind, owner) in self._lost for kind, owner in owners)

    def forgive(self, ino: int, owners: set[tuple[Kind, int]]) -> None:
        """These owners have closed the file."""
        self._lost -= {(ino, kind, owner) for kind, owner in owners}

    def has(self, mrc: str, ino: int, kind: Kind, owner: int) -> bool:
        """Whether an owner has any lock on a file."""
        return (mrc, ino, kind, owner) in self._rows

    def add(self, mrc: str, row: LockRow, fh: int) -> None:
        """A lock was got through an open file."""
        self.remove(mrc, row.ino, row.kind, row.owner, row.start, row.end)
        rows = self._rows.setdefault((mrc, row.ino, row.kind, row.owner), [])
        rows.append(row)
        self._through[row.ino, row.kind, row.owner] = fh
        self._ledger.lock(fh, row.ino, row.kind, row.owner, rows)

    def remove(self, mrc: str, ino: int, kind: Kind, owner: int, start: int = 0, end: int = (1 << 63) - 1) -> None:
        """A range (both ends inclusive) was unlocked."""
        key = (mrc, ino, kind, owner)
        left = [part for row in self._rows.get(key, ()) for part in _without(row, start, end)]
        if left:
            self._rows[key] = left
        else:
            self._rows.pop(key, None)
        fh = self._through.get(key[1:], 0) if left else self._through.pop(key[1:], 0)
        self._ledger.lock(fh, ino, kind, owner, left)

    def rows(self, mrc: str) -> tuple[LockRow, ...]:
        """Return all locks held at one MRC."""
        return tuple(row for key, rows in self._rows.items() if key[0] == mrc for row in rows)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))


def _without(row: LockRow, start: int, end: int) -> Iterator[LockRow]:
    if row.end < start or row.start > end:
        yield row
        return
    if row.start < start:
        yield LockRow(row.ino, row.kind, row.owner, row.start, start - 1, row.write, row.pid)
    if row.end > end:
        yield LockRow(row.ino, row.kind, row.owner, end + 1, row.end, row.write, row.pid)
