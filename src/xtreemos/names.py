"""Names of users, VOs, nodes, jobs and sessions: one place that says what is a valid one.

Checked with exact matches only; nothing here ever becomes a pattern, a path or a subject before it passed.
"""

from __future__ import annotations

import base64
import re

from xtreemos.errors import UsageError

FIRST_GRID_UID = 1879048192
LAST_GRID_UID = 2147483647 - 1

_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_NODE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SID = re.compile(r"[0-9a-f]{32}")
_JOB = re.compile(r"j[a-z2-7]{12}")
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
ARRAY_TASKS_MAX = 10_000
RESERVED_USERS = frozenset({"root", "nobody", "daemon", "bin", "sys", "admin", "system"})


class BadName(UsageError):
    """A name breaks the rules of its kind."""

    code = "bad-name"


def _check(kind: str, pattern: re.Pattern[str], text: str, rule: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise BadName(f"{text[:64]!r} is not a valid {kind}", rule)
    return text


def check_user(text: str) -> str:
    """Return `text` if it may name a user of a VO; raise BadName otherwise."""
    _check("user name", _NAME, text, "use 1 to 31 of a-z, 0-9, _ and -, starting with a letter or _")
    if text in RESERVED_USERS:
        raise BadName(f"{text!r} is reserved", "choose another user name")
    return text


def check_vo(text: str) -> str:
    """Return `text` if it may name a VO; raise BadName otherwise."""
    return _check("VO name", _NAME, text, "use 1 to 31 of a-z, 0-9, _ and -, starting with a letter or _")


def check_node(text: str) -> str:
    """Return `text` if it may name a node; raise BadName otherwise."""
    return _check("node name", _NODE, text, "use 1 to 63 of a-z, 0-9 and -")


def check_job(text: str) -> str:
    """Return `text` if it is a job id; raise BadName otherwise."""
    return _check("job id", _JOB, text, "take it from `xos ps`")


def check_sid(text: str) -> str:
    """Return `text` if it is a session id; raise BadName otherwise."""
    return _check("session id", _SID, text, "")


def split_user_at_vo(text: str) -> tuple[str, str]:
    """Split `alice@demo` into its checked user and VO."""
    user, at, vo = text.partition("@")
    if not at:
        raise BadName(f"{text[:64]!r} names no VO", "write USER@VO, for example alice@demo")
    return check_user(user), check_vo(vo)


def unix_name(user: str, vo: str) -> str:
    """Name of the grid user on a node, outside sandboxes: unique over VOs."""
    return f"{user}.{vo}"


def job_id(random_bytes: bytes) -> str:
    """Make a job id of 60 bits out of 8 random bytes."""
    return "j" + base64.b32encode(random_bytes).decode().lower()[:12]


def array_id(random_bytes: bytes) -> str:
    """Make the id of an array out of 8 random bytes: 45 random bits, then the number of its first task."""
    return task_id(job_id(random_bytes), 0)


def task_id(array: str, index: int) -> str:
    """Return the job id of task `index` (0 to ARRAY_TASKS_MAX - 1) of an array; index 0 is the array's own id."""
    if not 0 <= index < ARRAY_TASKS_MAX:
        raise BadName(f"{index} is no number of a task", f"an array has at most {ARRAY_TASKS_MAX} tasks")
    digits = (index >> 10, index >> 5 & 31, index & 31)
    return array[:-3] + "".join(_BASE32[digit] for digit in digits)


def task_index(job: str) -> int:
    """Return the number that the last 15 bits of a job id are: of a task, its place in the array."""
    return sum(_BASE32.index(letter) << shift for letter, shift in zip(job[-3:], (10, 5, 0), strict=True))


def user_uri(vo: str, user: str, sid: str) -> str:
    """URI SAN of a session's certificate."""
    return f"spiffe://{vo}/user/{user}/session/{sid}"


def node_uri(vo: str, node: str) -> str:
    """URI SAN of a node's certificate."""
    return f"spiffe://{vo}/node/{node}"
