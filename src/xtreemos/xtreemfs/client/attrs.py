"""Operations on attributes: stat, chmod and its kin, extended attributes, statfs."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client import aclids, magic
from xtreemos.xtreemfs.client.files import FileOps
from xtreemos.xtreemfs.client.inodes import Changed, Inode
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.acl import ACCESS, DEFAULT
from xtreemos.xtreemfs.fuse.constants import SETXATTR_ACL_KILL_SGID
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import VO_ROOT_INO, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, Level, volume_of

STATX_ALL = 0xFFF  # basic statistics and birth time
ATIME_NOW, MTIME_NOW = 1, 2
XATTRS_MAX = 64  # values kept of one inode

ACLS = frozenset({ACCESS, DEFAULT})


class AttrOps(FileOps):
    """getattr, statx, setattr, xattrs, statfs."""

    def getattr(self, q: m.GetAttr) -> m.AttrReply | Awaitable[m.AttrReply]:
        """See `fuse.handlers`."""
        client = self.client
        ino = client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            return m.AttrReply(self._vo_root(), 10**9)
        session = client.session_of(ino)
        inode = client.inodes.get(ino)
        if inode is not None and inode.fresh and session.can(ino, Level.READ) and client.is_known(session, inode.attr):
            return client.attr_reply(session, inode)
        return self._getattr_later(session, ino, q)

    async def _getattr_later(self, session: Session, ino: int, q: m.Request) -> m.AttrReply:
        inode = await self.fresh_inode(session, ino, q)
        return self.client.attr_reply(session, inode)

    def statx(self, q: m.Statx) -> Awaitable[m.StatxReply]:
        """See `fuse.handlers`."""
        return self._statx_later(q)

    async def _statx_later(self, q: m.Statx) -> m.StatxReply:
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            return m.StatxReply(self._vo_root(), STATX_ALL, valid_ns=10**9)
        session = self.client.session_of(ino)
        inode = await self.fresh_inode(session, ino, q)
        reply = self.client.attr_reply(session, inode)
        return m.StatxReply(reply.attr, STATX_ALL, inode.attr.btime_ns, valid_ns=reply.valid_ns)

    def _vo_root(self) -> m.Attr:
        live = sum(not record.removed for record in self.client.directory.state.volumes.values())
        at = self.client.started_ns
        return m.Attr(VO_ROOT_INO, 0o40755, 4096, 2 + live, 0, 0, at, at, at, 8)

    # --------------------------------------------------------------------------------------------------------- changing

    def setattr(self, q: m.SetAttr) -> m.AttrReply | Awaitable[m.AttrReply]:
        """See `fuse.handlers`."""
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            raise FuseError(errno.EPERM)
        session = self.client.session_of(ino)
        return self._set_times_now(session, ino, q) or self._setattr_later(session, ino, q)

    def _set_times_now(self, session: Session, ino: int, q: m.SetAttr) -> m.AttrReply | None:
        """Set only the times of a file that its owner has alone here: like those of a write they are told a little later. None if it is not so."""
        client = self.client
        inode = client.inodes.get(ino)
        others = q.mode is not None or q.uid_new is not None or q.gid_new is not None or q.size is not None
        given = [(q.atime_ns, q.atime_now), (q.mtime_ns, q.mtime_now)]
        if inode is None or others or not inode.attr.is_file or not inode.fresh or not session.can(ino, Level.WRITE):
            return None
        if not any(now or time_ns is not None for time_ns, now in given) or any((time_ns or 0) < 0 for time_ns, _ in given):
            return None  # the protocol has no words for times before 1970 here
        if session.principals.number("u", q.uid) != inode.attr.uid or not client.is_known(session, inode.attr):
            return None  # what the kernel let pass by a right that we do not know is for the MRC to judge
        op = session.begin(ino, Level.WRITE, q)
        if op.go is None or op.go.direct:
            session.cancel(op)
            return None
        inode.dirty_told = True
        now = time.time_ns()
        if q.atime_now or q.atime_ns is not None:
            inode.atime_ns = now if q.atime_now or q.atime_ns is None else q.atime_ns
            inode.changed |= Changed.ATIME
        if q.mtime_now or q.mtime_ns is not None:
            inode.mtime_ns = now if q.mtime_now or q.mtime_ns is None else q.mtime_ns
            inode.changed |= Changed.MTIME
        inode.ctime_ns = now
        inode.changed |= Changed.CTIME
        session.end(op, dirty=True)
        if not inode.handles:
            client.tell_later(inode)
        return client.attr_reply(session, inode)

    async def _setattr_later(self, session: Session, ino: int, q: m.SetAttr) -> m.AttrReply:
        client = self.client
        times_given = q.atime_ns is not None or q.mtime_ns is not None or q.atime_now or q.mtime_now
        others = q.mode is not None or q.uid_new is not None or q.gid_new is not None
        inode = client.inodes.get(ino) or await self.fresh_inode(session, ino, q)
        if q.size is not None:
            epoch = session.holder.epoch(ino)
            if not (session.can(ino, Level.WRITE) and client.capability(inode, "w", epoch)):
                # A path was truncated: rights are those of who asks. Through a handle they were checked when it was opened.
                inode = await self.acquire(session, ino, q, Level.WRITE, "" if q.fh is not None else "w")
            await self.truncate(session, inode, q.size, q, kill_suid=q.kill_suidgid)
            if not others and q.mtime_ns is None and q.atime_ns is None:
                return client.attr_reply(session, inode)
        if others or times_given or q.size is None:  # chown to nobody new is no change, but one of ctime
            inode = await self._set(session, inode, q)
        return client.attr_reply(session, inode)

    async def _set(self, session: Session, inode: Inode, q: m.SetAttr) -> Inode:
        client = self.client
        uid, gid = await self._number(session, "u", q.uid_new), await self._number(session, "g", q.gid_new)
        now = time.time_ns()
        atime, mtime = _given(q.atime_ns, now=q.atime_now), _given(q.mtime_ns, now=q.mtime_now)
        flags = (ATIME_NOW if q.atime_now else 0) | (MTIME_NOW if q.mtime_now else 0)
        asked_at = client.coherence.count
        grant = await session.change(
            q,
            inode.ino,
            "mrc.setattr",
            lambda who: p.SetAttr(
                who,
                inode.ino,
                now,
                mode=-1 if q.mode is None else q.mode & 0o7777,
                uid=uid,
                gid=gid,
                atime_ns=atime,
                mtime_ns=mtime,
                times_now=flags,
                epoch=session.holder.epoch(inode.ino),
            ),
            p.Grant,
        )
        if q.mode is not None or uid >= 0 or gid >= 0:
            inode.changed &= ~Changed.MODE
        if mtime != -1 or q.mtime_now:
            inode.changed &= ~Changed.MTIME
        if atime != -1 or q.atime_now:
            inode.changed &= ~Changed.ATIME
        inode = client.take(session, grant, asked_at)
        await client.learn(session, [inode.attr])
        return inode

    async def _number(self, session: Session, kind: Literal["u", "g"], local: int | None) -> int:
        if local is None or local == 0xFFFFFFFF:
            return -1
        number = await aclids.number_of(session, self.client.identities, kind, local)
        if number is None:
            raise FuseError(errno.EPERM)
        return number

    # ------------------------------------------------------------------------------------------------------------- xattrs

    def getxattr(self, q: m.GetXattr) -> bytes | Awaitable[bytes]:
        """See `fuse.handlers`."""
        client = self.client
        ino = client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            raise FuseError(errno.ENODATA)
        if magic.is_magic(q.name):
            return magic.read(self, ino, q)
        inode = client.inodes.get(ino)
        if inode is not None and q.name in inode.xattrs and client.session_of(ino).can(ino, Level.READ):
            value = inode.xattrs[q.name]
            if value is None:
                raise FuseError(errno.ENODATA)
            return value
        return self._getxattr_later(client.session_of(ino), ino, q)

    async def _getxattr_later(self, session: Session, ino: int, q: m.GetXattr) -> bytes:
        asked_at = self.client.coherence.count
        value: bytes | None
        try:
            value = await session.call(q, ino, "mrc.getxattr", lambda who: p.GetXattr(who, ino, q.name), bytes, again=True)
        except FuseError as error:
            if error.errno != errno.ENODATA:
                raise
            value = None
        if value is not None and q.name in ACLS and not self.client.identities.plain:
            value = await aclids.to_local(session, value)
        inode = self.client.inodes.get(ino)
        if inode is not None and inode.invalidated <= asked_at and session.can(ino, Level.READ):
            if len(inode.xattrs) >= XATTRS_MAX:
                inode.xattrs.clear()
            inode.xattrs[q.name] = value
        if value is None:
            raise FuseError(errno.ENODATA)
        return value

    def listxattr(self, q: m.ListXattr) -> Sequence[bytes] | Awaitable[Sequence[bytes]]:
        """See `fuse.handlers`."""
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            return []
        session = self.client.session_of(ino)
        inode = self.client.inodes.get(ino)
        if inode is not None and inode.xattr_names is not None and session.can(ino, Level.READ):
            return inode.xattr_names
        return self._listxattr_later(session, ino, q)

    async def _listxattr_later(self, session: Session, ino: int, q: m.ListXattr) -> Sequence[bytes]:
        asked_at = self.client.coherence.count
        names = await session.call(q, ino, "mrc.listxattr", lambda who: p.ListXattr(who, ino), tuple[bytes, ...], again=True)
        inode = self.client.inodes.get(ino)
        # Names that only root may see are told to root: what others see is not kept for root, nor the other way round.
        if inode is not None and q.uid != 0 and inode.invalidated <= asked_at and session.can(ino, Level.READ):
            inode.xattr_names = None
        return names

    def setxattr(self, q: m.SetXattr) -> Awaitable[None]:
        """See `fuse.handlers`."""
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            raise FuseError(errno.EPERM)
        if magic.is_magic(q.name):
            return magic.write(self, ino, q)
        if not q.name or len(q.name) > XATTR_NAME_BYTES_MAX:
            raise FuseError(errno.ERANGE)
        if len(q.value) > XATTR_BYTES_MAX:
            raise FuseError(errno.E2BIG)
        return self._setxattr_later(ino, q)

    async def _setxattr_later(self, ino: int, q: m.SetXattr) -> None:
        value = bytes(q.value)
        if q.name in ACLS and not self.client.identities.plain:
            value = await aclids.to_numbers(self.client.session_of(ino), self.client.identities, value)
        kill = bool(q.setxattr_flags & SETXATTR_ACL_KILL_SGID)
        await self._change_xattr(
            ino, q, "mrc.setxattr", lambda who: p.SetXattr(who, ino, q.name, value, q.flags, time.time_ns(), kill), q.name
        )

    def removexattr(self, q: m.RemoveXattr) -> Awaitable[None]:
        """See `fuse.handlers`."""
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            raise FuseError(errno.EPERM)
        return self._removexattr_later(ino, q)

    async def _removexattr_later(self, ino: int, q: m.RemoveXattr) -> None:
        try:
            await self._change_xattr(ino, q, "mrc.removexattr", lambda who: p.RemoveXattr(who, ino, q.name, time.time_ns()), q.name)
        except FuseError as error:
            if error.errno != errno.ENODATA or q.name not in ACLS:  # to remove an ACL that is not there is no error on Linux
                raise

    async def _change_xattr(
        self, ino: int, q: m.Request, method: str, make: Callable[[p.Who], msgspec.Struct], name: bytes
    ) -> None:
        session = self.client.session_of(ino)
        asked_at = self.client.coherence.count
        grant = await session.change(q, ino, method, make, p.Grant)
        inode = self.client.take(session, grant, asked_at)
        inode.xattrs.pop(name, None)
        inode.xattr_names = None

    # ------------------------------------------------------------------------------------------------------------- statfs

    def statfs(self, q: m.StatFs) -> m.StatFsReply | Awaitable[m.StatFsReply]:
        """See `fuse.handlers`."""
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            return m.StatFsReply()
        return self._statfs_later(self.client.session_of(ino), ino, q)

    async def _statfs_later(self, session: Session, ino: int, q: m.StatFs) -> m.StatFsReply:
        a = await session.call(q, ino, "mrc.statfs", lambda who: p.StatFs(who, ino), p.StatFsAnswer, again=True)
        untold = sum(max(0, inode.size - inode.attr.size) for inode in self.client.inodes.of_volume(volume_of(ino)))
        free = max(0, a.bytes_free - untold) // 4096
        return m.StatFsReply(a.bytes_total // 4096, free, free, a.files_total, a.files_free)


def _given(time_ns: int | None, *, now: bool) -> int:
    """A time for the MRC: -1 for none, or for its own "now"; so the last nanosecond before 1970 is told as the one before."""
    if now or time_ns is None:
        return -1
    return -2 if time_ns == -1 else time_ns
