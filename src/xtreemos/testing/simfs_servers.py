"""One MRC and some OSDs of a simulated file system: dull drivers of the real `lease.Table` and `lease.Locks`, with the simplest of stores.

A file is one whole value (a tuple of records) on one OSD, and a mode at the MRC. One directory has a few names.
Messages are tuples: ("req", id, kind, *arguments), ("reply", id, ...), and those of the lease protocol by their own names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xtreemos.testing.simfs_net import Link, Machine, Net, Promise, Sim
from xtreemos.xtreemfs.lease import locks as lk
from xtreemos.xtreemfs.lease import table_model as tm
from xtreemos.xtreemfs.lease.model import Give, How, Need
from xtreemos.xtreemfs.lease.table import Table
from xtreemos.xtreemfs.model import Level
from xtreemos.xtreemfs.protocol import LockRow

NONE, READ, WRITE = Level.NONE, Level.READ, Level.WRITE
Data = tuple[str, ...]
DIR = 1
FIRST_NEW = 1000
RETRY_S = 0.3
TICK_S = 1.0


class SimOsd(Machine):
    """Values of files, and the largest epoch seen of each. Serves only the newest connection of a client."""

    checks_epochs = True

    def __init__(self, sim: Sim, name: str) -> None:
        super().__init__(sim, name)
        self.data: dict[int, Data] = {}
        self.synced: dict[int, Data] = {}
        self.epochs: dict[int, int] = {}
        self.boot = 1
        self.current: dict[str, Link] = {}

    def receive(self, link: Link, message: Any) -> None:
        """Take a request."""
        if message[0] == "hello":
            link.client = message[1]
            self.current[link.client] = link
        elif self.current.get(link.client) is link:
            link.send(self, ("reply", message[1], *self._answer(*message[2:])))

    def broken(self, link: Link) -> None:
        """Forget a connection."""
        if self.current.get(link.client) is link:
            del self.current[link.client]

    def _answer(self, kind: str, ino: int, epoch: int = 0, data: Data = ()) -> tuple[Any, ...]:
        if kind == "fence":
            self.epochs[ino] = max(epoch, self.epochs.get(ino, 0))
        elif kind == "sync":
            self.synced[ino] = self.data.get(ino, ())
        elif kind == "write":
            if self.checks_epochs and epoch < self.epochs.get(ino, 0):
                return ("stale",)
            self.epochs[ino] = epoch
            self.data[ino] = data
        return ("ok", self.data.get(ino, ()), self.boot)

    def restart(self, *, power: bool) -> None:
        """Come back; after a power cut what was not synced is gone. Epochs were durable before they were used."""
        self.alive = True
        self.current = {}
        if power:
            self.boot += 1
            self.data = {ino: self.synced.get(ino, ()) for ino in self.data}


@dataclass
class Store:
    """What the MRC has on disk."""

    modes: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    changes: int = 0
    """Of the directory: stands for its times."""
    orphans: set[int] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    writers: dict[tuple[int, str], tm.Writer] = field(default_factory=dict)
    fencing: dict[int, int] = field(default_factory=dict)
    """ino -> epoch with which its OSD was to be fenced."""
    deleted: set[int] = field(default_factory=set)


class SimMrc(Machine):
    """The metadata server."""

    lookups_wait = False

    def __init__(
        self, net: Net, osd_of: Callable[[int], SimOsd], fenced: Callable[[int, str], None], is_dead: Callable[[str], bool]
    ) -> None:
        super().__init__(net.sim, "mrc")
        self.net, self._osd_of, self._tell_fenced = net, osd_of, fenced
        self.is_dead = is_dead
        self.store = Store()
        self._claimed_locks: tuple[LockRow, ...] = ()
        self._calls = {
            tm.Proceed: self._proceed, tm.Answer: self._answer, tm.SendRecall: self._send_recall, tm.Opened: self._opened, tm.Renewed: self._renewed,
            tm.NoSession: self._no_session, tm.Lapsed: self._lapsed, tm.Forgotten: self._forgotten, tm.Fence: self._fence, tm.Unused: self._unused,
            tm.GraceOver: self._grace_over, tm.Refuse: self._refuse,
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        """Begin a life with what is on disk."""
        self.alive = True
        writers = [
            msg if msg.ino not in self.store.fencing else tm.Writer(msg.ino, "", msg.epoch, msg.through)
            for msg in self.store.writers.values()
        ]
        rows = {row.ino for row in writers}
        writers += [tm.Writer(ino, "", epoch) for ino, epoch in self.store.fencing.items() if ino not in rows]
        self.table = Table(self.now_s(), sessions=self.store.sessions, writers=writers)
        self.locks = lk.Locks(grace=self.table.in_grace)
        self.current: dict[str, Link] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Link, Any]] = {}
        self._answers: dict[int, tuple[Any, ...]] = {}
        self._lock_calls: dict[int, tuple[Link, int]] = {}
        self._osd_waits: dict[tuple[str, int], Promise] = {}
        self.on(tm.Tick())
        self._tick()

    def _tick(self) -> None:
        self.on(tm.Tick())
        for (ino, client), row in list(self.store.writers.items()):
            if row.through and self.is_dead(client):  # its node's OSD saw that process die
                self.store.writers[ino, client] = tm.Writer(ino, client, row.epoch)
                self.on(tm.ThroughGone(client, ino))
        self.later(TICK_S, self._tick)

    def on(self, event: tm.Event) -> None:
        """Feed the table and carry out what it says, in order; what that leads to comes after it."""
        todo = self.table.on(event, self.now_s())
        while todo:
            effect = todo.pop(0)
            event_then = self._calls[type(effect)](effect)  # type: ignore[operator]
            if event_then is not None:
                todo = self.table.on(event_then, self.now_s()) + todo

    # --------------------------------------------------------------------------------------------------------- messages

    def receive(self, link: Link, message: Any) -> None:
        """Take a message of a client, or an OSD's answer to a fence."""
        kind = message[0]
        if isinstance(link.ends[1], SimOsd):
            self._osd_waits.pop((link.ends[1].name, message[1])).keep(message[2:])
            return
        if kind == "open":
            link.client = message[1]
            self.current[link.client] = link
            self._drop_calls(link.client)
            self._claimed_locks = message[3]
            self.on(tm.Open(link.client, message[2]))
            return
        if self.current.get(link.client) is not link:
            return
        if kind == "renew":
            self.on(tm.Renew(link.client))
        elif kind == "release":
            self._release(link, message[1], message[2])
        elif kind == "forget":
            self.on(tm.Forget(link.client, message[1]))
            link.send(self, ("released", message[1]))
        elif kind == "req":
            self._request(link, message)

    def broken(self, link: Link) -> None:
        """A connection is gone."""
        if self.current.get(link.client) is link:
            del self.current[link.client]
            self._drop_calls(link.client)
            self.on(tm.Cut(link.client))
        for key in [key for key in self._osd_waits if key[0] == link.ends[1].name]:
            self._osd_waits.pop(key).keep(None)

    def _drop_calls(self, client: str) -> None:
        for number, (link, _request_id) in list(self._lock_calls.items()):
            if link.client == client:
                del self._lock_calls[number]
                self._lock_effects(self.locks.on(lk.Cancel(number)))

    def _release(self, link: Link, release: tm.Release, size: int) -> None:
        held = self.table.held(link.client, release.ino)
        if size >= 0 and held.level == WRITE:
            self.store.sizes[release.ino] = size
        self.on(release)
        after = self.table.held(link.client, release.ino)
        if self.current.get(link.client) is not link:
            return
        if WRITE not in {after.level, after.shared} and not release.through:
            self.store.writers.pop((release.ino, link.client), None)
        elif release.through:
            self.store.writers[release.ino, link.client] = tm.Writer(
                release.ino, link.client, self.store.epochs.get(release.ino, 0), release.through
            )
        link.send(self, ("released", (release.ino,)))

    def _request(self, link: Link, message: Any) -> None:
        _req, request_id, kind, *arguments = message
        if kind == "lock":
            number = next(self._numbers)
            self._lock_calls[number] = (link, request_id)
            self._lock_effects(self.locks.on(lk.Lock(number, link.client, arguments[0], wait=True)))
        elif kind == "unlock":
            row = arguments[0]
            self._lock_effects(self.locks.on(lk.Unlock(link.client, row.ino, row.kind, row.owner)))
            link.send(self, ("reply", request_id, "ok"))
        elif kind in {"lookup", "dirattr"} and not self.lookups_wait:
            link.send(self, ("reply", request_id, "ok", *self._look(link.client, kind, *arguments)))
        else:
            number = next(self._numbers)
            self._asked[number] = (link, message[1:])
            self.on(tm.Ask(number, link.client, self._needs(kind, *arguments)))

    def _look(self, client: str, kind: str, name: str = "") -> tuple[Any, ...]:
        given = self.table.glance(client, DIR, self.now_s())
        if kind == "dirattr":
            return given, self.store.changes
        return given, self.store.names.get(name), given.level >= READ and self.table.name_free(client, DIR, name.encode())

    def _needs(self, kind: str, *arguments: Any) -> tuple[Need, ...]:
        if kind in {"lookup", "dirattr"}:
            return (Need(DIR, How.READ),)
        if kind in {"acquire", "getattr", "chmod"}:
            how = How.READ if kind == "getattr" or (kind == "acquire" and arguments[1] == READ) else How.ALONE
            return (Need(arguments[0], how),)
        names: tuple[str, ...] = arguments[:1] if kind == "create" else arguments
        children = dict.fromkeys(ino for name in names if (ino := self.store.names.get(name)) and kind != "create")
        return (Need(DIR, How.NAMES, tuple(name.encode() for name in names)), *(Need(ino, How.ALONE) for ino in children))

    # ---------------------------------------------------------------------------------------------------------- effects

    def _proceed(self, effect: tm.Proceed) -> tm.Event:
        link, (_request_id, kind, *arguments) = self._asked[effect.op]
        if kind in {"create", "unlink", "rename"}:
            needs = self._needs(kind, *arguments)
            if {need.ino for need in needs} - {allowed.ino for allowed in effect.allowed}:
                return tm.Again(effect.op, needs)
        gives, self._answers[effect.op] = getattr(self, f"_do_{kind}")(link.client, effect.allowed[0], *arguments)
        return tm.Done(effect.op, gives)

    def _do_acquire(self, client: str, allowed: tm.Allowed, ino: int, level: Level) -> tuple[Any, ...]:
        epoch = allowed.epoch
        if allowed.fresh and level == WRITE:
            epoch = self.store.epochs[ino] = self.store.epochs.get(ino, 0) + 1
        if level == WRITE:
            for key in [key for key, row in self.store.writers.items() if key[0] == ino and not (allowed.shared or row.through)]:
                del self.store.writers[key]
            through = self.store.writers[ino, client].through if (ino, client) in self.store.writers else NONE
            self.store.writers[ino, client] = tm.Writer(ino, client, epoch, through)
        give = Give(ino, NONE, epoch, level) if allowed.shared else Give(ino, level, epoch)
        return (give,), (self._attr(ino),)

    def _attr(self, ino: int) -> tuple[int, int]:
        return self.store.modes.get(ino, 0), self.store.sizes.get(ino, 0)

    def _do_getattr(self, _client: str, allowed: tm.Allowed, ino: int) -> tuple[Any, ...]:
        return (Give(ino, NONE, 0, READ) if allowed.shared else Give(ino, READ),), (self._attr(ino),)

    def _do_chmod(self, _client: str, _allowed: tm.Allowed, ino: int, mode: int) -> tuple[Any, ...]:
        self.store.modes[ino] = mode
        return (Give(ino),), (self._attr(ino),)

    def _do_lookup(self, client: str, _allowed: tm.Allowed, name: str) -> tuple[Any, ...]:
        return (Give(DIR, READ),), (self.store.names.get(name), self.table.name_free(client, DIR, name.encode()))

    def _do_dirattr(self, _client: str, _allowed: tm.Allowed) -> tuple[Any, ...]:
        return (Give(DIR, READ),), (self.store.changes,)

    def _do_create(self, client: str, _allowed: tm.Allowed, name: str, new: int) -> tuple[Any, ...]:
        if name in self.store.names:
            return (Give(DIR),), ("EEXIST", self._changed(0), self._free(client, name))
        self.store.names[name] = new
        self.store.epochs[new] = 1
        self.store.writers[new, client] = tm.Writer(new, client, 1)
        return (Give(DIR), Give(new, WRITE, 1)), (new, self._changed(1), self._free(client, name))

    def _do_unlink(self, client: str, _allowed: tm.Allowed, name: str) -> tuple[Any, ...]:
        ino = self.store.names.pop(name, None)
        if ino is None:
            return (Give(DIR),), ("ENOENT", self._changed(0), self._free(client, name))
        self.store.orphans.add(ino)
        self.sim.after(0, lambda: self.do(lambda: self.on(tm.Orphan(ino))))
        return (Give(DIR),), (ino, self._changed(1), self._free(client, name))

    def _do_rename(self, client: str, _allowed: tm.Allowed, name: str, new_name: str) -> tuple[Any, ...]:
        ino = self.store.names.get(name)
        if ino is None or name == new_name:
            return (Give(DIR),), ("ENOENT" if ino is None else ino, self._changed(0), self._free(client, name, new_name))
        del self.store.names[name]
        replaced = self.store.names.get(new_name)
        self.store.names[new_name] = ino
        if replaced is not None:
            self.store.orphans.add(replaced)
            self.sim.after(0, lambda: self.do(lambda: self.on(tm.Orphan(replaced))))
        return (Give(DIR),), (ino, self._changed(1), self._free(client, name, new_name))

    def _changed(self, by: int) -> int:
        self.store.changes += by
        return self.store.changes

    def _free(self, client: str, *names: str) -> tuple[bool, ...]:
        return tuple(self.table.name_free(client, DIR, name.encode()) for name in names)

    def _answer(self, effect: tm.Answer) -> None:
        link, (request_id, *_request) = self._asked.pop(effect.op)
        link.send(
            self, ("reply", request_id, "ok", effect.given[0], *self._answers.pop(effect.op), *effect.given[1:]), self._disk_s()
        )

    def _disk_s(self) -> float:
        return 0.02 if self.sim.random.random() < 0.1 else 0.0

    def _refuse(self, effect: tm.Refuse) -> None:
        link, (request_id, *_request) = self._asked.pop(effect.op)
        link.send(self, ("reply", request_id, "again"))

    def _send_recall(self, effect: tm.SendRecall) -> None:
        self.current[effect.client].send(self, ("recall", effect))

    def _opened(self, effect: tm.Opened) -> None:
        self.store.sessions.add(effect.client)
        for key in [key for key in self.store.writers if key[1] == effect.client]:
            if (
                WRITE not in {(held := self.table.held(effect.client, key[0])).level, held.shared}
                and not self.store.writers[key].through
            ):
                del self.store.writers[key]
        lost: list[LockRow] = []
        for answer in self.locks.on(lk.Reclaim(effect.client, self._claimed_locks)):
            if isinstance(answer, lk.Reclaimed):
                lost += answer.lost
            else:
                self._lock_effects([answer])
        self.current[effect.client].send(self, ("opened", effect.lost, tuple(lost)))

    def _renewed(self, effect: tm.Renewed) -> None:
        self.current[effect.client].send(self, ("renewed",))

    def _no_session(self, effect: tm.NoSession) -> None:
        link = self.current.get(effect.client)
        if effect.op:
            link, (request_id, *_request) = self._asked.pop(effect.op)
            link.send(self, ("reply", request_id, "again"))
        if link is not None:
            link.send(self, ("nosession",))
            self.current.pop(effect.client, None)

    def _lapsed(self, effect: tm.Lapsed) -> None:
        self.store.sessions.discard(effect.client)
        self._lock_effects(self.locks.on(lk.ClientGone(effect.client)))

    def _forgotten(self, effect: tm.Forgotten) -> None:
        self.store.sessions.discard(effect.client)

    def _unused(self, effect: tm.Unused) -> None:
        if effect.ino in self.store.orphans:
            self.store.orphans.discard(effect.ino)
            self.store.deleted.add(effect.ino)

    def _grace_over(self, _effect: tm.GraceOver) -> None:
        self._lock_effects(self.locks.on(lk.GraceOver()))
        for ino in list(self.store.orphans):
            self.sim.after(0, lambda ino=ino: self.do(lambda: self.on(tm.Orphan(ino))))  # type: ignore[misc]

    def _lock_effects(self, effects: list[lk.Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, lk.Got | lk.Deadlock | lk.NoLocks)
            if effect.request in self._lock_calls:
                link, request_id = self._lock_calls.pop(effect.request)
                link.send(self, ("reply", request_id, "ok" if isinstance(effect, lk.Got) else "deadlock"))

    # ------------------------------------------------------------------------------------------------------------ fences

    def _fence(self, effect: tm.Fence) -> None:
        epoch = self.store.epochs.get(effect.ino, 0) + 1
        self.store.fencing[effect.ino] = self.store.epochs[effect.ino] = epoch
        self.run(self._fencing(effect, epoch))

    def _fencing(self, effect: tm.Fence, epoch: int) -> Any:
        osd = self._osd_of(effect.ino)
        while True:
            link = next((link for link in self.links if link.ends[1] is osd), None) or self._connect(osd)
            if link is not None:
                number = next(self._numbers)
                waits = self._osd_waits[osd.name, number] = Promise()
                link.send(self, ("req", number, "fence", effect.ino, epoch))
                answer = yield waits
                if answer is not None:
                    break
            yield self.sleep(RETRY_S)
        self.store.sizes[effect.ino] = len(answer[1])
        self.store.fencing.pop(effect.ino, None)
        for key in [
            key for key, row in self.store.writers.items() if key[0] == effect.ino and row.epoch < epoch and not row.through
        ]:
            del self.store.writers[key]
        self._tell_fenced(effect.ino, effect.client)
        self.on(tm.Fenced(effect.ino))

    def _connect(self, osd: SimOsd) -> Link | None:
        link = self.net.connect(self, osd)
        if link is not None:
            link.send(self, ("hello", f"mrc{self.life}"))
        return link
