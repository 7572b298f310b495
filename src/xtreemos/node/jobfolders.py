"""What is left of ended jobs on a node's disk, and how long: a folder per attempt, JOBS/JOB.ATTEMPT.

A foreground job's folder goes as soon as its agent has everything; a detached job's output stays for `xos logs`, KEEP_S long and
for the KEEP_MAX latest. What a crash left behind goes after STRAY_S. A folder that jobd or xosd still knows is never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

KEEP_S = 24 * 3600.0
KEEP_MAX = 2000
STRAY_S = 600.0
MARKER = "jobd.json"  # there as long as jobd knows the job


@dataclass(frozen=True, slots=True)
class Folder:
    """One attempt's folder: `key` is JOB.ATTEMPT, `at` when it was last written to, `spooled` whether `xos logs` may ask for it."""

    key: str
    at: float
    spooled: bool


def superfluous(folders: Iterable[Folder], now_at: float, *, keep_s: float = KEEP_S, keep_max: int = KEEP_MAX) -> list[str]:
    """Return the keys of folders that nobody needs any more."""
    newest = sorted(folders, key=lambda one: -one.at)
    spooled = [one for one in newest if one.spooled]
    gone = [one.key for one in newest if not one.spooled and now_at - one.at > STRAY_S]
    return gone + [one.key for place, one in enumerate(spooled) if place >= keep_max or now_at - one.at > keep_s]


def scan(jobs: Path, known: Container[str]) -> list[Folder]:
    """Return the folders that neither jobd nor the caller (`known` keys) knows. Blocks: for a thread."""
    found = []
    with os.scandir(jobs) as entries:
        for entry in entries:
            marker, spool = Path(entry.path, MARKER), Path(entry.path, "spool", "stdout")
            with contextlib.suppress(FileNotFoundError):  # it went while we looked
                if entry.name not in known and entry.is_dir(follow_symlinks=False) and not marker.exists():
                    found.append(Folder(entry.name, entry.stat(follow_symlinks=False).st_mtime, spool.exists()))
    return found


def remove(jobs: Path, keys: Iterable[str]) -> None:
    """Delete folders; one that is gone is fine. Blocks: for a thread."""
    for key in keys:
        shutil.rmtree(jobs / key, ignore_errors=True)  # what stays for a full or broken disk goes at the next sweep
