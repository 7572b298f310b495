"""Who is at the other end of a Unix socket, by the kernel's word. Only the standard library: jobd and userdb use it."""

from __future__ import annotations

import socket
import struct

_UCRED = struct.Struct("iII")  # pid_t is signed, uid_t and gid_t are not: uids reach 2**32 - 2


def peer_ids(sock: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the process that connected, as the kernel noted them then; pid 0 if it is in a foreign PID space."""
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid
