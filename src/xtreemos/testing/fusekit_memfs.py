"""A complete POSIX file system in memory, on the FUSE layer: the reference for its contract, and what its tests mount.

Everything is answered at once but for locks that are waited for. The kernel checks permissions (default_permissions, POSIX_ACL); what
is left to a file system is done here: umask and default ACLs, set-id bits, times, link counts, what a rename may replace.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
from collections.abc import Coroutine

from xtreemos.testing.fusekit_locks import Held, LockTable
from xtreemos.testing.fusekit_memnodes import Node
from xtreemos.testing.fusekit_memtree import NAME_BYTES_MAX, MemTree
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError

XATTR_BYTES_MAX = 65536
SIZE_MAX = 1 << 40
CAPACITY_BYTES = 1 << 34  # what df is told
XATTR_CREATE, XATTR_REPLACE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
FS_IOC_GETVERSION, FS_IOC_GETFLAGS = 0x80087601, 0x80086601
STATX_BASIC_AND_BTIME = 0x7FF | 0x800
CAPABILITY = b"security.capability"


class MemFs(MemTree):
    """The operations on inodes: attributes, data, xattrs, locks, polling."""

    # attributes

    def getattr(self, request: m.GetAttr) -> m.AttrReply:
        return m.AttrReply(self.nodes.get(request.nodeid).attr(), self.cache_ns)

    def statx(self, request: m.Statx) -> m.StatxReply:
        node = self.nodes.get(request.nodeid)
        return m.StatxReply(node.attr(), STATX_BASIC_AND_BTIME, node.btime_ns, valid_ns=self.cache_ns)

    def setattr(self, request: m.SetAttr) -> m.AttrReply:
        node, now = self.nodes.get(request.nodeid), self.now()
        if request.size is not None:
            if request.size > SIZE_MAX:
                raise FuseError(errno.EFBIG)
            node.content.truncate(request.size)
            node.mtime_ns = now
        if request.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | request.mode & 0o7777
            if node.access is not None:
                node.access = acl.with_mode(node.access, node.mode)
        if request.uid_new is not None or request.gid_new is not None:
            node.uid = node.uid if request.uid_new is None else request.uid_new
            node.gid = node.gid if request.gid_new is None else request.gid_new
        if request.kill_suidgid or ((request.uid_new is not None or request.gid_new is not None) and not node.is_dir):
            _kill_privileges(node)
        if request.atime_ns is not None:
            node.atime_ns = now if request.atime_now else request.atime_ns
        if request.mtime_ns is not None:
            node.mtime_ns = now if request.mtime_now else request.mtime_ns
        node.ctime_ns = now if request.ctime_ns is None else request.ctime_ns
        return m.AttrReply(node.attr(), self.cache_ns)

    def statfs(self, request: m.StatFs) -> m.StatFsReply:  # noqa: ARG002  # the interface
        blocks = CAPACITY_BYTES // c.PAGE_BYTES
        used = sum(self.nodes.get(nodeid).content.allocated_bytes for nodeid in self.nodes) // c.PAGE_BYTES
        return m.StatFsReply(blocks, blocks - used, blocks - used, 1 << 20, (1 << 20) - len(self.nodes), namelen=NAME_BYTES_MAX)

    # handles

    def open(self, request: m.Open) -> m.Opened:
        node = self.nodes.get(request.nodeid)
        if request.flags & os.O_TRUNC:
            node.content.truncate(0)
            self.touch(node, data=True)
            if request.open_flags & c.OPEN_KILL_SUIDGID:
                _kill_privileges(node)
        return self.open_handle(node, request.flags)

    def create(self, request: m.Create) -> m.Created:
        node = self._make(request, stat.S_IFREG | request.mode & 0o7777)
        return m.Created(self.entry(node), self.open_handle(node, request.flags))

    def tmpfile(self, request: m.Create) -> m.Created:
        node = self.new_node(self.directory(request.nodeid), request, stat.S_IFREG | request.mode & 0o7777, request.umask)
        node.nlink = 0
        return m.Created(self.entry(node), self.open_handle(node, request.flags))

    def flush(self, request: m.Flush) -> None:
        node = self.nodes.get(request.nodeid)
        if node.posix.drop(owner=request.lock_owner):
            self._wake_lockers(node)

    def release(self, request: m.Release) -> None:
        handle = self.handles.pop(request.fh)
        if [table.drop(fh=request.fh) for table in (handle.node.posix, handle.node.bsd)] != [False, False]:
            self._wake_lockers(handle.node)

    def fsync(self, request: m.Fsync) -> None:
        self.nodes.get(request.nodeid)

    # data

    def read(self, request: m.Read) -> list[memoryview]:
        node = self.nodes.get(request.nodeid)
        if node.atime_ns <= node.mtime_ns:  # as relatime
            node.atime_ns = self.now()
        return node.content.read(request.offset, request.size)

    def write(self, request: m.Write) -> int:
        node = self.nodes.get(request.nodeid)
        offset = node.content.size if request.flags & os.O_APPEND else request.offset
        if offset + len(request.data) > SIZE_MAX:
            raise FuseError(errno.EFBIG)
        node.content.write(offset, request.data)
        self._changed(node)
        if request.write_flags & c.WRITE_KILL_SUIDGID:
            _kill_privileges(node)
        return len(request.data)

    def _changed(self, node: Node) -> None:
        self.touch(node, data=True)
        for kh in node.pollers:
            assert self.session is not None
            self.session.notify_poll_nowait(kh)
        node.pollers.clear()

    def fallocate(self, request: m.Fallocate) -> None:
        node = self.nodes.get(request.nodeid)
        end = request.offset + request.length
        if end > SIZE_MAX:
            raise FuseError(errno.EFBIG)
        if request.mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise FuseError(errno.EOPNOTSUPP)
        if request.mode & (PUNCH_HOLE | ZERO_RANGE):
            node.content.punch(request.offset, request.length)
        if not request.mode & PUNCH_HOLE:
            node.content.allocate(request.offset, request.length)
        if not request.mode & KEEP_SIZE and end > node.content.size:
            node.content.size = end
        self._changed(node)

    def lseek(self, request: m.Lseek) -> int:
        content = self.nodes.get(request.nodeid).content
        if request.whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise FuseError(errno.EINVAL)
        found = content.seek(request.offset, data=request.whence == os.SEEK_DATA)
        if found is None:
            raise FuseError(errno.ENXIO)
        return found

    def copy_file_range(self, request: m.CopyFileRange) -> int:
        source, target = self.nodes.get(request.nodeid).content, self.nodes.get(request.nodeid_out)
        data = b"".join(source.read(request.offset_in, request.length))
        target.content.write(request.offset_out, memoryview(data))
        self._changed(target)
        return len(data)

    def ioctl(self, request: m.Ioctl) -> m.IoctlReply:
        if request.cmd not in {FS_IOC_GETVERSION, FS_IOC_GETFLAGS}:
            raise FuseError(errno.ENOTTY)
        return m.IoctlReply(0, bytes(request.out_size))  # generation 0, no flags

    def poll(self, request: m.Poll) -> int:
        """A file is readable when it has bytes: so there is something to wait for."""
        node = self.nodes.get(request.nodeid)
        ready = select.POLLOUT | (select.POLLIN if node.content.size else 0)
        if request.wanted:
            node.pollers.add(request.kh)
        return ready & (request.events | select.POLLERR | select.POLLHUP)

    # extended attributes

    def setxattr(self, request: m.SetXattr) -> None:
        node = self.nodes.get(request.nodeid)
        if request.name in {acl.ACCESS, acl.DEFAULT}:
            self._set_acl(node, request)
        else:
            if request.flags & XATTR_CREATE and request.name in node.xattrs:
                raise FuseError(errno.EEXIST)
            if request.flags & XATTR_REPLACE and request.name not in node.xattrs:
                raise FuseError(errno.ENODATA)
            if len(request.value) > XATTR_BYTES_MAX:
                raise FuseError(errno.E2BIG)
            node.xattrs[request.name] = request.value
        self.touch(node)

    def _set_acl(self, node: Node, request: m.SetXattr) -> None:
        try:
            new = acl.decode(request.value) if request.value else None
        except ValueError as bad:
            raise FuseError(errno.EINVAL) from bad
        if request.name == acl.DEFAULT:
            if not node.is_dir:
                raise FuseError(errno.EACCES)
            node.default = new
            return
        if new is not None:
            node.mode = acl.mode_of(new, node.mode)
            if request.setxattr_flags & c.SETXATTR_ACL_KILL_SGID:
                node.mode &= ~stat.S_ISGID
        node.access = None if new is None or acl.is_minimal(new) else new

    def _acl_of(self, node: Node, name: bytes) -> acl.Acl | None:
        return node.access if name == acl.ACCESS else node.default if name == acl.DEFAULT else None

    def getxattr(self, request: m.GetXattr) -> bytes:
        node = self.nodes.get(request.nodeid)
        listed = self._acl_of(node, request.name)
        value = node.xattrs.get(request.name) if listed is None else acl.encode(listed)
        if value is None:
            raise FuseError(errno.ENODATA)
        return value

    def listxattr(self, request: m.ListXattr) -> list[bytes]:
        node = self.nodes.get(request.nodeid)
        return [name for name in (acl.ACCESS, acl.DEFAULT) if self._acl_of(node, name) is not None] + list(node.xattrs)

    def removexattr(self, request: m.RemoveXattr) -> None:
        node = self.nodes.get(request.nodeid)
        if request.name in {acl.ACCESS, acl.DEFAULT}:
            if self._acl_of(node, request.name) is None:
                raise FuseError(errno.ENODATA)
            if request.name == acl.ACCESS:
                node.access = None
            else:
                node.default = None
        elif node.xattrs.pop(request.name, None) is None:
            raise FuseError(errno.ENODATA)
        self.touch(node)

    # locks

    def getlk(self, request: m.Lock) -> m.LockReply:
        table, wanted = self._lock(request)
        found = table.conflict(wanted)
        return m.LockReply(fcntl.F_UNLCK) if found is None else m.LockReply(found.type, found.start, found.end, found.pid)

    def setlk(self, request: m.Lock) -> Coroutine[None, None, None] | None:
        table, wanted = self._lock(request)
        if wanted.type != fcntl.F_UNLCK and table.conflict(wanted) is not None:
            if not request.wait:
                raise FuseError(errno.EAGAIN)
            return self._wait_for_lock(self.nodes.get(request.nodeid), table, wanted)
        table.put(wanted)
        self._wake_lockers(self.nodes.get(request.nodeid))  # unlocked, or a write lock became a read lock
        return None

    def _lock(self, request: m.Lock) -> tuple[LockTable, Held]:
        node = self.nodes.get(request.nodeid)
        table = node.bsd if request.flock else node.posix
        return table, Held(request.owner, request.start, request.end, request.type, request.lock_pid, request.fh)

    async def _wait_for_lock(self, node: Node, table: LockTable, wanted: Held) -> None:
        """Cancelled, it holds nothing."""
        while table.conflict(wanted) is not None:
            unlocked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            node.unlocked.append(unlocked)
            await unlocked
        table.put(wanted)
        self._wake_lockers(node)

    def _wake_lockers(self, node: Node) -> None:
        waiting, node.unlocked = node.unlocked, []
        for unlocked in waiting:
            if not unlocked.done():
                unlocked.set_result(None)


def _kill_privileges(node: Node) -> None:
    """Clear set-user-id, set-group-id of what the group may execute, and capabilities, as a write or chown does."""
    node.mode &= ~stat.S_ISUID
    if node.mode & stat.S_IXGRP:
        node.mode &= ~stat.S_ISGID
    node.xattrs.pop(CAPABILITY, None)
