"""`python -m xtreemos.foundation.jobd RUN JOBS TAG CRUN INIT`: the parent of this node's jobs.

Started by the supervisor with `launch.command`, through `init --launch --subreaper`, which makes the containers' first processes
jobd's own children. Arguments by position and few imports: this process lives as long as the node and should stay small.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.foundation.cgroups import Cgroups
from xtreemos.foundation.jobd.container import Runtime
from xtreemos.foundation.jobd.driver import Jobd


def main() -> int:
    """Serve; 0 after SIGTERM, 1 when this machine cannot run jobs (one line says why)."""
    run, jobs, tag, crun, init = sys.argv[1:]
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        runtime = Runtime(Path(crun), Path(init), Path(run) / "crun")
        Path(jobs).mkdir(parents=True, exist_ok=True)
        runtime.state_dir.mkdir(parents=True, exist_ok=True)
        jobd = Jobd(Path(run) / "jobd.sock", Path(jobs), runtime, Cgroups.detect(tag))
    except XosError as error:
        print(f"jobd: {error.line()}", file=sys.stderr)
        return 1
    gc.collect()
    gc.freeze()
    jobd.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
