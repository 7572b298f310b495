"""What plain OpenSSH needs of a session: an agent socket with its certificate, the hosts it may trust, and a configuration snippet.

A socket of our own rather than a stock ssh-agent: the key stays in this process, a renewed certificate is there at once, and only
log-ins are signed (see `sshwire`). Nothing secret is ever written to a file; the paths stay the same from log-in to log-in, so that
a printed configuration stays good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

from xtreemos.aem.agent import sshwire
from xtreemos.aem.agent.nodes import Candidate
from xtreemos.aem.agent.session import Session
from xtreemos.errors import XosError
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import SSHD_PORT
from xtreemos.foundation.peers import peer_ids
from xtreemos.names import unix_name
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.ssh import key_blob, parse

log = logging.getLogger(__name__)

ASK_S: Final = 1.0
ALL_NODES: Final = 10_000
CLIENTS_MAX: Final = 64


class _Pool(Protocol):
    async def ask(self, where: str | None, wanted: int, wait_s: float) -> list[Candidate]: ...


class _Cda(Protocol):
    async def call(self, method: str, params: dict[str, Any]) -> Any: ...


class SshAgent:
    """The socket and the files of one session."""

    def __init__(self, session: Session, directory: Path, before_login: Callable[[str], Awaitable[None]]) -> None:
        vo = session.entry.vo
        self._before_login = before_login
        self._session = session
        self.socket = directory / f"ssh-{vo}.sock"
        self.known_hosts = directory / f"ssh-{vo}.known_hosts"
        self._listener: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def user(self) -> str:
        """Name of the account on every node."""
        return unix_name(self._session.credentials.name, self._session.credentials.vo)

    def _identity(self) -> sshwire.Identity:
        issued = self._session.issued
        return sshwire.Identity(key_blob(issued.credentials.ssh), self.user, issued.keys.ssh.sign)

    async def start(self) -> None:
        """Listen, and write the hosts' CA."""
        self.write_known_hosts()
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.bind(str(self.socket))
        self.socket.chmod(0o600)
        listener.listen(CLIENTS_MAX)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def close(self) -> None:
        """Stop listening; clients are dropped."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self.socket.unlink(missing_ok=True)
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if peer_ids(sock)[1] != os.getuid() or len(self._clients) >= CLIENTS_MAX:
            sock.close()
            return
        task = asyncio.create_task(self._serve(sock), name="ssh agent client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                if not 0 < length <= sshwire.MESSAGE_BYTES_MAX:
                    return
                message, identity = await reader.readexactly(length), self._identity()
                if (node := self._destination(message, identity)) is not None:
                    await self._before_login(node)
                writer.write(sshwire.text(sshwire.answer(message, identity)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client is done
        finally:
            writer.close()

    def _destination(self, message: bytes, identity: sshwire.Identity) -> str | None:
        """Tell the node that a log-in goes to, by the host certificate that the client has checked; None if it is not told."""
        host_key = sshwire.destination(message, identity)
        if host_key is None:
            return None
        try:
            principals = parse(host_key).principals
        except BadCredential:
            return None
        suffix = f".{self._session.entry.vo}"
        return next((name.removesuffix(suffix) for name in principals if name.endswith(suffix)), None)

    # -- configuration ---------------------------------------------------------------------------------------------------

    def write_known_hosts(self) -> None:
        """Write which CA vouches for the VO's nodes: the only hosts that the configuration accepts."""
        vo, document = self._session.entry.vo, self._session.issued.trust.document
        lines = [f"@cert-authority *.{vo} {line}\n" for line in document.ssh_host_ca]
        write_atomically(self.known_hosts, "".join(lines).encode())

    async def configuration(self, pool: _Pool, cda: _Cda) -> str:
        """Return the snippet, with every node of the VO: those that answer now, and those that the VO knows beside."""
        nodes = {one.node: (one.address, one.ssh or SSHD_PORT) for one in await pool.ask("", ALL_NODES, ASK_S)}
        try:
            for row in (await cda.call("node_list", {}))["nodes"]:
                if row["addresses"]:
                    nodes.setdefault(row["node"], (row["addresses"][0], SSHD_PORT))
        except XosError as error:
            log.info("ssh-config: only the nodes that answer: %s", error)
        return snippet(self.user, self._session.entry.vo, nodes, self.socket, self.known_hosts)


def snippet(user: str, vo: str, nodes: dict[str, tuple[str, int]], agent: Path, known_hosts: Path) -> str:
    """Return an ssh_config part. `nodes` maps a name to (address, port). Pure."""
    lines = [f"# From `xos ssh-config` for {user}; print it again when machines were added or moved."]
    for node, (address, port) in sorted(nodes.items()):
        lines += [
            f"Host {node} {node}.{vo}",
            f"    HostName {address}",
            f"    Port {port}",
            f"    HostKeyAlias {node}.{vo}",
        ]
    if nodes:
        lines += [
            "Host " + " ".join(f"{node} {node}.{vo}" for node in sorted(nodes)),
            f"    User {user}",
            f'    IdentityAgent "{agent}"',
            "    IdentityFile none",
            "    PreferredAuthentications publickey",
            f'    UserKnownHostsFile "{known_hosts}"',
            "    GlobalKnownHostsFile none",
            "    StrictHostKeyChecking yes",
            "    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com",
            "    UpdateHostKeys no",
            "    CheckHostIP no",
            "    ForwardAgent no",
            "    ConnectTimeout 10",
        ]
    return "\n".join(lines) + "\n"
