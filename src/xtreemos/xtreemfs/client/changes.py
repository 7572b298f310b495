"""The changes of one session that are under way: their numbers, which say to the MRC what was sent twice. No I/O, no clock.

A number is given once and lives until the change was answered or given up. What the MRC is told with each (`below`) lets it forget
answers: all changes with smaller numbers are over. See docs/protocols/mrc.md, "Changes that are sent again".
"""

from __future__ import annotations

import itertools

from xtreemos.xtreemfs.protocol import Once


class Change:
    """One change, until it is answered or given up."""

    __slots__ = ("_changes", "_life", "number")

    def __init__(self, changes: Changes, number: int) -> None:
        self._changes = changes
        self._life = 0
        self.number = number

    def once(self, *, uncertain: bool) -> Once:
        """Return what goes with it when it is sent (again). `uncertain`: it was sent before, and what became of that is not known.

        Then it stays a change of that life of the session; else nothing was done, and it is one of the present life.
        """
        if not uncertain:
            self._life = self._changes.life
        return Once(self._life, self.number, self._changes.below)


class Changes:
    """All of them. `life` is what the MRC said when the session was opened (`Welcome.life`)."""

    def __init__(self) -> None:
        self.life = 0
        self._numbers = itertools.count(1)
        self._open: dict[int, Change] = {}
        self._last = 0

    @property
    def below(self) -> int:
        """The smallest number that is not over."""
        return next(iter(self._open), self._last + 1)

    @property
    def span(self) -> int:
        """How many numbers there are from the oldest change under way on."""
        return self._last + 1 - self.below

    def begin(self) -> Change:
        """Begin a change. Always `end` it."""
        self._last = next(self._numbers)
        change = self._open[self._last] = Change(self, self._last)
        return change

    def end(self, change: Change) -> None:
        """It was answered, or nobody waits for its answer any more."""
        self._open.pop(change.number, None)
