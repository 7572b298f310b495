"""Frames: how two of our processes talk over one byte stream. Wire format only; no sockets here.

`u32 LE length | u8 kind | u32 LE channel | body`. See docs/protocols/frames.md.

A CALL or RESULT may have a *tail*: bytes behind the MessagePack value that nobody encodes, joins or copies on their way (`attached_head`
sends them apart, `Decoder.space` receives them where they stay). Such a frame has the bit ATTACHED in its kind.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import msgspec

from xtreemos.errors import XosError

MAX_BODY_BYTES = 4 * 1024 * 1024
WINDOW_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024  # one frame of bulk data; a hop costs Python the same for 64 KiB, and throughput is hops

LARGE_BYTES = 32 * 1024  # a frame from this size on is received into memory of its own
SPACE_BYTES = 64 * 1024
ATTACHED = 0x80

_HEAD = struct.Struct("<IBI")
_ATTACHED = struct.Struct("<IB")
_DATA = struct.Struct("<BQ")
HEAD_BYTES = _HEAD.size
DATA_HEAD_BYTES = _HEAD.size + _DATA.size


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    RESULT = 2
    ERROR = 3
    EVENT = 4
    DATA = 5
    ACK = 6
    EOF = 7
    CLOSE = 8


_KINDS = {int(kind): kind for kind in Kind}


class BadFrame(XosError):
    """The peer sent bytes that are no frame. The connection ends; nothing of the frame was acted on."""

    fault = "peer"
    code = "bad-frame"


class Frame(msgspec.Struct, frozen=True):
    """One frame. `body` is a MessagePack value for kinds 1-4, bytes for DATA, None for the rest.

    `stream` and `offset` have a meaning for DATA, ACK and EOF only (bytes from the start of the stream); `tail` and `fds` (how many
    descriptors came with it) for CALL and RESULT. A received tail is a view into memory that only this frame uses.
    """

    kind: Kind
    channel: int
    body: Any = None
    stream: int = 0
    offset: int = 0
    tail: bytes | memoryview = b""
    fds: int = 0


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def encode(frame: Frame) -> bytes:
    """Return the bytes of `frame`."""
    kind = frame.kind
    if frame.tail or frame.fds:
        return attached_head(kind, frame.channel, frame.body, len(frame.tail), frame.fds) + frame.tail
    if kind <= Kind.EVENT:
        body = _pack(frame.body)
    elif kind is Kind.CLOSE:
        body = b""
    else:
        body = _DATA.pack(frame.stream, frame.offset)
        if kind is Kind.DATA:
            body += frame.body
    if len(body) > MAX_BODY_BYTES + 64:
        raise BadFrame(f"a frame of {len(body)} bytes is larger than {MAX_BODY_BYTES}")
    return _HEAD.pack(len(body) + 5, kind, frame.channel) + body


def data_head(channel: int, stream: int, offset: int, length: int) -> bytes:
    """Head of a DATA frame whose `length` payload bytes the caller sends right behind it (saves a copy)."""
    return _HEAD.pack(length + 5 + _DATA.size, Kind.DATA, channel) + _DATA.pack(stream, offset)


def attached_head(kind: Kind, channel: int, body: Any, tail_bytes: int, fds: int = 0) -> bytes:
    """All but the tail of a CALL or RESULT whose `tail_bytes` bytes the caller sends right behind it (saves copies).

    Raises:
        BadFrame: it would be larger than a frame may be.
    """
    value = _pack(body)
    size = _ATTACHED.size + len(value) + tail_bytes
    if size > MAX_BODY_BYTES + 64:
        raise BadFrame(f"a frame of {size} bytes is larger than {MAX_BODY_BYTES}")
    return _HEAD.pack(size + 5, kind | ATTACHED, channel) + _ATTACHED.pack(len(value), fds) + value


class Decoder:
    """Turns received bytes into frames; keeps at most one incomplete frame.

    Bytes come in by `feed`, or without a copy by receiving into `space()` and telling `took` how many.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large: memoryview | None = None  # the one incomplete frame, if it is large
        self._filled = 0
        self._space: memoryview | None = None

    def space(self) -> memoryview:
        """Where to receive the next bytes; good until the next call of this decoder."""
        if self._large is not None:
            return self._large[self._filled :]
        if self._space is None:
            self._space = memoryview(bytearray(SPACE_BYTES))
        return self._space

    def took(self, count: int) -> list[Frame]:
        """Take the first `count` bytes of `space()`; returns and raises as `feed` does."""
        if self._large is None:
            assert self._space is not None, "took without space"
            return self.feed(self._space[:count])
        self._filled += count
        return self._complete()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take received bytes; return the frames completed by them, in order.

        Raises:
            BadFrame: a length, kind or body is not allowed. Peer's fault; drop the connection.
        """
        frames: list[Frame] = []
        if self._large is not None:
            take = min(len(data), len(self._large) - self._filled)
            self._large[self._filled : self._filled + take] = data[:take]
            self._filled += take
            frames = self._complete()
            data = data[take:]
        buffer = self._buffer
        buffer += data
        at = 0
        size = len(buffer)
        while size - at >= HEAD_BYTES:
            length, kind, channel = _HEAD.unpack_from(buffer, at)
            if not 5 <= length <= MAX_BODY_BYTES + 64 + 5:
                raise BadFrame(f"a frame claims {length} bytes")
            end = at + 4 + length
            if size < end:
                if length >= LARGE_BYTES:
                    self._large = memoryview(bytearray(4 + length))
                    self._filled = size - at
                    self._large[: self._filled] = memoryview(buffer)[at:]
                    at = size
                break
            frames.append(_decode(kind, channel, memoryview(bytes(memoryview(buffer)[at + HEAD_BYTES : end]))))
            at = end
        if at:
            del buffer[:at]
        return frames

    def _complete(self) -> list[Frame]:
        if self._large is None or self._filled < len(self._large):
            return []
        whole, self._large = self._large, None
        _length, kind, channel = _HEAD.unpack_from(whole)
        return [_decode(kind, channel, whole[HEAD_BYTES:])]


def _decode(kind: int, channel: int, body: memoryview) -> Frame:
    if kind & ATTACHED:
        return _decode_attached(kind & ~ATTACHED, channel, body)
    known = _KINDS.get(kind)
    if known is None:
        raise BadFrame(f"unknown frame kind {kind}")
    if kind <= Kind.EVENT:
        return Frame(known, channel, _value(body))
    if known is Kind.CLOSE:
        return Frame(Kind.CLOSE, channel)
    if len(body) < _DATA.size or (kind != Kind.DATA and len(body) != _DATA.size):
        raise BadFrame("a stream frame has the wrong size")
    stream, offset = _DATA.unpack_from(body)
    return Frame(known, channel, bytes(body[_DATA.size :]) if known is Kind.DATA else None, stream, offset)


def _decode_attached(kind: int, channel: int, body: memoryview) -> Frame:
    if kind not in (Kind.CALL, Kind.RESULT) or len(body) < _ATTACHED.size:
        raise BadFrame(f"a frame of kind {kind} cannot have a tail")
    size, fds = _ATTACHED.unpack_from(body)
    end = _ATTACHED.size + size
    if end > len(body):
        raise BadFrame("a frame is shorter than the value in it")
    return Frame(Kind(kind), channel, _value(body[_ATTACHED.size : end]), tail=body[end:], fds=fds)


def _value(body: memoryview) -> Any:
    try:
        return _unpack(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame("a frame's body is not MessagePack") from error
