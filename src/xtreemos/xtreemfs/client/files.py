"""Operations on open files: their bytes, their length, what is written back when."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable
from typing import Literal, TypeVar

from xtreemos.xtreemfs.client.base import FileHandle
from xtreemos.xtreemfs.client.data import FileData, note_write
from xtreemos.xtreemfs.client.dirty import Buffer
from xtreemos.xtreemfs.client.inodes import Changed, Inode, Span, overlaps
from xtreemos.xtreemfs.client.opening import OpenOps
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Level

T = TypeVar("T")

TRIES = 4  # a lease may be called back between its grant and the capability; more often in a row is a fault
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # of fallocate(2)
COPY_BYTES = 1 << 20

AGAIN_S = 0.5  # after a buffered read that had no answer in time the kernel tries its first page once more; that one is not waited for again
SEEK_DATA = 3
O_NOATIME = getattr(os, "O_NOATIME", 0)


class FileOps(OpenOps):
    """read, write, flush, fsync, fallocate, lseek, copy_file_range."""

    # ----------------------------------------------------------------------------------------------------------- reading

    def read(self, q: m.Read) -> Buffer | Awaitable[Buffer]:
        """See `fuse.handlers`. While it is open for writing here reads take WRITE: a shared mapping may change pages without a word."""
        handle = self.file(q.fh)
        inode = handle.inode
        session = self.client.session_of(inode.ino)
        if inode.fresh and inode.data is not None and session.can(inode.ino, Level.WRITE if inode.writers else Level.READ):
            if q.offset >= inode.size:
                self._note_read(handle, inode, q)  # the kernel keeps pages of zeros behind the end
                return b""
            got = inode.data.read_nowait(handle.planner, q.offset, min(q.size, inode.size - q.offset))
            if got is not None:
                self._note_read(handle, inode, q)
                return got
        return self._read_later(session, handle, inode, q)

    def _note_read(self, handle: FileHandle, inode: Inode, q: m.Read) -> None:
        inode.pages = True
        if inode.served is not None:
            inode.served.append((q.offset, q.offset + q.size))
        if inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) and not handle.flags & O_NOATIME:
            self._touch(inode)

    def _touch(self, inode: Inode) -> None:
        """Relatime, as far as it costs nothing: only who has the file alone moves its access time."""
        session = self.client.session_of(inode.ino)
        if session.can(inode.ino, Level.WRITE):
            inode.atime_ns = time.time_ns()
            inode.changed |= Changed.ATIME

    async def _read_later(self, session: Session, handle: FileHandle, inode: Inode, q: m.Read) -> Buffer:
        data = self.client.data_of(inode)
        direct = handle.append or handle.flags & os.O_DIRECT  # no page is locked for it
        span = None if direct else (q.offset, q.offset + q.size)
        if span is not None and data.missed is not None and _is_second_try(data.missed, span):
            raise FuseError(errno.ETIMEDOUT)

        async def work(go: h.Go) -> Buffer:
            if go.direct:
                await self._true_size(inode, data)
            if q.offset >= inode.size:
                self._note_read(handle, inode, q)
                return b""
            got = await data.read(None if go.direct else handle.planner, q.offset, min(q.size, inode.size - q.offset))
            self._note_read(handle, inode, q)
            if go.direct and self.client.kernel is not None:
                self.client.kernel.invalidate_inode_nowait(self.client.node_of(inode.ino), q.offset, q.size)
            return got

        if span is not None and self.client.coherence.passes(session, inode, span, Level.READ):
            return await work(h.Go(0, 0, direct=False, generation=0))
        level = Level.WRITE if inode.writers else Level.READ
        try:
            return await self.relying(session, inode, level, q, work, span=span)
        except FuseError as error:
            if error.errno == errno.ETIMEDOUT and span is not None:
                data.missed = (asyncio.get_running_loop().time(), span)
            raise

    async def _true_size(self, inode: Inode, data: FileData) -> None:
        """Without a lease the OSDs know how long a file is."""
        inode.size, inode.blocks = await data.striped.stat()

    # ----------------------------------------------------------------------------------------------------------- writing

    def write(self, q: m.Write) -> int | Awaitable[int]:
        """See `fuse.handlers`."""
        handle = self.file(q.fh)
        inode = handle.inode
        client = self.client
        session = client.session_of(inode.ino)
        ready = (
            inode.fresh and session.can(inode.ino, Level.WRITE) and not client.store.is_full and not (handle.append and inode.pages)
        )
        if ready and not client.passthrough.writes_through(session, inode):
            able = client.capability(inode, "w", session.holder.epoch(inode.ino)) is not None
            if able and inode.may_reach(_place_of(inode, q) + len(q.data)):  # else the MRC is asked for more room
                if inode.dirty_told:
                    return self._write_now(handle, inode, q)
                op = session.begin(inode.ino, Level.WRITE, q)
                if op.go is not None:
                    inode.dirty_told = True
                    try:
                        return self._write_now(handle, inode, q)
                    finally:
                        session.end(op, dirty=True)
                session.cancel(op)
        return self._write_later(session, handle, inode, q)

    def _write_now(self, handle: FileHandle, inode: Inode, q: m.Write) -> int:
        """Take bytes under the WRITE lease."""
        offset = _place_of(inode, q)
        end = offset + len(q.data)
        if end > FILE_BYTES_MAX:
            raise FuseError(errno.EFBIG)
        inode.reach(end)
        self.client.data_of(inode).write(offset, q.data)
        note_write(inode, end, time.time_ns(), kill_suid=bool(q.write_flags & c.WRITE_KILL_SUIDGID))
        if not handle.append:
            inode.pages = True
            if offset != q.offset and self.client.kernel is not None:  # the kernel has put them elsewhere
                self.client.kernel.invalidate_inode_nowait(self.client.node_of(inode.ino), 0, 0)
        if inode.served is not None:
            inode.served.append((offset, end))
        return len(q.data)

    async def _write_later(self, session: Session, handle: FileHandle, inode: Inode, q: m.Write) -> int:
        client = self.client
        end = q.offset + len(q.data)
        back = bool(q.write_flags & c.WRITE_CACHE)
        span = (
            None
            if handle.append or back or handle.flags & os.O_DIRECT or end % c.PAGE_BYTES == 0
            else (end // c.PAGE_BYTES * c.PAGE_BYTES, end)
        )

        async def work(go: h.Go) -> int:
            offset = inode.size
            written = self._write_now(handle, inode, q)
            if handle.append and inode.pages and client.kernel is not None:
                # Pages that were read at the old end are wrong now; nobody holds them locked on account of this write.
                await client.kernel.invalidate_inode(client.node_of(inode.ino), offset, written)
            if go.direct or client.passthrough.writes_through(session, inode):
                await client.data_of(inode).flush()
            if go.direct:
                inode.changed = 0
            return written

        if span is not None and client.coherence.passes(session, inode, span, Level.WRITE):
            return await work(h.Go(0, 0, direct=False, generation=0))
        if back:
            op = session.begin(inode.ino, Level.WRITE, q, writeback=True)
            if (
                op.failed
            ):  # a page of a mapping that was changed in the moment in which the lease went: it is written when it is back
                session.cancel(op)
                client.data_of(inode).late(self.relying(session, inode, Level.WRITE, None, work))
                return len(q.data)
            if op.go is not None:
                # The recall under way waits for this page, so nothing may be asked of the MRC now, which waits for the recall.
                inode.dirty_told = True
                try:
                    return await work(op.go)
                finally:
                    session.end(op, dirty=True)
            return await self.relying(session, inode, Level.WRITE, q, work, op=op)
        written = await self.with_quota(
            session, inode, q, lambda: self.relying(session, inode, Level.WRITE, q, work, span=span, writes=True)
        )
        if client.store.is_full:
            await client.store.wait_room()
        return written

    # -------------------------------------------------------------------------------------------------------- writing back

    def flush(self, q: m.Flush) -> Awaitable[None] | None:
        """See `fuse.handlers`: at close everything written is at the OSDs (not: on their disks, that is fsync)."""
        handle = self.file(q.fh)
        inode, data = handle.inode, handle.inode.data
        session = self.client.session_of(inode.ino)
        locked = self.client.locks.has(session.mrc, inode.ino, "p", q.lock_owner)
        if handle.writes and self.client.passthrough.has_news(inode):
            return self._flush_stored(session, handle, q, q.lock_owner if locked else None)
        if not locked and (
            data is None or (not (handle.writes and (data.dirty or data.is_late)) and handle.errors_closed == data.errors)
        ):
            return None
        return self._flush_later(session, handle, q.lock_owner if locked else None)

    async def _flush_stored(self, session: Session, handle: FileHandle, q: m.Flush, lock_owner: int | None) -> None:
        try:
            await self.tell_stored(session, handle.inode, q)
        finally:
            await self._flush_later(session, handle, lock_owner)

    async def _flush_later(self, session: Session, handle: FileHandle, lock_owner: int | None) -> None:
        data = handle.inode.data
        try:
            if data is not None and handle.writes:
                await data.settle_late()
                await data.flush()
        finally:
            if lock_owner is not None:
                await self.unlock_all(session, handle.inode, {("p", lock_owner)})
        if data is not None and handle.errors_closed != data.errors:
            handle.errors_closed = data.errors
            raise FuseError(data.error)

    def fsync(self, q: m.Fsync) -> Awaitable[None] | None:
        """See `fuse.handlers`: bytes are on the OSDs' disks, length and times in the MRC's log."""
        handle = self.file(q.fh)
        inode, data = handle.inode, handle.inode.data
        if data is not None and self.client.passthrough.has_news(inode):
            return self._fsync_stored(handle, inode, data, q)
        if data is None or (not data.busy and not inode.changed and not data.is_late and handle.errors_synced == data.errors):
            return None
        return self._fsync_later(handle, inode, data)

    async def _fsync_stored(self, handle: FileHandle, inode: Inode, data: FileData, q: m.Fsync) -> None:
        await self.tell_stored(self.client.session_of(inode.ino), inode, q)
        await self._fsync_later(handle, inode, data)

    async def _fsync_later(self, handle: FileHandle, inode: Inode, data: FileData) -> None:
        await data.settle_late()
        try:
            await data.sync()
            await self.client.tell(inode)
        except FuseError as error:
            handle.errors_synced = data.errors
            raise FuseError(errno.EIO if error.errno in {errno.ESTALE, errno.EACCES} else error.errno) from None
        if handle.errors_synced != data.errors:
            handle.errors_synced = data.errors
            raise FuseError(data.error)

    # ------------------------------------------------------------------------------------------------------------- length

    def fallocate(self, q: m.Fallocate) -> Awaitable[None]:
        """See `fuse.handlers`."""
        handle = self.file(q.fh)
        if q.mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) or q.mode & (PUNCH_HOLE | ZERO_RANGE) == PUNCH_HOLE | ZERO_RANGE:
            raise FuseError(errno.EOPNOTSUPP)
        if q.offset + q.length > FILE_BYTES_MAX:
            raise FuseError(errno.EFBIG)
        return self._fallocate_later(self.client.session_of(handle.inode.ino), handle.inode, q)

    async def _fallocate_later(self, session: Session, inode: Inode, q: m.Fallocate) -> None:
        data = self.client.data_of(inode)

        async def work(_go: h.Go) -> None:
            end = q.offset + q.length
            grows = not q.mode & KEEP_SIZE and end > inode.size
            if grows:
                inode.reach(end)
            how: Literal["a", "k", "p", "z"] = (
                "p" if q.mode & PUNCH_HOLE else "z" if q.mode & ZERO_RANGE else "k" if q.mode & KEEP_SIZE else "a"
            )
            length = min(q.length, max(0, inode.size - q.offset)) if how == "p" or (how == "z" and q.mode & KEEP_SIZE) else q.length
            if length:
                await data.allocate(q.offset, length, how)
            if grows:
                await data.truncate(end)
                inode.size = end
                inode.changed |= Changed.SIZE
            note_write(inode, 0, time.time_ns(), kill_suid=q.uid != 0)
            if inode.served is not None:
                inode.served.append((q.offset, end))

        await self.with_quota(session, inode, q, lambda: self.relying(session, inode, Level.WRITE, q, work))

    def lseek(self, q: m.Lseek) -> Awaitable[int]:
        """See `fuse.handlers`."""
        return self._lseek_later(self.client.session_of(self.file(q.fh).inode.ino), self.file(q.fh).inode, q)

    async def _lseek_later(self, session: Session, inode: Inode, q: m.Lseek) -> int:
        data = self.client.data_of(inode)

        async def work(_go: h.Go) -> int:
            if q.offset < 0 or q.offset >= inode.size:
                raise FuseError(errno.ENXIO)
            await data.flush()
            what: Literal["d", "h"] = "d" if q.whence == SEEK_DATA else "h"
            found = await data.striped.seek(q.offset, inode.size, what)
            if found < 0 or (what == "d" and found >= inode.size):
                raise FuseError(errno.ENXIO)
            return min(found, inode.size)

        return await self.relying(session, inode, Level.WRITE if inode.writers else Level.READ, q, work)

    def copy_file_range(self, q: m.CopyFileRange) -> Awaitable[int]:
        """See `fuse.handlers`: through this client, a part at a time."""
        source, target = self.file(q.fh_in), self.file(q.fh_out)
        if q.flags:
            raise FuseError(errno.EINVAL)
        return self._copy(source.inode, target.inode, q)

    async def _copy(self, source: Inode, target: Inode, q: m.CopyFileRange) -> int:
        source_session, target_session = self.client.session_of(source.ino), self.client.session_of(target.ino)
        copied = 0
        while copied < q.length:
            at, want = q.offset_in + copied, min(COPY_BYTES, q.length - copied)

            async def take(_go: h.Go, at: int = at, want: int = want) -> Buffer:
                length = min(want, source.size - at)
                return bytes(await self.client.data_of(source).read(None, at, length)) if length > 0 else b""

            part = await self.relying(source_session, source, Level.WRITE if source.writers else Level.READ, q, take)
            if not part:
                break
            to = q.offset_out + copied

            async def put(_go: h.Go, part: Buffer = part, to: int = to) -> None:
                if to + len(part) > FILE_BYTES_MAX:
                    raise FuseError(errno.EFBIG)
                self.client.data_of(target).write(to, part)
                note_write(target, to + len(part), time.time_ns(), kill_suid=q.uid != 0)
                if target.served is not None:
                    target.served.append((to, to + len(part)))
                if self.client.passthrough.writes_through(target_session, target):
                    await self.client.data_of(target).flush()

            await self.relying(target_session, target, Level.WRITE, q, put)
            copied += len(part)
            if self.client.store.is_full:
                await self.client.store.wait_room()
        return copied


def _is_second_try(missed: tuple[float, Span], span: Span) -> bool:
    at_s, before = missed
    return asyncio.get_running_loop().time() - at_s < AGAIN_S and overlaps(span, [before])


def _place_of(inode: Inode, q: m.Write) -> int:
    """Return where the bytes of a write go. Whether it appends is said with each write: fcntl may have changed it since the open."""
    appends = q.flags & os.O_APPEND and not q.write_flags & c.WRITE_CACHE
    return inode.size if appends else q.offset
