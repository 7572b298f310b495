"""A submission that carries its user's signature: a node checks the user's wish itself and trusts no manager for it.

The session's key signs `xos-submit-v1|` + SHA-256 of the encoded spec; the certificate chain travels with it. It does not know
how a chain is judged: that comes in as `verify_chain`. Nothing here reads a clock: a job may be placed hours after it was
submitted, so the chain must have been valid at `submitted_at` of the spec, and revocation is the judge's to look at *now*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.aem.jobspec import JobSpec, from_wire
from xtreemos.aem.manager.model import BadSubmission
from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller

DOMAIN = b"xos-submit-v1|"
RECORD_BYTES_MAX = 600 * 1024
CHAIN_MAX = 3

VerifyChain = Callable[[Sequence[bytes], float], Caller]
"""(DER certificates, leaf first; when they must have been valid, seconds since 1970) -> who it is; raises XosError."""


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    spec: bytes
    chain: list[bytes]
    signature: bytes


@dataclass(frozen=True, slots=True)
class Submission:
    """A record whose signature was checked. `array`: the id of the array if `spec` is one task of it."""

    spec: JobSpec
    caller: Caller
    record: bytes
    array: str = ""


Verify = Callable[[bytes], Submission]
"""`verify_submission` bound to a judge (and cached, where the same records come often)."""


def _signed_text(spec: bytes) -> bytes:
    return DOMAIN + hashlib.sha256(spec).digest()


def sign_submission(spec: JobSpec, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the record to publish: `spec` signed by the session's key.

    Raises:
        BadSubmission: the record would be too large. Definite.
    """
    body = msgspec.msgpack.encode(spec)
    record = msgspec.msgpack.encode(_Record(body, list(chain_der), key.sign(_signed_text(body), ec.ECDSA(hashes.SHA256()))))
    if len(record) > RECORD_BYTES_MAX:
        raise BadSubmission(f"the job takes {len(record)} bytes, {RECORD_BYTES_MAX} are allowed", "pass large data in files")
    return record


def peek_spec(record: bytes) -> JobSpec:
    """Read the spec of a record *without* checking who signed it; raises BadSubmission or BadSpec."""
    return from_wire(msgspec.msgpack.decode(_open(record).spec))


def verify_submission(record: bytes, verify_chain: VerifyChain) -> Submission:
    """Check that the user named in the spec, in the VO named in it, signed exactly this spec.

    Raises:
        BadSubmission, BadSpec or what `verify_chain` raises; the line says what is wrong. Definite: nothing was done.
    """
    opened = _open(record)
    spec = peek_spec(record)
    caller = verify_chain(opened.chain, spec.submitted_at)
    if caller.kind != "user" or (caller.vo, caller.name) != (spec.vo, spec.user):
        raise BadSubmission(f"{caller.name}@{caller.vo} signed a job of {spec.user}@{spec.vo}")
    _check_signature(opened)
    return Submission(spec, caller, record)


def _open(record: bytes) -> _Record:
    if len(record) > RECORD_BYTES_MAX:
        raise BadSubmission("the submission is too large")
    try:
        opened = msgspec.msgpack.decode(record, type=_Record)
        msgspec.msgpack.decode(opened.spec)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadSubmission("the submission cannot be read") from error
    if not 1 <= len(opened.chain) <= CHAIN_MAX:
        raise BadSubmission("the submission carries no certificate")
    return opened


def _check_signature(opened: _Record) -> None:
    key = x509.load_der_x509_certificate(opened.chain[0]).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadSubmission("the submission is signed by an unknown kind of key")
    try:
        key.verify(opened.signature, _signed_text(opened.spec), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadSubmission("the submission was changed after it was signed") from error


def reason_of(error: XosError) -> str:
    """Return the one line for a log row of why a submission was turned away."""
    return error.line()[:300]
