"""`python -m xtreemos.testing.posix DIR`: run the POSIX suite in a folder. Needs root; leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from xtreemos.testing.posix import known, report, suite
from xtreemos.testing.posix.execute import last_change
from xtreemos.testing.posix.model import UID_BASE_DEFAULT, Case
from xtreemos.testing.posix.pool import Plan, run

FAILURES_SHOWN_MAX = 200


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; see docs/reference/posix-suite.md."""
    parser = argparse.ArgumentParser(prog="python -m xtreemos.testing.posix", description=__doc__)
    parser.add_argument("folder", nargs="?", help="the folder to test: a mount of the file system, or anything below one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (default: one per core)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="ids that match or begin so; may be repeated"
    )
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every Nth case only, for a quick look")
    parser.add_argument("--list", action="store_true", help="print the ids and run nothing")
    parser.add_argument("--show", action="store_true", help="print the chosen cases with their steps and run nothing")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tap", action="store_true", help="Test Anything Protocol on standard output")
    form.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--trace", action="store_true", help="print the steps of failed cases")
    parser.add_argument(
        "--deviations",
        action="append",
        default=[],
        metavar="FILE",
        help="declared deviations, besides those we know of the file system",
    )
    parser.add_argument("--strict", action="store_true", help="a declared deviation that is not seen fails the run")
    parser.add_argument("--no-known", action="store_true", help="use no deviations but those of --deviations")
    parser.add_argument(
        "--tick-ms", type=float, default=12.0, help="how long the clock of the file system needs to move on (default: 12)"
    )
    parser.add_argument(
        "--uid-base", type=int, default=UID_BASE_DEFAULT, help="first of six numeric user and group ids that the suite uses"
    )
    parser.add_argument(
        "--pretend", action="store_true", help="leave out the last change of each case: a case that passes so proves too little"
    )
    chosen = parser.parse_args(argv)
    if chosen.folder is None and not (chosen.list or chosen.show):
        parser.error("which folder?")
    return chosen


def _show(cases: Sequence[Case], *, steps: bool) -> int:
    for one in cases:
        print(one.id)
        if steps:
            print("".join(f"    {step}\n" for step in one.steps), end="")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run what the command line says. Returns 0 if all is well, 1 after failures, 2 if it could not run."""
    said = options(argv)
    host = suite.host_facts(said.uid_base)
    cases = suite.chosen(list(suite.all_cases(host)), said.only)[:: said.sample]
    if said.pretend:  # a call left out may leave a helper process waiting for it
        cases = [one for one in cases if not one.uses_actors and last_change(one) >= 0]
    if said.list or said.show:
        return _show(cases, steps=said.show)
    if os.geteuid() != 0:
        print("the suite takes on other users' identities: run it as root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run's folder goes
    deviations = [one for path in said.deviations for one in known.parse(Path(path).read_text(encoding="utf-8"))]
    deviations += [] if said.no_known else known.for_folder(said.folder)
    started = time.monotonic()
    plan = Plan(said.folder, host, said.jobs, said.tick_ms / 1000, said.pretend)
    verdicts = sorted((report.judge(result, deviations) for result in run(plan, cases)), key=lambda one: one.result.id)
    seconds = time.monotonic() - started
    return _tell(said, verdicts, deviations, seconds)


def _tell(
    said: argparse.Namespace, verdicts: Sequence[report.Verdict], deviations: Sequence[known.Deviation], seconds: float
) -> int:
    stale = report.unused(verdicts, deviations) if said.strict else []
    if said.json:
        print(report.as_json(verdicts, seconds))
    elif said.tap:
        print("\n".join(report.tap(verdicts)))
    elif said.pretend:
        print("\n".join(one.result.id for one in verdicts if one.state == report.PASSED))
    else:
        lines = list(report.failures(verdicts, trace=said.trace))
        print("\n".join([*lines[:FAILURES_SHOWN_MAX], *report.summary(verdicts, seconds)]))
        for one in deviations:
            number = sum(v.state == report.DEVIATED and one.covers(v.result.id) for v in verdicts)
            if number:
                print(f"deviation, {number} cases {one.cases}: {one.reason}")
        for one in stale:
            print(f"not seen any more: deviation {one.cases}: {one.reason}")
    return 1 if stale or any(one.state == report.FAILED for one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
