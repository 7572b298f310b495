"""Who may give back a job's network."""

from __future__ import annotations

import asyncio

from xtreemos.foundation.jobnet import JobNet, JobNetPool
from xtreemos.node.nets import Nets


def test_only_a_network_that_was_kept_is_adopted_and_only_once(tmp_path):
    nets = Nets(JobNetPool(tmp_path), kept=["/run/xtreemos/netns/xj44"])
    assert nets.adopt("/run/xtreemos/netns/xj2") is None  # of a job that had ended: the number is another's by now
    assert nets.adopt("/run/xtreemos/netns/xj44") == "/run/xtreemos/netns/xj44"
    assert nets.adopt("/run/xtreemos/netns/xj44") is None
    assert nets.adopt(None) is None


def test_a_network_that_comes_back_serves_again_before_another_is_made(tmp_path, monkeypatch):
    made = []

    def make(self):
        number = self._number()
        made.append(number)
        return JobNet(f"{tmp_path}/xj{number}", "", f"xj{number}", number)

    monkeypatch.setattr(JobNetPool, "_make", make)
    async def lend_and_take_back(nets):
        for _ in range(20):
            net = await nets.take()
            nets.give_back(net.path)

    pool = JobNetPool(tmp_path, size=8, kept=48)
    pool.fill()
    asyncio.run(lend_and_take_back(Nets(pool)))
    assert len(made) == 8
