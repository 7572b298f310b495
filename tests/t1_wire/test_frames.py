"""Frames between our processes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.foundation.frames import MAX_BODY_BYTES, BadFrame, Decoder, Frame, Kind, data_head, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
channels = st.integers(0, 2**32 - 1)
offsets = st.integers(0, 2**64 - 1)
frames = st.one_of(
    st.builds(Frame, st.sampled_from([Kind.CALL, Kind.RESULT, Kind.ERROR, Kind.EVENT]), channels, values),
    st.builds(Frame, st.just(Kind.DATA), channels, st.binary(max_size=300), st.integers(0, 255), offsets),
    st.builds(Frame, st.sampled_from([Kind.ACK, Kind.EOF]), channels, st.none(), st.integers(0, 255), offsets),
    st.builds(Frame, st.just(Kind.CLOSE), channels),
)


@given(st.lists(frames, max_size=8), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent, piece):
    decoder, found = Decoder(), []
    wire = b"".join(encode(frame) for frame in sent)
    for at in range(0, len(wire), piece):
        found += decoder.feed(wire[at : at + piece])
    assert found == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_bad_frame(data):
    try:
        Decoder().feed(data)
    except BadFrame:
        pass


@given(channels, st.integers(0, 255), offsets, st.binary(max_size=100))
def test_head_and_payload_sent_apart_are_one_data_frame(channel, stream, offset, data):
    assert data_head(channel, stream, offset, len(data)) + data == encode(Frame(Kind.DATA, channel, data, stream, offset))


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack("<IBI", 4, 1, 1),  # shorter than its own head
        struct.pack("<IBI", MAX_BODY_BYTES + 70, 5, 1),  # would fill memory
        struct.pack("<IBI", 5, 0, 1),  # no such kind
        struct.pack("<IBI", 5, 9, 1),
        struct.pack("<IBI", 6, 1, 1) + b"\xc1",  # not MessagePack
        struct.pack("<IBI", 5, 5, 1),  # DATA without stream and offset
        struct.pack("<IBI", 15, 6, 1) + b"0123456789",  # ACK with a byte too many
    ],
)
def test_a_frame_that_is_none_is_refused(wire):
    with pytest.raises(BadFrame):
        Decoder().feed(wire)


def test_a_body_over_the_limit_is_not_sent():
    with pytest.raises(BadFrame):
        encode(Frame(Kind.DATA, 1, b"x" * (MAX_BODY_BYTES + 65)))
