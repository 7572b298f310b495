"""What an OSD does by itself: clean marks, what a crash left, descriptors that came back, old words of deleted files, and scrubs."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.osd.column import STEP_BYTES, Mismatch
from xtreemos.xtreemfs.osd.lending import Lending
from xtreemos.xtreemfs.osd.marks import gone_row
from xtreemos.xtreemfs.osd.model import DamageRow, Key, key_of
from xtreemos.xtreemfs.osd.shelf import Shelf
from xtreemos.xtreemfs.osd.store import Entry, Store

log = logging.getLogger(__name__)

TICK_S = 2.0
QUIET_S = 2.0
"""A synced column gets its clean mark after so long without a change."""
SYNC_ALL_S = 30.0
"""What nobody synced is synced by us after so long."""
GONE_KEEP_S = 86_400
"""How long deleted files are remembered; longer than any capability lives."""
SCRUB_BYTES_S = 64 << 20
SCRUB_EVERY_S = 7 * 86_400.0
IDLE_S = 60.0
"""A scrub by itself runs only when nobody asked for anything for so long."""
NAMES_STEP = 512


class Scrub:
    """One pass over all columns: clean ones are compared with their sums, at most `bytes_s` bytes a second."""

    def __init__(
        self, store: Store, lending: Lending, *, bytes_s: int = SCRUB_BYTES_S, idle: Callable[[], bool] = lambda: True
    ) -> None:
        self._store = store
        self._lending = lending
        self._bytes_s = bytes_s
        self._idle = idle
        self.files = 0
        self.bytes = 0
        self.total = 0
        self.damaged: list[DamageRow] = []
        self.torn: list[DamageRow] = []

    async def run(self, tell: Callable[[int, int, int], None]) -> None:
        """Go over everything; `tell(done, total, damaged)` in columns, after each few."""
        for shelf in self._store.shelves:
            names = await self._store.thread(lambda shelf=shelf: [name for name, _bytes in shelf.disk.walk()])
            keys = sorted(key for name in names if (key := key_of(name)) is not None)
            self.total += len(keys)
            for key in keys:
                await self._one(shelf, key)
                self.files += 1
                tell(self.files, self.total, len(self.damaged))

    async def _one(self, shelf: Shelf, key: Key) -> None:
        store = self._store
        try:
            async with store.entry(key) as entry:
                if entry.column is None or shelf.ledger.is_lent(key):
                    return
                if not entry.column.trusted:
                    self.torn += await self._lending.recover(entry)
                    return
                bad = await self._blocks(entry)
        except FsError as error:
            if error.errno not in (errno.EIO, errno.ESTALE):
                raise
            if error.errno == errno.EIO:
                self.damaged.append(DamageRow(*key, 0, "damaged", int(store.now())))
            return
        rows = [DamageRow(*key, block, "damaged", int(store.now())) for block in bad]
        await store.damage.scrubbed(shelf, key, rows)
        self.damaged += rows

    async def _blocks(self, entry: Entry) -> list[int]:
        """Blocks of a clean column that do not fit."""
        bad: list[int] = []
        at = 0
        while entry.column is not None and at < entry.column.length and not entry.gone:
            while not self._idle():
                await asyncio.sleep(1.0)
            try:
                found = await self._store.thread(entry.column.read, at, STEP_BYTES)
                count = len(found[0]) if found is not None else 0
            except Mismatch:
                async with entry.lock:  # alone, as every reader that met a change
                    if entry.column is not None:
                        _next, more = await self._store.thread(entry.column.check, at)
                        bad += more
                count = STEP_BYTES
            except OSError as error:
                raise FsError(errno.EIO, f"the disk failed: {error.strerror}") from error
            at += STEP_BYTES
            self.bytes += count
            await asyncio.sleep(count / self._bytes_s)
        return bad


class Keeper:
    """Runs beside the service; `run` is for ever."""

    def __init__(self, store: Store, lending: Lending, last_request_s: Callable[[], float]) -> None:
        self._store = store
        self._lending = lending
        self._last_request_s = last_request_s
        self.scrubbing: Scrub | None = None
        self.scrubbed_at_s = store.now()

    async def run(self) -> None:
        """Recover what a crash left, then keep house."""
        await self._finish_deletes()
        await self._count()
        await self._recover()
        last_all_s = self._store.now()
        while True:
            await asyncio.sleep(TICK_S)
            for shelf in self._store.shelves:
                for key in shelf.ledger.lent():
                    async with self._store.entry(key) as entry:
                        if entry.column is not None:
                            await self._lending.take_back(entry)
                if self._store.now() - last_all_s > SYNC_ALL_S / 2 or self._store.crowded(shelf):
                    await self._store.sync_all(shelf, older_s=0.0 if self._store.crowded(shelf) else SYNC_ALL_S / 2)
                    last_all_s = self._store.now()
                await self._store.settle(shelf, quiet_s=0.0 if self._store.crowded(shelf) else QUIET_S)
            await self._recover()  # what was in use when it was its turn
            await self._forget_gone()
            if self._is_idle() and self._store.now() - self.scrubbed_at_s > SCRUB_EVERY_S and self.scrubbing is None:
                await self.scrub(lambda _done, _total, _damaged: None, idle=self._is_idle)

    def _is_idle(self) -> bool:
        return self._store.now() - self._last_request_s() > IDLE_S

    async def scrub(self, tell: Callable[[int, int, int], None], *, idle: Callable[[], bool] = lambda: True) -> Scrub:
        """Scrub now. FsError(EBUSY): a scrub is running."""
        if self.scrubbing is not None:
            raise FsError(errno.EBUSY, "a scrub is running already")
        self.scrubbing = Scrub(self._store, self._lending, idle=idle)
        try:
            await self.scrubbing.run(tell)
            self.scrubbed_at_s = self._store.now()
            return self.scrubbing
        finally:
            self.scrubbing = None

    async def _finish_deletes(self) -> None:
        """A crash may have come between the word that files are gone and their removal."""
        for shelf in self._store.shelves:
            inos = [ino for ino, _at in shelf.marks.gone()]
            for begin in range(0, len(inos), NAMES_STEP):
                await self._store.thread(
                    lambda shelf=shelf, part=inos[begin : begin + NAMES_STEP]: [shelf.remove(ino) for ino in part]
                )

    async def _count(self) -> None:
        """How much the columns take."""
        for shelf in self._store.shelves:
            rows = await self._store.thread(lambda shelf=shelf: list(shelf.disk.walk()))
            self._store.space.used(sum(taken for _name, taken in rows))
            self._store.columns += sum(key_of(name) is not None for name, _taken in rows)

    async def _recover(self) -> None:
        torn = 0
        for shelf in self._store.shelves:
            for key in self._store.unsure(shelf):
                try:
                    async with self._store.entry(key) as entry:
                        if entry.column is not None:
                            torn += len(await self._lending.recover(entry))
                        else:
                            shelf.ledger.drop(key)
                except FsError as error:
                    log.warning("column %d of file %x: %s", key.column, key.ino, error)
        if torn:
            log.info("%d blocks that were not synced before a crash were torn; they were taken as they are", torn)

    async def _forget_gone(self) -> None:
        for shelf in self._store.shelves:
            old = [ino for ino, at in shelf.marks.gone() if self._store.now() - at > GONE_KEEP_S]
            if old:
                await self._store.thread(shelf.disk.sync_all)  # or a crash could bring the names back
                await self._store.commit(shelf, {gone_row(ino): None for ino in old})
                self._store.forget_gone(old)
