"""The VO's registry: typed records in two buckets, every change by compare-and-set, so that several CDAs may run at once.

`vo` holds what only the CDA role may read (password hashes, sessions, token hashes), `pub` what every member and node may read (who
is there, which nodes, what is revoked). When both change, `vo` is written first: it decides, `pub` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from xtreemos import names
from xtreemos.errors import TryLater
from xtreemos.fabric.errors import KeyExists, RevisionMismatch
from xtreemos.vo.model import (
    Accepted,
    AuditHead,
    Node,
    PublicNode,
    PublicUser,
    Record,
    Revocation,
    Session,
    TokenRecord,
    User,
)
from xtreemos.vo.revocation import sid_key, subject_key, widen

R = TypeVar("R", bound=Record)
CHANGES_MAX: Final = 32
"""Lost races before a change gives up; each means that another CDA got one through."""


class Entry(Protocol):
    """What the registry needs of `fabric.kv.Entry`."""

    @property
    def value(self) -> bytes: ...

    @property
    def revision(self) -> int: ...


class Bucket(Protocol):
    """What the registry needs of `fabric.kv.Bucket`."""

    async def get(self, key: str) -> Entry | None: ...

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int: ...

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int: ...

    async def put(self, key: str, value: bytes) -> int: ...

    async def delete(self, key: str, revision: int | None = None) -> None: ...

    async def keys(self, pattern: str = ">") -> list[str]: ...

    async def entries(self, pattern: str = ">") -> Sequence[Entry]: ...


@dataclass(frozen=True, slots=True)
class Held(Generic[R]):
    """A record as it was read, with the revision that a change must name."""

    record: R
    revision: int


class Shelf(Generic[R]):
    """Records of one type under one prefix of one bucket."""

    def __init__(self, bucket: Bucket, prefix: str, kind: type[R]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._kind = kind

    async def get(self, name: str) -> Held[R] | None:
        """Read one record, None if there is none."""
        entry = await self._bucket.get(f"{self._prefix}.{name}")
        return None if entry is None else Held(self._kind.from_bytes(entry.value), entry.revision)

    async def create(self, name: str, record: R, ttl_s: float | None = None) -> int:
        """Make a record; raises KeyExists if there is one."""
        return await self._bucket.create(f"{self._prefix}.{name}", record.to_bytes(), ttl_s)

    async def replace(self, name: str, held: Held[R], record: R, ttl_s: float | None = None) -> int:
        """Change what was read; raises RevisionMismatch if somebody else did."""
        return await self._bucket.update(f"{self._prefix}.{name}", record.to_bytes(), held.revision, ttl_s)

    async def put(self, name: str, record: R) -> None:
        """Write without looking: only for what is derived from a record that decides."""
        await self._bucket.put(f"{self._prefix}.{name}", record.to_bytes())

    async def delete(self, name: str, held: Held[R] | None = None) -> None:
        """Remove; with `held` only if unchanged since (RevisionMismatch otherwise)."""
        await self._bucket.delete(f"{self._prefix}.{name}", held.revision if held else None)

    async def change(self, name: str, decide: Callable[[R | None], R], ttl_s: float | None = None) -> R:
        """Read, decide, write, again until nobody came between.

        Args:
            name: of the record.
            decide: from the present record (None if there is none) to the new one, or the same to leave it; it may raise.
            ttl_s: life of what is written.

        Raises:
            TryLater: too many others changed it at the same time; nothing was written.
        """
        for _ in range(CHANGES_MAX):
            held = await self.get(name)
            new = decide(held.record if held else None)
            if held and new == held.record:
                return new
            try:
                await (self.replace(name, held, new, ttl_s) if held else self.create(name, new, ttl_s))
            except (KeyExists, RevisionMismatch):
                continue
            return new
        raise TryLater(f"many changes of {self._prefix} {name} at once", "try again")

    async def names(self) -> list[str]:
        """Names of all records, sorted."""
        cut = len(self._prefix) + 1
        return sorted(key[cut:] for key in await self._bucket.keys(f"{self._prefix}.*"))

    async def all(self) -> list[R]:
        """All records, sorted by name."""
        entries = await self._bucket.entries(f"{self._prefix}.*")
        return [self._kind.from_bytes(entry.value) for entry in entries]


class AccountState(Record, frozen=True, kw_only=True):
    """The VO's NATS account JWT as last decided, key `account.jwt` in `vo`."""

    jwt: str
    revocations: dict[str, int]
    version: int

    def unless_same(self, old: AccountState | None) -> AccountState:
        """Keep the old one if it says the same: then no server need be told."""
        return old if old and (old.revocations, old.version) == (self.revocations, self.version) else self


class Registry:
    """All shelves of a VO."""

    def __init__(self, vo: Bucket, pub: Bucket) -> None:
        self.users = Shelf(vo, "user", User)
        self.nodes = Shelf(vo, "node", Node)
        self.tokens = Shelf(vo, "token", TokenRecord)
        self.audit_heads = Shelf(vo, "audit", AuditHead)
        self.account = Shelf(vo, "account", AccountState)
        self.public_users = Shelf(pub, "user", PublicUser)
        self.accepted = Shelf(pub, "accepted", Accepted)
        self.public_nodes = Shelf(pub, "node", PublicNode)
        self._vo = vo
        self._pub = pub

    def sessions(self, user: str) -> Shelf[Session]:
        """Sessions of one user by id; the key names the user, so that suspending one need not read everybody's."""
        return Shelf(self._vo, f"session.{names.check_user(user)}", Session)

    async def session_owner(self, sid: str) -> str | None:
        """Whose session `sid` is, None if there is none."""
        keys = await self._vo.keys(f"session.*.{names.check_sid(sid)}")
        return keys[0].split(".")[1] if keys else None

    async def revoke(self, key: str, revocation: Revocation, now: int) -> None:
        """Withdraw: write `revoked....`, joined with what stands there; only ever widens."""
        shelf = Shelf(self._pub, key.rpartition(".")[0], Revocation)

        def decide(old: Revocation | None) -> Revocation:
            return widen(old, revocation) if old else revocation

        await shelf.change(key.rpartition(".")[2], decide, ttl_s=None if revocation.standing else max(1, revocation.until - now))

    async def revocations(self) -> list[Revocation]:
        """Every revocation that is kept, of sessions, users and nodes."""
        found: list[Revocation] = []
        for kind in ("sid", "user", "node"):
            found += await Shelf(self._pub, f"revoked.{kind}", Revocation).all()
        return found

    async def is_revoked(self, sid: str, user: str, issued_at: int) -> bool:
        """Ask the registry itself (not a watch), for renewals."""
        if await self.is_session_revoked(sid):
            return True
        entry = await self._pub.get(subject_key("user", user))
        epoch = Revocation.from_bytes(entry.value) if entry else None
        return epoch is not None and (epoch.standing or issued_at <= epoch.at)

    async def is_session_revoked(self, sid: str) -> bool:
        """Ask the registry itself whether this session id was withdrawn."""
        return await self._pub.get(sid_key(sid)) is not None
