"""Claims about what programs on three mounts of a real file system are told while its processes are killed, frozen and cut off.

Each is a short run of `testing.fsjepsen`, whose judge knows what a single machine could have said; `bench/fs_soak.py` runs the same for long.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xtreemos.testing.fsjepsen import Plan, Run
from xtreemos.testing.fsjepsen_net import CutGrid
from xtreemos.xtreemfs.model import VolumePolicy

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]


@pytest.fixture(scope="module")
def grid():
    with CutGrid(osds=2, mounts=3, policy=VolumePolicy(width=2, object_bytes=1 << 18)) as made:
        yield made


def judged(grid, request, plan):
    """Run a plan in a folder of its own and return its report, which must be without problems."""
    report = Run(grid, plan, request.node.name.replace("[", "-").replace("]", "")).go()
    assert not report.problems, str(report)
    return report


@pytest.mark.parametrize("plan", [
    Plan("register", 1.5, sync=False, pause_s=0.004),
    Plan("register+mapped", 1.5, sync=False, pause_s=0.004),
    Plan("names", 1.5),
    Plan("elect", 1.5),
    Plan("append", 1.5, workers=16),
    Plan("locked", 1.5),
    Plan("locked", 1.5, how="flock"),
], ids=["registers", "mappings", "names", "elections", "appends", "locks", "flocks"])  # fmt: skip
def test_without_faults_no_call_fails_and_the_history_is_linearizable(grid, request, plan):
    assert judged(grid, request, plan).done > 10


SERVERS = ("kill-mrc", "kill-osd", "blink-mrc", "blink-osd")


@pytest.mark.parametrize("workload", ["register", "names", "append", "files"])
def test_servers_that_are_killed_and_paused_lose_and_reorder_nothing(grid, request, workload):
    judged(grid, request, Plan(workload, 3.0, faults=SERVERS, every_s=0.4, seed=7, pause_s=0.005))


def test_a_cut_in_the_middle_of_giving_back_a_lease_overwrites_no_record_of_others(grid, request):
    judged(grid, request, Plan("append", 4.0, faults=("cut-mount",), every_s=0.4, seed=3, pause_s=0.005))


def test_a_client_that_is_frozen_for_longer_than_its_lease_is_fenced(grid, request):
    report = judged(grid, request, Plan("locked", 3.0, faults=("freeze-mount",), every_s=0.5, seed=1))
    assert report.faults["freeze-mount"]
