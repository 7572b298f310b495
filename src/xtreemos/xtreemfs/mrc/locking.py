"""Methods about file locks: `mrc.lock`, `unlock`, `testlock`; the driver of `lease.locks`."""

from __future__ import annotations

import asyncio
import errno
import itertools
from typing import Any

from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import locks
from xtreemos.xtreemfs.model import FILE_BYTES_MAX
from xtreemos.xtreemfs.mrc.serving import Core


class Locking:
    """The methods; `handlers` is their table. Locks are memory: after a restart clients bring theirs back."""

    def __init__(self, core: Core, *, grace: bool) -> None:
        self._core = core
        self.locks = locks.Locks(grace=grace)
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bool]] = {}

    def handlers(self) -> dict[str, Handler]:
        """Return method -> handler."""
        return {"mrc.lock": self.lock, "mrc.unlock": self.unlock, "mrc.testlock": self.testlock}

    def feed(self, event: locks.Event) -> tuple[p.LockRow, ...]:
        """Feed the machine and give out its answers; returns what a Reclaim lost."""
        lost: tuple[p.LockRow, ...] = ()
        for effect in self.locks.on(event):
            match effect:
                case locks.Got(request, got):
                    self._answer(request, got)
                case locks.Deadlock(request):
                    self._answer(request, FsError(errno.EDEADLK))
                case locks.NoLocks(request):
                    self._answer(request, FsError(errno.ENOLCK))
                case locks.Reclaimed(_client, rows):
                    lost = rows
                case _:
                    raise AssertionError(f"unknown effect {effect}")
        return lost

    def _answer(self, request: int, answer: bool | FsError) -> None:
        future = self._waiting.pop(request, None)
        if future is not None and not future.done():
            if isinstance(answer, FsError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _check(self, call: ServerCall, row: p.LockRow, who: p.Who) -> None:
        self._core.cred(call, who, row.ino)
        inode = self._core.state.inode(row.ino)
        if inode.is_dir and row.kind == "p":
            raise FsError(errno.EINVAL)
        if not 0 <= row.start <= row.end <= FILE_BYTES_MAX:
            raise FsError(errno.EINVAL)

    async def lock(self, call: ServerCall) -> bool:
        """Whether it was got; with `wait` it stays open until it was. Closing the call gives up waiting."""
        m, client = self._core.opened(call, p.SetLock)
        self._check(call, m.row, m.who)
        request = next(self._requests)
        future = self._waiting[request] = asyncio.get_running_loop().create_future()
        self.feed(locks.Lock(request, client, m.row, m.wait))
        try:
            got = await future
        except asyncio.CancelledError:
            self._waiting.pop(request, None)
            if future.done() and not future.cancelled() and future.exception() is None and future.result():
                self._give_back(client, m.row)  # it was granted in this very moment, to somebody who is not there any more
            else:
                self.feed(locks.Cancel(request))
            raise
        return await self._core.leasing.ordered(got, call)

    def _give_back(self, client: str, row: p.LockRow) -> None:
        self.feed(locks.Unlock(client, row.ino, row.kind, row.owner, row.start, row.end))

    async def unlock(self, call: ServerCall) -> None:
        """Give back a range, or all of an owner."""
        m, client = self._core.opened(call, p.Unlock)
        self.feed(locks.Unlock(client, m.ino, m.kind, m.owner, m.start, m.end, m.all_of_owner))
        await self._core.leasing.ordered(None, call)

    async def testlock(self, call: ServerCall) -> Any:
        """Who stands in the way, None if nobody."""
        m, client = self._core.opened(call, p.TestLock)
        self._check(call, m.row, m.who)
        return await self._core.leasing.ordered(self.locks.blocker(client, m.row), call)
