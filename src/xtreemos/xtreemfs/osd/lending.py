"""Descriptors that were handed out for passthrough, and columns that a crash left: who may be writing without telling us.

A column of which a descriptor for writing is out is not trusted and gets no clean mark. Whether it is back only the kernel knows: it
is asked (`Disk.is_lent`) while we have the file closed ourselves. The same question comes before a column that was found dirty is
trusted again, for a client of ours may have outlived us.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.osd.column import Column
from xtreemos.xtreemfs.osd.files import RealDisk, RealFile, is_in_use
from xtreemos.xtreemfs.osd.model import DamageRow, Key, data_name
from xtreemos.xtreemfs.osd.shelf import Shelf
from xtreemos.xtreemfs.osd.store import Check, Entry, Store


class Lending:
    """See the module."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def lend(self, key: Key, *, raised: Fence, check: Check, write: bool) -> tuple[int, int, int]:
        """Open a column's file for somebody else: (descriptor, length, blocks). With `write` its sums count for nothing until it is back."""
        store = self._store
        async with store.entry(key) as entry:
            if write or entry.column is None:
                await store.change(key, _nothing, raised=raised, check=check)
            async with entry.lock:
                shelf, column = entry.shelf, entry.column
                if shelf is None or column is None or entry.gone or not isinstance(shelf.disk, RealDisk):
                    raise FsError(errno.ESTALE, f"file {key.ino:x} was deleted")
                check(store.fence(key.ino, column))
                with store.disk_errors(entry):
                    if write:
                        await store.begin_change(entry, shelf)
                        shelf.ledger.finished(key)
                        shelf.ledger.lend(key, lent=True)
                        column.trusted = False
                        store.right.pop(key, None)
                    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
                    descriptor = os.open(_path(shelf, key), flags)
                column.refresh()
                return descriptor, column.length, column.blocks

    async def is_in_use(self, key: Key) -> bool:
        """Tell whether somebody else has a column's file open or mapped."""
        async with self._store.entry(key) as entry, entry.lock:
            column = entry.column
            return column is not None and isinstance(column.data, RealFile) and is_in_use(column.data.descriptor)

    async def sync(self, key: Key, check: Check) -> tuple[int, int]:
        """Sync a column; if it was lent and is back, make its sums. As `Store.sync`."""
        store = self._store
        found = await store.sync(key, check)
        async with store.entry(key) as entry:
            if entry.shelf is not None and entry.shelf.ledger.is_lent(key):
                await self.take_back(entry)
                return await store.stat(key, check)
        return found

    async def take_back(self, entry: Entry) -> bool:
        """If nobody has a lent column open for writing any more, make its sums of what is there; returns whether it is back."""
        shelf = entry.shelf
        if shelf is None or not shelf.ledger.is_lent(entry.key):
            return False
        return await self._examine(entry, shelf) is not None

    async def recover(self, entry: Entry) -> list[DamageRow]:
        """Compare a column that was found dirty with its sums and take what does not fit, told as torn."""
        shelf = entry.shelf
        if shelf is None or entry.column is None or entry.column.trusted or shelf.ledger.is_lent(entry.key):
            return []
        torn = await self._examine(entry, shelf) or []
        await self._store.damage.report(shelf, torn)
        return torn

    async def _examine(self, entry: Entry, shelf: Shelf) -> list[DamageRow] | None:
        """Make the sums of what is there; rows of what did not fit, None if somebody may still be writing, or is reading just now."""
        store, key = self._store, entry.key
        async with entry.lock:
            column: Column | None = entry.column
            if column is None or column.trusted or entry.gone or entry.users > 1:
                return None
            with store.disk_errors(entry):
                shelf.ledger.found(key)
                entry.column = None
                column.close()  # or the disk would find ourselves
                column = entry.column = await store.thread(shelf.open, key)
                shelf.ledger.lend(key, lent=column is not None and column.lent)
                if column is None or column.lent:
                    return None
                await store.begin_change(entry, shelf)
                try:
                    torn = await store.thread(shelf.recover, key, column, int(store.now()))
                finally:
                    shelf.ledger.finished(key)
            store.right[key] = column.length
            return torn


def _nothing(_column: Column) -> None:
    """A change that changes nothing: makes the column if need be."""


def _path(shelf: Shelf, key: Key) -> Path:
    assert isinstance(shelf.disk, RealDisk), "descriptors are of the kernel's files"
    return shelf.disk.folder / data_name(key)
