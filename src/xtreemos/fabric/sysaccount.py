"""Orders and questions to the NATS servers themselves, over a connection of the system account."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.errors import BadToken, NoResponders, Unreachable
from xtreemos.fabric.jwt import Claims, verify_account
from xtreemos.fabric.natsserver import check_safe

SERVERS_MAX = 64


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One running server. `varz` is what it reports about itself."""

    name: str
    server_id: str
    version: str
    varz: dict[str, Any]


class SystemAccount:
    """See the module. `fabric` is connected as a user of the system account; its owner closes it.

    `operator` are the grid's verified claims (jwt.verify_operator).
    """

    def __init__(self, fabric: Fabric, operator: Claims) -> None:
        self._fabric = fabric
        self._operator = operator

    async def servers(self, expected: int | None = None, deadline_s: float = 1.0) -> list[ServerInfo]:
        """List the servers that answer, sorted by name; returns at once when `expected` have."""
        answers = await self._fabric.gather("$SYS.REQ.SERVER.PING.VARZ", b"", expected or SERVERS_MAX, deadline_s)
        found: dict[str, ServerInfo] = {}
        for answer in answers:
            body = json.loads(answer)
            server, varz = body.get("server") or {}, body.get("data") or {}
            found[server.get("id", "")] = ServerInfo(server.get("name", ""), server.get("id", ""), server.get("ver", ""), varz)
        return sorted(found.values(), key=lambda server: server.name)

    async def wait_servers(self, count: int, timeout_s: float = 20) -> list[ServerInfo]:
        """Wait until `count` servers answer; Unreachable otherwise."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = await self.servers(count)
            if len(found) >= count:
                return found
            if time.monotonic() > deadline_s:
                raise Unreachable(f"only {len(found)} of {count} servers of the fabric answer", definite=True)
            await asyncio.sleep(0.1)  # servers find each other without telling us

    async def check_safe(self, expected: int) -> None:
        """Raise UnsafeServer if any server has unsafe settings; Unreachable if fewer than `expected` answer."""
        for server in await self.wait_servers(expected):
            check_safe(server.varz)

    async def push_account(self, token: str, *, copies: int = 1, timeout_s: float = 10) -> None:
        """Store (or replace) an account's JWT on the servers; revocations in it take effect at once.

        Waits until `copies` servers have stored it. BadToken if we or one of them refuse it: the servers store an account of a
        stranger without a word and refuse its users later [tried, 2.15.1], so it is checked here.
        """
        verify_account(token, operator=self._operator, now=time.time())
        await self._order("$SYS.REQ.CLAIMS.UPDATE", token, copies, timeout_s)

    async def delete_accounts(self, order: str, *, copies: int = 1, timeout_s: float = 10) -> None:
        """Delete accounts by an order from jwt.mint_delete; their clients are dropped."""
        await self._order("$SYS.REQ.CLAIMS.DELETE", order, copies, timeout_s)

    async def _order(self, subject: str, token: str, copies: int, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            answers = [json.loads(one) for one in await self._fabric.gather(subject, token.encode(), copies, 2.0)]
            refused = next((one["error"] for one in answers if one.get("error")), None)
            if refused is not None:
                raise BadToken("server", f"a server of the fabric refused an account: {refused.get('description', refused)}")
            if len(answers) >= copies:
                return
            if time.monotonic() > deadline_s:
                raise Unreachable(f"only {len(answers)} of {copies} servers stored an account", definite=False)
            await asyncio.sleep(0.1)  # a server that is starting does not answer yet

    async def accounts(self) -> list[str]:
        """Public keys of the accounts one server knows."""
        body = json.loads(await self._fabric.request("$SYS.REQ.CLAIMS.LIST", b""))
        return [str(one) for one in body.get("data") or []]

    async def lookup(self, account: str) -> str | None:
        """JWT of an account as the servers have it, or None."""
        try:
            return (await self._fabric.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"")).decode() or None
        except NoResponders:
            return None
