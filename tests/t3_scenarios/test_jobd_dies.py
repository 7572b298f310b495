"""What a node says of a foreground program when its jobd dies, restarts or is replaced in the midst of things."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nodejobskit import USER, VO, NodeKit, until
from xtreemos.aem.jobspec import JobSpec
from xtreemos.errors import RemoteError
from xtreemos.foundation.jobd.model import REASON_JOBD
from xtreemos.node import jobs as module
from xtreemos.node.refusals import JobdRestarted, StartUnknown

JOB = "jaaaaaaaaaaaa"
KEY = f"{JOB}.1"
SPEC = JobSpec(job=JOB, vo=VO, user=USER, argv=["true"])
DIED = {"code": None, "signal": None, "reason": REASON_JOBD}
pytestmark = [pytest.mark.root, pytest.mark.log_warnings("jobd: |asking jobd")]


@pytest.fixture
def kit(tmp_path):
    kit = NodeKit(tmp_path)
    yield kit
    kit.close()


def dying(kit, *, back=True, noted=None):
    """Return what jobd does with a start: die in its midst, `noted` (state and exit) or not, and come back or not."""
    tasks = []

    async def on_start(call):
        if noted is not None:
            await kit.jobd.take(call)
            kit.jobd.known[KEY] |= noted

        async def fall_and_rise():
            await kit.jobd.die()
            if back:
                await kit.jobd.up()

        kit.jobd.on_start = kit.jobd.take
        tasks.append(asyncio.create_task(fall_and_rise()))
        await asyncio.Event().wait()

    kit.jobd.on_start = on_start


def states(kit):
    return [(one.state, one.cause) for one in kit.store.get(VO, JOB)]


def run(kit, work):
    async def inside():
        async with kit.serving():
            return await asyncio.wait_for(work(), 20)

    return asyncio.run(inside())


def test_a_start_that_jobd_had_not_begun_did_not_happen_and_may_be_tried_again(kit):
    async def work():
        dying(kit)
        with pytest.raises(JobdRestarted) as caught:
            await kit.jobs.run(SPEC, attempt=1, sid="s")
        assert caught.value.definite
        assert (states(kit), kit.jobs.running_count, kit.given_back) == ([], 0, ["/net/1"])
        running = await kit.jobs.run(SPEC, attempt=1, sid="s")
        return running.state, states(kit)

    assert run(kit, work) == ("running", [("starting", None)])


def test_a_program_that_may_have_run_counts_as_started_and_lost(kit):
    async def work():
        dying(kit, noted={"state": "exited", "exit": DIED})
        running = await kit.jobs.run(SPEC, attempt=1, sid="s")
        assert (running.exit, states(kit)) == (DIED, [("ended", "lost")])
        peer = await kit.as_user()
        answer = await peer.call("job.attach", {"job": JOB, "offsets": {}})
        peer.close()
        return answer

    assert run(kit, work) == {"exit": DIED}


def test_a_program_that_runs_although_only_the_line_to_jobd_broke_is_followed(kit):
    async def work():
        dying(kit, noted={"state": "running"})
        running = await kit.jobs.run(SPEC, attempt=1, sid="s")
        assert (running.state, states(kit)) == ("running", [("starting", None)])
        await until(lambda: kit.jobd._watches)
        kit.jobd.tell(KEY, state="exited", exit={"code": 5})
        await until(lambda: running.exit)
        return running.exit, states(kit)

    assert run(kit, work) == ({"code": 5}, [("ended", "exited")])


@pytest.mark.parametrize(
    ("later", "becomes"), [({"state": "running"}, ("running", [("starting", None)])), (None, (None, [("ended", "lost")]))]
)
def test_nobody_says_what_became_of_a_start_while_jobd_is_away(kit, monkeypatch, later, becomes):
    monkeypatch.setattr(module, "FIND_OUT_S", 0.3)

    async def work():
        dying(kit, back=False, noted=later)
        with pytest.raises(StartUnknown) as caught:
            await kit.jobs.run(SPEC, attempt=1, sid="s")
        assert not caught.value.definite
        assert (states(kit), kit.jobs.running_count, kit.given_back) == ([("starting", None)], 1, [])
        await kit.jobd.up()
        await until(lambda: (kit.jobs.live[KEY].state if KEY in kit.jobs.live else None, states(kit)) == becomes)

    run(kit, work)


def test_a_jobd_that_is_away_takes_no_programs_and_the_node_says_so_for_certain(kit):
    async def work():
        await kit.jobd.die()
        await until(lambda: kit.jobs._jobd.is_lost)
        with pytest.raises(JobdRestarted) as caught:
            await kit.jobs.run(SPEC, attempt=1, sid="s")
        return caught.value.definite, states(kit), kit.jobs.running_count

    assert run(kit, work) == (True, [], 0)


def test_jobs_of_a_jobd_that_died_are_lost_once_and_free_their_place(kit):
    async def work():
        running = await kit.jobs.run(SPEC, attempt=1, sid="s")
        await kit.jobd.die()
        kit.jobd.known[KEY] |= {"state": "exited", "exit": DIED}
        await kit.jobd.up()
        await until(lambda: running.exit is not None and kit.given_back)
        return states(kit), kit.jobs.running_count, kit.given_back

    assert run(kit, work) == ([("ended", "lost")], 0, ["/net/1"])


def test_a_job_that_a_new_jobd_does_not_know_occupies_nothing(kit):
    async def work():
        await kit.jobs.run(SPEC, attempt=1, sid="s")
        await kit.jobd.die()
        kit.jobd.known.clear()
        await kit.jobd.up()
        await until(lambda: states(kit) == [("ended", "lost")])
        return kit.jobs.live, kit.given_back

    assert run(kit, work) == ({}, ["/net/1"])


def test_an_end_whose_telling_broke_is_told_to_who_asks_again_and_only_then_the_rest_goes(kit):
    async def work():
        peer = await kit.as_user()
        call = peer.open("run.start", {"spec": {"job": JOB, "vo": VO, "user": USER, "argv": ["true"]}})
        assert (await call.receive()).body["type"] == "started"
        kit.jobd.tell(KEY, state="exited", exit={"code": 6})
        await until(lambda: states(kit) == [("ended", "exited")])
        peer.close()
        again = await kit.as_user()
        answer = await again.call("job.attach", {"job": JOB, "attempt": 1, "offsets": {}})
        await until(lambda: kit.jobd.forgotten == [KEY])
        former = await again.call("job.attach", {"job": JOB, "attempt": 1, "offsets": {}})  # its agent missed that, too
        again.close()
        return answer, former

    assert run(kit, work) == ({"exit": {"code": 6}},) * 2


def test_a_start_that_was_given_up_never_happens_and_the_next_trial_does(kit):
    spec = {"job": JOB, "vo": VO, "user": USER, "argv": ["true"]}

    async def work():
        peer = await kit.as_user()
        assert await peer.call("run.void", {"job": JOB, "attempt": 1, "trial": 1}) == {"here": False}
        with pytest.raises(RemoteError, match="too late"):
            await peer.call("run.start", {"spec": spec, "trial": 1})
        assert kit.jobd.starts == []
        call = peer.open("run.start", {"spec": spec, "trial": 2})
        assert (await call.receive()).body["type"] == "started"
        assert await peer.call("run.void", {"job": JOB, "attempt": 1, "trial": 2}) == {"here": True}
        with contextlib.closing(call):
            kit.jobd.tell(KEY, state="exited", exit={"code": 0})
            await until(lambda: states(kit) == [("ended", "exited")])
        answer = await peer.call("run.void", {"job": JOB, "attempt": 1, "trial": 2})
        peer.close()
        return answer, kit.jobd.starts

    assert run(kit, work) == ({"here": True}, [KEY])


def test_the_same_start_twice_runs_once(kit):
    spec = {"job": JOB, "vo": VO, "user": USER, "argv": ["true"]}

    async def work():
        peer = await kit.as_user()
        call = peer.open("run.start", {"spec": spec, "trial": 1})
        assert (await call.receive()).body["type"] == "started"
        with pytest.raises(RemoteError, match="already given"):
            await peer.call("run.start", {"spec": spec, "trial": 2})
        peer.close()
        return kit.jobd.starts, kit.jobs.running_count, kit.jobd.signals, states(kit)

    assert run(kit, work) == ([KEY], 1, [], [("starting", None)])
