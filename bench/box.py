"""A box: network, mount and process namespaces of one peer. When it is closed, the kernel ends and forgets all that was in it.

PID 1 of the box is this file itself, run as a program: it reaps orphans and ends when its stdin does, that is, also when the
benchmark is killed. So no daemon, mount or network interface of a peer can be left behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

START_S = 20.0


class Box:
    """One set of namespaces with its own /proc, an empty /run and the loopback interface up."""

    def __init__(self, name: str) -> None:
        self.name = name
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"]
        argv = [*unshare, sys.executable, "-I", "-S", __file__, name]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_S)[0] or self._process.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError(f"the namespaces for {name} could not be made (needs root)")
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="utf-8").split()[0])

    def inside(self, argv: list[str]) -> list[str]:
        """Return the command that runs `argv` in the box."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "-i", "--", *argv]

    def call(self, argv: list[str], timeout_s: float = 60, **options: object) -> str:
        """Run `argv` in the box to its end; return its output. CalledProcessError, TimeoutExpired as subprocess has them."""
        done = subprocess.run(
            self.inside(argv), check=False, timeout=timeout_s, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
        )  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(argv)[:200]}: {(done.stderr or done.stdout).strip()[-400:]}")
        return str(done.stdout)

    def spawn(self, argv: list[str], log: Path) -> None:
        """Start a daemon that stays in the foreground; its words go to `log`. It ends with the box."""
        with log.open("ab") as file:
            subprocess.Popen(  # the box's PID 1 outlives it; we reap nsenter when the box is closed
                self.inside(["sh", "-c", 'exec "$@" &', "sh", *argv]), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            ).wait(START_S)

    def join(self, other: Box, ours: str, theirs: str) -> None:
        """Lay a cable to another box: addresses like 10.78.0.1/24."""
        net = [
            "nsenter",
            "-t",
            str(self.pid),
            "-n",
            "--",
        ]  # not into its process namespace: the other's pid is meant as seen from here
        cable = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(other.pid)]
        subprocess.run([*net, *cable], check=True, timeout=START_S)
        for box, address in ((self, ours), (other, theirs)):
            box.call(["ip", "addr", "add", address, "dev", "cable"])
            box.call(["ip", "link", "set", "cable", "up"])

    def close(self) -> None:
        """End everything in the box and wait until it is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Be PID 1 of the box."""
    for command in (["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], ["ip", "link", "set", "lo", "up"]):
        subprocess.run(command, check=True)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin not in select.select([sys.stdin, wake_read], [], [])[0]:
        os.read(wake_read, 4096)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main()
