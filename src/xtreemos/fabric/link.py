"""One TCP connection to one NATS server, used once: opened, lived, dead. Reconnecting is for `connection.Fabric`.

nats-py does the protocol. What it decides about the life of a connection is replaced here, because (nats-py 2.16):
its reconnect waits for a TLS farewell of a paused server (30 s); a timed-out flush kills its read loop without a word; it
closes for ever when a JWT expires; publishers wait for ever when the connection dies under them; it answers any nonce.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import ParseResult

from nats import errors as nats_errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.transport import TcpTransport
from nats.protocol import command as protocol

from xtreemos.errors import PermissionRefused
from xtreemos.fabric.errors import BadNonce, NoResponders, TooLarge, Unreachable
from xtreemos.fabric.nkeys import KeyPair, nonce_signer

PENDING_BYTES_MAX = 2 << 20
INFO_BYTES_MAX = 256 << 10
_NEVER_S = 10**9
_REFUSED = re.compile(r'for publish to "([^"]+)"', re.IGNORECASE)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process shows to the fabric: a user JWT and the key it names."""

    token: str
    key: KeyPair


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came. `headers` is empty if there were none."""

    subject: str
    data: bytes
    reply: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Three digits of a message of the server itself; else empty."""
        return self.headers.get("Status", "")


Push = Callable[[Message], None]


class _TlsTransport(TcpTransport):
    """TLS from the first byte, and an end without farewell (a paused server would let us wait 30 s for its own)."""

    def __init__(self, tls: ssl.SSLContext, tls_name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py has no types here
        self._tls = tls
        self._tls_name = tls_name

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        self._io_reader, self._io_writer = await asyncio.wait_for(
            asyncio.open_connection(
                uri.hostname, uri.port, limit=max(buffer_size, INFO_BYTES_MAX), ssl=self._tls, server_hostname=self._tls_name
            ),
            connect_timeout,
        )

    async def connect_tls(self, *_: object) -> None:
        """Nothing left to do."""

    def abort(self) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def __bool__(self) -> bool:
        return True  # else nats-py puts its own in our place


class Link(Client):
    """A connection that tells when it is dead (`dead`, `reason`) and then stays so."""

    def __init__(self, inbox: str, on_servers: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.dead = asyncio.Event()
        self.reason = ""
        self.refused: str = ""
        self._on_servers = on_servers
        self._pushes: dict[int, Push] = {}
        self._replies: dict[str, tuple[str, asyncio.Future[Message]]] = {}  # inbox -> (subject asked, answer)
        self._reply_prefix = f"{inbox}.{secrets.token_hex(8)}."
        self._reply_count = 0
        self._heard_s = -math.inf  # when the last message came, of the loop's clock

    @property
    def server_name(self) -> str:
        return str(self._server_info.get("server_name", ""))

    @property
    def payload_bytes_max(self) -> int:
        return self._max_payload

    async def open(
        self, server: str, *, name: str, tls: ssl.SSLContext, tls_name: str, credentials: Credentials, timeout_s: float
    ) -> None:
        """Connect to `server` (`host:port`) and prove who we are; raise Unreachable if that fails. Use once."""
        self._transport = _TlsTransport(tls, tls_name)
        try:
            async with asyncio.timeout(timeout_s):
                await self.connect(
                    f"tls://{server}",
                    name=name,
                    error_cb=self._note_error,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, int(timeout_s)),
                    ping_interval=_NEVER_S,  # we ping ourselves, see ping_forever
                    pending_size=PENDING_BYTES_MAX,
                    tls=tls,
                    signature_cb=nonce_signer(credentials.key),
                    user_jwt_cb=credentials.token.encode,
                )
            await self.listen(f"{self._reply_prefix}*", self._on_reply)
        except BadNonce:
            self.abort("hostile nonce")
            raise
        except (OSError, ssl.SSLError, TimeoutError, nats_errors.Error) as cause:
            self.abort(str(cause))
            raise Unreachable(f"cannot connect to the fabric at {server}: {_reason(cause, self.refused)}", definite=True) from cause
        except BaseException:
            self.abort("cancelled")
            raise

    # ---- life

    def abort(self, reason: str) -> None:
        """End at once, without farewell: a paused server would let us wait for its own."""
        if self.dead.is_set():
            return
        self.reason = reason
        self._status = Client.CLOSED
        current = asyncio.current_task()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not current:
                task.cancel()
        if isinstance(self._transport, _TlsTransport):
            self._transport.abort()
        while self._flush_queue is not None and not self._flush_queue.empty():
            waiting = self._flush_queue.get_nowait()
            if not waiting.done():
                waiting.set_result(None)
        for _, reply in self._replies.values():
            if not reply.done():
                reply.set_exception(Unreachable(f"the connection to the fabric broke ({reason}) before the answer"))
        self._replies.clear()
        self.dead.set()

    async def ping_forever(self, interval_s: float, missed_max: int) -> None:
        """Ping until the link is dead; abort it when `missed_max` pings in a row were not answered in time.

        While messages come, the server is alive: it is asked when nothing was heard for `interval_s`.
        """
        missed = 0
        loop = asyncio.get_running_loop()
        while not self.dead.is_set():
            quiet_s = loop.time() - self._heard_s
            if not missed and quiet_s < interval_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.dead.wait(), interval_s - quiet_s)
                continue
            pong: asyncio.Future[bool] = loop.create_future()
            await self._send_ping(pong)
            done, _ = await asyncio.wait({pong}, timeout=interval_s)
            missed = 0 if done else missed + 1
            if missed >= missed_max:
                self.abort("server does not answer")
            elif done:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.dead.wait(), interval_s)

    async def round_trip(self, timeout_s: float) -> None:
        """Wait until the server has taken all that was sent before."""
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        dead: asyncio.Future[bool] = asyncio.ensure_future(self.dead.wait())
        waited: set[asyncio.Future[bool]] = {pong, dead}
        try:
            done, _ = await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            dead.cancel()
        if pong not in done:
            raise Unreachable("the fabric does not answer")

    # ---- messages

    async def send(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send a message; waits only while more than PENDING_BYTES_MAX are unsent."""
        if self.dead.is_set():
            raise Unreachable("not connected to the fabric", definite=True)
        if len(data) > self._max_payload:
            raise TooLarge(f"{len(data)} bytes are more than a message may have", f"send at most {self._max_payload} bytes")
        try:
            await self.publish(subject, data, reply=reply, headers=headers)
        except nats_errors.ConnectionClosedError as cause:
            raise Unreachable("the connection to the fabric broke while sending") from cause

    async def ask(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> Message:
        """Send a request and wait for its first answer."""
        self._reply_count += 1
        reply = f"{self._reply_prefix}{self._reply_count}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[reply] = (subject, future)
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(subject, data, reply=reply, headers=headers)
                message = await future
        except TimeoutError:
            raise Unreachable(f"no answer from {subject} within {timeout_s:.1f} s") from None
        finally:
            self._replies.pop(reply, None)
            if future.done() and not future.cancelled():
                future.exception()  # mark as seen: a failed send may leave the abort's exception behind
        if message.status == "503":
            raise NoResponders(subject)
        return message

    def _on_reply(self, message: Message) -> None:
        _, future = self._replies.get(message.subject, ("", None))
        if future is not None and not future.done():
            future.set_result(message)

    @property
    def idle(self) -> bool:
        """True if no request waits for its answer."""
        return not self._replies

    async def listen(self, subject: str, push: Push, queue: str = "") -> int:
        """Subscribe; `push` is called for each message at once and must neither wait nor raise. Returns the id."""
        self._sid += 1
        self._pushes[self._sid] = push
        await self._send_command(protocol.sub_cmd(subject, queue, self._sid))
        await self._flush_pending()
        return self._sid

    async def unlisten(self, sid: int) -> None:
        """End a subscription."""
        self._pushes.pop(sid, None)
        if not self.dead.is_set():
            await self._send_command(protocol.unsub_cmd(sid, 0))
            await self._flush_pending()

    # ---- what nats-py calls

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        push = self._pushes.get(sid)
        if push is not None:
            fields = (await self._process_headers(headers) or {}) if headers else {}
            push(
                Message(
                    subject.decode(),
                    bytes(data),
                    reply.decode(),
                    {str(k.value if hasattr(k, "value") else k): v for k, v in fields.items()},
                )
            )

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes PING past what is queued, so its PONG would not prove that a SUB before it was taken.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        del initial_connection
        urls = info.get("connect_urls")
        if isinstance(urls, list):
            self._on_servers([url for url in urls if isinstance(url, str)])
        if info.get("ldm"):
            self.abort("server is going down")

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip().strip("'")
        if "permissions violation" in text.lower():
            self._refuse(text)
            return
        self.refused = text
        self.abort(text)

    def _refuse(self, text: str) -> None:
        """The server refused a message or a subscription by our role; requests to that subject need not wait for the end."""
        logger.warning("the fabric refused: %s", text)
        found = _REFUSED.search(text)
        for subject, reply in self._replies.values():
            if found and subject.lower() == found.group(1).lower() and not reply.done():  # nats-py lowers the text
                reply.set_exception(
                    PermissionRefused(f"the fabric does not let us send to {subject}", "your role in the VO has no right to it")
                )

    async def _process_op_err(self, e: Exception) -> None:
        self.abort(str(e) or type(e).__name__)

    async def _note_error(self, error: Exception) -> None:
        if not isinstance(error, nats_errors.UnexpectedEOF):
            self.refused = str(error)


def _reason(cause: BaseException, refused: str) -> str:
    if isinstance(cause, TimeoutError):
        return refused or "no answer in time"
    if isinstance(cause, nats_errors.NoServersError) and refused:
        return refused  # it only says that it gave up
    return str(cause).removeprefix("nats: ") or type(cause).__name__
