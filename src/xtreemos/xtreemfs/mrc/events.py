"""The stream of changes of each volume: a bounded memory of the last ones, and those who follow it.

Numbers are those of the log's commands, so they go on over restarts; what is not in memory any more is told as lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from xtreemos.xtreemfs.mrc.machine import Outcome
from xtreemos.xtreemfs.protocol import ChangeRow, Changes

KEPT_ROWS: Final = 65_536  # per volume
BATCH_ROWS: Final = 512  # in one EVENT


class Feed:
    """Changes of one volume."""

    def __init__(self, floor: int) -> None:
        self._rows: deque[ChangeRow] = deque()
        self._floor = floor
        """Changes up to this number are not kept (any more)."""
        self._more = asyncio.Event()

    def add(self, seq: int, outcome: Outcome) -> None:
        """Take what command `seq` changed."""
        for change in outcome.changes:
            self._rows.append(ChangeRow(seq, change.kind, change.ino, change.dir, change.name))
        while len(self._rows) > KEPT_ROWS:
            self._floor = self._rows.popleft().number
        self._more.set()

    def after(self, number: int, upto: int) -> Changes:
        """Return changes with larger numbers than `number`, at most about BATCH_ROWS, whole commands only, none beyond `upto`."""
        lost = number < self._floor
        rows: list[ChangeRow] = []
        for row in _from(self._rows, max(number, self._floor)):
            if row.number > upto or (len(rows) >= BATCH_ROWS and row.number != rows[-1].number):
                break
            rows.append(row)
        return Changes(tuple(rows), lost)

    @property
    def floor(self) -> int:
        """Changes after this number are kept."""
        return self._floor

    async def wait_more(self) -> None:
        """Wait until something was added."""
        self._more.clear()
        await self._more.wait()


def _from(rows: deque[ChangeRow], number: int) -> list[ChangeRow]:
    """Return the rows after a number; from the end, for followers are mostly up to date."""
    found: list[ChangeRow] = []
    for row in reversed(rows):
        if row.number <= number:
            break
        found.append(row)
    found.reverse()
    return found


class Events:
    """The feeds of all volumes."""

    def __init__(self, floor: int) -> None:
        self._floor = floor
        self._feeds: dict[int, Feed] = {}

    def note(self, volume: int, seq: int, outcome: Outcome) -> None:
        """Take what a command changed in a volume. A volume that nobody ever followed is remembered too: they may come."""
        self.feed(volume).add(seq, outcome)

    def feed(self, volume: int) -> Feed:
        """Return a volume's feed."""
        found = self._feeds.get(volume)
        if found is None:
            found = self._feeds[volume] = Feed(self._floor)
        return found

    def drop(self, volume: int) -> None:
        """The volume is gone."""
        self._feeds.pop(volume, None)
