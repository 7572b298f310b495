"""Other VOs with which volumes of this one are shared, as a metadata server sees them: who their members are, and what they say of shares.

A neighbour is known if this machine is a resource of that VO too: its trust store is then here, and its directory is followed through
this node's xosd, withdrawn credentials included. Guests keep names of their own, `bob@other`: no name of a member has an @ in it.

An agreement has two halves. The owner's is in the volume's record (`model.Share`) and pins the other VO's root certificate; the other VO's is
in its own directory (`accepted.VO`). Without either, or after its time, nobody comes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from xtreemos.errors import UsageError, XosError
from xtreemos.vo.document import Trust
from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.directory import Directory, State
from xtreemos.xtreemfs.errors import TicketRefused
from xtreemos.xtreemfs.model import Share, VolumeRecord
from xtreemos.xtreemfs.ticket import ANY_NODE, Holder, chain_judge, peek_ticket, verify_ticket

log = logging.getLogger(__name__)

WithdrawnGuest = Callable[[str, str], None]
"""Told of each credential that another VO has withdrawn: kind ("user" or "sid") and name (of a guest)."""


def guest_name(user: str, vo: str) -> str:
    """Return how a member of another VO is called here."""
    return f"{user}@{vo}"


def home_of(name: str) -> str:
    """Return the VO that a guest comes from; "" for a member."""
    return name.rpartition("@")[2] if "@" in name else ""


class Credentialed(Protocol):
    """What says whom a VO trusts."""

    def trust(self) -> Trust:
        """Return the trust store of now."""


@dataclass(frozen=True)
class FolderTrust:
    """The trust store beside this node's credential of a VO."""

    folder: CredentialFolder

    def trust(self) -> Trust:
        """See `Credentialed`."""
        self.folder.look()
        return self.folder.identity.trust


@dataclass
class Neighbour:
    """One other VO."""

    directory: Directory
    store: Credentialed
    revoked: RevocationSet = field(default_factory=RevocationSet)


def open_neighbour(vo: str, *, credential: Path, open_directory: Callable[[str], Directory]) -> Neighbour | None:
    """Return another VO, None if this machine is no resource of it. `credential`: the node's folder of its own VO."""
    try:
        folder = CredentialFolder(credential.parent / vo)
    except (OSError, msgspec.MsgspecError, XosError) as error:
        log.info("VO %s is no neighbour: %s", vo, error)
        return None
    return Neighbour(open_directory(vo), FolderTrust(folder))


class Neighbours:
    """All of one process. `run` follows them; those that no volume is shared with are not followed until they are asked for."""

    def __init__(
        self,
        directory: Directory,
        opener: Callable[[str], Neighbour | None],
        on_withdrawn: WithdrawnGuest,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make it. `directory`: of the own VO. `opener`: returns another VO by name, None if it cannot be known here. `clock`: seconds since 1970."""
        self._directory = directory
        self._opener = opener
        self._on_withdrawn = on_withdrawn
        self._clock = clock
        self._known: dict[str, Neighbour] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, vo: str) -> Neighbour | None:
        """Return another VO, followed from now on; None if it cannot be known here. Inside the event loop."""
        found = self._known.get(vo)
        if found is None and vo != self._directory.vo and (found := self._opener(vo)) is not None:
            self._known[vo] = found
            found.directory.on_change(lambda state: self._take(vo, state))
            self._take(vo, found.directory.state)
            self._tasks.add(asyncio.ensure_future(found.directory.run()))
        return found

    def _take(self, vo: str, state: State) -> None:
        revoked = self._known[vo].revoked
        for key, value in state.revoked.items():
            try:
                new = revoked.apply(key, Revocation.from_bytes(value))
                _word, kind, name = key.split(".", 2)
            except (msgspec.MsgspecError, ValueError):
                log.warning("the record %s of VO %s cannot be read", key, vo)
                continue
            if new and kind in {"user", "sid"}:
                self._on_withdrawn(kind, guest_name(name, vo) if kind == "user" else name)

    def root_of(self, vo: str) -> bytes:
        """Return the fingerprint of another VO's root certificate; UsageError: it is not known here."""
        found = self.find(vo)
        if found is None:
            raise UsageError(f"the machine of the metadata server is no resource of VO {vo[:64]}", "it must be of both: `xos join`")
        return found.store.trust().root_sha256

    def share(self, vo: str, volume: VolumeRecord) -> Share | None:
        """Return the agreement about a volume with another VO if both halves of it are there now, None otherwise."""
        share = volume.share_with(vo, self._clock())
        found = self.find(vo) if share is not None else None
        if share is None or found is None or found.store.trust().root_sha256 != share.root_sha256:
            return None
        return share if volume.name in found.directory.state.accepted.get(self._directory.vo, ()) else None

    def is_guest(self, name: str) -> bool:
        """Whether a name is one of a member of a VO that some volume is shared with."""
        vo = home_of(name)
        found = self._known.get(vo) if vo else None
        return found is not None and name.rpartition("@")[0] in found.directory.state.members

    def verify(self, record: bytes, node: str) -> Holder:
        """Check a ticket of a member of another VO; the holder has a guest's name and no roles.

        Raises:
            TicketRefused, or what the other VO's verifier raises: nothing is shared with that VO, or the ticket is not good. Definite.
        """
        ticket = peek_ticket(record)
        shared = [
            row for row in self._directory.state.volumes.values() if not row.removed and self.share(ticket.vo, row) is not None
        ]
        found = self._known.get(ticket.vo)
        if not shared or found is None:
            raise TicketRefused(f"no volume of VO {self._directory.vo} is shared with VO {ticket.vo[:64]}", "see `xos fs shares`")
        if ticket.node == ANY_NODE:
            raise TicketRefused("the ticket of a detached job is good in its own VO only", "log in on that node")
        if ticket.user not in found.directory.state.members:
            raise TicketRefused(f"VO {ticket.vo} has no active member {ticket.user[:64]}")
        judge = chain_judge(found.store.trust, found.revoked)
        held = verify_ticket(record, vo=ticket.vo, node=node, now_s=self._clock(), verify_chain=judge)
        return msgspec.structs.replace(held, user=guest_name(held.user, held.vo), roles=frozenset())

    async def close(self) -> None:
        """Follow nobody any more."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
