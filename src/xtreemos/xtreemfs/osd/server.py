"""One OSD, wired: disks, store, service, listeners, keeper, and its record in the directory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from xtreemos.errors import XosError
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.vo.audit import Audit
from xtreemos.xtreemfs.calls import message_of
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.doors import Doors, serve_until
from xtreemos.xtreemfs.errors import CapabilityRefused
from xtreemos.xtreemfs.model import OSD_BEAT_S, OsdRecord
from xtreemos.xtreemfs.osd.disks import Disks
from xtreemos.xtreemfs.osd.inventory import columns, may_ask
from xtreemos.xtreemfs.osd.keeper import Keeper
from xtreemos.xtreemfs.osd.lending import Lending
from xtreemos.xtreemfs.osd.service import Service
from xtreemos.xtreemfs.osd.space import Space
from xtreemos.xtreemfs.osd.store import Store
from xtreemos.xtreemfs.protocol import OsdScrub

log = logging.getLogger(__name__)

SCRUB_EVENTS_S = 0.2
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Options:
    """What an OSD is started with. `listen` ("host:port") needs `credential`; `address` is what others connect to, `listen` if empty."""

    disks: Sequence[Path]
    socket: Path
    listen: str = ""
    address: str = ""
    credential: Path | None = None
    limit_bytes: int = 0
    audit: Path | None = None


class Server:
    """Make it, `start`, then `run` for ever; `close` syncs everything and ends it."""

    def __init__(self, options: Options, directory: Directory) -> None:
        self._options = options
        self._directory = directory
        self._disks = Disks(options.disks, vo=directory.vo, node=directory.node)
        self._space = Space(options.limit_bytes)
        self.store = Store(self._disks.shelves, self._space, boot=BOOT_FILE.read_text().strip())
        lending = Lending(self.store)
        self.audit = Audit(options.audit or options.disks[0] / "audit.jsonl")
        self.service = Service(self.store, lending, directory, self.audit, single=not options.listen, now=time.time)
        self.service.status = self._status
        self.keeper = Keeper(self.store, lending, lambda: self.service.last_request_s)
        self._doors = Doors(directory, self.audit, socket=options.socket, listen=options.listen, credential=options.credential)
        self._address = options.address or options.listen

    def handlers(self) -> dict[str, Handler]:
        """What both listeners serve."""
        return {**self.service.handlers(), "osd.scrub": self._scrub, "osd.columns": self._columns}

    async def start(self) -> None:
        """Listen, and stand in the directory if it can be reached. What the directory said last decides who may call."""
        await self._doors.open(self.handlers())
        await self._beat()

    async def run(self) -> None:
        """Keep house, beat, follow the credential; for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.keeper.run(), name="keeper")
            tasks.create_task(self._beats(), name="beats")
            tasks.create_task(self._doors.follow_credential(), name="credential")

    async def close(self) -> None:
        """Serve no more; sync and close everything."""
        await self._doors.close()
        await self.store.close()
        self._disks.close()
        self.audit.close()

    # -------------------------------------------------------------------------------------------------------------- health

    def record(self) -> OsdRecord:
        """Our record for the directory."""
        total, free = self._space.totals(self._disks.shelves)
        state = "online"
        if self.store.io_errors:
            state = "failing"
        elif self._disks.locked():
            state = "locked"
        elif self._space.is_full(self._disks.shelves):
            state = "full"
        return OsdRecord(
            node=self._directory.node,
            address=self._address,
            socket=str(self._options.socket),
            total_bytes=total,
            free_bytes=free,
            state=state,  # type: ignore[arg-type]  # one of the four
            beat_at=int(time.time()),
        )

    async def _beat(self) -> None:
        record = self.record()
        self._space.locked = record.state == "locked"
        try:
            await self._directory.put(record)
        except (XosError, OSError) as error:
            log.info("the directory does not take our record: %s", error)

    async def _beats(self) -> None:
        told = ""
        while True:
            for _second in range(OSD_BEAT_S):
                await asyncio.sleep(1.0)
                state = self.record().state
                if state != told:  # a change of state is not kept waiting
                    told = state
                    break
            await self._beat()

    def _status(self) -> dict[str, Any]:
        record = self.record()
        scrubbing = self.keeper.scrubbing
        return {
            "total_bytes": record.total_bytes,
            "free_bytes": record.free_bytes,
            "used_bytes": self._space.used_bytes,
            "files": self.store.columns,
            "state": record.state,
            "disks": [str(folder) for folder in self._disks.folders],
            "boot": self.store.boot,
            "damage_count": self.store.damage.count,
            "dirty_columns": sum(len(shelf.ledger) for shelf in self._disks.shelves),
            "open_columns": self.store.open_count,
            "io_errors": self.store.io_errors,
            "scrub": {"files": scrubbing.files, "total": scrubbing.total} if scrubbing is not None else None,
            "scrubbed_at": int(self.keeper.scrubbed_at_s),
        }

    # ---------------------------------------------------------------------------------------------------- checks and scrubs

    async def _only_operators(self, call: ServerCall) -> None:
        try:
            may_ask(call.caller, self._directory.state.mrcs, self._directory.node)
        except CapabilityRefused as refused:
            await self.service.note(call.caller, call.method, refused.message)
            raise

    async def _columns(self, call: ServerCall) -> dict[str, Any]:
        await self._only_operators(call)
        return await columns(self.store, call)

    async def _scrub(self, call: ServerCall) -> dict[str, Any]:
        message_of(call.params, OsdScrub)
        if not (call.caller.kind == "user" and call.caller.has_role("admin")):
            await self._only_operators(call)
        told_s = 0.0

        def tell(done: int, total: int, damaged: int) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= SCRUB_EVENTS_S or done == total:
                told_s = time.monotonic()
                call.send_event({"done": done, "total": total, "damaged": damaged})

        scrub = await self.keeper.scrub(tell)
        return {
            "files": scrub.files,
            "bytes": scrub.bytes,
            "damaged": msgspec.to_builtins(scrub.damaged),
            "torn": msgspec.to_builtins(scrub.torn),
        }


async def serve(options: Options, directory: Directory, stop: asyncio.Event) -> None:
    """Run one OSD until `stop`; everything is synced when it returns."""
    await serve_until(stop, directory, Server(options, directory))
