"""One ghost's life as the agent sees it: what to tell the ghost and what to do to the program. Decisions only.

The ghost is a process of the shell; the program runs elsewhere. Both can be stopped, continued and killed, from either side, at the
same time, so the rules are about who mirrors whom:

- A stop of the program is told to the ghost by `T`; the ghost stops itself and answers with one `C` 1 when it runs again. Until that
  answer a stop seen from outside is ours, not the user's.
- A stop of the ghost that we did not ask for (SIGSTOP cannot be caught) is seen by a watcher and sent on as SIGSTOP; the program's
  own report of that stop is then not mirrored back.
- The ghost ends only as the program did, after all output was taken. A ghost that is gone before was killed: so is the program.

Must not know: sockets, descriptors, processes, tasks, time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from xtreemos.aem.agent import ghostwire as wire
from xtreemos.aem.agent.ports import Continued, Ended, Message, Stopped

INPUT_WAITING_BYTES_MAX = 64 * 1024  # typed bytes that the program has not taken; above this the terminal is left alone
INPUT_WAITING_BYTES_LOW = 16 * 1024

_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE})
_STOPPING = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class State(Enum):
    """Where the ghost is in its life."""

    LAUNCHING = "launching"
    RUNNING = "running"
    DRAINING = "draining"  # the program ended, its output is still on the way
    OVER = "over"


# -- events besides messages of the ghost and Stopped, Continued, Ended, Message ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launched:
    """The program runs. `reads_terminal`: its standard input is the ghost's terminal."""

    token: str
    wants_tty: bool
    reads_terminal: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """No program could be started, or its connection broke for good."""

    exit_code: int
    text: str


@dataclass(frozen=True, slots=True)
class InputTaken:
    """The program took so many typed bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class InputRefused:
    """The program takes no input any more."""


@dataclass(frozen=True, slots=True)
class Drained:
    """All output is where it belongs."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The kernel's word on whether the ghost is stopped."""

    stopped: bool


@dataclass(frozen=True, slots=True)
class Reniced:
    """The ghost has another niceness."""

    nice: int


@dataclass(frozen=True, slots=True)
class GhostGone:
    """The ghost's socket is at its end."""


Event = (
    wire.FromGhost | Stopped | Continued | Ended | Message | Launched | Failed | InputTaken | InputRefused | Drained | Watched | Reniced | GhostGone
)  # fmt: skip


# -- effects, to be carried out in order ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this message to the ghost, behind what is queued for it."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Say:
    """Show a line to the user on the ghost's standard error."""

    text: str


@dataclass(frozen=True, slots=True)
class SignalProgram:
    """Send the program a signal."""

    signal: int


@dataclass(frozen=True, slots=True)
class ResizeProgram:
    """Tell the program's terminal its new size."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ReniceProgram:
    """Give the program this niceness."""

    nice: int


@dataclass(frozen=True, slots=True)
class GiveInput:
    """Queue bytes for the program's standard input; None ends it."""

    data: bytes | None


@dataclass(frozen=True, slots=True)
class WakeGhost:
    """Send the ghost SIGCONT."""


@dataclass(frozen=True, slots=True)
class RestoreTerminal:
    """If the terminal is still as this ghost made it raw, undo that: the ghost itself cannot."""


@dataclass(frozen=True, slots=True)
class CancelLaunch:
    """Give up starting; nothing may stay running."""


@dataclass(frozen=True, slots=True)
class DropOutput:
    """Throw away what the ghost's descriptors did not take yet."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Write what is left, close the ghost's descriptors, then report Drained."""


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing more will happen. `detach`: let go of the program."""


Effect = (
    Tell | Say | SignalProgram | ResizeProgram | ReniceProgram | GiveInput | WakeGhost | RestoreTerminal | CancelLaunch | DropOutput | Drain | Close
)  # fmt: skip
Effects = tuple[Effect, ...]


def last_word(exit_record: dict[str, Any]) -> bytes:
    """Return the message that makes the ghost end as the program did: `X` or `K`. A record without either counts as failure."""
    number = exit_record.get("signal")
    if number:
        return wire.die(int(number), bool(exit_record.get("core")))
    code = exit_record.get("code")
    return wire.leave(1 if code is None else int(code))


class GhostMachine:
    """The only state of one ghost. `on` is the only way to change it."""

    def __init__(self) -> None:
        self.state = State.LAUNCHING
        self._program_stopped = False
        self._ghost_stopped = False
        self._stops_told = 0  # T messages that no C 1 answered yet
        self._stop_is_ours = False  # we sent SIGSTOP to the program; its report is not news to the ghost
        self._early: list[int] = []  # signals that came before the program was there
        self._size: tuple[int, int] | None = None
        self._input_waiting = 0
        self._gate: bool | None = None  # None: never opened, or shut for good
        self._end: bytes = wire.leave(1)

    def on(self, event: Event) -> Effects:
        """Take one event, return what must be done now, in this order."""
        if self.state is State.OVER:
            # Its last message waits for it; a ghost that stopped just before must be woken to read it.
            return (WakeGhost(),) if isinstance(event, Watched) and event.stopped else ()
        handler: Callable[[GhostMachine, Any], Effects] = _HANDLERS[type(event)]
        return handler(self, event)

    # -- launching -------------------------------------------------------------------------------------------------------

    def _on_launched(self, event: Launched) -> Effects:
        self.state = State.RUNNING
        out: list[Effect] = [Tell(wire.accepted(event.token))]
        if self._size:
            out.append(ResizeProgram(*self._size))
        if event.wants_tty:
            out.append(Tell(wire.raw_mode(True)))
        if event.reads_terminal:
            self._gate = True
            out.append(Tell(wire.gate(True)))
        out += [SignalProgram(number) for number in self._early]
        self._early.clear()
        if self._ghost_stopped or self._stops_told:
            self._stop_is_ours = True
            out.append(SignalProgram(signal.SIGSTOP))
        return tuple(out)

    def _on_failed(self, event: Failed) -> Effects:
        self._end = wire.leave(event.exit_code)
        self.state = State.DRAINING
        return ((Say(event.text),) if event.text else ()) + (Drain(),)

    # -- the program speaks ----------------------------------------------------------------------------------------------

    def _on_stopped(self, event: Stopped) -> Effects:
        self._program_stopped = True
        ours, self._stop_is_ours = self._stop_is_ours, False
        if ours or self._ghost_stopped or self.state is not State.RUNNING:
            return ()
        self._stops_told += 1
        return (Tell(wire.stop(event.signal)),)

    def _on_continued(self, _: Continued) -> Effects:
        self._program_stopped = False
        return (WakeGhost(),) if self._ghost_stopped or self._stops_told else ()

    def _on_ended(self, event: Ended) -> Effects:
        self._end = last_word(event.exit)
        self.state = State.DRAINING
        # A stopped ghost writes nothing to its terminal, so without waking it the output would never drain; if a T is still on its
        # way, the watcher sees that stop and it is undone then.
        self._stops_told = 0
        return (*((WakeGhost(),) if self._ghost_stopped else ()), Drain())

    def _on_drained(self, _: Drained) -> Effects:
        return self._finish(self._end)

    def _on_message(self, event: Message) -> Effects:
        return (Say(event.text),)

    def _on_input_taken(self, event: InputTaken) -> Effects:
        self._input_waiting -= event.count
        if self._gate is False and self._input_waiting <= INPUT_WAITING_BYTES_LOW:
            self._gate = True
            return (Tell(wire.gate(True)),)
        return ()

    def _on_input_refused(self, _: InputRefused) -> Effects:
        was, self._gate = self._gate, None
        return (Tell(wire.gate(False)),) if was else ()

    # -- the ghost speaks ------------------------------------------------------------------------------------------------

    def _on_signalled(self, event: wire.Signalled) -> Effects:
        number = event.signal
        if self.state is State.RUNNING:
            return (SignalProgram(number),)
        if self.state is State.LAUNCHING and number not in self._early and number not in _STOPPING:
            self._early.append(number)  # a program with the ghost's own descriptors may run before we hear of it: it decides
            return ()
        if number in _ENDING:
            first: Effect = CancelLaunch() if self.state is State.LAUNCHING else DropOutput()
            return (first, *self._finish(wire.die(number, core=False)))
        if number in _STOPPING:  # there is no program (yet, or any more) that could stop first
            self._stops_told += 1
            return (Tell(wire.stop(number)),)
        return ()

    def _on_woken(self, event: wire.WokenUp) -> Effects:
        self._ghost_stopped = False
        if event.after_stop:
            self._stops_told = max(0, self._stops_told - 1)
        if self.state is not State.RUNNING:
            return ()
        if event.after_stop and not self._program_stopped and not self._stop_is_ours:
            return ()  # the program was continued first, that is why the ghost woke up
        return (SignalProgram(signal.SIGCONT),)

    def _on_resized(self, event: wire.Resized) -> Effects:
        self._size = (event.rows, event.cols)
        return (ResizeProgram(event.rows, event.cols),) if self.state is State.RUNNING else ()

    def _on_input(self, event: wire.Input) -> Effects:
        if self._gate is None or self.state is not State.RUNNING:
            return ()
        self._input_waiting += len(event.data)
        if self._gate and self._input_waiting > INPUT_WAITING_BYTES_MAX:
            self._gate = False
            return (GiveInput(event.data), Tell(wire.gate(False)))
        return (GiveInput(event.data),)

    def _on_input_ended(self, _: wire.InputEnded) -> Effects:
        if self._gate is None or self.state is not State.RUNNING:
            return ()
        self._gate = None
        return (GiveInput(None),)

    def _on_nothing(self, _: Event) -> Effects:
        return ()  # hello, resume and settings are the driver's; a second one changes nothing

    # -- the kernel speaks -----------------------------------------------------------------------------------------------

    def _on_watched(self, event: Watched) -> Effects:
        if not event.stopped:
            return ()  # the ghost says so itself, by C, and in order with the rest
        known, self._ghost_stopped = self._ghost_stopped, True
        if self.state is State.DRAINING:
            return () if self._stops_told else (WakeGhost(),)
        if self._stops_told:
            # Our own T. If the program went on meanwhile, SIGCONT may have come before the stop: send another.
            return (WakeGhost(),) if self.state is State.RUNNING and not self._program_stopped and not self._stop_is_ours else ()
        if known:
            return ()
        if self.state is State.RUNNING and not self._program_stopped:
            self._stop_is_ours = True
            return (SignalProgram(signal.SIGSTOP), RestoreTerminal())
        return (RestoreTerminal(),)

    def _on_reniced(self, event: Reniced) -> Effects:
        return (ReniceProgram(event.nice),) if self.state is State.RUNNING else ()

    def _on_gone(self, _: GhostGone) -> Effects:
        was, self.state = self.state, State.OVER
        first: tuple[Effect, ...] = ()
        if was is State.LAUNCHING:
            first = (CancelLaunch(),)
        elif was is State.RUNNING:
            first = (SignalProgram(signal.SIGKILL),)
        return (*first, DropOutput(), RestoreTerminal(), Close())

    def _finish(self, message: bytes) -> Effects:
        self.state = State.OVER
        return (Tell(message), *((WakeGhost(),) if self._ghost_stopped else ()), Close())


_HANDLERS: dict[type, Callable[..., Effects]] = {
    Launched: GhostMachine._on_launched,  # noqa: SLF001  # the table belongs to the class
    Failed: GhostMachine._on_failed,  # noqa: SLF001
    Stopped: GhostMachine._on_stopped,  # noqa: SLF001
    Continued: GhostMachine._on_continued,  # noqa: SLF001
    Ended: GhostMachine._on_ended,  # noqa: SLF001
    Drained: GhostMachine._on_drained,  # noqa: SLF001
    Message: GhostMachine._on_message,  # noqa: SLF001
    InputTaken: GhostMachine._on_input_taken,  # noqa: SLF001
    InputRefused: GhostMachine._on_input_refused,  # noqa: SLF001
    Watched: GhostMachine._on_watched,  # noqa: SLF001
    Reniced: GhostMachine._on_reniced,  # noqa: SLF001
    GhostGone: GhostMachine._on_gone,  # noqa: SLF001
    wire.Signalled: GhostMachine._on_signalled,  # noqa: SLF001
    wire.WokenUp: GhostMachine._on_woken,  # noqa: SLF001
    wire.Resized: GhostMachine._on_resized,  # noqa: SLF001
    wire.Input: GhostMachine._on_input,  # noqa: SLF001
    wire.InputEnded: GhostMachine._on_input_ended,  # noqa: SLF001
    wire.HelloPart: GhostMachine._on_nothing,  # noqa: SLF001
    wire.Resume: GhostMachine._on_nothing,  # noqa: SLF001
    wire.TerminalSettings: GhostMachine._on_nothing,  # noqa: SLF001
}
