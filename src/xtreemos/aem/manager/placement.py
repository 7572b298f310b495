"""Which node gets which job: pure choice among the nodes that report, and a fair queue. No clock, no network.

A node's room is what it reports for detached jobs minus what this manager placed there, so it is exact without asking. Jobs of
one shape (user, needs) wait in one line; lines take turns, so nobody's thousand jobs stand before somebody's one, and a line
whose head fits nowhere costs one look, not one per job.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.model import AWAY_S, Capacity, Row

Matches = Callable[[str, dict[str, Any]], bool]
"""(range query, facts of a node) -> whether it matches; raises XosError for a query that cannot be read."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks of a node; None = does not care."""

    cpus: float | None = None
    memory_bytes: int | None = None
    where: str | None = None
    node: str | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Need:
        return cls(spec.cpus, spec.memory_bytes, spec.where, spec.node)

    def describe(self) -> str:
        """Say it as a user would write it."""
        parts = [self.where] if self.where else []
        parts += [f"cpus>={self.cpus:g}"] if self.cpus else []
        parts += [f"memory>={self.memory_bytes >> 20}M"] if self.memory_bytes else []
        return " and ".join(parts) or "the job"


@dataclass(slots=True, eq=False)
class Job:
    """A job that has not ended, or a listed one that has. `row` is as in the log; the rest is guesswork that may be lost."""

    row: Row
    need: Need = Need()
    record: bytes = b""
    sent_s: float = -math.inf
    """When its start was last sent by this manager."""
    unsent: bool = False
    """This manager placed it and has not sent its start to anybody: it certainly did not start."""
    confirmed: bool = False
    """The node said that it has the attempt."""
    gentle: int = 0
    """Signal by which it is called off and which has not found it yet; until `gentle_until_s`, then it is SIGKILL."""
    gentle_until_s: float = -math.inf
    started_at: float | None = None
    excluded: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Node -> (not before this time, why) after a refusal."""

    def line(self) -> tuple[Any, ...]:
        """Jobs with equal keys fit the same nodes."""
        alone = self.row.job if self.excluded else ""
        return (self.row.user, self.need, alone)


@dataclass(slots=True, eq=False)
class NodeView:
    """What the manager knows of one node. `jobs`: all that is placed there by the log."""

    name: str
    store: str = ""
    clock_id: str = ""
    clock_s: float = 0.0
    last_s: float = -math.inf
    """When it was last heard of; at take-over set to now, because the manager before may have heard of it until then."""
    reported: bool = False
    capacity: Capacity = field(default_factory=Capacity)
    draining: bool = False
    facts_id: int = -1
    facts: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    cpus_used: float = 0.0
    memory_used: int = 0
    in_flight: bool = False
    kills: dict[tuple[str, int], int] = field(default_factory=dict)
    asked: tuple[tuple[str, int], ...] = ()
    """Attempts that the orders in flight signal."""
    matched: dict[str, bool] = field(default_factory=dict)

    def is_fresh(self, now_s: float) -> bool:
        return self.reported and now_s - self.last_s < AWAY_S

    def add(self, job: Job) -> None:
        self.jobs[job.row.job] = job
        self.cpus_used += job.need.cpus or 0
        self.memory_used += job.need.memory_bytes or 0

    def remove(self, job: Job) -> None:
        if self.jobs.pop(job.row.job, None) is not None:
            self.cpus_used -= job.need.cpus or 0
            self.memory_used -= job.need.memory_bytes or 0

    def could_take(self, need: Need, matches: Matches) -> bool:
        """Whether it is the right kind of machine, room aside."""
        if need.node not in (None, self.name):
            return False
        if (need.cpus or 0) > self.capacity.cpus or (need.memory_bytes or 0) > self.capacity.memory_bytes:
            return False
        if need.where is None:
            return True
        if need.where not in self.matched:
            self.matched[need.where] = matches(need.where, self.facts)
        return self.matched[need.where]

    def has_room(self, need: Need) -> bool:
        return (
            len(self.jobs) < self.capacity.slots
            and self.cpus_used + (need.cpus or 0) <= self.capacity.cpus + 1e-9
            and self.memory_used + (need.memory_bytes or 0) <= self.capacity.memory_bytes
        )

    def rank(self) -> tuple[float, float]:
        return (self.capacity.slots - len(self.jobs), self.capacity.cpus - self.cpus_used)


def choose(job: Job, nodes: Iterable[NodeView], now_s: float, matches: Matches) -> NodeView | str:
    """Return the node with the most room that may take `job`, or the line that says why there is none now."""
    need, best, full, refused = job.need, None, 0, []
    for node in nodes:
        if not node.is_fresh(now_s) or node.draining or not node.could_take(need, matches):
            continue
        until_s, why = job.excluded.get(node.name, (-math.inf, ""))
        if until_s > now_s:
            refused.append(f"{node.name}: {why}")
        elif not node.has_room(need):
            full += 1
        elif best is None or node.rank() > best.rank():
            best = node
    return best or _why_none(need, full, refused)


def _why_none(need: Need, full: int, refused: list[str]) -> str:
    if full:
        return f"waiting: all {full} nodes that match are full" if full > 1 else "waiting: the only node that matches is full"
    if refused:
        return f"waiting: refused by {'; '.join(refused[:3])}"
    if need.node is not None:
        return f"waiting: node {need.node} is not here, or is too small"
    return f"waiting: no node matches {need.describe()}"


class FairQueue:
    """Waiting jobs in lines of one shape; a pass serves every line once."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Any, ...], deque[Job]] = {}
        self._line_of: dict[str, tuple[Any, ...]] = {}
        self._why: dict[tuple[Any, ...], str] = {}

    def __len__(self) -> int:
        return len(self._line_of)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Put a job at the end of its line (or its head, if it was placed before)."""
        key = job.line()
        line = self._lines.setdefault(key, deque())
        (line.appendleft if first else line.append)(job)
        self._line_of[job.row.job] = key

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands; nothing if it does not wait."""
        key = self._line_of.pop(job.row.job, None)
        if key is not None:
            self._lines[key].remove(job)
            self._drop_empty(key)

    def why(self, job: Job) -> str:
        """Say why a job waits, as of the last pass."""
        key = self._line_of.get(job.row.job)
        return self._why.get(key, "waiting: just submitted") if key is not None else ""

    def place(self, choose_node: Callable[[Job], NodeView | str]) -> Iterator[tuple[Job, NodeView]]:
        """Yield (job, node) for what fits, line by line; the taker must book each before asking for the next."""
        open_lines = list(self._lines)
        while open_lines:
            still_open = []
            for key in open_lines:
                head = self._lines[key][0]
                found = choose_node(head)
                if isinstance(found, str):
                    self._why[key] = found
                    continue
                self._lines[key].popleft()
                del self._line_of[head.row.job]
                yield head, found
                if not self._drop_empty(key):
                    still_open.append(key)
            open_lines = still_open

    def _drop_empty(self, key: tuple[Any, ...]) -> bool:
        if self._lines[key]:
            return False
        del self._lines[key]
        self._why.pop(key, None)
        return True
