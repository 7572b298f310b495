"""Coherence under faults, by seeds: XOS_SIM_FS_SEEDS=N runs N of each kind, XOS_SIM_FIRST=K begins at K (`make soak`).

And the other way round: what the protocol rules out is put in, and the checkers must find it.
"""

import os

import pytest

from xtreemos.testing.linearize import check
from xtreemos.testing.simfs import FILES, Broken, Plan, World, simulate
from xtreemos.testing.simfs_client import SimClient
from xtreemos.testing.simfs_servers import SimMrc, SimOsd
from xtreemos.xtreemfs.lease import giving, locks, queues, table, table_state
from xtreemos.xtreemfs.lease import table_model as tm

SEEDS = int(os.environ.get("XOS_SIM_FS_SEEDS", "1600"))
FIRST = int(os.environ.get("XOS_SIM_FIRST", "0"))
PART = 200


def parts(seeds):
    return range(FIRST, FIRST + seeds, PART)


def run(first, count, world=World, **options):
    """Run seeds; return how many operations their histories have."""
    return sum(len(simulate(Plan(seed, **options), world)) for seed in range(first, first + count))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", parts(SEEDS))
def test_nobody_ever_sees_anything_stale_or_loses_what_was_synced(first):
    assert run(first, PART, steps=12, rough_s=18.0) > PART * 40


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", parts(SEEDS // 4))
def test_with_flushes_synced_at_a_recall_not_even_a_power_cut_takes_what_others_saw(first):
    kinds = ("read", "write", "append", "fsync", "stat")
    run(first, PART, steps=12, rough_s=18.0, power_cuts=True, direct=False, kinds=kinds)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", parts(SEEDS // 8))
def test_kernels_that_use_the_osds_file_directly_are_seen_and_see_everything(first):
    run(first, PART, steps=14, rough_s=18.0, files=1, kinds=("read", "write", "stat", "direct", "direct", "chmod"))


@pytest.mark.parametrize("seed", [17, 24, 52, 67, 74, 126, 153, 253, 313, 330, 586])
def test_seeds_that_once_found_holes_stay_clean(seed):
    simulate(Plan(seed))


def test_without_faults_every_operation_is_answered_within_a_second():
    rows = simulate(Plan(1, fault_every_s=1e9, kinds=("read", "write", "append", "stat", "chmod", "names", "lookup", "directory")))
    assert len(rows) > 100
    assert max(row.returned_at - row.invoked_at for row in rows) < 1.0


def test_the_same_seed_tells_the_same_story():
    assert simulate(Plan(7)) == simulate(Plan(7))


# --------------------------------------------------------------------------------------------------- what must be found


def must_find(first, count, world=World, match=None, **options):
    """The checkers find something within these seeds."""
    with pytest.raises((Broken, AssertionError), match=match):
        run(first, count, world, **options)


DATA = {"steps": 14, "rough_s": 25.0, "direct": False, "kinds": ("read", "write", "append", "fsync"), "files": 1}


def world_with(**parts_):
    """A world of which a class has an attribute changed: world_with(client={"name": value})."""
    bases = {"client": SimClient, "mrc": SimMrc, "osd": SimOsd}
    return type("Changed", (World,), {f"{kind}_class": type("Part", (bases[kind],), names) for kind, names in parts_.items()})


def test_found_osds_that_ignore_epochs():
    must_find(0, 300, world_with(osd={"checks_epochs": False}), **DATA)


def test_found_a_client_that_never_stops_by_itself(monkeypatch):
    monkeypatch.setattr("xtreemos.xtreemfs.lease.holder.MARGIN_S", -1e6)
    must_find(0, 100)


def test_found_a_writer_that_keeps_its_bytes_while_a_kernel_reads_the_osds_file():
    must_find(0, 300, world_with(client={"writes_through_if_watched": False}), files=1, kinds=("read", "write", "direct", "direct"))


def test_found_a_client_that_shows_what_it_is_changing():
    must_find(0, 600, world_with(client={"drops_what_it_changes": False}), kinds=("names", "lookup", "directory", "chmod", "stat"))


def test_found_grants_that_cross_a_release(monkeypatch):
    def forget_nothing(self, held, level, seq, release=giving.Giving._release):
        release(self, held, level, seq)
        held.releasing = None

    monkeypatch.setattr(giving.Giving, "_release", forget_nothing)
    must_find(0, 600, kinds=("read", "write", "stat", "chmod", "lookup", "names", "directory"))


def test_found_an_mrc_without_grace_after_a_restart(monkeypatch):
    def forgetful(self, started_s, *, sessions=(), writers=(), real=table.Table.__init__):
        assert isinstance(writers, list)
        real(self, started_s, sessions=list(sessions)[:0])

    monkeypatch.setattr(table.Table, "__init__", forgetful)
    must_find(0, 200)


def test_found_names_that_are_changed_without_recalling_them(monkeypatch):
    real = queues.in_the_way

    def others(inode, op, need, shared):
        return () if need.how == queues.How.NAMES else real(inode, op, need, shared)

    monkeypatch.setattr(queues, "in_the_way", others)
    must_find(0, 50, kinds=("names", "lookup", "directory"))


def test_found_answers_that_are_kept_while_somebody_waits_to_change_them(monkeypatch):
    monkeypatch.setattr(queues.Queues, "name_free", lambda _self, _client, _ino, _name: True)
    monkeypatch.setattr(queues, "others_wait_to_change", lambda _inode, _ino, _client: False)
    must_find(0, 600, kinds=("names", "lookup", "directory"), think_s=0.1, steps=30)


def test_found_locks_that_stay_granted_to_two(monkeypatch):
    monkeypatch.setattr(locks.Locks, "_on_reclaim", lambda self, event: self._out.append(locks.Reclaimed(event.client, ())))
    must_find(0, 300, kinds=("lock",), match="write lock", think_s=0.2)


LOCKED = {"kinds": ("names", "lookup", "lookup"), "fault_every_s": 1e9, "think_s": 0.01, "steps": 60}


def test_found_names_that_are_invalidated_under_a_lock_that_a_create_holds():
    must_find(0, 50, world_with(client={"entries_need_lock": True}), match="wait for ever", **LOCKED)


class OneChanges(World):
    """Only one client changes names: creates cannot wait for each other."""

    def step(self, client, number):
        while client is not self.clients[0] and "names" in self.plan.kinds:
            yield from client.lookup(self.random.choice("xyz"))
            return
        yield from super().step(client, number)


def test_found_lookups_that_wait_for_recalls(monkeypatch):
    """With name caches that are emptied under the directory's lock, lookups that wait at the MRC hold that lock for ever."""

    class Waits(OneChanges):
        client_class = type("Locks", (SimClient,), {"entries_need_lock": True})
        mrc_class = type("Waits", (SimMrc,), {"lookups_wait": True})

    with monkeypatch.context() as patch:
        for module in (queues, table_state):
            patch.setattr(module, "covered", lambda _inode, _client, _how: False)
        must_find(0, 50, Waits, match="wait for ever", **LOCKED)

    class Answers(OneChanges):
        client_class = type("Locks", (SimClient,), {"entries_need_lock": True})

    run(0, 50, Answers, **LOCKED)


def test_found_unsynced_flushes_when_the_power_goes():
    class Unsynced(World):
        def __init__(self, plan):
            super().__init__(plan)
            for client in self.clients:
                client.sync_on_recall = False

    must_find(0, 300, Unsynced, power_cuts=True, **DATA)


class SlowAnswer(World):
    """A reader's last renewal is answered 4.5 s late, and it is not heard any more; another client writes when the MRC's lease has ended."""

    def run(self):
        reader, writer = self.clients[:2]
        usual = self.net.delay_s

        def delay_s(link, to):
            if reader not in link.ends or self.mrc not in link.ends or self.sim.now_s < 4.5:
                return usual(link, to)
            return 4.5 if to == 0 else 0.001 if self.sim.now_s < 6.0 else 1e3

        self.net.delay_s = delay_s

        def reads():
            for _ in range(80):
                yield reader.sleep(0.25)
                reader.run(reader.read(101))

        def writes():
            yield writer.sleep(12.0)
            yield from writer.write(101, "write", "new")
            yield from writer.fsync(101)
            self.written_s = self.sim.now_s

        self.sim.at(1.0, lambda: reader.run(reads()))
        writer.run(writes())
        self.sim.run(40.0)
        self.broken = check(self.history_rows(), FILES)
        assert 14.0 < self.written_s < 18.0
        if self.broken:
            raise Broken(str(self.broken))


def test_a_reader_stops_before_the_mrc_gives_its_lease_away_however_late_it_is_answered():
    simulate(Plan(1), SlowAnswer)


def test_found_a_client_that_counts_its_lease_from_the_answer():
    counts = type("Counts", (SimClient,), {"renewal_counts_from": lambda self, _sent_s: self.now_s()})
    with pytest.raises(AssertionError, match="no order of these"):
        simulate(Plan(1), type("Slow", (SlowAnswer,), {"client_class": counts}))


class LateWrite(World):
    """A writer is cut off in the middle of an fsync; others read; then only its OSD is in reach again, and the write is sent once more."""

    osd_crashes = False

    def run(self):
        writer, reader = self.clients[:2]
        osd = self.osd_of(101)

        def story():
            yield writer.sleep(1.0)
            yield from writer.write(101, "write", "before")
            yield from writer.fsync(101)
            yield from writer.write(101, "write", "late")
            self.net.part(writer, self.mrc)
            self.net.part(writer, osd)
            yield from writer.fsync(101)

        def others():
            yield reader.sleep(5.0)
            yield from reader.read(101)
            if self.osd_crashes:
                osd.crash()
                osd.restart(power=False)
            self.net.parted.discard(frozenset((writer.name, osd.name)))

        writer.run(story())
        reader.run(others())
        self.sim.run(60.0)
        self.writer_told = writer.file(101).failed
        return osd.data[101]


def test_a_write_that_comes_after_its_writer_was_evicted_is_refused():
    assert simulate(Plan(3), LateWrite) == ("before",)


def test_it_is_refused_also_after_the_osd_has_crashed_unless_that_forgot_its_epochs():
    crashes = {"osd_crashes": True}
    assert simulate(Plan(3), type("Crashes", (LateWrite,), crashes)) == ("before",)

    class Forgets(SimOsd):
        def restart(self, *, power):
            super().restart(power=power)
            self.epochs = {}

    assert simulate(Plan(3), type("Forgets", (LateWrite,), crashes | {"osd_class": Forgets})) == ("late",)


def test_it_is_not_refused_if_the_mrc_does_not_fence():
    class Trusts(SimMrc):
        def _fence(self, effect):
            self.sim.after(0, lambda: self.on(tm.Fenced(effect.ino)))

    assert simulate(Plan(3), type("Unfenced", (LateWrite,), {"mrc_class": Trusts})) == ("late",)


def test_a_frozen_writer_is_refused_by_the_osd_and_told():
    """It wakes after others have written: its write comes to nothing, and fsync says so."""
    told = []

    class Frozen(World):
        def run(self):
            writer, other = self.clients[:2]

            def story():
                yield writer.sleep(1.0)
                yield from writer.write(101, "write", "before")
                yield from writer.fsync(101)
                yield from writer.write(101, "write", "unsynced")
                writer.freeze(30.0)

            def late():
                yield other.sleep(5.0)
                yield from other.write(101, "append", "after")
                yield from other.fsync(101)
                told.append((self.sim.now_s, self.osd_of(101).data[101], writer.frozen))

            writer.run(story())
            other.run(late())
            self.sim.run(60.0)
            told.append(writer.file(101).failed)
            return self.history_rows()

    simulate(Plan(3, fault_every_s=1e9), Frozen)
    (when, data, frozen), failed = told
    assert 8.0 < when < 20.0
    assert data == ("before", "after")
    assert frozen
    assert failed
