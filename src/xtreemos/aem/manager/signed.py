"""A submission that carries its user's signature: a node checks the user's wish itself and trusts no manager for it.

It is a signed statement (`vo.statement`) under the domain `xos-submit-v1|`; its body is the encoded spec. This module does not know
how a chain is judged: that comes in as `verify_chain`. Nothing here reads a clock: a job may be placed hours after it was
submitted, so the chain must have been valid at `submitted_at` of the spec, and revocation is the judge's to look at *now*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.aem.jobspec import JobSpec, from_wire
from xtreemos.aem.manager.model import BadSubmission
from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller
from xtreemos.vo.statement import Statement, check_signature, read_statement, sign_statement

DOMAIN = b"xos-submit-v1|"
RECORD_BYTES_MAX = 600 * 1024

VerifyChain = Callable[[Sequence[bytes], float], Caller]
"""(DER certificates, leaf first; when they must have been valid, seconds since 1970) -> who it is; raises XosError."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A record whose signature was checked. `array`: the id of the array if `spec` is one task of it."""

    spec: JobSpec
    caller: Caller
    record: bytes
    array: str = ""


Verify = Callable[[bytes], Submission]
"""`verify_submission` bound to a judge (and cached, where the same records come often)."""


def sign_submission(spec: JobSpec, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the record to publish: `spec` signed by the session's key.

    Raises:
        BadSubmission: the record would be too large. Definite.
    """
    record = sign_statement(DOMAIN, msgspec.msgpack.encode(spec), chain_der, key)
    if len(record) > RECORD_BYTES_MAX:
        raise BadSubmission(f"the job takes {len(record)} bytes, {RECORD_BYTES_MAX} are allowed", "pass large data in files")
    return record


def peek_spec(record: bytes) -> JobSpec:
    """Read the spec of a record *without* checking who signed it; raises BadSubmission or BadSpec."""
    return from_wire(_open(record)[1])


def verify_submission(record: bytes, verify_chain: VerifyChain) -> Submission:
    """Check that the user named in the spec, in the VO named in it, signed exactly this spec.

    Raises:
        BadSubmission, BadSpec or what `verify_chain` raises; the line says what is wrong. Definite: nothing was done.
    """
    opened, wire = _open(record)
    spec = from_wire(wire)
    caller = verify_chain(opened.chain, spec.submitted_at)
    if caller.kind != "user" or (caller.vo, caller.name) != (spec.vo, spec.user):
        raise BadSubmission(f"{caller.name}@{caller.vo} signed a job of {spec.user}@{spec.vo}")
    check_signature(opened, DOMAIN, what="submission", refuse=BadSubmission)
    return Submission(spec, caller, record)


def _open(record: bytes) -> tuple[Statement, Any]:
    """Return the statement and its decoded, unchecked spec."""
    statement = read_statement(record, what="submission", bytes_max=RECORD_BYTES_MAX, refuse=BadSubmission)
    try:
        return statement, msgspec.msgpack.decode(statement.body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadSubmission("the submission cannot be read") from error


def reason_of(error: XosError) -> str:
    """Return the one line for a log row of why a submission was turned away."""
    return error.line()[:300]
