"""Our verifier of NATS tokens: what must be refused, row by row (notes/vo-security.md section 4), and why."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.fabric import jwt, subjects
from xtreemos.fabric.errors import BadToken
from xtreemos.fabric.nkeys import KeyKind, KeyPair

NOW = 1_800_000_000
OPERATOR, OTHER_OPERATOR = KeyPair.generate(KeyKind.OPERATOR), KeyPair.generate(KeyKind.OPERATOR)
ACCOUNT, OTHER_ACCOUNT, SYSTEM = (KeyPair.generate(KeyKind.ACCOUNT) for _ in range(3))
MEMBER, REVOKED_ROLE = KeyPair.generate(KeyKind.ACCOUNT), KeyPair.generate(KeyKind.ACCOUNT)
USER, GONE = KeyPair.generate(KeyKind.USER), KeyPair.generate(KeyKind.USER)


def account_token(signer=OPERATOR, **more):
    scopes = [jwt.Scope(MEMBER.public, "member", subjects.permissions("member"))]
    return jwt.mint_account(
        signer,
        account=ACCOUNT.public,
        name="demo",
        now=NOW,
        scopes=scopes,
        limits=jwt.AccountLimits(),
        revocations={GONE.public: NOW - 10},
        **more,
    )


def trusted():
    operator = jwt.mint_operator(OPERATOR, name="grid", system_account=SYSTEM.public, now=NOW)
    grid = jwt.verify_operator(operator, operator=OPERATOR.public, now=NOW)
    return grid, jwt.verify_account(account_token(), operator=grid, now=NOW)


GRID, VO = trusted()


def user_claims(**changes):
    body = {"sub": USER.public, "name": "alice", "iat": NOW, "exp": NOW + 60}
    body["nats"] = {"type": "user", "version": 2, "issuer_account": ACCOUNT.public, "tags": ["sid:s1"]} | changes.pop("nats", {})
    return body | changes


def with_header(token, header, signer=MEMBER):
    body = token.split(".")[1]
    head = jwt._b64(json.dumps(header).encode())
    return f"{head}.{body}.{jwt._b64(signer.sign(f'{head}.{body}'.encode()))}"


def verify(token, **more):
    return jwt.verify_user(token, account=VO, now=more.pop("now", NOW), **more)


def good():
    return jwt.sign_claims(user_claims(), MEMBER)


def test_a_member_s_token_is_taken_and_its_role_known():
    claims = verify(good())
    assert (claims.name, claims.subject, claims.tag("sid"), jwt.role_of(claims, VO)) == ("alice", USER.public, "s1", "member")


def tampered():
    head, body, signature = good().split(".")
    return f"{head}.{body}.{jwt._b64(bytes([jwt._unb64(signature)[0] ^ 1]) + jwt._unb64(signature)[1:])}"


def raw_body(text):
    head, body = jwt._b64(jwt._dump(jwt.HEADER)), jwt._b64(text.encode())
    return f"{head}.{body}.{jwt._b64(MEMBER.sign(f'{head}.{body}'.encode()))}"


NEGATIVE = {
    "alg none": ("algorithm", lambda: with_header(good(), {"typ": "JWT", "alg": "none"})),
    "alg HS256": ("algorithm", lambda: with_header(good(), {"typ": "JWT", "alg": "HS256"})),
    "old alg ed25519": ("algorithm", lambda: with_header(good(), {"typ": "jwt", "alg": "ed25519"})),
    "header with kid": ("algorithm", lambda: with_header(good(), {**jwt.HEADER, "kid": "../../x"})),
    "version 1": ("version", lambda: jwt.sign_claims(user_claims(nats={"version": 1}), MEMBER)),
    "version 99": ("version", lambda: jwt.sign_claims(user_claims(nats={"version": 99}), MEMBER)),
    "version true": ("version", lambda: jwt.sign_claims(user_claims(nats={"version": True}), MEMBER)),
    "signature changed": ("signature", tampered),
    "no signature": ("form", lambda: ".".join([*good().split(".")[:2], ""])),
    "signed by the operator": ("issuer", lambda: jwt.sign_claims(user_claims(), OPERATOR)),
    "signed by another account that names ours": ("issuer", lambda: jwt.sign_claims(user_claims(), OTHER_ACCOUNT)),
    "signed by a role's key that was removed": ("issuer", lambda: jwt.sign_claims(user_claims(), REVOKED_ROLE)),
    "signed for another account by our role": (
        "issuer",
        lambda: jwt.sign_claims(user_claims(nats={"issuer_account": OTHER_ACCOUNT.public}), MEMBER),
    ),
    "signed by a role without naming the account": (
        "issuer",
        lambda: jwt.sign_claims(user_claims(nats={"issuer_account": ""}), MEMBER),
    ),
    "signed by a user": ("issuer", lambda: jwt.sign_claims(user_claims(), USER)),
    "role with permissions of its own": (
        "scoped-permissions",
        lambda: jwt.sign_claims(user_claims(nats={"pub": {"allow": [">"]}}), MEMBER),
    ),
    "role with limits of its own": ("scoped-permissions", lambda: jwt.sign_claims(user_claims(nats={"subs": -1}), MEMBER)),
    "bearer by a role": ("scoped-permissions", lambda: jwt.sign_claims(user_claims(nats={"bearer_token": True}), MEMBER)),
    "bearer by the account": ("bearer", lambda: jwt.sign_claims(user_claims(nats={"bearer_token": True}), ACCOUNT)),
    "subject is an account": ("key", lambda: jwt.sign_claims(user_claims(sub=ACCOUNT.public), MEMBER)),
    "subject is nonsense": ("key", lambda: jwt.sign_claims(user_claims(sub="alice' OR 1=1"), MEMBER)),
    "expired": ("expired", lambda: jwt.sign_claims(user_claims(exp=NOW), MEMBER)),
    "without end": ("expiry", lambda: jwt.sign_claims(user_claims(exp=0), MEMBER)),
    "not yet valid": ("future", lambda: jwt.sign_claims(user_claims(nbf=NOW + 120), MEMBER)),
    "issued in the future": ("future", lambda: jwt.sign_claims(user_claims(iat=NOW + 120), MEMBER)),
    "revoked": ("revoked", lambda: jwt.sign_claims(user_claims(sub=GONE.public, iat=NOW - 10), MEMBER)),
    "for another purpose": ("audience", lambda: jwt.sign_claims(user_claims(aud="nats-authorization-request"), MEMBER)),
    "account instead of user": ("type", account_token),
    "unknown type": ("type", lambda: jwt.sign_claims(user_claims(nats={"type": "root"}), MEMBER)),
    "time as text": ("form", lambda: jwt.sign_claims(user_claims(exp="never"), MEMBER)),
    "time as truth": ("form", lambda: jwt.sign_claims(user_claims(exp=True), MEMBER)),
    "time as fraction": ("form", lambda: jwt.sign_claims(user_claims(exp=NOW + 0.5), MEMBER)),
    "no nats claims": ("form", lambda: raw_body(json.dumps({"sub": USER.public, "iss": MEMBER.public}))),
    "a claim twice": ("form", lambda: raw_body('{"sub":"a","sub":"b"}')),
    "a list": ("form", lambda: raw_body("[]")),
    "deep nesting": ("form", lambda: raw_body("[" * 100_000)),
    "padded base64": ("form", lambda: good().replace(".", "=.", 1)),
    "two parts": ("form", lambda: good().rpartition(".")[0]),
    "four parts": ("form", lambda: good() + ".AA"),
    "empty": ("form", lambda: ""),
    "too large": ("form", lambda: good() + "A" * (1 << 20)),
    "space inside": ("form", lambda: good().replace(".", " .", 1)),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_refused(name):
    reason, make = NEGATIVE[name]
    with pytest.raises(BadToken) as caught:
        verify(make())
    assert caught.value.reason == reason
    assert caught.value.fault == "peer"


def test_a_new_token_for_a_revoked_key_is_taken():
    """CVE-2020-26892: revocation compares with the time of issue, never with now."""
    assert verify(jwt.sign_claims(user_claims(sub=GONE.public, iat=NOW - 9), MEMBER)).subject == GONE.public


def test_mass_log_out_hits_every_older_token():
    epoch = jwt.mint_account(OPERATOR, account=ACCOUNT.public, name="demo", now=NOW, scopes=[], revocations={"*": NOW})
    account = jwt.verify_account(epoch, operator=GRID, now=NOW)
    with pytest.raises(BadToken, match="revoked"):
        jwt.verify_user(jwt.sign_claims(user_claims(), ACCOUNT), account=account, now=NOW)
    later = jwt.sign_claims(user_claims(iat=NOW + 1), ACCOUNT)
    assert jwt.verify_user(later, account=account, now=NOW + 1).name == "alice"


@pytest.mark.parametrize(("address", "taken"), [("10.0.0.5", True), ("10.1.0.5", False), (None, False), ("nonsense", False)])
def test_a_token_bound_to_networks_is_good_only_there(address, taken):
    token = jwt.sign_claims(user_claims(nats={"src": ["10.0.0.0/24"]}), ACCOUNT)
    if taken:
        assert verify(token, address=address).name == "alice"
        return
    with pytest.raises(BadToken) as caught:
        verify(token, address=address)
    assert caught.value.reason == "source"


def test_an_account_of_a_stranger_is_refused():
    with pytest.raises(BadToken) as caught:
        jwt.verify_account(account_token(OTHER_OPERATOR), operator=GRID, now=NOW)
    assert caught.value.reason == "issuer"
    with pytest.raises(BadToken) as caught:
        jwt.verify_account(
            jwt.sign_claims(jwt._base(ACCOUNT.public, "demo", NOW, 0, {"type": "account"}), ACCOUNT), operator=GRID, now=NOW
        )
    assert caught.value.reason == "issuer"


def test_an_account_may_be_signed_by_a_signing_key_of_the_operator():
    helper = KeyPair.generate(KeyKind.OPERATOR)
    token = jwt.mint_operator(OPERATOR, name="grid", system_account=SYSTEM.public, now=NOW, signing_keys=[helper.public])
    grid = jwt.verify_operator(token, operator=OPERATOR.public, now=NOW)
    assert jwt.verify_account(account_token(helper), operator=grid, now=NOW).name == "demo"


def test_another_grid_s_operator_is_refused():
    token = jwt.mint_operator(OTHER_OPERATOR, name="grid", system_account=SYSTEM.public, now=NOW)
    with pytest.raises(BadToken, match="another grid"):
        jwt.verify_operator(token, operator=OPERATOR.public, now=NOW)


def test_a_role_s_key_cannot_mint_permissions():
    with pytest.raises(BadToken, match="role"):
        jwt.mint_user(
            MEMBER,
            account=ACCOUNT.public,
            user=USER.public,
            name="a",
            now=NOW,
            expires_at=NOW + 9,
            permissions=subjects.permissions("service"),
        )


@pytest.mark.parametrize("name", ["*", "a.b", ">", "", "a b", "{{name()}}", "é"])
def test_a_name_that_is_more_than_one_part_of_a_subject_is_not_minted(name):
    with pytest.raises(BadToken):
        jwt.mint_user(MEMBER, account=ACCOUNT.public, user=USER.public, name=name, now=NOW, expires_at=NOW + 9)
    with pytest.raises(BadToken):
        jwt.mint_user(
            MEMBER, account=ACCOUNT.public, user=USER.public, name="a", now=NOW, expires_at=NOW + 9, tags=(f"sid:{name}",)
        )


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_nonsense_is_refused_in_our_own_words(text):
    with pytest.raises(BadToken):
        jwt.decode(text)


@given(st.data())
def test_any_changed_character_is_refused(data):
    token = good()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != token[at]))
    with pytest.raises(BadToken):
        verify(token[:at] + other + token[at + 1 :])
