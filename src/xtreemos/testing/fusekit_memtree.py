"""Names in the file system in memory: look-up, making, removing, renaming, listing. The kernel has checked permissions before."""

from __future__ import annotations

import errno
import stat
from bisect import bisect_right
from itertools import count

from xtreemos.testing.fusekit_memnodes import MemStore, Node
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.replies import NO_ENTRY, Listing

NAME_BYTES_MAX = 255
LINKS_MAX = 65000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FIRST_COOKIE = 3  # 1 and 2 are behind `.` and `..`


class MemTree(MemStore):
    """The operations on names."""

    _cookies = count(FIRST_COOKIE)

    # helpers

    def _child(self, parent: Node, name: bytes) -> Node:
        node = parent.entries.get(name)
        if node is None:
            raise FuseError(errno.ENOENT)
        return node

    def _check_new(self, parent: Node, name: bytes) -> None:
        if len(name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        if name in parent.entries:
            raise FuseError(errno.EEXIST)
        if parent.nlink == 0:
            raise FuseError(errno.ENOENT)  # a removed directory takes no names

    def _add(self, parent: Node, name: bytes, node: Node) -> None:
        parent.entries[name] = node
        parent.cookies[name] = next(self._cookies)
        if node.is_dir:
            node.parent = parent
            parent.nlink += 1
        self.touch(parent, data=True)

    def _take(self, parent: Node, name: bytes) -> Node:
        node = parent.entries.pop(name)
        del parent.cookies[name]
        if node.is_dir:
            parent.nlink -= 1
        self.touch(parent, data=True)
        return node

    def _make(self, request: m.MkNod | m.MkDir | m.Create, mode: int) -> Node:
        parent = self.directory(request.nodeid)
        self._check_new(parent, request.name)
        node = self.new_node(parent, request, mode, request.umask)
        self._add(parent, request.name, node)
        return node

    def _unlinked(self, node: Node) -> None:
        """One name of `node` is gone; a directory had but one."""
        node.nlink = 0 if node.is_dir else node.nlink - 1
        self.touch(node)

    # operations

    def lookup(self, request: m.Lookup) -> m.Entry:
        parent = self.nodes.get(request.nodeid)
        if request.name == b".":  # an NFS client comes back with a nodeid
            return self.entry(parent)
        if not parent.is_dir:
            raise FuseError(errno.ENOTDIR)
        if request.name == b"..":
            return self.entry(parent.parent or self.root)
        if len(request.name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        return self.entry(self._child(parent, request.name))

    def mknod(self, request: m.MkNod) -> m.Entry:
        node = self._make(request, request.mode)
        node.rdev = request.rdev
        return self.entry(node)

    def mkdir(self, request: m.MkDir) -> m.Entry:
        if self.directory(request.nodeid).nlink >= LINKS_MAX:
            raise FuseError(errno.EMLINK)
        return self.entry(self._make(request, request.mode | stat.S_IFDIR))

    def symlink(self, request: m.Symlink) -> m.Entry:
        parent = self.directory(request.nodeid)
        self._check_new(parent, request.name)
        node = self.new_node(parent, request, stat.S_IFLNK | 0o777, 0)
        node.target = request.target
        self._add(parent, request.name, node)
        return self.entry(node)

    def readlink(self, request: m.ReadLink) -> bytes:
        return self.nodes.get(request.nodeid).target

    def link(self, request: m.Link) -> m.Entry:
        node, parent = self.nodes.get(request.oldnodeid), self.directory(request.nodeid)
        if node.is_dir:
            raise FuseError(errno.EPERM)
        if node.nlink >= LINKS_MAX:
            raise FuseError(errno.EMLINK)
        self._check_new(parent, request.name)
        node.nlink += 1
        self._add(parent, request.name, node)
        self.touch(node)
        return self.entry(node)

    def unlink(self, request: m.Unlink) -> None:
        parent = self.directory(request.nodeid)
        if self._child(parent, request.name).is_dir:
            raise FuseError(errno.EISDIR)
        self._unlinked(self._take(parent, request.name))

    def rmdir(self, request: m.RmDir) -> None:
        parent = self.directory(request.nodeid)
        node = self._child(parent, request.name)
        if not node.is_dir:
            raise FuseError(errno.ENOTDIR)
        if node.entries:
            raise FuseError(errno.ENOTEMPTY)
        self._unlinked(self._take(parent, request.name))

    def rename(self, request: m.Rename) -> None:
        source, target = self.directory(request.nodeid), self.directory(request.newdir)
        node, there = self._child(source, request.name), target.entries.get(request.newname)
        if request.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise FuseError(errno.EINVAL)
        if len(request.newname) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        if target.nlink == 0:
            raise FuseError(errno.ENOENT)
        _check_no_loop(node, target)
        if request.flags & RENAME_EXCHANGE:
            self._exchange(source, target, request)
            return
        if there is node:
            return  # two names of one inode: rename(2) does nothing
        if there is not None:
            _check_replaceable(node, there, noreplace=bool(request.flags & RENAME_NOREPLACE))
            self._unlinked(self._take(target, request.newname))
        self._take(source, request.name)
        self._add(target, request.newname, node)
        self.touch(node)
        if request.flags & RENAME_WHITEOUT:
            self._add(source, request.name, self.new_node(source, request, stat.S_IFCHR, 0))

    def _exchange(self, source: Node, target: Node, request: m.Rename) -> None:
        node, other = self._child(source, request.name), self._child(target, request.newname)
        _check_no_loop(other, source)
        if node is other:
            return
        self._take(source, request.name)
        self._take(target, request.newname)
        self._add(target, request.newname, node)
        self._add(source, request.name, other)
        self.touch(node)
        self.touch(other)

    # listing

    def opendir(self, request: m.Open) -> m.Opened:
        return self.open_handle(self.directory(request.nodeid), request.flags)

    def releasedir(self, request: m.Release) -> None:
        self.handles.pop(request.fh, None)

    def fsyncdir(self, request: m.Fsync) -> None:
        self.nodes.get(request.nodeid)

    def readdir(self, request: m.Read) -> Listing:
        return self._list(request, plus=False)

    def readdirplus(self, request: m.Read) -> Listing:
        return self._list(request, plus=True)

    def _list(self, request: m.Read, *, plus: bool) -> Listing:
        handle = self.handles[request.fh]
        node, page = handle.node, Listing(request.size)
        if request.offset == 0:  # opened or rewound: names as they are now
            handle.names = sorted((cookie, name) for name, cookie in node.cookies.items())
        dots = [(1, b".", node), (2, b"..", node.parent or self.root)]
        for cookie, name, dot in dots[request.offset :] if request.offset < len(dots) and node.nlink else []:
            if not (
                page.add_plus(name, NO_ENTRY, dot.ino, dot.mode, cookie) if plus else page.add(name, dot.ino, dot.mode, cookie)
            ):
                return page
        for cookie, name in handle.names[bisect_right(handle.names, (request.offset, b"\xff" * (NAME_BYTES_MAX + 1))) :]:
            child = node.entries.get(name)
            if child is None or node.cookies[name] != cookie:
                continue  # removed since, or removed and made again
            if plus:
                entry = m.Entry(child.ino, child.attr(), 0, self.cache_ns, self.cache_ns)
                if not page.add_plus(name, entry, child.ino, child.mode, cookie):
                    break
                self.nodes.looked_up(child.ino, child)  # only what the kernel really gets counts
            elif not page.add(name, child.ino, child.mode, cookie):
                break
        return page


def _check_no_loop(moved: Node, target: Node) -> None:
    """Refuse to move a directory below itself."""
    place: Node | None = target
    while moved.is_dir and place is not None:
        if place is moved:
            raise FuseError(errno.EINVAL)
        place = place.parent if place.parent is not place else None


def _check_replaceable(node: Node, there: Node, *, noreplace: bool) -> None:
    if noreplace:
        raise FuseError(errno.EEXIST)
    if there.is_dir and not node.is_dir:
        raise FuseError(errno.EISDIR)
    if node.is_dir and not there.is_dir:
        raise FuseError(errno.ENOTDIR)
    if there.entries:
        raise FuseError(errno.ENOTEMPTY)
