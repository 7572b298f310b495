"""Leases in virtual time, on a bucket that misbehaves."""

import asyncio

import pytest

from xtreemos.fabric.errors import LeaseTaken, Unreachable
from xtreemos.fabric.lease import Lease
from xtreemos.testing.kv import MemoryBucket
from xtreemos.testing.virtualtime import run_virtual

TTL_S = 6


def lease(bucket, holder):
    return Lease(bucket, "lease.manager", holder, TTL_S, clock=asyncio.get_running_loop().time)


def test_one_holder_at_a_time_and_tokens_grow():
    async def claim():
        bucket = MemoryBucket()
        first, second = lease(bucket, "n1"), lease(bucket, "n2")
        token = await first.acquire()
        with pytest.raises(LeaseTaken, match="n1"):
            await second.acquire()
        await asyncio.sleep(100)
        assert first.held
        await first.release()
        assert not first.held
        assert await second.acquire() > token
        await second.release()
        assert await bucket.keys() == []

    run_virtual(claim())


def test_a_waiting_one_takes_over_when_the_holder_dies():
    async def claim():
        bucket, loop = MemoryBucket(), asyncio.get_running_loop()
        first, second = lease(bucket, "n1"), lease(bucket, "n2")
        token = await first.acquire()
        first._task.cancel()  # the process died
        since_s = loop.time()
        assert await second.acquire_wait() > token
        assert loop.time() - since_s <= TTL_S + 1
        assert first.lost.is_set()
        await second.release()

    run_virtual(claim())


def test_a_holder_that_is_cut_off_stops_before_another_may_start():
    async def claim():
        bucket, loop = MemoryBucket(), asyncio.get_running_loop()
        first = lease(bucket, "n1")
        await first.acquire()
        bucket.lose_leader()
        cut_s = loop.time()
        await first.lost.wait()
        assert not first.held
        assert loop.time() - cut_s < TTL_S
        bucket.elect_leader()
        await lease(bucket, "n2").acquire_wait()
        assert loop.time() - cut_s >= TTL_S

    run_virtual(claim())


def test_a_short_loss_of_the_leader_is_survived():
    async def claim():
        bucket = MemoryBucket()
        first = lease(bucket, "n1")
        await first.acquire()
        for _ in range(5):
            bucket.lose_leader()
            await asyncio.sleep(TTL_S / 2)
            bucket.elect_leader()
            await asyncio.sleep(TTL_S)
            assert first.held
        await first.release()

    run_virtual(claim())


def test_a_renewal_whose_answer_was_lost_is_recognised():
    async def claim():
        bucket = MemoryBucket()
        first = lease(bucket, "n1")
        await first.acquire()
        await asyncio.sleep(TTL_S / 3 - 0.1)
        bucket.lose_answers = 1
        await asyncio.sleep(TTL_S * 2)
        assert bucket.lose_answers == 0
        assert first.held
        await first.release()

    run_virtual(claim())


def test_a_conflict_ends_the_lease_at_once():
    async def claim():
        bucket, loop = MemoryBucket(), asyncio.get_running_loop()
        first = lease(bucket, "n1")
        await first.acquire()
        await bucket.put("lease.manager", b'{"holder": "operator", "token": 0}', ttl_s=60)
        since_s = loop.time()
        await first.lost.wait()
        assert loop.time() - since_s <= TTL_S / 3 + 0.1

    run_virtual(claim())


def test_a_slow_acquisition_is_not_used():
    class Slow(MemoryBucket):
        async def create(self, key, value, ttl_s=None):
            revision = await super().create(key, value, ttl_s)
            await asyncio.sleep(TTL_S)
            return revision

    async def claim():
        with pytest.raises(LeaseTaken, match="too slowly"):
            await lease(Slow(), "n1").acquire()

    run_virtual(claim())


def test_releasing_without_fabric_leaves_the_rest_to_time():
    async def claim():
        bucket = MemoryBucket()
        first = lease(bucket, "n1")
        await first.acquire()
        bucket.lose_leader()
        await first.release()
        bucket.elect_leader()
        with pytest.raises(LeaseTaken):
            await lease(bucket, "n2").acquire()
        await asyncio.sleep(TTL_S)
        await lease(bucket, "n2").acquire()

    run_virtual(claim())


def test_an_unreachable_bucket_is_told_as_such():
    async def claim():
        bucket = MemoryBucket()
        bucket.lose_leader()
        with pytest.raises(Unreachable):
            await lease(bucket, "n1").acquire()

    run_virtual(claim())


@pytest.mark.parametrize("seed", range(20))
def test_under_any_faults_at_most_one_holds_and_tokens_rise_with_time(seed):
    """Three candidates, leader losses and lost answers at random; virtual minutes."""
    import random

    rng = random.Random(seed)

    async def claim():
        bucket, loop = MemoryBucket(), asyncio.get_running_loop()
        history: list[tuple[float, int]] = []

        async def candidate(name):
            while True:
                mine = lease(bucket, name)
                token = await mine.acquire_wait()
                history.append((loop.time(), token))
                holders.add(mine)
                work_s = rng.choice([1.0, 30.0])
                try:
                    await asyncio.wait_for(mine.lost.wait(), work_s)
                except TimeoutError:
                    pass
                holders.discard(mine)
                await mine.release()
                await asyncio.sleep(rng.random())

        holders: set[Lease] = set()
        tasks = [asyncio.create_task(candidate(f"n{number}")) for number in range(3)]
        for _ in range(60):
            await asyncio.sleep(rng.random() * 4)
            assert sum(one.held for one in holders) <= 1
            match rng.randrange(4):
                case 0:
                    bucket.lose_leader()
                case 1:
                    bucket.lose_answers += 1
                case _:
                    bucket.elect_leader()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [token for _, token in history] == sorted({token for _, token in history})
        assert history

    run_virtual(claim())


def test_a_holder_started_again_takes_over_its_own_lease_at_once_and_the_earlier_life_is_fenced():
    async def claim():
        bucket, loop = MemoryBucket(), asyncio.get_running_loop()
        first = lease(bucket, "n1")
        token = await first.acquire()
        again = Lease(bucket, "lease.manager", "n1", TTL_S, clock=loop.time, sole=True)
        since_s = loop.time()
        assert await again.acquire_wait() > token
        assert loop.time() == since_s
        await first.lost.wait()  # its next renewal fails: it was not dead after all
        assert again.held
        other = Lease(bucket, "lease.manager", "n2", TTL_S, clock=loop.time, sole=True)
        with pytest.raises(LeaseTaken, match="n1"):
            await other.acquire()
        await again.release()

    run_virtual(claim())
