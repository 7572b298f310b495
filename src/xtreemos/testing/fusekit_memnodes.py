"""Inodes and handles of the file system in memory, and what all its operations share."""

from __future__ import annotations

import asyncio
import errno
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from xtreemos.testing.fusekit_locks import LockTable
from xtreemos.testing.fusekit_sparse import Sparse
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import ROOT_ID
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.nodes import NodeTable

CACHE_NS = 1_000_000_000


@dataclass(slots=True, eq=False)
class Node:
    """An inode. Directories have `entries` (name -> node) and `cookies` (name -> its place in listings, growing for ever)."""

    ino: int
    mode: int
    uid: int
    gid: int
    now: int
    nlink: int = 1
    rdev: int = 0
    target: bytes = b""
    content: Sparse = field(default_factory=Sparse)
    entries: dict[bytes, Node] = field(default_factory=dict)
    cookies: dict[bytes, int] = field(default_factory=dict)
    parent: Node | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    access: acl.Acl | None = None
    default: acl.Acl | None = None
    posix: LockTable = field(default_factory=LockTable)
    bsd: LockTable = field(default_factory=LockTable)
    unlocked: list[asyncio.Future[None]] = field(default_factory=list)
    pollers: set[int] = field(default_factory=set)
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0

    def __post_init__(self) -> None:
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = self.now

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def attr(self) -> m.Attr:
        size = len(self.target) if stat.S_ISLNK(self.mode) else self.content.size
        blocks = self.content.allocated_bytes // 512
        return m.Attr(
            self.ino, self.mode, size, self.nlink, self.uid, self.gid, self.atime_ns, self.mtime_ns, self.ctime_ns, blocks, self.rdev
        )  # fmt: skip


@dataclass(slots=True)
class Handle:
    """An open file; of a directory, `names` is what it held at the last rewind, as rows of (cookie, name)."""

    node: Node
    flags: int
    names: list[tuple[int, bytes]] = field(default_factory=list)


class MemStore(Handlers):
    """The state: nodes the kernel knows, open handles, a clock in nanoseconds. `cache_ns` is how long the kernel may trust answers,
    `owner` (uid, gid) has the root folder.
    """

    def __init__(
        self, *, cache_ns: int = CACHE_NS, clock: Callable[[], int] = time.time_ns, owner: tuple[int, int] = (0, 0)
    ) -> None:
        self.cache_ns = cache_ns
        self.now = clock
        self.root = Node(ROOT_ID, stat.S_IFDIR | 0o755, *owner, clock(), nlink=2)
        self.root.parent = self.root
        self.nodes: NodeTable[Node] = NodeTable(self.root)
        self.handles: dict[int, Handle] = {}
        self.session: Session | None = None
        self._inos = count(ROOT_ID + 1)
        self._handle_numbers = count(1)

    def init(self, session: Session) -> None:
        self.session = session

    def forget(self, request: m.Forget) -> None:
        for nodeid, counts in request.nodes:
            self.nodes.forget(nodeid, counts)

    def directory(self, nodeid: int) -> Node:
        """Return a directory that is still in the tree."""
        node = self.nodes.get(nodeid)
        if not node.is_dir:
            raise FuseError(errno.ENOTDIR)
        return node

    def entry(self, node: Node) -> m.Entry:
        """Answer with a node: counts as one lookup."""
        self.nodes.looked_up(node.ino, node)
        return m.Entry(node.ino, node.attr(), 0, self.cache_ns, self.cache_ns)

    def touch(self, node: Node, *, data: bool = False) -> None:
        """The node changed: its ctime is now, with `data` its mtime, too."""
        node.ctime_ns = self.now()
        if data:
            node.mtime_ns = node.ctime_ns

    def new_node(self, parent: Node, request: m.Request, mode: int, umask: int) -> Node:
        """Make a node as open(2), mkdir(2), mknod(2) and acl(5) have it inherit from its directory."""
        inherited = None if stat.S_ISLNK(mode) else parent.default
        mode, access = acl.inherit(inherited, mode, 0 if stat.S_ISLNK(mode) else umask)
        gid = parent.gid if parent.mode & stat.S_ISGID else request.gid
        if stat.S_ISDIR(mode) and parent.mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        node = Node(next(self._inos), mode, request.uid, gid, self.now(), access=access)
        if node.is_dir:
            node.nlink, node.default = 2, inherited
        return node

    def open_handle(self, node: Node, flags: int) -> m.Opened:
        number = next(self._handle_numbers)
        self.handles[number] = Handle(node, flags)
        return m.Opened(number)
