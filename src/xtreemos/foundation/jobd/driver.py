"""jobd's socket and methods: `hello, start, tasks, close, attach, signal, list, watch, forget` (docs/notes/0001-architecture.md, "jobd")."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from xtreemos import __version__
from xtreemos.errors import InternalError, TryLater, XosError
from xtreemos.foundation.cgroups import Cgroups
from xtreemos.foundation.frames import Frame, Kind
from xtreemos.foundation.jobd.connection import Connection
from xtreemos.foundation.jobd.container import Runtime
from xtreemos.foundation.jobd.job import Job
from xtreemos.foundation.jobd.loop import READ, Loop
from xtreemos.foundation.jobd.model import (
    BadRequest,
    JobExists,
    JobRuns,
    NoSuchJob,
    StartRequest,
    State,
    Stdio,
    TaskRequest,
    check_name,
)
from xtreemos.foundation.jobd.pump import Attachment
from xtreemos.foundation.jobd.store import FormerJob, recover
from xtreemos.foundation.jobd.task import Task, Tasks
from xtreemos.foundation.peers import peer_ids

CONNECTIONS_MAX = 4096  # one per attached job
JOBS_MAX = 8192


class Watch:
    """A `watch` call: it hears of every change until it is closed."""

    def __init__(self, jobd: Jobd, connection: Connection, channel: int) -> None:
        self._jobd = jobd
        self._connection = connection
        self._channel = channel

    def tell(self, row: dict[str, Any]) -> None:
        """Send one job's row."""
        self._connection.send(Kind.EVENT, self._channel, {"type": "job", **row})

    def synced(self) -> None:
        """All jobs of the start have been told."""
        self._connection.send(Kind.EVENT, self._channel, {"type": "synced"})

    def on_frame(self, frame: Frame) -> None:
        """A watcher has nothing to say."""

    def on_writable(self) -> None:
        """Events are queued, not pulled."""

    def on_gone(self) -> None:
        """The watcher left."""
        self._jobd.watches.discard(self)


class Jobd:
    """The parent of jobs. `serve` returns at SIGTERM; running jobs then lose their parent and end as `jobd died`."""

    def __init__(self, socket_path: Path, jobs_dir: Path, runtime: Runtime, cgroups: Cgroups) -> None:
        self._loop = Loop()
        self._runtime = runtime
        self._cgroups = cgroups
        self._started_at = time.time()
        self._connections: set[Connection] = set()
        self.watches: set[Watch] = set()
        self._jobs: dict[str, Job | Task | FormerJob] = {}
        self._jobs.update(recover(jobs_dir, runtime, cgroups))
        self._listener = _listen(socket_path)
        self._loop.register(self._listener.fileno(), READ, self._on_connect)
        self._methods: dict[str, Callable[[Connection, Frame, Any], None]] = {
            "hello": self._hello,
            "start": self._start,
            "tasks": self._tasks,
            "close": self._close,
            "attach": self._attach,
            "signal": self._signal,
            "list": self._list,
            "watch": self._watch,
            "forget": self._forget,
        }

    def serve(self) -> None:
        """Serve until told to stop."""
        self._loop.run()

    def _on_connect(self, _events: int) -> None:
        sock, _ = self._listener.accept()
        if peer_ids(sock)[1] != 0 or len(self._connections) >= CONNECTIONS_MAX:
            sock.close()
            return
        self._connections.add(Connection(self._loop, sock, self._on_call, self._connections.discard))

    def _on_call(self, connection: Connection, frame: Frame) -> None:
        body = frame.body if isinstance(frame.body, dict) else {}
        method = self._methods.get(str(body.get("method")))
        try:
            if method is None:
                raise BadRequest(f"jobd has no method {str(body.get('method'))[:40]!r}")
            method(connection, frame, body.get("params"))
        except XosError as error:
            connection.send_error(frame.channel, error)
        except Exception:  # noqa: BLE001
            # a bug in one call must not end every job of the node: keep the evidence, refuse the call, go on
            traceback.print_exc(file=sys.stderr)
            connection.send_error(frame.channel, InternalError("jobd stumbled over this call", "see its log"))

    def _find(self, params: Any) -> Job | Task | FormerJob:
        job = self._jobs.get(check_name(params))
        if job is None:
            raise NoSuchJob(f"job {params['job']} is not known here")
        return job

    def _hello(self, connection: Connection, frame: Frame, _params: Any) -> None:
        answer = {"pid": os.getpid(), "version": __version__, "started_at": self._started_at}
        connection.send(Kind.RESULT, frame.channel, answer)

    def _start(self, connection: Connection, frame: Frame, params: Any) -> None:
        fds = connection.take_fds(3) if isinstance(params, dict) and params.get("stdio") == Stdio.FDS else []
        if fds is None:
            raise BadRequest("start: stdio fds needs three descriptors with the call")
        try:
            request = StartRequest.from_params(params)
            if request.job in self._jobs:
                raise JobExists(f"job {request.job} was started before")
            if len(self._jobs) >= JOBS_MAX:
                raise TryLater(f"{JOBS_MAX} jobs are known here", "forget ended ones")
        except XosError:
            for fd in fds:
                os.close(fd)
            raise
        job = Job(self._loop, self._runtime, self._cgroups, request, self._announce)
        self._jobs[request.job] = job

        def done(error: XosError | None) -> None:
            if error is None:
                connection.send(Kind.RESULT, frame.channel, {"pid": job.pid})
                return
            del self._jobs[request.job]
            connection.send_error(frame.channel, error)

        job.start(fds, done)

    def _tasks(self, connection: Connection, frame: Frame, params: Any) -> None:
        """Start tasks in the container of an array; answered when each of them runs or certainly does not."""
        runner = self._find(params)
        entries = params.get("tasks")
        if not isinstance(runner, Job) or runner.tasks is None or runner.machine.state is not State.RUNNING:
            raise NoSuchJob(f"{params['job']} is no container for tasks now", "start one")
        if not isinstance(entries, list):
            raise BadRequest("tasks: no list of tasks")
        answers: list[dict[str, Any] | None] = [None] * len(entries)
        left = len(entries)

        def answer(place: int, name: str, error: XosError | None) -> None:
            nonlocal left
            left -= 1
            answers[place] = {"job": name, "error": error.to_wire() if error else None}
            if not left:
                connection.send(Kind.RESULT, frame.channel, answers)

        for place, entry in enumerate(entries):
            self._start_task(runner.tasks, entry, partial(answer, place))
        if not entries:
            connection.send(Kind.RESULT, frame.channel, [])

    def _start_task(self, tasks: Tasks, entry: Any, answer: Callable[[str, XosError | None], None]) -> None:
        name = str(entry.get("job")) if isinstance(entry, dict) else ""
        try:
            request = TaskRequest.from_params(entry)
            if name in self._jobs:
                raise JobExists(f"job {name} was started before")
            if len(self._jobs) >= JOBS_MAX:
                raise TryLater(f"{JOBS_MAX} jobs are known here", "forget ended ones")
        except XosError as error:
            answer(name, error)
            return
        task = self._jobs[name] = Task(tasks, request, self._announce)

        def done(error: XosError | None) -> None:
            if error is not None:
                del self._jobs[name]
            answer(name, error)

        task.start(done)

    def _close(self, connection: Connection, frame: Frame, params: Any) -> None:
        """End the container of an array, and with it what still runs in it."""
        runner = self._find(params)
        if isinstance(runner, Job) and runner.tasks is not None:
            runner.tasks.close()
        connection.send(Kind.RESULT, frame.channel, {})

    def _attach(self, connection: Connection, frame: Frame, params: Any) -> None:
        job = self._find(params)
        attachment = Attachment(connection, frame.channel)
        if isinstance(job, FormerJob):
            attachment.event(type="attached", stdin=0)
            connection.send(Kind.RESULT, frame.channel, {"exit": job.record})
            return
        if isinstance(job, Task):
            raise BadRequest("a task of an array cannot be attached to", "read its output files")
        if job.machine.state is State.STARTING:
            raise TryLater(f"job {params['job']} is just starting", "wait for the answer to start")
        job.attach(attachment, _offsets(params.get("offsets")), steal=params.get("steal") is True)

    def _signal(self, connection: Connection, frame: Frame, params: Any) -> None:
        job = self._find(params)
        number = params.get("signal")
        if not isinstance(number, int) or not 0 < number < 65:
            raise BadRequest("signal must be 1 to 64")
        if not isinstance(job, FormerJob) and job.machine.state in (State.RUNNING, State.STOPPED):
            job.signal(number)
        connection.send(Kind.RESULT, frame.channel, {})

    def _list(self, connection: Connection, frame: Frame, _params: Any) -> None:
        connection.send(Kind.RESULT, frame.channel, [job.describe() for job in self._jobs.values()])

    def _watch(self, connection: Connection, frame: Frame, _params: Any) -> None:
        watch = Watch(self, connection, frame.channel)
        connection.channels[frame.channel] = watch
        self.watches.add(watch)
        for job in self._jobs.values():
            watch.tell(job.describe())
        watch.synced()

    def _forget(self, connection: Connection, frame: Frame, params: Any) -> None:
        names = params.get("jobs") if isinstance(params, dict) else None
        if isinstance(names, list):  # many at once: those that run stay, those that are not known are forgotten already
            for name in [name for name in names if isinstance(name, str) and name in self._jobs and self._jobs[name].ended]:
                self._jobs.pop(name).forget()
        else:
            job = self._find(params)
            if not job.ended:
                raise JobRuns(f"job {params['job']} has not ended", "signal it first")
            job.forget()
            del self._jobs[params["job"]]
        connection.send(Kind.RESULT, frame.channel, {})

    def _announce(self, job: Job | Task) -> None:
        row = job.describe()
        for watch in list(self.watches):
            watch.tell(row)


def _offsets(value: Any) -> dict[int, int]:
    """Check the `offsets` of attach; keys may be numbers or their text."""
    if value is None:
        return {}
    try:
        offsets = {int(stream): offset for stream, offset in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("offsets must map streams to offsets") from None
    if not all(isinstance(offset, int) and offset >= 0 for offset in offsets.values()):
        raise BadRequest("an offset must be a number from 0")
    return offsets


def _listen(path: Path) -> socket.socket:
    """Listen on `path`, root's alone, replacing the socket of an earlier life."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    listener.setblocking(False)
    return listener
