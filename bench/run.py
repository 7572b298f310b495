"""`make bench`: XtreemOS and its peers side by side in one run, as ratios.

Every contender is set up for this run only, measured by the same program (`inner.py`) in turns (A B C A B C ...), and removed. Prints tables,
writes them into docs/benchmarks.md between its markers, and everything measured into build/bench/. `--quick` takes two minutes;
quick and partial runs leave the page alone unless `--write` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from driver import Driver, MeasureFailed
from entry import FULL, QUICK, Contender, Entry, Sizes
from packages import install_packages
from peers.crun import Crun, Local
from peers.ours import Ours
from peers.slurm import Slurm
from peers.ssh import Ssh
from stats import summarise, time_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
OUT = ROOT / "build" / "bench"
WAIT_S = {"batch": 900.0, "pipe": 300.0}
CONTENDERS: dict[str, Callable[[], Contender]] = {
    "xos": Ours,
    "ssh": Ssh,
    "slurm": lambda: Slurm(tuned=True),
    "slurm-plain": lambda: Slurm(tuned=False),
    "crun": Crun,
    "local": Local,
}


def main() -> int:
    """Parse options, measure, report. Exit code 1 if ours could not be measured."""
    options = parse()
    if os.geteuid() != 0:
        print("bench: needs root, for the network namespaces of the peers", file=sys.stderr)
        return 77
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that everything is taken down then too
        signal.signal(number, lambda got, _frame: sys.exit(128 + got))
    sizes = QUICK if options.quick else FULL
    install_packages()
    began = datetime.now(UTC)
    load_before = os.getloadavg()[0]
    OUT.mkdir(parents=True, exist_ok=True)
    remove_leftovers()
    work = Path(tempfile.mkdtemp(prefix=f"work-{os.getpid()}-", dir=OUT))
    contenders: list[Contender] = []
    problems: list[str] = []
    entries: list[Entry] = []
    daemons: list[dict[str, Any]] = []
    try:
        for key in options.only or CONTENDERS:
            start_contender(CONTENDERS[key](), work / key, sizes, contenders, problems)
        daemons = weigh(contenders, sizes)
        entries = [
            entry for contender in contenders for entry in contender.entries() if not options.group or entry.group in options.group
        ]
        for group in report.GROUPS:
            measure([entry for entry in entries if entry.group == group.key])
    finally:
        for contender in reversed(contenders):
            close(contender, problems)
        shutil.rmtree(work, ignore_errors=True)
    loads = (load_before, os.getloadavg()[0])
    text = page(entries, daemons, contenders, problems, began, loads, quick=options.quick)
    print(text)
    save(entries, daemons, problems, began)
    whole = not (options.quick or options.only or options.group)
    if options.write or whole:
        PAGE.write_text(report.splice(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
        print(f"\nwritten into {PAGE.relative_to(ROOT)}")
    return 0 if any(entry.label.startswith(report.OURS) and entry.samples for entry in entries) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, about two minutes; the page is not written")
    parser.add_argument("--write", action="store_true", help="write the page even if the run is quick or partial")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="only this contender (may be repeated)")
    parser.add_argument(
        "--group", action="append", choices=[group.key for group in report.GROUPS], help="only this table (may be repeated)"
    )
    return parser.parse_args()


def remove_leftovers() -> None:
    """Remove the folders of benchmarks that were killed; their processes and namespaces ended with them."""
    for folder in OUT.glob("work-*-*"):
        if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def start_contender(contender: Contender, work: Path, sizes: Sizes, started: list[Contender], problems: list[str]) -> None:
    """Open one contender. If it cannot be had, say why on the page and go on with the others."""
    began = time.perf_counter()
    work.mkdir()
    try:
        contender.open(work, sizes)
    except (RuntimeError, OSError, subprocess.SubprocessError, MeasureFailed) as error:
        problems.append(f"{contender.name}: not measured: {' '.join(str(error).split())[-500:]}")
        print(f"bench: {problems[-1]}", flush=True)
        close(contender, problems)
        return
    started.append(contender)
    print(f"bench: {contender.name} is ready after {time.perf_counter() - began:.1f} s", flush=True)


def close(contender: Contender, problems: list[str]) -> None:
    """Close one contender; trouble there must not keep the others from being closed, and is told."""
    try:
        contender.close()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        problems.append(f"{contender.name}: could not be taken down: {' '.join(str(error).split())[-300:]}")
        print(f"bench: {problems[-1]}", file=sys.stderr, flush=True)


def weigh(contenders: list[Contender], sizes: Sizes) -> list[dict[str, Any]]:
    """Memory and idle CPU of every daemon, before anything else has run on them."""
    found = []
    for contender in contenders:
        for where, driver in contender.daemons():
            skip = [str(Path(__file__).parent), "inner.py", "boxinit"]
            answer = driver.ask("daemons", wait_s=sizes.idle_s + 30, seconds=sizes.idle_s, skip=skip)
            found += [{"where": where, **row} for row in answer["rows"]]
    return found


def measure(entries: list[Entry]) -> None:
    """All rounds of one table, contenders taking turns; the order rotates, so that nobody always follows the same one."""
    for entry in entries:
        attempt(entry, entry.before, keep=False)
        if entry.group not in {"cold", "batch-one", "batch-array", "pipe-in", "pipe-out", "pipe-through"}:
            attempt(entry, entry.ask, keep=False)  # warm up
    for number in range(max((entry.rounds for entry in entries), default=0)):
        turn = number % len(entries)
        for entry in entries[turn:] + entries[:turn]:
            if number < entry.rounds:
                attempt(entry, entry.ask, keep=True)
    for entry in entries:
        attempt(entry, entry.after, keep=False)
        done = time_text(summarise(entry.samples).median) if entry.samples else f"failed: {entry.failure}"
        print(f"bench: {entry.group:13} {entry.label:32} {done}", flush=True)


def attempt(entry: Entry, request: dict[str, Any] | None, *, keep: bool) -> None:
    """Make one request of an entry. After a failure nothing more is asked: a half-broken row is not a result."""
    if request is None or (entry.failure and request is not entry.after):
        return
    try:
        answer = ask(entry.driver, request)
    except MeasureFailed as error:
        entry.failure = entry.failure or str(error)
        return
    if keep:
        entry.samples += answer["samples"] if "samples" in answer else [answer["s"]]


def ask(driver: Driver, request: dict[str, Any]) -> dict[str, Any]:
    return driver.ask(**request, wait_s=WAIT_S.get(request["op"], 120.0))


def page(
    entries: list[Entry],
    daemons: list[dict[str, Any]],
    contenders: list[Contender],
    problems: list[str],
    began: datetime,
    loads: tuple[float, float],
    *,
    quick: bool,
) -> str:
    """The generated part of docs/benchmarks.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=10
    )
    lines = [
        f"Measured {began:%Y-%m-%d %H:%M} UTC at commit {commit.stdout.strip() or 'unknown'}" + (" (quick run)." if quick else "."),
        "",
    ]
    lines += [f"- {text}" for text in report.machine()]
    lines += [
        f"- one-minute load average {loads[0]:.1f} before, {loads[1]:.1f} after (other work on the machine makes every row worse)"
    ]
    lines += [f"- {text}" for contender in contenders for text in contender.facts()]
    lines += [f"- **{text}**" for text in problems]
    lines += [
        "",
        "## Goals",
        "",
        report.table(["goal (DESIGN.md, section 9)", "limit", "measured", ""], report.goals_rows(entries)),
    ]
    for group in report.GROUPS:
        rows = report.group_rows(group, entries)
        if rows:
            lines += ["", f"## {group.title}", "", group.text, "", report.table(report.heads(group), rows)]
    if daemons:
        head = ["where", "process", "memory (PSS)", "CPU, idle"]
        lines += ["", "## Daemons at rest", "", report.table(head, report.daemon_rows(daemons))]
    lines += ["", "## Configurations", ""]
    for contender in contenders:
        for name, text in contender.configuration().items():
            lines += [f"### {contender.name}: {name}", "", "```", *text.splitlines(), "```", ""]
    return "\n".join(lines)


def save(entries: list[Entry], daemons: list[dict[str, Any]], problems: list[str], began: datetime) -> None:
    """Every sample, for later comparison: build/bench/DATE.json, and last.json beside it."""
    rows = [{"group": e.group, "label": e.label, "amount": e.amount, "samples": e.samples, "failure": e.failure} for e in entries]
    record = {"began": began.isoformat(), "machine": report.machine(), "entries": rows, "daemons": daemons, "problems": problems}
    text = json.dumps(record, indent=1)
    for name in (f"{began:%Y%m%dT%H%M%S}.json", "last.json"):
        (OUT / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
