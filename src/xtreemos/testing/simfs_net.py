"""Machines, their clocks, and connections between them, in virtual time from one seed. Knows nothing of file systems.

A connection is FIFO in each direction; different ones reorder freely. When one breaks, of what was under way a beginning still arrives,
perhaps much later, and both ends hear of the break at different times. A frozen machine goes on later with what had come meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

Call = Callable[[], None]
Waits = Generator["Promise", Any, None]


class Sim:
    """The clock of the world (seconds, from 0) and everything that will happen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Call]] = []
        self._order = itertools.count()

    def at(self, time_s: float, call: Call) -> None:
        """Have something happen."""
        heapq.heappush(self._heap, (time_s, next(self._order), call))

    def after(self, delay_s: float, call: Call) -> None:
        """Have something happen in a while."""
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), call))

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, or until `done` says so."""
        while self._heap and self._heap[0][0] <= until_s and not done():
            self.now_s, _order, call = heapq.heappop(self._heap)
            call()
        if not done():
            self.now_s = max(self.now_s, until_s)


class Promise:
    """One value that comes later, for those who wait in generators."""

    __slots__ = ("_calls", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._calls: list[Callable[[Any], None]] = []

    def keep(self, value: Any = None) -> None:
        """Give the value; a second one is ignored."""
        if not self.done:
            self.done, self.value = True, value
            for call in self._calls:
                call(value)

    def then(self, call: Callable[[Any], None]) -> None:
        """Have `call` called with the value."""
        if self.done:
            call(self.value)
        else:
            self._calls.append(call)


class Machine:
    """One process with memory, a clock of its own rate, and maybe a frozen present. Work of a life that has ended is dropped."""

    def __init__(self, sim: Sim, name: str) -> None:
        self.sim, self.name = sim, name
        self.life = 0
        self.alive = True
        self.frozen = False
        self.rate = 1 + sim.random.uniform(-0.03, 0.03)
        self.offset_s = sim.random.uniform(0, 1e6)
        self._backlog: deque[Call] = deque()
        self.links: list[Link] = []

    def now_s(self) -> float:
        """Its own monotonic clock."""
        return self.offset_s + self.sim.now_s * self.rate

    def do(self, call: Call) -> None:
        """Run something in this process: now, or when it thaws, or never if it has died."""
        if self.alive and self.frozen:
            self._backlog.append(call)
        elif self.alive:
            call()

    def later(self, delay_s: float, call: Call) -> None:
        """Run something in this life of the process in a while, on its own clock."""
        life = self.life
        self.sim.after(delay_s / self.rate, lambda: self.do(call) if life == self.life else None)

    def run(self, steps: Waits) -> None:
        """Run a generator in this life: it goes on when what it waits for has come."""
        life = self.life

        def go_on(value: Any) -> None:
            if life == self.life:
                self.do(lambda: step(value))

        def step(value: Any) -> None:
            if life != self.life:
                return
            try:
                promise = steps.send(value)
            except StopIteration:
                return
            promise.then(lambda value: self.sim.after(0, lambda: go_on(value)))

        step(None)

    def sleep(self, delay_s: float) -> Promise:
        """A promise that is kept in a while."""
        promise = Promise()
        self.later(delay_s, promise.keep)
        return promise

    def freeze(self, for_s: float) -> None:
        """Stop it; it goes on later where it was."""
        if self.alive and not self.frozen:
            self.frozen = True
            life = self.life
            self.sim.after(for_s, lambda: self._thaw() if life == self.life else None)

    def _thaw(self) -> None:
        self.frozen = False
        while self._backlog and self.alive and not self.frozen:
            self._backlog.popleft()()

    def crash(self) -> None:
        """End this life: memory and connections go."""
        self.life += 1
        self.alive, self.frozen = False, False
        self._backlog.clear()
        for link in list(self.links):
            link.cut()


class Link:
    """One connection. `receive(link, message)` and `broken(link)` are called in the machine at the other end."""

    def __init__(self, net: Net, client: Machine, server: Machine) -> None:
        self.net, self.ends = net, (client, server)
        self.lives = (client.life, server.life)
        self.up = True
        self.client = ""
        self._last_s = [0.0, 0.0]
        self._until_s = [float("inf"), float("inf")]
        client.links.append(self)
        server.links.append(self)

    def send(self, sender: Machine, message: Any, delay_s: float = 0.0) -> None:
        """Send; lost if the connection is broken, whether the sender knows or not."""
        if not self.up:
            return
        to = 1 if sender is self.ends[0] else 0
        sim = self.net.sim
        time_s = max(self._last_s[to], sim.now_s + delay_s + self.net.delay_s(self, to))
        self._last_s[to] = time_s
        receiver = self.ends[to]

        def arrive() -> None:
            if time_s < self._until_s[to] and receiver.life == self.lives[to]:
                receiver.do(lambda: receiver.receive(self, message))  # type: ignore[attr-defined]

        sim.at(time_s, arrive)

    def cut(self) -> None:
        """Break it."""
        if not self.up:
            return
        self.up = False
        sim = self.net.sim
        for side, machine in enumerate(self.ends):
            # A beginning of what is under way arrives: everything before this moment.
            self._until_s[side] = sim.now_s + sim.random.choice((0.0, 0.001, 0.01, 1.0, 10.0))
            machine.links.remove(self)
            sim.after(sim.random.choice((0.0, 0.002, 0.1, 2.0)), self._tell(side, machine))

    def _tell(self, side: int, machine: Machine) -> Call:
        return lambda: machine.do(lambda: machine.broken(self)) if machine.life == self.lives[side] else None  # type: ignore[attr-defined]


class Net:
    """Who can reach whom, how fast."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.parted: set[frozenset[str]] = set()
        self.slow: set[frozenset[str]] = set()

    def delay_s(self, link: Link, _to: int) -> float:
        """How long a message to that end takes now."""
        random = self.sim.random
        if frozenset(end.name for end in link.ends) in self.slow:
            return random.uniform(0.5, 4.0)
        return random.uniform(0.0002, 0.002) if random.random() < 0.97 else random.uniform(0.01, 0.3)

    def connect(self, client: Machine, server: Machine) -> Link | None:
        """Connect, if the other side is there."""
        if not server.alive or server.frozen or frozenset((client.name, server.name)) in self.parted:
            return None
        return Link(self, client, server)

    def part(self, one: Machine, other: Machine) -> None:
        """Cut two machines off from one another until `join`."""
        self.parted.add(frozenset((one.name, other.name)))
        for link in list(one.links):
            if other in link.ends:
                link.cut()

    def join(self) -> None:
        """Heal everything."""
        self.parted.clear()
        self.slow.clear()
