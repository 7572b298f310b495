"""What a session needs of the rest of the mount, and an operation that relies on a lease. No transitions, no I/O but the clock."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xtreemos.errors import RemoteError
from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.fuse.model import Request
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.lease.model import Claim
from xtreemos.xtreemfs.model import Level

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.session import Session


def now_s() -> float:
    """Seconds of the clock of leases: it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Coherent(Protocol):
    """Inodes, data and the kernel's caches, as a session needs them."""

    async def ask(self, session: Session, peer: Peer, op: Op, level: Level) -> protocol.Grant:
        """Ask the MRC on this connection for a lease on behalf of `op` and take over what it answers. RemoteError, Unreachable."""

    async def flush(self, ino: int) -> bool:
        """Write what is unwritten; tell whether it could be."""

    def drop(self, ino: int, level: Level, names: tuple[bytes, ...]) -> None:
        """Forget own copies of what `level` does not cover, and of these names."""

    async def invalidate(self, ino: int, level: Level, names: tuple[bytes, ...], *, again: bool) -> None:
        """Have the kernel forget the same."""

    def fail_dirty(self, ino: int) -> None:
        """What is unwritten is void."""

    def last_word(self, ino: int, epoch: int) -> protocol.Update | None:
        """Return what the MRC must hear with the release of a WRITE lease of this epoch."""

    def released(self, ino: int, level: Level, update: protocol.Update | None) -> None:
        """The MRC has heard it."""

    def suspended(self, session: Session, *, early: bool) -> None:
        """Nothing may be answered from caches any more. `early`: the kernel may believe what it was told for some time yet."""

    def locks(self, session: Session) -> tuple[protocol.LockRow, ...]:
        """Return all file locks held through this session."""

    def opened(self, session: Session, welcome: protocol.Welcome) -> None:
        """The session stands (again); inodes and locks that were given to others meanwhile are in `welcome`."""


@dataclass(eq=False, slots=True)
class Op:
    """One request that relies on the lease of one inode, from `Session.begin` to `Session.end`."""

    number: int
    ino: int
    level: Level
    request: Request | None
    span: tuple[int, int] | None = None
    """Pages that the kernel keeps locked until the request is answered: first byte, byte behind."""
    go: h.Go | None = None
    failed: int = 0
    waiter: asyncio.Future[None] | None = field(default=None, repr=False)

    @property
    def is_waiting(self) -> bool:
        """Whether the lease is still to come."""
        return self.go is None and not self.failed


def granted(grant: protocol.Grant, *, asked: bool = False) -> h.Granted:
    """Return the event for what an answer says is held."""
    return h.Granted(grant.attr.ino, Level(grant.level), grant.epoch, Level(grant.shared), asked, grant.watched)


def is_session_over(error: RemoteError) -> bool:
    """Whether the MRC says that it does not know our session any more."""
    return error.code == "fs-session-over"


def held_row(claim: Claim) -> protocol.Held:
    """Return the row of `OpenSession.held` for what the holder claims."""
    return protocol.Held(claim.ino, claim.level, claim.epoch, claim.pin, claim.through, claim.shared)
