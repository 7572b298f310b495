"""What the mount process of a grid node knows of people: local numbers from the node's snapshot of the VO's members and groups, and tickets.

The snapshot is what xosd writes for `userdb` (RUN/userdb.json), so names and numbers are those that programs see. Tickets are kept
in memory and in a root-only folder of the run directory: a restarted mount process goes on for everybody who works here.

Members of other VOs that this machine serves are guests here, `bob@other`, for volumes that are shared with them. Their log-in's ticket is looked up
where the mount process of their own VO keeps it, and takes it away when it is withdrawn.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller
from xtreemos.foundation.files import write_atomically
from xtreemos.names import check_user, check_vo
from xtreemos.vo.revocation import RevocationSet
from xtreemos.xtreemfs.model import NOBODY
from xtreemos.xtreemfs.ticket import Ticket, peek_ticket, session_behind

log = logging.getLogger(__name__)

USER_TICKETS_MAX = 64  # of one user at a time: the log-in's, and those of detached jobs


class NodeIdentities:
    """The `Identities` of a grid node (see `client.actors`). `clock` gives seconds since 1970."""

    plain = False

    def __init__(self, snapshot: Path, folder: Path, *, vo: str, clock: Callable[[], float] = time.time) -> None:
        self._snapshot = snapshot
        self._folder = folder
        self._vo = vo
        self._clock = clock
        self._seen_ns = 0
        self.changes = 0
        """How many snapshots were read: numbers may differ from one to the next."""
        self._numbers: dict[tuple[Literal["u", "g"], str], int] = {}
        self._vos: dict[int, str] = {}
        self._names: dict[tuple[Literal["u", "g"], int], str] = {}
        self._tickets: dict[str, list[tuple[Ticket, bytes]]] = {}
        self._guests: dict[str, tuple[int, list[tuple[Ticket, bytes]]]] = {}
        """Guest -> when the file of their tickets was changed, and what is in it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._load()

    def delegate(self, record: bytes) -> str:
        """Take a ticket that xosd has got from its user; return whose it is. The MRC judges it. TicketRefused if it is none."""
        ticket = peek_ticket(record)
        check_user(ticket.user)
        self._add(ticket, record)
        self._write(ticket.user)
        return ticket.user

    def _add(self, ticket: Ticket, record: bytes) -> None:
        """Keep the newest of the log-in and one a job, the longest-lived last; those that are over go."""
        now = self._clock()
        rows = [row for row in self._tickets.get(ticket.user, []) if row[0].job != ticket.job and row[0].expires_at > now]
        rows = sorted([*rows, (ticket, record)], key=lambda row: (not row[0].job, row[0].expires_at))
        self._tickets[ticket.user] = rows[-USER_TICKETS_MAX:]

    def _load(self) -> None:
        for path in self._folder.iterdir():
            self._tickets.setdefault(path.name, [])
            for ticket, record in _read(path):
                self._add(ticket, record)

    def withdraw(self, revoked: RevocationSet) -> list[str]:
        """Drop tickets that are over or whose session or user was revoked; return the users who have none left, sorted."""
        now = self._clock()
        for user, rows in list(self._tickets.items()):
            good = [row for row in rows if row[0].expires_at > now and not _is_revoked(*row, revoked)]
            if len(good) == len(rows):
                continue
            log.info("%d tickets of %s are withdrawn or over, %d are left", len(rows) - len(good), user, len(good))
            self._tickets[user] = good
            self._write(user)
        return sorted(user for user, rows in self._tickets.items() if not rows)

    def _write(self, user: str) -> None:
        rows = self._tickets[user]
        write_atomically(self._folder / user, b"".join(len(row).to_bytes(4, "big") + row for _ticket, row in rows))

    async def ticket(self, uid: int) -> bytes:
        """Return the ticket of who works here as `uid`: the log-in's if there is one, else a job's; b"" if there is none."""
        user = self.name_of("u", uid) or ""
        now = self._clock()
        held = self._tickets.get(user, []) if "@" not in user else self._of_guest(user)
        rows = [row for row in held if row[0].expires_at > now]
        return rows[-1][1] if rows else b""

    def guest_of(self, uid: int) -> str:
        """Return which other VO a local uid is a member of; "" for anybody else."""
        if not uid:
            return ""
        found = self._vos.get(uid)
        return found if found is not None else (self.name_of("u", uid) or "").partition("@")[2]

    def guest_tickets(self, uid: int) -> list[Ticket]:
        """Return the tickets of a guest's log-ins that have not ended."""
        now = self._clock()
        return [ticket for ticket, _record in self._of_guest(self.name_of("u", uid) or "") if ticket.expires_at > now]

    def _of_guest(self, name: str) -> list[tuple[Ticket, bytes]]:
        """Return what the mount process of a guest's own VO holds of them for log-ins: a detached job's ticket is good there only."""
        user, _at, vo = name.partition("@")
        path = self._folder.parent.parent / check_vo(vo) / self._folder.name / check_user(user)
        try:
            changed_ns = path.stat().st_mtime_ns
            seen, rows = self._guests.get(name, (0, []))
            if seen != changed_ns:
                rows = [row for row in _read(path) if not row[0].job]
                self._guests[name] = (changed_ns, rows)
        except FileNotFoundError:
            return []
        return rows

    def local_id(self, kind: Literal["u", "g"], name: str) -> int:
        """Return the uid of a member or the gid of a group on this node, NOBODY if there is none."""
        if (kind, name) not in self._numbers:
            self.look()
        return self._numbers.get((kind, name), NOBODY)

    def name_of(self, kind: Literal["u", "g"], number: int) -> str | None:
        """Return which member's uid or group's gid a number is in this VO, None if nobody's."""
        if (kind, number) not in self._names:
            self.look()
        return self._names.get((kind, number))

    def look(self) -> None:
        """Read the snapshot again if it is a new one."""
        try:
            changed_ns = self._snapshot.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._seen_ns:
            return
        found = json.loads(self._snapshot.read_text())
        rows: list[tuple[Literal["u", "g"], str, int]] = [
            ("u", row["user"] if row["vo"] == self._vo else f"{row['user']}@{row['vo']}", row["uid"]) for row in found["users"]
        ]
        rows += [("g", row["group"], row["gid"]) for row in found.get("groups", []) if row["vo"] == self._vo]
        self._numbers = {(kind, name): number for kind, name, number in rows}
        self._names = {(kind, number): name for kind, name, number in rows}
        self._vos = {number: name.partition("@")[2] for kind, name, number in rows if kind == "u"}
        self._seen_ns = changed_ns
        self.changes += 1


class OwnerRoot:
    """The `Identities` of a mount that acts as root of a volume by its owner's ticket: ids are plain numbers on both sides."""

    plain = True

    def __init__(self, people: NodeIdentities, owner: str) -> None:
        self._people = people
        self._owner = owner

    def delegate(self, record: bytes) -> str:
        """Take a ticket of the owner; those of others are of no use here and are not kept. Returns whose it is."""
        user = peek_ticket(record).user
        return self._people.delegate(record) if user == self._owner else user

    async def ticket(self, uid: int) -> bytes:  # noqa: ARG002  # whoever works here does so by the owner's leave
        """Return the owner's ticket, b"" if there is none (any more)."""
        return await self._people.ticket(self._people.local_id("u", self._owner))

    def local_id(self, kind: Literal["u", "g"], name: str) -> int:  # noqa: ARG002
        """Principals are shown as nobody."""
        return NOBODY

    def name_of(self, kind: Literal["u", "g"], number: int) -> str | None:  # noqa: ARG002
        """Nobody has a name here."""
        return None


def _read(path: Path) -> list[tuple[Ticket, bytes]]:
    """Read a file of tickets; what is none is left out and logged."""
    data, rows = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        record, data = data[4 : 4 + size], data[4 + size :]
        try:
            rows.append((peek_ticket(record), record))
        except XosError as error:
            log.warning("the ticket in %s is dropped: %s", path, error)
    return rows


def _is_revoked(ticket: Ticket, record: bytes, revoked: RevocationSet) -> bool:
    """Tell whether a ticket's user was revoked, or its session unless it is a detached job's."""
    try:
        sid, serial, issued_at = session_behind(record)
    except XosError:
        return True  # nobody would take it
    if ticket.job:
        return revoked.is_revoked("", ticket.user, issued_at)
    return revoked.covers(Caller("user", vo=ticket.vo, name=ticket.user, sid=sid, serial=serial), issued_at)
