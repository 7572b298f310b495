"""A node's mount namespace for tests: `/sys/fs/cgroup` is pure v2 in it, whatever the machine has; the machine itself stays as it is.

A holder process keeps the namespace; `argv` wraps a command so that it runs in it. The holder ends with the context (or with the
test process: it waits on a pipe), and its mounts with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from xtreemos.errors import XosError
from xtreemos.foundation.cgroups import make_private_view


class NoNamespace(XosError):
    """The node's mount namespace could not be made; tests of real containers need root."""

    fault = "environment"
    code = "no-namespace"


class NodeNamespace:
    """Context: a mount namespace fit for crun. `v1_dir` is where a hybrid machine's v1 controllers are mounted in it."""

    def __init__(self, v1_dir: Path) -> None:
        command = ["unshare", "-m", sys.executable, "-m", "xtreemos.testing.nodens", str(v1_dir)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise NoNamespace("no mount namespace of our own", "run these tests as root")

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return `command` wrapped so that it runs inside."""
        return ["nsenter", "-t", str(self._holder.pid), "-m", "--", *command]

    def run(self, *command: str) -> str:
        """Run a command inside and return what it printed; CalledProcessError if it failed."""
        return subprocess.run(self.argv(command), check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        """End the holder; the namespace goes when the last process in it does."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(10)
        self._holder.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def main() -> None:
    """Hold the namespace that we were started in until our input ends."""
    make_private_view(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
