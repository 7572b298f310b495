"""Who may use this mount at all: a local user whose last ticket was withdrawn or has ended is shut out, whatever is cached here.

The MRC ends such users' actors by itself; but under leases this mount and the kernel answer without asking it. So requests of these users are
refused at the door, and the kernel forgets what it would answer by itself. Files that the kernel reads and writes at the OSD itself
(passthrough) stay open to programs that have them open. Users who never had a ticket are strangers, not shut out.

Groups likewise: a program keeps the group numbers that it was started with, and the kernel goes by them. So one that carries the number of a
group its user has left is refused, until it ends, whatever belongs to that group or names it in its access list and is not its user's own.

Members of other VOs of this machine are let in to volumes that are shared with theirs, and to nothing else, not even the list of volumes. Whom an
agreement lets read only is refused here what would change something. All of this the MRC says as well; but it is not asked each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import Op
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.replies import ROUTES
from xtreemos.xtreemfs.model import NOBODY, VO_ROOT_INO, Share, volume_of
from xtreemos.xtreemfs.nodeidentities import NodeIdentities
from xtreemos.xtreemfs.ticket import Ticket

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.client.inodes import Inode
    from xtreemos.xtreemfs.client.operations import Operations

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0  # between looks for tickets that have ended by themselves
OPEN_OPS: Final = {Op.RELEASE, Op.RELEASEDIR, Op.FLUSH, Op.FSYNC}  # ends of what was begun: not for the user but for the data

CHANGES: Final = frozenset(
    [
        "setattr",
        "symlink",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "write",
        "setxattr",
        "removexattr",
        "create",
        "fallocate",
        "copy_file_range",
        "tmpfile",
    ]
)
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_GROUPS: Final = (acl.GROUP_OBJ, acl.GROUP)


class Gate:
    """Stands before the operations of one mount. `run` looks for tickets that end."""

    def __init__(self, client: Client, people: NodeIdentities, operations: Operations) -> None:
        self._client = client
        self._people = people
        self._revoked = RevocationSet()
        self._shut: set[int] = set()
        self._changes = people.changes
        self._groups: Mapping[str, tuple[str, ...]] = {}
        self._left: dict[int, set[int]] = {}
        """Local uid -> gids of groups that its user has left, and that programs may still carry."""
        self._seen: dict[int, list[Ticket]] = {}
        """Guest's uid -> tickets that were seen last."""
        self._shares: dict[int, tuple[Share, ...]] = {}
        """Volume id -> agreements in force when they were looked at last."""
        for name in {name for op, (name, _encode) in ROUTES.items() if op not in OPEN_OPS}:
            setattr(operations, name, self._guarded(getattr(operations, name), changes=name in CHANGES))
        client.directory.on_change(self._on_change)
        self._on_change(client.directory.state)

    def _guarded(self, handler: Callable[[Any], Any], *, changes: bool) -> Callable[[Any], Any]:
        shut, left, guest_of = self._shut, self._left, self._people.guest_of

        def guarded(request: Any) -> Any:
            if request.uid in shut or (request.uid in left and self._is_left_behind(request)):
                raise FuseError(errno.EACCES)
            if guest_of(request.uid):
                self._check_guest(request, changes=changes)
            return handler(request)

        return guarded

    def _on_change(self, state: State) -> None:
        if state.members and state.groups != self._groups:
            self._note_groups(state.groups)
        self._look_at_shares()
        news = False
        for key, value in state.revoked.items():
            try:
                news |= self._revoked.apply(key, Revocation.from_bytes(value))
            except msgspec.MsgspecError:
                log.warning("the directory's record %s cannot be read", key)
        if news:
            self.look()

    def look(self) -> None:
        """Shut out who has no ticket any more; let in who has one again."""
        shut = {self._people.local_id("u", user) for user in self._people.withdraw(self._revoked)} - {NOBODY}
        fresh = shut - self._shut
        for uid in self._shut ^ shut:
            for session in self._client.sessions.values():
                session.actors.forget(uid)
        self._shut.intersection_update(shut)
        self._shut |= fresh
        if fresh:
            log.info("local users %s have no ticket any more and are shut out", sorted(fresh))
            self._client.start(self._client.coherence.empty_kernel(lambda inode: self._is_of(inode, fresh)))

    # -- guests ----------------------------------------------------------------------------------------------------------

    def _check_guest(self, request: Any, *, changes: bool) -> None:
        """Refuse what no agreement allows: EACCES, or EROFS to whom it lets read only."""
        ino = self._client.ino_of(request.nodeid)
        if ino == VO_ROOT_INO and isinstance(request, m.GetAttr | m.Statx):
            return  # on the way to a volume
        volume = volume_of(ino)
        record = self._client.directory.state.volume_by_id(volume)
        if record is None and isinstance(request, m.Lookup):  # in the folder of volumes
            record = self._client.directory.state.volumes.get(request.name.decode("utf-8", "surrogateescape"))
        share = record.share_with(self._people.guest_of(request.uid), time.time()) if record is not None else None
        tickets = self._people.guest_tickets(request.uid)
        if tickets != self._seen.get(request.uid):  # another log-in: who acts under an older one acts under it from now on
            self._seen[request.uid] = tickets
            for session in self._client.sessions.values():
                session.actors.forget(request.uid)
        if share is None or not tickets:
            raise FuseError(errno.EACCES)
        if not share.write and (changes or (isinstance(request, m.Open) and request.flags & _WRITING)):
            raise FuseError(errno.EROFS)

    def _look_at_shares(self) -> None:
        """Have the kernel forget volumes that were shared and are no more, or for reading only."""
        now, old = time.time(), self._shares
        rows = {
            row.id: tuple(one for one in row.shares if not one.is_over(now))
            for row in self._client.directory.state.volumes.values()
        }
        self._shares = {volume: shares for volume, shares in rows.items() if shares}
        gone = {volume for volume, shares in old.items() if set(shares) - set(self._shares.get(volume, ()))}
        if gone:
            for session in self._client.sessions.values():
                session.actors.forget()
            self._client.start(self._client.coherence.empty_kernel(lambda inode: volume_of(inode.ino) in gone))

    # -- groups ----------------------------------------------------------------------------------------------------------

    def _note_groups(self, groups: Mapping[str, tuple[str, ...]]) -> None:
        """Take who is in which group now; the kernel forgets what it knows of groups that somebody has left."""
        old, self._groups = self._groups, groups
        gid_of = self._people.local_id
        left = {(user, group) for user, names in old.items() for group in set(names) - set(groups.get(user, ()))}
        found = {(gid_of("u", user), gid_of("g", group)) for user, group in left}
        if not old:  # just started: programs may carry what their users left before
            found = {(uid, gid) for uid, gid in _carried_by_all() if self._is_foreign(uid, gid)}
        found = {(uid, gid) for uid, gid in found if uid != NOBODY}
        for uid, gid in found:
            self._left.setdefault(uid, set()).add(gid)
        for user in groups:
            uid = gid_of("u", user)
            if uid in self._left:
                self._left[uid] -= {gid_of("g", group) for group in groups[user]}
                if not self._left[uid]:
                    del self._left[uid]
        gone = {gid for _uid, gid in found}
        if gone:
            log.info("groups were left: %s (local uid, gid); programs that still carry them are refused", sorted(found))
            self._client.start(self._client.coherence.empty_kernel(lambda inode: bool(self._groups_of(inode) & gone)))

    def _is_foreign(self, uid: int, gid: int) -> bool:
        """Whether a gid is a group of this VO and a uid a member who is not in it."""
        user, group = self._people.name_of("u", uid), self._people.name_of("g", gid)
        return user is not None and group is not None and group not in self._groups.get(user, ())

    def _is_left_behind(self, request: Any) -> bool:
        """Whether a program asks for what is not its user's own and it may get at by a group which that user has left."""
        gids = self._left[request.uid]
        if request.pid:  # else it is not to be seen from here
            gids = gids & _credentials(request.pid)[1]
        inode = self._client.inodes.get(self._client.ino_of(request.nodeid)) if gids else None
        if inode is None:
            return False  # not known here, so the MRC is asked
        shown = self._shown_by(inode)
        return (acl.USER_OBJ, request.uid) not in shown and any((tag, gid) in shown for tag in _GROUPS for gid in gids)

    def _groups_of(self, inode: Inode) -> set[int]:
        """Return the local gids that an inode belongs to, or names in the access list that the kernel was given."""
        return {ident for tag, ident in self._shown_by(inode) if tag in _GROUPS}

    def _shown_by(self, inode: Inode) -> set[tuple[int, int]]:
        """Return rows (tag, local id) of owner, group, and whom the inode's access lists name, as the kernel was told; none if its volume is gone."""
        record = self._client.directory.state.volume_by_id(volume_of(inode.ino))
        session = self._client.sessions.get(record.mrc) if record is not None else None
        if session is None:
            return set()
        local = session.principals.local
        shown = {(acl.USER_OBJ, local("u", inode.attr.uid)), (acl.GROUP_OBJ, local("g", inode.attr.gid))}
        lists = [value for name in (acl.ACCESS, acl.DEFAULT) if (value := inode.xattrs.get(name))]
        return shown | {(tag, ident) for value in lists for tag, _perm, ident in acl.decode(value) if ident != acl.NO_ID}

    def _look_at_numbers(self) -> None:
        """If the node has new numbers for people or groups, who was shown as nobody may be somebody now: the kernel asks again."""
        self._people.look()
        if self._people.changes == self._changes:
            return
        self._changes = self._people.changes
        stale = [inode for inode in self._client.inodes if any(ident == NOBODY for _tag, ident in self._shown_by(inode))]
        for session in self._client.sessions.values():
            session.principals.relearn()
        for inode in stale:
            inode.xattrs.clear()
        numbers = {inode.ino for inode in stale}
        self._client.start(self._client.coherence.empty_kernel(lambda inode: inode.ino in numbers))

    def _is_of(self, inode: Inode, uids: set[int]) -> bool:
        return any(session.principals.local("u", inode.attr.uid) in uids for session in self._client.sessions.values())

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
            self._look_at_numbers()
            self._look_at_shares()


def _credentials(pid: int) -> tuple[set[int], set[int]]:
    """Return the uids and gids that a thread may act with; none if it has gone."""
    uids: set[int] = set()
    gids: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Uid:"):
                uids.update(map(int, line.split()[1:]))
            elif line.startswith((b"Gid:", b"Groups:")):
                gids.update(map(int, line.split()[1:]))
    return uids, gids


def _carried_by_all() -> set[tuple[int, int]]:
    """Return (uid, gid) of all programs of the machine."""
    found: set[tuple[int, int]] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        found.update(itertools.product(*_credentials(int(folder.name))))
    return found
