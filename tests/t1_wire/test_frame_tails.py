"""Tails: bytes that travel beside the value of a CALL or RESULT, and the decoder that receives large frames in place."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtreemos.foundation.frames import ATTACHED, LARGE_BYTES, MAX_BODY_BYTES, BadFrame, Decoder, Frame, Kind, attached_head, encode

small = st.binary(max_size=200)
large = st.builds(lambda piece, size: (piece * size)[:size], st.binary(min_size=1, max_size=8), st.integers(LARGE_BYTES - 8, LARGE_BYTES * 2))
frames = st.builds(
    lambda kind, channel, tail, fds: Frame(kind, channel, {"a": 1}, tail=tail, fds=fds),
    st.sampled_from([Kind.CALL, Kind.RESULT]), st.integers(0, 2**32 - 1), small | large, st.integers(0, 8),
) | st.builds(Frame, st.just(Kind.DATA), st.just(3), large, st.integers(0, 255), st.integers(0, 99))  # fmt: skip


def by_space(decoder, wire, pieces):
    """Feed as a socket does: each time at most as much as there is room."""
    found, at, turn = [], 0, 0
    while at < len(wire):
        space = decoder.space()
        count = min(len(space), pieces[turn % len(pieces)], len(wire) - at)
        space[:count] = wire[at : at + count]
        found += decoder.took(count)
        at += count
        turn += 1
    return found


@settings(max_examples=40)
@given(st.lists(frames, max_size=4), st.lists(st.integers(50, 70_000), min_size=1, max_size=4))
def test_tails_come_out_as_they_went_in_however_they_are_received(sent, pieces):
    wire = b"".join(encode(frame) for frame in sent)
    assert by_space(Decoder(), wire, pieces) == sent
    decoder, found, at, turn = Decoder(), [], 0, 0
    while at < len(wire):
        piece = pieces[turn % len(pieces)]
        found += decoder.feed(wire[at : at + piece])
        at, turn = at + piece, turn + 1
    assert found == sent


def test_a_tail_is_received_without_being_copied():
    decoder = Decoder()
    wire = encode(Frame(Kind.RESULT, 1, None, tail=b"x" * LARGE_BYTES))
    decoder.feed(wire[:100])
    place = decoder.space()
    place[:] = wire[100:]
    (frame,) = decoder.took(len(place))
    place[-1:] = b"y"
    assert bytes(frame.tail[-1:]) == b"y"


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack("<IBI", 10, Kind.EVENT | ATTACHED, 1) + bytes(5),
        struct.pack("<IBI", 9, Kind.CALL | ATTACHED, 1) + bytes(4),
        struct.pack("<IBIIB", 10, Kind.CALL | ATTACHED, 1, 1, 0),
        struct.pack("<IBIIB", 11, Kind.CALL | ATTACHED, 1, 1, 0) + b"\xc1",
    ],
    ids=["event-with-tail", "half-a-head", "shorter-than-its-value", "no-messagepack"],
)
def test_a_tail_frame_that_is_none_is_refused(wire):
    with pytest.raises(BadFrame):
        Decoder().feed(wire)


def test_a_frame_with_a_tail_keeps_to_the_bound_of_all_frames():
    with pytest.raises(BadFrame):
        attached_head(Kind.CALL, 1, None, MAX_BODY_BYTES + 60)
