"""What every bucket promises: the one of the fabric (real nats-server), read both ways, and the one in memory."""

import asyncio
import contextlib

import pytest

from xtreemos.fabric.errors import BadSubject, KeyExists, RevisionMismatch, Unreachable
from xtreemos.fabric.kv import Bucket, Deleted, Entry, Store, Synced
from xtreemos.testing.kv import MemoryBucket
from xtreemos.testing.natsgrid import NatsGrid

WAIT_S = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with asyncio.Runner() as runner:
        grid = NatsGrid(tmp_path_factory.mktemp("grid"))
        try:
            runner.run(grid.start())
            runner.run(_connect(grid))
            yield runner, grid
        finally:
            runner.run(grid.stop())


async def _connect(grid):
    grid.fabric = await grid.connect()


@pytest.fixture(params=["memory", "fabric", "fabric-followed"])
def make(request, world):
    """(run, make a fresh empty bucket)."""
    runner, grid = world
    name = f"t{abs(hash(request.node.name)) % 10**12}"

    async def fresh():
        if request.param == "memory":
            return MemoryBucket(name)
        await grid.fabric.ensure_bucket(name)
        return await grid.fabric.bucket(name, follow=request.param == "fabric-followed")

    def run(claim):
        async def main():
            async with asyncio.timeout(WAIT_S):
                await claim(await fresh())

        runner.run(main())

    return run


async def until(events, wanted):
    """Collect events until one equals `wanted` or is of that type."""
    seen = []
    async for event in events:
        seen.append(event)
        if event == wanted or event.__class__ is wanted:
            return seen
    raise AssertionError(f"ended after {seen}")


def test_a_value_is_read_back(make):
    async def claim(bucket: Store):
        assert await bucket.get("a") is None
        revision = await bucket.put("a", b"1")
        assert await bucket.get("a") == Entry("a", b"1", revision)
        assert await bucket.put("a", b"") > revision
        assert (await bucket.get("a")).value == b""

    make(claim)


def test_create_is_once(make):
    async def claim(bucket: Store):
        revision = await bucket.create("a", b"1")
        with pytest.raises(KeyExists):
            await bucket.create("a", b"2")
        assert await bucket.get("a") == Entry("a", b"1", revision)

    make(claim)


def test_update_needs_the_revision(make):
    async def claim(bucket: Store):
        first = await bucket.create("a", b"1")
        second = await bucket.update("a", b"2", first)
        assert second > first
        with pytest.raises(RevisionMismatch):
            await bucket.update("a", b"3", first)
        with pytest.raises(RevisionMismatch):
            await bucket.update("never", b"3", 5)
        assert (await bucket.get("a")).value == b"2"

    make(claim)


def test_one_of_many_creators_wins(make):
    async def claim(bucket: Store):
        tries = [bucket.create("a", str(number).encode()) for number in range(10)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        won = [number for number, result in enumerate(results) if isinstance(result, int)]
        assert len(won) == 1
        assert all(isinstance(result, KeyExists) for result in results if not isinstance(result, int))
        assert (await bucket.get("a")).value == str(won[0]).encode()

    make(claim)


def test_a_counter_by_compare_and_swap_loses_nothing(make):
    async def claim(bucket: Store):
        await bucket.create("n", b"0")

        async def add(times):
            while times:
                entry = await bucket.get("n")
                with contextlib.suppress(RevisionMismatch):
                    await bucket.update("n", str(int(entry.value) + 1).encode(), entry.revision)
                    times -= 1

        await asyncio.gather(*(add(10) for _ in range(4)))
        assert (await bucket.get("n")).value == b"40"

    make(claim)


def test_a_deleted_key_can_be_created_and_revisions_only_grow(make):
    async def claim(bucket: Store):
        first = await bucket.create("a", b"1")
        with pytest.raises(RevisionMismatch):
            await bucket.delete("a", first + 100)
        await bucket.delete("a", first)
        assert await bucket.get("a") is None
        with pytest.raises(RevisionMismatch):
            await bucket.update("a", b"2", first)
        again = await bucket.create("a", b"2")
        assert again > first + 1
        await bucket.delete("a")
        await bucket.delete("a")
        assert await bucket.keys() == []

    make(claim)


def test_a_life_ends_unless_it_is_renewed(make):
    async def claim(bucket: Store):
        async with contextlib.aclosing(bucket.watch()) as events:
            await until(events, Synced)
            revision = await bucket.create("lease", b"me", ttl_s=1)
            await bucket.create("for-ever", b"x", ttl_s=1)
            entry = await bucket.get("for-ever")
            await bucket.update("for-ever", b"x", entry.revision)
            seen = await until(events, Deleted)
            while seen[-1].key != "lease":
                seen = await until(events, Deleted)
            assert seen[-1].revision > revision
        assert await bucket.get("lease") is None
        with pytest.raises(RevisionMismatch):
            await bucket.update("lease", b"me", revision)
        # over the marker of the server, at the first try (nats-py cannot)
        assert await bucket.create("lease", b"you", ttl_s=60) > revision
        assert (await bucket.get("for-ever")).value == b"x"

    make(claim)


def test_a_renewal_prolongs_the_life(make):
    async def claim(bucket: Store):
        revision = await bucket.create("lease", b"me", ttl_s=1)
        for _ in range(3):
            await asyncio.sleep(0.6)  # time itself is what is tested
            revision = await bucket.update("lease", b"me", revision, ttl_s=1)
        assert (await bucket.get("lease")).revision == revision

    make(claim)


def test_patterns_choose_entries(make):
    async def claim(bucket: Store):
        for key in ("user.alice", "user.bob", "user.bob.key", "node.n1"):
            await bucket.put(key, key.encode())
        assert await bucket.keys("user.*") == ["user.alice", "user.bob"]
        assert await bucket.keys("user.>") == ["user.alice", "user.bob", "user.bob.key"]
        assert [entry.value for entry in await bucket.entries("node.n1")] == [b"node.n1"]
        assert await bucket.keys("nobody") == []
        assert len(await bucket.keys()) == 4

    make(claim)


@pytest.mark.parametrize("key", ["", "a b", "a.*", ">", "a..b", "ä", "a\r\nb"])
def test_a_bad_key_is_refused_before_anything_is_sent(make, key):
    async def claim(bucket: Store):
        for call in (
            bucket.get(key),
            bucket.create(key, b""),
            bucket.put(key, b""),
            bucket.update(key, b"", 1),
            bucket.delete(key),
        ):
            with pytest.raises(BadSubject):
                await call

    make(claim)


def test_a_watch_tells_what_is_there_then_synced_then_changes(make):
    async def claim(bucket: Store):
        one = await bucket.put("a.1", b"1")
        await bucket.put("b.1", b"other")
        gone = await bucket.put("a.2", b"2")
        await bucket.delete("a.2")
        async with contextlib.aclosing(bucket.watch("a.>")) as events:
            first = await until(events, Synced)
            assert first[:-1] == [Entry("a.1", b"1", one)]
            two = await bucket.put("a.2", b"3")
            assert two > gone
            await bucket.put("b.2", b"other")
            assert await until(events, Entry("a.2", b"3", two)) == [Entry("a.2", b"3", two)]
            await bucket.delete("a.1")
            assert (await until(events, Deleted))[-1].key == "a.1"

    make(claim)


def test_an_empty_watch_is_synced_at_once(make):
    async def claim(bucket: Store):
        async with contextlib.aclosing(bucket.watch()) as events:
            assert len(await until(events, Synced)) == 1

    make(claim)


def test_many_entries_come_whole_and_many_changes_in_order(make):
    async def claim(bucket: Store):
        await asyncio.gather(*(bucket.put(f"k{number}", b"x") for number in range(1200)))
        assert len(await bucket.keys()) == 1200
        async with contextlib.aclosing(bucket.watch("counter")) as events:
            await until(events, Synced)
            last = 0
            for number in range(50):
                last = await bucket.put("counter", str(number).encode())
            seen = await until(events, Entry("counter", b"49", last))
            assert [event.revision for event in seen] == sorted({event.revision for event in seen})

    make(claim)


def test_watchers_do_not_disturb_each_other(make):
    async def claim(bucket: Store):
        async with contextlib.AsyncExitStack() as stack:
            watches = [await stack.enter_async_context(contextlib.aclosing(bucket.watch())) for _ in range(5)]
            for events in watches:
                await until(events, Synced)
            revision = await bucket.put("a", b"1")
            for events in watches:
                assert await until(events, Entry) == [Entry("a", b"1", revision)]

    make(claim)


# ---- faults that only the one in memory can be told to have


def test_a_stale_read_never_leads_to_a_lost_write():
    async def claim():
        bucket = MemoryBucket()
        first = await bucket.put("a", b"1")
        await bucket.put("a", b"2")
        bucket.stale_reads = 1
        stale = await bucket.get("a")
        assert stale == Entry("a", b"1", first)
        with pytest.raises(RevisionMismatch):
            await bucket.update("a", b"3", stale.revision)

    asyncio.run(claim())


def test_without_leader_nothing_happens_and_watchers_learn_later():
    async def claim():
        bucket = MemoryBucket()
        await bucket.put("a", b"1")
        async with contextlib.aclosing(bucket.watch()) as events:
            await until(events, Synced)
            bucket.lose_leader()
            with pytest.raises(Unreachable) as caught:
                await bucket.put("a", b"2")
            assert caught.value.definite
            bucket.elect_leader()
            assert len(await until(events, Synced)) == 1
        bucket.lose_answers = 1
        with pytest.raises(Unreachable) as caught:
            await bucket.put("a", b"3")
        assert not caught.value.definite
        assert (await bucket.get("a")).value == b"3"

    asyncio.run(claim())


def test_both_kinds_are_stores():
    stores: list[type[Store]] = [MemoryBucket, Bucket]
    for store in stores:
        assert all(hasattr(store, name) for name in ("get", "create", "update", "put", "delete", "entries", "keys", "watch"))
