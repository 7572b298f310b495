"""Calls with tails and descriptors in both directions, over a real Unix socket."""

import asyncio
import os

import pytest

from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Attached

BIG = os.urandom(3 << 20)


async def with_peers(tmp_path, handlers, use):
    server = await rpc.serve_unix(tmp_path / "s", handlers)
    peer = await rpc.connect_unix(tmp_path / "s")
    try:
        async with asyncio.timeout(20):
            return await use(peer)
    finally:
        peer.close()
        await server.close()


def test_a_tail_goes_there_and_another_comes_back(tmp_path):
    async def reverse(call):
        return Attached({"got": len(call.tail)}, bytes(call.tail)[::-1])

    async def use(peer):
        async def one(size):
            call = peer.open("reverse", {}, tail=memoryview(BIG)[:size])
            assert await call.result() == {"got": size}
            assert bytes(call.tail) == BIG[:size][::-1]

        await asyncio.gather(*(one(size) for size in (0, 1, 40_000, 1 << 20, len(BIG))))

    asyncio.run(with_peers(tmp_path, {"reverse": reverse}, use))


def test_tails_of_calls_that_are_not_done_fill_no_more_than_their_share_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rpc, "TAIL_BYTES_MAX", 4 << 20)
    held, go = [], asyncio.Event()

    async def slow(call):
        held.append(len(call.tail))
        await go.wait()
        return len(call.tail)

    async def use(peer):
        calls = [peer.open("slow", {}, tail=memoryview(BIG)[: 1 << 20]) for _call in range(40)]
        while sum(held) <= 4 << 20:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert sum(held) < 6 << 20
        go.set()
        assert [await call.result() for call in calls] == [1 << 20] * 40

    asyncio.run(with_peers(tmp_path, {"slow": slow}, use))


def test_a_descriptor_comes_back_with_a_result_and_is_the_callers(tmp_path):
    (tmp_path / "f").write_text("hello")

    async def give(_call):
        return Attached("here", b"", (os.open(tmp_path / "f", os.O_RDONLY),))

    async def use(peer):
        call = peer.open("give")
        assert await call.result() == "here"
        call.close()
        (fd,) = call.fds
        try:
            assert os.pread(fd, 10, 0) == b"hello"
        finally:
            os.close(fd)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(with_peers(tmp_path, {"give": give}, use))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("moment", ["closed-before-the-answer", "closed-after-the-answer"])
def test_descriptors_that_nobody_took_are_closed(tmp_path, moment):
    given = asyncio.Event()

    async def give(_call):
        given.set()
        return Attached("here", b"", (os.open("/dev/null", os.O_RDONLY),))

    async def other(_call):
        return 1

    async def use(peer):
        call = peer.open("give")
        if moment == "closed-before-the-answer":
            await given.wait()
        else:
            await peer.call("other")  # answers come in order, so the descriptor is here
        call.close()
        await peer.call("other")

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(with_peers(tmp_path, {"give": give, "other": other}, use))
    assert len(os.listdir("/proc/self/fd")) == before
