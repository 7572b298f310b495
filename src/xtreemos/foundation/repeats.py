"""What was said lately: so that a line that would come a thousand times is written once in a while. Pure; bounded memory."""

from __future__ import annotations

from collections.abc import Hashable


class Repeats:
    """Remembers at most `most` keys, each for `again_s` seconds; the oldest goes first."""

    def __init__(self, *, again_s: float, most: int) -> None:
        self._again_s = again_s
        self._most = most
        self._told: dict[Hashable, float] = {}

    def is_repeat(self, key: Hashable, now_s: float) -> bool:
        """Tell whether `key` was let through within the last `again_s`; if not, it counts as let through now."""
        told_s = self._told.get(key)
        if told_s is not None and now_s - told_s < self._again_s:
            return True
        while len(self._told) >= self._most:
            del self._told[next(iter(self._told))]
        self._told[key] = now_s
        return False
