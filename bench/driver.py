"""Talks to one running `inner.py`, wherever it runs. Knows how to ask and how long to wait; not what is measured."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

INNER = Path(__file__).with_name("inner.py")
GRACE_S = 15.0


class MeasureFailed(Exception):
    """A measurement did not come about; the text says why and stands in the report."""


class Driver:
    """A measuring program started by `prefix` (for example an nsenter command); use as a context manager."""

    def __init__(self, prefix: list[str], python: str = sys.executable) -> None:
        argv = [*prefix, python, "-I", "-S", "-u", str(INNER)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, op: str, *, wait_s: float = 60, **params: Any) -> dict[str, Any]:
        """Do one operation there; return its answer.

        Raises:
            MeasureFailed: it failed, or no answer came in `wait_s` (+ grace); the driver is unusable after the latter.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"op": op, **params}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise MeasureFailed("the measuring program has ended") from error
        if not select.select([process.stdout], [], [], wait_s + GRACE_S)[0]:
            process.kill()
            raise MeasureFailed(f"no answer to {op} after {wait_s + GRACE_S:g} s")
        line = process.stdout.readline()
        if not line:
            raise MeasureFailed("the measuring program has ended")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise MeasureFailed(answer["error"])
        return answer

    def close(self) -> None:
        """End the measuring program and reap it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(GRACE_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
