"""Which names the kernel may remember: those it must be told of when they change, and no others. No I/O, no clock.

Every answer that lets the kernel keep a name is noted, by directory. Notes lie in two generations; the older one is thrown away when the younger is
GENERATION_S old. So a note lives for one to two generations, longer than the kernel believes any answer (the rest of the session: less
than `lease.model.LEASE_S`). A note that outlives what the kernel knows costs one needless notification.
"""

from __future__ import annotations

from collections.abc import Sequence

GENERATION_S = 20.0
NOTES_MAX = 200_000  # of one generation, about 100 bytes each; beyond it the kernel is not allowed to keep names


class KernelNames:
    """See the module. Directories by inode number."""

    def __init__(self) -> None:
        self._young: dict[int, set[bytes]] = {}
        self._old: dict[int, set[bytes]] = {}
        self._count = 0
        self._since_s = 0.0

    def has_room(self, now_s: float) -> bool:
        """Whether the kernel may be given one more name to keep."""
        if now_s - self._since_s >= GENERATION_S:
            self._old, self._young, self._count, self._since_s = self._young, {}, 0, now_s
        return self._count < NOTES_MAX

    def note(self, folder: int, name: bytes) -> None:
        """The kernel may remember this name (or its absence) from now on."""
        names = self._young.get(folder)
        if names is None:
            names = self._young[folder] = set()
        if name not in names:
            names.add(name)
            self._count += 1

    def has(self, folder: int, name: bytes) -> bool:
        """Whether the kernel may remember this name."""
        return name in self._young.get(folder, ()) or name in self._old.get(folder, ())

    def forget(self, folder: int) -> None:
        """The kernel remembers no name of this directory any more."""
        self._count -= len(self._young.pop(folder, ()))
        self._old.pop(folder, None)

    def of(self, folder: int, names: Sequence[bytes] = ()) -> list[bytes]:
        """Return which of these names (of all in the directory, if none are given) the kernel may remember."""
        if names:
            return [name for name in names if self.has(folder, name)]
        return sorted(self._young.get(folder, frozenset()) | self._old.get(folder, frozenset()))
