"""Record locks of one inode: who holds which range. Pure; waiting is the caller's. POSIX, OFD and BSD locks differ only in their owner."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, replace

TO_END = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Held:
    """A lock on bytes `start` to `end` inclusive; `type` is F_RDLCK or F_WRLCK; taken through handle `fh` by process `pid`."""

    owner: int
    start: int
    end: int
    type: int
    pid: int
    fh: int

    def overlaps(self, other: Held) -> bool:
        """Tell whether the ranges share a byte."""
        return self.start <= other.end and other.start <= self.end


class LockTable:
    """The locks of one kind on one inode."""

    def __init__(self) -> None:
        self.held: list[Held] = []

    def conflict(self, wanted: Held) -> Held | None:
        """Return a lock of another owner that is in the way of `wanted`, or None."""
        for lock in self.held:
            if lock.owner != wanted.owner and lock.overlaps(wanted) and fcntl.F_WRLCK in {lock.type, wanted.type}:
                return lock
        return None

    def put(self, wanted: Held) -> None:
        """Give the owner this lock; it replaces what the owner had in the range. F_UNLCK only takes away."""
        kept = []
        for lock in self.held:
            if lock.owner != wanted.owner or not lock.overlaps(wanted):
                kept.append(lock)
                continue
            if lock.start < wanted.start:
                kept.append(replace(lock, end=wanted.start - 1))
            if lock.end > wanted.end:
                kept.append(replace(lock, start=wanted.end + 1))
        if wanted.type != fcntl.F_UNLCK:
            kept.append(wanted)
        self.held = kept

    def drop(self, *, owner: int | None = None, fh: int | None = None) -> bool:
        """Take away all locks of an owner, or all that were taken through a handle; tell whether there were any."""
        kept = [
            lock for lock in self.held if not ((owner is not None and lock.owner == owner) or (fh is not None and lock.fh == fh))
        ]
        changed = len(kept) != len(self.held)
        self.held = kept
        return changed
