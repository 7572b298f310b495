"""A person's terminal for the demo: keys go in, a screen comes out, as a terminal emulator would show it.

The program runs on a real pty (pexpect) and what it prints is drawn by pyte. Must not know labs, nodes or the demo's steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pexpect
import pyte

from xtreemos.errors import XosError

_READ_BYTES = 65536
_TICK_S = 0.05


class ScreenWait(XosError):
    """The terminal did not show what it should within the time. The text holds the last lines it showed."""

    fault = "ours"
    code = "demo-screen"


class _Display(pyte.HistoryScreen):
    """pyte 0.8 breaks on the private form of SGR, which vim sends to ask for modified keys."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        """Set colours and the like; the private form sets none."""
        if not private:
            super().select_graphic_rendition(*attrs)


class Screen:
    """One program on one terminal of `rows` x `cols`; close it when done."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], *, rows: int = 24, cols: int = 80) -> None:
        """Start `argv` with environment `env`, TERM included."""
        self._screen = _Display(cols, rows, history=2000)
        self._stream = pyte.ByteStream(self._screen)
        self._child: pexpect.spawn[bytes] = pexpect.spawn(argv[0], list(argv[1:]), env=env, dimensions=(rows, cols), timeout=None)
        self._child.delaybeforesend = None

    def keys(self, text: str) -> None:
        """Type."""
        self._child.send(text)

    def lines(self) -> list[str]:
        """What the terminal shows, rows from the top, without blanks at their ends."""
        return [line.rstrip() for line in self._screen.display]

    def wait(self, shown: Callable[[list[str]], bool], what: str, timeout_s: float = 30.0) -> list[str]:
        """Wait until `shown(lines)` is true; return the lines.

        Raises:
            ScreenWait: it was not within `timeout_s` seconds, or the program ended before.
        """
        end = time.monotonic() + timeout_s
        while not shown(self.lines()):
            if not self._read() or time.monotonic() > end:
                last = " / ".join(line for line in self.lines() if line)[-300:]
                raise ScreenWait(f"the terminal did not show {what}; it shows: {last}")
        return self.lines()

    def wait_still(self, quiet_s: float = 0.4) -> list[str]:
        """Wait until nothing was drawn for `quiet_s` seconds (programs draw a screen in several writes); return the lines."""
        last = time.monotonic()
        while time.monotonic() - last < quiet_s:
            before = self.lines()
            if not self._read():
                break
            if self.lines() != before:
                last = time.monotonic()
        return self.lines()

    def close(self) -> None:
        """Hang the terminal up and end the program."""
        self._child.close(force=True)

    def _read(self) -> bool:
        """Draw what came within a tick; False once the program has closed the terminal."""
        try:
            self._stream.feed(self._child.read_nonblocking(_READ_BYTES, timeout=_TICK_S))
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True
