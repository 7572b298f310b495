"""Stock sshd on a node: its configuration, and the listener that starts one `sshd -i` for each connection.

Why not one sshd that listens by itself: each connection gets a job network of its own before sshd starts in it, and the programs
of the connection run in that same network. So `-L`, `-R` and `-X` of plain ssh mean the loopback that the user's programs see, and
never the node's. Besides, two VOs on one node need two host certificates and two user CAs, so each VO has a port of its own: the
first of the node SSHD_PORT, the next one more, and so on.

A connection outlives xosd: it is noted in RUN/ssh/PID as long as it lives, from which a new xosd goes on. Nothing here decides
who may log in: sshd asks `sshlogin` by our front program (native/sshfront.c), copied to DIR/bin because sshd wants a path that is
root's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import pwd
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from xtreemos.errors import Unreachable, XosError
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import SSHD_PORT, NodePaths
from xtreemos.foundation.tools import ToolMissing, native, sshd_path
from xtreemos.node.supervise import start_ticks
from xtreemos.vo.client import Issued

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 512
STRANGERS_MAX: Final = 32  # connections that have not logged in yet
LOGIN_S: Final = 20
HANG_UP_S: Final = 5.0
_POLL_S: Final = 0.1
SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
SEPARATION_DIR: Final = Path("/run/sshd")  # compiled into sshd: where its unprivileged part is locked in
SHELL_IN_SANDBOX: Final = "/bin/bash"
NEW_NETWORK: Final = "new"


def front_path(paths: NodePaths) -> Path:
    """Where the program lies that sshd runs for a grid user: the account's shell outside sandboxes."""
    return paths.dir / "bin" / "xos-ssh"


def install_front(paths: NodePaths) -> Path | None:
    """Copy the front to where sshd accepts it; None (ssh is not offered) if it could not be compiled here."""
    source, target = native("sshfront"), front_path(paths)
    if source is None:
        return target if os.access(target, os.X_OK) else None
    write_atomically(target, source.read_bytes(), mode=0o755)
    target.parent.chmod(0o755)
    return target


def command_user() -> str:
    """The account that sshd's questions are asked as: sshd's own, which owns nothing."""
    for name in ("sshd", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ToolMissing("this machine has no user sshd", "install openssh-server")


def configuration(folder: Path, front: Path, user: str) -> str:
    """Return the sshd_config of one VO, whose keys lie in `folder`. Pure. Why what is not obvious is beside it."""
    options = {
        "HostKey": folder / "host_key",
        "HostCertificate": folder / "host_key-cert.pub",
        "TrustedUserCAKeys": folder / "user_ca.pub",
        "AuthorizedPrincipalsCommand": f"{front} principals %u %t %k",  # the node's own verifier, revocations, audit
        "AuthorizedPrincipalsCommandUser": user,
        "AuthorizedKeysFile": "none",
        "AuthorizedKeysCommand": f"{front} keys %u %t %k",  # never allows: so that what sshd itself refuses is audited
        "AuthorizedKeysCommandUser": user,
        "PubkeyAcceptedAlgorithms": "ssh-ed25519-cert-v01@openssh.com",
        "CASignatureAlgorithms": "ssh-ed25519",
        "AuthenticationMethods": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "no",
        "UsePAM": "no",  # the machine's own PAM rules are for its own people
        "StrictModes": "yes",
        "ExposeAuthInfo": "yes",  # the front shows the certificate once more when a program is started
        "ForceCommand": front,
        "PermitUserRC": "no",  # the next four would run or trust what a user wrote, outside the sandbox
        "PermitUserEnvironment": "no",
        "AllowAgentForwarding": "no",
        "AllowStreamLocalForwarding": "no",  # Unix sockets are not in the connection's network but the machine's
        "PermitTunnel": "no",
        "AllowTcpForwarding": "yes",
        "GatewayPorts": "no",
        "X11Forwarding": "yes",
        "X11UseLocalhost": "yes",
        "Subsystem": f"sftp {SFTP_SERVER}",
        "AcceptEnv": "LANG LC_* LANGUAGE COLORTERM TZ",
        "LoginGraceTime": LOGIN_S,
        "MaxAuthTries": 6,
        "MaxSessions": 64,
        "ClientAliveInterval": 15,
        "ClientAliveCountMax": 3,
        "UseDNS": "no",
        "PrintMotd": "no",
        "PrintLastLog": "no",
        "PidFile": "none",
    }
    return "".join(f"{name} {value}\n" for name, value in options.items())


def write_files(folder: Path, front: Path, issued: Issued) -> Path:
    """Write what sshd reads for one VO; return the configuration's path. A connection in the middle of this sees old or new."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / "host_key-cert.pub", issued.credentials.ssh.encode() + b"\n")
    write_atomically(folder / "host_key", issued.keys.ssh_pem())
    write_atomically(folder / "user_ca.pub", "".join(f"{line}\n" for line in issued.trust.document.ssh_user_ca).encode())
    path = folder / "sshd_config"
    write_atomically(path, configuration(folder, front, command_user()).encode())
    return path


class Connection(msgspec.Struct, kw_only=True):
    """One connection, as noted in RUN/ssh/PID. `pid` is sshd's; `user`, `sid` and `space` (inode of its network) are known
    once a certificate was admitted. `network` is the pool's path, "" for one of its own.
    """

    pid: int
    ticks: int
    vo: str
    address: str
    network: str = ""
    space: int = 0
    user: str = ""
    sid: str = ""


def noted(paths: NodePaths) -> list[Connection]:
    """Return the connections that are alive, and forget the others."""
    found: list[Connection] = []
    for path in sorted((paths.run / "ssh").glob("[0-9]*")):
        with contextlib.suppress(FileNotFoundError):
            try:
                one = msgspec.json.decode(path.read_bytes(), type=Connection)
            except msgspec.DecodeError:
                path.unlink()
                continue
            if start_ticks(one.pid) == one.ticks:
                found.append(one)
            else:
                path.unlink()
    return found


def hang_up(connection: Connection) -> None:
    """End one connection; sshd tells its children, and the front the job."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(connection.pid)
        try:
            if start_ticks(connection.pid) == connection.ticks:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)


def processes_in(space: int) -> list[int]:
    """Return the processes whose network has the inode `space`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                if os.stat(f"/proc/{name}/ns/net").st_ino == space:
                    found.append(int(name))
    return found


def _kill(pid: int, space: int) -> None:
    with contextlib.suppress(OSError):  # it is gone
        descriptor = os.pidfd_open(pid)
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino == space:  # still the one we mean
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def hang_up_all(paths: NodePaths) -> None:
    """End every connection: the node goes down."""
    for connection in noted(paths):
        hang_up(connection)


@dataclass
class _Door:
    """One VO's listening socket."""

    vo: str
    port: int
    config: Path
    listener: socket.socket


class SshDoors:
    """The listeners of a node and the connections they made."""

    def __init__(
        self, paths: NodePaths, node: str, take_net: Callable[[str], Awaitable[str | None]], give_net: Callable[[str, str], None]
    ) -> None:
        self._paths = paths
        self._node = node
        self._take_net = take_net
        self._give_net = give_net
        self._log_file = paths.log / "sshd.log"
        self._front: Path | None = None
        self._doors: dict[str, _Door] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self.connections: dict[int, Connection] = {}

    def start(self) -> None:
        """Make ready, and take over the connections that an earlier xosd left."""
        self._front = install_front(self._paths)
        if self._front is None:
            log.warning("no C compiler was here at set-up: this node offers no ssh")
        SEPARATION_DIR.mkdir(parents=True, exist_ok=True, mode=0o755)
        (self._paths.run / "ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        for connection in noted(self._paths):
            self.connections[connection.pid] = connection
            self._spawn(self._watch_adopted(connection))

    def port(self, vo: str) -> int:
        """The port on which this node takes ssh for a VO; 0 if it does not."""
        return self._doors[vo].port if vo in self._doors else 0

    def offer(self, vo: str, index: int, issued: Issued) -> None:
        """Listen for the VO that is the node's number `index` (from 0), or renew what its sshd reads.

        Raises:
            Unreachable: the port is taken.
        """
        if self._front is None:
            return
        config = write_files(self._paths.private / "ssh" / vo, self._front, issued)
        if vo in self._doors:
            return
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", SSHD_PORT + index))  # a node serves its network
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise Unreachable(f"port {SSHD_PORT + index} is taken: no ssh for VO {vo}", "end what listens there") from error
        door = self._doors[vo] = _Door(vo, SSHD_PORT + index, config, listener)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, door)

    def close(self) -> None:
        """Stop listening; connections go on."""
        for vo in list(self._doors):
            self.withdraw(vo)
        for task in self._tasks:
            task.cancel()

    def withdraw(self, vo: str) -> None:
        """Listen no more for a VO."""
        door = self._doors.pop(vo, None)
        if door is not None:
            asyncio.get_running_loop().remove_reader(door.listener.fileno())
            door.listener.close()

    # -- connections -----------------------------------------------------------------------------------------------------

    def _accept(self, door: _Door) -> None:
        while True:
            try:
                sock, (address, _port) = door.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("ssh: %s", error)
                return
            strangers = self._starting + sum(1 for one in self.connections.values() if not one.user)
            if strangers >= STRANGERS_MAX or len(self.connections) >= CONNECTIONS_MAX:
                log.warning("ssh: %s is turned away: %d connections, %d not logged in", address, len(self.connections), strangers)
                sock.close()
                continue
            self._starting += 1
            self._spawn(self._serve(door, sock, address))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def checked() -> None:
            try:
                await work
            except (XosError, OSError) as error:
                log.warning("ssh: %s", error)

        task = asyncio.create_task(checked(), name="ssh connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, door: _Door, sock: socket.socket, address: str) -> None:
        assert self._front is not None
        try:
            network = await self._take_net(door.vo)
            try:
                words = [
                    str(self._front),
                    "gate",
                    network or NEW_NETWORK,
                    self._node,
                    str(sshd_path()),
                    "-i",
                    "-e",
                    "-f",
                    str(door.config),
                ]
                sock.setblocking(True)
                process = await self._start(words, sock)
            except BaseException:
                if network:
                    self._give_net(network, door.vo)
                raise
        finally:
            self._starting -= 1
            sock.close()
        ticks = start_ticks(process.pid)
        connection = Connection(pid=process.pid, ticks=ticks or 0, vo=door.vo, address=address, network=network or "")
        self.connections[process.pid] = connection
        self._note(connection)
        await process.wait()
        await self._ended(connection)

    async def _start(self, words: Sequence[str], sock: socket.socket) -> asyncio.subprocess.Process:
        with self._log_file.open("ab") as out:
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=sock.fileno(),
                stdout=sock.fileno(),
                stderr=out,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
                cwd="/",
            )

    async def _watch_adopted(self, connection: Connection) -> None:
        ended = asyncio.Event()
        try:
            descriptor = os.pidfd_open(connection.pid)
        except ProcessLookupError:
            await self._ended(connection)
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        await self._ended(connection)

    def _note(self, connection: Connection) -> None:
        path = self._paths.run / "ssh" / str(connection.pid)
        temporary = path.with_name(f".{connection.pid}")
        temporary.write_bytes(msgspec.json.encode(connection))
        temporary.replace(path)

    async def _ended(self, connection: Connection) -> None:
        """Forget a connection. Its programs were hung up by their fronts; what stays is killed, for its network is taken away."""
        self.connections.pop(connection.pid, None)
        (self._paths.run / "ssh" / str(connection.pid)).unlink(missing_ok=True)
        end = time.monotonic() + HANG_UP_S
        while connection.space and (left := processes_in(connection.space)):
            if time.monotonic() > end:
                for pid in left:
                    _kill(pid, connection.space)
            await asyncio.sleep(_POLL_S)  # the end of others' children can only be looked at
        if connection.network:
            self._give_net(connection.network, connection.vo)

    def admitted(self, pid: int, user: str, sid: str) -> None:
        """Note whose certificate was admitted on a connection."""
        connection = self.connections.get(pid)
        if connection is not None and (connection.user, connection.sid) != (user, sid):
            connection.user, connection.sid = user, sid
            connection.space = os.stat(f"/proc/{pid}/ns/net").st_ino
            self._note(connection)

    def revoked(self, vo: str, kind: str, name: str, until: float = math.inf) -> None:
        """End the connections of a user (`kind` user) or a session (`sid`) of a VO that began until then (seconds since 1970)."""
        booted_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for connection in list(self.connections.values()):
            if booted_at + connection.ticks / os.sysconf("SC_CLK_TCK") > until:
                continue
            if connection.vo == vo and name and name == (connection.sid if kind == "sid" else connection.user):
                log.info("revoked: ssh connection of %s.%s ends", connection.user, vo)
                hang_up(connection)
