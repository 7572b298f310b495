"""Real ghosts (C and Python) before a real agent whose programs run on this machine, and real shells that drive them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/xtreemos/native/ghost.c"
PROMPT = "xos-test> "
WAIT_S = 10.0


def build(folder: Path) -> Path:
    """Compile the C ghost as the comment in it says, without -static where there is no libc.a."""
    target = folder / "xos"
    base = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-s", "-o", target, SOURCE]
    if subprocess.run([*base, "-static"], capture_output=True, check=False).returncode:
        subprocess.run(base, check=True)
    return target


def python_ghost(folder: Path) -> Path:
    target = folder / "xos"
    target.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {ROOT}/src/xtreemos/aem/ghost_fallback.py "$@"\n')
    target.chmod(0o755)
    return target


class Agent:
    """A ghost server in a process of its own, at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xtreemos.testing.localagent", self.folder], stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self.process.stdout.readline() == b"ready\n", self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self) -> None:
        ended = self.process.poll()
        assert ended in {None, -signal.SIGKILL}, f"the agent ended by itself ({ended}): {self.log.read_text()}"
        if ended is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def _default_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # python ignores it, and ghosts pass on faithfully what is ignored


class Shell(pexpect.spawn):
    """An interactive shell on a real pty; `xos` on its PATH is the ghost under test."""

    def __init__(self, ghost: Path, agent: Agent, shell: str = "bash") -> None:
        env = {
            "PATH": f"{ghost.parent}:/usr/bin:/bin", "XOS_AGENT_DIR": str(agent.folder), "TERM": "dumb", "HOME": "/nonexistent", "PS1": PROMPT, "PS2": "",
            "LC_ALL": "C", "XOS_TEST_RUN": os.environ.get("XOS_TEST_RUN", ""),
        }  # fmt: skip
        words = {"bash": ["--norc", "--noprofile", "--noediting", "-i"], "dash": ["-i"], "zsh": ["-f", "-i", "+Z"]}[shell]
        super().__init__(shell, words, env=env, encoding="utf-8", timeout=WAIT_S, dimensions=(30, 100), codec_errors="replace", preexec_fn=_default_sigpipe)
        self.delaybeforesend = None
        self.expect_exact(PROMPT)

    def do(self, command: str) -> str:
        """Type a command, return what it printed (without the echoed command)."""
        self.sendline(command)
        return self.answer()

    def answer(self) -> str:
        self.expect_exact(PROMPT)
        return self.before.partition("\n")[2].replace("\r", "")

    def code(self) -> int:
        return int(re.findall(r"rc=(\d+)", self.do("echo rc=$?"))[-1])

    def settings(self) -> str:
        """Everything `stty` knows, without what the shell says of its jobs meanwhile."""
        return "\n".join(line for line in self.do("stty -a; stty -g").split("\n") if "xos run" not in line)

    def end(self) -> None:
        """Hang up, as closing the window does, and kill what is left of the shell's session."""
        session = self.pid
        self.close(force=True)
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)


def state(pid: int) -> str:
    """One letter of ps for a process; "" if it is gone (a zombie counts as gone)."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if letter in "ZX" else letter


def watches_signals(pid: int) -> bool:
    """Tell whether a ghost is past the first milliseconds, in which signals have their default action."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if fields["Name"].strip() in {"bash", "dash", "zsh", "sh"}:
        return False  # the shell's child before its exec: a signal in this window is lost, grid or no grid
    return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) & 1 << (signal.SIGUSR1 - 1))


def until(condition, what: str = "", timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.02)
