"""One disk of an OSD: its columns, marks and ledger, as plain calls that a thread makes. Who may call when is the store's business.

This is the part whose order of writes must survive a crash, so it is one that the crash tests can run on a disk that forgets.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import WIDTH_MAX
from xtreemos.xtreemfs.osd.column import Column
from xtreemos.xtreemfs.osd.files import Disk
from xtreemos.xtreemfs.osd.ledger import Ledger
from xtreemos.xtreemfs.osd.marks import Marks, Rows, encode, encode_time, fence_row, gone_row, mark_row
from xtreemos.xtreemfs.osd.model import DamageRow, Key, Mark, data_name, sums_name


class Shelf:
    """See the module. `marks` are current; rows to be made durable are returned, for commits are grouped elsewhere."""

    def __init__(self, disk: Disk, marks: Marks) -> None:
        self.disk = disk
        self.marks = marks
        self.ledger = Ledger()
        self.new_names: set[Key] = set()
        """Columns whose names may not be durable."""
        for key, mark in marks.marks():
            if not mark.clean:
                self.ledger.found(key)

    # ------------------------------------------------------------------------------------------------------------ opening

    def open(self, key: Key, *, known_here: bool = False) -> Column | None:
        """Open a column that exists; None if it does not.

        Args:
            key: the column.
            known_here: this process made or repaired it and synced nothing since, so its sums are right without a mark.

        Raises:
            FsError(EIO): it should exist, with so many bytes, and does not. OSError: the disk failed.
        """
        mark = self.marks.mark(key)
        trusted = known_here or (mark is not None and mark.clean)
        lent = not trusted and self.disk.is_lent(data_name(key))  # asked first, or we would find ourselves
        data = self.disk.open(data_name(key), create=False)
        if data is None:
            if mark is not None:
                raise FsError(errno.EIO, f"column {key.column} of file {key.ino:x} is gone from its disk")
            return None
        sums = self.disk.open(sums_name(key), create=True)
        assert sums is not None, "created"
        if mark is None or not sums.size()[0]:
            self.new_names.add(key)  # as far as we know: a process before us may have been killed before it synced them
        column = Column(data, sums, trusted=trusted)
        column.lent = lent
        if mark is not None and mark.clean and mark.length != column.length and not known_here:
            column.close()
            raise FsError(errno.EIO, f"column {key.column} of file {key.ino:x} has {column.length} bytes, not {mark.length}")
        return column

    def create(self, key: Key) -> Column:
        """Make an empty column; nothing of it is durable."""
        data = self.disk.open(data_name(key), create=True)
        sums = self.disk.open(sums_name(key), create=True)
        assert data is not None, "created"
        assert sums is not None, "created"
        if sums.size()[0]:
            sums.truncate(0)  # a crash kept the sums of a column that it did not keep
        self.new_names.add(key)
        return Column(data, sums, trusted=True)

    # ----------------------------------------------------------------------------------------------------------- changing

    def rows_before_change(self, key: Key) -> Rows:
        """Rows that must be durable before a change of this column; then call `ledger.marked` and `ledger.changed`."""
        mark = None if self.ledger.is_listed(key) else self.marks.mark(key)
        return {mark_row(key): encode(Mark(clean=False, length=0))} if self.ledger.mark_needed(key, mark) else {}

    def sync(self, key: Key, column: Column) -> None:
        """Make a column durable, name included (in a thread; the ledger is told by who called)."""
        column.sync()
        if key in self.new_names:
            self.disk.sync_names(data_name(key).partition("/")[0])
            self.new_names.discard(key)

    def clean_rows(self, columns: Iterable[tuple[Key, int]]) -> Rows:
        """Rows that mark columns of these lengths clean."""
        return {mark_row(key): encode(Mark(clean=True, length=length)) for key, length in columns}

    def recover(self, key: Key, column: Column, now_s: int) -> list[DamageRow]:
        """Compare a whole column that was found dirty with its sums and take what does not fit; it is trusted afterwards, yet not synced."""
        torn: list[DamageRow] = []
        column.refresh()
        at = 0
        while at < column.length:
            at, bad = column.check(at)
            column.retake(bad)
            torn += [DamageRow(*key, block, "torn", now_s) for block in bad]
        column.trusted = True
        return torn

    # ----------------------------------------------------------------------------------------------------------- removing

    def rows_of_gone(self, ino: int, now_s: int, width: int = WIDTH_MAX) -> Rows:
        """Rows that say a file is deleted; durable before `remove`, so that a crash between them leaves nothing behind for good."""
        rows: dict[bytes, bytes | None] = {gone_row(ino): encode_time(now_s), fence_row(ino): None}
        for column in range(width):
            rows[mark_row(Key(ino, column))] = None
        return rows

    def remove(self, ino: int, width: int = WIDTH_MAX) -> tuple[int, int]:
        """Remove the columns of a file below number `width`; nothing happens to what is not there. Returns (bytes that they took, how many they were)."""
        freed = columns = 0
        for number in range(width):
            key = Key(ino, number)
            taken = self.disk.unlink(data_name(key))
            if taken is not None:
                freed, columns = freed + taken, columns + 1
            self.disk.unlink(sums_name(key))
            self.new_names.discard(key)
        return freed, columns

    def fence_rows(self, ino: int, fence: Fence) -> Rows:
        """Rows that put up a fence."""
        return {fence_row(ino): encode(fence)}
