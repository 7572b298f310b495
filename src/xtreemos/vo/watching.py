"""Feeds a `RevocationSet` from the registry: the driver of `revocation`, which knows no buckets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from xtreemos.fabric.kv import Entry, Store
from xtreemos.fabric.stream import Synced
from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import KEYS, RevocationSet


async def follow(
    pub: Store, revoked: RevocationSet, on_revoked: Callable[[str, Revocation], Awaitable[None]] | None = None
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
