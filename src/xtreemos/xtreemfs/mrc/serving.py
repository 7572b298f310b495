"""What all methods of the MRC share: state, leases, actors, and the making of grants. The methods themselves are in `files`, `opening`, `admin`."""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from xtreemos.fabric.rpc import ServerCall
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.lease.model import Given
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Capability, Layout, Level, VolumeRecord, volume_of
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import quota, replies, schema
from xtreemos.xtreemfs.mrc.actors import Actors
from xtreemos.xtreemfs.mrc.journal import Journal
from xtreemos.xtreemfs.mrc.leasing import Leasing
from xtreemos.xtreemfs.mrc.machine import Outcome
from xtreemos.xtreemfs.mrc.model import READ, WRITE, Cred, Inode, Reply, Volume
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.protocol import Grant, Once, Who

M = TypeVar("M")
CAPABILITY_S: Final = 12 * 3600
"""Life of a capability; the session token is what ends soon."""
CLOCK_SKEW_NS: Final = 60 * 10**9
"""Times that a client tells as "now" are taken if they are this close to ours, else ours is: make and rsync compare them across nodes."""
WITHDRAW_FILES: Final = 256
"""Files that are called back at a time when a quota is short; a lease of a closed file is given back within milliseconds."""
WITHDRAW_S: Final = 12.0
"""How long a writer waits for room that others were promised: until a dead one's session is over and its file fenced."""

FREED_S: Final = 0.75
"""How long it waits for files that were removed just now: their clients give them back after a moment, then they are freed."""
EVERY_EPOCH: Final = 1 << 63


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
        self._freed: asyncio.Future[None] | None = None
        self.rights: dict[str, dict[int, int]] = {}
        """client -> inode -> rights (READ, WRITE) that were checked when it was opened there."""

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

    def execute(self, command: do.Command, volume: int = 0) -> Any:
        """Execute a command; return its result. What changed goes to those who follow the volume."""
        outcome = self.journal.execute(command)
        if outcome.changes:
            self._note(volume, self.journal.store.seq, outcome)
        return outcome.result

    def change(self, client: str, once: Once | None, command: do.Changing, volume: int) -> Any:
        """Execute a change of a client; with `once` what it answers is kept. Raises as `answered` and `execute`."""
        if once is None:
            return self.execute(command, volume)
        return self.execute(do.Once(client, once.life, once.number, once.below, command), volume)

    def answered(self, client: str, once: Once | None) -> Reply | None:
        """Return what a change has answered before, None if it was not done. ChangeUnknown: it cannot be known."""
        return replies.find(self.state, client, once.life, once.number) if once is not None else None

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
                    quota_bytes=self._reach(inode) if mode == "w" else 0,
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

    # -- quotas ----------------------------------------------------------------------------------------------------------

    def _reach(self, inode: Inode) -> int:
        """Return how long its writers may let a file become: as promised before (`promise`), or without bound."""
        if self.state.room(inode.volume, inode.uid) is None:
            return FILE_BYTES_MAX
        held = self.state.find_promise(inode.ino)
        return held.reach if held is not None else inode.size

    def promise(self, inode: Inode, end: int) -> None:
        """Promise a file's writers room where that is limited: up to `end` bytes, if that can be had."""
        if self.state.room(inode.volume, inode.uid) is not None:
            self.execute(do.Promise(inode.ino, end))

    async def make_room(self, ino: int, end: int) -> None:
        """Call back what others were promised and have not used, if a file cannot become `end` bytes long without; as far as that goes."""
        started_s = self.leasing.now_s()
        while (left_s := started_s + WITHDRAW_S - self.leasing.now_s()) > 0:
            inode = self.state.find_inode(ino)
            short = quota.shortage(self.state, inode, end) if inode is not None else None
            if inode is None or short is None:
                return
            if short.bytes > short.promised:
                if await self._wait_freed(inode.volume, started_s + FREED_S):
                    continue
                return
            rows = self.state.promises(inode.volume)
            holders = (other for other, row in rows if other != ino and short.owner in (None, row.owner))
            inos = tuple(itertools.islice(holders, WITHDRAW_FILES))
            if not inos:
                return
            await self.withdraw(inos, left_s)

    async def _wait_freed(self, volume: int, until_s: float) -> bool:
        """Wait for removed files of a volume to be freed, where there are such; tell whether some were."""
        left_s = until_s - self.leasing.now_s()
        if left_s <= 0 or not self.state.kv.scan(*schema.volume_range(schema.ORPHAN, volume), 1):
            return False
        if self._freed is None or self._freed.done():
            self._freed = asyncio.get_running_loop().create_future()
        done, _waiting = await asyncio.wait({self._freed}, timeout=left_s)
        return bool(done)

    def free(self, inos: tuple[int, ...]) -> None:
        """Delete those of these inodes that have no name, and that nobody has open (by an answer that was asked for again)."""
        used = [ino for ino in inos if self.leasing.table.in_use(ino)]
        self.execute(do.Free(tuple(ino for ino in inos if ino not in used)))
        for ino in used:
            self.leasing.feed(table.Orphan(ino))
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)

    async def withdraw(self, inos: Sequence[int], within_s: float = WITHDRAW_S) -> None:
        """Call the right to write these files back from all who have it, and with that what they were promised."""
        await self.leasing.withdraw(inos, within_s)
        for ino in inos:  # a grant whose answer was lost has a writer on record that knows nothing of it
            if self.state.find_promise(ino) is not None and not self.leasing.table.is_written(ino, EVERY_EPOCH):
                self.execute(do.WritersDone(tuple((ino, client) for client in self.state.writers_of(ino))))
                if self.state.find_promise(ino) is not None:
                    self.execute(do.Update(ino, done=True))

    async def withdraw_all(self, volume: int) -> None:
        """Call the right to write back for all files of a volume: what it says of a limit is not true any more."""
        until_s = self.leasing.now_s() + WITHDRAW_S
        inos = list(dict.fromkeys(self.state.writing(volume)))
        for start in range(0, len(inos), WITHDRAW_FILES):
            await self.withdraw(inos[start : start + WITHDRAW_FILES], max(0.0, until_s - self.leasing.now_s()))

    # -- rights ----------------------------------------------------------------------------------------------------------

    def allow(self, client: str, ino: int, rights: int) -> None:
        """Remember rights that were checked at an open."""
        held = self.rights.setdefault(client, {})
        held[ino] = held.get(ino, 0) | rights

    def disallow(self, client: str, ino: int) -> None:
        """A client has nothing open of an inode any more."""
        self.rights.get(client, {}).pop(ino, None)

    def gone(self, client: str) -> None:
        """A session is over."""
        self.rights.pop(client, None)


__all__ = ["READ", "WRITE", "Core"]
