"""Who may give back a job's network."""

from __future__ import annotations

import asyncio

import pytest

from xtreemos.foundation.jobnet import JobNet, JobNetPool
from xtreemos.node.nets import Nets


def test_only_a_network_that_was_kept_is_adopted_and_only_once(tmp_path):
    nets = Nets(JobNetPool(tmp_path), kept=["/run/xtreemos/netns/xj44"])
    assert nets.adopt("/run/xtreemos/netns/xj2") is None  # of a job that had ended: the number is another's by now
    assert nets.adopt("/run/xtreemos/netns/xj44") == "/run/xtreemos/netns/xj44"
    assert nets.adopt("/run/xtreemos/netns/xj44") is None
    assert nets.adopt(None) is None


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool of eight, with `made` and `gone` instead of the kernel."""
    pool = JobNetPool(tmp_path, size=8, kept=12)
    pool.made, pool.gone = [], []

    def make(self):
        number = self._number()
        pool.made.append(number)
        return JobNet(f"{tmp_path}/xj{number}", "", f"xj{number}", number)

    monkeypatch.setattr(JobNetPool, "_make", make)
    monkeypatch.setattr(JobNetPool, "_destroy", lambda _self, interface, _path: pool.gone.append(interface))
    pool.fill()
    return pool


def test_a_network_that_comes_back_serves_again_before_another_is_made(pool):
    async def lend_and_take_back(nets):
        for _ in range(20):
            net = await nets.take("demo")
            nets.give_back(net.path, "demo")

    asyncio.run(lend_and_take_back(Nets(pool)))
    assert len(pool.made) == 8


def test_a_network_never_goes_from_one_vo_to_another(pool):
    lent = [pool.take("red") for _ in range(8)]
    for net in lent:
        pool.give_back(net, "red")
    assert (pool.ready_count("red"), pool.ready_count("blue")) == (8, 0)
    blue = [pool.take("blue") for _ in range(3)]
    assert not {net.number for net in blue} & {net.number for net in lent}
    assert pool.take("red") in lent


def test_networks_are_made_ahead_for_a_vo_that_the_waiting_ones_cannot_serve(pool):
    for net in [pool.take("red") for _ in range(8)]:
        pool.give_back(net, "red")

    async def take_one():
        nets = Nets(pool)
        await nets.take("blue")
        await nets._filling

    asyncio.run(take_one())
    assert pool.ready_count("blue") == 8


def test_when_there_are_too_many_the_one_that_waits_longest_goes(pool):
    lent = [pool.take(vo) for vo in ["red"] * 8 + ["blue"] * 8]
    for net, vo in zip(lent, ["red"] * 8 + ["blue"] * 8, strict=True):
        pool.give_back(net, vo)
    assert pool.gone == [net.interface for net in lent[:4]]
    assert (pool.ready_count("red"), pool.ready_count("blue")) == (4, 8)
    pool.give_back(lent[15], "red")  # twice, and as somebody else: it is blue's and stays
    assert (pool.ready_count("red"), pool.ready_count("blue")) == (4, 8)


def test_a_network_of_nobody_serves_nobody_again(pool):
    net = pool.take("red")
    pool.give_back(net, "")
    assert pool.gone == [net.interface]
    assert pool.take("red") != net
