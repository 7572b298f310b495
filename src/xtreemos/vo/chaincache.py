"""Certificate chains that were judged before, for who sees the same chain with each of a session's submissions. No I/O, no clock.

What is judged does not change with time but for validity, and that is an interval: a chain that was good at two moments was good at
every moment between them. So an entry is a chain and the span over which it was seen to be good; any other moment is judged anew.
Revocation is not looked at here, as in `x509`. Bad chains are not kept: they should cost who sends them more than us.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from xtreemos.fabric.caller import Caller
from xtreemos.vo.document import Trust
from xtreemos.vo.x509 import verify_user_x509

CHAINS_MAX = 1024


@dataclass(slots=True)
class _Good:
    caller: Caller
    issued_at: int
    first: int
    last: int


class ChainCache:
    """`verify_user_x509` with a memory, for one VO. A new trust document forgets everything."""

    def __init__(self) -> None:
        self._trust: Trust | None = None
        self._known: OrderedDict[tuple[bytes, ...], _Good] = OrderedDict()

    def verify(self, chain: Sequence[bytes], trust: Trust, now: int) -> tuple[Caller, int]:
        """Check a session's certificate; arguments, result and errors as `verify_user_x509`."""
        if trust is not self._trust:
            self._trust = trust
            self._known.clear()
        key = tuple(chain)
        good = self._known.get(key)
        if good is None or not good.first <= now <= good.last:
            caller, issued_at = verify_user_x509(chain, trust, now)
            good = _Good(caller, issued_at, min(now, good.first if good else now), max(now, good.last if good else now))
            self._known[key] = good
        self._known.move_to_end(key)
        if len(self._known) > CHAINS_MAX:
            self._known.popitem(last=False)
        return good.caller, good.issued_at
