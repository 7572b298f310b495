"""The node's half of detached jobs: takes orders of the VO's manager, starts what it accepted, reports until acknowledged.

Dull on purpose: what is true stands in the node store, what to do is decided by its pure functions. How a program is admitted,
launched and signalled comes in as functions; their events come back through `ended`. The owner's word is `admit`, and it is
final: a refusal is remembered, so that a start message that comes twice is refused twice.

Order that makes it safe: accept and note on disk, then answer the manager, then launch; note an end on disk, then report it,
and forget it only when the manager says that it stands in the VO's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import BadSpec
from xtreemos.aem.manager import model
from xtreemos.aem.manager.model import (
    Answer,
    Capacity,
    Cause,
    Ended,
    Kill,
    Live,
    Orders,
    OrdersReply,
    Report,
    ReportReply,
    Said,
    Start,
    decode,
    encode,
    short_name,
)
from xtreemos.aem.manager.ports import Incoming, Messages, orders_subject
from xtreemos.aem.manager.signed import Submission, Verify
from xtreemos.aem.nodestore import Attempt, NodeStore, Offer, attempts_to_fence, plan_recovery
from xtreemos.errors import NotFound, TryLater, XosError
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import Unreachable

logger = logging.getLogger(__name__)

REPORT_S_MAX = 3.0
FENCE_LOOK_S = 1.0
IDLE_LOOK_S = 5.0  # while nothing is held; what comes meanwhile comes with a word of the manager, which is good for LEASE_S
PRUNE_S = 600.0
OUTBOX_LOOK_S = 10.0
"""An idle node looks into its outbox at least this often, told or not."""
AHEAD_MAX = 64
"""So many more attempts than run are taken, so that the next one starts without asking the manager."""
Key = tuple[str, int]


class Contact(Protocol):
    """Keeps over a restart of the daemon (not of the machine) when the manager was last heard of."""

    def load(self) -> float:
        """Return it, -inf if not known."""

    def save(self, clock_s: float) -> None:
        """Remember it."""


class ContactFile:
    """`Contact` in a small file of the run folder, which must not outlive a reboot; `clock_id` guards against that anyway."""

    def __init__(self, path: Path, clock_id: str) -> None:
        self._path = path
        self._clock_id = clock_id

    def load(self) -> float:
        try:
            clock_id, text = self._path.read_text().split()
            return float(text) if clock_id == self._clock_id else -math.inf
        except (FileNotFoundError, ValueError):
            return -math.inf

    def save(self, clock_s: float) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(f"{self._clock_id} {clock_s!r}")
        os.replace(new, self._path)


@dataclass(frozen=True, slots=True)
class Hooks:
    """How the node does things. Each raises XosError; anything else is a bug and ends `NodeJobs.run`.

    `admit(submission, attempt)`: policy and limits; TryLater = full now, any other XosError = refused, its line is the reason.
    `launch(submission, attempt)`: hand to jobd; returns when it started (seconds since 1970). A `definite` error = certainly not
    started, another node may try; not definite = its fate is not known. It must be safe to repeat (`job-exists` is success).
    `signal(job, attempt, signal)`: to the whole tree; NotFound is fine.
    `capacity()`: what runs at once for detached jobs now; `facts()`: (number that changes with them, facts).
    """

    verify: Verify
    admit: Callable[[Submission, int], Awaitable[None]]
    launch: Callable[[Submission, int], Awaitable[float]]
    signal: Callable[[str, int, int], Awaitable[None]]
    capacity: Callable[[], Capacity]
    facts: Callable[[], tuple[int, dict[str, Any]]]
    draining: Callable[[], bool]
    clock_s: Callable[[], float]
    wall_at: Callable[[], float]


@dataclass(slots=True, eq=False)
class _Held:
    """An attempt that has not ended. `submission` None: jobd has it since before this daemon started."""

    submission: Submission | None
    leased: bool
    handed: bool = False
    launched: bool = False
    started_at: float | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Its launch has come to an end, whichever."""


@dataclass(slots=True, eq=False)
class _Judged:
    """A record in orders: what is known of it by now, for all starts that carry it."""

    record: bytes
    submission: Submission | None = None
    admitted: bool = False


def _task_of(submission: Submission, job: str) -> Submission:
    """Return the part of a checked submission that speaks of `job`; raises BadSubmission."""
    try:
        return replace(submission, spec=submission.spec.task(job), array=submission.spec.job if submission.spec.count > 1 else "")
    except BadSpec as error:
        raise model.BadSubmission(f"orders for {job} carry the submission of {submission.spec.job}") from error


class NodeJobs:
    """Detached jobs of one VO on one node. Make it, `await recover(...)`, then `run()` for as long as the daemon lives."""

    def __init__(
        self,
        port: Messages,
        node: str,
        vo: str,
        store: NodeStore,
        commit: GroupCommit,
        hooks: Hooks,
        *,
        clock_id: str,
        contact: Contact,
    ) -> None:
        """`hooks.clock_s` must be CLOCK_BOOTTIME (it counts while the machine sleeps) and `clock_id` the boot id."""
        self._port = port
        self._node = node
        self._vo = vo
        self._store = store
        self._commit = commit
        self._hooks = hooks
        self._clock_id = clock_id
        self._contact = contact
        self._contact_s = -math.inf
        self._life = ""
        self._recovered = asyncio.Event()
        self._held: dict[Key, _Held] = {}
        self._pending: deque[Key] = deque()
        self._wake_report = asyncio.Event()
        self._wake_launch = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._want_facts = True
        self._empty_s = -math.inf
        """When the outbox was last seen empty with nothing held; -inf: something happened since."""

    # ---- life

    async def recover(self, known_to_jobd: Mapping[Key, float | None], life: str) -> list[Attempt]:
        """Bring store and jobd together after a start of the daemon, before `run`.

        `known_to_jobd`: attempts that jobd has, running or exited, with when they started; `life`: a name of this life of jobd (pid and start time).
        Returns the attempts that jobd has: watch them, and call `ended` for those that exited.
        """
        self._life = life
        self._contact_s = self._contact.load()
        now_at = self._hooks.wall_at()
        await self._commit.do(self._store.prune, now_at)
        plan = plan_recovery(self._store.live("sub", self._vo), known_to_jobd, life)
        lost = [Ended(a.job, a.attempt, Cause.LOST, f"node {self._node} died") for a in plan.lost]
        await self._commit.do(self._store.ended, lost, now_at)
        for attempt in plan.alive:
            started_at = known_to_jobd.get(attempt.key)
            self._held[attempt.key] = _Held(None, attempt.leased, handed=True, launched=True, started_at=started_at)
        for attempt in plan.launch:
            await self._hold_again(attempt)
        self._recovered.set()
        return list(plan.alive)

    async def _hold_again(self, attempt: Attempt) -> None:
        """Take up what was accepted and never launched, unless its user may no longer."""
        try:
            submission = _task_of(self._hooks.verify(attempt.record), attempt.job)
        except XosError as error:
            end = Ended(attempt.job, attempt.attempt, Cause.REFUSED, error.line()[:300])
            await self._commit.do(self._store.ended, [end], self._hooks.wall_at())
            return
        self._held[attempt.key] = _Held(submission, attempt.leased)
        self._pending.append(attempt.key)

    async def run(self) -> None:
        """Serve until cancelled, once `recover` has been through; everything durable stays, jobs go on under jobd."""
        await self._recovered.wait()
        await self._fence()  # before anything starts: we may have been away for long
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._take_orders())
            tasks.create_task(self._report_forever())
            tasks.create_task(self._launch_forever())
            tasks.create_task(self._fence_forever())

    def wake(self) -> None:
        """Capacity or facts changed, or an attempt ended: report now and start what waits."""
        self._empty_s = -math.inf
        self._wake_report.set()
        self._wake_launch.set()

    async def ended(self, job: str, attempt: int, exit_: dict[str, Any], cause: Cause = Cause.EXITED, reason: str = "") -> None:
        """An attempt ended, as jobd says; returns when that is on disk (only then may jobd forget it). May be repeated."""
        end = Ended(job, attempt, cause, reason or str(exit_.get("reason") or ""), exit_)
        await self._commit.do(self._store.ended, [end], self._hooks.wall_at())
        self._held.pop((job, attempt), None)
        self.wake()

    # ---- orders

    async def _take_orders(self) -> None:
        listening = await self._port.listen(orders_subject(self._node))
        try:
            while True:
                incoming = await listening.next()
                self._spawn(self._obey(incoming))
        finally:
            await listening.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(work)

    async def _obey(self, incoming: Incoming) -> None:
        try:
            orders = decode(incoming.data, Orders)
        except model.BadMessage:
            logger.warning("orders cannot be read")
            return
        try:
            reply = await self._carry_out(orders)
        except XosError as error:  # the store is broken: the manager asks again
            logger.error("orders could not be noted: %s", error)  # noqa: TRY400  # a full disk needs no traceback
            return
        with contextlib.suppress(Unreachable):
            await incoming.answer(encode(reply))

    async def _carry_out(self, orders: Orders) -> OrdersReply:
        if orders.store != self._store.store_id or orders.clock_id != self._clock_id:
            return OrdersReply(self._store.fence(self._vo), valid=False)
        submissions: dict[Key, Submission] = {}
        offers = await self._offers(orders.starts, submissions)
        if not await self._commit.do(self._store.raise_fence, self._vo, orders.fence):
            return OrdersReply(self._store.fence(self._vo), valid=False)
        self._hear(orders.seen_s)
        answers: list[Answer] = []
        if self._hooks.clock_s() - orders.seen_s > model.LEASE_S:
            answers = [Answer(s.job, s.attempt, Said.EXPIRED, "it was too long on its way") for s in orders.starts]
        elif offers:
            free = max(0, self._hooks.capacity().slots - len(self._held))
            new = {(o.job, o.attempt) for o in offers} - self._held.keys()
            answers, handed = await self._commit.do(self._accept, offers, new, free)
            self._hold(answers, handed, submissions)
        missed = [(kill.job, kill.attempt) for kill in orders.kills if not await self._kill(kill)]
        return OrdersReply(orders.fence, valid=True, answers=answers, missed=missed)

    async def _offers(self, starts: list[Start], submissions: dict[Key, Submission]) -> list[Offer]:
        """Check starts; tasks of one array carry one record, which is judged once for all of them."""
        offers: list[Offer] = []
        judged: _Judged | None = None
        for start in starts:
            if start.record or judged is None:
                judged = _Judged(start.record)
            offers.append(await self._offer(start, judged, submissions))
        return offers

    async def _offer(self, start: Start, judged: _Judged, submissions: dict[Key, Submission]) -> Offer:
        """Check a start: signature, the owner's word, room. What is not wanted becomes an offer with a refusal."""
        refusal: tuple[Said, str] | None = None
        user, name, leased = "", "", False
        try:
            if judged.submission is None:
                judged.submission = self._hooks.verify(judged.record)
            spec = judged.submission.spec
            user, name, leased = spec.user, short_name(spec.argv), spec.retry > 0
            submission = _task_of(judged.submission, start.job)
            if (start.job, start.attempt) not in self._held:
                self._check_room()
                if not judged.admitted:
                    await self._hooks.admit(submission, start.attempt)
                    judged.admitted = True
            submissions[start.job, start.attempt] = submission
        except TryLater as error:
            refusal = (Said.FULL, error.line()[:300])
        except XosError as error:
            refusal = (Said.REFUSED, error.line()[:300])
        return Offer(start.job, start.attempt, self._vo, user, name, judged.record, "sub", leased, refusal)

    def _check_room(self) -> None:
        if self._hooks.draining():
            raise TryLater(f"node {self._node} takes no new jobs")
        if len(self._held) >= self._offered_slots() + AHEAD_MAX:
            raise TryLater(f"node {self._node} is full")

    def _offered_slots(self) -> int:
        slots = self._hooks.capacity().slots
        return slots + min(slots, AHEAD_MAX)

    def _accept(self, offers: list[Offer], new: set[Key], free: int) -> tuple[list[Answer], list[Key]]:
        """Inside one transaction: accept, and hand over what can start at once, which saves a second fsync."""
        answers = self._store.accept(offers, self._hooks.wall_at())
        fresh = [(a.job, a.attempt) for a in answers if a.said is Said.ACCEPTED and (a.job, a.attempt) in new]
        return answers, self._store.hand_over(fresh[:free], self._life)

    def _hold(self, answers: list[Answer], handed: list[Key], submissions: dict[Key, Submission]) -> None:
        for answer in answers:
            key = (answer.job, answer.attempt)
            if answer.said is Said.ACCEPTED and key not in self._held and key in submissions:
                submission = submissions[key]
                self._held[key] = _Held(submission, submission.spec.retry > 0, handed=key in handed)
                self._pending.append(key)
        if any(held.leased for held in self._held.values()):
            self._contact.save(self._contact_s)
        self._wake_launch.set()

    async def _kill(self, kill: Kill) -> bool:
        """Send a signal, or call off what has not started; return whether it found something."""
        key = (kill.job, kill.attempt)
        held = self._held.get(key)
        if held is None and kill.signal != model.SIGKILL:
            return False
        if kill.signal == model.SIGKILL or (held and not held.launched and kill.signal in model.ENDING_SIGNALS):
            running = await self._commit.do(self._store.call_off, self._vo, kill.job, kill.attempt, self._hooks.wall_at())
            if not running:
                self._held.pop(key, None)
                self.wake()
                return True
        if held and held.launched and held.submission:
            await held.settled.wait()  # before that a signal might come between its note on disk and its first process
        try:
            await self._hooks.signal(kill.job, kill.attempt, kill.signal)
        except XosError as error:
            logger.info("signal %d to %s.%d: %s", kill.signal, kill.job, kill.attempt, error)
            return False
        return True

    # ---- launching

    def _running_count(self) -> int:
        return sum(1 for held in self._held.values() if held.launched)

    async def _launch_forever(self) -> None:
        while True:
            free = self._hooks.capacity().slots - self._running_count()
            batch = [self._pending.popleft() for _ in range(min(free, len(self._pending)))] if free > 0 else []
            if batch:
                await self._launch_all(batch)
                continue
            self._wake_launch.clear()
            await self._wake_launch.wait()

    async def _launch_all(self, batch: list[Key]) -> None:
        noted = [key for key in batch if key in self._held and self._held[key].handed]
        rest = [key for key in batch if key in self._held and not self._held[key].handed]
        if rest:
            noted += await self._commit.do(self._store.hand_over, rest, self._life)
        for key in noted:
            held = self._held.get(key)
            if held is not None and held.submission is not None:
                held.handed = held.launched = True
                self._spawn(self._launch(key, held, held.submission))

    async def _launch(self, key: Key, held: _Held, submission: Submission) -> None:
        try:
            held.started_at = await self._hooks.launch(submission, key[1])
        except XosError as error:
            cause = Cause.REFUSED if error.definite else Cause.LOST
            await self._commit.do(self._store.ended, [Ended(*key, cause, error.line()[:300])], self._hooks.wall_at())
            self._held.pop(key, None)
            self.wake()
        finally:
            held.settled.set()

    # ---- reports

    async def _report_forever(self) -> None:
        while True:
            self._wake_report.clear()
            try:
                more = await self._report_once()
            except (Unreachable, model.BadMessage) as error:
                logger.debug("report: %s", error)
                more = False
                await asyncio.sleep(model.BEAT_S / 2)  # no manager right now: ask again soon, but not in a storm
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(model.BEAT_S if self._held else model.IDLE_BEAT_S):
                        await self._wake_report.wait()

    async def _report_once(self) -> bool:
        """Send one report; return whether more waits in the outbox."""
        report = self._report(await self._look_for_ends())
        raw = await self._port.request(subjects.beat(self._node), encode(report), REPORT_S_MAX)
        reply = decode(raw, ReportReply)
        known = reply.fence == self._store.fence(self._vo)
        if not known and not await self._commit.do(self._store.raise_fence, self._vo, reply.fence):
            return False  # an older manager than one that we heard of
        self._hear(report.clock_s)
        self._want_facts = reply.want_facts
        if reply.acks:
            await self._commit.do(self._store.acknowledge, self._vo, reply.acks)
        return reply.want_facts or len(report.ended) == model.REPORT_ENDED_MAX

    async def _look_for_ends(self) -> list[Ended]:
        """Return the outbox. Where nothing is held and nothing was told of since it was empty, it is not asked at each beat."""
        now_s = self._hooks.clock_s()
        if not self._held and now_s - self._empty_s < OUTBOX_LOOK_S:
            return []
        self._empty_s = now_s
        ended = await self._commit.do(self._store.outbox, self._vo, model.REPORT_ENDED_MAX)
        if ended or self._held:
            self._empty_s = -math.inf
        return ended

    def _report(self, ended: list[Ended]) -> Report:
        facts_id, facts = self._hooks.facts()
        capacity = self._hooks.capacity()
        ahead = min(capacity.slots, AHEAD_MAX)
        return Report(
            node=self._node,
            store=self._store.store_id,
            clock_id=self._clock_id,
            clock_s=self._hooks.clock_s(),
            capacity=Capacity(capacity.slots + ahead, capacity.cpus, capacity.memory_bytes),
            draining=self._hooks.draining(),
            facts_id=facts_id,
            facts=facts if self._want_facts else None,
            live=[Live(job, number, held.started_at) for (job, number), held in self._held.items()],
            ended=ended,
        )

    # ---- leases

    def _hear(self, clock_s: float) -> None:
        """The manager knew at `clock_s` of our clock that we live: it does not start our jobs elsewhere for LEASE_S."""
        if clock_s > self._contact_s:
            self._contact_s = clock_s
            if any(held.leased for held in self._held.values()):
                self._contact.save(clock_s)

    async def _fence_forever(self) -> None:
        prune_s = self._hooks.clock_s()
        while True:
            await asyncio.sleep(FENCE_LOOK_S if self._held else IDLE_LOOK_S)
            await self._fence()
            if self._hooks.clock_s() - prune_s > PRUNE_S:
                prune_s = self._hooks.clock_s()
                await self._commit.do(self._store.prune, self._hooks.wall_at())

    async def _fence(self) -> None:
        """Kill what others may start again, if the manager was not heard of for too long."""
        age_s = self._hooks.clock_s() - self._contact_s
        if age_s <= model.LEASE_S:
            return
        keys = attempts_to_fence(await self._commit.do(self._store.live, "sub", self._vo), age_s)
        if not keys:
            return
        why = f"node {self._node} was cut off from the VO for {model.LEASE_S:g} s"
        running = await self._commit.do(self._store.mark_fenced, keys, why, self._hooks.wall_at())
        waiting = [key for key in running if key in self._held and not self._held[key].launched]
        for key in keys:
            if key not in running or key in waiting:
                self._held.pop(key, None)
        if waiting:  # noted as handed over and not yet given to jobd: a kill would find nothing, and then it would start
            lost = [Ended(*key, Cause.LOST, why) for key in waiting]
            await self._commit.do(self._store.ended, lost, self._hooks.wall_at())
        for job, attempt in running:
            if (job, attempt) not in waiting:
                with contextlib.suppress(NotFound):
                    await self._hooks.signal(job, attempt, model.SIGKILL)
