"""Carries out what the manager's machine decides: campaigns for the VO's lease, folds the log, appends, sends. It decides nothing.

One runs on every core node; the one that holds the lease leads. Fencing is by the log: taking over appends an empty batch of
the new epoch, and every append names the sequence that it follows, so an older leader's next append fails, whatever it
believes. Until then its orders carry a lower fence, which nodes that heard of the new leader refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager import model
from xtreemos.aem.manager.events import (
    Answered,
    AnswerNode,
    AnswerUser,
    Asked,
    Effect,
    Event,
    Reported,
    SendOrders,
    SendSignal,
    Settle,
    StepDown,
    Submitted,
)
from xtreemos.aem.manager.machine import Machine
from xtreemos.aem.manager.model import (
    Batch,
    OrdersReply,
    Query,
    QueryReply,
    Report,
    Row,
    State,
    decode,
    encode,
)
from xtreemos.aem.manager.placement import Matches
from xtreemos.aem.manager.ports import LOG_STREAM, LOG_SUBJECT, Incoming, LeaseLike, Port, Stored, orders_subject
from xtreemos.aem.manager.signed import Verify, peek_spec, reason_of
from xtreemos.errors import RemoteError, TryLater, XosError
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import RevisionMismatch, Unreachable

logger = logging.getLogger(__name__)

TICK_S = 0.5
ORDERS_S_MAX = 5.0
RETRY_S = 0.3
EVENTS_MAX = 2000
"""Events of one turn; more wait for the next."""
ROWS_PER_BATCH = 600
COMPACT_AFTER = 20_000
"""Batches in the log after which all rows are written again and the log before them is dropped."""


class Deposed(XosError):
    """Another manager leads the VO's jobs now; this one stands by."""

    code = "deposed"
    retry = True


class _Leader:
    """One term of leadership, from the lease to its loss. Raises Deposed or Unreachable to end."""

    def __init__(self, owner: ManagerDriver, lease: LeaseLike, epoch: int) -> None:
        self._owner = owner
        self._port = owner.port
        self._lease = lease
        self._epoch = epoch
        self._number = 0
        self._last = 0
        self._first = 1
        self._rows: dict[str, Row] = {}
        self._seq = 0
        self._inbox: list[Event] = []
        self._wake = asyncio.Event()
        self.machine: Machine | None = None

    # ---- taking over

    async def lead(self) -> None:
        """Fold, take over, serve until deposed."""
        self._first, end = await self._port.bounds(LOG_STREAM)
        self._last = self._first - 1
        await self._fold(end)
        while not await self._try_append(self._batch()):
            _, end = await self._port.bounds(LOG_STREAM)
            await self._fold(end)
        records, rejected = await self._load_submissions()
        self.machine = Machine(
            epoch=self._epoch,
            seq=self._seq,
            rows=self._rows.values(),
            records=records,
            matches=self._owner.matches,
            now_s=self._owner.clock_s(),
        )
        for job, reason in rejected.items():
            logger.warning("job %s of the log cannot be read any more: %s", job, reason)
        self._rows = {}
        logger.info("leads the VO's jobs: epoch %d, %s", self._epoch, self.machine.statistics())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_lease())
            tasks.create_task(self._read_submissions(self.machine.seq + 1))
            tasks.create_task(self._hear(subjects.BEATS_FILTER, self._reported))
            tasks.create_task(self._hear(subjects.QUESTIONS_FILTER, self._asked))
            await self._turns(self.machine, tasks)

    async def _fold(self, end: int) -> None:
        if self._last >= end:
            return
        async with contextlib.aclosing(self._port.consume(LOG_STREAM, self._last + 1)) as messages:
            async for message in messages:
                batch = decode(message.data, Batch)
                if batch.epoch > self._epoch:
                    raise Deposed("a newer manager has taken over meanwhile")
                self._last, self._seq = message.seq, max(self._seq, batch.seq)
                self._rows.update((row.job, row) for row in batch.rows)
                for job in batch.forget:
                    self._rows.pop(job, None)
                if message.seq >= end:
                    return

    async def _load_submissions(self) -> tuple[dict[str, tuple[JobSpec, bytes]], dict[str, str]]:
        """Read again the submissions of jobs that have not ended."""
        live: dict[int, list[Row]] = {}
        for row in self._rows.values():
            if row.state is not State.ENDED:
                live.setdefault(row.seq, []).append(row)
        records: dict[str, tuple[JobSpec, bytes]] = {}
        rejected: dict[str, str] = {}
        first, last = await self._port.bounds(subjects.SUBMIT_STREAM)
        start = max(first, min(live, default=last + 1))
        end = min(last, max(live, default=0))
        if start > end:
            return records, rejected
        async with contextlib.aclosing(self._port.consume(subjects.SUBMIT_STREAM, start)) as messages:
            async for message in messages:
                rows = live.get(message.seq, ())
                try:
                    record = (peek_spec(message.data), message.data) if rows else None
                    records.update((row.job, record) for row in rows if record)
                except XosError as error:
                    rejected.update((row.job, error.line()) for row in rows)
                if message.seq >= end:
                    break
        return records, rejected

    # ---- the log

    def _batch(self, rows: tuple[Row, ...] = (), forget: tuple[str, ...] = ()) -> Batch:
        self._number += 1
        return Batch(self._epoch, self._number, self._seq, list(rows), list(forget))

    async def _try_append(self, batch: Batch) -> bool:
        """Append after what we know; False: there is more in the log than we know."""
        data = encode(batch)
        while self._lease.held:
            try:
                self._last = await self._port.append(LOG_SUBJECT, data, expected_last=self._last)
                return True
            except RevisionMismatch:
                return await self._was_ours(batch)
            except Unreachable:  # not known whether it is in: the same append again cannot go in twice
                await asyncio.sleep(RETRY_S)
        raise Deposed("the lease was lost before the log could be written")

    async def _was_ours(self, batch: Batch) -> bool:
        """After a mismatch: see whether the next message is the very one that we tried to append before."""
        _, end = await self._port.bounds(LOG_STREAM)
        if end <= self._last:
            await asyncio.sleep(RETRY_S)  # an old answer about the bounds; whoever wrote there will show up
            return False
        async with contextlib.aclosing(self._port.consume(LOG_STREAM, self._last + 1)) as messages:
            async for message in messages:
                found = decode(message.data, Batch)
                if (found.epoch, found.number) != (batch.epoch, batch.number):
                    return False
                self._last = message.seq
                return True
        return False

    async def _persist(self, rows: list[Row], forget: list[str]) -> None:
        assert self.machine is not None
        for start in range(0, max(len(rows), 1), ROWS_PER_BATCH):
            part = tuple(rows[start : start + ROWS_PER_BATCH])
            if start + ROWS_PER_BATCH >= len(rows):
                self._seq = self.machine.seq  # not before the last part: a successor reads again what has no rows in the log yet
            if not await self._try_append(self._batch(part, tuple(forget) if start == 0 else ())):
                raise Deposed("another manager wrote to the log")

    async def _compact(self, machine: Machine) -> None:
        """Write all rows again, then drop the log before them, and the submissions that nobody needs."""
        below = self._last + 1
        await self._persist(machine.rows(), [])
        with contextlib.suppress(Unreachable):  # only housekeeping: the next time will do
            await self._port.purge(LOG_STREAM, below)
            self._first = below
            await self._port.purge(subjects.SUBMIT_STREAM, machine.oldest_needed_seq())

    # ---- serving

    def _push(self, event: Event) -> None:
        self._inbox.append(event)
        self._wake.set()

    async def _watch_lease(self) -> None:
        await self._lease.lost.wait()
        raise Deposed("the lease was lost")

    async def _read_submissions(self, from_seq: int) -> None:
        async with contextlib.aclosing(self._port.consume(subjects.SUBMIT_STREAM, from_seq)) as messages:
            async for message in messages:
                self._push(self._submitted(message))

    def _submitted(self, message: Stored) -> Submitted:
        user, job = subjects.part(message.subject, 2), subjects.part(message.subject, 3)
        try:
            spec = self._owner.verify(message.data).spec
            if (spec.user, spec.job) != (user, job):
                raise model.BadSubmission(f"the submission of {spec.job} was published as {job}")
        except XosError as error:
            return Submitted(message.seq, user, job, b"", None, reason_of(error))
        return Submitted(message.seq, user, job, message.data, spec)

    async def _hear(self, pattern: str, read: Callable[[Incoming], Event | None]) -> None:
        listening = await self._port.listen(pattern)
        try:
            while True:
                event = read(await listening.next())
                if event is not None:
                    self._push(event)
        finally:
            await listening.close()

    def _reported(self, incoming: Incoming) -> Event | None:
        try:
            report = decode(incoming.data, Report)
        except model.BadMessage:
            logger.warning("a report on %s cannot be read", incoming.subject)
            return None
        if report.node != subjects.part(incoming.subject, 1):
            logger.warning("a report of %s came as %s", report.node[:64], incoming.subject)
            return None
        return Reported(report, incoming)

    def _asked(self, incoming: Incoming) -> Event | None:
        user, method = subjects.part(incoming.subject, 2), subjects.part(incoming.subject, 3)
        try:
            query = decode(incoming.data, Query)
        except model.BadMessage:
            return None
        query = msgspec.structs.replace(query, method=method)  # the server checked the subject, not the message
        return Asked(user, self._owner.is_admin(user), query, incoming)

    async def _turns(self, machine: Machine, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._turn(machine, tasks)
            if self._last - self._first >= COMPACT_AFTER + 2 * len(machine.rows()) // ROWS_PER_BATCH:
                await self._compact(machine)
            if not self._inbox:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()

    async def _turn(self, machine: Machine, tasks: asyncio.TaskGroup) -> None:
        events, self._inbox = self._inbox[:EVENTS_MAX], self._inbox[EVENTS_MAX:]
        rows: dict[str, Row] = {}
        forget: list[str] = []
        send: list[Effect] = []
        for event in (*events, Settle()):
            step = machine.on(event, self._owner.clock_s())
            rows.update((row.job, row) for row in step.rows)
            forget.extend(step.forget)
            send.extend(step.send)
        if rows or forget:
            await self._persist(list(rows.values()), forget)
        for effect in send:
            if not self._lease.held:
                raise Deposed("the lease was lost")
            tasks.create_task(self._carry_out(effect))

    def _carry_out(self, effect: Effect) -> Coroutine[Any, Any, None]:
        match effect:
            case AnswerNode() | AnswerUser():
                return _answer(effect.reply, encode(effect.message))
            case SendOrders():
                return self._order(effect)
            case SendSignal():
                return self._signal(effect)
            case StepDown():
                return _step_down(effect.reason)

    async def _order(self, effect: SendOrders) -> None:
        try:
            raw = await self._port.request(orders_subject(effect.node), encode(effect.orders), ORDERS_S_MAX)
            reply: OrdersReply | None = decode(raw, OrdersReply)
        except (Unreachable, RemoteError, model.BadMessage) as error:
            logger.info("orders to %s: %s", effect.node, error)
            reply = None
        self._push(Answered(effect.node, reply))

    async def _signal(self, effect: SendSignal) -> None:
        reply = QueryReply(effect.result)
        try:
            raw = await self._port.request(orders_subject(effect.node), encode(effect.orders), ORDERS_S_MAX)
            answer = decode(raw, OrdersReply)
            if not answer.valid:
                reply = QueryReply(error=TryLater(f"node {effect.node} is just starting", "try again").to_wire())
            elif answer.missed:
                reply = QueryReply(error=TryLater("the signal found no process of the job", "see `xos ps -a`: it may have ended").to_wire())
        except (Unreachable, RemoteError, model.BadMessage):
            silent = Unreachable(f"node {effect.node} does not answer; the signal may or may not have arrived", "try again")
            reply = QueryReply(error=silent.to_wire())
        await _answer(effect.reply, encode(reply))


async def _answer(incoming: Incoming, data: bytes) -> None:
    with contextlib.suppress(Unreachable):  # who asked will ask again
        await incoming.answer(data)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _step_down(reason: str) -> None:
    raise Deposed(reason)


class ManagerDriver:
    """A candidate for managing a VO's detached jobs. `run` campaigns, leads and stands by for ever; cancel it to stop."""

    def __init__(
        self,
        port: Port,
        make_lease: Callable[[], LeaseLike],
        *,
        verify: Verify,
        matches: Matches,
        is_admin: Callable[[str], bool],
        clock_s: Callable[[], float],
    ) -> None:
        """Take what it needs.

        Args:
            port: the VO's account with the rights of a service.
            make_lease: a new lease object for each term, all on one key.
            verify: checks a submission's signature and certificates (signed.verify_submission bound to a judge).
            matches: range query over a node's facts; raises XosError for a query that cannot be read.
            is_admin: whether a user of the VO may see and kill everybody's jobs.
            clock_s: monotonic seconds, the same clock that the lease runs on; must go on while the machine sleeps.
        """
        self.port = port
        self._make_lease = make_lease
        self.verify = verify
        self.matches = matches
        self.is_admin = is_admin
        self.clock_s = clock_s
        self._leader: _Leader | None = None

    @property
    def leads(self) -> bool:
        """Whether this one leads now (it may have been deposed a moment ago)."""
        return self._leader is not None and self._leader.machine is not None

    def statistics(self) -> dict[str, int]:
        """Return counts of the machine; empty while standing by."""
        machine = self._leader.machine if self._leader else None
        return machine.statistics() if machine else {}

    async def run(self) -> None:
        """Campaign and lead, for ever. Errors of the fabric end a term, never the candidate."""
        while True:
            lease = self._make_lease()
            try:
                epoch = await lease.acquire_wait()
                self._leader = _Leader(self, lease, epoch)
                await self._leader.lead()
            except* XosError as group:
                for error in _leaves(group):
                    level = logging.INFO if isinstance(error, Deposed | Unreachable) else logging.ERROR
                    logger.log(level, "no longer leads the VO's jobs: %s", error)
            finally:
                self._leader = None
                with contextlib.suppress(Unreachable):
                    await lease.release()
            await asyncio.sleep(RETRY_S)
