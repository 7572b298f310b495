"""`xos doctor`: what this machine can do as part of a grid, what it lacks, what that costs, how to mend it."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtreemos.errors import EXIT_FAILURE
from xtreemos.foundation.doctor import Check
from xtreemos.foundation.doctor_probe import examine

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def table(checks: Sequence[Check]) -> Table:
    """Lay the rows out for a terminal; what to type stands on a line of its own. Text of the machine is never read as markup."""
    grid = Table.grid(padding=(0, 2))
    for check in checks:
        said = [check.detail, *([f"costs: {check.cost}"] if check.cost else []), *([f"mend:  {check.mend}"] if check.mend else [])]
        grid.add_row(Text(check.state, _COLOURS[check.state]), Text(check.name), Text("\n".join(said)))
    return grid


def summary(checks: Sequence[Check]) -> str:
    """Say in one line what the table means."""
    failed = [check.name for check in checks if check.state == "fail"]
    warned = [check.name for check in checks if check.state == "warn"]
    if failed:
        return f"This machine cannot be a node yet: mend {', '.join(failed)}."
    return f"This machine can be a node; less than all works: {', '.join(warned)}." if warned else "This machine can be a node."


def doctor(json: bool = False) -> int:
    """Check this machine and print the table; return 0 if nothing failed, else 1."""
    checks = list(examine())
    if json:
        print(json_module.dumps([asdict(check) for check in checks], indent=1))
    else:
        console = Console(highlight=False)
        console.print(table(checks))
        console.print(Text("\n" + summary(checks)))
    return EXIT_FAILURE if any(check.state == "fail" for check in checks) else 0
