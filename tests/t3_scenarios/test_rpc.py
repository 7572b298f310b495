"""Calls between processes over a real Unix socket."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from xtreemos.errors import RemoteError, TryLater, Unreachable
from xtreemos.fabric import rpc
from xtreemos.foundation.frames import WINDOW_BYTES, Kind


async def _echo(call):
    return {"got": call.params, "uid": call.caller.uid}


async def _fail(_call):
    raise TryLater("no room", "wait")


async def _bug(_call):
    raise ZeroDivisionError("never told to the caller")


async def _read_fd(call):
    return os.read(call.fds[0], 100)


async def _sink(call):
    total = 0
    while True:
        frame = await call.receive()
        if frame.kind is Kind.EOF:
            return total
        total += len(frame.body)
        call.send_ack(0, total)


HANDLERS = {"echo": _echo, "fail": _fail, "bug": _bug, "fd": _read_fd, "sink": _sink}


def run(work, tmp_path: Path, handlers=None):
    async def inside():
        server = await rpc.serve_unix(tmp_path / "s", handlers or HANDLERS)
        peer = await rpc.connect_unix(tmp_path / "s")
        try:
            return await asyncio.wait_for(work(peer, server), 20)
        finally:
            peer.close()
            await server.close()

    return asyncio.run(inside())


def test_a_call_is_answered_and_the_kernel_names_the_caller(tmp_path):
    async def work(peer, _server):
        return await peer.call("echo", {"a": [1, None, b"x"]})

    assert run(work, tmp_path) == {"got": {"a": [1, None, b"x"]}, "uid": os.getuid()}


def test_errors_cross_with_all_they_say(tmp_path):
    async def work(peer, _server):
        with pytest.raises(RemoteError) as caught:
            await peer.call("fail")
        return caught.value

    error = run(work, tmp_path)
    assert (error.code, error.exit_code, error.definite, error.retry, error.line()) == (
        "try-later",
        75,
        True,
        True,
        "no room; wait",
    )


@pytest.mark.log_warnings("failed")
def test_a_bug_in_one_handler_is_told_without_its_text_and_ends_no_other_call(tmp_path):
    async def work(peer, _server):
        with pytest.raises(RemoteError) as caught:
            await peer.call("bug")
        assert "never told" not in caught.value.line()
        return await peer.call("echo", {})

    assert run(work, tmp_path)["got"] == {}


def test_an_unknown_method_is_refused(tmp_path):
    async def work(peer, _server):
        with pytest.raises(RemoteError) as caught:
            await peer.call("nope")
        return caught.value.code

    assert run(work, tmp_path) == "no-such-method"


def test_descriptors_travel_with_a_call(tmp_path):
    async def work(peer, _server):
        read_end, write_end = os.pipe()
        os.write(write_end, b"through")
        os.close(write_end)
        call = peer.open("fd", {}, fds=[read_end])
        os.close(read_end)
        return await call.result()

    assert run(work, tmp_path) == b"through"


def test_streams_of_many_calls_share_one_connection(tmp_path):
    async def push(peer, size):
        call = peer.open("sink")
        sent = acked = 0
        while sent < size:
            while sent - acked >= WINDOW_BYTES:
                frame = await call.receive()
                acked = frame.offset
            call.send_data(0, sent, b"x" * 65536)
            sent += 65536
            await peer.drain()
        call.send_eof(0, sent)
        return await call.result()

    async def work(peer, _server):
        return await asyncio.gather(*(push(peer, size) for size in (8 << 20, 65536, 4 << 20)))

    assert run(work, tmp_path) == [8 << 20, 65536, 4 << 20]


def test_a_lost_connection_ends_every_open_call_as_unknown(tmp_path):
    async def work(peer, server):
        calls = [peer.open("sink") for _ in range(3)]
        await peer.call("echo")
        for one in list(server.peers):
            one.close()
        for call in calls:
            with pytest.raises(Unreachable) as caught:
                await call.result()
            assert not caught.value.definite
        with pytest.raises(Unreachable):
            peer.open("echo")

    run(work, tmp_path)


def test_an_abandoned_call_is_cancelled_at_the_other_end(tmp_path):
    ended = asyncio.Event()

    async def slow(_call):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def work(peer, _server):
        call = peer.open("slow")
        await peer.call("echo")
        call.close()
        await ended.wait()

    run(work, tmp_path, {**HANDLERS, "slow": slow})


def test_a_reader_that_does_not_read_stops_the_sender(tmp_path):
    async def deaf(_call):
        await asyncio.Event().wait()

    async def work(peer, _server):
        call = peer.open("deaf")
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    call.send_data(0, sent, b"x" * 262144)
                    sent += 262144
                    await peer.drain()
        return sent

    assert run(work, tmp_path, {"deaf": deaf}) < 256 << 20


@pytest.mark.log_warnings("connection ended")
def test_bytes_that_are_no_frame_end_the_connection(tmp_path):
    async def work(peer, _server):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        return await peer.call("echo")

    assert run(work, tmp_path)["got"] == {}


def test_nobody_listening_is_a_definite_unreachable(tmp_path):
    with pytest.raises(Unreachable, match="nothing listens"):
        asyncio.run(rpc.connect_unix(tmp_path / "none"))
