"""The bounds over the data of all files of a mount: unwritten bytes, and bytes that were read ahead. What one file has is in `data`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from xtreemos.xtreemfs.client.inodes import Inode
from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.client.readahead import BLOCK_BYTES
from xtreemos.xtreemfs.protocol import Rights
from xtreemos.xtreemfs.striping import OsdConnections

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.data import FileData

DIRTY_BYTES_MAX = 64 << 20  # over all files of a mount; writers wait beyond
FLYING_COUNT_MAX = 256  # writes of all files that are with the OSDs at the same time; the others wait here, where no deadline runs
AGE_S = 5.0  # unwritten bytes are sent when they are so old
AHEAD_BYTES_MAX = 64 << 20  # read ahead and not yet asked for, over all files


class Coherence(Protocol):
    """What the data path needs to know of leases."""

    def generation(self, ino: int) -> int:
        """Grows whenever the lease is given back or lost."""

    def rights(self, inode: Inode) -> Rights:
        """Return the best rights to the file that there are now."""

    def fenced(self, inode: Inode, epoch: int) -> None:
        """An OSD has refused a write under `epoch` since a newer writer is there."""

    def gave_up(self, inode: Inode) -> None:
        """A change of the file's bytes was given up: it may be done or not, now or later. Nothing that is known of them counts any more."""


class DataStore:
    """The bounds over the data of all files of a mount."""

    def __init__(self, osds: OsdConnections, coherence: Callable[[int], Coherence], ledger: Ledger) -> None:
        self.osds = osds
        self._ledger = ledger
        self.coherence = coherence
        """Of the inode number."""
        self.dirty_bytes = 0
        """What unwritten bytes cost to hold (`DirtyFile.cost_bytes`)."""
        self.flying = asyncio.Semaphore(FLYING_COUNT_MAX)
        self.ahead_bytes = 0
        self.dirty_files: OrderedDict[FileData, float] = OrderedDict()
        """With the loop time since when; the oldest first."""
        self._ahead: OrderedDict[tuple[FileData, int], None] = OrderedDict()
        self._room = asyncio.Event()
        self._room.set()

    def count(self, delta_bytes: int) -> None:
        """Count unwritten bytes."""
        self.dirty_bytes += delta_bytes
        if self.dirty_bytes > DIRTY_BYTES_MAX:
            self._room.clear()
        else:
            self._room.set()

    def note_dirty(self, data: FileData, now_s: float) -> None:
        """Something of a file is unwritten since now (loop time), if it was not before."""
        if data not in self.dirty_files:
            self.dirty_files[data] = now_s
            self._ledger.note_dirty(data.inode.ino)

    def note_clean(self, data: FileData) -> None:
        """Nothing is."""
        if self.dirty_files.pop(data, None) is not None:
            self._ledger.note_clean(data.inode.ino)

    @property
    def is_full(self) -> bool:
        """Whether a writer should wait (`wait_room`)."""
        return self.dirty_bytes > DIRTY_BYTES_MAX

    async def wait_room(self) -> None:
        """Wait until fewer bytes are unwritten; the oldest are sent."""
        while self.dirty_bytes > DIRTY_BYTES_MAX:
            for data in list(self.dirty_files):
                data.pump(full_only=False)
            await self._room.wait()

    async def run(self) -> None:
        """Send what has become old, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(AGE_S / 4)
            for data, since in list(self.dirty_files.items()):
                if loop.time() - since >= AGE_S:
                    data.pump(full_only=False)

    def arrived(self, data: FileData, block: int) -> None:
        """A block read ahead is there; the oldest goes if there are too many."""
        self._ahead[data, block] = None
        self.ahead_bytes += BLOCK_BYTES
        while self.ahead_bytes > AHEAD_BYTES_MAX:
            other, index = next(iter(self._ahead))
            other.forget_block(index)

    def gone(self, data: FileData, block: int) -> None:
        """A block was used or is void."""
        if (data, block) in self._ahead:
            del self._ahead[data, block]
            self.ahead_bytes -= BLOCK_BYTES
