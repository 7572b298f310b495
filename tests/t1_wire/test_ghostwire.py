"""Both ghosts' hand-made MessagePack is what the agent reads; bad messages are refused, never a crash."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.aem.agent import ghostwire as wire
from xtreemos.aem.agent.ports import Terminal

FALLBACK = Path(__file__).resolve().parents[2] / "src/xtreemos/aem/ghost_fallback.py"


def fallback():
    spec = importlib.util.spec_from_file_location("ghost_fallback", FALLBACK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACK = fallback().pack
WORDS = st.lists(st.binary(max_size=300), min_size=1, max_size=20)


def hello(**changes):
    base = {
        "argv": [b"xos", b"ps"], "env": [b"A=1"], "cwd": b"/", "umask": 0o22, "pid": 5, "pgrp": 5, "rlimits": [[1, 2**64 - 1]] * 16, "nice": -3,
        "tty": None, "isatty": [False, True, True], "ignored": [1, 2],
    }  # fmt: skip
    return {**base, **changes}


@given(argv=WORDS, env=WORDS, nice=st.integers(-20, 19), tty=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.booleans()))
def test_a_hello_of_the_fallback_is_understood(argv, env, nice, tty):
    wire_tty = tty and {"rows": tty[0], "cols": tty[1], "termios_ok": tty[2]}
    got = wire.decode_hello(PACK(hello(argv=argv, env=env, nice=nice, tty=wire_tty)))
    assert (got.argv, got.env, got.nice) == (tuple(argv), tuple(env), nice)
    assert got.tty == (Terminal(*tty) if tty else None)
    assert got.rlimits[0] == (1, 2**64 - 1)


def test_names_in_the_environment_keep_odd_bytes():
    got = wire.decode_hello(PACK(hello(env=[b"A=\xff=x", b"noequals", b"A=second"])))
    assert got.environment == {"A": "\udcff=x"}


@pytest.mark.parametrize("bad", [b"", b"\xc0", PACK({}), PACK(hello(argv=[])), PACK(hello(isatty=[True])), PACK(hello(umask=b"x")), PACK(hello())[:-3]])
def test_a_bad_hello_is_refused(bad):
    with pytest.raises(wire.BadMessage):
        wire.decode_hello(bad)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b"hxy", wire.HelloPart(b"xy", last=False)),
        (b"H", wire.HelloPart(b"", last=True)),
        (b"Iabc", wire.Input(b"abc")),
        (b"E", wire.InputEnded()),
        (b"S\x02", wire.Signalled(2)),
        (b"W\x18\x00\x50\x00", wire.Resized(24, 80)),
        (b"C", wire.WokenUp(after_stop=False)),
        (b"C\1", wire.WokenUp(after_stop=True)),
        (b"Q", wire.TerminalSettings(b"", b"")),
        (b"Qab", wire.TerminalSettings(b"a", b"b")),
        (b"R\x0ftok", wire.Resume("tok", (True, True, True), raw_allowed=True)),
    ],
)
def test_messages_of_a_ghost(message, value):
    assert wire.decode(message) == value


@pytest.mark.parametrize("message", [b"", b"I", b"Ex", b"S", b"S\0", b"S\x41", b"S\1\1", b"W\1", b"C\2", b"Qabc", b"R", b"R\1", b"R\1\xff", b"Z", b"X\1"])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(wire.BadMessage):
        wire.decode(message)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoder(message):
    for decode in (wire.decode, wire.decode_hello):
        try:
            decode(message)
        except wire.BadMessage:
            continue


def test_messages_to_a_ghost_fit_and_carry_the_tag_first():
    assert wire.accepted("ab") == b"Aab"
    assert wire.output(1, b"x") == b"Ox"
    assert wire.output(2, b"x") == b"Px"
    assert wire.leave(256 + 7) == b"X\7"
    assert wire.die(9, core=True) == b"K\x09\1"
    assert wire.stop(20) == b"T\x14"
    assert (wire.raw_mode(True), wire.gate(False), wire.go_to("demo"), wire.not_mine()) == (b"M\1", b"G\0", b"Vdemo", b"F")
    assert len(wire.line("x" * 100_000)) < wire.MESSAGE_BYTES_MAX
