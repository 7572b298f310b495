"""Starting and burying one container with crun. Knows folders and descriptors; no streams, no states.

crun runs detached and ends when the container runs; its first process is then jobd's child (jobd is a subreaper). Burying is
done by hand: the container is dead, what is left is a small folder of crun's and an empty control group, and another run of
crun per job would cost more than the job.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xtreemos.foundation.jobd.model import FDS_FROM, StartFailed, StartRequest, Stdio

SAFE_FD = 16  # sources of dup2 in the child lie above its targets
CRUN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where crun is, where it keeps its state, and our native init (used outside to launch crun)."""

    crun: Path
    init: Path
    state_dir: Path

    def argv(self, request: StartRequest, *, join: Sequence[str], console: str | None) -> list[str]:
        """Return the command line that starts the container of `request`. `join`: v1 group folders."""
        folder = job_folder(request)
        handed_on = 3 if request.stdio is Stdio.FDS else 1 if request.with_stderr_pipe or request.stdio is Stdio.TASKS else 0
        launch = [str(self.init), "--launch", "--keep", str(FDS_FROM - 1 + handed_on)]
        for group in join:
            launch += ["--group", group]
        crun = [str(self.crun), "--root", str(self.state_dir), "--log", str(folder / "crun.log"), "--cgroup-manager", "cgroupfs"]
        run = ["run", "--detach", "--bundle", request.bundle, "--pid-file", str(folder / "pid")]
        if console:
            run += ["--console-socket", console]
        if handed_on:
            run += ["--preserve-fds", str(handed_on)]
        return [*launch, "--", *crun, *run, request.job]

    def spawn(self, argv: list[str], fds: Sequence[int]) -> int:
        """Start `argv` with `fds` as 0, 1, 2, ... and nothing else open; return its process id. `fds` stay open here."""
        raised = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SAFE_FD) for fd in fds]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(raised)]
            return os.posix_spawn(argv[0], argv, {"PATH": CRUN_PATH}, file_actions=actions, setsid=False)
        except OSError as cause:
            raise StartFailed(f"cannot start {argv[0]}: {cause.strerror}", "see `xos doctor`") from cause
        finally:
            for fd in raised:
                os.close(fd)

    def bury(self, job: str) -> None:
        """Remove what crun keeps of a dead container."""
        _remove_tree(self.state_dir / job)

    def bury_all(self) -> None:
        """Remove everything crun keeps; only when no container lives, at the start of a jobd."""
        with os.scandir(self.state_dir) as entries:
            for entry in list(entries):
                self.bury(entry.name)


def job_folder(request: StartRequest) -> Path:
    """The folder around a request's bundle: exit.json, crun.log, pid, fifo."""
    return Path(request.bundle).parent


def read_pid(folder: Path) -> int:
    """Process id of the container's first process, as crun wrote it."""
    return int((folder / "pid").read_text())


def complaint(folder: Path) -> str:
    """The runtime's last words, one line, for a start that failed."""
    try:
        lines = (folder / "crun.log").read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1][:300] if lines else "the container runtime gave no reason"


def _remove_tree(folder: Path) -> None:
    """Remove a folder that only root writes to; absent is fine; shutil would bring in every compressor."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(Path(entry.path))
            else:
                os.unlink(entry.path)
    folder.rmdir()


class Console:
    """The socket on which crun hands over the terminal's master end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        path.unlink(missing_ok=True)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._listener.setblocking(False)

    def receive(self) -> int:
        """Return the master end; call after crun ended well. Raises StartFailed when it was not sent."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError as cause:
            raise StartFailed("the container runtime sent no terminal") from cause
        with connection:
            connection.setblocking(False)
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return int.from_bytes(data[:4], "little")
        raise StartFailed("the container runtime sent no terminal")

    def close(self) -> None:
        """Close and remove the socket."""
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
