"""A submission is run only as its user signed it."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.aem.jobspec import BadSpec, JobSpec
from xtreemos.aem.manager.model import BadSubmission
from xtreemos.aem.manager.signed import RECORD_BYTES_MAX, sign_submission, verify_submission
from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.x509 import der, make_ca

KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = [der(make_ca("session", key=KEY, parent=None, now=1_700_000_000, life_s=3600))]
SPEC = JobSpec(job="jaaaaaaaaaaaa", vo="demo", user="alice", argv=["true"], submitted_at=1234.5)
ALICE = Caller("user", vo="demo", name="alice")
RECORD = sign_submission(SPEC, CHAIN, KEY)


def judge(chain, at):
    assert list(chain) == CHAIN
    assert at == SPEC.submitted_at
    return ALICE


def test_what_was_signed_is_what_is_run():
    submission = verify_submission(RECORD, judge)
    assert (submission.spec, submission.caller, submission.record) == (SPEC, ALICE, RECORD)


@pytest.mark.parametrize(
    "caller",
    [Caller("user", vo="demo", name="bob"), Caller("user", vo="other", name="alice"), Caller("node", vo="demo", name="alice")],
)
def test_nobody_submits_in_anothers_name(caller):
    with pytest.raises(BadSubmission, match="signed a job of alice@demo"):
        verify_submission(RECORD, lambda _chain, _at: caller)


def test_a_changed_spec_is_refused():
    body, chain, signature = msgspec.msgpack.decode(RECORD)
    changed = msgspec.msgpack.encode(msgspec.structs.replace(SPEC, argv=["false"]))
    for record in ([changed, chain, signature], [body, chain, b"x" * 70], [body, chain, b""]):
        with pytest.raises(BadSubmission, match="changed after it was signed"):
            verify_submission(msgspec.msgpack.encode(record), judge)


def test_the_signature_of_another_protocol_is_worth_nothing():
    body, chain, _ = msgspec.msgpack.decode(RECORD)
    from cryptography.hazmat.primitives import hashes

    plain = KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(BadSubmission):
        verify_submission(msgspec.msgpack.encode([body, chain, plain]), judge)


def test_the_judge_of_certificates_has_the_last_word():
    def refuse(_chain, _at):
        raise BadCredential("expired")

    with pytest.raises(BadCredential, match="expired"):
        verify_submission(RECORD, refuse)


@pytest.mark.parametrize("chain", [[], CHAIN * 4])
def test_a_record_carries_one_to_three_certificates(chain):
    body, _, signature = msgspec.msgpack.decode(RECORD)
    with pytest.raises(BadSubmission, match="no certificate"):
        verify_submission(msgspec.msgpack.encode([body, chain, signature]), judge)


def test_a_record_that_is_too_large_is_not_even_made():
    large = msgspec.structs.replace(SPEC, where="x" * RECORD_BYTES_MAX)
    with pytest.raises(BadSubmission, match="bytes"):
        sign_submission(large, CHAIN, KEY)
    with pytest.raises(BadSubmission, match="too large"):
        verify_submission(b"x" * (RECORD_BYTES_MAX + 1), judge)


def test_a_spec_out_of_bounds_is_named_as_such():
    bad = msgspec.msgpack.encode({**msgspec.to_builtins(SPEC), "retry": 10_000})
    with pytest.raises(BadSpec):
        verify_submission(msgspec.msgpack.encode([bad, CHAIN, b"x"]), judge)


@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_no_flipped_byte_goes_through(at, flip):
    broken = RECORD[:at] + bytes([RECORD[at] ^ flip]) + RECORD[at + 1 :]
    try:
        verify_submission(
            broken,
            lambda chain, _at: (
                judge(chain, SPEC.submitted_at) if list(chain) == CHAIN else (_ for _ in ()).throw(BadCredential("bad chain"))
            ),
        )
    except XosError:
        return
    pytest.fail("a changed record was taken")
