"""`python -m xtreemos.foundation.jobd --run DIR --jobs DIR --tag TAG`: the parent of this node's jobs.

Started by the supervisor through `init --launch --subreaper`, which makes the containers' first processes jobd's own children.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.foundation.cgroups import Cgroups
from xtreemos.foundation.jobd.container import Runtime
from xtreemos.foundation.jobd.driver import Jobd
from xtreemos.foundation.tools import ToolMissing, crun_path, native


def command(run: Path, jobs: Path, tag: str) -> list[str]:
    """Return the command line with which a supervisor starts jobd."""
    init = native("init")
    if init is None:
        raise ToolMissing("the container init is not built", "run `make setup`")
    jobd = [sys.executable, "-m", "xtreemos.foundation.jobd", "--run", str(run), "--jobs", str(jobs), "--tag", tag]
    return [str(init), "--launch", "--subreaper", "--", *jobd]


def main() -> int:
    """Serve; 0 after SIGTERM, 1 when this machine cannot run jobs (one line says why)."""
    parser = argparse.ArgumentParser(prog="jobd")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--tag", required=True)
    args = parser.parse_args()
    try:
        init = native("init")
        if init is None:
            raise ToolMissing("the container init is not built", "run `make setup`")
        args.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        (args.run / "crun").mkdir(parents=True, exist_ok=True, mode=0o700)
        os.umask(0o077)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        runtime = Runtime(crun_path(), init, args.run / "crun")
        jobd = Jobd(args.run / "jobd.sock", args.jobs, runtime, Cgroups.detect(args.tag))
    except XosError as error:
        print(f"jobd: {error.line()}", file=sys.stderr)
        return 1
    gc.freeze()
    jobd.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
