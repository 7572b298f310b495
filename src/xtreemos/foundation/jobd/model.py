"""Values of jobd: what is asked of it, what it says about a job. Checked once here, frozen after. No I/O."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from xtreemos.errors import NotFound, TryLater, UsageError, XosError
from xtreemos.foundation.cgroups import Limits

JOB_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
STDIN, STDOUT, STDERR = 0, 1, 2
REASON_TIME = "time limit"
REASON_MEMORY = "memory limit"
REASON_JOBD = "jobd died"
REASON_NOT_FOUND = "program not found"
REASON_NOT_EXECUTABLE = "program not executable"
# What jobd and a bundle must agree on (sandbox.write_bundle makes these):
FIFO_NAME = "events"  # in the folder `fifo` of the job's folder
FDS_FROM = 3  # stdio=fds: the caller's descriptors come as 3, 4, 5; crun would change the owner of what it gets as 0, 1, 2
ENOENT = 2


class BadRequest(UsageError):
    """A call to jobd is malformed; nothing was done."""

    code = "bad-request"


class JobExists(XosError):
    """A job of that name is known already; nothing was started."""

    fault = "caller"
    code = "job-exists"


class NoSuchJob(NotFound):
    """jobd does not know the job (any more)."""

    code = "no-such-job"


class JobRuns(XosError):
    """The job has not ended, so it cannot be forgotten."""

    fault = "caller"
    code = "job-runs"


class StartFailed(TryLater):
    """The container could not be made; certainly nothing of the job ran. The text has the runtime's own words."""

    code = "start-failed"


class OffsetGone(XosError):
    """An attachment asked for output that was acknowledged and dropped, or that does not exist yet."""

    fault = "caller"
    code = "offset-gone"


class TakenOver(XosError):
    """Another attachment took the job's streams (`steal`)."""

    fault = "environment"
    code = "taken-over"


class Busy(TryLater):
    """The job's streams are attached elsewhere; attach with `steal` to take them."""

    code = "attached"


class Stdio(StrEnum):
    """Where a job's streams go: to an attachment (pipes, pty), to given descriptors, or to files with a cap.

    `tasks`: it has none; it is the container in which the tasks of one array run (see `task`).
    """

    PIPES = "pipes"
    PTY = "pty"
    FDS = "fds"
    SPOOL = "spool"
    TASKS = "tasks"


class State(StrEnum):
    """Life of a job. `starting` ends with an answer to `start`."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a job ended. Exactly one of `code` and `signal` is set, or neither when nobody could see (`reason` says why).

    CPU times are those of the main process and of the children it waited for, as `time` counts them; times are Unix seconds.
    `stdin_consumed`: bytes of standard input that were taken out of the pipe; None with a terminal, or if it is not known.
    """

    code: int | None
    signal: int | None
    core: bool
    user_s: float
    system_s: float
    rss_bytes_max: int
    started_at: float
    ended_at: float
    reason: str | None
    stdin_consumed: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the map of frames and of `exit.json`."""
        return asdict(self)


def _take(params: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = params.get(name, default)
    if value is None and default is None and name in params:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))):
        raise BadRequest(f"start: {name} is missing or of the wrong type")
    return value


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A checked `start` call. `bundle` is `FOLDER/bundle` as `sandbox.write_bundle` makes it.

    `merged`: with pipes, standard error goes into the pipe of standard output, so that their order is kept; there is no stream 2.
    `stderr_apart`: beside a terminal there is a stream 2 all the same: the caller's standard error is not the terminal.
    """

    job: str
    bundle: str
    stdio: Stdio
    merged: bool = False
    stderr_apart: bool = False
    rows: int = 24
    cols: int = 80
    spool_dir: str | None = None
    spool_bytes_max: int = 64 * 1024 * 1024
    wall_s: float | None = None
    limits: Limits = field(default_factory=Limits)
    meta: Any = None

    @property
    def with_stderr_pipe(self) -> bool:
        """A pipe for standard error goes beside the terminal."""
        return self.stderr_apart and self.stdio is Stdio.PTY

    @classmethod
    def from_params(cls, params: Any) -> StartRequest:
        """Check the parameters of a call; raise BadRequest naming what is off."""
        if not isinstance(params, dict):
            raise BadRequest("start: parameters are no map")
        job = check_name(params)
        bundle = _take(params, "bundle", str, "")
        if not bundle.startswith("/") or not bundle.endswith("/bundle"):
            raise BadRequest("start: bundle must be an absolute path FOLDER/bundle")
        try:
            stdio = Stdio(params.get("stdio", "pipes"))
        except ValueError:
            raise BadRequest("start: stdio is none of pipes, pty, fds, spool, tasks") from None
        spool_dir = _take(params, "spool_dir", str) if params.get("spool_dir") is not None else None
        if (stdio is Stdio.SPOOL) != (spool_dir is not None):
            raise BadRequest("start: spool_dir goes with stdio spool")
        wall_s = params.get("wall_s")
        if wall_s is not None and (not isinstance(wall_s, int | float) or not wall_s > 0):
            raise BadRequest("start: wall_s must be more than 0")
        return cls(
            job=job,
            bundle=bundle,
            stdio=stdio,
            merged=_take(params, "merged", bool, False),
            stderr_apart=_take(params, "stderr_apart", bool, False),
            rows=_size(params, "rows", 24),
            cols=_size(params, "cols", 80),
            spool_dir=spool_dir,
            spool_bytes_max=max(0, _take(params, "spool_bytes_max", int, 64 * 1024 * 1024)),
            wall_s=wall_s,
            limits=_limits(params.get("cgroup")),
            meta=params.get("meta"),
        )


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One checked entry of a `tasks` call. `env`: what the task's environment has beside its container's."""

    job: str
    env: tuple[tuple[str, str], ...]
    spool_dir: str
    spool_bytes_max: int = 64 * 1024 * 1024
    wall_s: float | None = None
    meta: Any = None

    @classmethod
    def from_params(cls, params: Any) -> TaskRequest:
        """Check an entry; raise BadRequest naming what is off."""
        if not isinstance(params, dict):
            raise BadRequest("tasks: an entry is no map")
        env = _take(params, "env", dict, {})
        if any(not isinstance(word, str) or "\0" in word for row in env.items() for word in row):
            raise BadRequest("tasks: env must map names to values without NUL")
        wall_s = params.get("wall_s")
        if wall_s is not None and (not isinstance(wall_s, int | float) or not wall_s > 0):
            raise BadRequest("tasks: wall_s must be more than 0")
        return cls(
            job=check_name(params),
            env=tuple(env.items()),
            spool_dir=_take(params, "spool_dir", str),
            spool_bytes_max=max(0, _take(params, "spool_bytes_max", int, 64 * 1024 * 1024)),
            wall_s=wall_s,
            meta=params.get("meta"),
        )


def _size(params: dict[str, Any], name: str, default: int) -> int:
    value = params.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise BadRequest(f"{name} must be 0 to 65535")
    return value


def window_size(params: dict[str, Any]) -> tuple[int, int]:
    """Return (rows, cols) of a winsize event."""
    return _size(params, "rows", 24), _size(params, "cols", 80)


def _limits(value: Any) -> Limits:
    if value is None:
        return Limits()
    if not isinstance(value, dict) or set(value) - {"cpus", "memory_bytes", "pids_max"}:
        raise BadRequest("start: cgroup has only cpus, memory_bytes and pids_max")
    for name, number in value.items():
        if number is not None and (not isinstance(number, int | float) or not number > 0):
            raise BadRequest(f"start: {name} must be more than 0")
    whole = {name: None if value.get(name) is None else int(value[name]) for name in ("memory_bytes", "pids_max")}
    return Limits(cpus=value.get("cpus"), **whole)


def check_name(params: Any) -> str:
    """Return the checked `job` of a call's parameters: it becomes a file name and a cgroup."""
    job = params.get("job") if isinstance(params, dict) else None
    if not isinstance(job, str) or not JOB_NAME.fullmatch(job):
        raise BadRequest("job must be 1 to 64 of a-z, 0-9, ., _ and -")
    return job


# What container init says. The job itself can write to the same FIFO, so this is its own word about itself.


@dataclass(frozen=True, slots=True)
class SaidStarted:
    """The program was executed; from here on signals reach it."""


@dataclass(frozen=True, slots=True)
class SaidStopped:
    """The main process was stopped by `signal`."""

    signal: int


@dataclass(frozen=True, slots=True)
class SaidContinued:
    """The main process runs again."""


@dataclass(frozen=True, slots=True)
class SaidNoExec:
    """The program could not be executed."""

    errno: int


@dataclass(frozen=True, slots=True)
class SaidEnded:
    """The main process ended; init still has to bury the rest."""

    code: int | None
    signal: int | None
    core: bool
    user_s: float
    system_s: float
    rss_bytes_max: int


InitLine = SaidStarted | SaidStopped | SaidContinued | SaidNoExec | SaidEnded


def parse_init_line(line: bytes) -> InitLine | None:
    """Return what a line of init means; None for anything that is not one of its sentences."""
    try:
        word, *rest = line.decode("ascii").split(" ")
        numbers = [int(text) for text in rest]
    except (UnicodeDecodeError, ValueError):
        return None
    if any(not 0 <= number < 1 << 53 for number in numbers):
        return None
    match word, numbers:
        case "started", []:
            return SaidStarted()
        case "stopped", [signal] if 0 < signal < 65:
            return SaidStopped(signal)
        case "continued", []:
            return SaidContinued()
        case "noexec", [errno]:
            return SaidNoExec(errno)
        case "exit", [code, user, system, rss] if code < 256:
            return SaidEnded(code, None, core=False, user_s=user / 1e6, system_s=system / 1e6, rss_bytes_max=rss * 1024)
        case "signal", [signal, core, user, system, rss] if 0 < signal < 65:
            return SaidEnded(None, signal, core=bool(core), user_s=user / 1e6, system_s=system / 1e6, rss_bytes_max=rss * 1024)
    return None
