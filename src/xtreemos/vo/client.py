"""The client's half of the CDA protocol: find a core node, log in, renew, join, ask.

A password is only ever sent over a connection whose other end proved to be a *core* node of this very VO (`cda_dns`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xtreemos.errors import RemoteError, Unreachable
from xtreemos.fabric import rpc
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.rpc import Peer
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.document import Trust, open_document
from xtreemos.vo.grid import VoEntry, split_endpoint
from xtreemos.vo.model import Consent, Credentials
from xtreemos.vo.tls import Identity, chain_pem, client_context, identify_node
from xtreemos.vo.tokens import Token
from xtreemos.vo.x509 import cda_dns

CALL_S = 30.0
CONNECT_S = 4.0


@dataclass(frozen=True)
class Issued:
    """Keys of ours and what the CDA certified of them."""

    keys: SessionKeys
    credentials: Credentials
    trust: Trust

    @property
    def identity(self) -> Identity:
        """Our TLS side."""
        return Identity(self.trust, chain_pem(self.credentials.x509), self.keys.x509_pem())


class CdaClient:
    """Calls to the CDA of one VO, at whichever core node answers."""

    def __init__(self, trust: Trust, endpoints: list[str], identity: Callable[[], Identity | None] = lambda: None) -> None:
        self.trust = trust
        self.endpoints = endpoints
        self._identity = identity

    async def connect(self) -> Peer:
        """Connect to a core node, tried in random order.

        Raises:
            Unreachable: none answers; definite, with the last reason.
        """
        last = Unreachable(f"VO {self.trust.vo} names no core node", "get a new invitation")
        context = client_context(self.trust, self._identity())
        identify = identify_node(self.trust, time.time, None)
        for endpoint in random.sample(self.endpoints, len(self.endpoints)):
            host, port = split_endpoint(endpoint)
            try:
                return await rpc.connect_tls(host, port, context, cda_dns(self.trust.vo), identify=identify, timeout_s=CONNECT_S)
            except Unreachable as error:
                last = error
        raise last

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Make one call of the CDA on a connection of its own."""
        return await self.ask(f"cda.{method}", params)

    async def ask(self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = CALL_S) -> Any:
        """Call any method of a core node on a connection of its own. Raises Unreachable or what it answered."""
        peer = await self.connect()
        try:
            return await peer.call(method, dict(params or {}), timeout_s=timeout_s)
        finally:
            peer.close()

    async def _prove(self, peer: Peer, purpose: str, subject: str) -> tuple[SessionKeys, dict[str, Any]]:
        """Make fresh keys and prove them against a challenge; returns them and the params that carry the proof."""
        found = await peer.call("cda.challenge", {"purpose": purpose, "subject": subject}, timeout_s=CALL_S)
        keys = SessionKeys.fresh()
        public, proofs = keys.public(), keys.prove(self.trust.vo, found["sid"], found["challenge"])
        fields = {name: getattr(public, name) for name in ("ssh", "nats", "x509")}
        proved = {name: getattr(proofs, name) for name in ("ssh", "nats", "x509")}
        return keys, {"challenge": found["challenge"], "keys": fields, "proofs": proved}

    def _issued(self, keys: SessionKeys, answer: Mapping[str, Any]) -> Issued:
        trust = open_document(answer["document"], root_sha256=self.trust.root_sha256, vo=self.trust.vo)
        return Issued(keys, Credentials.from_bytes(answer["credentials"]), trust)

    async def login(self, user: str, password: str, *, life_s: int | None = None) -> Issued:
        """Open a session with a password."""
        peer = await self.connect()
        try:
            keys, params = await self._prove(peer, "login", user)
            params |= {"user": user, "password": password}
            if life_s is not None:
                params["life_s"] = life_s
            return self._issued(keys, await peer.call("cda.login", params, timeout_s=CALL_S))
        finally:
            peer.close()

    async def renew(self) -> Issued:
        """Get new credentials for the session that `identity` shows."""
        return await self._renew("renew", "")

    async def renew_node(self, node: str) -> Issued:
        """The same for a node."""
        return await self._renew("renew-node", node)

    async def _renew(self, purpose: str, subject: str) -> Issued:
        peer = await self.connect()
        try:
            keys, params = await self._prove(peer, purpose, subject)
            return self._issued(keys, await peer.call(f"cda.{purpose.replace('-', '_')}", params, timeout_s=CALL_S))
        finally:
            peer.close()

    async def join(
        self,
        token: Token,
        *,
        node: str,
        addresses: list[str],
        consent: Callable[[Consent], bytes],
        core: bool,
        extra: Mapping[str, Any],
    ) -> tuple[Issued, dict[str, Any]]:
        """Make this machine a node; `consent` signs for its owner. Returns the credentials and the whole answer."""
        peer = await self.connect()
        try:
            keys, params = await self._prove(peer, "join", node)
            agreed = Consent(vo=self.trust.vo, node=node, core=core, at=int(time.time()), x509_public=params["keys"]["x509"])
            params |= {"id": token.id, "secret": token.secret, "node": node, "addresses": addresses}
            params |= {"consent": consent(agreed), "extra": dict(extra)}
            answer = await peer.call("cda.join_node", params, timeout_s=CALL_S)
            return self._issued(keys, answer), dict(answer)
        finally:
            peer.close()


def client_for(entry: VoEntry, identity: Callable[[], Identity | None] = lambda: None) -> CdaClient:
    """Return the client of a VO of the grid file."""
    return CdaClient(entry.trust(), entry.endpoints, identity)


async def fetch_trust(token: Token) -> tuple[Trust, dict[str, Any]]:
    """Get a VO's document from the core nodes that a token names; only the root whose fingerprint is in the token is believed.

    The first connection verifies nothing by itself (there is nothing to verify with yet) and sends nothing but the question.
    """
    import ssl  # only here is an unverified context right, so it is not at hand elsewhere

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    last: Exception = Unreachable("the token names no core node", "get a new one")
    for endpoint in token.endpoints:
        host, port = split_endpoint(endpoint)
        try:
            peer = await rpc.connect_tls(
                host,
                port,
                context,
                cda_dns(token.vo),
                identify=lambda _ssl, address: Caller("anonymous", address=address),
                timeout_s=CONNECT_S,
            )
        except Unreachable as error:
            last = error
            continue
        try:
            answer = await peer.call("cda.trust", timeout_s=CALL_S)
            return open_document(answer["document"], root_sha256=token.ca, vo=token.vo), dict(answer)
        except RemoteError as error:
            last = error
        finally:
            peer.close()
    raise last
