"""The bad inputs of notes/vo-security.md, section 4, for SSH, X.509, replay and names: each is refused, and each stands in the audit once."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vo_kit import NOBODY, ROOT, START, World, founded, proven
from xtreemos import names
from xtreemos.errors import XosError
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.vo import founding, ssh
from xtreemos.vo import x509 as certificates
from xtreemos.vo.admission import Admission
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.model import CREDENTIAL_S_MAX, Revocation, Session
from xtreemos.vo.revocation import RevocationSet

SID = "0123456789abcdef" * 2
HOUR = 3600
KEYS = founding.IssuingKeys(founded("demo").secrets)
OTHER = founding.IssuingKeys(founded("other").secrets)
SESSION_KEYS = SessionKeys.fresh()
PUBLIC = SESSION_KEYS.public()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.passwords.close()
    world.audit.close()


def admission(world, revoked=None):
    return Admission(world.trust, revoked or RevocationSet(), world.audit, world.clock)


def assert_refused(world, gate, reason):
    with pytest.raises(BadCredential) as caught:
        gate()
    assert caught.value.reason.startswith(reason)
    [line] = world.audited()
    assert line["allowed"] is False
    assert line["detail"]["reason"] == caught.value.reason


# ---- SSH


def string(data):
    return struct.pack(">I", len(data)) + data


def option(name, value=b""):
    return string(name) + string(string(value) if value else b"")


EXTENSIONS = (
    b"".join(option(name.encode()) for name in ssh.PERMITS)
    + option(b"roles@xtreemos.org", b"member")
    + option(b"sid@xtreemos.org", SID.encode())
    + option(b"vo@xtreemos.org", b"demo")
)


def ca_blob(key):
    return ssh.key_blob(ssh.public_line(key.public_key()))


def handmade(**changes):
    """A certificate's wire format with anything changed; signed by the demo VO's user CA unless told otherwise."""
    field = {
        "ca": KEYS.ssh_user_ca,
        "kind": 1,
        "serial": 77,
        "key_id": f"xos:demo:alice:{SID}".encode(),
        "principals": [b"alice.demo"],
        "after": START - 60,
        "before": START + HOUR,
        "critical": b"",
        "extensions": EXTENSIONS,
        "signing_key": None,
        "type": b"ssh-ed25519-cert-v01@openssh.com",
        "tail": b"",
    } | changes
    body = string(field["type"]) + string(b"n" * 32) + string(SESSION_KEYS.ssh.public_key().public_bytes_raw())
    body += struct.pack(">QI", field["serial"], field["kind"]) + string(field["key_id"])
    body += string(b"".join(string(item) for item in field["principals"]))
    body += struct.pack(">QQ", field["after"], field["before"]) + string(field["critical"]) + string(field["extensions"])
    body += string(b"") + string(field["signing_key"] or ca_blob(field["ca"]))
    signature = string(b"ssh-ed25519") + string(field["ca"].sign(body))
    blob = body + string(signature) + field["tail"]
    return f"{field['type'].decode()} {base64.b64encode(blob).decode()}"


STRANGER = ed25519.Ed25519PrivateKey.generate()

BAD_SSH = {
    "no principals": ({"principals": []}, "bad principal"),
    "two in one": ({"principals": [b"alice.demo,root"]}, "bad principal"),
    "root": ({"principals": [b"root"]}, "bad principal"),
    "star": ({"principals": [b"*"]}, "bad principal"),
    "pattern": ({"principals": [b"a*"]}, "bad principal"),
    "space": ({"principals": [b"alice.demo "]}, "bad principal"),
    "newline": ({"principals": [b"alice.demo\n"]}, "bad principal"),
    "NUL": ({"principals": [b"alice.demo\0"]}, "bad principal"),
    "non-ASCII": ({"principals": ["alicé.demo".encode()]}, "bad certificate"),
    "one more": ({"principals": [b"alice.demo", b"bob.demo"]}, "bad principal"),
    "257 principals": ({"principals": [b"alice.demo"] * 257}, "bad certificate"),
    "another user's": ({"principals": [b"bob.demo"]}, "bad principal"),
    "nested certificate as signing key": (
        {"signing_key": string(b"ssh-ed25519-cert-v01@openssh.com") + ca_blob(KEYS.ssh_user_ca)},
        "bad certificate",
    ),
    "stranger": ({"ca": STRANGER}, "unknown issuer"),
    "self-signed": ({"ca": SESSION_KEYS.ssh}, "unknown issuer"),
    "host CA": ({"ca": KEYS.ssh_host_ca}, "unknown issuer"),
    "other VO's CA": ({"ca": OTHER.ssh_user_ca}, "unknown issuer"),
    "stranger naming our CA": ({"ca": STRANGER, "signing_key": ca_blob(KEYS.ssh_user_ca)}, "bad signature"),
    "host certificate": ({"kind": 2}, "wrong kind"),
    "kind 3": ({"kind": 3}, "bad certificate"),
    "unknown critical option": ({"critical": option(b"vo@xtreemos.org", b"demo")}, "unknown critical option"),
    "known critical option that we never issue": ({"critical": option(b"force-command", b"sh")}, "unknown critical option"),
    "critical options twice": ({"critical": option(b"a") + option(b"a")}, "bad certificate"),
    "extensions unsorted": ({"extensions": option(b"vo@xtreemos.org", b"demo") + EXTENSIONS}, "bad certificate"),
    "extensions twice": ({"extensions": EXTENSIONS + option(b"vo@xtreemos.org", b"demo")}, "bad certificate"),
    "expired": ({"after": START - HOUR, "before": START}, "expired"),
    "future": ({"after": START + 1}, "not yet valid"),
    "after > before": ({"after": START + HOUR, "before": START - HOUR}, "not yet valid"),
    "for ever": ({"before": 2**64 - 1}, "lives too long"),
    "a day": ({"before": START + 2 * CREDENTIAL_S_MAX}, "lives too long"),
    "other VO in key id": ({"key_id": f"xos:other:alice:{SID}".encode()}, "wrong VO"),
    "other VO in extension": (
        {"extensions": EXTENSIONS.replace(string(b"demo"), string(b"othr"))},
        "wrong VO",
    ),
    "no VO extension": ({"extensions": b""}, "wrong VO"),
    "no session in key id": ({"key_id": b"alice"}, "bad name"),
    "another session in key id": ({"key_id": b"xos:demo:alice:" + b"f" * 32}, "bad name"),
    "reserved user": ({"key_id": f"xos:demo:root:{SID}".encode(), "principals": [b"root.demo"]}, "bad principal"),
    "bytes left over": ({"tail": b"x"}, "bad certificate"),
    "RSA certificate": ({"type": b"ssh-rsa-cert-v01@openssh.com"}, "bad certificate"),
}


def test_the_unchanged_handmade_ssh_certificate_is_taken(world):
    caller = admission(world).ssh(handmade(), "alice.demo", "192.0.2.1")
    assert (caller.name, caller.sid, caller.roles, caller.address) == ("alice", SID, {"member"}, "192.0.2.1")
    assert world.audited() == []


@pytest.mark.parametrize("case", BAD_SSH)
def test_a_bad_ssh_certificate_is_refused_and_audited(world, case):
    changes, reason = BAD_SSH[case]
    assert_refused(world, lambda: admission(world).ssh(handmade(**changes), "alice.demo"), reason)


@pytest.mark.parametrize("line", ["", "x", "ssh-ed25519", "ssh-ed25519 !!!", ssh.public_line(STRANGER.public_key())])
def test_what_is_no_ssh_certificate_is_refused_and_audited(world, line):
    assert_refused(world, lambda: admission(world).ssh(line, "alice.demo"), "bad certificate")


@pytest.mark.parametrize("user", ["root", "bob.demo", "alice", "alice.other", "*", "a*", "alice.demo\n", ""])
def test_a_good_ssh_certificate_opens_no_other_account(world, user):
    assert_refused(world, lambda: admission(world).ssh(handmade(), user), "bad principal")


@pytest.mark.parametrize("key", [f"revoked.sid.{SID}", "revoked.user.alice"])
def test_a_revoked_ssh_certificate_is_refused_and_audited(world, key):
    revoked = RevocationSet()
    revoked.apply(key, Revocation(at=START, until=START + HOUR))
    assert_refused(world, lambda: admission(world, revoked).ssh(handmade(), "alice.demo"), "the credential of user alice@demo")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_changed_or_cut_byte_of_an_ssh_certificate_is_taken(data):
    kind, encoded = handmade().split()
    blob = bytearray(base64.b64decode(encoded))
    at = data.draw(st.integers(0, len(blob) - 1))
    if data.draw(st.booleans()):
        blob[at] ^= data.draw(st.integers(1, 255))
    else:
        del blob[at:]
    with pytest.raises(BadCredential):
        ssh.verify_ssh_user(f"{kind} {base64.b64encode(blob).decode()}", KEYS.trust, START)


# ---- X.509


def leaf(**changes):
    """A leaf with anything changed; issued by the demo VO unless told otherwise. Returns the chain, DER."""
    field = {
        "issuer": KEYS.x509,
        "names": [x509.UniformResourceIdentifier(f"spiffe://demo/user/alice/session/{SID}")],
        "usages": [Usage.CLIENT_AUTH],
        "ca": x509.BasicConstraints(ca=False, path_length=None),
        "sign": False,
        "after": START - 60,
        "before": START + HOUR,
        "public": SESSION_KEYS.x509.public_key(),
        "more": [],
        "chain": None,
    } | changes
    certificate, key = field["issuer"]
    usage = x509.KeyUsage(True, False, False, False, False, field["sign"], False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice@demo")]))
        .issuer_name(certificate.subject)
        .public_key(field["public"])
        .serial_number(99)
        .not_valid_before(dt.datetime.fromtimestamp(field["after"], dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(field["before"], dt.UTC))
        .add_extension(usage, critical=True)
    )
    if field["ca"]:
        builder = builder.add_extension(field["ca"], critical=True)
    if field["usages"]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(field["usages"]), critical=False)
    if field["names"]:
        builder = builder.add_extension(x509.SubjectAlternativeName(field["names"]), critical=False)
    for extension in field["more"]:
        builder = builder.add_extension(extension, critical=True)
    made = certificates.der(builder.sign(key, hashes.SHA256()))
    return (made, *(field["chain"] or (certificates.der(certificate),)))


GOOD_LEAF = leaf()  # one for all: ECDSA gives another length each time


def uri(text):
    return [x509.UniformResourceIdentifier(text)]


def leaf_as_issuer():
    [good, _] = leaf()
    return x509.load_der_x509_certificate(good), SESSION_KEYS.x509


def sub_ca():
    key = ec.generate_private_key(ec.SECP256R1())
    return certificates.make_ca("sub", key=key, parent=KEYS.x509, now=START - 100, life_s=HOUR), key


def lookalike():
    """A stranger's CA with the same subject as ours."""
    key = ec.generate_private_key(ec.SECP256R1())
    return certificates.make_ca("demo VO issuing 1", key=key, parent=None, now=START - 100, life_s=HOUR), key


GOOD_URI = f"spiffe://demo/user/alice/session/{SID}"
RSA = rsa.generate_private_key(65537, 2048).public_key()

BAD_X509 = {
    "serverAuth only": (lambda: {"usages": [Usage.SERVER_AUTH]}, "wrong key usage"),
    "both usages for a user": (lambda: {"usages": [Usage.SERVER_AUTH, Usage.CLIENT_AUTH]}, "wrong key usage"),
    "any usage": (lambda: {"usages": [Usage.ANY_EXTENDED_KEY_USAGE]}, "wrong key usage"),
    "no usage": (lambda: {"usages": None}, "wrong key usage"),
    "may sign certificates": (lambda: {"sign": True}, "wrong key usage"),
    "leaf signs leaf": (lambda: {"issuer": leaf_as_issuer()}, "unknown issuer"),
    "CA under pathlen 0": (lambda: {"issuer": sub_ca()}, "unknown issuer"),
    "issuer with our name and another key": (lambda: {"issuer": lookalike()}, "unknown issuer"),
    "other VO's CA says demo": (lambda: {"issuer": OTHER.x509}, "unknown issuer"),
    "demo's CA says other": (lambda: {"names": uri(f"spiffe://other/user/alice/session/{SID}")}, "wrong VO"),
    "is a CA": (lambda: {"ca": x509.BasicConstraints(ca=True, path_length=None)}, "is a CA"),
    "no basic constraints": (lambda: {"ca": None}, "is a CA"),
    "two URIs": (lambda: {"names": uri(GOOD_URI) + uri(GOOD_URI.replace("alice", "bob"))}, "bad name"),
    "URI and DNS": (lambda: {"names": [*uri(GOOD_URI), x509.DNSName("n1")]}, "bad name"),
    "no name": (lambda: {"names": None}, "bad name"),
    "no path": (lambda: {"names": uri("spiffe://demo")}, "bad name"),
    "trailing slash": (lambda: {"names": uri(GOOD_URI + "/")}, "bad name"),
    "upper case": (lambda: {"names": uri(GOOD_URI.replace("alice", "Alice"))}, "bad name"),
    "upper case scheme": (lambda: {"names": uri(GOOD_URI.replace("spiffe", "SPIFFE"))}, "bad name"),
    "percent dots": (lambda: {"names": uri(f"spiffe://demo/user/%2e%2e/session/{SID}")}, "bad name"),
    "dots": (lambda: {"names": uri(f"spiffe://demo/user/../session/{SID}")}, "bad name"),
    "query": (lambda: {"names": uri(GOOD_URI + "?x=1")}, "bad name"),
    "port": (lambda: {"names": uri(GOOD_URI.replace("demo", "demo:1"))}, "bad name"),
    "reserved user": (lambda: {"names": uri(GOOD_URI.replace("alice", "root"))}, "bad name"),
    "expired": (lambda: {"before": START}, "expired"),
    "future": (lambda: {"after": START + 1}, "not yet valid"),
    "lives too long": (lambda: {"before": START + 2 * CREDENTIAL_S_MAX}, "lives too long"),
    "RSA key": (lambda: {"public": RSA}, "bad public key"),
    "P-384 key": (lambda: {"public": ec.generate_private_key(ec.SECP384R1()).public_key()}, "bad public key"),
    "unknown critical extension": (
        lambda: {"more": [x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")]},
        "bad certificate",
    ),
    "stranger in the chain": (lambda: {"chain": (certificates.der(OTHER.x509[0]),)}, "bad chain"),
    "node's URI with a user's usages": (lambda: {"names": uri("spiffe://demo/node/n1")}, "wrong key usage"),
    "node with a foreign DNS name": (
        lambda: {
            "names": [*uri("spiffe://demo/node/n1"), x509.DNSName("n2")],
            "usages": [Usage.CLIENT_AUTH, Usage.SERVER_AUTH],
        },
        "bad name",
    ),
}


def test_the_unchanged_handmade_x509_certificate_is_taken(world):
    assert admission(world).x509(leaf()).name == "alice"
    assert world.audited() == []


@pytest.mark.parametrize("case", BAD_X509)
def test_a_bad_x509_certificate_is_refused_and_audited(world, case):
    make, reason = BAD_X509[case]
    assert_refused(world, lambda: admission(world).x509(leaf(**make())), reason)


@pytest.mark.parametrize("chain", [(), (b"",), (b"x" * 100,), (b"\x30\x82",), leaf()[:1] * 4, (b"0" * 100_000,)])
def test_what_is_no_chain_is_refused_and_audited(world, chain):
    assert_refused(world, lambda: admission(world).x509(chain), "")


def test_a_revoked_x509_certificate_is_refused_and_audited_and_a_later_one_is_not(world):
    revoked = RevocationSet()
    revoked.apply("revoked.user.alice", Revocation(at=START, until=START + HOUR))
    world.clock.now = START + 10
    assert_refused(world, lambda: admission(world, revoked).x509(leaf()), "the credential of user alice@demo")
    later = Session(sid="f" * 32, user="alice", created_at=START, ends_at=START + HOUR, expires_at=START + HOUR, roles=("member",))
    fresh = Issuer(KEYS).issue_user(later, PUBLIC, serial=3, now=START + 5)
    assert admission(world, revoked).x509(fresh.x509).name == "alice"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # a later version of the library refuses it by itself
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_an_x509_certificate_is_taken(data):
    [good, issuer] = GOOD_LEAF
    at, flip = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    bad = bytearray(good)
    bad[at] ^= flip
    try:
        caller, _ = certificates.verify_x509((bytes(bad), issuer), KEYS.trust, START)
    except BadCredential:
        return
    # ECDSA signatures are malleable and DER has spare bits in the outer wrapping: what was signed must be the same.
    before, after = x509.load_der_x509_certificate(good), x509.load_der_x509_certificate(bytes(bad))
    assert before.tbs_certificate_bytes == after.tbs_certificate_bytes
    assert caller.name == "alice"


# ---- replay and proofs of possession


async def altered_login(world, change):
    await world.member()
    params = await world.login_params()
    before = len(world.audited())
    params = await change(params)
    with pytest.raises(XosError) as caught:
        await world.cda.call("login", NOBODY, params)
    return caught.value, world.audited()[before:]


def replaced(**changes):
    async def change(params):
        return params | changes

    return change


def with_proof(**changes):
    async def change(params):
        return params | {"proofs": params["proofs"] | changes}

    return change


def with_key(**changes):
    async def change(params):
        return params | {"keys": params["keys"] | changes}

    return change


ELSE = SessionKeys.fresh()
P384 = ec.generate_private_key(ec.SECP384R1()).public_key()
X25519 = x25519.X25519PrivateKey.generate().public_key()
EC_OID = b"\x2a\x86\x48\xce\x3d\x02\x01"
SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

BAD_PROOFS = {
    "somebody else's SSH key": (with_key(ssh=ELSE.public().ssh), "bad-credential"),
    "somebody else's NATS key": (with_key(nats=ELSE.public().nats), "bad-credential"),
    "somebody else's X.509 key": (with_key(x509=ELSE.public().x509), "bad-credential"),
    "NATS account key": (with_key(nats=KeyPair.generate(KeyKind.ACCOUNT).public), "bad-credential"),
    "NATS garbage": (with_key(nats="U" + "A" * 55), "bad-credential"),
    "SSH certificate as key": (with_key(ssh=handmade()), "bad-credential"),
    "SSH line with options": (with_key(ssh='command="sh" ' + PUBLIC.ssh), "bad-credential"),
    "X25519 key": (with_key(x509=X25519.public_bytes(*SPKI)), "bad-credential"),
    "key of an unknown kind": (with_key(x509=PUBLIC.x509.replace(EC_OID, b"\x2a\x86\x48\xce\x3d\x02\x7f")), "bad-credential"),
    "P-384 key": (with_key(x509=P384.public_bytes(*SPKI)), "bad-credential"),
    "RSA key": (with_key(x509=RSA.public_bytes(*SPKI)), "bad-credential"),
    "empty proof": (with_proof(ssh=b""), "bad-credential"),
    "challenge of ours, cut": (replaced(challenge="AAAA"), "replayed"),
    "challenge with non-ASCII": (replaced(challenge="é" * 60), "replayed"),
    "another user's name": (replaced(user="bob"), "replayed"),
}


@pytest.mark.parametrize("case", BAD_PROOFS)
def test_a_login_with_a_bad_proof_is_refused_and_audited(world, case):
    change, code = BAD_PROOFS[case]
    error, lines = asyncio.run(altered_login(world, change))
    assert error.code == code
    assert [line["allowed"] for line in lines] == [False]
    assert lines[0]["why"].startswith(code)


def test_proofs_of_one_dialect_do_not_serve_another(world):
    async def change(params):
        return params | {"proofs": params["proofs"] | {"ssh": params["proofs"]["nats"], "nats": params["proofs"]["ssh"]}}

    error, lines = asyncio.run(altered_login(world, change))
    assert error.code == "bad-credential"
    assert len(lines) == 1


def test_one_key_for_two_protocols_is_refused(world):
    async def change(params):
        asked = await world.cda.call("challenge", NOBODY, {"purpose": "login", "subject": "alice"})
        keys = SessionKeys.fresh()
        both = SessionKeys(keys.ssh, KeyPair(KeyKind.USER, keys.ssh), keys.x509)
        return params | proven(both, "demo", asked)

    error, lines = asyncio.run(altered_login(world, change))
    assert "two protocols" in error.message
    assert len(lines) == 1


def test_an_expired_challenge_is_refused_and_audited(world):
    async def change(params):
        world.clock.now += 121
        return params

    error, lines = asyncio.run(altered_login(world, change))
    assert (error.code, len(lines)) == ("replayed", 1)


def test_a_message_from_another_vo_is_refused_and_audited(world, tmp_path):
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", vo="other")

    async def change(_params):
        await other.member()
        return await other.login_params()

    error, lines = asyncio.run(altered_login(world, change))
    other.passwords.close()
    other.audit.close()
    assert (error.code, len(lines)) == ("replayed", 1)


def test_a_challenge_for_joining_does_not_log_in(world):
    async def change(params):
        asked = await world.cda.call("challenge", NOBODY, {"purpose": "join", "subject": "alice"})
        return params | proven(SessionKeys.fresh(), "demo", asked)

    error, lines = asyncio.run(altered_login(world, change))
    assert (error.code, len(lines)) == ("replayed", 1)


def test_a_proof_made_for_another_vo_is_refused_and_audited(world):
    async def change(params):
        asked = await world.cda.call("challenge", NOBODY, {"purpose": "login", "subject": "alice"})
        return params | proven(SessionKeys.fresh(), "other", asked)

    error, lines = asyncio.run(altered_login(world, change))
    assert (error.code, len(lines)) == ("bad-credential", 1)


def test_a_login_sent_twice_a_token_used_twice_and_a_session_after_logout_are_refused_and_audited(world):
    async def scene():
        await world.member()
        params = await world.login_params()
        got = world.credentials(await world.cda.call("login", NOBODY, params))
        join = await world.join_params()
        await world.cda.call("join_node", NOBODY, join)
        await world.cda.call("logout", world.caller(got), {})
        before = len(world.audited())
        again = (("login", NOBODY, params), ("join_node", NOBODY, join), ("whoami", world.caller(got), {}))
        codes = []
        for method, caller, args in again:
            with pytest.raises(XosError) as caught:
                await world.cda.call(method, caller, args)
            codes.append(caught.value.code)
        return codes, world.audited()[before:]

    codes, lines = asyncio.run(scene())
    assert codes == ["replayed", "bad-token", "revoked"]
    assert [line["why"].split(":")[0] for line in lines] == codes


BAD_TOKENS = {"wrong secret": {"secret": b"x" * 32}, "wrong id": {"id": "0" * 16}, "id with a wildcard": {"id": "*"}}


@pytest.mark.parametrize("case", [*BAD_TOKENS, "expired", "wrong kind", "stranger's consent", "consent for other keys"])
def test_a_bad_join_is_refused_and_audited(world, case):
    async def scene():
        params = await world.join_params()
        if case == "expired":
            world.clock.now += 86_401
        elif case == "wrong kind":
            invited = await world.cda.call("invite", ROOT, {"user": "alice"})
            params = await world.join_params(token=invited["token"])
        elif case == "stranger's consent":
            params["consent"] = params["consent"][:-4] + b"\0\0\0\0"
        elif case == "consent for other keys":
            params["consent"] = (await world.join_params())["consent"]
        before = len(world.audited())
        with pytest.raises(XosError) as caught:
            await world.cda.call("join_node", NOBODY, params | BAD_TOKENS.get(case, {}))
        return caught.value, world.audited()[before:]

    error, lines = asyncio.run(scene())
    assert error.code == ("bad-credential" if "consent" in case else "bad-token")
    assert [line["allowed"] for line in lines] == [False]


# ---- names

BAD_NAMES = [
    "root",
    "nobody",
    "-rf",
    "a/b",
    "..",
    ".",
    "",
    "a" * 32,
    "12345",
    "al ice",
    "alice\n",
    "alice\0",
    "alicé",
    "Alice",
    "*",
    "a*",
    ">",
    "a.b",
    "alice.demo",
    "$(id)",
    "alice,root",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("method", ["invite", "suspend", "login", "challenge"])
def test_a_bad_user_name_is_refused_everywhere_and_audited(world, method, name):
    async def scene():
        params = {"user": name}
        if method == "login":
            params = await world.login_params() | params
        if method == "challenge":
            params = {"purpose": "login", "subject": name}
        with pytest.raises(names.BadName):
            await world.cda.call(method, ROOT if method in {"invite", "suspend"} else NOBODY, params)

    asyncio.run(scene())
    [line] = world.audited()
    assert line["why"].startswith("bad-name")
    assert world.vo_bucket.items == {}


@pytest.mark.parametrize("name", ["", "-n1", "n1.evil", "N1", "../n1", "n1\n", "n*", "a" * 64])
def test_a_bad_node_name_is_refused_and_audited(world, name):
    async def scene():
        params = await world.join_params()
        before = len(world.audited())
        with pytest.raises(names.BadName):
            await world.cda.call("join_node", NOBODY, params | {"node": name})
        return world.audited()[before:]

    assert len(asyncio.run(scene())) == 1


def test_the_same_name_in_two_vos_is_two_users(world):
    stranger = Caller("user", vo="other", name="alice", sid=SID, roles=frozenset({"admin", "member"}))

    async def scene():
        await world.member(roles=("admin", "member"))
        for method in ("whoami", "logout", "members"):
            with pytest.raises(XosError):
                await world.cda.call(method, stranger, {})

    asyncio.run(scene())
    assert [line["why"].split(":")[0] for line in world.audited()[2:]] == ["not-allowed"] * 3
