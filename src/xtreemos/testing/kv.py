"""A bucket in memory that keeps the promises of `fabric.kv.Store`, and can be told to misbehave as a real one may.

Faults: `stale_reads` (the next n reads answer the previous value, as a deposed leader does), `lose_leader` / `elect_leader`
(nothing is answered; watchers resync), `lose_answers` (the next n writes are stored but the writer is not told).
Time comes from `clock`; call `expire` after moving a fake one. The default clock is the event loop's; then lives end by themselves.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from xtreemos.fabric.errors import KeyExists, RevisionMismatch, Unreachable
from xtreemos.fabric.kv import Deleted, Entry, WatchEvent, WatchState
from xtreemos.fabric.subjects import check_key, check_pattern, matches


@dataclass(slots=True)
class _Slot:
    """The last write of a key; `value` None is a marker. `ends_s`: clock time of the end of its life, or None."""

    value: bytes | None
    revision: int
    ends_s: float | None
    before: Entry | None


class MemoryBucket:
    """See the module. For one event loop."""

    def __init__(self, name: str = "memory", *, clock: Callable[[], float] | None = None) -> None:
        self.name = name
        self.stale_reads = 0
        self.lose_answers = 0
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._real_time = clock is None
        self._slots: dict[str, _Slot] = {}
        self._revision = 0
        self._leader = True
        self._watchers: list[asyncio.Queue[Entry | Deleted | None]] = []

    # ---- faults

    def lose_leader(self) -> None:
        """From now on nothing is answered: calls raise Unreachable, definite."""
        self._leader = False

    def elect_leader(self) -> None:
        """Answer again; watchers resync."""
        self._leader = True
        for queue in self._watchers:
            queue.put_nowait(None)

    def expire(self) -> None:
        """End the lives that are over by the clock."""
        now_s = self._clock()
        for key, slot in self._slots.items():
            if slot.ends_s is not None and slot.value is not None and slot.ends_s <= now_s:
                self._store(key, None, None)

    # ---- Store

    def _check(self) -> None:
        if not self._leader:
            raise Unreachable(f"bucket {self.name} has no leader", definite=True)
        self.expire()

    def _entry(self, key: str) -> Entry | None:
        slot = self._slots.get(key)
        return None if slot is None or slot.value is None else Entry(key, slot.value, slot.revision)

    def _store(self, key: str, value: bytes | None, ttl_s: float | None) -> int:
        self._revision += 1
        life_s = None if ttl_s is None else max(1, math.ceil(ttl_s))
        ends_s = None if life_s is None else self._clock() + life_s
        self._slots[key] = _Slot(value, self._revision, ends_s, self._entry(key))
        event = Entry(key, value, self._revision) if value is not None else Deleted(key, self._revision)
        if self._leader:
            for queue in self._watchers:
                queue.put_nowait(event)
        if life_s is not None and self._real_time:
            asyncio.get_running_loop().call_later(life_s + 0.001, self.expire)
        return self._revision

    def _write(self, key: str, value: bytes | None, expected: int | None, ttl_s: float | None) -> int:
        slot = self._slots.get(check_key(key))
        if expected is not None and (slot.revision if slot else 0) != expected:
            raise RevisionMismatch(key, expected)
        revision = self._store(key, value, ttl_s)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unreachable("the answer was lost", definite=False)
        return revision

    async def get(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        self._check()
        slot = self._slots.get(check_key(key))
        if self.stale_reads and slot is not None:
            self.stale_reads -= 1
            return slot.before
        return self._entry(key)

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        await asyncio.sleep(0)
        self._check()
        if self._entry(key) is not None:
            raise KeyExists(key)
        return self._write(key, value, None, ttl_s)

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        await asyncio.sleep(0)
        self._check()
        return self._write(key, value, revision, ttl_s)

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        await asyncio.sleep(0)
        self._check()
        return self._write(key, value, None, ttl_s)

    async def delete(self, key: str, revision: int | None = None) -> None:
        await asyncio.sleep(0)
        self._check()
        self._write(key, None, revision, None)

    async def entries(self, pattern: str = ">") -> list[Entry]:
        await asyncio.sleep(0)
        self._check()
        check_pattern(pattern)
        found = (self._entry(key) for key in sorted(self._slots) if matches(pattern, key))
        return [entry for entry in found if entry is not None]

    async def keys(self, pattern: str = ">") -> list[str]:
        return [entry.key for entry in await self.entries(pattern)]

    def watch(self, pattern: str = ">") -> AsyncGenerator[WatchEvent, None]:
        check_pattern(pattern)
        return self._watch(pattern)

    async def _watch(self, pattern: str) -> AsyncGenerator[WatchEvent, None]:
        state = WatchState()
        queue: asyncio.Queue[Entry | Deleted | None] = asyncio.Queue()
        self._watchers.append(queue)
        queue.put_nowait(None)  # the first sync
        try:
            while True:
                change = await queue.get()
                if change is not None:
                    for news in state.on(change) if matches(pattern, change.key) else ():
                        yield news
                elif self._leader:
                    state.begin(self._revision)
                    self.expire()
                    for entry in [self._entry(key) for key in sorted(self._slots) if matches(pattern, key)]:
                        for news in state.on(entry) if entry is not None else ():
                            yield news
                    for news in state.end(self._revision):
                        yield news
        finally:
            self._watchers.remove(queue)
