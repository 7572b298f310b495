"""System calls that the os module does not offer, or offers with manners of its own. Each raises OSError with the kernel's errno."""

from __future__ import annotations

import ctypes
import os

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_REMOVEDIR = 0x200
AT_EACCESS = 0x200
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT = 1, 2, 8, 16, 32
STATX_BASIC_BTIME = 0xFFF
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID = 1, 32, 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG = 1
SYS_RENAMEAT2, SYS_STATX, SYS_FACCESSAT2 = 316, 332, 439  # x86_64; others by architecture below
if os.uname().machine == "aarch64":
    SYS_RENAMEAT2, SYS_STATX, SYS_FACCESSAT2 = 276, 291, 439

_libc = ctypes.CDLL(None, use_errno=True)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.opendir.restype = ctypes.c_void_p
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.pathconf.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.pathconf.restype = ctypes.c_long


class Timespec(ctypes.Structure):
    """`struct timespec` of 64-bit Linux."""

    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def _checked(result: int, *names: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *names[:1])
    return result


def linkat(source_fd: int, source: str, target_fd: int, target: str, flags: int) -> None:
    """The system call of that name."""
    _checked(_libc.linkat(source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags), source)


def renameat2(source_fd: int, source: str, target_fd: int, target: str, flags: int) -> None:
    """The system call of that name."""
    _checked(_libc.syscall(SYS_RENAMEAT2, source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags), source)


def utimensat(dir_fd: int, path: str | None, times: tuple[int, int, int, int] | None, flags: int) -> None:
    """Set times; `times` is (atime s, atime ns, mtime s, mtime ns), None means now; `path` None means the descriptor itself."""
    pair = (Timespec * 2)(Timespec(times[0], times[1]), Timespec(times[2], times[3])) if times else None
    if path is None:
        _checked(_libc.futimens(dir_fd, pair))
    else:
        _checked(_libc.utimensat(dir_fd, os.fsencode(path), pair, flags), path)


def faccessat2(dir_fd: int, path: str, mode: int, flags: int) -> None:
    """The system call of that name, by the system call: the C library emulates it in part."""
    _checked(_libc.syscall(SYS_FACCESSAT2, dir_fd, os.fsencode(path), mode, flags), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """The system call of that name, with Linux' modes."""
    _checked(_libc.fallocate(fd, mode, offset, length))


def birth_time_ns(path: str) -> int | None:
    """The birth time of a file by statx, ns since 1970; None if the file system has none."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.syscall(SYS_STATX, AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, STATX_BASIC_BTIME, buffer), path)
    raw = buffer.raw
    if not int.from_bytes(raw[0:4], "little") & 0x800:
        return None
    return int.from_bytes(raw[80:88], "little", signed=True) * 10**9 + int.from_bytes(raw[88:92], "little")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """The system call of that name without data."""
    _checked(
        _libc.mount(source.encode(), os.fsencode(target), kind.encode() if kind else None, ctypes.c_ulong(flags), None), target
    )


def own_mount_namespace() -> None:
    """From here on mounts of this process are its own, and end with it."""
    _checked(_libc.unshare(CLONE_NEWNS))
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent thread ends."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0))


class Directory:
    """A directory stream of the C library: what telldir and seekdir mean is decided there and in the kernel together."""

    def __init__(self, path: str) -> None:
        self._handle = _libc.opendir(os.fsencode(path))
        if not self._handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)

    def read(self) -> str | None:
        """Name of the next entry; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._handle)
        if not entry:
            _checked(-1 if ctypes.get_errno() else 0)
            return None
        return os.fsdecode(ctypes.string_at(entry + 19))  # d_ino 8, d_off 8, d_reclen 2, d_type 1

    def tell(self) -> int:
        return int(_libc.telldir(self._handle))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._handle, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._handle)

    def close(self) -> None:
        _libc.closedir(self._handle)
