"""The agent's side of ghosts: takes their connections, moves bytes, carries out what GhostMachine decides.

One task per ghost, children of `GhostServer.serve`. Flow of output: events of the run are read at once and queued per descriptor;
`Run.consumed` is called as bytes are really written, so that the far side's window holds the program back, never this loop.
Messages to the ghost are one queue in order, so a stop or an exit reaches a terminal behind the output before it.

Must not know: nodes, VOs, options of commands. Decisions are in ghostmachine.py, messages in ghostwire.py, descriptors in pumps.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import termios
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from xtreemos.aem.agent import ghostmachine as gm
from xtreemos.aem.agent import ghostwire as wire
from xtreemos.aem.agent.ports import (
    Chooser,
    Done,
    Ended,
    GoTo,
    Hello,
    Launcher,
    NotMine,
    Output,
    OutputEnded,
    Resumer,
    Run,
    RunEvent,
    Terminal,
)
from xtreemos.aem.agent.pumps import OutPump, Port, put_back, same_file
from xtreemos.errors import NotFound, XosError
from xtreemos.foundation.files import unlink_own
from xtreemos.foundation.peers import peer_ids

log = logging.getLogger(__name__)

GHOSTS_MAX = 4096
WATCH_EVERY_S = 0.2
OUTPUT_WAITING_BYTES_MAX = 2 * 1024 * 1024  # per ghost; above it no event of its run is read (a run's own window is smaller)
LAST_CALLS_S = 5.0  # to hand the last signals to a run that is being left


class AlreadyServed(XosError):
    """Another agent listens on that socket."""

    code = "already-served"


class GhostServer:
    """Serves ghosts on one socket. `chooser` may send a ghost elsewhere, `resumer` takes up ghosts of an agent that died."""

    def __init__(self, chooser: Chooser | None = None, resumer: Resumer | None = None) -> None:
        self.chooser = chooser
        self.resumer = resumer
        self.launcher: Launcher
        self.ghosts: set[_Ghost] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._path = Path()
        self._inode = 0

    async def serve(self, socket_path: str | Path, launcher: Launcher) -> None:
        """Serve until cancelled; then ghosts lose their connection (and wait for a successor), programs go on.

        Raises:
            AlreadyServed: a living agent listens there. OSError: the folder is not writable.
        """
        self.start(socket_path, launcher)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    def start(self, socket_path: str | Path, launcher: Launcher) -> None:
        """Listen on `socket_path` from now on; the other half of `close`."""
        self.launcher = launcher
        self._path = Path(socket_path)
        _remove_if_dead(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.bind(str(self._path))
        self._inode = self._path.lstat().st_ino
        self._path.chmod(0o600)
        listener.listen(1024)  # a `make -j` or a long pipeline connects at once
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def close(self) -> None:
        """Stop listening and let go of all ghosts without ending their programs."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            unlink_own(self._path, self._inode)
        tasks = [*self._tasks, *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors: the ghost waits in the queue, tried again on the next event
                log.warning("cannot accept a ghost: %s", error)
                return
            connection.setblocking(False)
            pid, uid = peer_ids(connection)
            if uid != os.getuid() or len(self.ghosts) >= GHOSTS_MAX:
                log.warning("refused a ghost of uid %d (pid %d)", uid, pid)
                connection.close()
                continue
            ghost = _Ghost(self, connection, pid)
            task = asyncio.create_task(self._attend(ghost), name=f"ghost {pid}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attend(self, ghost: _Ghost) -> None:
        self.ghosts.add(ghost)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="ghost watcher")
        try:
            await ghost.live()
        except wire.BadMessage as error:
            log.warning("%s", error)
        finally:
            self.ghosts.discard(ghost)

    async def _watch(self) -> None:
        """Look at each ghost's state as long as there are any: SIGSTOP can be seen in no other way than by asking (notes, section 2)."""
        while self.ghosts:
            await asyncio.sleep(WATCH_EVERY_S)
            for ghost in tuple(self.ghosts):
                ghost.look()


def _remove_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise AlreadyServed(f"an agent already listens on {path}", "log out first")


class _Answered:
    """The whole answer of a command, in the shape of a run that already ended."""

    token = ""
    wants_tty = False

    def __init__(self, done: Done) -> None:
        parts: list[RunEvent] = [
            Output(stream, data[at : at + wire.OUTPUT_BYTES_MAX])
            for stream, data in ((1, done.out), (2, done.err))
            for at in range(0, len(data), wire.OUTPUT_BYTES_MAX)
        ]
        self._events = deque([*parts, Ended({"code": done.code})])

    async def read(self) -> RunEvent:
        return self._events.popleft()

    async def stdin_closed(self) -> None: ...
    async def write_stdin(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def signal(self, number: int) -> None: ...
    async def winsize(self, rows: int, cols: int) -> None: ...
    async def renice(self, nice: int) -> None: ...
    async def output_broken(self, stream: int) -> None: ...
    def consumed(self, stream: int, count: int) -> None: ...
    def detach(self) -> None: ...


class _Ghost:
    """One connection. `live` is its whole life."""

    def __init__(self, server: GhostServer, connection: socket.socket, pid: int) -> None:
        self._server = server
        self._socket = connection
        self._machine = gm.GhostMachine()
        self._pid = pid
        self._pidfd = -1
        self._stat_fd = -1
        self._nice: int | None = None
        self._hello = Hello(argv=(b"xos",))
        self._run: Run | None = None
        self._stdin: Port | None = None
        self._pumps: dict[int, OutPump] = {}
        self._own: tuple[int, int, int] | None = None
        self._terminal_fd = -1
        self._settings = wire.TerminalSettings(b"", b"")
        self._outbox: deque[tuple[bytes, int, int]] = deque()  # message, stream, bytes of the stream in it
        self._writing = False
        self._output_waiting = 0
        self._output_room = asyncio.Event()
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the machine's gate
        self._calls: deque[gm.Effect] = deque()
        self._calls_wanted = asyncio.Event()
        self._calls_done = asyncio.Event()
        self._calls_done.set()
        self._children: set[asyncio.Task[None]] = set()
        self._launching: asyncio.Task[None] | None = None
        self._input_task: asyncio.Task[None] | None = None
        self._exit: dict[str, Any] = {}
        self._closing = asyncio.Event()
        self._gone = asyncio.Event()
        self._greeted = asyncio.Event()
        self._first: wire.FromGhost | None = None
        self._first_fds: list[int] = []
        self._parts = bytearray()

    # -- life ------------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """From hello to the end of the connection. Cancelled: the program is let go, not ended."""
        try:
            self._open_process()
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._on_readable)
            launch = await self._greet()
            if launch is not None:
                self._launching = self._child(self._launch(launch))
                await self._closing.wait()
                await self._leave_run()
                await self._gone.wait()
        finally:
            await self._clean_up()

    def _open_process(self) -> None:
        if self._pid <= 0:
            return  # in another pid namespace: lives without being watched
        with contextlib.suppress(OSError):  # died already; the socket's end will tell
            self._pidfd = os.pidfd_open(self._pid)
            self._stat_fd = os.open(f"/proc/{self._pid}/stat", os.O_RDONLY | os.O_CLOEXEC)

    async def _greet(self) -> Callable[[], Coroutine[Any, Any, Run | Done]] | None:
        """Receive the first words; return how to get the run, or None if the ghost was sent elsewhere or is gone."""
        first, fds = await self._receive_first()
        if first is None:
            return None
        self._take_descriptors(first, fds)
        if isinstance(first, str):
            return partial(self._resume, first)
        choice = self._server.chooser(self._hello) if self._server.chooser else None
        if isinstance(choice, GoTo):
            self._tell(wire.go_to(choice.vo))
        elif isinstance(choice, NotMine):
            self._tell(wire.not_mine())
        else:
            self._tell(wire.accepted())
            return partial(self._ask_launcher)
        await self._gone.wait()  # the ghost reads, then closes
        return None

    async def _ask_launcher(self) -> Run | Done:
        try:
            return await self._server.launcher(self._hello)
        finally:
            self._close_own()

    def _close_own(self) -> None:
        own, self._own = self._own, None
        for fd in own or ():
            os.close(fd)

    async def _resume(self, token: str) -> Run:
        if self._server.resumer is None:
            raise NotFound("this agent knows nothing of that program", "look at `xos ps`")
        self._tell(wire.accepted(token))
        return await self._server.resumer(token, self._hello)

    async def _receive_first(self) -> tuple[Hello | str | None, list[int]]:
        """Return the hello, or the token of a ghost that resumes, and the descriptors with it; None at the end of the connection."""
        await self._greeted.wait()
        if self._first is None:
            for fd in self._first_fds:
                os.close(fd)
            return None, []
        if isinstance(self._first, wire.Resume):
            tty = Terminal(0, 0, self._first.raw_allowed) if any(self._first.isatty) else None
            self._hello = Hello(argv=(b"xos",), isatty=self._first.isatty, tty=tty)
            return self._first.token, self._first_fds
        try:
            if not isinstance(self._first, wire.HelloPart) or len(self._parts) > wire.HELLO_BYTES_MAX:
                raise wire.BadMessage(f"ghost {self._pid} did not begin with a hello, or with one too long")
            self._hello = wire.decode_hello(bytes(self._parts))
        except wire.BadMessage:
            for fd in self._first_fds:
                os.close(fd)
            raise
        self._parts.clear()
        return self._hello, self._first_fds

    def _on_first(self, value: wire.FromGhost, fds: list[int]) -> None:
        """Collect the parts of a hello; `_first` is what completes the greeting, right or wrong."""
        self._first_fds += fds
        if isinstance(value, wire.HelloPart):
            self._parts += value.data
            if not value.last and len(self._parts) <= wire.HELLO_BYTES_MAX:
                return
        self._first = value
        self._greeted.set()

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            message, fds, _, _ = socket.recv_fds(self._socket, wire.MESSAGE_BYTES_MAX + 16, wire.FDS_MAX, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []
        return message, fds

    def _take_descriptors(self, first: Hello | str, fds: list[int]) -> None:
        hello = self._hello
        raw_allowed = hello.tty is not None and hello.tty.raw_allowed
        given = [number for number in range(3) if not hello.isatty[number]]
        if len(fds) != len(given) + raw_allowed:
            for fd in fds:
                os.close(fd)
            raise wire.BadMessage(f"ghost {self._pid} sent {len(fds)} descriptors, {len(given) + raw_allowed} were due")
        named = dict(zip(given, fds, strict=False))
        if raw_allowed:
            self._terminal_fd = fds[-1]
        merged = same_file(named[1], named[2]) if 1 in named and 2 in named else hello.isatty[1] and hello.isatty[2]
        if isinstance(first, Hello):
            if len(named) == 3:  # copies: a port may close the one it was given and open the same pipe anew
                self._own = (os.dup(named[0]), os.dup(named[1]), os.dup(named[2]))
            self._hello = replace(hello, merged=merged, descriptors=self._own)
        if 0 in named:
            self._stdin = Port(named[0], writing=False)
        for stream in (1, 2):
            if stream in named:
                port = Port(named[stream], writing=True)
                self._pumps[stream] = OutPump(port, partial(self._written, stream), partial(self._on_broken, stream))

    async def _leave_run(self) -> None:
        """Hand over the last signals, then let go of the run and of everything that served it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calls_done.wait(), LAST_CALLS_S)
        await self._stop_children()
        await self._close_descriptors()
        if self._run is not None:
            self._run.detach()
            self._run = None

    async def _clean_up(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket.fileno() >= 0:
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())
        await self._stop_children()
        await self._close_descriptors()
        if self._run is not None:
            self._run.detach()
        self._socket.close()
        for fd in (self._terminal_fd, self._pidfd, self._stat_fd):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._stat_fd = self._terminal_fd = -1

    async def _stop_children(self) -> None:
        children = [child for child in self._children if child is not asyncio.current_task()]
        for child in children:
            child.cancel()
        for result in await asyncio.gather(*children, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                log.error("a task of ghost %d failed", self._pid, exc_info=result)

    async def _close_descriptors(self) -> None:
        self._close_own()
        for pump in self._pumps.values():
            await pump.drop()
        if self._stdin is not None:
            self._stdin.close()

    def _child(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work), name=f"{getattr(work, '__name__', 'part')} of ghost {self._pid}")
        self._children.add(task)
        task.add_done_callback(self._children.discard)
        task.add_done_callback(lambda _: work.close())  # a task cancelled before its first step never came to it
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """No failure of a part may leave the user with a ghost that waits for ever."""
        try:
            await work
        except XosError as error:
            self._on(gm.Failed(error.exit_code, f"xos: {error.line()}"))
        except Exception:
            log.exception("ghost %d: failed inside", self._pid)
            self._on(gm.Failed(1, "xos: the session's agent failed inside; see its log"))

    # -- the run ---------------------------------------------------------------------------------------------------------

    async def _launch(self, get_run: Callable[[], Coroutine[Any, Any, Run | Done]]) -> None:
        result = await get_run()
        run: Run = _Answered(result) if isinstance(result, Done) else result
        if self._machine.state is not gm.State.LAUNCHING:  # interrupted while the launcher was past giving up
            await run.signal(signal.SIGKILL)
            run.detach()
            return
        self._run = run
        self._child(self._make_calls(run))
        closed = self._child(self._watch_stdin(run))
        await asyncio.sleep(0)  # a run that wants no input says so at once: then nothing is read from anywhere
        from_terminal = self._stdin is None and not closed.done()
        self._on(gm.Launched(run.token, run.wants_tty, from_terminal))
        if not closed.done():
            self._input_task = self._child(
                self._give_terminal_input(run) if self._stdin is None else self._pump_stdin(run, self._stdin)
            )
        self._child(self._follow(run))

    async def _follow(self, run: Run) -> None:
        while True:
            event = await run.read()
            if isinstance(event, Output):
                self._output(event.stream, event.data)
                while self._output_waiting > OUTPUT_WAITING_BYTES_MAX:
                    self._output_room.clear()
                    await self._output_room.wait()
            elif isinstance(event, OutputEnded):
                if event.stream == 1 and 1 in self._pumps:  # 2 stays open: how the program ended may be said there
                    self._pumps[1].end()
            elif isinstance(event, Ended):
                self._exit = event.exit
                self._on(event)
                return
            else:
                self._on(event)

    def _output(self, stream: int, data: bytes) -> None:
        self._output_waiting += len(data)
        if stream in self._pumps:
            self._pumps[stream].feed(data)
            return
        for at in range(0, len(data), wire.OUTPUT_BYTES_MAX):
            piece = data[at : at + wire.OUTPUT_BYTES_MAX]
            self._tell(wire.output(stream, piece), stream, len(piece))

    def _written(self, stream: int, count: int) -> None:
        """Bytes of a stream are where they belong (or nobody wants them)."""
        self._output_waiting -= count
        if self._output_waiting <= OUTPUT_WAITING_BYTES_MAX:
            self._output_room.set()
        if self._run is not None:
            self._run.consumed(stream, count)

    def _on_broken(self, stream: int, reason: str | None) -> None:
        if reason is not None:
            name = "standard output" if stream == 1 else "standard error"
            self._say(f"xos: writing to {name} failed: {reason}")
        if self._run is not None:
            self._child(self._run.output_broken(stream))

    async def _pump_stdin(self, run: Run, port: Port) -> None:
        while True:
            try:
                data = await port.read()
            except OSError as error:  # a directory, a descriptor opened for writing only: the program finds it empty
                if error.errno != errno.EBADF:
                    self._say(f"xos: reading standard input failed: {error.strerror}")
                data = b""
            if not data:
                await run.close_stdin()
                return
            await run.write_stdin(data)

    async def _give_terminal_input(self, run: Run) -> None:
        while (data := await self._input.get()) is not None:
            await run.write_stdin(data)
            self._on(gm.InputTaken(len(data)))
        await run.close_stdin()

    async def _watch_stdin(self, run: Run) -> None:
        """Once the program reads no more, our end of the pipe goes, so that whoever writes to it gets SIGPIPE."""
        await run.stdin_closed()
        await self._stop_input()
        if self._stdin is not None and not self._stdin.seekable:
            self._stdin.close()
        self._on(gm.InputRefused())

    async def _stop_input(self) -> None:
        """End the reading of standard input. The loop still watches the descriptor until the task is over: closed before, it aborts the agent."""
        if self._input_task is not None:
            self._input_task.cancel()
            await asyncio.wait([self._input_task])

    async def _make_calls(self, run: Run) -> None:
        """Carry out calls on the run one after the other: the order of signals is kept."""
        while True:
            await self._calls_wanted.wait()
            while self._calls:
                call = self._calls.popleft()
                if isinstance(call, gm.SignalProgram):
                    await run.signal(call.signal)
                elif isinstance(call, gm.ResizeProgram):
                    await run.winsize(call.rows, call.cols)
                elif isinstance(call, gm.ReniceProgram):
                    await run.renice(call.nice)
            self._calls_wanted.clear()
            self._calls_done.set()

    async def _drain(self) -> None:
        """The program ended: nothing is read for it any more, and what it wrote is written."""
        await self._stop_input()
        if self._stdin is not None:
            await self._stdin.settle()
            consumed = self._exit.get("stdin_consumed")
            if consumed is not None:
                put_back(self._stdin, self._stdin.read_bytes - int(consumed))
            self._stdin.close()
        for pump in self._pumps.values():
            await pump.idle.wait()
            pump.end()
        self._on(gm.Drained())

    # -- the machine -----------------------------------------------------------------------------------------------------

    def _on(self, event: gm.Event) -> None:
        for effect in self._machine.on(event):
            self._do(effect)

    def _do(self, effect: gm.Effect) -> None:
        match effect:
            case gm.Tell(message):
                self._tell(message)
            case gm.Say(text):
                self._say(text)
            case gm.SignalProgram() | gm.ResizeProgram() | gm.ReniceProgram():
                self._call(effect)
            case gm.GiveInput(data):
                self._input.put_nowait(data)
            case gm.WakeGhost():
                self._wake()
            case gm.RestoreTerminal():
                self._restore_terminal()
            case gm.CancelLaunch():
                if self._launching is not None:
                    self._launching.cancel()
            case gm.DropOutput():
                self._outbox = deque(entry for entry in self._outbox if not entry[2])
                for pump in self._pumps.values():
                    self._child(pump.drop())
            case gm.Drain():
                self._child(self._drain())
            case gm.Close():
                self._closing.set()

    def _call(self, call: gm.Effect) -> None:
        """Queue a call on the run. A signal that is already pending is not queued again, as in the kernel; STOP and CONT keep their order."""
        if self._run is None:
            return
        ordered = {signal.SIGSTOP, signal.SIGCONT, signal.SIGTSTP}
        if isinstance(call, gm.SignalProgram) and call.signal not in ordered and call in self._calls:
            return
        if self._calls and self._calls[-1] == call:
            return
        if isinstance(call, gm.ResizeProgram | gm.ReniceProgram):
            self._calls = deque(other for other in self._calls if type(other) is not type(call))
        self._calls.append(call)
        self._calls_done.clear()
        self._calls_wanted.set()

    def _say(self, text: str) -> None:
        if self._hello.isatty[2]:
            self._tell(wire.line(text))
        elif 2 in self._pumps:
            self._pumps[2].say(text.encode("utf-8", "replace") + b"\n")

    # -- the ghost's socket ----------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        """Take one message: there is mostly one, and the loop comes again at once if there are more."""
        try:
            message, fds = self._receive()
        except BlockingIOError:
            return
        if not message:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._on(gm.GhostGone())
            self._greeted.set()
            self._closing.set()
            self._gone.set()
            return
        value: wire.FromGhost | None
        try:
            value = wire.decode(message)
        except wire.BadMessage as error:
            log.warning("%s", error)
            value = None
        if value is not None and not self._greeted.is_set():
            self._on_first(value, fds)
            return
        for fd in fds:  # none is due any more
            os.close(fd)
        if value is None:
            self._greeted.set()  # who begins with nonsense gets no second try
            return
        if isinstance(value, wire.TerminalSettings):
            self._settings = value
        self._on(value)

    def _tell(self, message: bytes, stream: int = 0, count: int = 0) -> None:
        self._outbox.append((message, stream, count))
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            message, stream, count = self._outbox[0]
            try:
                self._socket.send(message, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    asyncio.get_running_loop().add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                pass  # the ghost is gone; its end of file follows and decides
            self._outbox.popleft()
            if count:
                self._written(stream, count)
        if self._writing:
            self._writing = False
            asyncio.get_running_loop().remove_writer(self._socket.fileno())

    # -- the ghost's process and terminal --------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the ghost's state and niceness from the kernel and tell the machine."""
        if self._stat_fd < 0:
            return
        try:
            fields = os.pread(self._stat_fd, 1024, 0).rpartition(b") ")[2].split()
        except ProcessLookupError:
            return  # the socket's end is on its way
        if not fields:
            return
        self._on(gm.Watched(fields[0] == b"T"))
        if self._machine.state is gm.State.RUNNING:
            nice = int(fields[16])
            if nice != (self._hello.nice if self._nice is None else self._nice):
                self._on(gm.Reniced(nice))
            self._nice = nice

    def _wake(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def _restore_terminal(self) -> None:
        """Put back the settings if they are still exactly those the ghost made; a shell that was quicker keeps its own."""
        before, raw = self._settings.before, self._settings.raw
        if self._terminal_fd < 0 or not raw:
            return
        # Were it our own controlling terminal (an agent started by hand), the call would stop us with SIGTTOU.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            if fcntl.ioctl(self._terminal_fd, termios.TCGETS, bytes(len(raw))) == raw:
                fcntl.ioctl(self._terminal_fd, termios.TCSETS, before)
        except OSError as error:
            log.debug("terminal of ghost %d is gone: %s", self._pid, error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
