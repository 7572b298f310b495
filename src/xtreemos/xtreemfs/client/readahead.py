"""When to fetch more of a file than was asked for: one planner for each open file. Pure.

The kernel reads ahead by itself, in requests of up to 1 MiB which may come out of order; so a read "goes on" if it begins near where the
furthest one ended. The window doubles while reads go on and shrinks to nothing when they jump. Blocks are `BLOCK_BYTES`, aligned, so that what
is fetched is a few large pieces over the stripe at the same time.
"""

from __future__ import annotations

BLOCK_BYTES = 1 << 20
WINDOW_BYTES_MAX = 8 << 20
NEAR_BYTES = 2 << 20  # how far out of order requests of one stream may come
STREAM_READS = 2  # so many reads that go on make a stream


class Planner:
    """The read pattern of one open file."""

    __slots__ = ("_furthest", "_planned", "_streak", "window_bytes")

    def __init__(self) -> None:
        self._furthest = 0
        self._planned = 0
        self._streak = 1  # a read at the very beginning is taken for the first of a stream
        self.window_bytes = 0

    def on_read(self, offset: int, length: int, size: int) -> range:
        """Note a read of `length` bytes at `offset` in a file of `size` bytes; return the blocks (numbers) to fetch now beyond it.

        A block is returned once for each stream.
        """
        end = offset + length
        if self._furthest - NEAR_BYTES <= offset <= self._furthest + NEAR_BYTES:
            if end > self._furthest:
                self._streak += 1
                self._furthest = end
        else:
            self._streak, self.window_bytes = 0, 0
            self._furthest = self._planned = end
        if self._streak < STREAM_READS:
            return range(0)
        self.window_bytes = min(max(self.window_bytes * 2, BLOCK_BYTES), WINDOW_BYTES_MAX)
        begin = max(self._planned, end) // BLOCK_BYTES * BLOCK_BYTES
        if begin < self._planned:
            begin += BLOCK_BYTES
        stop = min(end + self.window_bytes, size)
        if stop <= begin:
            return range(0)
        blocks = range(begin // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        self._planned = blocks.stop * BLOCK_BYTES
        return blocks
