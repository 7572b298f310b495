"""Declared deviations of a file system: which cases may fail there, and why. Named, counted and printed; never hidden.

A file is TOML: `[[deviation]]` tables with `cases` (a pattern as of a shell, over ids) and `reason` (one sentence). Files of common
file systems are in the folder `deviations`; `--deviations` names others.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "deviations"


@dataclass(frozen=True, slots=True)
class Deviation:
    """A pattern over ids and the reason why cases that match may fail."""

    cases: str
    reason: str
    _pattern: re.Pattern[str]

    def covers(self, name: str) -> bool:
        return self._pattern.match(name) is not None


def parse(text: str) -> tuple[Deviation, ...]:
    """Read a file of deviations. Raises ValueError if an entry lacks its pattern or its reason."""
    found = []
    for entry in tomllib.loads(text).get("deviation", []):
        if set(entry) != {"cases", "reason"} or not entry["reason"].strip():
            raise ValueError(f"a deviation needs `cases` and a `reason`: {entry}")
        found.append(Deviation(entry["cases"], entry["reason"], re.compile(fnmatch.translate(entry["cases"]))))
    return tuple(found)


def file_system(folder: str) -> str:
    """The kind of file system of a folder as `stat -f` calls it, such as "tmpfs", "ext2/ext3" or "fuseblk"."""
    return subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()


def for_folder(folder: str) -> tuple[Deviation, ...]:
    """The deviations that we know of a folder's file system; none for one that we do not know."""
    path = HERE / f"{file_system(folder).partition('/')[0]}.toml"
    return parse(path.read_text(encoding="utf-8")) if path.exists() else ()
