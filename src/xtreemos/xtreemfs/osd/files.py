"""The few things an OSD wants of a disk, and the real ones. Everything that a crash can tear goes through here.

`testing.fakedisk` is the other implementation: it forgets, tears and reorders what was not synced. No sums, no marks, no errors of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from xtreemos.xtreemfs.osd.model import folders_with

Buffer = bytes | bytearray | memoryview

FALLOC_KEEP_SIZE: Final = 1
FALLOC_PUNCH_HOLE: Final = 2
FALLOC_ZERO_RANGE: Final = 16


class File(Protocol):
    """An open file. Every method may raise OSError; a failed `pwrite` may have written a part."""

    def pread(self, length: int, at: int, *, wait: bool = True) -> bytes | None:
        """Read up to `length` bytes (fewer only at the end). None if `wait` is False and they are not in memory."""

    def pwrite(self, data: Buffer, at: int) -> None:
        """Write all of `data`."""

    def truncate(self, length: int) -> None:
        """Set the length."""

    def allocate(self, mode: int, at: int, length: int) -> None:
        """As fallocate(2)."""

    def seek(self, at: int, whence: int) -> int:
        """As lseek(2) with SEEK_DATA or SEEK_HOLE; -1 if there is none."""

    def size(self) -> tuple[int, int]:
        """(length in bytes, bytes allocated / 512)."""

    def sync(self) -> None:
        """Make data and length durable."""

    def close(self) -> None:
        """Close it."""


class Disk(Protocol):
    """A folder of files; names are `FOLDER/NAME`, one level."""

    def open(self, name: str, *, create: bool) -> File | None:
        """Open for reading and writing; None if it does not exist and is not to be created."""

    def unlink(self, name: str) -> int | None:
        """Remove a name; returns the bytes that the file took, None if there was none."""

    def sync_names(self, folder: str) -> None:
        """Make names made or removed in `FOLDER` durable."""

    def sync_all(self) -> None:
        """Make everything durable."""

    def walk(self) -> Iterator[tuple[str, int]]:
        """All names with the bytes that the files take, in no order."""

    def is_lent(self, name: str) -> bool:
        """Whether somebody has the file open for writing; we must not ourselves."""

    def space(self) -> tuple[int, int]:
        """(bytes in all, bytes free for us)."""


_libc = ctypes.CDLL(None, use_errno=True)
_fallocate: Callable[[int, int, int, int], int] = _libc.fallocate
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class RealFile:
    """A file of the kernel's. See `File`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def pread(self, length: int, at: int, *, wait: bool = True) -> bytes | None:
        """See `File`."""
        if wait:
            data = os.pread(self.descriptor, length, at)
            while len(data) < length:  # more than 2 GiB, or the end
                more = os.pread(self.descriptor, length - len(data), at + len(data))
                if not more:
                    break
                data += more
            return data
        space = bytearray(length)
        try:
            count = os.preadv(self.descriptor, [space], at, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        if count == length:
            return bytes(space)
        at_end = at + count >= os.fstat(self.descriptor).st_size  # else the rest is on the disk only
        return bytes(space[:count]) if at_end else None

    def pwrite(self, data: Buffer, at: int) -> None:
        """See `File`."""
        count = os.pwrite(self.descriptor, data, at)
        if count < len(data):
            view = memoryview(data)
            while count < len(view):
                more = os.pwrite(self.descriptor, view[count:], at + count)
                if more == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                count += more

    def truncate(self, length: int) -> None:
        """See `File`."""
        os.ftruncate(self.descriptor, length)

    def allocate(self, mode: int, at: int, length: int) -> None:
        """See `File`."""
        _check(_fallocate(self.descriptor, mode, at, length))

    def seek(self, at: int, whence: int) -> int:
        """See `File`."""
        try:
            return os.lseek(self.descriptor, at, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return -1
            raise

    def size(self) -> tuple[int, int]:
        """See `File`."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_blocks

    def sync(self) -> None:
        """See `File`."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        """See `File`."""
        os.close(self.descriptor)


class RealDisk:
    """A folder of the kernel's. See `Disk`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str, *, create: bool) -> File | None:
        """See `Disk`."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            return RealFile(os.open(name, flags, 0o600, dir_fd=self._root))
        except FileNotFoundError:
            if not create:
                return None
        for folder in folders_with(name.partition("/")[0]):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700, dir_fd=self._root)
        os.fsync(self._root)
        return RealFile(os.open(name, flags, 0o600, dir_fd=self._root))

    def unlink(self, name: str) -> int | None:
        """See `Disk`."""
        try:
            taken = os.stat(name, dir_fd=self._root, follow_symlinks=False).st_blocks * 512
            os.unlink(name, dir_fd=self._root)
        except FileNotFoundError:
            return None
        return taken

    def sync_names(self, folder: str) -> None:
        """See `Disk`."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_all(self) -> None:
        """See `Disk`."""
        _check(_libc.syncfs(self._root))

    def walk(self) -> Iterator[tuple[str, int]]:
        """See `Disk`."""
        for folder in os.scandir(self.folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        yield f"{folder.name}/{entry.name}", entry.stat(follow_symlinks=False).st_blocks * 512

    def is_lent(self, name: str) -> bool:
        """See `Disk`."""
        return lent_for_writing(self.folder / name)

    def space(self) -> tuple[int, int]:
        """See `Disk`."""
        status = os.fstatvfs(self._root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._root)


def lent_for_writing(path: Path) -> bool:
    """Tell whether any process has the file open for writing (passthrough descriptors included; we must not ourselves).

    The kernel refuses a read lease exactly then (fcntl(2), F_SETLEASE). Where it knows no leases the answer is yes, the safe one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _can_lease(descriptor, fcntl.F_RDLCK)
    finally:
        os.close(descriptor)  # ends the lease too


def is_in_use(descriptor: int) -> bool:
    """Tell whether anybody else has a file open or mapped of which we hold one descriptor, for reading and writing.

    The kernel refuses a write lease exactly then. Where it knows no leases the answer is yes, the safe one.
    """
    free = _can_lease(descriptor, fcntl.F_WRLCK)
    if free:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return not free


def _can_lease(descriptor: int, kind: int) -> bool:
    # Of who opens the file while we have the lease the kernel tells us by a signal. SIGIO, the usual one, would end this process.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)
    except OSError:
        return False
    return True
