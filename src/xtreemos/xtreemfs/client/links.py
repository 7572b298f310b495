"""A connection to one server that comes back by itself; calls on it are bounded, and patient with signals.

A program's signal does not tear a file operation in two: an interrupted call gets `GRACE_S` more for its answer, which is what a local
file system would have needed too, and only then is given up (EINTR). A server that cannot be reached is tried again until the
call's deadline, then the call fails with ETIMEDOUT; one log line names the server when it goes away and one when it is back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from xtreemos.errors import RemoteError, Unreachable, XosError
from xtreemos.fabric.rpc import ClientCall, NoConnection, Peer
from xtreemos.foundation.frames import Kind
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs.client.changes import Change
from xtreemos.xtreemfs.errors import ActorUnknown, errno_of
from xtreemos.xtreemfs.fuse.errors import FuseError

log = logging.getLogger(__name__)

M = TypeVar("M")
NONE = type(None)
Buffer = bytes | bytearray | memoryview
Dial = Callable[[], Awaitable[Peer]]

DEADLINE_S = 15.0  # a call that had no answer so long fails; longer than an MRC waits for a dead client (10 s)
GRACE_S = 1.0  # for the answer of a call whose caller had a signal
AGAIN_S = 0.25  # between tries to connect
AWAY_S = 0.05  # a call waits only so long for a server that has been away for DEADLINE_S: one read of a program is many calls
SETTLE_S = 5.0  # one try to connect, with its greeting


class Begin(Protocol):
    """Sends a call on a connection; `uncertain`: it was sent before, and what became of that is not known."""

    def __call__(self, peer: Peer, *, uncertain: bool) -> Awaitable[ClientCall]: ...


class Done(NamedTuple):
    """An answer: its value, bytes beside it, descriptors (the receiver's)."""

    body: Any
    tail: Buffer
    fds: list[int]


class Link:
    """Calls to one server. `greet` runs on each new connection before any call may use it.

    `ungreeted` tells whether a refusal means that the greeting does not count any more, and nothing was done: the call is made again on a new connection.
    """

    def __init__(
        self,
        label: str,
        dial: Dial,
        *,
        greet: Callable[[Peer], Awaitable[None]] | None = None,
        ungreeted: Callable[[RemoteError], bool] | None = None,
    ) -> None:
        self.label = label
        self._dial = dial
        self._greet = greet
        self._ungreeted = ungreeted
        self.forget_actors: Callable[[], None] | None = None
        """Has callers show their tickets anew; a call of an actor that is unknown is made again then, once."""
        self._peer: Peer | None = None
        self._settling: asyncio.Task[Peer] | None = None
        self._away = False
        self._away_since = 0.0
        self.calls = 0
        self.failures = 0

    @property
    def peer(self) -> Peer | None:
        """The connection, if it stands and was greeted."""
        return self._peer if self._peer is not None and not self._peer.is_lost else None

    async def call(
        self,
        method: str,
        message: msgspec.Struct | Callable[[Peer], Awaitable[msgspec.Struct]],
        kind: type[M],
        *,
        deadline_s: float = DEADLINE_S,
        again: bool = True,
        change: Change | None = None,
    ) -> M:
        """Make one call.

        Args:
            method: its name.
            message: what is asked, or how to make it on a given connection.
            kind: type of the answer; `NONE` if nothing is answered.
            deadline_s: seconds until it fails with ETIMEDOUT.
            again: ask again if the connection breaks before the answer; only right for what may be done twice, or
            change: whose number lets the server do it once.

        Raises:
            FuseError: the server's errno; ETIMEDOUT, no answer in time; EIO, the connection broke and it is not known what happened.
        """

        async def begin(peer: Peer, *, uncertain: bool) -> ClientCall:
            made = message if isinstance(message, msgspec.Struct) else await message(peer)
            return peer.open(method, calls.params(made, change.once(uncertain=uncertain) if change is not None else None))

        done = await self._made(method, begin, deadline_s=deadline_s, again=again)
        return calls.answer_of(done.body, kind)

    async def raw(self, method: str, message: Callable[[], Any], *, tail: Buffer = b"", want_tail: bool = False) -> Done:
        """Make one call that may be made twice, with bytes beside message or answer; `message` is made when it is sent. Raises as `call`."""

        async def begin(peer: Peer, *, uncertain: bool) -> ClientCall:  # noqa: ARG001  # it may be done twice
            params = calls.params(message())
            if want_tail:
                params["tail"] = True
            return peer.open(method, params, tail=tail)

        return await self._made(method, begin, deadline_s=DEADLINE_S, again=True)

    async def _made(self, method: str, begin: Begin, *, deadline_s: float, again: bool) -> Done:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        self.calls += 1
        shown = uncertain = False
        while True:
            peer = self.peer or await self._connected(end)
            call: ClientCall | None = None
            try:
                async with asyncio.timeout_at(end):  # it may have to show a ticket first
                    call = await begin(peer, uncertain=uncertain)
                body = await _patient(call.result, end)
                return Done(body, call.tail, call.fds)
            except RemoteError as error:
                if error.code == ActorUnknown.code and self.forget_actors is not None and not shown:
                    shown = True
                    self.forget_actors()
                    continue
                if self._ungreeted is None or not self._ungreeted(error):
                    raise FuseError(errno_of(error)) from error
                if peer is self._peer:
                    self.drop()
            except TimeoutError:
                self._failed(f"{self.label} did not answer {method} within {deadline_s:g} s")
                raise FuseError(errno.ETIMEDOUT) from None
            except Unreachable as error:
                uncertain |= not isinstance(error, NoConnection)
                if (again or isinstance(error, NoConnection)) and loop.time() < end:
                    continue
                self._failed(f"{self.label} went away during {method}; it is not known whether it was done")
                raise FuseError(errno.EIO) from None
            finally:
                if call is not None:
                    call.close()

    async def wait_peer(self) -> Peer:
        """Return the connection, made if need be. FuseError(ETIMEDOUT)."""
        return self.peer or await self._connected(asyncio.get_running_loop().time() + DEADLINE_S)

    async def wait_up(self) -> None:
        """Wait, as long as it takes, until the server was reached and greeted."""
        await self._connected(float("inf"))

    def drop(self) -> None:
        """End the connection; the next call makes a new one."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    async def close(self) -> None:
        """End the connection and all tries to make one."""
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        self.drop()

    async def _connected(self, end: float) -> Peer:
        while True:
            if self.peer is not None:
                return self.peer
            if self._away and end != float("inf"):
                end = min(end, max(self._away_since + DEADLINE_S, asyncio.get_running_loop().time() + AWAY_S))
            if self._settling is None or self._settling.done():
                self._settling = asyncio.create_task(self._settle(), name=f"connect to {self.label}")
            settling = self._settling
            try:
                await _patient(lambda: asyncio.wait({settling}), end)  # noqa: B023  # called before the loop goes on
            except TimeoutError:
                self._failed(f"{self.label} cannot be reached")
                raise FuseError(errno.ETIMEDOUT) from None

    async def _settle(self) -> Peer:
        """Connect and greet, again and again."""
        while True:
            peer: Peer | None = None
            try:
                async with asyncio.timeout(SETTLE_S):
                    peer = await self._dial()
                    if self._greet is not None:
                        await self._greet(peer)
            except (XosError, OSError, TimeoutError) as error:
                if peer is not None:
                    peer.close()
                if not self._away:
                    self._away = True
                    self._away_since = asyncio.get_running_loop().time()
                    log.warning("%s does not answer: %s", self.label, error)
                await asyncio.sleep(AGAIN_S)
                continue
            except BaseException:
                if peer is not None:
                    peer.close()
                raise
            if self._away:
                self._away = False
                log.info("%s answers again", self.label)
            self._peer = peer
            return peer

    def _failed(self, text: str) -> None:
        self.failures += 1
        log.warning("%s", text)


async def _patient(wait: Callable[[], Awaitable[Any]], end: float) -> Any:
    """Await `wait()` until loop time `end`; on cancellation go on for `GRACE_S` and answer as if nothing had been, or else be cancelled.

    `wait` may be called twice: cancelling what it returns must lose nothing.
    """
    loop = asyncio.get_running_loop()
    interrupted = False
    while True:
        try:
            async with asyncio.timeout_at(end if end != float("inf") else None):
                return await wait()
        except asyncio.CancelledError:
            if interrupted:
                raise
            interrupted = True
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            end = min(end, loop.time() + GRACE_S)
        except TimeoutError:
            if interrupted:
                raise asyncio.CancelledError from None
            raise


patient = _patient


async def events(call: ClientCall) -> Any:
    """Yield the bodies of a call's EVENTs until it ends. RemoteError, ConnectionLost as `receive`."""
    while True:
        frame = await call.receive()
        if frame.kind is Kind.RESULT:
            return
        if frame.kind is Kind.EVENT:
            yield frame.body
