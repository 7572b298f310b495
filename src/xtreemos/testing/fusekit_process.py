"""An example file system mounted by a process of its own. The safe way to use one from a test: a process must not use what it serves.

(Not even by accident: starting a program holds Python's global lock until the child has closed its copies of open files, and closing a
file on the mount asks the server.)
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.errors import MountFailed

WAIT_S = 20.0


class ServerProcess:
    """`with ServerProcess(folder, "--cache-ms", "0") as server:` mounts at `server.path`; further words are those of `fusekit_serve`.

    Or of another `module` that prints `mounted`; `prefix` is a command that runs the server, such as setpriv.
    """

    def __init__(self, folder: Path, *words: str, prefix: tuple[str, ...] = (), module: str = "fusekit_serve") -> None:
        self.path = folder
        self._argv = [*prefix, sys.executable, "-m", f"xtreemos.testing.{module}", str(folder), *words]
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        """The server."""
        assert self._process is not None
        return self._process

    def __enter__(self) -> ServerProcess:  # noqa: PYI034  # Self needs no subclass here
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(self._argv, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1)
        try:
            said = self._line()
            if said != "mounted":
                raise MountFailed(f"the server said {said!r}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], WAIT_S)[0]:
            raise MountFailed(f"the server said nothing for {WAIT_S:g} s")
        return self.process.stdout.readline().strip()

    def statistics(self) -> dict[str, Any]:
        """Ask the server for `Session.statistics`, and for `nodes` and `handles` of a file system in memory."""
        self.process.send_signal(signal.SIGUSR1)
        found: dict[str, Any] = json.loads(self._line())
        return found

    def requests(self, name: str) -> int:
        """Return how many requests of an operation the server has seen."""
        return int(self.statistics()["requests"].get(name, 0))

    def _end(self) -> None:
        try:
            syscalls.unmount(str(self.path), lazy=True, force=True)
        except MountFailed:
            pass  # the test has done it
        self.process.terminate()
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(WAIT_S)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
