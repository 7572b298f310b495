"""The manager of a VO's detached jobs: one pure machine. Every change goes through `on`; it knows no clock, log or network.

Order of a turn (the driver's promise): feed events to `on`, then `Settle`; append all rows to the log in one batch; only when
that is acknowledged, carry out the effects. So nobody ever hears of what a crash could take back, and if the append fails the
machine is thrown away and folded again from the log.

Leases, why two attempts never live at once: an attempt of a job with `retry` lives only while its node hears of the manager; a
node counts from the moment it *sent* the report that was answered, which is never later than when we *received* it. We start
the job elsewhere LEASE_S + LEASE_MARGIN_S after the last report we received; a new manager counts from its take-over, because
the one before could answer until its own lease ended. Starts are void LEASE_S after the node's report that they answer to.
A job without `retry` is never started twice: it is `away` until its node comes back or GONE_S passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

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
    Step,
    StepDown,
    Submitted,
)
from xtreemos.aem.manager.model import (
    Answer,
    Cause,
    Ended,
    Kill,
    Live,
    Orders,
    Outcome,
    QueryReply,
    Report,
    ReportReply,
    Row,
    Said,
    Start,
    State,
)
from xtreemos.aem.manager.placement import FairQueue, Job, Matches, Need, NodeView, choose
from xtreemos.errors import TryLater, UsageError, XosError
from xtreemos.names import ARRAY_TASKS_MAX, check_job, task_index

HOLD_S: Final = 5.0
"""A question that waits for submissions still to arrive is answered with an error after this."""
HELD_MAX: Final = 10_000
WAIT_S_MAX: Final = 20.0
"""`wait` is answered after this at the latest, with what is known; clients ask again."""
WAITERS_MAX: Final = 10_000
WAIT_JOBS_MAX: Final = 5000
_ORDER_OVERHEAD_BYTES: Final = 64


@dataclass(slots=True, eq=False)
class _Waiter:
    """A `wait` under way: answered when one (or, with `every`, each) of `left` ended."""

    asked: Asked
    jobs: list[str]
    left: set[str]
    every: bool
    until_s: float
    done: bool = False


class Machine:
    """All jobs of one VO. Rebuilt at every take-over from `rows` (the folded log) and the submissions they came from."""

    def __init__(
        self,
        *,
        epoch: int,
        seq: int,
        rows: Iterable[Row],
        records: Mapping[str, tuple[JobSpec, bytes]],
        matches: Matches,
        now_s: float,
        gone_s: float = model.GONE_S,
    ) -> None:
        """Start from the log: `seq` = submissions taken so far; `records` holds those of all rows that have not ended."""
        self.epoch = epoch
        self.seq = seq
        self._matches = matches
        self._gone_s = gone_s
        self._now_s = now_s
        self._jobs: dict[str, Job] = {}
        self._nodes: dict[str, NodeView] = {}
        self._queue = FairQueue()
        self._ended: deque[tuple[float, str]] = deque()
        self._held: list[tuple[float, Asked]] = []
        self._waiters: dict[str, list[_Waiter]] = {}
        self._all_waiters: deque[_Waiter] = deque()
        self._woken: list[_Waiter] = []
        self._due: dict[str, None] = {}
        self._gentle: dict[str, None] = {}  # jobs with `gentle`, perhaps some that have none any more
        self._dirty = True
        self._next_look_s = now_s
        self._live_count = 0
        self._rows: list[Row] = []
        self._forget: list[str] = []
        self._send: list[Effect] = []
        for row in sorted(rows, key=lambda r: r.seq):
            self._restore(row, records.get(row.job))

    def _restore(self, row: Row, record: tuple[JobSpec, bytes] | None) -> None:
        job = self._jobs[row.job] = Job(row)
        if row.state is State.ENDED:
            self._ended.append((self._now_s, row.job))
            return
        self._live_count += 1
        if record is None:
            self._end(job, Outcome.LOST, "its submission record is gone from the VO's log")
            return
        job.need, job.record = Need.of(record[0]), record[1]
        if row.state is State.QUEUED:
            self._queue.add(job)
        else:
            node = self._node(row.node)
            node.store = node.store or row.store
            node.add(job)

    def on(self, event: Event, now_s: float) -> Step:
        """Take one event; the only way to change state."""
        self._now_s = now_s
        match event:
            case Submitted():
                self._on_submitted(event)
            case Reported():
                self._on_reported(event.report, event.reply)
            case Answered():
                self._on_answered(event)
            case Asked():
                self._on_asked(event)
            case Settle():
                self._on_settle()
        step = Step(tuple(self._rows), tuple(self._forget), tuple(self._send))
        self._rows, self._forget, self._send = [], [], []
        return step

    def rows(self) -> list[Row]:
        """Return every row that the log must hold: what compaction writes again."""
        return [job.row for job in self._jobs.values()]

    def oldest_needed_seq(self) -> int:
        """Return the first submission that a successor must read again."""
        live = (job.row.seq for job in self._jobs.values() if job.row.state is not State.ENDED)
        return min(live, default=self.seq + 1)

    def statistics(self) -> dict[str, int]:
        """Return counts for the console and tests."""
        return {"jobs": len(self._jobs), "live": self._live_count, "queued": len(self._queue), "nodes": len(self._nodes)}

    # ------------------------------------------------------------------ submissions

    def _on_submitted(self, event: Submitted) -> None:
        if event.seq <= self.seq:
            return  # taken before; the client published twice, or the log was read again
        self.seq = event.seq
        spec = event.spec
        name = model.short_name(spec.argv) if spec else ""
        bad = event.reason or self._why_rejected(spec)
        need = Need.of(spec) if spec else Need()
        for job_id in spec.tasks() if spec else [event.job]:
            if job_id in self._jobs:
                continue  # the same job id again: the first one counts
            row = Row(job=job_id, user=event.user, seq=event.seq, name=name)
            job = self._jobs[job_id] = Job(row)
            self._live_count += 1
            if spec is None or bad:
                self._end(job, Outcome.REJECTED, bad)
                continue
            job.need, job.record = need, event.record
            self._write(job, retry=spec.retry, submitted_at=spec.submitted_at)
            self._queue.add(job)
        self._dirty = True

    def _why_rejected(self, spec: JobSpec | None) -> str:
        if self._live_count + (spec.count if spec else 1) > model.LIVE_JOBS_MAX:
            return f"the VO has {model.LIVE_JOBS_MAX} jobs that did not end"
        try:
            if spec is not None and spec.where is not None:
                self._matches(spec.where, {})  # placement must never meet a query that cannot be read
        except XosError as error:
            return error.line()
        return "" if spec else "the submission cannot be read"

    def _write(self, job: Job, **changes: Any) -> None:
        """Change a row and have it persisted."""
        job.row = msgspec.structs.replace(job.row, **changes)
        self._rows.append(job.row)

    def _end(self, job: Job, outcome: Outcome, reason: str = "", exit_: dict[str, Any] | None = None) -> None:
        self._leave_node(job)
        self._queue.remove(job)
        self._live_count -= 1
        job.record, job.excluded = b"", {}
        self._ended.append((self._now_s, job.row.job))
        self._write(job, state=State.ENDED, outcome=outcome, reason=reason, exit=exit_)
        for waiter in self._waiters.pop(job.row.job, ()):
            waiter.left.discard(job.row.job)
            if not (waiter.every and waiter.left):
                self._woken.append(waiter)

    def _leave_node(self, job: Job) -> None:
        if job.row.node:
            self._node(job.row.node).remove(job)
            self._dirty = True

    # ------------------------------------------------------------------ nodes

    def _node(self, name: str) -> NodeView:
        if name not in self._nodes:
            self._nodes[name] = NodeView(name, last_s=self._now_s)
        return self._nodes[name]

    def _on_reported(self, report: Report, reply: Any) -> None:
        node = self._node(report.node)
        if node.clock_id == report.clock_id and report.clock_s < node.clock_s:
            return  # overtaken by a later one: its sender no longer waits, and its lists are old
        self._take_report(node, report)
        acks = [(end.job, end.attempt) for end in report.ended]
        for end in report.ended:
            self._on_attempt_ended(node, end)
        self._compare_live(node, report.live)
        self._due[node.name] = None
        message = ReportReply(self.epoch, acks, want_facts=node.facts_id != report.facts_id)
        self._send.append(AnswerNode(reply, message))

    def _take_report(self, node: NodeView, report: Report) -> None:
        was_fresh = node.is_fresh(self._now_s)
        if node.store != report.store:
            for job in [job for job in node.jobs.values() if job.row.store != report.store]:
                self._lose(job, f"node {node.name} was set up anew and forgot it")
        if (node.capacity, node.draining) != (report.capacity, report.draining) or not was_fresh:
            self._dirty = True
        node.store, node.clock_id, node.clock_s = report.store, report.clock_id, report.clock_s
        node.last_s, node.reported = self._now_s, True
        node.capacity, node.draining = report.capacity, report.draining
        if report.facts is not None:
            node.facts, node.facts_id, node.matched = report.facts, report.facts_id, {}
            self._dirty = True

    def _current(self, node: NodeView, job_id: str, attempt: int) -> Job | None:
        """Return the job if this attempt on this node is the one that counts."""
        job = self._jobs.get(job_id)
        if job is None or job.row.state is not State.PLACED or job.row.attempt != attempt or job.row.node != node.name:
            return None
        return job

    def _on_attempt_ended(self, node: NodeView, end: Ended) -> None:
        job = self._current(node, end.job, end.attempt)
        if job is None:
            return  # superseded or known already: acknowledged, so that the node forgets it
        if end.cause is Cause.EXITED:
            self._end(job, Outcome.EXITED, end.reason, end.exit)
        elif end.cause is Cause.KILLED:
            self._end(job, Outcome.KILLED, end.reason)
        elif end.cause is Cause.LOST:
            self._lose(job, end.reason or f"node {node.name} lost it")
        else:
            self._try_elsewhere(job, node, end.reason, model.REFUSED_BACKOFF_S)

    def _lose(self, job: Job, reason: str) -> None:
        """An attempt's result will never be known: start it again if its user allowed that."""
        row = job.row
        if row.cancelled:
            self._end(job, Outcome.KILLED, f"killed; {reason}")
        elif row.losses >= row.retry:
            self._end(job, Outcome.LOST, reason)
        else:
            self._requeue(job, losses=row.losses + 1, reason=reason)

    def _try_elsewhere(self, job: Job, node: NodeView, why: str, backoff_s: float) -> None:
        """The node certainly did not start it."""
        if job.row.cancelled:
            self._end(job, Outcome.KILLED, "killed before it started")
            return
        job.excluded[node.name] = (self._now_s + backoff_s, why or "no reason given")
        self._requeue(job)

    def _requeue(self, job: Job, **changes: Any) -> None:
        self._leave_node(job)
        self._write(job, state=State.QUEUED, node="", store="", **changes)
        job.confirmed, job.started_at, job.sent_s = False, None, float("-inf")
        self._queue.add(job, first=True)
        self._dirty = True

    def _compare_live(self, node: NodeView, live: list[Live]) -> None:
        """Confirm what runs; have killed what should not; send again what should be there and is not."""
        for item in live:
            job = self._current(node, item.job, item.attempt)
            if job is not None:
                job.confirmed, job.started_at = True, item.started_at
                continue
            known = self._jobs.get(item.job)
            if known is None or item.attempt <= known.row.attempt:  # a higher one: we are deposed and will learn it soon
                node.kills[item.job, item.attempt] = model.SIGKILL
        here = {(item.job, item.attempt) for item in live}
        for job in node.jobs.values():
            if (job.row.job, job.row.attempt) not in here:
                job.confirmed = False
            if job.row.cancelled and not job.row.signalled:
                node.kills[job.row.job, job.row.attempt] = job.gentle or model.SIGKILL

    def _on_answered(self, event: Answered) -> None:
        node = self._node(event.node)
        node.in_flight = False
        asked, node.asked = node.asked, ()
        self._due[node.name] = None
        if event.reply is None or not event.reply.valid:
            if event.reply is not None and event.reply.fence > self.epoch:
                self._send.append(StepDown(f"node {node.name} obeys a newer manager"))
            return
        for answer in event.reply.answers:
            self._on_answer(node, answer)
        for key in asked:
            job = self._current(node, *key)
            if job is not None and job.gentle and key not in event.reply.missed:
                job.gentle, job.confirmed = 0, True
                self._write(job, signalled=True)

    def _on_answer(self, node: NodeView, answer: Answer) -> None:
        job = self._current(node, answer.job, answer.attempt)
        if job is None or job.confirmed:
            return
        if answer.said in (Said.ACCEPTED, Said.ENDED):
            job.confirmed = True
        elif answer.said is Said.FULL:
            self._try_elsewhere(job, node, answer.reason or "full", model.FULL_BACKOFF_S)
        elif answer.said is Said.REFUSED:
            self._try_elsewhere(job, node, answer.reason, model.REFUSED_BACKOFF_S)
        # expired: it was on its way too long; the node's next report makes the next try valid

    # ------------------------------------------------------------------ settle: time, placement, orders

    def _on_settle(self) -> None:
        if self._now_s >= self._next_look_s:
            self._next_look_s = self._now_s + 0.5
            self._look_at_clock()
        if self._dirty and len(self._queue):
            self._place()
        self._dirty = False
        due, self._due = self._due, {}
        for name in due:
            self._send_orders(self._nodes[name])
        self._release_held()
        self._answer_waiters()

    def _look_at_clock(self) -> None:
        self._dirty = True  # back-offs end, nodes go away: at most one full look at the lines in half a second
        for node in self._nodes.values():
            silent_s = self._now_s - node.last_s
            if silent_s < model.LEASE_S or not node.jobs:
                continue
            for job in list(node.jobs.values()):
                if job.row.retry and silent_s >= model.LEASE_S + model.LEASE_MARGIN_S:
                    self._lose(job, f"node {node.name} died or was cut off")
                elif not job.row.retry and silent_s >= self._gone_s:
                    self._lose(job, f"node {node.name} has been away for {self._gone_s / 3600:g} h")
        for job in [self._jobs[name] for name in self._gentle if name in self._jobs]:
            if not job.gentle or job.row.state is State.ENDED:
                del self._gentle[job.row.job]
            elif self._now_s >= job.gentle_until_s:
                self._cancel(job)
        self._forget_old()
        self._woken.extend(w for w in self._all_waiters if w.until_s <= self._now_s)

    def _forget_old(self) -> None:
        while self._ended and (len(self._ended) > model.KEEP_ENDED_MAX or self._now_s - self._ended[0][0] > model.KEEP_ENDED_S):
            _, job_id = self._ended.popleft()
            del self._jobs[job_id]
            self._forget.append(job_id)

    def _place(self) -> None:
        nodes = [node for node in self._nodes.values() if node.is_fresh(self._now_s)]
        for job, node in self._queue.place(lambda job: choose(job, nodes, self._now_s, self._matches)):
            self._write(job, state=State.PLACED, node=node.name, store=node.store, attempt=job.row.attempt + 1, reason="")
            job.unsent = True
            job.excluded = {name: item for name, item in job.excluded.items() if item[0] > self._now_s}
            node.add(job)
            self._due[node.name] = None

    def _send_orders(self, node: NodeView) -> None:
        if node.in_flight or not node.is_fresh(self._now_s):
            return
        starts, room, before = [], model.MESSAGE_BYTES_MAX, b""
        for job in node.jobs.values():
            if job.confirmed or job.row.cancelled or self._now_s - job.sent_s < model.RESEND_S:
                continue
            record = b"" if job.record is before else job.record
            room -= len(record) + _ORDER_OVERHEAD_BYTES
            if room < 0:
                self._due[node.name] = None
                break
            job.sent_s, job.unsent, before = self._now_s, False, job.record
            starts.append(Start(job.row.job, job.row.attempt, record))
        kills = [Kill(job, attempt, signal) for (job, attempt), signal in node.kills.items()]
        node.asked = tuple(node.kills)
        node.kills.clear()
        if starts or kills:
            node.in_flight = True
            self._send.append(SendOrders(node.name, self._orders(node, starts, kills)))

    def _orders(self, node: NodeView, starts: list[Start], kills: list[Kill]) -> Orders:
        return Orders(fence=self.epoch, store=node.store, clock_id=node.clock_id, seen_s=node.clock_s, starts=starts, kills=kills)

    # ------------------------------------------------------------------ questions

    def _on_asked(self, event: Asked) -> None:
        if event.query.after_seq > self.seq and len(self._held) < HELD_MAX:
            self._held.append((self._now_s, event))
            return
        self._answer(event)

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for since_s, event in held:
            if event.query.after_seq <= self.seq:
                self._answer(event)
            elif self._now_s - since_s > HOLD_S:
                late = TryLater("the manager is still reading submissions", "try again")
                self._send.append(AnswerUser(event.reply, QueryReply(error=late.to_wire())))
            else:
                self._held.append((since_s, event))

    def _answer(self, event: Asked) -> None:
        try:
            result = self._result(event)
        except XosError as error:
            self._send.append(AnswerUser(event.reply, QueryReply(error=error.to_wire())))
            return
        if result is not None:
            self._send.append(AnswerUser(event.reply, QueryReply(result)))

    def _result(self, event: Asked) -> dict[str, Any] | None:
        params = event.query.params
        match event.query.method:
            case "list":
                return self._list(event, params)
            case "status":
                return self._status(event, params)
            case "wait":
                return self._wait(event, params)
            case "kill":
                return self._kill(event, self._mine(event, params.get("job")), params.get("signal", model.SIGKILL))
        raise UsageError(f"the job manager has no method {event.query.method[:40]!r}")

    def _mine(self, event: Asked, job_id: Any) -> Job:
        job = self._jobs.get(job_id) if isinstance(job_id, str) else None
        if job is None or not (event.admin or job.row.user == event.user):
            raise model.JobUnknown(f"no detached job {str(job_id)[:20]!r} of yours", "see `xos ps`")
        return job

    def _status(self, event: Asked, params: dict[str, Any]) -> dict[str, Any]:
        names = params.get("jobs")
        if not isinstance(names, list) or len(names) > model.LIST_ROWS_MAX:
            raise UsageError(f"status takes a list of at most {model.LIST_ROWS_MAX} jobs")
        if params.get("known"):  # leave out what is no detached job of theirs: it may be a foreground one
            mine = (
                name for name in names if isinstance(name, str) and (job := self._jobs.get(name)) and job.row.user == event.user
            )
            names = list(mine)
        return {"jobs": [self.view(self._mine(event, name)) for name in names]}

    def _list(self, event: Asked, params: dict[str, Any]) -> dict[str, Any]:
        everybody = event.admin and bool(params.get("all"))
        after, limit = int(params.get("after", 0)), min(int(params.get("limit", model.LIST_ROWS_MAX)), model.LIST_ROWS_MAX)
        behind = params.get("after_job")  # tasks of one array came in one submission: go on behind this one
        index = task_index(check_job(behind)) if behind else ARRAY_TASKS_MAX
        views: list[dict[str, Any]] = []
        for job in self._jobs.values():
            row = job.row
            if row.seq < after or (row.seq == after and task_index(row.job) <= index):
                continue
            if not (everybody or row.user == event.user):
                continue
            if row.state is State.ENDED and not params.get("ended"):
                continue
            if len(views) == limit:
                return {"jobs": views, "more": True}
            views.append(self.view(job))
        return {"jobs": views, "more": False}

    def _wait(self, event: Asked, params: dict[str, Any]) -> dict[str, Any] | None:
        names = params.get("jobs")
        if not isinstance(names, list) or len(names) > WAIT_JOBS_MAX:
            raise UsageError(f"wait takes a list of at most {WAIT_JOBS_MAX} jobs")
        jobs = [self._mine(event, name) for name in names]
        every = bool(params.get("every"))
        left = {job.row.job for job in jobs if job.row.state is not State.ENDED}
        if not left or (not every and len(left) < len(jobs)) or len(self._all_waiters) >= WAITERS_MAX:
            return self._wait_result(names)
        wait_s = min(float(params.get("wait_s", WAIT_S_MAX)), WAIT_S_MAX)
        waiter = _Waiter(event, names, left, every, self._now_s + wait_s)
        for name in sorted(left):
            self._waiters.setdefault(name, []).append(waiter)
        self._all_waiters.append(waiter)
        return None

    def _wait_result(self, names: list[str]) -> dict[str, Any]:
        known = (self._jobs.get(name) for name in names)
        return {"ended": [self.view(job) for job in known if job is not None and job.row.state is State.ENDED]}

    def _answer_waiters(self) -> None:
        woken, self._woken = self._woken, []
        for waiter in woken:
            if not waiter.done:
                waiter.done = True
                for name in waiter.left:
                    others = [w for w in self._waiters.get(name, ()) if w is not waiter]
                    if others:
                        self._waiters[name] = others
                    else:
                        self._waiters.pop(name, None)
                self._send.append(AnswerUser(waiter.asked.reply, QueryReply(self._wait_result(waiter.jobs))))
        if woken:
            self._all_waiters = deque(w for w in self._all_waiters if not w.done)

    def _kill(self, event: Asked, job: Job, signal: Any) -> dict[str, Any] | None:
        if not isinstance(signal, int) or not 1 <= signal <= 64:
            raise UsageError(f"{signal!r} is not a signal number")
        if job.row.state is State.ENDED:
            return self.view(job)
        if (job.row.state is State.QUEUED or job.unsent) and signal in model.ENDING_SIGNALS:
            self._end(job, Outcome.KILLED, "killed before it started")
        elif signal == model.SIGKILL:
            self._cancel(job)
        elif not job.confirmed and signal in model.ENDING_SIGNALS:
            self._cancel_gently(job, signal)
        elif job.row.state is State.QUEUED:
            raise TryLater(f"job {job.row.job} did not start yet, so it cannot be signalled")
        else:
            node = self._node(job.row.node)
            orders = self._orders(node, [], [Kill(job.row.job, job.row.attempt, signal)])
            self._send.append(SendSignal(node.name, orders, event.reply, self.view(job)))
            return None
        return self.view(job)

    def _cancel(self, job: Job) -> None:
        """Never start it again, and kill it until it has ended."""
        job.gentle = 0
        self._call_off(job, model.SIGKILL)

    def _cancel_gently(self, job: Job, signal: int) -> None:
        """Call off a job whose start is on its way: nobody can say whether it runs when the signal comes.

        So the signal is sent until the node says that it found the job, or the node called off what it had not started. If that
        takes GENTLE_S, or this manager ends before it knows, it is SIGKILL, which makes sure that the attempt never starts.
        """
        if not job.row.cancelled:
            job.gentle, job.gentle_until_s = signal, self._now_s + model.GENTLE_S
            self._gentle[job.row.job] = None
        self._call_off(job, job.gentle or model.SIGKILL)

    def _call_off(self, job: Job, signal: int) -> None:
        node = self._node(job.row.node)
        node.kills[job.row.job, job.row.attempt] = signal
        self._due[node.name] = None
        if not job.row.cancelled or job.row.signalled:
            self._write(job, cancelled=True, signalled=False)

    def view(self, job: Job) -> dict[str, Any]:
        """Return a job as users see it: see docs of `xos ps --json`."""
        row = job.row
        return {
            "job": row.job, "user": row.user, "name": row.name, "state": self._shown_state(job), "node": row.node,
            "attempt": row.attempt, "losses": row.losses, "retry": row.retry, "cancelled": row.cancelled,
            "submitted_at": row.submitted_at, "started_at": job.started_at, "outcome": row.outcome, "exit": row.exit,
            "reason": self._shown_reason(job), "seq": row.seq,
        }  # fmt: skip

    def _shown_state(self, job: Job) -> str:
        if job.row.state is not State.PLACED:
            return job.row.state.value
        if self._now_s - self._node(job.row.node).last_s >= model.AWAY_S:
            return "away"
        return "running" if job.started_at is not None else "starting"

    def _shown_reason(self, job: Job) -> str:
        if job.row.state is State.QUEUED:
            return self._queue.why(job)
        if self._shown_state(job) == "away":
            return f"node {job.row.node} does not answer" + (
                "; it is started elsewhere soon" if job.row.retry > job.row.losses else ""
            )
        return job.row.reason

    def view_of(self, job_id: str) -> dict[str, Any] | None:
        """Return the view of a job by id, for notices; None if it is forgotten."""
        job = self._jobs.get(job_id)
        return None if job is None else self.view(job)
