"""Notifications to the kernel, from threads of their own: a write of one may block for as long as any request holds a lock it needs.

Order is kept per key (an inode, or a directory for its entries): one key always goes to the same thread. Slots bound what waits, over
all threads. Futures belong to the event loop that made the Notifier.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import threading
from collections.abc import Sequence

from xtreemos.xtreemfs.fuse.errors import NotifyFailed, NotifyQueueFull, SessionEnded
from xtreemos.xtreemfs.fuse.model import Buffer

log = logging.getLogger(__name__)

CLOSE_WAIT_S = 5.0
_GONE = {errno.ENODEV, errno.ECONNABORTED, errno.EBADF, errno.EPERM}  # EPERM: the descriptor has no connection
Job = tuple[str, Sequence[Buffer], "asyncio.Future[bool]"]


class Notifier:
    """Sends notifications on `fd` by `threads` threads, at most `slots` waiting at a time."""

    def __init__(self, fd: int, *, threads: int, slots: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(slots)
        self._queues: list[queue.SimpleQueue[Job | None]] = [queue.SimpleQueue() for _ in range(threads)]
        self._threads: dict[int, threading.Thread] = {}
        self._closed = False
        self.sent = 0
        self.waiting = 0

    async def send(self, what: str, key: int, message: Sequence[Buffer]) -> None:
        """Wait for a slot, send, and return when the kernel has carried it out. Cancelled while it waits in line, it is sent all the same.

        Raises:
            NotifyFailed: the kernel refused.
            SessionEnded: the mount is gone.
        """
        await self.send_known(what, key, message)

    async def send_known(self, what: str, key: int, message: Sequence[Buffer]) -> bool:
        """Do what `send` does, and tell whether the kernel knew the inode or name."""
        await self._slots.acquire()
        return await self._enqueue(what, key, message)

    async def send_all(self, messages: Sequence[tuple[str, int, Sequence[Buffer]]]) -> None:
        """Send many, one after the other, in a thread of its own: what goes by `send` meanwhile is not held up. Raises as `send`."""
        await asyncio.to_thread(self._write_all, messages)

    def _write_all(self, messages: Sequence[tuple[str, int, Sequence[Buffer]]]) -> None:
        for what, _key, message in messages:
            try:
                os.writev(self._fd, list(message))
            except OSError as failed:
                if failed.errno in _GONE:
                    raise SessionEnded("the file system is not mounted any more") from failed
                if failed.errno != errno.ENOENT:  # the kernel does not know it, so there is nothing to drop
                    raise NotifyFailed(what, failed.errno or 0) from failed
            self.sent += 1

    def send_nowait(self, what: str, key: int, message: Sequence[Buffer]) -> asyncio.Future[bool]:
        """Enqueue at once; the future ends like `send`. Its failure is not reported if nobody awaits it.

        Raises:
            NotifyQueueFull: no slot is free.
        """
        if self._slots.locked():
            raise NotifyQueueFull("too many notifications wait for the kernel")
        self._take_slot()
        future = self._enqueue(what, key, message)
        future.add_done_callback(_look_at)
        return future

    def _take_slot(self) -> None:
        acquire = self._slots.acquire()
        try:
            acquire.send(None)  # a free semaphore is taken without waiting
        except StopIteration:
            return
        raise AssertionError("a free slot had to be waited for")

    def _enqueue(self, what: str, key: int, message: Sequence[Buffer]) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = self._loop.create_future()
        if self._closed:
            self._slots.release()
            future.set_exception(SessionEnded("the file system is not mounted any more"))
            return future
        index = key % len(self._queues)
        if index not in self._threads:
            self._threads[index] = threading.Thread(
                target=self._work, args=(self._queues[index],), name=f"fuse-notify-{index}", daemon=True
            )
            self._threads[index].start()
        self.waiting += 1
        self._queues[index].put((what, message, future))
        return future

    def _work(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            what, message, future = job
            error: Exception | None = None
            known = True
            try:
                os.writev(self._fd, list(message))
            except OSError as failed:
                if failed.errno in _GONE:
                    error = SessionEnded("the file system is not mounted any more")
                elif failed.errno == errno.ENOENT:
                    known = False  # the kernel does not know it, so there is nothing to drop
                else:
                    error = NotifyFailed(what, failed.errno or 0)
            try:
                self._loop.call_soon_threadsafe(self._finish, future, known, error)
            except RuntimeError:  # the loop is closed: nobody waits
                return

    def _finish(self, future: asyncio.Future[bool], known: bool, error: Exception | None) -> None:
        self.waiting -= 1
        self.sent += 1
        self._slots.release()
        if future.done():
            return
        if error is None:
            future.set_result(known)
        else:
            future.set_exception(error)

    async def close(self) -> None:
        """End the threads when they have sent what waits. One that the kernel holds fast is left behind after CLOSE_WAIT_S, with a log line:
        that takes a connection which was neither unmounted nor aborted.
        """
        self._closed = True
        for jobs in self._queues:
            jobs.put(None)
        deadline = self._loop.time() + CLOSE_WAIT_S
        for thread in self._threads.values():
            await asyncio.to_thread(thread.join, max(0.0, deadline - self._loop.time()))
            if thread.is_alive():
                log.warning("a notification is still stuck in the kernel; its thread is left behind")


def _look_at(future: asyncio.Future[bool]) -> None:
    """Mark a failure as seen: of a notification that nobody awaits, it is not worth a traceback."""
    if not future.cancelled():
        future.exception()
