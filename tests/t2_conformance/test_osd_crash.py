"""An OSD's disk loses power (or its process is killed) anywhere: what was synced is there, what was not is told, nothing else is reported."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from xtreemos.testing.fakedisk import FakeDisk, FakeTable, Power, PowerCut
from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.model import SUM_BYTES
from xtreemos.xtreemfs.osd.blocks import sums_of
from xtreemos.xtreemfs.osd.column import Mismatch
from xtreemos.xtreemfs.osd.marks import Marks
from xtreemos.xtreemfs.osd.model import Key, data_name
from xtreemos.xtreemfs.osd.shelf import Shelf

SEEDS = 1000
KEYS = [Key(1 << 40 | 5, 0), Key(1 << 40 | 5, 1), Key(1 << 40 | 6, 0)]
BYTES_MAX = 4 * SUM_BYTES


class Told:
    """What a client knows of one column: its bytes now, as of the last sync that returned, and which blocks changed since."""

    def __init__(self):
        self.now = bytearray()
        self.synced = None
        self.touched = set()
        self.epoch = 0
        self.epoch_synced = 0
        self.resized = False

    def change(self, at, data):
        if len(self.now) < at:
            self.touch(len(self.now), at)
            self.now.extend(bytes(at - len(self.now)))
        if at + len(data) > len(self.now):
            self.touch(len(self.now), at + len(data))
        self.touch(at, at + len(data))
        self.now[at : at + len(data)] = data

    def resize(self, length):
        self.touch(min(length, len(self.now)), max(length, len(self.now)))
        del self.now[length:]
        self.now.extend(bytes(length - len(self.now)))

    def touch(self, begin, end):
        self.resized = True
        self.touched |= set(range(begin // SUM_BYTES, -(-end // SUM_BYTES) + 1))


class Run:
    """One OSD's life with a random client."""

    def __init__(self, seed, disk, table, told, gone):
        self.chance = random.Random(seed)
        self.disk, self.table, self.told, self.gone = disk, table, told, gone
        self.shelf = Shelf(disk, Marks(table))
        self.columns = {}

    def column(self, key):
        if key not in self.columns:
            self.columns[key] = self.shelf.open(key) or self.shelf.create(key)
        return self.columns[key]

    def changing(self, key):
        column = self.column(key)
        rows = self.shelf.rows_before_change(key)
        if rows:
            self.table.commit(rows)
        self.shelf.ledger.marked(key)
        self.shelf.ledger.changed(key, 0.0)
        return column

    def step(self):
        key = self.chance.choice([key for key in KEYS if key.ino not in self.gone])
        told = self.told[key]
        what = self.chance.choices(["write", "truncate", "zero", "sync", "settle", "sync_all", "epoch", "delete"], [40, 8, 8, 20, 10, 5, 5, 1])[0]
        getattr(self, what)(key, told)
        self.shelf.ledger.finished(key)

    def write(self, key, told):
        at = self.chance.randrange(BYTES_MAX)
        if self.chance.random() < 0.4:
            at -= at % SUM_BYTES
        data = self.chance.randbytes(self.chance.choice((1, 100, 4096, SUM_BYTES, 2 * SUM_BYTES + 5)))
        column = self.changing(key)
        told.change(at, data)
        column.write(at, data, sums_of(data, at))

    def truncate(self, key, told):
        length = self.chance.randrange(BYTES_MAX)
        column = self.changing(key)
        told.resize(length)
        column.truncate(length)

    def zero(self, key, told):
        at, length = self.chance.randrange(BYTES_MAX), self.chance.randrange(1, 2 * SUM_BYTES)
        how = self.chance.choice("akpz")
        column = self.changing(key)
        if how in "az" and at + length > len(told.now):
            told.resize(at + length)
        if how in "pz" and at < len(told.now):
            told.change(at, bytes(min(length, len(told.now) - at)))
        column.allocate(at, length, how)

    def epoch(self, key, told):
        column = self.changing(key)
        told.epoch += 1
        told.resized = True
        column.raise_fence(Fence(told.epoch, 1))

    def sync(self, key, told):
        if key not in self.columns:
            return
        changes = self.shelf.ledger.changes(key)
        self.shelf.sync(key, self.columns[key])
        self.shelf.ledger.synced(key, changes)
        self.is_synced(told)

    def is_synced(self, told):
        told.synced, told.epoch_synced, told.resized = bytes(told.now), told.epoch, False
        told.touched.clear()

    def settle(self, _key, _told):
        keys = self.shelf.ledger.settling(1.0)
        self.table.commit(self.shelf.clean_rows((key, self.columns[key].length) for key in keys))
        self.shelf.ledger.settled(keys, durable=True)

    def sync_all(self, _key, _told):
        counts = self.shelf.ledger.unsynced(1.0)
        self.disk.sync_all()
        for key, changes in counts.items():
            self.shelf.ledger.synced(key, changes)
            self.is_synced(self.told[key])
            self.shelf.new_names.discard(key)

    def delete(self, key, _told):
        if len(self.gone) or key.ino == KEYS[0].ino:
            return
        self.gone.add(key.ino)  # from now on anything may be left, until the next start finishes it
        self.table.commit(self.shelf.rows_of_gone(key.ino, 1))
        self.shelf.remove(key.ino)
        for gone in [k for k in self.columns if k.ino == key.ino]:
            self.columns.pop(gone).close()
            self.shelf.ledger.drop(gone)

    def check(self, seed):
        """After a start: everything as promised; then carry on with what is there."""
        durable_gone = {ino for ino, _at in self.shelf.marks.gone()}
        for ino in durable_gone:
            self.shelf.remove(ino)
        for key in KEYS:
            told = self.told[key]
            if key.ino in self.gone:
                if key.ino in durable_gone:
                    assert self.shelf.open(key) is None, f"seed {seed}: a deleted file is back"
                continue
            column = self.shelf.open(key)
            if column is None:
                assert told.synced is None, f"seed {seed}: a synced column is gone"
                self.told[key] = Told()
                continue
            self.columns[key] = column
            dirty = not column.trusted
            torn = self.shelf.recover(key, column, 1) if dirty else []
            if dirty:
                self.shelf.ledger.found(key)
            found = bytearray()
            for at in range(0, column.length, SUM_BYTES):
                found += column.read(at, SUM_BYTES)[0]
            assert len(found) == column.length
            if told.synced is not None:
                if not told.resized:
                    assert bytes(found) == told.synced, f"seed {seed}: synced bytes of {key} differ"
                assert column.fence.epoch >= told.epoch_synced, f"seed {seed}: an epoch was forgotten"
                for block in range(-(-len(told.synced) // SUM_BYTES)):
                    if block not in told.touched:
                        part = slice(block * SUM_BYTES, (block + 1) * SUM_BYTES)
                        assert found[part] == told.synced[part], f"seed {seed}: block {block} of {key} differs"
                assert {row.block for row in torn} <= told.touched, f"seed {seed}: torn blocks that nobody wrote"
                assert dirty or not told.resized, f"seed {seed}: changed, not synced, and clean"
            told.now = found
            told.epoch = column.fence.epoch
            if dirty:
                told.touch(0, len(found))
            else:
                self.is_synced(told)


def live(seed, *, kill):
    """Two lives and a third start. `kill`: whether the first ends by a killed process, then the second by a power cut all the same."""
    chance = random.Random(seed)
    told, gone = {key: Told() for key in KEYS}, set()
    power = Power(seed, fuse_ops=chance.randrange(2, 120))
    disk, table = FakeDisk(power), FakeTable(power)
    for life in range(2):
        run = Run(seed * 10 + life, disk, table, told, gone)
        try:
            if life:
                run.check(seed)
                power.fuse_ops = chance.randrange(2, 60)
            for _step in range(80):
                run.step()
        except PowerCut:
            pass
        power = Power(seed + 1, fuse_ops=-1)
        disk = disk.after_power_cut(power, process_only=kill and not life)
        table = FakeTable(power, table.rows)
    Run(seed, disk, table, told, gone).check(seed)
    return power


@pytest.mark.parametrize("hundred", range(SEEDS // 100))
def test_what_was_synced_survives_a_power_cut_anywhere(hundred):
    for seed in range(hundred * 100, hundred * 100 + 100):
        live(seed, kill=False)


@pytest.mark.parametrize("hundred", range(2))
def test_what_was_synced_survives_a_killed_process_and_a_power_cut_after_it(hundred):
    for seed in range(hundred * 100, hundred * 100 + 100):
        live(seed, kill=True)


def one_column(length=3 * SUM_BYTES + 100):
    power = Power(1)
    shelf = Shelf(FakeDisk(power), Marks(FakeTable(power)))
    run = Run(1, shelf.disk, shelf.marks.table, {key: Told() for key in KEYS}, set())
    data = random.Random(3).randbytes(length)
    run.changing(KEYS[0]).write(0, data, sums_of(data, 0))
    run.shelf.ledger.finished(KEYS[0])
    run.sync(KEYS[0], run.told[KEYS[0]])
    run.settle(None, None)
    return run, data


@pytest.mark.parametrize("where", [0, SUM_BYTES - 1, SUM_BYTES, 2 * SUM_BYTES + 7, 3 * SUM_BYTES + 99])
def test_one_flipped_bit_of_a_clean_column_is_found_and_only_there(where):
    run, data = one_column()
    disk = run.disk.after_power_cut(Power(1))
    disk.names[data_name(KEYS[0])].now[where] ^= 4
    column = Shelf(disk, run.shelf.marks).open(KEYS[0])
    assert column.trusted
    for block in range(4):
        if block == where // SUM_BYTES:
            with pytest.raises(Mismatch) as caught:
                column.read(block * SUM_BYTES, SUM_BYTES)
            assert caught.value.bad == [block]
        else:
            assert column.read(block * SUM_BYTES, SUM_BYTES)[0] == data[block * SUM_BYTES : (block + 1) * SUM_BYTES]


def test_a_damaged_block_gets_no_fresh_sum_by_a_write_into_a_part_of_it():
    run, _data = one_column()
    disk = run.disk.after_power_cut(Power(1))
    disk.names[data_name(KEYS[0])].now[SUM_BYTES + 5] ^= 1
    column = Shelf(disk, run.shelf.marks).open(KEYS[0])
    with pytest.raises(Mismatch):
        column.write(SUM_BYTES + 100, b"x", (crc32(b"x"),))
    whole = bytes(SUM_BYTES)
    column.write(SUM_BYTES, whole, sums_of(whole, SUM_BYTES))  # all of it: the damage is gone
    assert column.read(SUM_BYTES, SUM_BYTES)[0] == whole


def test_a_disk_that_is_full_in_the_middle_of_a_write_leaves_no_damage():
    run, data = one_column()
    for room in (0, 1, 5000, SUM_BYTES, 3 * SUM_BYTES):
        run.disk.room_bytes = room
        more = bytes(range(256)) * 300
        at = len(data) - 50
        with pytest.raises(OSError, match="No space"):
            run.changing(KEYS[0]).write(at, more, sums_of(more, at))
        run.disk.room_bytes = 1 << 40
        column = run.columns[KEYS[0]]
        assert column.trusted
        found = b"".join(bytes(column.read(begin, SUM_BYTES)[0]) for begin in range(0, column.length, SUM_BYTES))
        assert found[:at] == data[:at]
        assert found[at:] == more[: len(found) - at]
        run.changing(KEYS[0]).truncate(len(data))
