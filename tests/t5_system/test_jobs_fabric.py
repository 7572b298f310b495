"""Detached jobs over a real nats-server: real streams, leases, roles and signatures; programs are only pretended."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos import names
from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.client import JobsClient
from xtreemos.aem.manager.driver import ManagerDriver
from xtreemos.aem.manager.fabricport import FabricPort, ensure_job_streams
from xtreemos.aem.manager.model import Capacity
from xtreemos.aem.manager.ports import MANAGER_LEASE
from xtreemos.aem.manager.signed import sign_submission, verify_submission
from xtreemos.aem.nodejobs import ContactFile, Hooks, NodeJobs
from xtreemos.aem.nodestore import NodeStore
from xtreemos.errors import NotFound, RemoteError
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.kv import ensure_bucket, open_bucket
from xtreemos.fabric.lease import Lease
from xtreemos.testing.natsgrid import NatsGrid
from xtreemos.vo.x509 import der, make_ca

KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = [der(make_ca("session", key=KEY, parent=None, now=1_700_000_000, life_s=3600))]


def verify(record):
    return verify_submission(record, lambda _chain, _at: Caller("user", vo="demo", name="alice"))


def record(number, **more):
    job = names.job_id(number.to_bytes(8, "little"))
    return sign_submission(JobSpec(job=job, vo="demo", user="alice", argv=["true"], detached=True, **more), CHAIN, KEY)


class Node:
    """A node whose programs end at once with code 0 (or never, if their cwd says so)."""

    def __init__(self, folder, name):
        self.name = name
        self.folder = folder
        self.store = NodeStore(folder / f"{name}.db")
        self.pool = ThreadPoolExecutor(1)
        self.starts = {}
        self.task = None

    async def start(self, grid):
        self.port = FabricPort(await grid.connect("node", self.name))
        hooks = Hooks(
            verify=verify, admit=self._admit, launch=self._launch, signal=self._signal, capacity=lambda: Capacity(4, 8, 1 << 33),
            facts=lambda: (1, {"name": self.name}), draining=lambda: False, clock_s=time.monotonic, wall_at=time.time,
        )  # fmt: skip
        commit = GroupCommit(self.store, self.pool)
        contact = ContactFile(self.folder / f"{self.name}.contact", "boot")
        self.jobs = NodeJobs(self.port, self.name, "demo", self.store, commit, hooks, clock_id="boot", contact=contact)
        await self.jobs.recover({key: None for key in self.starts if self.starts[key] == "runs"}, "life")
        self.task = asyncio.create_task(self.jobs.run())

    async def crash(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def stop(self):
        await self.crash()
        self.pool.shutdown()
        self.store.close()

    async def _admit(self, submission, attempt):
        pass

    async def _launch(self, submission, attempt):
        key = (submission.spec.job, attempt)
        assert key not in self.starts, "started twice"
        self.starts[key] = "runs"
        if submission.spec.cwd != "/forever":
            self.starts[key] = "ended"
            asyncio.get_running_loop().create_task(self.jobs.ended(*key, {"code": 0, "signal": None}))
        return time.time()

    async def _signal(self, job, attempt, signal):
        if self.starts.get((job, attempt)) != "runs":
            raise NotFound("no such job")
        self.starts[job, attempt] = "ended"
        await self.jobs.ended(job, attempt, {"code": None, "signal": signal})


async def manager(grid, name):
    fabric = await grid.connect("service", name)
    bucket = await open_bucket(fabric, "vo")
    driver = ManagerDriver(
        FabricPort(fabric), lambda: Lease(bucket, MANAGER_LEASE, name, 3), verify=verify, matches=lambda where, facts: facts.get("name") == where,
        is_admin=lambda _user: False, clock_s=time.monotonic,
    )  # fmt: skip
    return driver, asyncio.create_task(driver.run())


async def scenario(tmp_path, work):
    async with NatsGrid(tmp_path / "nats") as grid:
        service = await grid.connect("service", "setup")
        await ensure_bucket(service, "vo", copies=1)
        await ensure_job_streams(service, copies=1)
        nodes = [Node(tmp_path, f"n{i}") for i in (1, 2)]
        managers = [await manager(grid, f"m{i}") for i in (1, 2)]
        try:
            for node in nodes:
                await node.start(grid)
            client = JobsClient(FabricPort(await grid.connect("member", "alice", sid="s9")), "alice", clock_s=time.monotonic)
            await work(grid, client, nodes, managers)
        finally:
            for _, task in managers:
                task.cancel()
            await asyncio.gather(*(task for _, task in managers), *(node.stop() for node in nodes), return_exceptions=True)
            await grid.stop()


async def ended(client, jobs):
    return {view["job"]: view async for view in client.wait_jobs(jobs)}


def test_jobs_end_once_while_daemons_and_the_leader_die(tmp_path, record_property):
    async def work(grid, client, nodes, managers):
        begun = time.monotonic()
        records = [record(number) for number in range(300)]
        jobs = []

        async def submit():
            for one in records:
                jobs.append(await client.submit(one))  # noqa: PERF401  # others look at it meanwhile

        submitting = asyncio.create_task(submit())
        while len(jobs) < 100:
            await asyncio.sleep(0.01)
        leader = next(pair for pair in managers if pair[0].leads)
        leader[1].cancel()
        await nodes[0].crash()
        await nodes[0].start(grid)
        await submitting
        views = await asyncio.wait_for(ended(client, jobs), 60)
        record_property("seconds", time.monotonic() - begun)
        assert all(view["outcome"] == "exited" and view["exit"]["code"] == 0 for view in views.values())
        assert len(views) == 300
        assert sum(len(node.starts) for node in nodes) == 300
        assert await client.list_jobs() == []
        assert len(await client.list_jobs(ended=True)) == 300

    asyncio.run(scenario(tmp_path, work))


def test_a_submission_published_twice_runs_once_and_a_running_job_is_killed(tmp_path):
    async def work(_grid, client, nodes, _managers):
        one = record(1, cwd="/forever", node="n2")
        job = await client.submit(one)
        assert await client.submit(one) == job
        while (await client.status([job]))[0]["state"] != "running":
            await asyncio.sleep(0.05)
        waiting = asyncio.create_task(ended(client, [job]))
        await client.kill(job, 9)
        views = await asyncio.wait_for(waiting, 20)
        assert views[job]["exit"]["signal"] == 9
        assert list(nodes[1].starts) == [(job, 1)]
        lonely = await client.submit(record(2, where="nowhere"))
        (view,) = await client.status([lonely])
        assert view["reason"] in {"waiting: no node matches nowhere", "waiting: just submitted"}
        with pytest.raises(RemoteError, match="no detached job"):
            await client.kill("jzzzzzzzzzzzz", 9)

    asyncio.run(scenario(tmp_path, work))


@pytest.mark.parametrize("count", [400])
def test_throughput_of_a_burst(tmp_path, count, capsys):
    async def work(_grid, client, nodes, _managers):
        records = [record(number) for number in range(count)]
        await ended(client, [await client.submit(record(99_999))])
        begun = time.monotonic()
        jobs = []
        for start in range(0, count, 50):
            jobs += await asyncio.gather(*(client.submit(one) for one in records[start : start + 50]))
        submitted_s = time.monotonic() - begun
        await asyncio.wait_for(ended(client, jobs), 60)
        total_s = time.monotonic() - begun
        with capsys.disabled():
            print(f"\n{count} jobs: submitted {count / submitted_s:.0f}/s, ended {count / total_s:.0f}/s")
        assert sum(len(node.starts) for node in nodes) == count + 1

    asyncio.run(scenario(tmp_path, work))
