"""Programs on a client of a simulated file system, as generators; each of their operations becomes a row of the history.

What they wrote and was lost unsynced is marked so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xtreemos.testing.linearize import UNKNOWN, Row
from xtreemos.testing.simfs_daemon import FLUSH_S, Cached, Record, SimDaemon, Steps
from xtreemos.testing.simfs_net import Promise
from xtreemos.testing.simfs_servers import DIR, NONE, READ, WRITE
from xtreemos.xtreemfs.lease import holder_model as hm
from xtreemos.xtreemfs.lease.model import Given
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Level
from xtreemos.xtreemfs.protocol import LockRow

__all__ = ["Record", "SimClient", "Steps"]


class SimClient(SimDaemon):
    """A client's operations, as a program would ask the kernel for them."""

    writes_through_if_watched = True

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
        elif go.direct or file.direct or (self.writes_through_if_watched and self.holder.writes_through(ino)):
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
        self._forget_data(ino)
        answer = yield self.osd(ino, "write", go.epoch, (value,), give_up_s=self.now_s() + FLUSH_S, once=True)
        if answer is not None and answer[0] == "ok":
            if self.holder.level(ino) == WRITE and self.holder.epoch(ino) == go.epoch:
                self.file(ino).size = (go.epoch, 1)
            self._forget_data(ino)
            self.returned(record, None)
            return
        record.lost_of = (ino, self.id)  # it may have been done by an earlier try, before we were fenced
        self.on(hm.GaveUp(ino) if answer is None else hm.Stale(ino, go.epoch))

    def _forget_data(self, ino: int) -> None:
        """What is written goes to the OSD past what was kept here."""
        file = self.file(ino)
        file.data, file.attr = None, None
        self.kernel.pop((ino, "data"), None)
        self.kernel.pop((ino, "attr"), None)

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
