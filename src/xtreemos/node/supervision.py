"""When a node's services are started, restarted and stopped: the decisions of the supervisor, without I/O, clock or processes.

A service is kept up until it is removed from the list or the supervisor is told to stop. It is started again at once the first time
it ends, then after 0.1 s, doubling up to 5 s, until it has been up for 3 s. Stopping goes in reverse order of the list, one
service at a time: SIGTERM, and SIGKILL to what is still there 10 s later.

Plain classes and no imports: dataclasses alone would add a tenth to what the supervisor weighs in memory.

    phase      ended             time comes       told to stop
    up         waiting           -                stopping (when its turn comes)
    waiting    -                 start -> up      gone
    stopping   gone              SIGKILL          -
"""

from __future__ import annotations

FIRST_DELAY_S = 0.1
DELAY_S_MAX = 5.0
CALM_AFTER_S = 3.0
STOP_WAIT_S = 10.0


class Service:
    """One line of the list: what to run, with what added to the environment, where its output goes, how late its timers may be, and
    whether what it keeps outlives it.
    """

    __slots__ = ("argv", "env", "keeps", "log", "name", "slack_us")

    def __init__(
        self, name: str, argv: tuple[str, ...], env: dict[str, str], log: str, slack_us: int = 0, *, keeps: bool = False
    ) -> None:
        self.name = name
        self.argv = argv
        self.env = env
        self.log = log
        self.slack_us = slack_us
        self.keeps = keeps


class Start:
    """Effect: start the service's process, then call `on_started`."""

    __slots__ = ("service",)

    def __init__(self, service: Service) -> None:
        self.service = service


class Terminate:
    """Effect: send SIGTERM (or SIGKILL if `hard`) to the service's process."""

    __slots__ = ("hard", "name")

    def __init__(self, name: str, hard: bool) -> None:
        self.name = name
        self.hard = hard


class Entry:
    """What is known of one service. `wake_s` is when a waiting or stopping one needs attention; `pid` is 0 unless it runs."""

    __slots__ = ("delay_s", "phase", "pid", "removed", "restarts", "service", "started_s", "wake_s")

    def __init__(self, service: Service) -> None:
        self.service = service
        self.phase = "waiting"
        self.pid = 0
        self.restarts = 0
        self.delay_s = 0.0
        self.started_s = 0.0
        self.wake_s = 0.0
        self.removed = False


class Supervision:
    """All services of one node. Every method takes the monotonic time and returns what to do now, in order."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}  # in the order of the list
        self.stopping = False

    @property
    def finished(self) -> bool:
        """Whether everything has stopped after `on_stop`."""
        return self.stopping and not self.entries

    def on_adopted(self, service: Service, pid: int, restarts: int, now_s: float) -> None:
        """A process that an earlier supervisor started is still alive: it is ours again. Comes before `on_list`."""
        entry = self.entries[service.name] = Entry(service)
        entry.phase, entry.pid, entry.restarts, entry.started_s = "up", pid, restarts, now_s

    def on_list(self, services: list[Service], now_s: float) -> list[Start | Terminate]:
        """The list was read: start what is new, stop what is gone. A changed line counts from the service's next start."""
        if self.stopping:
            return []
        old = self.entries
        self.entries = {}
        for service in services:
            entry = old.pop(service.name, None) or Entry(service)
            entry.service, entry.removed = service, False
            if entry.phase == "waiting":
                entry.wake_s = now_s
            self.entries[service.name] = entry
        for name, entry in old.items():
            entry.removed = True
            self.entries[name] = entry
        return self.on_time(now_s)

    def on_started(self, name: str, pid: int, now_s: float) -> None:
        """The process runs (or will fail soon, which is an exit like any other)."""
        entry = self.entries[name]
        entry.phase, entry.pid, entry.started_s = "up", pid, now_s

    def on_exited(self, name: str, now_s: float) -> list[Start | Terminate]:
        """The service's process has ended, for whatever reason."""
        entry = self.entries[name]
        entry.pid = 0
        if entry.removed or self.stopping:
            entry.removed = True
            entry.phase = "waiting"
        else:
            if now_s - entry.started_s >= CALM_AFTER_S:
                entry.delay_s = 0.0
            entry.phase, entry.wake_s = "waiting", now_s + entry.delay_s
            entry.delay_s = min(max(entry.delay_s * 2, FIRST_DELAY_S), DELAY_S_MAX)
            entry.restarts += 1
        return self.on_time(now_s)

    def on_stop(self, now_s: float) -> list[Start | Terminate]:
        """Stop everything, last of the list first."""
        self.stopping = True
        for entry in self.entries.values():
            entry.removed = True
        return self.on_time(now_s)

    def on_time(self, now_s: float) -> list[Start | Terminate]:
        """Do what is due."""
        for name in [name for name, entry in self.entries.items() if entry.removed and entry.phase == "waiting"]:
            del self.entries[name]
        effects: list[Start | Terminate] = []
        for entry in self.entries.values():
            if entry.phase == "waiting" and entry.wake_s <= now_s:
                entry.phase = "starting"
                effects.append(Start(entry.service))
            elif entry.phase == "stopping" and entry.wake_s <= now_s:
                entry.wake_s = now_s + STOP_WAIT_S  # SIGKILL cannot fail, but a process in a system call may need a while
                effects.append(Terminate(entry.service.name, hard=True))
        leaving = [entry for entry in self.entries.values() if entry.removed and entry.phase in {"up", "stopping"}]
        if leaving and leaving[-1].phase == "up":
            leaving[-1].phase, leaving[-1].wake_s = "stopping", now_s + STOP_WAIT_S
            effects.append(Terminate(leaving[-1].service.name, hard=False))
        return effects

    def is_lost(self, name: str) -> bool:
        """Whether what a service kept is of no use any more: it is gone from the list, or has ended again and again without coming up."""
        entry = self.entries.get(name)
        return entry is None or entry.removed or entry.delay_s >= DELAY_S_MAX

    def next_wake_s(self) -> float | None:
        """Monotonic time at which `on_time` has something to do, or None."""
        times = [entry.wake_s for entry in self.entries.values() if entry.phase in {"waiting", "stopping"}]
        return min(times) if times else None
