"""The MRC's log and its recovery, on a disk that loses power at every step: nothing acknowledged is ever lost."""

import errno
from random import Random

import pytest

from mrc_kit import ALICE, DIR, FILE, LAYOUT, ROOT, SUPER, CutBase, CutDisk, PowerCut
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import VolumeRecord
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import log as logs
from xtreemos.xtreemfs.mrc import machine
from xtreemos.xtreemfs.mrc.errors import LogDamaged, StoreBroken
from xtreemos.xtreemfs.mrc.kv import MemoryKv
from xtreemos.xtreemfs.mrc.store import RESERVE_BYTES, Store

SEGMENT = 4096
LIVES, CUTS = 10, 12  # of each seed: 1,200 power cuts in all; what is checked after each grows with a life


def some_command(random, seq):
    if seq == 1:
        return do.MakeVolume(VolumeRecord(name="vol", id=1, mrc="n1", owner="alice"), 0o777, 0, 0, 1)
    name = b"n%d" % random.randrange(8)
    return random.choice([
        do.Create(ALICE, ROOT, name, FILE | 0o644, 0, seq, layout=LAYOUT, session="s", epoch=seq), do.Create(ALICE, ROOT, name, DIR | 0o755, 0, seq),
        do.Unlink(SUPER, ROOT, name, seq, keep=random.random() < 0.3), do.Unlink(SUPER, ROOT, name, seq, directory=True),
        do.Rename(SUPER, ROOT, name, ROOT, b"n%d" % random.randrange(8), random.choice([0, 0, 2]), seq),
        do.SetXattr(SUPER, ROOT, b"user.x", bytes(random.randrange(300)), 0, seq), do.Deleted("n1", (random.randrange(50),)),
    ])  # fmt: skip


class Life:
    """One machine through many power cuts. `told` is what was acknowledged; the store may be ahead of it, never behind."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.disk = CutDisk(self.random)
        self.base = CutBase(self.disk)
        self.history = []  # every command ever executed and not known to be lost, by number
        self.told = 0

    def one(self):
        self.disk.fuel = self.random.randrange(1, 60)
        try:
            store = Store(self.base, self.disk, segment_bytes=SEGMENT, reserve_bytes=0)
            self.check(store)
            while True:
                command = some_command(self.random, store.seq + 1)
                try:
                    store.execute(command)
                except FsError:
                    continue
                del self.history[store.seq - 1 :]
                self.history.append(command)
                if self.random.random() < 0.3:
                    store.sync()
                    self.told = store.durable
                if self.random.random() < 0.1:
                    store.commit()
                    self.told = store.durable
        except PowerCut:
            self.disk.power_on()
            self.base = CutBase(self.disk, self.base.durable)

    def check(self, store):
        assert store.seq >= self.told, f"command {self.told} was acknowledged and is lost"
        del self.history[store.seq :]
        fresh = MemoryKv()
        for seq, command in enumerate(self.history, 1):
            machine.apply(fresh, seq, command)
        assert fresh.rows == self.base.rows, "the store is not what its commands make"
        self.told = store.seq


@pytest.mark.log_warnings("torn tail was cut")
@pytest.mark.parametrize("seed", range(10))
def test_no_acknowledged_command_is_lost_by_power_cuts(seed):
    for number in range(LIVES):
        life = Life(1000 * seed + number)
        for _cut in range(CUTS):
            life.one()
        assert life.told > 5


def whole_log(count=20, sync_each=1):
    disk = CutDisk(Random(1))
    log = logs.Log(disk, 0, segment_bytes=SEGMENT)
    for number in range(1, count + 1):
        log.reserve(100)
        assert log.append(b"%d" % number + bytes(90)) == number
        if number % sync_each == 0:
            log.sync()
    log.sync()
    return disk


def test_a_log_is_read_as_it_was_written():
    found = logs.recover(whole_log(200))
    assert [record.seq for record in found.records] == list(range(1, 201))
    assert found.torn is None


def test_a_torn_tail_is_cut_and_told():
    disk = whole_log(20)
    name = disk.names()[-1]
    end = len(bytes(disk.files[name]).rstrip(b"\0"))
    disk.files[name][end - 5] ^= 1
    found = logs.recover(disk)
    assert [record.seq for record in found.records] == list(range(1, 20))
    assert (found.torn.seq, found.torn.segment) == (20, name)
    again = logs.recover(disk)
    assert (len(again.records), again.torn) == (19, None)


def test_an_unsynced_batch_that_lost_its_middle_is_a_torn_tail():
    disk = CutDisk(Random(1))
    log = logs.Log(disk, 0, segment_bytes=SEGMENT)
    for number in range(1, 6):
        log.reserve(100)
        log.append(b"%d" % number + bytes(90))
    data, at, _last = log.take()
    disk._put(disk.names()[0], at, data)  # all five reached the disk, but for a bit of the third; nobody was told
    disk.files[disk.names()[0]][at + 2 * (len(data) // 5) + 40] ^= 1
    found = logs.recover(disk)
    assert [record.seq for record in found.records] == [1, 2]
    assert found.torn.seq == 3


@pytest.mark.parametrize("record", [1, 7, 12])
def test_damage_in_the_middle_refuses_to_start_with_a_clear_line(record):
    disk = whole_log(20)
    name = disk.names()[0]
    before = bytes(disk.files[name])
    size = len(logs.encode_record(1, 0, b"1" + bytes(90)))
    disk.files[name][24 + (record - 1) * size + 30] ^= 1
    with pytest.raises(LogDamaged, match=f"record {record} at byte"):
        logs.recover(disk)
    disk.files[name][:] = before
    assert len(logs.recover(disk).records) == 20


def test_damage_in_an_earlier_segment_or_its_absence_refuses_to_start():
    disk = whole_log(200)
    names = disk.names()
    assert len(names) > 3
    held = disk.files.pop(names[1])
    with pytest.raises(LogDamaged, match="does not begin"):
        logs.recover(disk)
    disk.files[names[1]] = held
    held[0] ^= 1
    with pytest.raises(LogDamaged):
        logs.recover(disk)


def test_every_single_flipped_bit_is_torn_told_or_refused():
    original = whole_log(12)
    name = original.names()[0]
    data = bytes(original.files[name])
    random = Random(5)
    for _turn in range(300):
        disk = CutDisk(random)
        disk.files = {name: bytearray(data)}
        at = random.randrange(len(data.rstrip(b"\0")))
        disk.files[name][at] ^= 1 << random.randrange(8)
        try:
            found = logs.recover(disk)
        except LogDamaged:
            continue
        if [record.seq for record in found.records] != list(range(1, 13)):
            assert found.torn is not None, f"byte {at}: records are lost and nobody is told"


def fill(store):
    """Make files until that is refused, with nothing changed; return the errno."""
    for number in range(1000):
        before = dict(store.kv.rows)
        try:
            store.execute(do.Create(ALICE, ROOT, b"f%d" % number, FILE | 0o644, 0, 5))
        except FsError as error:
            assert store.kv.rows == before
            return error.errno
    return 0


def test_a_full_disk_is_refused_before_anything_is_changed():
    disk = CutDisk(Random(1))
    store = Store(CutBase(disk), disk, segment_bytes=SEGMENT, reserve_bytes=0)
    store.execute(some_command(Random(1), 1))
    disk.room = 10
    assert fill(store) == errno.ENOSPC
    disk.room = 1 << 20
    store.execute(do.Create(ALICE, ROOT, b"more", FILE | 0o644, 0, 5))


def test_with_little_space_left_one_may_still_remove():
    disk = CutDisk(Random(1))
    store = Store(CutBase(disk), disk, segment_bytes=SEGMENT)
    store.execute(some_command(Random(1), 1))
    store.execute(do.Create(ALICE, ROOT, b"f", FILE | 0o644, 0, 5))
    disk.room = RESERVE_BYTES - 1
    assert fill(store) == errno.ENOSPC
    store.execute(do.Unlink(ALICE, ROOT, b"f", 6))
    disk.room = 1000
    with pytest.raises(FsError, match="disk is full"):
        store.execute(do.Unlink(ALICE, ROOT, b"f1", 6))


def test_a_store_that_does_not_fit_its_log_is_refused():
    disk = CutDisk(Random(1))
    base = CutBase(disk)
    store = Store(base, disk, segment_bytes=SEGMENT, reserve_bytes=0)
    for number in range(1, 6):
        store.execute(some_command(Random(1), 1) if number == 1 else do.Create(ALICE, ROOT, b"%d" % number, FILE | 0o644, 0, 5))
    store.sync()
    other = CutBase(disk)
    other.put(b"mseq", (2).to_bytes(8))  # a store that says it has seen commands which it has not
    with pytest.raises(StoreBroken, match="does not fit"):
        Store(other, disk, segment_bytes=SEGMENT, reserve_bytes=0)


def test_old_segments_go_with_the_commit():
    disk = CutDisk(Random(1))
    store = Store(CutBase(disk), disk, segment_bytes=SEGMENT, reserve_bytes=0)
    store.execute(some_command(Random(1), 1))
    for number in range(200):
        store.execute(do.Create(ALICE, ROOT, b"%d" % number, FILE | 0o644, 0, 5))
    assert len(store.log.segments) > 3
    store.commit()
    assert len(disk.names()) == len(store.log.segments) == 1


def test_what_a_thread_is_writing_is_written_again_by_a_sync_that_does_not_wait_for_it():
    disk = CutDisk(Random(1))
    log = logs.Log(disk, 0, segment_bytes=SEGMENT)
    log.reserve(100)
    log.append(b"one")
    data, at, last = log.take()  # a thread has it and has not begun
    log.append(b"two")
    log.sync()
    assert log.durable == 2
    assert [record.payload for record in logs.recover(disk).records] == [b"one", b"two"]
    log.write_out(data, at)
    log.landed(last)
    assert log.durable == 2
    log.append(b"three")
    log.sync()
    assert [record.payload for record in logs.recover(disk).records] == [b"one", b"two", b"three"]
