"""Group commit: whoever wants rows durable waits for the next commit, and one commit serves all who wait."""

from __future__ import annotations

import asyncio

from xtreemos.xtreemfs.osd.marks import Rows, Table


class Committer:
    """Commits rows of one table, in a thread, one commit at a time. Later rows of the same key replace earlier ones."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._waiting: dict[bytes, bytes | None] = {}
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.count = 0

    async def commit(self, rows: Rows) -> None:
        """Return when the rows are durable. OSError: they are not. Cancelling leaves them to be committed all the same."""
        if not rows:
            return
        self._waiting.update(rows)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        mine = self._next
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="osd commits")
        await asyncio.shield(mine)

    async def _run(self) -> None:
        try:
            while self._waiting and self._next is not None:
                rows, done = self._waiting, self._next
                self._waiting, self._next = {}, None
                try:
                    await asyncio.to_thread(self._table.commit, rows)
                    self.count += 1
                    done.set_result(None)
                except OSError as error:
                    done.set_exception(error)
                    done.exception()  # a waiter that was cancelled does not look
        finally:
            self._task = None

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._task is not None:
            await asyncio.wait([self._task])
