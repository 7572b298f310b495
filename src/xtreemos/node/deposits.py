"""Descriptors that agents of this machine deposit for programs that start here; each ticket is good once and for a moment."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat

from xtreemos.errors import PermissionRefused, TryLater
from xtreemos.fabric.rpc import Handler, ServerCall

TICKET_S = 10.0
TICKETS_MAX = 1024
STDIO = 3


class BadTicket(PermissionRefused):
    """A ticket is not known (any more); nothing was started."""

    code = "bad-ticket"


class Deposits:
    """Tickets and what they stand for. Who holds a ticket may have the descriptors: it has 128 random bits and one use."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, ...]] = {}

    def methods(self) -> dict[str, Handler]:
        """Return the table of the socket that anybody on this machine may use."""
        return {"fds.deposit": self._deposit}

    async def _deposit(self, call: ServerCall) -> dict[str, str]:
        """Keep three descriptors; a folder is not taken, a program could leave its sandbox through one."""
        if len(call.fds) != STDIO or any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in call.fds):
            raise PermissionRefused("three descriptors are due, and none of them a folder")
        if len(self._held) >= TICKETS_MAX:
            raise TryLater("too many programs start at once", "try again")
        ticket = secrets.token_hex(16)
        self._held[ticket] = tuple(os.dup(fd) for fd in call.fds)
        asyncio.get_running_loop().call_later(TICKET_S, self._expire, ticket)
        return {"ticket": ticket}

    def take(self, ticket: str) -> tuple[int, ...]:
        """Return what a ticket stands for; the caller closes them.

        Raises:
            BadTicket: never given, used before, or expired.
        """
        held = self._held.pop(ticket, None)
        if held is None:
            raise BadTicket("the descriptors of this start are not here (any more)", "try again")
        return held

    def _expire(self, ticket: str) -> None:
        for fd in self._held.pop(ticket, ()):
            os.close(fd)
