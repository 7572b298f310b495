"""Helper processes of a worker: a case that needs several processes names them, and each makes its calls in one of these.

An actor is forked once and serves many cases; one that still waits at the end of a case (for a lock, in open of a FIFO) is killed and
replaced. Requests and answers are MessagePack behind a length, over a socket pair.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import struct

import msgspec

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.model import Outcome
from xtreemos.testing.posix.process import Place, Process

ANSWER_S_MAX = 20.0
_LENGTH = struct.Struct("<I")


class Stuck(Exception):
    """An actor gave no answer in time, or died: of SIGBUS, say, when a mapping could not be read."""


def _receive(channel: socket.socket) -> bytes:
    head = channel.recv(_LENGTH.size, socket.MSG_WAITALL)
    return channel.recv(_LENGTH.unpack(head)[0], socket.MSG_WAITALL) if len(head) == _LENGTH.size else b""


def _send(channel: socket.socket, message: object) -> None:
    body = msgspec.msgpack.encode(message)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def _tupled(value: object) -> object:
    return tuple(_tupled(one) for one in value) if isinstance(value, list) else value


def _serve(process: Process, channel: socket.socket) -> None:
    """Make calls until the worker is gone. `("", ...)` as the call begins a new case."""
    place = Place("")
    while body := _receive(channel):
        call, args, who, where = msgspec.msgpack.decode(body, type=tuple[str, list[object], str, str])
        if not call:
            place.close()
            process.leave()
            place = Place(where)
            _send(channel, [0, None])
            continue
        keep = where
        outcome = process.perform(place, call, tuple(_tupled(arg) for arg in args), who)
        if keep:
            place.slots[keep] = outcome.value
        _send(channel, [outcome.error, outcome.value])


class Actor:
    """One helper process, seen from the worker."""

    def __init__(self, process: Process) -> None:
        self._channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                libc.die_with_parent()
                faulthandler.disable()  # of SIGBUS the worker tells, in one line
                self._channel.close()
                signal.setitimer(signal.ITIMER_REAL, 0)
                process.leave()
                _serve(process, theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._waiting = False

    def begin(self, call: str, args: tuple[object, ...], who: str, keep: str = "") -> None:
        """Send a call without waiting for its answer."""
        _send(self._channel, [call, args, who, keep])
        self._waiting = True

    def finished_within(self, seconds: float) -> bool:
        return bool(select.select([self._channel], [], [], seconds)[0])

    def outcome(self) -> Outcome:
        """The answer of the call under way. Raises Stuck after ANSWER_S_MAX."""
        if not self.finished_within(ANSWER_S_MAX):
            raise Stuck
        if not (body := _receive(self._channel)):
            raise Stuck
        error, value = msgspec.msgpack.decode(body, type=tuple[int, object])
        self._waiting = False
        return Outcome(error, value)

    def perform(self, call: str, args: tuple[object, ...], who: str, keep: str = "") -> Outcome:
        self.begin(call, args, who, keep)
        return self.outcome()

    def renew(self, place: str) -> bool:
        """Forget the last case and go to the folder of the next; False if the actor still waits and must be replaced."""
        if self._waiting:
            return False
        self.perform("", (), "", place)
        return True

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):  # it ended with its channel
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Troupe:
    """The actors of one worker, by name; made when first wanted."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._actors: dict[str, Actor] = {}

    def get(self, name: str) -> Actor:
        if name not in self._actors:
            self._actors[name] = Actor(self._process)
        return self._actors[name]

    def enter(self, place: str, names: set[str]) -> None:
        """Bring the named actors to the folder of a case, replacing what is stuck."""
        for name in names:
            actor = self.get(name)
            if not actor.renew(place):
                self.drop(name)
                self.get(name).renew(place)

    def drop(self, name: str) -> None:
        """End an actor at once, as a crash would."""
        self._actors.pop(name).close()

    def close(self) -> None:
        for name in list(self._actors):
            self.drop(name)
