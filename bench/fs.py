"""The second half of `make bench`: XtreemFS beside the local file system, sshfs, GlusterFS and MooseFS, in one run over the same kind of cable.

Every contender is set up for this run only in network namespaces joined by a cable (ours: nodes of a lab), put through the same load (`fsload.py`)
in turns, and removed. Prints a table of rates and ratios and writes it into docs/benchmarks-files.md between its markers; raw
figures go to build/bench/fs.json. `--quick` uses small sizes. NFS is not here where the kernel has no NFS client.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import report
from packages import install_packages
from peers.filesystems import CONTENDERS, FileSystem

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks-files.md"
OUT = ROOT / "build" / "bench"
WARM = ("mdtest", "small", "write", "read", "programs")
LOAD_S = 1200


def main() -> int:
    """Measure, print, save. Exit code 1 if ours could not be measured."""
    options = parse()
    if os.geteuid() != 0:
        print("bench: needs root, for the network namespaces of the peers", file=sys.stderr)
        return 77
    scale = 0.1 if options.quick else 1.0
    install_packages()
    OUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"work-{os.getpid()}-", dir=OUT))
    load_before = os.getloadavg()[0]
    found: dict[str, dict[str, list[float]]] = {}
    problems: list[str] = []
    contenders: list[FileSystem] = []
    try:
        for name in options.only or CONTENDERS:
            contender = CONTENDERS[name]()
            try:
                contender.open(work / name)
            except (
                RuntimeError,
                OSError,
                subprocess.SubprocessError,
            ) as error:  # a peer that cannot be set up is told and left out
                problems.append(f"{contender.name} could not be set up: {error}")
                contender.close()
                continue
            contenders.append(contender)
        for turn in range(options.rounds):
            for contender in contenders[turn:] + contenders[:turn]:
                measure(contender, scale, options.group or WARM, found, problems)
        daemons = {contender.name: contender.memory_mib() for contender in contenders}
        facts = [contender.facts() for contender in contenders]
    finally:
        for contender in reversed(contenders):
            contender.close()
        shutil.rmtree(work, ignore_errors=True)
    text = page(found, daemons, facts, problems, (load_before, os.getloadavg()[0]), quick=options.quick)
    print(text)
    (OUT / "fs.json").write_text(json.dumps(found, indent=1))
    if options.write or not (options.quick or options.only or options.group):
        PAGE.write_text(report.splice(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0 if any(name.startswith("XtreemFS") for name in found) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes; the page is not written")
    parser.add_argument("--write", action="store_true", help="write the page even if the run is quick or partial")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--group", action="append", choices=WARM)
    return parser.parse_args()


def measure(
    contender: FileSystem,
    scale: float,
    groups: list[str] | tuple[str, ...],
    found: dict[str, dict[str, list[float]]],
    problems: list[str],
) -> None:
    """One turn of one contender: every group in a fresh folder; reads once warm (just written) and once cold."""
    rows = found.setdefault(contender.name, {})
    folder = contender.fresh_folder()
    for group in groups:
        print(f"bench: {contender.name}: {group}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            take(rows, contender.load(folder, group, scale, LOAD_S))
            if group == "read":
                contender.forget_caches()
                take(rows, {f"{name}, cold": rate for name, rate in contender.load(folder, group, scale, LOAD_S).items()})
        except (RuntimeError, subprocess.SubprocessError, ValueError) as error:
            problems.append(f"{contender.name}: {group} failed after {time.monotonic() - began:.0f} s: {str(error)[-300:]}")
    contender.remove_folder(folder)


def take(rows: dict[str, list[float]], rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        rows.setdefault(name, []).append(rate)


def page(
    found: dict[str, dict[str, list[float]]],
    daemons: dict[str, float],
    facts: list[str],
    problems: list[str],
    loads: tuple[float, float],
    *,
    quick: bool,
) -> str:
    """The page's text: one row a phase, one column a contender; the best of the networked ones in bold."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    names = list(found)
    phases = list(dict.fromkeys(phase for rows in found.values() for phase in rows))
    lines = [f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit}{' (quick run)' if quick else ''}.", ""]
    lines += [f"- {os.cpu_count()} cores, kernel {platform.release()}, load {loads[0]:.1f} before, {loads[1]:.1f} after"]
    lines += [f"- {fact}" for fact in facts]
    lines += ["", "Operations (or MiB, or runs a minute) per second, medians; more is better.", ""]
    lines += ["| phase | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for phase in phases:
        medians = [statistics.median(found[name][phase]) if found[name].get(phase) else None for name in names]
        best = max((value for name, value in zip(names, medians, strict=True) if value and name != "local"), default=None)
        cells = ["" if value is None else f"**{value:,.0f}**" if value == best else f"{value:,.0f}" for value in medians]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    lines += ["", "Memory of all daemons of a contender at the end, MiB: "]
    lines[-1] += ", ".join(f"{name} {mib:.0f}" for name, mib in daemons.items())
    lines += ["", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
