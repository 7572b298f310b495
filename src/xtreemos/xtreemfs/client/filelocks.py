"""Operations on file locks: POSIX and OFD locks by range, BSD locks by file; the MRC decides, waits there can be interrupted."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Awaitable
from typing import Any, Literal, cast

from xtreemos.errors import RemoteError, Unreachable
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client.attrs import AttrOps
from xtreemos.xtreemfs.client.links import NONE
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.errors import errno_of
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError

_BLOCKER: type[p.LockRow | None] = cast("Any", p.LockRow | None)


class LockOps(AttrOps):
    """getlk, setlk; and giving locks back at close."""

    def getlk(self, q: m.Lock) -> Awaitable[m.LockReply]:
        """See `fuse.handlers`."""
        return self._getlk(self.client.session_of(self.file(q.fh).inode.ino), self.file(q.fh).inode.ino, q)

    async def _getlk(self, session: Session, ino: int, q: m.Lock) -> m.LockReply:
        row = await session.call(q, ino, "mrc.testlock", lambda who: p.TestLock(who, _row(ino, q)), _BLOCKER, again=True)
        if row is None:
            return m.LockReply(fcntl.F_UNLCK)
        return m.LockReply(fcntl.F_WRLCK if row.write else fcntl.F_RDLCK, row.start, row.end, row.pid)

    def setlk(self, q: m.Lock) -> Awaitable[None]:
        """See `fuse.handlers`."""
        return self._setlk(q)

    async def _setlk(self, q: m.Lock) -> None:
        handle = self.file(q.fh)
        ino = handle.inode.ino
        session = self.client.session_of(ino)
        kind: Literal["p", "b"] = "b" if q.flock else "p"
        if q.type == fcntl.F_UNLCK:
            await session.call(
                q, ino, "mrc.unlock", lambda who: p.Unlock(who, ino, kind, q.owner, q.start, q.end), NONE, again=True
            )
            self.client.locks.remove(session.mrc, ino, kind, q.owner, q.start, q.end)
            return
        row = _row(ino, q)
        handle.lock_owners.add((kind, q.owner))
        if q.wait:
            got = await self._wait_for(session, q, row)
        else:
            got = await session.call(q, ino, "mrc.lock", lambda who: p.SetLock(who, row), bool, again=True)
        if not got:
            raise FuseError(errno.EAGAIN)
        self.client.locks.add(session.mrc, row, q.fh)

    async def _wait_for(self, session: Session, q: m.Lock, row: p.LockRow) -> bool:
        """Wait for a lock as long as it takes; a signal gives up. A connection that breaks is no reason to give up."""
        while True:
            await session.link.wait_up()
            peer = session.link.peer
            if peer is None:
                continue
            try:
                who = await session.who(peer, q, row.ino)
                call = peer.open("mrc.lock", calls.params(p.SetLock(who, row, wait=True)))
            except (RemoteError, Unreachable):
                continue
            try:
                return bool(calls.answer_of(await call.result(), bool))
            except RemoteError as error:
                raise FuseError(errno_of(error)) from None
            except Unreachable:
                continue
            finally:
                call.close()


def _row(ino: int, q: m.Lock) -> p.LockRow:
    return p.LockRow(ino, "b" if q.flock else "p", q.owner, q.start, q.end, q.type == fcntl.F_WRLCK, q.lock_pid or q.pid)
