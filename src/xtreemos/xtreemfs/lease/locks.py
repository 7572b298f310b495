"""File locks of all clients of one MRC: POSIX and OFD ranges, BSD whole-file locks. Pure: events in, effects out.

As on one Linux machine: a request conflicts with other owners' *held* locks only, so a reader may pass a waiting writer (queueing behind those
who wait would deadlock programs that hold a lock through another descriptor, or wait for a child that wants one); those who wait get theirs
in the order in which they came. An owner's new lock replaces what it has in the range (upgrade, downgrade, split, merge).
A circle of POSIX owners is EDEADLK for the request that would close it.

Owners are (client, the kernel's lock owner). What a session that expired had goes to others at once (`ClientGone`).
Source: fcntl(2), flock(2); the rules of splitting and merging as in fs/locks.c of Linux.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xtreemos.xtreemfs.protocol import LockRow

Owner = tuple[str, int]
"""Client and the kernel's lock owner there."""
Span = tuple[int, int, bool, int]
"""First byte, last byte, whether it is a write lock, pid."""

ROWS_PER_FILE_MAX = 65_536
WAITING_PER_FILE_MAX = 4_096


class Event(msgspec.Struct, frozen=True):
    """Base of what happens to locks."""


class Lock(Event, frozen=True):
    """A client wants a lock. Answered by Got, Deadlock or NoLocks. `request`: any number that the driver uses once."""

    request: int
    client: str
    row: LockRow
    wait: bool = False


class Cancel(Event, frozen=True):
    """Whoever waits has given up (a signal, the call was closed). Unknown requests are ignored: it may just have been granted."""

    request: int


class Unlock(Event, frozen=True):
    """An owner gives back a range, or with `all_of_owner` everything of this kind in the file."""

    client: str
    ino: int
    kind: str
    owner: int
    start: int = 0
    end: int = (1 << 63) - 1
    all_of_owner: bool = False


class ClientGone(Event, frozen=True):
    """A client's session has expired, or (`forever`) ended."""

    client: str
    forever: bool = False


class Reclaim(Event, frozen=True):
    """A client opened its session again and says which locks it has. Answered by Reclaimed."""

    client: str
    rows: tuple[LockRow, ...]


class GraceOver(Event, frozen=True):
    """After a restart: whoever had locks has reclaimed them, or will not."""


class Effect(msgspec.Struct, frozen=True):
    """Base of what the driver must do."""


class Got(Effect, frozen=True):
    """Answer: it has the lock, or (`got` False, only without `wait`) somebody else has (EAGAIN)."""

    request: int
    got: bool


class Deadlock(Effect, frozen=True):
    """Answer: waiting would never end (EDEADLK)."""

    request: int


class NoLocks(Effect, frozen=True):
    """Answer: too many locks or waiting requests in this file (ENOLCK)."""

    request: int


class Reclaimed(Effect, frozen=True):
    """Answer to Reclaim. Owners of `lost` must not go on as if they had them: EIO on their descriptors."""

    client: str
    lost: tuple[LockRow, ...]


@dataclass(slots=True, eq=False)
class _File:
    """Locks of one kind in one inode."""

    held: dict[Owner, list[Span]] = field(default_factory=dict)
    """Sorted, disjoint; neighbours of the same sort are one."""
    waiting: list[Lock] = field(default_factory=list)
    gone: dict[Owner, list[Span]] = field(default_factory=dict)
    """What clients had whose sessions expired, as long as nobody had any of it since: only so much may come back."""


class Locks:
    """See the module. With `grace`, requests wait until GraceOver; reclaims and unlocks do not."""

    def __init__(self, *, grace: bool = False) -> None:
        self._files: dict[tuple[int, str], _File] = {}
        self._waits: dict[int, Lock] = {}
        self._early: dict[int, Lock] | None = {} if grace else None
        self._out: list[Effect] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Lock: self._on_lock, Cancel: self._on_cancel, Unlock: self._on_unlock, ClientGone: self._on_client_gone, Reclaim: self._on_reclaim,
            GraceOver: self._on_grace_over,
        }  # fmt: skip

    def on(self, event: Event) -> list[Effect]:
        """Take one event; return the answers it leads to, in order."""
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    def blocker(self, client: str, row: LockRow) -> LockRow | None:
        """Return a lock of somebody else that stands in the way (F_GETLK), None if there is none."""
        file = self._files.get((row.ino, row.kind))
        for owner, (start, end, write, pid) in _blockers(file, client, row) if file else ():
            return LockRow(row.ino, row.kind, owner[1], start, end, write, pid)
        return None

    def rows(self, client: str | None = None) -> list[tuple[str, LockRow]]:
        """Return all held locks, or those of one client, as (client, row)."""
        return [
            (owner[0], LockRow(ino, "p" if kind == "p" else "b", owner[1], *span))
            for (ino, kind), file in self._files.items()
            for owner, spans in file.held.items()
            for span in spans
            if client is None or owner[0] == client
        ]

    # --------------------------------------------------------------------------------------------------------- requests

    def _on_lock(self, event: Lock) -> None:
        if self._early is not None:
            self._early[event.request] = event
            return
        row = event.row
        file = self._files.setdefault((row.ino, row.kind), _File())
        if not any(_blockers(file, event.client, row)):
            self._take(file, event)
        elif not event.wait:
            self._out.append(Got(event.request, got=False))
        elif row.kind == "p" and self._closes_circle(event):
            self._out.append(Deadlock(event.request))
        elif len(file.waiting) >= WAITING_PER_FILE_MAX:
            self._out.append(NoLocks(event.request))
        else:
            file.waiting.append(event)
            self._waits[event.request] = event
        self._clean(row.ino, row.kind, file)

    def _take(self, file: _File, event: Lock) -> None:
        if sum(len(spans) for spans in file.held.values()) >= ROWS_PER_FILE_MAX:
            self._out.append(NoLocks(event.request))
            return
        row = event.row
        owner = (event.client, row.owner)
        before = file.held.get(owner, [])
        file.held[owner] = _with(before, (row.start, row.end, row.write, row.pid))
        file.gone = {other: [span for span in spans if not _collides(span, row)] for other, spans in file.gone.items()}
        self._out.append(Got(event.request, got=True))
        if before and not row.write:
            self._wake(file)  # what was a write lock lets readers in now

    def _wake(self, file: _File) -> None:
        """Give waiting requests what is free now, in the order in which they came."""
        for event in list(file.waiting):
            if event.request in self._waits and not any(_blockers(file, event.client, event.row)):
                file.waiting.remove(event)
                del self._waits[event.request]
                self._take(file, event)

    def _closes_circle(self, event: Lock) -> bool:
        """Tell whether the requester would wait, over any number of others that wait, for itself."""
        me = (event.client, event.row.owner)
        seen: set[Owner] = set()
        look = self._waited_for(event)
        while look:
            owner = look.pop()
            if owner == me:
                return True
            if owner not in seen:
                seen.add(owner)
                for other in self._waits.values():
                    if (other.client, other.row.owner) == owner and other.row.kind == "p":
                        look |= self._waited_for(other)
        return False

    def _waited_for(self, event: Lock) -> set[Owner]:
        return {owner for owner, _span in _blockers(self._files[event.row.ino, event.row.kind], event.client, event.row)}

    def _on_cancel(self, event: Cancel) -> None:
        if self._early is not None:
            self._early.pop(event.request, None)
        waiting = self._waits.pop(event.request, None)
        if waiting is not None:
            key = (waiting.row.ino, waiting.row.kind)
            self._files[key].waiting.remove(waiting)
            self._clean(*key, self._files[key])

    def _on_unlock(self, event: Unlock) -> None:
        file = self._files.get((event.ino, event.kind))
        owner = (event.client, event.owner)
        if file is None or owner not in file.held:
            return
        left = [] if event.all_of_owner else list(_without(file.held[owner], event.start, event.end))
        if left:
            file.held[owner] = left
        else:
            del file.held[owner]
        self._wake(file)
        self._clean(event.ino, event.kind, file)

    def _clean(self, ino: int, kind: str, file: _File) -> None:
        if not file.held and not file.waiting and not file.gone:
            del self._files[ino, kind]

    # ---------------------------------------------------------------------------------------------------------- clients

    def _on_client_gone(self, event: ClientGone) -> None:
        for request in [row.request for row in self._waits.values() if row.client == event.client]:
            self._on_cancel(Cancel(request))
        for request in [row.request for row in (self._early or {}).values() if row.client == event.client]:
            self._on_cancel(Cancel(request))
        for (ino, kind), file in list(self._files.items()):
            file.gone = {owner: spans for owner, spans in file.gone.items() if owner[0] != event.client}
            gone = [owner for owner in file.held if owner[0] == event.client]
            for owner in gone:
                spans = file.held.pop(owner)
                if not event.forever:
                    file.gone[owner] = spans
            self._wake(file)
            self._clean(ino, kind, file)

    def _on_reclaim(self, event: Reclaim) -> None:
        """Locks that it still has are kept, those that it did not mention go: their unlock was lost with the connection.

        One whose session had expired gets back what nobody had meanwhile; that others have given it back already does not help.
        """
        lost = [row for row in event.rows if not self._is_known(event.client, row)]
        for file in self._files.values():
            file.held = {owner: spans for owner, spans in file.held.items() if owner[0] != event.client}
            file.gone = {owner: spans for owner, spans in file.gone.items() if owner[0] != event.client}
        lost += [row for row in event.rows if row not in lost and not self._restore(event.client, row)]
        self._out.append(Reclaimed(event.client, tuple(lost)))
        for (ino, kind), file in list(self._files.items()):
            self._wake(file)
            self._clean(ino, kind, file)

    def _is_known(self, client: str, row: LockRow) -> bool:
        """Tell whether nobody can have had the lock since the client got it; just after a restart the client is believed."""
        if self._early is not None:
            return True
        file, owner = self._files.get((row.ino, row.kind)), (client, row.owner)
        return file is not None and (owner in file.held or _covers(file.gone.get(owner, []), row))

    def _restore(self, client: str, row: LockRow) -> bool:
        file = self._files.setdefault((row.ino, row.kind), _File())
        if any(_blockers(file, client, row)):
            return False
        owner = (client, row.owner)
        file.held[owner] = _with(file.held.get(owner, []), (row.start, row.end, row.write, row.pid))
        return True

    def _on_grace_over(self, _event: GraceOver) -> None:
        early, self._early = self._early or {}, None
        for event in early.values():
            self._on_lock(event)


def _blockers(file: _File, client: str, row: LockRow) -> Iterator[tuple[Owner, Span]]:
    """Yield others' locks that overlap and are not both for reading."""
    for owner, spans in file.held.items():
        if owner == (client, row.owner):
            continue
        for span in spans:
            if _collides(span, row):
                yield owner, span


def _collides(span: Span, row: LockRow) -> bool:
    return span[0] <= row.end and row.start <= span[1] and (row.write or span[2])


def _covers(spans: list[Span], row: LockRow) -> bool:
    at = row.start
    for first, last, _write, _pid in spans:
        at = last + 1 if first <= at <= last else at
    return at > row.end


def _without(spans: list[Span], start: int, end: int) -> Iterator[Span]:
    """Yield what stays of sorted spans when a range is taken out."""
    for first, last, write, pid in spans:
        if first < start:
            yield first, min(last, start - 1), write, pid
        if last > end:
            yield max(first, end + 1), last, write, pid


def _with(spans: list[Span], new: Span) -> list[Span]:
    """Return sorted spans after a new one replaced what was in its range; neighbours of the same sort become one."""
    merged: list[Span] = []
    for span in sorted([*_without(spans, new[0], new[1]), new]):
        if merged and merged[-1][2] == span[2] and merged[-1][1] + 1 >= span[0]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span[1]), span[2], new[3])
        else:
            merged.append(span)
    return merged
