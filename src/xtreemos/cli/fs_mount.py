"""`xos fs mount` and `umount`: what root of a machine sees of node/mounts.py."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from xtreemos.cli import context, fs_desk, fs_text
from xtreemos.errors import UsageError
from xtreemos.node import mounts


def rows() -> list[dict[str, Any]]:
    """Return what is mounted by us, a row each."""
    return [
        {
            "dir": record.dir, "vo": record.vo, "volume": record.volume, "root_as": record.owner, "pid": record.pid, "since": int(record.since),
            "state": "mounted" if record.is_alive() else "dead",
        } for record in mounts.records(context.node_paths())
    ]  # fmt: skip


def text_of(found: list[dict[str, Any]]) -> str:
    """Return the rows for people."""
    lines = [(row["dir"], row["volume"], row["vo"], row["root_as"] or "-", row["pid"], row["state"]) for row in found]
    return (
        fs_text.table(("dir", "volume", "vo", "root as", "pid", "state"), lines)
        if lines
        else "nothing is mounted by `xos fs mount`"
    )


async def mount(vo: str | None, volume: str, folder: Path, *, root: bool, owner: str | None, read_only: bool) -> mounts.Record:
    """Mount a volume; see `mounts.start` for what may be refused."""
    place = fs_desk.choose(vo)
    found = {row["name"]: row for row in await place.ask("volumes")}
    if volume not in found:
        raise UsageError(f"there is no volume {volume[:64]!r}", "`xos fs volumes` lists them")
    if owner and not root:
        raise UsageError("--as goes with --root", "without it everybody acts as themselves")
    whose = (owner or str(found[volume]["owner"])) if root else ""
    if whose:
        await mounts.check_ticket(context.node_paths(), place.vo, whose)
    real = Path(os.path.realpath(folder))
    return mounts.start(context.node_paths(), vo=place.vo, volume=volume, folder=real, owner=whose, read_only=read_only)


async def umount(folder: Path, *, lazy: bool) -> str:
    """Unmount, and tell how it went; says meanwhile how much is still to be sent. MountBusy, NotWritten: it is still mounted."""
    where = os.path.abspath(folder)
    if not any(row["dir"] == where for row in rows()):  # a dead mount cannot be looked through: its own name first
        where = os.path.realpath(folder)
    line = _Line()
    try:
        alive = await mounts.end(context.node_paths(), mounts.find(context.node_paths(), where), lazy=lazy, tell=line.tell)
    finally:
        line.end()
    if not alive:
        return "its process had died: what programs had not synced may be lost"
    return "it ends when the last program has closed its files" if lazy else "all that was written is safe"


class _Line:
    """One line on a terminal that is written over; without a terminal a line every few seconds."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told_s = time.monotonic()
        self._shown = False

    def tell(self, left: int) -> None:
        """Show how many bytes are still to be sent."""
        words = (
            f"{fs_text.size(left)}B are still to be sent to the object servers"
            if left
            else "the object servers are writing to their disks"
        )
        if self._live:
            sys.stderr.write(f"\r\x1b[K{words}")
            sys.stderr.flush()
            self._shown = True
        elif time.monotonic() - self._told_s >= self.EVERY_S:
            self._told_s = time.monotonic()
            fs_text.note(words)

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
