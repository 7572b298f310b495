"""The MRC's lease table, event by event."""

import pytest

from xtreemos.xtreemfs.lease import model, queues
from xtreemos.xtreemfs.lease.model import LAPSED_S, LEASE_S, RECALL_ANSWER_S, Claim, Give, Given, How, Need
from xtreemos.xtreemfs.lease.table import Table
from xtreemos.xtreemfs.lease.table_model import (
    Again,
    Allowed,
    Answer,
    Ask,
    Close,
    Cut,
    Done,
    Drop,
    Fence,
    Fenced,
    Forget,
    Forgotten,
    GraceOver,
    Lapsed,
    NoSession,
    Open,
    Opened,
    Orphan,
    Proceed,
    Refuse,
    Release,
    Renew,
    Renewed,
    SendRecall,
    ThroughGone,
    Tick,
    Unused,
    Withdraw,
    Writer,
)
from xtreemos.xtreemfs.model import Level

NONE, READ, WRITE = Level.NONE, Level.READ, Level.WRITE
F, G, D = 7, 8, 1


class Driver:
    """A table, its clock, and the shortest way to say things."""

    def __init__(self, *clients, **options):
        self.now = 0.0
        self.table = Table(0.0, **options)
        self.ops = 0
        self.epochs = {}
        for client in clients:
            self(Open(client))

    def __call__(self, event):
        return self.table.on(event, self.now)

    def ask(self, client, *needs):
        self.ops += 1
        return self(Ask(self.ops, client, needs))

    def write(self, client, ino=F):
        """Get WRITE; nobody may be in the way."""
        (proceed,) = self.ask(client, Need(ino, How.ALONE))
        assert isinstance(proceed, Proceed)
        return self.give_write(proceed, ino)

    def give_write(self, proceed, ino=F):
        self.epochs[ino] = self.epochs.get(ino, 0) + 1
        return self(Done(proceed.op, (Give(ino, WRITE, self.epochs[ino]),)))

    def read(self, client, ino=F):
        (proceed,) = self.ask(client, Need(ino, How.READ))
        return self(Done(proceed.op, (Give(ino, READ),)))

    def pass_time(self, seconds, *alive):
        """Let time pass while these clients renew."""
        out = []
        for _ in range(int(seconds)):
            self.now += 1.0
            for client in alive:
                out += [effect for effect in self(Renew(client)) if not isinstance(effect, Renewed)]
            out += self(Tick())
        return out


def test_readers_share_and_a_writer_waits_for_their_answers():
    mrc = Driver("a", "b", "c")
    mrc.read("a")
    mrc.read("b")
    recalls = mrc.ask("c", Need(F, How.ALONE))
    assert recalls == [SendRecall("a", 1, F, NONE, ()), SendRecall("b", 2, F, NONE, ())]
    assert mrc(Release("a", F, NONE, 1)) == []
    (proceed,) = mrc(Release("b", F, NONE, 2))
    assert proceed == Proceed(3, (Allowed(F, WRITE, shared=False, fresh=True, epoch=0),))
    assert mrc.give_write(proceed) == [Answer(3, (Given(F, WRITE, 1),))]


def test_a_writer_stays_a_reader_when_somebody_only_reads():
    mrc = Driver("a", "b")
    mrc.write("a")
    assert mrc.ask("b", Need(F, How.READ)) == [SendRecall("a", 1, F, READ, ())]
    mrc(Release("a", F, READ, 1))
    assert mrc.table.held("a", F).level == READ


def test_epochs_only_grow():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.ALONE))
    (proceed,) = mrc(Release("a", F, READ, 0)) or mrc(Release("a", F, NONE, 1))
    mrc(Done(proceed.op, (Give(F, WRITE, 5),)))
    with pytest.raises(AssertionError, match="not allowed"):
        mrc(Done(mrc.ask("b", Need(G, How.READ))[0].op, (Give(G, WRITE, 4),)))


def test_what_the_askers_own_lease_covers_overtakes_those_who_wait_for_it():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.ALONE))
    assert mrc.ask("a", Need(F, How.ALONE)) == [Proceed(3, (Allowed(F, WRITE, shared=False, fresh=False, epoch=1),))]


def test_an_operation_waits_for_every_earlier_one_it_conflicts_with():
    mrc = Driver("a", "b", "c", "d")
    mrc.write("a", F)
    mrc.write("b", G)
    assert mrc.ask("c", Need(F, How.ALONE), Need(G, How.ALONE)) == [
        SendRecall("a", 1, F, NONE, ()),
        SendRecall("b", 2, G, NONE, ()),
    ]
    assert mrc.ask("d", Need(G, How.READ)) == []
    assert mrc(Release("b", G, NONE, 2)) == []
    (proceed,) = mrc(Release("a", F, NONE, 1))
    assert proceed.op == 3
    assert mrc(Done(3)) == [Answer(3, ()), Proceed(4, (Allowed(G, READ, shared=False, fresh=False, epoch=0),))]


def test_an_operation_that_finds_other_inodes_keeps_its_place():
    mrc = Driver("a", "b", "c")
    mrc.read("a", G)
    (proceed,) = mrc.ask("b", Need(F, How.ALONE))
    assert mrc.ask("c", Need(G, How.ALONE)) == [SendRecall("a", 1, G, NONE, ())]
    assert mrc(Again(proceed.op, (Need(G, How.ALONE),))) == []
    (first,) = mrc(Release("a", G, NONE, 1))
    assert first.op == proceed.op


def test_names_are_recalled_without_the_directory():
    mrc = Driver("a", "b")
    assert mrc.table.glance("a", D, 0.0).level == READ
    assert mrc.table.glance("b", D, 0.0).level == READ
    assert mrc.ask("b", Need(D, How.NAMES, (b"x",))) == [SendRecall("a", 1, D, READ, (b"x",))]
    assert mrc.table.held("a", D) == Given(D, READ, cache=False)
    assert not mrc.table.name_free("a", D, b"x")
    assert mrc.table.name_free("a", D, b"y")
    assert mrc.table.name_free("b", D, b"x")
    (proceed,) = mrc(Release("a", D, READ, 1))
    assert mrc(Done(proceed.op, (Give(D), Give(F, WRITE, 1)))) == [Answer(1, (Given(D, READ), Given(F, WRITE, 1)))]
    assert mrc.table.held("a", D) == Given(D, READ)


def test_changes_of_different_names_do_not_wait_for_each_other():
    mrc = Driver("a", "b", "c")
    for client in "abc":
        mrc.table.glance(client, D, 0.0)
    mrc.ask("a", Need(D, How.NAMES, (b"x",)))
    assert [effect.client for effect in mrc.ask("b", Need(D, How.NAMES, (b"y",)))] == ["a", "c"]


def test_a_glance_never_waits_and_grants_nothing_that_others_wait_to_change():
    mrc = Driver("a", "b", "c")
    mrc.write("a")
    assert mrc.table.glance("b", F, 0.0) == Given(F, NONE)
    mrc.table.glance("a", D, 0.0)
    mrc.ask("b", Need(D, How.ALONE))
    assert mrc.table.glance("c", D, 0.0) == Given(D, NONE, cache=False)
    assert mrc.table.glance("a", D, 0.0) == Given(D, READ, cache=False)


def test_an_expired_reader_is_passed_over_and_told_when_it_is_back():
    mrc = Driver("a", "b")
    mrc.read("a")
    mrc.read("a", G)
    mrc.ask("b", Need(F, How.ALONE))
    mrc(Cut("a"))
    out = mrc.pass_time(LEASE_S + 1, "b")
    assert out[:2] == [Lapsed("a"), Proceed(3, (Allowed(F, WRITE, shared=False, fresh=True, epoch=0),))]
    mrc.give_write(out[1])
    assert mrc(Open("a", (Claim(F, READ), Claim(G, READ)))) == [Opened("a", True, (F,))]
    assert mrc.table.held("a", G).level == READ


def test_an_expired_writer_is_fenced_before_others_proceed():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc(Cut("a"))
    mrc.pass_time(LEASE_S + 1, "b")
    assert mrc.ask("b", Need(F, How.READ)) == [Fence(F, "a", 1, through=False)]
    (proceed,) = mrc(Fenced(F))
    assert isinstance(proceed, Proceed)
    assert mrc(Open("a", (Claim(F, WRITE, 1),)))[0].lost == (F,)


def test_what_nobody_wanted_of_an_expired_session_is_still_there_until_it_is_forgotten():
    mrc = Driver("a")
    mrc.write("a")
    mrc(Cut("a"))
    mrc.now = LEASE_S + 5
    assert mrc(Tick()) == [Lapsed("a")]
    assert mrc(Open("a", (Claim(F, WRITE, 1),))) == [Opened("a", True, ())]
    mrc(Cut("a"))
    mrc.now += LEASE_S
    mrc(Tick())
    mrc.now += LAPSED_S
    assert mrc(Tick()) == [Fence(F, "a", 1, through=False), Forgotten("a")]


def test_within_the_lease_a_cut_connection_changes_nothing_and_recalls_are_asked_again():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.READ))
    mrc(Cut("a"))
    out = mrc(Open("a", (Claim(F, WRITE, 1),)))
    assert out == [Opened("a", False, ()), SendRecall("a", 2, F, READ, ())]


def test_a_process_that_goes_on_for_a_killed_one_keeps_its_pins_and_its_leases_are_taken_like_expired_ones():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("a", Need(G, How.READ))
    assert mrc(Orphan(F)) == []
    mrc(Cut("a"))
    out = mrc(Open("a", (Claim(F, NONE, pin=True),), anew=True))
    assert out == [Fence(F, "a", 1, through=False), Opened("a", True, ())]
    assert mrc.ask("b", Need(F, How.READ)) == [], "it waits for the fence"
    assert isinstance(mrc(Fenced(F))[0], Proceed)
    assert isinstance(mrc.ask("b", Need(G, How.ALONE))[0], Proceed), "what was only read is free at once"
    assert Unused(F) in [*mrc(Forget("b", (F,))), *mrc(Release("a", F, NONE, 0, pin=False)), *mrc(Forget("b", (F,)))]


def test_a_grant_whose_answer_was_lost_is_nobodys():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc(Cut("a"))
    assert mrc(Open("a")) == [Opened("a", False, ())]
    assert isinstance(mrc.ask("b", Need(F, How.ALONE))[0], Proceed)


def test_requests_of_a_cut_connection_are_dropped():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.ALONE))
    mrc(Cut("b"))
    assert mrc(Release("a", F, NONE, 1)) == []
    assert mrc(Drop(2)) == []


def test_a_client_that_renews_but_does_not_answer_ends_up_as_if_cut_off():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.ALONE))
    out = mrc.pass_time(RECALL_ANSWER_S + LEASE_S + 2, "a", "b")
    assert NoSession("a") in out
    assert out.index(NoSession("a")) < out.index(Lapsed("a")) < out.index(Fence(F, "a", 1, through=False))


def test_after_a_restart_changes_wait_until_all_are_back():
    mrc = Driver(sessions=("a", "b"), writers=(Writer(F, "a", 3),))
    mrc(Open("b", (Claim(G, READ),)))
    assert isinstance(mrc.ask("b", Need(G, How.READ))[0], Proceed)
    assert mrc.ask("b", Need(9, How.ALONE)) == []
    assert mrc.ask("b", Need(F, How.READ)) == []
    out = mrc(Open("a", (Claim(F, WRITE, 3),)))
    assert out[0] == Opened("a", False, ())
    assert out[1:] == [
        SendRecall("a", 1, F, READ, ()),
        GraceOver(),
        Proceed(2, (Allowed(9, WRITE, shared=False, fresh=True, epoch=0),)),
    ]


def test_after_a_restart_a_writer_that_stays_away_is_fenced():
    mrc = Driver(sessions=("a", "b"), writers=(Writer(F, "a", 3),))
    mrc(Open("b"))
    mrc.ask("b", Need(F, How.READ))
    out = mrc.pass_time(LEASE_S + 1, "b")
    assert out == [Lapsed("a"), Fence(F, "a", 3, through=False), GraceOver()]


def test_a_fence_that_was_under_way_is_taken_up_again():
    mrc = Driver(writers=(Writer(F, "", 3),))
    assert mrc(Tick()) == [Fence(F, "", 3, through=False)]
    mrc(Open("b"))
    assert mrc.ask("b", Need(F, How.READ)) == []
    assert isinstance(mrc(Fenced(F))[0], Proceed)


def test_a_client_of_whom_nobody_knew_gets_nothing_back():
    mrc = Driver("a", sessions=("z",))
    assert mrc(Open("x", (Claim(F, READ), Claim(G, NONE, pin=True)))) == [Opened("x", True, (F,))]
    assert mrc.table.in_use(G)


def test_direct_use_of_the_osds_file_makes_everybody_go_to_the_osd():
    mrc = Driver("a", "b", "c")
    mrc.write("a")
    mrc(Release("a", F, WRITE, 0, through=WRITE))
    mrc.ask("b", Need(F, How.READ))
    (proceed,) = mrc(Release("a", F, NONE, 1, through=WRITE))
    assert proceed.allowed[0].shared
    assert mrc(Done(proceed.op, (Give(F, NONE, 0, READ),))) == [Answer(2, (Given(F, NONE, 0, shared=READ),))]
    (proceed,) = mrc.ask("c", Need(F, How.ALONE))
    assert proceed.allowed == (Allowed(F, NONE, shared=True, fresh=True, epoch=0),)
    mrc(Done(proceed.op, (Give(F, NONE, 2, WRITE),)))
    (proceed,) = mrc.ask("b", Need(F, How.ALONE))
    assert proceed.allowed == (Allowed(F, NONE, shared=True, fresh=False, epoch=2),)


def test_when_direct_use_has_ended_sharing_is_recalled_and_the_size_is_asked_before_a_lease():
    mrc = Driver("a", "b", "c")
    mrc.write("a")
    mrc(Release("a", F, WRITE, 0, through=WRITE))
    mrc.ask("b", Need(F, How.ALONE))
    (proceed,) = mrc(Release("a", F, NONE, 1, through=WRITE))
    mrc(Done(proceed.op, (Give(F, NONE, 2, WRITE),)))
    mrc(Release("a", F, NONE, 0))
    assert mrc.ask("c", Need(F, How.READ)) == [SendRecall("b", 2, F, NONE, ())]
    assert mrc(Release("b", F, NONE, 2)) == [Fence(F, "", 0, through=False)]
    assert mrc(Fenced(F)) == [Proceed(3, (Allowed(F, READ, shared=False, fresh=False, epoch=0),))]


def test_a_kernel_that_reads_the_osds_file_is_in_no_writers_way_but_they_are_told_to_write_through():
    mrc = Driver("a", "b", "c")
    mrc.read("a")
    mrc(Release("a", F, READ, 0, through=READ))
    mrc.ask("b", Need(F, How.ALONE))
    (proceed,) = mrc(Release("a", F, NONE, 1, through=READ))
    assert proceed.allowed == (Allowed(F, WRITE, shared=False, fresh=True, epoch=0),)
    assert mrc(Done(proceed.op, (Give(F, WRITE, 1),))) == [Answer(2, (Given(F, WRITE, 1, watched=True),))]
    mrc(Release("a", F, NONE, 0))
    assert not mrc.table.held("b", F).watched
    (proceed,) = mrc.ask("b", Need(F, How.ALONE))
    assert mrc(Done(proceed.op, (Give(F, WRITE, 1),))) == [Answer(3, (Given(F, WRITE, 1),))]


def test_a_writer_is_asked_back_when_a_kernel_turns_out_to_have_the_osds_file_all_along():
    mrc = Driver("b", sessions=("a",))
    mrc.pass_time(LEASE_S + 1, "b")
    mrc.write("b")
    out = mrc(Open("a", (Claim(F, READ, through=READ),)))
    assert [effect for effect in out if isinstance(effect, SendRecall)] == [SendRecall("b", 1, F, NONE, ())]


def test_direct_use_by_an_evicted_client_stays_until_its_end_is_certain():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc(Release("a", F, WRITE, 0, through=WRITE))
    mrc(Cut("a"))
    mrc.pass_time(LEASE_S + 1, "b")
    assert mrc.ask("b", Need(F, How.READ)) == [Fence(F, "a", 1, through=True)]
    (proceed,) = mrc(Fenced(F))
    assert proceed.allowed[0].shared
    mrc(Done(proceed.op))
    assert mrc(ThroughGone("a", F)) == [Fence(F, "", 0, through=False)]
    mrc(Fenced(F))
    assert not mrc.ask("b", Need(F, How.READ))[0].allowed[0].shared


def test_writes_that_were_given_up_are_fenced():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.READ))
    assert mrc(Release("a", F, NONE, 1, unsure=True)) == [Fence(F, "a", 1, through=False)]
    assert isinstance(mrc(Fenced(F))[0], Proceed)


def test_an_orphan_lives_while_somebody_has_it_open():
    mrc = Driver("a", "b")
    mrc.read("a")
    mrc.ask("b", Need(F, How.ALONE))
    (proceed,) = mrc(Release("a", F, NONE, 1, pin=True))
    mrc(Done(proceed.op))
    assert mrc(Orphan(F)) == []
    assert mrc.table.in_use(F)
    assert mrc(Release("a", F, NONE)) == [Unused(F)]
    assert mrc(Orphan(G)) == [Unused(G)]


def test_forgetting_touches_only_plain_reading_leases():
    mrc = Driver("a")
    mrc.read("a", F)
    mrc.write("a", G)
    mrc(Forget("a", (F, G, 99)))
    assert (mrc.table.held("a", F).level, mrc.table.held("a", G).level) == (NONE, WRITE)
    assert mrc.table.statistics().inodes == 1


def test_closing_gives_everything_to_others_at_once():
    mrc = Driver("a", "b")
    mrc.write("a")
    mrc.ask("b", Need(F, How.READ))
    out = mrc(Close("a"))
    assert out == [Lapsed("a"), Fence(F, "a", 1, through=False), Forgotten("a")]
    assert isinstance(mrc(Fenced(F))[0], Proceed)


def test_nothing_is_done_for_a_session_that_is_over():
    mrc = Driver("a")
    mrc.now = LEASE_S
    assert mrc.ask("a", Need(F, How.READ)) == [Lapsed("a"), NoSession("a", 1)]
    assert mrc.table.glance("a", F, mrc.now) == Given(F, NONE, cache=False)
    assert mrc(Renew("a")) == [NoSession("a")]


def test_bounds_are_kept(monkeypatch):
    monkeypatch.setattr(queues, "OPS_PER_CLIENT_MAX", 2)
    monkeypatch.setattr("xtreemos.xtreemfs.lease.table.LEASES_PER_CLIENT_MAX", 3)
    mrc = Driver("a", "b")
    mrc.write("a")
    assert [mrc.ask("b", Need(F, How.ALONE)) for _ in range(3)][2] == [Refuse(4)]
    for ino in range(20, 24):
        mrc.table.glance("b", ino, 0.0)
    assert mrc(Tick()) == [SendRecall("b", 2, 20, NONE, ())]
    assert model.LEASES_PER_CLIENT_MAX > 3


def test_nothing_is_kept_of_what_nobody_has():
    mrc = Driver("a", "b")
    mrc.read("a")
    mrc(Release("a", F, NONE))
    mrc.table.held("b", G)
    assert mrc.table.statistics().inodes == 0


def test_the_right_to_write_is_withdrawn_from_whoever_has_it_and_may_be_asked_for_anew():
    mrc = Driver("a", "b")
    mrc.write("a", F)
    mrc.read("b", G)
    (recall,) = mrc(Withdraw((F, G, D)))
    assert (recall.client, recall.ino, recall.level) == ("a", F, READ)
    assert mrc(Withdraw((F,))) == [], "it was asked already"
    assert mrc.table.is_written(F, mrc.epochs[F])
    mrc(Release("a", F, READ, recall.seq))
    assert not mrc.table.is_written(F, mrc.epochs[F])
    mrc.write("a", F)
    assert not mrc.table.is_written(F, mrc.epochs[F] - 1), "a new lease is not what was withdrawn"


def test_the_right_to_write_is_withdrawn_from_a_lapsed_client_by_a_fence():
    mrc = Driver("a", "b")
    mrc.write("a", F)
    mrc.pass_time(LEASE_S + 1, "b")
    (fence,) = mrc(Withdraw((F,)))
    assert (fence.ino, fence.client) == (F, "a")
    assert mrc.table.is_written(F, mrc.epochs[F])
    mrc(Fenced(F))
    assert not mrc.table.is_written(F, mrc.epochs[F])
