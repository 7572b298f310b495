"""NATS keys: one key has one text, and nothing but a nonce is ever signed for a server."""

import base64

import nkeys as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.fabric.errors import BadKey, BadNonce
from xtreemos.fabric.nkeys import KeyKind, KeyPair, decode_public, encode_public, nonce_signer, verify


@pytest.mark.parametrize("kind", list(KeyKind))
def test_the_reference_library_reads_our_seeds(kind):
    ours = KeyPair.generate(kind)
    theirs = reference.from_seed(bytearray(ours.seed.encode()))
    assert theirs.public_key.decode() == ours.public
    assert ours.public[0] == kind.letter
    assert ours.seed[:2] == "S" + kind.letter
    verify(ours.public, b"message", theirs.sign(b"message"))


@given(st.binary(min_size=32, max_size=32), st.sampled_from(list(KeyKind)))
def test_a_public_key_survives_its_text(raw, kind):
    assert decode_public(encode_public(kind, raw)) == (kind, raw)


TEXT = KeyPair.generate(KeyKind.USER).public  # one for all draws: what they depend on must not change under them


@given(st.data())
def test_any_changed_character_is_refused(data):
    text = TEXT
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda c: c != text[at]))
    with pytest.raises(BadKey):
        decode_public(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        str.lower,
        lambda t: t + "=",
        lambda t: t + "A",
        lambda t: t[:-1],
        lambda t: " " + t,
        lambda t: t + "\n",
        lambda t: "",
        lambda t: "U" * 56,
    ],
)
def test_a_text_that_is_not_exactly_a_key_is_refused(change):
    with pytest.raises(BadKey):
        decode_public(change(KeyPair.generate(KeyKind.USER).public))
    with pytest.raises(BadKey):
        KeyPair.from_seed(change(KeyPair.generate(KeyKind.USER).seed))


def test_a_seed_with_spare_bits_set_is_refused():
    seed = KeyPair.generate(KeyKind.USER).seed
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    with pytest.raises(BadKey):
        KeyPair.from_seed(
            seed[:-1] + alphabet[alphabet.index(seed[-1]) | 3] if alphabet.index(seed[-1]) & 3 != 3 else seed[:-1] + "B"
        )


def test_a_key_of_another_kind_is_refused():
    account = KeyPair.generate(KeyKind.ACCOUNT)
    with pytest.raises(BadKey, match="account stands where user"):
        decode_public(account.public, KeyKind.USER)
    with pytest.raises(BadKey):
        KeyPair.from_seed(account.seed, KeyKind.USER)


def test_a_seed_is_not_shown():
    key = KeyPair.generate(KeyKind.USER)
    assert key.seed not in repr(key)


def test_a_wrong_signature_is_refused():
    key = KeyPair.generate(KeyKind.USER)
    with pytest.raises(BadKey):
        verify(key.public, b"other", key.sign(b"message"))
    with pytest.raises(BadKey):
        verify(key.public, b"message", b"short")


def test_a_nonce_is_signed():
    key = KeyPair.generate(KeyKind.USER)
    signature = nonce_signer(key)("Pd1kE_-abc8")
    verify(key.public, b"Pd1kE_-abc8", base64.urlsafe_b64decode(signature + b"=="))


TLS_CLIENT_VERIFY = " " * 64 + "TLS 1.3, client CertificateVerify\0" + "h" * 32


@pytest.mark.parametrize(
    "nonce",
    [TLS_CLIENT_VERIFY, "", "short", "a" * 65, "a b" * 5, "ab\ncdefghijkl", "abcdefghijkl\n", "ä" * 12, "a" * 11 + "\0", None, 7],
)
def test_what_is_not_a_nonce_is_never_signed(nonce):
    with pytest.raises(BadNonce):
        nonce_signer(KeyPair.generate(KeyKind.USER))(nonce)
