"""What the demo stands on: it types commands in a lab as a person would, prints what they print, and checks what came out.

Plain lines, readable without a terminal; a few colours if there is one. Knows nodes from outside, by `xos lab exec`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.lab.screen import Screen
from xtreemos.lab.view import checkout

COMMAND_WAIT_S = 120.0
SHOWN_LINES_MAX = 40
_NEWS_EVERY_S = 5.0
_READ_BYTES = 65536


class StepFailed(XosError):
    """A step of the demo did not do what it should. The demo ends; the text says what was expected and what came."""

    fault = "ours"
    code = "demo-step"


@dataclass(frozen=True, slots=True)
class Done:
    """A finished step: what was shown, in one line, and how long it took."""

    title: str
    seen: str
    took_s: float


@dataclass(slots=True)
class Stage:
    """Types, prints, checks. `lab` is the lab's name."""

    lab: str
    done: list[Done] = field(default_factory=list)

    # -- printing --------------------------------------------------------------------------------------------------------

    def say(self, line: str = "", style: str = "") -> None:
        """Print a line; `style` is an ANSI number, used on terminals only."""
        coloured = style and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(f"\x1b[{style}m{line}\x1b[0m\n" if coloured else f"{line}\n")
        sys.stdout.flush()

    def prompt(self, command: str, who: str = "alice@n1$") -> None:
        """Print a command as typed."""
        self.say(f"  {who} {command}", "1")

    def box(self, lines: list[str], title: str) -> None:
        """Print a terminal's screen in a frame."""
        width = max(len(line) for line in [*lines, title]) + 2
        self.say(f"  +-- {title} {'-' * (width - len(title) - 4)}+")
        for line in lines:
            self.say(f"  | {line.ljust(width - 2)} |")
        self.say(f"  +{'-' * width}+")

    # -- steps -----------------------------------------------------------------------------------------------------------

    def step(self, title: str, work: Callable[[Stage], str]) -> None:
        """Run one step; `work` returns one line that says what was seen. Its errors pass through."""
        number = len(self.done) + 1
        self.say(f"\n{number}. {title}", "1;36")
        began = time.monotonic()
        seen = work(self)
        self.done.append(Done(title, seen, time.monotonic() - began))

    def check(self, claim: str, truth: bool, otherwise: str = "") -> None:
        """Print the claim as seen, or fail the step."""
        if not truth:
            raise StepFailed(f"not so: {claim}" + (f"; {otherwise}" if otherwise else ""))
        self.say(f"  ok: {claim}", "32")

    # -- typing ----------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        code: int | None = 0,
        show: bool = True,
        shown_as: str = "",
        stdin: bytes = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Type a command in alice's shell on n1; return what it printed (standard output and error together).

        Args:
            command: for bash.
            shown_as: printed in its place.
            code: the exit code it must have; None takes any.
            show: print it and its output.
            stdin: its standard input.
            on_line: called with each line as it comes.

        Raises:
            StepFailed: another exit code, or not ended after COMMAND_WAIT_S seconds.
        """
        if show:
            self.prompt(shown_as or command)
        with subprocess.Popen(
            [*self._enter(), "bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_env()
        ) as child:
            try:
                assert child.stdin
                child.stdin.write(stdin)  # a few KB at most: fits the pipe
                child.stdin.close()
                text = self._follow(child, command, show=show, on_line=on_line)
            except BaseException:
                child.kill()
                raise
        if code is not None and child.returncode != code:
            raise StepFailed(f"`{command}` ended with {child.returncode}, expected {code}: {text.strip()[-300:]}")
        return text

    def _follow(self, child: subprocess.Popen[bytes], command: str, *, show: bool, on_line: Callable[[str], None] | None) -> str:
        """Print lines as they come, and a sign of life when nothing comes for a while."""
        assert child.stdout
        began = time.monotonic()
        text, printed = "", 0
        while True:
            ready, _, _ = select.select([child.stdout], [], [], _NEWS_EVERY_S)
            took_s = time.monotonic() - began
            if took_s > COMMAND_WAIT_S:
                raise StepFailed(f"`{command}` did not end within {COMMAND_WAIT_S:.0f} s")
            if not ready:
                self.say(f"    ... {took_s:.0f} s", "2")
                continue
            data = os.read(child.stdout.fileno(), _READ_BYTES)
            text += data.decode(errors="replace")
            lines = text.split("\n")
            complete = lines if not data else lines[:-1]
            for line in complete[printed:]:
                if show and printed < SHOWN_LINES_MAX and (line or data):
                    self.say(f"    {line}")
                if on_line and line:
                    on_line(line)
                printed += 1
            if not data:
                return text

    def screen(self, *, rows: int, cols: int) -> Screen:
        """Open a terminal with alice's bash on n1 on it."""
        words = [*self._enter(), "bash", "--norc", "--noprofile", "-i"]
        return Screen(words, {**_env(), "TERM": "xterm", "LC_ALL": "C.UTF-8"}, rows=rows, cols=cols)

    def _enter(self) -> list[str]:
        return [sys.executable, "-m", "xtreemos.lab.enter", "--name", self.lab, "n1", "--user", "alice", "--"]


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(checkout(), "src"))}
