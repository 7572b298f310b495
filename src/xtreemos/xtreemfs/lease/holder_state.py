"""What a client keeps of one inode's lease, and the rules that read it. No transitions here, see `holder`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from xtreemos.xtreemfs.lease.holder_model import Recalled
from xtreemos.xtreemfs.model import Level

NONE, READ, WRITE = Level.NONE, Level.READ, Level.WRITE


class Stage(Enum):
    """How far a give-back is; see docs/protocols/leases.md, "Recall at the client"."""

    BEGIN = "begin"
    INVALIDATE = "invalidate"  # the first round is under way; what the lease covers is served on
    DRAIN = "drain"  # the gate is closed, what is under way ends
    DONE = "done"  # nothing is left but to say so


@dataclass(slots=True, eq=False)
class Job:
    """One round of giving back: of a recall (`seq` > 0), freely, or (`lost`) after somebody took it."""

    level: Level
    """What stays."""
    names: tuple[bytes, ...] = ()
    seq: int = 0
    lost: bool = False
    stage: Stage = Stage.BEGIN
    invalidating: bool = False
    served: bool = False
    """Something was answered since the first invalidation began, or was under way then: caches may have been filled again."""
    again: bool = False
    must_end: set[int] = field(default_factory=set)
    """Operations that began before a recall of names, or before a loss."""

    @property
    def gate(self) -> bool:
        """Whether new operations above the level that stays must wait for a new grant."""
        return not self.lost and self.stage in {Stage.DRAIN, Stage.DONE}


@dataclass(slots=True, eq=False)
class Releasing:
    """A release that the MRC has not answered: grants that arrive meanwhile are capped. What was before is claimed if the connection breaks."""

    level: Level
    shared_ends: bool
    old_level: Level
    old_epoch: int
    old_shared: Level


@dataclass(slots=True, eq=False)
class Running:
    """An operation that was told Go."""

    level: Level
    generation: int


@dataclass(slots=True, eq=False)
class Held:
    """One inode."""

    ino: int
    generation: int
    level: Level = NONE
    epoch: int = 0
    shared: Level = NONE
    through: Level = NONE
    pin: bool = False
    told_pin: bool = False
    told_through: Level = NONE
    watched: bool = False
    """Another kernel reads the OSD's file directly while we have WRITE."""
    declared: bool = False
    """Somebody waits for the answer to a Through."""
    dirty: bool = False
    flushing: bool = False
    unsure: bool = False
    """Writes were given up, which may still arrive at OSDs: everything goes back, with a fence."""
    asked: Level = NONE
    ops: dict[int, Running] = field(default_factory=dict)
    waiting: dict[int, Level] = field(default_factory=dict)
    recalls: list[Recalled] = field(default_factory=list)
    job: Job | None = None
    releasing: Releasing | None = None
    forgetting: bool = False

    @property
    def idle(self) -> bool:
        """Whether only a lease is there, and nothing happens with it."""
        busy = self.ops or self.waiting or self.recalls or self.job or self.releasing or self.forgetting or self.asked
        return not (
            busy or self.dirty or self.flushing or self.pin or self.through or self.told_pin or self.told_through or self.declared
        )

    @property
    def telling(self) -> bool:
        """Whether a release or a forgetting is on its way."""
        return self.releasing is not None or self.forgetting

    def covers(self, level: Level) -> bool:
        """Tell whether an operation at `level` may begin under the lease."""
        return self.level >= level and not (self.job is not None and self.job.gate and level > self.job.level)

    def shares(self, level: Level) -> bool:
        """Tell whether an operation may go to the OSDs without a lease."""
        return self.shared >= level and not (self.job is not None and self.job.gate)

    def in_the_way(self, job: Job) -> bool:
        """Tell whether operations are under way that must end before the job is done."""
        if job.lost or job.names:
            if any(op in job.must_end for op in self.ops):
                return True
            if job.lost:
                return False
        return any(running.level > job.level for running in self.ops.values())
