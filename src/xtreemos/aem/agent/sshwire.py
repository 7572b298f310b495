"""The little of the ssh-agent protocol that a session needs, as pure functions: list one certificate, sign log-ins with its key.

A usual agent signs anything it is asked to; ours signs only what RFC 4252 section 7 describes: the request of `alice.demo` to log
in by this certificate. So a client or a forwarded agent in bad hands cannot make it sign a file, another protocol's text, or a
log-in elsewhere under another name. Source: draft-ietf-sshm-ssh-agent; OpenSSH PROTOCOL ("publickey-hostbound-v00").
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MESSAGE_BYTES_MAX: Final = 64 * 1024
FAILURE: Final = b"\x05"
_LIST, _IDENTITIES, _SIGN, _SIGNATURE = 11, 12, 13, 14
_USERAUTH_REQUEST: Final = b"\x32"
_METHODS: Final = (b"publickey", b"publickey-hostbound-v00@openssh.com")
_CERTIFICATE: Final = b"ssh-ed25519-cert-v01@openssh.com"
_SESSION_BYTES: Final = range(16, 129)


class _Cut(ValueError):
    """A message is shorter than it says."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise _Cut
        piece, self.rest = self.rest[:count], self.rest[count:]
        return piece

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))


def text(data: bytes) -> bytes:
    """Write an SSH string."""
    return struct.pack(">I", len(data)) + data


@dataclass(frozen=True)
class Identity:
    """What the agent offers: a certificate (wire form), the name it is for, and how to sign with its key."""

    certificate: bytes
    user: str
    sign: Callable[[bytes], bytes]


def answer(message: bytes, identity: Identity) -> bytes:
    """Return the answer (without its length) to one message; FAILURE for all that is not offered."""
    try:
        reader = _Reader(message)
        kind = reader.take(1)[0]
        if kind == _LIST and not reader.rest:
            return bytes([_IDENTITIES]) + struct.pack(">I", 1) + text(identity.certificate) + text(identity.user.encode())
        if kind == _SIGN:
            blob, data = reader.string(), reader.string()
            if blob == identity.certificate and is_login(data, identity):
                return bytes([_SIGNATURE]) + text(text(b"ssh-ed25519") + text(identity.sign(data)))
    except _Cut:
        return FAILURE
    return FAILURE


def destination(message: bytes, identity: Identity) -> bytes | None:
    """Return the host key (wire form) that a client names in a request to sign a log-in; None for every other message."""
    try:
        reader = _Reader(message)
        if reader.take(1)[0] != _SIGN or reader.string() != identity.certificate:
            return None
        return _host_of_login(reader.string(), identity) or None
    except _Cut:
        return None


def is_login(data: bytes, identity: Identity) -> bool:
    """Tell whether `data` asks, as RFC 4252 has it, to log in as the identity's user by its certificate, and nothing else."""
    return _host_of_login(data, identity) is not None


def _host_of_login(data: bytes, identity: Identity) -> bytes | None:
    """Return the host key in a request to log in, b"" if its method names none; None if `data` is anything else."""
    reader = _Reader(data)
    host_key = b""
    try:
        session = reader.string()
        head = reader.take(1)
        user, service, method = reader.string(), reader.string(), reader.string()
        signed, algorithm, blob = reader.take(1), reader.string(), reader.string()
        if method == _METHODS[1]:
            host_key = reader.string()  # which the client checked
    except _Cut:
        return None
    wanted = (
        len(session) in _SESSION_BYTES
        and head == _USERAUTH_REQUEST
        and user == identity.user.encode()
        and service == b"ssh-connection"
        and method in _METHODS
        and signed == b"\x01"
        and algorithm == _CERTIFICATE
        and blob == identity.certificate
        and not reader.rest
    )
    return host_key if wanted else None
