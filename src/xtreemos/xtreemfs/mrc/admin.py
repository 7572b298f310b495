"""Methods about volumes and the server itself: `mrc.mkvol`, `rmvol`, `names`, `volstat`, `setquota`, `events`, `status`."""

from __future__ import annotations

import errno
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from xtreemos.errors import PermissionRefused, UsageError, XosError
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.names import check_vo
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.errors import FsError, VolumeUnknown
from xtreemos.xtreemfs.model import Principal, Share, VolumePolicy, VolumeRecord
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.actors import Actor, Audit
from xtreemos.xtreemfs.mrc.events import Events
from xtreemos.xtreemfs.mrc.model import HOME_PREFIX, VOLUME_ID_MAX, VOLUME_NAME, Usage, Volume, new_volume_record
from xtreemos.xtreemfs.mrc.serving import Core
from xtreemos.xtreemfs.neighbours import Neighbours

log = logging.getLogger(__name__)

NAMES_MAX: Final = 10_000  # numbers asked for in one call
FOLLOW_FROM_NOW: Final = -1
_NAME: Final = re.compile(VOLUME_NAME)
_POLICY_FIELDS: Final = frozenset(VolumePolicy.__struct_fields__)


class Admin:
    """The methods; `handlers` is their table. It also keeps `core.volumes` in step."""

    def __init__(
        self, core: Core, events: Events, audit: Audit, status: Callable[[], dict[str, Any]], neighbours: Neighbours
    ) -> None:
        self._core = core
        self._neighbours = neighbours
        self._events = events
        self._audit = audit
        self._status = status
        for row in core.state.volumes():
            core.note_volume(row)

    def handlers(self) -> dict[str, Handler]:
        """Return method -> handler."""
        return {
            "mrc.mkvol": self.mkvol, "mrc.rmvol": self.rmvol, "mrc.names": self.names, "mrc.numbers": self.numbers_of, "mrc.volstat": self.volstat,
            "mrc.share": self.share, "mrc.setquota": self.setquota, "mrc.events": self.events, "mrc.status": self.status,
        }  # fmt: skip

    # -- volumes ---------------------------------------------------------------------------------------------------------

    async def mkvol(self, call: ServerCall) -> VolumeRecord:
        """A volume, or the actor's home (made once; its record if it is there)."""
        m = calls.message_of(call.params, p.MakeVolume)
        actor = self._user(call, m.who)
        name = f"{HOME_PREFIX}{actor.user}" if m.kind == "home" else m.name
        known = self._core.directory.state.volumes.get(name)
        if m.kind == "home" and known is not None and not known.removed:
            return known
        self._check_name(m, name)
        if known is not None and not known.removed:
            raise FsError(errno.EEXIST, f"a volume {name} exists already")
        record = new_volume_record(
            name=name,
            number=self._free_id(),
            mrc=self._core.node,
            owner=actor.user,
            kind=m.kind,
            now_s=int(time.time()),
            policy=_policy(m.policy),
        )
        held = self._core.state.volume_id(name)
        if held is not None:
            row = self._core.state.find_volume(held)
            if m.kind != "home" or row is None:
                raise FsError(errno.EEXIST, f"a volume {name} exists already")
            return await self.tell(row)  # its making was cut off before DIR heard of it
        gid = self._group(call, actor, m.group) if m.group else actor.cred.gid
        row = self._core.execute(do.MakeVolume(record, m.mode & 0o7777, actor.cred.uid, gid, time.time_ns(), bool(m.group)))
        await self._core.leasing.ordered(None)
        return await self.tell(row)

    def _user(self, call: ServerCall, who: p.Who) -> Actor:
        actor = self._core.actors.get(call.peer, who)
        if not actor.user or actor.guest_of:
            self._audit(str(call.caller), call.method, f"{actor.user or 'nobody'} may not do this")
            raise PermissionRefused("that takes a user of the VO", "log in first")
        return actor

    def _group(self, call: ServerCall, actor: Actor, group: str) -> int:
        """Return the number of a group for which the actor may make a volume: its members and administrators of the VO may."""
        if not any(group in groups for groups in self._core.directory.state.groups.values()):
            raise UsageError(
                f"no member of the VO is in a group {group[:64]!r}", "an administrator says who is: `xos vo group USER GROUP...`"
            )
        if group not in actor.groups and not actor.is_admin:
            self._audit(str(call.caller), call.method, f"{actor.user} is not in group {group}")
            raise PermissionRefused(
                f"{actor.user} is not in group {group}", "a member of it or an administrator of the VO may do that"
            )
        return self.numbers((("g", group),))[0]

    @staticmethod
    def _check_name(m: p.MakeVolume, name: str) -> None:
        if m.kind not in {"home", "shared"} or (m.kind == "home" and m.group):
            raise UsageError(f"{m.kind[:20]!r} is no kind of volume", "home or shared")
        if not _NAME.fullmatch(name) or (m.kind == "shared" and name.startswith(HOME_PREFIX)):
            raise UsageError(
                f"{name[:64]!r} is no name for a volume", f"1 to 63 of a-z, 0-9, . _ -, not beginning with {HOME_PREFIX}"
            )

    def _free_id(self) -> int:
        """Several MRCs make volumes at the same time: a random id is free but for one time in millions, and DIR's view is checked."""
        taken = {row.id for row in self._core.directory.state.volumes.values()} | {
            row.record.id for row in self._core.state.volumes()
        }
        while True:
            number = 1 + secrets.randbelow(VOLUME_ID_MAX)
            if number not in taken:
                return number

    async def tell(self, row: Volume) -> VolumeRecord:
        """Make a new volume known to DIR; if the name was given away there meanwhile, the volume goes again.

        Raises:
            FsError(EEXIST): see above; a home that another MRC made is no error. What DIR raises: told again later.
        """
        core, record = self._core, row.record
        try:
            await core.directory.put(record)
        except FsError as error:
            if error.errno != errno.EEXIST:
                raise
            core.note_volume(core.execute(do.RemoveVolume(record.id, force=True)))
            await core.leasing.ordered(None)
            other = core.directory.state.volumes.get(record.name)
            if record.kind == "home" and other is not None and other.owner == record.owner:
                return other
            raise
        core.note_volume(core.execute(do.VolumeTold(record.id)))
        return await core.leasing.ordered(record)

    async def tell_all(self) -> None:
        """Tell DIR what a crash or its absence left untold: new volumes, and those that were removed."""
        for row in self._core.state.volumes():
            try:
                if row.state == "new":
                    await self.tell(row)
                elif row.state == "gone":
                    await self._core.directory.put(row.record)
            except XosError as error:
                log.warning("DIR was not told of volume %s: %s", row.record.name, error)

    async def rmvol(self, call: ServerCall) -> None:
        """Withdraw a volume and delete what is in it."""
        m = calls.message_of(call.params, p.RemoveVolume)
        row = self._owned(call, m.who, m.name)
        row = self._core.execute(do.RemoveVolume(row.record.id, m.force))
        self._core.note_volume(row)
        self._events.drop(row.record.id)
        await self._core.leasing.ordered(None)
        await self._core.directory.put(row.record)

    def _volume(self, name: str) -> Volume:
        number = self._core.state.volume_id(name)
        row = self._core.state.find_volume(number) if number is not None else None
        if row is None:
            raise VolumeUnknown(f"this metadata server has no volume {name[:64]!r}", "`xos fs volumes` lists them")
        return row

    def _owned(self, call: ServerCall, who: p.Who, name: str) -> Volume:
        row = self._volume(name)
        actor = self._core.actors.get(call.peer, who)
        local_root = not actor.user and actor.root_of == row.record.id
        if actor.user != row.record.owner and not actor.is_admin and not local_root:
            self._audit(str(call.caller), call.method, f"{actor.user or 'nobody'} does not own volume {name}")
            raise PermissionRefused(f"{actor.user or 'nobody'} does not own {name}", "ask its owner or an administrator of the VO")
        return row

    # -- quotas and names ------------------------------------------------------------------------------------------------

    async def volstat(self, call: ServerCall) -> p.Quotas:
        """Use and limits of a volume and its owners; who does not own it sees the volume and itself."""
        m = calls.message_of(call.params, p.VolumeStat)
        row = self._volume(m.name)
        actor = self._core.actors.get(call.peer, m.who)
        state, volume = self._core.state, row.record.id
        if actor.guest_of and self._core.actors.share(actor.guest_of, volume) is None:
            raise VolumeUnknown(f"volume {m.name[:64]!r} is not shared with VO {actor.guest_of}", "`xos fs shares` lists what is")
        limit, used = Usage(row.quota_bytes, row.quota_files), state.usage(volume, None)
        rows = [p.QuotaRow("", used.bytes, used.files, limit.bytes, limit.files)]
        mine = None if actor.user == row.record.owner or actor.is_admin or actor.root_of == volume else actor.cred.uid
        for owner in state.owners(volume):
            if mine is None or owner == mine:
                used, limit = state.usage(volume, owner), state.limits(volume, owner)
                found = state.principal(owner)
                rows.append(p.QuotaRow(found[1] if found else str(owner), used.bytes, used.files, limit.bytes, limit.files))
        return await self._core.leasing.ordered(p.Quotas(tuple(rows)))

    async def setquota(self, call: ServerCall) -> None:
        """Limits of a volume, or of one user in it."""
        m = calls.message_of(call.params, p.SetQuota)
        row = self._owned(call, m.who, m.name)
        owner = self.numbers((("u", m.user),))[0] if m.user else -1
        before = self._core.state.limits(row.record.id, None if owner < 0 else owner)
        self._core.execute(do.SetQuota(row.record.id, owner, m.bytes_max, m.files_max))
        if m.bytes_max and not before.bytes:  # its writers go on without bound until they ask anew
            await self._core.withdraw_all(row.record.id)
        changed = self._volume(m.name)
        self._core.note_volume(changed)
        await self._core.leasing.ordered(None)
        if owner < 0 and changed.state == "live":
            await self._core.directory.put(changed.record)

    async def share(self, call: ServerCall) -> None:
        """Share a volume with another VO, or end that at once: for administrators."""
        m = calls.message_of(call.params, p.ShareVolume)
        row, actor = self._volume(m.name), self._core.actors.get(call.peer, m.who)
        if not actor.is_admin:
            self._audit(str(call.caller), call.method, f"{actor.user or 'nobody'} is no administrator")
            raise PermissionRefused("volumes are shared between VOs by administrators", "ask one of the VO that owns it")
        share = Share(check_vo(m.vo), self._neighbours.root_of(m.vo), m.mode == "rw", m.until) if m.mode else None
        changed = self._core.execute(do.SetShare(row.record.id, m.vo, share))
        self._core.note_volume(changed)
        await self._core.leasing.ordered(None)
        if changed.state == "live":
            await self._core.directory.put(changed.record)

    async def names(self, call: ServerCall) -> list[Principal]:
        """Who numbers stand for."""
        m = calls.message_of(call.params, p.Names)
        if len(m.numbers) > NAMES_MAX:
            raise FsError(errno.E2BIG)
        state = self._core.state
        found = [(number, state.principal(number)) for number in m.numbers]
        return await self._core.leasing.ordered(
            [Principal("u" if row[0] == "u" else "g", number, row[1]) for number, row in found if row is not None]
        )

    async def numbers_of(self, call: ServerCall) -> list[int]:
        """Numbers of members and groups by name, for access lists and chgrp; no other name gets one by being asked for."""
        m = calls.message_of(call.params, p.Numbers)
        if len(m.names) > NAMES_MAX:
            raise FsError(errno.E2BIG)
        state = self._core.directory.state
        real = {"u": set(state.members), "g": {group for groups in state.groups.values() for group in groups}}
        known = tuple(
            row for row in m.names if row[1] in real.get(row[0], ()) or (row[0] == "u" and self._neighbours.is_guest(row[1]))
        )
        given = dict(zip(known, self.numbers(known), strict=True)) if known else {}
        return await self._core.leasing.ordered([given.get(row, -1) for row in m.names])

    def numbers(self, names: tuple[tuple[str, str], ...]) -> list[int]:
        """Return principals' numbers, giving them where there are none yet."""
        found = [self._core.state.number_of(kind, name) for kind, name in names]
        known = [number for number in found if number is not None]
        if len(known) == len(names):
            return known
        numbers: list[int] = self._core.execute(do.Principals(names))
        return numbers

    # -- watching --------------------------------------------------------------------------------------------------------

    async def events(self, call: ServerCall) -> None:
        """Changes of a volume, for its owner and administrators; stays open."""
        m = calls.message_of(call.params, p.Follow)
        row = self._owned(call, m.who, m.name)
        feed = self._events.feed(row.record.id)
        store = self._core.journal.store
        number = store.durable if m.after == FOLLOW_FROM_NOW else m.after
        if number > store.seq:  # from another server, or a store that was restored: nothing is known of what was between
            number = -1
        while row.record.id in self._core.volumes:
            changes = feed.after(number, store.durable)
            if changes.rows or changes.lost:
                call.send_event(changes)
                number = changes.rows[-1].number if changes.rows else max(number, feed.floor)
                await call.peer.drain()
            else:
                await feed.wait_more()
                await self._core.leasing.ordered(None)

    async def status(self, call: ServerCall) -> dict[str, Any]:
        """Counts, rates and log position, for the node's root and administrators."""
        m = calls.message_of(call.params, p.Status)
        if not (call.caller.kind == "local" and call.caller.uid == 0):
            actor = self._core.actors.get(call.peer, m.who)
            if not actor.is_admin:
                self._audit(str(call.caller), call.method, "not an administrator")
                raise PermissionRefused("that is for administrators of the VO")
        return self._status()


def _policy(fields: dict[str, int | str]) -> VolumePolicy:
    unknown = set(fields) - _POLICY_FIELDS
    if unknown:
        raise UsageError(f"a volume's policy has no {min(unknown)}", f"it has {', '.join(sorted(_POLICY_FIELDS))}")
    try:
        return msgspec.convert(fields, VolumePolicy)
    except msgspec.ValidationError as error:
        raise UsageError(f"that is no policy: {error}") from error
