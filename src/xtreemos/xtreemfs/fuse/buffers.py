"""Read buffers that are used again, but never while somebody still looks into one.

A bytearray cannot change its size while a memoryview of it exists. That is how `give_back` tells: it takes the last byte off and puts
it back, which costs nothing like a reallocation and fails if there is a view.
"""

from __future__ import annotations

IDLE_MAX = 8  # buffers kept for the next burst; memory bound: this many times the buffer size


class BufferPool:
    """Equal bytearrays of `size` bytes. One thread."""

    __slots__ = ("_idle", "made", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.made = 0
        self._idle: list[bytearray] = []

    def take(self) -> bytearray:
        """Return a buffer that nobody looks into."""
        if self._idle:
            return self._idle.pop()
        self.made += 1
        return bytearray(self.size)

    def give_back(self, buffer: bytearray) -> None:
        """Keep `buffer` for the next `take`, unless a view of it is still held or enough are idle: then it is let go."""
        if len(self._idle) < IDLE_MAX and is_free(buffer):
            self._idle.append(buffer)


def is_free(buffer: bytearray) -> bool:
    """Tell whether no memoryview of `buffer` exists."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True
