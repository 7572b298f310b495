"""The smaller parts of the VO room: audit chain, attempts, tokens, documents, revocation sets, key files, real argon2."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from vo_kit import START, founded
from xtreemos.errors import XosError
from xtreemos.vo import founding, ssh, tokens
from xtreemos.vo import x509 as certificates
from xtreemos.vo.audit import Audit, AuditRecord, verify_file
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.document import open_document
from xtreemos.vo.errors import AuditBroken, BadCredential, BadDocument, BadPassword, BadTokenText, Busy, TooManyAttempts
from xtreemos.vo.model import Consent, Revocation, Session
from xtreemos.vo.passwords import Attempts, Passwords, check_new
from xtreemos.vo.pop import Challenge, open_challenge
from xtreemos.vo.revocation import RevocationSet, nats_revocations, revoked_serials, widen

RECORD = AuditRecord(at=START, vo="demo", who="user alice@demo", what="cda.login", allowed=True)


# ---- audit


def written(folder, count=5):
    audit = Audit(folder / "audit")
    for number in range(count):
        audit.append(dataclasses.replace(RECORD, why=str(number)))
    audit.close()
    return folder / "audit"


def test_an_audit_goes_on_where_it_ended(tmp_path):
    path = written(tmp_path)
    written(tmp_path)
    assert verify_file(path)[0] == 10
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["edit", "drop", "swap", "insert", "garbage"])
def test_a_changed_audit_is_found(tmp_path, change):
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[2] = lines[2].replace(b'"allowed": true', b'"allowed": false')
    elif change == "drop":
        del lines[2]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "insert":
        lines.insert(2, lines[1])
    else:
        lines[2] = b"[]\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditBroken):
        verify_file(path)
    with pytest.raises(AuditBroken):
        Audit(path)


def test_half_a_line_after_a_power_cut_is_dropped(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seq": 5, "at"')
    Audit(path).close()
    assert path.read_bytes() == whole


def test_many_waiters_share_few_flushes(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    audit = Audit(tmp_path / "audit")

    async def scene():
        await asyncio.gather(*(audit.write(RECORD) for _ in range(200)))

    asyncio.run(scene())
    assert 1 <= len(flushed) <= 3
    assert verify_file(audit.path)[0] == 200
    audit.close()


# ---- passwords


def test_a_real_argon2_hash_with_production_parameters_checks_and_costs_the_same_for_nobody():
    passwords = Passwords()

    async def scene():
        stored = await passwords.hash("correct horse")
        spent = []
        for known in (stored, ""):
            started = time.process_time()
            assert not await passwords.verify(known, "wrong horse")
            spent.append(time.process_time() - started)
        assert await passwords.verify(stored, "correct horse")
        assert not await passwords.verify("", "nobody has this password")
        return stored, spent

    stored, spent = asyncio.run(scene())
    passwords.close()
    assert stored.startswith("$argon2id$v=19$m=65536,t=1,p=1$")
    assert 0.3 < spent[0] / spent[1] < 3.3


def test_the_same_characters_typed_in_two_ways_are_one_password():
    passwords = Passwords(memory_kib=8, time_cost=1)

    async def scene():
        return await passwords.verify(await passwords.hash("caf\u00e9 caf\u00e9"), "cafe\u0301 cafe\u0301")

    assert asyncio.run(scene())
    passwords.close()


def test_a_flood_of_checks_ends_in_busy_not_in_memory():
    passwords = Passwords(memory_kib=1024, time_cost=1, workers=1, waiting_max=4)

    async def scene():
        return await asyncio.gather(*(passwords.verify("", "x") for _ in range(20)), return_exceptions=True)

    results = asyncio.run(scene())
    passwords.close()
    assert sum(isinstance(result, Busy) for result in results) == 16
    assert results.count(False) == 4


@pytest.mark.parametrize("password", ["", "short", "x" * 1025, "alexandra"])
def test_a_weak_password_is_refused(password):
    with pytest.raises(BadPassword):
        check_new(password, "alexandra")


def test_attempts_slow_down_forgive_and_forget():
    attempts = Attempts(free=3, wait_s_max=60, forget_s=900)
    for _ in range(3):
        attempts.begin("alice", 0)
    with pytest.raises(TooManyAttempts, match="too many"):
        attempts.begin("alice", 0.5)
    attempts.begin("alice", 1)
    with pytest.raises(TooManyAttempts):
        attempts.begin("alice", 2.5)
    attempts.begin("bob", 2.5)
    assert attempts.wait_s("alice", 3) == 0
    attempts.begin("alice", 3)
    attempts.succeeded("alice", clear=True)
    for _ in range(3):
        attempts.begin("alice", 3)
    attempts.begin("alice", 3 + 901)


def test_memory_of_attempts_is_bounded():
    attempts = Attempts(free=3, keys_max=10)
    for number in range(1000):
        attempts.begin(str(number), 0)
    assert len(attempts._counts) == 10


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100), st.booleans()), max_size=60))
def test_no_more_than_the_free_attempts_pass_in_one_second_without_success(steps):
    attempts, now, passed = Attempts(free=3), 0.0, {"a": [], "b": []}
    for key, step, _ in steps:
        now += step / 100
        try:
            attempts.begin(key, now)
        except TooManyAttempts:
            continue
        passed[key].append(now)
    for times in passed.values():
        assert all(sum(t <= other < t + 1 for other in times) <= 4 for t in times)


# ---- tokens and challenges


def rng(count):
    return os.urandom(count)


def test_a_token_survives_its_text_and_hides_its_secret_from_logs():
    token = tokens.make_token("join", vo="demo", endpoints=("[2001:db8::1]:7601",), ca=b"c" * 32, rng=rng)
    assert tokens.parse_token(f" {token.text()}\n") == token
    assert token.text().startswith("xos1.")
    assert token.secret.hex() not in repr(token)
    assert str(token.secret) not in repr(token)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: "xos1." + data.hex()))
def test_any_text_is_a_token_or_refused(text):
    with pytest.raises(BadTokenText):
        tokens.parse_token(text)


def test_a_consent_is_bound_to_its_signature():
    owner = ed25519.Ed25519PrivateKey.generate()
    consent = Consent(vo="demo", node="n1", core=False, at=START, x509_public=b"k")
    signed = tokens.sign_consent(consent, owner)
    assert tokens.open_consent(signed)[0] == consent
    for at in range(len(signed)):
        bad = bytearray(signed)
        bad[at] ^= 1
        try:
            got, _ = tokens.open_consent(bytes(bad))
        except BadCredential:
            continue
        assert got == consent  # a field name of the wrapping, unknown and so ignored; what was signed is the same


@given(st.binary(max_size=300))
def test_any_bytes_are_a_consent_or_refused(data):
    with pytest.raises(BadCredential):
        tokens.open_consent(data)


@given(st.text(max_size=300))
def test_any_text_is_a_challenge_or_refused(text):
    with pytest.raises(XosError) as caught:
        open_challenge(text, b"k" * 32, purpose="login", vo="demo", subject="alice", now=START)
    assert caught.value.code == "replayed"


def test_a_challenge_is_bound_to_all_it_says():
    good = Challenge("login", "demo", "alice", "0" * 32, 0, START + 100, b"n").seal(b"k" * 32)
    asked = {"purpose": "login", "vo": "demo", "subject": "alice", "now": START}
    assert open_challenge(good, b"k" * 32, **asked).sid == "0" * 32
    for change in ({"purpose": "join"}, {"vo": "other"}, {"subject": "bob"}, {"now": START + 100}, {"now": START - 1000}):
        with pytest.raises(XosError):
            open_challenge(good, b"k" * 32, **{**asked, **change})
    with pytest.raises(XosError):
        open_challenge(good, b"x" * 32, **asked)


# ---- documents and founding


def test_a_document_is_taken_only_from_its_root_for_its_vo_and_never_older():
    one, other = founded("demo"), founded("other")
    root = one.secrets.root_sha256
    rotated = founding.rotate_issuing(one.secrets, one.root, START)
    assert open_document(rotated.document, root_sha256=root, newer_than=1).document.version == 2
    with pytest.raises(BadDocument, match="old"):
        open_document(one.secrets.document, root_sha256=root, newer_than=2)
    with pytest.raises(BadDocument):
        open_document(one.secrets.document, root_sha256=other.secrets.root_sha256)
    with pytest.raises(BadDocument):
        open_document(one.secrets.document, root_sha256=root, vo="other")


@given(st.data())
def test_no_changed_document_is_taken(data):
    good = founded("demo").secrets
    bad = bytearray(good.document)
    at = data.draw(st.integers(0, len(bad) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_document(bytes(bad), root_sha256=good.root_sha256, vo="demo")
    except BadDocument:
        return
    assert opened.document == open_document(good.document, root_sha256=good.root_sha256).document


def test_after_rotation_credentials_of_the_stolen_keys_are_refused():
    old = founded("demo")
    new = founding.IssuingKeys(founding.rotate_issuing(old.secrets, old.root, START))
    session = Session(sid="a" * 32, user="alice", created_at=START, ends_at=START + 99, expires_at=START + 99, roles=("member",))
    stolen = Issuer(founding.IssuingKeys(old.secrets)).issue_user(session, SessionKeys.fresh().public(), serial=1, now=START)
    fresh = Issuer(new).issue_user(session, SessionKeys.fresh().public(), serial=2, now=START)
    assert certificates.verify_x509(fresh.x509, new.trust, START)[0].name == "alice"
    for check in (
        lambda: certificates.verify_x509(stolen.x509, new.trust, START),
        lambda: ssh.verify_ssh_user(stolen.ssh, new.trust, START),
    ):
        with pytest.raises(BadCredential, match="unknown issuer"):
            check()


def test_key_files_are_private_whole_and_refused_when_others_can_read_them(tmp_path):
    grid = founding.found_grid("lab", START)
    made = founding.found_vo("demo", START, fabric_ca=grid.fabric_ca_pem, passphrase=b"sealed")
    folder = tmp_path / "keys"
    for item in (made.secrets, made.root, grid):
        assert founding.save(folder, item).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert founding.load_vo(folder) == made.secrets
    assert founding.load_root(folder) == made.root
    assert founding.load_grid(folder) == grid
    with pytest.raises(TypeError):
        founding.rotate_issuing(made.secrets, made.root, START)  # sealed, and no passphrase given
    assert founding.rotate_issuing(made.secrets, made.root, START, passphrase=b"sealed").vo == "demo"
    os.chmod(folder / "issuing.secret", 0o640)
    with pytest.raises(founding.BadKeyFile):
        founding.load_vo(folder)
    with pytest.raises(founding.BadKeyFile):
        founding.load_vo(tmp_path)


def test_secrets_do_not_show_in_logs():
    made, grid = founded("demo"), founding.found_grid("lab", START)
    shown = f"{made} {made.secrets!r} {made.root!r} {grid!r} {SessionKeys.fresh()!r} {founding.IssuingKeys(made.secrets)!r}"
    assert "PRIVATE" not in shown
    assert made.secrets.nats_account not in shown
    assert grid.operator_seed not in shown


# ---- revocation


REVOCATIONS = st.builds(
    Revocation,
    at=st.integers(0, 50),
    until=st.integers(51, 99),
    serials=st.tuples(st.integers(1, 9)) | st.just(()),
    nats_keys=st.tuples(st.sampled_from("UVW")) | st.just(()),
)
EVENTS = st.tuples(st.sampled_from(["revoked.sid." + "a" * 32, "revoked.user.alice", "revoked.node.n1"]), REVOCATIONS)


@given(st.lists(EVENTS, max_size=12), st.integers(0, 50), st.randoms())
def test_revocation_is_monotone_and_the_order_of_events_does_not_matter(events, issued_at, shuffler):
    revoked, seen = RevocationSet(), False
    for key, revocation in events:
        revoked.apply(key, revocation)
        now = revoked.is_revoked("a" * 32, "alice", issued_at)
        assert now or not seen
        seen = now
    shuffled = list(events) * 2
    shuffler.shuffle(shuffled)
    other = RevocationSet()
    for key, revocation in shuffled:
        other.apply(key, revocation)
    assert other.is_revoked("a" * 32, "alice", issued_at) == seen
    assert nats_revocations(other.records(), 50) == nats_revocations(revoked.records(), 50)
    assert revoked_serials(other.records(), 50) == revoked_serials(revoked.records(), 50)


@given(REVOCATIONS, REVOCATIONS)
def test_widening_never_narrows(one, other):
    both = widen(one, other)
    assert both.at >= max(one.at, other.at)
    assert both.until >= max(one.until, other.until)
    assert {*one.serials, *other.serials} == {*both.serials}


def test_pruning_forgets_only_what_expired_by_itself():
    revoked = RevocationSet()
    revoked.apply("revoked.user.alice", Revocation(at=10, until=20, serials=(5,)))
    revoked.prune(19)
    assert revoked.is_revoked("", "alice", 10)
    assert not revoked.is_revoked("", "alice", 11)
    assert not revoked.is_revoked("", "alice", 10, "node")
    revoked.prune(20)
    assert len(revoked) == 0


def test_records_of_a_later_version_are_read():
    later = msgspec.msgpack.encode({"at": 1, "until": 2, "colour": "red"})
    assert Revocation.from_bytes(later) == Revocation(at=1, until=2)


def test_the_session_key_files_are_what_openssl_and_openssh_read():
    keys = SessionKeys.fresh()
    serialization.load_pem_private_key(keys.x509_pem(), None)
    serialization.load_ssh_private_key(keys.ssh_pem(), None)
    assert json.dumps(keys.public().nats)
