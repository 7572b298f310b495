"""Where a file server process listens, and who gets in: TLS for nodes of the VO, a Unix socket for root of this machine.

MRC and OSD share it. Credentials that the directory says are withdrawn are not admitted, and the connections of a removed node end at
once. The node's own certificate is taken anew when xosd has renewed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Handler, Server
from xtreemos.vo.admission import Admission
from xtreemos.vo.audit import Audit
from xtreemos.vo.grid import split_endpoint
from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.vo.tls import Gate, Identity
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.directory import Directory, State

log = logging.getLogger(__name__)

CREDENTIAL_LOOK_S = 5.0
WithdrawnCall = Callable[[str, str], None]
"""Told of each new withdrawal: kind (sid, user or node) and name."""


class Withdrawn:
    """One per process. `known` is what admission asks; `on_new` hears of each new one."""

    def __init__(self, servers: Iterable[Server], on_new: WithdrawnCall = lambda _kind, _name: None) -> None:
        self.known = RevocationSet()
        self._servers = servers
        self._on_new = on_new

    def take(self, state: State) -> None:
        """Take over what the directory knows now."""
        for key, value in state.revoked.items():
            try:
                new = self.known.apply(key, Revocation.from_bytes(value))
                _word, kind, name = key.split(".", 2)
            except (msgspec.MsgspecError, ValueError):
                log.warning("the directory's record %s cannot be read", key)
                continue
            if new:
                self._on_new(kind, name)
                if kind == "node":
                    self._hang_up(name)
        self.known.synced = True

    def _hang_up(self, node: str) -> None:
        for peer in [peer for server in self._servers for peer in server.peers]:
            if peer.caller.kind == "node" and peer.caller.name == node:
                log.info("revoked: connection of %s ends", peer.caller)
                peer.close()


class Doors:
    """The listeners of one process. `listen` ("host:port") is served where there is a `credential` folder, `socket` always."""

    def __init__(
        self,
        directory: Directory,
        audit: Audit,
        *,
        socket: Path,
        listen: str,
        credential: Path | None,
        on_withdrawn: WithdrawnCall = lambda _kind, _name: None,
    ) -> None:
        self._directory = directory
        self._audit = audit
        self._socket = socket
        self._listen = listen
        self._credential = CredentialFolder(credential) if credential is not None else None
        self._gate = Gate()
        self._servers: list[Server] = []
        self._withdrawn = Withdrawn(self._servers, on_withdrawn)

    @property
    def has_identity(self) -> bool:
        """Whether this process has the node's certificate: without it only root of this machine is served."""
        return self._credential is not None

    @property
    def revoked(self) -> RevocationSet:
        """What is withdrawn, as the directory said last."""
        return self._withdrawn.known

    def identity(self) -> Identity:
        """The node's certificate of the moment. Only if `has_identity`."""
        assert self._credential is not None
        return self._credential.identity

    async def open(self, handlers: Mapping[str, Handler]) -> None:
        """Listen; the Unix socket comes last, so who sees it can reach all."""
        self._withdrawn.take(self._directory.state)
        self._directory.on_change(self._withdrawn.take)
        if self._listen and self._credential is not None:
            self._show()
            host, port = split_endpoint(self._listen)
            self._servers.append(await rpc.serve_tls(host, port, self._gate.context, handlers, self._gate.identify))
        self._servers.append(await rpc.serve_unix(self._socket, handlers, mode=0o600, allowed_uid=0))

    def _show(self) -> None:
        identity = self.identity()
        self._gate.set_identity(identity, Admission(identity.trust, self.revoked, self._audit, time.time))

    async def follow_credential(self) -> None:
        """Take the certificate anew whenever it was renewed; for ever."""
        while True:
            await asyncio.sleep(CREDENTIAL_LOOK_S)
            if self._credential is not None and self._credential.look():
                self._show()

    async def close(self) -> None:
        """Serve no more."""
        for server in self._servers:
            await server.close()


class Serving(Protocol):
    """An MRC or an OSD: what `serve_until` needs of it."""

    async def start(self) -> None:
        """Listen."""

    async def run(self) -> None:
        """Do all that goes on beside answering; for ever."""

    async def close(self) -> None:
        """Serve no more."""


async def serve_until(stop: asyncio.Event, directory: Directory, server: Serving) -> None:
    """Follow the directory and serve until `stop` is set or something fails; raises what that was. `server` is closed at the end.

    Nobody is let in before the directory was seen: a process that does not know yet who signs, who is a member and what was
    withdrawn could only refuse wrongly or admit wrongly. Callers find nobody listening, which they know how to wait for.
    """
    running = asyncio.create_task(_serve(directory, server))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        running.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            await server.close()


async def _serve(directory: Directory, server: Serving) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(directory.run(), name="directory")
            await directory.wait_synced()
            await server.start()
            await server.run()
    except BaseExceptionGroup as group:
        raise _deepest(group) from None


def _deepest(error: BaseException) -> BaseException:
    """Return what went wrong first inside groups of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
