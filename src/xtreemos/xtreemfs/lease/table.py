"""The MRC's side of coherence: who holds what of which inode, who waits for whom, and what to ask back from whom.

One machine for all volumes of one MRC, in memory. It knows no files, names' meanings, messages, disks or clocks. Operations have one
total order (arrival); see docs/protocols/leases.md, "Requests at the MRC", for why nothing can wait in a circle. This module is about
sessions: their lives, their return, and the grace after a restart; what they hold and wait for is in `queues`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from xtreemos.xtreemfs.lease.model import (
    LAPSED_S,
    LEASE_S,
    LEASES_PER_CLIENT_MAX,
    RECALL_ANSWER_S,
    SESSIONS_MAX,
    SHRINK_BATCH,
    Claim,
)
from xtreemos.xtreemfs.lease.queues import Queues
from xtreemos.xtreemfs.lease.table_model import (
    Again,
    Ask,
    Close,
    Cut,
    Done,
    Drop,
    Effect,
    Event,
    Fence,
    Fenced,
    Forget,
    Forgotten,
    GraceOver,
    Lapsed,
    NoSession,
    Open,
    Opened,
    Orphan,
    Release,
    Renew,
    Renewed,
    ThroughGone,
    Tick,
    Withdraw,
    Writer,
)
from xtreemos.xtreemfs.lease.table_state import NONE, READ, WRITE, Holding, Inode, Session

_LOOK_S = 1.0
"""While a recall is out, or a client has too many leases, the table is looked at so often."""


class Statistics(msgspec.Struct, frozen=True):
    """Counts of the moment."""

    sessions: int
    inodes: int
    leases: int
    waiting: int
    recalls: int


class Table(Queues):
    """See the module.

    Args:
        started_s: now.
        sessions: ids of clients that were known before a restart. While one is not back, up to LEASE_S, it is a time of grace.
        writers: who may have written what before the restart.
    """

    def __init__(self, started_s: float, *, sessions: Iterable[str] = (), writers: Iterable[Writer] = ()) -> None:
        super().__init__()
        self._now_s = started_s
        self._sessions = {client: Session(client, started_s + LEASE_S, connected=False) for client in sessions}
        self._missing = set(self._sessions)
        self._graced = bool(self._missing)
        self._wake_s = started_s
        for row in writers:
            self._restore(row)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Open: self._on_open, Cut: self._on_cut, Close: self._on_close, Renew: self._on_renew, Ask: self._on_ask, Again: self._on_again,
            Done: self._on_done, Drop: self._on_drop, Release: self._on_release, Forget: self._on_forget, Fenced: self._on_fenced,
            ThroughGone: self._on_through_gone, Orphan: self._on_orphan, Withdraw: self._on_withdraw,
            Tick: self._on_tick,
        }  # fmt: skip

    def on(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event; return what is to be done, in order."""
        self._now_s = now_s
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    @property
    def in_grace(self) -> bool:
        """Whether clients from before a restart are still waited for."""
        return self._graced

    def next_wake(self) -> float:
        """Tell when Tick is due (no harm if it comes earlier)."""
        return self._wake_s

    def statistics(self) -> Statistics:
        """Count what there is."""
        sessions = self._sessions.values()
        leases, recalls = sum(len(row.inos) for row in sessions), sum(len(row.recalls) for row in sessions)
        return Statistics(len(sessions), len(self._inodes), leases, len(self._ops), recalls)

    def _restore(self, row: Writer) -> None:
        inode = self._inodes.setdefault(row.ino, Inode())
        session = self._sessions.get(row.client)
        if session is None and row.through:  # its kernel may still use the OSD's file: nobody may cache
            session = self._sessions[row.client] = Session(
                row.client, self._now_s, live=False, connected=False, forget_s=self._now_s + LAPSED_S
            )
        if session is None or not session.live:  # being fenced when we went down, or it had lapsed: it cannot come back for it
            inode.fencing += 1
            self._out.append(Fence(row.ino, row.client, row.epoch, bool(row.through)))
            if session is not None:
                self._holding(session, row.ino, inode).through = row.through
            return
        holding = self._holding(session, row.ino, inode)
        holding.level, holding.epoch, holding.through, holding.restored = WRITE, row.epoch, row.through, True
        inode.unsized |= row.through == WRITE

    # --------------------------------------------------------------------------------------------------- coming and going

    def _on_open(self, event: Open) -> None:
        session = self._sessions.get(event.client)
        new = session is None
        if session is None:
            if len(self._sessions) >= SESSIONS_MAX:
                self._out.append(NoSession(event.client))
                return
            session = self._sessions[event.client] = Session(event.client, self._now_s + LEASE_S)
        self._expire(session)
        self._disconnect(session)
        new = new or not session.live
        if session.condemned:
            self._out.append(NoSession(event.client))
            return
        back = session.client in self._missing
        self._missing.discard(session.client)
        session.live, session.connected = True, True
        session.expires_s, session.forget_s = self._now_s + LEASE_S, math.inf
        touched = list(session.inos)
        if event.anew:
            for ino in touched:
                self._evict(session, ino)
        lost = self._reclaim(session, event.held, back=back)
        self._wake_s = min(self._wake_s, session.expires_s)
        self._out.append(Opened(event.client, new or event.anew, lost))
        self._pump(touched)
        self._grace_may_end()

    def _reclaim(self, session: Session, claims: tuple[Claim, ...], *, back: bool) -> tuple[int, ...]:
        """Bring what we know and what the client says it has together: both must say it. Returns what the client has no more."""
        lost = []
        claimed = {claim.ino: claim for claim in claims}
        for ino in list(session.inos):
            holding = self._inodes[ino].holders[session.client]
            restored = holding.restored
            if not _agree(holding, claimed.pop(ino, None)):
                lost.append(ino)
            self._inodes[ino].unsized |= (
                restored and holding.level < WRITE
            )  # maybe it wrote shared, maybe its last word was not kept
            self._ask_size(ino, self._inodes[ino])
            self._settle(session, ino)
        for claim in claimed.values():
            inode = self._inodes.setdefault(claim.ino, Inode())
            believed = back and claim.level <= READ and claim.shared <= READ and not inode.fencing
            believed = believed and not any(holding.writes for holding in inode.holders.values())
            holding = self._holding(session, claim.ino, inode)
            holding.pin, holding.through = claim.pin, claim.through
            inode.unsized |= claim.through == WRITE
            if claim.through:
                self._recall_unaware(claim.ino, inode, session.client)
            if believed:
                holding.level, holding.shared = claim.level, claim.shared
            elif claim.level or claim.shared:
                lost.append(claim.ino)
            self._settle(session, claim.ino)
        return tuple(lost)

    def _recall_unaware(self, ino: int, inode: Inode, client: str) -> None:
        """A kernel has an OSD's file and we had forgotten that (a restart while its node was cut off): writers must come to know."""
        for name, holding in inode.holders.items():
            session = self._sessions[name]
            if name != client and holding.level == WRITE and session.live and session.connected:
                self._recall(session, ino, holding, NONE, None)

    def _on_cut(self, event: Cut) -> None:
        session = self._sessions.get(event.client)
        if session is not None:
            self._disconnect(session)

    def _disconnect(self, session: Session) -> None:
        """Nothing reaches the client for now: what it asked is dropped, what it was asked will be asked again when it is back."""
        session.connected = False
        for ino, _sent_s in session.recalls.values():
            self._inodes[ino].holders[session.client].recalls.clear()
        session.recalls.clear()
        for number in list(session.ops):
            if number in session.ops:
                self._remove(self._ops[number])

    def _on_close(self, event: Close) -> None:
        session = self._sessions.get(event.client)
        if session is None:
            return
        self._disconnect(session)
        if session.live:
            self._lapse(session)
        self._evict_all(session, through=True)

    def _evict_all(self, session: Session, *, through: bool) -> None:
        """Take everything from a session that is over, and forget it. Direct use of OSDs' files ends only with `through`."""
        touched = list(session.inos)
        for ino in touched:
            holding = self._inodes[ino].holders[session.client]
            self._evict(session, ino)
            holding.pin = False
            if through:
                holding.through = NONE
            self._ask_size(ino, self._inodes[ino])
            self._settle(session, ino)
        if not session.inos:  # else somebody's kernel still has files: that must be remembered
            del self._sessions[session.client]
            self._out.append(Forgotten(session.client))
        self._pump(touched)

    # ---------------------------------------------------------------------------------------------------------------- time

    def _on_renew(self, event: Renew) -> None:
        session = self._sessions.get(event.client)
        if session is not None and self._usable(session) and not session.condemned:
            session.expires_s = self._now_s + LEASE_S
            self._out.append(Renewed(event.client))
        else:
            self._out.append(NoSession(event.client))

    def _on_tick(self, _event: Tick) -> None:
        self._wake_s = math.inf
        for session in list(self._sessions.values()):
            self._expire(session)
            if session.live:
                self._judge(session)
                self._shrink(session)
            elif self._now_s >= session.forget_s:
                session.forget_s = self._now_s + LAPSED_S
                self._evict_all(session, through=False)
            due_s = session.expires_s if session.live else session.forget_s
            if session.recalls or len(session.inos) > LEASES_PER_CLIENT_MAX:
                due_s = min(due_s, self._now_s + _LOOK_S)
            self._wake_s = min(self._wake_s, due_s)

    def _usable(self, session: Session) -> bool:
        self._expire(session)
        return session.live and session.connected

    def _expire(self, session: Session) -> None:
        if session.live and self._now_s >= session.expires_s:
            self._lapse(session)

    def _lapse(self, session: Session) -> None:
        session.live, session.condemned = False, False
        session.forget_s = self._now_s + LAPSED_S
        self._wake_s = min(self._wake_s, session.forget_s)
        self._out.append(Lapsed(session.client))
        self._disconnect(session)
        self._missing.discard(session.client)
        self._pump(list(session.inos))
        self._grace_may_end()

    def _grace_may_end(self) -> None:
        if self._graced and not self._missing:
            self._graced = False
            self._out.append(GraceOver())
            self._pump(list(self._inodes))

    def _judge(self, session: Session) -> None:
        """Give up on a client that renews but does not answer: without renewal it will stop by itself, which nothing else can assure."""
        oldest = next(iter(session.recalls.values()), None)
        if oldest is not None and self._now_s - oldest[1] >= RECALL_ANSWER_S:
            session.condemned = True

    def _shrink(self, session: Session) -> None:
        """Ask the oldest leases back from a client that has too many."""
        excess = len(session.inos) - LEASES_PER_CLIENT_MAX
        if excess <= 0 or not session.connected or len(session.recalls) >= SHRINK_BATCH:
            return
        for ino in list(itertools.islice(session.inos, min(excess, SHRINK_BATCH))):
            holding = self._inodes[ino].holders[session.client]
            if holding.level and not holding.recalls:
                self._recall(session, ino, holding, NONE, None)


def _agree(holding: Holding, claim: Claim | None) -> bool:
    """Reduce a holding to what the client knows of too. False: the client claims what it has no more."""
    restored, holding.restored = holding.restored, False
    if claim is None:
        holding.level, holding.shared, holding.through, holding.pin = NONE, NONE, NONE, False
        return True
    if restored and claim.shared == WRITE:
        holding.level, holding.shared = NONE, WRITE
    good = claim.level <= holding.level and claim.shared <= holding.shared
    if WRITE in (claim.level, claim.shared):
        good = good and claim.epoch == holding.epoch
    holding.level, holding.shared = (claim.level, claim.shared) if good else (NONE, NONE)
    holding.pin, holding.through = claim.pin, claim.through
    return good
