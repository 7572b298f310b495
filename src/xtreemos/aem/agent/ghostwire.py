"""Messages between a ghost and the agent: bytes <-> values, nothing else.

One SOCK_SEQPACKET message each, first byte is the tag (docs/notes/0001-architecture.md, "Agent sockets"). The other ends of this are
native/ghost.c and aem/ghost_fallback.py, which write MessagePack by hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from xtreemos.aem.agent.ports import Hello, Terminal
from xtreemos.errors import XosError

MESSAGE_BYTES_MAX = 65536
HELLO_BYTES_MAX = 16 * 1024 * 1024  # the kernel takes 6 MiB of arguments and environment at most, each costs a few bytes more
OUTPUT_BYTES_MAX = 32 * 1024  # of one O or P message: a slow terminal holds no more in the ghost
FDS_MAX = 4
TOKEN_BYTES_MAX = 64
SIGNAL_MAX = 64

_SIZE = struct.Struct("<HH")
_EXIT = struct.Struct("<cB")
_KILL = struct.Struct("<cBB")


class BadMessage(XosError):
    """The ghost sent bytes that are no message. The connection ends."""

    fault = "peer"
    code = "bad-ghost-message"


@dataclass(frozen=True, slots=True)
class HelloPart:
    """A piece of a hello; `last` completes it and carries the descriptors."""

    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes typed at the terminal."""

    data: bytes


@dataclass(frozen=True, slots=True)
class InputEnded:
    """End of file at the terminal (Ctrl-D, hang-up)."""


@dataclass(frozen=True, slots=True)
class Signalled:
    """The ghost received this signal."""

    signal: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The terminal's window has a new size."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class WokenUp:
    """The ghost received SIGCONT. `after_stop`: it had stopped itself as told by one T, of which this is the only answer."""

    after_stop: bool


@dataclass(frozen=True, slots=True)
class TerminalSettings:
    """The ghost is about to make the terminal raw (kernel termios before and then), or has undone it (both empty)."""

    before: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """A ghost whose agent died asks to go on."""

    token: str
    isatty: tuple[bool, bool, bool]
    raw_allowed: bool


FromGhost = HelloPart | Input | InputEnded | Signalled | Resized | WokenUp | TerminalSettings | Resume


def decode(message: bytes) -> FromGhost:
    """Turn one message of a ghost into a value.

    Raises:
        BadMessage: unknown tag, wrong length, or a value out of range.
    """
    tag, body = message[:1], message[1:]
    if tag in {b"h", b"H"}:
        return HelloPart(body, tag == b"H")
    if tag == b"I" and body:
        return Input(body)
    if tag == b"E" and not body:
        return InputEnded()
    if tag == b"S" and len(body) == 1 and 1 <= body[0] <= SIGNAL_MAX:
        return Signalled(body[0])
    if tag == b"W" and len(body) == _SIZE.size:
        return Resized(*_SIZE.unpack(body))
    if tag == b"C" and body in {b"", b"\0", b"\1"}:
        return WokenUp(body == b"\1")
    if tag == b"Q" and len(body) % 2 == 0 and len(body) <= 256:
        return TerminalSettings(body[: len(body) // 2], body[len(body) // 2 :])
    if tag == b"R" and 2 <= len(body) <= TOKEN_BYTES_MAX + 1 and body[1:].isascii():
        flags = body[0]
        return Resume(body[1:].decode("ascii"), (bool(flags & 1), bool(flags & 2), bool(flags & 4)), bool(flags & 8))
    raise BadMessage(f"a ghost sent a message that is none (tag {tag!r}, {len(body)} bytes)")


class _WireTerminal(msgspec.Struct):
    rows: int
    cols: int
    termios_ok: bool


class _WireHello(msgspec.Struct):
    argv: list[bytes]
    env: list[bytes]
    cwd: bytes
    umask: int
    pid: int
    pgrp: int
    rlimits: list[tuple[int, int]]
    nice: int
    tty: _WireTerminal | None
    isatty: tuple[bool, bool, bool]
    ignored: list[int]


_hello = msgspec.msgpack.Decoder(_WireHello)


def decode_hello(body: bytes) -> Hello:
    """Turn the joined parts of a hello into a value; `merged` is not on the wire, the receiver of the descriptors finds out.

    Raises:
        BadMessage: not MessagePack of that shape, or no word in argv.
    """
    try:
        wire = _hello.decode(body)
    except msgspec.DecodeError as error:
        raise BadMessage("a ghost sent a hello that cannot be read") from error
    if not wire.argv:
        raise BadMessage("a ghost sent a hello without a command")
    return Hello(
        argv=tuple(wire.argv),
        env=tuple(wire.env),
        cwd=wire.cwd,
        umask=wire.umask & 0o777,
        pid=wire.pid,
        pgrp=wire.pgrp,
        rlimits=tuple(wire.rlimits),
        nice=wire.nice,
        tty=Terminal(wire.tty.rows, wire.tty.cols, wire.tty.termios_ok) if wire.tty else None,
        isatty=wire.isatty,
        ignored=tuple(number for number in wire.ignored if 1 <= number <= SIGNAL_MAX),
    )


def accepted(token: str = "") -> bytes:
    """`A`: the hello was understood; later once more with the token under which a next agent will know the run."""
    return b"A" + token.encode("ascii")


def output(stream: int, data: bytes) -> bytes:
    """`O` or `P`: bytes for the terminal that is fd 1 or fd 2."""
    return (b"O" if stream == 1 else b"P") + data


def raw_mode(on: bool) -> bytes:
    """`M`: the far side has a terminal of its own, ours is to be raw (or no more)."""
    return b"M\1" if on else b"M\0"


def gate(is_open: bool) -> bytes:
    """`G`: read the terminal's input, or leave it where it is. Closed at first."""
    return b"G\1" if is_open else b"G\0"


def leave(code: int) -> bytes:
    """`X`: exit with this code (its low eight bits)."""
    return _EXIT.pack(b"X", code & 0xFF)


def die(signal: int, core: bool) -> bytes:
    """`K`: die by this signal; `core`: the program left a core dump."""
    return _KILL.pack(b"K", signal, int(core))


def stop(signal: int) -> bytes:
    """`T`: stop yourself by this signal, answer with `C` 1 once you run again."""
    return _EXIT.pack(b"T", signal)


def line(text: str) -> bytes:
    """`L`: a line for the user on standard error."""
    return b"L" + text.encode("utf-8", "replace")[:OUTPUT_BYTES_MAX]


def go_to(vo: str) -> bytes:
    """`V`: say the same hello to the agent of this VO."""
    return b"V" + vo.encode("ascii")


def not_mine() -> bytes:
    """`F`: become the Python command line. Only before `A`."""
    return b"F"
