"""A mount served by a thread of the test's own process, with its own event loop: so that a test may bring any handlers and call the session.

The test's thread may use the mount by system calls, which release the interpreter; not by memory mapping, whose page faults do not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.mounting import Mount, mount
from xtreemos.xtreemfs.fuse.options import MountOptions

T = TypeVar("T")
WAIT_S = 30.0


class ServedMount:
    """`with ServedMount(folder, handlers) as served:` mounts and unmounts. `call` runs a coroutine on the serving loop."""

    def __init__(self, folder: Path, handlers: Handlers, options: MountOptions | None = None, **how: Any) -> None:
        self.path = folder
        self.handlers = handlers
        self._options = options or MountOptions(source="fusekit", subtype="fusekit")
        self._how = how
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fusekit", daemon=True)
        self.mount: Mount | None = None

    @property
    def session(self) -> Session:
        """The session that serves it."""
        assert self.mount is not None
        return self.mount.session

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = WAIT_S) -> T:
        """Run `coroutine` on the serving loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def __enter__(self) -> ServedMount:  # noqa: PYI034  # Self needs no subclass here
        self._thread.start()
        try:
            self.mount = self.call(mount(self.path, self.handlers, self._options, **self._how))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            assert self.mount is not None
            self.call(self.mount.close())
        finally:
            self._end()

    def _end(self) -> None:
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()
