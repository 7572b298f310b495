"""NATS keys: ed25519 keys in the text form of NATS, and signatures by them.

Knows nothing of tokens or connections. Text form: base32 without padding of [prefix byte][32 bytes][CRC16, little endian];
seeds carry two prefix bytes. Decoding is strict: one key has exactly one text. Source: notes/vo-security.md 5.3; NATS ADR-14.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from xtreemos.fabric.errors import BadKey, BadNonce

_SEED = 18 << 3
_PUBLIC = re.compile(r"[A-Z2-7]{56}")
_SEED_TEXT = re.compile(r"S[A-Z2-7]{57}")
_NONCE = re.compile(r"[A-Za-z0-9_-]{11,64}")


class KeyKind(IntEnum):
    """What a key speaks for; the value is the prefix byte, which makes the first letter of the text."""

    ACCOUNT = 0
    SERVER = 13 << 3
    OPERATOR = 14 << 3
    USER = 20 << 3

    @property
    def letter(self) -> str:
        """First letter of the text of such a key."""
        return {0: "A", 13 << 3: "N", 14 << 3: "O", 20 << 3: "U"}[self.value]


def _with_crc(data: bytes) -> str:
    crc = binascii.crc_hqx(data, 0)
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def _without_crc(text: str) -> bytes:
    # The caller checked alphabet and length, so b32decode cannot fail; spare bits are caught by encoding again.
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    if _with_crc(raw[:-2]) != text:
        raise BadKey("a NATS key has a wrong checksum", "it was damaged on its way; copy it again")
    return raw[:-2]


def _kind_of(prefix: int) -> KeyKind:
    try:
        return KeyKind(prefix)
    except ValueError:
        raise BadKey("a NATS key is of a kind that is not used here", "") from None


def kind_of(public: str) -> KeyKind:
    """Tell the kind of a public key; raise BadKey if `public` is not exactly one."""
    return decode_public(public)[0]


def encode_public(kind: KeyKind, raw: bytes) -> str:
    """Write 32 raw public bytes as text."""
    if len(raw) != 32:
        raise BadKey("an ed25519 public key has 32 bytes", "")
    return _with_crc(bytes([kind]) + raw)


def decode_public(text: str, kind: KeyKind | None = None) -> tuple[KeyKind, bytes]:
    """Read a public key; raise BadKey if it is malformed or not of `kind`."""
    if not isinstance(text, str) or not _PUBLIC.fullmatch(text):
        raise BadKey("not a NATS public key", "")
    data = _without_crc(text)
    found = _kind_of(data[0])
    if kind is not None and found is not kind:
        raise BadKey(f"a NATS key of kind {found.name.lower()} stands where {kind.name.lower()} is wanted", "")
    return found, data[1:]


def verify(public: str, message: bytes, signature: bytes) -> None:
    """Check that `signature` over `message` is by `public`; raise BadKey if not."""
    _, raw = decode_public(public)
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
    except (InvalidSignature, ValueError) as cause:
        raise BadKey("a signature does not hold", "") from cause


class KeyPair:
    """A key that can sign. Its seed is a secret: it is shown by `seed` only, never by repr."""

    __slots__ = ("_private", "kind", "public")

    def __init__(self, kind: KeyKind, private: Ed25519PrivateKey) -> None:
        self.kind = kind
        self._private = private
        self.public = encode_public(kind, private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"

    @classmethod
    def generate(cls, kind: KeyKind) -> KeyPair:
        """Make a fresh key."""
        return cls(kind, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: str, kind: KeyKind | None = None) -> KeyPair:
        """Read a seed; raise BadKey if it is malformed or not of `kind`."""
        if not isinstance(seed, str) or not _SEED_TEXT.fullmatch(seed):
            raise BadKey("not a NATS seed", "")
        data = _without_crc(seed)
        prefix = (data[0] & 7) << 5 | data[1] >> 3
        # Rebuilding the two prefix bytes refuses seeds whose unused bits are set.
        if data[:2] != _seed_prefix(prefix):
            raise BadKey("not a NATS seed", "")
        found = _kind_of(prefix)
        if kind is not None and found is not kind:
            raise BadKey(f"a seed of kind {found.name.lower()} stands where {kind.name.lower()} is wanted", "")
        return cls(found, Ed25519PrivateKey.from_private_bytes(data[2:]))

    @property
    def seed(self) -> str:
        """The secret, as text."""
        return _with_crc(_seed_prefix(self.kind) + self._private.private_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Sign; 64 bytes."""
        return self._private.sign(message)


def _seed_prefix(kind: int) -> bytes:
    return bytes([_SEED | kind >> 5, (kind & 31) << 3])


def nonce_signer(key: KeyPair) -> Callable[[str], bytes]:
    """Make the signature callback of a NATS client: nonce -> base64url signature.

    A NATS server chooses what we sign. Without this check a hostile one could send the bytes of a TLS CertificateVerify
    and act as us towards a third party (notes/vo-security.md, section 0); so only what looks like a nonce is signed.
    """

    def sign(nonce: str) -> bytes:
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise BadNonce("the NATS server sent something to sign that is not a nonce", "it may be hostile; leave this grid")
        return base64.urlsafe_b64encode(key.sign(nonce.encode("ascii"))).rstrip(b"=")

    return sign
