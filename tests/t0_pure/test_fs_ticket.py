"""A node acts for a user on their files only with that user's own, fresh word for this very node."""

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller
from xtreemos.vo.errors import Revoked
from xtreemos.vo.x509 import der, make_ca
from xtreemos.xtreemfs.errors import TicketRefused
from xtreemos.xtreemfs.ticket import JOB_LIFE_S, RECORD_BYTES_MAX, Ticket, peek_ticket, sign_ticket, verify_ticket

NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = [der(make_ca("session", key=KEY, parent=None, now=NOW, life_s=3600))]
ALICE = Caller("user", vo="demo", name="alice", sid="ab" * 16, roles=frozenset({"member"}))
ENDS = NOW + 3600
TICKET = Ticket("demo", "alice", "n2", NOW, ENDS)
RECORD = sign_ticket(TICKET, CHAIN, KEY)
JOB = Ticket("demo", "alice", "*", NOW, NOW + 10 * JOB_LIFE_S, "jaaaaaaaaaaaa")


def judge(chain, at, session):
    assert list(chain) == CHAIN
    if session and at >= ENDS:
        raise Revoked("expired")
    return ALICE, ENDS


def verify(record, *, node="n2", vo="demo", now=NOW + 10, by=judge):
    return verify_ticket(record, vo=vo, node=node, now_s=now, verify_chain=by)


def test_the_node_named_acts_for_the_user_until_the_certificate_ends():
    holder = verify(RECORD)
    assert (holder.user, holder.vo, holder.sid, holder.expires_at) == ("alice", "demo", ALICE.sid, ENDS)
    assert peek_ticket(RECORD) == TICKET


@pytest.mark.parametrize(
    ("ticket", "change", "says"),
    [
        (TICKET, {"node": "n3"}, "is for node n2, not n3"),
        (TICKET, {"vo": "other"}, "is for VO demo, not other"),
        (TICKET, {"now": ENDS}, "expired"),
        (msgspec.structs.replace(TICKET, user="bob"), {}, "signed a ticket of bob@demo"),
        (msgspec.structs.replace(TICKET, vo="other"), {"vo": "other"}, "signed a ticket of alice@other"),
        (msgspec.structs.replace(TICKET, node="*"), {}, r"is for node \*"),
        (msgspec.structs.replace(TICKET, expires_at=NOW + 5), {}, "has expired"),
        (msgspec.structs.replace(TICKET, expires_at=ENDS * 2), {"now": ENDS}, "expired"),
        (JOB, {"now": NOW + JOB_LIFE_S}, "has expired"),
    ],
)
def test_a_ticket_for_something_else_is_refused(ticket, change, says):
    with pytest.raises((TicketRefused, Revoked), match=says):
        verify(sign_ticket(ticket, CHAIN, KEY), **change)


def test_a_detached_jobs_ticket_is_good_anywhere_after_the_session_but_not_for_a_suspended_user():
    record = sign_ticket(JOB, CHAIN, KEY)
    assert verify(record, node="n7", now=ENDS + 5).job == JOB.job
    seen = []

    def suspended(_chain, at, session):
        seen.append((at, session))
        raise Revoked("suspended")

    with pytest.raises(Revoked):
        verify(record, by=suspended)
    assert seen == [(NOW, False)]


def test_a_changed_ticket_and_another_protocols_signature_are_refused():
    body, chain, signature = msgspec.msgpack.decode(RECORD)
    widened = msgspec.msgpack.encode(msgspec.structs.replace(TICKET, expires_at=ENDS * 2))
    plain = KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    for record in ([widened, chain, signature], [body, chain, plain], [body, chain, b""]):
        with pytest.raises(TicketRefused, match="changed after it was signed"):
            verify(msgspec.msgpack.encode(record))


@pytest.mark.parametrize("record", [b"", b"x" * (RECORD_BYTES_MAX + 1), msgspec.msgpack.encode([b"", [], b""])])
def test_what_is_no_ticket_is_refused(record):
    with pytest.raises(TicketRefused):
        verify(record)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_verifier(data):
    with pytest.raises(XosError):
        verify(data)
