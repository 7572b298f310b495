"""The client's leases without its session's life: operations that rely on them, and giving them back in the right order.

Base class of `holder.Holder`; see there.
"""

from __future__ import annotations

import itertools

from xtreemos.xtreemfs.lease.holder_model import (
    Ask,
    AskFailed,
    Begin,
    Cancel,
    Cleaned,
    Effect,
    End,
    Fail,
    FailDirty,
    Flush,
    Flushed,
    GaveUp,
    Give,
    Go,
    Granted,
    Invalidate,
    Invalidated,
    Pin,
    Recalled,
    Released,
    SendForget,
    SendRelease,
    Stale,
    Through,
)
from xtreemos.xtreemfs.lease.holder_state import NONE, READ, WRITE, Held, Job, Releasing, Running, Stage
from xtreemos.xtreemfs.model import Level


class Giving:
    """See the module."""

    def __init__(self, started_s: float) -> None:
        self._held: dict[int, Held] = {}
        self._ops: dict[int, Held] = {}
        self._generations = itertools.count(1)
        self._out: list[Effect] = []
        self._now_s = started_s
        self._open = False
        """On this connection the session was opened: what we send is heard."""
        self._standing = False
        """We may rely on what we hold. Goes on without a connection, until `_until_s`."""

    # ------------------------------------------------------------------------------------------------------ operations

    def _get(self, ino: int) -> Held:
        held = self._held.get(ino)
        if held is None:
            held = self._held[ino] = Held(ino, next(self._generations))
        return held

    def _on_begin(self, event: Begin) -> None:
        held = self._get(event.ino)
        if event.writeback and held.level == WRITE:
            self._go(event.op, held, WRITE)
        elif event.writeback:
            self._out.append(Fail(event.op))
            self._drop_idle(held)
        elif self._standing and (held.covers(event.level) or held.shares(event.level)):
            note_served(held, event.level)
            self._go(event.op, held, event.level)
        else:
            held.waiting[event.op] = event.level
            self._ops[event.op] = held
            self._resume(held)

    def _go(self, op: int, held: Held, level: Level) -> None:
        held.ops[op] = Running(level, held.generation)
        self._ops[op] = held
        self._out.append(Go(op, held.epoch, held.level < level, held.generation))

    def _on_end(self, event: End) -> None:
        held = self._ops.pop(event.op)
        running = held.ops.pop(event.op)
        if event.dirty and running.generation != held.generation:
            self._out.append(FailDirty(held.ino))
        elif event.dirty:
            held.dirty = True
        self._advance(held)
        self._drop_idle(held)

    def _on_cancel(self, event: Cancel) -> None:
        held = self._ops.get(event.op)
        if held is not None and event.op in held.waiting:
            del held.waiting[event.op], self._ops[event.op]
            self._drop_idle(held)

    def _resume(self, held: Held) -> None:
        """Begin what waits and may begin now, in order of arrival; ask for the rest."""
        if not self._standing:
            return
        for op, level in list(held.waiting.items()):
            if not (held.covers(level) or held.shares(level)):
                continue
            del held.waiting[op]
            note_served(held, level)
            self._go(op, held, level)
        # Not while a give-back runs, be it of what was lost: its last round would drop what came with a new lease.
        if held.waiting and self._open and held.job is None and not held.telling and not held.asked:
            held.asked = max(held.waiting.values())
            self._out.append(Ask(held.ino, held.asked))

    def _on_granted(self, event: Granted) -> None:
        held = self._get(event.ino)
        asked = held.asked
        if event.asked:
            held.asked = NONE
        level, shared, void = event.level, event.shared, held.forgetting
        if held.releasing is not None:
            void = level > held.releasing.level or (bool(shared) and held.releasing.shared_ends)
            level = min(level, held.releasing.level)
            shared = NONE if held.releasing.shared_ends else shared
        if held.forgetting:
            level, shared = NONE, NONE
        if level == WRITE:
            fresh = held.level < WRITE
            held.epoch = event.epoch if fresh else held.epoch
            held.watched = event.watched and (fresh or held.watched)  # who begins to watch has taken WRITE from us first
        held.level = max(held.level, level)
        if level:
            held.shared = NONE
        elif shared:
            held.shared, held.epoch = shared, event.epoch
        self._resume_granted(held, asked if event.asked and not void else NONE)
        self._advance(held)
        self._drop_idle(held)

    def _resume_granted(self, held: Held, asked: Level) -> None:
        """After a grant. What it answers and does not cover is refused, else it would be asked for ever."""
        if asked and self._standing and held.waiting:
            level = next(iter(held.waiting.values()))
            gate = held.job is not None and held.job.gate
            if level <= asked and not gate and not (held.covers(level) or held.shares(level)):
                self._fail_waiting(held, asked)
        self._resume(held)

    def _on_ask_failed(self, event: AskFailed) -> None:
        held = self._held.get(event.ino)
        if held is not None:
            asked, held.asked = held.asked, NONE
            self._fail_waiting(held, asked)
            self._resume(held)
            self._drop_idle(held)

    def _fail_waiting(self, held: Held, asked: Level) -> None:
        for op in [op for op, level in held.waiting.items() if level <= asked and not held.covers(level)]:
            del held.waiting[op], self._ops[op]
            self._out.append(Fail(op))

    def _drop_idle(self, held: Held) -> None:
        if not (held.level or held.shared) and held.idle:
            self._held.pop(held.ino, None)

    # ----------------------------------------------------------------------------------------------------- giving back

    def _on_recalled(self, event: Recalled) -> None:
        held = self._get(event.ino)
        held.recalls.append(event)
        self._advance(held)
        self._drop_idle(held)

    def _advance(self, held: Held) -> None:
        """Bring the give-back of an inode as far as it goes now; begin the next round if there is one."""
        while True:
            if held.job is None and not self._next_job(held):
                return
            job = held.job
            if job is None or job.invalidating or held.flushing:
                return
            if job.stage is not Stage.DONE and not self._step(held, job):
                return
            if not job.lost and (not self._open or held.telling):
                return
            held.job = None
            if not job.lost:
                self._release(held, job.level, job.seq)
            self._resume(held)

    def _next_job(self, held: Held) -> bool:
        if held.telling or not held.recalls:
            return False
        level = min(recall.level for recall in held.recalls)
        names = tuple(dict.fromkeys(name for recall in held.recalls for name in recall.names))
        held.job = job = Job(min(level, held.level), names, held.recalls[-1].seq)
        held.recalls.clear()
        if not names and held.level <= level and not held.shared:
            job.stage = Stage.DONE
        return True

    def _step(self, held: Held, job: Job) -> bool:
        """Do the next thing of a give-back. Returns whether nothing is left to do but to say so."""
        if held.dirty and job.level < WRITE and not job.lost and (job.stage is Stage.BEGIN or not held.in_the_way(job)):
            self._flush(held)
        elif job.stage is Stage.BEGIN:
            job.stage = Stage.INVALIDATE
            job.must_end = set(held.ops)
            job.served = held.in_the_way(job)
            self._invalidate(held, job)
        elif job.stage is Stage.INVALIDATE:
            job.stage = Stage.DRAIN
            return self._step(held, job)
        elif held.in_the_way(job):
            return False
        elif job.served and not job.again:
            job.again = True
            self._invalidate(held, job)
        else:
            job.stage = Stage.DONE
            return True
        return False

    def _flush(self, held: Held) -> None:
        held.dirty, held.flushing = False, True
        self._out.append(Flush(held.ino))

    def _invalidate(self, held: Held, job: Job) -> None:
        job.invalidating = True
        self._out.append(Invalidate(held.ino, job.level, job.names, job.again))

    def _release(self, held: Held, level: Level, seq: int) -> None:
        """Tell the MRC what stays. The change is ours at once; its is when it has heard."""
        level = min(level, held.level)
        ends = level == NONE and (seq > 0 or held.through == NONE)
        held.releasing = Releasing(level, ends, held.level, held.epoch, held.shared)
        if level < held.level or (ends and held.shared):
            held.generation = next(self._generations)
        epoch = held.epoch if held.level == WRITE else 0
        held.level = level
        if ends:
            held.shared = NONE
        held.told_pin, held.told_through, held.declared = held.pin, held.through, False
        self._out.append(SendRelease(held.ino, level, seq, held.pin, held.through, epoch, held.unsure))

    def _on_flushed(self, event: Flushed) -> None:
        held = self._held.get(event.ino)
        if held is None:
            return
        held.flushing = False
        if event.ok:
            self._advance(held)
        else:
            self._give_up(held)
        self._drop_idle(held)

    def _on_gave_up(self, event: GaveUp) -> None:
        held = self._held.get(event.ino)
        if held is not None:
            self._give_up(held)

    def _give_up(self, held: Held) -> None:
        self._void(held, certain=True)
        held.unsure = True
        if held.job is None:
            held.job = Job(NONE)
        held.job.level, held.job.served = NONE, True
        self._advance(held)

    def _on_invalidated(self, event: Invalidated) -> None:
        held = self._held.get(event.ino)
        if held is not None and held.job is not None:
            held.job.invalidating = False
            self._advance(held)
            self._drop_idle(held)

    def _on_released(self, event: Released) -> None:
        held = self._held.get(event.ino)
        if held is None:
            return
        held.releasing, held.forgetting, held.unsure = None, False, False
        self._sync(held)
        self._advance(held)
        self._resume(held)
        self._drop_idle(held)

    def _on_cleaned(self, event: Cleaned) -> None:
        held = self._held.get(event.ino)
        if held is not None:
            held.dirty = False
            self._drop_idle(held)

    def _on_pin(self, event: Pin) -> None:
        held = self._get(event.ino)
        held.pin = event.on
        self._sync(held)
        self._drop_idle(held)

    def _on_through(self, event: Through) -> None:
        held = self._get(event.ino)
        held.through, held.declared = event.level, True
        self._sync(held)
        self._drop_idle(held)

    def _sync(self, held: Held) -> None:
        """Tell the MRC of a pin or direct use that it has to know of, and does not know yet."""
        news = held.told_through != held.through or (held.told_pin != held.pin and not held.level and not held.shared)
        # Somebody waits for the answer to a declaration within an operation, which a job may wait for.
        if (news or held.declared) and self._open and (held.job is None or held.declared) and not held.telling:
            if held.job is None and held.shared and held.through == NONE and held.ops:
                held.job = Job(NONE)  # sharing ends with the release: what is under way ends first
                self._advance(held)
            else:
                self._release(held, held.level, 0)

    def _on_give(self, event: Give) -> None:
        forgotten = []
        for ino in event.inos:
            held = self._held.get(ino)
            if (
                held is None
                or not self._open
                or held.ops
                or held.waiting
                or held.job
                or held.telling
                or held.asked
                or held.pin
                or held.through
            ):
                continue
            if held.level == READ and not (held.recalls or held.told_pin or held.told_through):
                held.level, held.forgetting = NONE, True
                held.generation = next(self._generations)
                forgotten.append(ino)
            elif held.level or held.shared:
                held.job = Job(NONE)
                self._advance(held)
        if forgotten:
            self._out.append(SendForget(tuple(forgotten)))

    def _on_stale(self, event: Stale) -> None:
        held = self._held.get(event.ino)
        if held is None or held.epoch != event.epoch or WRITE not in (held.level, held.shared):
            return
        self._void(held)
        if held.shared:  # another writer was fenced: the next Ask brings the new epoch
            held.shared = NONE
            self._resume(held)
            return
        if held.job is None:
            held.job = Job(NONE)
        held.job.level, held.job.names, held.job.served = NONE, (), True
        self._advance(held)

    def _void(self, held: Held, *, certain: bool = False) -> None:
        if held.dirty or held.flushing or certain:
            held.dirty = False
            self._out.append(FailDirty(held.ino))
        held.generation = next(self._generations)


def note_served(held: Held, level: Level) -> None:
    """An answer at `level` fills caches that a give-back under way may have emptied already."""
    if held.job is not None and held.job.stage is Stage.INVALIDATE and level > held.job.level:
        held.job.served = True
