"""The driver of the lease table: requests wait in it, recalls and answers go out in the order in which the table gives them.

An operation is two functions. `needs()` says what it needs of which inodes, from the store as it is now; `execute(allowed)` does it, and
returns what it wants granted and how the answer is made of what was. Both are synchronous: between Proceed and Done nothing else
happens. Answers wait for the log (`journal.then`); what goes to one client never overtakes what was decided before it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from xtreemos.errors import InternalError, XosError
from xtreemos.fabric.rpc import Peer, ServerCall
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.lease.model import Given, Need
from xtreemos.xtreemfs.lease.table import Table
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.errors import SessionOver
from xtreemos.xtreemfs.mrc.journal import Journal
from xtreemos.xtreemfs.mrc.namespace import Moved
from xtreemos.xtreemfs.mrc.outbox import Allowed, Outbox, Pending, Plan
from xtreemos.xtreemfs.protocol import Recall

log = logging.getLogger(__name__)

EPOCH_STRIDE: Final = 1 << 16  # epochs made durable at a time: one record of the log serves so many WRITE leases
WITHDRAW_AGAIN_S: Final = 1.0
T = TypeVar("T")


class Hooks(Protocol):
    """What else the table may want done."""

    def fence(self, effect: table.Fence) -> None:
        """Fence a file whose writer was evicted, ask its size, then feed Fenced."""

    def opened(self, client: str, *, new: bool) -> None:
        """A client opens its session: a new one's id is made durable, an old one's locks are taken back before others get them."""

    def unused(self, ino: int) -> None:
        """Nobody has this inode any more, and it has no name."""

    def lapsed(self, client: str) -> None:
        """A client's session has expired: its locks end."""

    def forgotten(self, client: str) -> None:
        """Nothing is left of a client's session."""

    def grace_over(self) -> None:
        """All clients from before the restart are back or given up."""


def now_s() -> float:
    """Seconds on the clock of leases: goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leasing:
    """See the module."""

    def __init__(
        self, journal: Journal, hooks: Hooks, *, sessions: Iterable[str], writers: Iterable[table.Writer], epoch: int
    ) -> None:
        self.journal = journal
        self._loop = asyncio.get_running_loop()
        self.table = Table(now_s(), sessions=sessions, writers=writers)
        self._hooks = hooks
        self._ops = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._renewals: dict[str, Pending] = {}
        self._openings: dict[str, Pending] = {}
        self._boxes: dict[str, Outbox] = {}
        self._by_peer: dict[Peer, str] = {}
        self._epoch = self._epoch_end = epoch
        self._effects: deque[table.Effect] = deque()
        self._carrying_out = False
        self._given_back: asyncio.Future[None] | None = None
        self.recalls = 0

    # -- events and effects ----------------------------------------------------------------------------------------------

    def feed(self, event: table.Event) -> None:
        """Feed the table, and carry out what it wants, in order."""
        self._effects.extend(self.table.on(event, now_s()))
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._carrying_out = False
        if self._given_back is not None and isinstance(event, (table.Release, table.Fenced)) and not self._given_back.done():
            self._given_back.set_result(None)

    async def withdraw(self, inos: Iterable[int], within_s: float) -> None:
        """Ask the right to write these back from all who have it now; return when they gave it, or after `within_s`."""
        epoch, end_s = self._epoch, now_s() + within_s
        left = [ino for ino in inos if self.table.is_written(ino, epoch)]
        asked_s = -WITHDRAW_AGAIN_S
        while left and now_s() < end_s:
            if now_s() >= asked_s + WITHDRAW_AGAIN_S:  # again: who was cut off may be back, or its session may be over
                self.feed(table.Withdraw(tuple(left)))
                asked_s = now_s()
            if self._given_back is None or self._given_back.done():
                self._given_back = self._loop.create_future()
            await asyncio.wait({self._given_back}, timeout=min(WITHDRAW_AGAIN_S, max(0.0, end_s - now_s())))
            left = [ino for ino in left if self.table.is_written(ino, epoch)]

    def _carry_out(self, effect: table.Effect) -> None:
        match effect:
            case table.Proceed(op, allowed):
                self._proceed(op, {row.ino: row for row in allowed})
            case table.Answer(op, given):
                self._answer(op, given)
            case table.SendRecall():
                self._send_recall(effect)
            case table.Refuse(op):
                self._fail(self._pending.pop(op, None), FsError(errno.EAGAIN, "too many operations of this client wait"))
            case table.NoSession(client, op):
                self._no_session(client, op)
            case table.Opened(client, new, _lost):
                self._hooks.opened(client, new=new)
                self._succeed(self._openings.pop(client, None), effect)
            case table.Renewed(client):
                self._succeed(self._renewals.pop(client, None), None)
            case table.Lapsed(client):
                self._hooks.lapsed(client)
            case table.Forgotten(client):
                self._hooks.forgotten(client)
            case table.Fence():
                self._hooks.fence(effect)
            case table.Unused(ino):
                self._hooks.unused(ino)
            case table.GraceOver():
                self._hooks.grace_over()
            case _:
                raise AssertionError(f"unknown effect {effect}")

    def _proceed(self, op: int, allowed: Allowed) -> None:
        pending = self._pending.get(op)
        if pending is None or pending.execute is None:
            self.feed(table.Done(op))
            return
        plan = Plan((), lambda _given: None)
        try:
            plan = pending.execute(allowed)
        except Moved:
            try:
                needs = pending.needs()
            except XosError as error:
                pending.error = error
            else:
                self.feed(table.Again(op, needs))
                return
        except XosError as error:
            pending.error = error
        except Exception as error:  # a bug in one operation must not stop the table, in whose midst we are
            log.exception("operation %d failed", op)
            pending.error = InternalError(
                f"the operation failed inside: {type(error).__name__}", "please report it with the node's log"
            )
        pending.finish = plan.finish
        self.feed(table.Done(op, plan.gives))
        for event in plan.after:
            self.feed(event)

    def _answer(self, op: int, given: tuple[Given, ...]) -> None:
        pending = self._pending.pop(op, None)
        if pending is None:
            return
        if pending.error is not None:
            self._fail(pending, pending.error)
            return
        assert pending.finish is not None, "Answer follows Done"
        self._succeed(pending, pending.finish(given))

    def _no_session(self, client: str, op: int) -> None:
        error = SessionOver("this client's session is over", "open it again")
        if op:
            self._fail(self._pending.pop(op, None), error)
        else:
            self._fail(self._renewals.pop(client, None), error)
            self._fail(self._openings.pop(client, None), error)

    # -- answers in order ------------------------------------------------------------------------------------------------

    def _succeed(self, pending: Pending | None, result: Any) -> None:
        if pending is not None:
            pending.result = result
            self.journal.then(lambda: self._deliver(pending))

    def _fail(self, pending: Pending | None, error: XosError) -> None:
        if pending is not None:
            pending.error = error
            self.journal.then(lambda: self._deliver(pending))

    def _deliver(self, pending: Pending) -> None:
        if pending.box is not None:
            pending.box.answer(pending)
            return
        pending.done = True
        if pending.future is not None and not pending.future.done():
            pending.future.set_result(None)

    async def _wait(self, pending: Pending) -> Any:
        """Return when it is this answer's turn to be sent: the caller returns it without another await."""
        if not pending.done:
            pending.future = self._loop.create_future()
            try:
                await pending.future
            finally:
                pending.leave()
        if pending.error is not None:
            raise pending.error
        return pending.result

    async def ordered(self, result: T, call: ServerCall | None = None) -> T:
        """Return `result` when everything that it may have seen is on the disk; for a call on a session's connection, in its turn."""
        client = self._by_peer.get(call.peer) if call is not None else None
        pending = Pending(self._boxes.get(client) if client is not None else None)
        self._succeed(pending, result)
        await self._wait(pending)
        return result

    def _send_recall(self, effect: table.SendRecall) -> None:
        self.recalls += 1
        box = self._boxes.get(effect.client)
        if box is not None:
            recall = Recall(effect.seq, effect.ino, int(effect.level), effect.names)
            self.journal.then(lambda: box.recall(recall))

    # -- operations ------------------------------------------------------------------------------------------------------

    def ask(self, client: str, needs: Callable[[], tuple[Need, ...]], execute: Callable[[Allowed], Plan]) -> Awaitable[Any]:
        """Start an operation (now, in this very call); await the result for its answer.

        Raises (from the awaitable):
            FsError: as `needs` or `execute`, or EAGAIN: too many wait. SessionOver. Cancelling gives up waiting; what was done stays.
        """
        pending = Pending(self._boxes.get(client))
        pending.needs, pending.execute = needs, execute
        op = next(self._ops)
        try:
            needed = needs()
        except XosError as error:
            self._fail(pending, error)
            return self._wait(pending)
        self._pending[op] = pending
        self.feed(table.Ask(op, client, needed))
        return self._await_op(op, pending)

    async def _await_op(self, op: int, pending: Pending) -> Any:
        try:
            return await self._wait(pending)
        except asyncio.CancelledError:
            if self._pending.pop(op, None) is not None:
                self.feed(table.Drop(op))
            raise

    def new_epoch(self) -> int:
        """Return an epoch larger than every earlier one; durable before any answer that tells it."""
        if self._epoch + 1 >= self._epoch_end:
            self._epoch_end = self._epoch + EPOCH_STRIDE
            self.journal.execute(do.Epochs(self._epoch_end))
        self._epoch += 1
        return self._epoch

    # -- sessions --------------------------------------------------------------------------------------------------------

    def client_of(self, peer: Peer) -> str:
        """Return the session of a connection; SessionOver if it has none."""
        client = self._by_peer.get(peer)
        if client is None:
            raise SessionOver("no session is open on this connection", "open it first")
        return client

    def client_count(self) -> int:
        """Return how many sessions have a connection."""
        return len(self._boxes)

    async def attach(self, call: ServerCall, opening: table.Open) -> tuple[asyncio.Future[None], table.Opened]:
        """Open a session (again) on a connection; the one that it had before ends.

        Returns (a future that is done when another connection takes over, what the table says). SessionOver: not now, try later.
        """
        client = opening.client
        before = self._boxes.pop(client, None)
        if before is not None:
            self._by_peer.pop(before.call.peer, None)
            if not before.ended.done():
                before.ended.set_result(None)
        box = self._boxes[client] = Outbox(call)
        self._by_peer[call.peer] = client
        pending = self._openings[client] = Pending(box)
        self.feed(opening)
        try:
            opened = await self._wait(pending)
        except BaseException:
            self.detach(call, client)
            raise
        return box.ended, opened

    def detach(self, call: ServerCall, client: str) -> None:
        """The connection of a session is gone (unless another one has taken over)."""
        current = self._boxes.get(client)
        if current is not None and current.call is call:
            del self._boxes[client]
            self._by_peer.pop(call.peer, None)
            self._openings.pop(client, None)
            self.feed(table.Cut(client))

    def renew(self, client: str) -> Awaitable[Any]:
        """Renew a session; SessionOver if it is over."""
        pending = self._renewals[client] = Pending(self._boxes.get(client))
        self.feed(table.Renew(client))
        return self._wait(pending)

    @staticmethod
    def now_s() -> float:
        """The table's clock."""
        return now_s()

    def tick(self) -> None:
        """Let the table see the time; called some times a second."""
        if now_s() >= self.table.next_wake():
            self.feed(table.Tick())
