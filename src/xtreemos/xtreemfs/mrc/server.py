"""One MRC, wired: store, journal, leases, methods, listeners, worker, and its record in the directory."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xtreemos.errors import PermissionRefused, XosError
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.repeats import Repeats
from xtreemos.vo.audit import Audit, AuditRecord
from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.doors import Doors, serve_until
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import locks
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.model import Level, MrcRecord, Share
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.actors import Actors, Ticketed, VerifyTicket
from xtreemos.xtreemfs.mrc.admin import Admin
from xtreemos.xtreemfs.mrc.attrs import Attrs
from xtreemos.xtreemfs.mrc.events import Events
from xtreemos.xtreemfs.mrc.files import Files
from xtreemos.xtreemfs.mrc.journal import Journal
from xtreemos.xtreemfs.mrc.leasing import Leasing
from xtreemos.xtreemfs.mrc.locking import Locking
from xtreemos.xtreemfs.mrc.opening import Opening
from xtreemos.xtreemfs.mrc.osds import Osds
from xtreemos.xtreemfs.mrc.serving import Core
from xtreemos.xtreemfs.mrc.state import State as Reading
from xtreemos.xtreemfs.mrc.store import Lock, Store, open_store
from xtreemos.xtreemfs.mrc.worker import Worker
from xtreemos.xtreemfs.neighbours import Neighbour, Neighbours, open_neighbour
from xtreemos.xtreemfs.nodedirectory import NodeDirectory
from xtreemos.xtreemfs.protocol import LockRow
from xtreemos.xtreemfs.striping import OsdConnections
from xtreemos.xtreemfs.ticket import chain_judge, peek_ticket, verify_ticket

log = logging.getLogger(__name__)

TELL_S: Final = 5.0  # between tries to tell the directory what it does not know yet
AUDITED_MAX: Final = 256
AUDIT_AGAIN_S: Final = 60.0
SEED_BYTES: Final = 32
KEYS_FILE: Final = "signing.key"


@dataclass(frozen=True)
class Options:
    """What an MRC is started with. `listen` ("host:port") needs `credential`; without them only root of this machine is served, without tickets."""

    folder: Path
    socket: Path
    listen: str = ""
    address: str = ""
    credential: Path | None = None


class Refusals:
    """The audit, fed with refusals only; the same one again within AUDIT_AGAIN_S is left out, or a mad client could fill the disk."""

    def __init__(self, audit: Audit, vo: str) -> None:
        self._audit = audit
        self._vo = vo
        self._told = Repeats(again_s=AUDIT_AGAIN_S, most=AUDITED_MAX)

    def __call__(self, who: str, what: str, why: str) -> None:
        """Write a refusal down."""
        if not self._told.is_repeat((who, what, why), time.monotonic()):
            self._audit.append(AuditRecord(at=int(time.time()), vo=self._vo, who=who, what=what, allowed=False, why=why))


def load_signer(folder: Path) -> Signer:
    """Return the key that capabilities are signed with; made at the first start, never sent."""
    path = folder / KEYS_FILE
    if not path.exists():
        write_atomically(path, os.urandom(SEED_BYTES), 0o600)
    return Signer(path.read_bytes())


def _writer_rows(store: Store) -> list[table.Writer]:
    """Return who may have written what before the start, only those with the largest epoch of each file."""
    best: dict[int, list[table.Writer]] = {}
    for ino, client, row in Reading(store.kv, store.seq).writers():
        rows = best.setdefault(ino, [])
        if rows and rows[0].epoch < row.epoch:
            rows.clear()
        if not rows or rows[0].epoch == row.epoch:
            rows.append(table.Writer(ino, client, row.epoch, Level(row.through)))
    return [row for rows in best.values() for row in rows]


class Server:
    """Make it inside the event loop, `start`, then `run` for ever; `close` commits everything and ends it."""

    def __init__(
        self,
        options: Options,
        directory: Directory,
        *,
        verify: VerifyTicket | None = None,
        neighbour: Callable[[str], Neighbour | None] | None = None,
    ) -> None:
        """Open the store and recover.

        Args:
            options: see there.
            directory: of the VO.
            verify: judge of tickets; by default the VO's own where there is a credential, and none where there is not.
            neighbour: opens another VO by name; by default those that this node is a resource of.

        Raises:
            FolderInUse, LogDamaged, StoreBroken: it cannot start.
        """
        self._options = options
        self._directory = directory
        self._lock = Lock(options.folder)
        self.store = open_store(options.folder)
        self.audit = Audit(options.folder / "audit.jsonl")
        self._refuse = Refusals(self.audit, directory.vo)
        self.signer = load_signer(options.folder)
        self._doors = Doors(
            directory,
            self.audit,
            socket=options.socket,
            listen=options.listen,
            credential=options.credential,
            on_withdrawn=self._was_withdrawn,
        )
        self._started_s = time.time()
        self.broken: asyncio.Future[XosError] = asyncio.get_running_loop().create_future()
        """Done when the disk failed: the process must end."""
        self.neighbours = Neighbours(directory, neighbour or self._neighbour, self._was_withdrawn)
        self._wire(verify or (self._verify if self._doors.has_identity else None))

    def _wire(self, verify: VerifyTicket | None) -> None:
        store, directory = self.store, self._directory
        self.journal = Journal(store, self._on_broken)
        self.worker = Worker(Osds(OsdConnections(directory, self._doors.identity if self._doors.has_identity else None)))
        epoch = schema.unpack64(store.kv.get(schema.EPOCH) or bytes(8))
        reading = Reading(store.kv, store.seq)
        sessions = [row.client for row in reading.sessions()]
        self.leasing = Leasing(self.journal, self.worker, sessions=sessions, writers=_writer_rows(store), epoch=epoch)
        self.actors = Actors(
            verify=verify,
            numbers=self._numbers,
            owner_of=lambda volume: row.owner if (row := self.core.volumes.get(volume)) else None,
            roles_of=lambda user: frozenset(directory.state.members.get(user, ("member",))),
            groups_of=lambda user: directory.state.groups.get(user, ()),
            share=self._share,
            audit=self._refuse,
            clock=time.time,
        )
        self.events = Events(store.seq)
        self.core = Core(
            journal=self.journal, leasing=self.leasing, actors=self.actors, signer=self.signer, directory=directory, note=self.events.note
        )  # fmt: skip
        self.locking = Locking(self.core, grace=bool(sessions))
        self.opening = Opening(self.core, self._refuse, self._reclaim)
        self.files, self.attrs = Files(self.core), Attrs(self.core)
        self.admin = Admin(self.core, self.events, self._refuse, self.status, self.neighbours)
        self.worker.begin(self.core, self.opening, self.locking)
        if not sessions:
            self.worker.look_at_orphans()

    def _numbers(self, names: tuple[tuple[str, str], ...]) -> list[int]:
        return self.admin.numbers(names)

    def _reclaim(self, client: str, rows: tuple[LockRow, ...]) -> tuple[LockRow, ...]:
        return self.locking.feed(locks.Reclaim(client, rows))

    def _on_broken(self, error: XosError) -> None:
        if not self.broken.done():
            self.broken.set_result(error)

    # -- who may call, and in which order answers go ---------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """What both listeners serve: to nodes of the VO and to root of this machine."""
        tables: tuple[Mapping[str, Handler], ...] = (
            self.files.handlers(), self.attrs.handlers(), self.opening.handlers(), self.locking.handlers(), self.admin.handlers()
        )  # fmt: skip
        return {method: self._guarded(handler) for handlers in tables for method, handler in handlers.items()}

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(call: ServerCall) -> Any:
            caller = call.caller
            if not ((caller.kind == "local" and caller.uid == 0) or (caller.kind == "node" and caller.vo == self._directory.vo)):
                self._refuse(str(caller), call.method, "only nodes of the VO are served")
                raise PermissionRefused("the metadata server serves nodes of the VO only")
            try:
                return await handler(call)
            except FsError:
                if self.store.durable < self.store.seq:  # a refusal, too, may tell of what is not on the disk yet
                    await self.leasing.ordered(None, call)
                raise

        return guarded

    # -- tickets, keys, connections --------------------------------------------------------------------------------------

    def _verify(self, ticket: bytes, node: str) -> Ticketed:
        if peek_ticket(ticket).vo != self._directory.vo:
            return self.neighbours.verify(ticket, node)
        judge = chain_judge(lambda: self._doors.identity().trust, self._doors.revoked)
        return verify_ticket(ticket, vo=self._directory.vo, node=node, now_s=time.time(), verify_chain=judge)

    def _neighbour(self, vo: str) -> Neighbour | None:
        directory, credential = self._directory, self._options.credential
        if credential is None or not isinstance(directory, NodeDirectory):
            return None
        socket = directory.socket
        return open_neighbour(
            vo, credential=credential, open_directory=lambda name: NodeDirectory(socket, vo=name, node=directory.node)
        )

    def _share(self, vo: str, volume: int) -> Share | None:
        record = self.core.volumes.get(volume)
        return self.neighbours.share(vo, record) if record is not None else None

    def _was_withdrawn(self, kind: str, name: str) -> None:
        self.actors.judge_again(kind, name)

    # -- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and stand in the directory if it can be reached. What the directory said last decides who may call."""
        await self._doors.open(self.handlers())
        await self._tell()

    def record(self) -> MrcRecord:
        """Our record for the directory."""
        address = self._options.address or self._options.listen
        return MrcRecord(node=self._directory.node, address=address, keys=(self.signer.public,), socket=str(self._options.socket))

    async def _tell(self) -> None:
        """Write what the directory should know and does not."""
        record = self.record()
        if self._directory.state.mrcs.get(record.node) != record:
            try:
                await self._directory.put(record)
            except (XosError, OSError) as error:
                log.info("the directory does not take our record: %s", error)
                return
        await self.admin.tell_all()

    async def run(self) -> None:
        """Work, follow the credential; for ever, or until the disk fails."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.worker.run(), name="worker")
            tasks.create_task(self._telling(), name="telling")
            tasks.create_task(self._doors.follow_credential(), name="credential")
            tasks.create_task(self._breaking(), name="breaking")

    async def _breaking(self) -> None:
        raise await self.broken

    async def _telling(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            await self._tell()

    async def close(self) -> None:
        """Serve no more; commit and close everything."""
        await self._doors.close()
        await self.neighbours.close()
        await self.worker.close()
        self.journal.close()
        self.audit.close()
        self._lock.close()

    def status(self) -> dict[str, Any]:
        """For `mrc.status`."""
        store, leases = self.store, self.leasing.table.statistics()
        return {
            "node": self._directory.node,
            "uptime_s": int(time.time() - self._started_s),
            "seq": store.seq,
            "durable": store.durable,
            "committed": store.committed,
            "replayed": store.replayed,
            "torn_bytes": store.torn.bytes if store.torn else 0,
            "commands": self.journal.commands,
            "syncs": self.journal.syncs,
            "sync_us": int(self.journal.sync_s * 1e6),
            "log_segments": len(store.log.segments),
            "volumes": len(self.core.volumes),
            "volumes_going": len(self.core.gone_volumes()),
            "garbage": len(self.core.state.all_garbage(0, 10_000)),
            "connected": self.leasing.client_count(),
            "sessions": leases.sessions,
            "leases": leases.leases,
            "waiting": leases.waiting,
            "recalls_out": leases.recalls,
            "recalls": self.leasing.recalls,
            "locks": len(self.locking.locks.rows()),
            "grace": self.leasing.table.in_grace,
        }


async def serve(options: Options, directory: Directory, stop: asyncio.Event) -> None:
    """Run one MRC until `stop`; everything is durable when it returns. Raises what keeps it from going on."""
    await serve_until(stop, directory, Server(options, directory))
