"""The driver against a kernel made of a socket: what it does with answers that come at once, late, wrong or never."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct

import pytest

from xtreemos.testing import fusekit_kernel as kernel
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse import replies
from xtreemos.xtreemfs.fuse.constants import InitFlag, Op
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import FuseError, NotifyQueueFull, ProtocolError, SessionEnded
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.options import MountOptions

WAIT_S = 10.0
INIT = m.Init(1, 0, 0, 0, 0, 7, 45, 1 << 17, (1 << 43) - 1)


class Kernel:
    """One end of a SEQPACKET pair; messages keep their borders as on the device."""

    def __init__(self, theirs: socket.socket) -> None:
        self._socket = theirs
        self._uniques = iter(range(2, 1 << 30, 2))

    async def ask(self, op: Op, kind: type[m.Request], *fields, nodeid: int = 1, pid: int = 9) -> int:
        unique = next(self._uniques)
        await self.send(kernel.encode(op, kind(unique, nodeid, 1000, 1000, pid, *fields)))
        return unique

    async def send(self, raw: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, raw)

    async def hear(self) -> tuple[int, int, bytes]:
        """Return (unique, errno or notification code, body) of the next thing the driver says."""
        raw = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 1 << 20), WAIT_S)
        length, error, unique = replies.HEADER_OUT.unpack_from(raw)
        assert length == len(raw)
        return unique, -error, raw[16:]

    async def answered(self, op: Op, kind: type[m.Request], *fields, nodeid: int = 1) -> tuple[int, bytes]:
        unique = await self.ask(op, kind, *fields, nodeid=nodeid)
        said, error, body = await self.hear()
        assert said == unique
        return error, body

    async def is_silent(self) -> bool:
        """Tell whether nothing was said, after the loop had every chance."""
        for _ in range(20):
            await asyncio.sleep(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False

    def unmount(self) -> None:
        self._socket.close()


@contextlib.asynccontextmanager
async def session_of(handlers: Handlers, **options):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    session = Session(ours.detach(), handlers, MountOptions(**options))
    fake = Kernel(theirs)
    session.start()
    await fake.send(kernel.encode(Op.INIT, INIT))
    assert (await fake.hear())[:2] == (1, 0)
    await session.wait_ready()
    try:
        yield session, fake
    finally:
        theirs.close()
        await asyncio.wait_for(session.close(), WAIT_S)


class Slow(Handlers):
    """Reads wait for `go`; the rest is told by each test."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: list[m.Request] = []
        self.ended: list[str] = []

    async def read(self, request):
        self.seen.append(request)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return b"data"

    def getattr(self, request):
        return m.AttrReply(m.Attr(request.nodeid, 0o100644))

    async def setlk(self, request):
        await self.go.wait()

    async def write(self, request):
        self.seen.append(request)
        await self.go.wait()
        return len(request.data)

    def destroy(self):
        self.ended.append("destroyed")


READ = (Op.READ, m.Read, 1, 0, 4096, 0, 0, 0)
GETATTR = (Op.GETATTR, m.GetAttr, None)


def run(coroutine) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_slow_request_does_not_hold_up_a_fast_one():
    async def scenario():
        slow = Slow()
        async with session_of(slow) as (_, fake):
            first = await fake.ask(*READ)
            assert (await fake.answered(*GETATTR))[0] == 0
            slow.go.set()
            assert await fake.hear() == (first, 0, b"data")

    run(scenario())


def test_an_interrupt_cancels_the_handler_and_answers_eintr():
    async def scenario():
        slow = Slow()
        async with session_of(slow) as (session, fake):
            first = await fake.ask(*READ)
            await fake.send(kernel.encode(Op.INTERRUPT, m.Interrupt(first | 1, 0, 0, 0, 0, first)))
            assert await fake.hear() == (first, errno.EINTR, b"")
            assert slow.ended == ["cancelled"] or not slow.seen
            assert session.statistics().outstanding == 0

    run(scenario())


def test_an_interrupt_in_the_same_drain_reaches_a_handler_that_has_not_begun():
    async def scenario():
        slow = Slow()
        async with session_of(slow) as (_, fake):
            raw = kernel.encode(Op.READ, m.Read(50, 1, 0, 0, 0, 1, 0, 10, 0, 0, 0))
            fake._socket.send(raw)  # without a turn of the loop between them
            fake._socket.send(kernel.encode(Op.INTERRUPT, m.Interrupt(51, 0, 0, 0, 0, 50)))
            assert await fake.hear() == (50, errno.EINTR, b"")
            assert slow.seen == []

    run(scenario())


def test_an_interrupt_of_an_answered_or_unknown_request_is_nothing():
    async def scenario():
        async with session_of(Slow()) as (session, fake):
            unique = await fake.ask(*GETATTR)
            await fake.hear()
            for target in (unique, 4712):
                await fake.send(kernel.encode(Op.INTERRUPT, m.Interrupt(target | 1, 0, 0, 0, 0, target)))
            assert (await fake.answered(*GETATTR))[0] == 0
            assert session.interrupt(unique) is False

    run(scenario())


def test_a_second_interrupt_of_one_request_changes_nothing():
    async def scenario():
        async with session_of(Slow()) as (_, fake):
            first = await fake.ask(*READ)
            for _ in range(2):
                await fake.send(kernel.encode(Op.INTERRUPT, m.Interrupt(first | 1, 0, 0, 0, 0, first)))
            assert (await fake.hear())[:2] == (first, errno.EINTR)
            assert await fake.is_silent()

    run(scenario())


def test_a_handler_that_had_an_effect_answers_in_spite_of_an_interrupt():
    class Stubborn(Slow):
        async def read(self, request):
            with contextlib.suppress(asyncio.CancelledError):
                await self.go.wait()
            return b"done"

    async def scenario():
        async with session_of(Stubborn()) as (_, fake):
            first = await fake.ask(*READ)
            assert (await fake.answered(*GETATTR))[0] == 0  # it has begun
            await fake.send(kernel.encode(Op.INTERRUPT, m.Interrupt(first | 1, 0, 0, 0, 0, first)))
            assert await fake.hear() == (first, 0, b"done")

    run(scenario())


@pytest.mark.log_warnings("READ .*no FuseError|GETATTR .*no FuseError")
def test_a_bug_of_a_handler_is_eio_and_one_log_line(caplog):
    class Broken(Handlers):
        def getattr(self, request):
            raise OSError(errno.ENOSPC, "not translated")

        async def read(self, request):
            await asyncio.sleep(0)
            raise RuntimeError("late")

    async def scenario():
        async with session_of(Broken()) as (session, fake):
            assert await fake.answered(*GETATTR) == (errno.EIO, b"")
            assert await fake.answered(*READ) == (errno.EIO, b"")
            assert session.statistics().bugs == 2
            assert session.statistics().errors == {"EIO": 2}

    run(scenario())
    assert [record.levelname for record in caplog.records if "no FuseError" in record.message] == ["ERROR", "ERROR"]


@pytest.mark.log_warnings("no FuseError")
@pytest.mark.parametrize("answer", [None, "text", b"x" * 5000, m.Attr(1, 0), [b"x" * 4000, b"y" * 4000]])
def test_an_answer_of_the_wrong_kind_or_size_is_eio(answer):
    class Wrong(Handlers):
        def read(self, request):
            return answer

    async def scenario():
        async with session_of(Wrong()) as (_, fake):
            assert await fake.answered(*READ) == (errno.EIO, b"")

    run(scenario())


@pytest.mark.log_warnings("no FuseError")
def test_a_number_that_does_not_fit_its_field_is_eio():
    class Wrong(Handlers):
        def getattr(self, request):
            return m.AttrReply(m.Attr(1, -1))

    async def scenario():
        async with session_of(Wrong()) as (_, fake):
            assert await fake.answered(*GETATTR) == (errno.EIO, b"")

    run(scenario())


def test_a_fuse_error_is_its_errno_also_from_a_task():
    class Refusing(Handlers):
        def getattr(self, request):
            raise FuseError(errno.ESTALE)

        async def read(self, request):
            await asyncio.sleep(0)
            raise FuseError(errno.ENOSPC)

    async def scenario():
        async with session_of(Refusing()) as (session, fake):
            assert await fake.answered(*GETATTR) == (errno.ESTALE, b"")
            assert await fake.answered(*READ) == (errno.ENOSPC, b"")
            assert session.statistics().bugs == 0

    run(scenario())


def test_what_a_file_system_lacks_and_what_we_do_not_know_is_enosys():
    async def scenario():
        async with session_of(Handlers()) as (_, fake):
            assert (await fake.answered(*READ))[0] == errno.ENOSYS
            await fake.send(kernel.message(77, m.StatFs(98, 1, 0, 0, 0), b"whatever"))
            assert await fake.hear() == (98, errno.ENOSYS, b"")

    run(scenario())


@pytest.mark.log_warnings("GETATTR|READ")
def test_a_malformed_request_is_eio_and_the_next_is_served():
    async def scenario():
        async with session_of(Slow()) as (_, fake):
            await fake.send(kernel.message(Op.GETATTR, m.StatFs(98, 1, 0, 0, 0), b"short"))
            assert await fake.hear() == (98, errno.EIO, b"")
            raw = bytearray(kernel.encode(Op.READ, m.Read(100, 1, 0, 0, 0, 1, 0, 10, 0, 0, 0)))
            raw[0:4] = struct.pack("=I", 4000)  # says more than there is
            await fake.send(bytes(raw))
            assert await fake.hear() == (100, errno.EIO, b"")
            assert (await fake.answered(*GETATTR))[0] == 0

    run(scenario())


def test_too_many_outstanding_requests_stop_the_reading_until_one_is_answered():
    async def scenario():
        slow = Slow()
        async with session_of(slow, outstanding_max=3) as (session, fake):
            waiting = {await fake.ask(*READ) for _ in range(3)}
            late = await fake.ask(*GETATTR)
            assert await fake.is_silent()
            assert session.statistics().paused
            slow.go.set()
            heard = [(await fake.hear())[0] for _ in range(4)]
            assert set(heard) == waiting | {late}
            assert not session.statistics().paused

    run(scenario())


def test_locks_that_are_waited_for_do_not_stop_the_reading_and_have_a_bound_of_their_own():
    lock = (Op.SETLKW, m.Lock, 1, 7, 0, 10, 1, 9, False, True)

    async def scenario():
        slow = Slow()
        async with session_of(slow, outstanding_max=2, lock_waits_max=5) as (session, fake):
            waiting = {await fake.ask(*lock) for _ in range(5)}
            assert (await fake.answered(*GETATTR))[0] == 0
            assert session.statistics().lock_waits == 5
            assert await fake.answered(*lock) == (errno.ENOLCK, b"")
            slow.go.set()
            assert {(await fake.hear())[0] for _ in range(5)} == waiting

    run(scenario())


class Writing(Handlers):
    """Writes wait for `go`; nothing of them is kept but what `keep` says."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.keep = 0
        self.kept: list[memoryview] = []

    async def write(self, request):
        if self.keep:
            self.keep -= 1
            self.kept.append(request.data[:4])
        await self.go.wait()
        return len(request.data)

    def getattr(self, request):
        return m.AttrReply(m.Attr(request.nodeid, 0o100644))


def test_written_bytes_in_handlers_are_bounded_and_their_buffers_come_back():
    def write(fake, size):
        return fake.ask(Op.WRITE, m.Write, 1, 0, 0, 0, 0, memoryview(bytes(size)))

    async def scenario():
        writing = Writing()
        writing.keep = 1
        async with session_of(writing, payload_bytes_max=20_000, max_write_bytes=16384) as (session, fake):
            uniques = {await write(fake, 10_000) for _ in range(2)}
            late = await fake.ask(*GETATTR)
            assert await fake.is_silent()
            assert session.statistics().payload_bytes == 20_000
            writing.go.set()
            assert {(await fake.hear())[0] for _ in range(3)} == uniques | {late}
            assert session.statistics().payload_bytes == 0
            before = session.statistics().buffers_made
            for _ in range(10):
                unique = await write(fake, 10_000)
                assert (await fake.hear())[0] == unique
            assert session.statistics().buffers_made <= before + 1  # the one that is kept is not used again, the others are
            assert bytes(writing.kept[0]) == bytes(4)

    run(scenario())


def test_data_that_a_handler_keeps_is_not_overwritten_by_later_requests():
    class Keeping(Handlers):
        def __init__(self) -> None:
            self.kept: list[memoryview] = []

        def write(self, request):
            self.kept.append(request.data)
            return len(request.data)

    async def scenario():
        keeping = Keeping()
        async with session_of(keeping, max_write_bytes=4096) as (_, fake):
            for number in range(50):
                await fake.answered(Op.WRITE, m.Write, 1, 0, 0, 0, 0, memoryview(bytes([number]) * 100))
        assert [bytes(data) for data in keeping.kept] == [bytes([number]) * 100 for number in range(50)]

    run(scenario())


def test_forgets_of_both_kinds_arrive_and_are_not_answered():
    class Forgetting(Handlers):
        def __init__(self) -> None:
            self.gone: list[tuple[int, int]] = []

        def forget(self, request):
            self.gone += request.nodes

        def getattr(self, request):
            return m.AttrReply(m.Attr(1, 0o40755))

    async def scenario():
        forgetting = Forgetting()
        async with session_of(forgetting) as (_, fake):
            await fake.ask(Op.FORGET, m.Forget, ((5, 3),), nodeid=5)
            await fake.ask(Op.BATCH_FORGET, m.Forget, ((6, 1), (7, 2)))
            assert (await fake.answered(*GETATTR))[0] == 0
        assert forgetting.gone == [(5, 3), (6, 1), (7, 2)]

    run(scenario())


def test_the_end_of_the_mount_cancels_what_waits_and_tells_the_file_system_once():
    async def scenario():
        slow = Slow()
        async with session_of(slow) as (session, fake):
            await fake.ask(*READ)
            assert (await fake.answered(*GETATTR))[0] == 0
            fake.unmount()
            await asyncio.wait_for(session.wait_ended(), WAIT_S)
            assert session.has_ended
        assert slow.ended == ["cancelled", "destroyed"]

    run(scenario())


def test_a_kernel_that_is_too_old_is_refused_before_any_handler_is_called():
    async def scenario():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        session = Session(ours.detach(), Slow(), MountOptions())
        session.start()
        fake = Kernel(theirs)
        await fake.send(kernel.encode(Op.INIT, m.Init(1, 0, 0, 0, 0, 7, 12, 0, 0)))
        assert (await fake.hear())[:2] == (1, errno.EPROTO)
        with pytest.raises(ProtocolError):
            await session.wait_ready()
        theirs.close()
        await session.close()

    run(scenario())


def test_a_kernel_of_a_newer_major_asks_again():
    async def scenario():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        session = Session(ours.detach(), Slow(), MountOptions())
        session.start()
        fake = Kernel(theirs)
        await fake.send(kernel.encode(Op.INIT, m.Init(1, 0, 0, 0, 0, 8, 0, 0, 0)))
        assert struct.unpack_from("=I", (await fake.hear())[2]) == (7,)
        await fake.send(kernel.encode(Op.INIT, INIT))
        assert (await fake.hear())[:2] == (1, 0)
        await session.wait_ready()
        assert session.negotiated.has(InitFlag.POSIX_LOCKS)
        theirs.close()
        await session.close()

    run(scenario())


# notifications


def test_a_notification_is_done_when_the_kernel_took_it_and_has_no_unique():
    async def scenario():
        async with session_of(Slow()) as (session, fake):
            await session.invalidate_inode(5, -1)
            unique, code, body = await fake.hear()
            assert (unique, -code) == (0, 2)
            assert body == struct.pack("=Qqq", 5, -1, 0)
            assert session.statistics().notifications == 1

    run(scenario())


def test_notifications_of_one_inode_keep_their_order():
    async def scenario():
        async with session_of(Slow(), notify_threads=3) as (session, fake):
            done = [session.invalidate_inode_nowait(7, offset) for offset in range(50)]
            heard = [struct.unpack("=Qqq", (await fake.hear())[2])[1] for _ in range(50)]
            assert heard == list(range(50))
            await asyncio.gather(*done)

    run(scenario())


def test_a_full_notification_queue_refuses_or_makes_wait():
    async def scenario():
        async with session_of(Slow(), notify_queue_max=2, notify_threads=1) as (session, fake):
            block = bytes(100_000)  # the socket's own buffer fills, and the writer waits as in the kernel
            os.set_blocking(session.fd, True)
            futures = []
            with contextlib.suppress(NotifyQueueFull):
                while True:
                    futures.append(session.store_nowait(1, 0, block))
            with pytest.raises(NotifyQueueFull):
                session.invalidate_inode_nowait(1)
            waiting = asyncio.ensure_future(session.store(1, 0, b"x"))
            for _ in range(len(futures) + 1):
                await fake.hear()
            await asyncio.wait_for(waiting, WAIT_S)
            await asyncio.gather(*futures)
            os.set_blocking(session.fd, False)

    run(scenario())


def test_a_notification_after_the_end_says_so():
    async def scenario():
        async with session_of(Slow()) as (session, fake):
            fake.unmount()
            await session.wait_ended()
        with pytest.raises(SessionEnded):
            await session.invalidate_inode(1)

    run(scenario())


def test_retrieved_pages_come_as_a_request_that_is_not_answered():
    async def scenario():
        async with session_of(Slow()) as (session, fake):
            wanted = asyncio.ensure_future(session.retrieve(5, 4096, 100))
            _, code, body = await fake.hear()
            number, nodeid, offset, size = replies.RETRIEVE.unpack(body)
            assert (-code, nodeid, offset, size) == (5, 5, 4096, 100)
            await fake.send(kernel.encode(Op.NOTIFY_REPLY, m.NotifyReply(number, 5, 0, 0, 0, 4096, b"pages")))
            assert await asyncio.wait_for(wanted, WAIT_S) == b"pages"
            assert await fake.is_silent()

    run(scenario())
