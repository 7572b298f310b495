"""The client's side of leases, event by event."""

from xtreemos.xtreemfs.lease.holder import Holder
from xtreemos.xtreemfs.lease.holder_model import (
    Ask,
    AskFailed,
    Begin,
    Cancel,
    Cleaned,
    Connected,
    Cut,
    End,
    Fail,
    FailDirty,
    Flush,
    Flushed,
    GaveUp,
    Give,
    Go,
    Granted,
    Invalidate,
    Invalidated,
    Opened,
    OpenSession,
    Pin,
    Recalled,
    Released,
    RenewAnswered,
    Reopen,
    Resume,
    SendForget,
    SendRelease,
    SendRenew,
    SessionOver,
    Stale,
    Suspend,
    Through,
    Tick,
)
from xtreemos.xtreemfs.lease.model import LEASE_S, MARGIN_S, RENEW_S, Claim
from xtreemos.xtreemfs.model import Level

NONE, READ, WRITE = Level.NONE, Level.READ, Level.WRITE
F, D = 7, 1


class Driver:
    """A holder with a session, its clock, and the shortest way to say things."""

    def __init__(self):
        self.now = 100.0
        self.holder = Holder(self.now)
        self(Connected())
        self(Opened(self.now))

    def __call__(self, event):
        return self.holder.on(event, self.now)

    def grant(self, level, epoch=0, ino=F):
        return self(Granted(ino, level, epoch))

    def dirty(self, op=90):
        """A write is done under the lease, and not flushed."""
        self(Begin(op, F, WRITE))
        self(End(op, dirty=True))


def go(op, epoch=0, *, direct=False):
    """Go, whatever the generation."""

    class Any(Go, frozen=True):
        def __eq__(self, other):
            return (other.op, other.epoch, other.direct) == (op, epoch, direct)

        __hash__ = None

    return Any(op, epoch, direct, 0)


def release(level, seq=0, *, pin=False, through=NONE, epoch=0, unsure=False, ino=F):
    return SendRelease(ino, level, seq, pin, through, epoch, unsure)


def test_an_operation_waits_for_the_lease_it_needs_and_asks_once():
    client = Driver()
    assert client(Begin(1, F, READ)) == [Ask(F, READ)]
    assert client(Begin(2, F, READ)) == []
    assert client(Granted(F, READ, asked=True)) == [go(1), go(2)]
    assert client.holder.can(F, READ, client.now)
    assert client(Begin(3, F, WRITE)) == [Ask(F, WRITE)]
    assert client(Begin(4, F, READ)) == [go(4)]
    assert client(Granted(F, WRITE, 1, asked=True)) == [go(3, 1)]


def test_a_recall_is_flush_then_invalidate_then_release():
    client = Driver()
    client.grant(WRITE, 1)
    client.dirty()
    assert client(Recalled(5, F, NONE)) == [Flush(F)]
    assert client(Flushed(F)) == [Invalidate(F, NONE)]
    assert client(Invalidated(F)) == [release(NONE, 5, epoch=1)]
    assert client(Released(F)) == []
    assert client.holder.generation(F) == -1


def test_operations_are_served_during_a_recall_until_the_gate_closes_and_then_invalidated_again():
    client = Driver()
    client.grant(READ)
    client(Recalled(5, F, NONE))
    assert client(Begin(1, F, READ)) == [go(1)]
    assert client(Invalidated(F)) == []
    assert client(Begin(2, F, READ)) == []
    assert not client.holder.can(F, READ, client.now)
    assert client(End(1)) == [Invalidate(F, NONE, again=True)]
    assert client(Invalidated(F)) == [release(NONE, 5)]
    assert client(Released(F)) == [Ask(F, READ)]


def test_pages_that_the_invalidation_writes_back_are_taken_and_flushed():
    client = Driver()
    client.grant(WRITE, 1)
    assert client(Recalled(5, F, READ)) == [Invalidate(F, READ)]
    assert client(Begin(1, F, WRITE, writeback=True)) == [go(1, 1)]
    client(End(1, dirty=True))
    assert client(Invalidated(F)) == [Flush(F)]
    assert client(Flushed(F)) == [release(READ, 5, epoch=1)]
    assert client(Begin(2, F, WRITE, writeback=True)) == [Fail(2)]


def test_a_grant_is_good_for_one_operation_although_a_recall_is_on_its_heels():
    client = Driver()
    client(Begin(1, F, WRITE))
    assert client(Granted(F, WRITE, 3, asked=True)) == [go(1, 3)]
    client(Recalled(5, F, NONE))
    assert client(Invalidated(F)) == []
    assert client(End(1, dirty=True)) == [Flush(F)]


def test_names_go_without_the_directory_and_what_began_before_must_end():
    client = Driver()
    client.grant(READ, ino=D)
    client(Begin(1, D, READ))
    assert client(Recalled(5, D, READ, (b"x",))) == [Invalidate(D, READ, (b"x",))]
    assert client(Invalidated(D)) == []
    assert client(Begin(2, D, READ)) == [go(2)]
    assert client(End(1)) == [Invalidate(D, READ, (b"x",), again=True)]
    assert client(Invalidated(D)) == [release(READ, 5, ino=D)]


def test_recalls_that_come_meanwhile_are_the_next_round():
    client = Driver()
    client.grant(READ, ino=D)
    client(Recalled(5, D, READ, (b"x",)))
    assert client(Recalled(6, D, READ, (b"y",))) == []
    assert client(Recalled(7, D, READ, (b"z",))) == []
    client(Invalidated(D))
    assert client(Released(D)) == [Invalidate(D, READ, (b"y", b"z"))]
    assert client(Invalidated(D)) == [release(READ, 7, ino=D)]


def test_a_recall_of_what_we_do_not_have_is_answered_at_once():
    client = Driver()
    assert client(Recalled(5, F, NONE)) == [release(NONE, 5)]


def test_grants_that_cross_a_release_are_void():
    client = Driver()
    client.grant(READ)
    client(Begin(1, F, WRITE))
    client(Recalled(5, F, NONE))
    client(Invalidated(F))
    assert client(Granted(F, WRITE, 1, asked=True)) == []
    assert client.holder.level(F) == NONE
    assert client(Released(F)) == [Ask(F, WRITE)]
    assert client(Granted(F, WRITE, 2, asked=True)) == [go(1, 2)]


def test_grants_that_cross_a_forgetting_are_void():
    client = Driver()
    client.grant(READ)
    assert client(Give((F,))) == [SendForget((F,))]
    client.grant(READ)
    assert client.holder.level(F) == NONE
    client(Released(F))
    client.grant(READ)
    assert client.holder.level(F) == READ


def test_our_own_word_counts_until_the_release_is_answered():
    client = Driver()
    client.grant(WRITE, 4)
    client(Recalled(5, F, READ))
    client(Invalidated(F))
    assert (client.holder.epoch(F), client.holder.word_epoch(F)) == (0, 4)
    client(Released(F))
    assert client.holder.word_epoch(F) == 0


def test_the_session_counts_from_the_sending_of_what_was_answered():
    client = Driver()
    client.grant(READ)
    client.now += RENEW_S
    assert client(Tick()) == [SendRenew()]
    client.now += 5
    client(RenewAnswered(100.0 + RENEW_S))
    client.now = 100.0 + RENEW_S + LEASE_S - MARGIN_S - 0.1
    assert client.holder.can(F, READ, client.now)
    client.now += 0.2
    assert not client.holder.can(F, READ, client.now)
    assert client(Begin(1, F, READ)) == [Suspend()]
    assert client.holder.valid_s(client.now) == 0


def test_within_the_lease_a_cut_changes_nothing_and_everything_is_claimed():
    client = Driver()
    client.grant(WRITE, 2)
    client.dirty()
    client(Cut())
    assert client(Begin(1, F, READ)) == [go(1, 2)]
    client(Pin(F, on=True))
    assert client(Connected()) == [OpenSession((Claim(F, WRITE, 2, pin=True),))]
    assert client(Opened(client.now)) == []


def test_what_was_lost_is_told_dropped_and_asked_anew_afterwards():
    client = Driver()
    client.grant(WRITE, 2)
    client.dirty()
    before = client.holder.generation(F)
    client.now += LEASE_S
    assert client(Tick()) == [Suspend(), SendRenew()]
    assert client(SessionOver()) == [Reopen()]
    assert client(Begin(1, F, WRITE)) == []
    client(Connected())
    assert client(Opened(client.now, (F,))) == [FailDirty(F), Resume(), Invalidate(F, NONE)]
    assert client(Invalidated(F)) == [Ask(F, WRITE)]
    assert client.holder.generation(F) != before


def test_what_an_operation_wrote_under_a_lost_lease_is_void():
    client = Driver()
    client.grant(WRITE, 2)
    client(Begin(1, F, WRITE))
    client(Cut())
    client(Connected())
    client(Opened(client.now, (F,)))
    assert FailDirty(F) in client(End(1, dirty=True))


def test_a_release_that_may_be_lost_is_claimed_and_repeated():
    client = Driver()
    client.grant(WRITE, 2)
    client(Recalled(5, F, NONE))
    client(Invalidated(F))
    client(Cut())
    assert client(Connected()) == [OpenSession((Claim(F, WRITE, 2),))]
    assert client(Opened(client.now)) == [release(NONE, epoch=2)]


def test_a_renewal_answered_late_resumes_without_a_new_session():
    client = Driver()
    client.now += LEASE_S - MARGIN_S
    assert Suspend() in client(Tick())
    assert client(RenewAnswered(client.now - 2)) == [Resume()]


def test_a_session_that_the_mrc_ends_before_its_time_is_told_from_one_that_has_run_out():
    client = Driver()
    assert Suspend(early=True) in client(SessionOver())
    client = Driver()
    client.now += LEASE_S - MARGIN_S
    assert Suspend(early=False) in client(SessionOver())


def test_an_osd_that_saw_a_larger_epoch_means_the_lease_is_lost():
    client = Driver()
    client.grant(WRITE, 2)
    client.dirty()
    assert client(Stale(F, 1)) == []
    assert client(Stale(F, 2)) == [FailDirty(F), Invalidate(F, NONE)]


def test_one_who_gives_up_writing_gives_everything_back_and_is_fenced():
    client = Driver()
    client.grant(WRITE, 2)
    client.dirty()
    client(Recalled(5, F, READ))
    assert client(Flushed(F, ok=False)) == [FailDirty(F), Invalidate(F, NONE)]
    assert client(Invalidated(F)) == [release(NONE, 5, epoch=2, unsure=True)]
    client(Released(F))
    client.grant(WRITE, 3)
    assert client(GaveUp(F)) == [FailDirty(F), Invalidate(F, NONE)]


def test_a_failed_ask_fails_those_who_wait_for_it():
    client = Driver()
    client(Begin(1, F, WRITE))
    assert client(AskFailed(F)) == [Fail(1)]
    client(Begin(2, F, READ))
    assert client(Granted(F, NONE, asked=True)) == [Fail(2)]


def test_who_gives_up_waiting_is_not_told_go():
    client = Driver()
    client(Begin(1, F, READ))
    client(Cancel(1))
    assert client(Granted(F, READ, asked=True)) == []


def test_a_pin_is_told_with_the_last_level_and_its_end_by_itself():
    client = Driver()
    client.grant(READ)
    assert client(Pin(F, on=True)) == []
    assert client(Give((F,))) == []
    client(Recalled(5, F, NONE))
    assert client(Invalidated(F)) == [release(NONE, 5, pin=True)]
    client(Released(F))
    assert client(Pin(F, on=False)) == [release(NONE)]


def test_direct_use_is_declared_and_survives_a_recall():
    client = Driver()
    client.grant(WRITE, 1)
    client(Begin(1, F, WRITE))
    assert client(Through(F, WRITE)) == [release(WRITE, through=WRITE, epoch=1)]
    client(Released(F))
    client(End(1))
    client(Recalled(5, F, NONE))
    assert client(Invalidated(F)) == [release(NONE, 5, through=WRITE, epoch=1)]
    client(Released(F))
    assert client(Through(F, NONE)) == [release(NONE)]


def test_a_writer_that_is_watched_writes_through_until_its_lease_goes_or_nobody_watches_any_more():
    client = Driver()
    client(Granted(F, WRITE, 1, watched=True))
    assert client.holder.writes_through(F)
    client(Granted(F, WRITE, 1))
    assert not client.holder.writes_through(F)
    client(Granted(F, WRITE, 1, watched=True))
    assert not client.holder.writes_through(F)  # nobody begins to watch under our lease: an answer that was overtaken
    client(Recalled(5, F, NONE))
    client(Invalidated(F))
    client(Released(F))
    client(Granted(F, WRITE, 2, watched=True))
    assert client.holder.writes_through(F)


def test_direct_use_is_agreed_when_the_mrc_has_answered_that_very_release():
    client = Driver()
    client.grant(READ)
    client(Begin(1, F, READ))
    client(Through(F, READ))
    assert not client.holder.is_agreed(F, READ)
    client(Released(F))
    assert client.holder.is_agreed(F, READ)
    client(Through(F, NONE))
    assert not client.holder.is_agreed(F, NONE)
    client(Cut())
    client(Connected())
    client(Opened(client.now))
    client(Released(F))
    assert client.holder.is_agreed(F, NONE)


def test_without_a_lease_operations_go_to_the_osds_until_that_is_recalled():
    client = Driver()
    client(Begin(1, F, WRITE))
    assert client(Granted(F, NONE, 4, WRITE, asked=True)) == [go(1, 4, direct=True)]
    assert client(Begin(2, F, READ)) == [go(2, 4, direct=True)]
    client(End(2))
    client(Recalled(5, F, NONE))
    assert client(Invalidated(F)) == []
    assert client(Begin(3, F, READ)) == []
    assert client(End(1)) == [Invalidate(F, NONE, again=True)]
    assert client(Invalidated(F)) == [release(NONE, 5)]


def test_what_the_driver_wrote_by_itself_is_not_flushed_again():
    client = Driver()
    client.grant(WRITE, 1)
    client.dirty()
    client(Cleaned(F))
    assert client(Recalled(5, F, NONE)) == [Invalidate(F, NONE)]
