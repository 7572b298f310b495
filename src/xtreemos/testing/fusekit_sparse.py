"""Bytes with holes in memory: a file's content in blocks, of which absent ones are holes that read as zeros."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_BYTES = 64 * 1024
_ZEROS = memoryview(bytes(BLOCK_BYTES))


class Sparse:
    """Content of `size` bytes. Blocks keep their length, so views into them stay good until they are written."""

    def __init__(self) -> None:
        self.size = 0
        self._blocks: dict[int, bytearray] = {}

    @property
    def allocated_bytes(self) -> int:
        """Bytes of memory that the content takes."""
        return len(self._blocks) * BLOCK_BYTES

    def read(self, offset: int, length: int) -> list[memoryview]:
        """Return views of the bytes of the range that lie before the end."""
        parts = []
        for number, start, end in _pieces(offset, min(length, self.size - offset)):
            block = self._blocks.get(number)
            parts.append((_ZEROS if block is None else memoryview(block))[start:end])
        return parts

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes there; the file grows as needed."""
        done = 0
        for number, start, end in _pieces(offset, len(data)):
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = bytearray(BLOCK_BYTES)
            block[start:end] = data[done : done + end - start]
            done += end - start
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        """Cut off or grow by a hole."""
        if size < self.size:
            self.punch(size, self.size - size)
            for number in [n for n in self._blocks if n * BLOCK_BYTES >= size]:
                del self._blocks[number]
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Make zeros of a range; whole blocks become holes. The size stays."""
        for number, start, end in _pieces(offset, length):
            block = self._blocks.get(number)
            if block is None:
                continue
            if end - start == BLOCK_BYTES:
                del self._blocks[number]
            else:
                block[start:end] = bytes(end - start)

    def allocate(self, offset: int, length: int) -> None:
        """Make sure that no hole is in the range. The size stays."""
        for number, _, _ in _pieces(offset, length):
            self._blocks.setdefault(number, bytearray(BLOCK_BYTES))

    def seek(self, offset: int, *, data: bool) -> int | None:
        """Return the first offset from `offset` that is data (or a hole, of which one is at the end); None if there is none."""
        if offset >= self.size:
            return None
        number = offset // BLOCK_BYTES
        while number * BLOCK_BYTES < self.size:
            if (number in self._blocks) == data:
                return max(offset, number * BLOCK_BYTES)
            number += 1
        return None if data else self.size


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Split a range into rows of (block number, first byte in the block, byte after the last)."""
    end = offset + length
    while offset < end:
        number, start = divmod(offset, BLOCK_BYTES)
        stop = min(BLOCK_BYTES, start + end - offset)
        yield number, start, stop
        offset += stop - start
