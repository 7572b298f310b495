"""All columns of one OSD: which disk, which are open, who may change what when. It knows no capabilities, callers or messages.

Locks: a column's lock is held by who changes it. Readers take none; one that meets a change half-way asks again with the lock. What runs
in a thread cannot be stopped, so a cancelled call holds its lock and its open files until the thread is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import SUM_BYTES, WIDTH_MAX
from xtreemos.xtreemfs.osd.column import Column, Mismatch
from xtreemos.xtreemfs.osd.commits import Committer
from xtreemos.xtreemfs.osd.damage import Damage
from xtreemos.xtreemfs.osd.model import DamageRow, Key
from xtreemos.xtreemfs.osd.shelf import Shelf
from xtreemos.xtreemfs.osd.space import Space

log = logging.getLogger(__name__)
T = TypeVar("T")
Check = Callable[[Fence], None]
"""Raises if who asks may not, given what is remembered of the file."""

OPEN_MAX = 1024
"""Open columns, two descriptors each. Those in use stay open beyond it."""
INLINE_BYTES = 128 * 1024
"""Reads up to this are answered at once if they are in memory; a thread would cost more than they do."""
SLOW_S = 0.02
SLOW_FOR_S = 5.0
"""A write at once that took longer (the kernel makes writers wait when too much is unwritten) sends all to threads for a while."""
THREADS = 4
FENCES_MAX = 65536
DIRTY_MAX = 100_000
"""Columns with changes that were not synced; more wait until a whole disk was synced."""


@dataclass(eq=False, slots=True)
class Entry:
    """An open column, or the place of one that does not exist (yet)."""

    key: Key
    shelf: Shelf | None = None
    column: Column | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    gone: bool = False


class _Use:
    """`async with store.entry(key) as entry`; written out, for it is on the way of every request."""

    __slots__ = ("_at_once", "_entry", "_store")

    def __init__(self, store: Store, entry: Entry, *, at_once: bool) -> None:
        self._store = store
        self._entry = entry
        self._at_once = at_once

    async def __aenter__(self) -> Entry:
        entry = self._entry
        entry.users += 1
        if entry.column is None and not entry.gone:
            try:
                await self._store.load(entry, at_once=self._at_once)
            except BaseException:
                self._store.release(entry)
                raise
        return entry

    async def __aexit__(self, *_exc: object) -> None:
        self._store.release(self._entry)


class Store:
    """See the module. `shelves` in a fixed order: the first keeps the fences of all files."""

    def __init__(self, shelves: Sequence[Shelf], space: Space, *, boot: str, now: Callable[[], float] = time.time) -> None:
        self.shelves = list(shelves)
        self.space = space
        self.now = now
        self.failed = 0
        """Failures of disks so far; each makes another `boot`, for what was not synced may be lost."""
        self.io_errors = 0
        self.columns = 0
        """How many there are, as far as they were counted."""
        self._boot = boot
        self._slow_until_s = 0.0
        self._commits = {shelf: Committer(shelf.marks.table) for shelf in self.shelves}
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self.right: dict[Key, int] = {}
        """Dirty columns whose sums this process knows to be right, with their lengths when they were last open."""
        self._fences: OrderedDict[int, Fence] = OrderedDict()
        self._gone: set[int] = {ino for ino, _at in self.shelves[0].marks.gone()}
        self.damage = Damage(self.shelves, self.commit)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="osd")
        self._settled = asyncio.Event()

    @property
    def boot(self) -> str:
        """Changes when unsynced bytes may have been lost: another boot of the machine, or a failed sync."""
        return f"{self._boot}.{self.failed}" if self.failed else self._boot

    @property
    def open_count(self) -> int:
        """Columns that are open."""
        return sum(entry.column is not None for entry in self._entries.values())

    # -------------------------------------------------------------------------------------------------- threads and entries

    async def thread(self, work: Callable[..., T], *args: object) -> T:
        """Run `work` in a thread; if the caller is cancelled it is so when the thread is done, not before."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError, Exception):  # the cancellation is raised below
                    await asyncio.shield(future)
            raise

    async def quick(self, work: Callable[..., T], *args: object) -> T:
        """Run `work`, which rarely waits for the disk, at once; in a thread (which costs more than it does) if the disk was slow lately."""
        begin_s = time.monotonic()
        if begin_s < self._slow_until_s:
            return await self.thread(work, *args)
        try:
            return work(*args)
        finally:
            if (end_s := time.monotonic()) - begin_s > SLOW_S:
                self._slow_until_s = end_s + SLOW_FOR_S

    def entry(self, key: Key, *, at_once: bool = False) -> _Use:
        """The entry of a column as an async context, opened (by `quick` if `at_once`) if it exists and kept open meanwhile."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
        else:
            self._entries.move_to_end(key)
        return _Use(self, entry, at_once=at_once)

    async def load(self, entry: Entry, *, at_once: bool) -> None:
        """Open the column of an entry that has none open, if there is one."""
        async with entry.lock:
            entry.gone = entry.gone or entry.key.ino in self._gone  # what is deleted is not held open
            if entry.column is None and not entry.gone:
                run = self.quick if at_once else self.thread
                entry.shelf, entry.column = await run(self._open, entry.key)
                if entry.shelf is not None and entry.column is not None and not entry.column.trusted:
                    entry.shelf.ledger.found(entry.key)
                    if entry.column.lent:
                        entry.shelf.ledger.lend(entry.key, lent=True)

    def release(self, entry: Entry) -> None:
        """One user less."""
        entry.users -= 1
        if entry.gone and entry.users == 0 and self._entries.get(entry.key) is entry:
            self._drop(entry.key, entry)
        if len(self._entries) > OPEN_MAX:
            self._evict()

    def _open(self, key: Key) -> tuple[Shelf | None, Column | None]:
        for shelf in self.shelves:
            column = shelf.open(key, known_here=key in self.right)
            if column is not None:
                return shelf, column
        return None, None

    def _evict(self) -> None:
        unused = (key for key, entry in self._entries.items() if entry.users == 0)  # least lately used first
        for key in list(itertools.islice(unused, len(self._entries) - OPEN_MAX)):
            self._drop(key, self._entries[key])

    def _drop(self, key: Key, entry: Entry) -> None:
        del self._entries[key]
        if entry.column is not None:
            if key in self.right:
                self.right[key] = entry.column.length
            entry.column.close()
            entry.column = None

    async def commit(self, shelf: Shelf, rows: dict[bytes, bytes | None]) -> None:
        """Make rows of a shelf durable."""
        await self._commits[shelf].commit(rows)

    # ------------------------------------------------------------------------------------------------------------- fences

    def fence(self, ino: int, column: Column | None = None) -> Fence:
        """What is remembered of a file."""
        if ino in self._gone:
            raise FsError(errno.ESTALE, f"file {ino:x} was deleted")
        found = self._fences.get(ino)
        if found is None:
            found = self._fences[ino] = self.shelves[0].marks.fence(ino)
            while len(self._fences) > FENCES_MAX:
                self._fences.popitem(last=False)
        if column is None:
            return found
        own = column.fence
        return Fence(max(found.epoch, own.epoch), max(found.layout_version, own.layout_version))

    async def put_fence(self, ino: int, epoch: int, columns: Iterable[int]) -> tuple[int, ...]:
        """Let nobody with a smaller epoch write from now on; return the lengths of columns, after writes that were under way."""
        if ino in self._gone:
            return tuple(0 for _ in columns)
        old = self.fence(ino)
        if epoch > old.epoch:
            fence = self._fences[ino] = Fence(epoch, old.layout_version)
            home = self.shelves[0]
            await self.commit(home, dict(home.fence_rows(ino, fence)))
        lengths = []
        for number in columns:
            async with self.entry(Key(ino, number)) as entry, entry.lock:
                if entry.column is not None:
                    entry.column.refresh()
                lengths.append(entry.column.length if entry.column is not None else 0)
        return tuple(lengths)

    # ------------------------------------------------------------------------------------------------------------ reading

    async def read(self, key: Key, at: int, length: int, check: Check) -> tuple[memoryview, tuple[int, ...]]:
        """Read a range of a column: bytes and CRC-32s of block parts.

        Raises:
            FsError(EIO): blocks are damaged, or the disk failed.
        """
        async with self.entry(key) as entry:
            column = entry.column
            check(self.fence(key.ino, column))
            if column is None:
                return memoryview(b""), ()
            with self.disk_errors(entry):
                try:
                    if length <= INLINE_BYTES:
                        found = column.read(at, length, wait=False)
                        if found is not None:
                            return found
                    return _sure(await self.thread(column.read, at, length))
                except Mismatch:
                    pass
                async with entry.lock:  # alone: if it does not fit now, it never will
                    return await self._read_alone(entry, at, length)

    async def _read_alone(self, entry: Entry, at: int, length: int) -> tuple[memoryview, tuple[int, ...]]:
        column = entry.column
        if column is None:
            return memoryview(b""), ()
        try:
            return _sure(await self.thread(column.read, at, length))
        except Mismatch as mismatch:
            await self._judge(entry, column, mismatch.bad)
        # Of a column that somebody may be writing by passthrough: what is there, with the sums of that.
        return _sure(await self.thread(lambda: column.read(at, length, verify=False)))

    async def _judge(self, entry: Entry, column: Column, bad: list[int]) -> None:
        """Blocks do not fit: damage if the column is trusted, else what a crash or a passthrough writer left; taken."""
        assert entry.shelf is not None
        if column.trusted:
            await self.damage.report(entry.shelf, [DamageRow(*entry.key, block, "damaged", int(self.now())) for block in bad])
            raise FsError(
                errno.EIO, f"block {bad[0]} of column {entry.key.column} of file {entry.key.ino:x} is damaged on its disk"
            )
        lent = entry.shelf.ledger.is_lent(entry.key)
        await self.thread(_take, column, bad)
        if not lent:
            await self.damage.report(entry.shelf, [DamageRow(*entry.key, block, "torn", int(self.now())) for block in bad])

    # ----------------------------------------------------------------------------------------------------------- changing

    async def change(
        self,
        key: Key,
        work: Callable[[Column], None],
        *,
        raised: Fence,
        check: Check,
        reach: tuple[int, int] = (0, 0),
        create: bool = True,
    ) -> tuple[int, int]:
        """Change a column by `work` in a thread, after `check` of the file's fence.

        Args:
            key: the column.
            work: what to do with the open column; raises Mismatch or OSError.
            raised: epoch and layout version of the writer, remembered.
            check: raises if a writer may not; called with the fence as it is when nobody else writes any more.
            reach: first byte and number of bytes that may need room on the disk.
            create: whether a column that does not exist is made; else nothing is done and (0, 0) returned.

        Returns:
            (length, bytes allocated / 512) of the column afterwards.

        Raises:
            FsError: ENOSPC before anything was done, EIO if the disk failed or a block of which a part stays is damaged.
        """
        async with self.entry(key, at_once=True) as entry, entry.lock:  # most often there is no such column yet
            check(self.fence(key.ino, entry.column))
            if entry.gone:
                raise FsError(errno.ESTALE, f"file {key.ino:x} was deleted")
            if entry.column is None and not create:
                return 0, 0
            with self.disk_errors(entry):
                self.space.admit(entry.shelf, _cost(entry.column, *reach))
                column = await self._ready_to_change(entry)
                before = column.blocks
                try:
                    await self._carry_out(column, raised, work, *reach)
                except Mismatch as mismatch:
                    await self._judge(entry, column, mismatch.bad)
                    await self.thread(self._work, column, raised, work)
                finally:
                    self._ended(entry)
                    self.space.used((column.blocks - before) * 512)
                return column.length, column.blocks

    @staticmethod
    def _ended(entry: Entry) -> None:
        if entry.shelf is not None:
            entry.shelf.ledger.finished(entry.key)

    async def _carry_out(self, column: Column, raised: Fence, work: Callable[[Column], None], at: int, length: int) -> None:
        """Do a change: a small one whose surroundings are in memory at once, unless the disk was slow lately; else in a thread."""
        if not 0 < length <= INLINE_BYTES or time.monotonic() < self._slow_until_s or not column.is_in_memory(at, length):
            await self.thread(self._work, column, raised, work)
        else:
            await self.quick(self._work, column, raised, work)

    @staticmethod
    def _work(column: Column, raised: Fence, work: Callable[[Column], None]) -> None:
        column.raise_fence(raised)
        work(column)

    async def _ready_to_change(self, entry: Entry) -> Column:
        """Make the column if need be, and its dirty mark durable; count the change."""
        if entry.column is None:
            entry.shelf = self.space.choose(self.shelves)
            entry.column = await self.quick(entry.shelf.create, entry.key)
            self.columns += 1
            self.right[entry.key] = 0
        shelf = entry.shelf
        assert shelf is not None, "an open column is on a shelf"
        await self.begin_change(entry, shelf)
        if entry.column.trusted:
            self.right[entry.key] = 0
        return entry.column

    async def begin_change(self, entry: Entry, shelf: Shelf) -> None:
        """Have a durable dirty mark, if one is needed, and count a change as begun. The caller holds the entry's lock."""
        ledger, key = shelf.ledger, entry.key
        while True:
            while ledger.is_settling(key) or len(ledger) > DIRTY_MAX:
                await self._settled.wait()
            rows = shelf.rows_before_change(key)
            await self.commit(shelf, dict(rows))
            if not ledger.is_settling(key):  # a clean mark may have been begun behind ours
                break
        ledger.marked(key)
        ledger.changed(key, self.now())

    async def sync(self, key: Key, check: Check) -> tuple[int, int]:
        """Make a column durable; returns (length, blocks). FsError(EIO): unsynced bytes may be lost, `boot` has changed."""
        async with self.entry(key) as entry:
            column, shelf = entry.column, entry.shelf
            check(self.fence(key.ino, column))
            if column is None or shelf is None:
                return 0, 0
            changes = shelf.ledger.changes(key)
            if changes:
                with self.disk_errors(entry, sync=True):
                    await self.thread(shelf.sync, key, column)
                shelf.ledger.synced(key, changes)
            column.refresh()
            return column.length, column.blocks

    async def stat(self, key: Key, check: Check) -> tuple[int, int]:
        """(length, blocks) of a column, (0, 0) if there is none."""
        async with self.entry(key) as entry:
            check(self.fence(key.ino, entry.column))
            if entry.column is None:
                return 0, 0
            entry.column.refresh()
            return entry.column.length, entry.column.blocks

    async def seek(self, key: Key, at: int, what: str, check: Check) -> int:
        """See `Column.seek`; -1 if there is no such column."""
        async with self.entry(key) as entry:
            check(self.fence(key.ino, entry.column))
            if entry.column is None:
                return -1
            with self.disk_errors(entry):
                return await self.thread(entry.column.seek, at, what)

    # ------------------------------------------------------------------------------------------------------------ removing

    async def delete(self, inos: Iterable[int], width: int = WIDTH_MAX) -> None:
        """Remove files, which have columns below number `width` only. Their space is free when it returns (a descriptor that was lent keeps its own); again: no change."""
        now_s = int(self.now())
        fresh = [ino for ino in inos if ino not in self._gone]
        self._gone.update(fresh)
        for ino in fresh:
            for key in [key for key in self._entries if key.ino == ino]:
                async with self.entry(key) as entry, entry.lock:
                    entry.gone = True
        for shelf in self.shelves:
            rows: dict[bytes, bytes | None] = {}
            for ino in fresh:
                rows |= shelf.rows_of_gone(ino, now_s, width)
            await self.commit(shelf, rows)
            freed, columns = await self.thread(_remove, shelf, fresh, width)
            self.space.used(-freed)
            self.columns -= columns
        for ino in fresh:
            self._fences.pop(ino, None)
        self._forget(set(fresh))

    def _forget(self, inos: set[int]) -> None:
        for shelf in self.shelves:
            for key in shelf.ledger.of_files(inos):
                shelf.ledger.drop(key)
                self.right.pop(key, None)
        self.damage.forget(inos)

    def forget_gone(self, inos: Iterable[int]) -> None:
        """Deleted files that nobody can have a capability of any more."""
        self._gone.difference_update(inos)

    # ------------------------------------------------------------------------------------------------- recovery and scrub

    def unsure(self, shelf: Shelf) -> list[Key]:
        """Columns that a crash left dirty and nobody compared with their sums yet."""
        return shelf.ledger.unsure(self.right)

    def crowded(self, shelf: Shelf) -> bool:
        """Whether writers wait, or soon will, for a sync of the whole disk."""
        return len(shelf.ledger) > DIRTY_MAX // 2

    # ------------------------------------------------------------------------------------------------------------ settling

    async def settle(self, shelf: Shelf, *, quiet_s: float) -> int:
        """Give clean marks to columns that were synced and had no change for `quiet_s`; returns how many."""
        lengths: dict[Key, int] = {}
        unknown = []
        for key in shelf.ledger.settling(self.now() - quiet_s):
            entry = self._entries.get(key)
            if entry is not None and entry.column is not None and entry.column.trusted:
                lengths[key] = entry.column.length
            elif key in self.right and (entry is None or entry.column is None):
                lengths[key] = self.right[key]
            else:
                unknown.append(key)
        shelf.ledger.settled(unknown, durable=False)
        durable = False
        try:
            await self.commit(shelf, dict(shelf.clean_rows(lengths.items())))
            durable = True
        except OSError as error:
            log.warning("clean marks could not be written: %s", error)
        finally:
            shelf.ledger.settled(lengths, durable=durable)
            if durable:
                for key in lengths:
                    self.right.pop(key, None)
            self._settled.set()
            self._settled = asyncio.Event()
        return len(lengths) if durable else 0

    async def sync_all(self, shelf: Shelf, *, older_s: float) -> None:
        """Make everything on a disk durable, as the kernel would sooner or later; what changed meanwhile counts as not synced."""
        counts = shelf.ledger.unsynced(self.now() - older_s)
        if not counts:
            return
        try:
            await self.thread(shelf.disk.sync_all)
        except OSError as error:
            self._failed(error)
            return
        for key, changes in counts.items():
            shelf.ledger.synced(key, changes)
            shelf.new_names.discard(key)

    async def close(self) -> None:
        """Sync, mark clean and close everything."""
        for shelf in self.shelves:
            await self.sync_all(shelf, older_s=-1)
            await self.settle(shelf, quiet_s=-1)
            await self._commits[shelf].close()
        for key, entry in list(self._entries.items()):
            self._drop(key, entry)
        self._threads.shutdown(wait=True)

    # -------------------------------------------------------------------------------------------------------------- errors

    @contextlib.contextmanager
    def disk_errors(self, entry: Entry, *, sync: bool = False) -> Iterator[None]:
        """Translate what a disk says; a bad disk is remembered."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.space.full()
                raise FsError(errno.ENOSPC, "the disk of the OSD is full") from error
            if sync or error.errno in (errno.EIO, errno.EROFS):
                self._failed(error)
            raise FsError(
                errno.EIO, f"the disk under column {entry.key.column} of file {entry.key.ino:x} failed: {error.strerror}"
            ) from error

    def _failed(self, error: OSError) -> None:
        self.failed += 1
        self.io_errors += 1
        log.error("a disk of this OSD failed: %s", error)


def _sure(found: tuple[memoryview, tuple[int, ...]] | None) -> tuple[memoryview, tuple[int, ...]]:
    assert found is not None, "a read that waits returns bytes"
    return found


def _cost(column: Column | None, at: int, length: int) -> int:
    """How much a disk may have to give for a range; nothing for bytes that are there already."""
    if column is None or column.blocks * 512 < column.length:  # holes: who knows where
        return length
    return max(0, at + length - max(at, column.length))


def _take(column: Column, bad: list[int]) -> None:
    column.refresh()
    column.retake([block for block in bad if block * SUM_BYTES < column.length])


def _remove(shelf: Shelf, inos: list[int], width: int) -> tuple[int, int]:
    freed = [shelf.remove(ino, width) for ino in inos]
    return sum(row[0] for row in freed), sum(row[1] for row in freed)
