"""The daemon and the kernel of one client of a simulated file system: a dull driver of the real `lease.Holder`, and two layers of caches.

The kernel's caches answer without asking the daemon, also while it is frozen, until the timeouts that it was told. What programs do with
them is in `simfs_client`.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from xtreemos.testing.linearize import Row
from xtreemos.testing.simfs_line import CONNECT_S, SILENCE_S, OsdLine
from xtreemos.testing.simfs_net import Link, Machine, Net, Promise
from xtreemos.testing.simfs_servers import DIR, NONE, TICK_S, Data, SimMrc, SimOsd
from xtreemos.xtreemfs.lease import holder_model as hm
from xtreemos.xtreemfs.lease import table_model as tm
from xtreemos.xtreemfs.lease.holder import Holder
from xtreemos.xtreemfs.lease.model import REOPEN_S, Given
from xtreemos.xtreemfs.model import Level
from xtreemos.xtreemfs.protocol import LockRow

Steps = Generator[Promise, Any, Any]
FLUSH_S = 25.0


@dataclass(slots=True, eq=False)
class Record:
    """A row of the history being written."""

    row: Row
    dropped: bool = False
    """It saw what was lost later: it says nothing about the files."""
    lost_of: tuple[int, str] | None = None
    """(inode, client) if what it wrote may be lost: it took effect before the fence or never."""


@dataclass(slots=True, eq=False)
class File:
    """What the daemon has of a file."""

    data: Data | None = None
    attr: tuple[int, int] | None = None
    unsafe: list[Record] = field(default_factory=list)
    """What relies on data that is not on the OSD yet."""
    boot: int = 0
    size: tuple[int, int] = (0, 0)
    """Epoch under which we wrote it, and how long it was then."""
    failed: bool = False
    claimed: bool = False
    """A program is about to let the kernel have the OSD's file, or has."""
    direct: bool = False
    """The kernel has the OSD's file."""


@dataclass(slots=True, eq=False)
class Cached:
    """One entry of the kernel's caches, with the time until which it may be shown."""

    value: Any
    until_s: float


class SimDaemon(Machine):
    """One mount, its kernel, and the programs on it."""

    sync_on_recall = False
    entries_need_lock = False
    """Whether the kernel drops a name only under its directory's lock."""

    drops_what_it_changes = True

    def __init__(self, net: Net, name: str, mrc: SimMrc, osd_of: Callable[[int], SimOsd], history: list[Record]) -> None:
        super().__init__(net.sim, name)
        self.net, self.mrc, self.osd_of, self.history = net, mrc, osd_of, history
        self.daemon_frozen = False
        self.start()

    def start(self) -> None:
        """Begin a life: another client for the MRC."""
        self.alive = True
        self.id = f"{self.name}.{self.life}"
        self.holder = Holder(self.now_s())
        self.files: dict[int, File] = {}
        self.names: dict[str, int | None] = {}
        self.changes: int | None = None
        self.kernel: dict[Any, Cached] = {}
        self.locks: dict[int, LockRow] = {}
        self.session: Link | None = None
        self._opened_sent_s: float | None = 0.0
        self._renewals: list[float] = []
        self._events: deque[hm.Event] = deque()
        self.changing: Counter[Any] = Counter()
        """Names and inodes that requests under way will change: not kept."""
        self._unheard: list[Any] = []
        self._numbers = itertools.count(1)
        self._calls: dict[int, tuple[Promise, Callable[..., None] | None]] = {}
        self._begun: dict[int, Promise] = {}
        self._opening = Promise()
        self._declared: dict[int, Promise] = {}
        """Passthrough that waits for the MRC's answer."""
        self._osds: dict[str, OsdLine] = {}
        self._held_back: list[Callable[[], None]] = []
        self._directory_lock = 0
        self._directory_waits: list[Callable[[], None]] = []
        self._connect()
        self._tick()

    # ------------------------------------------------------------------------------------------------- the daemon's inputs

    def daemon(self, call: Callable[[], None]) -> None:
        """Let the daemon do something, when it is not frozen."""
        if self.daemon_frozen:
            self._held_back.append(call)
        else:
            call()

    def freeze_daemon(self, for_s: float) -> None:
        """Stop the daemon alone: the kernel goes on."""
        if self.daemon_frozen or not self.alive:
            return
        self.daemon_frozen = True
        life = self.life
        self.sim.after(for_s, lambda: self._thaw_daemon() if life == self.life else None)

    def _thaw_daemon(self) -> None:
        self.daemon_frozen = False
        calls, self._held_back = self._held_back, []
        for call in calls:
            self.daemon(call)

    def crash(self) -> None:
        """Die: what was not written is lost."""
        for ino, file in self.files.items():
            self._lose(ino, file)
        self.daemon_frozen = False
        super().crash()

    def on(self, event: hm.Event) -> None:
        """Feed the holder and carry out what it says; events that this brings about come after it."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for effect in self.holder.on(self._events[0], self.now_s()):
                getattr(self, "_do_" + type(effect).__name__.lower())(effect)
            self._events.popleft()

    def _tick(self) -> None:
        self.daemon(lambda: self.on(hm.Tick()))
        self.later(TICK_S, self._tick)

    def receive(self, link: Link, message: Any) -> None:
        """Take a message."""
        self.daemon(lambda: self._receive(link, message))

    def _receive(self, link: Link, message: Any) -> None:
        if isinstance(link.ends[1], SimOsd):
            self._osds[link.ends[1].name].answer(link, message)
        elif link is self.session:
            getattr(self, "_on_" + message[0])(*message[1:])

    def broken(self, link: Link) -> None:
        """A connection is gone."""
        self.daemon(lambda: self._broken(link))

    def _broken(self, link: Link) -> None:
        if isinstance(link.ends[1], SimOsd):
            self._osds[link.ends[1].name].broken(link)
        elif link is self.session:
            self.session = None
            self._fail_calls()
            self.on(hm.Cut())
            self._connect()

    def _fail_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for promise, _take in calls.values():
            promise.keep(None)

    def _connect(self) -> None:
        def connect() -> None:
            if self.session is None:
                self.session = self.net.connect(self, self.mrc)
                if self.session is None:
                    self._connect()
                else:
                    self.on(hm.Connected())

        self.later(CONNECT_S, lambda: self.daemon(connect))

    def call(self, kind: str, *arguments: Any, take: Callable[..., None] | None = None) -> Promise:
        """Ask the MRC; `take` gets the answer at once when it arrives. None if the connection broke first (then nobody knows)."""
        promise = Promise()
        if self.session is None or self._opened_sent_s is not None:
            self.later(0.05, promise.keep)
            return promise
        number = next(self._numbers)
        self._calls[number] = (promise, take)
        self.session.send(self, ("req", number, kind, *arguments))
        if kind in {"lookup", "dirattr"}:
            self._watch(self.session, promise)
        return promise

    def _watch(self, session: Link, promise: Promise) -> None:
        def look() -> None:
            if not promise.done and self.session is session:
                session.cut()
                self._broken(session)

        self.later(SILENCE_S, lambda: self.daemon(look))

    # --------------------------------------------------------------------------------------------------- the MRC's messages

    def _on_opened(self, lost: tuple[int, ...], lost_locks: tuple[LockRow, ...]) -> None:
        for row in lost_locks:
            self.locks.pop(row.owner, None)
        sent_s, self._opened_sent_s = self._opened_sent_s, None
        assert sent_s is not None
        self._renewals.clear()
        self._opening.keep()
        self._changed(*self._unheard)
        self._unheard = []
        self.on(hm.Opened(sent_s, lost))
        for ino in list(self._declared):
            self._declared.pop(ino).keep(ino not in lost)

    def _on_renewed(self) -> None:
        self.on(hm.RenewAnswered(self.renewal_counts_from(self._renewals.pop(0))))

    def renewal_counts_from(self, sent_s: float) -> float:
        """From when a renewal's lease counts: from its sending."""
        return sent_s

    def _on_nosession(self) -> None:
        self._opened_sent_s = 0.0
        self._fail_calls()
        self.on(hm.SessionOver())

    def _on_recall(self, recall: tm.SendRecall) -> None:
        self.on(hm.Recalled(recall.seq, recall.ino, recall.level, recall.names))

    def _on_released(self, inos: tuple[int, ...]) -> None:
        for ino in inos:
            self.on(hm.Released(ino))
            if ino in self._declared:
                self._declared.pop(ino).keep(True)

    def _on_reply(self, number: int, status: str, *answer: Any) -> None:
        promise, take = self._calls.pop(number)
        if take is not None and status == "ok":
            take(*answer)
        promise.keep((status, *answer))

    # ------------------------------------------------------------------------------------------------- the holder's effects

    def _do_ask(self, effect: hm.Ask) -> None:
        def take(given: Given, attr: tuple[int, int]) -> None:
            self._take(given, attr, asked=True)

        self.call("acquire", effect.ino, effect.level, take=take).then(
            lambda answer: self.on(hm.AskFailed(effect.ino)) if answer is not None and answer[0] != "ok" else None
        )

    def _take(self, given: Given, attr: tuple[int, int] | None, *, asked: bool = False) -> None:
        """An answer says what we hold and how the inode is: keep what may be kept."""
        self.on(hm.Granted(given.ino, given.level, given.epoch, given.shared, asked, given.watched))
        file = self.file(given.ino)
        if attr is not None and given.cache and self.holder.level(given.ino):
            file.attr = self._known(given.ino, attr) if not self.changing[given.ino] else None

    def _do_go(self, effect: hm.Go) -> None:
        self._begun.pop(effect.op).keep(effect)

    def _do_fail(self, effect: hm.Fail) -> None:
        self._begun.pop(effect.op).keep(None)

    def begin(self, ino: int, level: Level) -> tuple[int, Promise]:
        """Begin an operation; the promise brings Go, or None."""
        op = next(self._numbers)
        promise = self._begun[op] = Promise()
        self.daemon(lambda: self.on(hm.Begin(op, ino, level)))
        return op, promise

    def end(self, op: int, *, dirty: bool = False) -> None:
        """End it."""
        self.on(hm.End(op, dirty))

    def _do_flush(self, effect: hm.Flush) -> None:
        self.run(self._flush(effect.ino))

    def _flush(self, ino: int) -> Steps:
        good = yield from self.write_out(ino, sync=self.sync_on_recall)
        self.daemon(lambda: self.on(hm.Flushed(ino, good)))

    def write_out(self, ino: int, *, sync: bool) -> Steps:
        """Write a file's data to its OSD. Returns whether that is certain; if an OSD says so, it is certainly not."""
        file = self.file(ino)
        data, epoch = file.data, self.holder.epoch(ino)
        safe = list(file.unsafe)
        if data is None:
            assert not file.unsafe, "data was dropped before it was written"
            return True
        give_up_s = self.now_s() + FLUSH_S
        while self.now_s() < give_up_s and self.files.get(ino) is file and file.data is not None:
            answer = yield self.osd(ino, "write", epoch, data, give_up_s=give_up_s)
            if answer is None:
                break
            if answer[0] == "stale":
                self.on(hm.Stale(ino, epoch))
                return True
            if sync:
                synced = yield self.osd(ino, "sync", give_up_s=give_up_s)
                if synced is None:
                    break
                if synced[2] != answer[2]:
                    continue  # the power went between: written again
            if file.data is not None:
                file.unsafe = [record for record in file.unsafe if record not in safe]
                if all(record.row.op[2] in {"read", "size"} for record in file.unsafe):  # type: ignore[index]
                    file.unsafe = []
            return True
        return file.data is None

    def osd(
        self, ino: int, kind: str, epoch: int = 0, data: Data = (), *, give_up_s: float = float("inf"), once: bool = False
    ) -> Promise:
        """Ask the OSD of a file, again and again until it answers (not so with `once`); None if that takes too long."""
        osd = self.osd_of(ino)
        line = self._osds.get(osd.name)
        if line is None:
            line = self._osds[osd.name] = OsdLine(self, osd)
        return line.ask((kind, ino, epoch, data), give_up_s, once=once)

    def _do_invalidate(self, effect: hm.Invalidate) -> None:
        """Own copies go at once; the kernel's take a moment."""
        ino = effect.ino
        if ino == DIR:
            self.changes = None
            for name in [name for name in self.names if not effect.level or name.encode() in effect.names]:
                del self.names[name]
        elif effect.level == NONE:
            file = self.file(ino)
            file.data, file.attr = None, None
        keys: list[Any] = [(ino, "attr"), (ino, "data")] if effect.level == NONE or ino == DIR else []
        keys += (
            [("name", name.decode()) for name in effect.names]
            if effect.level
            else [key for key in self.kernel if ino == DIR and key[0] == "name"]
        )

        def kernel_dropped() -> None:
            if self.entries_need_lock and any(key[0] == "name" for key in keys) and self._directory_lock:
                self._directory_waits.append(kernel_dropped)
                return
            for key in keys:
                self.kernel.pop(key, None)
            self.daemon(lambda: self.on(hm.Invalidated(ino)))

        self.later(self.sim.random.choice((0.0, 0.001, 0.05)), lambda: self.do(kernel_dropped))

    def _do_sendrelease(self, effect: hm.SendRelease) -> None:
        assert self.session is not None
        file = self.file(effect.ino)
        size = file.size[1] if effect.epoch and file.size[0] == effect.epoch else -1
        release = tm.Release(self.id, effect.ino, effect.level, effect.seq, effect.pin, effect.through, effect.unsure)
        self.session.send(self, ("release", release, size))

    def _do_sendforget(self, effect: hm.SendForget) -> None:
        assert self.session is not None
        for ino in effect.inos:
            self.files.pop(ino, None)
        self.session.send(self, ("forget", effect.inos))

    def _do_faildirty(self, effect: hm.FailDirty) -> None:
        file = self.file(effect.ino)
        self._lose(effect.ino, file)
        file.data, file.attr, file.failed, file.size = None, None, True, (0, 0)
        self.kernel.pop((effect.ino, "data"), None)
        self.kernel.pop((effect.ino, "attr"), None)

    def _lose(self, ino: int, file: File) -> None:
        for record in file.unsafe:
            if record.row.op[2] in {"read", "size"}:  # type: ignore[index]
                record.dropped = True
            else:
                record.lost_of = (ino, self.id)
        file.unsafe = []

    def _known(self, ino: int, attr: tuple[int, int]) -> tuple[int, int]:
        """What the MRC says, with our own last word."""
        file = self.file(ino)
        epoch = self.holder.word_epoch(ino)
        return (attr[0], file.size[1]) if epoch and file.size[0] == epoch else attr

    def _changes(self, *keys: Any) -> None:
        """Before we ask the MRC to change something: from when it does until we hear of it, others see what our caches do not."""
        if not self.drops_what_it_changes:
            return
        for key in keys:
            self.changing[key] += 1
            if isinstance(key, int):
                self.file(key).attr = None
                self.kernel.pop((key, "attr"), None)
            else:
                self.names.pop(key, None)
                self.kernel.pop(("name", key), None)
        if DIR in keys:
            self.changes = None

    def _changed(self, *keys: Any) -> None:
        if self.drops_what_it_changes:
            self.changing.subtract(keys)

    def lose_what_was_fenced(self, inos: set[int]) -> None:
        """At the end of the world: what will be lost when this client hears of its eviction."""
        for ino in inos & self.files.keys():
            self._lose(ino, self.files[ino])

    def _do_sendrenew(self, _effect: hm.SendRenew) -> None:
        if self.session is None:
            return
        self._renewals.append(self.now_s())
        session, count = self.session, len(self._renewals)
        session.send(self, ("renew",))
        if count > 2:  # two renewals unanswered: the connection is good for nothing
            session.cut()
            self._broken(session)

    def _do_opensession(self, effect: hm.OpenSession) -> None:
        assert self.session is not None
        self._opened_sent_s = self.now_s()
        session = self.session
        session.send(self, ("open", self.id, effect.held, tuple(self.locks.values())))
        opening = Promise()
        self._watch(session, opening)
        self._opening = opening

    def _do_reopen(self, _effect: hm.Reopen) -> None:
        session = self.session

        def again() -> None:
            if session is not None and self.session is session and self._opened_sent_s is not None:
                self.on(hm.Connected())

        self.later(REOPEN_S, lambda: self.daemon(again))

    def _do_suspend(self, _effect: hm.Suspend) -> None:
        self.kernel.clear()

    def _do_resume(self, _effect: hm.Resume) -> None:
        """Nothing: who waits for the holder is told Go."""

    def file(self, ino: int) -> File:
        """What the daemon has of a file."""
        file = self.files.get(ino)
        if file is None:
            file = self.files[ino] = File()
        return file
