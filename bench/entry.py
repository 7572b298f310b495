"""What a contender hands to the benchmark: entries to measure, and facts for the page. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from driver import Driver

Request = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much to measure: rounds, jobs, bytes, keystrokes a round, seconds."""

    rounds: int
    slow_rounds: int
    cold_rounds: int
    jobs: int
    plain_jobs: int
    batch_rounds: int
    pipe_bytes: int
    pipe_rounds: int
    echo_rounds: int
    keystrokes: int
    idle_s: float


LISTED = 1000


def listed(command: str, jobs: int) -> str:
    """Label of a listing row; only the full count bears the plain name, by which the goal finds it."""
    return command if jobs == LISTED else f"{command} ({jobs} jobs)"


FULL = Sizes(40, 30, 15, 1000, 200, 3, 1 << 30, 3, 10, 40, 10.0)
QUICK = Sizes(8, 3, 3, 100, 10, 1, 64 << 20, 2, 4, 25, 3.0)


@dataclass(slots=True)
class Entry:
    """One thing to measure again and again: a row of one table.

    `ask` is the request to the driver (with `op`), answered with `s` (seconds) or `samples` (list of seconds). `amount` is the
    jobs or bytes one measurement moves, for rates. `before` and `after` are requests made once around all rounds.
    """

    group: str
    label: str
    driver: Driver
    ask: Request
    rounds: int
    amount: int = 0
    before: Request | None = None
    after: Request | None = None
    samples: list[float] = field(default_factory=list)
    failure: str = ""


class Contender(Protocol):
    """One installation of one system, set up for the benchmark only."""

    name: str

    def open(self, work: Path, sizes: Sizes) -> None:
        """Install nothing; start everything. A failure raises and `close` is called all the same."""

    def entries(self) -> list[Entry]:
        """Return what it takes part in."""

    def facts(self) -> list[str]:
        """Return lines for the page: version, what it does and does not do."""

    def configuration(self) -> dict[str, str]:
        """Return the configuration files by name, as printed on the page."""

    def daemons(self) -> list[tuple[str, Driver]]:
        """Return (where, driver) for each place whose idle processes are to be weighed."""

    def close(self) -> None:
        """Stop everything and leave nothing behind."""
