"""One client's socket of jobd: frames in, frames out, descriptors that came along. Knows no jobs.

Output is bounded: stream data is taken from a job only while nothing waits here (`writable`), and a peer that does not read its
events and answers is dropped. Only uid 0 may talk to jobd.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from xtreemos.errors import XosError
from xtreemos.foundation.frames import BadFrame, Decoder, Frame, Kind, data_head, encode
from xtreemos.foundation.jobd.loop import GONE, READ, WRITE, Loop

RECEIVE_BYTES = 256 * 1024
BACKLOG_BYTES_MAX = 8 * 1024 * 1024
FDS_PER_MESSAGE = 3
FDS_WAITING_MAX = 3 * 16


class Channel(Protocol):
    """What a call that stays open wants to know."""

    def on_frame(self, frame: Frame) -> None: ...
    def on_writable(self) -> None: ...
    def on_gone(self) -> None: ...


class Connection:
    """A client. `on_call(connection, frame)` gets each CALL; open channels get their own frames."""

    def __init__(
        self, loop: Loop, sock: socket.socket, on_call: Callable[[Connection, Frame], None], on_closed: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_call = on_call
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._fds: deque[int] = deque()
        self.channels: dict[int, Channel] = {}
        self.open = True
        sock.setblocking(False)
        loop.register(sock.fileno(), READ, self._on_ready)

    @property
    def writable(self) -> bool:
        """Nothing waits to be sent, so stream data may follow."""
        return self.open and not self._waiting

    def take_fds(self, count: int) -> list[int] | None:
        """Return the oldest `count` descriptors that came with calls; None if there are fewer."""
        if len(self._fds) < count:
            return None
        return [self._fds.popleft() for _ in range(count)]

    def send(self, kind: Kind, channel: int, body: Any = None, *, stream: int = 0, offset: int = 0) -> None:
        """Send one frame; RESULT and ERROR end the channel."""
        if not self.open:
            return
        if kind in (Kind.RESULT, Kind.ERROR):
            self.channels.pop(channel, None)
        self._transmit(encode(Frame(kind, channel, body, stream, offset)))

    def send_error(self, channel: int, error: XosError) -> None:
        """End the channel with `error`."""
        self.send(Kind.ERROR, channel, error.to_wire())

    def send_data(self, channel: int, stream: int, offset: int, data: bytes) -> None:
        """Send one DATA frame without copying its bytes."""
        self._transmit(data_head(channel, stream, offset, len(data)), data)

    def _transmit(self, *parts: bytes) -> None:
        if self._waiting:
            self._queue(*parts)
            return
        try:
            sent = self._sock.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()  # the peer is gone, which is no error of ours: jobs go on without it
            return
        for part in parts:
            if sent < len(part):
                self._queue(part[sent:])
            sent = max(0, sent - len(part))
        if self._waiting:
            self._loop.modify(self._sock.fileno(), READ | WRITE)

    def _queue(self, *parts: bytes) -> None:
        self._waiting.extend(parts)
        self._waiting_bytes += sum(map(len, parts))
        if self._waiting_bytes > BACKLOG_BYTES_MAX:
            self.close()

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self.open and events & (READ | GONE):
            self._receive()

    def _flush(self) -> None:
        while self._waiting:
            part = self._waiting[0]
            try:
                sent = self._sock.send(part, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._waiting_bytes -= sent
            if sent < len(part):
                self._waiting[0] = part[sent:]
                return
            self._waiting.popleft()
        self._loop.modify(self._sock.fileno(), READ)
        for channel in list(self.channels.values()):
            if not self.writable:
                return
            channel.on_writable()

    def _receive(self) -> None:
        try:
            # CLOEXEC here: a descriptor that a client passed must never leak into another job
            data, ancillary, flags, _ = self._sock.recvmsg(
                RECEIVE_BYTES, socket.CMSG_SPACE(FDS_PER_MESSAGE * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._keep_fds(ancillary)
        if not data or flags & socket.MSG_CTRUNC or len(self._fds) > FDS_WAITING_MAX:
            self.close()
            return
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
                if not self.open:
                    return
        except BadFrame:
            self.close()

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind is Kind.CALL:
            if frame.channel in self.channels:
                raise BadFrame("a call on a channel that is in use")
            self._on_call(self, frame)
            return
        channel = self.channels.get(frame.channel)
        if channel is None:
            return  # the channel ended here while the frame was on its way
        if frame.kind is Kind.CLOSE:
            del self.channels[frame.channel]
            channel.on_gone()
        else:
            channel.on_frame(frame)

    def close(self) -> None:
        """Drop the client; what it had open is told so."""
        if not self.open:
            return
        self.open = False
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._waiting.clear()
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            channel.on_gone()
        self._on_closed(self)
