"""A folder shown again through FUSE with passthrough: reads, writes and mmap of open files never reach us. Example and proof of that.

Just enough for it: look-up, attributes, listing, create, open, truncate, unlink, mkdir. Nodes are named by the device and inode below, so
all opens of a file agree on its backing file (the kernel refuses an inode that is open with and without one, or with two).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import Any, TypeVar

from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import FOPEN_PASSTHROUGH, ROOT_ID, InitFlag
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.nodes import NodeTable
from xtreemos.xtreemfs.fuse.replies import NO_ENTRY, Listing

CACHE_NS = 0  # sizes change below without our seeing it
Method = TypeVar("Method", bound=Callable[..., Any])


def _errno(method: Method) -> Method:
    """Hand the errno of the folder below on: here an OSError is an answer."""

    @wraps(method)
    def wrapped(*args: Any) -> Any:
        try:
            return method(*args)
        except OSError as failed:
            raise FuseError(failed.errno or 5) from failed

    return wrapped  # type: ignore[return-value]  # the same signature


@dataclass(slots=True, eq=False)
class Lower:
    """An inode below, by an O_PATH descriptor. While it is open: how often, and its backing id."""

    nodeid: int
    fd: int
    key: tuple[int, int]
    opens: int = 0
    backing_id: int = 0

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"


class PassthroughFs(Handlers):
    """Shows the folder behind O_PATH descriptor `root_fd`, which it then owns."""

    def __init__(self, root_fd: int) -> None:
        status = os.fstat(root_fd)
        root = Lower(ROOT_ID, root_fd, (status.st_dev, status.st_ino))
        self.nodes: NodeTable[Lower] = NodeTable(root)
        self._by_key = {root.key: root}
        self._nodeids = count(ROOT_ID + 1)
        self._handles: dict[int, tuple[Lower, int]] = {}
        self._numbers = count(1)
        self._session: Session | None = None

    def init(self, session: Session) -> None:
        self._session = session

    def destroy(self) -> None:
        for node in list(self._by_key.values()):
            os.close(node.fd)
        for _, fd in self._handles.values():
            os.close(fd)
        self._by_key.clear()
        self._handles.clear()

    def forget(self, request: m.Forget) -> None:
        for nodeid, counts in request.nodes:
            gone = self.nodes.forget(nodeid, counts)
            if gone is not None:
                del self._by_key[gone.key]
                os.close(gone.fd)

    def _attr(self, status: os.stat_result, nodeid: int) -> m.Attr:
        return m.Attr(
            nodeid, status.st_mode, status.st_size, status.st_nlink, status.st_uid, status.st_gid,
            status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns, status.st_blocks,
        )  # fmt: skip

    def _entry(self, parent: Lower, name: bytes) -> m.Entry:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        node = self._by_key.get(key)
        if node is None:
            node = self._by_key[key] = Lower(next(self._nodeids), fd, key)
        else:
            os.close(fd)
        self.nodes.looked_up(node.nodeid, node)
        return m.Entry(node.nodeid, self._attr(status, node.nodeid), 0, CACHE_NS, CACHE_NS)

    @_errno
    def lookup(self, request: m.Lookup) -> m.Entry:
        return self._entry(self.nodes.get(request.nodeid), request.name)

    @_errno
    def getattr(self, request: m.GetAttr) -> m.AttrReply:
        node = self.nodes.get(request.nodeid)
        return m.AttrReply(self._attr(os.fstat(node.fd), node.nodeid), CACHE_NS)

    @_errno
    def setattr(self, request: m.SetAttr) -> m.AttrReply:
        node = self.nodes.get(request.nodeid)
        if request.size is not None:
            os.truncate(node.path, request.size)
        if request.mode is not None:
            os.chmod(node.path, stat.S_IMODE(request.mode))
        if request.atime_ns is not None and request.mtime_ns is not None:
            os.utime(node.path, ns=(request.atime_ns, request.mtime_ns))
        return m.AttrReply(self._attr(os.fstat(node.fd), node.nodeid), CACHE_NS)

    def _opened(self, node: Lower, fd: int) -> m.Opened:
        """Answer with one backing file for all opens of an inode, for as long as it is open at all."""
        assert self._session is not None
        if self._session.negotiated.has(InitFlag.PASSTHROUGH):
            if node.opens == 0:
                try:
                    node.backing_id = self._session.backing_open(fd)
                except OSError:
                    os.close(fd)
                    raise
            node.opens += 1
        number = next(self._numbers)
        self._handles[number] = (node, fd)
        return m.Opened(number, FOPEN_PASSTHROUGH if node.backing_id else 0, node.backing_id)

    @_errno
    def open(self, request: m.Open) -> m.Opened:
        node = self.nodes.get(request.nodeid)
        # Read and write whatever was asked for: the first open's descriptor serves later ones, too; the kernel has checked rights.
        return self._opened(node, os.open(node.path, os.O_RDWR | request.flags & os.O_TRUNC | os.O_CLOEXEC))

    @_errno
    def create(self, request: m.Create) -> m.Created:
        parent = self.nodes.get(request.nodeid)
        fd = os.open(
            request.name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, request.mode & ~request.umask & 0o777, dir_fd=parent.fd
        )
        entry = self._entry(parent, request.name)
        return m.Created(entry, self._opened(self.nodes.get(entry.nodeid), fd))

    @_errno
    def release(self, request: m.Release) -> None:
        node, fd = self._handles.pop(request.fh)
        os.close(fd)
        if node.backing_id:
            node.opens -= 1
            if node.opens == 0:
                assert self._session is not None
                self._session.backing_close(node.backing_id)
                node.backing_id = 0

    @_errno
    def read(self, request: m.Read) -> bytes:
        """Without passthrough (not root, old kernel) data comes this way."""
        return os.pread(self._handles[request.fh][1], request.size, request.offset)

    @_errno
    def write(self, request: m.Write) -> int:
        return os.pwrite(self._handles[request.fh][1], request.data, request.offset)

    @_errno
    def mkdir(self, request: m.MkDir) -> m.Entry:
        parent = self.nodes.get(request.nodeid)
        os.mkdir(request.name, request.mode & ~request.umask & 0o777, dir_fd=parent.fd)
        return self._entry(parent, request.name)

    @_errno
    def unlink(self, request: m.Unlink) -> None:
        os.unlink(request.name, dir_fd=self.nodes.get(request.nodeid).fd)

    @_errno
    def rmdir(self, request: m.RmDir) -> None:
        os.rmdir(request.name, dir_fd=self.nodes.get(request.nodeid).fd)

    @_errno
    def readdir(self, request: m.Read) -> Listing:
        return self._list(request, plus=False)

    @_errno
    def readdirplus(self, request: m.Read) -> Listing:
        return self._list(request, plus=True)

    def _list(self, request: m.Read, *, plus: bool) -> Listing:
        """Names in the order of their bytes; the cookie is the place in it, which is good enough for an example."""
        page = Listing(request.size)
        names = sorted(os.fsencode(name) for name in os.listdir(self.nodes.get(request.nodeid).path))
        for cookie, name in list(enumerate(names, start=1))[request.offset :]:
            if not (page.add_plus(name, NO_ENTRY, 1, 0, cookie) if plus else page.add(name, 1, 0, cookie)):
                break
        return page
