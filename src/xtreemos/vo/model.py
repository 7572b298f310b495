"""The values of a VO: users, sessions, nodes, tokens, revocations, and how the registry keeps them.

No I/O, clock or randomness. Times are whole seconds since 1970, UTC. Records are MessagePack maps, so that a field can be added.
"""

from __future__ import annotations

from typing import Final, Literal, Self, TypeVar

import msgspec

SKEW_S: Final = 60
"""Credentials are backdated by this much, for clocks that differ."""
CREDENTIAL_S_MAX: Final = 12 * 3600
"""Life of a user's credentials; renewed by the agent without password."""
SESSION_S_MAX: Final = 7 * 86400
"""A session ends after this even if always renewed."""
FOR_EVER: Final = 1 << 52
NODE_CREDENTIAL_S: Final = 30 * 86400
"""Life of a node's credentials: a machine may be off for a holiday; revocation is pushed, not waited for."""
CHALLENGE_S: Final = 120
"""A challenge must come back within this."""
INVITE_S: Final = 7 * 86400
JOIN_S: Final = 86400

ACCEPTED_MAX: Final = 256
"""Volumes of one other VO that are accepted."""
GROUPS_MAX: Final = 64
"""Groups of one user."""
USER_ROLES: Final = frozenset({"member", "admin"})
SIGNING_ROLES: Final = ("admin", "member", "node", "service")
UserState = Literal["invited", "active", "suspended", "removed"]
Dialect = Literal["ssh", "nats", "x509"]
DIALECTS: Final[tuple[Dialect, ...]] = ("ssh", "nats", "x509")

R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is stored: `to_bytes` and `from_bytes` are inverse; unknown fields of later versions are dropped."""

    def to_bytes(self) -> bytes:
        """Encode for the registry."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; raises msgspec.ValidationError if the record is not one."""
        return msgspec.msgpack.decode(data, type=cls)


class AuditHead(Record, frozen=True, kw_only=True):
    """How far a node's audit was when it last told the VO: `count` records, the last one's `hash`; key `audit.NODE` in `vo`."""

    count: int
    hash: str
    at: int


class Issue(Record, frozen=True, kw_only=True):
    """One set of credentials that was issued: what revocation must name until it expires."""

    serial: int
    nats_key: str
    expires_at: int


ISSUES_MAX: Final = 32
"""Unexpired issues of one session or node: more mean a client renewing in a loop; it must wait."""


class User(Record, frozen=True, kw_only=True):
    """A member of the VO, key `user.NAME` in bucket `vo`. `password` is an argon2id string, empty before acceptance.

    A removed user leaves this record behind, so that the name (and with it uids and files) never passes to another person.
    """

    name: str
    state: UserState
    roles: tuple[str, ...] = ("member",)
    groups: tuple[str, ...] = ()
    password: str = ""
    created_at: int = 0
    invited_by: str = ""


class PublicUser(Record, frozen=True, kw_only=True):
    """What everybody in the VO may know of a user, key `user.NAME` in bucket `pub`."""

    name: str
    state: UserState
    roles: tuple[str, ...] = ("member",)
    groups: tuple[str, ...] = ()


class Session(Record, frozen=True, kw_only=True):
    """One log-in, key `session.USER.SID` in bucket `vo`, gone when `ends_at` is past.

    `generation` counts issues: a renewal names the one it replaces, so a renewal challenge works once.
    """

    sid: str
    user: str
    created_at: int
    ends_at: int
    expires_at: int
    roles: tuple[str, ...]
    generation: int = 0
    issues: tuple[Issue, ...] = ()


class Node(Record, frozen=True, kw_only=True):
    """A machine of the VO, key `node.NAME` in bucket `vo`. `owner` is the base64 Ed25519 key that signed the consent."""

    name: str
    sid: str
    addresses: tuple[str, ...]
    core: bool
    owner: str
    consent: bytes
    joined_at: int
    expires_at: int
    generation: int = 0
    issues: tuple[Issue, ...] = ()


class Accepted(Record, frozen=True, kw_only=True):
    """Volumes of another VO whose sharing this VO has accepted, key `accepted.VO` in bucket `pub`."""

    vo: str
    volumes: tuple[str, ...]


class PublicNode(Record, frozen=True, kw_only=True):
    """What everybody in the VO may know of a node, key `node.NAME` in bucket `pub`."""

    name: str
    addresses: tuple[str, ...]
    core: bool
    joined_at: int
    ssh_host_key: str = ""


class TokenRecord(Record, frozen=True, kw_only=True):
    """A one-time token, key `token.ID` in bucket `vo`; only the hash of its secret is kept."""

    kind: Literal["invite", "join"]
    secret_sha256: bytes
    expires_at: int
    made_by: str
    user: str = ""
    roles: tuple[str, ...] = ()
    core: bool = False


class Revocation(Record, frozen=True, kw_only=True):
    """Key `revoked.sid.SID`, `revoked.user.NAME` or `revoked.node.NAME` in bucket `pub`.

    Everything of that session, or issued to that user or node at or before `at`, is void. Kept until `until`, when the last
    such credential has expired by itself. `standing`: everything is void whenever it was issued, until a later record (of a
    restored user) says otherwise; so a CDA that read an old user record cannot undo a suspension.
    """

    at: int
    until: int
    standing: bool = False
    who: str = ""
    serials: tuple[int, ...] = ()
    nats_keys: tuple[str, ...] = ()


class PublicKeys(Record, frozen=True, kw_only=True):
    """Three fresh public keys: OpenSSH line, nkey text, X.509 SubjectPublicKeyInfo DER."""

    ssh: str
    nats: str
    x509: bytes


class Proofs(Record, frozen=True, kw_only=True):
    """Proof of possession of each of `PublicKeys`: raw signatures over `pop.proof_text`."""

    ssh: bytes
    nats: bytes
    x509: bytes


class Credentials(Record, frozen=True, kw_only=True):
    """What a session (or node) gets: three certificates, one session id, one expiry. No private key."""

    vo: str
    name: str
    sid: str
    serial: int
    issued_at: int
    expires_at: int
    ends_at: int
    roles: tuple[str, ...]
    ssh: str
    nats: str
    x509: tuple[bytes, ...]


class Consent(Record, frozen=True, kw_only=True):
    """The owner of a machine agrees that it serves a VO; signed by the owner's key (see `tokens.sign_consent`)."""

    vo: str
    node: str
    core: bool
    at: int
    x509_public: bytes
