"""What a mount process that died without a word left behind, and how the next one at the same folder clears it up.

Two things: a dead mount, on which every program gets ENOTCONN, and sessions at the MRCs, whose leases would keep others (and us) waiting until they
expire. The sessions' ids lie in a file that the running process holds locked: whoever gets the lock knows that those named in it
have ended, and may say so to the MRCs (`OpenSession.dead`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from pathlib import Path

from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.errors import MountFailed

log = logging.getLogger(__name__)

FORMER_MAX = 8  # ids kept: one MRC may hear of us only after several starts
STACK_MAX = 16  # dead mounts over one another


class SessionFile:
    """The ids of this process (`mine`) and of its forerunners (`former`). Locked until `close`, or the end of the process."""

    def __init__(self, path: Path, mine: str = "") -> None:
        """Take the file; `mine` if we go on with the sessions of a process before us. MountFailed: another process that runs has it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            os.close(self._fd)
            raise MountFailed(f"another mount process holds {path}", "end that one first") from taken
        words = os.pread(self._fd, 4096, 0).decode("ascii", errors="replace").split()
        self.mine = mine or secrets.token_hex(16)
        self.former: tuple[str, ...] = tuple(word for word in words[-FORMER_MAX:] if word != self.mine)
        text = "\n".join((*self.former, self.mine)).encode() + b"\n"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def is_dead(folder: Path) -> bool:
    """Tell whether a folder is a mount whose process has ended. Asks for what the kernel never answers from its cache."""
    try:
        os.statvfs(folder)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def take_away_dead(folder: Path) -> int:
    """Unmount whatever dead mounts lie at a folder; those that live stay. Returns how many there were."""
    for count in range(STACK_MAX):
        if not is_dead(folder):
            return count
        log.info("a dead mount is taken away from %s", folder)
        with contextlib.suppress(MountFailed):  # somebody else was faster; the next look tells
            syscalls.unmount(str(folder), lazy=True, force=True)
    raise MountFailed(f"{folder} is covered by more than {STACK_MAX} dead mounts", "unmount them: umount -l")
