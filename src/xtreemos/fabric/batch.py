"""Atomic batches: several messages are stored in one stream, all or none (JetStream, ADR-50; needs `allow_atomic`).

With an expected sequence on each subject this is a transaction: it is refused whole if anything that was read has changed.
Limits of the servers: 1,000 messages a batch, 50 batches under way a stream, given up after 10 s of silence.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.errors import TooLarge, Unreachable
from xtreemos.fabric.stream import read_ack

MESSAGES_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Write:
    subject: str
    data: bytes
    headers: dict[str, str]


class AtomicBatch:
    """Collect writes with `add` and `check`, then `commit` once."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._writes: list[_Write] = []

    def add(self, subject: str, data: bytes, *, expected: int | None = None, headers: dict[str, str] | None = None) -> None:
        """Write `data`; if given, only if the last sequence of `subject` is `expected` (0: there is none). One write a subject."""
        all_headers = dict(headers or {})
        if expected is not None:
            all_headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        self._writes.append(_Write(subject, data, all_headers))

    def check(self, subject: str, expected: int, *, marker: str) -> None:
        """Commit only if the last sequence of `subject`, which is only read, is `expected`; writes an empty message to `marker`."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected), "Nats-Expected-Last-Subject-Sequence-Subject": subject}
        self._writes.append(_Write(marker, b"", headers))

    async def commit(self, timeout_s: float = 5) -> int:
        """Store all; returns the sequence of the last write (the others precede it without gap).

        Raises:
            RevisionMismatch: something changed; nothing was stored. Read again and retry with jitter.
            Unreachable: unknown outcome, unless `definite`. The caller reads to find out; repeating blindly may store twice
                unless every write has an expectation.
        """
        if not 0 < len(self._writes) <= MESSAGES_MAX:
            raise TooLarge(f"a batch has 1 to {MESSAGES_MAX} writes, not {len(self._writes)}", "")
        batch = secrets.token_hex(16)
        last = len(self._writes)
        for number, write in enumerate(self._writes, start=1):
            headers = {**write.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if number == last:
                return await self._finish(write, headers, timeout_s)
            if number == 1:
                await self._begin(write, headers, timeout_s)
            else:
                await self._fabric.publish(write.subject, write.data, headers=headers, timeout_s=timeout_s)
        raise AssertionError("unreachable: the last write returned")

    async def _begin(self, write: _Write, headers: dict[str, str], timeout_s: float) -> None:
        """The first message is answered (empty if fine), so that a refusal costs one round trip, not the whole batch."""
        try:
            answer = await self._fabric.request_message(write.subject, write.data, timeout_s, headers=headers)
        except Unreachable as cause:
            raise Unreachable(cause.message, definite=True) from cause  # without its end a batch is never stored
        if answer.data:
            read_ack(answer, write.subject, None)

    async def _finish(self, write: _Write, headers: dict[str, str], timeout_s: float) -> int:
        headers["Nats-Batch-Commit"] = "1"
        answer = await self._fabric.request_message(write.subject, write.data, timeout_s, headers=headers)
        return read_ack(answer, write.subject, None)
