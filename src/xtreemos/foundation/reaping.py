"""Which children have ended. Nothing but `os`: the supervisor uses it and must stay tiny."""

from __future__ import annotations

import os
from collections.abc import Iterator


def ended_children() -> Iterator[tuple[int, int]]:
    """Reap every child that has ended, without waiting: (pid, wait status) of each, orphans that came to us included.

    One is reaped only when the one before was dealt with, so that who is asked in between may look it up.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
