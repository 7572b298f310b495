"""Three real nats-servers: SIGKILL and SIGSTOP of stream leaders while writers write and watchers watch, and a full restart."""

import asyncio
import contextlib
import itertools
import signal
import time

import pytest

from natskit import grid_of, running
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import KeyExists, LeaseTaken, RevisionMismatch, Unreachable
from xtreemos.fabric.kv import Deleted, Entry
from xtreemos.fabric.lease import Lease
from xtreemos.fabric.stream import Synced, scale_streams, stream_info

WRITERS = 4
WATCHERS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with grid_of(tmp_path_factory, _prepare, servers=3) as world:
        yield world


async def _prepare(grid):
    grid.fabrics = [await grid.connect("service", f"n{number + 1}", server=number) for number in range(3)]
    await grid.fabrics[0].ensure_bucket("vo")
    await grid.fabrics[0].ensure_stream({"name": subjects.SUBMIT_STREAM, "subjects": [subjects.SUBMIT_FILTER]})


@pytest.fixture
def run(world):
    return running(world, 40, mend)


async def mend(grid):
    """All servers run, all streams have all copies."""
    for number, server in enumerate(grid.servers):
        grid.kill(number, signal.SIGCONT)
        if server.pid is None:
            await server.start()
    await scale_streams(grid.fabrics[0], 3)


async def leader_of(grid, stream):
    return grid.index_of((await stream_info(grid.fabrics[0], stream))["cluster"]["leader"])


class Load:
    """Writers that count up keys by CAS, watchers that follow; knows what was acknowledged."""

    def __init__(self, grid, name):
        self.grid = grid
        self.name = name
        self.acknowledged: dict[str, int] = {}
        self.pictures: list[dict[str, bytes]] = [{} for _ in range(WATCHERS)]
        self.latencies_s: list[float] = []
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task] = []

    async def __aenter__(self):
        for number in range(WRITERS):
            self._tasks.append(asyncio.create_task(self._write(number)))
        for number in range(WATCHERS):
            self._tasks.append(asyncio.create_task(self._watch(number)))
        return self

    async def _write(self, number):
        bucket, key = await self.grid.fabrics[number % 3].bucket("vo"), f"{self.name}.{number}"
        count, revision = 0, await bucket.put(key, b"0")
        while not self._stop.is_set():
            since_s = time.monotonic()
            try:
                revision = await bucket.update(key, str(count + 1).encode(), revision)
            except (Unreachable, RevisionMismatch):
                # unknown: only we write this key, so reading until the leader answers tells
                with contextlib.suppress(Unreachable):
                    entry = await bucket.get(key)
                    count, revision = int(entry.value), entry.revision
                continue
            count += 1
            self.latencies_s.append(time.monotonic() - since_s)
            self.acknowledged[key] = count
            await asyncio.sleep(0.005)

    async def _watch(self, number):
        bucket = await self.grid.fabrics[number % 3].bucket("vo", follow=number == 2)
        picture = self.pictures[number]
        async with contextlib.aclosing(bucket.watch(f"{self.name}.*")) as events:
            async for event in events:
                if isinstance(event, Entry):
                    assert int(event.value) >= int(picture.get(event.key, b"0")), "a watcher went back in time"
                    picture[event.key] = event.value
                elif isinstance(event, Deleted):
                    picture.pop(event.key, None)

    async def progress(self, more=5):
        """Wait until every writer had `more` further acknowledgements."""
        goal = {f"{self.name}.{n}": self.acknowledged.get(f"{self.name}.{n}", 0) + more for n in range(WRITERS)}
        while any(self.acknowledged.get(key, 0) < count for key, count in goal.items()):
            self.check()
            await asyncio.sleep(0.02)

    def check(self):
        for task in self._tasks:
            if task.done():
                task.result()

    async def finish(self):
        """Stop writing; nothing acknowledged may be missing, and every watcher must come to the same picture."""
        self._stop.set()
        await asyncio.gather(*self._tasks[:WRITERS])
        bucket = await self.grid.fabrics[0].bucket("vo")
        truth = {entry.key: entry.value for entry in await bucket.entries(f"{self.name}.*")}
        assert {key: int(value) for key, value in truth.items()} == self.acknowledged
        while any(picture != truth for picture in self.pictures):
            self.check()
            await asyncio.sleep(0.02)

    async def __aexit__(self, *exc):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def test_all_three_are_safe_and_know_each_other(run):
    async def claim(grid):
        system = await grid.system_account()
        await system.check_safe(3)
        await system.push_account(grid.account_jwt(), copies=3)
        assert [server.name for server in await system.servers(3)] == ["n1", "n2", "n3"]
        assert len(grid.fabrics[0].servers) == 3

    run(claim)


def test_nothing_acknowledged_is_lost_when_the_leader_is_killed(run):
    async def claim(grid):
        async with Load(grid, "killed") as load:
            await load.progress()
            leader = await leader_of(grid, "KV_vo")
            grid.kill(leader)
            killed_s = time.monotonic()
            await load.progress()
            assert time.monotonic() - killed_s < 15
            await grid.servers[leader].wait()
            await grid.servers[leader].start()
            await load.progress()
            await load.finish()

    run(claim)


def test_nothing_acknowledged_is_lost_when_the_leader_is_paused(run):
    async def claim(grid):
        async with Load(grid, "paused") as load:
            await load.progress()
            leader = await leader_of(grid, "KV_vo")
            server = grid.servers[leader].config.url
            on_it = [fabric for fabric in grid.fabrics if fabric.state.server == server]
            grid.kill(leader, signal.SIGSTOP)
            paused_s = time.monotonic()
            await load.progress()
            assert time.monotonic() - paused_s < 20
            for fabric in on_it:
                assert fabric.state.connected
                assert fabric.state.server != server
                assert fabric.state.since_s - paused_s < 6  # it moved on by itself
            grid.kill(leader, signal.SIGCONT)
            await load.progress()
            await load.finish()

    run(claim)


def test_a_lease_has_one_holder_at_a_time_while_its_leader_is_paused(run):
    async def claim(grid):
        spans: list[tuple[float, float, int]] = []
        stop = asyncio.Event()

        async def candidate(number):
            bucket = await grid.fabrics[number].bucket("vo")
            while not stop.is_set():
                lease = Lease(bucket, "lease.x", f"n{number + 1}", 2)
                try:
                    token = await lease.acquire()
                except (LeaseTaken, Unreachable, KeyExists):
                    await asyncio.sleep(0.05)
                    continue
                since_s = until_s = time.monotonic()
                while lease.held and not stop.is_set() and until_s - since_s < 1.5:
                    until_s = time.monotonic()
                    await asyncio.sleep(0.01)
                spans.append((since_s, until_s, token))
                await lease.release()

        tasks = [asyncio.create_task(candidate(number)) for number in range(3)]
        while len(spans) < 2:
            await asyncio.sleep(0.05)
        leader = await leader_of(grid, "KV_vo")
        grid.kill(leader, signal.SIGSTOP)
        seen = len(spans)
        while len(spans) < seen + 3:
            await asyncio.sleep(0.05)
        grid.kill(leader, signal.SIGCONT)
        stop.set()
        await asyncio.gather(*tasks)
        spans.sort()
        for (_, until_s, token), (since_s, _, later) in itertools.pairwise(spans):
            assert until_s <= since_s + 0.02
            assert token < later

    run(claim)


def test_readers_of_a_stream_see_each_message_once_over_a_restart_of_everything(run):
    async def claim(grid):
        fabric = grid.fabrics[0]
        seen: list[int] = []
        synced = asyncio.Event()

        async def read():
            async with contextlib.aclosing(grid.fabrics[1].consume(subjects.SUBMIT_STREAM)) as events:
                async for event in events:
                    if isinstance(event, Synced):
                        synced.set()
                    else:
                        seen.append(int(event.data))

        reader = asyncio.create_task(read())
        for number in range(20):
            await fabric.append(subjects.submit("alice", f"j{number}"), str(number).encode(), msg_id=f"a{number}")
        await synced.wait()
        for number in range(3):
            grid.kill(number)
        await asyncio.gather(*(server.wait() for server in grid.servers))
        writing = asyncio.create_task(fabric.append(subjects.submit("alice", "j20"), b"20", msg_id="a20", timeout_s=30))
        await asyncio.gather(*(server.start() for server in grid.servers))
        await writing
        for number in range(21, 30):
            await fabric.append(subjects.submit("alice", f"j{number}"), str(number).encode(), msg_id=f"a{number}", timeout_s=20)
        while len(seen) < 30:
            if reader.done():
                reader.result()
            await asyncio.sleep(0.02)
        assert seen == list(range(30))
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader

    run(claim)
