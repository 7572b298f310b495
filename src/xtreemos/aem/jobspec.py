"""What a job is: the frozen description that travels from the agent to a node.

Checked once, here, when it is built or decoded; everything behind this module may trust it. Knows no I/O.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xtreemos.errors import UsageError
from xtreemos.names import ARRAY_TASKS_MAX, check_job, check_node, check_user, check_vo, task_id, task_index

ARGV_BYTES_MAX = 128 * 1024
ENV_BYTES_MAX = 256 * 1024
CPUS_MAX = 4096.0
SIGNALS_MAX = 64

# What a job must not inherit: loader and interpreter hooks of another machine, and the session's own handles.
ENV_DROPPED = frozenset({
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_DEBUG", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY",
    "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_SESSION_ID", "XOS_AGENT_DIR", "XOS_GRID", "KRB5CCNAME", "GPG_AGENT_INFO",
    "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID", "MAIL", "TMUX", "TMUX_PANE", "STY", "WINDOWID", "XAUTHORITY",
    "TMPDIR", "OLDPWD", "_",
})  # fmt: skip
# Always the far side's own: the identity belongs to the VO, not to the local account.
ENV_OURS = frozenset({"HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD"})


class BadSpec(UsageError):
    """A job description that cannot be run anywhere; nothing was started."""

    code = "bad-spec"


class Winsize(msgspec.Struct, frozen=True):
    """Size of a terminal in character cells."""

    rows: int
    cols: int


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One program to run.

    Units: cpus in cores (fractions allowed, None = no limit), memory_bytes, wall_s seconds. `env` is the whole environment
    but for what the node sets itself; `merged`: one pipe for both outputs; `stderr_apart`: standard error is none of the terminal;
    `count` above 1: an array of so many tasks, `job` is its first task's id (`names.task_id`), `task` makes the spec of each;
    `rlimits` maps a name without RLIMIT_ to (soft, hard), -1 = infinity.
    """

    job: str
    vo: str
    user: str
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str | None = None
    umask: int = 0o022
    nice: int = 0
    rlimits: dict[str, tuple[int, int]] = {}
    cpus: float | None = None
    memory_bytes: int | None = None
    wall_s: float | None = None
    where: str | None = None
    node: str | None = None
    tty: Winsize | None = None
    detached: bool = False
    retry: int = 0
    ignored_signals: list[int] = []
    merged: bool = False
    stderr_apart: bool = False
    submitted_at: float = 0.0
    count: int = 1
    files: bytes = b""
    """A detached job's ticket for the user's files (`xtreemfs.ticket`)."""

    def __post_init__(self) -> None:
        check_job(self.job)
        check_vo(self.vo)
        check_user(self.user)
        if self.node is not None:
            check_node(self.node)
        if not self.argv or not self.argv[0]:
            raise BadSpec("no program given", "write: xos run -- PROGRAM ARGUMENTS")
        if any("\0" in word for word in self.argv) or any("\0" in k or "=" in k or "\0" in v for k, v in self.env.items()):
            raise BadSpec("an argument or environment variable holds a NUL byte or a broken name")
        if sum(len(word) for word in self.argv) > ARGV_BYTES_MAX:
            raise BadSpec(f"the arguments are longer than {ARGV_BYTES_MAX} bytes", "pass them in a file or by standard input")
        if sum(len(k) + len(v) for k, v in self.env.items()) > ENV_BYTES_MAX:
            raise BadSpec(f"the environment is larger than {ENV_BYTES_MAX} bytes", "unset what the program does not need")
        if self.cpus is not None and not 0.01 <= self.cpus <= CPUS_MAX:
            raise BadSpec(f"--cpus {self.cpus} is not between 0.01 and {CPUS_MAX:g}")
        if self.memory_bytes is not None and self.memory_bytes < 1 << 20:
            raise BadSpec("--memory is below 1M", "write for example --memory 2G")
        if self.wall_s is not None and self.wall_s <= 0:
            raise BadSpec("--time must be above zero", "write for example --time 90s, 10m or 2h")
        if not 0 <= self.umask <= 0o777:
            raise BadSpec("the umask is not between 0 and 0777")
        if not 0 <= self.retry <= 100:
            raise BadSpec("--retry is not between 0 and 100")
        if not 1 <= self.count <= ARRAY_TASKS_MAX:
            raise BadSpec(f"--count {self.count} is not between 1 and {ARRAY_TASKS_MAX}")
        if self.count > 1 and (task_index(self.job) != 0 or not self.detached):
            raise BadSpec("an array is detached, and its id is that of its first task")

    def tasks(self) -> list[str]:
        """Return the job ids that this describes: one, or one for each task of the array, in order."""
        return [self.job] if self.count == 1 else [task_id(self.job, index) for index in range(self.count)]

    def task(self, job: str) -> JobSpec:
        """Return what one job of this is.

        Raises:
            BadSpec: `job` is none of `tasks`.
        """
        if self.count == 1 and job == self.job:
            return self
        index = task_index(check_job(job))
        if self.count == 1 or index >= self.count or task_id(self.job, index) != job:
            raise BadSpec(f"the submission of {self.job} does not speak of job {job}")
        return msgspec.structs.replace(self, job=job, count=1, env={**self.env, "XOS_INDEX": str(index)})


def to_wire(spec: JobSpec) -> dict[str, Any]:
    """Return the plain map of `spec` for a CALL's params."""
    return msgspec.to_builtins(spec)  # type: ignore[no-any-return]


def from_wire(wire: Any) -> JobSpec:
    """Check and build a spec out of a received map.

    Raises:
        BadSpec: a field is missing, of the wrong type, or out of bounds. Caller's fault; definite.
    """
    try:
        return msgspec.convert(wire, JobSpec)
    except msgspec.ValidationError as error:
        raise BadSpec(f"the job description is not valid: {error}") from error


def carried_env(env: dict[str, str]) -> dict[str, str]:
    """Return the part of a caller's environment that goes with the job."""
    return {
        k: v
        for k, v in env.items()
        if k not in ENV_DROPPED and k not in ENV_OURS and not k.startswith(("LD_", "BASH_FUNC_", "GIT_ASKPASS"))
    }
