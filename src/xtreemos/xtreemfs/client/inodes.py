"""What the client knows of inodes: attributes, names, listings, extended attributes; each valid only as long as its lease is.

No I/O here. An `Inode` lives as long as the kernel has looked it up, somebody has it open, or it holds something of a lease; `Inodes.idle`
picks those to give up when there are too many. Own changes that the MRC was not told yet lie on top of its attributes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import TYPE_CHECKING

import msgspec

from xtreemos.xtreemfs.model import Attr, Layout, Level, volume_of
from xtreemos.xtreemfs.protocol import ListedEntry, Update

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.data import FileData

INODES_MAX = 100_000  # about 2 KiB each; more only while the kernel or open files hold them
NAMES_MAX = 200_000  # of one directory, kept from lookups
LISTING_MAX = 100_000  # names of one directory kept as a whole, so that it is listed again without asking


class Changed(IntFlag):
    """What the holder of a WRITE lease has changed and not told."""

    SIZE = 1
    BLOCKS = 2
    MTIME = 4
    CTIME = 8
    ATIME = 16
    MODE = 32


class Inode:
    """One inode. Attributes are those to show: the MRC's with our own changes on top."""

    __slots__ = (
        "atime_ns", "attr", "blocks", "capabilities", "changed", "ctime_ns", "data", "epoch", "handles", "ino", "layout",
        "level", "link", "listing", "lookups", "mode", "mtime_ns", "names", "pages", "parent", "pinned", "recalled", "size", "used",
        "writers", "xattr_names", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, attr: Attr) -> None:
        self.ino = ino
        self.attr = attr
        self.level = Level.NONE
        self.epoch = 0
        self.changed = Changed(0)
        self.mode, self.size, self.blocks = attr.mode, attr.size, attr.blocks
        self.atime_ns, self.mtime_ns, self.ctime_ns = attr.atime_ns, attr.mtime_ns, attr.ctime_ns
        self.capabilities: dict[str, bytes] = {}
        """By mode, "r" and "w"."""
        self.layout: Layout | None = None
        self.link: bytes | None = None
        self.names: dict[bytes, int] = {}
        """Of a directory: name -> inode number, 0 if there is certainly no such name. Empty unless it is held."""
        self.listing: Listed | None = None
        self.parent = 0
        self.xattrs: dict[bytes, bytes | None] = {}
        self.xattr_names: tuple[bytes, ...] | None = None
        self.lookups = 0
        self.handles = 0
        self.writers = 0
        self.pages = False
        """Whether the kernel may have pages of it."""
        self.pinned = False
        """The MRC keeps it for us although its last name may be gone."""
        self.data: FileData | None = None
        self.used = 0
        self.recalled = False

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
        self.mode = self.mode & 0o170777 & attr.mode | attr.mode & ~0o7777 if changed & Changed.MODE else attr.mode
        self.size = self.size if changed & Changed.SIZE else attr.size
        self.blocks = self.blocks if changed & Changed.BLOCKS else attr.blocks
        self.atime_ns = self.atime_ns if changed & Changed.ATIME else attr.atime_ns
        self.mtime_ns = self.mtime_ns if changed & Changed.MTIME else attr.mtime_ns
        self.ctime_ns = max(self.ctime_ns, attr.ctime_ns) if changed & Changed.CTIME else attr.ctime_ns

    def update(self) -> Update | None:
        """Return what the MRC has to be told, None if nothing."""
        c = self.changed
        if not c:
            return None
        return Update(
            self.ino, self.epoch,
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
            mode=self.mode,
            size=self.size,
            blocks=self.blocks,
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
        )

    def drop_names(self, names: Iterable[bytes] = ()) -> None:
        """Forget these names of a directory; all if none are given, and what else was known of it by its lease."""
        given = tuple(names)
        for name in given:
            self.names.pop(name, None)
        if not given:
            self.names.clear()
        self.listing = None

    def drop(self, level: Level) -> None:
        """The lease is down to `level`: forget what it covered."""
        self.level = level
        if level < Level.WRITE:
            self.epoch = 0
            self.changed = Changed(0)
            self.capabilities.pop("w", None)
        if level < Level.READ:
            self.drop_names()
            self.xattrs.clear()
            self.xattr_names = None

    def is_idle(self) -> bool:
        """Whether nobody would notice if it were forgotten."""
        return not (
            self.lookups
            or self.handles
            or self.pinned
            or self.changed
            or self.recalled
            or (self.data is not None and self.data.busy)
        )


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
        idle = sorted((inode for inode in self._all.values() if inode.is_idle()), key=lambda inode: inode.used)
        return idle[: max(1, len(self._all) - count_max + count_max // 10)]
