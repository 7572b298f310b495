"""Which inodes the kernel knows, and how often it looked them up: it may use a nodeid until it has given back every count."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Generic, TypeVar

from xtreemos.xtreemfs.fuse.constants import ROOT_ID
from xtreemos.xtreemfs.fuse.errors import FuseError

T = TypeVar("T")


class NodeTable(Generic[T]):
    """Objects by nodeid with lookup counts. The root is always known. Whoever makes nodeids never uses one again for another object."""

    def __init__(self, root: T) -> None:
        self._root = root
        self._known: dict[int, T] = {ROOT_ID: root}
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def get(self, nodeid: int) -> T:
        """Return the object. Raises FuseError(ESTALE) if the kernel should not know it: an NFS client may."""
        node = self._known.get(nodeid)
        if node is None:
            raise FuseError(errno.ESTALE)
        return node

    def looked_up(self, nodeid: int, node: T) -> None:
        """Count one: call it for every Entry that is answered with this nodeid."""
        self._known.setdefault(nodeid, node)
        self._counts[nodeid] = self._counts.get(nodeid, 0) + 1

    def count(self, nodeid: int) -> int:
        """Return how many counts the kernel holds."""
        return self._counts.get(nodeid, 0)

    def forget(self, nodeid: int, nlookup: int) -> T | None:
        """Take counts back; return the object if these were the last ones and it is therefore no longer in the table."""
        left = self._counts.get(nodeid, 0) - nlookup
        if left > 0:
            self._counts[nodeid] = left
            return None
        self._counts.pop(nodeid, None)
        return None if nodeid == ROOT_ID else self._known.pop(nodeid, None)
