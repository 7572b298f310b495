"""The client's side of coherence: what we hold, who relies on it, and how it is given back.

One machine per mount. It knows inode numbers, no files, caches, messages, kernel or clocks. Its driver asks before it serves
anything (`can` for what is answered in the same step, Begin and End for what takes time), and carries out effects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xtreemos.xtreemfs.lease.giving import Giving, note_served
from xtreemos.xtreemfs.lease.holder_model import (
    AskFailed,
    Begin,
    Cancel,
    Cleaned,
    Connected,
    Cut,
    Effect,
    End,
    Event,
    Flushed,
    GaveUp,
    Give,
    Granted,
    Invalidated,
    Opened,
    OpenSession,
    Pin,
    Recalled,
    Released,
    RenewAnswered,
    Reopen,
    Resume,
    SendRenew,
    SessionOver,
    Stale,
    Suspend,
    Through,
    Tick,
)
from xtreemos.xtreemfs.lease.holder_state import NONE, WRITE, Held, Job, Releasing, Stage
from xtreemos.xtreemfs.lease.model import LEASE_S, MARGIN_S, RENEW_S, Claim
from xtreemos.xtreemfs.model import Level


class Holder(Giving):
    """See the module. Without a session until Connected and Opened."""

    def __init__(self, started_s: float) -> None:
        super().__init__(started_s)
        self._until_s = -math.inf
        self._renew_s = math.inf
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Begin: self._on_begin, End: self._on_end, Cancel: self._on_cancel, Granted: self._on_granted, AskFailed: self._on_ask_failed,
            Recalled: self._on_recalled, Flushed: self._on_flushed, GaveUp: self._on_gave_up, Invalidated: self._on_invalidated, Released: self._on_released,
            Cleaned: self._on_cleaned, Pin: self._on_pin, Through: self._on_through, Give: self._on_give, Stale: self._on_stale,
            Connected: self._on_connected, Cut: self._on_cut, Opened: self._on_opened, RenewAnswered: self._on_renew_answered,
            SessionOver: self._on_session_over, Tick: self._on_tick,
        }  # fmt: skip

    def on(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event; return what is to be done, in order."""
        self._now_s = now_s
        self._expire()
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------------------------------------------- questions

    def can(self, ino: int, level: Level, now_s: float) -> bool:
        """Tell whether something may be answered from caches in this very step, without Begin and End."""
        held = self._held.get(ino)
        if held is None or not (self._standing and now_s < self._until_s and held.covers(level)):
            return False
        note_served(held, level)
        return True

    def level(self, ino: int) -> Level:
        """Tell what is held, whatever the session's state."""
        held = self._held.get(ino)
        return held.level if held else NONE

    def lease_count(self) -> int:
        """Tell of how many inodes there is a lease."""
        return sum(held.level > NONE for held in self._held.values())

    def epoch(self, ino: int) -> int:
        """Tell the epoch to write with; 0 without a right to write."""
        held = self._held.get(ino)
        return held.epoch if held and WRITE in (held.level, held.shared) else 0

    def word_epoch(self, ino: int) -> int:
        """Tell under which epoch our own word on size and times counts more than the MRC's; 0: the MRC's counts.

        That is the WRITE lease we have, or the one whose release the MRC has not answered: what arrives now was sent before it heard.
        """
        held = self._held.get(ino)
        if held is None:
            return 0
        if held.releasing is not None and held.releasing.old_level == WRITE:
            return held.releasing.old_epoch
        return held.epoch if held.level == WRITE else 0

    def generation(self, ino: int) -> int:
        """Tell a number that no other lease of this inode ever has; -1 if nothing is known of it."""
        held = self._held.get(ino)
        return held.generation if held else -1

    def writes_through(self, ino: int) -> bool:
        """Tell whether what is written has to be at the OSD before the program goes on: another kernel reads it there directly."""
        held = self._held.get(ino)
        return held is not None and held.watched and held.level == WRITE

    def is_agreed(self, ino: int, level: Level) -> bool:
        """Tell whether the MRC has heard that our kernel uses the OSD's file at this level (NONE: no more)."""
        held = self._held.get(ino)
        if held is None:
            return level == NONE
        told = held.told_through == held.through == level and not held.declared and not held.telling
        return told and self._open

    def valid_s(self, now_s: float) -> float:
        """Tell for how many seconds the session will still stand if nothing is heard of the MRC."""
        return max(0.0, self._until_s - now_s) if self._standing else 0.0

    def next_wake(self) -> float:
        """Tell when Tick is due (no harm if it comes earlier)."""
        return min(self._until_s if self._standing else math.inf, self._renew_s if self._open else math.inf)

    # -------------------------------------------------------------------------------------------------------- sessions

    def _on_connected(self, _event: Connected) -> None:
        self._out.append(OpenSession(self._claims()))

    def _claims(self) -> tuple[Claim, ...]:
        """Everything we have, with what we gave back and do not know to be heard. Pins and direct use are told by this too."""
        claims = []
        for held in self._held.values():
            was = held.releasing
            level, epoch, shared = (was.old_level, was.old_epoch, was.old_shared) if was else (held.level, held.epoch, held.shared)
            if level or shared or held.pin or held.through:
                writes = WRITE in (level, shared)
                claims.append(Claim(held.ino, level, epoch if writes else 0, held.pin, held.through, shared))
            held.told_pin, held.told_through, held.declared = held.pin, held.through, False
        return tuple(claims)

    def _on_cut(self, _event: Cut) -> None:
        self._open = False
        for held in list(self._held.values()):
            held.asked, held.forgetting = NONE, False
            self._drop_idle(held)

    def _on_session_over(self, _event: SessionOver) -> None:
        self._on_cut(Cut())
        self._suspend()
        self._out.append(Reopen())

    def _on_opened(self, event: Opened) -> None:
        self._open = True
        self._renew_s = min(event.sent_s + RENEW_S, self._now_s + RENEW_S)
        lost = set(event.lost)
        for held in list(self._held.values()):
            held.recalls.clear()  # the MRC asks again for what it still wants
            if held.ino in lost:
                self._lose(held)
            elif held.releasing is not None:
                self._repeat_release(held, held.releasing)
            elif held.job is not None:
                held.job.seq = 0
        self._extend(event.sent_s)
        for held in list(self._held.values()):
            self._sync(held)
            self._advance(held)
            self._resume(held)
            self._drop_idle(held)

    def _lose(self, held: Held) -> None:
        """The MRC gave it to others. Caches are dropped as after a recall."""
        self._void(held)
        held.level, held.shared, held.releasing = NONE, NONE, None
        pending = held.job is not None and held.job.invalidating
        held.job = Job(NONE, lost=True, stage=Stage.INVALIDATE if pending else Stage.BEGIN, invalidating=pending, served=True)
        held.job.must_end = set(held.ops)

    def _repeat_release(self, held: Held, was: Releasing) -> None:
        """The MRC agreed to what was before a release that may have been lost: so it was."""
        held.level, held.epoch, held.shared = was.old_level, was.old_epoch, was.old_shared
        self._release(held, was.level, 0)

    def _on_renew_answered(self, event: RenewAnswered) -> None:
        if self._open:
            self._extend(event.sent_s)

    def _extend(self, sent_s: float) -> None:
        self._until_s = max(self._until_s, sent_s + LEASE_S - MARGIN_S)
        if self._standing or self._now_s >= self._until_s:
            return
        self._standing = True
        self._out.append(Resume())
        for held in list(self._held.values()):
            if held.waiting:
                self._resume(held)

    def _expire(self) -> None:
        if self._standing and self._now_s >= self._until_s:
            self._suspend()

    def _suspend(self) -> None:
        early = self._now_s < self._until_s
        self._until_s = -math.inf
        if self._standing:
            self._standing = False
            self._out.append(Suspend(early))

    def _on_tick(self, _event: Tick) -> None:
        if self._open and self._now_s >= self._renew_s:
            self._renew_s = self._now_s + RENEW_S
            self._out.append(SendRenew())
