"""Byte streams that survive a broken connection: what was sent and not yet acknowledged, what arrived so far.

Offsets count bytes from the start of the stream. The sender keeps every byte until the receiver says it is safe, and never has
more than WINDOW_BYTES under way; after a new connection both go on from the receiver's offset. Pure: no sockets, no tasks.
"""

from __future__ import annotations

from collections import deque

from xtreemos.errors import XosError
from xtreemos.foundation.frames import WINDOW_BYTES


class StreamBroken(XosError):
    """The peer's offsets make no sense for this stream; going on could lose or repeat bytes."""

    fault = "peer"
    code = "stream-broken"


class SendWindow:
    """The sending end of one stream."""

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.window_bytes = window_bytes
        self.acked = 0
        self.sent = 0
        self.ended = False
        self._kept: deque[bytes] = deque()

    @property
    def room(self) -> int:
        """How many bytes may be pushed now."""
        return self.window_bytes - (self.sent - self.acked)

    @property
    def drained(self) -> bool:
        """Whether the stream has ended and everything is with the receiver."""
        return self.ended and self.acked == self.sent

    def push(self, data: bytes) -> int:
        """Take bytes that are now sent; return the offset they are sent at. The caller looked at `room` first."""
        assert not self.ended, "a stream that ended takes no bytes"
        offset = self.sent
        self._kept.append(data)
        self.sent += len(data)
        return offset

    def on_ack(self, offset: int) -> None:
        """The receiver has all bytes below `offset`. A repeated or older acknowledgement changes nothing.

        Raises:
            StreamBroken: more was acknowledged than was sent.
        """
        if offset > self.sent:
            raise StreamBroken(f"byte {offset} was acknowledged, but only {self.sent} were sent")
        while self._kept and self.acked + len(self._kept[0]) <= offset:
            self.acked += len(self._kept.popleft())
        if self.acked < offset:
            cut = offset - self.acked
            self._kept[0] = self._kept[0][cut:]
            self.acked = offset

    def resend(self) -> list[tuple[int, bytes]]:
        """Return (offset, bytes) of all that the receiver may lack, in order; for use after `on_ack` of its offset."""
        rows: list[tuple[int, bytes]] = []
        offset = self.acked
        for data in self._kept:
            rows.append((offset, data))
            offset += len(data)
        return rows


class ReceiveWindow:
    """The receiving end of one stream."""

    def __init__(self) -> None:
        self.offset = 0
        self.end: int | None = None

    @property
    def complete(self) -> bool:
        """Whether everything up to the announced end has arrived."""
        return self.end is not None and self.offset >= self.end

    def accept(self, offset: int, data: bytes) -> bytes:
        """Return the new part of `data` that arrived at `offset` (a repeat gives b"").

        Raises:
            StreamBroken: bytes between are missing.
        """
        if offset > self.offset:
            raise StreamBroken(f"bytes {self.offset} to {offset} are missing")
        fresh = data[self.offset - offset :]
        self.offset += len(fresh)
        return fresh

    def on_eof(self, offset: int) -> None:
        """The sender says that the stream ends at `offset`."""
        self.end = offset
