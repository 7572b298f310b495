"""What a job of jobd does when something happens: one table, no I/O, no clock.

    starting --Started--> running <--SaidStopped/SaidContinued--> stopped
    running|stopped --ContainerEnded--> exited          starting --StartRefused--> exited (never announced as a job)

Init's `SaidEnded` is kept until the container is really gone (init buries the rest first): only then is there an exit record,
it is persisted before anybody hears of it, and streams may still hold bytes (whoever is attached drains them first).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from xtreemos.foundation.jobd.model import (
    ENOENT,
    REASON_MEMORY,
    REASON_NOT_EXECUTABLE,
    REASON_NOT_FOUND,
    REASON_TIME,
    ExitRecord,
    SaidContinued,
    SaidEnded,
    SaidNoExec,
    SaidStopped,
    State,
)

TERM_GRACE_S = 5.0
SIGKILL, SIGTERM, SIGCONT = 9, 15, 18


@dataclass(frozen=True, slots=True)
class Started:
    """The container runs."""


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The runtime gave up; nothing ran."""


@dataclass(frozen=True, slots=True)
class ContainerEnded:
    """PID 1 of the container is gone, so everything in it is. `status` is its wait status, for when init could not speak."""

    status: int
    oom_kills: int
    stdin_consumed: int | None = None


@dataclass(frozen=True, slots=True)
class WallTimeOver:
    """The job used up its wall time."""


@dataclass(frozen=True, slots=True)
class GraceOver:
    """TERM has had its time."""


@dataclass(frozen=True, slots=True)
class OutputLost:
    """The spool could not take the job's output; `why` is one line."""

    why: str


Event = (
    OutputLost
    | Started
    | StartRefused
    | ContainerEnded
    | WallTimeOver
    | GraceOver
    | SaidStopped
    | SaidContinued
    | SaidNoExec
    | SaidEnded
)


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell watchers and attachments the present state."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the exit record to disk, surely, before the next effect."""

    record: ExitRecord


@dataclass(frozen=True, slots=True)
class SignalTree:
    """Send `signal` to every process of the job but init."""

    signal: int


@dataclass(frozen=True, slots=True)
class Arm:
    """Bring `event` after `after_s` seconds."""

    after_s: float
    event: WallTimeOver | GraceOver


Effect = Announce | Persist | SignalTree | Arm
Effects = tuple[Effect, ...]


class JobMachine:
    """State of one job. `on(event, now_s)` is the only way to change it; effects are to be carried out in order."""

    def __init__(self, wall_s: float | None, now_s: float) -> None:
        self.state = State.STARTING
        self.stop_signal: int | None = None
        self.exit: ExitRecord | None = None
        self.started_at = now_s
        self._wall_s = wall_s
        self._said: SaidEnded | None = None
        self._no_exec: int | None = None
        self._out_of_time = False
        self._lost: str | None = None

    def on(self, event: Event, now_s: float) -> Effects:
        """Take what happened; return what to do. Events that mean nothing in this state change nothing."""
        handler = self._TABLE.get((self.state, type(event)))
        return handler(self, event, now_s) if handler else ()

    def _on_started(self, _event: Started, now_s: float) -> Effects:
        self.state = State.RUNNING
        self.started_at = now_s
        arm = (Arm(self._wall_s, WallTimeOver()),) if self._wall_s is not None else ()
        return (*arm, Announce())

    def _on_refused(self, _event: StartRefused, _now_s: float) -> Effects:
        self.state = State.EXITED
        return ()

    def _on_stopped(self, event: SaidStopped, _now_s: float) -> Effects:
        self.state = State.STOPPED
        self.stop_signal = event.signal
        return (Announce(),)

    def _on_continued(self, _event: SaidContinued, _now_s: float) -> Effects:
        self.state = State.RUNNING
        self.stop_signal = None
        return (Announce(),)

    def _on_no_exec(self, event: SaidNoExec, _now_s: float) -> Effects:
        self._no_exec = event.errno
        return ()

    def _on_said_ended(self, event: SaidEnded, _now_s: float) -> Effects:
        self._said = event
        return ()

    def _on_output_lost(self, event: OutputLost, _now_s: float) -> Effects:
        self._lost = event.why
        return ()

    def _on_wall_time(self, _event: WallTimeOver, _now_s: float) -> Effects:
        self._out_of_time = True
        # a stopped job would not see TERM
        return (SignalTree(SIGTERM), SignalTree(SIGCONT), Arm(TERM_GRACE_S, GraceOver()))

    def _on_grace(self, _event: GraceOver, _now_s: float) -> Effects:
        return (SignalTree(SIGKILL),)

    def _on_ended(self, event: ContainerEnded, now_s: float) -> Effects:
        said = self._said or _from_status(event.status)
        self.state = State.EXITED
        self.stop_signal = None
        self.exit = ExitRecord(
            code=said.code,
            signal=said.signal,
            core=said.core,
            user_s=said.user_s,
            system_s=said.system_s,
            rss_bytes_max=said.rss_bytes_max,
            started_at=self.started_at,
            ended_at=now_s,
            reason=self._reason(said, event.oom_kills),
            stdin_consumed=event.stdin_consumed,
        )
        return (Persist(self.exit), Announce())

    def _reason(self, said: SaidEnded, oom_kills: int) -> str | None:
        if self._no_exec is not None:
            return REASON_NOT_FOUND if self._no_exec == ENOENT else REASON_NOT_EXECUTABLE
        if self._out_of_time:
            return REASON_TIME
        return REASON_MEMORY if oom_kills and said.code != 0 else self._lost

    # A short job speaks before the runtime is back: the driver reads init's lines only after Started.
    _TABLE: ClassVar[dict[tuple[State, type], Callable[[JobMachine, Any, float], Effects]]] = {
        (State.STARTING, Started): _on_started,
        (State.STARTING, StartRefused): _on_refused,
        (State.RUNNING, SaidStopped): _on_stopped,
        (State.STOPPED, SaidStopped): _on_stopped,
        (State.STOPPED, SaidContinued): _on_continued,
        (State.RUNNING, SaidNoExec): _on_no_exec,
        (State.RUNNING, SaidEnded): _on_said_ended,
        (State.STOPPED, SaidEnded): _on_said_ended,
        (State.RUNNING, OutputLost): _on_output_lost,
        (State.STOPPED, OutputLost): _on_output_lost,
        (State.RUNNING, WallTimeOver): _on_wall_time,
        (State.STOPPED, WallTimeOver): _on_wall_time,
        (State.RUNNING, GraceOver): _on_grace,
        (State.STOPPED, GraceOver): _on_grace,
        (State.RUNNING, ContainerEnded): _on_ended,
        (State.STOPPED, ContainerEnded): _on_ended,
    }


def _from_status(status: int) -> SaidEnded:
    """What init's own wait status tells, when it did not speak: init exits as its job did, or was killed with everything."""
    signal = status & 0x7F
    code = None if signal else (status >> 8) & 0xFF
    return SaidEnded(code, signal or None, core=False, user_s=0.0, system_s=0.0, rss_bytes_max=0)
