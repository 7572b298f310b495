"""`xos fs top` and `osds`: what this node's mount does, and what the object servers have. Rates are differences of two looks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from xtreemos.cli import fs_text
from xtreemos.cli.fs_desk import Place
from xtreemos.errors import Unreachable
from xtreemos.xtreemfs.model import OSD_SILENT_S

EVERY_S = 1.0
RATES = {"requests": "requests", "read_bytes": "read", "written_bytes": "written"}
MOST = 5  # kinds of requests and of errors that are shown


async def osds(place: Place) -> list[dict[str, Any]]:
    """Return a row per object server: what the directory knows of it, by name."""
    status = await place.ask("status")
    return sorted(map(_osd_row, status["osd_records"]), key=lambda row: str(row["node"]))


def _osd_row(record: dict[str, Any]) -> dict[str, Any]:
    age_s = max(0, int(time.time()) - record["beat_at"])
    state = "silent" if age_s > OSD_SILENT_S else record["state"]
    return {**record, "state": state, "age_s": age_s, "used_bytes": record["total_bytes"] - record["free_bytes"]}


def osds_text(rows: list[dict[str, Any]]) -> str:
    """Return object servers for people."""
    lines = [
        (
            row["node"],
            row["state"],
            fs_text.size(row["used_bytes"]),
            fs_text.size(row["free_bytes"]),
            f"{row['age_s']} s ago",
            row["address"],
        )
        for row in rows
    ]
    return fs_text.table(("node", "state", "used", "free", "heard", "address"), lines)


def sample(status: dict[str, Any], before: dict[str, Any] | None, took_s: float) -> dict[str, Any]:
    """Return one row of `top`: counts, and (after a first look) rates per second."""
    copied = ("vo", "up_s", "errors", "bugs", "outstanding", "lock_waits", "inodes", "open_files", "locks", "mrcs")
    row = {name: status[name] for name in (*copied, "dirty_bytes", "ahead_bytes", "read_bytes", "written_bytes")}
    row["operations"], row["requests"] = status["requests"], sum(status["requests"].values())
    row["leases"] = sum(one["leases"] for one in status["mrcs"].values())
    row["osds"] = sorted(map(_osd_row, status["osd_records"]), key=lambda one: str(one["node"]))
    row["osd_links"] = status["osds"]
    if before is not None:
        now, then = ({**one, "requests": sum(one["requests"].values())} for one in (status, before))
        row["per_s"] = {word: round((now[name] - then[name]) / took_s, 1) for name, word in RATES.items()}
    return row


def _most(counts: dict[str, int]) -> str:
    """Return the largest counts by name."""
    rows = sorted(counts.items(), key=lambda row: -row[1])[:MOST]
    return ", ".join(f"{name} {count}" for name, count in rows)


def screen(row: dict[str, Any]) -> str:
    """Return a row of `top` for people."""
    rates = row.get("per_s") or dict.fromkeys(RATES.values(), 0.0)
    hours, minutes = divmod(row["up_s"] // 60, 60)
    bugs = f", {row['bugs']} bugs (see the log)" if row["bugs"] else ""
    waits = f", {row['lock_waits']} wait for locks" if row["lock_waits"] else ""
    lines = [
        f"VO {row['vo']} on this node, up {hours}:{minutes:02d}, {row['requests']} requests{bugs}",
        f"  {rates['requests']:.0f} requests/s, {row['outstanding']} under way{waits}; {_most(row['operations'])}",
        f"  read {fs_text.size(rates['read'])}B/s, written {fs_text.size(rates['written'])}B/s (to and from the object servers)",
        f"  {fs_text.size(row['dirty_bytes'])}B not yet sent, {fs_text.size(row['ahead_bytes'])}B read ahead, {row['open_files']} open files",
        f"  {row['inodes']} inodes known, {row['leases']} leases, {row['locks']} locks; errors told: {_most(row['errors']) or 'none'}",
        "",
    ]
    mrcs = [
        (name, "up" if one["up"] else "away", one["calls"], one["failures"], one["leases"], one["recalls"], one["waiting"])
        for name, one in sorted(row["mrcs"].items())
    ]
    if mrcs:
        lines += [fs_text.table(("metadata", "state", "calls", "failures", "leases", "recalls", "waiting"), mrcs), ""]
    rows = []
    for one in row["osds"]:
        link = row["osd_links"].get(one["node"], {"calls": 0, "failures": 0, "up": False})
        rows.append(
            (
                one["node"],
                one["state"],
                fs_text.size(one["used_bytes"]),
                fs_text.size(one["free_bytes"]),
                link["calls"],
                link["failures"],
            )
        )
    lines.append(fs_text.table(("objects", "state", "used", "free", "calls", "failures"), rows))
    return "\n".join(lines)


async def top(place: Place, *, once: bool, as_json: bool) -> None:
    """Show again and again what happens, until Ctrl-C. `once`: one look, with the rates of a second."""
    console = Console()
    live = Live(console=console, auto_refresh=False, screen=console.is_terminal) if not once and not as_json else None
    if live is None:
        await _look(place, lambda row: print(json.dumps(row) if as_json else screen(row), flush=True), once=once)
        return
    with live:
        await _look(place, lambda row: live.update(Text(screen(row)), refresh=True), once=False)


async def _look(place: Place, show: Callable[[dict[str, Any]], None], *, once: bool) -> None:
    before, at = None, time.monotonic()
    while True:
        try:
            status = await place.ask("status")
        except Unreachable:
            if before is None or once:
                raise
            await asyncio.sleep(EVERY_S)  # it starts again: a live view outlives that
            continue
        now = time.monotonic()
        if before is not None or not once:
            show(sample(status, before, max(now - at, 1e-3)))
        if once and before is not None:
            return
        before, at = status, now
        await asyncio.sleep(EVERY_S)
