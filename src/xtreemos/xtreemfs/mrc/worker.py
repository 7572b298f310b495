"""What the MRC does by itself: fences, deletion of objects, purging of removed volumes, telling DIR, and the store's housekeeping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from xtreemos.errors import XosError
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import locks
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.model import volume_of
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.locking import Locking
from xtreemos.xtreemfs.mrc.model import PURGE_KEYS
from xtreemos.xtreemfs.mrc.opening import Opening
from xtreemos.xtreemfs.mrc.osds import DELETE_BATCH, Osds, Patience
from xtreemos.xtreemfs.mrc.serving import Core

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
GARBAGE_ROWS: Final = 1024  # looked at in one round
FREE_BATCH: Final = 512


class Worker:
    """Carries out what the lease table and the store leave to be done (`leasing.Hooks`), and runs the clock. One per MRC."""

    def __init__(self, osds: Osds) -> None:
        self._osds = osds
        self._tasks: set[asyncio.Task[None]] = set()
        self._unused: list[int] = []
        self._patience = Patience()
        self._deleting: set[str] = set()
        self._after: int = 0
        self._refused = False
        self.core: Core
        self.opening: Opening
        self.locking: Locking

    def begin(self, core: Core, opening: Opening, locking: Locking) -> None:
        """Say what to work on: these parts need the lease table, which needs its hooks."""
        self.core, self.opening, self.locking = core, opening, locking

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("work of the MRC failed", exc_info=task.exception())

    async def close(self) -> None:
        """End all work; what was not done is in the store and begins again at the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._osds.close()

    # -- hooks of the lease table ----------------------------------------------------------------------------------------

    def opened(self, client: str, *, new: bool) -> None:
        """See `Hooks`."""
        if new:
            self.core.execute(do.OpenSession(client, self.opening.nodes.get(client, ""), int(time.time())))
        self.opening.reclaim(client)

    def fence(self, effect: table.Fence) -> None:
        """See `Hooks`: a larger epoch is durable before any OSD hears it."""
        ino = effect.ino
        epoch = self.core.leasing.new_epoch()
        try:
            self.core.execute(do.Writer("", ino, epoch))
        except FsError:  # the inode is gone, and with it what could be written
            asyncio.get_running_loop().call_soon(self.core.leasing.feed, table.Fenced(ino))
            return
        log.info("the writer of inode %x is gone: fencing it with epoch %d", ino, epoch)
        self._start(self._fence(ino, epoch))

    async def _fence(self, ino: int, epoch: int) -> None:
        core = self.core
        await core.leasing.ordered(None)
        layout = core.state.cold(ino).layout
        size = await self._osds.fence(ino, epoch, layout) if layout is not None else 0
        inode = core.state.find_inode(ino)
        if inode is not None:
            if size > inode.size:  # a size that was acknowledged is never taken back
                core.execute(do.Update(ino, size=size), volume_of(ino))
            core.execute(do.WritersDone(((ino, ""),)))
        core.leasing.feed(table.Fenced(ino))

    def unused(self, ino: int) -> None:
        """See `Hooks`: freed together with others at the next tick."""
        self._unused.append(ino)

    def lapsed(self, client: str) -> None:
        """See `Hooks`."""
        self.locking.feed(locks.ClientGone(client))

    def forgotten(self, client: str) -> None:
        """See `Hooks`."""
        self.locking.feed(locks.ClientGone(client, forever=True))
        self.core.gone(client)
        self.opening.nodes.pop(client, None)
        self.core.execute(do.CloseSession(client))

    def grace_over(self) -> None:
        """See `Hooks`: files without a name that nobody claimed go."""
        self.locking.feed(locks.GraceOver())
        self.look_at_orphans()

    def look_at_orphans(self) -> None:
        """Let the table say of every file without a name when nobody has it open."""
        for ino in self.core.state.orphans():
            self.core.leasing.feed(table.Orphan(ino))

    # -- the clock -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            self.core.leasing.tick()
            for work in (self.opening.flush_ended, self._free_unused, self._delete_garbage, self._purge):
                self._try(work)
            self.core.journal.tick()

    def _try(self, work: Callable[[], None]) -> None:
        """Do a piece of housekeeping; what the store refuses (its disk is full) waits, and is told once."""
        try:
            work()
        except FsError as error:
            if not self._refused:
                log.warning("the MRC's housekeeping waits: %s", error.line())
            self._refused = True
        else:
            self._refused = False

    def _free_unused(self) -> None:
        while self._unused:
            self.core.free(tuple(self._unused[:FREE_BATCH]))  # if that is refused (a full disk) they stay for later
            del self._unused[:FREE_BATCH]

    def _delete_garbage(self) -> None:
        rows = self.core.state.all_garbage(self._after, GARBAGE_ROWS)
        self._after = rows[-1][0] if len(rows) == GARBAGE_ROWS else 0
        wanted: dict[str, list[int]] = {}
        for ino, osds in rows:
            for osd in osds:
                wanted.setdefault(osd, []).append(ino)
        now = time.monotonic()
        for osd, inos in wanted.items():
            if osd not in self._deleting and self._patience.ready(osd, now):
                self._deleting.add(osd)
                self._start(self._delete(osd, inos))

    async def _delete(self, osd: str, inos: list[int]) -> None:
        try:
            await self.core.leasing.ordered(None)  # nothing is deleted whose end is not on the disk
            for start in range(0, len(inos), DELETE_BATCH):
                batch = tuple(inos[start : start + DELETE_BATCH])
                await self._osds.delete(osd, batch, max(map(self.core.state.garbage_width, batch)))
                self.core.execute(do.Deleted(osd, batch))
            self._patience.answered(osd)
        except XosError as error:
            if self._patience.failed(osd, time.monotonic()):
                log.warning("objects on %s cannot be deleted yet: %s", osd, error)
        finally:
            self._deleting.discard(osd)

    def _purge(self) -> None:
        for row in self.core.gone_volumes():
            if self.core.execute(do.Purge(row.record.id, PURGE_KEYS)):
                self.core.forget_volume(row.record.id)
                log.info("volume %s is gone", row.record.name)
