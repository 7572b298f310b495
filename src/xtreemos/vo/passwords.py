"""Passwords: argon2id in a few threads, and limits on guessing.

The hash is the price of a log-in on purpose (64 MiB, about 65 ms), so it runs in its own small pool with a bounded queue: a flood
of log-ins ends in `Busy`, not in a machine without memory. An unknown user costs the same hash as a wrong password.
`Attempts` is a pure machine: time comes in with each call.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from xtreemos.vo.errors import BadPassword, Busy, TooManyAttempts

MEMORY_KIB: Final = 64 * 1024
TIME_COST: Final = (
    1  # with 64 MiB above OWASP's least (46 MiB, 1 pass, 1 lane); three passes cost 200 ms a log-in on small machines
)
LANES: Final = 1
WORKERS: Final = 2
WAITING_MAX: Final = 256
LENGTH_MIN: Final = 8
LENGTH_MAX: Final = 1024
T = TypeVar("T")


def check_new(password: str, user: str = "") -> str:
    """Return the normalised password if it may be set; raises BadPassword with the rule that it breaks."""
    if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
        raise BadPassword(f"a password has {LENGTH_MIN} to {LENGTH_MAX} characters", "a few words are easy to remember")
    if user and password.lower() == user:
        raise BadPassword("the password is the user name", "choose another one")
    return password


class Passwords:
    """Hashes and checks passwords off the event loop. One per process; `close` ends its threads."""

    def __init__(
        self, *, memory_kib: int = MEMORY_KIB, time_cost: int = TIME_COST, workers: int = WORKERS, waiting_max: int = WAITING_MAX
    ) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=LANES)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="argon2")
        self._waiting = 0
        self._waiting_max = waiting_max
        self._dummy = self._hasher.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """Hash a new password (argon2id string with its parameters and salt). Raises Busy."""
        return await self._run(lambda: self._hasher.hash(_bytes(password)))

    async def verify(self, stored: str, password: str) -> bool:
        """Check a password; an empty `stored` costs the same and is False. Raises Busy."""
        answer = await self._run(lambda: self._verify(stored or self._dummy, password))
        return answer and bool(stored)

    def _verify(self, stored: str, password: str) -> bool:
        if len(password) > LENGTH_MAX:
            password = ""
        try:
            return self._hasher.verify(stored, _bytes(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._waiting_max:
            raise Busy("too many log-ins at this moment", "try again in a few seconds")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads after what they are at."""
        self._pool.shutdown(wait=True)


def _bytes(password: str) -> bytes:
    """The same characters typed on different systems are the same password."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _Count:
    failures: int = 0
    at: float = 0.0


class Attempts:
    """Counts failed attempts per key (a user, a peer address) and says when the next may be made.

    An attempt counts from its beginning, so that many at once do not slip through; success takes it back. After `free` failures
    each further one doubles the wait, up to `wait_s_max`; a quiet `forget_s` clears the slate. Memory is bounded by `keys_max`.
    """

    def __init__(self, *, free: int, wait_s_max: float = 300.0, forget_s: float = 900.0, keys_max: int = 100_000) -> None:
        self._free = free
        self._wait_s_max = wait_s_max
        self._forget_s = forget_s
        self._keys_max = keys_max
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        """Seconds until `key` may try again; 0 if now."""
        count = self._counts.get(key)
        if count is None or count.failures < self._free:
            return 0.0
        wait = min(self._wait_s_max, 2.0 ** min(count.failures - self._free, 30))
        return max(0.0, count.at + wait - now)

    def begin(self, key: str, now: float) -> None:
        """Start an attempt; raises TooManyAttempts when it is too early (nothing is counted then)."""
        count = self._counts.get(key)
        if count and now - count.at > self._forget_s:
            del self._counts[key]
            count = None
        wait = self.wait_s(key, now)
        if wait > 0:
            raise TooManyAttempts("too many failed log-ins", f"try again in {int(wait) + 1} s")
        if count is None:
            count = self._counts.setdefault(key, _Count())
            while len(self._counts) > self._keys_max:
                self._counts.popitem(last=False)
        count.failures += 1
        count.at = now
        self._counts.move_to_end(key)

    def succeeded(self, key: str, *, clear: bool) -> None:
        """Take the attempt back; with `clear` forget earlier failures too (a user's own, not a peer address's)."""
        count = self._counts.get(key)
        if count is None:
            return
        count.failures = 0 if clear else count.failures - 1
        if count.failures <= 0:
            del self._counts[key]
