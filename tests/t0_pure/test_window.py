"""Streams over connections that break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.foundation.jobd.streams import OutStream
from xtreemos.foundation.window import ReceiveWindow, SendWindow, StreamBroken


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=20),
    st.lists(st.tuples(st.sampled_from(["push", "deliver", "ack", "break"]), st.floats(0, 1)), max_size=80),
)
def test_every_byte_arrives_once_over_any_number_of_broken_connections(chunks: list[bytes], steps: list[tuple[str, float]]) -> None:
    sender, receiver, got = SendWindow(64), ReceiveWindow(), bytearray()
    wire: list[tuple[int, bytes]] = []
    todo = list(chunks)

    def do(step: str, part: float = 1.0) -> None:
        nonlocal wire
        if step == "push" and todo and sender.room >= len(todo[0]):
            chunk = todo.pop(0)
            wire.append((sender.push(chunk), chunk))
        elif step == "deliver" and wire:
            got.extend(receiver.accept(*wire.pop(0)))
        elif step == "ack":
            sender.on_ack(sender.acked + int((receiver.offset - sender.acked) * part))
        elif step == "break":
            sender.on_ack(receiver.offset)
            wire = sender.resend()
        assert sender.sent - sender.acked <= 64

    for step, part in steps:
        do(step, part)
    while todo or wire:
        for step in ("push", "deliver", "ack"):
            do(step)
    assert bytes(got) == b"".join(chunks)


def test_a_gap_is_noticed() -> None:
    with pytest.raises(StreamBroken):
        ReceiveWindow().accept(1, b"x")


def test_acknowledging_more_than_was_sent_is_noticed() -> None:
    sender = SendWindow()
    sender.push(b"abc")
    with pytest.raises(StreamBroken):
        sender.on_ack(4)


def test_stream_is_drained_when_ended_and_acknowledged() -> None:
    sender = SendWindow()
    sender.push(b"abc")
    sender.ended = True
    assert not sender.drained
    sender.on_ack(3)
    assert sender.drained


def test_a_stream_that_nobody_reads_any_more_can_be_attached_to_at_any_offset():
    stream = OutStream()
    stream.put(b"x" * 1000)
    stream.take()
    stream.give_up()
    stream.seek(500)  # what a reader had when it broke
    assert (stream.take(), stream.drained) == (None, True)
