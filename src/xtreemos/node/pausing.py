"""A supervised service out of the way for a while: taken from the supervisor's list, which stops it in good order, and put back.

Whatever ends the block puts it back, Ctrl-C included. If this process is killed, `xos up` (or anything else that writes the list anew) does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator

from xtreemos.errors import TryLater
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import NodePaths
from xtreemos.node import start
from xtreemos.node.config import load_node
from xtreemos.node.supervise import read_pids

STOP_S = 30.0  # longer than the supervisor waits before it kills


@contextlib.contextmanager
def paused(paths: NodePaths, service: str) -> Iterator[None]:
    """Run the block while a service is stopped; on return the supervisor starts it.

    Raises:
        TryLater: it did not stop; it goes on. Signals that would end us wait until the service is put back.
    """
    held = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        row = read_pids(str(paths.run)).get(service)
        rows = [one for one in json.loads(paths.services.read_text()) if one["name"] != service]
        write_atomically(paths.services, json.dumps(rows, indent=1).encode())
        try:
            _nudge(paths)
            if row is not None:
                _wait_gone(int(row["pid"]), service)
            yield
        finally:
            start.refresh_services(paths, load_node(paths))
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _nudge(paths: NodePaths) -> None:
    supervisor = start.supervisor_pid(paths)
    if supervisor:
        os.kill(supervisor, signal.SIGHUP)


def _wait_gone(pid: int, service: str) -> None:
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([watched], [], [], STOP_S)[0]:
            raise TryLater(f"{service} did not stop within {STOP_S:g} s", "see its log")
    finally:
        os.close(watched)
