"""Claims about a mount process that is killed and started again on the same connection to the kernel: programs go on, and hear what was lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xtreemos.testing.fsgrid import FsGrid, Process, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]
PASSED_BYTES = 1 << 20  # files of the first mount's node that are so large are read by the kernel itself
PREFACE = """
import errno, fcntl, mmap, os, sys
os.chdir(sys.argv[1])
def said(line): print(line, flush=True)
def error_of(call, *args):
    try: call(*args)
    except OSError as error: return errno.errorcode[error.errno]
    return "none"
def go_on(): said("waiting"); sys.stdin.readline()
"""


class Job:
    """A program in a folder. The test process itself keeps no file of the mount open: it would have to wait for itself."""

    def __init__(self, folder: Path, code: str) -> None:
        words = [sys.executable, "-c", PREFACE + code, str(folder)]
        self._popen = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")

    def until_waiting(self) -> list[str]:
        """Return what it says until it waits, or ends."""
        assert self._popen.stdout is not None
        lines = []
        while (line := self._popen.stdout.readline().rstrip()) and line != "waiting":
            lines.append(line)
        return lines

    def let_go_on(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def goes_on(self) -> list[str]:
        self.let_go_on()
        return self.until_waiting()

    def end(self) -> None:
        self._popen.kill()
        with self._popen:
            pass


@contextlib.contextmanager
def paused(*processes: Process) -> Iterator[None]:
    for process in processes:
        process.pause()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.fixture(scope="module")
def grid():
    with FsGrid(osds=2, mounts=2, together=True, passthrough=PASSED_BYTES) as made:
        made.mounts[0].begin_keeping()
        yield made


@pytest.fixture
def job(grid, request):
    """Start a program in a fresh folder of the first mount: `job(CODE)`; `job.there` is that folder through the second."""
    started = []

    def start(code: str) -> Job:
        started.append(Job(grid.paths[0] / request.node.name, code))
        return started[-1]

    start.there = grid.paths[1] / request.node.name
    start.there.mkdir()
    yield start
    for one in started:
        one.end()
    for mounted in grid.mounts:
        assert mounted.ask("fs.status")["bugs"] == 0, mounted.text()[-2000:]
        assert mounted.pid


def test_working_folder_open_files_and_removed_files_stay(grid, job):
    program = job("""
kept = os.open("kept", os.O_RDWR | os.O_CREAT)
os.pwrite(kept, b"one", 0); os.fsync(kept)
gone = os.open("gone", os.O_RDWR | os.O_CREAT); os.unlink("gone")
os.pwrite(gone, b"still here", 0); os.fsync(gone)
sealed = os.open("sealed", os.O_RDWR | os.O_CREAT, 0o444)
row = os.scandir(".")
go_on()
said(os.getcwd().rpartition("/")[2]); said(sorted(e.name for e in row)); said(sorted(os.listdir()))
said(os.pread(kept, 9, 0)); said(os.pread(gone, 99, 0)); said(os.fstat(gone).st_nlink)
os.pwrite(kept, b"two", 3); os.pwrite(sealed, b"by right of its open", 0)
said(error_of(os.fsync, kept)); said(error_of(os.fsync, sealed)); said(error_of(os.close, kept))
go_on()
os.mkdir("made"); said(sorted(os.listdir()))
""")
    program.until_waiting()
    grid.mounts[0].kill_and_restart()
    names = "['kept', 'sealed']"
    assert program.goes_on() == [job.there.name, names, names, "b'one'", "b'still here'", "0", "none", "none", "none"]
    assert (job.there / "kept").read_bytes() == b"onetwo"
    assert (job.there / "sealed").read_bytes() == b"by right of its open"
    grid.mounts[0].kill_and_restart()
    grid.mounts[0].kill_and_restart()
    assert program.goes_on() == ["['kept', 'made', 'sealed']"]
    assert (job.there / "made").is_dir()


def test_lost_bytes_are_told_once_at_fsync_and_what_was_synced_is_there(grid, job):
    program = job("""
f = os.open("f", os.O_RDWR | os.O_CREAT | os.O_APPEND); g = os.open("g", os.O_RDWR | os.O_CREAT)
os.write(f, b"synced;"); os.fsync(f); os.write(g, b"closed"); os.close(os.dup(g)); os.write(f, b"lost;")
go_on()
os.write(f, b"later;"); said(error_of(os.fsync, f)); said(error_of(os.fsync, f)); said(error_of(os.close, f)); said(error_of(os.fsync, g))
""")
    program.until_waiting()
    grid.mounts[0].kill_and_restart()
    assert program.goes_on() == ["EIO", "none", "EIO", "none"]
    assert (job.there / "f").read_bytes() == b"synced;later;"
    assert (job.there / "g").read_bytes() == b"closed"


def test_what_the_kernel_had_cached_is_not_believed_any_more(grid, job):
    (job.there / "old").write_text("old " * 1000)
    (job.there / "closed").write_text("old " * 1000)
    (job.there / "name").write_text("")
    program = job("""
f = os.open("old", os.O_RDWR); m = mmap.mmap(f, 4000); said(m[:3]); said(open("closed").read(3)); os.stat("name"); d = os.open(".", os.O_RDONLY)
go_on()
said(m[:3]); said(os.pread(f, 3, 0)); said(open("closed").read(3)); said(os.path.exists("name")); said(oct(os.fstat(d).st_mode))
m[0:3] = b"ours"[:3]; m.flush(); os.fsync(f)
""")

    def change() -> None:
        (job.there / "old").write_text("new " * 1000)
        (job.there / "closed").write_text("new " * 1000)
        (job.there / "name").unlink()
        job.there.chmod(0o711)

    program.until_waiting()
    grid.mounts[0].kill_and_restart()
    change()
    assert program.goes_on() == ["b'new'", "b'new'", "new", "False", "0o40711"]
    assert (job.there / "old").read_text()[:4] == "our "


def test_files_that_the_kernel_reads_by_itself_go_on_and_can_be_opened_beside(grid, job):
    program = job("""
with open("f", "wb") as file: file.write(b"old " * 500_000)
f = os.open("f", os.O_RDONLY); said(os.getxattr("f", "user.xtreemfs.passthrough")); m = mmap.mmap(f, 4, prot=mmap.PROT_READ)
go_on()
said(os.pread(f, 4, 0)); said(m[:])
g = os.open("f", os.O_RDWR); said(os.pread(g, 4, 0)); os.pwrite(g, b"mine", 0); said(os.pread(f, 4, 0)); said(error_of(os.fsync, g))
go_on()
os.close(f); os.close(g); said(open("f", "rb").read(4))
""")
    first = program.until_waiting()
    grid.mounts[0].kill_and_restart()
    with (job.there / "f").open("r+b") as file:
        os.pwrite(file.fileno(), b"new ", 0)  # told to write through: the kernel here reads the OSD's file
        assert program.goes_on() == ["b'new '", "b'new '", "b'new '", "b'mine'", "none"]
    grid.mounts[0].kill_and_restart()
    assert program.goes_on() == ["b'mine'"]
    assert "(" not in first[0]
    assert (job.there / "f").read_bytes()[:4] == b"mine"


def test_locks_are_held_all_the_time_and_given_back_at_close(grid, job):
    program = job("""
f = open("f", "w"); fcntl.lockf(f, fcntl.LOCK_EX, 10); g = open("g", "w"); fcntl.flock(g, fcntl.LOCK_EX)
go_on()
fcntl.lockf(f, fcntl.LOCK_UN, 5)
go_on()
f.close(); g.close()
go_on()
""")
    program.until_waiting()
    grid.mounts[0].kill_and_restart()
    with (job.there / "f").open("r+") as f, (job.there / "g").open("r+") as g:
        for taken in (lambda: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)):
            with pytest.raises(BlockingIOError):
                taken()
        program.goes_on()
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
        program.goes_on()
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_requests_under_way_are_answered_by_the_next_process(grid, job):
    (job.there / "big").write_bytes(b"x" * 300_000)
    reader = job("""
f = os.open("big", os.O_RDONLY)
go_on()
said(len(os.pread(f, 300_000, 0)))
""")
    maker = job("""
go_on()
said(error_of(os.mkdir, "made"))
""")
    reader.until_waiting()
    maker.until_waiting()
    with paused(*grid.osds, grid.mrc):
        reader.let_go_on()
        maker.let_go_on()
        wait_for(lambda: grid.mounts[0].ask("fs.status")["outstanding"] >= 2, "the requests")
        grid.mounts[0].kill_and_restart()
    assert reader.until_waiting() == ["300000"]
    said = maker.until_waiting()
    assert said in (["none"], ["EIO"]), "of a change that was under way nobody knows"
    assert (job.there / "made").is_dir()


def test_a_mount_that_ends_in_good_order_leaves_nothing(grid):
    mounted = grid.mounts[0]
    assert mounted.stop() == 0
    assert mounted.keeper is not None
    assert mounted.keeper.look() is None
    mounted.start()
    mounted.keeper.clear()  # as when a supervisor lets it go: nothing is left to go on with
    mounted.kill_and_restart()
    assert os.listdir(mounted.path)
    assert "not taken over" not in mounted.text()
