"""On whose behalf requests are made: tickets become actors of one connection, and actors become principals for the machine.

It decides who somebody is, never what they may do. Who is in which group comes from the VO's registry, as it is at each request: neither a
ticket nor the node that asks has a say in it. Every refusal is told to the audit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from xtreemos.errors import PermissionRefused, XosError
from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs.errors import ActorUnknown, FsError, TicketRefused
from xtreemos.xtreemfs.model import NOBODY, Share, volume_of
from xtreemos.xtreemfs.mrc.model import Cred
from xtreemos.xtreemfs.neighbours import home_of
from xtreemos.xtreemfs.protocol import Act, Acting, Who

ACTORS_MAX: Final = 4096  # of one connection; the oldest goes
LOCAL_PREFIX: Final = b"local:"
LOCAL_LIFE_S: Final = 24 * 3600  # of an actor made without a ticket
ADMIN_ROLE: Final = "admin"


class Ticketed(Protocol):
    """What a checked ticket says (`ticket.Holder` is one)."""

    @property
    def user(self) -> str:
        """Name in the VO."""

    @property
    def roles(self) -> frozenset[str]:
        """Roles in the VO."""

    @property
    def expires_at(self) -> int:
        """Seconds since 1970."""

    @property
    def sid(self) -> str:
        """Session whose key signed it."""


VerifyTicket = Callable[[bytes, str], Ticketed]
"""(ticket, node that shows it) -> what it says; raises XosError if it is not good."""
Audit = Callable[[str, str, str], None]
"""(who, what, why): a refusal is written down."""


class Actor(msgspec.Struct, frozen=True):
    """One actor. `user` is "" for nobody and for a local root without a name; `root_of`: acts as root of this volume.

    `groups`: of the VO, as they were when `cred` was made.
    """

    user: str
    roles: frozenset[str]
    cred: Cred
    root_of: int
    expires_at: int
    node: str
    sid: str = ""
    ticket: bytes = b""
    groups: tuple[str, ...] = ()

    @property
    def is_admin(self) -> bool:
        """Whether it administers the VO."""
        return ADMIN_ROLE in self.roles and not self.guest_of

    @property
    def guest_of(self) -> str:
        """The other VO that it comes from; "" for a member."""
        return home_of(self.user)


class _Local(msgspec.Struct, frozen=True):
    user: str
    roles: frozenset[str]
    expires_at: int
    sid: str = ""


class Actors:
    """The actors of all connections of one MRC."""

    def __init__(
        self,
        *,
        verify: VerifyTicket | None,
        numbers: Callable[[tuple[tuple[str, str], ...]], list[int]],
        owner_of: Callable[[int], str | None],
        roles_of: Callable[[str], frozenset[str]],
        groups_of: Callable[[str], tuple[str, ...]],
        share: Callable[[str, int], Share | None],
        audit: Audit,
        clock: Callable[[], float],
    ) -> None:
        """Make the table.

        Args:
            verify: judge of tickets; None: there are none here (standalone), and the local root names who it acts for.
            numbers: gives principals (kind, name) their numbers.
            owner_of: volume id -> its owner's name, None if there is no such volume.
            roles_of: user -> roles, for a server without tickets.
            groups_of: user -> groups of the VO they are in now.
            share: (other VO, volume id) -> the agreement that is in force now, None if there is none.
            audit: takes refusals.
            clock: seconds since 1970.
        """
        self._verify = verify
        self._numbers = numbers
        self._owner_of = owner_of
        self._roles_of = roles_of
        self._groups_of = groups_of
        self.share = share
        self._audit = audit
        self._clock = clock
        self._tables: dict[Peer, dict[int, Actor]] = {}
        self._next = 0

    def act(self, peer: Peer, node: str, m: Act) -> Acting:
        """Make an actor for a connection from `node`.

        Raises:
            TicketRefused, PermissionRefused, or what the judge raises: audited.
        """
        try:
            held = self._judge(peer, node, m.ticket)
            if m.root_of:
                self._check_root(held, m.root_of)
        except XosError as error:
            self._audit(str(peer.caller), "mrc.act", error.message)
            raise
        groups = self._groups_of(held.user)
        cred = self._cred(held.user, groups, root=bool(m.root_of))
        actor = Actor(held.user, held.roles, cred, m.root_of, held.expires_at, node, held.sid, m.ticket, groups)
        table = self._tables.get(peer)
        if table is None:
            table = self._tables[peer] = {}
            peer.lost.add_done_callback(lambda _done: self._tables.pop(peer, None))
        self._next += 1
        table[self._next] = actor
        while len(table) > ACTORS_MAX:
            del table[next(iter(table))]
        return Acting(self._next, cred.uid, cred.gid, cred.groups, actor.expires_at)

    def _judge(self, peer: Peer, node: str, ticket: bytes) -> Any:
        life = int(self._clock()) + LOCAL_LIFE_S
        if self._verify is None:
            if peer.caller.kind != "local" or peer.caller.uid != 0:
                raise TicketRefused("this metadata server knows no tickets, and you are not its machine's root")
            if ticket.startswith(LOCAL_PREFIX):
                user = ticket.removeprefix(LOCAL_PREFIX).decode(errors="replace")
                return _Local(user, self._roles_of(user), life)
            if not ticket:
                return _Local("", frozenset(), life)
            raise TicketRefused("this metadata server knows no tickets")
        if not ticket:
            return _Local("", frozenset(), life)
        return self._verify(ticket, node)

    def _check_root(self, held: Any, volume: int) -> None:
        owner = self._owner_of(volume)
        if owner is None:
            raise FsError(errno.ENOENT, "there is no such volume here")
        if self._verify is None and not held.user:
            return  # the machine's own root, on a server without a grid
        if not held.user or home_of(held.user) or (held.user != owner and ADMIN_ROLE not in held.roles):
            who = held.user or "nobody"
            raise PermissionRefused(f"{who} does not own the volume", "only its owner or an administrator may act as its root")

    def _cred(self, user: str, groups: tuple[str, ...], *, root: bool) -> Cred:
        if not user:
            return Cred(0, 0, (), root=True) if root else Cred(NOBODY, NOBODY)
        own, *numbers = self._numbers((("u", user), *(("g", group) for group in groups)))
        return Cred(own, own, tuple(numbers), root=root)

    def get(self, peer: Peer, who: Who) -> Actor:
        """Return an actor of a connection; ActorUnknown: it is none, its ticket has ended or was withdrawn (`mrc.act` makes a new one)."""
        table = self._tables.get(peer, {})
        actor = table.get(who.actor)
        if actor is None or self._clock() >= actor.expires_at:
            raise ActorUnknown("that actor is unknown here or its ticket has ended", "show the ticket again")
        groups = self._groups_of(actor.user)
        if groups != actor.groups:
            cred = self._cred(actor.user, groups, root=bool(actor.root_of))
            actor = table[who.actor] = msgspec.structs.replace(actor, groups=groups, cred=cred)
        return actor

    def _guest_cred(self, peer: Peer, actor: Actor, volume: int) -> Cred:
        share = self.share(actor.guest_of, volume)
        if share is None:
            self._audit(str(peer.caller), "mrc.guest", f"volume {volume} is not shared with VO {actor.guest_of}, of {actor.user}")
            raise FsError(errno.EACCES, "the volume is not shared with your VO")
        return actor.cred if share.write else msgspec.structs.replace(actor.cred, reader=True)

    def judge_again(self, kind: str, name: str) -> None:
        """Something was withdrawn: judge the tickets of its actors again, and end those whose ticket is good no more (audited).

        Args:
            kind: "user", "sid" or "node".
            name: which.
        """
        for peer, table in self._tables.items():
            for number, actor in list(table.items()):
                hit = {"user": actor.user, "sid": actor.sid, "node": actor.node}.get(kind) == name
                if not hit or not actor.ticket or self._verify is None:
                    continue
                try:
                    self._verify(actor.ticket, actor.node)
                except XosError as error:
                    del table[number]
                    self._audit(str(peer.caller), "mrc.actor", f"{actor.user} acts no more: {error.message}")

    def cred(self, peer: Peer, who: Who, ino: int) -> Cred:
        """Return the principals to act as on an inode; raises as `get`, and FsError(EACCES) for a root outside its volume (audited)."""
        actor = self.get(peer, who)
        if actor.guest_of:
            return self._guest_cred(peer, actor, volume_of(ino))
        if not actor.root_of:
            return actor.cred
        if volume_of(ino) != actor.root_of:
            self._audit(str(peer.caller), "mrc.root", f"root of volume {actor.root_of} asked for volume {volume_of(ino)}")
            raise FsError(errno.EACCES, "root of one volume is nobody in another")
        uid, gid = max(who.uid, 0), max(who.gid, 0)
        return Cred(uid, gid, who.groups, root=uid == 0)
