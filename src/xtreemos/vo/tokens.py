"""One-time tokens (invitations, joining) and the owner's signed consent: text forms and checks, no storage.

A token's text is `xos1.` + base64url of MessagePack `{k, vo, id, secret, endpoints, ca}`; `ca` is the SHA-256 of the VO's root, so
whoever got the token from a friend can trust the VO without asking anybody. The registry keeps only a hash of the secret. That a
token works once is the registry's doing: consuming it is a compare-and-set.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from xtreemos import names
from xtreemos.vo.errors import BadCredential, BadTokenText
from xtreemos.vo.model import Consent, Record, TokenRecord

PREFIX: Final = "xos1."
TEXT_MAX: Final = 4096
_CONSENT_CONTEXT: Final = b"xos-consent-v1|"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as its holder has it."""

    kind: Literal["invite", "join"] = msgspec.field(name="k")
    vo: str
    id: str
    secret: bytes
    endpoints: tuple[str, ...]
    ca: bytes

    def __repr__(self) -> str:
        return f"Token({self.kind}, {self.vo}, {self.id})"

    def text(self) -> str:
        """Write it as one word for a command line or a mail."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


def make_token(
    kind: Literal["invite", "join"], *, vo: str, endpoints: tuple[str, ...], ca: bytes, rng: Callable[[int], bytes]
) -> Token:
    """Make a token with a fresh id and secret; `rng(n)` gives n random bytes."""
    return Token(kind=kind, vo=vo, id=rng(8).hex(), secret=rng(32), endpoints=endpoints, ca=ca)


def parse_token(text: str) -> Token:
    """Read a token's text; raises BadTokenText if it is not one of ours (nothing is said of its being valid)."""
    try:
        text = text.strip()
        if not text.startswith(PREFIX) or len(text) > TEXT_MAX:
            raise ValueError("prefix")
        body = text[len(PREFIX) :]
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = msgspec.msgpack.decode(raw, type=Token)
        names.check_vo(token.vo)
        bytes.fromhex(token.id)
    except (ValueError, binascii.Error, msgspec.MsgspecError, names.BadName) as error:
        raise BadTokenText("that is not a token", "copy the whole word that starts with xos1.") from error
    return token


def secret_hash(secret: bytes) -> bytes:
    """What is stored instead of the secret; it has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(b"xos-token-v1|" + secret).digest()


def holds(record: TokenRecord, *, kind: str, secret: bytes, now: int) -> bool:
    """Tell whether a presented secret fits the record, in constant time."""
    fits = hmac.compare_digest(record.secret_sha256, secret_hash(secret))
    return fits and record.kind == kind and now < record.expires_at


class _SignedConsent(Record, frozen=True, kw_only=True):
    owner: bytes
    body: bytes
    signature: bytes


def sign_consent(consent: Consent, owner: ed25519.Ed25519PrivateKey) -> bytes:
    """The owner of the machine agrees; the key stays on the machine and must sign again to leave or re-join."""
    body = consent.to_bytes()
    signature = owner.sign(_CONSENT_CONTEXT + body)
    return _SignedConsent(owner=owner.public_key().public_bytes_raw(), body=body, signature=signature).to_bytes()


def open_consent(data: bytes) -> tuple[Consent, str]:
    """Check a consent's signature; return it and the owner's public key (base64). Raises BadCredential."""
    try:
        signed = _SignedConsent.from_bytes(data)
        key = ed25519.Ed25519PublicKey.from_public_bytes(signed.owner)
        key.verify(signed.signature, _CONSENT_CONTEXT + signed.body)
        return Consent.from_bytes(signed.body), base64.b64encode(signed.owner).decode()
    except (ValueError, InvalidSignature, msgspec.MsgspecError) as error:
        raise BadCredential("no consent of the owner", hint="run `xos join` on the machine itself") from error
