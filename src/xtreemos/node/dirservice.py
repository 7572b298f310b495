"""The directory service of XtreemFS on one node: the VO's public bucket for the file system's processes of this machine.

Core nodes write records themselves; the others ask a core node, which takes from a node only the record of its own OSD. The processes
ask over the admin socket (root), nodes over TLS.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Any

import msgspec

from xtreemos.errors import PermissionRefused, UsageError
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import KeyExists, RevisionMismatch
from xtreemos.fabric.kv import open_bucket
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.node.vo_runtime import VoRuntime
from xtreemos.xtreemfs.directory import AnyRecord, State, key_of, with_record
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import OsdRecord, VolumeRecord

KINDS = ("user", "revoked", "accepted", "mrc", "osd", "volume")
QUIET_S = 30
"""An OSD's record that says nothing new is written this seldom: each write goes into the VO's replicated log."""
FREE_STEP = 0.02  # part of an OSD's size: less is nothing new
WAITING_MAX = 4096  # changes not yet taken by a watcher; one that lags so far behind is ended, and starts afresh


class DirService:
    """Handlers over the VOs of a node."""

    def __init__(self, vos: dict[str, VoRuntime], node: str) -> None:
        self._vos = vos
        self._node = node
        self._told: dict[tuple[str, str], tuple[float, OsdRecord]] = {}

    def local_methods(self) -> dict[str, Handler]:
        """What root's processes of this machine may ask."""
        return {"dir.watch": self._watch, "dir.put": self._put_local}

    def _runtime(self, vo: str) -> VoRuntime:
        runtime = self._vos.get(vo)
        if runtime is None:
            raise UsageError(f"node {self._node} does not serve VO {vo}")
        return runtime

    async def _watch(self, call: ServerCall) -> Any:
        """Send all records, "synced", then each change; until the caller goes."""
        runtime = self._runtime(str(call.params.get("vo")))
        await runtime.synced.wait()
        changes: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue()

        def tell(key: str, value: bytes | None) -> None:
            if key.partition(".")[0] in KINDS:
                changes.put_nowait((key, value))

        runtime.watchers.add(tell)
        try:
            for key, value in list(runtime.public.items()):
                if key.partition(".")[0] in KINDS:
                    call.send_event([key, value])
            call.send_event("synced")
            while changes.qsize() < WAITING_MAX:
                call.send_event(list(await changes.get()))
                await call.peer.drain()
        finally:
            runtime.watchers.discard(tell)
        return {}

    async def _put_local(self, call: ServerCall) -> Any:
        """Write a record of a service of this machine."""
        runtime = self._runtime(str(call.params.get("vo")))
        key, value = str(call.params.get("key")), bytes(call.params.get("value") or b"")
        _check(key, value)
        if not key.startswith(("osd.", "mrc.", "volume.")) or (
            key.startswith(("osd.", "mrc.")) and key.partition(".")[2] != self._node
        ):
            raise PermissionRefused(f"{key} is no record of node {self._node}")
        if self._is_news(runtime.vo, key, value):
            if runtime.secrets is not None:
                await write(runtime, key, value)
            else:
                await runtime.ask_core("dir.put", {"key": key, "value": value})
        return {}

    def _is_news(self, vo: str, key: str, value: bytes) -> bool:
        """Tell whether a record must be written; an OSD beats often, mostly with nothing new."""
        if not key.startswith("osd."):
            return True
        record = msgspec.json.decode(value, type=OsdRecord)
        at, told = self._told.get((vo, key), (-QUIET_S - 1.0, record))
        same = msgspec.structs.replace(record, free_bytes=0, beat_at=0) == msgspec.structs.replace(told, free_bytes=0, beat_at=0)
        little = abs(record.free_bytes - told.free_bytes) <= FREE_STEP * max(1, record.total_bytes)
        if same and little and time.monotonic() - at < QUIET_S:
            return False
        self._told[vo, key] = (time.monotonic(), record)
        return True

    async def put_remote(self, call: ServerCall) -> Any:
        """`dir.put` of another node (TLS): its own OSD's record, nothing else."""
        runtime = self._runtime(call.caller.vo)
        key, value = str(call.params.get("key")), bytes(call.params.get("value") or b"")
        if key != f"osd.{call.caller.name}":
            raise PermissionRefused(f"{call.caller} may not write {key[:80]}")
        _check(key, value)
        if runtime.secrets is None:
            raise PermissionRefused(f"node {self._node} is no core node of VO {runtime.vo}", "ask a core node")
        await write(runtime, key, value)
        return {}


def _check(key: str, value: bytes) -> None:
    """Refuse a value that is no record of the key's kind and name."""
    try:
        state = with_record(State(), key, value)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{key[:80]} cannot be written: {error}") from error
    found: list[AnyRecord] = [*state.mrcs.values(), *state.osds.values(), *state.volumes.values()]
    record = next(iter(found), None)
    if record is None or key_of(record) != key:
        raise UsageError(f"{key[:80]} cannot be written: the record says something else")


async def write(runtime: VoRuntime, key: str, value: bytes) -> None:
    """Write a record on a core node. A volume's id never changes while the volume lives.

    Raises:
        FsError(EEXIST): another volume has that name. Unreachable: not known whether it was written.
    """
    bucket = await open_bucket(runtime.fabric, subjects.PUBLIC_BUCKET)
    if not key.startswith("volume."):
        await bucket.put(key, value)
        return
    record = msgspec.json.decode(value, type=VolumeRecord)
    while True:
        held = await bucket.get(key)
        try:
            if held is None:
                await bucket.create(key, value)
                return
            old = msgspec.json.decode(held.value, type=VolumeRecord)
            if old.id != record.id and not old.removed:
                raise FsError(errno.EEXIST, f"a volume {record.name} exists already", "see `xos fs volumes`")
            await bucket.update(key, value, held.revision)
            return
        except (KeyExists, RevisionMismatch):
            continue  # somebody was faster: look again
