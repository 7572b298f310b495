"""What of a mount outlives its process: descriptors that wait in a pair of sockets, which whoever starts the process holds open, too.

The kernel ends a FUSE connection when its last descriptor is closed. A descriptor that was sent and not received is not closed: so the process
sends it to itself and never receives it, only looks (MSG_PEEK makes copies). When the process is killed, the next one inherits the pair and looks.
Who holds the pair never reads it: `node.supervise` does for a service of which it is asked. Knows no file system.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from struct import Struct
from typing import Final

import msgspec

ENV: Final = "XOS_KEEP"
"""Names the pair: the descriptor to look at, and the one to send to, with a comma."""
TEXT_BYTES_MAX: Final = 16384
FDS_MAX: Final = 4
_FD = Struct("=i")
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


class Kept(msgspec.Struct, frozen=True):
    """What lies there; the descriptors are the receiver's own copies."""

    text: bytes
    fds: tuple[int, ...]

    def close(self) -> None:
        """Close the copies."""
        for fd in self.fds:
            os.close(fd)


class Keeper:
    """The pair. At most one message lies in it."""

    def __init__(self, reading: socket.socket, writing: socket.socket) -> None:
        self._reading = reading
        self._writing = writing

    @classmethod
    def inherited(cls) -> Keeper | None:
        """Return the pair that we were started with, None if we were not. What we start does not inherit it."""
        words = os.environ.get(ENV, "")
        if not words:
            return None
        ends = [socket.socket(fileno=int(word)) for word in words.split(",")]
        for end in ends:
            os.set_inheritable(end.fileno(), False)
        return cls(*ends)

    @classmethod
    def made(cls) -> Keeper:
        """Return a fresh pair; who starts a process with it names it in `ENV`."""
        return cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    def filenos(self) -> tuple[int, int]:
        """Return the descriptors as `ENV` names them."""
        return self._reading.fileno(), self._writing.fileno()

    def look(self) -> Kept | None:
        """Return what lies there, which goes on lying there."""
        return self._received(socket.MSG_PEEK)

    def put(self, text: bytes, fds: Sequence[int]) -> None:
        """Lay something there; it must be empty."""
        socket.send_fds(self._writing, [text], list(fds))

    def clear(self) -> None:
        """Empty it: descriptors that nobody else has are closed."""
        while (kept := self._received(0)) is not None:
            kept.close()

    def close(self) -> None:
        """Let go of it; whoever else has it still holds what lies there."""
        self._reading.close()
        self._writing.close()

    def _received(self, flags: int) -> Kept | None:
        flags |= socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            text, beside, _flags, _address = self._reading.recvmsg(TEXT_BYTES_MAX, socket.CMSG_LEN(FDS_MAX * _FD.size), flags)
        except BlockingIOError:
            return None
        fds = [fd for level, kind, data in beside if (level, kind) == _RIGHTS for (fd,) in _FD.iter_unpack(data)]
        return Kept(text, tuple(fds)) if text else None
