"""`xos lab exec`: run one command inside a node, with its streams, terminal, signals and exit status passed through.

We enter the node's namespaces, fork the command (the fork is what enters the PID namespace and the groups) and stay outside as
its relay. If stdin and stdout are a terminal, the command gets a new one of the node's own devpts, so that job control, `tty`
and `ps` are right inside; otherwise it gets our descriptors as they are. `--user alice` becomes the node's Unix user
`alice.demo`, in a session keyring of its own, logged in (by the password in users.json) if her agent is not there yet.

Kept free of heavy imports: start-up is most of what a user waits for. Knows nodes from outside and only the commands of `xos`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from xtreemos.errors import EXIT_USAGE, NotFound, PermissionRefused, XosError
from xtreemos.lab import groups, linux, store, terminal
from xtreemos.lab.launch import is_alive
from xtreemos.lab.model import DEFAULT_NAME, VO, WrongState
from xtreemos.lab.view import search_path
from xtreemos.names import check_user, unix_name

_KEPT_ENV = ("TERM", "COLORTERM", "LANG", "TZ")
_FORWARDED = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGALRM, signal.SIGTSTP, signal.SIGWINCH,
})  # fmt: skip
_SI_KERNEL = 0x80
_CANNOT_EXECUTE = 126
_NO_SUCH_COMMAND = 127


@dataclass(frozen=True, slots=True)
class Request:
    """One `xos lab exec`: what to run where, and as whom (None is root)."""

    node: str
    argv: tuple[str, ...]
    user: str | None = None
    name: str = DEFAULT_NAME


@dataclass(frozen=True, slots=True)
class _Door:
    """What must be opened on the host before the node is entered."""

    pidfd: int
    roots: tuple[int, ...]
    system: int
    passwords: Mapping[str, str] = field(repr=False)


def parse(arguments: Sequence[str]) -> Request | None:
    """Read `[--name L] NODE [--user U] -- CMD...`; None for anything else (help, mistakes), which the full parser answers."""
    words = list(arguments)
    options = {"--name": DEFAULT_NAME, "--user": ""}
    nodes: list[str] = []
    while words and words[0] != "--":
        word, equals, value = words.pop(0).partition("=")
        if word in options and (equals or words):
            options[word] = value if equals else words.pop(0)
        elif word.startswith("-") or equals:
            return None
        else:
            nodes.append(word)
    if len(nodes) != 1 or len(words) < 2:
        return None
    return Request(nodes[0], tuple(words[1:]), options["--user"] or None, options["--name"])


def run(request: Request) -> NoReturn:
    """Run the command and end this process as the command ended. Raises XosError if it was not started."""
    door = _open_door(request)
    with_terminal = os.isatty(0) and os.isatty(1)
    linux.setns(door.pidfd, linux.NODE_NAMESPACES)
    os.chdir("/")
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
    pty = terminal.open_pair() if with_terminal else None
    pid = os.fork()
    if pid == 0:
        _child(request, door, pty, old_mask)
    if pty is None:
        _end_as(_relay_signals(pid))
    _end_as(terminal.relay(pty.master, pid, old_mask))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`python -m xtreemos.lab.enter`: the same as `xos lab exec`, for those who want no other module loaded."""
    request = parse(sys.argv[1:] if arguments is None else arguments)
    if request is None:
        sys.stderr.write("usage: xos lab exec [--name L] NODE [--user U] -- CMD [ARGS...]\n")
        sys.exit(EXIT_USAGE)
    try:
        run(request)
    except XosError as error:
        sys.stderr.write(f"xos: {error.line()}\n")
        sys.exit(error.exit_code)


def require_root() -> None:
    """Raise PermissionRefused unless we are root."""
    if os.geteuid() != 0:
        raise PermissionRefused("a lab needs root: it makes namespaces and networks", "use sudo")


def _open_door(request: Request) -> _Door:
    require_root()
    lab = store.load(request.name)
    node = lab.node(request.node)
    if node.init is None or not is_alive(node.init):
        raise WrongState(f"{node.name} is off", f"`xos lab start {node.name}` switches it on")
    if groups.is_frozen(lab.name, node.name):
        raise WrongState(f"{node.name} is frozen", f"`xos lab thaw {node.name}` wakes it")
    if request.user is not None:
        check_user(request.user)
    roots, system = groups.join_files(lab.name, node.name)
    return _Door(os.pidfd_open(node.init.pid), tuple(roots), system, store.load_users(lab.name))


def _child(request: Request, door: _Door, pty: terminal.Pair | None, mask: terminal.Mask) -> NoReturn:
    """Become the command. Only ever leaves by exec or exit."""
    status = 1
    try:
        for descriptor in (*door.roots, door.system):
            os.write(descriptor, b"0")
        env = _root_env()
        account = _account(request) if request.user is not None else None
        if pty is not None:
            terminal.take(pty, account)
        _reset_signals(mask)
        os.umask(0o022)
        if account is None:
            linux.join_fresh_session_keyring()
            os.chdir(env["HOME"])
        else:
            env = _become_user(request, account, door.passwords)
        linux.close_from(3)
        os.execvpe(request.argv[0], request.argv, env)  # noqa: S606  # no shell wanted
    except FileNotFoundError:
        status = _say(f"{request.node} has no command {request.argv[0]!r}", _NO_SUCH_COMMAND)
    except XosError as error:
        status = _say(error.line(), error.exit_code)
    except OSError as problem:
        status = _say(f"cannot run {request.argv[0]!r} on {request.node}: {problem}", _CANNOT_EXECUTE)
    except BaseException:  # noqa: BLE001  # a bug: shown whole, but never as a second relay
        traceback.print_exc()
    os._exit(status)


def _say(line: str, status: int) -> int:
    os.write(2, f"xos: {line}\n".encode())
    return status


def _reset_signals(mask: terminal.Mask) -> None:
    """Undo what Python changed, and what we blocked."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _root_env() -> dict[str, str]:
    """The environment that a log-in as root would give; of ours only what describes the terminal and the language."""
    kept = {key: value for key, value in os.environ.items() if key in _KEPT_ENV or key.startswith("LC_")}
    return {**kept, "PATH": search_path(), "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}


def _account(request: Request) -> pwd.struct_passwd:
    """Look the grid user up as any program in the node would; raise NotFound."""
    name = unix_name(str(request.user), VO)
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise NotFound(f"{request.node} knows no user {name}", f"see `xos lab exec {request.node} -- xos status`") from None


def _become_user(request: Request, account: pwd.struct_passwd, passwords: Mapping[str, str]) -> dict[str, str]:
    """Drop to the user in a fresh keyring and a logged-in session; return the environment. The working folder is HOME."""
    runtime = f"/run/user/{account.pw_uid}"
    if not os.path.isdir(runtime):
        os.makedirs(runtime)
        os.chmod(runtime, 0o700)
        os.chown(runtime, account.pw_uid, account.pw_gid)
    env = {
        **_root_env(),
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": "/bin/bash",  # the account's own is the front of ssh sessions
        "XDG_RUNTIME_DIR": runtime,
    }
    lock = os.open(f"/run/lock/xos-lab-login-{account.pw_uid}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    linux.join_fresh_session_keyring()
    os.chdir("/")
    fcntl.flock(lock, fcntl.LOCK_EX)  # two first commands at a time must not log in twice
    if not _agent_is_alive(runtime):
        _log_in(request, env, passwords)
    os.close(lock)
    try:
        os.chdir(account.pw_dir)  # the log-in has mounted it
    except OSError as problem:
        os.write(2, f"xos: the home {account.pw_dir} cannot be entered: {problem.strerror}\n".encode())
    return env


def _agent_is_alive(runtime: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.connect(f"{runtime}/xtreemos/agent-{VO}.sock")
        return True
    return False


def _log_in(request: Request, env: Mapping[str, str], passwords: Mapping[str, str]) -> None:
    """Log in by the kept password, said on stdin; raise PermissionRefused with the reason that `xos login` gave."""
    user = str(request.user)
    if user not in passwords:
        raise PermissionRefused(f"{user} is not logged in on {request.node}, and users.json has no password of that name")
    done = subprocess.run(
        ["xos", "login", f"{user}@{VO}", "--password-stdin"],
        input=passwords[user] + "\n",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise PermissionRefused(f"{user} cannot log in on {request.node}: {reason.removeprefix('xos: ')}")


def _relay_signals(pid: int) -> int:
    """Wait for the child, passing on what others send us and stopping when it stops; return its wait status.

    The terminal's own signals (sent by the kernel to the whole foreground group) reach the child without us.
    """
    while True:
        got = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD:
            if got.si_code != _SI_KERNEL:
                os.kill(pid, got.si_signo)
            continue
        done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)
        elif done:
            return status


def _end_as(status: int) -> NoReturn:
    """End this process the way the child ended."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core, if any, is the command's, not ours
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
