"""What the ghost side and the core of the agent promise each other. Types only.

The ghost side (ghosts.py) calls `Launcher` once per accepted ghost and then drives the `Run` it gets. It must not know nodes, VOs
or specs; the core must not know descriptors, terminals or ghosts.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Terminal:
    """The ghost's terminal. `raw_allowed`: 0 and 1 are terminals and no neighbour prints there, so a pty may be used afar."""

    rows: int
    cols: int
    raw_allowed: bool


@dataclass(frozen=True, slots=True)
class Hello:
    """What a program would inherit from the shell that started the ghost. `env` rows are `NAME=VALUE`, bytes as the kernel gave them.

    `rlimits`: (soft, hard) per resource number, 2**64-1 is infinity. `ignored`: signals that are ignored (nohup); the program must
    start with them ignored. `merged`: standard error is the very same pipe, socket, terminal or file as standard output: start the
    program with one stream for both, else the order between them is lost.
    """

    argv: tuple[bytes, ...]
    env: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    umask: int = 0o022
    pid: int = 0
    pgrp: int = 0
    rlimits: tuple[tuple[int, int], ...] = ()
    nice: int = 0
    tty: Terminal | None = None
    isatty: tuple[bool, bool, bool] = (False, False, False)
    ignored: tuple[int, ...] = ()
    merged: bool = False
    descriptors: tuple[int, int, int] | None = None
    """The ghost's own 0, 1 and 2, if none of them is a terminal: a program on this very machine may get them as they are. They
    belong to the ghost side and are open until `launch` has returned; whoever passes them on duplicates them."""

    @property
    def words(self) -> list[str]:
        """The whole command line, `xos` first, as text (surrogateescape for bytes that are no UTF-8)."""
        return [os.fsdecode(word) for word in self.argv]

    @property
    def environment(self) -> dict[str, str]:
        """The environment as a map of text; entries without `=` are left out, the first of a repeated name counts."""
        found: dict[str, str] = {}
        for entry in self.env:
            name, equals, value = os.fsdecode(entry).partition("=")
            if equals:
                found.setdefault(name, value)
        return found


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of stream 1 or 2 (a terminal uses 1)."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputEnded:
    """Nothing more comes on this stream though the program may go on. Optional; lets a reader in a pipeline see end of file."""

    stream: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The program is stopped by this signal."""

    signal: int


@dataclass(frozen=True, slots=True)
class Continued:
    """The program runs again after a stop."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The program ended; the last event, after all output. `exit` is jobd's exit record (`code`, `signal`, `core`, ...).

    `exit["stdin_consumed"]`, if there, is how many bytes of standard input the program read: a seekable file's shared offset
    is then put back to just behind them, so that `while read x; do xos run ...; done < file` works as with a local program.
    """

    exit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A line for the user on standard error, without line end."""

    text: str


RunEvent = Output | OutputEnded | Stopped | Continued | Ended | Message


class Run(Protocol):
    """A program that runs somewhere, as its ghost sees it. Methods raise XosError only for what ends the program's connection for good."""

    token: str  # names the run to a successor of this agent; not secret, the socket is the user's alone
    wants_tty: bool  # a terminal is on the far side: the ghost goes raw

    async def read(self) -> RunEvent:
        """Return the next event. Is called again at once: output that is not yet written is limited by `consumed`."""
        ...

    def consumed(self, stream: int, count: int) -> None:
        """`count` bytes of `stream` are written and safe: only now acknowledge them. Called once per written piece, in order."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Give bytes to the program; waits while the window is full."""
        ...

    async def close_stdin(self) -> None:
        """Standard input ends here."""
        ...

    async def stdin_closed(self) -> None:
        """Return as soon as the program takes no standard input any more (closed, ended, or never wanted any: `-n`)."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the program's process tree."""
        ...

    async def winsize(self, rows: int, cols: int) -> None:
        """The terminal has a new size."""
        ...

    async def renice(self, nice: int) -> None:
        """The ghost was reniced."""
        ...

    async def output_broken(self, stream: int) -> None:
        """Nobody reads this output any more: the program gets SIGPIPE when it writes."""
        ...

    def detach(self) -> None:
        """The ghost is gone; no method is called after this."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer of a command that is no program (`ps`, `whoami`, `sub`)."""

    code: int = 0
    out: bytes = b""
    err: bytes = b""


@dataclass(frozen=True, slots=True)
class GoTo:
    """The agent of this VO must do it; the ghost goes there."""

    vo: str


@dataclass(frozen=True, slots=True)
class NotMine:
    """The Python command line does this better (`--help`, another grid): the ghost becomes `python -m xtreemos.cli`."""


# Launch is cancelled if the ghost is interrupted or killed meanwhile: then nothing may stay running.
Launcher = Callable[[Hello], Awaitable[Run | Done]]
# Asked before anything else, must not wait; None means "mine".
Chooser = Callable[[Hello], GoTo | NotMine | None]
# A ghost with only terminals survived an agent: find its run again by token, or raise NotFound.
Resumer = Callable[[str, Hello], Awaitable[Run]]
