"""A job's output in a file with a cap, for jobs that run without anybody attached. Same interface as `streams.OutStream`.

jobd writes the file itself: the job holds a pipe, so no descriptor of the container points outside of it (CRIU), and the cap
holds for whatever the job does. Behind the cap output is dropped, after one line that says so; the job is never blocked by it.
"""

from __future__ import annotations

import os
from pathlib import Path

from xtreemos.foundation.frames import CHUNK_BYTES, WINDOW_BYTES, BadFrame
from xtreemos.foundation.jobd.model import OffsetGone


class SpoolStream:
    """One output stream in `path`, at most `bytes_max` of the job's bytes. Opened again, it goes on at the file's end."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.end = os.fstat(self._fd).st_size
        self.base = 0
        self.sent = 0
        self.closed = False
        self.eof_sent = False
        self.failure: str | None = None
        self._bytes_max = bytes_max
        self._full = self.end > bytes_max

    @property
    def room(self) -> int:
        """How many bytes may be read from the job now: always some."""
        return 0 if self.closed else CHUNK_BYTES

    @property
    def drained(self) -> bool:
        """Nothing more will come and the attachment has it all."""
        return self.closed and self.base == self.end

    def put(self, data: bytes) -> None:
        """Append what the cap leaves room for."""
        if self._full:
            return
        kept = data[: self._bytes_max - self.end]
        if len(kept) < len(data):
            self._full = True
            kept += f"\nxos: the limit of {self._bytes_max} bytes of output is reached; the rest is dropped\n".encode()
        try:
            while kept:
                count = os.write(self._fd, kept)
                self.end += count
                kept = kept[count:]
        except OSError as error:
            self._full = True
            self.failure = f"output was lost: {error.strerror}"

    def close(self) -> None:
        """The job's side reached its end."""
        self.closed = True

    def give_up(self) -> None:
        """An attachment went away; the file stays whole."""
        self.base = self.sent = self.end

    def check(self, offset: int | None) -> None:
        """Raise OffsetGone if a new attachment cannot start at `offset`."""
        if offset is not None and not 0 <= offset <= self.end:
            raise OffsetGone(f"output from {offset} was asked for, the file has {self.end} bytes")

    def seek(self, offset: int | None) -> None:
        """Start a new attachment at `offset` (None: the beginning)."""
        self.check(offset)
        offset = offset or 0
        self.base = self.sent = offset
        self.eof_sent = False

    def take(self) -> tuple[int, bytes] | None:
        """Return the next (offset, bytes) within the attachment's window; None when there is nothing to send now."""
        count = min(CHUNK_BYTES, self.end - self.sent, self.base + WINDOW_BYTES - self.sent)
        if count <= 0:
            return None
        data = os.pread(self._fd, count, self.sent)
        offset = self.sent
        self.sent += len(data)
        return (offset, data) if data else None

    def ack(self, offset: int) -> None:
        """The attachment has all below `offset`. Raises BadFrame if it was never sent that much."""
        if offset > self.sent:
            raise BadFrame(f"acknowledged {offset}, sent {self.sent}")
        self.base = max(self.base, offset)

    def take_eof(self) -> int | None:
        """Return the final offset once, when everything was sent and the stream is closed; None otherwise."""
        if self.closed and not self.eof_sent and self.sent == self.end:
            self.eof_sent = True
            return self.end
        return None

    def release(self) -> None:
        """Close the file."""
        os.close(self._fd)
