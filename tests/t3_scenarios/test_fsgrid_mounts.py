"""Claims about real mounts of a small file system: two "nodes" on this machine see one file system, and what was acknowledged is not lost."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtreemos.testing.fsgrid import FsGrid, carry_out, wait_for
from xtreemos.xtreemfs.model import VolumePolicy

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]


def program(code: str, *args: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a bit of Python as a program of its own: it may hang or be refused without harm to the test."""
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys, fcntl, mmap, time\na = sys.argv[1:]\n{code}", *map(str, args)],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


@pytest.fixture
def background():
    """Start such programs, which are ended with the test: `background(CODE, ARGUMENT...)`."""
    started = []

    def start(code: str, *args: object) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", f"import os, sys, fcntl, mmap, time\na = sys.argv[1:]\n{code}", *map(str, args)]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for popen in started:
        popen.kill()
        with popen:
            pass


@pytest.fixture(scope="module")
def grid():
    with FsGrid(osds=2, mounts=2, policy=VolumePolicy(width=2, object_bytes=1 << 20)) as made:
        yield made


@pytest.fixture
def two(grid, request):
    """The same fresh folder through both mounts."""
    name = request.node.name
    (grid.paths[0] / name).mkdir()
    yield grid.paths[0] / name, grid.paths[1] / name
    for mounted in grid.mounts:
        status = mounted.ask("fs.status")
        assert status["bugs"] == 0, mounted.text()[-2000:]


# ------------------------------------------------------------------------------------------------------------------ coherence


def test_what_is_written_here_is_read_there_at_once(two):
    here, there = two
    for turn in range(20):
        source, target = (here, there) if turn % 2 else (there, here)
        (source / "f").write_bytes(b"%d" % turn * 3000)
        assert (target / "f").read_bytes() == b"%d" % turn * 3000
        assert (target / "f").stat().st_size == (source / "f").stat().st_size


def test_open_files_see_each_other_byte_by_byte(two):
    here, there = two
    with (here / "f").open("wb+", buffering=0) as one, (there / "f").open("rb+", buffering=0) as other:
        for turn in range(30):
            os.pwrite(one.fileno(), bytes([turn]) * 100, turn * 50)
            assert os.pread(other.fileno(), 100, turn * 50) == bytes([turn]) * 100
            os.pwrite(other.fileno(), bytes([100 + turn]) * 10, turn * 50)
            assert os.pread(one.fileno(), 10, turn * 50) == bytes([100 + turn]) * 10


def test_names_change_for_both_at_once(two):
    here, there = two
    assert not (there / "x").exists()
    (here / "x").mkdir()
    assert (there / "x").is_dir()
    (there / "x" / "y").write_text("y")
    assert os.listdir(here / "x") == ["y"]
    (here / "x" / "y").rename(here / "z")
    assert not (there / "x" / "y").exists()
    assert (there / "z").read_text() == "y"
    (there / "z").unlink()
    assert not (here / "z").exists()
    (there / "x").rmdir()
    with pytest.raises(FileNotFoundError):
        os.listdir(here / "x")


def test_attributes_change_for_both_at_once(two):
    here, there = two
    (here / "f").write_text("f")
    assert (there / "f").stat().st_mode & 0o777 == 0o644
    (here / "f").chmod(0o600)
    assert (there / "f").stat().st_mode & 0o777 == 0o600
    os.utime(there / "f", ns=(1, 2))
    assert (here / "f").stat().st_mtime_ns == 2
    os.setxattr(here / "f", "user.k", b"v")
    assert os.getxattr(there / "f", "user.k") == b"v"
    os.setxattr(there / "f", "user.k", b"w")
    assert os.getxattr(here / "f", "user.k") == b"w"


SIT = """
for line in sys.stdin:
    try: print(os.getcwd(), flush=True)
    except OSError as error: print(error, flush=True)
"""
CHANGES = {
    "make": lambda folder: (folder / "absent").write_text("x"),
    "make-below": lambda folder: (folder / "sub" / "absent").write_text("x"),
    "remove": lambda folder: (folder / "f").unlink(),
    "rename": lambda folder: (folder / "f").rename(folder / "absent"),
    "rename-folder": lambda folder: (folder / "other").rename(folder / "absent"),
    "rmdir": lambda folder: (folder / "other").rmdir(),
    "touch": os.utime,
    "chmod": lambda folder: (folder / "sub").chmod(0o711),
    "refused": lambda folder: subprocess.run(["rmdir", folder / "sub"], check=False, stderr=subprocess.DEVNULL),
}


def where(sitter: subprocess.Popen[str]) -> str:
    assert sitter.stdin is not None
    assert sitter.stdout is not None
    sitter.stdin.write("where\n")
    sitter.stdin.flush()
    return sitter.stdout.readline().strip()


def is_blocked(popen: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{popen.pid}/syscall").read_text().strip() != "running"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_working_folder_keeps_its_name_whatever_others_change_around_it(grid, two, change, background):
    """What the kernel forgot it would have to ask our frozen mount process again, and until then nobody knows where they are."""
    here, there = two
    for folder in ("sub", "sub/in", "other"):
        (here / folder).mkdir()
    for name in ("f", "sub/in/f"):
        (here / name).write_text("f")
    stands = [here, here / "sub", here / "sub" / "in"]
    sitters = [background("os.chdir(a[0])" + SIT, stand) for stand in stands]
    assert [where(sitter) for sitter in sitters] == [str(stand) for stand in stands]
    for name in ("absent", "sub/absent", "f", "other", "sub/in/f"):
        (here / name).exists()  # so the kernel remembers it
    change(there)
    grid.mounts[0].pause()
    try:
        walker = background("print('now', flush=True)\nos.path.exists(a[0])", here / "sub" / "in" / "new")
        assert walker.stdout.readline() == "now\n"
        wait_for(lambda: is_blocked(walker), "the walker to ask")
        answers = [where(sitter) for sitter in sitters]
    finally:
        grid.mounts[0].resume()
    assert answers == [str(stand) for stand in stands]
    assert walker.wait(10) == 0


def test_of_a_directory_in_which_two_change_names_at_once_the_kernel_keeps_none(grid, two, background):
    """Each holds its kernel's lock of the directory while it waits for the other to forget a name in it."""
    contend = """
end = time.time() + 1
while time.time() < end:
    try:
        os.close(os.open(a[0], os.O_CREAT | os.O_EXCL))
        os.unlink(a[0])
    except OSError: pass
"""
    before = [mounted.ask("fs.status")["epochs"] for mounted in grid.mounts]
    writers = [background(contend, folder / "lock") for folder in two for _ in range(2)]
    assert [writer.wait(30) for writer in writers] == [0] * 4
    epochs = [mounted.ask("fs.status")["epochs"] - was for mounted, was in zip(grid.mounts, before, strict=True)]
    assert max(epochs) <= 1, epochs


APPEND = """
fd = os.open(a[0], os.O_WRONLY | os.O_APPEND)
for n in range(int(a[2])):
    os.write(fd, (a[1] + " %06d" % n).ljust(63).encode() + b"\\n")
"""


def test_appends_from_both_interleave_whole_records(two, background):
    here, there = two
    (here / "log").touch()
    writers = [
        background(APPEND, folder / "log", name, 150) for folder, name in ((here, "a"), (there, "b"), (here, "c"), (there, "d"))
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    lines = (there / "log").read_text().splitlines()
    assert len(lines) == 600
    assert all(len(line) == 63 for line in lines)
    for name in "abcd":
        assert [line.strip() for line in lines if line.startswith(name)] == [f"{name} {n:06d}" for n in range(150)]


def test_a_shared_mapping_is_seen_by_the_other_after_msync_or_close(two):
    here, there = two
    (here / "m").write_bytes(bytes(8192))
    with (
        (here / "m").open("rb+") as one,
        (there / "m").open("rb+") as other,
        mmap.mmap(one.fileno(), 8192) as mine,
        mmap.mmap(other.fileno(), 8192) as theirs,
    ):
        for turn in range(1, 10):
            mine[turn * 100 : turn * 100 + 5] = b"hello"
            mine.flush()
            assert theirs[turn * 100 : turn * 100 + 5] == b"hello"
            theirs[5000 + turn] = turn
            theirs.flush()
            assert mine[5000 + turn] == turn
    assert (there / "m").read_bytes()[100:105] == b"hello"


def test_a_file_that_is_open_lives_on_when_its_name_goes_elsewhere(two):
    here, there = two
    (here / "f").write_bytes(b"still here")
    with (there / "f").open("rb+") as opened:
        (here / "f").unlink()
        assert opened.read() == b"still here"
        opened.write(b" and growing")
        opened.flush()
        opened.seek(0)
        assert opened.read() == b"still here and growing"
        assert os.fstat(opened.fileno()).st_nlink == 0


# ---------------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_a_lock_excludes_the_other_node(two, how, background):
    here, there = two
    (here / "l").touch()
    with (here / "l").open("rb+") as held:
        getattr(fcntl, how)(held, fcntl.LOCK_EX)
        code = f"f = open(a[0], 'rb+')\ntry: fcntl.{how}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: sys.exit(3)"
        assert program(code, there / "l").returncode == 3
        waiting = background(f"f = open(a[0], 'rb+')\nfcntl.{how}(f, fcntl.LOCK_EX)\nprint('got', flush=True)", there / "l")
        assert waiting.stdout is not None
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
    assert waiting.stdout.readline() == "got\n"
    assert waiting.wait(10) == 0


def test_a_wait_for_a_lock_ends_with_a_signal(two, background):
    here, there = two
    (here / "l").touch()
    with (here / "l").open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        waiting = background("f = open(a[0], 'rb+')\nprint('go', flush=True)\nfcntl.lockf(f, fcntl.LOCK_EX)", there / "l")
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "go\n"
        time.sleep(0.3)
        waiting.terminate()
        assert waiting.wait(5) != 0


def test_a_lock_goes_with_its_process(two, background):
    here, there = two
    (here / "l").touch()
    holder = background(
        "f = open(a[0], 'rb+')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('got', flush=True)\nsys.stdin.read()", here / "l"
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "got\n"
    holder.kill()
    holder.wait()
    with (there / "l").open("rb+") as wanted:
        fcntl.lockf(wanted, fcntl.LOCK_EX)


# ----------------------------------------------------------------------------------------------------------------------- data


def test_holes_sizes_and_special_calls(two):
    here, there = two
    with (here / "s").open("wb+") as file:
        os.pwrite(file.fileno(), b"end", 5_000_000)
        assert file.seek(0, os.SEEK_DATA) >= 0
        os.truncate(here / "s", 10_000_000)
        os.posix_fallocate(file.fileno(), 0, 100)
    assert (there / "s").stat().st_size == 10_000_000
    assert (there / "s").read_bytes()[5_000_000:5_000_003] == b"end"
    with (there / "s").open("rb") as source, (there / "copy").open("wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 6_000_000) > 0
    fd = os.open(here, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"anonymous")
    assert os.pread(fd, 100, 0) == b"anonymous"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_large_files_are_striped_and_come_back_right(two):
    here, there = two
    data = os.urandom(9_000_000)
    (here / "big").write_bytes(data)
    assert (there / "big").read_bytes() == data
    assert os.getxattr(there / "big", "user.xtreemfs.width") == b"2"
    assert set(os.getxattr(there / "big", "user.xtreemfs.osds").decode().split()) == {"n1", "n2"}


def test_programs_agree_while_both_write_one_file(two, background):
    """Each adds one to a counter under a lock; none is lost."""
    here, there = two
    (here / "n").write_text("0")
    code = """
f = open(a[0], "r+")
for _ in range(25):
    fcntl.lockf(f, fcntl.LOCK_EX)
    f.seek(0); n = int(f.read()); f.seek(0); f.write(str(n + 1)); f.flush()
    fcntl.lockf(f, fcntl.LOCK_UN)
"""
    workers = [background(code, folder / "n") for folder in (here, there, here, there)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (there / "n").read_text() == "100"


# ------------------------------------------------------------------------------------------------------------------- failures


def test_what_fsync_acknowledged_survives_kill_9_of_everything():
    with FsGrid(osds=1, mounts=1) as grid:
        path = grid.paths[0]
        with (path / "f").open("wb") as file:
            file.write(b"acknowledged" * 1000)
            file.flush()
            os.fsync(file.fileno())
        for process in (grid.mounts[0], grid.mrc, grid.osds[0]):
            process.kill()
        grid.osds[0].start()
        grid.mrc.start()
        wait_for(grid.mrc_socket.exists, "the MRC")
        grid.mounts[0].start()
        assert program("print(open(a[0], 'rb').read() == b'acknowledged' * 1000)", path / "f").stdout == "True\n"


def test_a_restart_of_the_servers_is_a_pause_and_no_error(background):
    code = """
fd = os.open(a[0], os.O_RDWR | os.O_CREAT)
os.write(fd, b'before ')
print('begun', flush=True)
sys.stdin.readline()
os.write(fd, b'between ')
os.fsync(fd)
os.close(os.open(a[0] + '2', os.O_CREAT))
print(open(a[0], 'rb').read())
"""
    with FsGrid(osds=1, mounts=1) as grid:
        writer = background(code, grid.paths[0] / "f")
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "begun\n"
        grid.mrc.kill()
        grid.osds[0].kill()
        writer.stdin.write("\n")
        writer.stdin.flush()
        grid.osds[0].start()
        grid.mrc.start()
        assert writer.stdout.readline() == "b'before between '\n"
        assert writer.wait(20) == 0
        assert sorted(os.listdir(grid.paths[0])) == ["f", "f2"]


def test_a_frozen_client_is_fenced_and_told(background):
    with FsGrid(osds=1, mounts=2) as grid:
        here, there = grid.paths
        writer = background(
            "fd = os.open(a[0], os.O_RDWR | os.O_CREAT)\nos.write(fd, b'old')\nos.fsync(fd)\nos.pwrite(fd, b'lost', 0)\n"
            "print('written', flush=True)\nsys.stdin.readline()\n"
            "try: os.fsync(fd)\nexcept OSError as e: print(e.errno)\nelse: print('no error')\nprint(open(a[0], 'rb').read())",
            here / "f",
        )
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "written\n"
        grid.mounts[0].pause()
        started = time.monotonic()
        (there / "f").write_bytes(b"theirs")
        assert time.monotonic() - started < 20
        grid.mounts[0].resume()
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == f"{errno.EIO}\n"
        assert writer.stdout.readline() == "b'theirs'\n"
        assert writer.wait(20) == 0


def test_a_server_that_is_away_costs_a_bounded_time_and_an_error_and_what_was_lost_is_not_shown(background):
    with FsGrid(osds=1, mounts=1) as grid:
        path = grid.paths[0]
        (path / "f").write_bytes(b"x" * 100_000)
        (path / "g").write_bytes(b"old")
        assert (path / "g").read_bytes() == b"old"  # so that the kernel has its page
        grid.mounts[0].ask("fs.sync")
        grid.osds[0].pause()
        started = time.monotonic()
        writer = background(
            "fd = os.open(a[0], os.O_WRONLY)\nos.write(fd, b'new')\ntry: os.fsync(fd)\nexcept OSError as e: print(e.errno)",
            path / "g",
        )
        reader = (
            "fd = os.open(a[0], os.O_RDONLY)\nos.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
            "try: os.pread(fd, 4096, 0)\nexcept OSError as e: print(e.errno)"
        )
        assert int(program(reader, path / "f").stdout) in {errno.ETIMEDOUT, errno.EIO}
        assert writer.communicate(timeout=25)[0] in {f"{errno.EIO}\n", f"{errno.ETIMEDOUT}\n"}
        assert time.monotonic() - started < 25
        assert "the OSD on n1" in grid.mounts[0].text()
        grid.osds[0].kill()
        grid.osds[0].start()
        assert (path / "g").read_bytes() == b"old"


def test_times_set_by_who_has_the_file_alone_are_seen_elsewhere_at_once(two):
    here, there = two
    (here / "f").write_text("x")
    os.utime(here / "f", ns=(10**18 + 1, 10**18 + 2))
    seen = (there / "f").stat()
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert seen.st_ctime_ns > time.time_ns() - 60 * 10**9


def test_thousands_of_scattered_pieces_are_written_and_seen_elsewhere(two):
    here, there = two
    count, stride = 3000, 4096
    fd = os.open(here / "f", os.O_WRONLY | os.O_CREAT)
    for number in range(count, 0, -1):
        os.pwrite(fd, number.to_bytes(4, "big"), number * stride)
    os.fsync(fd)
    os.close(fd)
    data = (there / "f").read_bytes()
    assert all(int.from_bytes(data[at : at + 4], "big") == at // stride for at in range(0, len(data), stride))
    assert data.count(0) > len(data) - 4 * count


def test_a_quota_is_filled_by_writers_on_two_nodes_to_the_last_request_and_never_beyond():
    quota = 8 << 20
    with FsGrid(mounts=2, policy=VolumePolicy(quota_bytes=quota)) as grid:
        one, two = grid.paths
        for number in range(40):  # closed files keep nothing that others need
            (grid.paths[number % 2] / f"small{number}").write_bytes(bytes(10_000))
        first = os.open(one / "first", os.O_CREAT | os.O_WRONLY)
        second = os.open(two / "second", os.O_CREAT | os.O_WRONLY)
        taken = [0, 0]
        while added := [_writes(first, 128 << 10), _writes(second, 128 << 10)]:
            if not any(added):
                break
            taken = [taken[0] + added[0], taken[1] + added[1]]
        assert quota - (128 << 10) < sum(taken) + 400_000 <= quota
        assert min(taken) > 1 << 20, "both found room"
        assert os.statvfs(one).f_bfree * 4096 <= quota - 400_000 - taken[0]
        os.fsync(first)
        os.fsync(second)
        assert os.statvfs(one).f_bfree * 4096 < 128 << 10
        os.close(first)
        (one / "first").unlink()
        os.ftruncate(second, taken[1] + taken[0])
        os.ftruncate(second, 1 << 20)
        os.posix_fallocate(second, 0, 3 << 20)
        os.fsync(second)
        assert (two / "second").stat().st_size == 3 << 20
        with pytest.raises(OSError, match="quota"):
            os.ftruncate(second, quota)
        os.close(second)


def _writes(fd, count):
    try:
        return os.write(fd, bytes(count))
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return 0


def test_a_command_is_given_the_mounts_and_its_exit_code_is_the_answer(grid, capfd):
    assert carry_out(grid, ["sh", "-c", "echo made > {1}/by-command && grep -q made {2}/by-command && exit 3"]) == 3
    assert "mrc: " in capfd.readouterr().err
    assert carry_out(grid, ["rm", "{2}/by-command"]) == 0


def test_changes_of_names_are_done_once_while_the_mrc_is_killed_again_and_again(background):
    code = """
made, folder = [], a[0]
try:
    for number in range(10**6):
        path = f"{folder}/f{number}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"%d" % number)
        os.close(fd)
        os.chmod(path, 0o640)
        os.mkdir(f"{folder}/d{number}")
        os.rename(path, f"{folder}/d{number}/g")
        os.link(f"{folder}/d{number}/g", f"{folder}/l{number}")
        os.symlink("g", f"{folder}/d{number}/s")
        os.setxattr(f"{folder}/l{number}", "user.n", b"%d" % number, os.XATTR_CREATE)
        if number % 2:
            os.unlink(f"{folder}/l{number}")
            os.unlink(f"{folder}/d{number}/s")
            os.unlink(f"{folder}/d{number}/g")
            os.rmdir(f"{folder}/d{number}")
        print(number, flush=True)
except OSError as error:
    print("failed", number, error, flush=True)
"""
    with FsGrid(mounts=2) as grid:
        one, two = grid.paths
        (one / "w").mkdir()
        running = background(code, one / "w")
        lines = []
        for _life in range(3):
            lines += [running.stdout.readline() for _ in range(12)]
            grid.mrc.kill()
            grid.mrc.start()
        running.terminate()
        lines += running.stdout.readlines()
        assert not [line for line in lines if "failed" in line]
        last = int(lines[-1])
        listed = set(os.listdir(two / "w"))
        assert {f"{kind}{number}" for number in range(0, last + 1, 2) for kind in "dl"} <= listed
        assert len(listed) <= last + 2 + 3, "what was removed stays removed"
        for number in range(0, last, 10):
            assert (two / "w" / f"d{number}" / "g").read_bytes() == b"%d" % number
            assert (two / "w" / f"l{number}").stat().st_nlink == 2
