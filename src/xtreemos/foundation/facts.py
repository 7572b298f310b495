"""What a node knows about itself: static resources, and load now. Probing only; nothing is decided here.

Names and units are those of the query language: `cpus` cores, `memory`, `disk`, `memory_free`, `disk_free` bytes, `load` running
processes (one-minute mean), `arch`, `kernel`, `os`, `gpus` count, `runtimes` and `tags` lists of words.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

RUNTIMES = (
    "python3",
    "bash",
    "perl",
    "gcc",
    "g++",
    "make",
    "java",
    "node",
    "ruby",
    "R",
    "julia",
    "go",
    "rustc",
    "docker",
    "podman",
    "mpirun",
)
_TAG = re.compile(r"[A-Za-z0-9_.:/+-]{1,64}")


def _meminfo() -> dict[str, int]:
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _os_name() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system().lower()
    return f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', '')}".rstrip("-")


def gpu_count() -> int:
    """Count GPUs: NVIDIA devices, else render nodes."""
    return len(glob.glob("/dev/nvidia[0-9]*")) or len(glob.glob("/dev/dri/renderD*"))


def read_tags(path: Path) -> list[str]:
    """Return the owner's free tags: words in a text file, `#` starts a comment; words that are no tag are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    words = (word for line in lines for word in line.partition("#")[0].split())
    return sorted({word for word in words if _TAG.fullmatch(word)})


def static_facts(node: str, state_dir: Path, tags_file: Path) -> dict[str, Any]:
    """Return what does not change while the node is up (but for the owner's tags)."""
    memory = _meminfo()
    disk = shutil.disk_usage(state_dir)
    return {
        "node": node,
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory["MemTotal"],
        "disk": disk.total,
        "arch": platform.machine(),
        "kernel": platform.release(),
        "os": _os_name(),
        "gpus": gpu_count(),
        "runtimes": [name for name in RUNTIMES if shutil.which(name)],
        "tags": read_tags(tags_file),
    }


def live_facts(state_dir: Path) -> dict[str, Any]:
    """Return what changes: load, free memory and disk."""
    memory = _meminfo()
    return {
        "load": round(os.getloadavg()[0], 2),
        "memory_free": memory.get("MemAvailable", 0),
        "disk_free": shutil.disk_usage(state_dir).free,
    }
