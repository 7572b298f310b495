"""The ordered key-value interface that the machine works on, and the overlay that makes one command all or nothing.

Pure. `MemoryKv` is the one without a disk (tests, simulation); `store.LmdbKv` is the one that lasts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol

Row = tuple[bytes, bytes]


class Kv(Protocol):
    """Ordered map of bytes to bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None if there is none."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value."""

    def delete(self, key: bytes) -> None:
        """Remove the key if it is there."""

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """Return at most `limit` rows with start <= key < end, ascending."""


class MemoryKv:
    """A `Kv` in memory: a dict and its sorted keys."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self._keys = sorted(self.rows)

    def get(self, key: bytes) -> bytes | None:
        """See `Kv`."""
        return self.rows.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """See `Kv`."""
        if key not in self.rows:
            insort(self._keys, key)
        self.rows[key] = value

    def delete(self, key: bytes) -> None:
        """See `Kv`."""
        if self.rows.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See `Kv`."""
        first = bisect_left(self._keys, start)
        keys = self._keys[first : min(first + limit, bisect_left(self._keys, end))]
        return [(key, self.rows[key]) for key in keys]


class Overlay:
    """Changes of one command over a `Kv`: seen by its own reads at once, by the store when it is `flush`ed, or never."""

    def __init__(self, below: Kv) -> None:
        self._below = below
        self._changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """See `Kv`."""
        if key in self._changes:
            return self._changes[key]
        return self._below.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """See `Kv`."""
        self._changes[key] = value

    def delete(self, key: bytes) -> None:
        """See `Kv`."""
        self._changes[key] = None

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See `Kv`."""
        own = {key: value for key, value in self._changes.items() if start <= key < end}
        if not own:
            return self._below.scan(start, end, limit)
        rows = dict(self._below.scan(start, end, limit + len(own)))
        for key, value in own.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        return sorted(rows.items())[:limit]

    def flush(self) -> None:
        """Hand all changes down."""
        put, delete = self._below.put, self._below.delete
        for key, value in self._changes.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        self._changes.clear()

    def drop(self) -> None:
        """Forget all changes."""
        self._changes.clear()
