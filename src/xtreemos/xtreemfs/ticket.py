"""Tickets: a user's signed word that a node may act for them on their files, for a while.

A ticket is a signed statement (`vo.statement`) under the domain `xos-files-v1|`; its body is the encoded `Ticket`. An MRC checks
the signature, the chain, revocation, and that the TLS peer is the node named. A ticket for one detached job names any node (`*`),
since its manager chooses: it outlives the log-out, so of revocations only the user's own ends it.

Pure: the clock's reading and the judge of chains come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.fabric.caller import Caller
from xtreemos.vo.document import Trust
from xtreemos.vo.errors import Revoked
from xtreemos.vo.model import SKEW_S
from xtreemos.vo.revocation import RevocationSet
from xtreemos.vo.statement import Statement, check_signature, read_statement, sign_statement
from xtreemos.vo.x509 import verify_user_x509
from xtreemos.xtreemfs.errors import TicketRefused

DOMAIN = b"xos-files-v1|"
ANY_NODE = "*"
RECORD_BYTES_MAX = 16 * 1024
JOB_LIFE_S = 30 * 86400
"""A detached job that lives longer loses its files; its user submits it again or logs in on its node."""

VerifyChain = Callable[[Sequence[bytes], int, bool], tuple[Caller, int]]
"""(DER chain, leaf first; when it must have been valid; whether a revoked session counts) -> who, and the leaf's end, seconds since 1970."""


def chain_judge(trust: Callable[[], Trust], revoked: RevocationSet) -> VerifyChain:
    """Return the judge of one VO: the strict verifier and the revocations known now."""

    def judge(chain: Sequence[bytes], at_s: int, session: bool) -> tuple[Caller, int]:  # VerifyChain's shape
        caller, issued_at = verify_user_x509(chain, trust(), at_s)
        if revoked.covers(caller, issued_at) if session else revoked.is_revoked("", caller.name, issued_at):
            raise Revoked(f"the session of {caller} was revoked")
        return caller, int(x509.load_der_x509_certificate(chain[0]).not_valid_after_utc.timestamp())

    return judge


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is signed. Times in seconds since 1970; `job` is empty for a session's ticket, which ends with its certificate."""

    vo: str
    user: str
    node: str
    issued_at: int
    expires_at: int
    job: str = ""


class Holder(msgspec.Struct, frozen=True):
    """A ticket that was checked: on whose behalf, until when."""

    user: str
    vo: str
    roles: frozenset[str]
    expires_at: int
    sid: str
    job: str = ""


def sign_ticket(ticket: Ticket, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the record of `ticket` signed by the session's key."""
    return sign_statement(DOMAIN, msgspec.msgpack.encode(ticket), chain_der, key)


def peek_ticket(record: bytes) -> Ticket:
    """Read a ticket *without* checking who signed it; raises TicketRefused if it is none."""
    return _open(record)[1]


def session_behind(record: bytes) -> tuple[str, int, int]:
    """Read *without* checking which credential signed a ticket: session id, serial, issued at; for `vo.revocation`. Raises TicketRefused."""
    try:
        leaf = x509.load_der_x509_certificate(_open(record)[0].chain[0])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uri = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (ValueError, x509.ExtensionNotFound, IndexError) as error:
        raise TicketRefused("the ticket's certificate cannot be read") from error
    return uri.rpartition("/")[2], leaf.serial_number, int(leaf.not_valid_before_utc.timestamp()) + SKEW_S


def verify_ticket(record: bytes, *, vo: str, node: str, now_s: float, verify_chain: VerifyChain) -> Holder:
    """Check that the user named in a ticket signed it for this node and time.

    Args:
        record: what `sign_ticket` returned, or what somebody sent instead.
        vo: the VO whose files are asked for.
        node: the node that shows it, as its TLS certificate says.
        now_s: seconds since 1970.
        verify_chain: judges the certificates; raises if they are not the VO's.

    Raises:
        TicketRefused, or what `verify_chain` raises; the line says what is wrong. Definite.
    """
    opened, ticket = _open(record)
    caller, ends_at = verify_chain(opened.chain, ticket.issued_at if ticket.job else int(now_s), not ticket.job)
    check_signature(opened, DOMAIN, what="ticket", refuse=TicketRefused)
    if caller.kind != "user" or (caller.vo, caller.name) != (ticket.vo, ticket.user):
        raise TicketRefused(f"{caller} signed a ticket of {ticket.user[:40]}@{ticket.vo[:40]}")
    if ticket.vo != vo:
        raise TicketRefused(f"the ticket is for VO {ticket.vo}, not {vo}")
    if ticket.node != node and not (ticket.node == ANY_NODE and ticket.job):
        raise TicketRefused(f"the ticket of {caller} is for node {ticket.node[:64]}, not {node}", "the user must log in there")
    last = ticket.issued_at + JOB_LIFE_S if ticket.job else ends_at
    expires_at = min(ticket.expires_at, last)
    if now_s >= expires_at:
        raise TicketRefused(f"the ticket of {caller} has expired", "run the program again, or log in again")
    return Holder(caller.name, caller.vo, caller.roles, expires_at, caller.sid, ticket.job)


def _open(record: bytes) -> tuple[Statement, Ticket]:
    statement = read_statement(record, what="ticket", bytes_max=RECORD_BYTES_MAX, refuse=TicketRefused)
    try:
        return statement, msgspec.msgpack.decode(statement.body, type=Ticket)
    except (msgspec.MsgspecError, ValueError) as error:
        raise TicketRefused("the ticket cannot be read") from error
