"""A grid in a lab as tests drive it: commands and real shells of a grid user on a real pty, and a look at nodes from the host."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[1]
PROMPT = "xos-t5> "
WAIT_S = 15.0
USER = "alice"


def _default_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # python ignores it, and ghosts pass on faithfully what is ignored


def until(condition, what: str = "", timeout_s: float = WAIT_S):
    """Wait for the first true value of `condition()` and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.05)
    return value


class Shell(pexpect.spawn):
    """Bash on a real pty in node n1 as a grid user."""

    def __init__(self, grid: Grid, user: str = USER, node: str = "n1") -> None:
        words = [
            "-m",
            "xtreemos.lab.enter",
            "--name",
            grid.name,
            node,
            "--user",
            user,
            "--",
            "bash",
            "--norc",
            "--noprofile",
            "--noediting",
            "-i",
        ]
        env = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C.UTF-8"}
        super().__init__(
            sys.executable, words, env=env, encoding="utf-8", timeout=WAIT_S, dimensions=(30, 100), codec_errors="replace", preexec_fn=_default_sigpipe
        )  # fmt: skip
        self.delaybeforesend = None
        self.grid = grid
        self.expect(r"\$ ")
        self.sendline(
            f"PS1='{PROMPT[:3]}''{PROMPT[3:]}' PS2=; bind 'set enable-bracketed-paste off' 2>/dev/null; alias r='xos run --node n2'"
        )
        self.expect_exact(PROMPT)

    def do(self, command: str, timeout_s: float = WAIT_S) -> str:
        """Type a command, return what it printed (without the echoed command)."""
        self.sendline(command)
        return self.answer(timeout_s)

    def answer(self, timeout_s: float = WAIT_S) -> str:
        """Wait for the prompt and return what came before it, without the echoed line."""
        self.expect_exact(PROMPT, timeout=timeout_s)
        return self.before.partition("\n")[2].replace("\r", "")

    def code(self) -> int:
        """Exit code of the last command."""
        return int(re.findall(r"rc=(\d+)", self.do("echo rc=$?"))[-1])

    def settings(self) -> str:
        """Everything `stty` knows."""
        return "\n".join(line for line in self.do("stty -a; stty -g").split("\n") if "xos run" not in line)

    def sync(self) -> None:
        """Wait for the shell's own prompt behind everything that was typed or printed so far."""
        self.sendline("echo still''here")
        self.expect_exact("stillhere\r\n", timeout=5)
        self.expect_exact(PROMPT, timeout=5)

    def begin(self, script: str, end: str = "", options: str = "") -> str:
        """Start `sh -c SCRIPT` on n2 in the fore- or background; return its job id, when the program runs."""
        self.sendline(f"xos run --node n2 {options} -- sh -c 'echo JOB=$XOS_JOB; {script}' {end}")
        self.expect(r"JOB=(j[a-z2-7]{12})\s")
        job = self.match[1]
        if end:
            self.do("")
        return job

    def end(self) -> None:
        """Hang up, as closing the window does."""
        self.close(force=True)


class HomeFile:
    """The part of pathlib.Path that tests use, done by the user's own commands on a node."""

    def __init__(self, grid: Grid, node: str, name: str, user: str) -> None:
        self.grid, self.node, self.name, self.user = grid, node, name, user

    def __truediv__(self, name: str) -> HomeFile:
        return HomeFile(self.grid, self.node, f"{self.name}/{name}", self.user)

    def _do(self, script: str, data: bytes = b"") -> bytes:
        words = self.grid.inside(self.node, "sh", "-c", f"cd && {script}", "sh", self.name, user=self.user)
        done = subprocess.run(words, env=self.grid.env, input=data, capture_output=True, check=False, timeout=WAIT_S)
        if done.returncode:
            raise FileNotFoundError(f"{self.name} on {self.node}: {done.stderr.decode()}")
        return done.stdout

    def exists(self) -> bool:
        return self._do('test -e "$1" && echo yes || echo no') == b"yes\n"

    def read_bytes(self) -> bytes:
        return self._do('cat "$1"')

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        self._do('cat > "$1"', data)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def touch(self) -> None:
        self._do('touch "$1"')

    def chmod(self, mode: int) -> None:
        self._do(f'chmod {mode:o} "$1"')

    def mkdir(self) -> None:
        self._do('mkdir "$1"')

    def unlink(self, missing_ok: bool = False) -> None:
        self._do(f'rm {"-f" if missing_ok else ""} "$1"')


class Grid:
    """The lab, as root of the host sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def lab(self, *words: str, timeout_s: float = 120.0) -> str:
        """Run `xos lab WORDS`."""
        argv = [sys.executable, "-m", "xtreemos.cli", "lab", *words, "--name", self.name]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=timeout_s)
        assert done.returncode == 0, done
        return done.stdout

    def inside(self, node: str, *argv: str, user: str | None = None) -> list[str]:
        """Return the words that run `argv` in a node, for subprocess."""
        return [
            sys.executable,
            "-m",
            "xtreemos.lab.enter",
            "--name",
            self.name,
            node,
            *(["--user", user] if user else []),
            "--",
            *argv,
        ]

    def sh(
        self, script: str, *, user: str | None = USER, node: str = "n1", stdin: bytes | int = b"", timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a bash script in a node without a terminal; streams are bytes."""
        words = self.inside(node, "bash", "-c", f"shopt -s expand_aliases\nalias r='xos run --node n2'\n{script}", user=user)
        given = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
        return subprocess.run(
            words, env=self.env, capture_output=True, check=False, timeout=timeout_s, preexec_fn=_default_sigpipe, **given
        )

    def out(self, script: str, **how) -> str:
        """Run a bash script that must succeed; return what it printed."""
        done = self.sh(script, **how)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def init_pid(self, node: str) -> int:
        """The host's process id of a node's init."""
        home = Path(os.environ.get("HOME", "/root"))
        record = json.loads((home / ".local/state/xtreemos/lab" / self.name / "lab.json").read_text())
        return next(item["init"]["pid"] for item in record["nodes"] if f"n{item['index']}" == node)

    def file(self, node: str, path: str) -> Path:
        """A node's file as the host sees it."""
        return Path(f"/proc/{self.init_pid(node)}/root{path}")

    def home(self, node: str, name: str, user: str = USER) -> HomeFile:
        """A file in a user's home, seen from a node as that user; root of the machine has no right to look into it."""
        return HomeFile(self, node, name, user)

    def pid(self, node: str, service: str) -> int:
        """Process id, inside the node, of one of its services; 0 while it is not running."""
        return int(json.loads(self.file(node, "/run/xtreemos/pids.json").read_text()).get(service, {}).get("pid", 0))

    def ps(self) -> list[dict]:
        """The rows of `xos ps -a --json`."""
        return json.loads(self.out("xos ps -a --json"))

    def row(self, job: str) -> dict:
        """The row of one job; {} if it is not listed."""
        return next((row for row in self.ps() if row["job"] == job), {})

    def kill_all(self) -> None:
        """End whatever a test left running."""
        self.sh("for j in $(xos ps | awk 'NR>1 {print $1}'); do xos kill -9 $j; done")
