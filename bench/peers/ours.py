"""XtreemOS itself, in a lab of three nodes: the client on n1, programs on n2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import Driver
from entry import Entry, Sizes, listed
from peers.ssh import pipe_entries

LAB = "bench"
CORE = 1  # nodes that carry the fabric; the others join a server that is already there
TARGET = "n2"
XOS = str(Path(sys.executable).with_name("xos"))
UP_S = 180.0


class Ours:
    """A lab of three nodes, started for this run. Every job has a sandbox and a durable record."""

    name = "XtreemOS"

    def __init__(self) -> None:
        self.up = False
        self.drivers: list[Driver] = []

    def open(self, work: Path, sizes: Sizes) -> None:
        del work
        self.sizes = sizes
        self.up = True
        lab("up", "--nodes", "3", "--core", str(CORE), timeout_s=UP_S)
        self.alice = self._driver("n1", "alice")
        self.roots = [self._driver(node, None) for node in ("n1", "n2")]
        self.alice.ask("text", argv=["xos", "run", "--node", TARGET, "--", "true"])

    def _driver(self, node: str, user: str | None) -> Driver:
        who = ["--user", user] if user else []
        self.drivers.append(Driver([XOS, "lab", "exec", node, "--name", LAB, *who, "--"]))
        return self.drivers[-1]

    def entries(self) -> list[Entry]:
        size, driver = self.sizes, self.alice
        run = ["xos", "run", "--node", TARGET, "--"]
        true = [*run, "true"]
        sub = ["xos", "sub", "--node", TARGET]
        array = [*sub, "--count", str(size.jobs), "--", "true"]
        echo = [*run, "sh", "-c", "stty raw -echo; printf READY; exec cat"]
        rows = [
            Entry("pty", "xos run", driver, {"op": "run", "argv": true, "pty": True}, size.rounds),
            Entry("plain", "xos run", driver, {"op": "run", "argv": true}, size.rounds),
            Entry("batch-one", "xos sub", driver, batch([*sub, "--", "true"], size.jobs), size.batch_rounds, amount=size.jobs),
            Entry(
                "echo",
                "xos run",
                driver,
                {"op": "echo", "key": "xos", "count": size.keystrokes},
                size.echo_rounds,
                before={"op": "echo_open", "key": "xos", "argv": echo},
                after={"op": "echo_close", "key": "xos"},
            ),
            Entry("kill", "xos kill", driver, self._kill(run), size.slow_rounds),
            Entry(
                "ps",
                listed("xos ps", size.jobs),
                driver,
                {"op": "run", "argv": ["xos", "ps", "--all"], "lines_min": size.jobs},
                size.slow_rounds,
                before=batch(array, 1),
            ),
            Entry("cold", "xos run, after log-in", driver, self._cold(true), size.cold_rounds),
        ]
        rows.append(Entry("batch-array", "xos sub, array", driver, batch(array, 1), size.batch_rounds, amount=size.jobs))
        return rows + pipe_entries("xos run", driver, lambda *command: [*run, *command], size)

    def _kill(self, run: list[str]) -> dict[str, Any]:
        start = [*run, "sh", "-c", "echo READY ${XOS_JOB:-}; exec sleep 1000"]
        return {"op": "kill", "start": start, "find": None, "kill": ["xos", "kill", "{id}"]}

    def _cold(self, true: list[str]) -> dict[str, Any]:
        password = users()["alice"]
        before = [
            {"argv": ["xos", "logout"]},
            {"argv": ["xos", "login", "alice@demo", "--password-stdin"], "input": password + "\n"},
        ]
        return {"op": "run", "argv": true, "pty": True, "before": before}

    def facts(self) -> list[str]:
        return [
            "XtreemOS: every job in its own sandbox as the grid user, TLS between the nodes, a durable record of each detached job"
        ]

    def configuration(self) -> dict[str, str]:
        return {}

    def daemons(self) -> list[tuple[str, Driver]]:
        return [("XtreemOS, n1 (core node, one session)", self.roots[0]), ("XtreemOS, n2", self.roots[1])]

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        if self.up:
            lab("down", timeout_s=60)


def batch(submit: list[str], repeat: int) -> dict[str, Any]:
    """Request of a batch whose ids the submissions print."""
    return {"op": "batch", "submit": submit, "repeat": repeat, "done": ["xos", "wait"], "done_when": "exit"}


def lab(command: str, *options: str, timeout_s: float) -> None:
    """Run one `xos lab` command; RuntimeError with its last words if it fails."""
    argv = [XOS, "lab", command, *options, "--name", LAB]
    done = subprocess.run(argv, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"xos lab {command}: {(done.stderr or done.stdout).strip()[-400:]}")


def users() -> dict[str, str]:
    """Passwords of the lab's users, by name."""
    path = Path.home() / ".local" / "state" / "xtreemos" / "lab" / LAB / "users.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: value["password"] if isinstance(value, dict) else value for name, value in found.items()}
