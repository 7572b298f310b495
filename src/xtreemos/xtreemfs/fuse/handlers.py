# ruff: noqa: ARG002  # the arguments are the interface
"""What a file system implements. The contract is docs/protocols/fuse.md; a method that a class does not define is answered ENOSYS."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.replies import Listing

if TYPE_CHECKING:
    from xtreemos.xtreemfs.fuse.driver import Session

T = TypeVar("T")
Answer: TypeAlias = T | Awaitable[T]


def _absent() -> NoReturn:
    raise FuseError(errno.ENOSYS)


class Handlers:
    """One method per operation: answers a value, an awaitable of one, or raises FuseError. Runs on the event loop's thread."""

    def init(self, session: Session) -> None:
        """Hear that the mount is there: `session.negotiated` is known. Before any request."""

    def destroy(self) -> None:
        """Hear that the mount has ended. After every request, once."""

    def forget(self, request: m.Forget) -> Answer[None]:
        """Take lookup counts back. Nobody waits for it."""

    def lookup(self, request: m.Lookup) -> Answer[m.Entry | bytes]:
        _absent()

    def getattr(self, request: m.GetAttr) -> Answer[m.AttrReply | bytes]:
        _absent()

    def statx(self, request: m.Statx) -> Answer[m.StatxReply | bytes]:
        _absent()

    def setattr(self, request: m.SetAttr) -> Answer[m.AttrReply | bytes]:
        _absent()

    def readlink(self, request: m.ReadLink) -> Answer[bytes]:
        _absent()

    def symlink(self, request: m.Symlink) -> Answer[m.Entry | bytes]:
        _absent()

    def mknod(self, request: m.MkNod) -> Answer[m.Entry | bytes]:
        _absent()

    def mkdir(self, request: m.MkDir) -> Answer[m.Entry | bytes]:
        _absent()

    def unlink(self, request: m.Unlink) -> Answer[None]:
        _absent()

    def rmdir(self, request: m.RmDir) -> Answer[None]:
        _absent()

    def rename(self, request: m.Rename) -> Answer[None]:
        _absent()

    def link(self, request: m.Link) -> Answer[m.Entry | bytes]:
        _absent()

    def open(self, request: m.Open) -> Answer[m.Opened | bytes]:
        """Without this method every open succeeds with handle 0."""
        return m.Opened()

    def create(self, request: m.Create) -> Answer[m.Created | bytes]:
        _absent()

    def tmpfile(self, request: m.Create) -> Answer[m.Created | bytes]:
        _absent()

    def read(self, request: m.Read) -> Answer[m.Buffer | Sequence[m.Buffer]]:
        _absent()

    def write(self, request: m.Write) -> Answer[int]:
        _absent()

    def flush(self, request: m.Flush) -> Answer[None]:
        _absent()

    def release(self, request: m.Release) -> Answer[None]:
        """Without this method handles need no care."""

    def fsync(self, request: m.Fsync) -> Answer[None]:
        _absent()

    def opendir(self, request: m.Open) -> Answer[m.Opened | bytes]:
        """Without this method every opendir succeeds with handle 0."""
        return m.Opened()

    def readdir(self, request: m.Read) -> Answer[Listing | bytes]:
        _absent()

    def readdirplus(self, request: m.Read) -> Answer[Listing | bytes]:
        _absent()

    def releasedir(self, request: m.Release) -> Answer[None]:
        """Without this method handles need no care."""

    def fsyncdir(self, request: m.Fsync) -> Answer[None]:
        _absent()

    def statfs(self, request: m.StatFs) -> Answer[m.StatFsReply | bytes]:
        """Without this method df sees zeros."""
        return m.StatFsReply()

    def setxattr(self, request: m.SetXattr) -> Answer[None]:
        _absent()

    def getxattr(self, request: m.GetXattr) -> Answer[bytes]:
        _absent()

    def listxattr(self, request: m.ListXattr) -> Answer[Sequence[bytes]]:
        _absent()

    def removexattr(self, request: m.RemoveXattr) -> Answer[None]:
        _absent()

    def getlk(self, request: m.Lock) -> Answer[m.LockReply]:
        _absent()

    def setlk(self, request: m.Lock) -> Answer[None]:
        _absent()

    def access(self, request: m.Access) -> Answer[None]:
        _absent()

    def bmap(self, request: m.Bmap) -> Answer[int]:
        _absent()

    def ioctl(self, request: m.Ioctl) -> Answer[m.IoctlReply]:
        raise FuseError(errno.ENOTTY)

    def poll(self, request: m.Poll) -> Answer[int]:
        _absent()

    def fallocate(self, request: m.Fallocate) -> Answer[None]:
        _absent()

    def lseek(self, request: m.Lseek) -> Answer[int]:
        _absent()

    def copy_file_range(self, request: m.CopyFileRange) -> Answer[int]:
        _absent()

    def syncfs(self, request: m.SyncFs) -> Answer[None]:
        _absent()
