"""The bytes of open files: what is written goes to the OSDs a little later, what will be read comes a little earlier.

`FileData` belongs to one inode and relies on its lease: who calls holds WRITE to change and READ (or WRITE) to read. Unwritten bytes are sent
when a bucket is full, when they are `AGE_S` old, when there are too many of them, and when somebody asks (close, fsync, recall). A failure
voids all that is unwritten of the file, and is told once through each handle: at fsync or close. What was asked of an OSD and not answered may
still be done, so the lease goes back and the file is fenced: nobody may see it come in later, nor go on seeing here what is not there. The
bounds over all files are in `store`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal

from xtreemos.xtreemfs.client.dirty import BUCKET_BYTES, Buffer, DirtyFile, Extent
from xtreemos.xtreemfs.client.inodes import Changed, Inode, Span
from xtreemos.xtreemfs.client.readahead import BLOCK_BYTES, Planner
from xtreemos.xtreemfs.client.store import DataStore
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.protocol import Rights
from xtreemos.xtreemfs.striping import StripedFile

log = logging.getLogger(__name__)

FLYING_BYTES_MAX = 16 << 20  # of one file on their way at the same time
FLYING_COUNT_MAX = 64  # requests of one file; more would only queue at the OSDs until their deadlines have passed
WAITING_COUNT_MAX = 256  # scattered pieces of one file are sent when they are so many
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EOPNOTSUPP, errno.ESTALE, errno.EACCES})
"""What an OSD says if it has done nothing, and will not; after any other failure nobody knows."""


def data_of(inode: Inode, store: DataStore) -> FileData:
    """Return the data of an inode, which has a layout."""
    if inode.data is None:
        inode.data = FileData(inode, store)
    return inode.data


class FileData:
    """The data of one file."""

    def __init__(self, inode: Inode, store: DataStore) -> None:
        self.inode = inode
        self.dirty = DirtyFile()
        self.error = 0
        """errno of the newest failure."""
        self.errors = 0
        """How many there were; a handle remembers how many it has told."""
        self._logged = 0
        """errno that the log has, until something was written again: one away OSD fails many pieces."""
        self.on_osds_bytes = inode.size
        """How long the file may be on the OSDs."""
        self.missed: tuple[float, Span] | None = None
        """When a read had no answer in time, by the loop's clock, and which bytes it was for."""
        self._store = store
        self._striped: StripedFile | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._draining = False
        """All that waited was to be sent, and the bounds left some."""
        self._late: set[asyncio.Task[int]] = set()
        self._blocks: dict[int, bytes | bytearray | asyncio.Task[int]] = {}

    @property
    def busy(self) -> bool:
        """Whether it may not be forgotten."""
        return bool(self.dirty or self._late or (self._striped is not None and self._striped.unsynced))

    @property
    def striped(self) -> StripedFile:
        """The file on its OSDs. FuseError(EIO) if nobody has told where it is."""
        layout = self.inode.layout
        if layout is None:
            raise FuseError(errno.EIO)
        if self._striped is None or self._striped.layout != layout:
            self._striped = StripedFile(self._store.osds, layout, self._rights)
        return self._striped

    def _rights(self) -> Rights:
        return self._store.coherence(self.inode.ino).rights(self.inode)

    # ------------------------------------------------------------------------------------------------------------ writing

    def write(self, offset: int, data: Buffer) -> None:
        """Take bytes; they are sent later. Attributes are the caller's."""
        store = self._store
        before = self.dirty.cost_bytes
        full = self.dirty.write(offset, data)
        store.count(self.dirty.cost_bytes - before)
        if self not in store.dirty_files:
            store.note_dirty(self, asyncio.get_running_loop().time())
        if self._blocks:
            self.forget_blocks(offset, len(data))
        if full:
            self.pump(full_only=True)
        elif self.dirty.waiting_count > WAITING_COUNT_MAX:
            self.pump(full_only=False)

    def pump(self, *, full_only: bool) -> None:
        """Send what waits, as far as the bounds of what flies let; the rest of it follows as answers come."""
        dirty = self.dirty
        free, places = FLYING_BYTES_MAX - dirty.flying_bytes, FLYING_COUNT_MAX - len(dirty.flying)
        self._draining |= not full_only
        full_only = not self._draining
        if free <= 0 or places <= 0 or not dirty.waiting_bytes:
            return
        taken = dirty.take(full_only=full_only, bytes_max=free, count_max=places)
        if len(taken) < places and dirty.flying_bytes < FLYING_BYTES_MAX:
            self._draining = False
        for extent in taken:
            task = asyncio.ensure_future(self._send(extent))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("sending to the OSDs failed inside", exc_info=error)
            self.fail(errno.EIO)
        if not self.dirty:
            self._store.note_clean(self)
        elif self._draining:
            self.pump(full_only=False)
        elif self.dirty.waiting_bytes >= BUCKET_BYTES:
            self.pump(full_only=not self._store.is_full)

    async def _send(self, extent: Extent) -> None:
        capability = self.inode.capabilities.get("w")

        def rights() -> Rights:
            if extent not in self.dirty.flying:  # given up while it waited for its OSD: it must not go out under a later lease
                raise FuseError(errno.ECANCELED)
            return self._rights()

        try:
            async with self._store.flying:
                await self.striped.write(extent.start, extent.data, rights)
        except FuseError as failure:
            if extent in self.dirty.flying:  # else it was given up meanwhile, with all the rest, and that was told
                self._refused(extent, failure.errno, capability[1].epoch if capability else 0)
        else:
            self._logged = 0
            self.on_osds_bytes = max(self.on_osds_bytes, extent.end)
            self._note_blocks()
        finally:
            self._land(extent)
            self.forget_blocks(extent.start, len(extent.data))

    def _refused(self, extent: Extent, number: int, epoch: int) -> None:
        if number != self._logged:
            log.warning(
                "%d bytes of inode %x could not be written: %s", len(extent.data), self.inode.ino, errno.errorcode.get(number)
            )
            self._logged = number
        self.fail(number)
        coherence = self._store.coherence(self.inode.ino)
        if number == errno.ESTALE:
            coherence.fenced(self.inode, epoch)
        else:
            coherence.gave_up(self.inode)

    async def _sure(self, change: Awaitable[None]) -> None:
        """Have a change made. If nobody knows whether it was, the lease goes back."""
        try:
            await change
        except BaseException as failure:
            if not (isinstance(failure, FuseError) and failure.errno in REFUSALS):
                self._store.coherence(self.inode.ino).gave_up(self.inode)
            raise

    def _land(self, extent: Extent) -> None:
        before = self.dirty.cost_bytes
        self.dirty.landed(extent)
        self._store.count(self.dirty.cost_bytes - before)

    def _note_blocks(self) -> None:
        blocks = sum(self.striped.blocks.values())
        if blocks != self.inode.blocks and len(self.striped.blocks) == self.striped.width:
            self.inode.blocks = blocks
            self.inode.changed |= Changed.BLOCKS

    def _failed(self, number: int) -> None:
        self.error = errno.ENOSPC if number == errno.ENOSPC else errno.EDQUOT if number == errno.EDQUOT else errno.EIO
        self.errors += 1

    def fail(self, number: int) -> None:
        """What is unwritten is void: drop it, to be told once through each handle."""
        lost = self.dirty.total_bytes
        if lost:
            log.warning("%d unwritten bytes of inode %x are lost", lost, self.inode.ino)
            self._failed(number)
        self._store.count(-self.dirty.cost_bytes)
        self.dirty.clear()
        self._store.note_clean(self)

    def was_lost(self) -> None:
        """A process before us had unwritten bytes of it: to be told once through each handle that is still open."""
        self._failed(errno.EIO)

    def discard(self) -> None:
        """The file is gone for good: its unwritten bytes need not be sent."""
        self._store.count(-self.dirty.cost_bytes)
        self.dirty.clear()
        self._striped = None
        self._store.note_clean(self)
        self.forget_blocks(0, 1 << 62)

    async def flush(self) -> None:
        """Send all that is unwritten now and wait for the answers. Failures are kept for who asks by `errors`."""
        while self.dirty:
            self.pump(full_only=False)
            sending = list(self._sending)
            if not sending:
                return  # all of it failed meanwhile
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self) -> None:
        """Wait until nothing is on its way (what waits stays)."""
        while self._sending:
            await asyncio.wait(list(self._sending))

    @property
    def is_late(self) -> bool:
        """Whether something written waits for a lease before it can be taken (see `files`)."""
        return bool(self._late)

    def late(self, write: Coroutine[Any, Any, int]) -> None:
        """Carry out a write that the kernel was answered already."""
        task = asyncio.ensure_future(write)
        self._late.add(task)
        task.add_done_callback(self._late_done)

    def _late_done(self, task: asyncio.Task[int]) -> None:
        self._late.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a page of a mapping of inode %x could not be written: %s", self.inode.ino, task.exception())
            self._failed(errno.EIO)

    async def settle_late(self) -> None:
        """Wait until late writes were taken. Not to be awaited by who holds up a lease."""
        while self._late:
            await asyncio.wait(list(self._late))

    async def sync(self) -> None:
        """Have all written columns brought to the OSDs' disks. FuseError: an OSD cannot; what was not on disk is void."""
        await self.flush()
        if self._striped is None:
            return
        try:
            await self._striped.sync()
        except (FuseError, FsError) as failure:
            self._failed(failure.errno)
            raise FuseError(failure.errno) from failure

    async def truncate(self, size: int) -> None:
        """Set the file's length on the OSDs; what waits beyond is dropped. FuseError as the OSDs say."""
        before = self.dirty.cost_bytes
        self.dirty.truncate(size)
        self._store.count(self.dirty.cost_bytes - before)
        self.forget_blocks(size, 1 << 62)
        if any(extent.end > size for extent in self.dirty.flying):
            await self.settle()
        # Others may have made it longer on the OSDs than we ever did, but then the size that came with the lease says so.
        if size != self.inode.size or size < self.on_osds_bytes:
            # Growing is told, too: the length of a file whose writer dies is what its columns say.
            await self._sure(self.striped.truncate(size))
            self._note_blocks()
            self.on_osds_bytes = size

    async def allocate(self, offset: int, length: int, how: Literal["a", "k", "p", "z"]) -> None:
        """Allocate ("a", "k"), punch ("p") or zero ("z") a range on the OSDs; what was unwritten is written first."""
        await self.flush()
        await self._sure(self.striped.allocate(offset, length, how))
        self._note_blocks()
        self.forget_blocks(offset, length)
        if how == "a":
            self.on_osds_bytes = max(self.on_osds_bytes, offset + length)

    # ------------------------------------------------------------------------------------------------------------ reading

    def read_nowait(self, planner: Planner | None, offset: int, length: int) -> Buffer | None:
        """Return bytes that need no OSD, None if they do. `length` >= 1 and within the file."""
        if self.dirty and self.dirty.covers(offset, length):
            return self._laid_over(bytearray(length), offset)
        index = offset // BLOCK_BYTES
        block = self._blocks.get(index)
        if block is None or isinstance(block, asyncio.Task) or (offset + length - 1) // BLOCK_BYTES != index:
            return None
        begin = offset - index * BLOCK_BYTES
        if begin + length > len(block):
            return None
        view = memoryview(block)[begin : begin + length]
        if begin + length == len(block):
            self.forget_block(index)  # the kernel keeps what it was told
        if planner is not None:
            self._fetch_ahead(planner, offset, length)
        return self._laid_over(bytearray(view), offset) if self.dirty else view

    async def read(self, planner: Planner | None, offset: int, length: int) -> Buffer:
        """Return the bytes of a range (`length` >= 1, within the file). FuseError: damage, or an OSD that does not answer."""
        # What is unwritten now may have landed when the OSDs' bytes come, which may be older: it is laid over them in any case.
        over = [(start, bytes(data)) for start, data in self.dirty.overlay(offset, length)] if self.dirty else []
        if planner is not None:
            self._fetch_ahead(planner, offset, length)
        out = await self._fetched(offset, length)
        if not over and not self.dirty:
            return out
        out = bytearray(out)
        for start, data in over:
            out[start - offset : start - offset + len(data)] = data
        return self._laid_over(out, offset)

    async def _read_osds(self, offset: int, length: int) -> Buffer:
        try:
            return await self.striped.read(offset, length)
        except FsError as error:
            log.error("inode %x: %s", self.inode.ino, error)  # noqa: TRY400  # it is told to the program
            raise FuseError(error.errno) from error

    def _laid_over(self, out: bytearray, offset: int) -> bytearray:
        for start, data in self.dirty.overlay(offset, len(out)):
            out[start - offset : start - offset + len(data)] = data
        return out

    async def _fetched(self, offset: int, length: int) -> Buffer:
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        if not self._blocks or not any(index in self._blocks for index in range(first, last + 1)):
            return await self._read_osds(offset, length)
        parts = []
        for index in range(first, last + 1):
            begin = max(offset, index * BLOCK_BYTES)
            parts.append(self._from_block(index, begin, min(offset + length, (index + 1) * BLOCK_BYTES) - begin))
        got = await asyncio.gather(*parts)
        return got[0] if len(got) == 1 else b"".join(got)

    async def _from_block(self, index: int, offset: int, length: int) -> Buffer:
        block = self._blocks.get(index)
        if isinstance(block, asyncio.Task):
            await asyncio.wait({block})
            if not block.cancelled() and block.result():
                raise FuseError(block.result())
            block = self._blocks.get(index)
        begin = offset - index * BLOCK_BYTES
        if block is None or isinstance(block, asyncio.Task) or begin + length > len(block):
            return await self._read_osds(offset, length)
        data = memoryview(block)[begin : begin + length]
        if begin + length == len(block):
            self.forget_block(index)
        return data

    def _fetch_ahead(self, planner: Planner, offset: int, length: int) -> None:
        for index in planner.on_read(offset, length, self.inode.size):
            if index not in self._blocks:
                self._blocks[index] = asyncio.ensure_future(self._fetch(index))

    async def _fetch(self, index: int) -> int:
        """Fetch one block; return an errno, or 0."""
        coherence = self._store.coherence(self.inode.ino)
        generation = coherence.generation(self.inode.ino)
        me = asyncio.current_task()
        begin = index * BLOCK_BYTES
        length = min(BLOCK_BYTES, self.inode.size - begin)
        data: Buffer = b""
        try:
            if length > 0:
                data = await self._read_osds(begin, length)
        except FuseError as failure:
            return failure.errno  # for who needs the bytes; nobody else is told
        finally:
            if self._blocks.get(index) is me:  # else it was forgotten meanwhile
                if data and coherence.generation(self.inode.ino) == generation:
                    self._blocks[index] = bytes(data) if isinstance(data, memoryview) else data
                    self._store.arrived(self, index)
                else:
                    del self._blocks[index]
        return 0

    def forget_block(self, index: int) -> None:
        """Drop one block read ahead; if it is still coming it is not kept."""
        if self._blocks.pop(index, None) is not None:
            self._store.gone(self, index)

    def forget_blocks(self, offset: int, length: int) -> None:
        """Drop blocks of a range."""
        end = offset + length
        for index in [i for i in self._blocks if i * BLOCK_BYTES < end and offset < (i + 1) * BLOCK_BYTES]:
            self.forget_block(index)


def note_write(inode: Inode, end: int, now_ns: int, *, kill_suid: bool) -> None:
    """A WRITE holder has written up to byte `end`: size and times change here first."""
    if end > inode.size:
        inode.size = end
        inode.changed |= Changed.SIZE
    inode.mtime_ns = inode.ctime_ns = now_ns
    inode.changed |= Changed.MTIME | Changed.CTIME
    if kill_suid and inode.mode & 0o6000:
        inode.mode = without_suid(inode.mode)
        inode.changed |= Changed.MODE


def without_suid(mode: int) -> int:
    """Return a mode without set-user-id, and without set-group-id if its group may execute."""
    return mode & ~0o4000 & (~0o2000 if mode & 0o010 else ~0)
