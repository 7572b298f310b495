"""A FUSE connection on the event loop: reads requests, calls handlers, sends answers. Dull: the protocol is in `wire` and `replies`.

A request whose handler answers at once is answered before the next is read; others become tasks, which an interrupt cancels. Nothing a
handler does ends the session: errors become errnos, bugs become EIO and one log line. It ends when the kernel says so (unmounted,
aborted) or `close` is called. One thread, but for notifications.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import device, replies, wire
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.buffers import BufferPool, is_free
from xtreemos.xtreemfs.fuse.constants import Op
from xtreemos.xtreemfs.fuse.errors import FuseError, ProtocolError, SessionEnded
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.notifications import Notifications
from xtreemos.xtreemfs.fuse.notify import Notifier
from xtreemos.xtreemfs.fuse.options import MountOptions, Negotiated
from xtreemos.xtreemfs.fuse.statistics import Statistics, operation_name

log = logging.getLogger(__name__)

DRAIN_MAX = 16  # requests answered before the event loop gets a turn
IOV_MAX = 1000  # parts of one writev; the system's limit is 1024

ERRNO_END = 512  # the kernel takes smaller ones only
# What a descriptor says whose mount has ended; EPIPE is a test's socket in its place.
GONE = {errno.ENODEV, errno.ECONNABORTED, errno.EPERM, errno.EBADF, errno.EPIPE}

Handler = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request whose handler has not answered; `buffer` is what its data lies in. Without `encode` nothing is sent."""

    task: asyncio.Future[Any]
    opcode: int
    encode: replies.Encoder | None
    request: m.Request | None
    buffer: bytearray | None
    payload_bytes: int


class Session(Notifications):
    """One connection on descriptor `fd`, which it owns. With `negotiated` (of a cloned descriptor) it does not expect INIT."""

    def __init__(self, fd: int, handlers: Handlers, options: MountOptions, *, negotiated: Negotiated | None = None) -> None:
        self.fd = fd
        self.options = options
        self.handlers = handlers
        self.stray_interrupt: Callable[[int], None] | None = (
            None  # called with the unique of a request that is not ours: of a clone's
        )
        self._loop = asyncio.get_running_loop()
        self._pool = BufferPool(max(c.READ_BUFFER_BYTES_MIN, options.max_write_bytes + c.PAGE_BYTES))
        super().__init__(
            Notifier(fd, threads=options.notify_threads, slots=options.notify_queue_max),
            Notifier(fd, threads=options.notify_threads, slots=options.notify_queue_max),
        )
        self._decoders: dict[int, wire.Decoder] = dict(wire.DECODERS)
        self._routes: dict[int, tuple[Handler, replies.Encoder]] = {}
        self._waiting: dict[int, _Waiting] = {}  # by unique
        self._interrupted: set[int] = set()  # uniques of cancelled tasks
        self._lock_waits: set[int] = set()  # uniques, a part of _waiting
        self._payload_bytes = 0
        self._paused = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._requests: Counter[int] = Counter()
        self._errors: Counter[int] = Counter()
        self._bugs = 0
        self._destroyed = False
        self._gone = False  # the kernel has ended it: nobody waits for answers
        if negotiated is not None:
            self._agree(negotiated)

    # life

    def start(self) -> None:
        """Begin to read. The descriptor must be mounted, or a clone of one that is."""
        os.set_blocking(self.fd, False)
        self._loop.add_reader(self.fd, self._on_readable)

    async def wait_ready(self) -> None:
        """Return when the negotiation is done.

        Raises:
            ProtocolError: the kernel is too old.
            SessionEnded: the mount ended before.
        """
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            waits: list[asyncio.Future[Any]] = [self._ready, ended]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if not self._ready.done():
            raise SessionEnded("the file system was unmounted before the kernel opened it")
        self._ready.result()

    async def wait_ended(self) -> None:
        """Return when the kernel has ended the connection: unmounted or aborted."""
        await self._ended.wait()

    @property
    def has_ended(self) -> bool:
        """Tell whether the kernel has ended the connection, or `close` was called."""
        return self._ended.is_set()

    async def close(self) -> None:
        """Stop reading, cancel what is not answered (its callers get EIO), close the descriptor.

        If it was the last one and the file system is still mounted, its users see ENOTCONN from then on.
        """
        self._stop()
        for waiting in list(self._waiting.values()):
            waiting.task.cancel()
        while self._waiting:
            await asyncio.wait([waiting.task for waiting in self._waiting.values()])
            await asyncio.sleep(0)  # their callbacks run in the next turn
        self._destroy()
        await asyncio.gather(self._notifier.close(), self._names.close())
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _stop(self) -> None:
        if not self._ended.is_set():
            self._loop.remove_reader(self.fd)
            self._ended.set()
            self._end_retrieving()

    def _destroy(self) -> None:
        if not self._destroyed:
            self._destroyed = True
            try:
                self.handlers.destroy()
            except Exception:  # noqa: BLE001  # a file system's bug must not end the mount; _bug logs it
                self._bug(Op.DESTROY, 0)

    # reading

    def _on_readable(self) -> None:
        buffer = self._pool.take()
        for _ in range(DRAIN_MAX):
            try:
                length = os.readv(self.fd, (buffer,))
            except BlockingIOError:
                break
            except OSError as failed:
                if failed.errno in {errno.ENOENT, errno.EINTR}:  # ENOENT: the request was called off while it was read
                    continue
                self._on_read_failed(failed)
                break
            if length == 0:  # the device never does this; a socket in a test that was closed does
                self._on_ended()
                break
            self._on_message(buffer, length)
            if not is_free(buffer):  # a write's data is still looked at
                buffer = self._pool.take()
            if self._paused or self._ended.is_set():
                break
        self._pool.give_back(buffer)

    def _on_read_failed(self, failed: OSError) -> None:
        if failed.errno not in {errno.ENODEV, errno.ECONNABORTED}:
            log.error("reading the FUSE device failed, the mount ends: %s", failed)
        self._on_ended()

    def _on_ended(self) -> None:
        self._gone = True
        self._stop()
        for waiting in list(self._waiting.values()):
            waiting.task.cancel()

    def _on_message(self, buffer: bytearray, length: int) -> None:
        if length < c.HEADER_IN_BYTES:
            log.error("the kernel sent %d bytes, which is no request", length)
            return
        said, opcode, unique, nodeid, uid, gid, pid, extensions = wire.HEADER_IN.unpack_from(buffer)
        self._requests[opcode] += 1
        try:
            if said != length:
                raise ProtocolError(f"a message of {length} bytes says {said}")  # answered like a handler's error
            route = self._routes.get(opcode)
            if route is None:
                view = memoryview(buffer)[:length]
                self._on_control(
                    wire.decode_body(opcode, (unique, nodeid, uid, gid, pid), view, (said, length, extensions), self._decoders)
                )
                return
            request = self._decoders[opcode]((unique, nodeid, uid, gid, pid), buffer, length - 8 * extensions, length)
            if opcode == Op.SETLKW and len(self._lock_waits) >= self.options.lock_waits_max:
                raise FuseError(errno.ENOLCK)
            answer = route[0](request)
            if hasattr(answer, "__await__"):
                self._spawn(opcode, request, answer, route[1], buffer)
                return
            body = route[1](answer, request)
        except FuseError as error:
            self._send_error(unique, error.errno)
        except Exception:  # noqa: BLE001  # a file system's bug must not end the mount; _bug logs it
            self._bug(opcode, unique)
        else:
            self._send(unique, body)

    def _on_control(self, request: m.Request) -> None:
        """Deal with what no handler answers."""
        match request:
            case m.Forget():
                answer = self.handlers.forget(request)
                if answer is not None:
                    self._spawn(Op.FORGET, request, answer, None, None)
            case m.Interrupt():
                if not self.interrupt(request.target) and self.stray_interrupt is not None:
                    self.stray_interrupt(request.target)
            case m.Init():
                self._on_init(request)
            case m.NotifyReply():
                self._retrieved(request)
            case m.Destroy():
                self._destroy()
                self._send(request.unique, b"")
            case _:
                self._send_error(request.unique, errno.ENOSYS)

    def _on_init(self, init: m.Init) -> None:
        try:
            agreed, body = replies.negotiate(init, self.options)
        except ProtocolError as refused:
            self._send_error(init.unique, errno.EPROTO)
            if not self._ready.done():
                self._ready.set_exception(refused)
            return
        self._send(init.unique, body)
        if agreed is not None:
            self._agree(agreed)

    def _agree(self, agreed: Negotiated) -> None:
        self._negotiated = agreed
        self._decoders = wire.decoders(agreed.flags)
        self._routes = {op: (getattr(self.handlers, name), encode) for op, (name, encode) in replies.ROUTES.items()}
        try:
            self.handlers.init(self)
        except Exception:  # noqa: BLE001  # a file system's bug must not end the mount; _bug logs it
            self._bug(Op.INIT, 0)
        if not self._ready.done():
            self._ready.set_result(None)

    def interrupt(self, unique: int) -> bool:
        """Cancel the handler of request `unique`; tell whether it was there.

        The kernel gives an interrupt to whoever reads next, so with clones it may be another's: `stray_interrupt` hears of that.
        """
        waiting = self._waiting.get(unique)
        if waiting is None:
            return False  # answered meanwhile, or a clone's: one reader reads in order, so it is not still to come
        self._interrupted.add(unique)
        waiting.task.cancel()
        return True

    # handlers that take their time

    def _spawn(
        self, opcode: int, request: m.Request, answer: Awaitable[Any], encode: replies.Encoder | None, buffer: bytearray | None
    ) -> None:
        task = asyncio.ensure_future(answer)
        held, payload = None, 0
        if opcode == Op.WRITE:
            assert isinstance(request, m.Write)
            held, payload = buffer, len(request.data)
        # A write's request is not kept: as long as it lives, its buffer cannot be used again. Its encoder does not look at it.
        self._waiting[request.unique] = _Waiting(task, opcode, encode, None if held is not None else request, held, payload)
        self._payload_bytes += payload
        if opcode == Op.SETLKW:
            self._lock_waits.add(request.unique)
        task.add_done_callback(functools.partial(self._on_done, request.unique))
        if self._is_full():
            self._paused = True
            self._loop.remove_reader(self.fd)

    def _is_full(self) -> bool:
        return (
            len(self._waiting) - len(self._lock_waits) >= self.options.outstanding_max
            or self._payload_bytes >= self.options.payload_bytes_max
        )

    def _on_done(self, unique: int, task: asyncio.Future[Any]) -> None:
        waiting = self._waiting.pop(unique)
        self._lock_waits.discard(unique)
        interrupted = unique in self._interrupted
        self._interrupted.discard(unique)
        self._payload_bytes -= waiting.payload_bytes
        self._answer(unique, waiting, task, interrupted=interrupted)  # after the end it only looks at the result
        if waiting.buffer is not None:
            self._pool.give_back(waiting.buffer)
        if self._paused and not self._is_full() and not self._ended.is_set():
            self._paused = False
            self._loop.add_reader(self.fd, self._on_readable)

    def _answer(self, unique: int, waiting: _Waiting, task: asyncio.Future[Any], *, interrupted: bool) -> None:
        try:
            answer = task.result()
            body = waiting.encode(answer, waiting.request) if waiting.encode is not None else None
        except asyncio.CancelledError:
            if not interrupted and not self._ended.is_set():
                log.error("%s (unique %d): its handler was cancelled by somebody else", operation_name(waiting.opcode), unique)  # noqa: TRY400  # no stack tells more
            self._send_error(unique, errno.EINTR if interrupted else errno.EIO, reply=waiting.encode is not None)
        except FuseError as error:
            self._send_error(unique, error.errno, reply=waiting.encode is not None)
        except Exception:  # noqa: BLE001  # a file system's bug must not end the mount; _bug logs it
            self._bug(waiting.opcode, unique, reply=waiting.encode is not None)
        else:
            if body is not None:
                self._send(unique, body)

    # answering

    def _send(self, unique: int, body: replies.Encoded) -> None:
        if self._gone:
            return
        try:
            if isinstance(body, list):
                parts = body if len(body) <= IOV_MAX else [b"".join(body)]
                os.writev(self.fd, [replies.header(unique, sum(map(len, parts))), *parts])
            else:
                os.write(self.fd, replies.header(unique, len(body)) + body)
        except OSError as failed:
            self._on_send_failed(unique, failed)

    def _on_send_failed(self, unique: int, failed: OSError) -> None:
        if failed.errno == errno.EINVAL:
            # The kernel cannot read our answer. For some faults it has told the program EIO already, for others it still waits.
            log.error("unique %d: the kernel refuses our answer", unique)
            self._bugs += 1
            self._send_error(unique, errno.EIO)
        elif failed.errno not in {errno.ENOENT, *GONE}:  # ENOENT: the request was given up; the others: the reader will see it
            log.error("unique %d: answering failed: %s", unique, failed)

    def _send_error(self, unique: int, number: int, *, reply: bool = True) -> None:
        self._errors[number] += 1
        if not reply or self._gone:
            return
        try:
            os.write(self.fd, replies.header(unique, 0, number if 0 < number < ERRNO_END else errno.EIO))
        except OSError as failed:
            if failed.errno not in {errno.ENOENT, *GONE}:
                log.error("unique %d: answering %d failed: %s", unique, number, failed)  # noqa: TRY400  # no stack tells more

    def _bug(self, opcode: int, unique: int, *, reply: bool = True) -> None:
        """Log the exception that is being handled, and answer EIO."""
        self._bugs += 1
        log.exception(  # noqa: LOG004  # called while an exception is handled
            "%s (unique %d) failed with what is no FuseError; the program is told EIO", operation_name(opcode), unique
        )
        self._send_error(unique, errno.EIO, reply=reply and unique != 0)

    # for root, for other processes, for people

    def backing_open(self, fd: int) -> int:
        """Register open file `fd` for passthrough and return its id; `fd` may be closed then. OSError as the kernel says (EPERM: not root)."""
        return device.backing_open(self.fd, fd)

    def backing_close(self, backing_id: int) -> None:
        """Forget a registered file; opens that use it go on."""
        device.backing_close(self.fd, backing_id)

    def clone(self) -> int:
        """Return a further descriptor of this mount, to be read by another process; each request goes to one of them."""
        return device.clone(self.fd)

    def statistics(self) -> Statistics:
        """Return what happened so far."""
        return Statistics(
            requests={operation_name(op): count for op, count in sorted(self._requests.items())},
            errors={errno.errorcode.get(number, str(number)): count for number, count in sorted(self._errors.items())},
            bugs=self._bugs,
            outstanding=len(self._waiting) - len(self._lock_waits),
            lock_waits=len(self._lock_waits),
            payload_bytes=self._payload_bytes,
            paused=self._paused,
            buffers_made=self._pool.made,
            notifications=self._notifier.sent + self._names.sent,
        )
