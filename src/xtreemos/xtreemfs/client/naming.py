"""Operations on names: looking up, making, removing, renaming."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Awaitable

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client.base import Base
from xtreemos.xtreemfs.client.inodes import Inode
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import NAME_BYTES_MAX, SYMLINK_BYTES_MAX, VO_ROOT_INO, Level, make_ino, volume_of

VOLUMES_VALID_NS = 1_000_000_000  # the directory of volumes is no file system's: it may be a second old
NOREPLACE, EXCHANGE = 1, 2  # of renameat2(2)
CAPABILITY = b"security.capability"
_NO_ATTR = m.Attr(0, 0)


class NameOps(Base):
    """lookup, forget, mknod, mkdir, symlink, link, unlink, rmdir, rename, readlink."""

    # ------------------------------------------------------------------------------------------------------------ lookup

    def lookup(self, q: m.Lookup) -> m.Entry | Awaitable[m.Entry]:
        """See `fuse.handlers`."""
        client = self.client
        ino = client.ino_of(q.nodeid)
        if len(q.name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        if ino == VO_ROOT_INO:
            return self._lookup_volume(q)
        session = client.session_of(ino)
        folder = client.inodes.get(ino)
        if folder is not None and (folder.names or folder.complete) and session.can(ino, Level.READ):
            found = folder.find_name(q.name)
            if found == 0:
                return self._absent(session, folder, q.name)
            inode = client.inodes.get(found) if found is not None else None
            if inode is not None and inode.fresh and session.can(inode.ino, Level.READ) and client.is_known(session, inode.attr):
                return client.entry(session, inode, folder, q.name)
        return self._lookup_later(session, ino, q)

    def _absent(self, session: Session, folder: Inode, name: bytes) -> m.Entry:
        valid = self.client.name_valid_ns(session, folder, name)
        if not valid:
            raise FuseError(errno.ENOENT)
        return m.Entry(0, _NO_ATTR, 0, valid, 0)

    async def _lookup_later(self, session: Session, ino: int, q: m.Lookup) -> m.Entry:
        client = self.client
        if q.name == b".":
            inode = await self.fresh_inode(session, ino, q)
            return client.entry(session, inode)
        asked_at = client.coherence.count
        before = client.inodes.get(ino)
        changes = before.changes if before is not None else 0
        looked = await session.call(q, ino, "mrc.lookup", lambda who: p.Lookup(who, ino, q.name), p.Looked, again=True)
        if looked.dir_level:
            session.feed(h.Granted(ino, Level(looked.dir_level)))
        missing = looked.missing
        if missing is not None and missing.dir_attr is not None:
            self.take_folder(session, missing.dir_attr, asked_at, cache=looked.dir_cache)
        folder = client.inodes.get(ino)
        may_name = (
            folder is not None
            and folder.invalidated <= asked_at
            and (before is None or folder.changes == changes)
            and session.can(ino, Level.READ)
        )
        if looked.entry is None:
            if folder is not None and may_name and missing is not None and missing.named:
                folder.keep_name(q.name, 0)
                return self._absent(session, folder, q.name)
            raise FuseError(errno.ENOENT)
        inode = client.take(session, looked.entry, asked_at)
        if folder is not None and may_name and looked.entry.named and q.name != b"..":
            folder.keep_name(q.name, inode.ino)
        else:
            folder = None
        if not client.is_known(session, inode.attr):
            await client.learn(session, [inode.attr])
            folder = None
        return client.entry(session, inode, folder, q.name)

    async def _lookup_volume(self, q: m.Lookup) -> m.Entry:
        client = self.client
        record = client.directory.state.volumes.get(q.name.decode("utf-8", "surrogateescape"))
        if record is None or record.removed:
            raise FuseError(errno.ENOENT)
        ino = make_ino(record.id, 1)
        session = client.session_of(ino)
        inode = await self.fresh_inode(session, ino, q)
        entry = client.entry(session, inode)
        return m.Entry(entry.nodeid, entry.attr, 0, VOLUMES_VALID_NS, entry.attr_valid_ns)

    def forget(self, q: m.Forget) -> None:
        """See `fuse.handlers`."""
        for nodeid, count in q.nodes:
            inode = self.client.inodes.get(nodeid)
            if inode is None or inode.lookups <= count:
                self.client.ledger.forget(nodeid)
                self.client.inodes.adopted.discard(nodeid)
            if inode is not None:
                inode.lookups = max(0, inode.lookups - count)
                if not inode.lookups and inode.attr.nlink == 0 and not inode.handles:
                    self.client.discard(inode)

    def readlink(self, q: m.ReadLink) -> bytes | Awaitable[bytes]:
        """See `fuse.handlers`. A symlink's target never changes."""
        inode = self.client.inodes.get(q.nodeid)
        if inode is not None and inode.link is not None:
            return inode.link
        return self._readlink_later(q)

    async def _readlink_later(self, q: m.ReadLink) -> bytes:
        client = self.client
        session = client.session_of(q.nodeid)
        asked_at = client.coherence.count
        grant = await session.call(q, q.nodeid, "mrc.getattr", lambda who: p.GetAttr(who, q.nodeid), p.Grant, again=True)
        inode = client.take(session, grant, asked_at)
        if inode.link is None:
            raise FuseError(errno.EINVAL)
        return inode.link

    # ------------------------------------------------------------------------------------------------------------ making

    def mkdir(self, q: m.MkDir) -> Awaitable[m.Entry]:
        """See `fuse.handlers`."""
        return self._make(q, q.name, stat.S_IFDIR | q.mode & 0o7777, q.umask)

    def mknod(self, q: m.MkNod) -> Awaitable[m.Entry]:
        """See `fuse.handlers`."""
        mode = q.mode if stat.S_IFMT(q.mode) else q.mode | stat.S_IFREG
        return self._make(q, q.name, mode, q.umask, rdev=q.rdev)

    def symlink(self, q: m.Symlink) -> Awaitable[m.Entry]:
        """See `fuse.handlers`."""
        if len(q.target) > SYMLINK_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        return self._make(q, q.name, stat.S_IFLNK | 0o777, 0, link=q.target)

    async def _make(self, q: m.Request, name: bytes, mode: int, umask: int, *, rdev: int = 0, link: bytes = b"") -> m.Entry:
        session, folder_ino = self.changing(q.nodeid)
        asked_at = self.client.coherence.count
        now = time.time_ns()
        made = await session.change(
            q,
            folder_ino,
            "mrc.create",
            lambda who: p.Create(who, folder_ino, name, mode, umask, now, rdev=rdev, link=link, near=self.client.near),
            p.Made,
        )
        return self.made(session, made, name, asked_at)

    def made(self, session: Session, made: p.Made, name: bytes, asked_at: int) -> m.Entry:
        """Take over an answer about a new name; return the entry for the kernel."""
        client = self.client
        inode = client.take(session, made.entry, asked_at)
        if stat.S_ISREG(inode.mode) and not made.found and inode.data is None and inode.layout is not None:
            client.data_of(inode)  # nothing of it is on any OSD yet
            inode.xattrs[CAPABILITY] = None  # the kernel asks for it before the first write
        if inode.attr.is_dir and not made.found and session.can(inode.ino, Level.READ):
            inode.know_all(())
        folder = self.take_folder(session, made.dir_attr, asked_at, cache=made.dir_cache)
        named = self.name_changed(session, folder, name, inode.ino, asked_at)
        return client.entry(session, inode, folder if named and client.is_known(session, inode.attr) else None, name)

    def name_changed(self, session: Session, folder: Inode, name: bytes, ino: int, asked_at: int) -> bool:
        """Note an own change of a name (`ino` 0: it is gone). Return whether it may be kept."""
        folder.changes += 1
        folder.listing = None
        if folder.invalidated <= asked_at and session.can(folder.ino, Level.READ):
            folder.keep_name(name, ino)
            return True
        folder.doubt_name(name)
        return False

    def changing(self, nodeid: int) -> tuple[Session, int]:
        """Return session and number of a directory whose names are to be changed. FuseError(EPERM): the folder of volumes."""
        ino = self.client.ino_of(nodeid)
        if ino == VO_ROOT_INO:
            raise FuseError(errno.EPERM)
        return self.client.session_of(ino), ino

    def link(self, q: m.Link) -> Awaitable[m.Entry]:
        """See `fuse.handlers`."""
        session, folder_ino = self.changing(q.nodeid)
        ino = self.client.ino_of(q.oldnodeid)
        if volume_of(ino) != volume_of(folder_ino):
            raise FuseError(errno.EXDEV)
        return self._link_later(session, folder_ino, ino, q)

    async def _link_later(self, session: Session, folder_ino: int, ino: int, q: m.Link) -> m.Entry:
        asked_at = self.client.coherence.count
        now = time.time_ns()
        made = await session.change(q, folder_ino, "mrc.link", lambda who: p.Link(who, ino, folder_ino, q.name, now), p.Made)
        return self.made(session, made, q.name, asked_at)

    # ---------------------------------------------------------------------------------------------------------- removing

    def unlink(self, q: m.Unlink) -> Awaitable[None]:
        """See `fuse.handlers`."""
        return self._remove(q, q.name, directory=False)

    def rmdir(self, q: m.RmDir) -> Awaitable[None]:
        """See `fuse.handlers`."""
        return self._remove(q, q.name, directory=True)

    async def _remove(self, q: m.Request, name: bytes, *, directory: bool) -> None:
        session, folder_ino = self.changing(q.nodeid)
        asked_at = self.client.coherence.count
        now = time.time_ns()
        gone = await session.change(
            q, folder_ino, "mrc.unlink", lambda who: p.Unlink(who, folder_ino, name, now, directory), p.Gone
        )
        folder = self.take_folder(session, gone.dir_attr, asked_at, cache=gone.dir_cache)
        self.name_changed(session, folder, name, 0, asked_at)
        self.lost_name(session, gone.attr.ino, gone, asked_at)

    def lost_name(self, session: Session, ino: int, gone: p.Gone | None, asked_at: int) -> None:
        """Note that an inode has a name less."""
        inode = self.client.inodes.get(ino)
        if inode is None or gone is None:
            return
        fresh = inode.fresh
        inode.take_attr(gone.attr)
        inode.fresh = fresh and inode.invalidated <= asked_at and session.can(ino, Level.READ)
        if gone.attr.nlink == 0 and not inode.handles:
            self.client.discard(inode)

    def rename(self, q: m.Rename) -> Awaitable[None]:
        """See `fuse.handlers`."""
        session, folder_ino = self.changing(q.nodeid)
        _session, new_ino = self.changing(q.newdir)
        if volume_of(folder_ino) != volume_of(new_ino):
            raise FuseError(errno.EXDEV)
        if q.flags & ~(NOREPLACE | EXCHANGE):
            raise FuseError(errno.EINVAL)
        return self._rename_later(session, folder_ino, new_ino, q)

    async def _rename_later(self, session: Session, folder_ino: int, new_ino: int, q: m.Rename) -> None:
        asked_at = self.client.coherence.count
        now = time.time_ns()
        done = await session.change(
            q,
            folder_ino,
            "mrc.rename",
            lambda who: p.Rename(who, folder_ino, q.name, new_ino, q.newname, q.flags, now),
            p.Renamed,
        )
        exchanged = q.flags & EXCHANGE and done.replaced is not None
        self._kernel_moved(folder_ino, q.name, new_ino, q.newname)
        if exchanged:
            self._kernel_moved(new_ino, q.newname, folder_ino, q.name)
        folder = self.take_folder(session, done.dir_attr, asked_at, cache=done.dir_cache)
        new_folder = self.take_folder(session, done.new_dir_attr, asked_at, cache=done.dir_cache)
        same = done.replaced is None and folder_ino == new_ino and q.name == q.newname
        if exchanged and done.replaced is not None:
            self.name_changed(session, folder, q.name, done.replaced.ino, asked_at)
        elif not same:
            folder.changes += 1
            folder.listing = None
            folder.doubt_name(q.name)  # two names of one inode: rename does nothing, and both stay
        self.name_changed(session, new_folder, q.newname, done.attr.ino, asked_at)
        inode = self.client.inodes.get(done.attr.ino)
        if inode is not None:
            inode.take_attr(done.attr)
        if done.replaced is not None:
            gone = p.Gone(done.replaced, done.new_dir_attr)
            self.lost_name(session, done.replaced.ino, gone, asked_at)

    def _kernel_moved(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        """Note that the kernel has moved what it knows of one name to another, and believes it there for as long."""
        if self.client.kernel_names.has(folder, name):
            self.client.kernel_names.note(new_folder, new_name)
