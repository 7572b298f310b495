"""Who acts: from the kernel's uid to an actor of the MRC, and from principals (numbers of the VO) to local ids and back.

What a node knows of people comes through `Identities`. The grid's asks xosd; `PlainIdentities` is the one of a mount by a volume's owner as its
root, where ids are plain numbers on both sides and supplementary groups are those of the calling thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Literal, Protocol

from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.model import FIRST_PRINCIPAL, NOBODY, Principal, volume_of

log = logging.getLogger(__name__)

ACTOR_MARGIN_S = 30  # an actor is asked for anew so long before its ticket ends


class Identities(Protocol):
    """What the node knows of the VO's people. Calls without `async` answer from tables at once."""

    plain: bool
    """Ids are plain numbers and the mount acts as root of its volumes."""

    async def ticket(self, uid: int) -> bytes:
        """Return the ticket of who works here as local `uid`; b"" if nobody does (rights of a stranger)."""

    def local_id(self, kind: Literal["u", "g"], name: str) -> int:
        """Return the local id of a user or group of the VO; NOBODY if this node has none for it. Users' own groups are no groups here."""

    def name_of(self, kind: Literal["u", "g"], number: int) -> str | None:
        """Return the VO's name of a local id; None if it is nobody's."""


class PlainIdentities:
    """Plain ids, as the volume's root: for imports, backups, test suites, and machines without a grid."""

    plain = True

    async def ticket(self, uid: int) -> bytes:  # noqa: ARG002  # the interface
        """See `Identities`: no ticket is needed, the server knows the local root."""
        return b""

    def local_id(self, kind: Literal["u", "g"], name: str) -> int:  # noqa: ARG002
        """See `Identities`: principals are shown as nobody."""
        return NOBODY

    def name_of(self, kind: Literal["u", "g"], number: int) -> str | None:  # noqa: ARG002
        """See `Identities`."""
        return None


def groups_of(pid: int) -> tuple[int, ...]:
    """Return the supplementary groups of a thread; empty if it is gone or not to be seen."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return tuple(map(int, line.split()[1:]))
    except OSError:
        return ()
    return ()


class Actors:
    """The actors of one connection to one MRC after another: made when first needed, forgotten with the connection."""

    def __init__(self, identities: Identities, clock: Clock) -> None:
        self._identities = identities
        self._clock = clock
        self._peer: Peer | None = None
        self._acting: dict[int, asyncio.Future[protocol.Acting]] = {}  # by local uid, or by volume id if plain

    async def who(self, peer: Peer, uid: int, gid: int, pid: int, ino: int) -> protocol.Who:
        """Return on whose behalf a request of the kernel is made. RemoteError as `mrc.act` refuses."""
        if peer is not self._peer:
            self._peer, self._acting = peer, {}
        plain = self._identities.plain
        key = volume_of(ino) if plain else uid
        waiting = self._acting.get(key)
        if waiting is None or (waiting.done() and self._is_over(waiting)):
            waiting = self._acting[key] = asyncio.ensure_future(self._act(peer, uid, volume_of(ino) if plain else 0))
        acting = waiting.result() if waiting.done() else await asyncio.shield(waiting)
        if not plain:
            return protocol.Who(acting.actor)
        return protocol.Who(acting.actor, uid, gid, groups_of(pid) if uid and pid else ())

    def forget(self, uid: int | None = None) -> None:
        """Ask for tickets anew: of one local user, or of all."""
        if uid is None:
            self._acting.clear()
        else:
            self._acting.pop(uid, None)

    def _is_over(self, done: asyncio.Future[protocol.Acting]) -> bool:
        if done.cancelled() or done.exception() is not None:
            return True
        return self._clock() > done.result().expires_at - ACTOR_MARGIN_S

    async def _act(self, peer: Peer, uid: int, root_of: int) -> protocol.Acting:
        message = protocol.Act(await self._identities.ticket(uid), root_of)
        return calls.answer_of(await peer.call("mrc.act", calls.params(message), timeout_s=10), protocol.Acting)


class Clock(Protocol):
    """Seconds since 1970."""

    def __call__(self) -> float: ...


class Principals:
    """Numbers of the VO <-> local ids, for one MRC. What is not known yet is `missing` and has to be learned before it can be shown."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._local: dict[tuple[str, int], int] = {}
        self._number: dict[tuple[str, int], int] = {}

    def missing(self, uid: int, gid: int) -> list[int]:
        """Return which of an inode's owner and group must be asked for (`mrc.names`) first."""
        return [n for kind, n in (("u", uid), ("g", gid)) if n >= FIRST_PRINCIPAL and (kind, n) not in self._local]

    def learn(self, asked: Iterable[int], found: Iterable[Principal]) -> None:
        """Take an answer of `mrc.names`. What was asked for and not found is nobody's from now on."""
        for number in asked:
            for kind in ("u", "g"):
                self._local.setdefault((kind, number), NOBODY)
        for principal in found:
            local = self._identities.local_id(principal.kind, principal.name)
            for kind in ("u", "g") if principal.kind == "u" else ("g",):  # a user's own group has the user's number
                self._local[kind, principal.number] = local
                if local != NOBODY:
                    self._number[kind, local] = principal.number

    def local(self, kind: Literal["u", "g"], number: int) -> int:
        """Return the local id to show for an owner or group."""
        return number if number < FIRST_PRINCIPAL else self._local.get((kind, number), NOBODY)

    def number(self, kind: Literal["u", "g"], local: int) -> int | None:
        """Return the VO's number for a local id, None if this node knows none."""
        return local if self._identities.plain else self._number.get((kind, local))

    def relearn(self) -> None:
        """Forget all (the accounts of the node changed)."""
        self._local.clear()
        self._number.clear()
