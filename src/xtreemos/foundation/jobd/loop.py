"""The event loop of jobd: descriptors, timers, children. Small on purpose: asyncio would double the memory of this process."""

from __future__ import annotations

import heapq
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial

from xtreemos.foundation.reaping import ended_children

Ready = Callable[[int], None]
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLERR | select.EPOLLHUP


class Loop:
    """One epoll set, one heap of timers, one table of children. Callbacks run one after the other and never wait."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._children: dict[int, Callable[[int], None]] = {}
        self._strays: dict[int, int] = {}  # status of children that ended before anybody asked for them
        self._running = True
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._wakeup = read_end
        self.register(read_end, READ, self._on_wakeup)

    def register(self, fd: int, mask: int, ready: Ready) -> None:
        """Call `ready(events)` when `fd` is; errors and hang-ups are reported even for mask 0."""
        self._epoll.register(fd, mask)
        self._ready[fd] = ready

    def modify(self, fd: int, mask: int) -> None:
        """Wait for something else on a registered descriptor."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Wait no longer; do this before closing the descriptor. Not registered: nothing happens."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, after_s: float, callback: Callable[[], None]) -> None:
        """Call once after `after_s` seconds; there is no cancelling, callbacks look whether they still mean something."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + after_s, self._timer_count, callback))

    def on_child(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended(wait status)` when child `pid` ends, at once if it has."""
        status = self._strays.pop(pid, None)
        if status is None:
            self._children[pid] = ended
        else:
            ended(status)

    def stop(self) -> None:
        """Return from `run` after the present callback."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop` or SIGTERM."""
        while self._running:
            for fd, events in self._epoll.poll(self._wait_s()):
                ready = self._ready.get(fd)  # an earlier callback of this round may have closed it
                if ready is not None and not _guarded(partial(ready, events)):
                    self.unregister(fd)  # or it would fail again and again
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _guarded(heapq.heappop(self._timers)[2])

    def _wait_s(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _on_wakeup(self, _events: int) -> None:
        numbers = os.read(self._wakeup, 4096)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stop()
        self._reap()

    def _reap(self) -> None:
        for pid, status in ended_children():
            ended = self._children.pop(pid, None)
            if ended is not None:
                _guarded(partial(ended, status))
                continue
            # containers' first processes become ours when crun ends; a short one is reaped before crun's pid file was read
            self._strays[pid] = status
            if len(self._strays) > 1024:
                self._strays.pop(next(iter(self._strays)))


def _guarded(callback: Callable[[], None]) -> bool:
    """Call; False after an unforeseen error, which is printed whole. One job's trouble must not end every job of the node."""
    try:
        callback()
    except Exception:  # noqa: BLE001  # the reason is the docstring
        traceback.print_exc(file=sys.stderr)
        return False
    return True
