"""What people and xosd ask of a grid node's mount process beside files: tickets and homes (root), volumes and quotas (anybody).

Two Unix sockets: the control socket for root, where xosd hands over tickets and asks for homes; `users.sock` for everybody on the machine, who
is known by the uid that the kernel tells and acts with the ticket that this user gave to the node. The MRC decides what may be done.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from xtreemos.errors import TryLater, Unreachable, UsageError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.errors import VolumeUnknown
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import VolumeRecord
from xtreemos.xtreemfs.nodeidentities import NodeIdentities, OwnerRoot

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client

CALL_S = 15.0
KNOWN_S = 10.0  # so long after it was made a volume is in the directory
HOME_MODE = 0o700


class Desk:
    """Handlers of both sockets over one mount of the whole VO."""

    def __init__(
        self,
        client: Client,
        identities: NodeIdentities | OwnerRoot,
        mountpoint: Path,
        status: Callable[[], dict[str, Any]],
        on_delegated: Callable[[], None],
    ) -> None:
        """Make it. `on_delegated` is called after each ticket that was taken."""
        self._client = client
        self._on_delegated = on_delegated
        self._identities = identities
        self._mountpoint = mountpoint
        self._status = status
        self._server: rpc.Server | None = None

    def root_methods(self) -> dict[str, Handler]:
        """`delegate {ticket}`; `home {user, uid}` -> {path}: below the mount. A mount as root has only the first."""
        if isinstance(self._identities, OwnerRoot):
            return {"delegate": self._delegate}
        return {"delegate": self._delegate, "home": self._home}

    async def start(self, path: Path) -> None:
        """Listen for everybody of this machine."""
        table: dict[str, Callable[[ServerCall], Awaitable[Any]]] = {
            "volumes": self._volumes, "mkvol": self._mkvol, "rmvol": self._rmvol, "volstat": self._volstat, "setquota": self._setquota,
            "status": self._tell_status, "events": self._events, "share": self._share, "shares": self._shares,
        }  # fmt: skip
        self._server = await rpc.serve_unix(path, table, mode=0o666)

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            await self._server.close()

    # -- root ------------------------------------------------------------------------------------------------------------

    async def _delegate(self, call: ServerCall) -> Any:
        """Take a user's ticket; who acted under an older one, or under none, acts under it from now on."""
        user = self._identities.delegate(bytes(call.params.get("ticket") or b""))
        self._on_delegated()
        uid = None if self._identities.plain else self._identities.local_id("u", user)
        for session in self._client.sessions.values():
            session.actors.forget(uid)
        return {}

    async def _home(self, call: ServerCall) -> Any:
        """Return where the user's home is, made if there is none yet."""
        user, uid = str(call.params.get("user")), int(call.params.get("uid") or 0)
        record = self._home_record(user)
        if record is None:
            message = lambda who: protocol.MakeVolume(who, "", "home", HOME_MODE)  # noqa: E731  # one line says it
            made = await self._ask(self._mrc_for(user), "mrc.mkvol", uid, message)
            record = await self._known(msgspec.convert(made, VolumeRecord))
        return {"path": str(self._mountpoint / record.name)}

    def _home_record(self, user: str) -> VolumeRecord | None:
        for record in self._client.directory.state.volumes.values():
            if record.kind == "home" and record.owner == user and not record.removed:
                return record
        return None

    def _mrc_for(self, name: str) -> str:
        """Choose the MRC of a new volume: each name has its own order of them, so volumes spread and all nodes choose alike."""
        found = self._client.directory.state.mrcs
        if not found:
            raise TryLater("no metadata server of this VO is known yet", "see `xos status` on a core node")
        return max(found, key=lambda node: hashlib.sha256(f"{name}\0{node}".encode()).digest())

    async def _known(self, record: VolumeRecord) -> VolumeRecord:
        """Wait until the directory has told of a volume that was just made."""
        changed = asyncio.Event()
        self._client.directory.on_change(lambda _state: changed.set())
        async with asyncio.timeout(KNOWN_S):
            while self._client.directory.state.volume_by_id(record.id) is None:
                changed.clear()
                await changed.wait()
        return record

    # -- everybody -------------------------------------------------------------------------------------------------------

    async def _ask(self, mrc: str, method: str, uid: int, message: Callable[[protocol.Who], msgspec.Struct]) -> Any:
        """Make a call to an MRC as the user of a local uid. RemoteError with its words; Unreachable."""
        peer, who = await self._actor(mrc, uid)
        return await peer.call(method, calls.params(message(who)), timeout_s=CALL_S)

    async def _actor(self, mrc: str, uid: int) -> tuple[rpc.Peer, protocol.Who]:
        session: Session = self._client.session_at(mrc)
        try:
            peer = await session.link.wait_peer()
        except FuseError as error:
            raise Unreachable(f"{session.link.label} cannot be reached", "try again later") from error
        return peer, await session.actors.who(peer, uid, uid, 0, 0)

    def _record(self, name: str) -> VolumeRecord:
        record = self._client.directory.state.volumes.get(name)
        if record is None or record.removed:
            raise VolumeUnknown(f"there is no volume {name[:64]!r}", "`xos fs volumes` lists them")
        return record

    def _uid(self, call: ServerCall) -> int:
        uid = call.caller.uid
        name = "" if uid is None else self._identities.name_of("u", uid)
        if uid is None or (uid != 0 and (not name or "@" in name)):
            raise UsageError(
                f"uid {uid} is no account of VO {self._client.directory.vo} on this machine",
                "use the account of the grid, for example by ssh",
            )
        return uid

    async def _volumes(self, call: ServerCall) -> Any:
        """List volumes: rows {name, owner, kind, mrc, path, created_at, width, placement, quota_bytes}."""
        self._uid(call)
        found = sorted(self._client.directory.state.volumes.values(), key=lambda record: record.name)
        return [
            {
                "name": record.name, "owner": record.owner, "kind": record.kind, "mrc": record.mrc, "path": str(self._mountpoint / record.name),
                "created_at": record.created_at, "width": record.policy.width, "placement": record.policy.placement,
                "quota_bytes": record.policy.quota_bytes,
            }
            for record in found if not record.removed
        ]  # fmt: skip

    async def _mkvol(self, call: ServerCall) -> Any:
        """Make a shared volume {name, mode, policy, group}; answers {name, path, mrc}."""
        name, uid = str(call.params.get("name")), self._uid(call)
        mode, policy = int(call.params.get("mode") or 0o700), dict(call.params.get("policy") or {})
        group = str(call.params.get("group") or "")
        made = await self._ask(
            self._mrc_for(name), "mrc.mkvol", uid, lambda who: protocol.MakeVolume(who, name, "shared", mode, policy, group)
        )
        record = await self._known(msgspec.convert(made, VolumeRecord))
        return {"name": record.name, "path": str(self._mountpoint / record.name), "mrc": record.mrc}

    async def _rmvol(self, call: ServerCall) -> Any:
        """Remove a volume {name, force}."""
        record, force = self._record(str(call.params.get("name"))), bool(call.params.get("force"))
        await self._ask(record.mrc, "mrc.rmvol", self._uid(call), lambda who: protocol.RemoveVolume(who, record.name, force))
        return {}

    async def _volstat(self, call: ServerCall) -> Any:
        """Use and limits of a volume {name}: rows as protocol.QuotaRow, the volume's own first."""
        record = self._record(str(call.params.get("name")))
        body = await self._ask(record.mrc, "mrc.volstat", self._uid(call), lambda who: protocol.VolumeStat(who, record.name))
        rows = calls.answer_of(body, protocol.Quotas).rows
        return [msgspec.structs.asdict(row) for row in rows]

    async def _setquota(self, call: ServerCall) -> Any:
        """Limit a volume or one user in it {name, user, bytes_max, files_max}."""
        record = self._record(str(call.params.get("name")))
        user, most, files = (str(call.params.get("user") or ""), int(call.params["bytes_max"]), int(call.params["files_max"]))
        await self._ask(
            record.mrc, "mrc.setquota", self._uid(call), lambda who: protocol.SetQuota(who, record.name, user, most, files)
        )
        return {}

    async def _share(self, call: ServerCall) -> Any:
        """Share a volume {name} with VO {other}: {mode} "r", "rw", or "" to end it; {until} seconds since 1970."""
        record, vo, mode = self._record(str(call.params.get("name"))), str(call.params.get("other")), call.params.get("mode")
        if mode not in {"r", "rw", ""}:
            raise UsageError("a volume is shared for reading (r) or for writing too (rw)")
        until = int(call.params.get("until") or 0)
        await self._ask(
            record.mrc, "mrc.share", self._uid(call), lambda who: protocol.ShareVolume(who, record.name, vo, mode, until)
        )
        return {}

    async def _shares(self, call: ServerCall) -> Any:
        """List {given: rows {volume, vo, write, until}, accepted: rows {volume, vo}}."""
        self._uid(call)
        state = self._client.directory.state
        found = [(row.name, share) for row in state.volumes.values() if not row.removed for share in row.shares]
        given = [
            {"volume": name, "vo": one.vo, "write": one.write, "until": one.until}
            for name, one in sorted(found, key=lambda row: (row[0], row[1].vo))
        ]
        accepted = [{"volume": volume, "vo": vo} for vo, volumes in sorted(state.accepted.items()) for volume in volumes]
        return {"given": given, "accepted": accepted}

    async def _tell_status(self, call: ServerCall) -> Any:
        """Numbers of this mount, and what its object servers have."""
        self._uid(call)
        osds = [msgspec.to_builtins(record) for record in self._client.directory.state.osds.values()]
        return {**self._status(), "osd_records": osds}

    async def _events(self, call: ServerCall) -> Any:
        """Send changes of a volume {name, after} as EVENTs {number, kind, ino, dir, name}, until the caller goes."""
        record, uid = self._record(str(call.params.get("name"))), self._uid(call)
        peer, who = await self._actor(record.mrc, uid)
        follow = peer.open("mrc.events", calls.params(protocol.Follow(who, record.name, int(call.params.get("after", -1)))))
        try:
            while True:
                changes = calls.answer_of((await follow.receive()).body, protocol.Changes)
                if changes.lost:
                    call.send_event({"lost": True})
                for row in changes.rows:
                    call.send_event(msgspec.structs.asdict(row))
                await call.peer.drain()
        finally:
            follow.close()
