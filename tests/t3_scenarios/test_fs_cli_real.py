"""The pieces of `xos fs` over real processes, without a grid: unmounting when all is safe, copying in and out, checks beside a running MRC."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from xtreemos.cli.fs_copy import Copier
from xtreemos.errors import RemoteError
from xtreemos.fabric import rpc
from xtreemos.foundation.frames import Kind
from xtreemos.testing.fsgrid import FsGrid, wait_for
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.model import VolumePolicy
from xtreemos.xtreemfs.mrc import checking, crosscheck
from xtreemos.xtreemfs.mrc.crosscheck import Columns
from xtreemos.xtreemfs.mrc.snapshot import wait_snapshot
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.osd.model import Key, data_name

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]


@pytest.fixture(scope="module")
def grid():
    with FsGrid(osds=2, mounts=1, policy=VolumePolicy(width=2, object_bytes=1 << 16)) as one:
        yield one


@pytest.fixture
def mounted(grid):
    one = grid.add_mount()
    yield one
    one.stop()
    one.kill()
    grid.mounts.remove(one)


def ended(mounted):
    wait_for(lambda: not mounted.pid, "the end of the mount")


def test_what_is_in_use_stays_mounted_and_is_unmounted_afterwards(grid, mounted):
    with (mounted.path / "open").open("wb") as file:
        file.write(b"x" * 100_000)
        with pytest.raises(RemoteError, match="busy"):
            mounted.ask("fs.unmount")
        file.write(b"y")
    assert mounted.ask("fs.unmount") == {"failed": 0, "mounted": False}
    ended(mounted)
    assert not os.path.ismount(mounted.path)
    assert (grid.mounts[0].path / "open").read_bytes() == b"x" * 100_000 + b"y"


def test_a_lazy_unmount_is_out_of_sight_and_ends_with_its_last_file(grid, mounted):
    with (mounted.path / "lazy").open("wb") as file:
        assert mounted.ask("fs.unmount", {"lazy": True})["mounted"] is False
        assert not os.path.ismount(mounted.path)
        assert mounted.pid
        file.write(b"written after it was out of sight")
    ended(mounted)
    assert (grid.mounts[0].path / "lazy").read_bytes() == b"written after it was out of sight"


def test_an_unmount_that_cannot_write_leaves_everything_as_it_was(grid, mounted):
    file = (mounted.path / "cannot").open("wb")
    try:
        file.write(b"z" * 300_000)
        file.flush()
        for osd in grid.osds:
            osd.kill()
        answer = mounted.ask("fs.unmount")
        assert answer["mounted"]
        assert answer["failed"] >= 1
        assert os.path.ismount(mounted.path)
    finally:
        for osd in grid.osds:
            osd.start()
        try:
            file.close()
        except OSError:
            pass  # told, as it must be: these bytes are lost


def test_a_tree_goes_in_and_comes_out_the_same(grid, tmp_path):
    source, target = tmp_path / "source", grid.mounts[0].path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(os.urandom(300_000))
    os.link(source / "a", source / "sub/b")
    (source / "sub/l").symlink_to("../a")
    with (source / "hole").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    os.setxattr(source / "a", "user.note", b"kept")
    os.chown(source / "a", 1234, 55)
    os.utime(source / "a", ns=(10**18 + 1, 10**18 + 2))
    for begin, end in ((source, target), (target, tmp_path / "back")):
        copier = Copier(str(begin), str(end), threads=4, verify=True, owners=True)
        copier.run()
        assert copier.tally.problems == []
        assert copier.tally.unkept == {}
    back = tmp_path / "back"
    status = (back / "a").stat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink) == (1234, 55, 10**18 + 2, 2)
    assert (back / "a").read_bytes() == (source / "a").read_bytes()
    assert (back / "hole").read_bytes() == (source / "hole").read_bytes()
    assert (back / "hole").stat().st_blocks * 512 < 1 << 20
    assert os.getxattr(back / "a", "user.note") == b"kept"
    shutil.rmtree(target)


async def ask_columns(grid, inos=()):
    columns = Columns()
    for node in ("n1", "n2"):
        peer = await rpc.connect_unix(grid.osd_socket(node))
        call = peer.open("osd.columns", calls.params(protocol.OsdColumns(inos)))
        rows = columns.rows[node] = []
        while (frame := await call.receive()).kind is not Kind.RESULT:
            rows += calls.answer_of(frame.body, list[protocol.ColumnRow])
        peer.close()
    return columns


async def cross(grid):
    """What a check beside the running servers finds."""
    columns = await ask_columns(grid)
    peer = await rpc.connect_unix(grid.mrc_socket)
    status = await peer.call("mrc.status", calls.params(protocol.Status(protocol.Who(0))))
    peer.close()
    snapshot = await wait_snapshot(grid.folder / "mrc", status["durable"], patience_s=20)
    try:
        assert [problem.text for problem in checking.check(snapshot)] == []
        seen = checking.look(snapshot)
        strange = crosscheck.suspects(seen, columns, "n1", {})
        if strange:  # of these some were deleted meanwhile
            again = await ask_columns(grid, tuple(strange))
            for node, rows in columns.rows.items():
                columns.rows[node] = [row for row in rows if row.ino not in strange] + again.rows[node]
        return crosscheck.check(seen, State(snapshot, 0), columns, "n1", {row.record.id: row.record for row in seen.volumes.values()})
    finally:
        snapshot.close()


def test_a_check_beside_the_running_servers_finds_what_is_missing_and_what_is_too_much(grid):
    top = grid.mounts[0].path
    for name in ("kept", "robbed"):
        with (top / name).open("wb") as file:
            file.write(b"d" * 200_000)
            os.fsync(file.fileno())
    grid.mounts[0].ask("fs.sync")
    assert asyncio.run(cross(grid)) == []
    robbed, kept = (top / "robbed").stat().st_ino, (top / "kept").stat().st_ino
    stray = kept + 1000
    for node in ("n1", "n2"):
        disk = grid.folder / f"disk-{node}" / "columns"
        for column in (0, 1):
            (disk / data_name(Key(robbed, column))).unlink(missing_ok=True)
            held, new = disk / data_name(Key(kept, column)), disk / data_name(Key(stray, column))
            if held.exists():
                new.parent.mkdir(exist_ok=True)
                shutil.copyfile(held, new)
    try:
        found = asyncio.run(cross(grid))
        assert {finding.ino for finding in found} == {robbed, stray}
        assert all("robbed" in finding.text for finding in found if finding.ino == robbed)
        lengths = asyncio.run(ask_columns(grid, (stray,)))
        assert sum(row.length for rows in lengths.rows.values() for row in rows) == 200_000
    finally:
        for path in grid.folder.glob(f"disk-*/columns/*/{stray:016x}.*"):
            path.unlink()
    (top / "robbed").unlink()
