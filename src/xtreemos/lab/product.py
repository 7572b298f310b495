"""The steps that turn bare machines into a grid with a VO and users: the very commands an owner of real machines would type.

One function per step and nothing else of the product: what a command is called and prints is known here only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtreemos.errors import EXIT_TRY_LATER, EXIT_UNREACHABLE
from xtreemos.lab import store
from xtreemos.lab.model import VO, Lab, LabError, Node
from xtreemos.lab.view import checkout

STEP_WAIT_S = 120.0
READY_WAIT_S = 60.0
READY_WAIT_PER_NODE_S = 2.0
_POLL_S = 0.1


def found(lab: Lab, node: Node) -> None:
    """Found the grid on the first node."""
    _xos(lab, node, ["up", "--name", node.name, "--address", node.address, "--core", "--files", lab.files])


def boot(lab: Lab, node: Node) -> None:
    """Start the node's software on the state it has, as a machine does when it is switched on."""
    _xos(lab, node, ["up"])


def create_vo(lab: Lab, node: Node, admin: str) -> str:
    """Found the VO and return the invitation of its administrator."""
    return str(_json(lab, node, ["vo", "create", VO, "--admin", admin, "--json"])["invite"])


def accept(lab: Lab, node: Node, invitation: str, password: str) -> None:
    """Set an invited user's password."""
    _xos(lab, node, ["vo", "accept", "-", "--password-stdin"], stdin=f"{invitation}\n{password}\n")


def invite_user(lab: Lab, node: Node, admin: str, user: str) -> str:
    """Let the administrator invite a user; return the invitation."""
    return str(_json(lab, node, ["vo", "invite", f"{user}@{VO}", "--json"], user=admin)["invite"])


def invite_node(lab: Lab, node: Node, admin: str, *, core: bool) -> str:
    """Let the administrator make a one-time token with which one machine may join."""
    words = ["vo", "resource", "invite", *(["--core"] if core else []), "--json"]
    return str(_json(lab, node, words, user=admin)["token"])


def join(lab: Lab, node: Node, token: str) -> None:
    """Start the machine's software and make it a resource of the VO; its owner consents. The token is no word of `ps`."""
    core = ["--core"] if node.core else []
    _xos(lab, node, ["join", "-", "--name", node.name, "--address", node.address, *core, "--yes", "--files", lab.files], stdin=token + "\n")


def wait_ready(lab: Lab, node: Node, admin: str) -> None:
    """Wait until every node that is not off is a resource of the VO."""
    wanted = {member.name for member in lab.nodes if member.init}
    end = time.monotonic() + READY_WAIT_S + READY_WAIT_PER_NODE_S * len(wanted)
    while True:
        seen = {str(row["node"]) for row in _json_if_up(lab, node, ["nodes", "--json"], user=admin) or []}
        if wanted <= seen and all(_carries(lab, member) for member in lab.nodes if member.core and member.init):
            return
        if time.monotonic() > end:
            late = sorted(wanted - seen) or ["the core nodes"]
            raise LabError(f"{', '.join(late)}: still no resource of {VO}", f"see {store.lab_dir(lab.name)}/nodes/*/log")
        time.sleep(_POLL_S)


def _carries(lab: Lab, node: Node) -> bool:
    """Tell whether a core node carries its part: with three of them the fabric grows after the last has joined."""
    status = _json_if_up(lab, node, ["status", "--json"])
    return status is not None and bool(status["core"]) and all(row["cda"] and row["connected"] for row in status["vos"])


def _json_if_up(lab: Lab, node: Node, words: Sequence[str], *, user: str | None = None) -> Any:
    """As `_json`, but None while a service is away: a core node's xosd starts anew when the fabric grows."""
    done = run_in(lab, node, ["xos", *words], user=user)
    if done.returncode in (EXIT_UNREACHABLE, EXIT_TRY_LATER):
        return None
    return _json_of(lab, node, words, done)


def _json(lab: Lab, node: Node, words: Sequence[str], *, user: str | None = None) -> Any:
    return _json_of(lab, node, words, run_in(lab, node, ["xos", *words], user=user))


def _json_of(lab: Lab, node: Node, words: Sequence[str], done: subprocess.CompletedProcess[str]) -> Any:
    text = _printed(lab, node, words, done)
    try:
        return json.loads(text)
    except ValueError as bad:
        raise LabError(f"{node.name}: `xos {' '.join(words[:2])}` printed no JSON") from bad


def _xos(lab: Lab, node: Node, words: Sequence[str], *, user: str | None = None, stdin: str = "") -> str:
    """Run `xos WORDS` in a node and return what it printed; raise LabError with its last complaint."""
    return _printed(lab, node, words, run_in(lab, node, ["xos", *words], user=user, stdin=stdin))


def _printed(lab: Lab, node: Node, words: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        step = " ".join(words[:2])
        raise LabError(f"{node.name}: `xos {step}` failed: {said.removeprefix('xos: ')}", f"see {store.node_dir(lab, node)}/log")
    return done.stdout


def run_in(
    lab: Lab, node: Node, argv: Sequence[str], *, user: str | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command in a node, by a process of its own (entering a node is for good), and collect what it says."""
    words = [sys.executable, "-m", "xtreemos.lab.enter", "--name", lab.name, node.name]
    if user:
        words += ["--user", user]
    env = {**os.environ, "PYTHONPATH": str(Path(checkout(), "src"))}
    try:
        return subprocess.run(
            [*words, "--", *argv], input=stdin, env=env, capture_output=True, text=True, check=False, timeout=STEP_WAIT_S
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{node.name}: `{' '.join(argv[:3])}` did not end within {STEP_WAIT_S:.0f} s") from late
