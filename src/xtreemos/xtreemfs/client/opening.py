"""Opening and closing files, relying on their leases while something is done with them, and cutting them."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client.base import FileHandle
from xtreemos.xtreemfs.client.coherent import Op
from xtreemos.xtreemfs.client.data import note_write, without_suid
from xtreemos.xtreemfs.client.inodes import Changed, Inode, NeedsRoom, Span
from xtreemos.xtreemfs.client.naming import NameOps
from xtreemos.xtreemfs.client.passthrough import Backing
from xtreemos.xtreemfs.client.readahead import Planner
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import Level

T = TypeVar("T")

TRIES = 4  # a lease may be called back between its grant and the capability; more often in a row is a fault
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # of fallocate(2)
COPY_BYTES = 1 << 20

SEEK_DATA = 3
O_NOATIME = getattr(os, "O_NOATIME", 0)


class OpenOps(NameOps):
    """open, create, tmpfile, release; `relying`, and the truncation that opens and setattr share."""

    # ----------------------------------------------------------------------------------------------------------- opening

    def open(self, q: m.Open) -> m.Opened | Awaitable[m.Opened]:
        """See `fuse.handlers`. Costs nothing if lease and capability are there."""
        client = self.client
        inode = client.inodes.get(client.ino_of(q.nodeid))
        writes = (q.flags & os.O_ACCMODE) != os.O_RDONLY
        if inode is not None and not q.flags & os.O_TRUNC:
            session = client.session_of(inode.ino)
            if not writes and client.capability(inode, "r") is not None and inode.layout is not None:
                return self._open_as(session, inode, q)
            if writes and session.can(inode.ino, Level.WRITE) and client.capability(inode, "w", session.holder.epoch(inode.ino)):
                return self._open_as(session, inode, q)
        return self._open_later(q, writes=writes)

    async def _open_later(self, q: m.Open, *, writes: bool) -> m.Opened:
        client = self.client
        ino = client.ino_of(q.nodeid)
        session = client.session_of(ino)
        mode = {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(q.flags & os.O_ACCMODE, "rw")
        truncate = bool(q.flags & os.O_TRUNC)
        level = Level.WRITE if writes or truncate else Level.READ
        inode = await self.acquire(session, ino, q, level, "rw" if truncate and mode == "r" else mode)
        if truncate:
            await self.truncate(session, inode, 0, q, kill_suid=bool(q.open_flags & c.OPEN_KILL_SUIDGID))
        opened = self._open_as(session, inode, q)
        return opened if isinstance(opened, m.Opened) else await opened

    def _open_as(self, session: Session, inode: Inode, q: m.Open | m.Create) -> m.Opened | Awaitable[m.Opened]:
        """Choose how the kernel gets the bytes: from us, or (see `passthrough`) from the OSD's file itself."""
        if self.client.passthrough.pays(session, inode, q.flags):
            return self._open_through(session, inode, q)
        if inode.backing is not None and inode.backing.lent < 0 and q.flags & os.O_ACCMODE == os.O_RDWR:
            return self._open_beside(session, inode, q)
        return self._opened(session, inode, q.flags)

    async def _open_through(self, session: Session, inode: Inode, q: m.Open | m.Create) -> m.Opened:
        passthrough = self.client.passthrough

        async def work(go: h.Go) -> Backing | None:
            return None if go.direct else await passthrough.prepare(session, inode)

        async with passthrough.lock(inode):
            backing = None
            if passthrough.pays(session, inode, q.flags):
                backing = await self.relying(session, inode, Level.READ, q, work)
            if backing is not None and inode.handles:  # opened otherwise meanwhile: the kernel has one way for all opens of a file
                passthrough.drop(session, inode, backing)
            elif backing is not None:
                passthrough.begin(inode, backing)
            return self._opened(session, inode, q.flags)

    async def _open_beside(self, session: Session, inode: Inode, q: m.Open | m.Create) -> m.Opened:
        """Open for reading and writing what the kernel reads by itself: a shared mapping of it will go there, too."""
        await self.lend(session, inode, q)
        return self._opened(session, inode, q.flags)

    async def lend(self, session: Session, inode: Inode, q: m.Request | None) -> None:
        """Have the OSD know that a program may store into a file by a mapping, as long as the kernel has that file."""

        async def work(_go: h.Go) -> None:
            if inode.backing is not None:
                await self.client.passthrough.lend(inode, inode.backing)

        while inode.backing is not None and inode.backing.lent < 0:
            await self.relying(session, inode, Level.WRITE, q, work)

    async def acquire(self, session: Session, ino: int, q: m.Request | None, level: Level, mode: str, end: int = 0) -> Inode:
        """Get a capability (and, if nothing is in the way, the lease) by the rights of who asks, to make the file `end` bytes long."""
        client = self.client
        asked_at = client.coherence.count
        grant = await session.call(
            q, ino, "mrc.acquire", lambda who: p.Acquire(who, ino, level, mode, end=end), p.Grant, again=True
        )
        return client.take(session, grant, asked_at)

    def _opened(self, session: Session, inode: Inode, flags: int) -> m.Opened:
        fh = self.next_handle()
        self.client.ledger.open(fh, inode.ino, flags)
        handle = self.keep_open(session, inode, fh, flags)
        if inode.backing is not None:
            bypass = (
                c.FOPEN_DIRECT_IO if handle.writes or flags & os.O_DIRECT else 0
            )  # of the kernel's file: reads and writes come to us
            return m.Opened(fh, c.FOPEN_PASSTHROUGH | bypass, inode.backing.number)
        if handle.append:
            return m.Opened(fh, c.FOPEN_DIRECT_IO)
        keep, inode.keep_pages = inode.keep_pages, True
        return m.Opened(fh, c.FOPEN_KEEP_CACHE if keep else 0)

    def keep_open(self, session: Session, inode: Inode, fh: int, flags: int) -> FileHandle:
        """Have a file open under a handle."""
        writes = (flags & os.O_ACCMODE) != os.O_RDONLY
        append = writes and bool(flags & os.O_APPEND)
        data = self.client.data_of(inode)
        handle = self.files[fh] = FileHandle(inode, flags, writes, append, Planner(), data.errors, data.errors)
        inode.handles += 1
        inode.writers += handle.writes
        if inode.handles == 1:
            session.feed(h.Pin(inode.ino, on=True))
        return handle

    def create(self, q: m.Create) -> Awaitable[m.Created]:
        """See `fuse.handlers`."""
        return self._create(q, anonymous=False)

    def tmpfile(self, q: m.Create) -> Awaitable[m.Created]:
        """See `fuse.handlers`."""
        return self._create(q, anonymous=True)

    async def _create(self, q: m.Create, *, anonymous: bool) -> m.Created:
        client = self.client
        session, folder_ino = self.changing(q.nodeid)
        asked_at = client.coherence.count
        now = time.time_ns()
        mode = stat.S_IFREG | q.mode & 0o7777
        exclusive = bool(q.flags & os.O_EXCL) or anonymous
        name = b"" if anonymous else q.name
        made = await session.change(
            q,
            folder_ino,
            "mrc.create",
            lambda who: p.Create(
                who, folder_ino, name, mode, q.umask, now, exclusive=exclusive, near=client.near, anonymous=anonymous
            ),
            p.Made,
        )
        if anonymous:
            inode = client.take(session, made.entry, asked_at)
            if not made.entry.capability:
                inode = await self.acquire(session, inode.ino, q, Level.WRITE, "")
            client.data_of(inode)
            return m.Created(client.entry(session, inode), self._opened(session, inode, q.flags))
        entry = self.made(session, made, q.name, asked_at)
        inode = client.inodes.take(made.entry.attr)
        if made.found:
            if not stat.S_ISREG(inode.mode):
                raise FuseError(errno.EEXIST)
            wanted = {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(q.flags & os.O_ACCMODE, "rw")
            level = Level.READ if wanted == "r" and not q.flags & os.O_TRUNC else Level.WRITE
            inode = await self.acquire(session, inode.ino, q, level, wanted)
            if q.flags & os.O_TRUNC:
                await self.truncate(session, inode, 0, q, kill_suid=bool(q.open_flags & c.OPEN_KILL_SUIDGID))
        elif not made.entry.capability:  # the answer is one that was asked for again: the lease is for who asks now
            inode = await self.acquire(session, inode.ino, q, Level.WRITE, "")
        opened = self._open_as(session, inode, q)
        return m.Created(entry, opened if isinstance(opened, m.Opened) else await opened)

    def release(self, q: m.Release) -> Awaitable[None] | None:
        """See `fuse.handlers`."""
        handle = self.files.pop(q.fh, None)
        self.client.ledger.close(q.fh)
        if handle is None:
            return None
        client, inode = self.client, handle.inode
        inode.handles -= 1
        inode.writers -= handle.writes
        session = client.session_of(inode.ino)
        if handle.writes and client.passthrough.has_news(inode):
            client.start(self.tell_stored(session, inode, None))
        if not inode.handles:
            if inode.backing is not None:
                client.passthrough.end(inode)
            if inode.data is not None:
                inode.data.forget_blocks(0, 1 << 62)
            if inode.data is None or not inode.data.dirty:
                client.ledger.note_clean(inode.ino)
            session.feed(h.Pin(inode.ino, on=False))
            if inode.attr.nlink == 0:
                client.discard(inode)
        if inode.changed & ~Changed.ATIME:  # an access time goes with the lease
            client.tell_later(inode)
        return self.unlock_all(session, inode, handle.lock_owners) if handle.lock_owners else None

    async def tell_stored(self, session: Session, inode: Inode, q: m.Request | None) -> None:
        """Something was stored in the OSD's file by a mapping: have the others' caches dropped, as after a write."""

        async def work(_go: h.Go) -> None:
            note_write(inode, 0, time.time_ns(), kill_suid=False)

        await self.relying(session, inode, Level.WRITE, q, work)
        self.client.tell_later(inode)

    # ----------------------------------------------------------------------------------------------------------- relying

    async def relying(
        self,
        session: Session,
        inode: Inode,
        level: Level,
        q: m.Request | None,
        work: Callable[[h.Go], Awaitable[T]],
        *,
        span: Span | None = None,
        writes: bool = False,
        op: Op | None = None,
    ) -> T:
        """Do `work` under a lease, with true attributes and a capability.

        `span`: pages that the kernel keeps locked meanwhile; `writes`: for a write. `op`: it was begun already.
        """
        client = self.client
        mode = "w" if level == Level.WRITE else "r"
        for attempt in range(TRIES):
            with client.coherence.pending(inode, span, write=writes):
                op = op or session.begin(inode.ino, level, q, span=span)
                go = await session.ready(op)
            missing = client.capability(inode, mode, go.epoch if mode == "w" else 0) is None or inode.layout is None
            # A recall on the heels of the grant has marked the attributes as old; they are true as long as the lease is there.
            fresh = inode.fresh or (inode.true_until_released and session.holder.level(inode.ino) >= level)
            if not missing and (fresh or go.direct):
                dirty = level == Level.WRITE
                try:
                    return await work(go)
                except FuseError as error:
                    if error.errno not in {errno.EACCES, errno.ESTALE}:
                        raise
                    if attempt:
                        raise FuseError(errno.EIO) from None
                    inode.capabilities.clear()
                finally:
                    inode.dirty_told |= dirty
                    session.end(op, dirty=dirty)
            else:
                session.end(op)
            op = None
            epoch = session.holder.epoch(inode.ino) if mode == "w" else 0
            with client.coherence.pending(inode, span, write=writes):
                if client.capability(inode, mode, epoch) is None or inode.layout is None:
                    await self.acquire(session, inode.ino, q, level, "")
                else:
                    await self.fresh_inode(session, inode.ino, q)
        raise FuseError(errno.EIO)

    async def with_quota(self, session: Session, inode: Inode, q: m.Request, grow: Callable[[], Awaitable[T]]) -> T:
        """A capability says how far a file may grow; the MRC may say more now."""
        for _attempt in range(TRIES):  # the lease may be called back, and with it the room, between the grant and its use
            try:
                return await grow()
            except NeedsRoom as error:
                end = error.end
            await self.acquire(session, inode.ino, q, Level.WRITE, "", end)
            if not inode.may_reach(end) and session.can(inode.ino, Level.WRITE):
                break
        return await grow()

    # ------------------------------------------------------------------------------------------------------------- length

    async def truncate(self, session: Session, inode: Inode, size: int, q: m.Request, *, kill_suid: bool = False) -> None:
        data = self.client.data_of(inode)

        async def work(_go: h.Go) -> None:
            inode.reach(size)
            await data.truncate(size)
            inode.size = size
            inode.mtime_ns = inode.ctime_ns = time.time_ns()
            inode.changed |= Changed.SIZE | Changed.MTIME | Changed.CTIME
            if kill_suid and inode.mode & 0o6000:
                inode.mode = without_suid(inode.mode)
                inode.changed |= Changed.MODE
            if inode.served is not None:
                inode.served.append((min(size, inode.size), 1 << 62))

        await self.with_quota(session, inode, q, lambda: self.relying(session, inode, Level.WRITE, q, work))
        self.client.tell_later(inode)
