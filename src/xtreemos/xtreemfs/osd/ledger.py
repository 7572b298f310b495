"""Which columns have changes that are not on the disk, and which of them say so durably. Pure; no I/O, no clock.

A column that is not listed here is *clean*: either it has a durable clean mark, or nothing of it exists. Listed ones are dirty. A
durable mark is never cleaner than the column:

- before the first change of a column with a clean mark a dirty mark must be durable (`mark_needed`); a column without any mark needs
  none, for a column without a mark counts as dirty when it is found after a crash;
- `settling` takes columns whose changes are all on the disk and holds them until their clean marks are durable (`settled`); a change
  that comes meanwhile must wait (`is_settling`), or the clean mark would outlive it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xtreemos.xtreemfs.osd.model import Key, Mark


@dataclass(slots=True)
class _State:
    changes: int = 0
    done: int = 0
    """As many of the changes have ended; one may be under way, and a sync beside it does not cover it."""
    synced: int = 0
    """As many of the changes are on the disk."""
    changed_at_s: float = 0.0
    marked: bool = False
    """A dirty mark is durable, or there is no mark at all."""
    settling: bool = False
    lent: bool = False
    """A descriptor for writing was handed out and may still be in use."""


class Ledger:
    """See the module."""

    def __init__(self) -> None:
        self._dirty: dict[Key, _State] = {}

    def __len__(self) -> int:
        return len(self._dirty)

    def of_files(self, inos: set[int]) -> list[Key]:
        """Dirty columns of these files."""
        return [key for key in self._dirty if key.ino in inos]

    def unsure(self, sure: Iterable[Key]) -> list[Key]:
        """Dirty columns except those, and lent ones."""
        known = set(sure)
        return [key for key, state in self._dirty.items() if key not in known and not state.lent]

    def found(self, key: Key) -> None:
        """Start with a column that a crash left dirty."""
        self._dirty.setdefault(key, _State(changes=1, done=1, marked=True))

    def is_settling(self, key: Key) -> bool:
        """Whether its clean mark is on its way to the disk right now."""
        state = self._dirty.get(key)
        return state is not None and state.settling

    def is_listed(self, key: Key) -> bool:
        """Whether it is dirty."""
        return key in self._dirty

    def mark_needed(self, key: Key, mark: Mark | None) -> bool:
        """Whether a dirty mark must become durable before a change; `mark` is the durable one, asked for only if it is not listed here."""
        state = self._dirty.get(key)
        return not state.marked if state is not None else mark is not None

    def marked(self, key: Key) -> None:
        """A dirty mark is durable now, or there is none and none is needed."""
        self._dirty.setdefault(key, _State()).marked = True

    def changed(self, key: Key, now_s: float) -> None:
        """A change begins. The column is listed and marked."""
        state = self._dirty[key]
        assert state.marked, "a change before its mark"
        assert not state.settling, "a change that its clean mark would outlive"
        state.changes += 1
        state.changed_at_s = now_s

    def finished(self, key: Key) -> None:
        """The change that began last has ended, well or not."""
        state = self._dirty.get(key)
        if state is not None:
            state.done = state.changes

    def lend(self, key: Key, *, lent: bool) -> None:
        """A descriptor for writing is out, or is back."""
        if key in self._dirty:
            self._dirty[key].lent = lent

    def is_lent(self, key: Key) -> bool:
        """Whether somebody may be writing without telling us."""
        state = self._dirty.get(key)
        return state is not None and state.lent

    def lent(self) -> list[Key]:
        """All lent columns."""
        return [key for key, state in self._dirty.items() if state.lent]

    def changes(self, key: Key) -> int:
        """How many changes have ended; hand it to `synced` when what was there then is on the disk."""
        state = self._dirty.get(key)
        return state.done if state is not None else 0

    def synced(self, key: Key, changes: int) -> None:
        """The first `changes` changes are on the disk."""
        state = self._dirty.get(key)
        if state is not None:
            state.synced = max(state.synced, changes)

    def unsynced(self, before_s: float) -> dict[Key, int]:
        """Columns with changes that are not on the disk and began before that time, with how many of them have ended."""
        return {
            key: state.done for key, state in self._dirty.items() if state.synced < state.changes and state.changed_at_s <= before_s
        }

    def settling(self, before_s: float, refused: Iterable[Key] = ()) -> list[Key]:
        """Take what can get a clean mark: all changes on the disk, none since `before_s`, not lent, not in `refused`."""
        no = set(refused)
        taken = [
            key
            for key, state in self._dirty.items()
            if state.synced >= state.changes
            and state.changed_at_s <= before_s
            and not state.lent
            and not state.settling
            and key not in no
        ]
        for key in taken:
            self._dirty[key].settling = True
        return taken

    def settled(self, keys: Iterable[Key], *, durable: bool) -> None:
        """Their clean marks are durable: they are listed no more. If that failed they stay dirty, and what is durable is not known."""
        for key in keys:
            if durable:
                self._dirty.pop(key, None)
            elif key in self._dirty:
                self._dirty[key].settling = False
                self._dirty[key].marked = False

    def drop(self, key: Key) -> None:
        """The column is gone."""
        self._dirty.pop(key, None)
