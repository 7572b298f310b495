"""What all methods of the MRC share: state, leases, actors, and the making of grants. The methods themselves are in `files`, `opening`, `admin`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from xtreemos.fabric.rpc import ServerCall
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease.model import Given
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Capability, Layout, Level, VolumeRecord, volume_of
from xtreemos.xtreemfs.mrc.actors import Actors
from xtreemos.xtreemfs.mrc.commands import Command
from xtreemos.xtreemfs.mrc.journal import Journal
from xtreemos.xtreemfs.mrc.leasing import Leasing
from xtreemos.xtreemfs.mrc.machine import Outcome
from xtreemos.xtreemfs.mrc.model import READ, WRITE, Cred, Inode, Volume
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.protocol import Grant, Who

M = TypeVar("M")
CAPABILITY_S: Final = 12 * 3600
"""Life of a capability; the session token is what ends soon."""
CLOCK_SKEW_NS: Final = 60 * 10**9
"""Times that a client tells as "now" are taken if they are this close to ours, else ours is: make and rsync compare them across nodes."""
QUOTA_STEP_BYTES: Final = 1 << 30
"""How far a writer may grow one file before it asks again, where there is a quota: what one may use up unseen by others."""


class Core:
    """The parts of a running MRC that its methods use. One per process; everything runs in one event loop."""

    def __init__(
        self,
        *,
        journal: Journal,
        leasing: Leasing,
        actors: Actors,
        signer: Signer,
        directory: Directory,
        note: Callable[[int, int, Outcome], None],
    ) -> None:
        self.journal = journal
        self.leasing = leasing
        self.actors = actors
        self.signer = signer
        self.directory = directory
        self.vo = directory.vo
        self.node = directory.node
        self._note = note
        self.volumes: dict[int, VolumeRecord] = {}
        """Volumes that are served, by id."""
        self._gone: dict[int, Volume] = {}
        self.rights: dict[str, dict[int, int]] = {}
        """client -> inode -> rights (READ, WRITE) that were checked when it was opened there."""
        self.reserved: dict[str, dict[int, int]] = {}
        """client -> inode -> bytes of growth that its capability allows beyond what is charged."""

    # -- reading a call --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state as it is now, for reading."""
        return State(self.journal.store.kv, self.journal.store.seq)

    def node_of(self, call: ServerCall) -> str:
        """Return the node that a call comes from: as TLS proved, or our own for local callers."""
        return call.caller.name if call.caller.kind == "node" else self.node

    def opened(self, call: ServerCall, kind: type[M]) -> tuple[M, str]:
        """Return (message, session) of a call; FsError(EINVAL), SessionOver."""
        return calls.message_of(call.params, kind), self.leasing.client_of(call.peer)

    def cred(self, call: ServerCall, who: Who, ino: int) -> Cred:
        """Return on whose behalf; also checks that the volume is served."""
        cred = self.actors.cred(call.peer, who, ino)
        self.live(volume_of(ino))
        return cred

    def live(self, volume: int) -> None:
        """FsError(ESTALE) unless the volume is here and not withdrawn."""
        if volume not in self.volumes:
            raise FsError(errno.ESTALE, "that volume is not served here (any more)")

    def note_volume(self, row: Volume) -> None:
        """A volume was made, changed or withdrawn."""
        if row.state == "gone":
            self.volumes.pop(row.record.id, None)
            self._gone[row.record.id] = row
        else:
            self.volumes[row.record.id] = row.record

    def gone_volumes(self) -> list[Volume]:
        """Return withdrawn volumes that are not deleted yet."""
        return list(self._gone.values())

    def forget_volume(self, volume: int) -> None:
        """Nothing is left of a withdrawn volume."""
        self._gone.pop(volume, None)

    # -- changing --------------------------------------------------------------------------------------------------------

    def execute(self, command: Command, volume: int = 0) -> Any:
        """Execute a command; return its result. What changed goes to those who follow the volume."""
        outcome = self.journal.execute(command)
        if outcome.changes:
            self._note(volume, self.journal.store.seq, outcome)
        return outcome.result

    @staticmethod
    def now_ns(told: int) -> int:
        """Return the time to use for what a client says is now."""
        ours = time.time_ns()
        return told if abs(told - ours) <= CLOCK_SKEW_NS else ours

    # -- grants ----------------------------------------------------------------------------------------------------------

    def grant(self, inode: Inode, given: Given, *, named: bool = False, link: bytes = b"") -> Grant:
        """Return what a client is told of an inode, without a capability."""
        return Grant(
            inode.attr(), int(given.level), given.epoch, b"", None, link, named, given.cache, int(given.shared), given.watched
        )

    def open_grant(self, client: str, node: str, inode: Inode, given: Given, layout: Layout | None) -> Grant:
        """Return a grant with capability and layout, as far as the rights that were checked go."""
        rights = self.rights.get(client, {}).get(inode.ino, 0)
        level = max(given.level, given.shared)
        capability = b""
        if layout is not None and inode.is_file and rights and level:
            mode = "w" if rights & WRITE and level == Level.WRITE else "r"
            capability = self.signer.capability(
                Capability(
                    vo=self.vo,
                    mrc=self.node,
                    client=client,
                    node=node,
                    ino=inode.ino,
                    mode="w" if mode == "w" else "r",
                    epoch=given.epoch,
                    layout_version=layout.version,
                    quota_bytes=self._reserve(client, inode) if mode == "w" else 0,
                    expires_at=int(time.time()) + CAPABILITY_S,
                )
            )
        return Grant(
            inode.attr(),
            int(given.level),
            given.epoch,
            capability,
            layout,
            b"",
            False,
            given.cache,
            int(given.shared),
            given.watched,
        )

    def _reserve(self, client: str, inode: Inode) -> int:
        """Return how large a writer may let its file grow, and remember it as taken until it gives the lease back."""
        mine = self.reserved.setdefault(client, {})
        mine.pop(inode.ino, None)
        room = self.state.room(inode.volume, inode.uid)
        if room is None:
            return FILE_BYTES_MAX
        taken = sum(size for held in self.reserved.values() for ino, size in held.items() if volume_of(ino) == inode.volume)
        step = max(0, min(QUOTA_STEP_BYTES, room.bytes - taken))
        mine[inode.ino] = step
        return inode.size + step

    def allow(self, client: str, ino: int, rights: int) -> None:
        """Remember rights that were checked at an open."""
        held = self.rights.setdefault(client, {})
        held[ino] = held.get(ino, 0) | rights

    def disallow(self, client: str, ino: int) -> None:
        """A client has nothing open of an inode any more."""
        self.rights.get(client, {}).pop(ino, None)
        self.unreserve(client, ino)

    def unreserve(self, client: str, ino: int) -> None:
        """A client writes an inode no more."""
        self.reserved.get(client, {}).pop(ino, None)

    def gone(self, client: str) -> None:
        """A session is over."""
        self.rights.pop(client, None)
        self.reserved.pop(client, None)


__all__ = ["READ", "WRITE", "Core"]
