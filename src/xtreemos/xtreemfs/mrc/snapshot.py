"""The store of an MRC that runs, as of its last commit: read-only, beside the process that has it open. For checks that stop nobody."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import lmdb

from xtreemos.errors import TryLater
from xtreemos.xtreemfs.mrc import machine
from xtreemos.xtreemfs.mrc.kv import Row

AGAIN_S: Final = 0.25


class Snapshot:
    """A `Kv` that cannot be changed. Hold it no longer than needed: meanwhile the store cannot use freed pages again."""

    def __init__(self, folder: Path) -> None:
        """Open what is committed in `folder/db`. lmdb.Error: there is no store, or it is damaged."""
        self._env = lmdb.open(str(folder / "db"), readonly=True, readahead=False, create=False)
        self._txn = self._env.begin()
        self.seq = machine.last_seq(self)

    def get(self, key: bytes) -> bytes | None:
        """See `Kv`."""
        return self._txn.get(key)

    def put(self, key: bytes, value: bytes) -> None:  # noqa: ARG002  # the interface
        """Never."""
        raise AssertionError("a snapshot cannot be changed")

    def delete(self, key: bytes) -> None:  # noqa: ARG002  # the interface
        """Never."""
        raise AssertionError("a snapshot cannot be changed")

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See `Kv`."""
        rows: list[Row] = []
        with self._txn.cursor() as cursor:
            if limit <= 0 or not cursor.set_range(start):
                return rows
            for key, value in cursor:
                if key >= end:
                    break
                rows.append((bytes(key), bytes(value)))
                if len(rows) >= limit:
                    break
        return rows

    def close(self) -> None:
        """Let go."""
        self._txn.abort()
        self._env.close()


async def wait_snapshot(folder: Path, seq: int, *, patience_s: float) -> Snapshot:
    """Return a snapshot that has command `seq` in it. TryLater: the MRC did not commit it in time."""
    end = time.monotonic() + patience_s
    while True:
        found = Snapshot(folder)
        if found.seq >= seq:
            return found
        found.close()
        if time.monotonic() > end:
            raise TryLater(f"the metadata server did not commit within {patience_s:g} s", "see its log, and try again")
        await asyncio.sleep(AGAIN_S)
