"""Copies a tree file by file with threads, keeping modes, times, xattrs, symbolic and hard links, holes, and (root) owners. Resumable.

What makes it resumable: a file is copied under a name of its own (`.xos-part-...`, the same for the same file), synced, given its
attributes, and renamed last. So whatever has the right size and time under its right name is whole, even after a power cut, and
need not be copied again; and of a part all but its last MiB is good. It knows ordinary files only, no volumes and no terminal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from xtreemos.errors import XosError

BUFFER_BYTES = 1 << 20
RESUME_BYTES = 1 << 20  # of a part's end that are copied again
WAITING_MAX = 1024  # files found and not begun
PROBLEMS_MAX = 1000  # remembered; more are counted
PART_PREFIX = ".xos-part-"
MAGIC = ("user.xtreemfs.", "xtreemfs.")
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTCONN, errno.ESHUTDOWN}
"""After one of these nothing else would go better."""


class CopyIncomplete(XosError):
    """Not everything was copied; the lines before say what. The same command again goes on where this one stopped."""

    fault = "environment"
    code = "copy-incomplete"


@dataclass
class Tally:
    """What was done so far. Written under a lock by many threads, read by who shows it."""

    files: int = 0
    files_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    good: int = 0
    """Files that are now as in the source, `skipped` of them without doing anything."""
    moved: int = 0
    """Bytes really written, holes and what was there already not counted."""
    skipped: int = 0
    compared: int = 0
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """One line each: path and reason."""
    unkept: dict[str, int] = field(default_factory=dict)
    """What could not be kept, and of how many files."""


class Copier:
    """One copy of `source` (a file or folder) to `target`, which is the copy's own path. `run` does it, `stop` ends it early."""

    def __init__(self, source: str, target: str, *, threads: int, verify: bool, owners: bool) -> None:
        """Make it.

        Args:
            source: what to copy; an existing path.
            target: what the copy will be called; its parent exists.
            threads: how many files at a time.
            verify: read everything again and compare.
            owners: keep uids and gids.
        """
        self.tally = Tally()
        self._source = os.fsencode(source)
        self._target = os.fsencode(target)
        self._threads = threads
        self._verify = verify
        self._owners = owners
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._gate = threading.BoundedSemaphore(WAITING_MAX)
        self._folders: list[tuple[bytes, os.stat_result, bytes]] = []
        self._linked: dict[tuple[int, int], bytes] = {}
        self._links: list[tuple[bytes, bytes]] = []
        self.fatal = ""
        """Why it was given up, if it was."""

    def stop(self) -> None:
        """Begin nothing new, break off what is under way."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """Whether it was ended early."""
        return self._stopping.is_set()

    def run(self) -> None:
        """Copy all. What fails is in the tally; nothing is raised for it."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="copy") as pool:
            for work in self._plan(self._source, self._target, top=True):
                self._gate.acquire()
                if self.stopped:
                    self._gate.release()
                    break
                pool.submit(self._one, *work)
        for first, name in self._links:
            if not self.stopped:
                self._guarded(name, lambda first=first, name=name: self._link(first, name))  # type: ignore[misc]
        for source, status, target in reversed(self._folders):
            if not self.stopped:
                self._guarded(target, lambda s=source, st=status, t=target: self._attributes(s, st, t))  # type: ignore[misc]

    # -- finding -------------------------------------------------------------------------------------------------------------

    def _plan(self, source: bytes, target: bytes, *, top: bool = False) -> Iterator[tuple[bytes, os.stat_result, bytes]]:
        """Yield what is no folder, making folders on the way."""
        try:
            status = os.lstat(source)
            if not stat.S_ISDIR(status.st_mode):
                if self._is_first(status, target):
                    self._count(
                        files_total=1, bytes_total=status.st_size * (1 + self._verify) if stat.S_ISREG(status.st_mode) else 0
                    )
                    yield source, status, target
                return
            made = self._make_folder(target)
            if made or not top:  # the top folder of a volume keeps its own mode
                self._folders.append((source, status, target))
            names = [entry.name for entry in os.scandir(source)]
        except OSError as error:
            self._problem(source, error)
            return
        for name in sorted(names):
            if self.stopped:
                return
            if not name.startswith(PART_PREFIX.encode()):
                yield from self._plan(os.path.join(source, name), os.path.join(target, name))

    def _is_first(self, status: os.stat_result, target: bytes) -> bool:
        """Note a further name of a file that is copied under its first one."""
        if status.st_nlink < 2:
            return True
        key = (status.st_dev, status.st_ino)
        if key in self._linked:
            self._links.append((self._linked[key], target))
            return False
        self._linked[key] = target
        return True

    @staticmethod
    def _make_folder(target: bytes) -> bool:
        try:
            os.mkdir(target, 0o700)
        except FileExistsError:
            if not os.path.isdir(target) or os.path.islink(target):
                raise
            return False
        return True

    # -- copying -------------------------------------------------------------------------------------------------------------

    def _one(self, source: bytes, status: os.stat_result, target: bytes) -> None:
        self._gate.release()
        if not self.stopped:
            good = self._guarded(target, lambda: self._copy(source, status, target))
            self._count(files=1, good=good)

    def _guarded(self, path: bytes, work: Callable[[], None]) -> bool:
        """Do something with a path; whether it went well."""
        try:
            work()
        except _Stopped:
            return False
        except OSError as error:
            self._problem(path, error)
            return False
        return True

    def _copy(self, source: bytes, status: os.stat_result, target: bytes) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self._copy_file(source, status, target)
            return
        if kind == stat.S_IFLNK:
            words = os.readlink(source)
            if os.path.islink(target) and os.readlink(target) == words:
                self._count(skipped=1)
            else:
                _unlink(target)
                os.symlink(words, target)
        elif kind == stat.S_IFSOCK:
            self._unkept("sockets")
            return
        else:
            if kind != stat.S_IFIFO and not self._owners:
                self._unkept("device files")
                return
            here = _lstat(target)
            if here is not None and (stat.S_IFMT(here.st_mode), here.st_rdev) == (kind, status.st_rdev):
                self._count(skipped=1)
            else:
                _unlink(target)
                os.mknod(target, status.st_mode, status.st_rdev)
        self._attributes(source, status, target)

    def _copy_file(self, source: bytes, status: os.stat_result, target: bytes) -> None:
        here = _lstat(target)
        same = (
            here is not None
            and stat.S_ISREG(here.st_mode)
            and (here.st_size, here.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        )
        if same and self._verify and not self._compare(source, target):
            same = False
            self._count(bytes_total=status.st_size * 2)
        if not same:
            self._copy_data(source, status, target)
            if self._verify and not self._compare(source, target):
                raise OSError(errno.EIO, "the copy differs from the source although it was just made")
            return
        self._count(skipped=1, bytes=status.st_size)
        assert here is not None
        if stat.S_IMODE(here.st_mode) != stat.S_IMODE(status.st_mode) or (
            self._owners and (here.st_uid, here.st_gid) != (status.st_uid, status.st_gid)
        ):
            self._attributes(source, status, target)

    def _copy_data(self, source: bytes, status: os.stat_result, target: bytes) -> None:
        folder, name = os.path.split(target)
        mark = hashlib.blake2b(b"%b %d %d" % (name, status.st_size, status.st_mtime_ns), digest_size=8).hexdigest()
        part = os.path.join(folder, f"{PART_PREFIX}{mark}".encode())
        with _Opened(source, os.O_RDONLY) as reading, _Opened(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as writing:
            begin = max(0, min(os.fstat(writing).st_size, status.st_size) - RESUME_BYTES)
            self._count(bytes=begin)
            self._copy_extents(reading, writing, begin, status.st_size)
            os.ftruncate(writing, status.st_size)
            os.fsync(writing)
            after = os.fstat(reading)
            if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                _unlink(part)
                raise OSError(errno.EBUSY, "it was changed while it was copied")
        self._attributes(source, status, part)
        os.rename(part, target)

    def _copy_extents(self, reading: int, writing: int, begin: int, end: int) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        at = begin
        for data, hole in _extents(reading, begin, end):
            self._count(bytes=data - at)
            at = data
            while at < hole:
                if self.stopped:
                    raise _Stopped
                count = os.preadv(reading, [buffer[: min(BUFFER_BYTES, hole - at)]], at)
                if not count:
                    return  # it became shorter: told by who compares the times
                for done in _written(writing, buffer[:count], at):
                    self._count(bytes=done, moved=done)
                at += count
        self._count(bytes=end - at)

    def _compare(self, source: bytes, target: bytes) -> bool:
        """Read both again, the copy not from memory; whether they are the same."""
        with _Opened(source, os.O_RDONLY) as one, _Opened(target, os.O_RDONLY) as other:
            os.posix_fadvise(other, 0, 0, os.POSIX_FADV_DONTNEED)
            same = self._digest(one, tell=False) == self._digest(other, tell=True)
        self._count(compared=1)
        return same

    def _digest(self, descriptor: int, *, tell: bool) -> bytes:
        digest, buffer = hashlib.blake2b(), memoryview(bytearray(BUFFER_BYTES))
        while count := os.readv(descriptor, [buffer]):
            if self.stopped:
                raise _Stopped
            digest.update(buffer[:count])
            if tell:
                self._count(bytes=count)
        return digest.digest()

    def _link(self, first: bytes, name: bytes) -> None:
        here, wanted = _lstat(name), os.lstat(first)
        if here is None or (here.st_dev, here.st_ino) != (wanted.st_dev, wanted.st_ino):
            _unlink(name)
            os.link(first, name, follow_symlinks=False)

    # -- attributes ----------------------------------------------------------------------------------------------------------

    def _attributes(self, source: bytes, status: os.stat_result, target: bytes) -> None:
        """Owner first (it clears bits of the mode), ACLs after the mode (which changes them), times last."""
        if self._owners:
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(target, stat.S_IMODE(status.st_mode))
        self._xattrs(source, target)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _xattrs(self, source: bytes, target: bytes) -> None:
        try:
            names = os.listxattr(source, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return
            raise
        for name in names:
            if name.startswith(MAGIC):
                continue
            try:
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.ENODATA):
                    raise
                self._unkept(f"xattr {name}")

    # -- counting ------------------------------------------------------------------------------------------------------------

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                setattr(self.tally, name, getattr(self.tally, name) + count)

    def _unkept(self, what: str) -> None:
        with self._lock:
            self.tally.unkept[what] = self.tally.unkept.get(what, 0) + 1

    def _problem(self, path: bytes, error: OSError) -> None:
        named = os.fsencode(error.filename) if error.filename else path
        where = path if PART_PREFIX.encode() in named else named  # the part is our own business
        with self._lock:
            self.tally.problem_count += 1
            if len(self.tally.problems) < PROBLEMS_MAX:
                self.tally.problems.append(f"{os.fsdecode(where)}: {(error.strerror or str(error)).lower()}")
            if error.errno in FATAL and not self.fatal:
                self.fatal = (error.strerror or "").lower()
                self._stopping.set()


class _Stopped(Exception):
    """The copy is ended early."""


class _Opened:
    """A descriptor for a while."""

    def __init__(self, path: bytes, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _unlink(path: bytes) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _written(descriptor: int, data: memoryview, at: int) -> Iterator[int]:
    """Write all; yield how much each time."""
    while data:
        count = os.pwrite(descriptor, data, at)
        yield count
        data, at = data[count:], at + count


def _extents(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (first byte, byte after the last) of what is no hole between two offsets; all of it where the file system cannot tell."""
    at = begin
    while at < end:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            data, hole = at, end
        if data >= end:
            return
        yield data, min(hole, end)
        at = hole
