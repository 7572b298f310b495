"""The session with one MRC: its connection, renewals and leases. The driver of `lease.holder.Holder`: decides nothing.

Events go into the holder one at a time and its effects are carried out in their order; what takes time becomes a task whose end is the next
event. What effects mean for inodes, data and the kernel is behind `Coherent`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from xtreemos.errors import RemoteError, Unreachable, XosError
from xtreemos.fabric.rpc import ClientCall, Peer
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.client.actors import Actors, Identities, Principals
from xtreemos.xtreemfs.client.changes import Changes
from xtreemos.xtreemfs.client.coherent import Coherent, Op, granted, held_row, is_session_over, now_s
from xtreemos.xtreemfs.client.links import DEADLINE_S, Link, events, patient
from xtreemos.xtreemfs.errors import ActorUnknown, errno_of
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.model import Request
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.lease.holder import Holder
from xtreemos.xtreemfs.lease.model import REOPEN_S
from xtreemos.xtreemfs.model import Level

log = logging.getLogger(__name__)

M = TypeVar("M")

CHANGES_MAX = 8_192  # numbers from the oldest change under way on; the MRC refuses more than twice that
RENEW_ANSWER_S = 5.0  # a connection on which a renewal is not answered for so long is given up


class Session:
    """One MRC and what this client holds of it. `run` runs for as long as the mount does."""

    def __init__(
        self,
        mrc: str,
        client: str,
        dial: Callable[[], Awaitable[Peer]],
        identities: Identities,
        coherent: Coherent,
        *,
        former: tuple[str, ...] = (),
        anew: bool = False,
    ) -> None:
        """Make it. The MRC is told of `former` (sessions of ended processes in our place) and `anew` (this one was opened by such a one)."""
        self.mrc = mrc
        self.client = client
        self.link = Link(f"the MRC on {mrc}", dial, greet=self._greet, ungreeted=is_session_over)
        self.actors = Actors(identities, time.time)
        self.link.forget_actors = self.actors.forget
        self.principals = Principals(identities)
        self.holder = Holder(now_s())
        self._changes = Changes()
        self._change_over: asyncio.Future[None] | None = None
        self.token = b""
        self.ops: dict[int, Op] = {}
        self.waiting: dict[int, dict[int, Op]] = {}
        """Inode -> operations that wait for its lease, by number, in their order."""
        self._coherent = coherent
        self._former, self._anew = former, anew
        self._feeding = False
        self._events: deque[h.Event] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0
        self._refused: dict[int, int] = {}
        self._call: ClientCall | None = None
        self._opening: h.OpenSession | None = None
        self._releases: list[h.SendRelease] = []
        """Those that a task which is about to run will send; more may be added until it does."""
        self._wake: asyncio.TimerHandle | None = None
        self._wake_s = 0.0
        self._heard: list[asyncio.Future[None]] = []
        """Of those who wait for the MRC to know of passthrough."""
        self.recalls = 0
        self.suspensions = 0

    # ---------------------------------------------------------------------------------------------------- for operations

    def can(self, ino: int, level: Level) -> bool:
        """Whether a cached answer may be given in this very step."""
        return self.holder.can(ino, level, now_s())

    def valid_ns(self) -> int:
        """How long the kernel may trust what is held, from now."""
        return max(0, int(self.holder.valid_s(now_s()) * 1e9))

    def begin(
        self, ino: int, level: Level, request: Request | None, *, span: tuple[int, int] | None = None, writeback: bool = False
    ) -> Op:
        """Begin an operation that relies on a lease: may be served if `go` is set already, else await `ready`. Always `end` it."""
        self._numbers += 1
        op = self.ops[self._numbers] = Op(self._numbers, ino, level, request, span)
        self.waiting.setdefault(ino, {})[op.number] = op
        self.feed(h.Begin(op.number, ino, level, writeback))
        return op

    async def ready(self, op: Op, *, deadline_s: float = DEADLINE_S) -> h.Go:
        """Wait for an operation's lease. FuseError: refused, or not to be had in time; the operation is over then."""
        if op.is_waiting:
            op.waiter = asyncio.get_running_loop().create_future()
            waiter = op.waiter
            try:
                await patient(lambda: asyncio.shield(waiter), asyncio.get_running_loop().time() + deadline_s)
            except TimeoutError:
                log.warning("the lease of inode %x was not to be had from %s within %g s", op.ino, self.link.label, deadline_s)
                self._give_up(op)
                raise FuseError(errno.ETIMEDOUT) from None
            except BaseException:
                self._give_up(op)
                raise
        if op.go is None:
            self._over(op)
            raise FuseError(op.failed or errno.EIO)
        return op.go

    def end(self, op: Op, *, dirty: bool = False) -> None:
        """The operation is over; `dirty` if it left something unwritten."""
        if self.ops.get(op.number) is op:
            self._over(op)
            self.feed(h.End(op.number, dirty))

    def cancel(self, op: Op) -> None:
        """Give up an operation that waits (or has failed)."""
        self._give_up(op)

    def _give_up(self, op: Op) -> None:
        if self.ops.get(op.number) is not op:
            return
        self._over(op)
        if op.is_waiting:
            self.feed(h.Cancel(op.number))
        elif op.go is not None:
            self.feed(h.End(op.number))

    def _over(self, op: Op) -> None:
        self.ops.pop(op.number, None)
        self._leave_queue(op)

    def _leave_queue(self, op: Op) -> None:
        queue = self.waiting.get(op.ino)
        if queue is not None:
            queue.pop(op.number, None)
            if not queue:
                del self.waiting[op.ino]

    async def call(
        self,
        request: Request | None,
        ino: int,
        method: str,
        make: Callable[[protocol.Who], msgspec.Struct],
        kind: type[M],
        *,
        again: bool = False,
        deadline_s: float = DEADLINE_S,
    ) -> M:
        """Make a call on behalf of who made a request of the kernel (None: of the local root). FuseError as `Link.call`."""

        async def message(peer: Peer) -> msgspec.Struct:
            return make(await self.who(peer, request, ino))

        return await self.link.call(method, message, kind, again=again, deadline_s=deadline_s)

    async def change(
        self, request: Request | None, ino: int, method: str, make: Callable[[protocol.Who], msgspec.Struct], kind: type[M]
    ) -> M:
        """As `call`, for what must be done once: sent again, with its number, until it is answered.

        FuseError: the errno of the refusal; ETIMEDOUT, no answer in time; EIO, our session ended meanwhile. After both it may have been done.
        """
        while self._changes.span >= CHANGES_MAX:
            self._change_over = self._change_over or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._change_over)
        change = self._changes.begin()
        try:

            async def message(peer: Peer) -> msgspec.Struct:
                return make(await self.who(peer, request, ino))

            return await self.link.call(method, message, kind, change=change)
        finally:
            self._changes.end(change)
            if self._change_over is not None:
                self._change_over.set_result(None)
                self._change_over = None

    async def who(self, peer: Peer, request: Request | None, ino: int) -> protocol.Who:
        """Return on whose behalf."""
        if request is None:
            return await self.actors.who(peer, 0, 0, 0, ino)
        return await self.actors.who(peer, request.uid, request.gid, request.pid, ino)

    async def through(self, ino: int, level: Level) -> None:
        """Declare that the kernel uses the OSD's file at this level (NONE: no more); returns when the MRC has heard it."""
        self.feed(h.Through(ino, level))
        while not self.holder.is_agreed(ino, level):
            self._heard.append(asyncio.get_running_loop().create_future())
            await self._heard[-1]

    def _tell_heard(self) -> None:
        heard, self._heard = self._heard, []
        for waiter in heard:
            if not waiter.done():
                waiter.set_result(None)

    def rights(self, capability: bytes) -> protocol.Rights:
        """Return what an OSD is shown with a capability."""
        return protocol.Rights(capability, self.token)

    # ----------------------------------------------------------------------------------------------------------- holder

    def feed(self, event: h.Event) -> None:
        """Tell the holder what happened and carry out what it says."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                for effect in self.holder.on(self._events.popleft(), now_s()):
                    self._do(effect)
        finally:
            self._feeding = False
        self._arm()

    def _arm(self) -> None:
        due_s = self.holder.next_wake()
        if self._wake is not None:
            if self._wake_s <= due_s:  # it may come too early
                return
            self._wake.cancel()
            self._wake = None
        if due_s != float("inf"):
            self._wake_s = due_s
            self._wake = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s()), self._tick)

    def _tick(self) -> None:
        self._wake = None
        self.feed(h.Tick())

    def _do(self, effect: h.Effect) -> None:
        match effect:
            case h.Go():
                self._went(effect)
            case h.Fail():
                self._went_wrong(effect)
            case h.Ask():
                self._releases = []  # what comes behind this must not overtake it
                self._start(self._ask(effect))
            case h.Flush():
                self._start(self._flush(effect.ino))
            case h.Invalidate():
                self.recalls += not effect.again
                self._coherent.drop(effect.ino, effect.level, effect.names)
                self._start(self._invalidate(effect))
            case h.SendRelease():
                self._release_soon(effect)
            case h.SendForget():
                self._releases = []
                self._start(self._forget(effect.inos))
            case h.FailDirty():
                self._coherent.fail_dirty(effect.ino)
            case h.SendRenew():
                self._releases = []
                self._start(self._renew())
            case h.OpenSession():
                self._releases = []
                self._opening = effect
            case h.Reopen():
                if self._call is not None:  # the session ended while the connection stands: begin anew with both
                    self.link.drop()
            case h.Suspend():
                self.suspensions += 1
                self._coherent.suspended(self, early=effect.early)
            case h.Resume():
                pass
            case _:
                raise AssertionError(f"unknown effect {effect}")

    def _went(self, go: h.Go) -> None:
        op = self.ops.get(go.op)
        if op is None:
            self._events.append(h.End(go.op))
            return
        op.go = go
        self._leave_queue(op)
        if op.waiter is not None and not op.waiter.done():
            op.waiter.set_result(None)

    def _went_wrong(self, fail: h.Fail) -> None:
        op = self.ops.get(fail.op)
        if op is None:
            return
        op.failed = self._refused.get(op.ino, errno.EIO)
        self._leave_queue(op)
        if op.waiter is not None and not op.waiter.done():
            op.waiter.set_result(None)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session with %s: a step failed inside", self.link.label, exc_info=error)
            self.link.drop()  # what it should have told is told by opening the session again

    # ------------------------------------------------------------------------------------------------------------ steps

    async def _ask(self, effect: h.Ask) -> None:
        queue = self.waiting.get(effect.ino)
        peer = self.link.peer
        if peer is None:
            return  # cut: the holder asks again
        op = next(iter(queue.values())) if queue else Op(0, effect.ino, effect.level, None)
        try:
            try:
                grant = await self._coherent.ask(self, peer, op, effect.level)
            except RemoteError as error:
                if error.code != ActorUnknown.code:
                    raise
                self.actors.forget()
                grant = await self._coherent.ask(self, peer, op, effect.level)
        except RemoteError as error:
            if is_session_over(error):
                self.feed(h.SessionOver())
                return
            self._refused[effect.ino] = errno_of(error)
            self.feed(h.AskFailed(effect.ino))
            self._refused.pop(effect.ino, None)
        except Unreachable:
            return
        else:
            self.feed(granted(grant, asked=True))

    async def _flush(self, ino: int) -> None:
        self.feed(h.Flushed(ino, await self._coherent.flush(ino)))

    async def _invalidate(self, effect: h.Invalidate) -> None:
        await self._coherent.invalidate(effect.ino, effect.level, effect.names, again=effect.again)
        self.feed(h.Invalidated(effect.ino))

    def _release_soon(self, effect: h.SendRelease) -> None:
        """Releases that the holder gives one after the other, with no other message between them, travel together."""
        if not self._releases or len(self._releases) >= protocol.RELEASES_MAX:
            self._releases = []
            self._start(self._release(self._releases))
        self._releases.append(effect)

    async def _release(self, effects: list[h.SendRelease]) -> None:
        if self._releases is effects:
            self._releases = []
        rows = []
        for effect in effects:
            update = self._coherent.last_word(effect.ino, effect.epoch) if effect.epoch else None
            rows.append(protocol.Release(effect.ino, effect.level, effect.seq, update, effect.pin, effect.through, effect.unsure))
        told = await (
            self._tell("mrc.release", rows[0]) if len(rows) == 1 else self._tell("mrc.releases", protocol.Releases(tuple(rows)))
        )
        if told:
            for row in rows:
                self._coherent.released(row.ino, Level(row.level), row.update)
                self.feed(h.Released(row.ino))
            self._tell_heard()

    async def _forget(self, inos: tuple[int, ...]) -> None:
        if await self._tell("mrc.forget", protocol.Forget(inos)):
            for ino in inos:
                self.feed(h.Released(ino))

    async def _renew(self) -> None:
        sent = now_s()
        peer = self.link.peer
        if peer is None:
            return
        try:
            answer = await peer.call("mrc.renew", calls.params(protocol.Renew(self.client)), timeout_s=RENEW_ANSWER_S)
        except RemoteError as error:
            if is_session_over(error):
                self.feed(h.SessionOver())
            else:
                log.warning("%s refuses to renew: %s", self.link.label, error)
        except Unreachable as error:
            if not peer.is_lost:
                log.warning("%s; a new connection is made", error)
                peer.close()
        else:
            self.token = calls.answer_of(answer, protocol.Renewed).token
            self.feed(h.RenewAnswered(sent))

    async def _tell(self, method: str, message: msgspec.Struct) -> bool:
        """Make a call that is repeated by the holder itself if the connection breaks; tell whether it was answered."""
        peer = self.link.peer
        if peer is None:
            return False
        try:
            answer = await peer.call(method, calls.params(message))
            if answer is not None and any(answer):
                log.warning(
                    "%s refuses part of %s: %s", self.link.label, method, [errno.errorcode.get(row, row) for row in answer if row]
                )
        except RemoteError as error:
            if is_session_over(error):
                self.feed(h.SessionOver())
                return False
            log.warning("%s refuses %s: %s", self.link.label, method, error)
        except Unreachable:
            return False
        return True

    # ------------------------------------------------------------------------------------------------------- connection

    async def run(self) -> None:
        """Keep the session standing, for ever."""
        while True:
            await self.link.wait_up()
            peer = self.link.peer
            if peer is None:
                continue
            reader = asyncio.ensure_future(self._read_recalls())
            try:
                await asyncio.wait({reader, peer.lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            self.link.drop()
            self._call = None
            self.feed(h.Cut())

    async def _greet(self, peer: Peer) -> None:
        self._call = None
        try:
            while True:
                self._opening = None
                self.feed(h.Connected())
                opening: h.OpenSession | None = self._opening
                assert opening is not None, "the holder answers Connected by OpenSession"
                if await self._open(peer, opening):
                    return
                await asyncio.sleep(REOPEN_S)
        except BaseException:
            self.feed(h.Cut())
            raise

    async def _open(self, peer: Peer, opening: h.OpenSession) -> bool:
        """Open the session on a connection; tell whether it stands. False: it was over, and the holder has heard that."""
        sent = now_s()
        held = tuple(held_row(claim) for claim in opening.held)
        message = protocol.OpenSession(self.client, held, self._coherent.locks(self), self._former, self._anew)
        call = peer.open("mrc.session", calls.params(message))
        try:
            frame = await call.receive()
            welcome = calls.answer_of(frame.body, protocol.Welcome)
            renewed = await peer.call("mrc.renew", calls.params(protocol.Renew(self.client)), timeout_s=RENEW_ANSWER_S)
        except RemoteError as error:
            call.close()
            if is_session_over(error):
                self.feed(h.SessionOver())
                return False
            raise
        self.token = calls.answer_of(renewed, protocol.Renewed).token
        self._call = call
        self._changes.life = welcome.life
        self._former, self._anew = (), False
        self._coherent.opened(self, welcome)
        self.feed(h.Opened(sent, welcome.lost))
        self._tell_heard()
        return True

    async def _read_recalls(self) -> None:
        call = self._call
        if call is None:
            return
        try:
            async for body in events(call):
                recall = calls.answer_of(body, protocol.Recall)
                self.feed(h.Recalled(recall.seq, recall.ino, Level(recall.level), recall.names))
                # Answers that arrived between this recall and the next are for tasks that must run first.
                await asyncio.sleep(0)
        except RemoteError as error:
            log.warning("%s ended the session: %s", self.link.label, error)
            self.feed(h.SessionOver())
        except XosError as error:
            log.info("%s", error)

    async def close(self) -> None:
        """Stop everything; the MRC keeps what is held until the lease ends."""
        if self._wake is not None:
            self._wake.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()
