"""A simulated fabric: subjects, streams and leases in one always-consistent core, reached over links that fail by a seed.

Messages are lost, doubled and late; a host may be cut off; an append may happen although nobody says so, also after its caller
gave up; the bounds of a stream may be told as they were a moment ago. What holds is what the real one promises: appends are
atomic with their expectation, a stream's reader sees every message once and in order, a lease has one holder by the core's clock.
Runs on `virtualtime`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from xtreemos.aem.manager.ports import Incoming, Stored
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import NoResponders, RevisionMismatch, Unreachable

APPEND_S = 5.0
T = TypeVar("T")


@dataclass(slots=True)
class Faults:
    """How bad the links are: chances per message, delays in seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_s_max: float = 30.0
    delay_s: float = 0.002
    stale_bounds: float = 0.0
    lying_lease_s: float = 0.0
    """A holder believes for so long after the end that it still holds its lease (paused process, bad clock)."""


@dataclass(slots=True)
class _Stream:
    captures: str
    messages: list[Stored] = field(default_factory=list)
    last: int = 0
    purged_below: int = 1
    ids: dict[str, int] = field(default_factory=dict)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    history: list[Stored] = field(default_factory=list)

    def append(self, subject: str, data: bytes, msg_id: str | None, expected_last: int | None) -> int:
        if msg_id is not None and msg_id in self.ids:
            return self.ids[msg_id]
        if expected_last is not None and expected_last != self.last:
            raise RevisionMismatch(subject, expected_last)
        self.last += 1
        stored = Stored(self.last, subject, data)
        self.messages.append(stored)
        self.history.append(stored)
        if msg_id is not None:
            self.ids[msg_id] = self.last
        self.grown.set()
        self.grown = asyncio.Event()
        return self.last


@dataclass(slots=True)
class _CoreLease:
    holder: object = None
    token: int = 0
    until_s: float = 0.0


class SimFabric:
    """The core and all links."""

    def __init__(self, rng: random.Random, streams: dict[str, str]) -> None:
        """`streams`: name -> subject pattern that it captures."""
        self.rng = rng
        self.faults = Faults()
        self.streams = {name: _Stream(captures) for name, captures in streams.items()}
        self.leases: dict[str, _CoreLease] = {}
        self.cut: set[str] = set()
        self.healed = asyncio.Event()
        self.listeners: list[SimListening] = []
        self.message_count = 0

    def heal(self, host: str) -> None:
        """Reconnect a host."""
        self.cut.discard(host)
        self.healed.set()
        self.healed = asyncio.Event()

    def send(self, host: str, deliver: Callable[[], None]) -> None:
        """Carry one message over the link of `host`, subject to faults; `deliver` runs at the other end."""
        faults, rng = self.faults, self.rng
        self.message_count += 1
        copies = 1 + (rng.random() < faults.doubled)
        for _ in range(copies):
            if host in self.cut or rng.random() < faults.lost:
                continue
            delay_s = rng.expovariate(1 / faults.delay_s)
            if rng.random() < faults.late:
                delay_s += rng.uniform(0, faults.late_s_max)
            asyncio.get_running_loop().call_later(delay_s, self._arrive, host, deliver, delay_s < 1)

    def _arrive(self, host: str, deliver: Callable[[], None], needs_link: bool) -> None:
        if not (needs_link and host in self.cut):  # what is very late was in some other queue
            deliver()


class SimListening:
    """A subject that one process listens to."""

    def __init__(self, port: SimPort, pattern: str) -> None:
        self.port = port
        self.pattern = pattern
        self.queue: asyncio.Queue[Incoming] = asyncio.Queue()
        self.closed = False

    async def next(self) -> Incoming:
        return await self.queue.get()

    async def close(self) -> None:
        self.closed = True
        if self in self.port.fabric.listeners:
            self.port.fabric.listeners.remove(self)


class SimPort:
    """The connection of one process on one host. After `die` nothing that it does has an effect."""

    def __init__(self, fabric: SimFabric, host: str) -> None:
        self.fabric = fabric
        self.host = host
        self.dead = False

    def die(self) -> None:
        self.dead = True
        for listening in [one for one in self.fabric.listeners if one.port is self]:
            self.fabric.listeners.remove(listening)

    def _check(self) -> None:
        if self.dead:
            raise Unreachable("this process is dead", definite=True)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        self._check()
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.fabric.send(self.host, lambda: self._at_core(subject, data, answer))
        try:
            async with asyncio.timeout(timeout_s):
                result = await answer
        except TimeoutError:
            raise Unreachable(f"no answer from {subject}", definite=False) from None
        if result is None:
            raise NoResponders(subject)
        return result

    def _at_core(self, subject: str, data: bytes, answer: asyncio.Future[bytes | None]) -> None:
        listeners = [one for one in self.fabric.listeners if subjects.matches(one.pattern, subject)]
        if not listeners:
            self.fabric.send(self.host, lambda: _resolve(answer, None))
        for listening in listeners:
            self._to_listener(listening, subject, data, answer)

    def _to_listener(self, listening: SimListening, subject: str, data: bytes, answer: asyncio.Future[bytes | None]) -> None:
        async def reply(body: bytes) -> None:
            listening.port._check()  # noqa: SLF001  # the same class at the other end
            hop = lambda: self.fabric.send(self.host, lambda: _resolve(answer, body))  # noqa: E731
            self.fabric.send(listening.port.host, hop)

        def deliver() -> None:
            if not listening.closed and not listening.port.dead:
                listening.queue.put_nowait(Incoming(subject, data, reply))

        self.fabric.send(listening.port.host, deliver)

    async def listen(self, subject: str) -> SimListening:
        self._check()
        listening = SimListening(self, subject)
        self.fabric.listeners.append(listening)
        return listening

    async def append(self, subject: str, data: bytes, *, msg_id: str | None = None, expected_last: int | None = None) -> int:
        self._check()
        stream = next(s for s in self.fabric.streams.values() if subjects.matches(s.captures, subject))
        answer: asyncio.Future[int | RevisionMismatch] = asyncio.get_running_loop().create_future()

        def at_core() -> None:
            result: int | RevisionMismatch
            try:
                result = stream.append(subject, data, msg_id, expected_last)
            except RevisionMismatch as error:
                result = error
            self.fabric.send(self.host, lambda: _resolve(answer, result))

        self.fabric.send(self.host, at_core)
        try:
            async with asyncio.timeout(APPEND_S):
                result = await answer
        except TimeoutError:
            raise Unreachable("the append was not acknowledged", definite=False) from None
        if isinstance(result, RevisionMismatch):
            raise result
        return result

    async def _reach(self) -> None:
        """Wait until the core can be reached."""
        while self.host in self.fabric.cut or self.dead:
            await self.fabric.healed.wait()
        await asyncio.sleep(self.fabric.rng.expovariate(1 / self.fabric.faults.delay_s))

    async def bounds(self, stream_name: str) -> tuple[int, int]:
        self._check()
        try:
            async with asyncio.timeout(APPEND_S):
                await self._reach()
        except TimeoutError:
            raise Unreachable("the stream cannot be asked", definite=True) from None
        stream = self.fabric.streams[stream_name]
        last = stream.last
        if self.fabric.rng.random() < self.fabric.faults.stale_bounds:
            last = max(stream.purged_below - 1, last - self.fabric.rng.randint(1, 3))
        return stream.purged_below, last

    async def consume(self, stream_name: str, from_seq: int) -> AsyncGenerator[Stored, None]:
        stream = self.fabric.streams[stream_name]
        assert from_seq >= stream.purged_below, "a part that was purged is wanted"
        at = from_seq
        while True:
            await self._reach()
            for stored in stream.messages[at - stream.purged_below :]:
                assert stored.seq == at
                at += 1
                yield stored
                if self.host in self.fabric.cut:
                    break
            else:
                await stream.grown.wait()

    async def purge(self, stream_name: str, below_seq: int) -> None:
        self._check()
        stream = self.fabric.streams[stream_name]
        below = min(below_seq, stream.last + 1)
        if below > stream.purged_below:
            del stream.messages[: below - stream.purged_below]
            stream.purged_below = below


class SimLease:
    """A lease at the core; `is_held` by the holder's own clock, as the real one."""

    def __init__(self, port: SimPort, key: str, ttl_s: float = 3.0) -> None:
        self._port = port
        self._core = port.fabric.leases.setdefault(key, _CoreLease())
        self._ttl_s = ttl_s
        self._until_s = 0.0
        self._token = 0
        self.lost = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    async def acquire_wait(self) -> int:
        while True:
            sent_s = self._now_s()
            if await self._try(self._take):
                self._until_s = sent_s + self._ttl_s * 0.8
                self._renewal = asyncio.create_task(self._renew_forever())
                return self._token
            await asyncio.sleep(0.2)

    async def _try(self, at_core: Callable[[], bool]) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._port.dead:
            fabric, host = self._port.fabric, self._port.host

            def arrive() -> None:
                result = at_core()
                fabric.send(host, lambda: _resolve(answer, result))

            fabric.send(host, arrive)
        try:
            async with asyncio.timeout(0.7):
                return await answer
        except TimeoutError:
            return False

    def _take(self) -> bool:
        if self._core.until_s > self._now_s() and self._core.holder is not self:
            return False
        if self._core.holder is not self:
            self._core.holder, self._core.token = self, self._core.token + 1
        self._token, self._core.until_s = self._core.token, self._now_s() + self._ttl_s
        return True

    def _extend(self) -> bool:
        if self._core.holder is not self or self._core.until_s < self._now_s():
            return False
        self._core.until_s = self._now_s() + self._ttl_s
        return True

    async def _renew_forever(self) -> None:
        while self.held:
            await asyncio.sleep(min(self._ttl_s / 3, max(0.01, self._end_s() - self._now_s())))
            sent_s = self._now_s()
            if await self._try(self._extend):
                self._until_s = max(self._until_s, sent_s + self._ttl_s * 0.8)
        self.lost.set()

    async def release(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        self._until_s = -1e9
        self.lost.set()
        if not self._port.dead and self._core.holder is self:
            self._core.until_s = 0.0

    def _end_s(self) -> float:
        return self._until_s + self._port.fabric.faults.lying_lease_s

    @property
    def held(self) -> bool:
        return self._now_s() < self._end_s()


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
