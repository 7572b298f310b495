"""One log-in as the agent holds it: keys, credentials, renewal, and their copy in the kernel's keyring.

The private keys never leave this process but for the kernel keyring of the same user, from which a new agent goes on after the
old one died. Nothing of it is ever written to a file.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable

import msgspec
from cryptography.hazmat.primitives import serialization

from xtreemos.errors import RemoteError, XosError
from xtreemos.fabric import nkeys, subjects
from xtreemos.fabric.connection import Fabric, Settings
from xtreemos.fabric.link import Credentials as FabricCredentials
from xtreemos.foundation import keyring
from xtreemos.vo.client import CdaClient, Issued
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.document import open_document
from xtreemos.vo.founding import fabric_dns
from xtreemos.vo.grid import VoEntry
from xtreemos.vo.model import Credentials
from xtreemos.vo.tls import Identity

log = logging.getLogger(__name__)

RENEW_AT = 0.5  # part of the credentials' life after which they are renewed
RETRY_S = 30.0


class _Kept(msgspec.Struct, frozen=True):
    """What lies in the keyring: everything a new agent needs."""

    ssh: bytes
    nats: str
    x509: bytes
    credentials: bytes
    document: bytes
    root_sha256: bytes


def keyring_name(vo: str) -> str:
    """Description of the key that holds a session of `vo`."""
    return f"xos:session:{vo}"


class Session:
    """Credentials that renew themselves."""

    def __init__(self, entry: VoEntry, issued: Issued) -> None:
        self.entry = entry
        self.issued = issued
        self.cda = CdaClient(issued.trust, entry.endpoints, lambda: self.identity)
        self.on_renewed: Callable[[], Awaitable[None]] | None = None

    @property
    def identity(self) -> Identity:
        """Our TLS side, now."""
        return self.issued.identity

    @property
    def credentials(self) -> Credentials:
        """What the CDA issued last."""
        return self.issued.credentials

    def fabric_credentials(self) -> FabricCredentials:
        """What we show to the fabric."""
        return FabricCredentials(self.credentials.nats, self.issued.keys.nats)

    async def fabric(self) -> Fabric:
        """Connect to the VO's fabric as this session."""
        settings = fabric_settings(
            self.entry, self.issued, subjects.user_inbox(self.credentials.sid), f"agent {self.credentials.name}"
        )
        return await Fabric.connect(settings, self.fabric_credentials)

    def keep(self) -> None:
        """Put the session into the kernel's keyring, until the credentials expire."""
        left_s = max(1, self.credentials.expires_at - int(time.time()))
        try:
            keyring.add(keyring_name(self.entry.vo), pack(self.issued), keyring=keyring.USER_KEYRING, timeout_s=left_s)
        except keyring.KeyringFailed as error:
            log.warning("%s; if this agent dies you must log in again", error)

    def forget(self) -> None:
        """Take the session out of the keyring. A kernel that refuses holds up no log-out: the credentials are void anyway."""
        try:
            key = keyring.find(keyring_name(self.entry.vo), keyring=keyring.USER_KEYRING)
            if key is not None:
                keyring.revoke(key)
        except keyring.KeyringFailed as error:
            log.warning("%s", error)

    async def renew_for_ever(self) -> None:
        """Renew at half of the credentials' life; ends when the session is over or was revoked."""
        while True:
            made = self.credentials
            await asyncio.sleep(max(1.0, made.issued_at + (made.expires_at - made.issued_at) * RENEW_AT - time.time()))
            while self.credentials is made:
                try:
                    self.issued = await self.cda.renew()
                except RemoteError as error:
                    if not error.retry:
                        log.warning("the session cannot be renewed: %s", error)
                        return
                    await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))
                except XosError as error:
                    log.info("renewal: %s; trying again", error)
                    await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))
            self.keep()
            if self.on_renewed is not None:
                await self.on_renewed()


def fabric_settings(entry: VoEntry, issued: Issued, inbox: str, name: str) -> Settings:
    """How to reach the fabric of a VO: its own CA, told by the signed document, and nothing else is trusted."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_verify_locations(cadata=issued.trust.document.fabric_ca)
    return Settings(servers=tuple(entry.fabric), tls=tls, inbox=inbox, name=name, tls_name=fabric_dns(entry.grid))


def pack(issued: Issued) -> bytes:
    """Write keys and credentials as bytes for a place that only we can read."""
    kept = _Kept(
        issued.keys.ssh_pem(),
        issued.keys.nats.seed,
        issued.keys.x509_pem(),
        issued.credentials.to_bytes(),
        issued.trust.signed,
        issued.trust.root_sha256,
    )
    return msgspec.msgpack.encode(kept)


def unpack(data: bytes) -> Issued:
    """Read what `pack` wrote."""
    kept = msgspec.msgpack.decode(data, type=_Kept)
    keys = SessionKeys(
        serialization.load_ssh_private_key(kept.ssh, None),  # type: ignore[arg-type]  # `pack` wrote an Ed25519 key
        nkeys.KeyPair.from_seed(kept.nats),
        serialization.load_pem_private_key(kept.x509, None),  # type: ignore[arg-type]  # `pack` wrote a P-256 key
    )
    trust = open_document(kept.document, root_sha256=kept.root_sha256)
    return Issued(keys, Credentials.from_bytes(kept.credentials), trust)


def kept_session(entry: VoEntry) -> Session | None:
    """Return the session that an earlier agent left in the keyring, if it is still good."""
    key = keyring.find(keyring_name(entry.vo), keyring=keyring.USER_KEYRING)
    if key is None:
        return None
    try:
        issued = unpack(keyring.read(key))
    except keyring.KeyringFailed:
        return None
    return Session(entry, issued) if issued.credentials.expires_at > time.time() else None
