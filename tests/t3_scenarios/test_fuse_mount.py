"""The file system in memory, mounted for real and used by system calls: every operation, as a program sees it. Root."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xtreemos.testing.fusekit_memfs import FS_IOC_GETVERSION
from xtreemos.testing.fusekit_process import ServerProcess
from xtreemos.testing.fusekit_sparse import BLOCK_BYTES
from xtreemos.xtreemfs.fuse import acl

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16
NOBODY = 65534
MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    folder = tmp_path_factory.mktemp("memfs")
    folder.parent.chmod(0o755)
    folder.parent.parent.chmod(0o755)
    with ServerProcess(folder, "--options", '{"nodev": false, "nosuid": false}') as server:
        yield server


@pytest.fixture
def fs(served, request):
    """A folder of the test's own on the mount."""
    folder = served.path / request.node.name
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def as_user(uid: int, action, *, groups=()):
    """Run `action` in a child as a plain user; return its result's repr, or the errno name it failed with."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            try:
                said = repr(action())
            except OSError as failed:
                said = errno.errorcode[failed.errno]
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def renameat2(old: Path, new: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# names


def test_files_are_made_read_and_removed(fs):
    (fs / "a").write_bytes(b"hello")
    assert (fs / "a").read_bytes() == b"hello"
    assert os.listdir(fs) == ["a"]
    (fs / "a").unlink()
    with pytest.raises(FileNotFoundError):
        (fs / "a").stat()


def test_o_excl_refuses_an_existing_file(fs):
    (fs / "a").touch()
    with pytest.raises(FileExistsError):
        os.open(fs / "a", os.O_CREAT | os.O_EXCL)


def test_directories_nest_and_only_empty_ones_go(fs):
    (fs / "d").mkdir()
    (fs / "d/e").mkdir()
    assert fs.joinpath("d").stat().st_nlink == 3
    with pytest.raises(OSError, match="not empty"):
        (fs / "d").rmdir()
    (fs / "d/e").rmdir()
    (fs / "d").rmdir()
    assert os.listdir(fs) == []


def test_hard_links_share_one_inode_and_count(fs):
    (fs / "a").write_text("x")
    os.link(fs / "a", fs / "b")
    assert (fs / "a").stat().st_ino == (fs / "b").stat().st_ino
    assert (fs / "a").stat().st_nlink == 2
    (fs / "a").unlink()
    assert (fs / "b").read_text() == "x"
    assert (fs / "b").stat().st_nlink == 1


def test_symbolic_links_hold_their_target(fs):
    os.symlink("nowhere/at/all", fs / "s")
    assert os.readlink(fs / "s") == "nowhere/at/all"
    assert stat.S_ISLNK((fs / "s").lstat().st_mode)


def test_fifos_sockets_and_devices_are_made(fs):
    os.mkfifo(fs / "fifo", 0o640)
    assert stat.S_ISFIFO((fs / "fifo").stat().st_mode)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(str(fs / "sock"))
    assert stat.S_ISSOCK((fs / "sock").stat().st_mode)
    os.mknod(fs / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (fs / "null").stat().st_rdev == os.makedev(1, 3)
    assert (fs / "null").read_bytes() == b""


def test_a_fifo_carries_bytes_between_processes(fs):
    os.mkfifo(fs / "fifo")
    with subprocess.Popen(["cat", fs / "fifo"], stdout=subprocess.PIPE) as cat:
        (fs / "fifo").write_bytes(b"through")
        assert cat.communicate(timeout=10)[0] == b"through"


def test_rename_replaces_and_keeps_the_inode(fs):
    (fs / "a").write_text("a")
    (fs / "b").write_text("b")
    ino = (fs / "a").stat().st_ino
    os.rename(fs / "a", fs / "b")
    assert (fs / "b").read_text() == "a"
    assert (fs / "b").stat().st_ino == ino
    assert os.listdir(fs) == ["b"]


def test_renameat2_flags(fs):
    (fs / "a").write_text("a")
    (fs / "b").write_text("b")
    with pytest.raises(FileExistsError):
        renameat2(fs / "a", fs / "b", NOREPLACE)
    renameat2(fs / "a", fs / "b", EXCHANGE)
    assert ((fs / "a").read_text(), (fs / "b").read_text()) == ("b", "a")
    renameat2(fs / "a", fs / "c", NOREPLACE)
    assert sorted(os.listdir(fs)) == ["b", "c"]
    renameat2(fs / "b", fs / "d", WHITEOUT)
    left = (fs / "b").stat()
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0


def test_directories_exchange_places_over_parents_and_counts_follow(fs):
    for name in ("x", "y", "x/inner"):
        (fs / name).mkdir()
    (fs / "y/file").touch()
    renameat2(fs / "x/inner", fs / "y/file", EXCHANGE)
    assert (fs / "x").stat().st_nlink == 2
    assert (fs / "y").stat().st_nlink == 3
    assert (fs / "y/file").is_dir()


def test_a_directory_cannot_move_below_itself(fs):
    (fs / "d/e").mkdir(parents=True)
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(fs / "d", fs / "d/e/f")


def test_an_unlinked_file_lives_while_it_is_open(fs):
    fd = os.open(fs / "a", os.O_CREAT | os.O_RDWR)
    os.unlink(fs / "a")
    os.write(fd, b"still here")
    assert os.pread(fd, 100, 0) == b"still here"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_o_tmpfile_has_no_name_until_it_is_linked(fs):
    fd = os.open(fs, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"made whole")
    assert os.listdir(fs) == []
    assert LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(fs / "named"), AT_SYMLINK_FOLLOW) == 0
    os.close(fd)
    assert (fs / "named").read_bytes() == b"made whole"
    assert stat.S_IMODE((fs / "named").stat().st_mode) == 0o640


def test_names_have_a_longest_length(fs):
    (fs / ("n" * 255)).touch()
    with pytest.raises(OSError, match="name too long"):
        (fs / ("n" * 256)).touch()


def test_a_large_directory_is_listed_whole_and_while_it_changes(fs):
    names = {f"{number:05}-{'x' * 100}" for number in range(3000)}
    for name in names:
        (fs / name).touch()
    with os.scandir(fs) as listing:
        first = [next(listing).name for _ in range(10)]
        for name in sorted(names - set(first))[:1000]:
            (fs / name).unlink()
        rest = [entry.name for entry in listing]
    assert len(set(first + rest)) == len(first + rest)
    assert set(os.listdir(fs)) <= set(first + rest)
    assert set(os.listdir(fs)) == names - set(sorted(names - set(first))[:1000])


def test_listing_tells_types_without_stat(fs):
    (fs / "d").mkdir()
    (fs / "f").touch()
    os.symlink("f", fs / "s")
    with os.scandir(fs) as listing:
        kinds = {e.name: (e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink()) for e in listing}
    assert kinds == {"d": (True, False, False), "f": (False, True, False), "s": (False, False, True)}


# attributes


def test_times_are_kept_to_the_nanosecond_also_before_1970(fs):
    (fs / "a").touch()
    os.utime(fs / "a", ns=(1_234_567_890_123_456_789, -5_000_000_001))
    found = (fs / "a").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_123_456_789, -5_000_000_001)


def test_statx_tells_the_birth_time(fs):
    (fs / "a").touch()
    said = subprocess.run(["stat", "-c", "%W %Y", fs / "a"], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == int(said[1]) > 0


def test_a_write_moves_mtime_and_ctime(fs):
    (fs / "a").touch()
    before = (fs / "a").stat()
    (fs / "a").write_text("x")
    after = (fs / "a").stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_the_umask_is_applied_by_the_file_system(fs):
    old = os.umask(0o077)
    try:
        (fs / "a").touch(0o666)
        (fs / "d").mkdir(0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE((fs / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((fs / "d").stat().st_mode) == 0o700


def test_permissions_hold_for_other_users(fs):
    (fs / "secret").write_text("x")
    (fs / "secret").chmod(0o600)
    assert as_user(NOBODY, (fs / "secret").read_text) == "EACCES"
    assert as_user(NOBODY, lambda: (fs / "new").write_text("mine")) == "4"
    assert (fs / "new").stat().st_uid == NOBODY
    assert as_user(NOBODY, lambda: os.chown(fs / "new", 0, 0)) == "EPERM"


def test_a_write_by_another_user_takes_set_id_bits_away(fs):
    (fs / "a").write_text("x")
    (fs / "a").chmod(0o6777)
    assert as_user(NOBODY, lambda: (fs / "a").open("r+b").write(b"y")) == "1"
    assert stat.S_IMODE((fs / "a").stat().st_mode) == 0o777
    (fs / "a").chmod(0o6777)
    os.chown(fs / "a", 5, 5)
    assert stat.S_IMODE((fs / "a").stat().st_mode) == 0o777


def test_truncating_by_another_user_takes_set_id_bits_away(fs):
    for number, cut in enumerate((lambda path: os.truncate(path, 0), lambda path: path.open("wb").close())):
        path = fs / f"f{number}"
        path.write_text("content")
        path.chmod(0o6777)
        assert as_user(NOBODY, lambda cut=cut, path=path: cut(path)) == "None"
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
        assert path.stat().st_size == 0


def test_a_set_group_id_directory_hands_its_group_down(fs):
    os.chown(fs, 0, 1234)
    fs.chmod(0o2777)
    (fs / "f").touch()
    (fs / "d").mkdir()
    assert (fs / "f").stat().st_gid == (fs / "d").stat().st_gid == 1234
    assert (fs / "d").stat().st_mode & stat.S_ISGID


def test_statvfs_answers(fs):
    before = os.statvfs(fs)
    (fs / "a").write_bytes(bytes(MIB))
    assert before.f_namemax == 255
    assert os.statvfs(fs).f_bfree == before.f_bfree - MIB // 4096


# data


def test_one_mebibyte_requests(served, fs):
    data = os.urandom(8 * MIB)
    writes = served.requests("WRITE")
    fd = os.open(fs / "big", os.O_CREAT | os.O_RDWR)
    assert os.write(fd, data) == len(data)
    assert served.requests("WRITE") - writes == 8
    reads = served.requests("READ")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, len(data), 0) == data
    assert 8 <= served.requests("READ") - reads <= 12
    os.close(fd)


def test_append_writes_at_the_end_from_several_descriptors(fs):
    fds = [os.open(fs / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(3)]
    for number in range(30):
        os.write(fds[number % 3], f"{number:02}\n".encode())
    for fd in fds:
        os.close(fd)
    assert (fs / "log").read_text().split() == [f"{number:02}" for number in range(30)]


def test_holes_are_punched_found_and_read_as_zeros(fs):
    fd = os.open(fs / "a", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * (4 * BLOCK_BYTES))
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK_BYTES, BLOCK_BYTES)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == BLOCK_BYTES
    assert os.lseek(fd, BLOCK_BYTES, os.SEEK_DATA) == 2 * BLOCK_BYTES
    assert os.pread(fd, 3, BLOCK_BYTES - 1) == b"x\0\0"
    os.ftruncate(fd, 8 * BLOCK_BYTES)
    assert os.lseek(fd, 4 * BLOCK_BYTES, os.SEEK_HOLE) == 4 * BLOCK_BYTES
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(fd, 4 * BLOCK_BYTES, os.SEEK_DATA)
    os.close(fd)


def test_fallocate_grows_keeps_size_and_zeroes(fs):
    fd = os.open(fs / "a", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    fallocate(fd, KEEP_SIZE, 0, 500_000)
    assert os.fstat(fd).st_size == 100_000
    assert os.fstat(fd).st_blocks * 512 >= 500_000
    os.pwrite(fd, b"y" * 100, 50)
    fallocate(fd, ZERO_RANGE, 60, 10)
    assert os.pread(fd, 30, 50) == b"y" * 10 + bytes(10) + b"y" * 10
    with pytest.raises(OSError, match="not supported"):
        fallocate(fd, 0x20, 0, BLOCK_BYTES)  # insert range
    os.close(fd)


def test_copy_file_range_copies_inside_the_file_system(served, fs):
    (fs / "a").write_bytes(b"0123456789" * 1000)
    reads = served.requests("READ")
    source, target = os.open(fs / "a", os.O_RDONLY), os.open(fs / "b", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(source, target, 5000, 10, 0) == 5000
    os.close(source)
    os.close(target)
    assert served.requests("READ") == reads
    assert (fs / "b").read_bytes() == (b"0123456789" * 1000)[10:5010]


def test_direct_io_and_o_trunc(fs):
    (fs / "a").write_bytes(b"old content")
    fd = os.open(fs / "a", os.O_RDWR | os.O_TRUNC | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    page[:] = b"d" * 8192
    assert os.write(fd, page) == 8192
    assert os.preadv(fd, [page], 4096) == 4096
    os.close(fd)
    assert (fs / "a").stat().st_size == 8192


def test_fsync_of_files_and_directories(fs):
    for path, flags in ((fs / "a", os.O_CREAT | os.O_WRONLY), (fs, os.O_RDONLY)):
        fd = os.open(path, flags)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)


def test_a_shared_mapping_is_seen_by_read(fs):
    (fs / "a").write_bytes(b"." * 8192)
    program = (
        "import mmap,os,sys; fd=os.open(sys.argv[1],os.O_RDWR); m=mmap.mmap(fd,8192); m[4090:4100]=b'0123456789'; m.flush();"
        "assert os.pread(fd,10,4090)==b'0123456789'; m[0:1]=b'!'; m.close(); os.close(fd)"
    )
    subprocess.run([sys.executable, "-c", program, fs / "a"], check=True, timeout=20)
    assert (fs / "a").read_bytes()[4089:4101] == b".0123456789."
    assert (fs / "a").read_bytes()[:2] == b"!."


# extended attributes and access lists


def test_xattrs_are_set_listed_replaced_and_removed(fs):
    (fs / "a").touch()
    os.setxattr(fs / "a", "user.one", b"\0binary\xff")
    with pytest.raises(FileExistsError):
        os.setxattr(fs / "a", "user.one", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(fs / "a", "user.two", b"", os.XATTR_REPLACE)
    assert os.getxattr(fs / "a", "user.one") == b"\0binary\xff"
    assert os.listxattr(fs / "a") == ["user.one"]
    os.removexattr(fs / "a", "user.one")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(fs / "a", "user.one")


def test_access_lists_are_enforced_and_show_in_the_mode(fs):
    (fs / "a").write_text("shared")
    (fs / "a").chmod(0o600)
    rows = [
        (acl.USER_OBJ, 6, acl.NO_ID),
        (acl.USER, 4, 4321),
        (acl.GROUP_OBJ, 0, acl.NO_ID),
        (acl.MASK, 4, acl.NO_ID),
        (acl.OTHER, 0, acl.NO_ID),
    ]
    os.setxattr(fs / "a", acl.ACCESS, acl.encode(acl.make(rows)))
    assert stat.S_IMODE((fs / "a").stat().st_mode) == 0o640
    assert as_user(4321, (fs / "a").read_text) == "'shared'"
    assert as_user(4322, (fs / "a").read_text) == "EACCES"
    (fs / "a").chmod(0o600)  # the mask takes the right away
    assert as_user(4321, (fs / "a").read_text) == "EACCES"


def test_a_default_list_is_inherited_in_place_of_the_umask(fs):
    rows = [
        (acl.USER_OBJ, 7, acl.NO_ID),
        (acl.USER, 7, 4321),
        (acl.GROUP_OBJ, 5, acl.NO_ID),
        (acl.MASK, 7, acl.NO_ID),
        (acl.OTHER, 0, acl.NO_ID),
    ]
    os.setxattr(fs, acl.DEFAULT, acl.encode(acl.make(rows)))
    (fs / "f").touch(0o666)
    (fs / "d").mkdir()
    assert stat.S_IMODE((fs / "f").stat().st_mode) == 0o660
    assert as_user(4321, lambda: (fs / "f").open("r+b").write(b"y")) == "1"
    assert os.getxattr(fs / "d", acl.DEFAULT) == os.getxattr(fs, acl.DEFAULT)


# locks


def flock_of(kind: int, start: int = 0, length: int = 0) -> bytes:
    """The C structure `struct flock` on 64-bit Linux."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


LOCKER = """
import errno, fcntl, os, struct, sys
fd, how = os.open(sys.argv[1], os.O_RDWR), sys.argv[2]
for command in sys.stdin:
    command = command.strip()
    try:
        if how == "flock":
            fcntl.flock(fd, {"try": fcntl.LOCK_EX | fcntl.LOCK_NB, "wait": fcntl.LOCK_EX, "drop": fcntl.LOCK_UN}[command])
        else:
            setlk, setlkw = (fcntl.F_SETLK, fcntl.F_SETLKW) if how == "posix" else (37, 38)  # F_OFD_SETLK, F_OFD_SETLKW
            kind = fcntl.F_UNLCK if command == "drop" else fcntl.F_WRLCK
            fcntl.fcntl(fd, setlkw if command == "wait" else setlk, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
        print("done", flush=True)
    except OSError as failed:
        print(errno.errorcode[failed.errno], flush=True)
"""


class Locker:
    """A process that takes locks of a kind on command: `try`, `wait`, `drop`."""

    def __init__(self, path: Path, how: str) -> None:
        argv = [sys.executable, "-S", "-c", LOCKER, path, how]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def begin(self, command: str) -> None:
        self.process.stdin.write(command + "\n")

    def result(self, timeout: float = 20) -> str:
        assert select.select([self.process.stdout], [], [], timeout)[0], "the locker does not answer"
        return self.process.stdout.readline().strip()

    def do(self, command: str) -> str:
        self.begin(command)
        return self.result()

    def waits(self) -> bool:
        return not select.select([self.process.stdout], [], [], 0.3)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.parametrize("how", ["posix", "ofd", "flock"])
def test_locks_of_each_kind_exclude_and_hand_over_between_processes(served, fs, how):
    path = fs / "lock"
    path.touch()
    with Locker(path, how) as one, Locker(path, how) as two:
        assert one.do("try") == "done"
        assert two.do("try") in {"EAGAIN", "EACCES"}
        two.begin("wait")
        assert two.waits()
        assert served.statistics()["lock_waits"] == 1
        assert one.do("drop") == "done"
        assert two.result() == "done"
        assert one.do("try") in {"EAGAIN", "EACCES"}
        two.process.kill()  # the lock goes with its holder
        assert one.do("wait") == "done"
    assert served.statistics()["lock_waits"] == 0


def test_bsd_locks_and_record_locks_know_nothing_of_each_other(fs):
    path = fs / "lock"
    path.touch()
    with Locker(path, "posix") as one, Locker(path, "flock") as two, Locker(path, "ofd") as three:
        assert one.do("try") == "done"
        assert two.do("try") == "done"
        assert three.do("try") in {"EAGAIN", "EACCES"}


def test_a_blocked_lock_is_interrupted_by_a_signal(served, fs):
    path = fs / "lock"
    path.touch()
    program = (
        "import fcntl,os,signal,sys\n"
        "class Rang(Exception): pass\n"
        "def ring(*_): raise Rang\n"
        "signal.signal(signal.SIGALRM, ring); fd=os.open(sys.argv[1],os.O_RDWR); signal.setitimer(signal.ITIMER_REAL,0.3)\n"
        "try: fcntl.lockf(fd,fcntl.LOCK_EX)\n"
        "except Rang: print('interrupted')\n"
    )
    with Locker(path, "posix") as holder:
        assert holder.do("try") == "done"
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout == "interrupted\n"
        assert served.statistics()["lock_waits"] == 0
        assert served.requests("INTERRUPT") >= 1


def test_getlk_names_the_range_in_the_way(fs):
    path = fs / "lock"
    path.touch()
    with Locker(path, "posix") as holder:
        assert holder.do("try") == "done"
        fd = os.open(path, os.O_RDWR)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, flock_of(fcntl.F_WRLCK, 5, 5)))
        os.close(fd)
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 0, 0, holder.process.pid)


def test_closing_any_descriptor_ends_a_process_own_posix_locks(fs):
    path = fs / "lock"
    path.touch()
    fd, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    with Locker(path, "posix") as process:
        assert process.do("try") in {"EAGAIN", "EACCES"}
        os.close(other)
        assert process.do("try") == "done"
    os.close(fd)


# ioctl, poll


def test_an_ioctl_reaches_the_file_system(fs):
    fd = os.open(fs / "a", os.O_CREAT | os.O_RDWR)
    assert fcntl.ioctl(fd, FS_IOC_GETVERSION, struct.pack("q", 99)) == bytes(8)
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        fcntl.ioctl(fd, 0x80087FFF, bytes(8))
    os.close(fd)


def test_poll_waits_until_the_file_system_says_so(fs):
    fd = os.open(fs / "a", os.O_CREAT | os.O_RDWR)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(50) == []
    writer = threading.Timer(0.2, lambda: (fs / "a").write_bytes(b"now"))
    writer.start()
    assert poller.poll(10_000) == [(fd, select.POLLIN)]
    writer.join()
    os.close(fd)


# the kernel's bookkeeping


def test_nothing_is_left_of_files_that_are_gone(served, fs):
    Path("/proc/sys/vm/drop_caches").write_text("2")
    before = served.statistics()["nodes"]
    for number in range(200):
        path = fs / f"f{number}"
        path.write_bytes(b"x")
        os.link(path, fs / f"g{number}")
        path.unlink()
    for number in range(200):
        (fs / f"g{number}").unlink()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    for _ in range(100):
        found = served.statistics()
        if found["nodes"] <= before + 5 and not found["handles"]:
            break
        threading.Event().wait(0.05)  # forgets and releases are sent behind the callers' backs
    assert found["nodes"] <= before + 5
    assert not found["handles"]


def test_no_handler_has_failed_unexpectedly(served):
    assert served.statistics()["bugs"] == 0
    mounted = Path("/proc/self/mounts").read_text()
    assert re.search(rf"^fusekit {re.escape(str(served.path))} fuse\.fusekit ", mounted, re.MULTILINE)
