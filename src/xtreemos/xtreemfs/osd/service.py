"""The OSD's methods: messages in, rights judged, the store asked, refusals audited. The data of large requests travels in tails.

`osd.read` and `osd.write` take and give bytes in the message itself or, cheaper, in the call's tail: a write whose message has no bytes
takes the tail; a read asks for one by `"tail": true` beside the message. Both carry the sums of the block parts.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from xtreemos.fabric.caller import Caller
from xtreemos.fabric.rpc import Attached, Handler, ServerCall
from xtreemos.foundation.repeats import Repeats
from xtreemos.vo.audit import Audit, AuditRecord
from xtreemos.xtreemfs.calls import message_of
from xtreemos.xtreemfs.capability import Fence, Verifier, check_fence, check_rights
from xtreemos.xtreemfs.directory import Directory, State
from xtreemos.xtreemfs.errors import CapabilityRefused, FsError, SignerUnknown
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, WIDTH_MAX, Capability, MrcRecord
from xtreemos.xtreemfs.osd.blocks import sums_of
from xtreemos.xtreemfs.osd.column import Column
from xtreemos.xtreemfs.osd.lending import Lending
from xtreemos.xtreemfs.osd.model import Key
from xtreemos.xtreemfs.osd.store import Check, Store
from xtreemos.xtreemfs.protocol import (
    OsdAllocate,
    OsdData,
    OsdDelete,
    OsdFence,
    OsdFile,
    OsdInUse,
    OsdRead,
    OsdSeek,
    OsdStat,
    OsdStatus,
    OsdSync,
    OsdTruncate,
    OsdWrite,
    OsdWritten,
    Rights,
)

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 4 << 20
RUNNING_MAX = 64
"""Requests that are carried out at a time; more wait."""
INOS_MAX = 10_000
"""Files of one `osd.delete`."""
AUDITED_MAX = 256
"""The same refusal is audited once in AUDIT_AGAIN_S, and so many kinds are remembered: a mad client must not fill the disk."""
AUDIT_AGAIN_S = 60.0
SIGNER_WAIT_S = 2.0
"""A request whose signer is not known (yet) waits so long for the directory to tell of it."""


class Service:
    """Handlers for `fabric.rpc`. `single`: there is no TLS listener, so one machine is the whole grid and nodes are not compared."""

    def __init__(
        self, store: Store, lending: Lending, directory: Directory, audit: Audit, *, single: bool, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._lending = lending
        self._directory = directory
        self._audit = audit
        self._single = single
        self._now = now
        self._running = asyncio.Semaphore(RUNNING_MAX)
        self._audited = Repeats(again_s=AUDIT_AGAIN_S, most=AUDITED_MAX)
        self.counters: dict[str, int] = {}
        self.last_request_s = 0.0
        self.status: Callable[[], dict[str, Any]] = dict
        self._mrcs: Mapping[str, MrcRecord] = {}
        self._told = asyncio.Event()  # of other MRCs than before; a new one each time
        self._verifier = Verifier(directory.vo, self._keys)
        directory.on_change(self._changed)

    def _keys(self, mrc: str) -> tuple[bytes, ...]:
        record = self._directory.state.mrcs.get(mrc)
        return record.keys if record is not None else ()

    def _changed(self, state: State) -> None:
        if state.mrcs != self._mrcs:
            self._mrcs = state.mrcs
            self._verifier.forget()
            self._told.set()
            self._told = asyncio.Event()

    async def _hear_more(self) -> bool:
        """Wait for news of MRCs: one that has just come up may serve clients before the directory has told us of it."""
        try:
            await asyncio.wait_for(self._told.wait(), SIGNER_WAIT_S)
        except TimeoutError:
            return False
        return True

    def handlers(self) -> dict[str, Handler]:
        """The table for a listener."""
        table: dict[str, Callable[[ServerCall], Awaitable[Any]]] = {
            "osd.read": self._read,
            "osd.write": self._write,
            "osd.truncate": self._truncate,
            "osd.allocate": self._allocate,
            "osd.seek": self._seek,
            "osd.sync": self._sync,
            "osd.stat": self._stat,
            "osd.file": self._file,
            "osd.inuse": self._in_use,
            "osd.fence": self._fence,
            "osd.delete": self._delete,
            "osd.status": self._status,
        }
        return {name: self._guarded(name, handler) for name, handler in table.items()}

    def _guarded(self, name: str, handler: Callable[[ServerCall], Awaitable[Any]]) -> Handler:
        async def run(call: ServerCall) -> Any:
            self.counters[name] = self.counters.get(name, 0) + 1
            self.last_request_s = self._now()
            try:
                if call.caller.kind not in ("node", "local") or (call.caller.kind == "local" and call.caller.uid != 0):
                    raise CapabilityRefused(f"{call.caller} is no node of this VO")
                return await self._carry_out(handler, call)
            except CapabilityRefused as error:
                await self.note(call.caller, name, error.message)
                raise
            except FsError as error:
                if error.errno == errno.ESTALE:
                    await self.note(call.caller, name, error.message)
                raise

        return run

    async def _carry_out(self, handler: Callable[[ServerCall], Awaitable[Any]], call: ServerCall) -> Any:
        """Do what is asked; once more if its signer was not known, but is now. Rights are judged first, so nothing was done before."""
        try:
            async with self._running:
                return await handler(call)
        except SignerUnknown:
            if not await self._hear_more():
                raise
        async with self._running:
            return await handler(call)

    async def note(self, caller: Caller, what: str, why: str) -> None:
        """Audit a refusal; durable before it is told."""
        key = (str(caller), what, re.sub(r"\d+", "#", why)[:80])
        now = self._now()
        if self._audited.is_repeat(key, now):
            return
        record = AuditRecord(at=int(now), vo=self._directory.vo, who=str(caller), what=what, allowed=False, why=why)
        await self._audit.write(record)

    # ------------------------------------------------------------------------------------------------------------- rights

    def _node_of(self, caller: Caller) -> str:
        return caller.name if caller.kind == "node" else self._directory.node

    def _judge(self, call: ServerCall, rights: Rights, column: int, *, write: bool) -> Capability:
        if not 0 <= column < WIDTH_MAX:
            raise FsError(errno.EINVAL, f"there is no column {column}")
        capability = self._verifier.capability(rights.capability)
        node = None if self._single else self._node_of(call.caller)
        check_rights(capability, self._verifier.session(rights.session), node=node, now_s=self._now(), write=write)
        return capability

    def _judge_read(self, call: ServerCall, rights: Rights, column: int) -> tuple[Key, Check]:
        capability = self._judge(call, rights, column, write=False)
        return Key(capability.ino, column), lambda fence: check_fence(capability, fence, write=False)

    async def _change(
        self,
        call: ServerCall,
        message: OsdWrite | OsdTruncate | OsdAllocate,
        work: Callable[[Column], None],
        *,
        reach: tuple[int, int],
        end: int,
    ) -> OsdWritten:
        capability = self._judge(call, message.rights, message.column, write=True)
        if not 0 <= end <= FILE_BYTES_MAX:
            raise FsError(errno.EFBIG, "no file may be that long")
        key = Key(capability.ino, message.column)
        raised = Fence(capability.epoch, capability.layout_version)

        def within_quota(column: Column) -> None:
            if end > capability.quota_bytes and end > column.length:
                raise FsError(
                    errno.EDQUOT,
                    f"the writer may let the file grow to {capability.quota_bytes} bytes only",
                    "it asks the MRC for more",
                )
            work(column)

        found = await self._store.change(
            key,
            within_quota,
            raised=raised,
            check=lambda fence: check_fence(capability, fence, write=True),
            reach=reach,
            create=end > 0,
        )
        return self._written(found)

    def _written(self, found: tuple[int, int]) -> OsdWritten:
        return OsdWritten(self._store.boot, *found)

    # -------------------------------------------------------------------------------------------------------------- bytes

    async def _read(self, call: ServerCall) -> Any:
        message = message_of(call.params, OsdRead)
        _check_range(message.at, message.length, REQUEST_BYTES_MAX)
        key, check = self._judge_read(call, message.rights, message.column)
        data, sums = await self._store.read(key, message.at, message.length, check)
        if call.params.get("tail"):
            return Attached(OsdData(b"", sums), data)
        return OsdData(bytes(data), sums)

    async def _write(self, call: ServerCall) -> OsdWritten:
        message = message_of(call.params, OsdWrite)
        data = message.data or call.tail
        _check_range(message.at, len(data), REQUEST_BYTES_MAX)
        if sums_of(data, message.at) != message.sums:
            raise FsError(errno.EBADMSG, "the bytes do not fit their sums: they were changed on their way", "send them again")
        return await self._change(
            call,
            message,
            lambda column: column.write(message.at, data, message.sums),
            reach=(message.at, len(data)),
            end=message.at + len(data),
        )

    async def _truncate(self, call: ServerCall) -> OsdWritten:
        message = message_of(call.params, OsdTruncate)
        return await self._change(call, message, lambda column: column.truncate(message.length), reach=(0, 0), end=message.length)

    async def _allocate(self, call: ServerCall) -> OsdWritten:
        message = message_of(call.params, OsdAllocate)
        _check_range(message.at, message.length, FILE_BYTES_MAX)
        grows = message.how in ("a", "z")
        return await self._change(
            call,
            message,
            lambda column: column.allocate(message.at, message.length, message.how),
            reach=(0, 0) if message.how == "p" else (message.at, message.length),
            end=message.at + message.length if grows else 0,
        )

    async def _seek(self, call: ServerCall) -> int:
        message = message_of(call.params, OsdSeek)
        _check_range(message.at, 0, 0)
        key, check = self._judge_read(call, message.rights, message.column)
        return await self._store.seek(key, message.at, message.what, check)

    async def _sync(self, call: ServerCall) -> OsdWritten:
        message = message_of(call.params, OsdSync)
        return self._written(await self._lending.sync(*self._judge_read(call, message.rights, message.column)))

    async def _stat(self, call: ServerCall) -> OsdWritten:
        message = message_of(call.params, OsdStat)
        return self._written(await self._store.stat(*self._judge_read(call, message.rights, message.column)))

    async def _file(self, call: ServerCall) -> Attached:
        message = message_of(call.params, OsdFile)
        if call.caller.kind != "local":
            raise CapabilityRefused("descriptors are given to processes of this node only")
        capability = self._judge(call, message.rights, message.column, write=message.write)
        descriptor, *found = await self._lending.lend(
            Key(capability.ino, message.column),
            raised=Fence(capability.epoch if message.write else 0, capability.layout_version),
            check=lambda fence: check_fence(capability, fence, write=message.write),
            write=message.write,
        )
        return Attached(OsdWritten(self._store.boot, *found), b"", (descriptor,))

    async def _in_use(self, call: ServerCall) -> bool:
        message = message_of(call.params, OsdInUse)
        if call.caller.kind != "local":
            raise CapabilityRefused("who has a file open is told to processes of this node only")
        return await self._lending.is_in_use(Key(message.ino, message.column))

    # ---------------------------------------------------------------------------------------------------------------- MRC

    def _only_mrc(self, caller: Caller) -> None:
        known = self._directory.state.mrcs
        if self._node_of(caller) in known or (self._single and known):
            return
        raise CapabilityRefused(f"node {self._node_of(caller)} has no MRC of this VO")

    async def _fence(self, call: ServerCall) -> tuple[int, ...]:
        message = message_of(call.params, OsdFence)
        self._only_mrc(call.caller)
        if len(message.columns) > WIDTH_MAX or not all(0 <= column < WIDTH_MAX for column in message.columns):
            raise FsError(errno.EINVAL, "there are no such columns")
        return await self._store.put_fence(message.ino, message.epoch, message.columns)

    async def _delete(self, call: ServerCall) -> None:
        message = message_of(call.params, OsdDelete)
        self._only_mrc(call.caller)
        if len(message.inos) > INOS_MAX:
            raise FsError(errno.EINVAL, f"more than {INOS_MAX} files in one call")
        if not 0 < message.width <= WIDTH_MAX:
            raise FsError(errno.EINVAL, f"no file has {message.width} columns")
        await self._store.delete(message.inos, message.width)

    async def _status(self, call: ServerCall) -> dict[str, Any]:
        message_of(call.params, OsdStatus)
        return {
            **self.status(),
            "counters": dict(self.counters),
            "damaged": msgspec.to_builtins(list(self._store.damage.rows.values())),
        }


def _check_range(at: int, length: int, length_max: int) -> None:
    if at < 0 or not 0 <= length <= length_max:
        raise FsError(errno.EINVAL, f"{length} bytes at {at} cannot be asked for in one request")
