"""Streams over connections that break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.foundation.window import ReceiveWindow, SendWindow, StreamBroken


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40), st.data())
def test_every_byte_arrives_once_over_any_number_of_broken_connections(chunks: list[bytes], data: st.DataObject) -> None:
    sender, receiver, got = SendWindow(64), ReceiveWindow(), bytearray()
    wire: list[tuple[int, bytes]] = []
    todo = list(chunks)
    while todo or sender.acked < sender.sent:
        step = data.draw(st.sampled_from(["push", "deliver", "ack", "break"]))
        if step == "push" and todo and sender.room >= len(todo[0]):
            chunk = todo.pop(0)
            wire.append((sender.push(chunk), chunk))
        elif step == "deliver" and wire:
            got += receiver.accept(*wire.pop(0))
        elif step == "ack":
            sender.on_ack(data.draw(st.integers(sender.acked, receiver.offset)))
        elif step == "break":
            sender.on_ack(receiver.offset)
            wire = sender.resend()
        assert sender.sent - sender.acked <= 64
        if not wire:
            sender.on_ack(receiver.offset)
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
