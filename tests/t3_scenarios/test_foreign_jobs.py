"""A job is its user's in its VO: for everybody else it does not exist, while it runs and after it has ended."""

from __future__ import annotations

import asyncio

import pytest

from nodejobskit import USER, VO, NodeKit
from xtreemos.aem.manager.model import Cause, Ended
from xtreemos.aem.nodestore import Offer
from xtreemos.errors import RemoteError
from xtreemos.node.refusals import NoSuchJob

RUNS, ENDED, SUB = "jaaaaaaaaaaaa", "jbbbbbbbbbbbb", "jcccccccccccc"
STRANGERS = [(USER, "other"), ("bob", VO), ("bob", "other")]


@pytest.fixture
def kit(tmp_path):
    kit = NodeKit(tmp_path)
    kit.store.accept([Offer(job, 1, VO, USER, "true", b"x", origin="run") for job in (RUNS, ENDED)], 1.0)
    kit.store.accept([Offer(SUB, 1, VO, USER, "true", b"x")], 1.0)
    kit.store.hand_over([(RUNS, 1)], "a life")
    kit.store.ended([Ended(ENDED, 1, Cause.EXITED, "", {"code": 3}), Ended(SUB, 1, Cause.EXITED, "", {"code": 4})], 2.0)
    meta = {"user": USER, "vo": VO, "sid": "s", "name": "true", "started_at": 1.0}
    kit.jobd.known[f"{RUNS}.1"] = {"job": f"{RUNS}.1", "state": "running", "meta": meta, "exit": None, "started_at": 1.0}
    yield kit
    kit.close()


def refused(kit, name, vo, calls):
    async def ask():
        async with kit.serving():
            peer = await kit.as_user(name, vo)
            codes = []
            for method, params in calls:
                try:
                    codes.append(await peer.call(method, params, timeout_s=10))
                except RemoteError as error:
                    codes.append(error.code)
            peer.close()
            return codes

    return asyncio.run(ask())


def test_its_user_learns_how_it_ended(kit):
    assert kit.jobs.former_exit(ENDED, VO, USER, None) == {"code": 3}
    assert kit.jobs.former_exit(ENDED, VO, USER, 2) is None
    folder, ended = kit.jobs.spool_of(SUB, VO, USER)
    assert (folder, ended()) == (kit.paths.jobs / f"{SUB}.1" / "spool", True)


@pytest.mark.parametrize(("name", "vo"), STRANGERS)
def test_an_ended_job_does_not_exist_for_others_not_even_of_the_same_name_in_another_vo(kit, name, vo):
    assert kit.jobs.former_exit(ENDED, vo, name, None) is None
    with pytest.raises(NoSuchJob):
        kit.jobs.spool_of(SUB, vo, name)


@pytest.mark.parametrize(("name", "vo"), STRANGERS)
def test_no_method_tells_others_of_a_job(kit, name, vo):
    calls = [("job.attach", {"job": job}) for job in (RUNS, ENDED)]
    calls += [
        ("job.attach", {"job": RUNS, "describe": True}),
        ("job.signal", {"job": RUNS, "signal": 9}),
        ("job.wait", {"job": RUNS}),
    ]
    calls += [("job.logs", {"job": SUB}), ("job.list", {"everybody": True})]
    assert refused(kit, name, vo, calls) == ["job-not-here"] * 6 + [{"jobs": []}]
    assert kit.jobd.signals == []


@pytest.mark.parametrize(("name", "vo"), STRANGERS)
def test_giving_up_a_start_of_ones_own_takes_nothing_from_others(kit, name, vo):
    assert refused(kit, name, vo, [("run.void", {"job": RUNS, "trial": 0}), ("run.void", {"job": ENDED})]) == [{"here": False}] * 2
    assert [len(kit.store.get(VO, job)) for job in (RUNS, ENDED)] == [1, 1]
    kit.jobs.check_not_void(VO, USER, RUNS, 1, 0)  # their start would still be taken
    with pytest.raises(NoSuchJob):
        kit.jobs.check_not_void(vo, name, RUNS, 1, 0)


@pytest.mark.parametrize(("name", "vo"), STRANGERS)
def test_a_start_under_the_name_of_anothers_running_job_leaves_that_one_alone(kit, name, vo):
    spec = {"job": RUNS, "vo": vo, "user": name, "argv": ["true"]}
    assert refused(kit, name, vo, [("run.start", {"spec": spec})]) == ["job-not-here"]
    running = kit.jobs.live[f"{RUNS}.1"]
    assert (running.user, running.vo, running.exit, kit.jobd.starts, kit.jobd.signals) == (USER, VO, None, [], [])
    assert [one.state for one in kit.store.get(VO, RUNS)] == ["starting"]
