"""The directory service through this node's xosd: its local socket, for root's processes only.

`dir.watch {vo}` sends EVENTs `[key, value or None]`, then `"synced"`, then each change; `dir.put {vo, key, value}` writes. xosd may be
away at any time: what was seen last stays true until it is back, and then everything is told again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from xtreemos.errors import RemoteError, Unreachable, XosError
from xtreemos.fabric import rpc
from xtreemos.foundation.frames import Kind
from xtreemos.vo.model import Accepted, PublicUser
from xtreemos.xtreemfs.directory import AnyRecord, Directory, FolderDirectory, State, key_of, with_record

log = logging.getLogger(__name__)

AGAIN_S = 0.5
PUT_S = 10.0


class NodeDirectory:
    """A `Directory` (see `directory`). `run` must run for it to know anything; `wait_synced` waits for the first whole view."""

    def __init__(self, socket: Path, *, vo: str, node: str) -> None:
        self.vo = vo
        self.node = node
        self.state = State()
        self.socket = socket
        self._calls: list[Callable[[State], None]] = []
        self._synced = asyncio.Event()

    def on_change(self, call: Callable[[State], None]) -> None:
        """See `Directory`."""
        self._calls.append(call)

    async def wait_synced(self) -> None:
        """See `Directory`."""
        await self._synced.wait()

    async def put(self, record: AnyRecord) -> None:
        """See `Directory`."""
        peer = await rpc.connect_unix(self.socket)
        try:
            params = {"vo": self.vo, "key": key_of(record), "value": msgspec.json.encode(record)}
            await peer.call("dir.put", params, timeout_s=PUT_S)
        finally:
            peer.close()

    async def run(self) -> None:
        """See `Directory`."""
        while True:
            try:
                await self._follow()
            except XosError as error:
                log.log(logging.INFO if isinstance(error, Unreachable) else logging.WARNING, "directory: %s; again", error)
            await asyncio.sleep(AGAIN_S)

    async def _follow(self) -> None:
        peer = await rpc.connect_unix(self.socket)
        try:
            call = peer.open("dir.watch", {"vo": self.vo})
            state: State | None = State()  # until "synced" what was known before stays in force
            fresh = State()
            while True:
                frame = await call.receive()
                if frame.kind is Kind.RESULT:
                    return
                if frame.body == "synced":
                    state = None
                    self._set(fresh)
                    continue
                key, value = frame.body
                fresh = applied(fresh, str(key), value)
                if state is None:
                    self._set(fresh)
        except RemoteError as error:
            raise Unreachable(f"xosd does not serve the directory of VO {self.vo}: {error.message}") from error
        finally:
            peer.close()

    def _set(self, state: State) -> None:
        self.state = state
        self._synced.set()
        for call in self._calls:
            call(state)


def applied(state: State, key: str, value: Any) -> State:
    """Return the state after one change of the VO's public bucket; what cannot be read is left out and logged."""
    kind, _dot, name = key.partition(".")
    try:
        if kind == "user":
            members, groups = dict(state.members), dict(state.groups)
            members.pop(name, None)
            groups.pop(name, None)
            if value is not None and (user := PublicUser.from_bytes(value)).state == "active":
                members[name] = user.roles
                groups[name] = user.groups
            return msgspec.structs.replace(state, members=members, groups=groups)
        if kind == "accepted":
            accepted = {vo: volumes for vo, volumes in state.accepted.items() if vo != name}
            if value is not None:
                accepted[name] = Accepted.from_bytes(value).volumes
            return msgspec.structs.replace(state, accepted=accepted)
        if kind == "revoked" and value is not None:
            return msgspec.structs.replace(state, revoked={**state.revoked, key: value})
        return with_record(state, key, value)
    except msgspec.MsgspecError:
        log.warning("directory: the record %s cannot be read", key)
        return state


def open_directory(path: Path, *, vo: str, node: str) -> Directory:
    """Return the directory behind `path`: xosd's socket (`*.sock`), or a folder of records where there is no grid."""
    if path.suffix == ".sock":
        return NodeDirectory(path, vo=vo, node=node)
    return FolderDirectory(path, vo=vo, node=node)
