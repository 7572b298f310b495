"""How a supervisor starts jobd. Apart from jobd itself, which need not know where programs are found."""

from __future__ import annotations

import sys
from pathlib import Path

from xtreemos.foundation.tools import ToolMissing, crun_path, native


def init_path() -> Path:
    """Return the container init (native/init.c), which is also the launcher. Raises ToolMissing if it was not built."""
    init = native("init")
    if init is None:
        raise ToolMissing("the container init is not built", "install a C compiler and run `make setup`")
    return init


def command(run: Path, jobs: Path, tag: str) -> list[str]:
    """Return the command line of jobd: socket and crun's state in `run`, job folders in `jobs`, control groups named by `tag`.

    It must run in the node's mount namespace (`cgroups.make_private_view`), and gets a session keyring of its own.
    """
    init = str(init_path())
    jobd = [sys.executable, "-m", "xtreemos.foundation.jobd", str(run), str(jobs), tag, str(crun_path()), init]
    return [init, "--launch", "--subreaper", "--", *jobd]
