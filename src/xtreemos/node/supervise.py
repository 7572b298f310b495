"""The supervisor of one node: keeps the services of a list running. Stays tiny, for it must outlive everything else.

    python -S -m xtreemos.node.supervise --services FILE --run DIR --log DIR      (see `command`)

FILE (JSON): `[{"name": N, "argv": [...], "env": {...}, "log": "N.log", "slack_us": 0, "keeps": false}, ...]`; `env` is added to ours, `log` is a file
name in the log folder (default N.log) or a path, `slack_us` how late the kernel may fire the service's timers (0: as it does). A service that
`keeps` is given a pair of sockets that we hold open as well: descriptors which it sends to itself outlive it (`xtreemfs.fuse.keeping`), until it
is stopped or cannot be started. SIGHUP reads it again, SIGTERM stops all in reverse order and ends.
RUN/pids.json tells `{N: {pid, start_ticks, restarts, keeps, since}}` (`since`: seconds of the Epoch), the supervisor itself as `supervise`.

If the supervisor is killed, its services live on (jobs must survive it); the next one finds them in pids.json and adopts them.
That file is complete at any time: a service waits for its first instruction until its pid is written there. As PID 1 or child
subreaper it also reaps what others leave. Only the standard library, only light modules of it; decisions are in `supervision`.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time

from xtreemos.foundation.reaping import ended_children
from xtreemos.node.supervision import Service, Start, Supervision, Terminate

LOG_BYTES_MAX = 8 << 20  # then the file is copied to NAME.1 and emptied
LOG_LOOK_S = 30.0
SELF = "supervise"
KEEP_ENV = "XOS_KEEP"
KEEP_FDS = (3, 4)  # of the pair, in the service
_DUP_FROM = 10
_PIDFD_GETFD = 438  # number of the system call
EXIT_USAGE = 2
EXIT_ALREADY_RUNNING = 75
_NOTICED = (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


def command(services: str, run: str, log: str) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment additions with which to start a supervisor (by setsid, its output to a log)."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    argv = [sys.executable, "-S", "-m", "xtreemos.node.supervise", "--services", services, "--run", run, "--log", log]
    return argv, {"PYTHONPATH": source}


def read_pids(run: str) -> dict[str, dict[str, float]]:
    """Return what pids.json says of processes that are really still there; {} if there is no such file."""
    try:
        with open(f"{run}/pids.json", encoding="utf-8") as file:
            table = json.load(file)
    except FileNotFoundError:
        return {}
    return {name: facts for name, facts in table.items() if start_ticks(int(facts["pid"])) == facts["start_ticks"]}


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def parse_services(text: str) -> list[Service]:
    """Read the list; raise ValueError that says which line is wrong."""
    services: list[Service] = []
    for raw in json.loads(text):
        name, argv = raw.get("name"), raw.get("argv")
        if not isinstance(name, str) or not name or "/" in name or name == SELF:
            raise ValueError(f"bad service name {name!r}")
        if not argv or not all(isinstance(word, str) for word in argv):
            raise ValueError(f"service {name} has no argv")
        if any(service.name == name for service in services):
            raise ValueError(f"service {name} stands twice in the list")
        log, slack_us = str(raw.get("log") or f"{name}.log"), int(raw.get("slack_us") or 0)
        services.append(Service(name, tuple(argv), dict(raw.get("env") or {}), log, slack_us, keeps=bool(raw.get("keeps"))))
    return services


class Supervisor:
    """The driver: processes, signals, files."""

    def __init__(self, services: str, run: str, log: str) -> None:
        self._services = services
        self._run = run
        self._log = log
        self._core = Supervision()
        self._adopted: dict[int, str] = {}  # pidfd -> service name
        self._since: dict[str, float] = {}  # by service name, seconds of the Epoch
        self._ticks: dict[str, int] = {}
        self._kept: dict[str, tuple[int, int]] = {}  # by service name: the pair of those that keep something
        self._next_log_look_s = 0.0
        self._poll = select.poll()

    def main(self) -> None:
        """Run until SIGTERM has been carried out."""
        wake = _signals_to_pipe()
        self._poll.register(wake, select.POLLIN)
        self._adopt()
        self._read_list()
        while not self._core.finished:
            self._wait(wake)
            self._reap()
            self._perform(self._core.on_time(time.monotonic()))
            self._bound_logs()
        if os.path.exists(f"{self._run}/pids.json"):
            os.unlink(f"{self._run}/pids.json")

    def _wait(self, wake: int) -> None:
        """Sleep until a signal, the end of an adopted service or the next thing that is due; act on all but the last."""
        wake_s = self._core.next_wake_s()
        until_s = self._next_log_look_s if wake_s is None else min(wake_s, self._next_log_look_s)
        for descriptor, _ in self._poll.poll(max(0.0, until_s - time.monotonic()) * 1000 + 1):
            if descriptor != wake:
                self._adopted_ended(descriptor)
                continue
            for number in set(os.read(wake, 4096)):
                if number == signal.SIGHUP:
                    self._read_list()
                elif number in {signal.SIGTERM, signal.SIGINT}:
                    _say("stopping")
                    self._perform(self._core.on_stop(time.monotonic()))

    def _adopt(self) -> None:
        """Take over what an earlier supervisor started and is still alive."""
        for name, facts in read_pids(self._run).items():
            if name == SELF:
                continue
            pid = int(facts["pid"])
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self._poll.register(pidfd, select.POLLIN)
            self._adopted[pidfd] = name
            self._since[name], self._ticks[name] = facts["since"], int(facts["start_ticks"])
            if facts.get("keeps"):
                self._fetch_kept(name, pidfd)
            self._core.on_adopted(Service(name, (), {}, ""), pid, int(facts["restarts"]), time.monotonic())
            _say(f"{name}: adopted, pid {pid}")

    def _fetch_kept(self, name: str, pidfd: int) -> None:
        """Take copies of the pair from a service that an earlier supervisor started."""
        import ctypes  # rarely needed, and large

        libc = ctypes.CDLL(None, use_errno=True)
        pair = tuple(int(libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)) for fd in KEEP_FDS)
        if min(pair) < 0:
            _say(f"{name}: what it keeps cannot be had: {os.strerror(ctypes.get_errno())}")
        else:
            self._kept[name] = (pair[0], pair[1])

    def _drop_kept(self, name: str) -> None:
        for fd in self._kept.pop(name, ()):
            os.close(fd)

    def _adopted_ended(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._exited(self._adopted.pop(pidfd), "ended")

    def _read_list(self) -> None:
        """Read the list; one that is wrong changes nothing."""
        try:
            with open(self._services, encoding="utf-8") as file:
                services = parse_services(file.read())
        except (OSError, ValueError, AttributeError) as bad:
            _say(f"the list {self._services} is wrong and changes nothing: {bad}")
            return
        self._perform(self._core.on_list(services, time.monotonic()))
        self._write_pids()

    def _reap(self) -> None:
        """Take in every child that has ended: services, and orphans that the kernel gave to us."""
        for pid, status in ended_children():
            name = next((name for name, entry in self._core.entries.items() if entry.pid == pid), None)
            if name is not None:
                self._exited(name, _how(status))

    def _exited(self, name: str, how: str) -> None:
        _say(f"{name}: {how}")
        effects = self._core.on_exited(name, time.monotonic())
        if self._core.is_lost(name):
            self._drop_kept(name)
        self._perform(effects)
        self._write_pids()

    def _perform(self, effects: list[Start | Terminate]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self._start(effect.service)
            else:
                self._signal(effect)

    def _signal(self, effect: Terminate) -> None:
        entry = self._core.entries[effect.name]
        if start_ticks(entry.pid) == self._ticks[effect.name]:  # an adopted one may have ended, its pid be another's
            os.kill(entry.pid, signal.SIGKILL if effect.hard else signal.SIGTERM)

    def _start(self, service: Service) -> None:
        """Fork; record the pid; only then let the child execute. If we die in between, the child sees the pipe close and ends."""
        if service.keeps and service.name not in self._kept:
            self._kept[service.name] = _socket_pair()
        held, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            self._become(service, held)
        os.close(held)
        name = service.name
        self._since[name], self._ticks[name] = time.time(), start_ticks(pid) or 0
        self._core.on_started(name, pid, time.monotonic())
        self._write_pids()
        try:
            os.write(go, b"1")
        except BrokenPipeError:
            _say(f"{name}: died before it could start")
        os.close(go)

    def _become(self, service: Service, held: int) -> None:
        """In the child: wait for the word, then become the service. Never returns."""
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (*_NOTICED, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            if not os.read(held, 1):
                os._exit(1)
            null = os.open("/dev/null", os.O_RDONLY)
            log = os.open(self._log_path(service), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            for target, source in ((0, null), (1, log), (2, log)):
                os.dup2(source, target)
            os.chdir("/")
            if service.slack_us:
                with open("/proc/self/timerslack_ns", "w", encoding="ascii") as slack:  # kept by exec, given to every thread
                    slack.write(str(service.slack_us * 1000))
            env = {**os.environ, **service.env, **self._hand_kept(service)}
            os.execvpe(service.argv[0], service.argv, env)  # noqa: S606  # no shell wanted
        except BaseException as problem:  # noqa: BLE001  # a forked child must never return into its parent's loop
            os.write(2, f"supervise: {service.name} cannot be started: {problem!r}\n".encode())
        os._exit(127)

    def _hand_kept(self, service: Service) -> dict[str, str]:
        """In the child, at the end: put the pair where the service expects it; return what to add to its environment."""
        if not service.keeps:
            return {}
        pair = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _DUP_FROM) for fd in self._kept[service.name]]  # out of the way
        for fd, target in zip(pair, KEEP_FDS, strict=True):
            os.dup2(fd, target, inheritable=True)
        return {KEEP_ENV: ",".join(map(str, KEEP_FDS))}

    def _log_path(self, service: Service) -> str:
        return os.path.join(self._log, service.log)

    def _bound_logs(self) -> None:
        """Empty logs that have grown too long, keeping one copy. Writers append, so they simply go on at the new end."""
        if time.monotonic() < self._next_log_look_s:
            return
        self._next_log_look_s = time.monotonic() + LOG_LOOK_S
        for entry in self._core.entries.values():
            path = self._log_path(entry.service)
            if entry.service.log and os.path.exists(path) and os.path.getsize(path) > LOG_BYTES_MAX:
                rotate(path)

    def _write_pids(self) -> None:
        """Replace pids.json as a whole."""
        table = {SELF: {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "restarts": 0, "since": _STARTED}}
        for name, entry in self._core.entries.items():
            if entry.pid:
                facts = {
                    "pid": entry.pid,
                    "start_ticks": self._ticks[name],
                    "restarts": entry.restarts,
                    "keeps": name in self._kept,
                }
                table[name] = {**facts, "since": self._since[name]}
        fresh = f"{self._run}/.pids.json"
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)
        os.replace(fresh, f"{self._run}/pids.json")


def _socket_pair() -> tuple[int, int]:
    """Return a connected pair for messages with descriptors, close-on-exec."""
    import _socket  # the light half of `socket`, and only if a service keeps something

    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pair = (one.detach(), other.detach())
    for fd in pair:
        os.set_inheritable(fd, False)
    return pair


def rotate(path: str) -> None:
    """Copy a log to PATH.1 and empty it; lines written between the copy's end and the emptying are lost."""
    with open(path, "rb") as source, open(f"{path}.1", "wb") as copy:
        while chunk := source.read(1 << 16):
            copy.write(chunk)
    os.truncate(path, 0)


_STARTED = time.time()


def _signals_to_pipe() -> int:
    """Make signals readable: one byte each on the returned descriptor."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _NOTICED:
        signal.signal(number, _noticed)
    return reading


def _noticed(_number: int, _frame: object) -> None:
    """The byte on the pipe is all we need."""


def _how(status: int) -> str:
    return f"died by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exited with code {os.WEXITSTATUS(status)}"


def _say(line: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f"{stamp} supervise: {line}\n")
    sys.stderr.flush()


def main(words: list[str]) -> int:
    """Read the three options and supervise; 75 if another supervisor holds this run folder."""
    options = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 6 or set(options) != {"--services", "--run", "--log"}:
        sys.stderr.write("usage: supervise --services FILE --run DIR --log DIR\n")
        return EXIT_USAGE
    os.makedirs(options["--run"], exist_ok=True)
    os.makedirs(options["--log"], exist_ok=True)
    lock = os.open(f"{options['--run']}/supervise.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"another supervisor runs on {options['--run']}")
        return EXIT_ALREADY_RUNNING
    Supervisor(options["--services"], options["--run"], options["--log"]).main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
