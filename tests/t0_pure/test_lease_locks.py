"""File locks: ranges, upgrades, waiting in order, circles, owners and clients that go, reclaims; and a naive map of bytes as the judge."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from xtreemos.xtreemfs.lease.locks import Cancel, ClientGone, Deadlock, Got, GraceOver, Lock, Locks, Reclaim, Reclaimed, Unlock
from xtreemos.xtreemfs.model import FILE_BYTES_MAX
from xtreemos.xtreemfs.protocol import LockRow


def row(owner, start, end, write, ino=7, kind="p"):
    return LockRow(ino, kind, owner, start, end, write, 100 + owner)


class Asker:
    """Counts requests, so that tests read as stories."""

    def __init__(self, **options):
        self.locks = Locks(**options)
        self.number = 0

    def lock(self, client, *args, wait=False, **more):
        self.number += 1
        return self.locks.on(Lock(self.number, client, row(*args, **more), wait=wait))

    def unlock(self, client, owner, start=0, end=FILE_BYTES_MAX, **more):
        return self.locks.on(Unlock(client, more.pop("ino", 7), more.pop("kind", "p"), owner, start, end, **more))

    def spans(self, client, owner):
        return [(r.start, r.end, r.write) for c, r in self.locks.rows() if (c, r.owner) == (client, owner)]


def test_readers_share_and_a_writer_is_alone():
    asker = Asker()
    assert asker.lock("a", 1, 0, 9, False) == [Got(1, True)]
    assert asker.lock("b", 1, 5, 20, False) == [Got(2, True)]
    assert asker.lock("b", 1, 9, 9, True) == [Got(3, False)]
    assert asker.lock("b", 1, 10, 20, True) == [Got(4, True)]
    assert asker.locks.blocker("a", row(1, 10, 10, False)) == LockRow(7, "p", 1, 10, 20, True, 101)


def test_the_same_owner_number_of_two_clients_is_two_owners():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    assert asker.lock("b", 1, 0, 9, True) == [Got(2, False)]


def test_a_new_lock_splits_what_the_owner_had_and_merges_with_its_like():
    asker = Asker()
    asker.lock("a", 1, 0, 99, True)
    asker.lock("a", 1, 40, 59, False)
    assert asker.spans("a", 1) == [(0, 39, True), (40, 59, False), (60, 99, True)]
    asker.lock("a", 1, 40, 59, True)
    assert asker.spans("a", 1) == [(0, 99, True)]
    asker.unlock("a", 1, 10, 19)
    assert asker.spans("a", 1) == [(0, 9, True), (20, 99, True)]


def test_downgrading_lets_readers_in():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    assert asker.lock("b", 2, 0, 9, False, wait=True) == []
    assert asker.lock("a", 1, 0, 9, False) == [Got(3, True), Got(2, True)]


def test_those_who_wait_are_served_in_the_order_they_came():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.lock("b", 2, 0, 9, True, wait=True)
    asker.lock("c", 3, 0, 9, True, wait=True)
    assert asker.unlock("a", 1) == [Got(2, True)]
    assert asker.unlock("b", 2, all_of_owner=True) == [Got(3, True)]


def test_a_waiting_writer_does_not_keep_readers_out():
    asker = Asker()
    asker.lock("a", 1, 0, 9, False)
    asker.lock("b", 2, 0, 9, True, wait=True)
    assert asker.lock("a", 5, 0, 9, False, wait=True) == [Got(3, True)]


def test_a_circle_over_two_files_is_refused_to_the_one_who_closes_it():
    asker = Asker()
    asker.lock("a", 1, 0, 0, True, ino=7)
    asker.lock("b", 2, 0, 0, True, ino=8)
    asker.lock("c", 3, 0, 0, True, ino=9)
    assert asker.lock("a", 1, 0, 0, True, ino=8, wait=True) == []
    assert asker.lock("b", 2, 0, 0, True, ino=9, wait=True) == []
    assert asker.lock("c", 3, 0, 0, False, ino=7, wait=True) == [Deadlock(6)]
    assert asker.unlock("c", 3, ino=9) == [Got(5, True)]


def test_two_readers_who_both_want_to_write_are_a_circle():
    asker = Asker()
    asker.lock("a", 1, 0, 9, False)
    asker.lock("b", 1, 0, 9, False)
    assert asker.lock("a", 1, 0, 9, True, wait=True) == []
    assert asker.lock("b", 1, 0, 9, True, wait=True) == [Deadlock(4)]


def test_whole_file_locks_know_no_circles_and_do_not_meet_ranges():
    asker = Asker()
    asker.lock("a", 1, 0, FILE_BYTES_MAX, True, kind="b")
    assert asker.lock("b", 2, 0, FILE_BYTES_MAX, True) == [Got(2, True)]
    assert asker.lock("b", 2, 0, FILE_BYTES_MAX, False, kind="b") == [Got(3, False)]


def test_who_gives_up_waiting_gets_nothing():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.lock("b", 2, 0, 9, True, wait=True)
    asker.locks.on(Cancel(2))
    assert asker.unlock("a", 1) == []
    assert asker.locks.rows() == []


def test_everything_of_a_dead_client_goes_to_those_who_wait():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.lock("a", 2, 20, 29, True, ino=8)
    asker.lock("b", 3, 0, 9, True, wait=True)
    asker.lock("b", 3, 20, 29, True, ino=8, wait=True)
    asker.lock("a", 4, 0, 9, True, wait=True)
    assert asker.locks.on(ClientGone("a")) == [Got(3, True), Got(4, True)]
    assert asker.unlock("b", 3) == []


def test_after_a_restart_only_reclaims_are_granted_until_the_grace_is_over():
    asker = Asker(grace=True)
    assert asker.lock("b", 2, 0, 9, True) == []
    assert asker.lock("b", 2, 50, 59, True) == []
    assert asker.locks.on(Reclaim("a", (row(1, 0, 9, True),))) == [Reclaimed("a", ())]
    assert asker.locks.on(GraceOver()) == [Got(1, False), Got(2, True)]


def test_a_reclaim_tells_what_others_have_meanwhile_and_drops_what_is_not_claimed():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.lock("a", 1, 20, 29, True)
    asker.locks.on(ClientGone("a"))
    asker.lock("b", 2, 5, 6, True)
    assert asker.locks.on(Reclaim("a", (row(1, 0, 9, True), row(1, 20, 29, True)))) == [Reclaimed("a", (row(1, 0, 9, True),))]
    assert asker.lock("b", 2, 25, 25, False, wait=True) == []
    assert asker.locks.on(Reclaim("a", ())) == [Reclaimed("a", ()), Got(4, True)]


def test_a_lock_that_others_had_and_gave_back_meanwhile_is_lost_all_the_same():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.lock("a", 1, 20, 29, False)
    asker.locks.on(ClientGone("a"))
    asker.lock("b", 2, 5, 6, True)
    asker.lock("b", 2, 20, 29, False)
    asker.unlock("b", 2)
    assert asker.locks.on(Reclaim("a", (row(1, 0, 9, True), row(1, 20, 29, False)))) == [Reclaimed("a", (row(1, 0, 9, True),))]
    assert asker.spans("a", 1) == [(20, 29, False)]


def test_nothing_is_kept_of_a_client_that_is_forgotten():
    asker = Asker()
    asker.lock("a", 1, 0, 9, True)
    asker.locks.on(ClientGone("a"))
    asker.locks.on(ClientGone("a", forever=True))
    assert asker.locks.on(Reclaim("a", (row(1, 0, 9, True),))) == [Reclaimed("a", (row(1, 0, 9, True),))]


SIZE = 12
STEP = st.tuples(
    st.sampled_from(["read", "write", "unlock", "gone", "all"]),
    st.sampled_from("ab"),
    st.integers(1, 2),
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE - 1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_locks_are_what_a_map_of_bytes_says(steps):
    asker = Asker()
    bytes_ = [{} for _ in range(SIZE)]  # byte -> {(client, owner): write}
    for what, client, owner, one, other in steps:
        start, end = sorted((one, other))
        me = (client, owner)
        if what in {"read", "write"}:
            write = what == "write"
            free = all(who == me or not (write or theirs) for byte in bytes_[start : end + 1] for who, theirs in byte.items())
            assert asker.lock(client, owner, start, end, write)[0].got is free
            for byte in bytes_[start : end + 1] if free else ():
                byte[me] = write
        elif what == "gone":
            asker.locks.on(ClientGone(client))
            bytes_ = [{who: w for who, w in byte.items() if who[0] != client} for byte in bytes_]
        else:
            asker.unlock(client, owner, start, end, all_of_owner=what == "all")
            for at, byte in enumerate(bytes_):
                if what == "all" or start <= at <= end:
                    byte.pop(me, None)
        rows = asker.locks.rows()
        assert bytes_ == [{(c, r.owner): r.write for c, r in rows if r.start <= at <= r.end} for at in range(SIZE)]
        for c, o in {(c, r.owner) for c, r in rows}:
            spans = asker.spans(c, o)
            assert all(a[1] < b[0] and (a[1] + 1 < b[0] or a[2] != b[2]) for a, b in itertools.pairwise(spans))


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_nobody_waits_for_what_is_free_or_in_a_circle(steps):
    asker = Asker()
    waiting = {}  # request -> (client, owner, row)
    for what, client, owner, one, other in steps:
        start, end = sorted((one, other))
        busy = {(c, r.owner) for c, r in waiting.values()}
        if (client, owner) in busy and what != "gone":
            continue  # it waits: it does nothing else
        if what in {"read", "write"}:
            out = asker.lock(client, owner, start, end, what == "write", wait=True)
            waiting[asker.number] = (client, row(owner, start, end, what == "write"))
        elif what == "gone":
            out = asker.locks.on(ClientGone(client))
            waiting = {request: entry for request, entry in waiting.items() if entry[0] != client}
        else:
            out = asker.unlock(client, owner, start, end, all_of_owner=what == "all")
        for effect in out:
            del waiting[effect.request]
        for c, r in waiting.values():
            assert asker.locks.blocker(c, r) is not None
        holders = {(c, r.owner) for c, r in asker.locks.rows()}
        assert not waiting or holders - {(c, r.owner) for c, r in waiting.values()}, "everybody waits"
