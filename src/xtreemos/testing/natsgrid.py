"""A small real fabric for tests: certificates, keys, one account with its roles, and 1 or 3 nats-servers on loopback.

Everything lives in one folder and ends with `stop`. Ports are free ones of 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import signal
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xtreemos.fabric import jwt, subjects
from xtreemos.fabric.connection import Credentials, Fabric, Settings
from xtreemos.fabric.natsserver import NatsServer, ServerConfig, TlsFiles
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.fabric.sysaccount import SystemAccount


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make_tls(folder: Path) -> TlsFiles:
    """Make a fabric CA and one server certificate for 127.0.0.1 and subjects.TLS_NAME in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fabric CA")])
    base = x509.CertificateBuilder().not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=1))
    ca = (
        base.subject_name(ca_name)
        .issuer_name(ca_name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(subjects.TLS_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    cert = (
        base.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats")]))
        .issuer_name(ca_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(names, critical=False)
        .add_extension(usages, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(_pem(key))
    return files


class NatsGrid:
    """See the module. `account` is the VO's; `roles` its scoped keys by role name."""

    def __init__(self, folder: Path, *, servers: int = 1, vo: str = "demo") -> None:
        self.folder = folder
        self.tls = make_tls(folder / "tls")
        self.operator = KeyPair.generate(KeyKind.OPERATOR)
        self.system = KeyPair.generate(KeyKind.ACCOUNT)
        self.account = KeyPair.generate(KeyKind.ACCOUNT)
        self.roles = {role: KeyPair.generate(KeyKind.ACCOUNT) for role in subjects.ROLES}
        self.vo = vo
        self.system_jwt = jwt.mint_account(self.operator, account=self.system.public, name="SYS", now=int(time.time()))
        self.operator_jwt = jwt.mint_operator(self.operator, name="grid", system_account=self.system.public, now=int(time.time()))
        self.context = ssl.create_default_context(cafile=str(self.tls.ca))
        ports = free_ports(servers * 2)
        peers = [f"127.0.0.1:{port}" for port in ports[servers:]]
        self.servers = [self._server(i, ports[i], ports[servers + i], peers) for i in range(servers)]
        self._fabrics: list[Fabric] = []

    def _server(self, index: int, client_port: int, route_port: int, peers: list[str]) -> NatsServer:
        return NatsServer(
            ServerConfig(
                name=f"n{index + 1}",
                folder=self.folder / f"n{index + 1}",
                tls=self.tls,
                operator_jwt=self.operator_jwt,
                system_account=self.system.public,
                accounts={self.system.public: self.system_jwt, self.account.public: self.account_jwt()},
                client_port=client_port,
                route_port=route_port,
                peers=tuple(peers),
            )
        )

    def account_jwt(self, revocations: dict[str, int] | None = None) -> str:
        """The VO's token with all roles."""
        scopes = [jwt.Scope(key.public, role, subjects.permissions(role)) for role, key in self.roles.items()]
        return jwt.mint_account(
            self.operator,
            account=self.account.public,
            name=self.vo,
            now=int(time.time()),
            scopes=scopes,
            limits=jwt.AccountLimits(),
            revocations=revocations,
        )

    def credentials(self, role: str, name: str, *, sid: str = "s1", life_s: int = 3600) -> Credentials:
        """Fresh credentials of a role; role `system` is a user of the system account."""
        key, now = KeyPair.generate(KeyKind.USER), int(time.time())
        if role == "system":
            token = jwt.mint_user(
                self.system, account=self.system.public, user=key.public, name=name, now=now, expires_at=now + life_s
            )
        else:
            token = jwt.mint_user(
                self.roles[role],
                account=self.account.public,
                user=key.public,
                name=name,
                now=now,
                expires_at=now + life_s,
                tags=(f"sid:{sid}",),
            )
        return Credentials(token, key)

    def settings(self, role: str, name: str, *, sid: str = "s1", server: int | None = None) -> Settings:
        """Settings for a client; `server`: only that one at first."""
        inbox = {"node": subjects.node_inbox(name), "member": subjects.user_inbox(sid), "admin": subjects.user_inbox(sid)}
        urls = tuple(one.config.url for one in self.servers)
        return Settings(
            servers=urls if server is None else (urls[server],),
            tls=self.context,
            inbox=inbox.get(role, subjects.service_inbox(name)),
            name=name,
        )

    async def connect(self, role: str = "service", name: str = "n1", *, server: int | None = None, sid: str = "s1") -> Fabric:
        """A connected client, closed with the grid. `server`: begin at that one, others may follow."""
        settings = self.settings(role, name, sid=sid, server=server)
        credentials = self.credentials(role, name, sid=sid)
        fabric = await Fabric.connect(settings, lambda: credentials)
        self._fabrics.append(fabric)
        return fabric

    async def system_account(self) -> SystemAccount:
        return SystemAccount(
            await self.connect("system", "sys"),
            jwt.verify_operator(self.operator_jwt, operator=self.operator.public, now=time.time()),
        )

    async def start(self) -> None:
        """Start all servers."""
        await asyncio.gather(*(server.start() for server in self.servers))

    def kill(self, index: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one server."""
        self.servers[index].signal(number)

    def index_of(self, server_name: str) -> int:
        return next(i for i, server in enumerate(self.servers) if server.config.name == server_name)

    def replace_config(self, index: int, **changes: object) -> None:
        """Change the configuration with which a server starts next."""
        server = self.servers[index]
        server.config = replace(server.config, **changes)  # type: ignore[arg-type]  # the caller names fields

    async def stop(self) -> None:
        """Close clients, end servers."""
        await asyncio.gather(*(fabric.close() for fabric in self._fabrics))
        for server in self.servers:
            server.signal(signal.SIGCONT)
            server.signal(signal.SIGKILL)
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
