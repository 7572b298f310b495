"""NATS JWTs: minting them, and a verifier of our own that is stricter than the server's.

Pure: time comes in as `now` (Unix seconds). Knows keys (`nkeys`), not connections. One `verify_*` for each link of the chain
operator -> account -> user; each answers with frozen claims or raises BadToken with a short reason for the audit record.
Source: notes/vo-security.md 5.3; NATS jwt v2 library; ADR-14.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xtreemos.fabric.errors import BadKey, BadToken
from xtreemos.fabric.nkeys import KeyKind, KeyPair, decode_public, kind_of, verify

HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
TOKEN_BYTES_MAX = 1 << 20
BACKDATE_S = 60
_PART = re.compile(r"[A-Za-z0-9_-]+")
_TEMPLATE_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OWN_RIGHTS = (
    "pub",
    "sub",
    "resp",
    "subs",
    "data",
    "payload",
    "src",
    "times",
    "bearer_token",
    "allowed_connection_types",
    "times_location",
)
# who may sign what: type -> (kinds of issuer, kind of subject or None if not a key)
_KINDS: dict[str, tuple[frozenset[KeyKind], KeyKind | None]] = {
    "operator": (frozenset({KeyKind.OPERATOR}), KeyKind.OPERATOR),
    "account": (frozenset({KeyKind.OPERATOR}), KeyKind.ACCOUNT),
    "user": (frozenset({KeyKind.ACCOUNT}), KeyKind.USER),
    "generic": (frozenset({KeyKind.OPERATOR}), None),
}


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a role may publish and subscribe to; empty allow lists mean everything, so give at least one."""

    pub_allow: tuple[str, ...]
    sub_allow: tuple[str, ...]
    pub_deny: tuple[str, ...] = ()
    sub_deny: tuple[str, ...] = ()
    reply_count_max: int = 0
    reply_ttl_s: int = 300

    def claims(self) -> dict[str, Any]:
        """The map inside a scope's template or a user's claims."""
        made: dict[str, Any] = {
            "pub": {"allow": list(self.pub_allow), "deny": list(self.pub_deny)},
            "sub": {"allow": list(self.sub_allow), "deny": list(self.sub_deny)},
        }
        if self.reply_count_max:
            made["resp"] = {"max": self.reply_count_max, "ttl": self.reply_ttl_s * 1_000_000_000}
        return made


@dataclass(frozen=True, slots=True)
class Scope:
    """A signing key of an account that can make users of one role only."""

    key: str
    role: str
    permissions: Permissions
    subscriptions_max: int = 1000
    payload_bytes_max: int = 1 << 20

    def claims(self) -> dict[str, Any]:
        template = self.permissions.claims() | {
            "subs": self.subscriptions_max,
            "data": -1,
            "payload": self.payload_bytes_max,
            "allowed_connection_types": ["STANDARD"],
        }
        return {"kind": "user_scope", "key": self.key, "role": self.role, "template": template}


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What a VO may use; -1 is without limit. Bytes of storage count every replica."""

    connections: int = -1
    subscriptions: int = -1
    memory_bytes: int = 64 << 20
    disk_bytes: int = 16 << 30
    streams: int = 64
    consumers: int = 1024
    exports: int = 16
    imports: int = 16

    def claims(self) -> dict[str, Any]:
        return {
            "subs": self.subscriptions,
            "data": -1,
            "payload": 1 << 20,
            "imports": self.imports,
            "exports": self.exports,
            "wildcards": True,
            "conn": self.connections,
            "leaf": 0,
            "disallow_bearer": True,
            "mem_storage": self.memory_bytes,
            "disk_storage": self.disk_bytes,
            "streams": self.streams,
            "consumer": self.consumers,
            "max_bytes_required": False,
        }


NO_JETSTREAM = AccountLimits(memory_bytes=0, disk_bytes=0, streams=0, consumers=0)


@dataclass(frozen=True, slots=True)
class Claims:
    """A decoded token whose signature and form hold; whether its issuer is trusted is for `verify_*`."""

    kind: str
    subject: str
    issuer: str
    name: str
    issued_at: int
    expires_at: int
    not_before: int
    audience: str
    token_id: str
    nats: Mapping[str, Any] = field(hash=False)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.nats.get("tags", ()))

    def tag(self, name: str) -> str | None:
        """Value of the tag `name:value`, if there is exactly one."""
        found = [tag.partition(":")[2] for tag in self.tags if tag.startswith(f"{name}:")]
        return found[0] if len(found) == 1 else None


# ---- minting


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def sign_claims(claims: dict[str, Any], signer: KeyPair) -> str:
    """Sign ready claims: sets `iss` and `jti`, everything else is the caller's."""
    body = dict(claims) | {"iss": signer.public, "jti": ""}
    digest = (
        hashlib.new("sha512_256", _dump(body)).digest()
        if "sha512_256" in hashlib.algorithms_available
        else hashlib.sha256(_dump(body)).digest()
    )
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = f"{_b64(_dump(HEADER))}.{_b64(_dump(body))}"
    return f"{text}.{_b64(signer.sign(text.encode()))}"


def _base(subject: str, name: str, now: int, expires_at: int, nats: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"sub": subject, "name": name, "iat": now, "nats": nats | {"version": 2}}
    if expires_at:
        made["exp"] = expires_at
    return made


def mint_operator(operator: KeyPair, *, name: str, system_account: str, now: int, signing_keys: Sequence[str] = ()) -> str:
    """Make the self-signed token of a grid. `signing_keys`: public operator keys that may sign accounts."""
    decode_public(system_account, KeyKind.ACCOUNT)
    nats = {"type": "operator", "system_account": system_account, "signing_keys": list(signing_keys)}
    return sign_claims(_base(operator.public, name, now, 0, nats), operator)


def mint_account(
    signer: KeyPair,
    *,
    account: str,
    name: str,
    now: int,
    scopes: Sequence[Scope] = (),
    limits: AccountLimits = NO_JETSTREAM,
    revocations: Mapping[str, int] | None = None,
    exports: Sequence[Mapping[str, Any]] = (),
    imports: Sequence[Mapping[str, Any]] = (),
    expires_at: int = 0,
) -> str:
    """Make the token of a VO (or of the system account).

    `revocations`: user public key or "*" -> Unix seconds; tokens issued at or before that moment are void.
    An export: `{"name", "subject", "type": "stream"|"service", ...}`; an import adds `"account"` and `"local_subject"`.
    """
    decode_public(account, KeyKind.ACCOUNT)
    nats: dict[str, Any] = {
        "type": "account",
        "limits": limits.claims(),
        "signing_keys": [scope.claims() for scope in scopes],
        "default_permissions": {
            "pub": {"deny": [">"]},
            "sub": {"deny": [">"]},
        },  # a user signed by the bare account key gets nothing
    }
    if revocations:
        nats["revocations"] = dict(revocations)
    if exports:
        nats["exports"] = [dict(one) for one in exports]
    if imports:
        nats["imports"] = [dict(one) for one in imports]
    return sign_claims(_base(account, name, now, expires_at, nats), signer)


def mint_user(
    signer: KeyPair,
    *,
    account: str,
    user: str,
    name: str,
    now: int,
    expires_at: int,
    tags: Sequence[str] = (),
    permissions: Permissions | None = None,
) -> str:
    """Make a user's token. Signed by a scoped key it must carry no permissions: the role's template rules.

    `permissions` only if `signer` is the account key itself. Tags are `name:value`, lower case (the server folds them).
    """
    decode_public(user, KeyKind.USER)
    # Both are put into the subjects of the role's template: more than one plain part would widen the role.
    for text in (name, *(tag.partition(":")[2] for tag in tags)):
        if not _TEMPLATE_VALUE.fullmatch(text):
            raise BadToken("name", f"{text[:64]!r} cannot stand in a token")
    nats: dict[str, Any] = {"type": "user", "tags": list(tags)}
    if signer.public != account:
        nats["issuer_account"] = account
        if permissions is not None:
            raise BadToken("scoped-permissions", "a role's key cannot sign a token with permissions of its own")
    else:
        chosen = permissions or Permissions(pub_allow=(">",), sub_allow=(">",))
        nats |= chosen.claims() | {"subs": -1, "data": -1, "payload": -1}
    return sign_claims(_base(user, name, now, expires_at, nats), signer)


def mint_delete(operator: KeyPair, accounts: Sequence[str], *, now: int) -> str:
    """Make the order to delete accounts, for $SYS.REQ.CLAIMS.DELETE."""
    nats = {"type": "generic", "accounts": list(accounts)}
    return sign_claims(_base(operator.public, "delete", now, now + 60, nats), operator)


# ---- verifying


def _unb64(part: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as cause:
        raise BadToken("form", "a token is not base64url") from cause
    if _b64(raw) != part:
        raise BadToken("form", "a token is not canonical base64url")
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadToken("form", "a token names one claim twice")
    return made


def _load(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_unb64(part).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise BadToken("form", "a token is not JSON") from cause
    if not isinstance(value, dict):
        raise BadToken("form", "a token is not a JSON object")
    return value


def _text(body: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or (needed and not value):
        raise BadToken("form", f"claim {name!r} of a token is not text")
    return value


def _seconds(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise BadToken("form", f"claim {name!r} of a token is not a time")
    return value


def decode(token: str) -> Claims:
    """Read one token: form, algorithm, version, kinds of keys and its signature. Not: trust, time, revocation."""
    if not isinstance(token, str) or len(token) > TOKEN_BYTES_MAX:
        raise BadToken("form", "a token is too large")
    parts = token.split(".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise BadToken("form", "a token does not have three parts")
    if _load(parts[0]) != HEADER:
        raise BadToken("algorithm", "a token is not signed by ed25519-nkey")
    body = _load(parts[1])
    claims = _claims(body)
    try:
        verify(claims.issuer, f"{parts[0]}.{parts[1]}".encode(), _unb64(parts[2]))
    except BadKey as cause:
        raise BadToken("signature", "the signature of a token does not hold") from cause
    return claims


def _claims(body: dict[str, Any]) -> Claims:
    nats = body.get("nats")
    if not isinstance(nats, dict):
        raise BadToken("form", "a token has no `nats` claims")
    if nats.get("version") != 2 or isinstance(nats.get("version"), bool):
        raise BadToken("version", "a token is not of version 2")
    tags = nats.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise BadToken("form", "the tags of a token are not texts")
    kind = _text(nats, "type", needed=True)
    issuer, subject = _text(body, "iss", needed=True), _text(body, "sub", needed=True)
    _check_kinds(kind, issuer, subject)
    return Claims(
        kind,
        subject,
        issuer,
        _text(body, "name"),
        _seconds(body, "iat"),
        _seconds(body, "exp"),
        _seconds(body, "nbf"),
        _text(body, "aud"),
        _text(body, "jti"),
        nats,
    )


def _check_kinds(kind: str, issuer: str, subject: str) -> None:
    if kind not in _KINDS:
        raise BadToken("type", "a token is of a type that is not used here")
    issuers, subject_kind = _KINDS[kind]
    try:
        if kind_of(issuer) not in issuers:
            raise BadToken("issuer", f"a token of type {kind} is signed by the wrong kind of key")
        if subject_kind is not None:
            decode_public(subject, subject_kind)
    except BadKey as cause:
        raise BadToken("key", "a token names a malformed key") from cause


def check_time(claims: Claims, now: float, *, skew_s: int = BACKDATE_S) -> None:
    """Raise BadToken if the token is expired or not yet valid; `skew_s` forgives clocks for `nbf` and `iat` only."""
    if claims.expires_at and now >= claims.expires_at:
        raise BadToken("expired", "a token has expired")
    if claims.not_before > now + skew_s or claims.issued_at > now + skew_s:
        raise BadToken("future", "a token is not valid yet")


def verify_operator(token: str, *, operator: str, now: float) -> Claims:
    """Check a grid's own token against the operator key that we know."""
    claims = _of_kind(token, "operator")
    if not claims.issuer == claims.subject == operator:
        raise BadToken("issuer", "the token is of another grid")
    check_time(claims, now)
    return claims


def verify_account(token: str, *, operator: Claims, now: float) -> Claims:
    """Check a VO's token against the verified token of the grid."""
    claims = _of_kind(token, "account")
    if claims.issuer != operator.subject and claims.issuer not in operator.nats.get("signing_keys", ()):
        raise BadToken("issuer", "the VO is not signed by this grid")
    check_time(claims, now)
    return claims


def verify_user(token: str, *, account: Claims, now: float, audience: str = "", address: str | None = None) -> Claims:
    """Check a user's token against the verified token of its VO.

    `audience` is what `aud` must be; the default demands none, so that a token made for one purpose serves no other. `address`
    is the client's, checked if the token is bound to networks; a bound token without an address is refused.
    """
    claims = _of_kind(token, "user")
    _check_user_issuer(claims, account)
    check_time(claims, now)
    if not claims.expires_at:
        raise BadToken("expiry", "a token without an end is not taken")
    if claims.audience != audience:
        raise BadToken("audience", "a token is for somebody else")
    if claims.nats.get("bearer_token"):
        raise BadToken("bearer", "a token that needs no key is not taken")
    _check_revoked(claims, account)
    _check_source(claims, address)
    return claims


def _of_kind(token: str, kind: str) -> Claims:
    claims = decode(token)
    if claims.kind != kind:
        raise BadToken("type", f"a token of type {claims.kind} stands where {kind} is wanted")
    return claims


def role_of(claims: Claims, account: Claims) -> str | None:
    """Role of the scoped key that signed a user's token; None if the account key itself did."""
    for key in account.nats.get("signing_keys", ()):
        if isinstance(key, dict) and key.get("key") == claims.issuer:
            return str(key.get("role", ""))
    return None


def _check_user_issuer(claims: Claims, account: Claims) -> None:
    named = claims.nats.get("issuer_account", "")
    if claims.issuer == account.subject:
        if named not in {"", account.subject}:
            raise BadToken("issuer", "a token names another account than its signer")
        return
    if named != account.subject:
        raise BadToken("issuer", "a token is of another VO")
    for key in account.nats.get("signing_keys", ()):
        if key == claims.issuer:
            return
        if isinstance(key, dict) and key.get("key") == claims.issuer:
            if any(claims.nats.get(right) for right in _OWN_RIGHTS):
                raise BadToken("scoped-permissions", "a token widens the role that signed it")
            return
    raise BadToken("issuer", "a token is signed by a key that the VO does not have (any more)")


def _check_revoked(claims: Claims, account: Claims) -> None:
    # Compared with the time of issue, never with now (CVE-2020-26892): a new token for the same key is fine.
    revocations = account.nats.get("revocations", {})
    for who in (claims.subject, "*"):
        moment = revocations.get(who)
        if moment is not None and moment >= claims.issued_at:
            raise BadToken("revoked", "a token was revoked")


def _check_source(claims: Claims, address: str | None) -> None:
    networks = claims.nats.get("src")
    if not networks:
        return
    try:
        here = ipaddress.ip_address(address or "")
        allowed = any(here in ipaddress.ip_network(one) for one in networks)
    except (ValueError, TypeError) as cause:
        raise BadToken("source", "a token is bound to networks that cannot be checked") from cause
    if not allowed:
        raise BadToken("source", "a token is used from an address outside its networks")


def creds_text(token: str, key: KeyPair) -> str:
    """The `.creds` file that other NATS tools read. A secret."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )
