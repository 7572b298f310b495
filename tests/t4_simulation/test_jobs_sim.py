"""Whole grids of detached jobs under faults, by seeds. XOS_SIM_SEEDS=N runs N seeds, XOS_SIM_FIRST=K begins at K (`make soak`)."""

import asyncio
import os

import pytest

from xtreemos.aem.manager import driver, model
from xtreemos.testing import simfabric, simjobs
from xtreemos.testing.simjobs import Plan, Violation, World, seeds, simulate

SEEDS = int(os.environ.get("XOS_SIM_SEEDS", "40"))
FIRST = int(os.environ.get("XOS_SIM_FIRST", "0"))
PART = 20


def simulate_all(plans):
    for plan in plans:
        simulate(plan)


@pytest.mark.log_warnings(r"no longer leads|leads the VO|report")
@pytest.mark.timeout(60 + 2 * PART * max(1, SEEDS // 60))
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, PART))
def test_every_submitted_job_ends_exactly_once(first):
    outcomes = set()
    for plan in seeds(first, PART):
        outcomes |= {row.outcome for row in simulate(plan).values()}
    assert model.Outcome.EXITED in outcomes


@pytest.mark.parametrize("seed", [66, 124, 319, 10578])
def test_seeds_that_once_found_bugs_stay_clean(seed):
    for plan in seeds(seed, 5):
        simulate(Plan(**{**{name: getattr(plan, name) for name in Plan.__slots__}, "seed": seed}))


def test_a_quiet_grid_ends_every_job_at_its_first_attempt():
    plan = Plan(1, jobs=40, lost=0, doubled=0, late=0, fault_every_s=1e9, refusal=0, rough_s=20)
    rows = simulate(plan)
    arrays = len(range(0, 40, simjobs.ARRAY_EACH))
    assert len(rows) == 40 + arrays * (simjobs.ARRAY_TASKS - 1)
    assert all(row.attempt <= 1 for row in rows.values())


def test_the_same_seed_tells_the_same_story():
    def story(seed):
        return sorted((row.job, str(row.outcome), row.attempt, row.losses) for row in simulate(Plan(seed)).values())

    assert story(7) == story(7)


def test_nothing_changes_when_the_log_is_compacted_all_the_time(monkeypatch):
    monkeypatch.setattr(driver, "COMPACT_AFTER", 5)
    simulate_all(seeds(300, 10))


def test_the_checker_finds_a_log_without_fencing(monkeypatch):
    append = simfabric._Stream.append
    monkeypatch.setattr(simfabric._Stream, "append", lambda self, s, d, m, _expected: append(self, s, d, m, None))
    with pytest.raises((Violation, ExceptionGroup)):
        simulate_all(seeds(0, 10))


class CutOff(World):
    """A node with a long job that may be retried is cut off, while its daemon is killed every 4 s."""

    async def _rough(self):
        await asyncio.sleep(self.plan.rough_s / 2 + 5)
        (node,) = [node for node in self.nodes if node.jobd]
        self.fabric.cut.add(node.name)
        for _ in range(12):
            await asyncio.sleep(3)
            node.crash_daemon()
            await asyncio.sleep(1)
            node.start()


CUT_OFF = Plan(1, jobs=1, lost=0, doubled=0, late=0, refusal=0, rough_s=10, job_s=70, retry=1)


def test_a_cut_off_node_kills_what_starts_elsewhere_although_its_daemon_dies_all_the_time():
    rows = simulate(CUT_OFF, CutOff).values()  # an array: one of its tasks waits for room on the node when that is cut off
    assert {row.outcome for row in rows} == {model.Outcome.EXITED}
    assert max(row.losses for row in rows) == 1


def test_the_checker_finds_a_node_that_does_not_remember_its_contact(monkeypatch):
    monkeypatch.setattr(simjobs.SimNode, "load", lambda self: self.world.now_s())
    with pytest.raises((Violation, ExceptionGroup)):
        simulate(CUT_OFF, CutOff)
