"""Proof of possession: challenges, and what a key signs to show that its holder asks.

A challenge is not stored when given out (else anybody could fill the registry): it carries its facts under a MAC that all CDA
instances of the VO share. It is *single use* because using it moves a record on: a log-in creates `session.SID`, a renewal
bumps `generation`, a join consumes its token; each by compare-and-set, so of two CDAs one loses.

The signed text is domain separated (`xos-pop-v1|dialect|vo|sid|challenge`): no other protocol asks to sign such bytes, and a
proof made for one VO, dialect or session is worth nothing for another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from xtreemos import names
from xtreemos.vo.errors import BadCredential, Replayed
from xtreemos.vo.model import CHALLENGE_S, Dialect

Purpose = Literal["login", "renew", "join", "renew-node"]
_MAC_BYTES: Final = 32
_TEXT_MAX: Final = 1024


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """What a challenge says: good for one `purpose` of `subject` on session `sid` at `generation`, until `expires_at`.

    `subject` is the user or node that asked; for `join` the name that the machine wants.
    """

    purpose: Purpose
    vo: str
    subject: str
    sid: str
    generation: int
    expires_at: int
    nonce: bytes

    def seal(self, key: bytes) -> str:
        """Write it as text under the VO's challenge key."""
        body = msgspec.msgpack.encode(self)
        return base64.urlsafe_b64encode(_mac(key, body) + body).decode().rstrip("=")


def open_challenge(text: str, key: bytes, *, purpose: Purpose, vo: str, subject: str, now: int) -> Challenge:
    """Check a challenge that came back.

    Raises:
        Replayed: not ours, expired, or for another purpose, subject or VO. Definite: nothing was done.
    """
    try:
        if len(text) > _TEXT_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        tag, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(tag, _mac(key, body)):
            raise ValueError("not ours")
        challenge = msgspec.msgpack.decode(body, type=Challenge)
    except (ValueError, TypeError, binascii.Error, msgspec.MsgspecError) as error:
        raise Replayed("challenge is not ours") from error
    if (challenge.vo, challenge.purpose, challenge.subject) != (vo, purpose, subject):
        raise Replayed("challenge is for something else")
    if not now < challenge.expires_at <= now + 2 * CHALLENGE_S:
        raise Replayed("challenge has expired", hint="try again")
    return challenge


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, b"xos-challenge-v1|" + body, hashlib.sha256).digest()


def proof_text(dialect: Dialect, vo: str, sid: str, challenge: str) -> bytes:
    """Return the bytes that the key of `dialect` signs."""
    names.check_vo(vo)
    names.check_sid(sid)
    return f"xos-pop-v1|{dialect}|{vo}|{sid}|{challenge}".encode("ascii")


def check_ed25519(public: bytes, signature: bytes, text: bytes, dialect: Dialect) -> None:
    """Check a raw Ed25519 proof; raises BadCredential("no proof of possession")."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadCredential("no proof of possession", dialect) from error


def check_p256(public: ec.EllipticCurvePublicKey, signature: bytes, text: bytes) -> None:
    """Check an ECDSA P-256 SHA-256 proof (DER); raises BadCredential("no proof of possession")."""
    try:
        public.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadCredential("no proof of possession", "x509") from error
