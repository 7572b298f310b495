"""Tasks of one array that share a container: their line to its init, their streams, their journal. The container itself is a `Job`.

Init (`native/init.c --serve`) starts a task for each order and tells of its life on the same socket, one packet a word. To whom
asks jobd a task is a job like any other: it is listed, watched, signalled and forgotten by its own name. Differences: its output
goes to files only, it cannot be attached to, and its record goes into a journal of the container, where the records of tasks that
end together share one fsync. If the container dies, so do its tasks: they end by signal 9.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xtreemos.errors import XosError
from xtreemos.foundation.jobd.loop import READ, Loop
from xtreemos.foundation.jobd.machine import (
    Announce,
    Arm,
    ContainerEnded,
    Effects,
    Event,
    JobMachine,
    OutputLost,
    Persist,
    SignalTree,
    Started,
)
from xtreemos.foundation.jobd.model import (
    BadRequest,
    SaidStarted,
    StartFailed,
    State,
    TaskRequest,
    parse_init_line,
)
from xtreemos.foundation.jobd.pump import Reader
from xtreemos.foundation.jobd.spool import SpoolStream

JOURNAL = "tasks.log"
PACKET_BYTES_MAX = 65_000
RECEIVE_BYTES = 512
PACKETS_PER_TURN = 256
WRITE_RETRY_S = 1.0
SIGKILL = 9
OUTPUTS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Noted:
    """What a journal says of one task. `record` None: it was started, its end was not seen."""

    job: str
    meta: Any
    started_at: float
    record: dict[str, Any] | None


class Journal:
    """The journal of one container: lines of JSON. Ends that come together are made durable by one fsync."""

    def __init__(self, path: Path, loop: Loop) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._loop = loop
        self._waiting: list[tuple[bytes, Callable[[], None]]] = []

    def note(self, **line: Any) -> None:
        """Add a line that need not be durable. Raises OSError."""
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def settle(self, job: str, record: dict[str, Any], then: Callable[[], None]) -> None:
        """Add the end of a task; `then` is called when it is on the disk."""
        self._waiting.append((json.dumps({"job": job, "exit": record}).encode() + b"\n", then))
        if len(self._waiting) == 1:
            self._loop.call_later(0, self._write)

    def _write(self) -> None:
        try:
            # a line cut short by an earlier failure must not swallow the next one
            os.write(self._fd, b"\n" + b"".join(line for line, _ in self._waiting))
            os.fsync(self._fd)
        except OSError as error:  # a full disk: nobody may hear of the ends before they are safe, so they wait
            print(f"jobd: ends of tasks are not written yet: {error}", flush=True)
            self._loop.call_later(WRITE_RETRY_S, self._write)
            return
        done, self._waiting = self._waiting, []
        for _, then in done:
            then()

    def close(self) -> None:
        """Close the file; who still notes something gets an OSError."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def read_journal(path: Path) -> Iterator[Noted]:
    """Yield what a journal says of each task that was not forgotten; lines that are not whole say nothing."""
    found: dict[str, Noted] = {}
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            said = json.loads(line) if line else {}
        except ValueError:
            continue
        job = said.get("job", "")
        if "forget" in said:
            found.pop(said["forget"], None)
        elif "exit" in said and job in found:
            found[job] = Noted(job, found[job].meta, found[job].started_at, said["exit"])
        elif "meta" in said:
            found[job] = Noted(job, said["meta"], float(said["at"]), None)
    yield from found.values()


class Tasks:
    """The tasks of one container, and the socket to its init. `add` and `signal` send orders; init's words go to the tasks."""

    def __init__(self, loop: Loop, folder: Path, name: str) -> None:
        """Make the socket; its end `inner` is for the container's init, and the caller's to close. Raises OSError."""
        self.name = name
        self.loop = loop
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inner = theirs.detach()
        self._socket = ours
        self._socket.setblocking(False)
        self.journal = Journal(folder / JOURNAL, loop)
        self._running: dict[int, Task] = {}
        self._count = 0
        self._open = True

    def listen(self) -> None:
        """Hear init from now on."""
        self.loop.register(self._socket.fileno(), READ, self._on_packets)

    def send(self, order: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send an order. Raises StartFailed: certainly not sent."""
        try:
            socket.send_fds(self._socket, [order], fds)
        except OSError as cause:
            raise StartFailed(f"the container of {self.name} takes no task: {cause.strerror}") from cause

    def number(self, task: Task) -> int:
        """Give a task its number in this container."""
        self._count += 1
        self._running[self._count] = task
        return self._count

    def drop(self, number: int) -> None:
        """A task is over, or was never started."""
        self._running.pop(number, None)

    def _on_packets(self, _events: int) -> None:
        for _ in range(PACKETS_PER_TURN):
            try:
                packet = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.loop.unregister(self._socket.fileno())  # init is gone; that of the container's process is told next
                return
            number, _, line = packet.rstrip(b"\n").partition(b" ")
            task = self._running.get(int(number)) if number.isdigit() else None
            if task is not None:
                task.on_said(line)

    def ended(self) -> None:
        """The container is gone: hear its last words, then end what they do not speak of."""
        self._on_packets(READ)
        for task in list(self._running.values()):
            task.on_said(b"signal %d 0 0 0 0" % SIGKILL)
            task.on_said(b"gone")
        self.close()

    def close(self) -> None:
        """Close the socket: init ends, and with it every task that still runs."""
        if self._open:
            self._open = False
            self.loop.unregister(self._socket.fileno())
            self._socket.close()

    def release(self) -> None:
        """Let go of everything; the container has ended."""
        self.close()
        self.journal.close()


class Task:
    """A task from its start to `forget`; to the driver what `Job` is. `announce(task)` is called at every change of state."""

    def __init__(self, tasks: Tasks, request: TaskRequest, announce: Callable[[Task], None]) -> None:
        self.request = request
        self.machine = JobMachine(request.wall_s, time.time())
        self._tasks = tasks
        self._announce = announce
        self._number = 0
        self._settled = False
        self._readers: list[Reader] = []
        self._when_started: Callable[[XosError | None], None] | None = None

    def start(self, done: Callable[[XosError | None], None]) -> None:
        """Order it; `done(None)` once it runs, `done(error)` when certainly nothing of it does."""
        inner: list[int] = []
        try:
            self._tasks.journal.note(job=self.request.job, meta=self.request.meta, at=time.time())
            for name in OUTPUTS:
                inner.append(self._open_output(name))  # noqa: PERF401  # what was opened before a failure must be closed
            self._number = self._tasks.number(self)
            self._tasks.send(self._order(), tuple(inner))  # last: an error above means that it certainly does not run
        except (OSError, XosError) as cause:
            self._tasks.drop(self._number)
            self._release()
            done(cause if isinstance(cause, XosError) else StartFailed(f"task {self.request.job}: {cause}"))
            return
        finally:
            for fd in inner:
                os.close(fd)
        self._when_started = done

    def _open_output(self, name: str) -> int:
        """Open one output file and the pipe into it; return the task's end."""
        stream = SpoolStream(Path(self.request.spool_dir) / name, self.request.spool_bytes_max)
        outer, inner = os.pipe2(os.O_CLOEXEC)
        self._readers.append(Reader(self._tasks.loop, outer, stream, lambda: None))
        return inner

    def _order(self) -> bytes:
        words = [b"run %d" % self._number, *(os.fsencode(f"{name}={value}") for name, value in self.request.env)]
        order = b"\0".join(words) + b"\0"
        if len(order) > PACKET_BYTES_MAX:
            raise BadRequest(f"the environment of task {self.request.job} is too large")
        return order

    def on_said(self, line: bytes) -> None:
        """Take a word of init."""
        if line == b"gone":
            self._on_gone()
            return
        said = parse_init_line(line)
        if said is None:
            return
        done, self._when_started = self._when_started, None
        if done:
            self._apply(Started())
            done(None)
        if not isinstance(said, SaidStarted):
            self._apply(said)

    @property
    def ended(self) -> bool:
        """It has ended, and its record is on the disk."""
        return self._settled

    def _on_gone(self) -> None:
        self._tasks.drop(self._number)
        for reader in self._readers:
            reader.force_end()  # whoever hears of the end finds the files whole
            if isinstance(reader.stream, SpoolStream) and reader.stream.failure:
                self._apply(OutputLost(reader.stream.failure))
        self._apply(ContainerEnded(SIGKILL, 0))

    def _apply(self, event: Event) -> None:
        self._carry_out(self.machine.on(event, time.time()))

    def _carry_out(self, effects: Effects) -> None:
        for done, effect in enumerate(effects):
            match effect:
                case Announce():
                    self._announce(self)
                case Persist(record):
                    self._tasks.journal.settle(self.request.job, record.to_wire(), partial(self._on_settled, effects[done + 1 :]))
                    return
                case SignalTree(number):
                    self.signal(number)
                case Arm(after_s, later):
                    self._tasks.loop.call_later(after_s, partial(self._apply, later))

    def _on_settled(self, rest: Effects) -> None:
        self._settled = True
        self._carry_out(rest)

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the task; one that is gone does not mind."""
        try:
            self._tasks.send(b"signal %d %d" % (self._number, number))
        except StartFailed:
            return  # its container is gone, which ends it

    def describe(self) -> dict[str, Any]:
        """Return the row of `list` and `watch`."""
        settled = self.machine.exit if self._settled else None
        unsettled = self.machine.state is State.EXITED and not settled  # nobody may hear of an end that is not on the disk
        return {
            "job": self.request.job,
            "state": str(State.RUNNING if unsettled else self.machine.state),
            "signal": self.machine.stop_signal,
            "pid": None,
            "stdio": "spool",
            "started_at": self.machine.started_at,
            "attached": False,
            "exit": settled.to_wire() if settled else None,
            "meta": self.request.meta,
        }

    def forget(self) -> None:
        """Let go of it; it has ended."""
        self._release()
        try:
            self._tasks.journal.note(forget=self.request.job)
        except OSError:
            return  # a full disk, or its container was forgotten before: it may be told of again, and is forgotten again

    def _release(self) -> None:
        for reader in self._readers:
            reader.end()
            if isinstance(reader.stream, SpoolStream):
                reader.stream.release()
        self._readers = []
