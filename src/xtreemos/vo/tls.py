"""TLS contexts of a VO: one trust store per VO, chosen by the name that the client asks for.

A name must never be valid because another VO's CA signed it: each context trusts one VO's root only, and `identify` checks the
peer's certificate again by our own verifier. Private keys reach OpenSSL through a memfd, never through a file.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from xtreemos.errors import PermissionRefused
from xtreemos.fabric.caller import Caller
from xtreemos.vo.admission import Admission
from xtreemos.vo.document import Trust
from xtreemos.vo.x509 import cda_dns, verify_node_x509, vo_dns


class NotServed(PermissionRefused):
    """The connection is for a VO that this node does not serve, or reached another node than it should; it ends."""

    code = "not-served"


@dataclass(frozen=True, slots=True)
class Identity:
    """Our own side of one VO: chain and key as PEM, and whom we trust."""

    trust: Trust
    chain_pem: bytes
    key_pem: bytes


def chain_pem(chain_der: tuple[bytes, ...]) -> bytes:
    """Return certificates as one PEM text, leaf first."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain_der)


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key_pem + identity.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _context(protocol: int, trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=trust.root_pem)
    return context


def client_context(trust: Trust, identity: Identity | None = None) -> ssl.SSLContext:
    """Context of a client that trusts one VO; without `identity` it stays anonymous (log-in, joining)."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, trust)
    if identity is not None:
        _load(context, identity)
    return context


class Gate:
    """The server's side: contexts per VO behind one listener, and who the client is."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._admissions: dict[ssl.SSLContext, Admission] = {}
        # A client that asks for no VO's name of ours gets no certificate at all: the handshake fails.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        # OpenSSL takes the certificate and the trust store from the chosen context, but this mode from the first one.
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.sni_callback = self._choose

    def set_identity(self, identity: Identity, admission: Admission) -> None:
        """Serve a VO from now on with these credentials (again after each renewal)."""
        context = _context(ssl.PROTOCOL_TLS_SERVER, identity.trust)
        context.verify_mode = ssl.CERT_OPTIONAL
        _load(context, identity)
        for name in (vo_dns(identity.trust.vo), cda_dns(identity.trust.vo)):
            self._admissions.pop(self._contexts.get(name, context), None)
            self._contexts[name] = context
        self._admissions[context] = admission

    def remove(self, vo: str) -> None:
        """Serve `vo` no more."""
        for name in (vo_dns(vo), cda_dns(vo)):
            context = self._contexts.pop(name, None)
            if context is not None:
                self._admissions.pop(context, None)

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int | None:
        context = self._contexts.get(name or "")
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = context
        return None

    def identify(self, connection: ssl.SSLObject | ssl.SSLSocket, address: str) -> Caller:
        """Name the client of an accepted connection.

        Raises:
            NotServed: the VO is not served. BadCredential: refused, with the reason; audited.
        """
        admission = self._admissions.get(connection.context)
        if admission is None:
            raise NotServed("this VO is not served here")
        der = connection.getpeercert(binary_form=True)
        if not der:
            return Caller("anonymous", vo=admission.trust.vo, address=address)
        return admission.x509([der], address)


def identify_node(
    trust: Trust, now: Callable[[], float], expected: str | None
) -> Callable[[ssl.SSLObject | ssl.SSLSocket, str], Caller]:
    """Return the client's check of a server: it must be node `expected` of the VO (any node if None)."""

    def identify(connection: ssl.SSLObject | ssl.SSLSocket, address: str) -> Caller:
        der = connection.getpeercert(binary_form=True)
        caller, _issued_at = verify_node_x509([der or b""], trust, int(now()))
        if expected is not None and caller.name != expected:
            raise NotServed(f"{address} is node {caller.name}, not {expected}")
        return replace(caller, address=address)

    return identify
