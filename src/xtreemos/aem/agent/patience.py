"""How long to go on looking for a node that takes a program, and what to tell its user meanwhile. Pure: no clock, no I/O."""

from __future__ import annotations

from xtreemos.errors import XosError

FULL = frozenset({"node-full"})
AWAY = frozenset({"unreachable", "no-connection", "nodes-silent", "try-later", "jobd-restarted"})
SAY_AFTER_S = 1.0

Refusals = list[tuple[str, XosError]]


class Patience:
    """One search: full nodes are waited for without end, nodes that were there and are away for `away_s`, the others not at all."""

    def __init__(self, now_s: float, away_s: float) -> None:
        self.refusals: Refusals = []
        self._begun_s = now_s
        self._away_s = away_s
        self._away_since_s: float | None = None
        self._said = False

    @property
    def some_were_there(self) -> bool:
        """Whether nodes that match have been seen, so that no answer at all means that they are away."""
        return self._away_since_s is not None

    def lasts(self, refusals: Refusals, now_s: float) -> bool:
        """Tell whether to look again after these refusals ([]: no node answered)."""
        codes = {error.code for _node, error in refusals}
        if codes & FULL:
            self.refusals, self._away_since_s = refusals, None
            return True
        if codes & AWAY or (self.some_were_there and not refusals):
            self.refusals = refusals or self.refusals
            self._away_since_s = now_s if self._away_since_s is None else self._away_since_s
            return now_s - self._away_since_s <= self._away_s
        self.refusals = refusals
        return False

    def line(self, now_s: float) -> str | None:
        """Return what the user should read now: once, and not for a short wait."""
        if self._said or now_s - self._begun_s <= SAY_AFTER_S:
            return None
        self._said = True
        if not self.some_were_there:
            return f"xos: all {len(self.refusals)} matching nodes are full; waiting (Ctrl-C gives up)"
        nodes = ", ".join(node for node, error in self.refusals if error.code in AWAY)
        return f"xos: no contact with {nodes}; waiting (Ctrl-C gives up)"
