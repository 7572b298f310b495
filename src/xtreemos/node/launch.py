"""`python -m xtreemos.node.launch V1DIR COMMAND...`: a mount namespace in which control groups are v2, then COMMAND in it.

On every current distribution /sys/fs/cgroup is pure v2 and nothing is done; see foundation/cgroups.py for the hybrid ones.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.foundation.cgroups import V2_MOUNT, make_private_view

CLONE_NEWNS = 0x00020000


def is_v2() -> bool:
    """Tell whether /sys/fs/cgroup is version 2, as every current distribution has it."""
    mounts = (line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return any(fields[4] == str(V2_MOUNT) and fields[fields.index("-") + 1] == "cgroup2" for fields in mounts)


def main() -> int:
    """Arrange the namespace and become the command; returns only if that fails."""
    if not is_v2():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            print(f"xos: cannot make a mount namespace: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return 1
        try:
            make_private_view(Path(sys.argv[1]))
        except XosError as error:
            print(f"xos: {error.line()}", file=sys.stderr)
            return 1
    try:
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  # becoming another program is what this one is for
    except OSError as error:
        print(f"xos: {sys.argv[2]}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
