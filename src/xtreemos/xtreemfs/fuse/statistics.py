"""What a session tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from xtreemos.xtreemfs.fuse.constants import Op


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start: `requests` by operation name, `errors` by errno name, `bugs` that became EIO; and what is so now."""

    requests: dict[str, int]
    errors: dict[str, int]
    bugs: int
    outstanding: int
    lock_waits: int
    payload_bytes: int
    paused: bool
    buffers_made: int
    notifications: int


def operation_name(opcode: int) -> str:
    """Return the name of an operation code, known or not."""
    try:
        return Op(opcode).name
    except ValueError:
        return f"operation {opcode}"
