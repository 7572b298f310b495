"""The vocabulary of checks: each function is one call by name, made in the current folder as the current caller.

Arguments come resolved (paths, descriptors); results are plain values, so that they can be compared and sent between processes.
Everything raises OSError as the kernel answers.
"""

# ruff: noqa: D103 - a vocabulary: the name of the call says it, the man page explains it
from __future__ import annotations

import errno
import os
import stat

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.process import Call, Place, Process

CALLS: dict[str, Call] = {}
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFIFO: "fifo", stat.S_IFBLK: "block",
    stat.S_IFCHR: "char", stat.S_IFSOCK: "socket", stat.S_IFLNK: "symlink",
}  # fmt: skip
_TYPE_BITS = {kind: bits for bits, kind in _KINDS.items()}
DEVICE = os.makedev(1, 3)
READ_BYTES_MAX = 1 << 24


def call(function: Call) -> Call:
    """Enter a function into the vocabulary, under its name without the closing underscore."""
    CALLS[function.__name__.rstrip("_")] = function
    return function


def opened(place: Place, fd: int) -> int:
    place.fds.append(fd)
    return fd


def attributes(process: Process, found: os.stat_result) -> dict[str, object]:
    """What lstat says, in our words: kind, mode (12 bits), user and group by name where they are known, times in ns."""
    return {
        "kind": _KINDS[stat.S_IFMT(found.st_mode)], "mode": stat.S_IMODE(found.st_mode), "user": process.facts.user_name(found.st_uid),
        "group": process.facts.group_name(found.st_gid), "nlink": found.st_nlink, "size": found.st_size, "ino": found.st_ino,
        "dev": found.st_dev, "rdev": found.st_rdev, "atime": found.st_atime_ns, "mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns,
        "blocks": found.st_blocks, "uid": found.st_uid, "gid": found.st_gid,
    }  # fmt: skip


@call
def make(process: Process, _place: Place, kind: str, path: str, mode: int, user: str | int, group: str | int) -> None:
    """Set-up: something of this kind, mode and owner; a symlink points to "nowhere"."""
    if kind == "dir":
        os.mkdir(path, 0o700)
    elif kind == "symlink":
        os.symlink("nowhere", path)
    else:
        os.mknod(path, _TYPE_BITS[kind] | 0o600, DEVICE if kind in {"block", "char"} else 0)
    os.chown(path, process.facts.uid(user), process.facts.gid(group), follow_symlinks=False)
    if kind != "symlink":
        os.chmod(path, mode)


@call
def umask(_process: Process, place: Place, mask: int) -> None:
    place.umask = mask
    os.umask(mask)


@call
def open_(_process: Process, place: Place, path: str, flags: int, mode: int = 0o644) -> int:
    return opened(place, os.open(path, flags, mode))


@call
def openat(_process: Process, place: Place, folder: int, path: str, flags: int, mode: int = 0o644) -> int:
    return opened(place, os.open(path, flags, mode, dir_fd=folder))


@call
def creat(_process: Process, place: Place, path: str, mode: int) -> int:
    return opened(place, os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode))


@call
def close(_process: Process, place: Place, fd: int) -> None:
    if fd in place.fds:
        place.fds.remove(fd)
    os.close(fd)


@call
def dup(_process: Process, place: Place, fd: int) -> int:
    return opened(place, os.dup(fd))


@call
def read(_process: Process, _place: Place, fd: int, count: int) -> bytes:
    return os.read(fd, count)


@call
def write(_process: Process, _place: Place, fd: int, data: bytes) -> int:
    return os.write(fd, data)


@call
def pread(_process: Process, _place: Place, fd: int, count: int, offset: int) -> bytes:
    return os.pread(fd, count, offset)


@call
def pwrite(_process: Process, _place: Place, fd: int, data: bytes, offset: int) -> int:
    return os.pwrite(fd, data, offset)


@call
def writev(_process: Process, _place: Place, fd: int, *parts: bytes) -> int:
    return os.writev(fd, parts)


@call
def lseek(_process: Process, _place: Place, fd: int, offset: int, whence: int) -> int:
    return os.lseek(fd, offset, whence)


@call
def fsync(_process: Process, _place: Place, fd: int) -> None:
    os.fsync(fd)


@call
def fdatasync(_process: Process, _place: Place, fd: int) -> None:
    os.fdatasync(fd)


@call
def truncate(_process: Process, _place: Place, path: str, length: int) -> None:
    os.truncate(path, length)


@call
def ftruncate(_process: Process, _place: Place, fd: int, length: int) -> None:
    os.ftruncate(fd, length)


@call
def chmod(_process: Process, _place: Place, path: str | int, mode: int) -> None:
    os.chmod(path, mode)


@call
def fchmodat(_process: Process, _place: Place, folder: int, path: str, mode: int) -> None:
    os.chmod(path, mode, dir_fd=folder)


@call
def chown(process: Process, _place: Place, path: str | int, user: str | int, group: str | int) -> None:
    """Also for a descriptor. Ids by name or number, -1 leaves one alone."""
    os.chown(path, process.facts.uid(user), process.facts.gid(group))


@call
def lchown(process: Process, _place: Place, path: str, user: str | int, group: str | int) -> None:
    os.chown(path, process.facts.uid(user), process.facts.gid(group), follow_symlinks=False)


@call
def fchownat(process: Process, _place: Place, folder: int, path: str, user: str | int, group: str | int) -> None:
    os.chown(path, process.facts.uid(user), process.facts.gid(group), dir_fd=folder, follow_symlinks=False)


@call
def link(_process: Process, _place: Place, source: str, target: str) -> None:
    libc.linkat(libc.AT_FDCWD, source, libc.AT_FDCWD, target, 0)


@call
def linkat(_process: Process, _place: Place, source_fd: int, source: str, target_fd: int, target: str, flags: int) -> None:
    libc.linkat(source_fd, source, target_fd, target, flags)


@call
def link_from_fd(_process: Process, _place: Place, fd: int, target: str) -> None:
    """Name an open file by way of /proc, as open(2) shows it for O_TMPFILE."""
    libc.linkat(libc.AT_FDCWD, f"/proc/self/fd/{fd}", libc.AT_FDCWD, target, libc.AT_SYMLINK_FOLLOW)


@call
def mkdir(_process: Process, _place: Place, path: str, mode: int) -> None:
    os.mkdir(path, mode)


@call
def mkdirat(_process: Process, _place: Place, folder: int, path: str, mode: int) -> None:
    os.mkdir(path, mode, dir_fd=folder)


@call
def mkfifo(_process: Process, _place: Place, path: str, mode: int) -> None:
    os.mkfifo(path, mode)


@call
def mkfifoat(_process: Process, _place: Place, folder: int, path: str, mode: int) -> None:
    os.mkfifo(path, mode, dir_fd=folder)


@call
def mknod(_process: Process, _place: Place, path: str, kind: str, mode: int, device: int = 0) -> None:
    os.mknod(path, _TYPE_BITS[kind] | mode, device)


@call
def mknodat(_process: Process, _place: Place, folder: int, path: str, kind: str, mode: int) -> None:
    os.mknod(path, _TYPE_BITS[kind] | mode, 0, dir_fd=folder)


@call
def symlink(_process: Process, _place: Place, target: str, path: str) -> None:
    os.symlink(target, path)


@call
def symlinkat(_process: Process, _place: Place, target: str, folder: int, path: str) -> None:
    os.symlink(target, path, dir_fd=folder)


@call
def readlink(_process: Process, _place: Place, path: str) -> str:
    return os.readlink(path)


@call
def readlinkat(_process: Process, _place: Place, folder: int, path: str) -> str:
    return os.readlink(path, dir_fd=folder)


@call
def unlink(_process: Process, _place: Place, path: str) -> None:
    os.unlink(path)


@call
def unlinkat(_process: Process, _place: Place, folder: int, path: str) -> None:
    os.unlink(path, dir_fd=folder)


@call
def rmdir(_process: Process, _place: Place, path: str) -> None:
    os.rmdir(path)


@call
def rmdirat(_process: Process, _place: Place, folder: int, path: str) -> None:
    os.rmdir(path, dir_fd=folder)


@call
def rename(_process: Process, _place: Place, source: str, target: str) -> None:
    os.rename(source, target)


@call
def renameat(_process: Process, _place: Place, source_fd: int, source: str, target_fd: int, target: str) -> None:
    os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


@call
def renameat2(_process: Process, _place: Place, source: str, target: str, flags: int) -> None:
    libc.renameat2(libc.AT_FDCWD, source, libc.AT_FDCWD, target, flags)


@call
def utimensat(
    _process: Process, _place: Place, folder: int, path: str | None, times: tuple[int, int, int, int] | None, flags: int
) -> None:
    libc.utimensat(folder, path, times, flags)


@call
def access(_process: Process, _place: Place, path: str, mode: int) -> None:
    libc.faccessat2(libc.AT_FDCWD, path, mode, 0)


@call
def faccessat(_process: Process, _place: Place, folder: int, path: str, mode: int, flags: int) -> None:
    libc.faccessat2(folder, path, mode, flags)


@call
def chdir(_process: Process, _place: Place, path: str | int) -> None:
    """Checked for permission only: the next call is made in the case's own folder again."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


@call
def lstat(process: Process, _place: Place, path: str) -> dict[str, object]:
    return attributes(process, os.lstat(path))


@call
def stat_(process: Process, _place: Place, path: str) -> dict[str, object]:
    return attributes(process, os.stat(path))


@call
def fstat(process: Process, _place: Place, fd: int) -> dict[str, object]:
    return attributes(process, os.fstat(fd))


@call
def fstatat(process: Process, _place: Place, folder: int, path: str) -> dict[str, object]:
    return attributes(process, os.stat(path, dir_fd=folder, follow_symlinks=False))


@call
def birth(_process: Process, _place: Place, path: str) -> int | None:
    return libc.birth_time_ns(path)


@call
def names(_process: Process, _place: Place, path: str | int) -> list[str]:
    return sorted(os.listdir(path))


@call
def slurp(_process: Process, _place: Place, path: str) -> bytes:
    """All bytes of a file, read in one go."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, READ_BYTES_MAX)
    finally:
        os.close(fd)


@call
def spew(_process: Process, _place: Place, path: str, data: bytes) -> None:
    """Write a whole file, made where there is none."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "short write", path)
    finally:
        os.close(fd)


@call
def exec_(_process: Process, _place: Place, path: str) -> int:
    """Run a program and return its exit code; the errno of execve if it did not start."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)
            os.execv(path, [path])  # noqa: S606  # running it is the check
        except OSError as refused:
            os.write(writing, bytes([refused.errno or errno.EIO]))
        finally:
            os._exit(127)
    os.close(writing)
    refused_by = os.read(reading, 1)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if refused_by:
        raise OSError(refused_by[0], os.strerror(refused_by[0]), path)
    return code


def vocabulary() -> dict[str, Call]:
    """All calls by name, those of `morecalls` included."""
    from xtreemos.testing.posix import morecalls  # it enters its own into CALLS

    assert morecalls.__name__
    return dict(CALLS)
