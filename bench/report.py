"""Tables out of measured entries: for the terminal, for docs/benchmarks.md, and as JSON. No measuring here."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entry import Entry
from stats import Summary, ratio, summarise, three, time_text

OURS = "xos"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass(frozen=True, slots=True)
class Group:
    """One table: its entries' group key, title, unit ("time", "jobs", "bytes") and a line on what is measured."""

    key: str
    title: str
    unit: str
    text: str


GROUPS = (
    Group(
        "pty",
        "`true` on a terminal, start to exit",
        "time",
        "Client start to client exit, on a pseudo-terminal of 24 x 80; everything warm.",
    ),
    Group("plain", "`true` without a terminal, start to exit", "time", "The same with /dev/null as input and pipes as output."),
    Group("ps", "List of jobs", "time", "Start to exit of the listing command, 1,000 jobs unless said: ours ended, Slurm's held."),
    Group("batch-one", "Trivial jobs, submitted one by one", "jobs", "First submission started until the last job has ended."),
    Group("batch-array", "Trivial jobs, submitted as one array", "jobs", "As above, in one submission."),
    Group(
        "echo", "Keystroke to echo", "time", "One byte written to a raw terminal with `cat` at the far end, until it is read back."
    ),
    Group("pipe-in", "Throughput, here to there", "bytes", "Zeros into the remote program's standard input."),
    Group("pipe-out", "Throughput, there to here", "bytes", "Zeros from the remote program's standard output."),
    Group("pipe-through", "Throughput, through a remote `cat`", "bytes", "Both ways at once; the figure counts one way."),
    Group("kill", "Kill to gone", "time", "Start of the kill command until the foreground client of the job has ended."),
    Group(
        "cold",
        "First `true` on a terminal",
        "time",
        "Ours: the first program after a fresh log-in. ssh: a new connection each time.",
    ),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of DESIGN.md section 9: measured(medians by (group, label)) against a limit; `most` True = at most."""

    text: str
    measured: Callable[[dict[tuple[str, str], float]], float | None]
    limit: float
    most: bool
    unit: str = ""


def _against(group: str, ours: str, theirs: str) -> Callable[[dict[tuple[str, str], float]], float | None]:
    return lambda medians: ratio(medians.get((group, ours)), medians.get((group, theirs)))


GOALS = (
    Goal("`xos run -- true` on a terminal / multiplexed ssh", _against("pty", "xos run", "ssh, multiplexed"), 2, True, "x"),
    Goal("`xos run -- true` on a terminal / crun run", _against("pty", "xos run", "crun run"), 2, True, "x"),
    Goal("`xos run -- true` on a terminal / srun --pty, tuned", _against("pty", "xos run", "srun --pty, tuned"), 1, True, "x"),
    Goal("first program after log-in", lambda medians: medians.get(("cold", "xos run, after log-in")), 0.150, True, "s"),
    Goal("jobs a second, one array / tuned Slurm", _against("batch-array", "xos sub, array", "Slurm, tuned"), 10, False, "x"),
    Goal("jobs a second, one by one / tuned Slurm", _against("batch-one", "xos sub", "Slurm, tuned"), 3, False, "x"),
    Goal("list of 1,000 jobs", lambda medians: medians.get(("ps", "xos ps")), 0.100, True, "s"),
    Goal("kill to process gone", lambda medians: medians.get(("kill", "xos kill")), 0.020, True, "s"),
    Goal("keystroke to echo / ssh", _against("echo", "xos run", "ssh"), 1.5, True, "x"),
)


def medians_of(entries: Iterable[Entry]) -> dict[tuple[str, str], float]:
    """Median per (group, label): seconds, or jobs and bytes a second where an amount is known."""
    result = {}
    for entry in entries:
        if entry.samples:
            median = summarise(entry.samples).median
            result[entry.group, entry.label] = entry.amount / median if entry.amount else median
    return result


def goals_rows(entries: list[Entry]) -> list[list[str]]:
    """Rows of (goal, limit, measured, met?)."""
    medians = medians_of(entries)
    rows = []
    for goal in GOALS:
        value = goal.measured(medians)
        limit = f"{'<=' if goal.most else '>='} " + (time_text(goal.limit) if goal.unit == "s" else f"{three(goal.limit)} x")
        if value is None:
            rows.append([goal.text, limit, "not measured", "-"])
            continue
        shown = time_text(value) if goal.unit == "s" else f"{three(value)} x"
        rows.append([goal.text, limit, shown, "met" if (value <= goal.limit) == goal.most else "not met"])
    return rows


def group_rows(group: Group, entries: list[Entry]) -> list[list[str]]:
    """Rows of one table, ours first, then by median; a failed entry says why."""
    mine = [entry for entry in entries if entry.group == group.key]
    base = next((entry for entry in mine if entry.label.startswith(OURS) and entry.samples), None)
    ours = medians_of([base])[base.group, base.label] if base else None
    mine.sort(key=lambda entry: (not entry.label.startswith(OURS), summarise(entry.samples).median if entry.samples else 1e9))
    return [_row(group, entry, ours) for entry in mine]


def _row(group: Group, entry: Entry, ours: float | None) -> list[str]:
    if not entry.samples:
        return [entry.label, f"failed: {entry.failure[:160]}", "", "", ""]
    summary = summarise(entry.samples)
    against = ratio(ours, medians_of([entry])[entry.group, entry.label])
    shown = "-" if against is None else f"{three(against)} x"
    return [entry.label, *_figures(group, entry, summary), str(summary.count) + (" *" if entry.failure else ""), shown]


def _figures(group: Group, entry: Entry, summary: Summary) -> list[str]:
    if group.unit == "jobs":
        return [f"{three(entry.amount / summary.median)} jobs/s", f"{time_text(summary.median)} for {entry.amount}"]
    if group.unit == "bytes":
        return [f"{three(entry.amount / summary.median / 1e6)} MB/s", f"{three(entry.amount / summary.p95 / 1e6)} MB/s"]
    return [time_text(summary.median), time_text(summary.p95)]


def heads(group: Group) -> list[str]:
    """Column heads of a group's table."""
    columns = {"jobs": ["rate (median)", "time (median)"], "bytes": ["median", "slowest 5 %"], "time": ["median", "p95"]}
    return ["", *columns[group.unit], "n", "ours / this"]


def daemon_rows(daemons: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of (where, process, PSS, CPU), with a sum per place."""
    rows: list[list[str]] = []
    places: dict[str, list[dict[str, Any]]] = {}
    for item in daemons:
        places.setdefault(item["where"], []).append(item)
    for where, items in places.items():
        merged: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            merged.setdefault(item["name"], []).append(item)
        for name, same in sorted(merged.items()):
            label = name if len(same) == 1 else f"{name} ({len(same)})"
            rows.append([where, label, *_weight(same)])
        rows.append([where, "**all**", *_weight(items)])
    return rows


def _weight(items: list[dict[str, Any]]) -> list[str]:
    return [f"{three(sum(i['pss_bytes'] for i in items) / 1e6)} MB", f"{100 * sum(i['cpu'] for i in items):.1f} %"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    cells = [head, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> list[str]:
    """What the figures were taken on: rows of text."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0)
    system = next(
        (line.split("=", 1)[1].strip('"') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME=")), "Linux"
    )
    cgroup = "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1 and v2 mixed"
    virtual = "virtual machine" if "hypervisor" in " ".join(_lines("/proc/cpuinfo")) else "bare metal"
    return [
        f"{os.cpu_count()} cores of {cpu} ({virtual}), {memory:.0f} GiB memory, {system}, kernel {platform.release()}, cgroup {cgroup}",
        f"Python {platform.python_version()}",
    ]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def splice(page: str, generated: str) -> str:
    """Put `generated` between the page's markers.

    Raises:
        ValueError: the page lacks the markers.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n\n{generated.strip()}\n\n{END}{tail}"
