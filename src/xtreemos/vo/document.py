"""The VO document: which issuing keys speak for a VO now, signed by its root; and `Trust`, what a verifier holds of one VO.

SSH and NATS know no chains, so the root cannot sign *certificates* for those keys; it signs this list instead. Who knows the
root's SHA-256 (from a token or `grid.json`) can check everything else. Versions only go up: an older document is refused, so that
a withdrawn issuing key cannot be brought back by replay. No I/O here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos import names
from xtreemos.vo.errors import BadDocument
from xtreemos.vo.model import Record

_CONTEXT: Final = b"xos-vo-document-v1|"
DOCUMENT_BYTES_MAX: Final = 256 * 1024


class VoDocument(Record, frozen=True, kw_only=True):
    """The current keys of a VO. `nats_roles` maps a role to its scoped signing key; SSH CAs are OpenSSH public key lines."""

    vo: str
    version: int
    issued_at: int
    x509_issuing: tuple[bytes, ...]
    ssh_user_ca: tuple[str, ...]
    ssh_host_ca: tuple[str, ...]
    nats_account: str
    nats_roles: dict[str, str]
    fabric_ca: str = ""


class _Signed(Record, frozen=True, kw_only=True):
    root: bytes
    body: bytes
    signature: bytes


def sign_document(document: VoDocument, root: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign with the VO's root key (unsealed for this moment only); returns what `open_document` takes."""
    body = document.to_bytes()
    signature = key.sign(_CONTEXT + body, ec.ECDSA(hashes.SHA256()))
    root_der = root.public_bytes(serialization.Encoding.DER)
    return _Signed(root=root_der, body=body, signature=signature).to_bytes()


@dataclass(frozen=True)
class Trust:
    """One VO as a verifier sees it: made by `open_document` only, so it is checked."""

    document: VoDocument
    root: x509.Certificate
    issuing: tuple[x509.Certificate, ...]
    signed: bytes

    @property
    def vo(self) -> str:
        """Name of the VO."""
        return self.document.vo

    @cached_property
    def root_sha256(self) -> bytes:
        """Fingerprint of the root certificate (DER)."""
        return root_fingerprint(self.root)

    @cached_property
    def chain_der(self) -> frozenset[bytes]:
        """DER of every certificate that may stand above a leaf."""
        return frozenset(item.public_bytes(serialization.Encoding.DER) for item in (*self.issuing, self.root))

    @cached_property
    def root_pem(self) -> str:
        """The root as PEM: the whole trust store for TLS of this VO."""
        return self.root.public_bytes(serialization.Encoding.PEM).decode()


def root_fingerprint(root: x509.Certificate) -> bytes:
    """SHA-256 of a root certificate's DER: what tokens and `grid.json` pin."""
    return hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).digest()


def open_document(data: bytes, *, root_sha256: bytes, vo: str | None = None, newer_than: int = 0) -> Trust:
    """Check a signed document and return the trust it gives.

    Args:
        data: as `sign_document` made it.
        root_sha256: pinned fingerprint of the VO's root.
        vo: the expected VO; None takes the document's own word.
        newer_than: highest version seen; an older one is refused, the same one is fine.

    Raises:
        BadDocument: not signed by that root, for another VO, older, or its issuing certificates are not the root's.
    """
    try:
        if len(data) > DOCUMENT_BYTES_MAX:
            raise ValueError("too long")
        signed = _Signed.from_bytes(data)
        if hashlib.sha256(signed.root).digest() != root_sha256:  # before a parser of certificates sees a stranger's bytes
            raise BadDocument("the VO document has another root than expected", "check the token with whoever gave it")
        root = x509.load_der_x509_certificate(signed.root)
        key = root.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise BadDocument("the root of the VO has a key of a kind that is not used here")
        key.verify(signed.signature, _CONTEXT + signed.body, ec.ECDSA(hashes.SHA256()))
        document = VoDocument.from_bytes(signed.body)
        names.check_vo(document.vo)
        issuing = tuple(x509.load_der_x509_certificate(item) for item in document.x509_issuing)
        for certificate in issuing:
            _check_issuing(certificate, root)
    except (ValueError, TypeError, InvalidSignature, msgspec.MsgspecError, names.BadName) as error:
        raise BadDocument("the VO document is not signed by the VO's root") from error
    if vo is not None and document.vo != vo:
        raise BadDocument(f"this is the document of VO {document.vo}, not of {vo}")
    if document.version < newer_than:
        raise BadDocument(f"the VO document is old: version {document.version}, {newer_than} was seen already")
    return Trust(document, root, issuing, data)


def _check_issuing(certificate: x509.Certificate, root: x509.Certificate) -> None:
    certificate.verify_directly_issued_by(root)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not basic.ca or basic.path_length != 0:
        raise ValueError("an issuing certificate must be a CA with path length 0")
