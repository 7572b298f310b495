"""Offset arithmetic of a job's byte streams. Pure: bytes come in, bytes go out, nothing is read or written here.

Output: jobd keeps every byte until the attachment acknowledged it, at most WINDOW_BYTES; with the window full it does not read
the job's pipe, so the job feels back-pressure. A new attachment resumes at any offset that is still kept.
Input: bytes are *accepted* into a buffer of at most WINDOW_BYTES and *acknowledged* once the job's pipe took them; a sender that
resends after a broken connection is trimmed to what is new.
"""

from __future__ import annotations

from collections import deque

from xtreemos.foundation.frames import WINDOW_BYTES, BadFrame
from xtreemos.foundation.jobd.model import OffsetGone


class OutStream:
    """One output stream. Offsets count from the start of the stream: base <= sent <= end, end - base <= WINDOW_BYTES."""

    def __init__(self, base: int = 0) -> None:
        self.base = base  # first byte kept: all below was acknowledged
        self.end = base
        self.sent = base  # first byte not yet sent to the present attachment
        self.closed = False
        self.eof_sent = False
        self.given_up = False
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._next = 0  # index of the first chunk with something to send

    @property
    def room(self) -> int:
        """How many bytes may be read from the job now."""
        return 0 if self.closed else WINDOW_BYTES - (self.end - self.base)

    @property
    def drained(self) -> bool:
        """Nothing more will come and all of it was acknowledged."""
        return self.closed and self.base == self.end

    def put(self, data: bytes) -> None:
        """Keep `data`, which was just read from the job and is no longer than `room`."""
        assert len(data) <= self.room, "read more than the window has room for"
        self._chunks.append((self.end, data))
        self.end += len(data)

    def close(self) -> None:
        """The job's side reached its end."""
        self.closed = True

    def check(self, offset: int | None) -> None:
        """Raise OffsetGone if a new attachment cannot start at `offset`; of a stream that nobody reads any more, any will do."""
        if offset is not None and not self.given_up and not self.base <= offset <= self.end:
            raise OffsetGone(f"output from {offset} was asked for, kept is {self.base} to {self.end}")

    def seek(self, offset: int | None) -> None:
        """Start a new attachment at `offset` (None: at the first byte kept); what lies below it counts as acknowledged."""
        self.check(offset)
        if self.given_up:
            return
        offset = self.base if offset is None else offset
        self.sent = self.base
        self._next = 0
        self.eof_sent = False
        self._drop(offset)
        self.sent = offset

    def take(self) -> tuple[int, bytes] | None:
        """Return the next (offset, bytes) to send and count it as sent; None when all was sent."""
        if self._next >= len(self._chunks):
            return None
        start, data = self._chunks[self._next]
        if start < self.sent:
            data = data[self.sent - start :]
        offset = self.sent
        self.sent += len(data)
        self._next += 1
        return offset, data

    def ack(self, offset: int) -> None:
        """The attachment has all below `offset`. Raises BadFrame if it was never sent that much."""
        if offset > self.sent:
            raise BadFrame(f"acknowledged {offset}, sent {self.sent}")
        self._drop(offset)

    def _drop(self, offset: int) -> None:
        chunks = self._chunks
        while chunks and chunks[0][0] + len(chunks[0][1]) <= offset:
            chunks.popleft()
            self._next = max(0, self._next - 1)
        self.base = max(self.base, offset)

    def give_up(self) -> None:
        """Nobody reads this stream any more: it ends here, and nothing of it waits."""
        self.closed = self.eof_sent = self.given_up = True
        self._chunks.clear()
        self._next = 0
        self.base = self.sent = self.end

    def take_eof(self) -> int | None:
        """Return the final offset once, when everything was sent and the stream is closed; None otherwise."""
        if self.closed and not self.eof_sent and self.sent == self.end:
            self.eof_sent = True
            return self.end
        return None


class InStream:
    """The input stream: written <= accepted, accepted - written <= WINDOW_BYTES."""

    def __init__(self) -> None:
        self.accepted = 0
        self.written = 0
        self.acked = 0
        self.final: int | None = None  # known once the sender said EOF
        self.broken = False  # the job closed its end: bytes are accepted and dropped
        self._chunks: deque[bytes] = deque()

    @property
    def finished(self) -> bool:
        """All that will ever come has been written: the job's end may be closed."""
        return self.final is not None and self.written == self.final

    def on_data(self, offset: int, data: bytes) -> None:
        """Accept DATA; bytes accepted before are skipped.

        Raises BadFrame for a gap, for more than the window, or for data behind the end.
        """
        if offset > self.accepted:
            raise BadFrame(f"input jumps from {self.accepted} to {offset}")
        fresh = data[self.accepted - offset :]
        if not fresh:
            return
        if self.final is not None:
            raise BadFrame("input goes on behind its end")
        if self.accepted + len(fresh) - self.written > WINDOW_BYTES:
            raise BadFrame("more input than the window allows")
        self.accepted += len(fresh)
        if self.broken:
            self.written = self.accepted
        else:
            self._chunks.append(fresh)

    def on_eof(self, offset: int) -> None:
        """The sender's end is at `offset`; saying it twice is allowed. Raises BadFrame if bytes are missing."""
        if offset != self.accepted or (self.final is not None and self.final != offset):
            raise BadFrame(f"input ends at {offset}, accepted {self.accepted}")
        self.final = offset

    def pending(self) -> bytes | None:
        """Return the bytes to write next; None when there are none."""
        return self._chunks[0] if self._chunks else None

    def wrote(self, count: int) -> None:
        """`count` bytes of `pending` went into the job's pipe."""
        chunk = self._chunks[0]
        self.written += count
        if count == len(chunk):
            self._chunks.popleft()
        else:
            self._chunks[0] = chunk[count:]

    def give_up(self) -> None:
        """Nobody will read any more: drop what waits, and what comes."""
        self.broken = True
        self._chunks.clear()
        self.written = self.accepted

    @property
    def unacknowledged(self) -> int:
        """Bytes that were written and that the sender was not told of."""
        return self.written - self.acked

    def take_ack(self) -> int | None:
        """Return the offset to acknowledge when it moved since the last call; None otherwise."""
        if self.written == self.acked:
            return None
        self.acked = self.written
        return self.acked
