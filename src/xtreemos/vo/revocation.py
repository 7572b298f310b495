"""What has been withdrawn: a set in memory, fed by a watch, asked on every admission; and what NATS and sshd need of it.

Monotone: once `is_revoked` said True for a credential it says so until that credential has expired by itself; late, repeated or
reordered events, and deletions by TTL, change nothing. Judged against the time of *issue*, never against now (CVE-2020-26892): who
was suspended and comes back gets new credentials, the old ones stay void.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

import msgspec

from xtreemos.fabric.kv import Bucket, Entry, Synced
from xtreemos.vo.model import Revocation

SubjectKind = Literal["user", "node"]
KEYS = "revoked.>"


def sid_key(sid: str) -> str:
    """Registry key of a revoked session."""
    return f"revoked.sid.{sid}"


def subject_key(kind: SubjectKind, name: str) -> str:
    """Registry key of a revoked user or node."""
    return f"revoked.{kind}.{name}"


class RevocationSet:
    """All revocations of one VO that matter now. `synced` is True once the registry's whole state has been seen."""

    def __init__(self) -> None:
        self._by_key: dict[str, Revocation] = {}
        self.synced = False

    def apply(self, key: str, revocation: Revocation) -> bool:
        """Take one event; returns True if it withdraws something that was not withdrawn before."""
        known = self._by_key.get(key)
        if known is None:
            self._by_key[key] = revocation
            return True
        merged = Revocation(
            at=max(known.at, revocation.at),
            until=max(known.until, revocation.until),
            who=revocation.who,
            serials=tuple(sorted({*known.serials, *revocation.serials})),
            nats_keys=tuple(sorted({*known.nats_keys, *revocation.nats_keys})),
        )
        if msgspec.structs.replace(merged, who=known.who) == known:
            return False
        self._by_key[key] = merged
        return True

    def is_revoked(self, sid: str, name: str, issued_at: int, kind: SubjectKind = "user") -> bool:
        """Tell whether a credential of session `sid`, issued to `name` at `issued_at`, has been withdrawn."""
        if sid and sid_key(sid) in self._by_key:
            return True
        epoch = self._by_key.get(subject_key(kind, name))
        return epoch is not None and issued_at <= epoch.at

    def prune(self, now: int) -> None:
        """Forget what no longer can be valid by its own expiry."""
        self._by_key = {key: item for key, item in self._by_key.items() if now < item.until}

    def records(self) -> Iterable[Revocation]:
        """All of them, in no order."""
        return self._by_key.values()

    def __len__(self) -> int:
        return len(self._by_key)


def nats_revocations(records: Iterable[Revocation], now: int) -> dict[str, int]:
    """What goes into the account JWT: NATS user key -> time; only of credentials that could still be valid."""
    found: dict[str, int] = {}
    for record in records:
        if now < record.until:
            for key in record.nats_keys:
                found[key] = max(record.at, found.get(key, 0))
    return found


def revoked_serials(records: Iterable[Revocation], now: int) -> list[int]:
    """Serials for an SSH key revocation list (`ssh.krl`)."""
    return sorted({serial for record in records if now < record.until for serial in record.serials})


async def follow(
    pub: Bucket, revoked: RevocationSet, on_revoked: Callable[[str, Revocation], Awaitable[None]] | None = None
) -> None:
    """Feed `revoked` from the registry, for ever; `on_revoked(key, record)` for each new one (kill jobs, drop connections).

    Cancel to end; the set keeps what it knows. The watch itself survives restarts of the servers.
    """
    async for event in pub.watch(KEYS):
        if isinstance(event, Synced):
            revoked.synced = True
        elif isinstance(event, Entry):
            record = Revocation.from_bytes(event.value)
            if revoked.apply(event.key, record) and on_revoked:
                await on_revoked(event.key, record)
