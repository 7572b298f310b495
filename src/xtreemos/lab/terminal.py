"""A terminal inside a node for a user outside: a fresh pty of the node's devpts, and the relay between it and ours.

Raw mode is ours while the relay runs and is undone on every way out. Must not know labs or users.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import select
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass

_TTY_GROUP = 5  # gid of group tty on Debian, as the node's devpts is mounted
_CHUNK_BYTES = 65536
_PENDING_BYTES_MAX = 65536
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_NOTICED = (*_PASSED_ON, signal.SIGCHLD, signal.SIGWINCH, signal.SIGCONT)

Mask = set[int | signal.Signals]


@dataclass(frozen=True, slots=True)
class Pair:
    """A pty: we use `master`, the command `slave`. We keep the slave open too: else the master is "ready" with EIO in every gap."""

    master: int
    slave: int


def open_pair() -> Pair:
    """Open a pty of the devpts of the mount namespace we are in, set up like our own terminal on stdin."""
    master, slave = os.openpty()
    termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(0))
    _copy_size(master)
    return Pair(master, slave)


def take(pair: Pair, account: pwd.struct_passwd | None) -> None:
    """In the child: make the slave the controlling terminal and streams 0, 1 and, unless that is redirected, 2."""
    os.setsid()
    fcntl.ioctl(pair.slave, termios.TIOCSCTTY, 0)
    if account is not None:
        os.fchown(pair.slave, account.pw_uid, _TTY_GROUP)
    redirected = not os.isatty(2)
    for descriptor in (0, 1) if redirected else (0, 1, 2):
        os.dup2(pair.slave, descriptor)


def relay(master: int, pid: int, mask: Mask) -> int:
    """Carry bytes, sizes and signals between our terminal and `master` until child `pid` ends; return its wait status."""
    os.set_blocking(master, False)
    with _wakeups(mask) as wake, _raw_mode():
        return _Relay(master, pid, wake).run()


class _Relay:
    """One loop over three descriptors: our terminal, the master, and the pipe where signals show up."""

    def __init__(self, master: int, pid: int, wake: int) -> None:
        self._master = master
        self._pid = pid
        self._wake = wake
        self._pending = b""
        self._stdin_open = True

    def run(self) -> int:
        while True:
            reading = [self._master, self._wake]
            if self._stdin_open and len(self._pending) < _PENDING_BYTES_MAX:
                reading.append(0)
            ready, writable, _ = select.select(reading, [self._master] if self._pending else [], [])
            if self._master in ready:
                self._output()
            if 0 in ready:
                self._input()
            if writable:
                self._flush()
            if self._wake in ready:
                status = self._signals()
                if status is not None:
                    while self._output():
                        pass
                    return status

    def _output(self) -> bool:
        """Pass on what the node wrote; False if there is nothing more for now (or for ever)."""
        try:
            data = os.read(self._master, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError as gone:
            if gone.errno != errno.EIO:  # EIO: the slave was hung up as the command ended
                raise
            return False
        while data:
            data = data[os.write(1, data) :]
        return True

    def _input(self) -> None:
        data = os.read(0, _CHUNK_BYTES)
        self._stdin_open = bool(data)
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[os.write(self._master, self._pending) :]

    def _signals(self) -> int | None:
        """Act on the signals that came; return the child's wait status once it has ended."""
        for number in os.read(self._wake, _CHUNK_BYTES):
            if number in _PASSED_ON:
                os.kill(self._pid, number)
            elif number == signal.SIGCONT and os.tcgetpgrp(0) == os.getpgrp():
                tty.setraw(0, termios.TCSANOW)  # our shell had its own settings while we were stopped
                _copy_size(self._master)
            elif number == signal.SIGWINCH:
                _copy_size(self._master)
        done, status = os.waitpid(self._pid, os.WNOHANG)
        return status if done else None


def _copy_size(master: int) -> None:
    size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


@contextlib.contextmanager
def _raw_mode() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # our terminal has gone away itself
            termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _wakeups(mask: Mask) -> Iterator[int]:
    """Turn signals into bytes on a pipe; those that came while they were blocked show up first."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _NOTICED:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    yield reading
