"""Starts the session's agent: a process of its own that outlives the command that logged in.

The password goes to it through a pipe, never by argv, environment or file; it answers with one JSON line when the session works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from xtreemos.errors import RemoteError, TryLater

ANSWER_S = 60.0


def login(directory: Path, vo: str, user: str, password: str) -> dict[str, Any]:
    """Log in and leave an agent running; returns its first words: `{valid_s, ...}`.

    Raises:
        RemoteError: the VO refused, or a service is away; as the agent said. TryLater: the agent did not answer.
    """
    return _start(vo, ["--grid", str(directory), "--vo", vo, "--user", user], password)


def resume(directory: Path, vo: str) -> dict[str, Any]:
    """Start an agent again that died, from the session in the kernel's keyring; answers and errors as `login`."""
    return _start(vo, ["--grid", str(directory), "--vo", vo, "--user", "-", "--resume"], "")


def _start(vo: str, options: list[str], password: str) -> dict[str, Any]:
    source = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": source}
    words = [sys.executable, "-m", "xtreemos.aem.agent", *options]
    process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(password + "\n")
    process.stdin.close()
    line = process.stdout.readline()
    process.stdout.close()
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        raise TryLater("the session's agent ended before it answered", f"see {log_path(vo)}") from None
    if "error" in answer:
        raise RemoteError(answer["error"])
    return answer


def log_path(vo: str) -> Path:
    """Where an agent writes its log."""
    from xtreemos.foundation.paths import agent_dir

    return agent_dir() / f"agent-{vo}.log"
