"""Leases: who may act, until when, and the token by which others refuse those who may no longer.

A lease is a key that dies by itself (TTL) unless renewed by CAS. `LeaseClock` is the pure part: when to renew, when to stop.
The holder stops acting before the servers can give the lease away, counted on its own monotonic clock from *before* the last
renewal was sent. That still trusts the servers' clocks (a leader whose clock jumps ahead ends lives early), so what must not
be done twice must check the token: it is the revision of the acquisition, and a later holder's is larger.
Source: notes/infra.md section 4, "Passive".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from xtreemos.fabric.errors import KeyExists, LeaseTaken, RevisionMismatch, Unreachable
from xtreemos.fabric.kv import Deleted, Store
from xtreemos.fabric.stream import Synced

logger = logging.getLogger(__name__)
MARGIN_PART = 0.15
RETRY_S = 0.1


def boot_clock_s() -> float:
    """Seconds since boot, those of sleep included: a machine that slept must not believe in a lease that ended meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class LeaseClock:
    """Pure. All times are monotonic seconds of the holder; `ttl_s` is whole seconds, as the servers count."""

    ttl_s: int
    renewed_s: float

    @property
    def margin_s(self) -> float:
        return max(0.3, self.ttl_s * MARGIN_PART)

    @property
    def stop_s(self) -> float:
        """From here on the holder must not act."""
        return self.renewed_s + self.ttl_s - self.margin_s

    @property
    def renew_s(self) -> float:
        """When to renew next."""
        return self.renewed_s + self.ttl_s / 3

    def held(self, now_s: float) -> bool:
        return now_s < self.stop_s


class Lease:
    """One try to be the holder of `key`. `acquire`, act while `held`, stop at once when `lost` is set; then make a new one.

    Between two awaits check `held` (or use the token): the event can only be set when the loop runs.
    """

    def __init__(
        self, bucket: Store, key: str, holder: str, ttl_s: int, *, clock: Callable[[], float] = boot_clock_s, sole: bool = False
    ) -> None:
        """`clock` must go on while the machine sleeps. `sole`: only one process at a time ever uses this holder's name, so a
        lease under it is that of an earlier life which is certainly dead: it is taken over at once, with a new token.
        """
        if ttl_s < 2:
            raise ValueError("a lease lives 2 s or more")
        self.key = key
        self.holder = holder
        self.ttl_s = ttl_s
        self.lost = asyncio.Event()
        self.token = 0
        self._bucket = bucket
        self._clock = clock
        self._sole = sole
        self._times: LeaseClock | None = None
        self._revision = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """True while we may act."""
        return self._times is not None and not self.lost.is_set() and self._times.held(self._clock())

    def _value(self) -> bytes:
        return json.dumps({"holder": self.holder, "token": self.token}).encode()

    async def acquire(self) -> int:
        """Take the lease now; returns the token (> every earlier one of this key). LeaseTaken, Unreachable.

        Cancelled or Unreachable, the key may be ours without us knowing: it then ends by itself after `ttl_s`.
        """
        sent_s = self._clock()
        try:
            self._revision = await self._bucket.create(self.key, self._value(), ttl_s=self.ttl_s)
        except (KeyExists, RevisionMismatch):
            self._revision = await self._inherit()
        self.token = self._revision
        self._times = LeaseClock(self.ttl_s, sent_s)
        if not self.held:
            raise LeaseTaken(f"{self.key!r} was acquired too slowly to be used", "try again")
        self._task = asyncio.create_task(self._keep(self._times), name=f"lease {self.key}")
        self._task.add_done_callback(lambda _: self.lost.set())  # however it ends, even before its first step
        return self.token

    async def _inherit(self) -> int:
        """Take over what an earlier life of this very holder has left; LeaseTaken if the lease is another's."""
        entry = await self._bucket.get(self.key) if self._sole else None
        if entry is not None and _holder(entry.value) == self.holder:
            with contextlib.suppress(RevisionMismatch):
                return await self._bucket.update(self.key, self._value(), entry.revision, ttl_s=self.ttl_s)
        raise LeaseTaken(f"{self.key!r} is held by {await self._who()}", "it is taken over when it dies") from None

    async def acquire_wait(self) -> int:
        """Wait until the lease is free, take it and return the token. Over failures of the fabric, for ever."""
        while True:
            try:
                return await self.acquire()
            except LeaseTaken:
                await self._wait_free()
            except Unreachable as cause:
                logger.info("lease %s: %s", self.key, cause)
                await asyncio.sleep(RETRY_S)

    async def _wait_free(self) -> None:
        async with contextlib.aclosing(self._bucket.watch(self.key)) as events:
            there = False
            async for event in events:
                if isinstance(event, Deleted):
                    return
                if isinstance(event, Synced) and not there:
                    return
                there = True

    async def _who(self) -> str:
        try:
            entry = await self._bucket.get(self.key)
        except Unreachable:
            entry = None
        return (_holder(entry.value) if entry is not None else None) or "somebody else"

    async def _keep(self, times: LeaseClock) -> None:
        """Renew at a third of the life; transient trouble is retried until the end, a conflict ends it at once."""
        while True:
            await self._sleep_until(min(times.renew_s, times.stop_s))
            if not times.held(self._clock()) or not await self._renew(times):
                return

    async def _renew(self, times: LeaseClock) -> bool:
        """Renew once; False if the lease is lost."""
        while times.held(self._clock()):
            sent_s = self._clock()
            try:
                async with asyncio.timeout(max(0.01, times.stop_s - sent_s)):
                    self._revision = await self._bucket.update(self.key, self._value(), self._revision, ttl_s=self.ttl_s)
            except RevisionMismatch:
                if not await self._adopt():
                    return False
                continue
            except (Unreachable, TimeoutError) as cause:
                logger.debug("lease %s not renewed yet: %s", self.key, cause)
                await self._sleep_until(self._clock() + RETRY_S)
                continue
            times.renewed_s = sent_s
            return True
        return False

    async def _adopt(self) -> bool:
        """After a conflict: was it our own renewal whose answer was lost? Then its revision is ours, else step down.

        Only renewals by this very holding carry our token, so nobody else's value can be taken for ours.
        """
        try:
            entry = await self._bucket.get(self.key)
        except Unreachable:
            return False
        if entry is None or entry.value != self._value() or entry.revision <= self._revision:
            return False
        self._revision = entry.revision
        return True

    async def _sleep_until(self, when_s: float) -> None:
        while (left_s := when_s - self._clock()) > 0:
            await asyncio.sleep(max(0.001, left_s))  # timers may fire early by less than a tick

    async def release(self) -> None:
        """Give the lease back at once, if we have it. `lost` is set first: stop acting before."""
        self.lost.set()
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(RevisionMismatch, Unreachable):  # somebody else's by now, or it ends by itself
            await self._bucket.delete(self.key, self._revision)


def _holder(value: bytes) -> str | None:
    """Who wrote this; None if it cannot be read."""
    try:
        return str(json.loads(value)["holder"])
    except (ValueError, KeyError, TypeError):
        return None
