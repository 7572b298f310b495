"""Room on the disks of an OSD: who may still write, where new columns go, and how much is told to the directory.

A reserve stays free on every disk, so that marks, sums and names can be written when files cannot: new bytes are refused cleanly before
the disk is full, never in the middle.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.osd.shelf import Shelf

RESERVE_BYTES = 64 << 20
RESERVE_PART = 100  # or 1/100 of the disk, whichever is smaller
LOOK_S = 1.0
LOOK_BYTES = 16 << 20
"""The disk is asked again after so long or so many bytes admitted, whichever comes first."""


@dataclass(slots=True)
class _Seen:
    at_s: float
    total: int
    free: int
    admitted: int = 0


class Space:
    """Free bytes of each shelf, asked now and then. `limit_bytes` (0: none) bounds what all columns take together."""

    def __init__(self, limit_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        """What columns take, as far as it was counted."""
        self._clock = clock
        self._seen: dict[Shelf, _Seen] = {}
        self.locked = False
        """An administrator wants no new bytes here."""
        self._refused = False

    def _look(self, shelf: Shelf) -> int:
        """Bytes that may still be written to a shelf."""
        seen = self._seen.get(shelf)
        if seen is None or self._clock() - seen.at_s > LOOK_S or seen.admitted > LOOK_BYTES:
            total, free = shelf.disk.space()
            seen = self._seen[shelf] = _Seen(self._clock(), total, free - min(RESERVE_BYTES, total // RESERVE_PART))
        return seen.free - seen.admitted

    def admit(self, shelf: Shelf | None, cost_bytes: int) -> None:
        """Let a write go on that may need so many bytes of the disk.

        Raises:
            FsError(ENOSPC): there is no room, or the owner's limit is reached; nothing was written.
        """
        if not cost_bytes:
            return
        if self.locked:
            raise FsError(errno.ENOSPC, "the OSD is locked: it takes no new bytes")
        if self.limit_bytes and self.used_bytes + cost_bytes > self.limit_bytes:
            self._refused = True
            raise FsError(errno.ENOSPC, "the OSD has given all the space that its owner allows")
        if shelf is None:
            return  # `choose` looks
        if self._look(shelf) < cost_bytes:
            self._refused = True
            raise FsError(errno.ENOSPC, "the disk of the OSD is full")
        self._seen[shelf].admitted += cost_bytes

    def choose(self, shelves: Sequence[Shelf]) -> Shelf:
        """The shelf with the most room, for a new column. FsError(ENOSPC): none has any."""
        best = max(shelves, key=self._look)
        if self._look(best) <= 0:
            self._refused = True
            raise FsError(errno.ENOSPC, "the disks of the OSD are full")
        return best

    def used(self, more_bytes: int) -> None:
        """Columns take so many bytes more (or fewer)."""
        self.used_bytes = max(0, self.used_bytes + more_bytes)
        if more_bytes < 0:
            self._refused = False

    def full(self) -> None:
        """A disk refused bytes that were admitted: ask anew before the next."""
        self._refused = True
        self._seen.clear()

    def totals(self, shelves: Sequence[Shelf]) -> tuple[int, int]:
        """(bytes in all, bytes free) to tell others; disks that share a file system count once each as they say."""
        self._seen.clear()
        free = sum(max(0, self._look(shelf)) for shelf in shelves)
        total = sum(self._seen[shelf].total for shelf in shelves)
        if self.limit_bytes:
            return min(total, self.limit_bytes), max(0, min(free, self.limit_bytes - self.used_bytes))
        return total, free

    def is_full(self, shelves: Sequence[Shelf]) -> bool:
        """Whether writes were refused lately and there is still no room for a megabyte."""
        _total, free = self.totals(shelves)
        self._refused = self._refused and free < 1 << 20
        return self._refused or free < 1 << 20
