"""Is a history of concurrent operations linearizable? For simulated and real systems alike.

A history is rows of who did what from when to when with what result; the question is whether every operation can be given one moment
between its invocation and its return, so that done one after the other at these moments they have these results.

Source: J. Wing, C. Gong, "Testing and verifying concurrent objects" (1993), with the memory of states seen by G. Lowe, "Testing for
linearizability" (2017). Worst case exponential in the number of operations that run at once; keep registers apart by `key`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _self: "UNKNOWN"})()
"""Result of an operation of which nobody knows what it answered."""


@dataclass(frozen=True, slots=True)
class Row:
    """One operation.

    Times are of one clock. `returned_at` None: it may take effect at any time after its invocation, or never. `optional`: it may also
    never have taken effect; if it did, before `returned_at` (what a program was told EIO about, or lost unsynced).
    """

    process: str
    op: Hashable
    invoked_at: float
    returned_at: float | None
    result: Any = UNKNOWN
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """What one register (file, directory, counter, ...) does by itself.

    `step(state, op, result)` returns the state afterwards, or None if `op` cannot have that result in `state`; with UNKNOWN it always can.
    States are hashable. `key(op)`: operations with different keys have nothing to do with each other.
    """

    initial: Hashable
    step: Callable[[Any, Any, Any], Hashable | None]
    key: Callable[[Any], Hashable] = lambda _op: 0


@dataclass(frozen=True, slots=True)
class Violation:
    """The shortest beginning of the history (of one key) that cannot be; `row` is the one whose return made it impossible."""

    key: Hashable
    row: Row
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [f"no order of these explains {self.row.op!r} -> {self.row.result!r} of {self.row.process} (key {self.key!r}):"]
        for row in self.rows:
            end = "        -" if row.returned_at is None else f"{row.returned_at:9.3f}"
            mark = "?" if row.optional else " "
            lines.append(f"  {row.invoked_at:9.3f} {end}{mark} {row.process:12} {row.op!r} -> {row.result!r}")
        return "\n".join(lines)


def check(history: Iterable[Row], model: Model) -> Violation | None:
    """Return None if the history is linearizable, else its shortest impossible beginning."""
    parts: dict[Hashable, list[Row]] = {}
    for row in history:
        parts.setdefault(model.key(row.op), []).append(row)
    for key, rows in parts.items():
        rows.sort(key=lambda row: row.invoked_at)
        if not possible(rows, model):
            return _shortest(key, rows, model)
    return None


def _shortest(key: Hashable, rows: list[Row], model: Model) -> Violation:
    """Search by halves: what extends an impossible beginning is impossible too."""
    ends = sorted(((row.returned_at, at) for at, row in enumerate(rows) if row.returned_at is not None and not row.optional))
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if possible(_until(rows, ends[middle][0]), model):
            low = middle + 1
        else:
            high = middle
    return Violation(key, rows[ends[high][1]], tuple(_until(rows, ends[high][0])))


def _until(rows: Sequence[Row], time: float) -> list[Row]:
    """The history as it looked at a time: what had not returned then has no result."""
    return [
        row if row.returned_at is not None and row.returned_at <= time else replace(row, returned_at=None, result=UNKNOWN)
        for row in rows
        if row.invoked_at <= time
    ]


def possible(rows: Sequence[Row], model: Model) -> bool:
    """Tell whether rows (sorted by invocation, of one key) are linearizable."""
    ends = [math.inf if row.returned_at is None else row.returned_at for row in rows]
    must = sum(1 << at for at, row in enumerate(rows) if row.returned_at is not None and not row.optional)
    seen: set[tuple[int, Hashable]] = set()
    stack = [_next(rows, ends, model, 0, model.initial)]
    if not must:
        return True
    while stack:
        choice = next(stack[-1], None)
        if choice is None:
            stack.pop()
            continue
        if choice in seen:
            continue
        seen.add(choice)
        if choice[0] & must == must:
            return True
        stack.append(_next(rows, ends, model, *choice))
    return False


def _next(rows: Sequence[Row], ends: Sequence[float], model: Model, done: int, state: Hashable) -> Iterator[tuple[int, Hashable]]:
    """Yield what may come next: whatever began before the first return of what is not done yet."""
    at = ((done + 1) & ~done).bit_length() - 1  # everything before this row is done
    limit = math.inf
    while at < len(rows) and rows[at].invoked_at <= limit:
        if not done >> at & 1:
            limit = min(limit, ends[at])
        at += 1
    last = at
    for index in sorted((i for i in range(last) if not done >> i & 1 and rows[i].invoked_at <= limit), key=ends.__getitem__):
        row = rows[index]
        after = model.step(state, row.op, row.result)
        if after is not None:
            yield done | 1 << index, after
        if row.optional:
            yield done | 1 << index, state
