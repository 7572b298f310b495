"""The store over disks that fail, fill up and race; and that the real disk and table are what the fake ones are."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import subprocess
import sys

import pytest

from xtreemos.testing.fakedisk import FakeDisk, FakeTable, Power
from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import SUM_BYTES
from xtreemos.xtreemfs.osd.blocks import sums_of
from xtreemos.xtreemfs.osd.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, RealDisk, is_in_use, lent_for_writing
from xtreemos.xtreemfs.osd.marks import LmdbTable, Marks
from xtreemos.xtreemfs.osd.model import Key
from xtreemos.xtreemfs.osd.shelf import Shelf
from xtreemos.xtreemfs.osd.space import RESERVE_BYTES, Space
from xtreemos.xtreemfs.osd.store import Store

KEY = Key(1 << 40 | 3, 0)
DATA = os.urandom(3 * SUM_BYTES)
FREE = lambda _fence: None  # noqa: E731  # nobody is refused


class Kit:
    def __init__(self):
        power = Power(1)
        self.disk, self.table = FakeDisk(power), FakeTable(power)
        self.shelf = Shelf(self.disk, Marks(self.table))
        self.store = Store([self.shelf], Space(), boot="b1")

    async def write(self, at, data, key=KEY):
        sums = sums_of(data, at)
        return await self.store.change(
            key, lambda column: column.write(at, data, sums), raised=Fence(1, 1), check=FREE, reach=(at, len(data))
        )

    async def read(self, at, length, key=KEY):
        return bytes((await self.store.read(key, at, length, FREE))[0])

    async def clean(self):
        await self.store.sync_all(self.shelf, older_s=-1)
        await self.store.settle(self.shelf, quiet_s=-1)


def run(use):
    async def work():
        kit = Kit()
        async with asyncio.timeout(20):
            await use(kit)
            await kit.store.close()

    asyncio.run(work())


@pytest.mark.log_warnings("a disk of this OSD failed")
def test_a_failed_sync_is_told_and_changes_the_boot_for_unsynced_bytes_may_be_gone():
    async def use(kit):
        await kit.write(0, DATA)
        kit.disk.bad_syncs = True
        with pytest.raises(FsError) as caught:
            await kit.store.sync(KEY, FREE)
        assert caught.value.errno == errno.EIO
        kit.disk.bad_syncs = False
        assert kit.store.boot != "b1"
        assert kit.store.io_errors == 1
        assert not kit.shelf.ledger.settling(1e12)

    run(use)


@pytest.mark.log_warnings("a disk of this OSD failed")
def test_a_disk_that_cannot_be_read_is_eio_and_the_osd_failing():
    async def use(kit):
        await kit.write(0, DATA)
        kit.disk.bad_reads = True
        with pytest.raises(FsError, match="failed") as caught:
            await kit.read(0, 10)
        assert caught.value.errno == errno.EIO
        kit.disk.bad_reads = False
        assert kit.store.io_errors == 1
        assert await kit.read(0, 9) == DATA[:9]

    run(use)


def test_a_full_disk_refuses_before_the_reserve_is_touched_and_marks_can_still_be_written():
    async def use(kit):
        await kit.write(0, DATA)
        await kit.clean()
        kit.disk.room_bytes = RESERVE_BYTES + 5000
        kit.store.space.full()
        with pytest.raises(FsError) as caught:
            await kit.write(len(DATA), DATA)
        assert caught.value.errno == errno.ENOSPC
        assert kit.disk.room_bytes == RESERVE_BYTES + 5000
        await kit.write(0, DATA[::-1])  # in place: no room needed
        await kit.clean()
        assert await kit.read(0, 99999) == DATA[::-1]
        assert kit.store.space.is_full([kit.shelf])

    run(use)


def test_a_disk_that_fills_up_in_the_middle_of_a_write_is_told_and_leaves_no_damage():
    async def use(kit):
        await kit.write(0, DATA)
        kit.store.space.admit(kit.shelf, 1)
        kit.disk.room_bytes = 5000  # somebody else was quicker
        with pytest.raises(FsError) as caught:
            await kit.write(len(DATA), DATA)
        assert caught.value.errno == errno.ENOSPC
        kit.disk.room_bytes = 1 << 40
        assert await kit.read(0, 99999) == DATA + DATA[:5000]
        assert kit.store.damage.rows == {}

    run(use)


def test_without_room_for_a_mark_a_clean_column_is_not_changed():
    async def use(kit):
        await kit.write(0, DATA)
        await kit.clean()
        kit.table.full = True
        with pytest.raises(FsError) as caught:
            await kit.write(0, b"x" * 100)
        assert caught.value.errno == errno.ENOSPC
        assert await kit.read(0, 99999) == DATA
        kit.table.full = False
        await kit.write(0, b"x" * 100)

    run(use)


def test_many_writers_and_readers_of_one_column_see_whole_writes_and_no_damage():
    async def use(kit):
        await kit.write(0, bytes(8 * SUM_BYTES))

        async def writer(number):
            for turn in range(15):
                await kit.write(number * SUM_BYTES, bytes([turn]) * SUM_BYTES)
                if turn % 5 == number:
                    await kit.store.sync(KEY, FREE)
                    await kit.store.settle(kit.shelf, quiet_s=-1)

        async def reader():
            for _turn in range(60):
                data = await kit.read(0, 8 * SUM_BYTES)
                for block in range(8):
                    assert len(set(data[block * SUM_BYTES : (block + 1) * SUM_BYTES])) == 1

        await asyncio.gather(*(writer(number) for number in range(8)), reader(), reader())
        assert kit.store.damage.rows == {}
        await kit.clean()
        assert len(kit.shelf.ledger) == 0

    run(use)


def test_one_commit_serves_many_first_writes():
    async def use(kit):
        keys = [Key(1 << 40 | number, 0) for number in range(1, 60)]
        for key in keys:
            await kit.write(0, b"first", key)
        await kit.clean()
        before = kit.store._commits[kit.shelf].count
        await asyncio.gather(*(kit.write(0, b"again", key) for key in keys))
        assert kit.store._commits[kit.shelf].count - before < 20

    run(use)


@pytest.mark.parametrize("real", [False, True])
def test_disks_are_what_they_promise(tmp_path, real):
    disk = RealDisk(tmp_path / "d") if real else FakeDisk(Power(1))
    assert disk.open("a0/x", create=False) is None
    file = disk.open("a0/x", create=True)
    file.pwrite(b"hello", 3)
    assert file.pread(100, 0) == b"\0\0\0hello"
    assert file.pread(4, 2, wait=False) in (b"\0hel", None)
    assert file.size()[0] == 8
    file.truncate(5)
    file.truncate(7)
    assert file.pread(100, 0) == b"\0\0\0he\0\0"
    file.allocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 3, 1000)
    assert file.pread(100, 0) == bytes(7)
    file.allocate(0, 0, 20)
    assert file.size()[0] == 20
    file.allocate(FALLOC_KEEP_SIZE, 0, 5000)
    assert file.size()[0] == 20
    assert file.seek(0, os.SEEK_HOLE) <= 20
    assert file.seek(20, os.SEEK_DATA) == -1
    file.sync()
    disk.sync_names("a0")
    disk.sync_all()
    assert [name for name, _bytes in disk.walk()] == ["a0/x"]
    assert disk.space()[0] >= disk.space()[1] > 0
    file.close()
    assert disk.unlink("a0/x") > 0
    assert disk.unlink("a0/x") is None
    assert disk.open("a0/x", create=False) is None


@pytest.mark.parametrize("real", [False, True])
def test_tables_are_what_they_promise(tmp_path, real):
    table = LmdbTable(tmp_path / "t") if real else FakeTable(Power(1))
    table.commit({b"a1": b"x", b"a2": b"y", b"b": b"z"})
    table.commit({b"a1": None, b"nothing": None, b"a0": b"w"})
    assert (table.get(b"a1"), table.get(b"a2")) == (None, b"y")
    assert list(table.scan(b"a")) == [(b"a0", b"w"), (b"a2", b"y")]
    assert list(table.scan(b"zz")) == []


def test_a_writer_elsewhere_is_seen_and_a_reader_is_none(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    assert not lent_for_writing(path)
    with path.open("rb"):
        assert not lent_for_writing(path)
    with path.open("r+b"):
        assert lent_for_writing(path)
    assert not lent_for_writing(tmp_path / "nothing")


def test_whoever_has_a_file_open_or_mapped_is_seen_but_not_ourselves(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    with path.open("r+b") as own:
        assert not is_in_use(own.fileno())
        with path.open("rb") as reader:
            mapped = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
        assert is_in_use(own.fileno())
        mapped.close()
        assert not is_in_use(own.fileno())


ASKED_FOR_A_SECOND = """
import os, sys, time
from pathlib import Path
from xtreemos.xtreemfs.osd.files import is_in_use, lent_for_writing
path = Path(sys.argv[1])
own = os.open(path, os.O_RDWR)
until = time.monotonic() + 1
while time.monotonic() < until:
    is_in_use(own)
    os.close(own)
    lent_for_writing(path)
    own = os.open(path, os.O_RDWR)
print("alive")
"""


def test_asking_who_has_a_file_is_survived_when_somebody_opens_it_just_then(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    with subprocess.Popen([sys.executable, "-c", ASKED_FOR_A_SECOND, path], stdout=subprocess.PIPE, text=True) as asking:
        while asking.poll() is None:
            os.close(os.open(path, os.O_RDWR))
        assert asking.stdout.read() == "alive\n"
