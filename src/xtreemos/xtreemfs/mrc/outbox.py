"""What an operation leaves to be answered, and the answers of one session on their way out, in the order in which they were decided.

Knows neither leases nor the store: `leasing` decides, this only keeps the order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from xtreemos.errors import XosError
from xtreemos.fabric.rpc import ServerCall
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.lease.model import Give, Given, Need
from xtreemos.xtreemfs.protocol import Recall

Allowed = dict[int, table.Allowed]


class Plan(NamedTuple):
    """What an executed operation leaves: grants it wants, how its answer is made of what was granted, and events that follow."""

    gives: tuple[Give, ...]
    finish: Callable[[tuple[Given, ...]], Any]
    after: tuple[table.Event, ...] = ()


class Pending:
    """One answer that is waited for."""

    __slots__ = ("box", "done", "error", "execute", "finish", "future", "given_up", "needs", "result")

    def __init__(self, box: Outbox | None) -> None:
        self.box = box
        self.needs: Callable[[], tuple[Need, ...]] = tuple
        self.execute: Callable[[Allowed], Plan] | None = None
        self.finish: Callable[[tuple[Given, ...]], Any] | None = None
        self.done = False
        self.given_up = False
        self.result: Any = None
        self.error: XosError | None = None
        self.future: asyncio.Future[None] | None = None

    def leave(self) -> None:
        """Its task goes on: to send it, or because it was cancelled."""
        if not self.done:
            self.given_up = True
        elif self.box is not None:
            self.box.sent()


class Outbox:
    """What goes out on one session's connection, in the order in which it was decided.

    An answer is sent by its own task, a step of the loop after it is woken; until then (`busy`) nothing behind it may go.
    """

    def __init__(self, call: ServerCall) -> None:
        self.call = call
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when another connection of the same session took over."""
        self._queue: deque[Pending | Recall] = deque()
        self._busy = False
        self._scheduled = False

    def answer(self, pending: Pending) -> None:
        """It is decided. If its task has not waited yet it is running in this very step, and may send at once if nothing is before it."""
        if pending.future is None and not self._queue and not self._busy:
            pending.done = True
            return
        self._queue.append(pending)
        self.soon()

    def recall(self, recall: Recall) -> None:
        """It is decided. Never sent in this very step, for an answer before it may be on its way out of it."""
        self._queue.append(recall)
        self.soon()

    def soon(self) -> None:
        """Send what may be sent, after this step."""
        if not self._scheduled and self._queue:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and not self._busy:
            item = self._queue.popleft()
            if isinstance(item, Recall):
                self.call.send_event(item)
            elif not item.given_up:
                item.done = True
                if item.future is not None and not item.future.done():  # else its task is being cancelled
                    self._busy = True
                    item.future.set_result(None)

    def sent(self) -> None:
        """The answer that was woken goes out in this step."""
        self._busy = False
        self.soon()
