"""`python -m xtreemos.xtreemfs.mrc.fsck FOLDER [--repair]`: check the store of an MRC that is not running, and mend it.

Exit code 0: sound (or made sound), 1: problems were found and not mended. What a damaged log holds beyond the damage cannot be played:
with --repair the MRC goes on from before it, and the log as it was is kept beside it for whoever wants to look.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.xtreemfs.mrc import checking
from xtreemos.xtreemfs.mrc import log as logs
from xtreemos.xtreemfs.mrc.disk import FolderDisk
from xtreemos.xtreemfs.mrc.errors import LogDamaged, StoreBroken
from xtreemos.xtreemfs.mrc.store import Lock, Store, open_store


def open_checked(folder: Path, *, repair: bool) -> Store:
    """Open the store of an MRC that does not run; the caller holds its `Lock`. Says on standard output what recovery did.

    Raises:
        LogDamaged, StoreBroken: the log cannot be played, and `repair` is False. With `repair` it goes on from before the damage.
    """
    try:
        return open_store(folder)
    except (LogDamaged, StoreBroken) as error:
        print(error.line())
        if not repair:
            raise
    kept = folder / f"log.damaged-{int(time.time())}"
    shutil.copytree(folder / "log", kept)
    disk = FolderDisk(folder / "log")
    torn = logs.salvage(disk)
    if torn is not None:
        print(f"the log goes on before command {torn.seq}; as it was it is kept in {kept}")
        return open_store(folder)
    for name in disk.names():  # it can be read and does not fit: what the store's last commit has is all there is
        disk.remove(name)
    print(f"the log does not fit the store, whose last commit is taken; the log is kept in {kept}")
    return open_store(folder)


def run(folder: Path, *, repair: bool) -> int:
    """Check (and mend) the store in `folder`; return the exit code.

    Raises:
        FolderInUse: the MRC is running. LogDamaged, StoreBroken: the log cannot be played, and `repair` is False.
    """
    lock = Lock(folder)
    try:
        store = open_checked(folder, repair=repair)
        try:
            if store.torn is not None:
                print(f"a torn tail of {store.torn.bytes} bytes was cut off the log (a crash; nothing acknowledged was in it)")
            if repair:
                count = checking.repair(store.kv, print)
                print(f"{count} problems, all mended" if count else "sound")
                return 0
            problems = checking.check(store.kv)
            for problem in problems:
                print(problem.text)
            print(f"{len(problems)} problems; --repair mends them" if problems else "sound")
            return 1 if problems else 0
        finally:
            store.close()
    finally:
        lock.close()


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="xtreemos.xtreemfs.mrc.fsck", description="Check the store of an MRC that is not running."
    )
    parser.add_argument("folder", type=Path, help="the MRC's --folder")
    parser.add_argument("--repair", action="store_true", help="mend what is found")
    found = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not (found.folder / "db").is_dir():
        parser.error(f"{found.folder} holds no MRC's store")
    try:
        return run(found.folder, repair=found.repair)
    except XosError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
