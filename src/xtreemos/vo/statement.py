"""Signed statements: what a session's X.509 key signed, with the certificates that say whose key it is. Pure.

The key signs `domain` + SHA-256 of the body, so that what one protocol had signed is worth nothing in another. Form of the record:
MessagePack array of (body, chain of DER certificates, leaf first, signature). What the body means, and whether the chain is good, is the
caller's to judge; refusals are made by the caller's own exception and say what kind of statement it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.errors import XosError

CHAIN_MAX = 3

Refuse = Callable[[str], XosError]
"""Makes the error of a bad statement out of its line."""


class Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record that was read. Nothing of it is checked yet but its form."""

    body: bytes
    chain: list[bytes]
    signature: bytes


def _signed_text(domain: bytes, body: bytes) -> bytes:
    return domain + hashlib.sha256(body).digest()


def sign_statement(domain: bytes, body: bytes, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the record of `body` signed by the session's key under `domain`."""
    signature = key.sign(_signed_text(domain, body), ec.ECDSA(hashes.SHA256()))
    return msgspec.msgpack.encode(Statement(body, list(chain_der), signature))


def read_statement(record: bytes, *, what: str, bytes_max: int, refuse: Refuse) -> Statement:
    """Read a record without checking who signed it.

    Args:
        record: what somebody sent.
        what: what it should be, for the line ("ticket").
        bytes_max: the longest that is looked at.
        refuse: makes the error that is raised.
    """
    if len(record) > bytes_max:
        raise refuse(f"the {what} is too large")
    try:
        statement = msgspec.msgpack.decode(record, type=Statement)
    except (msgspec.MsgspecError, ValueError) as error:
        raise refuse(f"the {what} cannot be read") from error
    if not 1 <= len(statement.chain) <= CHAIN_MAX:
        raise refuse(f"the {what} carries no certificate")
    return statement


def check_signature(statement: Statement, domain: bytes, *, what: str, refuse: Refuse) -> None:
    """Raise `refuse`'s error unless the key of the chain's leaf signed this body under `domain`. The chain is judged elsewhere."""
    try:
        key = x509.load_der_x509_certificate(statement.chain[0]).public_key()
    except ValueError as error:
        raise refuse(f"the {what}'s certificate cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise refuse(f"the {what} is signed by an unknown kind of key")
    try:
        key.verify(statement.signature, _signed_text(domain, statement.body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise refuse(f"the {what} was changed after it was signed") from error
