"""Where the running software lies on this machine: what every node of a lab must be able to see and execute."""

from __future__ import annotations

import sys
from pathlib import Path

import xtreemos


def checkout() -> Path:
    """Folder of the running software: what holds src/ and .venv/."""
    return Path(xtreemos.__file__).resolve().parents[2]


def search_path() -> str:
    """PATH of every process that enters a node."""
    return f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def visible_trees() -> list[Path]:
    """Folders that every user of a node must be able to read: the checkout, its environment and its Python."""
    wanted = [checkout(), Path(sys.prefix), Path(sys.base_prefix)]
    found: list[Path] = []
    for path in wanted:
        if path != Path("/usr") and not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found
