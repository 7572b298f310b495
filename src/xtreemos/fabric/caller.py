"""Who is calling: the answer of authentication, as every handler of every service gets it.

It knows no certificate, token or socket: the gate that verified those made it. A `Caller` that exists was verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CallerKind = Literal["anonymous", "user", "node", "local"]


@dataclass(frozen=True, slots=True)
class Caller:
    """One verified caller.

    `anonymous` proved nothing (only *open* methods), `user` and `node` hold a credential of VO `vo`, `local` is a process
    of this machine known by its Unix `uid` (from SO_PEERCRED; other kinds have None).
    """

    kind: CallerKind
    vo: str = ""
    name: str = ""
    sid: str = ""
    serial: int = 0
    uid: int | None = None
    roles: frozenset[str] = frozenset()
    address: str = ""
    """Where the connection comes from, for rate limits and the audit; never for a decision about rights."""

    def has_role(self, role: str) -> bool:
        """Tell whether a verified credential gives `role`."""
        return role in self.roles

    def __str__(self) -> str:
        """Say it as the audit does: `user alice@demo`, `node n2@demo`, `local uid 0`, `anonymous`."""
        if self.kind in ("user", "node"):
            return f"{self.kind} {self.name}@{self.vo}"
        return f"local uid {self.uid}" if self.kind == "local" else "anonymous"
