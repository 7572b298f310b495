"""The driver of the store: commands in, and answers out in order, each not before everything that it has seen is on the disk.

Group commit without threads: what became ready in one turn of the event loop is executed, then synced together. A lone request is thus
synced at once. Only a disk whose syncs take long is synced in a thread, so that renewals are not held up by it. No decisions about
files here; whoever executes a command says `then(...)` what is to be done when it is durable.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from xtreemos.errors import XosError
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import machine
from xtreemos.xtreemfs.mrc.store import Store

log = logging.getLogger(__name__)

COMMIT_COMMANDS: Final = 50_000  # between commits of the store: replaying so many takes some seconds
COMMIT_S: Final = 5.0  # and a busy store is committed so often: a commit's length is what changed since the last
SLOW_SYNC_S: Final = 0.02  # a disk slower than this is synced in a thread; the hop costs 0.1 ms and more on a busy machine


class Journal:
    """See the module. `on_broken` is called once with the error when the disk fails: the process must end then."""

    def __init__(self, store: Store, on_broken: Callable[[XosError], None]) -> None:
        self.store = store
        self._loop = asyncio.get_running_loop()
        self._on_broken = on_broken
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._scheduled = False
        self._in_thread = False
        self._broken: XosError | None = None
        self._committed_s = time.monotonic()
        self.sync_s = 0.0
        """Moving average of how long a sync takes, seconds."""
        self.syncs = 0
        self.commands = 0

    def execute(self, command: do.Command) -> machine.Outcome:
        """Apply a command now; it is on the disk when a later `then` is called. Raises as `Store.execute`."""
        if self._broken is not None:
            raise self._broken
        try:
            outcome = self.store.execute(command)
        except XosError as error:
            if error.code == "mrc-store-broken":
                self._break(error)
            raise
        self.commands += 1
        self._schedule()
        return outcome

    def then(self, call: Callable[[], None]) -> None:
        """Call when everything executed so far is durable; calls keep their order. At once if nothing is waited for."""
        if not self._waiting and self.store.durable >= self.store.seq:
            call()
            return
        self._waiting.append((self.store.seq, call))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._in_thread:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._broken is not None:
            return
        started = time.monotonic()
        try:
            if self.store.durable < self.store.seq:
                if self.sync_s > SLOW_SYNC_S:
                    self._sync_in_thread(started)
                    return
                self.store.sync()
                self._measured(time.monotonic() - started)
            self._deliver()
            self._maybe_commit()
        except XosError as error:
            self._break(error)

    def _sync_in_thread(self, started: float) -> None:
        data, at, last = self.store.log.take()
        self._in_thread = True

        def done(future: asyncio.Future[None]) -> None:
            self._in_thread = False
            error = future.exception()
            if error is not None:
                self._break(error if isinstance(error, XosError) else XosError(str(error)))
                return
            self.store.log.landed(last)
            self._measured(time.monotonic() - started)
            self._deliver()
            if self.store.durable < self.store.seq:
                self._schedule()

        self._loop.run_in_executor(None, self.store.log.write_out, data, at).add_done_callback(done)

    def _measured(self, taken_s: float) -> None:
        self.syncs += 1
        self.sync_s += (taken_s - self.sync_s) / 16

    def _deliver(self) -> None:
        durable = self.store.durable
        while self._waiting and self._waiting[0][0] <= durable:
            self._waiting.popleft()[1]()

    def _maybe_commit(self) -> None:
        behind = self.store.seq - self.store.committed
        now = time.monotonic()
        if behind and (behind >= COMMIT_COMMANDS or now - self._committed_s >= COMMIT_S):
            self.store.commit()
            self._committed_s = now

    def tick(self) -> None:
        """Commit what is left over from busier times; called now and then."""
        if self._broken is None and not self._in_thread:
            try:
                self._maybe_commit()
            except XosError as error:
                self._break(error)

    def _break(self, error: XosError) -> None:
        if self._broken is None:
            self._broken = error
            self._waiting.clear()  # nobody may be told of what may not be on the disk
            log.error("%s", error.line())
            self._on_broken(error)

    def close(self) -> None:
        """Sync, deliver, commit and close the store. After a broken disk it only lets go."""
        if self._broken is None:
            self.store.sync()
            self._deliver()
        try:
            self.store.close()
        except XosError:
            if self._broken is None:
                raise
