"""One mount of one VO: its sessions, inodes, data and the kernel, held together; and what all operations share.

Node ids are inode numbers; 1 is the VO's root, a folder of its volumes, or (`volume`) the root of that one volume.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from xtreemos.errors import XosError
from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.client.actors import Identities
from xtreemos.xtreemfs.client.coherent import granted, now_s
from xtreemos.xtreemfs.client.data import FileData, data_of
from xtreemos.xtreemfs.client.inodes import Inode, Inodes
from xtreemos.xtreemfs.client.kernelnames import KernelNames
from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.client.links import NONE
from xtreemos.xtreemfs.client.lockbook import LockBook
from xtreemos.xtreemfs.client.osds import Dialer, PatientOsds
from xtreemos.xtreemfs.client.passthrough import SMALLEST_BYTES, Passthrough
from xtreemos.xtreemfs.client.recall import Coherence
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.client.store import DataStore
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import ROOT_ID
from xtreemos.xtreemfs.fuse.driver import Session as Kernel
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import VO_ROOT_INO, Attr, Capability, Level, Principal, VolumeRecord, make_ino, volume_of
from xtreemos.xtreemfs.protocol import Grant, Update

log = logging.getLogger(__name__)

TELL_S = 3.0  # sizes and times of closed files are told after so long (or with the next fsync or recall)
TIDY_S = 5.0
GIVE_S = 0.2
CAPABILITY_MARGIN_S = 60
SIGNATURE_BYTES = 64


class Client:
    """The shared state of a mount. `run` keeps it alive; `close` writes everything back first."""

    def __init__(
        self,
        directory: Directory,
        identities: Identities,
        dialer: Dialer,
        *,
        volume: str = "",
        near: str | None = None,
        client_id: str = "",
        former: tuple[str, ...] = (),
        passthrough_bytes: int | None = SMALLEST_BYTES,
        ledger: Ledger | None = None,
    ) -> None:
        """Make it.

        Args:
            directory: of the VO's volumes and servers.
            identities: what this node knows of people.
            dialer: how to reach servers.
            volume: mount this one's root; "" for the folder of all.
            near: node whose OSD is preferred for new files; by default this one.
            client_id: 32 hex digits, made if not given; that of the process whose work is taken over.
            former: ids of processes in our place that have certainly ended.
            passthrough_bytes: how large a file of this node's OSD is that the kernel reads by itself; None: none is.
            ledger: for the next process; if it was taken over, sessions are told so, and none is opened before `admit`.
        """
        self.directory = directory
        self.identities = identities
        self.volume = volume
        self.near = directory.node if near is None else near
        self.ledger = Ledger() if ledger is None else ledger
        self.inodes = Inodes()
        self.sessions: dict[str, Session] = {}
        self.kernel: Kernel | None = None
        self.has_epochs = False
        self.kernel_names = KernelNames()
        self.osds = PatientOsds(directory, dialer)
        self.coherence = Coherence(self)
        self.store = DataStore(self.osds, lambda _ino: self.coherence, self.ledger)
        self.untold: dict[int, Inode] = {}
        """Inodes whose changes wait to be told."""
        self.passthrough = Passthrough(self, passthrough_bytes)
        self.started_ns = time.time_ns()
        self.locks = LockBook(self.ledger)
        self._admitted = asyncio.Event()
        if not self.ledger.generation:
            self._admitted.set()
        self.id = client_id or secrets.token_hex(16)
        self._former = former
        self._dialer = dialer
        self._routed = directory.state
        self._routes: dict[int, Session] = {}
        """By volume, as the directory's state `_routed` says."""
        self._giving: set[int] = set()
        self._giving_handle: asyncio.TimerHandle | None = None
        self._telling_handle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session_tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------------------------------------------------ where

    def volume_record(self) -> VolumeRecord | None:
        """The volume that is mounted as the root, if one is."""
        record = self.directory.state.volumes.get(self.volume)
        return None if record is None or record.removed else record

    def ino_of(self, nodeid: int) -> int:
        """Return the inode number behind the kernel's node id."""
        if nodeid != ROOT_ID or not self.volume:
            return nodeid
        record = self.volume_record()
        if record is None:
            raise FuseError(errno.ENOENT)
        return make_ino(record.id, 1)

    def node_of(self, ino: int) -> int:
        """Return the kernel's node id of an inode."""
        if self.volume and ino & 0xFF_FFFF_FFFF == 1:
            return ROOT_ID
        return ino

    def is_vo_root(self, ino: int) -> bool:
        """Whether this is the folder of volumes."""
        return ino == VO_ROOT_INO

    def session_of(self, ino: int) -> Session:
        """Return the session with the MRC that has an inode. FuseError(ESTALE): its volume is not known (any more)."""
        state = self.directory.state
        if state is not self._routed:
            self._routed, self._routes = state, {}
        volume = volume_of(ino)
        session = self._routes.get(volume)
        if session is None:
            record = state.volume_by_id(volume)
            if record is None:
                raise FuseError(errno.ESTALE)
            session = self._routes[volume] = self.session_at(record.mrc)
        return session

    def session_at(self, mrc: str) -> Session:
        """Return the session with the MRC on a node."""
        session = self.sessions.get(mrc)
        if session is None:
            session = Session(
                mrc, self.id, self._dial(mrc), self.identities, self.coherence, former=self._former,
                anew=bool(self.ledger.generation),
            )  # fmt: skip
            self.sessions[mrc] = session
            self._session_tasks.append(asyncio.ensure_future(session.run()))
        return session

    def admit(self) -> None:
        """The kernel believes nothing any more on the word of a process before us: sessions may be opened, so others may have what that held."""
        self._admitted.set()

    def _dial(self, mrc: str) -> Callable[[], Awaitable[Peer]]:
        async def dial() -> Peer:
            await self._admitted.wait()
            record = self.directory.state.mrcs.get(mrc)
            if record is None:
                raise FuseError(errno.EHOSTUNREACH)
            return await self._dialer(record)

        return dial

    # ----------------------------------------------------------------------------------------------------------- grants

    def take(self, session: Session, grant: Grant, asked_at: int) -> Inode:
        """Take over what an answer says of an inode; `asked_at` is `coherence.count` from before the question."""
        session.feed(granted(grant))
        return self.note(session, grant, asked_at)

    def note(self, session: Session, grant: Grant, asked_at: int) -> Inode:
        """As `take`, without telling the holder."""
        inode = self.inodes.take(grant.attr)
        if grant.layout is not None:
            inode.layout = grant.layout
        if grant.link:
            inode.link = grant.link
        if grant.capability:
            self._keep_capability(inode, grant.capability)
        # Of a file nothing changes before we have answered a recall that is still to come. Of a directory it may have been answered already.
        keep = inode.attr.is_file or (grant.cache and inode.invalidated <= asked_at)
        inode.fresh = keep and session.can(inode.ino, Level.READ)
        return inode

    def _keep_capability(self, inode: Inode, record: bytes) -> None:
        capability = msgspec.msgpack.decode(record[SIGNATURE_BYTES:], type=Capability)
        held = inode.capabilities.get(capability.mode)
        if held is None or held[1].epoch <= capability.epoch:
            inode.capabilities[capability.mode] = (record, capability)

    def take_attr(self, session: Session, attr: Attr, asked_at: int, *, cache: bool) -> Inode:
        """Take over attributes that came along with an answer about something else."""
        inode = self.inodes.take(attr)
        if not (cache and inode.invalidated <= asked_at and session.can(attr.ino, Level.READ)):
            inode.fresh = False
        return inode

    def capability(self, inode: Inode, mode: str, epoch: int = 0) -> bytes | None:
        """Return a capability that is good now: for "w" of this epoch; for "r" one to write serves as well."""
        now = time.time() + CAPABILITY_MARGIN_S
        held = inode.capabilities.get("w")
        if held is not None and held[1].expires_at > now and (mode == "r" or not epoch or held[1].epoch == epoch):
            return held[0]
        if mode == "r":
            held = inode.capabilities.get("r")
            if held is not None and held[1].expires_at > now:
                return held[0]
        return None

    # ------------------------------------------------------------------------------------------------------- attributes

    def data_of(self, inode: Inode) -> FileData:
        """Return the data of a file."""
        return data_of(inode, self.store)

    def fuse_attr(self, session: Session | None, inode: Inode) -> m.Attr:
        """Return attributes as the kernel wants them. Owners that were not `learned` are nobody's."""
        attr = inode.attr
        uid, gid = attr.uid, attr.gid
        if session is not None and not self.identities.plain:
            uid, gid = session.principals.local("u", uid), session.principals.local("g", gid)
        blocks = inode.blocks
        if inode.data is not None and inode.data.dirty:
            blocks = max(blocks, -(-inode.data.dirty.total_bytes // 512))
        return m.Attr(
            inode.ino,
            inode.mode,
            inode.size,
            attr.nlink,
            uid,
            gid,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            blocks,
            attr.rdev,
        )

    def is_known(self, session: Session, attr: Attr) -> bool:
        """Whether owner and group can be shown without asking."""
        return self.identities.plain or not session.principals.missing(attr.uid, attr.gid)

    async def learn(self, session: Session, attrs: Iterable[Attr]) -> None:
        """Ask for the names of owners and groups that are not known yet."""
        if self.identities.plain:
            return
        missing = {number for attr in attrs for number in session.principals.missing(attr.uid, attr.gid)}
        if missing:
            numbers = tuple(sorted(missing))
            found = await session.link.call("mrc.names", protocol.Names(numbers), tuple[Principal, ...])
            session.principals.learn(numbers, found)

    def attr_reply(self, session: Session, inode: Inode) -> m.AttrReply:
        """Return the answer to getattr and setattr."""
        held = inode.fresh and session.can(inode.ino, Level.READ)
        return m.AttrReply(self.fuse_attr(session, inode), session.valid_ns() if held else 0)

    def entry(self, session: Session, inode: Inode, folder: Inode | None = None, name: bytes = b"") -> m.Entry:
        """Return the answer to a lookup, and count it. With `folder` the kernel may keep the name, under that directory's lease."""
        inode.lookups += 1
        self.ledger.know(inode.ino)
        name_valid = self.name_valid_ns(session, folder, name) if folder is not None else 0
        fresh = inode.fresh and session.can(inode.ino, Level.READ)
        return m.Entry(self.node_of(inode.ino), self.fuse_attr(session, inode), 0, name_valid, session.valid_ns() if fresh else 0)

    def name_valid_ns(self, session: Session, folder: Inode, name: bytes) -> int:
        """Return how long the kernel may keep a name of a directory that is held, and note that; 0: it may not."""
        now = now_s()
        if not self.has_epochs or now < folder.contended_until_s or not self.kernel_names.has_room(now):
            return 0
        self.kernel_names.note(folder.ino, name)
        return session.valid_ns()

    # ---------------------------------------------------------------------------------------------- telling and giving

    def tell_later(self, inode: Inode) -> None:
        """Have an inode's changes told to the MRC soon."""
        self.untold[inode.ino] = inode
        if self._telling_handle is None:
            self._telling_handle = asyncio.get_running_loop().call_later(TELL_S, self._tell_all)

    def _tell_all(self) -> None:
        self._telling_handle = None
        untold, self.untold = self.untold, {}
        ready = []
        for inode in untold.values():
            if inode.changed and inode.data is not None and inode.data.dirty:
                self.tell_later(inode)
            elif inode.changed:
                ready.append(inode)
        self.start(self._tell_quietly(ready))

    async def _tell_quietly(self, inodes: Iterable[Inode]) -> None:
        """Tell of many inodes by few messages. What is not heard or refused is said by the release, or the lease is lost."""
        by_session: dict[Session, list[tuple[Inode, Update]]] = {}
        for inode in inodes:
            try:
                session = self.session_of(inode.ino)
            except FuseError as gone:  # the volume
                log.debug("telling of inode %x: %s", inode.ino, gone)
                continue
            update = inode.update(session.holder.epoch(inode.ino))
            if update is not None and update.epoch:
                by_session.setdefault(session, []).append((inode, update))
        await asyncio.gather(
            *(
                self._tell_some(session, rows[at : at + protocol.UPDATES_MAX])
                for session, rows in by_session.items()
                for at in range(0, len(rows), protocol.UPDATES_MAX)
            )
        )

    async def _tell_some(self, session: Session, rows: list[tuple[Inode, Update]]) -> None:
        for inode, _update in rows:
            inode.give_back_room()

        async def message(_peer: Peer) -> protocol.Updates:
            return protocol.Updates(tuple(inode.as_sent(update) for inode, update in rows))

        try:
            answers = await session.link.call("mrc.updates", message, tuple[int, ...], again=True)
        except FuseError as error:
            log.debug("telling of %d inodes: %s", len(rows), error)
            return
        for (inode, update), refused in zip(rows, answers, strict=False):
            if not refused:
                self._told(session, inode, update)

    async def tell(self, inode: Inode) -> None:
        """Tell the MRC what was changed under the WRITE lease; durable when it returns. FuseError(ESTALE): the lease is lost."""
        session = self.session_of(inode.ino)
        update = inode.update(session.holder.epoch(inode.ino))
        if update is None or not update.epoch:
            return
        inode.give_back_room()

        async def message(_peer: Peer) -> Update:
            return inode.as_sent(update)

        await session.link.call("mrc.update", message, Attr, again=True)
        self._told(session, inode, update)

    @staticmethod
    def _told(session: Session, inode: Inode, update: Update) -> None:
        inode.told(update)
        if not inode.changed and not (inode.data is not None and inode.data.dirty):
            inode.dirty_told = False
            session.feed(h.Cleaned(inode.ino))

    def give_later(self, inode: Inode) -> None:
        """Give back the lease of an inode that is not needed any more."""
        self._giving.add(inode.ino)
        if self._giving_handle is None:
            self._giving_handle = asyncio.get_running_loop().call_later(GIVE_S, self._give_all)

    def _give_all(self) -> None:
        self._giving_handle = None
        giving, self._giving = self._giving, set()
        by_session: dict[str, list[int]] = {}
        for ino in giving:
            inode = self.inodes.get(ino)
            if inode is None or inode.handles:
                continue
            try:
                mrc = self.session_of(ino).mrc
            except FuseError:
                self.inodes.remove(inode)
                continue
            inode.drop(Level.NONE, ())
            by_session.setdefault(mrc, []).append(ino)
            if inode.is_idle:
                self.inodes.remove(inode)
        for mrc, inos in by_session.items():
            self.sessions[mrc].feed(h.Give(tuple(inos)))

    def discard(self, inode: Inode) -> None:
        """The last name of an inode is gone and nobody has it open here: what is unwritten need not be written."""
        if inode.data is not None:
            inode.data.discard()
        inode.changed = 0
        inode.dirty_told = False
        self.untold.pop(inode.ino, None)
        self.session_of(inode.ino).feed(h.Cleaned(inode.ino))
        self.give_later(inode)

    async def flush_all(self) -> None:
        """Write everything back and tell it all; what fails was logged and will be told to who has the file open."""
        dirty = list(self.store.dirty_files)
        await asyncio.gather(*(data.flush() for data in dirty))
        await self._tell_quietly(inode for inode in self.inodes if inode.changed)

    # ------------------------------------------------------------------------------------------------------------- life

    def start(self, work: Awaitable[None]) -> None:
        """Do something on the side; a failure is logged."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("something on the side failed inside", exc_info=error)

    async def run(self) -> None:
        """Keep the mount going: writes back what is old, gives up what is idle. For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.store.run())
            group.create_task(self._tidy())

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            for inode in self.inodes.idle():
                self.give_later(inode)

    async def close(self) -> None:
        """Write everything back, end the sessions, end all tasks."""
        try:
            await asyncio.wait_for(self.flush_all(), 30)
        except (TimeoutError, XosError) as error:
            log.error("not everything could be written back: %s", error)  # noqa: TRY400  # the text says all
        for session in self.sessions.values():
            if session.link.peer is not None:
                try:
                    await session.link.call("mrc.bye", protocol.Bye(session.client), NONE, deadline_s=3, again=False)
                except FuseError as error:
                    log.warning("%s was not told that this mount ends: %s", session.link.label, error)
        for task in [*self._session_tasks, *self._tasks]:
            task.cancel()
        await asyncio.gather(*self._session_tasks, *self._tasks, return_exceptions=True)
        for session in self.sessions.values():
            await session.close()
        await self.osds.close()
