"""Small words that several tables share."""

from __future__ import annotations

import os
from errno import EACCES, EPERM

from xtreemos.testing.posix.model import OWNER, ROOT, Has, Step, attrs, do, gives

FOREVER_AGO = (1_000_000_000, 123_456_789, 1_100_000_000, 987_654_321)

RW = os.O_RDWR | os.O_CREAT
PAGE = 4096
TEXT = bytes(range(1, 256)) * 80


def rights(mode: int, who: str, *, user: str = OWNER, group: str = "team") -> int:
    """The rwx bits (0 to 7) that a caller has by the mode of a file of `user` and `group`; root's are said elsewhere."""
    if who == user:
        return mode >> 6 & 7
    teams = {
        "team": {"owner", "peer", "member"},
        "members": {"member"},
        "others": {"other"},
        "extra": {"owner"},
        "elsewhere": {"other"},
    }
    return mode >> 3 & 7 if who in teams.get(group, set()) else mode & 7


def denied(allowed: bool) -> int:
    """EACCES unless allowed, as `tries` wants it."""
    return 0 if allowed else EACCES


def forbidden(allowed: bool) -> int:
    """EPERM unless allowed."""
    return 0 if allowed else EPERM


def octal(mode: int) -> str:
    """A mode as people write it."""
    return f"{mode:04o}"


def folder(path: str, mode: int = 0o755, *, user: str = OWNER, group: str = "team") -> Step:
    """Set-up by root: a folder of owner and team."""
    return Step("make", ("dir", path, mode, user, group), ROOT)


def content(path: str, data: bytes) -> Step:
    """Set-up by root: the file at `path` holds this."""
    return do("spew", path, data, who=ROOT)


def opened(flags: int = RW, data: bytes = b"") -> tuple[Step, ...]:
    """Set-up: `n` holds `data` and is open as `f`."""
    return (do("spew", "n", data), do("open", "n", flags, keep="f"))


def ends(data: bytes) -> tuple[Step, ...]:
    """`n` holds this, and is as long."""
    return (gives(data, "slurp", "n"), attrs("n", size=len(data)))


def open_file(**entries: object) -> Step:
    """What is open as `f` has these attributes."""
    return Step("fstat", ("@f",), OWNER, Has(entries))
