"""The kernel's keyrings: keep a session's secrets outside files, and give every job a fresh, empty keyring.

Traps (notes/vo-security.md 5.6): the session keyring crosses setuid, so a job could read its starter's keys unless it joins a new
one first; and a key is only as private as its permissions. System calls directly, as glibc has no wrappers. Knows no format of keys.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

from xtreemos.errors import XosError

SESSION_KEYRING: Final = -3
USER_KEYRING: Final = -4
PROCESS_KEYRING: Final = -2
KEY_BYTES_MAX: Final = 32767
POSSESSOR_ALL: Final = 0x3F000000
_JOIN_SESSION, _REVOKE, _SETPERM, _LINK, _UNLINK, _SEARCH, _READ, _SET_TIMEOUT = 1, 3, 5, 8, 9, 10, 11, 15
_NUMBERS: Final = {"x86_64": (248, 250), "aarch64": (217, 219), "riscv64": (217, 219), "ppc64le": (269, 271), "s390x": (278, 280)}


class KeyringFailed(XosError):
    """The kernel refused a keyring operation; the text says which."""

    fault = "environment"
    code = "keyring"


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise KeyringFailed(f"keyrings are not known for {machine}", "session keys stay in memory only")
    return _NUMBERS[machine]


def _call(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    answer = int(_libc.syscall(ctypes.c_long(number), *converted))
    if answer < 0:
        raise KeyringFailed(f"cannot {what}: {os.strerror(ctypes.get_errno())}", "see `xos doctor`")
    return answer


def _keyctl(what: str, operation: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    padded = (*arguments, *(0,) * (4 - len(arguments)))
    return _call(what, _numbers()[1], operation, *padded)


def add(name: str, secret: bytes, *, keyring: int = SESSION_KEYRING, timeout_s: int = 0) -> int:
    """Add (or replace) a key of type `user` that only its possessor may use; returns its serial.

    Raises:
        KeyringFailed: quota, permissions, or no such keyring. Definite: nothing was added.
    """
    if not 0 < len(secret) <= KEY_BYTES_MAX:
        raise KeyringFailed(f"a key holds 1 to {KEY_BYTES_MAX} bytes")
    key = _call("add a key", _numbers()[0], b"user", name.encode(), secret, len(secret), keyring)
    _keyctl("protect a key", _SETPERM, key, POSSESSOR_ALL)
    if timeout_s:
        set_timeout(key, timeout_s)
    return key


def find(name: str, *, keyring: int = SESSION_KEYRING) -> int | None:
    """Return the serial of the key `name`, None if there is none (or it expired, or is not ours)."""
    try:
        return _keyctl("find a key", _SEARCH, keyring, b"user", name.encode(), 0)
    except KeyringFailed:
        return None


def read(key: int) -> bytes:
    """Return a key's secret; raises KeyringFailed if it has expired, was revoked or is not ours."""
    buffer = ctypes.create_string_buffer(KEY_BYTES_MAX + 1)
    length = _keyctl("read a key", _READ, key, buffer, len(buffer))
    return buffer.raw[:length]


def unlink(key: int, *, keyring: int = SESSION_KEYRING) -> None:
    """Take a key out of a keyring; the kernel forgets it when nobody else links it."""
    _keyctl("remove a key", _UNLINK, key, keyring)


def revoke(key: int) -> None:
    """Make a key unusable for everybody at once."""
    _keyctl("revoke a key", _REVOKE, key)


def set_timeout(key: int, seconds: int) -> None:
    """Let a key expire after `seconds`; 0 takes the limit away."""
    _keyctl("limit a key", _SET_TIMEOUT, key, seconds)


def join_new_session() -> int:
    """Leave the session keyring and start with an empty, anonymous one; returns its serial.

    Must be called between fork and exec of every job, before the uid changes.
    """
    return _keyctl("join a new session keyring", _JOIN_SESSION, None)


def possess_user_keyring() -> None:
    """Move to a session keyring of our own from which the user's keyring is reached: only then are keys in it possessed, and so usable.

    Log-ins through PAM come with such a link; containers, `su` without PAM and daemons do not.
    """
    join_new_session()
    _keyctl("reach the user's keyring", _LINK, USER_KEYRING, SESSION_KEYRING)
