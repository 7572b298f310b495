"""A client of a simulated file system: a dull driver of the real `lease.Holder`, with caches of its own and the kernel's before it.

The kernel's caches answer without asking the daemon, also while it is frozen, until the timeouts that it was told. Programs run as
generators; each of their operations becomes a row of the history. What they wrote and was lost unsynced is marked so.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from xtreemos.testing.linearize import UNKNOWN, Row
from xtreemos.testing.simfs_net import Link, Machine, Net, Promise
from xtreemos.testing.simfs_servers import DIR, NONE, READ, TICK_S, WRITE, Data, SimMrc, SimOsd
from xtreemos.xtreemfs.lease import holder_model as hm
from xtreemos.xtreemfs.lease import table_model as tm
from xtreemos.xtreemfs.lease.holder import Holder
from xtreemos.xtreemfs.lease.model import REOPEN_S, Given
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Level
from xtreemos.xtreemfs.protocol import LockRow

Steps = Generator[Promise, Any, Any]
CONNECT_S = 0.2
SILENCE_S = 5.0
"""A request that is not answered for so long breaks its connection."""
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


class SimClient(Machine):
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
        self.on(hm.Granted(given.ino, given.level, given.epoch, given.shared, asked))
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

    # ------------------------------------------------------------------------------------------------- programs' operations

    def record(self, *op: Any) -> Record:
        """Begin a row of the history."""
        record = Record(Row(self.id, op, self.sim.now_s, None))
        self.history.append(record)
        return record

    def returned(self, record: Record, result: Any) -> None:
        """The program has its answer."""
        record.row = replace(record.row, returned_at=self.sim.now_s, result=result)

    def shown(self, key: Any) -> Any:
        """What the kernel answers by itself; UNKNOWN if it must ask."""
        cached = self.kernel.get(key)
        return cached.value if cached is not None and self.now_s() < cached.until_s else UNKNOWN

    def show(self, key: Any, value: Any) -> None:
        """Let the kernel answer this by itself, for as long as the session stands."""
        self.kernel[key] = Cached(value, self.now_s() + self.holder.valid_s(self.now_s()))

    def _saw(self, ino: int, record: Record, result: Any) -> None:
        self.returned(record, result)
        file = self.file(ino)
        if file.unsafe:
            file.unsafe.append(record)

    def read(self, ino: int) -> Steps:
        """Read a whole file."""
        record = self.record("file", ino, "read", None)
        data = self.shown((ino, "data"))
        if data is not UNKNOWN:
            self._saw(ino, record, data)
            return
        op, begun = self.begin(ino, READ)
        go = yield begun
        if go is None:
            record.dropped = True
            return
        file = self.file(ino)
        data = file.data
        if data is None or go.direct or file.direct:
            answer = yield self.osd(ino, "read")
            data = answer[1]
        if not (go.direct or file.direct) and self.holder.generation(ino) == go.generation:
            data = file.data = data if file.data is None else file.data
            self.show((ino, "data"), data)
        self._saw(ino, record, data)
        self.end(op)

    def write(self, ino: int, kind: str, value: str) -> Steps:
        """Replace a file's data ("write"), or add to it ("append")."""
        record = self.record("file", ino, kind, value)
        op, begun = self.begin(ino, WRITE)
        go = yield begun
        file = self.file(ino)
        if go is None:
            record.dropped = True  # certainly not done
        elif go.direct or file.direct:
            yield from self._write_through(record, go, value)
            self.end(op)
        else:
            before = file.data
            if kind == "append" and before is None:
                answer = yield self.osd(ino, "read")
                before = answer[1] if file.data is None else file.data
            if self.holder.generation(ino) != go.generation:
                record.dropped = True  # the lease was lost while we looked: nothing was done
                self.end(op)
                return
            file.data = (*(before or ()), value) if kind == "append" else (value,)
            file.size = (self.holder.epoch(ino), len(file.data))
            file.attr = file.attr and (file.attr[0], len(file.data))
            self.show((ino, "data"), file.data)
            self.kernel.pop((ino, "attr"), None)
            self.returned(record, None)
            file.unsafe.append(record)
            self.end(op, dirty=True)

    def _write_through(self, record: Record, go: hm.Go, value: str) -> Steps:
        ino = record.row.op[1]  # type: ignore[index]
        answer = yield self.osd(ino, "write", go.epoch, (value,), give_up_s=self.now_s() + FLUSH_S, once=True)
        if answer is not None and answer[0] == "ok":
            if self.holder.level(ino) == WRITE and self.holder.epoch(ino) == go.epoch:
                self.file(ino).size = (go.epoch, 1)
            self.file(ino).attr = None
            self.returned(record, None)
            return
        record.lost_of = (ino, self.id)  # it may have been done by an earlier try, before we were fenced
        self.on(hm.GaveUp(ino) if answer is None else hm.Stale(ino, go.epoch))

    def fsync(self, ino: int) -> Steps:
        """Make a file durable. Afterwards nothing of it may be lost, unless it was told."""
        file = self.file(ino)
        if file.unsafe and not file.failed:
            op, begun = self.begin(ino, WRITE)
            go = yield begun
            if go is not None:
                good = yield from self.write_out(ino, sync=True)
                if not good:
                    self.on(hm.GaveUp(ino))
                elif not file.unsafe:
                    self.on(hm.Cleaned(ino))
                self.end(op)
        file.failed = False

    def stat(self, ino: int) -> Steps:
        """Look at mode and size: two rows, for without a lease they come from two places."""
        mode, size = self.record("file", ino, "mode", None), self.record("file", ino, "size", None)
        attr = self.shown((ino, "attr"))
        if attr is UNKNOWN and self.holder.can(ino, READ, self.now_s()) and not self.daemon_frozen:
            attr = self._attr(ino)
        result: list[Any] = [attr]

        def take(given: Given, attr: tuple[int, int]) -> None:
            self._take(given, attr)
            known = self._known(ino, attr)
            result[0] = (known[0], None) if given.shared or self.file(ino).direct else known
            if given.cache and self.holder.level(ino) and not self.file(ino).direct and not self.changing[ino]:
                self.show((ino, "attr"), known)

        while result[0] is UNKNOWN:
            answer = yield self.call("getattr", ino, take=take)
            if answer is None or answer[0] != "ok":
                yield self.sleep(0.1)
        self.returned(mode, result[0][0])
        length = result[0][1]
        if length is None:
            answer = yield self.osd(ino, "read")
            length = len(answer[1])
        self._saw(ino, size, length)

    def _known(self, ino: int, attr: tuple[int, int]) -> tuple[int, int]:
        """What the MRC says, with our own last word."""
        file = self.file(ino)
        epoch = self.holder.word_epoch(ino)
        return (attr[0], file.size[1]) if epoch and file.size[0] == epoch else attr

    def _attr(self, ino: int) -> Any:
        file = self.file(ino)
        if file.attr is None or file.direct:
            return UNKNOWN
        return self._known(ino, file.attr)

    def chmod(self, ino: int, new_mode: int) -> Steps:
        """Change a file's mode."""
        record = self.record("file", ino, "chmod", new_mode)

        def take(given: Given, attr: tuple[int, int]) -> None:
            self._changed(ino)
            self._take(given, attr)

        self._changes(ino)
        answer = yield self.call("chmod", ino, new_mode, take=take)
        self._done(record, answer, None, ino)

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

    def _done(self, record: Record, answer: Any, result: Any, *keys: Any) -> None:
        if answer is None:  # nobody knows: it stays open for ever. Until the session is open again the MRC may still do it
            self._unheard += keys
        elif answer[0] == "ok":
            self.returned(record, result)
        else:
            self._changed(*keys)
            record.dropped = True

    def lookup(self, name: str) -> Steps:
        """Look a name up."""
        record = self.record("dir", DIR, "lookup", name)
        ino = self.shown(("name", name))
        if ino is UNKNOWN and self.holder.can(DIR, READ, self.now_s()) and not self.daemon_frozen:
            ino = self.names.get(name, UNKNOWN)
        result: list[Any] = [ino]

        def take(given: Given, found: int | None, named: bool) -> None:  # a message's field
            self._take(given, None)
            result[0] = found
            self._keep_name(name, found, named=named)

        self._directory_lock += 1
        while result[0] is UNKNOWN:
            answer = yield self.call("lookup", name, take=take)
            if answer is None or answer[0] != "ok":
                yield self.sleep(0.1)
        self._unlock_directory()
        self.returned(record, result[0])

    def _keep_name(self, name: str, ino: int | None, *, named: bool) -> None:
        self.names.pop(name, None)
        self.kernel.pop(("name", name), None)
        if named and not self.changing[name] and self.holder.level(DIR):
            self.names[name] = ino
            self.show(("name", name), ino)

    def _unlock_directory(self) -> None:
        self._directory_lock -= 1
        if not self._directory_lock:
            waits, self._directory_waits = self._directory_waits, []
            for call in waits:
                call()

    def look_at_directory(self) -> Steps:
        """Look at the directory's own attributes."""
        record = self.record("dir", DIR, "changes", None)
        changes = self.shown((DIR, "attr"))
        if changes is UNKNOWN and self.changes is not None and self.holder.can(DIR, READ, self.now_s()) and not self.daemon_frozen:
            changes = self.changes
        result: list[Any] = [changes]

        def take(given: Given, found: int) -> None:
            self._take(given, None)
            result[0] = found
            self._keep_changes(given, found)

        while result[0] is UNKNOWN:
            answer = yield self.call("dirattr", take=take)
            if answer is None or answer[0] != "ok":
                yield self.sleep(0.1)
        self.returned(record, result[0])

    def _keep_changes(self, given: Given, changes: int) -> None:
        self.changes = None
        self.kernel.pop((DIR, "attr"), None)
        if given.cache and self.holder.level(DIR) and not self.changing[DIR]:
            self.changes = changes
            self.show((DIR, "attr"), changes)

    def change_names(self, kind: str, *arguments: Any) -> Steps:
        """Create (a name, the new file's number), unlink (a name) or rename (two names)."""
        record = self.record("dir", DIR, kind, arguments)
        names: tuple[str, ...] = arguments[:1] if kind == "create" else arguments
        result: list[Any] = [None]

        def take(given: Given, ino: Any, changes: int, free: tuple[bool, ...], *more: Given) -> None:
            self._changed(DIR, *names)
            self._take(given, None)
            for new in more:
                self._take(new, (0, 0))
            result[0] = ino
            self._keep_changes(given, changes)
            if isinstance(ino, int):
                after = {"create": (ino,), "unlink": (None,), "rename": (None, ino) if names[0] != names[-1] else (ino, ino)}[kind]
                for name, now, named in zip(names, after, free, strict=True):
                    self._keep_name(name, now, named=named)

        self._changes(DIR, *names)
        self._directory_lock += 1
        answer = yield self.call(kind, *arguments, take=take)
        self._unlock_directory()
        self._done(record, answer, result[0], DIR, *names)

    def with_lock(self, ino: int, owner: int, hold_s: float, check: Callable[[int], None]) -> Steps:
        """Take a write lock, hold it for a while, give it back."""
        row = LockRow(ino, "p", owner, 0, FILE_BYTES_MAX, True, 1)

        def take() -> None:
            self.locks[owner] = row
            check(ino)

        answer = yield self.call("lock", row, take=take)
        if answer is not None and answer[0] == "ok":
            yield self.sleep(hold_s)
            self.locks.pop(owner, None)
            while (yield self.call("unlock", row)) is None:
                yield self.sleep(0.1)

    def has_lock(self, ino: int) -> list[int]:
        """Owners here who rightly believe that they have a lock of the file now."""
        if not self.alive or not self.holder.valid_s(self.now_s()):
            return []
        return [owner for owner, row in self.locks.items() if row.ino == ino]

    def use_directly(self, ino: int, level: Level, values: list[str]) -> Steps:
        """Let the kernel have the OSD's very file for a while (passthrough)."""
        op, begun = self.begin(ino, level)
        go = yield begun
        if go is None:
            return
        file, osd = self.file(ino), self.osd_of(ino)
        good = (yield from self.write_out(ino, sync=False)) if file.unsafe else True
        if not good or file.unsafe or file.claimed or self.holder.generation(ino) != go.generation:
            self.end(op)
            return
        file.claimed = True
        self.on(hm.Cleaned(ino))
        promise = self._declared[ino] = Promise()
        self.on(hm.Through(ino, level))
        agreed = yield promise
        file.direct = True
        if file.unsafe:  # written while we waited
            agreed = agreed and (yield from self.write_out(ino, sync=False)) and not file.unsafe
            self.on(hm.Cleaned(ino) if agreed else hm.GaveUp(ino))
        file.data, file.attr = None, None
        self.kernel.pop((ino, "data"), None)
        self.kernel.pop((ino, "attr"), None)
        self.end(op)
        for value in values if agreed else []:
            yield self.sleep(self.sim.random.uniform(0.05, 1.5))
            record = self.record("file", ino, "write" if level == WRITE else "read", value if level == WRITE else None)
            if level == WRITE:
                osd.data[ino] = (value,)
            self.returned(record, None if level == WRITE else osd.data.get(ino, ()))
        epoch = self.holder.epoch(ino)
        answer = yield self.osd(ino, "read")  # nobody else writes while we have WRITE; if we do not, nobody believes us
        file.claimed, file.direct, file.attr, file.size = False, False, None, (epoch, len(answer[1]))
        self.on(hm.Through(ino, NONE))


class OsdLine:
    """The way to one OSD: requests in order, sent again on a new connection until they are answered."""

    def __init__(self, client: SimClient, osd: SimOsd) -> None:
        self.client, self.osd = client, osd
        self.link: Link | None = None
        self.waiting: dict[int, tuple[Any, float, Promise]] = {}
        self._once: set[int] = set()
        """Sent, and not to be sent again."""

    def ask(self, request: Any, give_up_s: float, *, once: bool) -> Promise:
        """Send a request."""
        number = next(self.client._numbers)  # noqa: SLF001  # a part of the client
        promise = Promise()
        self.waiting[number] = (request, give_up_s, promise)
        if once:
            self._once.add(number)
        if self.link is None:
            self._connect()
        else:
            self.link.send(self.client, ("req", number, *request))
        self._watch(number)
        return promise

    def answer(self, link: Link, message: Any) -> None:
        """An answer has come."""
        if link is self.link and message[1] in self.waiting:
            self.waiting.pop(message[1])[2].keep(message[2:])

    def broken(self, link: Link) -> None:
        """The connection is gone: what was not answered is sent again."""
        if link is self.link:
            self.link = None
            for number in self._once & self.waiting.keys():
                self.waiting.pop(number)[2].keep(None)
            self._connect()

    def _connect(self) -> None:
        self.link = self.client.net.connect(self.client, self.osd)
        if self.link is None:
            self.client.later(CONNECT_S, lambda: self.client.daemon(lambda: self._connect() if self.link is None else None))
            return
        self.link.send(self.client, ("hello", self.client.id))
        for number, (request, _give_up_s, _promise) in self.waiting.items():
            self.link.send(self.client, ("req", number, *request))

    def _watch(self, number: int) -> None:
        def look() -> None:
            if number not in self.waiting:
                return
            if self.client.now_s() >= self.waiting[number][1]:
                self.waiting.pop(number)[2].keep(None)
                return
            if self.link is not None:
                link = self.link
                link.cut()
                self.broken(link)
            self._watch(number)

        self.client.later(SILENCE_S, lambda: self.client.daemon(look))
