"""Frames: how two of our processes talk over one byte stream. Wire format only; no sockets here.

`u32 LE length | u8 kind | u32 LE channel | body`. See docs/notes/0001-architecture.md, "Frames".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec

from xtreemos.errors import XosError

MAX_BODY_BYTES = 4 * 1024 * 1024
WINDOW_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024  # one frame of bulk data; a hop costs Python the same for 64 KiB, and throughput is hops

_HEAD = struct.Struct("<IBI")
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


class BadFrame(XosError):
    """The peer sent bytes that are no frame. The connection ends; nothing of the frame was acted on."""

    fault = "peer"
    code = "bad-frame"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `body` is a MessagePack value for kinds 1-4, bytes for DATA, None for the rest.

    `stream` and `offset` have a meaning for DATA, ACK and EOF only (bytes from the start of the stream).
    """

    kind: Kind
    channel: int
    body: Any = None
    stream: int = 0
    offset: int = 0


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def encode(frame: Frame) -> bytes:
    """Return the bytes of `frame`."""
    kind = frame.kind
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


class Decoder:
    """Turns received bytes into frames; keeps at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take received bytes; return the frames completed by them, in order.

        Raises:
            BadFrame: a length, kind or body is not allowed. Peer's fault; drop the connection.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        size = len(buffer)
        while size - at >= HEAD_BYTES:
            length, kind, channel = _HEAD.unpack_from(buffer, at)
            if not 5 <= length <= MAX_BODY_BYTES + 64 + 5:
                raise BadFrame(f"a frame claims {length} bytes")
            end = at + 4 + length
            if size < end:
                break
            frames.append(_decode(kind, channel, bytes(memoryview(buffer)[at + HEAD_BYTES : end])))
            at = end
        if at:
            del buffer[:at]
        return frames


def _decode(kind: int, channel: int, body: bytes) -> Frame:
    if not Kind.CALL <= kind <= Kind.CLOSE:
        raise BadFrame(f"unknown frame kind {kind}")
    if kind <= Kind.EVENT:
        try:
            return Frame(Kind(kind), channel, _unpack(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadFrame("a frame's body is not MessagePack") from error
    if kind == Kind.CLOSE:
        return Frame(Kind.CLOSE, channel)
    if len(body) < _DATA.size or (kind != Kind.DATA and len(body) != _DATA.size):
        raise BadFrame("a stream frame has the wrong size")
    stream, offset = _DATA.unpack_from(body)
    return Frame(Kind(kind), channel, body[_DATA.size :] if kind == Kind.DATA else None, stream, offset)
