"""What the drivers of detached jobs ask of the fabric, as narrow protocols: the real fabric and the simulated one satisfy them.

`fabric.errors` are the only errors that come through: Unreachable (`definite` says whether it certainly did not happen) and
RevisionMismatch of an append.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from xtreemos.fabric import subjects

LOG_STREAM = "JOBLOG"
LOG_SUBJECT = "jobs.log"
MANAGER_LEASE = "lease.jobs"
ORDERS_METHOD = "jobs"


def orders_subject(node: str) -> str:
    """Where a node takes orders of the manager."""
    return subjects.node(node, ORDERS_METHOD)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that came in; `answer` sends the reply, best effort (who asks will ask again)."""

    subject: str
    data: bytes
    answer: Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Stored:
    """One message of a stream."""

    seq: int
    subject: str
    data: bytes


class Listening(Protocol):
    """A subject that is listened to."""

    async def next(self) -> Incoming:
        """Wait for a request."""

    async def close(self) -> None:
        """Stop."""


class Messages(Protocol):
    """Requests and answers."""

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Ask; Unreachable if there is no answer."""

    async def listen(self, subject: str) -> Listening:
        """Take requests to a subject (or pattern)."""


class Streams(Protocol):
    """Replicated logs of the VO."""

    async def append(self, subject: str, data: bytes, *, msg_id: str | None = None, expected_last: int | None = None) -> int:
        """Add a message; return its sequence when it is durable. RevisionMismatch: the stream does not end at `expected_last`."""

    async def bounds(self, stream: str) -> tuple[int, int]:
        """Return (first, last) sequence; (n + 1, n) if it is empty."""

    def consume(self, stream: str, from_seq: int) -> AsyncGenerator[Stored, None]:
        """Yield every message from `from_seq` on, in order, each once, for ever, over all reconnections."""

    async def purge(self, stream: str, below_seq: int) -> None:
        """Drop messages below `below_seq`."""


class Port(Messages, Streams, Protocol):
    """Both: what a manager needs."""


class LeaseLike(Protocol):
    """One try to hold the manager's lease; `fabric.lease.Lease` is one."""

    lost: asyncio.Event

    @property
    def held(self) -> bool:
        """Whether it is ours at this very moment, by our own clock."""

    async def acquire_wait(self) -> int:
        """Wait until it is ours; return the fencing token, larger than every earlier holder's."""

    async def release(self) -> None:
        """Give it back, if it is ours."""
