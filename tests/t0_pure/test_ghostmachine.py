"""Who mirrors whom: every rule of GhostMachine, and what holds for any order of events."""

from __future__ import annotations

import signal

from hypothesis import given
from hypothesis import strategies as st

from xtreemos.aem.agent import ghostmachine as gm
from xtreemos.aem.agent import ghostwire as wire
from xtreemos.aem.agent.ports import Continued, Ended, Message, Stopped

LAUNCHED = gm.Launched("tok", wants_tty=True, reads_terminal=True)
TSTP, STOP, CONT = signal.SIGTSTP, signal.SIGSTOP, signal.SIGCONT


def machine(*events):
    one = gm.GhostMachine()
    one.on(LAUNCHED)
    for event in events:
        one.on(event)
    return one


def test_a_launched_program_gets_the_terminal():
    assert gm.GhostMachine().on(LAUNCHED) == (gm.Tell(b"Atok"), gm.Tell(b"M\1"), gm.Tell(b"G\1"))


def test_signals_before_the_program_wait_for_it():
    one = gm.GhostMachine()
    assert one.on(wire.Signalled(10)) == ()
    assert gm.SignalProgram(10) in one.on(LAUNCHED)


def test_a_signal_that_ends_programs_waits_for_the_program_which_may_run_already():
    one = gm.GhostMachine()
    assert one.on(wire.Signalled(15)) == ()
    assert gm.SignalProgram(15) in one.on(LAUNCHED)


def test_a_second_ctrl_c_before_the_program_gives_up():
    one = gm.GhostMachine()
    assert one.on(wire.Signalled(2)) == ()
    assert one.on(wire.Signalled(2)) == (gm.CancelLaunch(), gm.Tell(wire.die(2, core=False)), gm.Close())
    assert one.on(LAUNCHED) == ()


def test_a_ghost_stopped_before_the_program_stops_it_on_arrival():
    one = gm.GhostMachine()
    assert one.on(wire.Signalled(TSTP)) == (gm.Tell(wire.stop(TSTP)),)
    one.on(gm.Watched(stopped=True))
    assert one.on(LAUNCHED)[-1] == gm.SignalProgram(STOP)
    assert one.on(Stopped(STOP)) == ()
    assert one.on(wire.WokenUp(after_stop=True)) == (gm.SignalProgram(CONT),)


def test_a_stop_of_the_program_is_mirrored_once_and_undone_by_waking():
    one = machine()
    assert one.on(Stopped(TSTP)) == (gm.Tell(wire.stop(TSTP)),)
    assert one.on(gm.Watched(stopped=True)) == ()
    assert one.on(wire.WokenUp(after_stop=True)) == (gm.SignalProgram(CONT),)
    assert one.on(Continued()) == ()


def test_a_stop_of_the_ghost_is_mirrored_and_its_echo_swallowed():
    one = machine()
    assert one.on(gm.Watched(stopped=True)) == (gm.SignalProgram(STOP), gm.RestoreTerminal())
    assert one.on(gm.Watched(stopped=True)) == ()
    assert one.on(Stopped(STOP)) == ()
    assert one.on(wire.WokenUp(after_stop=False)) == (gm.SignalProgram(CONT),)


def test_an_echo_that_comes_after_the_wake_up_is_still_swallowed():
    one = machine(gm.Watched(stopped=True), wire.WokenUp(after_stop=False))
    assert one.on(Stopped(STOP)) == ()
    assert one.on(Continued()) == ()


def test_a_program_continued_elsewhere_wakes_the_ghost_without_a_second_cont():
    one = machine(Stopped(TSTP), gm.Watched(stopped=True))
    assert one.on(Continued()) == (gm.WakeGhost(),)
    assert one.on(wire.WokenUp(after_stop=True)) == ()


def test_a_wake_up_that_came_before_the_stop_is_repeated():
    one = machine(Stopped(TSTP), Continued())  # the T is still on its way
    assert one.on(gm.Watched(stopped=True)) == (gm.WakeGhost(),)
    assert one.on(gm.Watched(stopped=True)) == (gm.WakeGhost(),)
    assert one.on(wire.WokenUp(after_stop=True)) == ()


def test_the_end_waits_for_the_output_and_wakes_a_stopped_ghost():
    one = machine(Stopped(TSTP), gm.Watched(stopped=True))
    assert one.on(Ended({"code": None, "signal": 9, "core": False})) == (gm.WakeGhost(), gm.Drain())
    assert one.on(gm.Drained()) == (gm.Tell(wire.die(9, core=False)), gm.WakeGhost(), gm.Close())
    assert one.on(gm.Watched(stopped=True)) == (gm.WakeGhost(),)


def test_a_signal_while_output_is_stuck_throws_it_away():
    one = machine(Ended({"code": 0}))
    assert one.on(wire.Signalled(2)) == (gm.DropOutput(), gm.Tell(wire.die(2, core=False)), gm.Close())


def test_a_vanished_ghost_kills_its_program():
    assert machine().on(gm.GhostGone()) == (gm.SignalProgram(signal.SIGKILL), gm.DropOutput(), gm.RestoreTerminal(), gm.Close())
    assert gm.GhostMachine().on(gm.GhostGone())[0] == gm.CancelLaunch()
    assert gm.SignalProgram(signal.SIGKILL) not in machine(Ended({"code": 0})).on(gm.GhostGone())


def test_typed_input_is_bounded_by_the_gate():
    one = machine()
    half = b"x" * (gm.INPUT_WAITING_BYTES_MAX // 2 + 1)
    assert one.on(wire.Input(half)) == (gm.GiveInput(half),)
    assert one.on(wire.Input(half)) == (gm.GiveInput(half), gm.Tell(b"G\0"))
    assert one.on(gm.InputTaken(len(half))) == ()
    assert one.on(gm.InputTaken(len(half))) == (gm.Tell(b"G\1"),)
    assert one.on(gm.InputRefused()) == (gm.Tell(b"G\0"),)
    assert one.on(wire.Input(b"y")) == ()


def test_a_program_without_code_or_signal_failed():
    assert gm.last_word({}) == wire.leave(1)


EVENTS = st.sampled_from([
    Stopped(TSTP), Stopped(STOP), Continued(), Ended({"code": 3}), Message("hello"), LAUNCHED, gm.Failed(75, "no"), gm.InputTaken(1), gm.InputRefused(),
    gm.Drained(), gm.Watched(True), gm.Watched(False), gm.Reniced(3), gm.GhostGone(), wire.Signalled(2), wire.Signalled(TSTP), wire.Signalled(10),
    wire.WokenUp(True), wire.WokenUp(False), wire.Resized(1, 2), wire.Input(b"x"), wire.InputEnded(), wire.TerminalSettings(b"", b""),
])  # fmt: skip


@given(st.lists(EVENTS, max_size=60))
def test_in_any_order_there_is_one_end_and_nothing_after_it(events):
    one = gm.GhostMachine()
    effects = [effect for event in events for effect in one.on(event)]
    ends = [at for at, effect in enumerate(effects) if isinstance(effect, gm.Close)]
    assert len(ends) <= 1
    if ends:
        assert all(isinstance(effect, gm.WakeGhost) for effect in effects[ends[0] + 1 :])
    last_words = [effect for effect in effects if isinstance(effect, gm.Tell) and effect.message[:1] in b"XK"]
    assert len(last_words) <= 1
