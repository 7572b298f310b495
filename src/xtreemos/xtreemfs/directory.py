"""The directory service (DIR) as its users see it: where volumes, metadata servers and object servers of one VO are, and who its members are.

Nothing of it is kept here: the records live in the VO's replicated store. `FolderDirectory` is the one without a grid: a folder of JSON
files shared by processes of one machine. `nodedirectory.NodeDirectory` goes through xosd. Both go on with what they saw last.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from xtreemos.foundation.files import write_atomically
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import MrcRecord, OsdRecord, VolumeRecord

AnyRecord = MrcRecord | OsdRecord | VolumeRecord
_LOOK_S = 0.25
_TYPES: dict[str, type[AnyRecord]] = {"mrc": MrcRecord, "osd": OsdRecord, "volume": VolumeRecord}


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One view of the directory. Keys: node names of servers, names of volumes; `members`: user -> roles, `groups`: user -> groups in the VO."""

    mrcs: Mapping[str, MrcRecord] = {}
    osds: Mapping[str, OsdRecord] = {}
    volumes: Mapping[str, VolumeRecord] = {}
    members: Mapping[str, tuple[str, ...]] = {}
    groups: Mapping[str, tuple[str, ...]] = {}
    accepted: Mapping[str, tuple[str, ...]] = {}
    """Other VO -> names of its volumes whose sharing this VO has accepted."""
    revoked: Mapping[str, bytes] = {}
    """Records of withdrawn credentials as the registry holds them (`vo.revocation`), by their keys; they only grow."""

    def volume_by_id(self, number: int) -> VolumeRecord | None:
        """Return the volume whose id is in an inode number, None if it is not known (removed, or not heard of yet)."""
        return next((record for record in self.volumes.values() if record.id == number and not record.removed), None)


class Directory(Protocol):
    """One process's access to the directory of VO `vo` from node `node`."""

    vo: str
    node: str
    state: State
    """What was seen last; replaced as a whole at each change."""

    def on_change(self, call: Callable[[State], None]) -> None:
        """Have `call` called in the event loop after each change."""

    async def wait_synced(self) -> None:
        """Wait until the whole directory was seen once: `run` runs."""

    async def put(self, record: AnyRecord) -> None:
        """Write the record of the calling service. Returns when it is durable.

        Raises:
            FsError(EEXIST): a volume of that name exists with another id. Unreachable: it may or may not have been written.
        """

    async def run(self) -> None:
        """Follow changes, for ever."""


def key_of(record: AnyRecord) -> str:
    """Return the record's key in the bucket: `volume.NAME`, `mrc.NODE` or `osd.NODE`."""
    kind = next(kind for kind, known in _TYPES.items() if isinstance(record, known))
    return f"{kind}.{record.name if isinstance(record, VolumeRecord) else record.node}"


def with_record(state: State, key: str, value: bytes | None) -> State:
    """Return the state after key `key` got this JSON value (None: it is gone). Keys of other kinds change nothing.

    Raises:
        msgspec.MsgspecError: the value is no such record.
    """
    kind, _dot, name = key.partition(".")
    if kind not in _TYPES:
        return state
    field = {"mrc": "mrcs", "osd": "osds", "volume": "volumes"}[kind]
    table = dict(getattr(state, field))
    if value is None:
        table.pop(name, None)
    else:
        table[name] = msgspec.json.decode(value, type=_TYPES[kind])
    return msgspec.structs.replace(state, **{field: table})


class FolderDirectory:
    """A directory in a folder: `KEY.json` per record, `members.json`, `groups.json`, `accepted.json`. For one machine's processes of one user."""

    def __init__(self, folder: Path, *, vo: str, node: str) -> None:
        self.vo = vo
        self.node = node
        self._folder = folder
        self._calls: list[Callable[[State], None]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._seen: tuple[tuple[str, int], ...] = ()
        self.state = State()
        self.look()

    def on_change(self, call: Callable[[State], None]) -> None:
        """See `Directory`."""
        self._calls.append(call)

    async def wait_synced(self) -> None:
        """See `Directory`: the folder was read when this was made."""

    async def put(self, record: AnyRecord) -> None:
        """See `Directory`."""
        path = self._folder / f"{key_of(record)}.json"
        if isinstance(record, VolumeRecord) and path.exists():
            held = msgspec.json.decode(path.read_bytes(), type=VolumeRecord)
            if held.id != record.id and not held.removed:
                raise FsError(errno.EEXIST, f"a volume {record.name} exists already")
        write_atomically(path, msgspec.json.encode(record))
        self.look()

    async def run(self) -> None:
        """See `Directory`: looks at the folder four times a second."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Read the folder again if anything in it changed."""
        rows = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(self._folder) if entry.name.endswith(".json"))
        if tuple(rows) == self._seen:
            return
        state = State()
        for name, _time in rows:
            text = (self._folder / name).read_bytes()
            if name in {"members.json", "groups.json", "accepted.json"}:
                table = msgspec.json.decode(text, type=dict[str, tuple[str, ...]])
                state = msgspec.structs.replace(state, **{name.removesuffix(".json"): table})
            else:
                state = with_record(state, name.removesuffix(".json"), text)
        self._seen, self.state = tuple(rows), state
        for call in self._calls:
            call(state)
