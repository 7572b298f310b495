"""Starts the one process that keeps namespaces alive, and recognises it later: a node's PID 1, or the holder of the switch.

The process is catatonit in its pause mode: it only reaps. It belongs to the lab's groups before it owns anything, so `down` finds
it whatever crashed. Must not know what is mounted or plugged in.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from xtreemos.lab import groups, linux
from xtreemos.lab.model import LabError, Running

INIT = ("/usr/bin/catatonit", "-P")  # from Debian; needs to be PID 1 of a namespace


def launch(lab_name: str, member: str, namespaces: int, prepare: Callable[[], None]) -> Running:
    """Start init in the groups of `member` and in new `namespaces` (CLONE_NEWPID among them), after `prepare` ran in them.

    The caller has made the groups and has no other threads. Raises LabError with the step that failed; nothing is left then.
    """
    if not os.path.exists(INIT[0]):
        raise LabError(f"{INIT[0]} is not installed", "install the Debian package catatonit")
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    pid_r, pid_w = os.pipe2(os.O_CLOEXEC)
    starter = os.fork()
    if starter == 0:
        _guard(report_w, lambda: _start(lab_name, member, namespaces, prepare, pid_w, report_w))
    os.close(report_w)
    os.close(pid_w)
    with os.fdopen(pid_r) as pids, os.fdopen(report_r) as reports:
        pid_text, complaint = pids.read(), reports.read()  # the report ends when init is executed
    os.waitpid(starter, 0)
    ticks = start_ticks(int(pid_text or 0))
    if complaint or ticks is None:
        raise LabError(f"{member} cannot be started: {complaint or 'its first process was killed'}")
    return Running(int(pid_text), ticks)


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot, or None if there is no such process (zombies count as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def is_alive(process: Running | None) -> bool:
    """Tell whether that very process is running (its pid may have been taken by another since)."""
    return process is not None and start_ticks(process.pid) == process.start_ticks


def _guard(report: int, work: Callable[[], None]) -> NoReturn:
    """Run the work of a forked child; whatever goes wrong becomes a line for the parent, never a second copy of the caller."""
    try:
        work()
    except BaseException as problem:  # noqa: BLE001  # a forked child must not return into its parent's stack
        last = traceback.extract_tb(problem.__traceback__)[-1]
        os.write(report, f"{problem} ({last.name}, line {last.lineno})".encode())
        os._exit(1)
    os._exit(0)


def _start(lab_name: str, member: str, namespaces: int, prepare: Callable[[], None], pid_w: int, report_w: int) -> None:
    """In the first child: join the groups, leave the namespaces, fork what becomes PID 1, tell its pid as the host sees it."""
    os.setsid()
    roots, system = groups.join_files(lab_name, member)
    for descriptor in roots:
        os.write(descriptor, b"0")
    linux.unshare(namespaces)  # a new cgroup namespace begins at the group just joined
    os.write(system, b"0")
    pid = os.fork()
    if pid == 0:
        os.close(pid_w)
        _guard(report_w, lambda: _become_init(prepare))
    os.write(pid_w, str(pid).encode())


def _become_init(prepare: Callable[[], None]) -> None:
    os.umask(0o022)
    prepare()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for number in (signal.SIGINT, signal.SIGPIPE):  # what Python changed
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(INIT[0], INIT, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})  # noqa: S606  # no shell wanted
