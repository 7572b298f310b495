"""What is between a mount and its server: notifications, interrupts, dying servers, passthrough, other name spaces and users. Root."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xtreemos.testing.fusekit_memfs import MemFs
from xtreemos.testing.fusekit_process import ServerProcess
from xtreemos.testing.fusekit_thread import ServedMount
from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.constants import InitFlag
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.fuse.options import MountOptions

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

HOUR_NS = 3600 * 10**9
MIB = 1 << 20
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture(autouse=True)
def _device():
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mnt"
    place.mkdir()
    yield place
    with contextlib.suppress(MountFailed):
        syscalls.unmount(str(place), lazy=True, force=True)


def is_mounted(folder: Path) -> bool:
    return f" {folder} " in Path("/proc/self/mounts").read_text()


def wait_until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.02)


# notifications


def grow_behind(served: ServedMount, path: Path, content: bytes) -> int:
    """Change a file as another node would: without the kernel. Return its nodeid."""
    node = served.handlers.root.entries[os.fsencode(path.name)]

    async def change():
        node.content.truncate(0)
        node.content.write(0, memoryview(content))
        node.mtime_ns += 1
        return node.ino

    return served.call(change())


def test_an_invalidation_shows_a_changed_size_and_content_to_a_program_that_holds_the_file_open(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        path = folder / "f"
        path.write_bytes(b"old")
        fd = os.open(path, os.O_RDONLY)
        assert os.pread(fd, 100, 0) == b"old"
        assert os.fstat(fd).st_size == 3  # a read makes the kernel doubt the access time: without this it would ask again
        ino = grow_behind(served, path, b"new and longer")
        assert os.fstat(fd).st_size == 3  # it was promised an hour
        served.call(served.session.invalidate_inode(ino))
        assert os.fstat(fd).st_size == 14
        assert os.pread(fd, 100, 0) == b"new and longer"
        os.close(fd)


def test_attributes_alone_can_be_invalidated_and_pages_stay(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        path = folder / "f"
        path.write_bytes(b"old")
        fd = os.open(path, os.O_RDONLY)
        assert os.pread(fd, 3, 0) == b"old"
        ino = grow_behind(served, path, b"NEW")
        served.call(served.session.invalidate_inode(ino, -1))
        os.fstat(fd)
        assert os.pread(fd, 3, 0) == b"old"
        served.call(served.session.invalidate_inode(ino, 0, 0))
        assert os.pread(fd, 3, 0) == b"NEW"
        os.close(fd)


@pytest.mark.parametrize("expire_only", [False, True])
def test_a_name_that_was_dropped_is_looked_up_again(folder, expire_only):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        path = folder / "f"
        path.touch()
        path.stat()

        async def remove_behind():
            served.handlers._take(served.handlers.root, b"f")

        served.call(remove_behind())
        assert path.exists()
        served.call(served.session.invalidate_entry(1, b"f", expire_only=expire_only))
        assert not path.exists()


def test_a_deleted_name_is_told_with_its_inode(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        path = folder / "f"
        path.touch()
        ino = path.stat().st_ino

        async def remove_behind():
            served.handlers._take(served.handlers.root, b"f")

        served.call(remove_behind())
        served.call(served.session.notify_delete(1, ino, b"f"))
        assert not path.exists()


def test_stored_pages_are_read_without_asking_and_can_be_retrieved(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        path = folder / "f"
        path.write_bytes(bytes(8192))
        ino = path.stat().st_ino
        fd = os.open(path, os.O_RDONLY)
        served.call(served.session.store(ino, 0, b"put there" + bytes(4087)))
        reads = served.session.statistics().requests.get("READ", 0)
        assert os.pread(fd, 9, 0) == b"put there"
        assert served.session.statistics().requests.get("READ", 0) == reads
        assert served.call(served.session.retrieve(ino, 0, 9)) == b"put there"
        os.close(fd)


def test_what_the_kernel_does_not_know_needs_no_invalidation(folder):
    with ServedMount(folder, MemFs()) as served:
        served.call(served.session.invalidate_inode(4711))
        served.call(served.session.invalidate_entry(1, b"nobody"))
        assert served.call(served.session.retrieve(4711, 0, 100)) == b""


def test_a_new_epoch_has_every_name_looked_up_again(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        if served.session.negotiated.minor < 44:
            pytest.skip("the kernel has no epochs")
        (folder / "f").touch()
        (folder / "f").stat()
        before = served.session.statistics().requests["LOOKUP"]
        (folder / "f").stat()
        assert served.session.statistics().requests["LOOKUP"] == before
        served.call(served.session.increase_epoch())
        (folder / "f").stat()
        assert served.session.statistics().requests["LOOKUP"] == before + 1


def test_pruned_inodes_are_forgotten(folder):
    with ServedMount(folder, MemFs(cache_ns=HOUR_NS)) as served:
        if served.session.negotiated.minor < 45:
            pytest.skip("the kernel has no prune")
        (folder / "f").touch()
        ino = (folder / "f").stat().st_ino
        served.call(served.session.prune([ino]))
        wait_until(lambda: ino not in served.handlers.nodes)


def test_an_invalidation_waits_for_a_read_that_is_under_way_and_the_loop_goes_on(folder):
    class SlowRead(MemFs):
        go: asyncio.Event

        async def read(self, request):
            await self.go.wait()
            return MemFs.read(self, request)

    with ServedMount(folder, SlowRead(cache_ns=HOUR_NS)) as served:

        async def prepare():
            served.handlers.go = asyncio.Event()

        served.call(prepare())
        (folder / "f").write_bytes(b"x" * 4096)
        ino = (folder / "f").stat().st_ino
        os.posix_fadvise(fd := os.open(folder / "f", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        reader = threading.Thread(target=os.pread, args=(fd, 4096, 0))
        reader.start()
        wait_until(lambda: served.session.statistics().outstanding == 1)
        future = asyncio.run_coroutine_threadsafe(served.session.invalidate_inode(ino), served._loop)
        assert (folder / "f").stat().st_size == 4096  # other requests are served while it waits
        assert not future.done()

        async def go():
            served.handlers.go.set()

        served.call(go())
        future.result(10)
        reader.join(10)
        os.close(fd)


# interrupts and failing handlers


class Odd(MemFs):
    """`raise` fails with a bug, `wait` waits for ever, others are as usual."""

    cancelled = 0

    def lookup(self, request):
        if request.name == b"raise":
            raise KeyError("a bug")
        if request.name.startswith(b"wait"):  # of one name only one look-up is asked at a time
            return self._wait()
        return super().lookup(request)

    async def _wait(self):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.mark.log_warnings("LOOKUP .*no FuseError")
def test_a_handlers_bug_is_eio_and_the_mount_lives(folder):
    with ServedMount(folder, Odd()) as served:
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                (folder / "raise").stat()
        (folder / "fine").touch()
        assert os.listdir(folder) == ["fine"]
        assert served.session.statistics().bugs == 3


@pytest.mark.log_warnings("refuses our answer")
@pytest.mark.parametrize("body", [b"", b"\0" * 127, b"\0" * 129, b"\xff" * 128, b"\0" * 4096])
def test_answers_that_make_no_sense_to_the_kernel_fail_and_the_mount_lives(folder, body):
    class Nonsense(MemFs):
        nonsense = False

        def lookup(self, request):
            return body if request.name == b"odd" else super().lookup(request)

        def getattr(self, request):
            return body if request.nodeid > 1 and self.nonsense else super().getattr(request)

        def statfs(self, request):
            return body

    with ServedMount(folder, Nonsense(cache_ns=0)) as served:
        with pytest.raises(OSError):
            (folder / "odd").stat()
        (folder / "fine").touch()
        served.handlers.nonsense = True
        with pytest.raises(OSError):
            (folder / "fine").stat()
        with pytest.raises(OSError):
            os.statvfs(folder)
        assert os.listdir(folder) == ["fine"]
        assert served.session.statistics().outstanding == 0


def test_a_killed_program_cancels_its_handler(folder):
    with (
        ServedMount(folder, Odd()) as served,
        subprocess.Popen([sys.executable, "-S", "-c", f"open({str(folder / 'wait')!r})"]) as program,
    ):
        wait_until(lambda: served.session.statistics().outstanding == 1)
        program.send_signal(signal.SIGINT)
        assert program.wait(10) != 0
        wait_until(lambda: served.handlers.cancelled == 1)


def test_many_slow_requests_wait_side_by_side(folder):
    class Sleepy(MemFs):
        sleepy = False

        def getattr(self, request):
            return self._later(request) if self.sleepy else super().getattr(request)

        async def _later(self, request):
            await asyncio.sleep(0.3)
            return MemFs.getattr(self, request)

    with ServedMount(folder, Sleepy(cache_ns=0)) as served:
        for number in range(20):
            (folder / f"f{number}").touch()
        served.handlers.sleepy = True
        start = time.monotonic()
        threads = [threading.Thread(target=os.stat, args=(folder / f"f{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - start < 4  # one after the other they would take 6 s or more
        served.handlers.sleepy = False


# the ends of a mount


def test_a_killed_server_leaves_enotconn_and_umount_works(folder):
    with ServerProcess(folder) as server:
        (folder / "f").touch()
        server.process.kill()
        server.process.wait(10)
        with pytest.raises(OSError) as caught:
            (folder / "f").stat()
        assert caught.value.errno == errno.ENOTCONN
        assert is_mounted(folder)
        syscalls.unmount(str(folder))
        assert not is_mounted(folder)


def test_an_unmount_by_somebody_else_ends_the_server(folder):
    with ServerProcess(folder) as server:
        (folder / "f").touch()
        subprocess.run(["umount", folder], check=True)
        assert server.process.wait(10) == 0


def test_a_server_that_is_told_to_end_unmounts(folder):
    with ServerProcess(folder) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert not is_mounted(folder)


def test_a_busy_mount_is_unmounted_lazily_only(folder):
    with ServerProcess(folder):
        fd = os.open(folder / "f", os.O_CREAT | os.O_RDWR)
        with pytest.raises(MountFailed, match="busy"):
            syscalls.unmount(str(folder))
        syscalls.unmount(str(folder), lazy=True)
        assert not is_mounted(folder)
        assert os.write(fd, b"still served") == 12
        os.close(fd)


def test_an_abort_ends_waiting_programs_and_the_server(folder):
    with ServedMount(folder, Odd()) as served:
        failures = []

        def look():
            try:
                (folder / "wait").stat()
            except OSError as failed:
                failures.append(failed.errno)

        waiting = threading.Thread(target=look)
        waiting.start()
        wait_until(lambda: served.session.statistics().outstanding == 1)
        with contextlib.suppress(MountFailed):  # it is busy; but forced, which aborts
            syscalls.unmount(str(folder), force=True)
        waiting.join(10)
        assert failures == [errno.ECONNABORTED]
        wait_until(lambda: served.session.has_ended)


def test_closing_a_lazily_unmounted_file_system_leaves_what_was_mounted_there_since(folder):
    with ServedMount(folder, MemFs(cache_ns=0)) as first:
        fd = os.open(folder / "held", os.O_CREAT | os.O_RDWR)
        syscalls.unmount(str(folder), lazy=True)
        with ServedMount(folder, MemFs()) as second:
            (folder / "mine").touch()
            assert not first.session.has_ended
            first.call(first.mount.close())
            assert os.listdir(folder) == ["mine"]
            assert not second.session.has_ended
        with pytest.raises(OSError):
            os.fstat(fd)
        with contextlib.suppress(OSError):  # its flush has nobody to answer it
            os.close(fd)


def test_closing_the_session_alone_answers_what_waits_with_eio(folder):
    with ServedMount(folder, Odd()) as served:
        failures = []

        def look():
            try:
                (folder / "wait").stat()
            except OSError as failed:
                failures.append(failed.errno)

        waiting = threading.Thread(target=look)
        waiting.start()
        wait_until(lambda: served.session.statistics().outstanding == 1)
        served.call(served.session.close())
        waiting.join(10)
        assert failures == [errno.EIO]


def test_a_mountpoint_may_be_reached_by_a_symbolic_link(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    with ServedMount(tmp_path / "link", MemFs()) as served:
        (folder / "f").touch()
        assert served.mount.mountpoint == str(folder)
        assert served.mount.device is not None
    assert not is_mounted(folder)


def test_nothing_stays_mounted_when_mounting_fails(folder):
    with pytest.raises(MountFailed, match="No such file"), ServedMount(folder / "absent", MemFs()):
        pass
    with pytest.raises(MountFailed):
        syscalls.unmount(str(folder))


# options


def test_a_read_only_mount_refuses_writes(folder):
    with ServedMount(folder, MemFs(), MountOptions(readonly=True)), pytest.raises(OSError, match="Read-only"):
        (folder / "f").touch()


def test_without_allow_other_another_user_sees_nothing(folder):
    def look_as_nobody() -> int:
        return subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "ls", folder], capture_output=True, check=False
        ).returncode

    for parent in folder.parents[:-2]:
        parent.chmod(0o755)
    with ServerProcess(folder, "--options", '{"allow_other": false}'):
        assert look_as_nobody() != 0
    with ServerProcess(folder):
        assert look_as_nobody() == 0


def test_root_gets_the_read_ahead_it_asks_for(folder):
    with ServedMount(folder, MemFs(), MountOptions(max_readahead_bytes=2 * MIB)):
        major, minor = syscalls.device_of(str(folder))
        assert Path(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb").read_text() == "2048\n"


def test_the_writeback_cache_is_there_when_wanted(folder):
    with ServedMount(folder, MemFs(), MountOptions(writeback_cache=True)) as served:
        assert served.session.negotiated.has(InitFlag.WRITEBACK_CACHE)
        with (folder / "f").open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"x" * 10)
        assert (folder / "f").read_bytes() == b"x" * 1000
        assert served.session.statistics().requests["WRITE"] < 20


def test_the_callers_supplementary_group_comes_along_when_wanted(folder):
    seen = []

    class Grouped(MemFs):
        def create(self, request):
            seen.append(request.groups)
            return super().create(request)

    with ServedMount(folder, Grouped(), MountOptions(create_supp_group=True)) as served:
        if not served.session.negotiated.has(InitFlag.CREATE_SUPP_GROUP):
            pytest.skip("the kernel does not send groups")
        os.chown(folder, 0, 4242)
        folder.chmod(0o2777)
        argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--groups=4242,4243", "touch", folder / "f"]
        for parent in folder.parents[:-2]:
            parent.chmod(0o755)
        subprocess.run(argv, check=True, timeout=20)
    assert seen == [(4242,)]


# passthrough


def test_reads_writes_and_mappings_of_passthrough_files_never_reach_the_server(tmp_path, folder):
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "old").write_bytes(os.urandom(3 * MIB))
    with ServerProcess(folder, "--passthrough", str(lower), "--options", '{"passthrough": true}') as server:
        assert (folder / "old").read_bytes() == (lower / "old").read_bytes()
        (folder / "new").write_bytes(b"n" * MIB)
        with (folder / "old").open("r+b") as one, (folder / "old").open("rb") as two:  # opens of one inode share a backing file
            one.write(b"changed")
            one.flush()
            assert two.read(7) == b"changed"
        program = f"import mmap; f=open({str(folder / 'new')!r},'r+b'); m=mmap.mmap(f.fileno(),0); m[5:8]=b'map'; m.flush()"
        subprocess.run([sys.executable, "-S", "-c", program], check=True, timeout=20)
        found = server.statistics()
        assert "READ" not in found["requests"]
        assert "WRITE" not in found["requests"]
        assert found["bugs"] == 0
    assert (lower / "new").read_bytes()[:9] == b"nnnnnmapn"
    assert (lower / "old").read_bytes()[:7] == b"changed"


def test_without_passthrough_the_same_files_are_served_by_us(tmp_path, folder):
    lower = tmp_path / "lower"
    lower.mkdir()
    with ServerProcess(folder, "--passthrough", str(lower)) as server:
        (folder / "f").write_bytes(b"x" * 5000)
        assert (folder / "f").read_bytes() == (lower / "f").read_bytes() == b"x" * 5000
        assert server.requests("WRITE") > 0


# several descriptors


def test_several_processes_serve_one_mount(folder):
    with ServerProcess(folder, "--processes", "3", module="fusekit_clones"):
        pids: set[int] = set()
        deadline = time.monotonic() + 20

        def look():
            while len(pids) < 2 and time.monotonic() < deadline:
                pids.add((folder / "who").stat().st_size)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(pids) > 1
        for pid in pids:
            assert Path(f"/proc/{pid}").exists()
        assert (folder / "f").read_bytes() == bytes(MIB)


def test_an_interrupt_that_a_clone_reads_is_handed_to_whose_request_it_is(folder):
    with ServedMount(folder, Odd()) as served:
        other = Odd()

        async def begin() -> Session:
            session = Session(served.session.clone(), other, MountOptions(), negotiated=served.session.negotiated)
            session.stray_interrupt = served.session.interrupt
            served.session.stray_interrupt = session.interrupt
            session.start()
            return session

        second = served.call(begin())
        waiting: list[subprocess.Popen] = []
        try:
            program = "import sys; open(sys.argv[1])"
            for number in range(6):
                argv = [sys.executable, "-S", "-c", program, folder / f"wait{number}"]
                waiting.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
            wait_until(lambda: served.session.statistics().outstanding + second.statistics().outstanding == 6)
            for process in waiting:
                process.send_signal(signal.SIGINT)
            for process in waiting:
                assert process.wait(10) != 0
            wait_until(lambda: served.handlers.cancelled + other.cancelled == 6)
        finally:
            for process in waiting:
                process.kill()
                process.wait(10)
            served.call(second.close())


# name spaces and users


@contextlib.contextmanager
def other_name_space(command: str = "exec cat"):
    """A process with a mount name space of its own, which runs `command` (in the end `cat`) in it; yields its pid."""
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", command]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "cat\n")
        yield holder.pid
    finally:
        holder.stdin.close()
        holder.wait(10)


def test_a_mount_appears_in_another_mount_name_space_only(folder):
    with other_name_space() as pid:
        with ServedMount(folder, MemFs(), namespace_pid=pid) as served:
            assert not is_mounted(folder)
            inside = ["nsenter", "-t", str(pid), "-m", "sh", "-c", f"echo there > {folder}/f; cat {folder}/f"]
            done = subprocess.run(inside, capture_output=True, text=True, check=True, timeout=20)
            assert done.stdout == "there\n"
            assert os.listdir(folder) == []
            served.call(served.mount.unmount())
            wait_until(lambda: served.session.has_ended)
        assert str(folder) not in Path(f"/proc/{pid}/mounts").read_text()
        assert Path("/proc/self/cwd").exists()  # our own root and directory are where they were


def test_a_name_space_that_is_gone_is_said(folder):
    with pytest.raises(MountFailed, match="name space"), ServedMount(folder, MemFs(), namespace_pid=2**22 - 1):
        pass


def test_fusermount3_mounts_for_root(folder):
    with ServerProcess(folder, "--fusermount"):
        (folder / "f").write_text("x")
        assert (folder / "f").read_text() == "x"
        assert is_mounted(folder)


def test_a_plain_user_mounts_by_fusermount3(tmp_path, folder):
    """In a name space of its own, whose /dev/fuse is open to all as distributions have it."""
    os.chown(folder, NOBODY, NOBODY)
    for parent in folder.parents[:-2]:
        parent.chmod(0o755)
    device = tmp_path / "fuse"
    os.mknod(device, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    device.chmod(0o666)
    with other_name_space(f"mount --bind {device} /dev/fuse && exec cat") as pid:
        prefix = ("nsenter", "-t", str(pid), "-m", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
        if subprocess.run(
            [*prefix, sys.executable, "-c", "import xtreemos"], env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=False
        ).returncode:
            pytest.skip("this checkout is not readable for a plain user")
        with ServerProcess(folder, "--options", '{"allow_other": false}', prefix=prefix) as server:
            argv = [*prefix, "sh", "-c", f"echo mine > {folder}/f; cat {folder}/f"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
            assert done.stdout == "mine\n", done.stderr
            server.process.terminate()  # unmounts by fusermount3, too
            assert server.process.wait(10) == 0
            assert str(folder) not in Path(f"/proc/{pid}/mounts").read_text()
