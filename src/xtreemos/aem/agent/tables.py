"""What the agent's commands print, and how they understand `kill`'s words. Rows in, text out; the clock is read for ages, nothing else.

A job's row is a map as `LocalJobs.usage` (node/jobs.py) makes it.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from xtreemos.aem.agent.nodes import Candidate
from xtreemos.errors import UsageError


def signal_words(words: list[str]) -> tuple[int, list[str]]:
    """Understand `[-SIG | -s SIG] JOB...` as kill does; returns (number, jobs)."""
    name, rest = "TERM", list(words)
    if rest and rest[0] in ("-s", "--signal") and len(rest) > 1:
        name, rest = rest[1], rest[2:]
    elif rest and rest[0].startswith("-") and rest[0] not in ("--", "-h", "--help"):
        name, rest = rest[0][1:], rest[1:]
    if rest[:1] == ["--"]:
        rest = rest[1:]
    if not rest or rest[0] in ("-h", "--help"):
        raise UsageError("no job given", "write: xos kill [-SIGNAL] JOB...")
    if name.isdigit() and 0 < int(name) <= 64:
        return int(name), rest
    try:
        return int(signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]), rest
    except KeyError:
        raise UsageError(f"{name!r} is no signal", "see `kill -l`") from None


def exit_code_of(record: dict[str, Any]) -> int:
    """Return what a shell would show for an exit record."""
    if record.get("code") is not None:
        return int(record["code"])
    if record.get("signal"):
        return 128 + int(record["signal"])
    return 75


def _age(row: dict[str, Any]) -> str:
    record = row.get("exit") or {}
    since = row.get("started_at") or record.get("started_at")
    if not since:
        return "-"
    seconds = max(0, int((record.get("ended_at") or time.time()) - since))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _mib(count: float) -> str:
    return f"{count / (1 << 20):.1f}M" if count < 1 << 30 else f"{count / (1 << 30):.1f}G"


def _state(row: dict[str, Any]) -> str:
    if row.get("state") in ("exited", "ended"):
        record = row.get("exit") or {}
        if record.get("signal"):
            return signal.Signals(int(record["signal"])).name.removeprefix("SIG").lower()
        return f"exit {record['code']}" if record.get("code") is not None else "lost"
    return str(row.get("state", "?"))


def ps_table(rows: list[dict[str, Any]], width: int | None) -> str:
    """Return the listing of `xos ps`; lines cut at `width` columns if it is a terminal."""
    lines = [f"{'JOB':<14} {'NODE':<10} {'STATE':<9} {'TIME':>8} {'CPU':>8} {'MEM':>8} COMMAND"]
    for row in rows:
        command = str(row.get("command", "")) + (f"   ({row['reason']})" if row.get("reason") else "")
        cpu = f"{float(row.get('cpu_s') or 0):.2f}s"
        lines.append(
            f"{row['job']:<14} {row.get('node') or '-':<10} {_state(row):<9} {_age(row):>8} {cpu:>8} {_mib(row.get('memory_bytes') or 0):>8} {command}"
        )
    return "".join(f"{line[:width] if width else line}\n" for line in lines)


def nodes_table(nodes: list[Candidate]) -> str:
    """Return the listing of `xos nodes`."""
    lines = [f"{'NODE':<12} {'CPUS':>5} {'LOAD':>6} {'MEMORY':>8} {'FREE':>8} {'ARCH':<8} {'JOBS':>5} {'TAKES':>5} TAGS"]
    for one in nodes:
        facts = one.facts
        lines.append(
            f"{one.node:<12} {facts.get('cpus', '?'):>5} {facts.get('load', 0):>6} {_mib(facts.get('memory', 0)):>8} {_mib(facts.get('memory_free', 0)):>8} "
            f"{facts.get('arch', '?'):<8} {one.running:>5} {one.free:>5} {','.join(facts.get('tags', []))}"
        )
    return "\n".join(lines) + "\n"


def top_screen(rows: list[dict[str, Any]], nodes: list[Candidate], width: int | None) -> str:
    """Return one screen of `xos top`."""
    cpus = sum(int(one.facts.get("cpus", 0)) for one in nodes)
    running = sum(one.running for one in nodes)
    head = f"xos top - {time.strftime('%H:%M:%S')}, {len(nodes)} nodes, {cpus} cores, {running} jobs running in the VO, {len(rows)} yours\n\n"
    busiest = sorted(rows, key=lambda row: -float(row.get("cpu_s") or 0))
    return head + nodes_table(nodes) + "\n" + ps_table(busiest, width)
