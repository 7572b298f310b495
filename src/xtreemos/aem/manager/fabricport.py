"""The real fabric behind the ports of detached jobs: translation only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from xtreemos.aem.manager.ports import LOG_STREAM, LOG_SUBJECT, Incoming, Stored
from xtreemos.fabric import stream, subjects
from xtreemos.fabric.connection import Fabric, Subscription

SUBMISSIONS_BYTES_MAX = 1 << 30
"""When so much waits, further submissions are refused with a clear error instead of old ones being dropped."""
LISTEN_MAX = 20_000


async def ensure_job_streams(fabric: Fabric, *, copies: int) -> None:
    """Make the two logs of detached jobs, or bring them to `copies` replicas. For a service of the VO."""
    submissions = {"name": subjects.SUBMIT_STREAM, "subjects": [subjects.SUBMIT_FILTER], "max_bytes": SUBMISSIONS_BYTES_MAX}
    await stream.ensure_stream(fabric, submissions, copies=copies)
    await stream.ensure_stream(fabric, {"name": LOG_STREAM, "subjects": [LOG_SUBJECT]}, copies=copies)


class FabricListening:
    """Requests to a subject; see ports.Listening."""

    def __init__(self, fabric: Fabric, subscription: Subscription) -> None:
        self._fabric = fabric
        self._subscription = subscription

    async def next(self) -> Incoming:
        """Wait for a request; those lost while the link was down will be asked again by their senders."""
        while True:
            message = await self._subscription.next()
            if message is not None and message.reply.startswith(subjects.INBOX):
                return Incoming(message.subject, message.data, self._answer_to(message.reply))

    def _answer_to(self, reply: str) -> Callable[[bytes], Awaitable[None]]:
        async def answer(data: bytes) -> None:
            await self._fabric.publish(reply, data)

        return answer

    async def close(self) -> None:
        await self._subscription.close()


class FabricPort:
    """ports.Port, ports.Messages and client.ClientPort over one connection."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        return await self._fabric.request(subject, data, timeout_s)

    async def listen(self, subject: str) -> FabricListening:
        return FabricListening(self._fabric, await self._fabric.listen(subject, pending_max=LISTEN_MAX))

    async def append(self, subject: str, data: bytes, *, msg_id: str | None = None, expected_last: int | None = None) -> int:
        return await stream.append(self._fabric, subject, data, msg_id=msg_id, expected_last=expected_last, timeout_s=5)

    async def bounds(self, stream_name: str) -> tuple[int, int]:
        state = (await stream.stream_info(self._fabric, stream_name))["state"]
        return int(state["first_seq"]) or 1, int(state["last_seq"])

    async def consume(self, stream_name: str, from_seq: int) -> AsyncGenerator[Stored, None]:
        async with contextlib.aclosing(stream.consume(self._fabric, stream_name, from_seq)) as messages:
            async for message in messages:
                if isinstance(message, stream.StreamMessage):
                    yield Stored(message.seq, message.subject, message.data)

    async def purge(self, stream_name: str, below_seq: int) -> None:
        await stream.api(self._fabric, f"STREAM.PURGE.{subjects.token(stream_name)}", {"seq": below_seq})
