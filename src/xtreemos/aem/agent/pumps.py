"""Bytes in and out of the standard descriptors that a ghost handed over.

The danger: a descriptor's O_NONBLOCK flag and offset belong to the open file description that the user's shell and the neighbours in
a pipeline share. So the flag is never set on what was passed, and regular files are read and written through the passed descriptor
itself, which moves the shared offset as a local program would. What may block is handled by kind:

- pipe, FIFO: opened anew through /proc/self/fd, which gives a description of our own that may be non-blocking; pipes have no offset;
- socket: MSG_DONTWAIT per call;
- /dev/null, /dev/zero, /dev/full: never block, called in place;
- regular file, block device, other devices, pipes that may not be opened anew: blocking calls in a thread, after readiness where
  the kernel tells it. A thread that hangs on a dead file system holds up its own ghost only, up to THREADS_MAX of them.

Must not know: ghosts, programs, messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

CHUNK_BYTES = 128 * 1024
THREADS_MAX = 64
_MEMORY_MAJOR = 1
_MEMORY_MINORS = {3, 5, 7}  # null, zero, full

threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="ghost-file")


class Kind(Enum):
    """How a descriptor is used without ever blocking the loop."""

    PIPE = "pipe"
    SOCKET = "socket"
    INSTANT = "instant"
    FILE = "file"
    OTHER = "other"


class Port:
    """One passed descriptor, owned: `close` closes it. `writing` says which direction is meant."""

    def __init__(self, fd: int, *, writing: bool) -> None:
        self.fd = fd
        self.seekable = False
        self.read_bytes = 0  # taken from the descriptor so far, also by a read whose caller was cancelled
        self._thread: asyncio.Future[Any] | None = None
        self._close_wanted = False
        self._socket: socket.socket | None = None
        mode = os.fstat(fd).st_mode
        self.kind = Kind.OTHER
        if stat.S_ISFIFO(mode):
            self._open_pipe_anew(writing)
        elif stat.S_ISSOCK(mode):
            self.kind = Kind.SOCKET
            self._socket = socket.socket(fileno=fd)
        elif stat.S_ISCHR(mode) and _is_memory(fd):
            self.kind = Kind.INSTANT
        elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            self.kind = Kind.FILE
            self.seekable = stat.S_ISREG(mode)

    def _open_pipe_anew(self, writing: bool) -> None:
        flags = (os.O_WRONLY if writing else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{self.fd}", flags)
        except OSError:
            return  # made by another user: goes through a thread
        os.close(self.fd)
        self.fd = own
        self.kind = Kind.PIPE

    def close(self) -> None:
        """Close the descriptor, after a call in a thread that still uses it; a second call does nothing."""
        self._close_wanted = True
        if self.fd < 0 or self._thread is not None:
            return  # closing under the thread would let it write into whatever gets the number next
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)
        self.fd = -1

    def read_nowait(self) -> bytes:
        """Read what is there; b"" at the end. Raises BlockingIOError if nothing is there yet or the kind may block."""
        if self._socket is not None:
            data = self._socket.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        elif self.kind in {Kind.PIPE, Kind.INSTANT}:
            data = os.read(self.fd, CHUNK_BYTES)
        else:
            raise BlockingIOError
        self.read_bytes += len(data)
        return data

    def write_nowait(self, data: memoryview) -> int:
        """Write what fits, return how much. Raises BlockingIOError if nothing fits or the kind may block, OSError if it broke."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self.kind in {Kind.PIPE, Kind.INSTANT}:
            return os.write(self.fd, data)
        raise BlockingIOError

    async def read(self) -> bytes:
        """Read some bytes; b"" at the end. Cancelled: a thread may still read once; its bytes are lost but counted."""
        while True:
            try:
                return self.read_nowait()
            except BlockingIOError:
                pass
            if self.kind is not Kind.FILE:
                await wait_ready(self.fd, writing=False)
            if self.kind in {Kind.FILE, Kind.OTHER}:
                return bytes(await self._in_thread(os.read, self.fd, CHUNK_BYTES))

    async def write(self, data: memoryview) -> int:
        """Write some of `data`, return how much. Cancelled: a thread may still write once."""
        while True:
            try:
                return self.write_nowait(data)
            except BlockingIOError:
                pass
            if self.kind is not Kind.FILE:
                await wait_ready(self.fd, writing=True)
            if self.kind in {Kind.FILE, Kind.OTHER}:
                return int(await self._in_thread(os.write, self.fd, bytes(data[:CHUNK_BYTES])))

    async def settle(self) -> None:
        """Wait until no thread uses the descriptor."""
        if self._thread is not None:
            await asyncio.wait([self._thread])

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        self._thread = asyncio.get_running_loop().run_in_executor(threads, call, *args)
        self._thread.add_done_callback(self._thread_done)
        return await asyncio.shield(self._thread)

    def _thread_done(self, future: asyncio.Future[Any]) -> None:
        self._thread = None
        if future.exception() is None and isinstance(future.result(), bytes):
            self.read_bytes += len(future.result())
        if self._close_wanted:
            self.close()


def _is_memory(fd: int) -> bool:
    device = os.fstat(fd).st_rdev
    return os.major(device) == _MEMORY_MAJOR and os.minor(device) in _MEMORY_MINORS


async def wait_ready(fd: int, *, writing: bool) -> bool:
    """Wait until the kernel calls `fd` ready; False at once if it has no word on such descriptors."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    try:
        (loop.add_writer if writing else loop.add_reader)(fd, ready)
    except PermissionError:  # epoll takes no regular files and not every device
        return False
    try:
        await future
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(fd)
    return True


def same_file(one: int, two: int) -> bool:
    """Tell whether two descriptors are one pipe, socket or device, or one opening of a file (same offset and flags)."""
    a, b = os.fstat(one), os.fstat(two)
    if (a.st_dev, a.st_ino, a.st_rdev) != (b.st_dev, b.st_ino, b.st_rdev):
        return False
    return not stat.S_ISREG(a.st_mode) or _position(one) == _position(two)


def _position(fd: int) -> list[bytes]:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        return info.read().splitlines()[:2]  # pos, flags


class OutPump:
    """Writes queued bytes to one descriptor, in order.

    `on_written(count)` after each piece of what was fed (not of lines of ours), also for bytes that were thrown away; `on_broken(reason)` once, if nobody reads any more
    (reason None) or writing fails (reason: the error's text).
    """

    def __init__(self, port: Port, on_written: Callable[[int], None], on_broken: Callable[[str | None], None]) -> None:
        self._port = port
        self._on_written = on_written
        self._on_broken = on_broken
        self._queue: deque[tuple[memoryview, bool]] = deque()  # piece, whether it is the program's
        self.waiting_bytes = 0
        self._broken = False
        self._ending = False
        self._task: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    def feed(self, data: bytes) -> None:
        """Queue bytes; they are written at once if nothing is queued and the descriptor takes them."""
        if self._broken:
            self._on_written(len(data))
        else:
            self._queue_and_write(data, counted=True)

    def say(self, data: bytes) -> None:
        """Queue a line of ours, which `on_written` does not hear of: the program's offsets must not count it."""
        if not self._broken:
            self._queue_and_write(data, counted=False)

    def _queue_and_write(self, data: bytes, *, counted: bool) -> None:
        self._queue.append((memoryview(data), counted))
        self.waiting_bytes += len(data) if counted else 0
        if self._task is None and not self._write_nowait():
            self.idle.clear()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """Close the descriptor as soon as everything is written."""
        self._ending = True
        if self._task is None:
            self._port.close()

    async def drop(self) -> None:
        """Throw away what is queued and close."""
        self._ending = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._throw_away()
        self._port.close()

    def _write_nowait(self) -> bool:
        try:
            while self._queue:
                self._took(self._port.write_nowait(self._queue[0][0]))
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(error)
        return True

    async def _run(self) -> None:
        try:
            while self._queue:
                self._took(await self._port.write(self._queue[0][0]))
        except OSError as error:
            self._break(error)
        finally:
            self._task = None
            self.idle.set()
            if self._ending:
                self._port.close()

    def _took(self, count: int) -> None:
        head, counted = self._queue[0]
        if count == len(head):
            self._queue.popleft()
        else:
            self._queue[0] = (head[count:], counted)
        if counted:
            self.waiting_bytes -= count
            self._on_written(count)

    def _break(self, error: OSError) -> None:
        self._throw_away()
        self._on_broken(None if isinstance(error, BrokenPipeError) else error.strerror or str(error))

    def _throw_away(self) -> None:
        self._broken = True
        lost, self.waiting_bytes = self.waiting_bytes, 0
        self._queue.clear()
        if lost:
            self._on_written(lost)


def put_back(port: Port, count: int) -> None:
    """Move a seekable file's shared offset back by `count` bytes that the program never read."""
    if port.seekable and port.fd >= 0 and count > 0:
        with contextlib.suppress(OSError):  # the file was cut shorter meanwhile: nothing to give back
            os.lseek(port.fd, -count, os.SEEK_CUR)
