"""Calls between two of our processes, over a Unix socket or TLS: many at a time on one connection, each with events and byte streams.

A `Peer` is one connection; both ends may call. A `Call` is one open call on either side. Back-pressure: a reader that does not
read fills its bounded queue and then the connection's reading pauses, so nobody's memory grows. This module knows no method names,
no VO rules and no job: who the caller is comes from `identify`, what a method does from the handler table.
"""

# ruff: noqa: SLF001  # Peer, Call and the links are one unit; nobody outside this file touches their underscores

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xtreemos.errors import InternalError, NotFound, RemoteError, Unreachable, XosError
from xtreemos.fabric.caller import Caller
from xtreemos.foundation import frames
from xtreemos.foundation.files import unlink_own
from xtreemos.foundation.frames import Frame, Kind
from xtreemos.foundation.peers import peer_ids

log = logging.getLogger(__name__)

INBOX_FRAMES_MAX = 256  # frames waiting for one call's reader before its connection stops reading
CALLS_MAX = 4096  # open calls on one connection
FDS_MAX = 8
TAIL_BYTES_MAX = 64 * 1024 * 1024
"""Bytes in tails of calls that are being served: beyond it the connection reads no more until the call that went beyond has ended."""
WRITE_HIGH_BYTES = 4 * frames.WINDOW_BYTES
TLS_WRITE_BYTES = 64 * 1024
"""Of a tail encrypted at a time: the other end decrypts the last while we encrypt the next (measured: twice the speed of all at once)."""
JOINED_BYTES_MAX = 8 * 1024  # above, a second write costs less than a copy
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python has no name for it
SOCKET_BYTES = 1024 * 1024
"""Room of a Unix socket: with the kernel's 208 KiB both ends wake each other five times for one MiB."""

Buffer = bytes | bytearray | memoryview
Handler = Callable[["ServerCall"], Awaitable[Any]]
Identify = Callable[[ssl.SSLObject | ssl.SSLSocket, str], Caller]


@dataclass(frozen=True, slots=True)
class Attached:
    """What a handler returns to send bytes (`tail`, not copied: leave them alone) or descriptors (closed when sent) beside its value."""

    value: Any
    tail: Buffer = b""
    fds: tuple[int, ...] = ()


class ConnectionLost(Unreachable):
    """The connection ended while a call was open; it is not known whether the call was carried out."""

    code = "connection-lost"


class NoConnection(Unreachable):
    """There is no connection to the other side, so nothing was asked of it; it is down, away, or not who it should be."""

    code = "no-connection"
    definite = True


class NoSuchMethod(NotFound):
    """The peer does not offer this method (to this caller)."""

    code = "no-such-method"


class TooManyCalls(XosError):
    """One connection has more than CALLS_MAX open calls. Nothing was started."""

    fault = "caller"
    code = "too-many-calls"


_ENDING = (Kind.RESULT, Kind.ERROR)


class Call:
    """One open call, seen from either side. Frames arrive in order through `receive`."""

    def __init__(self, peer: Peer, channel: int) -> None:
        self.peer = peer
        self.channel = channel
        self._inbox: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: XosError | None = None
        self._sink: Call | None = None

    def forward_to(self, sink: Call | None) -> None:
        """Let frames go to `sink` as they arrive, without waking who waits in `receive`; those come as ever that end the call,
        or that arrive while `sink` takes no more or while earlier ones wait here. None: no longer.
        """
        self._sink = sink

    async def receive(self) -> Frame:
        """Return the next frame; on the calling side RESULT ends the call and ERROR is raised.

        Raises:
            RemoteError: the peer refused or failed. ConnectionLost: the connection ended.
        Cancelling leaves the call open with nothing lost.
        """
        while not self._inbox:
            if self._lost:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        frame = self._inbox.popleft()
        if len(self._inbox) < INBOX_FRAMES_MAX // 2:
            self.peer._resume(self)
        if frame.kind is Kind.ERROR:
            raise RemoteError(frame.body if isinstance(frame.body, dict) else {})
        return frame

    def send_event(self, body: Any) -> None:
        """Send an EVENT with any MessagePack value."""
        self.peer._send(Frame(Kind.EVENT, self.channel, body))

    def send_data(self, stream: int, offset: int, data: bytes, acks: Iterable[tuple[int, int]] = ()) -> None:
        """Send stream bytes at `offset`; the caller keeps to WINDOW_BYTES and keeps the bytes until they are acknowledged.

        `acks`: pairs as for `send_ack`, told before it in the same piece.
        """
        head = frames.data_head(self.channel, stream, offset, len(data))
        for number, safe in acks:
            head = frames.encode(Frame(Kind.ACK, self.channel, None, number, safe)) + head
        if len(data) <= JOINED_BYTES_MAX:
            self.peer._write(head + data)  # one record, one packet, and the other side wakes once
            return
        self.peer._write(head)
        self.peer._write(data)

    def send_ack(self, stream: int, offset: int) -> None:
        """Tell that all bytes of `stream` below `offset` are safe here."""
        self.peer._send(Frame(Kind.ACK, self.channel, None, stream, offset))

    def send_eof(self, stream: int, offset: int) -> None:
        """Tell that `stream` ends at `offset`."""
        self.peer._send(Frame(Kind.EOF, self.channel, None, stream, offset))

    def forward(self, frame: Frame) -> None:
        """Send a frame received on another call, on this call's channel."""
        if frame.kind is Kind.DATA:
            self.send_data(frame.stream, frame.offset, frame.body)
        else:
            self.peer._send(Frame(frame.kind, self.channel, frame.body, frame.stream, frame.offset))

    def close(self) -> None:
        """Abandon the call; the peer is told."""
        if self.peer._forget(self):
            self.peer._send(Frame(Kind.CLOSE, self.channel))

    def _put(self, frame: Frame) -> None:
        sink = self._sink
        if sink is not None and not self._inbox and frame.kind not in _ENDING and sink.peer.takes_more:
            sink.forward(frame)
            return
        self._inbox.append(frame)
        if len(self._inbox) >= INBOX_FRAMES_MAX:
            self.peer._pause(self)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _lose(self, error: XosError) -> None:
        self._lost = error
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class ClientCall(Call):
    """A call that we made. `tail` and `fds` came with the RESULT; whoever asked for descriptors owns them."""

    def __init__(self, peer: Peer, channel: int) -> None:
        super().__init__(peer, channel)
        self.tail: bytes | memoryview = b""
        self.fds: list[int] = []
        self._unclaimed: list[int] = []

    async def result(self) -> Any:
        """Return the RESULT's value; events and data in between are dropped."""
        while True:
            frame = await self.receive()
            if frame.kind is Kind.RESULT:
                self.tail = frame.tail
                self.fds, self._unclaimed = self._unclaimed, []
                return frame.body

    def close(self) -> None:
        """See `Call`; descriptors of a result that nobody took are closed."""
        super().close()
        for fd in self._unclaimed:
            os.close(fd)
        self._unclaimed = []


class ServerCall(Call):
    """A call that the peer made. `fds` are descriptors that came with it; the handler owns them. `tail`: bytes that came beside `params`."""

    def __init__(self, peer: Peer, channel: int, method: str, params: Any, fds: list[int], tail: bytes | memoryview = b"") -> None:
        super().__init__(peer, channel)
        self.method = method
        self.tail = tail
        self.params: dict[str, Any] = params if isinstance(params, dict) else {}
        self.fds = fds
        self.task: asyncio.Task[None] | None = None

    @property
    def caller(self) -> Caller:
        """Who made the call, as the connection proved."""
        return self.peer.caller


class Peer:
    """One connection. Made by `serve_*` and `connect_*` below."""

    def __init__(self, handlers: Mapping[str, Handler], *, caller: Caller, ours_odd: bool, label: str) -> None:
        self.handlers = handlers
        self.caller = caller
        self.label = label
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next_channel = 1 if ours_odd else 2
        self._decoder = frames.Decoder()
        self._calls: dict[int, Call] = {}
        self._full: set[Call] = set()
        self._tail_bytes = 0
        self._link: _Link | None = None
        self._fds: deque[int] = deque()

    # -- calling ---------------------------------------------------------------------------------------------------------

    def open(self, method: str, params: Any = None, fds: Iterable[int] = (), tail: Buffer = b"") -> ClientCall:
        """Start a call and return it open; raises NoConnection if the connection has ended.

        `tail` are bytes for the handler beside `params`. They are not copied: leave them alone until the call has ended.
        """
        if self.is_lost:
            raise NoConnection(f"the connection to {self.label} has ended", "try again")
        channel = self._next_channel
        self._next_channel += 2
        call = ClientCall(self, channel)
        self._calls[channel] = call
        descriptors = list(fds)
        body = {"method": method, "params": params or {}}
        if descriptors:
            body["fds"] = len(descriptors)
        assert self._link is not None
        if tail:
            self._link.write(frames.attached_head(Kind.CALL, channel, body, len(tail)), descriptors, tail)
        else:
            self._link.write(frames.encode(Frame(Kind.CALL, channel, body)), descriptors)
        return call

    async def call(self, method: str, params: Any = None, *, timeout_s: float | None = None, fds: Iterable[int] = ()) -> Any:
        """Make a call and return its result.

        Raises:
            RemoteError: the peer refused or failed. Unreachable: no answer within `timeout_s` (it may have happened).
        """
        call = self.open(method, params, fds)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.result()
        except TimeoutError:
            raise Unreachable(
                f"{self.label} did not answer {method} within {timeout_s:g} s", "try again; it may have been done"
            ) from None
        finally:
            call.close()

    @property
    def takes_more(self) -> bool:
        """Whether `drain` would return at once."""
        return self._link is not None and not self.is_lost and self._link.takes_more

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.lost.done()

    async def drain(self) -> None:
        """Wait until little is left to be written."""
        if self._link is not None and not self.is_lost:
            await self._link.drain()

    def close(self) -> None:
        """End the connection; open calls end with ConnectionLost."""
        if self._link is not None:
            self._link.close()

    # -- frames in -------------------------------------------------------------------------------------------------------

    def _space(self) -> memoryview:
        return self._decoder.space()

    def _received(self, count: int, fds: list[int]) -> None:
        self._fds.extend(fds)
        try:
            arrived = self._decoder.took(count)
        except frames.BadFrame as error:
            log.warning("%s: %s; connection ended", self.label, error)
            self.close()
            return
        for frame in arrived:
            if frame.kind is Kind.CALL:
                self._serve(frame)
                continue
            call = self._calls.get(frame.channel)
            if call is None:  # a frame for a call that has ended here: late, harmless
                for fd in self._take_fds(frame.fds):
                    os.close(fd)
                continue
            if frame.kind is Kind.CLOSE:
                self._forget(call)
                if isinstance(call, ServerCall) and call.task:
                    call.task.cancel()
                continue
            if frame.kind in (Kind.RESULT, Kind.ERROR):
                self._forget(call)
                if frame.fds and isinstance(call, ClientCall):
                    call._unclaimed = self._take_fds(frame.fds)
            call._put(frame)

    def _take_fds(self, wanted: int) -> list[int]:
        return [self._fds.popleft() for _ in range(min(wanted, FDS_MAX, len(self._fds)))]

    def _serve(self, frame: Frame) -> None:
        body = frame.body if isinstance(frame.body, dict) else {}
        fds = self._take_fds(int(body.get("fds", 0) or 0))
        call = ServerCall(self, frame.channel, str(body.get("method", "")), body.get("params"), fds, frame.tail)
        if frame.channel in self._calls or len(self._calls) >= CALLS_MAX:
            self._answer_error(
                call, TooManyCalls(f"more than {CALLS_MAX} calls are open on this connection", "wait for some to end")
            )
            return
        self._calls[frame.channel] = call
        self._tail_bytes += len(call.tail)
        if self._tail_bytes > TAIL_BYTES_MAX:
            self._pause(call)
        call.task = asyncio.create_task(self._run_handler(call), name=f"rpc {call.method}")

    async def _run_handler(self, call: ServerCall) -> None:
        try:
            handler = self.handlers.get(call.method)
            if handler is None:
                raise NoSuchMethod(f"{call.method!r} is not offered here", "is the other side an older version?")
            self._answer(call, await handler(call))
        except asyncio.CancelledError:
            self._forget(call)
            raise
        except RemoteError as error:
            self._answer_error(call, error, error.to_wire())
        except XosError as error:
            self._answer_error(call, error)
        except Exception as error:  # a bug in one handler must not end the connection of all others
            log.exception("%s: %s failed", self.label, call.method)
            self._answer_error(
                call, InternalError(f"{call.method} failed inside: {type(error).__name__}", "please report it with the node's log")
            )
        finally:
            for fd in call.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _answer(self, call: Call, result: Any) -> None:
        wanted = self._forget(call)
        if not isinstance(result, Attached):
            if wanted:
                self._send(Frame(Kind.RESULT, call.channel, result))
            return
        try:
            if wanted and self._link is not None and not self.is_lost:
                head = frames.attached_head(Kind.RESULT, call.channel, result.value, len(result.tail), len(result.fds))
                self._link.write(head, list(result.fds), result.tail)
        finally:
            for fd in result.fds:
                os.close(fd)

    def _answer_error(self, call: Call, error: XosError, wire: dict[str, Any] | None = None) -> None:
        self._forget(call)
        self._send(Frame(Kind.ERROR, call.channel, wire or error.to_wire()))

    def _forget(self, call: Call) -> bool:
        self._resume(call)
        if self._calls.get(call.channel) is not call:
            return False
        del self._calls[call.channel]
        if isinstance(call, ServerCall):
            self._tail_bytes -= len(call.tail)
        return True

    # -- frames out ------------------------------------------------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        self._write(frames.encode(frame))

    def _write(self, data: bytes | memoryview) -> None:
        if self._link is not None and not self.is_lost:
            self._link.write(data)

    # -- back-pressure ---------------------------------------------------------------------------------------------------

    def _pause(self, call: Call) -> None:
        self._full.add(call)
        if self._link is not None:
            self._link.pause_reading()

    def _resume(self, call: Call) -> None:
        if call in self._full:
            self._full.discard(call)
            if not self._full and self._link is not None:
                self._link.resume_reading()

    # -- life ------------------------------------------------------------------------------------------------------------

    def _attached(self, link: _Link) -> None:
        self._link = link

    def _ended(self) -> None:
        if self.lost.done():
            return
        self.lost.set_result(None)
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call._lose(ConnectionLost(f"the connection to {self.label} ended", "try again"))
            if isinstance(call, ServerCall) and call.task:
                call.task.cancel()


class _Link:
    """What a Peer needs of its transport."""

    def write(self, data: bytes | memoryview, fds: list[int] | None = None, tail: Buffer = b"") -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        raise NotImplementedError

    @property
    def takes_more(self) -> bool:
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _StreamLink(asyncio.BufferedProtocol, _Link):
    """TLS (or plain TCP inside tests) through an asyncio transport."""

    def __init__(self, make_peer: Callable[[asyncio.Transport], Peer | None]) -> None:
        self._make_peer = make_peer
        self._peer: Peer | None = None
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.ready: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its ancestry
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
        try:
            peer = self._make_peer(transport)
        except XosError as error:
            log.info("connection refused: %s", error)
            peer = None
        if peer is None:
            transport.abort()
            return
        self._peer = peer
        peer._attached(self)
        if not self.ready.done():
            self.ready.set_result(peer)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._peer._space() if self._peer is not None else memoryview(bytearray(SOCKET_BYTES))

    def buffer_updated(self, count: int) -> None:
        if self._peer is not None:
            self._peer._received(count, [])

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._writable.set()
        if not self.ready.done():
            self.ready.cancel()
        if self._peer is not None:
            self._peer._ended()

    def write(self, data: bytes | memoryview, fds: list[int] | None = None, tail: Buffer = b"") -> None:
        assert not fds, "descriptors travel over Unix sockets only"
        if self._transport is None:
            return
        self._transport.write(data)
        view = memoryview(tail)
        for at in range(0, len(view), TLS_WRITE_BYTES):
            self._transport.write(view[at : at + TLS_WRITE_BYTES])

    async def drain(self) -> None:
        await self._writable.wait()

    @property
    def takes_more(self) -> bool:
        return self._writable.is_set()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _UnixLink(_Link):
    """A Unix stream socket with descriptor passing, which asyncio's transports do not offer."""

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        sock.setblocking(False)
        with contextlib.suppress(PermissionError):  # root only; others go on with the system's limit
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES)
        self._sock = sock
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._out_bytes = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._closed = False
        peer._attached(self)
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            count, ancillary, _flags, _address = self._sock.recvmsg_into(
                [self._peer._space()], socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count, ancillary = 0, []
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4]))
        if not count:
            self.close()
            return
        self._peer._received(count, fds)

    def write(self, data: bytes | memoryview, fds: list[int] | None = None, tail: Buffer = b"") -> None:
        if self._closed:
            return
        idle = not self._out
        if idle and not fds:
            data, tail = self._rest(data, tail)
            if not data and not tail:
                return  # as most often
        # The descriptors are ours until sent: the caller may close its own copies at once.
        self._out.append((memoryview(data), [os.dup(fd) for fd in fds or []]))
        if tail:
            self._out.append((memoryview(tail), []))
        self._out_bytes += len(data) + len(tail)
        if idle:
            self._flush()
        if self._out_bytes > WRITE_HIGH_BYTES:
            self._writable.clear()

    def _rest(self, data: bytes | memoryview, tail: Buffer) -> tuple[bytes | memoryview, Buffer]:
        """Send what the socket takes at once, nothing else waiting; return what it did not take."""
        try:
            sent = self._sock.sendmsg((data, tail)) if tail else self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return data, tail
        except OSError:
            self.close()
            return b"", b""
        if sent < len(data):
            return memoryview(data)[sent:], tail
        return b"", memoryview(tail)[sent - len(data) :]

    def _flush(self) -> None:
        while self._out:
            fds = self._out[0][1]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            batch = [self._out[0][0]]
            # A head and its tail go together; descriptors go with the first byte of their own message.
            if len(self._out) > 1 and not self._out[1][1]:
                batch.append(self._out[1][0])
            try:
                sent = self._sock.sendmsg(batch, ancillary)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            for fd in fds:
                os.close(fd)
            self._out_bytes -= sent
            for data in batch:
                if sent < len(data):
                    self._out[0] = (data[sent:], [])
                    break
                sent -= len(data)
                self._out.popleft()
        self._loop.remove_writer(self._sock.fileno())
        if not self._writable.is_set():
            self._writable.set()

    async def drain(self) -> None:
        await self._writable.wait()

    @property
    def takes_more(self) -> bool:
        return self._writable.is_set()

    def pause_reading(self) -> None:
        if self._reading and not self._closed:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def resume_reading(self) -> None:
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _data, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self._sock.close()
        self._writable.set()
        self._peer._ended()


class Server:
    """A listening socket and the peers connected to it."""

    def __init__(self) -> None:
        self.peers: set[Peer] = set()
        self._close: Callable[[], None] = lambda: None

    def _joined(self, peer: Peer) -> None:
        self.peers.add(peer)
        peer.lost.add_done_callback(lambda _future: self.peers.discard(peer))

    async def close(self) -> None:
        """Stop listening and end every connection."""
        self._close()
        for peer in list(self.peers):
            peer.close()


async def serve_unix(path: Path, handlers: Mapping[str, Handler], *, mode: int = 0o600, allowed_uid: int | None = None) -> Server:
    """Listen on a Unix socket; callers are `local` with the uid the kernel tells.

    `allowed_uid` refuses every other uid (root included unless it is the one) before a byte is read.
    """
    loop = asyncio.get_running_loop()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    inode = path.lstat().st_ino
    path.chmod(mode)
    listener.listen(512)
    server = Server()

    def accept() -> None:
        while True:
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            _pid, uid = peer_ids(sock)
            if allowed_uid is not None and uid != allowed_uid:
                sock.close()
                continue
            peer = Peer(handlers, caller=Caller(kind="local", uid=uid), ours_odd=False, label=f"local uid {uid}")
            _UnixLink(sock, peer)
            server._joined(peer)

    loop.add_reader(listener.fileno(), accept)

    def close() -> None:
        loop.remove_reader(listener.fileno())
        listener.close()
        unlink_own(path, inode)

    server._close = close
    return server


async def connect_unix(path: Path, handlers: Mapping[str, Handler] | None = None) -> Peer:
    """Connect to a Unix socket.

    Raises:
        NoConnection: nobody listens there. Environment's fault; definite.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
    except OSError as error:
        sock.close()
        raise NoConnection(f"nothing listens on {path}", "is the node up? try `xos status`") from error
    _pid, uid = peer_ids(sock)
    peer = Peer(handlers or {}, caller=Caller(kind="local", uid=uid), ours_odd=True, label=str(path))
    _UnixLink(sock, peer)
    return peer


class _Refusing(dict[str, Handler]):
    """A handler table that answers every method by one error."""

    def __init__(self, error: XosError) -> None:
        super().__init__()
        self._error = error

    def get(self, _key: object, _default: object = None) -> Handler:
        async def refuse(_call: ServerCall) -> None:
            raise self._error

        return refuse


async def serve_tls(host: str, port: int, context: ssl.SSLContext, handlers: Mapping[str, Handler], identify: Identify) -> Server:
    """Listen with TLS; `identify(ssl_object, peer_address)` returns the caller or raises to refuse the connection."""
    server = Server()

    def make_peer(transport: asyncio.Transport) -> Peer:
        address = str((transport.get_extra_info("peername") or ("?",))[0])
        try:
            caller = identify(transport.get_extra_info("ssl_object"), address)
        except XosError as error:
            # TLS is done, so the client is told why: every call it makes is answered by the refusal, nothing else is served.
            log.info("connection from %s refused: %s", address, error)
            return Peer(_Refusing(error), caller=Caller("anonymous", address=address), ours_odd=False, label=f"refused {address}")
        peer = Peer(handlers, caller=caller, ours_odd=False, label=f"{caller.kind} {caller.name or address}")
        server._joined(peer)
        return peer

    listener = await asyncio.get_running_loop().create_server(
        lambda: _StreamLink(make_peer), host, port, ssl=context, ssl_handshake_timeout=10, backlog=512, reuse_address=True
    )
    server._close = listener.close
    return server


async def connect_tls(
    host: str,
    port: int,
    context: ssl.SSLContext,
    server_hostname: str,
    *,
    identify: Identify,
    handlers: Mapping[str, Handler] | None = None,
    timeout_s: float = 5.0,
) -> Peer:
    """Connect with TLS. `identify` checks the server's certificate (after OpenSSL did) and names it.

    Raises:
        NoConnection: no connection within `timeout_s`, or the other side is not who it should be. Definite.
    """
    where = f"{host}:{port}"

    def make_peer(transport: asyncio.Transport) -> Peer:
        caller = identify(transport.get_extra_info("ssl_object"), host)
        return Peer(handlers or {}, caller=caller, ours_odd=True, label=f"{caller.name or where}")

    try:
        async with asyncio.timeout(timeout_s):
            _transport, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _StreamLink(make_peer), host, port, ssl=context, server_hostname=server_hostname
            )
            return await protocol.ready
    except ssl.SSLError as error:
        raise NoConnection(
            f"{where} could not prove who it is ({error.reason or 'TLS failed'})", "ask the VO's administrator"
        ) from error
    except (TimeoutError, OSError) as error:
        raise NoConnection(f"{where} does not answer", "is that node up? try `xos nodes`") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise NoConnection(f"{where} refused the connection", "is your log-in still valid? try `xos whoami`") from None
