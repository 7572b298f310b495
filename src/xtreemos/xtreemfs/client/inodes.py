"""What the client knows of inodes: attributes, names, listings, extended attributes; each valid only as long as its lease is.

No I/O here. An `Inode` lives as long as the kernel has looked it up, somebody has it open, or something of it is unwritten or untold;
`Inodes.idle` picks those to give up when there are too many. Own changes that the MRC was not told yet lie on top of its attributes.
"""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Attr, Capability, Layout, Level, volume_of
from xtreemos.xtreemfs.protocol import ListedEntry, Update

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.data import FileData
    from xtreemos.xtreemfs.client.passthrough import Backing

INODES_MAX = 100_000  # about 2 KiB each; more only while the kernel or open files hold them
NAMES_MAX = 200_000  # of one directory, kept from lookups
LISTING_MAX = 100_000  # names of one directory kept as a whole, so that it is listed again without asking

Span = tuple[int, int]
"""First byte, and the byte behind the last."""


class Changed:
    """Bits of what the holder of a WRITE lease has changed and not told; plain numbers, for they are looked at with each request."""

    SIZE: Final = 1
    BLOCKS: Final = 2
    MTIME: Final = 4
    CTIME: Final = 8
    ATIME: Final = 16
    MODE: Final = 32


class NeedsRoom(FuseError):
    """A quota bounds how far a file may grow without asking, and it is to be `end` bytes long. Nothing was done."""

    code = "fs-needs-room"

    def __init__(self, end: int) -> None:
        super().__init__(errno.EDQUOT)
        self.end = end


class Inode:
    """One inode. Attributes are those to show: the MRC's with our own changes on top."""

    __slots__ = (
        "atime_ns", "attr", "backing", "blocks", "capabilities", "changed", "changes", "complete", "contended_until_s", "ctime_ns", "data", "dirty_told", "doubtful", "fresh", "handles", "held_up", "ino", "invalidated",
        "invalidating", "keep_pages", "layout", "link", "listing", "lookups", "mode", "mtime_ns", "names", "pages", "parent", "passed", "reading", "served",
        "size", "stuck", "true_until_released", "used", "writers", "writing", "xattr_names", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, attr: Attr) -> None:
        self.ino = ino
        self.attr = attr
        self.changed = 0
        self.mode, self.size, self.blocks = attr.mode, attr.size, attr.blocks
        self.atime_ns, self.mtime_ns, self.ctime_ns = attr.atime_ns, attr.mtime_ns, attr.ctime_ns
        self.fresh = False
        """The attributes came with the lease that is held."""
        self.capabilities: dict[str, tuple[bytes, Capability]] = {}
        """By mode, "r" and "w": the signed record and what it says."""
        self.layout: Layout | None = None
        self.link: bytes | None = None
        self.names: dict[bytes, int] = {}
        """Of a directory: name -> inode number, 0 if there is certainly no such name."""
        self.complete = False
        """All names of the directory are in `names`, but for `doubtful` ones: what is in neither is certainly absent."""
        self.doubtful: set[bytes] = set()
        self.listing: Listed | None = None
        self.changes = 0
        """Counts own changes of its names."""
        self.parent = 0
        self.xattrs: dict[bytes, bytes | None] = {}
        self.xattr_names: tuple[bytes, ...] | None = None
        self.lookups = 0
        self.handles = 0
        self.writers = 0
        """Handles that were opened for writing."""
        self.pages = False
        """Whether the kernel may have pages of it."""
        self.keep_pages = True
        """Whether the kernel need not drop its pages when it is opened again."""
        self.contended_until_s = 0.0
        """Of a directory: until then the kernel keeps no names in it (see `recall`)."""
        self.invalidated = 0
        """When (a count over all inodes) something of it was called back last: answers to older questions are not kept."""
        self.invalidating: list[Span] | None = None
        """Ranges of pages that the kernel is dropping right now."""
        self.held_up: set[int] = set()
        """Lanes in which an earlier dropping of pages still waits in the kernel."""
        self.reading: list[Span] = []
        """Of reads that wait for a lease, or for rights under it. Their pages are locked and not up to date."""
        self.writing: list[Span] = []
        """The same of writes that end within a page. That page is locked and not up to date, or it is up to date and not locked."""
        self.stuck: asyncio.Future[None] | None = None
        """While pages are dropped: is done when one of them became pending."""
        self.passed: list[Span] = []
        """What was served meanwhile although the lease's holder did not say so (see `recall`)."""
        self.served: list[Span] | None = None
        """While it is called back: what was read or written since that began."""
        self.true_until_released = False
        """While it is called back: attributes were true when that began, so they are for operations that the lease still covers."""
        self.backing: Backing | None = None
        """While the kernel reads the OSD's very file."""
        self.dirty_told = False
        """The holder knows that something is unwritten or untold."""
        self.data: FileData | None = None
        self.used = 0

    def take_attr(self, attr: Attr) -> None:
        """Take attributes from the MRC, unless ours are newer; own changes stay on top."""
        if attr.version < self.attr.version:
            return
        self.attr = attr
        changed = self.changed
        if not changed:
            self.mode, self.size, self.blocks = attr.mode, attr.size, attr.blocks
            self.atime_ns, self.mtime_ns, self.ctime_ns = attr.atime_ns, attr.mtime_ns, attr.ctime_ns
            return
        self.mode = self.mode if changed & Changed.MODE else attr.mode
        self.size = self.size if changed & Changed.SIZE else attr.size
        self.blocks = self.blocks if changed & Changed.BLOCKS else attr.blocks
        self.atime_ns = self.atime_ns if changed & Changed.ATIME else attr.atime_ns
        self.mtime_ns = self.mtime_ns if changed & Changed.MTIME else attr.mtime_ns
        self.ctime_ns = max(self.ctime_ns, attr.ctime_ns) if changed & Changed.CTIME else attr.ctime_ns

    def may_reach(self, end: int) -> bool:
        """Whether the file may be as long as `end` bytes without asking the MRC again: it is already, or the capability's quota says so."""
        held = self.capabilities.get("w")
        return held is None or end <= max(self.size, held[1].quota_bytes)

    def reach(self, end: int) -> None:
        """The file is to be `end` bytes long. NeedsRoom: not without asking the MRC again."""
        if not self.may_reach(end):
            raise NeedsRoom(end)

    def give_back_room(self) -> None:
        """Nobody writes the file: what it may grow by without asking is not needed any more, and not used from now on."""
        held = self.capabilities.get("w")
        if held is not None and not self.writers and self.size < held[1].quota_bytes < FILE_BYTES_MAX:
            self.capabilities["w"] = (held[0], msgspec.structs.replace(held[1], quota_bytes=self.size))

    def as_sent(self, update: Update) -> Update:
        """Return an update as it is sent, or sent again: the file may have been opened meanwhile, so that its room is needed."""
        held = self.capabilities.get("w")
        done = held is not None and not self.writers and held[1].quota_bytes <= self.size and update.size in {-1, self.size}
        return msgspec.structs.replace(update, done=True) if done else update

    def update(self, epoch: int) -> Update | None:
        """Return what the MRC has to be told, None if nothing."""
        c = self.changed
        if not c:
            return None
        return Update(
            self.ino, epoch,
            size=self.size if c & Changed.SIZE else -1, blocks=self.blocks if c & Changed.BLOCKS else -1,
            mtime_ns=self.mtime_ns if c & Changed.MTIME else -1, ctime_ns=self.ctime_ns if c & Changed.CTIME else -1,
            atime_ns=self.atime_ns if c & Changed.ATIME else -1, mode=self.mode & 0o7777 if c & Changed.MODE else -1,
        )  # fmt: skip

    def told(self, update: Update) -> None:
        """The MRC has this update; what was changed since stays to be told."""
        same = (
            (Changed.SIZE, update.size == self.size), (Changed.BLOCKS, update.blocks == self.blocks),
            (Changed.MTIME, update.mtime_ns == self.mtime_ns), (Changed.CTIME, update.ctime_ns == self.ctime_ns),
            (Changed.ATIME, update.atime_ns == self.atime_ns), (Changed.MODE, update.mode == self.mode & 0o7777),
        )  # fmt: skip
        for flag, is_same in same:
            if is_same:
                self.changed &= ~flag
        self.attr = msgspec.structs.replace(
            self.attr,
            mode=self.mode, size=self.size, blocks=self.blocks, atime_ns=self.atime_ns, mtime_ns=self.mtime_ns, ctime_ns=self.ctime_ns,
        )  # fmt: skip

    def forget_changes(self) -> None:
        """What was changed here is void."""
        self.changed = 0
        self.take_attr(self.attr)

    def keep_name(self, name: bytes, ino: int) -> None:
        """Remember a name (or with 0 its absence)."""
        if len(self.names) >= NAMES_MAX:
            self.names.clear()
            self.complete = False
        self.names[name] = ino
        self.doubtful.discard(name)

    def find_name(self, name: bytes) -> int | None:
        """Return the inode of a name, 0 if there is certainly none, None if that is not known."""
        found = self.names.get(name)
        if found is None and self.complete and name not in self.doubtful:
            return 0
        return found

    def doubt_name(self, name: bytes) -> None:
        """What this name stands for is not known any more."""
        self.names.pop(name, None)
        if self.complete:
            self.doubtful.add(name)

    def know_all(self, rows: Iterable[ListedEntry]) -> None:
        """These are all names of the directory."""
        self.names = {row.name: row.ino for row in rows}
        self.doubtful.clear()
        self.complete = True

    def drop_names(self, names: Iterable[bytes] = ()) -> None:
        """Forget these names of a directory, all if none are given; and its listing."""
        given = tuple(names)
        for name in given:
            self.doubt_name(name)
        if not given:
            self.names.clear()
            self.complete = False
            self.doubtful.clear()
        self.listing = None

    def drop(self, level: Level, names: tuple[bytes, ...]) -> None:
        """The lease goes down to `level`, and these names change: forget what that covered. Own changes stay until they were told."""
        if names or level < Level.READ:
            self.fresh = False
            self.drop_names(names if level >= Level.READ else ())
        if level < Level.READ:
            self.xattrs.clear()
            self.xattr_names = None
            if self.data is not None:
                self.data.forget_blocks(0, 1 << 62)

    @property
    def is_idle(self) -> bool:
        """Whether nobody would notice if it were forgotten."""
        return not (self.lookups or self.handles or self.changed & ~Changed.ATIME or (self.data is not None and self.data.busy))


class Listed:
    """A directory's names as a whole, in the order of their cookies."""

    __slots__ = ("cookies", "entries", "parent")

    def __init__(self, entries: tuple[ListedEntry, ...], parent: int) -> None:
        self.entries = entries
        self.cookies = [entry.cookie for entry in entries]
        self.parent = parent

    def after(self, cookie: int) -> Iterator[ListedEntry]:
        """The entries behind a cookie."""
        for index in range(bisect_right(self.cookies, cookie), len(self.entries)):
            yield self.entries[index]


class Inodes:
    """All of them, by number."""

    def __init__(self) -> None:
        self._all: dict[int, Inode] = {}
        self.adopted: set[int] = set()
        """Those that the kernel has looked up before our time: how often is not known, but it forgets them all at once."""
        self._tick = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._all.values()))

    def get(self, ino: int) -> Inode | None:
        """Return one that is known, and note that it is in use."""
        found = self._all.get(ino)
        if found is not None:
            self._tick += 1
            found.used = self._tick
        return found

    def take(self, attr: Attr) -> Inode:
        """Return the inode of these attributes, which are taken over if they are newer."""
        found = self.get(attr.ino)
        if found is None:
            found = self._all[attr.ino] = Inode(attr.ino, attr)
            found.lookups = int(attr.ino in self.adopted)
            found.used = self._tick
        else:
            found.take_attr(attr)
        return found

    def remove(self, inode: Inode) -> None:
        """Forget one."""
        if self._all.get(inode.ino) is inode:
            del self._all[inode.ino]

    def of_volume(self, volume: int) -> Iterator[Inode]:
        """Those of one volume."""
        return (inode for inode in self if volume_of(inode.ino) == volume)

    def idle(self, count_max: int = INODES_MAX) -> list[Inode]:
        """Return the idle ones that were not used for longest, if there are more than `count_max`; about a tenth at once."""
        if len(self._all) <= count_max:
            return []
        idle = sorted((inode for inode in self._all.values() if inode.is_idle), key=lambda inode: inode.used)
        return idle[: max(1, len(self._all) - count_max + count_max // 10)]


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Tell whether a range touches one of others."""
    return any(span[0] < end and begin < span[1] for begin, end in others)


def without(whole: Iterable[Span], holes: Iterable[Span], unit: int) -> list[Span]:
    """Return ranges less other ranges, which are widened to whole units (pages) first."""
    cuts = sorted((begin // unit * unit, -(-end // unit) * unit) for begin, end in holes)
    left = []
    for begin, end in whole:
        at = begin
        for hole_begin, hole_end in cuts:
            if hole_end <= at or hole_begin >= end:
                continue
            if hole_begin > at:
                left.append((at, hole_begin))
            at = max(at, hole_end)
        if at < end:
            left.append((at, end))
    return left
