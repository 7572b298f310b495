"""Capabilities and session tokens: every way in which one may be wrong is refused, and the reason is told."""

from __future__ import annotations

import errno

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.xtreemfs import capability as subject
from xtreemos.xtreemfs.capability import Fence, Signer, Verifier, check_fence, check_rights
from xtreemos.xtreemfs.errors import CapabilityRefused, FsError
from xtreemos.xtreemfs.model import Capability, SessionToken, make_ino

NOW_S = 1_800_000_000.0
SIGNER = Signer(b"m" * 32)
OTHER = Signer(b"x" * 32)
KEYS = {"core1": (SIGNER.public,)}
CAPABILITY = Capability(
    vo="demo", mrc="core1", client="c1", node="n1", ino=make_ino(1, 7), mode="w", epoch=5, layout_version=2,
    quota_bytes=1 << 30, expires_at=int(NOW_S) + 3600,
)  # fmt: skip
SESSION = SessionToken(vo="demo", mrc="core1", client="c1", node="n1", expires_at_ms=int(NOW_S * 1000) + 10_000)


def verifier(vo="demo"):
    return Verifier(vo, lambda mrc: KEYS.get(mrc, ()))


def changed(value, **fields):
    return msgspec.structs.replace(value, **fields)


def test_what_an_mrc_signed_is_read_back():
    assert verifier().capability(SIGNER.capability(CAPABILITY)) == CAPABILITY
    assert verifier().session(SIGNER.session(SESSION)) == SESSION


WIDER = {
    "vo": "demo2", "mrc": "core2", "client": "c2", "node": "n2", "ino": make_ino(1, 8), "mode": "r", "epoch": 6, "layout_version": 3,
    "quota_bytes": 1 << 40, "expires_at": int(NOW_S) + 7200,
}  # fmt: skip


def test_every_field_is_tried():
    assert set(WIDER) == set(Capability.__struct_fields__)


@pytest.mark.parametrize("field", WIDER)
def test_a_capability_with_any_field_changed_after_signing_is_refused(field):
    signature = SIGNER.capability(CAPABILITY)[: subject.SIGNATURE_BYTES]
    widened = signature + msgspec.msgpack.encode(changed(CAPABILITY, **{field: WIDER[field]}))
    with pytest.raises(CapabilityRefused):
        verifier().capability(widened)


@pytest.mark.parametrize(
    ("field", "value"), [("vo", "demo2"), ("mrc", "core2"), ("client", "c2"), ("node", "n2"), ("expires_at_ms", int(NOW_S * 1000) + 99_000)]
)
def test_a_session_token_with_any_field_changed_after_signing_is_refused(field, value):
    signature = SIGNER.session(SESSION)[: subject.SIGNATURE_BYTES]
    with pytest.raises(CapabilityRefused):
        verifier().session(signature + msgspec.msgpack.encode(changed(SESSION, **{field: value})))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (OTHER.capability(CAPABILITY), "not signed by the MRC on core1"),
        (SIGNER.capability(changed(CAPABILITY, vo="other")), "of VO other, not demo"),
        (SIGNER.capability(changed(CAPABILITY, mrc="nowhere")), "no known MRC"),
        (SIGNER.session(SESSION), "cannot be read"),
        (SIGNER._sign(subject.SESSION_DOMAIN, CAPABILITY), "not signed by the MRC"),
        (b"", "0 bytes"),
        (b"s" * 64 + b"\xc1", "cannot be read"),
        (b"s" * 5000, "5000 bytes"),
    ],
    ids=["forged", "wrong-vo", "unknown-mrc", "token-as-capability", "other-domain", "empty", "no-msgpack", "too-long"],
)
def test_a_record_that_is_not_what_an_mrc_signed_is_refused(record, reason):
    with pytest.raises(CapabilityRefused, match=reason):
        verifier().capability(record)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(record):
    with pytest.raises(CapabilityRefused):
        verifier().capability(record)
    with pytest.raises(CapabilityRefused):
        verifier().session(record)


@pytest.mark.parametrize(
    ("capability", "session", "node", "write", "reason"),
    [
        (CAPABILITY, SESSION, "n2", False, "given to node n1, not to n2"),
        (CAPABILITY, changed(SESSION, node="n2"), "n1", False, "given to node n2"),
        (changed(CAPABILITY, node=""), SESSION, "n1", False, r"given to node \(none\)"),
        (CAPABILITY, changed(SESSION, client="c2"), "n1", False, "another client's"),
        (CAPABILITY, changed(SESSION, mrc="core2"), "n1", False, "another client's"),
        (CAPABILITY, changed(SESSION, expires_at_ms=int(NOW_S * 1000)), "n1", False, "session ended"),
        (changed(CAPABILITY, expires_at=int(NOW_S)), SESSION, "n1", False, "has expired"),
        (changed(CAPABILITY, mode="r"), SESSION, "n1", True, "reading only"),
    ],
    ids=["other-node", "token-of-other-node", "no-node", "other-client", "other-mrc", "session-over", "expired", "wrong-mode"],
)
def test_rights_are_refused(capability, session, node, write, reason):
    with pytest.raises(CapabilityRefused, match=reason):
        check_rights(capability, session, node=node, now_s=NOW_S, write=write)


@pytest.mark.parametrize(("mode", "write"), [("r", False), ("w", False), ("w", True)])
@pytest.mark.parametrize("node", ["n1", None])
def test_rights_that_suffice_pass(mode, write, node):
    check_rights(changed(CAPABILITY, mode=mode), SESSION, node=node, now_s=NOW_S, write=write)


@pytest.mark.parametrize(
    ("fence", "write", "refused"),
    [
        (Fence(epoch=6, layout_version=2), True, True),
        (Fence(epoch=6, layout_version=2), False, False),
        (Fence(epoch=5, layout_version=2), True, False),
        (Fence(epoch=5, layout_version=3), False, True),
        (Fence(epoch=5, layout_version=3), True, True),
        (Fence(), True, False),
    ],
    ids=["older-epoch-write", "older-epoch-read", "same-epoch", "older-layout-read", "older-layout-write", "unknown-file"],
)
def test_a_fence_stops_old_writers_and_old_layouts(fence, write, refused):
    if not refused:
        check_fence(CAPABILITY, fence, write=write)
        return
    with pytest.raises(FsError) as caught:
        check_fence(CAPABILITY, fence, write=write)
    assert caught.value.errno == errno.ESTALE


def test_a_record_is_verified_once_until_keys_change(monkeypatch):
    count = []
    real = subject._signed_by
    monkeypatch.setattr(subject, "_signed_by", lambda *args: count.append(1) or real(*args))
    keys = {"core1": (SIGNER.public,)}
    checks = Verifier("demo", lambda mrc: keys.get(mrc, ()))
    record = SIGNER.capability(CAPABILITY)
    assert checks.capability(record) is checks.capability(record)
    assert len(count) == 1
    keys["core1"] = (OTHER.public,)
    checks.forget()
    with pytest.raises(CapabilityRefused):
        checks.capability(record)


def test_an_older_key_of_the_mrc_still_verifies():
    checks = Verifier("demo", lambda _mrc: (OTHER.public, SIGNER.public))
    assert checks.capability(SIGNER.capability(CAPABILITY)) == CAPABILITY


def test_the_verifier_remembers_no_more_than_its_bound(monkeypatch):
    monkeypatch.setattr(subject, "VERIFIED_MAX", 3)
    checks = verifier()
    for number in range(6):
        checks.capability(SIGNER.capability(changed(CAPABILITY, epoch=number)))
    assert len(checks._capabilities) == 3


def test_a_damaged_key_in_the_directory_refuses_and_does_not_fail():
    checks = Verifier("demo", lambda _mrc: (b"short",))
    with pytest.raises(CapabilityRefused):
        checks.capability(SIGNER.capability(CAPABILITY))
