"""A whole file system's coherence in one seed: real lease machines and locks on simulated machines, with faults and checkers.

Three clients with programs, one MRC, OSDs; faults drawn from the seed (crashes, power cuts, cut and slow links, frozen machines and daemons);
then everything heals and every program must end. Checked: the history is linearizable (no stale data, attributes or names anywhere;
nothing lost but what was told), nobody has a lock that somebody else has, nothing waits for ever.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from xtreemos.testing.linearize import UNKNOWN, Model, Row, check
from xtreemos.testing.simfs_client import Record, SimClient, Steps
from xtreemos.testing.simfs_net import Net, Promise, Sim
from xtreemos.testing.simfs_servers import FIRST_NEW, READ, WRITE, SimMrc, SimOsd

HEALED_S_MAX = 150.0
"""So long after the last fault all programs must have ended."""
THROUGH_INO = 100
"""This file is also used by kernels directly; of the others number 101 is only written and read, the rest may be appended to."""
NAMES = ("x", "y", "z")


class Broken(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    clients: int = 3
    files: int = 3
    osds: int = 2
    programs: int = 2
    """On each client."""
    steps: int = 22
    """Operations of each program."""
    think_s: float = 0.6
    fault_every_s: float = 3.0
    rough_s: float = 25.0
    power_cuts: bool = False
    direct: bool = True
    kinds: tuple[str, ...] = ("read", "write", "append", "fsync", "stat", "chmod", "lookup", "names", "directory", "lock", "direct")


def file_step(state: tuple[int, tuple[str, ...]], op: Any, result: Any) -> Hashable | None:
    """A file: mode and data."""
    mode, data = state
    kind, argument = op[2:]
    if kind == "write":
        return mode, (argument,)
    if kind == "append":
        return mode, (*data, argument)
    if kind == "chmod":
        return argument, data
    seen: Any = {"read": data, "size": len(data), "mode": mode}[kind]
    return state if result is UNKNOWN or result == seen else None


def dir_step(state: tuple[int, tuple[tuple[str, int], ...]], op: Any, result: Any) -> Hashable | None:
    """A directory: how often it changed, and its names. A create is given the new file's number with its name."""
    changes, pairs = state
    names = dict(pairs)
    kind, argument = op[2:]
    if kind == "changes":
        return state if result in (UNKNOWN, changes) else None
    if kind == "lookup":
        return state if result is UNKNOWN or result == names.get(argument) else None
    first = names.get(argument[0])
    done: Any = argument[1] if kind == "create" else first
    if (kind == "create") == (first is not None):
        done = "EEXIST" if kind == "create" else "ENOENT"
    if result not in (UNKNOWN, done):
        return None
    if isinstance(done, str) or (kind == "rename" and argument[0] == argument[1]):
        return state
    names.pop(argument[0], None)
    if kind != "unlink":
        names[argument[0 if kind == "create" else 1]] = done
    return changes + 1, tuple(sorted(names.items()))


FILES = Model((0, ()), file_step, key=lambda op: op[1])
DIRECTORY = Model((0, ()), dir_step)


class World:
    """See the module."""

    client_class: type[SimClient] = SimClient
    mrc_class: type[SimMrc] = SimMrc
    osd_class: type[SimOsd] = SimOsd

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sim = Sim(plan.seed)
        self.random = self.sim.random
        self.net = Net(self.sim)
        self.history: list[Record] = []
        self.fences: list[tuple[float, int, str]] = []
        self.osds = [self.osd_class(self.sim, f"osd{number}") for number in range(plan.osds)]
        self.clients: list[SimClient] = []
        self.mrc = self.mrc_class(self.net, self.osd_of, self.fenced, self.is_dead)
        for number in range(plan.clients):
            client = self.client_class(self.net, f"c{number}", self.mrc, self.osd_of, self.history)
            client.sync_on_recall = plan.power_cuts
            self.clients.append(client)
        self.values = 0
        self.running = 0
        self.rough = True

    def osd_of(self, ino: int) -> SimOsd:
        """Where a file's data is."""
        return self.osds[ino % len(self.osds)]

    def fenced(self, ino: int, client: str) -> None:
        """The MRC has fenced an evicted client."""
        self.fences.append((self.sim.now_s, ino, client))

    def is_dead(self, client: str) -> bool:
        """Whether a client's process is certainly gone."""
        return not any(machine.alive and machine.id == client for machine in self.clients)

    # --------------------------------------------------------------------------------------------------------- programs

    def value(self) -> str:
        """A value that is never written twice."""
        self.values += 1
        return f"v{self.values}"

    def program(self, client: SimClient, number: int, steps: int) -> Steps:
        """One program: some operations, one after the other."""
        life = client.life
        self.running += 1
        done = Promise()
        done.then(lambda _value: self._ended())
        self._unless_dead(client, life, done)
        for _ in range(steps):
            yield client.sleep(self.random.expovariate(1 / self.plan.think_s))
            yield from self.step(client, number)
        done.keep()

    def _unless_dead(self, client: SimClient, life: int, done: Promise) -> None:
        """A program ends with its machine as well."""
        if client.life != life:
            done.keep()
        elif not done.done:
            self.sim.after(2.0, lambda: self._unless_dead(client, life, done))

    def _ended(self) -> None:
        self.running -= 1

    def step(self, client: SimClient, number: int) -> Steps:
        """One operation, drawn."""
        draw = self.random
        kind = draw.choice(self.plan.kinds)
        ino = THROUGH_INO + draw.randrange(self.plan.files)
        name = draw.choice(NAMES)
        if kind == "read":
            yield from client.read(ino)
        elif kind in {"write", "append"}:
            yield from client.write(ino, "write" if ino == THROUGH_INO else kind, self.value())
        elif kind == "fsync":
            yield from client.fsync(ino)
        elif kind == "stat":
            yield from client.stat(ino)
        elif kind == "chmod":
            yield from client.chmod(ino, self.random.randrange(1000))
        elif kind == "lookup":
            yield from client.lookup(name)
        elif kind == "directory":
            yield from client.look_at_directory()
        elif kind == "lock":
            yield from client.with_lock(ino, number, draw.uniform(0.1, 2.0), self.check_lock)
        elif kind == "names":
            change = draw.choice(("create", "create", "unlink", "rename"))
            self.values += 1
            more = {"create": (FIRST_NEW + self.values,), "unlink": (), "rename": (draw.choice(NAMES),)}[change]
            yield from client.change_names(change, name, *more)
        elif kind == "direct" and self.plan.direct and client is self.clients[0]:
            values = [self.value() for _ in range(draw.randrange(1, 5))]
            yield from client.use_directly(THROUGH_INO, draw.choice((READ, WRITE)), values)

    def check_lock(self, ino: int) -> None:
        """Nobody else may believe that it has the lock that somebody was just given."""
        owners = [(client.id, owner) for client in self.clients for owner in client.has_lock(ino)]
        if len(owners) > 1:
            raise Broken(f"{owners} have a write lock of {ino} at {self.sim.now_s:.3f}")

    # ----------------------------------------------------------------------------------------------------------- faults

    def fault(self) -> None:
        """One fault, drawn; each heals by itself."""
        if not self.rough:
            return
        self.sim.after(self.random.expovariate(1 / self.plan.fault_every_s), self.fault)
        client = self.random.choice(self.clients)
        osd = self.random.choice(self.osds)
        server = self.random.choice((self.mrc, self.mrc, osd))
        for_s = self.random.choice((0.3, 2.0, 8.0, 14.0, 20.0))
        kind = self.random.choice(
            ("cut", "cut", "part", "part", "slow", "freeze", "freeze", "daemon", "crash", "mrc", "osd", "fence")
        )
        if kind == "cut":
            for link in [link for link in client.links if server in link.ends]:
                link.cut()
        elif kind == "part":
            self.net.part(client, server)
            self.sim.after(for_s, lambda: self.net.parted.discard(frozenset((client.name, server.name))))
        elif kind == "fence":
            self.net.part(self.mrc, osd)
            self.sim.after(for_s, lambda: self.net.parted.discard(frozenset((self.mrc.name, osd.name))))
        elif kind == "slow":
            self.net.slow.add(frozenset((client.name, server.name)))
            self.sim.after(for_s, lambda: self.net.slow.discard(frozenset((client.name, server.name))))
        elif kind == "freeze":
            client.freeze(for_s)
        elif kind == "daemon":
            client.freeze_daemon(for_s)
        elif kind == "crash":
            self._crash_client(client, for_s)
        elif kind == "mrc" and self.mrc.alive:
            self.mrc.crash()
            self.sim.after(min(for_s, 5.0), self.mrc.start)
        elif kind == "osd" and osd.alive:
            osd.crash()
            power = self.plan.power_cuts
            self.sim.after(min(for_s, 8.0), lambda: osd.restart(power=power))

    def _crash_client(self, client: SimClient, for_s: float) -> None:
        if not client.alive:
            return
        client.crash()

        def restart() -> None:
            client.start()
            if self.rough:
                self.start_programs(client, self.plan.steps // 2)

        self.sim.after(for_s, restart)

    def start_programs(self, client: SimClient, steps: int) -> None:
        """Start the programs of one client."""
        for number in range(self.plan.programs):
            client.run(self.program(client, number + 1, steps))

    # ------------------------------------------------------------------------------------------------------------- runs

    def run(self) -> list[Row]:
        """Run it all; return the history.

        Raises:
            Broken: something waits for ever, the history is not linearizable, or two have one lock.
        """
        for client in self.clients:
            self.start_programs(client, self.plan.steps)
        self.sim.after(self.random.expovariate(1 / self.plan.fault_every_s), self.fault)
        self.sim.run(self.plan.rough_s)
        self.rough = False
        self.net.join()
        self.sim.run(self.plan.rough_s + HEALED_S_MAX, done=lambda: not self.running)
        if self.running:
            raise Broken(f"{self.running} programs wait for ever: {[record.row for record in self.history if self._waits(record)]}")
        before = len(self.history)
        for ino in range(THROUGH_INO, THROUGH_INO + self.plan.files):
            self.clients[0].run(self.clients[0].read(ino))
            self.clients[0].run(self.clients[0].stat(ino))
        self.sim.run(self.sim.now_s + 20.0, done=lambda: not any(map(self._waits, self.history[before:])))
        for client in self.clients:
            client.lose_what_was_fenced({ino for _time, ino, name in self.fences if name == client.id})
        rows = self.history_rows()
        for model, what in ((FILES, "file"), (DIRECTORY, "dir")):
            violation = check([row for row in rows if row.op[0] == what], model)  # type: ignore[index]
            if violation:
                raise Broken(str(violation))
        return rows

    def _waits(self, record: Record) -> bool:
        return record.row.returned_at is None and not record.dropped and record.lost_of is None

    def history_rows(self) -> list[Row]:
        """The history for the checker: what nobody can know is left out or marked."""
        rows = []
        for record in self.history:
            row = record.row
            kind = row.op[2]  # type: ignore[index]
            if record.dropped or (row.returned_at is None and kind in {"read", "size", "mode", "lookup", "changes"}):
                continue
            if record.lost_of is not None:
                ino, client = record.lost_of
                until = min(
                    (time for time, i, c in self.fences if (i, c) == (ino, client) and time >= row.invoked_at), default=None
                )
                row = replace(row, returned_at=until, result=UNKNOWN, optional=True)
            rows.append(row)
        return rows


def simulate(plan: Plan, world: type[World] = World) -> list[Row]:
    """Run one plan; errors name its seed."""
    try:
        return world(plan).run()
    except Exception as error:
        error.add_note(f"{plan}")
        raise
