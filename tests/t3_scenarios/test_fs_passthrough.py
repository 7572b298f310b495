"""Claims about passthrough: the kernel reads a file of the own node's OSD by itself, and nobody anywhere sees anything but one file."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from xtreemos.testing import fsx
from xtreemos.testing.fsgrid import FsGrid, wait_for
from xtreemos.testing.fsxclient import Answer, LocalClient
from xtreemos.testing.fsxmodel import Draw, Model, Setting
from xtreemos.xtreemfs.model import VolumePolicy

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]

OPS = 300
SMALL = 4096
"""From this length on the mounts of these tests hand files over."""


@pytest.fixture(scope="module")
def grid():
    with FsGrid(osds=2, mounts=2, together=True, passthrough=SMALL) as made:
        yield made


@pytest.fixture
def two(grid, request):
    """The same fresh folder through both mounts; what is made through the first lies on its own node."""
    name = request.node.name
    (grid.paths[0] / name).mkdir()
    yield grid.paths[0] / name, grid.paths[1] / name
    no_faults(grid)


def no_faults(grid):
    for mounted in grid.mounts:
        status = mounted.ask("fs.status")
        assert status["bugs"] == 0, mounted.text()[-2000:]
        assert "EIO" not in status["errors"], mounted.text()[-2000:]


def through(path):
    return os.getxattr(path, "user.xtreemfs.passthrough").decode()


def fill(path, length=10 * SMALL):
    """Make a file of a known beginning."""
    path.write_bytes(bytes(range(256)) * (length // 256))
    return path


def numbers(mounted):
    return mounted.ask("fs.status")["passthrough"]


# ------------------------------------------------------------------------------------------------------------ who gets it


def test_the_kernel_reads_a_file_of_its_own_node_without_a_word(grid, two):
    here, _there = two
    fill(here / "f", 1 << 20)
    before = grid.mounts[0].ask("fs.status")["requests"].get("READ", 0)
    with (here / "f").open("rb") as file:
        assert through(here / "f") == "yes"
        assert file.read() == bytes(range(256)) * 4096
    assert grid.mounts[0].ask("fs.status")["requests"].get("READ", 0) == before
    assert through(here / "f") == "no"


def test_small_files_files_elsewhere_and_files_open_for_writing_are_not_handed_over(two):
    here, there = two
    fill(here / "f")
    (here / "small").write_bytes(b"x" * (SMALL - 1))
    for path, flags in (
        (here / "small", os.O_RDONLY),
        (there / "f", os.O_RDONLY),
        (here / "f", os.O_RDWR),
        (here / "f", os.O_WRONLY),
    ):
        opened = os.open(path, flags)
        again = os.open(path, os.O_RDONLY)
        assert through(path) == "no"
        os.close(opened)
        os.close(again)


def test_a_striped_file_is_not_handed_over():
    with FsGrid(osds=2, mounts=1, together=True, passthrough=SMALL, policy=VolumePolicy(width=2)) as grid:
        fill(grid.paths[0] / "f")
        with (grid.paths[0] / "f").open("rb"):
            assert through(grid.paths[0] / "f") == "no"


def test_where_the_kernel_refuses_files_are_read_as_ever_and_it_is_said_why(tmp_path):
    disk, upper, work = tmp_path / "disk-n1", tmp_path / "upper", tmp_path / "work"
    for folder in (disk, upper, work):
        folder.mkdir()
    options = f"lowerdir={disk},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, disk], check=True)
    try:
        with FsGrid(mounts=1, together=True, passthrough=SMALL, folder=tmp_path) as grid:
            fill(grid.paths[0] / "f")
            assert (grid.paths[0] / "f").read_bytes()[:3] == b"\0\1\2"
            assert "stacked file system" in numbers(grid.mounts[0])["refused"]
            assert "stacked file system" in through(grid.paths[0] / "f")
    finally:
        subprocess.run(["umount", disk], check=True)


# -------------------------------------------------------------------------------------------------------------- coherence


def test_what_another_node_writes_is_read_at_once(two):
    here, there = two
    fill(here / "f")
    with (here / "f").open("rb", buffering=0) as reader, (there / "f").open("rb+", buffering=0) as writer:
        assert through(here / "f") == "yes"
        for turn in range(50):
            os.pwrite(writer.fileno(), b"%05d" % turn, turn * 700)
            assert os.pread(reader.fileno(), 5, turn * 700) == b"%05d" % turn


def test_lengths_are_those_that_others_make(two):
    here, there = two
    fill(here / "f")
    with (here / "f").open("rb", buffering=0) as reader, (there / "f").open("rb+", buffering=0) as writer:
        for length in (100, 3 * SMALL, 0, 50_000):
            os.ftruncate(writer.fileno(), length)
            assert len(os.pread(reader.fileno(), 1 << 20, 0)) == length
            assert os.fstat(reader.fileno()).st_size == (here / "f").stat().st_size == length
        with (there / "f").open("ab", buffering=0) as appender:
            appender.write(b"the end")
        assert os.lseek(reader.fileno(), 0, os.SEEK_END) == 50_007
        assert os.pread(reader.fileno(), 100, 50_000) == b"the end"
        os.posix_fallocate(writer.fileno(), 60_000, 1000)
        assert len(os.pread(reader.fileno(), 1 << 20, 0)) == 61_000
        changed = (there / "f").stat().st_mtime_ns
        assert os.fstat(reader.fileno()).st_mtime_ns == changed


def test_a_program_of_the_same_node_may_write_beside_the_reader(two):
    here, there = two
    fill(here / "f")
    with (here / "f").open("rb", buffering=0) as reader:
        with (here / "f").open("rb+", buffering=0) as writer:
            for turn in range(20):
                os.pwrite(writer.fileno(), b"%05d" % turn, turn * 700)
                assert os.pread(reader.fileno(), 5, turn * 700) == os.pread(writer.fileno(), 5, turn * 700) == b"%05d" % turn
        with (here / "f").open("ab", buffering=0) as appender:
            appender.write(b"the end")
        with (here / "f").open("wb", buffering=0) as again:
            assert os.pread(reader.fileno(), 100, 0) == b""
            again.write(b"new")
            assert os.pread(reader.fileno(), 100, 0) == b"new"
        assert (there / "f").read_bytes() == b"new"


def test_what_is_stored_in_a_mapping_beside_a_reader_reaches_everybody_and_has_right_sums(grid, two):
    here, there = two
    fill(here / "f")
    assert (there / "f").read_bytes()[:6] == bytes(range(6))
    with (here / "f").open("rb", buffering=0) as reader:
        with (here / "f").open("rb+", buffering=0) as writer, mmap.mmap(writer.fileno(), 10 * SMALL) as mapped:
            mapped[0:6] = b"mapped"
            assert os.pread(reader.fileno(), 6, 0) == b"mapped"
            os.fsync(writer.fileno())
            assert (there / "f").read_bytes()[:6] == b"mapped"
            mapped[0:6] = b"second"
        assert (there / "f").read_bytes()[:6] == b"second"
    os.setxattr(there / "f", "user.xtreemfs.lease", b"none")
    assert (there / "f").read_bytes()[:6] == b"second"


def test_a_mapping_outlives_its_descriptor_and_still_shows_what_others_write(grid, two):
    here, there = two
    fill(here / "f")
    wait_for(lambda: numbers(grid.mounts[0])["mapped"] == 0, "the end of the mappings of earlier tests")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    opened = os.open(here / "f", os.O_RDONLY)
    place = libc.mmap(None, ctypes.c_size_t(SMALL), mmap.PROT_READ, mmap.MAP_SHARED, opened, ctypes.c_long(0))
    os.close(opened)
    try:
        with (there / "f").open("rb+", buffering=0) as writer:
            for turn in range(30):
                os.pwrite(writer.fileno(), b"%05d" % turn, 0)
                assert ctypes.string_at(place, 5) == b"%05d" % turn
                time.sleep(0.01)  # past the moment in which the mount looks whether the closed file is mapped
        assert numbers(grid.mounts[0])["mapped"] == 1
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(SMALL))
    wait_for(lambda: numbers(grid.mounts[0])["mapped"] == 0, "the end of the mapping")


def test_opens_of_all_kinds_at_once_never_fail(two):
    here, _there = two
    fill(here / "f")
    wrong = []

    def opens(flags):
        for _ in range(60):
            try:
                opened = os.open(here / "f", flags)
                os.pread(opened, 10, 0) if flags != os.O_WRONLY else os.pwrite(opened, b"x", 5)
                os.close(opened)
            except OSError as error:
                wrong.append((flags, error))

    kinds = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDONLY | os.O_DIRECT)
    threads = [threading.Thread(target=opens, args=(flags,)) for flags in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_without_a_name_lives_as_long_as_it_is_open_and_is_freed_then(grid, two):
    here, there = two
    fill(here / "f")
    column = f"{(here / 'f').stat().st_ino:x}"
    with (here / "f").open("rb") as reader:
        (there / "f").unlink()
        assert reader.read(3) == b"\0\1\2"
        assert list(grid.folder.glob(f"disk-n1/columns/*/*{column}*"))
    wait_for(lambda: not list(grid.folder.glob(f"disk-n1/columns/*/*{column}*")), "the space to be free", timeout_s=20)


class Watching(LocalClient):
    """Reads by descriptors of its own that were opened first, so by passthrough; writes beside them."""

    def __init__(self, folder, seed, files, prefix):
        paths = [f"{folder}/{prefix}{number}" for number in range(files)]
        for path in paths:
            Path(path).write_bytes(b"")
        self.readers = [os.open(path, os.O_RDONLY) for path in paths]
        super().__init__(folder, seed, files, prefix)

    def _read(self, op, fd):
        return Answer(data=os.pread(self.readers[op.file], op.length, op.offset), size=os.fstat(fd).st_size)

    def _mapwrite(self, op, fd):
        answer = super()._mapwrite(op, fd)
        os.fsync(fd)  # beside passthrough msync alone tells nobody
        return answer

    def close(self):
        super().close()
        for fd in self.readers:
            os.close(fd)


def test_random_operations_on_both_nodes_differ_nowhere_from_a_model():
    with FsGrid(osds=2, mounts=2, together=True, passthrough=0) as grid:
        clients = [Watching(str(grid.paths[0]), 5, 2, "x"), LocalClient(str(grid.paths[1]), 5, 2, "x")]
        assert numbers(grid.mounts[0])["open"] == 2
        try:
            # Of these two the kernel bounds the source by the length that it knew last, with and without passthrough: docs/limits.md.
            kinds = tuple(kind for kind in fsx.supported(clients) if kind not in {"copy", "sendfile"})
            setting = Setting(5, clients=2, kinds=kinds)
            draw, model = Draw(setting), Model(setting)
            ended = fsx.exercise((draw.next(model.files) for _ in range(OPS)), clients, model, 200, lambda _number: None)
        finally:
            for client in clients:
                client.close()
        assert ended == OPS
        no_faults(grid)


# ---------------------------------------------------------------------------------------------------------------- failures


def test_readers_and_writers_go_on_when_osd_and_mrc_are_killed_and_come_back():
    with FsGrid(osds=2, mounts=2, together=True, passthrough=SMALL) as grid:
        here, there = grid.paths
        fill(here / "f")
        with (here / "f").open("rb", buffering=0) as reader:
            assert through(here / "f") == "yes"
            for process in (grid.osds[0], grid.mrc):
                process.kill()
                assert os.pread(reader.fileno(), 3, 3 * SMALL) == b"\0\1\2"
                process.start()
                with (there / "f").open("rb+", buffering=0) as writer:
                    os.pwrite(writer.fileno(), process.words[0].encode(), 0)
                    assert os.pread(reader.fileno(), 20, 0) == process.words[0].encode()[:20]
        no_faults(grid)


def test_a_mount_that_was_killed_is_no_reader_any_more_when_it_is_back():
    with FsGrid(osds=2, mounts=2, together=True, passthrough=SMALL) as grid:
        here, there = grid.paths
        fill(here / "f")
        reader = os.open(here / "f", os.O_RDONLY)
        assert through(here / "f") == "yes"
        grid.mounts[0].kill()
        grid.mounts[0].start()
        assert (here / "f").stat().st_size == 10 * SMALL  # its first word to the MRC says who died
        written = grid.mounts[1].ask("fs.status")["written_bytes"]
        with (there / "f").open("rb+", buffering=0) as writer:
            os.pwrite(writer.fileno(), b"kept", 0)
            assert grid.mounts[1].ask("fs.status")["written_bytes"] == written  # in the writer's memory, as ever
            assert (here / "f").read_bytes()[:4] == b"kept"
        with pytest.raises(OSError, match="not connected"):
            os.close(reader)
