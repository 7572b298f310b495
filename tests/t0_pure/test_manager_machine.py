"""The manager of detached jobs, decided in pure code: placement, leases, refusals, questions, and what a successor folds."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtreemos import names
from xtreemos.aem.jobspec import BadSpec, JobSpec
from xtreemos.aem.manager import model
from xtreemos.aem.manager.events import Answered, AnswerNode, AnswerUser, Asked, Reported, SendOrders, SendSignal, Settle, Submitted
from xtreemos.aem.manager.machine import Machine
from xtreemos.aem.manager.model import Answer, Capacity, Cause, Ended, Live, OrdersReply, Query, Report, Said, State
from xtreemos.aem.manager.placement import FairQueue, Job


def job_name(number):
    return names.job_id(number.to_bytes(8, "little"))


def matches(where, facts):
    if where == "((":
        raise BadSpec("the query is not clear")
    return facts.get("tag") == where


class Bench:
    """A machine with the log that its driver would write, and a clock."""

    def __init__(self):
        self.now_s = 100.0
        self.rows = {}
        self.records = {}
        self.machine = self.make(1)
        self.clocks = {}

    def make(self, epoch, seq=0):
        live = {job: self.records[job] for job, row in self.rows.items() if row.state is not State.ENDED}
        return Machine(epoch=epoch, seq=seq, rows=self.rows.values(), records=live, matches=matches, now_s=self.now_s, gone_s=3600)

    def on(self, *events):
        sent = []
        for event in (*events, Settle()):
            step = self.machine.on(event, self.now_s)
            self.rows.update((row.job, row) for row in step.rows)
            for job in step.forget:
                del self.rows[job]
            sent += step.send
        return sent

    def submit(self, number, **fields):
        spec = JobSpec(job=job_name(number), vo="demo", user=fields.pop("user", "alice"), argv=["true"], detached=True, **fields)
        self.records[spec.job] = (spec, b"record")
        return self.on(Submitted(number, spec.user, spec.job, b"record", spec))

    def beat(self, node="n1", *, slots=4, live=(), ended=(), store="s1", facts=None, **more):
        self.clocks[node] = self.clocks.get(node, 0) + 1
        report = Report(
            node=node, store=store, clock_id="boot", clock_s=self.clocks[node], capacity=Capacity(slots, 8, 8 << 30),
            live=[Live(*one) for one in live], ended=list(ended), facts=facts or {"tag": node}, **more,
        )  # fmt: skip
        return self.on(Reported(report, "reply"))

    def ask(self, method, user="alice", admin=False, after_seq=0, **params):
        return self.on(Asked(user, admin, Query(method=method, params=params, after_seq=after_seq), "user"))

    def row(self, number):
        return self.rows[job_name(number)]

    def wait(self, seconds):
        self.now_s += seconds
        return self.on()


def orders_of(sent):
    return [effect.orders for effect in sent if isinstance(effect, SendOrders)]


def answer_of(sent):
    (answer,) = [effect.message for effect in sent if isinstance(effect, AnswerUser)]
    return answer


def accept(bench, node="n1", *numbers, said=Said.ACCEPTED, attempt=1, reason=""):
    answers = [Answer(job_name(n), attempt, said, reason) for n in numbers]
    return bench.on(Answered(node, OrdersReply(1, valid=True, answers=answers)))


def test_a_job_runs_on_a_node_with_room_and_ends_once():
    bench = Bench()
    bench.beat()
    (orders,) = orders_of(bench.submit(1))
    assert [(s.job, s.attempt, s.record) for s in orders.starts] == [(job_name(1), 1, b"record")]
    assert bench.row(1).state is State.PLACED
    accept(bench, "n1", 1)
    end = Ended(job_name(1), 1, Cause.EXITED, "", {"code": 3})
    (reply,) = [e for e in bench.beat(ended=[end]) if isinstance(e, AnswerNode)]
    assert reply.message.acks == [(job_name(1), 1)]
    assert (bench.row(1).state, bench.row(1).exit) == (State.ENDED, {"code": 3})
    before = bench.row(1)
    bench.beat(ended=[Ended(job_name(1), 1, Cause.EXITED, "", {"code": 0})])
    assert bench.row(1) == before


def test_a_submission_read_twice_counts_once():
    bench = Bench()
    bench.submit(1)
    bench.submit(1)
    assert len(bench.rows) == 1
    spec, record = bench.records[job_name(1)]
    bench.on(Submitted(2, "alice", job_name(1), record, spec))
    assert bench.machine.statistics()["jobs"] == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"where": "gpu"}, "waiting: no node matches gpu"),
        ({"cpus": 64}, "waiting: no node matches cpus>=64"),
        ({"node": "n9"}, "waiting: node n9 is not here, or is too small"),
        ({"where": "n1", "memory_bytes": 1 << 40}, "waiting: no node matches n1 and memory>=1048576M"),
    ],
)
def test_a_job_that_fits_nowhere_waits_and_says_why(fields, reason):
    bench = Bench()
    bench.beat()
    bench.submit(1, **fields)
    (view,) = answer_of(bench.ask("list")).result["jobs"]
    assert (view["state"], view["reason"]) == ("queued", reason)


def test_a_query_that_cannot_be_read_rejects_the_job_with_the_reason():
    bench = Bench()
    bench.submit(1, where="((")
    assert (bench.row(1).outcome, bench.row(1).reason) == (model.Outcome.REJECTED, "the query is not clear")


def test_a_full_node_makes_the_job_wait_and_an_end_makes_room():
    bench = Bench()
    bench.beat(slots=1)
    bench.submit(1)
    bench.submit(2)
    (view,) = answer_of(bench.ask("status", jobs=[job_name(2)])).result["jobs"]
    assert view["reason"] == "waiting: the only node that matches is full"
    bench.on(Answered("n1", OrdersReply(1, valid=True)))
    sent = bench.beat(slots=1, ended=[Ended(job_name(1), 1, Cause.EXITED, "", {"code": 0})])
    assert [s.job for o in orders_of(sent) for s in o.starts] == [job_name(2)]


def test_a_node_that_refuses_is_not_asked_again_soon_and_another_is():
    bench = Bench()
    bench.beat("n1", slots=9)
    bench.submit(1)
    bench.beat("n2")
    sent = accept(bench, "n1", 1, said=Said.REFUSED, reason="no guests at night")
    assert [e.node for e in sent if isinstance(e, SendOrders)] == ["n2"]
    assert bench.row(1).attempt == 2
    accept(bench, "n2", 1, said=Said.REFUSED, attempt=2, reason="nor here")
    (view,) = answer_of(bench.ask("list")).result["jobs"]
    assert view["reason"] == "waiting: refused by n1: no guests at night; n2: nor here"
    for _ in range(20):
        bench.now_s += 2
        bench.beat("n1")
        bench.beat("n2")
    assert bench.row(1).state is State.PLACED


def test_users_take_turns():
    queue, taken = FairQueue(), []
    for number in range(5):
        queue.add(Job(model.Row(job=f"a{number}", user="alice", seq=number, name="")))
    queue.add(Job(model.Row(job="b0", user="bob", seq=9, name="")))
    for job, _node in queue.place(lambda _job: object() if len(taken) < 3 else "full"):
        taken.append(job.row.job)
    assert taken == ["a0", "b0", "a1"]
    assert len(queue) == 3


def test_a_silent_node_keeps_a_job_without_retry_for_ever_as_away():
    bench = Bench()
    bench.beat()
    bench.submit(1)
    accept(bench, "n1", 1)
    bench.beat("n2")
    bench.wait(model.LEASE_S + model.LEASE_MARGIN_S + 10)
    bench.beat("n2")
    assert (bench.row(1).state, bench.row(1).node) == (State.PLACED, "n1")
    (view,) = answer_of(bench.ask("list")).result["jobs"]
    assert view["state"] == "away"
    bench.wait(3600)
    assert (bench.row(1).outcome, bench.row(1).reason) == (model.Outcome.LOST, "node n1 has been away for 1 h")


def test_a_leased_job_starts_elsewhere_only_after_lease_and_margin():
    bench = Bench()
    bench.beat()
    bench.submit(1, retry=1)
    accept(bench, "n1", 1)
    bench.now_s += model.LEASE_S + model.LEASE_MARGIN_S - 0.6
    bench.beat("n2")
    assert bench.row(1).node == "n1"
    bench.now_s += 0.7
    bench.beat("n2")
    assert (bench.row(1).node, bench.row(1).attempt, bench.row(1).losses) == ("n2", 2, 1)
    sent = bench.beat("n1", live=[(job_name(1), 1)])  # healed: what it still holds is killed
    assert [(k.job, k.attempt, k.signal) for o in orders_of(sent) for k in o.kills] == [(job_name(1), 1, 9)]


def test_a_new_manager_counts_the_lease_from_its_take_over():
    bench = Bench()
    bench.beat()
    bench.submit(1, retry=1)
    bench.now_s += model.LEASE_S + model.LEASE_MARGIN_S - 1
    bench.machine = bench.make(2, seq=1)
    bench.now_s += 5
    bench.beat("n2")
    assert bench.row(1).node == "n1"
    bench.now_s += model.LEASE_S + model.LEASE_MARGIN_S
    bench.beat("n2")
    assert bench.row(1).node == "n2"


def test_a_node_set_up_anew_loses_its_jobs():
    bench = Bench()
    bench.beat()
    bench.submit(1)
    bench.submit(2, retry=1)
    bench.beat(store="s2")
    assert (bench.row(1).outcome, bench.row(1).reason) == (model.Outcome.LOST, "node n1 was set up anew and forgot it")
    assert (bench.row(2).attempt, bench.row(2).store) == (2, "s2")


def test_an_order_that_got_no_answer_is_sent_again_under_the_same_number():
    bench = Bench()
    bench.beat()
    (first,) = orders_of(bench.submit(1))
    bench.on(Answered("n1", None))
    assert orders_of(bench.beat()) == []
    bench.now_s += model.RESEND_S
    (second,) = orders_of(bench.beat())
    assert [(s.job, s.attempt) for s in second.starts] == [(s.job, s.attempt) for s in first.starts]


def test_a_report_overtaken_by_a_later_one_changes_nothing():
    bench = Bench()
    bench.clocks["n1"] = 50
    bench.beat()
    bench.clocks["n1"] = 10
    assert bench.beat(slots=0) == []


def test_a_kill_of_a_waiting_job_ends_it_and_of_a_running_one_is_repeated_until_it_ended():
    bench = Bench()
    bench.submit(1)
    assert answer_of(bench.ask("kill", job=job_name(1), signal=15)).result["outcome"] == "killed"
    bench.beat()
    bench.submit(2)
    accept(bench, "n1", 2)
    sent = bench.ask("kill", job=job_name(2), signal=9)
    assert bench.row(2).cancelled
    for _ in range(3):
        assert [k.job for o in orders_of(sent) for k in o.kills] == [job_name(2)]
        bench.on(Answered("n1", None))
        sent = bench.beat(live=[(job_name(2), 1)])
    bench.beat(ended=[Ended(job_name(2), 1, Cause.EXITED, "", {"signal": 9})])
    assert bench.row(2).outcome is model.Outcome.EXITED


def kills_of(sent):
    return [(k.job, k.attempt, k.signal) for o in orders_of(sent) for k in o.kills]


def starting(bench, **fields):
    """A job whose start is on its way to n1."""
    bench.beat(slots=2)
    (orders,) = orders_of(bench.submit(1, **fields))
    assert [start.job for start in orders.starts] == [job_name(1)]


def test_a_placed_job_that_nobody_was_told_to_start_ends_at_once_as_never_started():
    bench = Bench()
    starting(bench)
    assert orders_of(bench.submit(2)) == []  # placed on n1, whose last orders are not answered yet
    assert bench.row(2).state is State.PLACED
    result = answer_of(bench.ask("kill", job=job_name(2), signal=15)).result
    assert (result["outcome"], result["reason"]) == ("killed", "killed before it started")
    assert [s.job for o in orders_of(accept(bench, "n1", 1)) for s in o.starts] == []


def test_a_successor_does_not_take_a_placed_job_for_one_that_was_not_sent():
    bench = Bench()
    bench.beat(slots=2)
    bench.submit(1)
    bench.machine = bench.make(2, 1)
    assert answer_of(bench.ask("kill", job=job_name(1), signal=15)).result["outcome"] is None
    assert bench.row(1).cancelled
    assert kills_of(bench.beat()) == [(job_name(1), 1, 15)]


def test_a_job_whose_start_is_on_its_way_gets_the_gentle_signal_when_it_is_there_and_is_not_killed_for_taking_its_time():
    bench = Bench()
    starting(bench, retry=3)
    assert kills_of(bench.ask("kill", job=job_name(1), signal=15)) == []
    assert bench.row(1).cancelled
    assert kills_of(accept(bench, "n1", 1)) == [(job_name(1), 1, 15)]
    bench.on(Answered("n1", OrdersReply(1, valid=True)))
    assert bench.row(1).signalled
    for _ in range(8):
        bench.wait(1)
        assert kills_of(bench.beat(live=[(job_name(1), 1, 5.0)])) == []
    bench.machine = bench.make(2, 1)
    assert kills_of(bench.beat(live=[(job_name(1), 1, 5.0)])) == []
    bench.beat(store="s2")  # the node was set up anew: it is not started again
    assert (bench.row(1).outcome, bench.row(1).attempt) == (model.Outcome.KILLED, 1)


def test_a_gentle_signal_that_finds_nothing_is_repeated_and_in_the_end_it_is_a_kill():
    bench = Bench()
    starting(bench)
    bench.ask("kill", job=job_name(1), signal=15)
    seen = kills_of(bench.on(Answered("n1", None)))
    for _ in range(8):
        missed = OrdersReply(1, valid=True, missed=[(job_name(1), 1)])
        seen += kills_of(bench.on(Answered("n1", missed)) + bench.wait(1) + bench.beat())
    assert not bench.row(1).signalled
    signals = [signal for _job, _attempt, signal in seen]
    assert signals[:3] == [15, 15, 15]
    assert signals[-2:] == [9, 9]
    assert sorted(signals, reverse=True) == signals
    bench.beat(ended=[Ended(job_name(1), 1, Cause.KILLED, "killed before it started")])
    assert bench.row(1).outcome is model.Outcome.KILLED


def test_a_successor_that_does_not_know_whether_the_signal_was_found_kills():
    bench = Bench()
    starting(bench)
    bench.ask("kill", job=job_name(1), signal=15)
    bench.machine = bench.make(2, 1)
    assert kills_of(bench.beat()) == [(job_name(1), 1, 9)]


def test_a_kill_after_a_gentle_signal_is_a_kill():
    bench = Bench()
    starting(bench)
    bench.ask("kill", job=job_name(1), signal=15)
    accept(bench, "n1", 1)
    bench.on(Answered("n1", OrdersReply(1, valid=True)))
    assert kills_of(bench.ask("kill", job=job_name(1), signal=9)) == [(job_name(1), 1, 9)]
    assert not bench.row(1).signalled
    bench.on(Answered("n1", None))
    assert kills_of(bench.beat(live=[(job_name(1), 1, 5.0)])) == [(job_name(1), 1, 9)]


def test_a_job_that_a_node_refuses_after_it_was_called_off_is_not_tried_elsewhere():
    bench = Bench()
    bench.beat("n2", slots=0)
    starting(bench)
    bench.beat("n2", slots=4)
    bench.ask("kill", job=job_name(1), signal=15)
    accept(bench, "n1", 1, said=Said.FULL)
    assert (bench.row(1).outcome, bench.row(1).reason) == (model.Outcome.KILLED, "killed before it started")


def test_other_signals_are_passed_on_once_and_answered_by_the_node():
    bench = Bench()
    bench.beat()
    bench.submit(1)
    bench.beat(live=[(job_name(1), 1, 5.0)])
    (effect,) = [e for e in bench.ask("kill", job=job_name(1), signal=10) if isinstance(e, SendSignal)]
    assert effect.orders.kills[0].signal == 10


def test_a_user_sees_and_kills_only_his_own_jobs_and_an_administrator_all():
    bench = Bench()
    bench.submit(1, user="bob")
    assert answer_of(bench.ask("list")).result["jobs"] == []
    assert answer_of(bench.ask("kill", job=job_name(1), signal=9)).error["code"] == "no-such-job"
    assert answer_of(bench.ask("status", jobs=[job_name(1)])).error["code"] == "no-such-job"
    assert len(answer_of(bench.ask("list", "chief", admin=True, all=True)).result["jobs"]) == 1
    assert answer_of(bench.ask("list", all=True)).result["jobs"] == []
    assert answer_of(bench.ask("kill", "chief", admin=True, job=job_name(1), signal=9)).result["outcome"] == "killed"


def test_a_question_waits_for_the_submission_that_its_asker_was_acknowledged():
    bench = Bench()
    assert bench.ask("status", jobs=[job_name(1)], after_seq=1) == []
    assert answer_of(bench.submit(1)).result["jobs"][0]["job"] == job_name(1)
    bench.ask("list", after_seq=7)
    bench.now_s += 6
    assert answer_of(bench.on()).error["code"] == "try-later"


def test_wait_is_answered_when_something_ended_or_the_time_is_up():
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    both = [job_name(1), job_name(2)]
    assert bench.ask("wait", jobs=both) == []
    ended = [e.message for e in bench.ask("kill", job=job_name(1), signal=9) if isinstance(e, AnswerUser)]
    assert [v["job"] for v in ended[-1].result["ended"]] == [job_name(1)]
    assert len(answer_of(bench.ask("wait", jobs=both)).result["ended"]) == 1
    assert bench.ask("wait", jobs=both, every=True, wait_s=3) == []
    assert len(answer_of(bench.wait(4)).result["ended"]) == 1


def test_lists_come_in_pages_without_gap():
    bench = Bench()
    for number in range(1, 8):
        bench.submit(number)
    seen, after, more = [], 0, True
    while more:
        page = answer_of(bench.ask("list", after=after, limit=3)).result
        seen += [view["job"] for view in page["jobs"]]
        after, more = page["jobs"][-1]["seq"], page["more"]
    assert seen == [job_name(n) for n in range(1, 8)]


def test_ended_jobs_are_forgotten_after_their_time():
    bench = Bench()
    bench.submit(1)
    bench.ask("kill", job=job_name(1), signal=9)
    bench.wait(model.KEEP_ENDED_S + 1)
    assert bench.rows == {}


def test_bad_questions_are_answered_with_an_error():
    bench = Bench()
    bench.submit(1)
    for method, params in [
        ("dance", {}),
        ("status", {"jobs": 3}),
        ("wait", {"jobs": None}),
        ("kill", {"job": job_name(1), "signal": 99}),
    ]:
        assert answer_of(bench.ask(method, **params)).error["exit_code"] == 2


def test_orders_stay_below_the_message_limit():
    bench = Bench()
    for number in range(1, 6):
        bench.submit(number)
        job = job_name(number)
        bench.machine._jobs[job].record = b"x" * 400_000
    counts = []
    sent = bench.beat(slots=10)
    while orders_of(sent):
        counts.append(len(orders_of(sent)[0].starts))
        sent = bench.on(Answered("n1", OrdersReply(1, valid=True)))
    assert counts == [2, 2, 1]


@settings(max_examples=40)
@given(st.data())
def test_a_successor_folds_the_same_jobs_at_any_moment(data):
    """Property: rows persisted so far are all that counts; a machine made from them agrees about every job."""
    bench, count, epoch = Bench(), 0, 1
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["submit", "beat", "end", "kill", "wait", "takeover"])):
            case "submit":
                count += 1
                bench.submit(count, retry=data.draw(st.sampled_from([0, 2])), user=data.draw(st.sampled_from(["alice", "bob"])))
            case "beat":
                node = data.draw(st.sampled_from(["n1", "n2"]))
                live = [(r.job, r.attempt) for r in bench.rows.values() if r.state is State.PLACED and r.node == node]
                bench.beat(node, live=live, slots=2)
            case "end":
                placed = [r for r in bench.rows.values() if r.state is State.PLACED]
                if placed:
                    row = data.draw(st.sampled_from(placed))
                    bench.beat(
                        row.node, ended=[Ended(row.job, row.attempt, data.draw(st.sampled_from(list(Cause))), "why", {})], slots=2
                    )
            case "kill":
                if count:
                    bench.ask("kill", job=job_name(data.draw(st.integers(1, count))), signal=data.draw(st.sampled_from([9, 15])))
            case "wait":
                bench.wait(data.draw(st.sampled_from([0.1, 3, 30])))
            case "takeover":
                epoch += 1
                bench.machine = bench.make(epoch, seq=count)
        for row in bench.rows.values():
            assert row.losses <= row.retry
            assert (row.state is State.PLACED) == bool(row.node) or row.state is State.ENDED
        assert bench.machine.statistics()["live"] == sum(r.state is not State.ENDED for r in bench.rows.values())
        placed_count = sum(len(n.jobs) for n in bench.machine._nodes.values())
        assert placed_count == sum(r.state is State.PLACED for r in bench.rows.values())
    copy = bench.make(epoch + 1, seq=count)
    strip = lambda m: sorted((r.job, r.state, r.attempt, r.node) for r in m.rows())  # noqa: E731
    assert strip(copy) == strip(bench.machine)
    assert all(math.isfinite(r.submitted_at) for r in copy.rows())


json_like = st.dictionaries(st.text(max_size=5), st.none() | st.integers(-9, 9) | st.text(max_size=9), max_size=3)
rows = st.builds(
    model.Row, job=st.text(max_size=13), user=st.text(max_size=9), seq=st.integers(0, 2**40), name=st.text(max_size=20),
    state=st.sampled_from(list(State)), outcome=st.none() | st.sampled_from(list(model.Outcome)), exit=st.none() | json_like,
    attempt=st.integers(0, 99), reason=st.text(max_size=20), cancelled=st.booleans(),
)  # fmt: skip
messages = st.one_of(
    st.builds(
        model.Batch,
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
        st.lists(rows, max_size=3),
        st.lists(st.text(max_size=4), max_size=2),
    ),
    st.builds(
        Ended, st.text(max_size=13), st.integers(1, 9), st.sampled_from(list(Cause)), st.text(max_size=9), st.none() | json_like
    ),
    st.builds(model.Start, st.text(max_size=13), st.integers(1, 9), st.binary(max_size=20)),
    st.builds(
        OrdersReply,
        st.integers(0, 9),
        st.booleans(),
        st.lists(st.builds(Answer, st.text(max_size=3), st.integers(1, 3), st.sampled_from(list(Said))), max_size=3),
    ),
)


@given(messages)
def test_every_message_survives_the_wire(message):
    assert model.decode(model.encode(message), type(message)) == message


@given(st.binary(max_size=60))
def test_noise_is_a_bad_message_and_never_a_crash(noise):
    for kind in (model.Batch, Report, model.Orders, Query, OrdersReply):
        try:
            model.decode(noise, kind)
        except model.BadMessage:
            continue
        assert msgspec.msgpack.decode(noise) is not None


# --- arrays


def array_spec(count, **fields):
    return JobSpec(job=names.array_id(b"\7" * 8), vo="demo", user="alice", argv=["true"], detached=True, count=count, **fields)


def submit_array(bench, seq, spec):
    bench.records.update((job, (spec, b"record")) for job in spec.tasks())
    return bench.on(Submitted(seq, spec.user, spec.job, b"record", spec))


def test_the_tasks_of_an_array_have_consecutive_ids_that_tell_their_number():
    spec = array_spec(10_000)
    tasks = spec.tasks()
    assert len(set(tasks)) == 10_000
    assert [names.task_index(names.check_job(job)) for job in tasks] == list(range(10_000))
    assert (tasks[0], spec.task(tasks[7]).env, spec.task(tasks[7]).count) == (spec.job, {"XOS_INDEX": "7"}, 1)


@pytest.mark.parametrize("foreign", [names.task_id(names.array_id(b"\7" * 8), 3), names.job_id(b"\1" * 8)])
def test_a_submission_speaks_of_no_job_beside_its_tasks(foreign):
    with pytest.raises(BadSpec):
        array_spec(3).task(foreign)


@pytest.mark.parametrize("fields", [{"job": names.task_id(names.array_id(b"\7" * 8), 1)}, {"detached": False}, {"count": 10_001}])
def test_an_array_that_cannot_be_is_refused(fields):
    with pytest.raises(BadSpec):
        JobSpec(
            **{
                "job": names.array_id(b"\7" * 8),
                "vo": "demo",
                "user": "alice",
                "argv": ["true"],
                "detached": True,
                "count": 2,
                **fields,
            }
        )


def test_an_array_is_one_submission_and_one_record_in_orders_and_a_row_for_each_task():
    bench = Bench()
    bench.beat(slots=8)
    spec = array_spec(5)
    (orders,) = orders_of(submit_array(bench, 1, spec))
    assert [(s.job, s.record) for s in orders.starts] == [(job, b"" if at else b"record") for at, job in enumerate(spec.tasks())]
    assert {row.state for row in bench.rows.values()} == {State.PLACED}
    bench.beat(slots=8, ended=[Ended(spec.tasks()[3], 1, Cause.EXITED, "", {"code": 3})])
    assert [row.job for row in bench.rows.values() if row.state is State.ENDED] == [spec.tasks()[3]]


def test_a_successor_makes_the_rows_of_an_array_that_a_dead_manager_did_not_come_to_write():
    bench = Bench()
    spec = array_spec(4)
    submit_array(bench, 1, spec)
    for job in spec.tasks()[2:]:
        del bench.rows[job]
    bench.machine = bench.make(2)
    submit_array(bench, 1, spec)
    assert sorted(bench.rows) == sorted(spec.tasks())
    assert len(bench.machine.rows()) == 4


def test_pages_of_a_list_go_on_within_an_array():
    bench = Bench()
    submit_array(bench, 1, array_spec(5))
    bench.submit(2)
    seen, more, behind = [], True, {}
    while more:
        page = answer_of(bench.ask("list", limit=2, **behind)).result
        seen += [view["job"] for view in page["jobs"]]
        more, behind = page["more"], {"after": page["jobs"][-1]["seq"], "after_job": seen[-1]}
    assert seen == [*array_spec(5).tasks(), job_name(2)]


def test_a_question_for_known_jobs_leaves_out_what_is_not_there_or_not_yours():
    bench = Bench()
    bench.submit(1)
    bench.submit(2, user="bob")
    names_asked = [job_name(number) for number in (1, 2, 3)]
    assert [view["job"] for view in answer_of(bench.ask("status", jobs=names_asked, known=True)).result["jobs"]] == [job_name(1)]
    assert answer_of(bench.ask("status", jobs=names_asked)).error["code"] == "no-such-job"
