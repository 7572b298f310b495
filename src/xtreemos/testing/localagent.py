"""A ghost server whose programs run on this very machine, as real processes under a real pty or real pipes. For tests and measurements.

`python -m xtreemos.testing.localagent FOLDER` serves FOLDER/ghost.sock until it is terminated. It does what a node does with a job
(session leader that forks the program into a process group of its own, or Ctrl-Z would be dropped in an orphaned group), without a grid.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from xtreemos.aem.agent.ghosts import GhostServer
from xtreemos.aem.agent.ports import Continued, Done, Ended, GoTo, Hello, NotMine, Output, OutputEnded, Run, RunEvent, Stopped
from xtreemos.aem.agent.pumps import wait_ready
from xtreemos.errors import NotFound, TryLater
from xtreemos.foundation.frames import CHUNK_BYTES, WINDOW_BYTES

EXIT_NOT_FOUND = 127


class LocalRun:
    """A program as child of a small supervisor process. See ports.Run."""

    def __init__(self, hello: Hello, argv: list[bytes], *, no_stdin: bool, use_pty: bool) -> None:
        self.token = os.urandom(8).hex()
        self.wants_tty = use_pty
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue()
        self._stdin_closed = asyncio.Event()
        self._unread = {1: 0, 2: 0}
        self._room = asyncio.Event()
        self._known = asyncio.Event()  # the program's process group is known, or it is over
        self._written = 0
        self._readers: dict[int, asyncio.Task[None]] = {}
        self._argv, self._hello = argv, hello
        self.group = 0
        self._stdin = self._rest = -1
        self._outputs: dict[int, int] = {}
        if no_stdin:
            self._stdin_closed.set()
        self._start(use_pty)
        if no_stdin and not use_pty:
            self._close_stdin()

    # -- start -----------------------------------------------------------------------------------------------------------

    def _start(self, use_pty: bool) -> None:
        status, status_write = os.pipe()
        if use_pty:
            master, slave = os.openpty()
            tty = self._hello.tty
            if tty and tty.rows:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", tty.rows, tty.cols, 0, 0))
            inner, outer = (slave, slave, slave), [master]
            self._stdin, self._outputs = os.dup(master), {1: master}
        else:
            stdin, self._stdin = os.pipe()
            out, out_write = os.pipe()
            err, err_write = (-1, out_write) if self._hello.merged else os.pipe()
            inner, outer = (stdin, out_write, err_write), [self._stdin, out]
            self._outputs = {1: out} if err < 0 else {1: out, 2: err}
        self._supervisor = os.fork()
        if self._supervisor == 0:
            _supervise(self._hello, self._argv, inner, status_write, use_pty=use_pty)
        for fd in {*inner, status_write}:
            os.close(fd)
        for fd in {*outer, self._stdin, *self._outputs.values()}:
            os.set_blocking(fd, False)
        self._main = asyncio.create_task(self._follow(status))
        for stream in self._outputs:
            self._readers[stream] = asyncio.create_task(self._read_output(stream))
        if not use_pty:
            asyncio.get_running_loop().add_reader(self._stdin, self._reader_gone)

    def _reader_gone(self) -> None:
        """The pipe reports an error as soon as its last reader closed it."""
        self._stdin_closed.set()
        asyncio.get_running_loop().remove_reader(self._stdin)

    # -- follow ----------------------------------------------------------------------------------------------------------

    async def _follow(self, status: int) -> None:
        pending = b""
        code = EXIT_NOT_FOUND << 8
        while True:
            await wait_ready(status, writing=False)
            data = os.read(status, 4096)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                word, number = line.split()
                if word == b"pid":
                    self.group = int(number)
                    self._known.set()
                elif os.WIFSTOPPED(int(number)):
                    self._events.put_nowait(Stopped(os.WSTOPSIG(int(number))))
                elif os.WIFCONTINUED(int(number)):
                    self._events.put_nowait(Continued())
                else:
                    code = int(number)
        os.close(status)
        os.waitpid(self._supervisor, 0)  # noqa: ASYNC222  # it closed its end as the last thing it did
        self.group = 0
        self._known.set()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)
        record: dict[str, Any] = {"code": os.WEXITSTATUS(code), "signal": None, "core": False}
        if os.WIFSIGNALED(code):
            record = {"code": None, "signal": os.WTERMSIG(code), "core": os.WCOREDUMP(code)}
        pipe = self._stdin if self._rest < 0 else self._rest
        if not self.wants_tty and pipe >= 0:
            record["stdin_consumed"] = self._written - struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0]
        self._close_stdin()
        if self._rest >= 0:
            os.close(self._rest)
        self._events.put_nowait(Ended(record))

    async def _read_output(self, stream: int) -> None:
        fd = self._outputs[stream]
        try:
            while True:
                while self._unread[stream] >= WINDOW_BYTES:
                    self._room.clear()
                    await self._room.wait()
                await wait_ready(fd, writing=False)
                try:
                    data = os.read(fd, CHUNK_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno != errno.EIO:  # a pty whose last user is gone
                        raise
                    data = b""
                if not data:
                    self._events.put_nowait(OutputEnded(stream))
                    return
                self._unread[stream] += len(data)
                self._events.put_nowait(Output(stream, data))
        finally:
            os.close(fd)

    # -- ports.Run -------------------------------------------------------------------------------------------------------

    async def read(self) -> RunEvent:
        return await self._events.get()

    def consumed(self, stream: int, count: int) -> None:
        if stream in self._unread:
            self._unread[stream] -= count
            self._room.set()

    async def write_stdin(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._stdin >= 0:
            try:
                count = os.write(self._stdin, view)
            except BlockingIOError:
                await wait_ready(self._stdin, writing=True)
                continue
            except OSError:
                self._stdin_closed.set()
                return
            self._written += count
            view = view[count:]

    async def close_stdin(self) -> None:
        if self.wants_tty:
            await self.write_stdin(b"\x04")
        else:
            # Kept to ask the pipe at the end how much nobody read. From now on a reader that goes away is no news.
            self._rest = os.open(f"/proc/self/fd/{self._stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            asyncio.get_running_loop().remove_reader(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    async def stdin_closed(self) -> None:
        await self._stdin_closed.wait()

    async def signal(self, number: int) -> None:
        await self._known.wait()
        if self.group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, number)

    async def winsize(self, rows: int, cols: int) -> None:
        if self.wants_tty and self._stdin >= 0:
            fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def renice(self, nice: int) -> None:
        if self.group:
            os.setpriority(os.PRIO_PGRP, self.group, nice)

    async def output_broken(self, stream: int) -> None:
        if stream in self._readers:
            self._readers[stream].cancel()

    def detach(self) -> None: ...


def _supervise(hello: Hello, argv: list[bytes], inner: tuple[int, int, int], status: int, *, use_pty: bool) -> NoReturn:
    """Run in the forked child: session leader, parent of the program. Reports each change of state as a line."""
    try:
        os.setsid()
        for number in range(3):
            os.dup2(inner[number], number)
        if use_pty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTTOU})
        gate, gate_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.read(gate, 1)
            _become(hello, argv)
        os.setpgid(pid, pid)
        if use_pty:
            os.tcsetpgrp(0, pid)
        os.write(status, b"pid %d\n" % pid)
        os.write(gate_write, b"g")
        for number in (0, 1, 2, *set(inner), gate, gate_write):
            with contextlib.suppress(OSError):
                os.close(number)
        os.closerange(3, status)
        os.closerange(status + 1, 4096)
        while True:
            _, code = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
            os.write(status, b"state %d\n" % code)
            if os.WIFEXITED(code) or os.WIFSIGNALED(code):
                os._exit(0)
    finally:
        os._exit(EXIT_NOT_FOUND)


def _limit(value: int) -> int:
    return resource.RLIM_INFINITY if value == 2**64 - 1 else value


def _become(hello: Hello, argv: list[bytes]) -> NoReturn:
    try:
        for number in hello.ignored:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.closerange(3, 4096)
        os.umask(hello.umask)
        os.chdir(hello.cwd)
        for number, limits in enumerate(hello.rlimits):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(number, (_limit(limits[0]), _limit(limits[1])))
        os.setpriority(os.PRIO_PROCESS, 0, hello.nice)
        environment = {
            name.encode(errors="surrogateescape"): value.encode(errors="surrogateescape")
            for name, value in hello.environment.items()
        }
        os.execvpe(argv[0], argv, environment)  # noqa: S606  # that is the point
    except OSError as error:
        os.write(2, b"localagent: " + argv[0] + b": " + (error.strerror or "?").encode() + b"\n")
    finally:
        os._exit(EXIT_NOT_FOUND)


class LocalAgent:
    """Answers `run [-n] [-T] -- PROG ARGS`, `whoami`, `ps` (prints its environment's N lines), `nodes CODE`; refuses the rest; never answers `wait`."""

    def __init__(self) -> None:
        self.runs: dict[str, LocalRun] = {}

    async def launch(self, hello: Hello) -> Run | Done:
        words = list(hello.argv[1:])
        while words and words[0].startswith(b"--"):
            words = words[2:]
        command, words = words[0], words[1:]
        if command == b"run":
            return self._run(hello, words)
        if command == b"ps":
            return Done(0, b"job\n" * int(hello.environment.get("N", "1")), b"")
        if command == b"nodes":
            return Done(int(words[0]))
        if command == b"whoami":
            return Done(3, b"alice\n", b"to stderr\n")
        if command == b"wait":
            await asyncio.get_running_loop().create_future()
        raise TryLater("no node takes it", "try again")

    def _run(self, hello: Hello, words: list[bytes]) -> LocalRun:
        flags = set()
        while words and words[0].startswith(b"-"):
            word, *words = words
            if word == b"--":
                break
            flags.add(word)
        use_pty = hello.tty is not None and hello.tty.raw_allowed and b"-T" not in flags
        run = LocalRun(hello, words, no_stdin=b"-n" in flags, use_pty=use_pty)
        self.runs[run.token] = run
        return run

    def choose(self, hello: Hello) -> GoTo | NotMine | None:
        if b"--help" in hello.argv[:3]:
            return NotMine()
        return GoTo("other") if b"--vo" in hello.argv[:3] else None

    async def resume(self, token: str, hello: Hello) -> Run:
        raise NotFound(f"no program {token} here for a ghost with terminals {hello.isatty}")


async def main(folder: Path) -> None:
    """Serve FOLDER/ghost.sock until SIGTERM; say `ready` on standard output."""
    agent = LocalAgent()
    done: Callable[[], None]
    server = GhostServer(agent.choose, agent.resume)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    serving = asyncio.create_task(server.serve(folder / "ghost.sock", agent.launch))
    done = serving.cancel  # type: ignore[assignment]  # its answer is not wanted
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done)
    await asyncio.sleep(0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    import faulthandler

    import uvloop

    faulthandler.register(signal.SIGUSR1, all_threads=True)

    uvloop.run(main(Path(sys.argv[1])))
