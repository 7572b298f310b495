"""A whole grid of detached jobs in one seed: real drivers, machine and stores on a simulated fabric, with faults and a checker.

Three manager candidates, some nodes (daemon, jobd, disk), clients. A plan of faults is drawn from the seed: daemons and leaders
crash, nodes lose power or come back empty, hosts are cut off, messages are lost, doubled and late. Then everything heals, and
what was acknowledged must have ended exactly once. `Checker` also watches while it runs that no two attempts of a job live.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos import names
from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager import signed
from xtreemos.aem.manager.client import JobsClient, SubmitUnknown
from xtreemos.aem.manager.driver import ManagerDriver
from xtreemos.aem.manager.model import Batch, Capacity, Cause, Outcome, Row, State, decode
from xtreemos.aem.manager.ports import LOG_STREAM, LOG_SUBJECT
from xtreemos.aem.manager.signed import Submission, sign_submission, verify_submission
from xtreemos.aem.nodejobs import Hooks, NodeJobs
from xtreemos.aem.nodestore import NodeStore
from xtreemos.errors import NotFound, PermissionRefused, TryLater, XosError
from xtreemos.fabric import subjects
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.errors import Unreachable
from xtreemos.testing.simfabric import SimFabric, SimLease, SimPort
from xtreemos.testing.virtualtime import run_virtual

Key = tuple[str, int]
JOBS_POOL = 64
NEVER_STARTED = "killed before it started"
HEALED_S_MAX = 600.0
"""So long after the last fault everything must have ended."""
ARRAY_EACH, ARRAY_TASKS = 7, 5
"""Every so many submissions is an array of so many tasks."""


class Violation(AssertionError):
    """A promise was broken."""


# ---- signed submissions, made once: signing is dear


@functools.cache
def _key_and_chain() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    from xtreemos.vo.x509 import der, make_ca  # a certificate is a certificate here: its chain is judged elsewhere

    key = ec.generate_private_key(ec.SECP256R1())
    return key, der(make_ca("sim", key=key, parent=None, now=1_700_000_000, life_s=86400))


@functools.cache
def _record(number: int, user: str, retry: int, where: str | None, count: int = 1) -> bytes:
    drawn = random.Random(number).randbytes(8)
    job = names.array_id(drawn) if count > 1 else names.job_id(drawn)
    spec = JobSpec(job=job, vo="demo", user=user, argv=["sim", str(number)], detached=True, retry=retry, where=where, count=count)
    key, chain = _key_and_chain()
    return sign_submission(spec, [chain], key)


@functools.lru_cache(maxsize=4096)
def _verify(record: bytes) -> Submission:
    assert x509 is not None
    user = signed.peek_spec(record).user
    return verify_submission(record, lambda _chain, _at: Caller("user", vo="demo", name=user))


def _matches(where: str, facts: dict[str, Any]) -> bool:
    return facts.get("tag") == where


# ---- one node


@dataclass(slots=True)
class _Process:
    exit: dict[str, Any] | None
    started_at: float
    timer: asyncio.TimerHandle | None


class SimNode:
    """A machine: `jobd` and its processes live through crashes of the daemon; a power cut ends both; the disk stays."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        self.world = world
        self.name = name
        self.slots = slots
        self.store = NodeStore(":memory:")
        self.boots = 0
        self.contact_s = -math.inf
        self.jobd: dict[Key, _Process] = {}
        self.port: SimPort | None = None
        self.task: asyncio.Task[None] | None = None
        self.jobs: NodeJobs | None = None
        self.daemons = 0

    # contact memory in the run folder: survives the daemon, not the machine
    def load(self) -> float:
        return self.contact_s

    def save(self, clock_s: float) -> None:
        self.contact_s = clock_s

    def start(self) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self._daemon())

    async def _daemon(self) -> None:
        self.daemons += 1
        world = self.world
        self.port = SimPort(world.fabric, self.name)
        hooks = Hooks(
            verify=_verify,
            admit=self._admit,
            launch=self._launch,
            signal=self._signal,
            capacity=lambda: Capacity(self.slots, 8.0, 8 << 30),
            facts=lambda: (self.boots, {"tag": self.name}),
            draining=lambda: False,
            clock_s=world.now_s,
            wall_at=world.now_s,
        )
        commit = GroupCommit(self.store, None)
        self.jobs = NodeJobs(
            self.port, self.name, "demo", self.store, commit, hooks, clock_id=f"{self.name}-{self.boots}", contact=self
        )
        known = {key: process.started_at for key, process in self.jobd.items()}
        await self.jobs.recover(known, f"life{self.boots}")
        for key, process in list(self.jobd.items()):
            if process.exit is not None:
                await self._tell(key)
        await self.jobs.run()

    def crash_daemon(self) -> None:
        """SIGKILL to xosd."""
        if self.task is not None:
            assert self.port is not None
            self.port.die()
            self.task.cancel()
            self.task = self.jobs = None

    def power_cut(self) -> None:
        """Everything that is not on disk is gone."""
        self.crash_daemon()
        self.boots += 1
        self.contact_s = -math.inf
        for key, process in list(self.jobd.items()):
            if process.timer is not None:
                process.timer.cancel()
                self.world.checker.died(key, self.name)
        self.jobd.clear()

    def wipe(self) -> None:
        """Set up anew: an empty disk."""
        self.power_cut()
        self.store = NodeStore(":memory:")

    async def _admit(self, submission: Submission, _attempt: int) -> None:
        roll = self.world.rng.random()
        if roll < self.world.refusal:
            raise PermissionRefused("the owner does not want it")
        if roll < 2 * self.world.refusal:
            raise TryLater("busy")
        del submission

    async def _launch(self, submission: Submission, attempt: int) -> float:
        await asyncio.sleep(self.world.rng.choice([0.0, self.world.rng.uniform(0, 0.02), self.world.rng.uniform(0, 2)]))
        key = (submission.spec.job, attempt)
        if self.port is None or self.port.dead:
            raise XosError("this daemon is dead")
        if key in self.jobd:
            return self.jobd[key].started_at
        if self.world.rng.random() < self.world.refusal:
            raise XosError("the sandbox could not be made")
        now_s = self.world.now_s()
        self.world.checker.started(key, self.name, submission)
        duration_s = self.world.plan.job_s or self.world.rng.choice([0.0, 0.01, 0.5, 2.0, 8.0, 60.0])
        code = self.world.rng.choice([0, 0, 0, 1])
        timer = asyncio.get_running_loop().call_later(duration_s, self._exit, key, {"code": code, "signal": None})
        self.jobd[key] = _Process(None, now_s, timer)
        return now_s

    def _exit(self, key: Key, exit_: dict[str, Any]) -> None:
        process = self.jobd[key]
        process.exit, process.timer = exit_, None
        self.world.checker.exited(key, self.name, exit_)
        if self.jobs is not None:
            self.world.spawn(self._tell(key))

    async def _tell(self, key: Key) -> None:
        process = self.jobd.get(key)
        if self.jobs is not None and process is not None and process.exit is not None:
            await self.jobs.ended(*key, process.exit)
            self.jobd.pop(key, None)

    async def _signal(self, job: str, attempt: int, signal: int) -> None:
        process = self.jobd.get((job, attempt))
        if process is None:
            raise NotFound("no such job here")
        if process.timer is not None:
            process.timer.cancel()
            self._exit((job, attempt), {"code": None, "signal": signal})


# ---- managers


class SimManager:
    """A candidate on a core host."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.port: SimPort | None = None
        self.task: asyncio.Task[None] | None = None
        self.driver: ManagerDriver | None = None

    def start(self) -> None:
        if self.task is not None:
            return
        port = self.port = SimPort(self.world.fabric, self.name)
        self.driver = ManagerDriver(
            port,
            lambda: SimLease(port, "lease.jobs"),
            verify=_verify,
            matches=_matches,
            is_admin=lambda user: user == "chief",
            clock_s=self.world.now_s,
        )
        self.task = asyncio.create_task(self.driver.run())

    def crash(self) -> None:
        if self.task is not None:
            assert self.port is not None
            self.port.die()
            self.task.cancel()
            self.task = self.driver = None


# ---- the checker


@dataclass(slots=True)
class Checker:
    """Watches the truth (processes) and compares it with the books (the log) at the end."""

    now_s: Callable[[], float]
    overlap_allowed: bool = False
    live: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    launched: dict[Key, int] = field(default_factory=dict)
    exits: dict[Key, dict[str, Any]] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, None] = field(default_factory=dict)
    called_off: dict[str, int] = field(default_factory=dict)
    """Jobs whose user was told that they are called off -> their attempt then, the last that may ever start (-1: not even that)."""

    def started(self, key: Key, node: str, submission: Submission) -> None:
        job, attempt = key
        self.retries[job] = submission.spec.retry
        self.launched[key] = self.launched.get(key, 0) + 1
        if self.launched[key] > 1:
            raise Violation(f"{job}.{attempt} was started twice")
        others = self.live.setdefault(job, [])
        if others and not self.overlap_allowed:
            raise Violation(f"at {self.now_s():.1f} s {job}.{attempt} starts on {node} while {others} lives")
        others.append((attempt, node))

    def died(self, key: Key, node: str) -> None:
        self.live[key[0]].remove((key[1], node))

    def exited(self, key: Key, node: str, exit_: dict[str, Any]) -> None:
        self.died(key, node)
        self.exits[key] = exit_

    def check(self, batches: Iterable[Batch], submitted: set[str]) -> dict[str, Row]:
        """Compare the whole history of the log with what happened; return the final rows."""
        rows: dict[str, Row] = {}
        epoch = 0
        for batch in batches:
            if batch.epoch < epoch:
                raise Violation(f"epoch {batch.epoch} wrote after epoch {epoch}")
            epoch = batch.epoch
            for row in batch.rows:
                before = rows.get(row.job)
                if before is not None and before.state is State.ENDED and before != row:
                    raise Violation(f"{row.job} ended twice: {before} then {row}")
                rows[row.job] = row
        for job in submitted:
            if job not in rows or rows[job].state is not State.ENDED:
                raise Violation(f"submitted job {job} did not end: {rows.get(job)}")
        for job, row in rows.items():
            if job not in submitted:
                raise Violation(f"{job} was never submitted")
            if row.state is State.ENDED:
                self._check_end(row)
        for job, live in self.live.items():
            if live and rows[job].state is State.ENDED:
                raise Violation(f"{job} ended in the books and lives as {live}")
        return rows

    def _check_end(self, row: Row) -> None:
        starts = [key for key in self.launched if key[0] == row.job]
        if row.job in self.called_off and any(attempt > self.called_off[row.job] for _job, attempt in starts):
            raise Violation(f"{row.job} was started as {starts} although attempt {self.called_off[row.job]} was called off")
        if len(starts) > 1 + row.retry:
            raise Violation(f"{row.job} was started {len(starts)} times with retry {row.retry}")
        if row.outcome is Outcome.EXITED:
            if self.exits.get((row.job, row.attempt)) != row.exit:
                raise Violation(f"{row.job} is said to have exited as {row.exit}")
        elif not row.reason:
            raise Violation(f"{row.job} ended {row.outcome} without a reason")
        if row.outcome is Outcome.REJECTED and starts:
            raise Violation(f"{row.job} was rejected and started")


# ---- the world


@dataclass(frozen=True, slots=True)
class Plan:
    """How rough it gets."""

    seed: int
    jobs: int = 16
    nodes: int = 3
    rough_s: float = 40.0
    lost: float = 0.05
    doubled: float = 0.05
    late: float = 0.02
    fault_every_s: float = 2.0
    refusal: float = 0.03
    lying_lease: bool = False
    job_s: float | None = None
    """How long every job runs; None = it varies."""
    retry: int | None = None
    """With this retry, anywhere, and not killed by its user; None = it varies."""


class World:
    """The whole system under one seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.refusal = plan.refusal
        self.fabric = SimFabric(self.rng, {subjects.SUBMIT_STREAM: subjects.SUBMIT_FILTER, LOG_STREAM: LOG_SUBJECT})
        self.checker = Checker(self.now_s, overlap_allowed=plan.lying_lease)
        self.managers = [SimManager(self, f"m{i}") for i in range(3)]
        self.nodes = [SimNode(self, f"n{i}", slots=self.rng.choice([1, 2, 4])) for i in range(plan.nodes)]
        self.client = JobsClient(SimPort(self.fabric, "c0"), "alice", clock_s=self.now_s)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failed: BaseException | None = None
        self.story: list[str] = []

    @staticmethod
    def now_s() -> float:
        return asyncio.get_running_loop().time()

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failed = self.failed or task.exception()

    def tell(self, what: str) -> None:
        self.story.append(f"{self.now_s():7.2f} {what}")

    async def run(self) -> dict[str, Row]:
        faults = self.fabric.faults
        faults.lost, faults.doubled, faults.late = self.plan.lost, self.plan.doubled, self.plan.late
        faults.stale_bounds = 0.2
        self._start_all()
        submitting = [asyncio.create_task(self._submit(number)) for number in range(self.plan.jobs)]
        await self._rough()
        self._heal()
        await asyncio.gather(*submitting)
        await self._all_ended()
        return self._check()

    async def _submit(self, number: int) -> None:
        rng = self.rng
        retry, where = rng.choice([0, 0, 1, 3]), rng.choice([None, None, None, f"n{rng.randrange(self.plan.nodes)}"])
        if self.plan.retry is not None:
            retry, where = self.plan.retry, None
        await asyncio.sleep(rng.uniform(0, self.plan.rough_s / 2))
        try:
            record = _record(number, "alice", retry, where, 1 if number % ARRAY_EACH else ARRAY_TASKS)
            await self.client.submit(record)
        except SubmitUnknown:
            return
        tasks = signed.peek_spec(record).tasks()
        self.checker.acknowledged.update(dict.fromkeys(tasks))
        job = tasks[-1]
        if rng.random() < 0.3 and self.plan.retry is None:
            await asyncio.sleep(rng.choice([0.0, rng.uniform(0, 0.1), rng.uniform(0, 10)]))
            self.tell(f"kill {job}")
            try:
                view = await self.client.kill(job, rng.choice([9, 15, 15]))
                if view["outcome"] == Outcome.KILLED and view["reason"] == NEVER_STARTED and not view["cancelled"]:
                    self.checker.called_off[job] = -1 if view["attempt"] <= 1 and not view["losses"] else view["attempt"]
                elif view["cancelled"]:
                    self.checker.called_off[job] = view["attempt"]
            except XosError as error:
                self.tell(f"kill {job}: {error}")

    async def _rough(self) -> None:
        if self.plan.lying_lease:
            self.fabric.faults.lying_lease_s = 10.0
        while self.now_s() < self.plan.rough_s:
            pause_s = self.rng.expovariate(1 / self.plan.fault_every_s)
            await asyncio.sleep(min(pause_s, self.plan.rough_s - self.now_s()))
            if self.now_s() < self.plan.rough_s:
                self._fault()
            self._raise_failures()

    def _fault(self) -> None:
        rng = self.rng
        back_s = rng.choice([0.3, 1.0, 3.0, 10.0, 45.0])
        node, manager = rng.choice(self.nodes), rng.choice(self.managers)
        what = rng.choices(["leader", "manager", "daemon", "power", "cut", "cut-core", "wipe"], [4, 2, 6, 1.5, 4, 2, 0.3])[0]
        if what == "leader":
            manager = next((m for m in self.managers if m.driver is not None and m.driver.leads), manager)
        if what in ("leader", "manager"):
            manager.crash()
            self._later(back_s, manager.start, f"crash {manager.name}")
        elif what == "daemon":
            node.crash_daemon()
            self._later(min(back_s, 3.0), node.start, f"crash xosd of {node.name}")
        elif what in ("power", "wipe"):
            (node.power_cut if what == "power" else node.wipe)()
            self._later(back_s, node.start, f"{what} {node.name}")
        else:
            host = node.name if what == "cut" else manager.name
            self.fabric.cut.add(host)
            self._later(back_s, lambda: self.fabric.heal(host), f"cut {host}")

    def _later(self, delay_s: float, undo: Callable[[], None], what: str) -> None:
        self.tell(f"{what} for {delay_s:g} s")
        asyncio.get_running_loop().call_later(delay_s, undo)

    def _heal(self) -> None:
        self.tell("heal")
        faults = self.fabric.faults
        faults.lost = faults.doubled = faults.late = faults.stale_bounds = faults.lying_lease_s = 0.0
        self.refusal = 0.0
        for host in list(self.fabric.cut):
            self.fabric.heal(host)
        self._start_all()

    def _start_all(self) -> None:
        for manager in self.managers:
            manager.start()
        for node in self.nodes:
            node.start()

    def _raise_failures(self) -> None:
        for task in [*(manager.task for manager in self.managers), *(node.task for node in self.nodes)]:
            if task is not None and task.done():
                task.result()
        if self.failed is not None:
            raise self.failed

    async def _all_ended(self) -> None:
        """Wait as a user would: `xos wait`."""
        await asyncio.sleep(self.fabric.faults.late_s_max + 1)  # submissions that nobody acknowledged may still arrive
        deadline_s = self.now_s() + HEALED_S_MAX
        submitted = self._submitted()
        if not self.checker.acknowledged.keys() <= submitted.keys():
            raise Violation("an acknowledged submission is not in the log")
        waiting = asyncio.create_task(self._wait_each(list(submitted)))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=1.0)
            self._raise_failures()
            if self.now_s() > deadline_s:
                waiting.cancel()
                jobs = await self.client.list_jobs()
                raise Violation(f"still not ended {HEALED_S_MAX:g} s after the last fault: {jobs}")
        waiting.result()
        await asyncio.sleep(5)  # superseded attempts and acknowledgements settle
        self._raise_failures()

    def _submitted(self) -> dict[str, None]:
        """All jobs of the log of submissions: every task of an array is one."""
        records = (stored.data for stored in self.fabric.streams[subjects.SUBMIT_STREAM].history)
        return {job: None for record in records for job in signed.peek_spec(record).tasks()}

    async def _wait_each(self, jobs: list[str]) -> None:
        seen = [view["job"] async for view in self.client.wait_jobs(jobs)]
        if sorted(seen) != sorted(jobs):
            raise Violation("wait did not tell of each job once")

    def _check(self) -> dict[str, Row]:
        batches = [decode(stored.data, Batch) for stored in self.fabric.streams[LOG_STREAM].history]
        rows = self.checker.check(batches, set(self._submitted()))
        for node in self.nodes:
            if node.store.live() or node.store.outbox("demo", 1):
                raise Violation(f"{node.name} still holds {node.store.live()} {node.store.outbox('demo', 9)}")
        return rows


def simulate(plan: Plan, make_world: Callable[[Plan], World] | None = None) -> dict[str, Row]:
    """Run one seed; raises Violation (or what a driver raised) with the seed and the story of faults."""
    story: list[str] = []

    async def main() -> dict[str, Row]:
        world = (make_world or World)(plan)
        world.story = story
        return await world.run()

    try:
        return run_virtual(main())
    except BaseException as error:
        error.add_note(f"seed {plan.seed}: {plan}\n" + "\n".join(story))
        raise


def seeds(first: int, count: int) -> list[Plan]:
    """Return plans of growing variety for a run of seeds."""
    kinds = itertools.cycle(
        [Plan(0), Plan(0, lost=0, doubled=0, late=0), Plan(0, nodes=1, jobs=8), Plan(0, lying_lease=True), Plan(0, lost=0.2)]
    )
    return [
        Plan(**{**{f: getattr(kind, f) for f in Plan.__slots__}, "seed": first + number})
        for number, kind in zip(range(count), kinds, strict=False)
    ]


__all__ = ["Cause", "Checker", "Plan", "Unreachable", "Violation", "World", "seeds", "simulate"]
