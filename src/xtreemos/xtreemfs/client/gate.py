"""Who may use this mount at all: a local user whose last ticket was withdrawn or has ended is shut out, whatever is cached here.

The MRC ends such users' actors by itself; but under leases this mount and the kernel answer without asking it. So requests of these users are
refused at the door, and the kernel forgets what it would answer by itself. Files that the kernel reads and writes at the OSD itself
(passthrough) stay open to programs that have them open. Users who never had a ticket are strangers, not shut out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.fuse.constants import Op
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.replies import ROUTES
from xtreemos.xtreemfs.model import NOBODY
from xtreemos.xtreemfs.nodeidentities import NodeIdentities

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.client.inodes import Inode
    from xtreemos.xtreemfs.client.operations import Operations

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0  # between looks for tickets that have ended by themselves
OPEN_OPS: Final = {Op.RELEASE, Op.RELEASEDIR, Op.FLUSH, Op.FSYNC}  # ends of what was begun: not for the user but for the data


class Gate:
    """Stands before the operations of one mount. `run` looks for tickets that end."""

    def __init__(self, client: Client, people: NodeIdentities, operations: Operations) -> None:
        self._client = client
        self._people = people
        self._revoked = RevocationSet()
        self._shut: set[int] = set()
        for name in {name for op, (name, _encode) in ROUTES.items() if op not in OPEN_OPS}:
            setattr(operations, name, self._guarded(getattr(operations, name)))
        client.directory.on_change(self._on_change)
        self._on_change(client.directory.state)

    def _guarded(self, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
        shut = self._shut

        def guarded(request: Any) -> Any:
            if request.uid in shut:
                raise FuseError(errno.EACCES)
            return handler(request)

        return guarded

    def _on_change(self, state: State) -> None:
        news = False
        for key, value in state.revoked.items():
            try:
                news |= self._revoked.apply(key, Revocation.from_bytes(value))
            except msgspec.MsgspecError:
                log.warning("the directory's record %s cannot be read", key)
        if news:
            self.look()

    def look(self) -> None:
        """Shut out who has no ticket any more; let in who has one again."""
        shut = {self._people.local_id("u", user) for user in self._people.withdraw(self._revoked)} - {NOBODY}
        fresh = shut - self._shut
        for uid in self._shut ^ shut:
            for session in self._client.sessions.values():
                session.actors.forget(uid)
        self._shut.intersection_update(shut)
        self._shut |= fresh
        if fresh:
            log.info("local users %s have no ticket any more and are shut out", sorted(fresh))
            self._client.start(self._client.coherence.empty_kernel(lambda inode: self._is_of(inode, fresh)))

    def _is_of(self, inode: Inode, uids: set[int]) -> bool:
        return any(session.principals.local("u", inode.attr.uid) in uids for session in self._client.sessions.values())

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
