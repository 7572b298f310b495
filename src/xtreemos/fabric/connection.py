"""The one connection of a process to the fabric of one VO: it never gives up, and says clearly what is not known.

Knows nothing of streams and buckets beyond handing them out (`stream`, `kv`). A dead link is replaced within seconds by one
to another server; subscriptions move along. What a request did when its link broke is not known, so `Unreachable.definite`
is true only if the message was never sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from xtreemos.errors import InternalError, RemoteError, XosError
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import BadKey, FabricClosed, NoResponders, Unreachable
from xtreemos.fabric.link import Credentials, Link, Message

if TYPE_CHECKING:  # they build on this module
    from xtreemos.fabric.kv import Bucket
    from xtreemos.fabric.stream import StreamMessage, Synced

logger = logging.getLogger(__name__)
ERROR_HEADER = "Xos-Error"
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0
OLD_LINK_S_MAX = 5.0
SERVERS_MAX = 32
STATES_MAX = 16

Handler = Callable[[Message], Awaitable[bytes | None]]
CredentialSource = Callable[[], Credentials]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the fabric. `servers` are `host:port`; `inbox` is one of subjects.*_inbox(); `tls` must verify."""

    servers: tuple[str, ...]
    tls: ssl.SSLContext
    inbox: str
    name: str
    tls_name: str = subjects.TLS_NAME
    ping_s: float = 1.0
    pings_missed_max: int = 2
    connect_s_max: float = 2.0


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Whether we are connected, since when (monotonic seconds), to which server, and why the last link broke."""

    connected: bool
    since_s: float
    server: str = ""
    reason: str = ""
    links: int = 0


class Subscription:
    """A subject that is listened to over all links. Bounded: when its queue is full, messages are dropped and counted."""

    def __init__(self, fabric: Fabric, subject: str, queue: str, pending_max: int) -> None:
        self.subject = subject
        self.queue = queue
        self.dropped_count = 0
        self.closed = False
        self._fabric = fabric
        self._pending: deque[Message | None] = deque()
        self._pending_max = pending_max
        self._wake = asyncio.Event()
        self.sids: dict[Link, int] = {}

    def push(self, message: Message) -> None:
        """Called by the link for each message."""
        if len(self._pending) >= self._pending_max:
            self.dropped_count += 1
            return
        self._pending.append(message)
        self._wake.set()

    def push_break(self) -> None:
        """Called after each reconnection: what came in between is lost, and `next` answers None once."""
        self._pending.append(None)
        self._wake.set()

    async def next(self, timeout_s: float | None = None) -> Message | None:
        """Wait for a message; None says that some may have been lost here. TimeoutError; FabricClosed after close."""
        async with asyncio.timeout(timeout_s):
            while not self._pending:
                if self.closed:
                    raise FabricClosed("the subscription was closed", "")
                self._wake.clear()
                await self._wake.wait()
        return self._pending.popleft()

    async def close(self) -> None:
        """Stop listening. May be repeated."""
        if not self.closed:
            self.closed = True
            self._wake.set()
            await self._fabric._forget(self)  # noqa: SLF001  # the two are one thing in two classes


class Fabric:
    """See the module. Make it by `await Fabric.connect(...)`, end it by `await fabric.close()`."""

    def __init__(self, settings: Settings, credentials: CredentialSource) -> None:
        self.settings = settings
        self._credentials = credentials
        self._servers = list(settings.servers)
        self._cluster_size = 1
        self._link: Link | None = None
        self._state = ConnectionState(False, time.monotonic())
        self._changed = asyncio.Condition()
        self._subscriptions: list[Subscription] = []
        self._renew = asyncio.Event()
        self._closed = False
        self._main: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def connect(cls, settings: Settings, credentials: CredentialSource, *, wait_s: float | None = 10) -> Fabric:
        """Start. Waits up to `wait_s` for the first link (None: not at all); Unreachable then, and nothing is left behind.

        `credentials` is asked anew for every link, so that renewed tokens are picked up; it must be quick.
        """
        fabric = cls(settings, credentials)
        fabric._main = asyncio.create_task(fabric._run(), name=f"fabric {settings.name}")
        if wait_s is not None:
            try:
                await fabric.wait_connected(wait_s)
            except BaseException:
                await fabric.close()
                raise
        return fabric

    # ---- state

    @property
    def state(self) -> ConnectionState:
        return self._state

    @property
    def servers(self) -> tuple[str, ...]:
        """All servers known by now: those given and those that the fabric told of."""
        return tuple(self._servers)

    @property
    def cluster_size(self) -> int:
        """How many servers the fabric has, as the one we are connected to said last."""
        return self._cluster_size

    def cut_s(self) -> float:
        """Seconds since the connection was lost; 0 while connected."""
        return 0.0 if self._state.connected else time.monotonic() - self._state.since_s

    async def states(self) -> AsyncIterator[ConnectionState]:
        """Yield the state now and after each change (the newest only, if the reader is slow)."""
        seen: ConnectionState | None = None
        while not self._closed:
            async with self._changed:
                await self._changed.wait_for(lambda: self._state is not seen or self._closed)  # noqa: B023  # read at once
            seen = self._state
            yield seen

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for a link; Unreachable (definite) if there is none in time."""
        await self._wait_link(time.monotonic() + timeout_s)

    async def _wait_link(self, deadline_s: float) -> Link:
        while True:
            if self._closed:
                raise FabricClosed("the connection to the fabric was closed", "")
            link = self._link
            if link is not None and not link.dead.is_set():
                return link
            left = deadline_s - time.monotonic()
            if left <= 0:
                reason = f": {self._state.reason}" if self._state.reason else ""
                raise Unreachable(f"the fabric cannot be reached{reason}", definite=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left), self._changed:
                    await self._changed.wait()

    async def _set_state(self, state: ConnectionState) -> None:
        async with self._changed:
            self._state = state
            self._changed.notify_all()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the fabric failed", exc_info=task.exception())

    # ---- life

    async def _run(self) -> None:
        backoff_s = BACKOFF_S_MIN
        while not self._closed:
            try:
                link = await self._open_some()
            except (Unreachable, BadKey) as cause:
                await self._note_dead(cause.message)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))  # jitter: a restarted server must not meet all at once
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)
                continue
            backoff_s = BACKOFF_S_MIN
            await self._live(link)

    async def _open_some(self) -> Link:
        """Try each server once, the one we just lost last."""
        lost = "" if self._state.connected else self._state.server
        cause: Unreachable | BadKey = Unreachable("no server is known", definite=True)
        for server in sorted(self._servers, key=lambda server: (server == lost, random.random())):
            link = Link(self.settings.inbox, self._learn)
            try:
                await self._open(link, server)
                await self._unsubscribe_all(self._link)
                await self._subscribe_all(link)
            except (Unreachable, BadKey) as error:
                link.abort("unused")
                cause = error
                continue
            await self._use(link, server)
            return link
        raise cause

    async def _open(self, link: Link, server: str) -> None:
        await link.open(
            server,
            name=self.settings.name,
            tls=self.settings.tls,
            tls_name=self.settings.tls_name,
            credentials=self._credentials(),
            timeout_s=self.settings.connect_s_max,
        )
        self._spawn(link.ping_forever(self.settings.ping_s, self.settings.pings_missed_max))

    async def _unsubscribe_all(self, link: Link | None) -> None:
        """Before a link is replaced: a request must not reach two handlers. What comes in the few ms between is lost."""
        for subscription in self._subscriptions:
            sid = subscription.sids.pop(link, 0) if link is not None else 0
            if link is not None and sid:
                await link.unlisten(sid)

    async def _subscribe_all(self, link: Link) -> None:
        for subscription in self._subscriptions:
            subscription.sids[link] = await link.listen(subscription.subject, subscription.push, subscription.queue)
        await link.round_trip(self.settings.connect_s_max)

    async def _use(self, link: Link, server: str) -> None:
        # No await between taking the link and telling the subscriptions: none may slip in between unheard of.
        for subscription in self._subscriptions:
            if link not in subscription.sids:  # made while we subscribed
                self._spawn(self._listen(link, subscription))
            if self._state.links:
                subscription.push_break()
        old, self._link = self._link, link
        await self._set_state(ConnectionState(True, time.monotonic(), server, "", self._state.links + 1))
        if old is not None and not old.dead.is_set():
            self._spawn(self._retire(old))

    async def _listen(self, link: Link, subscription: Subscription) -> None:
        with contextlib.suppress(Unreachable):
            if link not in subscription.sids and not subscription.closed:
                subscription.sids[link] = 0  # claimed before the wait: two listeners would double every message
                sid = await link.listen(subscription.subject, subscription.push, subscription.queue)
                if link in subscription.sids:
                    subscription.sids[link] = sid
                else:  # closed while we waited
                    await link.unlisten(sid)

    async def _retire(self, link: Link) -> None:
        """Let an old link collect the answers it waits for; its subscriptions ended before."""
        deadline_s = time.monotonic() + OLD_LINK_S_MAX
        while not link.idle and not link.dead.is_set() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)  # answers come one by one; nothing tells of the last
        link.abort("replaced")

    async def _live(self, link: Link) -> None:
        """Stay until the link is dead or new credentials wait."""
        dead, renew = asyncio.create_task(link.dead.wait()), asyncio.create_task(self._renew.wait())
        try:
            await asyncio.wait({dead, renew}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            dead.cancel()
            renew.cancel()
        self._renew.clear()
        await self._note_dead("")

    async def _note_dead(self, reason: str) -> None:
        """If the link in use is dead, or there is none, say so."""
        link = self._link
        if link is not None and link.dead.is_set():
            for subscription in self._subscriptions:
                subscription.sids.pop(link, None)
            self._link = None
            logger.info("link to %s lost: %s", self._state.server, link.reason)
            await self._set_state(replace(self._state, connected=False, since_s=time.monotonic(), reason=link.reason))
        elif link is None and reason:
            await self._set_state(replace(self._state, reason=reason))

    def _learn(self, servers: list[str]) -> None:
        """Take up servers the fabric told of; TLS still checks that each is one of ours."""
        self._cluster_size = max(1, len(servers))
        for server in servers:
            if server not in self._servers and len(self._servers) < SERVERS_MAX:
                self._servers.append(server)

    def set_servers(self, servers: tuple[str, ...]) -> None:
        """Replace the servers that are tried from now on."""
        self._servers = list(servers)

    def renew(self) -> None:
        """Change to a new link with fresh credentials; requests under way are answered over the old one."""
        self._renew.set()

    async def close(self) -> None:
        """End everything. Handlers under way are cancelled. May be repeated."""
        self._closed = True
        tasks = [task for task in (self._main, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for subscription in list(self._subscriptions):
            await subscription.close()
        if self._link is not None:
            with contextlib.suppress(Unreachable):
                await self._link.round_trip(1)  # what was published goes out
            self._link.abort("closed")
        await self._set_state(replace(self._state, connected=False, since_s=time.monotonic(), reason="closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ---- messages

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None, timeout_s: float = 5
    ) -> None:
        """Send to whoever listens now; may be lost. Waits for a link if there is none; Unreachable (definite) after `timeout_s`."""
        link = await self._wait_link(time.monotonic() + timeout_s)
        await link.send(subject, data, reply=reply, headers=headers)

    async def request_message(
        self, subject: str, data: bytes, timeout_s: float = 5, *, headers: dict[str, str] | None = None
    ) -> Message:
        """As `request`, with the headers of the answer; error headers are not looked at."""
        deadline_s = time.monotonic() + timeout_s
        link = await self._wait_link(deadline_s)
        return await link.ask(subject, data, max(0.001, deadline_s - time.monotonic()), headers)

    async def request(self, subject: str, data: bytes, timeout_s: float = 5, *, headers: dict[str, str] | None = None) -> bytes:
        """Ask and return the first answer.

        Raises:
            NoResponders: nobody listens; definite.
            Unreachable: no answer in time; `definite` if it was never sent.
            RemoteError: the handler's XosError, as it was raised there.
        """
        return _answer(await self.request_message(subject, data, timeout_s, headers=headers))

    async def gather(self, subject: str, data: bytes, wanted: int | None, deadline_s: float) -> list[bytes]:
        """Ask everybody who listens; return the answers of the first `wanted` (None: all) that came within `deadline_s` seconds.

        Error answers are left out. An empty list means that nobody listens or answered in time.
        """
        end_s = time.monotonic() + deadline_s
        link = await self._wait_link(end_s)
        inbox = f"{self.settings.inbox}.g{random.getrandbits(64):016x}"
        answers: list[bytes] = []
        async with contextlib.AsyncExitStack() as stack:
            heard = await self.listen(inbox)
            stack.push_async_callback(heard.close)
            await link.send(subject, data, reply=inbox)
            while wanted is None or len(answers) < wanted:
                try:
                    message = await heard.next(max(0.0, end_s - time.monotonic()))
                except TimeoutError:
                    break
                if message is not None and message.status == "503":
                    break
                if message is not None and ERROR_HEADER not in message.headers:
                    answers.append(message.data)
        return answers

    async def listen(self, subject: str, *, queue: str = "", pending_max: int = 4096) -> Subscription:
        """Subscribe without a handler: read by `next()`. Ends with `close()`."""
        if self._closed:
            raise FabricClosed("the connection to the fabric was closed", "")
        subscription = Subscription(self, subject, queue, pending_max)
        self._subscriptions.append(subscription)
        link = self._link
        if link is not None and not link.dead.is_set():
            await self._listen(link, subscription)
        return subscription

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = "", concurrency: int = 1, pending_max: int = 4096
    ) -> Subscription:
        """Call `handler` for each message, over all reconnections, until the subscription is closed.

        When this returns, the server we are connected to knows of it (others of the cluster a moment later).
        With `concurrency` 1 messages are handled in order. What the handler returns is the answer, if one was asked for; an
        XosError it raises reaches the requester as RemoteError; any other exception is logged and answered as a bug.
        """
        subscription = await self.listen(subject, queue=queue, pending_max=pending_max)
        link = self._link
        if link is not None and not link.dead.is_set():
            with contextlib.suppress(Unreachable):  # the next link takes it along
                await link.round_trip(self.settings.connect_s_max)
        for _ in range(concurrency):
            self._spawn(self._serve(subscription, handler))
        return subscription

    async def _serve(self, subscription: Subscription, handler: Handler) -> None:
        while True:
            try:
                message = await subscription.next()
            except FabricClosed:
                return
            if message is not None:
                await self._handle(message, handler)

    async def _handle(self, message: Message, handler: Handler) -> None:
        headers: dict[str, str] | None = None
        try:
            answer = await handler(message)
        except Exception as error:
            if not isinstance(error, XosError):
                logger.exception("handler of %s failed", message.subject)
                error = InternalError("the service failed by a bug of ours", "see its log and report it")
            answer, headers = b"", {ERROR_HEADER: json.dumps(error.to_wire())}
        # The requester chose `reply`, and the server does not check it: answered elsewhere we would speak for it.
        if answer is None or not message.reply.startswith(subjects.INBOX):
            return
        with contextlib.suppress(Unreachable):  # the requester will time out and ask again
            await self.publish(message.reply, answer, headers=headers)

    # ---- storage, in short; the modules `stream` and `kv` have more

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        expected_last: int | None = None,
        expected_subject_last: int | None = None,
        stream: str | None = None,
        timeout_s: float = 10,
    ) -> int:
        """Store a message in the stream behind `subject`, once; see stream.append."""
        from xtreemos.fabric import stream as streams

        return await streams.append(
            self,
            subject,
            data,
            msg_id=msg_id,
            expected_last=expected_last,
            expected_subject_last=expected_subject_last,
            stream=stream,
            timeout_s=timeout_s,
        )

    def consume(
        self, stream: str, from_seq: int = 1, *, subject: str = ">", whole: bool = True
    ) -> AsyncGenerator[StreamMessage | Synced, None]:
        """Read a stream in order, for ever; see stream.consume."""
        from xtreemos.fabric import stream as streams

        return streams.consume(self, stream, from_seq, subject=subject, whole=whole)

    async def ensure_stream(self, config: Mapping[str, Any], *, copies: int | None = None, timeout_s: float = 20) -> dict[str, Any]:
        """Make a stream or bring it to `config`; see stream.ensure_stream."""
        from xtreemos.fabric import stream as streams

        return await streams.ensure_stream(self, config, copies=copies, timeout_s=timeout_s)

    async def ensure_bucket(self, name: str, *, copies: int | None = None, bytes_max: int = -1, timeout_s: float = 20) -> Bucket:
        """Make a bucket if it is not there; see kv.ensure_bucket."""
        from xtreemos.fabric import kv

        return await kv.ensure_bucket(self, name, copies=copies, bytes_max=bytes_max, timeout_s=timeout_s)

    async def bucket(self, name: str, *, follow: bool = False) -> Bucket:
        """Open a bucket; see kv.open_bucket. Roles other than service need `follow`."""
        from xtreemos.fabric import kv

        return await kv.open_bucket(self, name, follow=follow)

    async def _forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        for link, sid in subscription.sids.items():
            if sid:
                await link.unlisten(sid)
        subscription.sids.clear()


def _answer(message: Message) -> bytes:
    wire = message.headers.get(ERROR_HEADER)
    if wire is not None:
        try:
            decoded = json.loads(wire)
        except ValueError:
            decoded = {}
        raise RemoteError(decoded if isinstance(decoded, dict) else {})
    return message.data


__all__ = ["ConnectionState", "Credentials", "Fabric", "Handler", "Message", "NoResponders", "Settings", "Subscription"]
