"""What has been withdrawn: a set in memory, fed by a watch, asked on every admission; and what NATS and sshd need of it.

Monotone: once `is_revoked` said True for a credential it says so until that credential has expired by itself; late, repeated or
reordered events, and deletions by TTL, change nothing. Judged against the time of *issue*, never against now (CVE-2020-26892): who
was suspended and comes back gets new credentials, the old ones stay void.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from xtreemos.fabric.caller import Caller
from xtreemos.vo.model import Revocation

SubjectKind = Literal["user", "node"]
_PREFIX = "revoked."


def is_revocation(key: str) -> bool:
    """Tell whether a registry key is that of a revocation."""
    return key.startswith(_PREFIX)


def sid_key(sid: str) -> str:
    """Registry key of a revoked session."""
    return f"{_PREFIX}sid.{sid}"


def subject_key(kind: SubjectKind, name: str) -> str:
    """Registry key of a revoked user or node."""
    return f"{_PREFIX}{kind}.{name}"


def widen(known: Revocation, new: Revocation) -> Revocation:
    """Join two revocations of one key: whatever either withdraws is withdrawn; the later one says whether it stands."""
    latest = new.at >= known.at
    return Revocation(
        at=max(known.at, new.at),
        until=new.until if latest and known.standing else max(known.until, new.until),
        standing=new.standing if latest else known.standing,
        who=new.who,
        serials=tuple(sorted({*known.serials, *new.serials})),
        nats_keys=tuple(sorted({*known.nats_keys, *new.nats_keys})),
    )


class RevocationSet:
    """All revocations of one VO that matter now. `synced` is True once the registry's whole state has been seen."""

    def __init__(self) -> None:
        self._by_key: dict[str, Revocation] = {}
        self._serials: set[int] = set()
        self.synced = False

    def apply(self, key: str, revocation: Revocation) -> bool:
        """Take one event; returns True if it withdraws something that was not withdrawn before."""
        self._serials.update(revocation.serials)
        known = self._by_key.get(key)
        if known is None:
            self._by_key[key] = revocation
            return True
        merged = widen(known, revocation)
        if msgspec.structs.replace(merged, who=known.who) == known:
            return False
        self._by_key[key] = merged
        return True

    def covers(self, caller: Caller, issued_at: int) -> bool:
        """Tell whether the credential by which `caller` was admitted has been withdrawn."""
        kind: SubjectKind = "node" if caller.kind == "node" else "user"
        return caller.serial in self._serials or self.is_revoked(caller.sid, caller.name, issued_at, kind)

    def is_revoked(self, sid: str, name: str, issued_at: int, kind: SubjectKind = "user") -> bool:
        """Tell whether a credential of session `sid`, issued to `name` at `issued_at`, has been withdrawn."""
        if sid and sid_key(sid) in self._by_key:
            return True
        epoch = self._by_key.get(subject_key(kind, name))
        return epoch is not None and (epoch.standing or issued_at <= epoch.at)

    def prune(self, now: int) -> None:
        """Forget what no longer can be valid by its own expiry."""
        self._by_key = {key: item for key, item in self._by_key.items() if now < item.until}
        self._serials = {serial for item in self._by_key.values() for serial in item.serials}

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
