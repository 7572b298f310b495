"""What the programs of `fsjepsen_worker` were told, and whether a file system can have told them that. Pure, apart from reading their logs.

A call that failed is *unsure*: it may have been done or not. It was done, if at all, before its failure was told, unless `late`: a server that
was asked and did not answer may do it whenever it wakes up.
"""

from __future__ import annotations

import errno
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from xtreemos.testing import linearize
from xtreemos.testing.linearize import UNKNOWN, Model, Row

NAMES = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of one worker. `error` 0: it was done. `returned_at` None: the worker ended in it."""

    worker: str
    op: tuple[Any, ...]
    invoked_at: float
    returned_at: float | None = None
    result: Any = None
    error: int = 0

    @property
    def is_done(self) -> bool:
        """Whether it was told to be done."""
        return self.returned_at is not None and not self.error


@dataclass(frozen=True, slots=True)
class Log:
    """All of one worker: its operations in order, its slow system calls as (what, seconds), and errnos of opening and locking."""

    worker: str
    events: tuple[Event, ...]
    slow: tuple[tuple[str, float], ...]
    refusals: Counter[int]
    places: tuple[tuple[str, str], ...] = ()
    """Of files with which something failed: (name, OSDs)."""


def read_log(worker: str, path: Path) -> Log:
    """Read what a worker wrote."""
    begun: dict[int, Event] = {}
    slow: list[tuple[str, float]] = []
    places: list[tuple[str, str]] = []
    refusals: Counter[int] = Counter()
    for line in path.read_text().splitlines() if path.exists() else ():
        match json.loads(line):
            case ["i", number, op, at]:
                begun[number] = Event(worker, tuple(op), at)
            case ["r", number, result, at]:
                begun[number] = Event(worker, begun[number].op, begun[number].invoked_at, at, result)
            case ["e", number, error, at]:
                begun[number] = Event(worker, begun[number].op, begun[number].invoked_at, at, None, error)
            case ["s", what, seconds]:
                slow.append((what, seconds))
            case ["x", name, where]:
                places.append((name, where))
            case [_, number]:
                refusals[number] += 1
    return Log(worker, tuple(begun.values()), tuple(slow), refusals, tuple(places))


def events_of(logs: Iterable[Log]) -> Iterator[Event]:
    """All operations of all workers."""
    for log in logs:
        yield from log.events


def _unsure(event: Event, *, late: bool) -> Row:
    ended = None if late or event.error == errno.ETIMEDOUT else event.returned_at
    return Row(event.worker, event.op, event.invoked_at, ended, UNKNOWN, optional=True)


# ---------------------------------------------------------------------------------------------------------------------- registers


def register_step(state: int, op: tuple[Any, ...], result: Any) -> int | None:
    """A number: `("write", slot, value)` and `("read", slot)`."""
    if op[0] == "write":
        value: int = op[2]
        return value
    return state if result is UNKNOWN or result == state else None


def check_register(logs: Sequence[Log], *, late: bool = False) -> str:
    """Say what is wrong with a history of `Register` or `Mapped`; "": nothing."""
    seen = {(event.op[1], event.result) for event in events_of(logs) if event.is_done and event.op[0] == "read"}
    rows = []
    for event in events_of(logs):
        if event.is_done:
            assert event.returned_at is not None
            rows.append(Row(event.worker, event.op, event.invoked_at, event.returned_at, event.result))
        elif event.op[0] == "write" and (event.op[1], event.op[2]) in seen:  # one that nobody saw explains nothing
            rows.append(_unsure(event, late=late))
    wrong = linearize.check(rows, Model(0, register_step, key=lambda op: op[1]))
    return _told(wrong)


def _told(wrong: linearize.Violation | None, last: int = 60) -> str:
    if wrong is None:
        return ""
    lines = str(wrong).splitlines()
    return "\n".join(lines[:1] + lines[1:][-last:])


# ------------------------------------------------------------------------------------------------------------------------- names


Place = tuple[str, frozenset[str]] | None
"""What a name means: (token, names it had), None: nothing."""


def names_step(states: frozenset[tuple[Place, ...]], op: tuple[Any, ...], result: Any) -> frozenset[tuple[Place, ...]] | None:
    """The folder of `Names`: what each of NAMES may mean; a set, since some answers leave it open what was done."""
    after = frozenset(one for state in states for one in _names_after(dict(zip(NAMES, state, strict=True)), op, result))
    return after or None


def _names_after(now: dict[str, Place], op: tuple[Any, ...], result: Any) -> Iterator[tuple[Place, ...]]:
    """What the names may mean after an operation with a result; nothing if it cannot have that.

    A rename may say "ok" and do nothing if another one has moved what was `one` to `other` meanwhile: the kernel looks both names up, one after
    the other, finds the same file, and by rename(2) has nothing to do. It asks nobody, so no file system below it can mend that.
    """
    same = tuple(now.values())
    if op[0] == "list":
        if result is UNKNOWN or result == [name for name in NAMES if now[name] is not None]:
            yield same
        return
    want, after = _names_change(now, op)
    if result is UNKNOWN or result == want:
        yield tuple(after[name] for name in NAMES)
    target = now.get(op[2]) if op[0] != "make" else None
    if target is None:
        return
    if (op[0] in {"move", "swap"} and result == "ok" and op[1] in target[1]) or (op[0] == "take" and result == "EEXIST"):
        yield same  # of two reasons to refuse nobody promises which comes first


def _names_change(now: dict[str, Place], op: tuple[Any, ...]) -> tuple[str, dict[str, Place]]:
    """What an operation answers, and what the names mean after it."""
    kind, one, other = op
    here = now[one]
    if kind == "make":
        return ("EEXIST", now) if here is not None else ("ok", {**now, one: (other, frozenset({one}))})
    there = now[other]
    if here is None or (kind == "swap" and there is None):
        return "ENOENT", now
    if kind == "read":
        return here[0], now
    if kind == "unlink":
        return "ok", {**now, one: None}
    if kind == "take" and there is not None:
        return "EEXIST", now
    back = (there[0], there[1] | {one}) if kind == "swap" and there is not None else None
    return "ok", {**now, one: back, other: (here[0], here[1] | {other})}


def check_names(logs: Sequence[Log]) -> str:
    """Say what is wrong with a history of `Names`; "": nothing. Failed changes may be done late: a server has been asked."""
    rows = []
    for event in events_of(logs):
        if event.is_done:
            rows.append(Row(event.worker, event.op, event.invoked_at, event.returned_at, event.result))
        elif event.op[0] not in {"read", "list"}:
            rows.append(_unsure(event, late=True))
    return _told(linearize.check(rows, Model(frozenset({(None,) * len(NAMES)}), names_step)))


def check_elections(logs: Sequence[Log], there: Iterable[str]) -> str:
    """Say what is wrong with races for names of which `there` are left; "": nothing."""
    races: dict[int, list[Event]] = defaultdict(list)
    for event in events_of(logs):
        races[event.op[1]].append(event)
    left = set(there)
    for at, events in sorted(races.items()):
        won = [event.worker for event in events if event.is_done and event.result == "ok"]
        unsure = [event.worker for event in events if not event.is_done]
        if len(won) > 1:
            return f"e{at} was won by {won}"
        if won and f"e{at}" not in left:
            return f"e{at} was won by {won[0]} and is not there"
        if not won and not unsure:
            return f"e{at} was lost by all of {len(events)}"
    return ""


# ----------------------------------------------------------------------------------------------------------------------- appends

RECORD = re.compile(rb"<(w\d+ (\d+) x*) ([0-9a-f]{8})>\n")


def check_appends(logs: Sequence[Log], data: bytes, *, torn: bool) -> str:
    """Say what is wrong with a file that `Append` workers made; "": nothing. `torn`: a client died, what was not synced may be in pieces."""
    found: dict[str, list[int]] = defaultdict(list)
    end = 0
    for match in RECORD.finditer(data):
        if match.start() != end and not torn:
            return f"at byte {end} there is {data[end : match.start()][:80]!r}"
        end = match.end()
        text = match[1].decode()
        if zlib.crc32(match[1]) != int(match[3], 16):
            return f"at byte {match.start()} a record of {text[:12]} is not whole"
        found[text.split()[0]].append(int(match[2]))
    if end != len(data) and not torn:
        return f"the end is {data[end:][:80]!r}"
    for log in logs:
        wrong = _check_writer(log, found[log.worker])
        if wrong:
            return f"{log.worker}: {wrong}"
    return ""


def _check_writer(log: Log, numbers: list[int]) -> str:
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        return f"records {twice[:5]} are there twice"
    if numbers != sorted(numbers):
        return f"records are out of order: {numbers[:200]}"
    have = set(numbers)
    sure: list[int] = []
    for event in log.events:
        if event.op[0] == "append":
            sure = [*sure, event.op[1]] if event.is_done else []
        elif event.is_done:
            lost = [number for number in sure if number not in have]
            if lost:
                return f"records {lost[:5]} were synced (with {event.op[1]}, at {event.returned_at}) and are gone"
            sure = []
        else:
            sure = []
    return ""


# ------------------------------------------------------------------------------------------------------------------------- locks


def check_locks(logs: Sequence[Log], final: int, *, late: bool = False) -> str:
    """Say what is wrong with numbers that `Locked` workers counted up to `final`; "": nothing."""
    done = sorted((event.result[1], event.result[2], event.result[0], event.worker) for event in events_of(logs) if event.is_done)
    for (begun, ended, value, worker), (next_begun, _e, next_value, next_worker) in pairwise(done):
        if next_begun < ended:
            return f"{worker} had the lock at {begun:.3f} to {ended:.3f} (read {value}), {next_worker} at {next_begun:.3f} (read {next_value})"
    rows = [Row(worker, ("add",), begun, ended, value) for begun, ended, value, worker in done]
    rows += [_unsure(event, late=late) for event in events_of(logs) if not event.is_done]
    rows.append(Row("end", ("read",), 1e12, 1e12 + 1, final))
    return _told(linearize.check(rows, Model(0, _count_step)))


def _count_step(state: int, op: tuple[str], result: Any) -> int | None:
    if op[0] == "read":
        return state if result == state else None
    return state + 1 if result is UNKNOWN or result == state else None


# ------------------------------------------------------------------------------------------------------------------------- files

Content = tuple[int, int] | None
"""(tag, length), None: there is no such file."""


def expected_files(logs: Iterable[Log]) -> dict[str, set[Content] | None]:
    """What `Files` workers were promised: by name what may be there; None: anything, for a change failed half way."""
    files: dict[str, set[Content] | None] = {}
    for event in events_of(logs):
        kind, name = event.op[:2]
        sure = event.is_done
        if kind in {"make", "over"}:
            files[name] = {(event.op[2], event.op[3])} if sure else None
        elif kind == "remove":
            files[name] = {None} if sure else _or(files[name], None)
        else:
            new, was = event.op[2], files[name]
            files[new] = was if sure else _or(was, None)
            files[name] = {None} if sure else _or(was, None)
    return files


def _or(one: set[Content] | None, other: Content) -> set[Content] | None:
    return None if one is None else {*one, other}


def check_soak(logs: Sequence[Log], dead: str) -> str:
    """Say what is wrong with what `Soak` workers saw while the OSD on node `dead` was away; "": nothing."""
    for log in logs:
        different = [
            event for event in log.events if event.is_done and event.op[0] == "get" and event.result not in {"same", "ENOENT"}
        ]
        if different:
            return f"{log.worker} read {different[0].op[1]} and found it {different[0].result}"
        strange = [(name, where) for name, where in log.places if dead not in where.split() and where != "ENOENT"]
        if strange:
            return f"{log.worker}: {strange[0][0]} failed, though it lies on {strange[0][1]}"
    return ""
