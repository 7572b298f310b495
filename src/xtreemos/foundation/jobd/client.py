"""A small blocking client of jobd: for tests, for a look by hand, for the supervisor. xosd uses `fabric.rpc` instead.

One call at a time per client, but for an open `attach`, whose frames come through `frames()`.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xtreemos.errors import RemoteError, Unreachable
from xtreemos.foundation.frames import Decoder, Frame, Kind, encode


class JobdClient:
    """A connection to jobd's socket. Errors of jobd are raised as RemoteError, a broken connection as Unreachable."""

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock.settimeout(timeout_s)
        try:
            self._sock.connect(str(path))
        except OSError as cause:
            self._sock.close()
            raise Unreachable(f"jobd does not answer at {path}", "is the node up?") from cause
        self._decoder = Decoder()
        self._arrived: list[Frame] = []
        self._channel = 0

    def open(self, method: str, params: Any = None, fds: Sequence[int] = ()) -> int:
        """Send a CALL (with descriptors); return its channel."""
        self._channel += 1
        message = encode(Frame(Kind.CALL, self._channel, {"method": method, "params": params}))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._sock.sendmsg([message], ancillary)
        self._sock.sendall(message[sent:])
        return self._channel

    def call(self, method: str, params: Any = None, fds: Sequence[int] = ()) -> Any:
        """Make a call and return its result."""
        channel = self.open(method, params, fds)
        for frame in self.frames(channel):
            if frame.kind is Kind.RESULT:
                return frame.body
        raise Unreachable("jobd closed the connection")

    def send(self, kind: Kind, channel: int, body: Any = None, *, stream: int = 0, offset: int = 0) -> None:
        """Send a frame on an open channel."""
        self._sock.sendall(encode(Frame(kind, channel, body, stream, offset)))

    def frames(self, channel: int) -> Iterator[Frame]:
        """Yield the channel's frames up to and with RESULT; ERROR is raised. Frames of other channels wait."""
        while True:
            for index, frame in enumerate(self._arrived):
                if frame.channel == channel:
                    del self._arrived[index]
                    break
            else:
                data = self._sock.recv(1 << 18)
                if not data:
                    raise Unreachable("jobd closed the connection")
                self._arrived += self._decoder.feed(data)
                continue
            if frame.kind is Kind.ERROR:
                raise RemoteError(frame.body)
            yield frame
            if frame.kind is Kind.RESULT:
                return

    def close(self) -> None:
        """Close the connection; what was open ends."""
        self._sock.close()
