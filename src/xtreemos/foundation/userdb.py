"""Answers glibc's lookups of grid users (systemd's userdb interface over varlink), as its own tiny process.

Why so small and apart: NSS waits 45 s for a service that hangs, on *every* lookup of a name that nobody else knows, in every program
of the machine. So: standard library only, one thread, answers from memory, a deadline per connection, and a watcher process that
takes the sockets away when the server stops answering (even by SIGSTOP). No network, no policy, no allocation of accounts in here.

    python -m xtreemos.foundation.userdb --snapshot FILE --socket PATH --vo-sockets DIR

- PATH (`/run/systemd/userdb/org.xtreemos.vo`) answers for this machine: users are `alice.demo`.
- DIR/VO/org.xtreemos.vo answers for one VO only, with plain names: bind-mounted into that VO's sandboxes.

FILE is written by `accounts.write_snapshot`; a new one is seen at the next lookup (or SIGHUP). A bad one leaves the old answers.
Source: systemd docs/USER_GROUP_API.md; notes/vo-security.md 5.1. The file name of a socket must be the service name.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

from xtreemos.foundation.peers import peer_ids
from xtreemos.foundation.useranswers import SERVICE, Directory, error

CONNECTIONS_MAX = 128
MESSAGE_BYTES_MAX = 64 * 1024
DEADLINE_S = 3.0
BEAT_S = 1.0
STUCK_S = 3.0
_PR_SET_PDEATHSIG = 1


def local_names(paths: tuple[str, ...] = ("/etc/passwd", "/etc/group")) -> frozenset[str]:
    """Names that belong to the machine itself."""
    found = set()
    for path in paths:
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found |= {line.split(":", 1)[0] for line in file}
    return frozenset(found)


def load_snapshot(path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read users and groups from the snapshot; raises OSError or ValueError if it is missing or not one."""
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    users, groups = found["users"], found.get("groups", [])
    for user in users:
        if not isinstance(user["uid"], int) or not all(
            isinstance(user[key], str) for key in ("user", "vo", "home", "sandbox_home", "shell")
        ):
            raise ValueError("a user of the snapshot is malformed")
    for group in groups:
        if not isinstance(group["gid"], int) or not all(
            isinstance(text, str) for text in (group["group"], group["vo"], *group["members"])
        ):
            raise ValueError("a group of the snapshot is malformed")
    return list(users), list(groups)


class _Connection:
    """One client; `out` is what it has not taken yet."""

    def __init__(self, sock: socket.socket, vo: str | None, now: float) -> None:
        self.sock = sock
        self.vo = vo
        self.deadline = now + DEADLINE_S
        self.data = b""
        self.out = b""
        _pid, uid = peer_ids(sock)
        self.privileged = uid == 0


class Server:
    """Sockets, connections and the snapshot; one loop, no waiting but in select."""

    def __init__(self, snapshot: str, node_socket: str, vo_sockets: str) -> None:
        self._snapshot = snapshot
        self._node_socket = node_socket
        self._vo_sockets = vo_sockets
        self._seen: tuple[Any, ...] = ()
        self._users: list[dict[str, Any]] = []
        self._groups: list[dict[str, Any]] = []
        self._directories: dict[str | None, Directory] = {}
        self._listeners: dict[str | None, socket.socket] = {}
        self._connections: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self.refresh()
        self._listen(None)  # last: who sees this one may count on the others

    def _path(self, vo: str | None) -> str:
        return self._node_socket if vo is None else os.path.join(self._vo_sockets, vo, SERVICE)

    def _listen(self, vo: str | None) -> None:
        """Bind under a temporary name and rename, so that nobody meets a socket that does not listen yet."""
        path = self._path(vo)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f".#{os.getpid()}.{SERVICE}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(temporary)
        os.chmod(temporary, 0o666)  # noqa: S103  # every program on the machine looks names up
        listener.listen(CONNECTIONS_MAX)
        os.rename(temporary, path)
        self._listeners[vo] = listener
        self._selector.register(listener, selectors.EVENT_READ, vo)

    def _unlisten(self, vo: str) -> None:
        listener = self._listeners.pop(vo)
        self._selector.unregister(listener)
        os.unlink(self._path(vo))
        listener.close()

    def refresh(self) -> None:
        """Take a changed snapshot (or /etc/passwd), and open and close sockets of VOs with it."""
        seen = tuple(_fingerprint(path) for path in (self._snapshot, "/etc/passwd", "/etc/group"))
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._users, self._groups = load_snapshot(self._snapshot)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            print(f"userdb: keeping the old answers: {problem}", file=sys.stderr, flush=True)
        local = local_names()
        vos = {str(user["vo"]) for user in self._users}
        for vo in vos:
            if vo not in self._listeners:
                self._listen(vo)
        for gone in [vo for vo in self._listeners if vo is not None and vo not in vos]:
            self._unlisten(gone)
        self._directories = {vo: Directory(self._users, vo, local, self._groups) for vo in (None, *self._listeners)}

    def step(self, timeout_s: float) -> None:
        """Serve what is ready, at most `timeout_s` of waiting; drop who is too slow."""
        for key, events in self._selector.select(timeout_s):
            if isinstance(key.data, _Connection):
                self._serve(key.data, events)
            else:
                self._accept(key.fileobj, key.data)
        now = time.monotonic()
        for connection in [item for item in self._connections.values() if item.deadline <= now]:
            self._drop(connection)

    def _accept(self, listener: Any, vo: str | None) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._drop(min(self._connections.values(), key=lambda item: item.deadline))
        connection = _Connection(sock, vo, time.monotonic())
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.sock.fileno(), None):
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = connection.sock.recv(16384)
                if not data:
                    self._drop(connection)
                    return
                connection.data += data
                self._answer(connection)
            if connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
        except (BlockingIOError, InterruptedError):
            pass
        except (OSError, ValueError):  # the client has gone or talks nonsense: it alone is hurt
            self._drop(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _answer(self, connection: _Connection) -> None:
        self.refresh()
        while b"\0" in connection.data:
            message, connection.data = connection.data.split(b"\0", 1)
            directory = self._directories.get(connection.vo)
            call = json.loads(message)
            replies = directory.answer(call, privileged=connection.privileged) if directory else [error("ServiceNotAvailable")]
            connection.deadline = time.monotonic() + DEADLINE_S
            if not (isinstance(call, dict) and call.get("oneway")):
                connection.out += b"".join(json.dumps(reply).encode() + b"\0" for reply in replies)
        if len(connection.data) + len(connection.out) > MESSAGE_BYTES_MAX:
            raise ValueError("message too long")


def _fingerprint(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _serve_for_ever(server: Server, beat: int) -> None:
    """Child: serve, and tell the watcher each BEAT_S that the loop turns."""
    signal.signal(signal.SIGHUP, lambda *_: None)  # ends the select; `refresh` looks by itself
    next_beat = 0.0
    while True:
        server.step(BEAT_S)
        server.refresh()
        if time.monotonic() >= next_beat:
            next_beat = time.monotonic() + BEAT_S
            with contextlib.suppress(BlockingIOError):  # the watcher is stopped and its pipe full: that must not stop us
                os.write(beat, b".")


def _watch(child: int, beat: int, node_socket: str, vo_sockets: str) -> int:
    """Parent: as long as beats come, wait; else take the sockets away and end the child."""
    selector = selectors.DefaultSelector()
    selector.register(beat, selectors.EVENT_READ)
    code = 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_exit)
    signal.signal(signal.SIGHUP, lambda *_: os.kill(child, signal.SIGHUP))
    try:
        while selector.select(STUCK_S):
            if not os.read(beat, 65536):
                break
        else:
            print(f"userdb: no answer for {STUCK_S} s, taking the sockets away", file=sys.stderr, flush=True)
    except SystemExit:
        code = 0
    finally:
        os.kill(child, signal.SIGKILL)
        for path in (node_socket, *glob.glob(os.path.join(glob.escape(vo_sockets), "*", SERVICE))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.waitpid(child, 0)
    return code


def _raise_exit(*_: Any) -> None:
    raise SystemExit


def main(arguments: list[str] | None = None) -> int:
    """Run watcher and server; ends with 1 if the server died or got stuck (the supervisor starts it again)."""
    parser = argparse.ArgumentParser(prog="userdb")
    parser.add_argument("--snapshot", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--vo-sockets", required=True)
    options = parser.parse_args(arguments)
    if os.path.basename(options.socket) != SERVICE:
        parser.error(f"the socket's file name must be {SERVICE}")
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.set_blocking(writer, False)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _serve_for_ever(Server(options.snapshot, options.socket, options.vo_sockets), writer)
    os.close(writer)
    return _watch(child, reader, options.socket, options.vo_sockets)


if __name__ == "__main__":
    sys.exit(main())
