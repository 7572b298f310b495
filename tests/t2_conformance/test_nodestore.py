"""The node's job store: idempotent, durable, bounded; and the group commit above it."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.model import LEASE_S, Cause, Ended, Said
from xtreemos.aem.manager.signed import sign_submission
from xtreemos.aem.nodestore import AttemptState, NodeStore, Offer, StoreBroken, attempts_to_fence, plan_recovery
from xtreemos.errors import TryLater

VO = "demo"
A, B, C = "jaaaaaaaaaaaa", "jbbbbbbbbbbbb", "jcccccccccccc"


@pytest.fixture
def store(tmp_path):
    store = NodeStore(tmp_path / "jobs.db")
    yield store
    store.close()


def offer(job, attempt=1, **more):
    return Offer(job, attempt, more.pop("vo", VO), more.pop("user", "alice"), "true", b"record", **more)


def exited(job, attempt=1, code=0):
    return Ended(job, attempt, Cause.EXITED, "", {"code": code})


def said(store, *offers):
    return [answer.said for answer in store.accept(offers, 1.0)]


def test_a_start_that_comes_again_gets_the_same_answer(store):
    for _ in range(2):
        assert said(store, offer(A)) == [Said.ACCEPTED]
    store.hand_over([(A, 1)], "life")
    assert said(store, offer(A)) == [Said.ACCEPTED]
    store.ended([exited(A)], 2.0)
    assert said(store, offer(A)) == [Said.ENDED]
    assert len(store.get(VO, A)) == 1


def test_a_refusal_is_remembered_although_there_is_room_later(store):
    assert said(store, offer(A, refusal=(Said.FULL, "full"))) == [Said.FULL]
    (answer,) = store.accept([offer(A)], 2.0)
    assert (answer.said, answer.reason) == (Said.FULL, "full")
    assert said(store, offer(A, 2)) == [Said.ACCEPTED]


def test_an_attempt_older_than_a_known_one_is_refused(store):
    said(store, offer(A, 3))
    assert said(store, offer(A, 2)) == [Said.REFUSED]


def test_orders_of_an_older_manager_are_void_also_after_a_restart(store, tmp_path):
    assert store.raise_fence(VO, 5)
    assert store.raise_fence(VO, 5)
    again = NodeStore(tmp_path / "jobs.db")
    assert not again.raise_fence(VO, 4)
    assert (again.fence(VO), again.store_id) == (5, store.store_id)
    again.close()


def test_an_end_counts_once_and_stays_in_the_outbox_until_acknowledged(store):
    said(store, offer(A), offer(B))
    assert store.ended([exited(A, code=7)], 2.0) == [(A, 1)]
    assert store.ended([exited(A, code=0)], 3.0) == []
    assert store.outbox(VO, 9) == [exited(A, code=7)]
    store.acknowledge(VO, [(A, 1), (B, 1), (C, 1)])
    assert store.outbox(VO, 9) == []
    assert [a.job for a in store.live()] == [B]
    assert store.get(VO, A)[0].record == b""


def test_a_foreground_job_is_recorded_and_has_no_outbox(store):
    said(store, offer(A, origin="run"))
    store.ended([exited(A)], 2.0)
    assert store.outbox(VO, 9) == []
    assert store.recent(9)[0].exit == {"code": 0}


def test_a_kill_that_comes_before_the_start_wins(store):
    assert not store.call_off(VO, A, 1, 1.0)
    assert said(store, offer(A)) == [Said.ENDED]
    assert [e.cause for e in store.outbox(VO, 9)] == [Cause.KILLED]


def test_a_kill_of_a_refused_attempt_tells_the_manager_who_missed_the_refusal(store):
    said(store, offer(A, refusal=(Said.REFUSED, "no")))
    assert not store.call_off(VO, A, 1, 2.0)
    assert [(e.job, e.cause) for e in store.outbox(VO, 9)] == [(A, Cause.KILLED)]


def test_a_kill_ends_what_waits_and_says_what_must_be_signalled(store):
    said(store, offer(A), offer(B))
    store.hand_over([(B, 1)], "life")
    assert not store.call_off(VO, A, 1, 2.0)
    assert store.call_off(VO, B, 1, 2.0)
    assert store.hand_over([(A, 1), (B, 1)], "life") == [(B, 1)]


def test_the_end_of_a_fenced_attempt_is_void(store):
    said(store, offer(A, leased=True), offer(B, leased=True))
    store.hand_over([(A, 1)], "life")
    assert store.mark_fenced([(A, 1), (B, 1)], "cut off", 2.0) == [(A, 1)]
    store.ended([exited(A)], 3.0)
    assert [(e.job, e.cause, e.reason) for e in store.outbox(VO, 9)] == [(B, Cause.LOST, "cut off"), (A, Cause.LOST, "cut off")]


def test_only_leased_attempts_are_fenced_and_only_after_the_lease(store):
    said(store, offer(A, leased=True), offer(B))
    assert attempts_to_fence(store.live(), LEASE_S) == []
    assert attempts_to_fence(store.live(), LEASE_S + 0.1) == [(A, 1)]


def test_after_a_restart_nothing_is_started_that_may_have_run(store):
    said(store, offer(A), offer(B), offer(C), offer("jdddddddddddd"))
    store.hand_over([(B, 1), (C, 1)], "life1")
    same = plan_recovery(store.live(), [(C, 1)], "life1")
    assert [a.job for a in same.launch] == [A, B, "jdddddddddddd"]
    assert [a.job for a in same.alive] == [C]
    other = plan_recovery(store.live(), [], "life2")
    assert [a.job for a in other.lost] == [B, C]
    assert [a.job for a in other.launch] == [A, "jdddddddddddd"]


def test_pruning_keeps_the_outbox_the_live_and_the_latest(store):
    said(store, offer(A), offer(B), offer(C))
    store.accept([offer("jdddddddddddd", refusal=(Said.FULL, ""))], 0.0)
    store.ended([exited(A)], 10.0)
    store.ended([exited(B)], 20.0)
    store.acknowledge(VO, [(B, 1)])
    assert store.prune(30.0, keep_s=1000) == 0
    assert store.prune(5000.0, keep_s=1000) == 2
    assert store.get(VO, B) == store.get(VO, "jdddddddddddd") == []
    assert store.outbox(VO, 9)[0].job == A
    assert store.live()[0].state is AttemptState.ACCEPTED
    store.acknowledge(VO, [(A, 1)])
    assert store.prune(11.0, keep_max=0) == 1


def test_a_failed_call_in_a_batch_takes_nothing_else_with_it(store):
    async def both():
        commit = GroupCommit(store, None)

        def bad():
            store.accept([offer(B)], 1.0)
            raise TryLater("no")

        return await asyncio.gather(commit.do(store.accept, [offer(A)], 1.0), commit.do(bad), return_exceptions=True)

    good, bad = asyncio.run(both())
    assert good[0].said is Said.ACCEPTED
    assert isinstance(bad, TryLater)
    assert [a.job for a in store.live()] == [A]


def test_calls_that_come_together_share_commits(store, tmp_path):
    async def many():
        with ThreadPoolExecutor(1) as pool:
            commit = GroupCommit(store, pool)
            await asyncio.gather(*(commit.do(store.accept, [offer(f"j{n:012d}")], 1.0) for n in range(500)))

    begun = time.monotonic()
    asyncio.run(many())
    assert len(store.live()) == 500
    other = NodeStore(tmp_path / "jobs.db")
    assert len(other.live()) == 500
    other.close()
    assert time.monotonic() - begun < 30


def test_what_was_answered_survives_sigkill(tmp_path):
    path = tmp_path / "jobs.db"
    program = (
        "import sys\nfrom xtreemos.aem.nodestore import NodeStore, Offer\n"
        "store = NodeStore(sys.argv[1])\nn = 0\n"
        "while True:\n    n += 1\n    store.accept([Offer(f'j{n:012d}', 1, 'demo', 'a', 'b', b'c')], 1.0)\n    print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"}
    ) as child:
        told = 0
        while told < 20:
            told = int(child.stdout.readline())
        child.kill()
        told = int(child.stdout.read().split()[-1]) if child.stdout.peek() else told
    store = NodeStore(path)
    assert len(store.live()) >= told
    store.close()


def test_every_column_is_explained():
    from xtreemos.aem.nodestore import SCHEMA

    for line in SCHEMA.splitlines():
        if line.startswith("    ") and not line.strip().startswith("UNIQUE"):
            assert "--" in line, line


def test_a_store_of_a_newer_version_or_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "jobs.db"
    NodeStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    db.close()
    with pytest.raises(StoreBroken, match="newer"):
        NodeStore(path)
    (tmp_path / "noise.db").write_bytes(b"noise" * 1000)
    with pytest.raises(StoreBroken):
        NodeStore(tmp_path / "noise.db")


def test_a_foreground_attempt_that_was_withdrawn_may_be_accepted_again():
    store = NodeStore(":memory:")
    offer = Offer("j1", 1, VO, "alice", "true", b"spec", origin="run")
    assert store.accept([offer], 0.0)[0].said is Said.ACCEPTED
    store.ended([Ended("j1", 1, Cause.LOST)], 1.0)
    store.withdraw(VO, "mallory", "j1", 1)
    store.withdraw("other", "alice", "j1", 1)
    assert store.get(VO, "j1")
    store.withdraw(VO, "alice", "j1", 1)
    assert store.accept([offer], 2.0)[0].said is Said.ACCEPTED
    assert store.hand_over([("j1", 1)], "life") == [("j1", 1)]


def test_rows_of_one_vo_do_not_exist_for_another(store):
    said(store, offer(A), offer(B, vo="other"), offer(C, origin="run"))
    assert [a.job for a in store.live("sub", VO)] == [A]
    assert [a.job for a in store.live("sub", "other")] == [B]
    assert store.get("other", A) == store.get(VO, A, "bob") == []
    store.ended([exited(A), exited(B), exited(C)], 2.0)
    assert [end.job for end in store.outbox("other", 9)] == [B]
    store.acknowledge("other", [(A, 1), (B, 1)])
    assert (store.outbox("other", 9), [end.job for end in store.outbox(VO, 9)]) == ([], [A])


def test_a_manager_calls_off_only_detached_jobs_of_its_own_vo(store):
    said(store, offer(A), offer(B, origin="run"))
    assert not store.call_off("other", A, 1, 2.0)
    assert not store.call_off(VO, B, 1, 2.0)
    assert [a.state for a in store.live()] == [AttemptState.ACCEPTED] * 2
    assert store.outbox("other", 9) == store.outbox(VO, 9) == []


def test_a_name_that_is_anothers_is_refused_and_tells_nothing_of_how_it_goes(store):
    said(store, offer(A, origin="run"), offer(B))
    store.ended([exited(A), exited(B)], 2.0)
    foreign = (
        offer(A, origin="run", user="bob"),
        offer(A, origin="run", vo="other"),
        offer(A),
        offer(B, vo="other"),
        offer(B, 2, vo="other"),
    )
    assert {(a.said, a.reason) for a in store.accept(foreign, 3.0)} == {(Said.REFUSED, "the job's name is taken on this node")}
    assert said(store, offer(B, user="", refusal=(Said.REFUSED, "revoked"))) == [Said.ENDED]  # it could not be verified again


def test_tokens_of_one_vos_managers_do_not_bind_another_vo(store):
    assert store.raise_fence(VO, 500)
    assert store.raise_fence("other", 3)
    assert not store.raise_fence(VO, 499)
    assert (store.fence(VO), store.fence("other"), store.fence("third")) == (500, 3, 0)


def as_of_version_1(path, submission):
    """Make `path` what the first version wrote: no VO anywhere."""
    store = NodeStore(path)
    store.accept([offer(A), offer(B, origin="run"), Offer(C, 1, VO, "alice", "true", submission)], 1.0)
    store.ended([exited(A), exited(B)], 2.0)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE attempt DROP COLUMN vo")
        db.execute("UPDATE meta SET value = '1' WHERE key = 'version'")
        db.execute("INSERT INTO meta VALUES ('fence', '7')")
    db.close()


@pytest.fixture(scope="module")
def submission():
    key = ec.generate_private_key(ec.SECP256R1())
    return sign_submission(JobSpec(job=C, vo=VO, user="alice", argv=["true"], detached=True), [b"chain"], key)


def test_a_store_without_vos_belongs_to_the_only_vo_of_the_node(tmp_path, submission):
    as_of_version_1(tmp_path / "jobs.db", submission)
    for vos in ([VO], [VO, "other"]):  # it is brought up once
        store = NodeStore(tmp_path / "jobs.db", vos)
        assert [len(store.get(VO, job)) for job in (A, B, C)] == [1, 1, 1]
        assert ([e.job for e in store.outbox(VO, 9)], store.fence(VO)) == ([A], 7)
        store.close()


@pytest.mark.parametrize("vos", [[], [VO, "other"]])
def test_of_a_store_without_vos_on_a_node_of_several_nobody_learns_what_ended(tmp_path, submission, vos):
    as_of_version_1(tmp_path / "jobs.db", submission)
    store = NodeStore(tmp_path / "jobs.db", vos)
    for vo in (VO, "other"):
        assert store.get(vo, A) == store.get(vo, B) == store.outbox(vo, 9) == []
        assert store.fence(vo) == 0
    assert [a.vo for a in store.live()] == [VO]  # what has not ended says itself whose it is
    assert said(store, offer(A)) == [Said.ENDED]  # and is not started again
    store.close()
