"""Moves bytes between a job's descriptors and its streams, and between streams and the attachment. Decides nothing about jobs.

`Reader` and `Writer` own one descriptor each. `Attachment` is the one client that has the job's streams.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Callable

from xtreemos.foundation.frames import CHUNK_BYTES, Kind
from xtreemos.foundation.jobd.connection import Connection
from xtreemos.foundation.jobd.loop import GONE, READ, WRITE, Loop
from xtreemos.foundation.jobd.spool import SpoolStream
from xtreemos.foundation.jobd.streams import InStream, OutStream


class Reader:
    """Reads a job's output as long as its stream has room; `moved()` is called when something changed."""

    def __init__(self, loop: Loop, fd: int, stream: OutStream | SpoolStream, moved: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._watching = False
        self._moved = moved
        self.stream = stream
        os.set_blocking(fd, False)
        self.resume()

    def resume(self) -> None:
        """Watch the descriptor exactly while there is room (a hang-up would be reported for ever otherwise)."""
        if self._fd < 0:
            return
        wanted = self.stream.room > 0
        if wanted and not self._watching:
            self._loop.register(self._fd, READ, self._on_ready)
        elif not wanted and self._watching:
            self._loop.unregister(self._fd)
        self._watching = wanted

    def _on_ready(self, _events: int) -> None:
        if self._read() is not None:
            self.resume()
            self._moved()

    def _read(self) -> int | None:
        """Move one piece; 0 if nothing is there now, None if this was the end."""
        try:
            data = os.read(self._fd, min(CHUNK_BYTES, self.stream.room))
        except BlockingIOError:
            return 0
        except OSError:  # EIO: every slave end of the terminal is closed
            data = b""
        if not data:
            self.end()
            return None
        self.stream.put(data)
        return len(data)

    def force_end(self) -> bool:
        """Everything of the job is dead: what is there now is all, even if a write end leaked to somebody. True: ended."""
        while self._fd >= 0 and self.stream.room > 0:
            if self._read() == 0:
                self.end()
        self.resume()
        self._moved()
        return self._fd < 0

    def abandon(self) -> None:
        """Nobody reads any more: close, so that the job gets SIGPIPE."""
        self.stream.give_up()
        self.end()

    def end(self) -> None:
        """Close the stream and the descriptor."""
        if self._fd < 0:
            return
        if self._watching:
            self._loop.unregister(self._fd)
            self._watching = False
        os.close(self._fd)
        self._fd = -1
        self.stream.close()
        self._moved()


class Writer:
    """Writes accepted input into the job's end; `moved()` when bytes went, `broken()` when the job closed its end."""

    def __init__(self, loop: Loop, fd: int, *, terminal: bool, moved: Callable[[], None], broken: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._moved = moved
        self._broken = broken
        self._mask = 0
        self._rest = -1  # a read end of the job's pipe, from when our write end is closed
        self._read_bytes: int | None = None
        self.stream = InStream()
        os.set_blocking(fd, False)
        loop.register(fd, 0, self._on_ready)  # mask 0: the kernel still says when the job's end closes

    def push(self) -> None:
        """Write what is pending, as much as goes."""
        while self._fd >= 0 and (chunk := self.stream.pending()) is not None:
            try:
                self.stream.wrote(os.write(self._fd, chunk))
            except BlockingIOError:
                break
            except OSError:
                self._break()
                return
        if self._fd >= 0 and self.stream.finished:
            self._finish()
        if self._fd >= 0:
            mask = WRITE if self.stream.pending() is not None or self.stream.finished else 0
            if mask != self._mask:
                self._mask = mask
                self._loop.modify(self._fd, mask)
        self._moved()

    def _on_ready(self, events: int) -> None:
        if events & GONE:
            self._break()
        else:
            self.push()

    def _finish(self) -> None:
        if self._terminal:
            try:
                os.write(self._fd, b"\x04")  # a terminal's end of file is a character
            except BlockingIOError:
                return  # `push` comes again when there is room
        else:
            self._rest = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._close()

    def read_by_job(self) -> int | None:
        """How many bytes of input the job took out of its pipe; None for a terminal. Right once nobody reads any more."""
        if self._terminal:
            return None
        pipe = self._rest if self._rest >= 0 else self._fd
        if self._read_bytes is None and pipe >= 0:
            (left,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
            return self.stream.written - int(left)
        return self._read_bytes

    def _break(self) -> None:
        self._read_bytes = self.read_by_job()
        self.stream.give_up()
        self.end()
        self._moved()
        self._broken()

    def end(self) -> None:
        """Let go of the job's input."""
        self._close()
        if self._rest >= 0:
            os.close(self._rest)
            self._rest = -1

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1


class Attachment:
    """The client on channel `channel` of `connection` that has the streams of a job."""

    def __init__(self, connection: Connection, channel: int) -> None:
        self.connection = connection
        self.channel = channel

    def event(self, **fields: object) -> None:
        """Send an EVENT."""
        self.connection.send(Kind.EVENT, self.channel, fields)

    def pump(self, readers: dict[int, Reader]) -> None:
        """Send output while the connection takes it, stream by stream in turn."""
        busy = True
        while busy and self.connection.writable:
            busy = False
            for number, reader in readers.items():
                piece = reader.stream.take() if self.connection.writable else None
                if piece is not None:
                    self.connection.send_data(self.channel, number, *piece)
                    busy = True
        for number, reader in readers.items():
            final = reader.stream.take_eof()
            if final is not None:
                self.connection.send(Kind.EOF, self.channel, stream=number, offset=final)

    def acknowledge_input(self, stream: InStream) -> None:
        """Tell how much of the input the job's end took."""
        offset = stream.take_ack()
        if offset is not None:
            self.connection.send(Kind.ACK, self.channel, stream=0, offset=offset)
