"""One job of jobd: carries out what its machine decides, and owns its descriptors, its container and its one attachment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal as signals
import struct
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from xtreemos.errors import XosError
from xtreemos.foundation.cgroups import Cgroups, Group
from xtreemos.foundation.frames import CHUNK_BYTES, WINDOW_BYTES, BadFrame, Frame, Kind
from xtreemos.foundation.jobd.container import Console, Runtime, complaint, job_folder, read_pid
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
    StartRefused,
)
from xtreemos.foundation.jobd.model import (
    FIFO_NAME,
    STDERR,
    STDIN,
    STDOUT,
    BadRequest,
    Busy,
    SaidStarted,
    StartFailed,
    StartRequest,
    State,
    Stdio,
    TakenOver,
    parse_init_line,
    window_size,
)
from xtreemos.foundation.jobd.pump import Attachment, Reader, Writer
from xtreemos.foundation.jobd.spool import SpoolStream
from xtreemos.foundation.jobd.streams import OutStream
from xtreemos.foundation.jobd.task import Tasks

START_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 1.0
REMOVE_RETRY_S = 0.05
PERSIST_RETRY_S = 1.0
BURY_DELAY_S = 2.0
SIGNAL_ROUNDS = 8
ACK_BYTES = WINDOW_BYTES // 8
ACK_DELAY_S = 0.05  # an answer to each keystroke costs as much as its echo: told when much was taken, at the end, or after this


def persist(folder: Path, name: str, value: Any) -> None:
    """Write JSON so that it survives a power cut once this returns.

    One fsync, after the rename: it forces the journal (log, log tree) in which the rename stands as well. A file cut short by a
    loss of power before it reads as no file (`read_record`); nobody was told of it yet.
    """
    fresh = folder / f".{name}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode())
        os.rename(fresh, folder / name)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the job's exit record; None if there is none that is whole."""
    try:
        record = json.loads((folder / "exit.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


class Job:
    """A job from its `start` to `forget`. `announce(job)` is called at every change of state."""

    def __init__(
        self, loop: Loop, runtime: Runtime, cgroups: Cgroups, request: StartRequest, announce: Callable[[Job], None]
    ) -> None:
        self.request = request
        self.folder = job_folder(request)
        self.machine = JobMachine(request.wall_s, time.time())
        self.pid: int | None = None
        self._loop = loop
        self._runtime = runtime
        self._cgroups = cgroups
        self._announce = announce
        self._group: Group | None = None
        self._fifo = -1
        self._line = b""
        self._readers: dict[int, Reader] = {}
        self._writer: Writer | None = None
        self._terminal = -1
        self._when_started: Callable[[XosError | None], None] | None = None
        self._settled = False  # the exit record is on disk
        self._attachment: Attachment | None = None
        self._ack_waits = False
        self.tasks: Tasks | None = None
        self._signals = 0  # number of the last signal taken from an attachment that numbers them

    # --- start -------------------------------------------------------------------------------------------------------------

    def start(self, given_fds: list[int], done: Callable[[XosError | None], None]) -> None:
        """Start the container; `done(None)` once it runs, `done(error)` when nothing of it does. Takes `given_fds` over."""
        console: Console | None = None
        inner = list(given_fds)
        outer: list[int] = []
        try:
            self._group = self._cgroups.create(self.request.job, self.request.limits)
            (self.folder / "jobd.json").write_text(json.dumps({"job": self.request.job, "meta": self.request.meta}))
            self._fifo = os.open(self.folder / "fifo" / FIFO_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if self.request.stdio is Stdio.PTY:
                console = Console(self._runtime.state_dir.parent / f"console-{os.getpid()}-{id(self):x}")
            if self.request.stdio is Stdio.TASKS:
                self.tasks = Tasks(self._loop, self.folder, self.request.job)
                inner = [self.tasks.inner]
            inner, outer = _plumbing(self.request, inner)
            argv = self._runtime.argv(self.request, join=self._group.join_folders, console=console.path if console else None)
            child = self._runtime.spawn(argv, inner)
        except (OSError, XosError) as cause:
            error = cause if isinstance(cause, XosError) else StartFailed(f"job {self.request.job}: {cause}")
            self._abort(outer, console)
            done(error)
            return
        finally:
            for fd in inner:
                os.close(fd)
        self._loop.call_later(START_TIMEOUT_S, lambda: self._give_up_start(child))
        self._loop.on_child(child, lambda status: self._on_runtime_ended(status, outer, console, done))

    def _give_up_start(self, child: int) -> None:
        if self.machine.state is State.STARTING:
            os.kill(child, signals.SIGKILL)

    def _abort(self, outer: list[int], console: Console | None) -> None:
        self._apply(StartRefused())
        for fd in outer:
            os.close(fd)
        if self.tasks:
            self.tasks.release()
        if console:
            console.close()
        if self._group:
            self._cgroups.kill(self._group)
        self._bury()
        (self.folder / "jobd.json").unlink(missing_ok=True)

    def _on_runtime_ended(
        self, status: int, outer: list[int], console: Console | None, done: Callable[[XosError | None], None]
    ) -> None:
        try:
            if status:
                raise StartFailed(f"the container of {self.request.job} did not start: {complaint(self.folder)}")
            self.pid = read_pid(self.folder)
            if console:
                outer = [console.receive(), *outer]
                console.close()
        except (OSError, ValueError, StartFailed) as cause:
            self._abort(outer, console)
            done(cause if isinstance(cause, XosError) else StartFailed(f"job {self.request.job}: {cause}"))
            return
        self._connect(outer)
        if self.tasks:
            self.tasks.listen()
        self._when_started = done
        self._loop.register(self._fifo, READ, self._on_fifo)
        self._loop.on_child(self.pid, self._on_container_ended)

    def _begin(self) -> None:
        """Init has forked the job and spoken (or died): only now would a signal find the job, so only now `start` is answered."""
        done, self._when_started = self._when_started, None
        if done:
            self._apply(Started())
            done(None)

    def _connect(self, outer: list[int]) -> None:
        if self.request.stdio is Stdio.PTY:
            self._terminal = outer[0]
            self._set_size(self.request.rows, self.request.cols)
            self._writer = self._make_writer(os.dup(self._terminal), terminal=True)
            self._readers = {STDOUT: self._make_reader(os.dup(self._terminal), OutStream())}
            if len(outer) > 1:
                self._readers[STDERR] = self._make_reader(outer[1], OutStream())
        elif self.request.stdio is Stdio.PIPES:
            self._writer = self._make_writer(outer[0], terminal=False)
            self._readers = {number: self._make_reader(outer[number], OutStream()) for number in range(1, len(outer))}
        elif self.request.stdio is Stdio.SPOOL:
            spool = Path(self.request.spool_dir or "")
            os.close(outer[0])
            for number, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
                self._readers[number] = self._make_reader(outer[number], SpoolStream(spool / name, self.request.spool_bytes_max))

    def _make_reader(self, fd: int, stream: OutStream | SpoolStream) -> Reader:
        return Reader(self._loop, fd, stream, self._pump)

    def _make_writer(self, fd: int, *, terminal: bool) -> Writer:
        return Writer(self._loop, fd, terminal=terminal, moved=self._on_input_moved, broken=self._on_input_broken)

    # --- life --------------------------------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        self._carry_out(self.machine.on(event, time.time()))

    def _carry_out(self, effects: Effects) -> None:
        for done, effect in enumerate(effects):
            match effect:
                case Announce():
                    self._announce(self)
                    self._tell_state()
                case Persist(record):
                    try:
                        persist(self.folder, "exit.json", record.to_wire())
                    except OSError as error:  # a full disk: nobody may hear of the end before it is safe, so it waits
                        print(f"jobd: exit of {self.request.job} is not written yet: {error}", file=sys.stderr, flush=True)
                        self._loop.call_later(PERSIST_RETRY_S, partial(self._carry_out, effects[done:]))
                        return
                    self._settled = True
                    self._pump()
                case SignalTree(number):
                    self.signal(number)
                case Arm(after_s, later):
                    self._loop.call_later(after_s, partial(self._apply, later))

    def _on_fifo(self, _events: int) -> None:
        try:
            data = os.read(self._fifo, 65536)  # all that fits: the last line must not be missed
        except BlockingIOError:
            return
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[:256]  # longer is none of init's sentences
        for line in lines:
            said = parse_init_line(line)
            if said is not None:
                self._begin()
            if said is not None and not isinstance(said, SaidStarted):
                self._apply(said)

    def _on_container_ended(self, status: int) -> None:
        assert self._group is not None
        self._on_fifo(READ)  # init spoke before it died
        self._begin()
        if self.tasks:
            self.tasks.ended()
        for reader in self._readers.values():
            if isinstance(reader.stream, SpoolStream):
                reader.force_end()  # whoever hears of the end finds the file whole
                if reader.stream.failure:
                    self._apply(OutputLost(reader.stream.failure))
        kills = self._cgroups.oom_kills(self._group)
        self._bury()
        self._apply(ContainerEnded(status, kills, self._writer.read_by_job() if self._writer else None))
        if self._writer:
            self._writer.stream.give_up()
            self._writer.end()
        self._loop.call_later(DRAIN_TIMEOUT_S, self._force_drain)
        self._pump()

    def _force_drain(self) -> None:
        if not all([reader.force_end() for reader in self._readers.values()]):  # noqa: C419  # each must be asked
            self._loop.call_later(DRAIN_TIMEOUT_S, self._force_drain)  # its window is full; somebody may still attach

    def _bury(self) -> None:
        if self._fifo >= 0:
            self._loop.unregister(self._fifo)
            os.close(self._fifo)
            self._fifo = -1
        # not at once: a `crun checkpoint` that just ended this container is still about to remove the same folder, and fails if it is gone
        self._loop.call_later(BURY_DELAY_S, partial(self._runtime.bury, self.request.job))
        self._remove_group()

    def _remove_group(self) -> None:
        if self._group and not self._cgroups.remove(self._group):
            self._loop.call_later(REMOVE_RETRY_S, self._remove_group)  # the kernel is still burying its last process

    def signal(self, number: int) -> None:
        """Send a signal to the whole tree but init; KILL ends the container of an array, which without tasks is init alone."""
        if self.tasks and number == signals.SIGKILL:
            self.tasks.close()
        self._each_process(lambda pid: os.kill(pid, number))

    def renice(self, nice: int) -> None:
        """Give the whole tree a niceness of 0 to 19; what belongs to a user alone is not raised above others."""
        self._each_process(lambda pid: os.setpriority(os.PRIO_PROCESS, pid, min(19, max(0, nice))))

    def _each_process(self, act: Callable[[int], None]) -> None:
        """Do something to the whole tree but init; processes forked meanwhile are found in a further round."""
        assert self._group is not None
        told: set[int] = {self.pid} if self.pid else set()
        for _ in range(SIGNAL_ROUNDS):
            fresh = [pid for pid in self._cgroups.pids(self._group) if pid not in told]
            if not fresh:
                return
            for pid in fresh:
                told.add(pid)
                try:
                    act(pid)
                except ProcessLookupError:
                    continue  # it ended just now

    def _set_size(self, rows: int, cols: int) -> None:
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    @property
    def ended(self) -> bool:
        """It has ended, so it may be forgotten."""
        return self.machine.state is State.EXITED

    # --- attachment ----------------------------------------------------------------------------------------------------------

    def attach(self, attachment: Attachment, offsets: dict[int, int], *, steal: bool) -> None:
        """Give the streams to `attachment`. Raises Busy (not stolen) or OffsetGone; nothing changed then."""
        if self._attachment and not steal:
            raise Busy(f"job {self.request.job} is attached elsewhere", "attach with --steal to take it over")
        for number, reader in self._readers.items():
            reader.stream.check(offsets.get(number))
        for number, reader in self._readers.items():
            reader.stream.seek(offsets.get(number))
        if self._attachment:
            former, self._attachment = self._attachment, None
            former.connection.send_error(former.channel, TakenOver("another terminal took this job over"))
        self._attachment = attachment
        attachment.connection.channels[attachment.channel] = self
        accepted = self._writer.stream.accepted if self._writer else 0
        attachment.event(type="attached", stdin=accepted, signals=self._signals)
        if self._writer is None or self._writer.stream.broken:
            self._on_input_broken()
        if self.machine.state is not State.EXITED:
            self._tell_state()
        for reader in self._readers.values():
            reader.resume()
        self._pump()

    def _tell_state(self) -> None:
        if self._attachment:
            fields: dict[str, object] = {"type": "state", "state": str(self.machine.state)}
            if self.machine.stop_signal is not None:
                fields["signal"] = self.machine.stop_signal
            self._attachment.event(**fields)

    def _pump(self) -> None:
        attachment = self._attachment
        if attachment is None:
            return
        attachment.pump(self._readers)
        if (
            self._settled
            and self.machine.exit
            and all(reader.stream.drained and reader.stream.eof_sent for reader in self._readers.values())
        ):
            self._attachment = None
            attachment.connection.send(Kind.RESULT, attachment.channel, {"exit": self.machine.exit.to_wire()})

    def _on_input_moved(self) -> None:
        if not self._attachment or not self._writer:
            return
        stream = self._writer.stream
        if stream.unacknowledged >= ACK_BYTES or stream.final is not None or stream.broken:
            self._attachment.acknowledge_input(stream)
        elif stream.unacknowledged and not self._ack_waits:
            self._ack_waits = True
            self._loop.call_later(ACK_DELAY_S, self._acknowledge_late)

    def _acknowledge_late(self) -> None:
        self._ack_waits = False
        if self._attachment and self._writer:
            self._attachment.acknowledge_input(self._writer.stream)

    def _on_input_broken(self) -> None:
        if self._attachment:
            self._attachment.event(type="stdin-closed")

    def on_writable(self) -> None:
        """The attachment's connection takes more."""
        self._pump()

    def on_gone(self) -> None:
        """The attachment went away; the job goes on, and its output waits."""
        self._attachment = None

    def on_frame(self, frame: Frame) -> None:
        """A frame of the attachment."""
        if frame.kind is Kind.ACK:
            reader = self._readers.get(frame.stream)
            if reader:
                reader.stream.ack(frame.offset)
                reader.resume()
                self._pump()
        elif frame.kind is Kind.EVENT:
            self._on_event(frame.body)
        elif self._writer and frame.stream == STDIN:
            if frame.kind is Kind.DATA:
                self._writer.stream.on_data(frame.offset, frame.body)
            elif frame.kind is Kind.EOF:
                self._writer.stream.on_eof(frame.offset)
            self._writer.push()

    def _is_news(self, number: Any) -> bool:
        """Tell whether a signal was not taken before: after a broken line its sender sends again what it is not sure of."""
        if not isinstance(number, int):
            return True  # it does not count them
        news, self._signals = number > self._signals, max(number, self._signals)
        return news

    def _on_event(self, body: Any) -> None:
        kind = body.get("type") if isinstance(body, dict) else None
        if kind == "winsize":
            try:
                self._set_size(*window_size(body))
            except BadRequest as cause:
                raise BadFrame("a window size out of range") from cause
        elif kind == "signal" and isinstance(body.get("signal"), int) and 0 < body["signal"] < 65:
            if self._is_news(body.get("number")) and self.machine.state in (State.RUNNING, State.STOPPED):
                self.signal(body["signal"])
        elif kind == "renice" and isinstance(body.get("nice"), int):
            self.renice(body["nice"])
        elif kind == "broken":
            reader = self._readers.get(body.get("stream"))
            if reader:
                reader.abandon()
        else:
            raise BadFrame("an event of no known type")

    # --- what is told of it -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the row of `list` and `watch`."""
        return {
            "job": self.request.job,
            "state": str(self.machine.state),
            "signal": self.machine.stop_signal,
            "pid": self.pid,
            "stdio": str(self.request.stdio),
            "started_at": self.machine.started_at,
            "attached": self._attachment is not None,
            "exit": self.machine.exit.to_wire() if self.machine.exit else None,
            "meta": self.request.meta,
        }

    def forget(self) -> None:
        """Let go of everything; the job has ended."""
        for reader in self._readers.values():
            reader.abandon()
            if isinstance(reader.stream, SpoolStream):
                reader.stream.release()
        if self._terminal >= 0:
            os.close(self._terminal)
        if self.tasks:
            self.tasks.release()
        (self.folder / "jobd.json").unlink(missing_ok=True)


def _plumbing(request: StartRequest, given: list[int]) -> tuple[list[int], list[int]]:
    """Return (descriptors for the runtime's 0, 1, 2, ...; our own ends). All are ours to close."""
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    if request.stdio is Stdio.PIPES:
        for read_end, _write_end in pairs:
            with contextlib.suppress(OSError):  # over the user's share of pipe memory: the usual 64 KiB work too
                fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
    inner = [pairs[0][0], pairs[1][1], pairs[2][1]]
    outer = [pairs[0][1], pairs[1][0], pairs[2][0]]
    if request.stdio is Stdio.PIPES and request.merged:
        os.dup2(inner[1], inner[2], inheritable=False)
        os.close(outer.pop())
    if request.stdio in (Stdio.PIPES, Stdio.SPOOL):
        return inner, outer
    if request.with_stderr_pipe:
        os.close(outer[0])
        os.close(outer[1])
        return [*inner, os.dup(inner[2])], [outer[2]]
    # the runtime changes the owner of what it gets as 0, 1, 2: never give it a caller's file or the machine's /dev/null
    for fd in outer:
        os.close(fd)
    return [*inner, *given], []
