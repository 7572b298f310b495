"""Feeds a `RevocationSet` from the registry: the driver of `revocation`, which knows no buckets."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Never

from xtreemos.fabric.kv import Deleted, WatchEvent
from xtreemos.fabric.stream import Synced
from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet


async def follow(
    receive: Callable[[], Awaitable[WatchEvent]],
    revoked: RevocationSet,
    on_revoked: Callable[[str, Revocation], Awaitable[None]] | None = None,
    clock: Callable[[], float] = time.time,
) -> Never:
    """Feed `revoked` from what a watch tells of revocations (`receive`); `on_revoked(key, record)` for each new one (kill jobs, drop connections).

    Cancel to end; the set keeps what it knows. A deletion (the end of a record's life in the registry) withdraws nothing: what may
    be forgotten is told by the record itself.
    """
    while True:
        event = await receive()
        if isinstance(event, Synced):
            revoked.synced = True
            revoked.prune(int(clock()))
        elif not isinstance(event, Deleted):
            record = Revocation.from_bytes(event.value)
            if revoked.apply(event.key, record) and on_revoked:
                await on_revoked(event.key, record)
