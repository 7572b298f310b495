"""Blocks that did not fit their sums: listed, logged, kept in the table of their disk."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from xtreemos.xtreemfs.osd.marks import damage_row, encode
from xtreemos.xtreemfs.osd.model import DamageRow, Key
from xtreemos.xtreemfs.osd.shelf import Shelf

log = logging.getLogger(__name__)

ROWS_MAX = 10_000
"""Rows kept in memory and told; more are counted."""

Commit = Callable[[Shelf, dict[bytes, bytes | None]], Awaitable[None]]


class Damage:
    """All damage that this OSD knows of. `count` counts each find since the start, `rows` are what is known now."""

    def __init__(self, shelves: Sequence[Shelf], commit: Commit) -> None:
        self.rows: dict[tuple[int, int, int], DamageRow] = {}
        self.count = 0
        self._commit = commit
        for shelf in shelves:
            for row in shelf.marks.damage():
                self._note(row)

    def _note(self, row: DamageRow) -> None:
        self.count += 1
        if len(self.rows) < ROWS_MAX:
            self.rows[row.ino, row.column, row.block] = row

    async def report(self, shelf: Shelf, rows: Sequence[DamageRow]) -> None:
        """Note, log and keep rows that are not known yet."""
        fresh = [row for row in rows if (row.ino, row.column, row.block) not in self.rows]
        for row in fresh:
            self._note(row)
            where = f"block {row.block} of column {row.column} of file {row.ino:x}"
            if row.kind == "damaged":
                log.error("%s is damaged", where)
            else:
                log.info("%s is torn: written, not synced, before a crash; taken as it is", where)
        try:
            await self._commit(shelf, {damage_row(Key(row.ino, row.column), row.block): encode(row) for row in fresh})
        except OSError as error:
            log.warning("damage could not be noted on the disk: %s", error)

    async def scrubbed(self, shelf: Shelf, key: Key, rows: Sequence[DamageRow]) -> None:
        """A scrub of a clean column found these and no others: what is damaged no more is forgotten."""
        bad = {row.block for row in rows}
        stale = [row for name, row in self.rows.items() if name[:2] == tuple(key) and row.block not in bad]
        for row in stale:
            del self.rows[row.ino, row.column, row.block]
        await self._commit(shelf, {damage_row(key, row.block): None for row in stale})
        await self.report(shelf, rows)

    def forget(self, inos: set[int]) -> None:
        """These files are gone."""
        for name in [name for name in self.rows if name[0] in inos]:
            del self.rows[name]
