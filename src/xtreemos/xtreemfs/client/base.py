"""What all groups of operations share: the client, handles, and asking for an inode's attributes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client.client import Client
from xtreemos.xtreemfs.client.inodes import Inode
from xtreemos.xtreemfs.client.links import NONE
from xtreemos.xtreemfs.client.lockbook import Kind
from xtreemos.xtreemfs.client.readahead import Planner
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.model import Attr, Level


@dataclass(eq=False, slots=True)
class FileHandle:
    """An open file. How many failed write-backs its owners know of: those who sync, and those who close (a forked child closes, too)."""

    inode: Inode
    flags: int
    writes: bool
    append: bool
    planner: Planner | None
    errors_synced: int = 0
    errors_closed: int = 0
    lock_owners: set[tuple[Kind, int]] = field(default_factory=set)
    """(kind, owner) of locks taken through it."""


@dataclass(eq=False, slots=True)
class DirHandle:
    """An open directory and the page of its names that was fetched last; `gathered` are its names from the first on, while nothing came in between."""

    rows: list[p.ListedEntry] = field(default_factory=list)
    rows_after: int = 0
    """The page holds the names behind this cookie."""
    end: bool = False
    parent: int = 0
    gathered: list[p.ListedEntry] | None = None
    gathered_at: int = 0
    gathered_changes: int = 0


class Base(Handlers):
    """The state of all operations."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.files: dict[int, FileHandle] = {}
        self.dirs: dict[int, DirHandle] = {}
        self._last_handle = client.ledger.generation << 32  # handles given before our time are still in use

    def next_handle(self) -> int:
        """Return a number for a new handle."""
        self._last_handle += 1
        return self._last_handle

    def file(self, fh: int) -> FileHandle:
        """Return an open file. FuseError(EBADF)."""
        handle = self.files.get(fh)
        if handle is None:
            raise FuseError(errno.EBADF)
        if handle.lock_owners and self.client.locks.is_lost(handle.inode.ino, handle.lock_owners):
            raise FuseError(errno.EIO)  # it lost a lock while the MRC was away: it must not go on as if it had it
        return handle

    async def unlock_all(self, session: Session, inode: Inode, owners: Iterable[tuple[Kind, int]]) -> None:
        """Give back every lock that these owners have in a file."""
        book = self.client.locks
        gone = set(owners)
        book.forgive(inode.ino, gone)
        for kind, owner in gone:
            if book.has(session.mrc, inode.ino, kind, owner):
                book.remove(session.mrc, inode.ino, kind, owner)
                await session.call(None, inode.ino, "mrc.unlock", partial(_unlock, inode.ino, kind, owner), NONE, again=True)

    async def fresh_inode(self, session: Session, ino: int, request: m.Request | None) -> Inode:
        """Return an inode whose attributes are true now."""
        client = self.client
        inode = client.inodes.get(ino)
        if inode is not None and inode.fresh and session.can(ino, Level.READ) and client.is_known(session, inode.attr):
            return inode
        asked_at = client.coherence.count
        grant = await session.call(request, ino, "mrc.getattr", lambda who: p.GetAttr(who, ino), p.Grant, again=True)
        inode = client.take(session, grant, asked_at)
        await client.learn(session, [inode.attr])
        return inode

    def take_folder(self, session: Session, attr: Attr, asked_at: int, *, cache: bool) -> Inode:
        """Take over a directory's attributes that came with an answer; they are good if it is held."""
        client = self.client
        inode = client.inodes.take(attr)
        inode.fresh = cache and inode.invalidated <= asked_at and session.can(attr.ino, Level.READ)
        return inode


def _unlock(ino: int, kind: Kind, owner: int, who: p.Who) -> p.Unlock:
    return p.Unlock(who, ino, kind, owner, all_of_owner=True)
