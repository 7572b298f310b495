"""Everyday programs on XtreemFS, inside jobs on the nodes of a lab, timed beside the local disk: `python bench/fs_programs.py [--lab NAME] [--only NAME]`.

Each program is a list of bash scripts that check what they did (`set -e`); the first that fails fails the program, and the output is shown. On
XtreemFS a step runs in a job on its node, in a folder of alice's home; on the local disk all steps run here, one after the other or
together, as an unprivileged user. A program whose tool is not installed is told as left out. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xtreemos.testing.fsprograms import PROGRAMS, Program

ROOT = Path(__file__).resolve().parents[1]
LOCAL_UID = 65534
STEP_S = 900
TOOK = "XOS-TOOK"
PATHS = "/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class Place:
    """Where scripts run. `folder` is fresh for each program."""

    name = ""

    def run(self, node: str, script: str) -> tuple[float, int, str]:
        """Run a script; return seconds, exit code and what it printed."""
        text = f"set -e; umask 022; export PATH={PATHS} LC_ALL=C.UTF-8 GIT_CONFIG_GLOBAL=/dev/null; start=$EPOCHREALTIME\n{script}\necho {TOOK} $start $EPOCHREALTIME"
        try:
            done = subprocess.run(self.words(node, text), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=STEP_S, check=False, **self.how())  # fmt: skip
        except subprocess.TimeoutExpired as late:
            return STEP_S, 124, f"not done after {STEP_S} s: {late.stdout!r} {late.stderr!r}"
        took = [line.split() for line in done.stdout.splitlines() if line.startswith(TOOK)]
        said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(TOOK))
        return (float(took[0][2]) - float(took[0][1]) if took else 0.0), done.returncode, said

    def words(self, node: str, text: str) -> list[str]:
        """Return the words that run the script there."""
        raise NotImplementedError

    def how(self) -> dict[str, object]:
        """Return further arguments for `subprocess.run`."""
        return {}

    def fresh(self, folder: str) -> None:
        """Make the folder, empty, and stand in it."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove everything."""
        raise NotImplementedError


class LocalDisk(Place):
    """A folder on this machine's disk, as an unprivileged user."""

    name = "local"

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="xos-programs-", dir="/var/tmp"))
        os.chown(self.top, LOCAL_UID, LOCAL_UID)
        self.folder = self.top

    def fresh(self, folder: str) -> None:
        shutil.rmtree(self.folder, ignore_errors=True) if self.folder != self.top else None
        self.folder = self.top / folder
        self.folder.mkdir()
        os.chown(self.folder, LOCAL_UID, LOCAL_UID)

    def words(self, node: str, text: str) -> list[str]:  # noqa: ARG002  # there is one node
        return ["bash", "-c", text]

    def how(self) -> dict[str, object]:
        return {"cwd": self.folder, "user": LOCAL_UID, "group": LOCAL_UID, "extra_groups": (), "env": {"HOME": str(self.top)}}

    def close(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)


class Home(Place):
    """Alice's home in a lab, through jobs."""

    name = "XtreemFS"

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.top = f"programs-{os.getpid()}"
        self.folder = ""
        self._as_alice(f"mkdir {self.top}")

    def _as_alice(self, script: str) -> None:
        subprocess.run(self._enter("bash", "-c", script), check=True, stdin=subprocess.DEVNULL, timeout=STEP_S, **self.how())

    def _enter(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "xtreemos.lab.enter", "--name", self.lab, "n1", "--user", "alice", "--", *words]

    def fresh(self, folder: str) -> None:
        self._as_alice(f"cd {self.top} && rm -rf ./* && mkdir {folder}")
        self.folder = f"{self.top}/{folder}"

    def words(self, node: str, text: str) -> list[str]:
        return self._enter("bash", "-c", f'cd {self.folder} && exec xos run --node {node} -- bash -c "$1"', "bash", text)

    def how(self) -> dict[str, object]:
        return {"env": {**os.environ, "PYTHONPATH": str(ROOT / "src")}}

    def close(self) -> None:
        self._as_alice(f"rm -rf {self.top}")


def attempt(place: Place, program: Program, number: int) -> tuple[float, str]:
    """Run a program in a place; return the seconds of its timed steps, and what went wrong ("" if nothing)."""
    place.fresh(f"p{number}")
    total = 0.0
    for index, step in enumerate(program.steps):
        with ThreadPoolExecutor(len(step.scripts)) as pool:
            results = list(pool.map(lambda item: place.run(*item), step.scripts))
        for (node, _), (_, code, said) in zip(step.scripts, results, strict=True):
            if code:
                return total, f"step {index} on {node}: exit code {code}\n" + "\n".join(said.splitlines()[-15:])
        total += max(took for took, _, _ in results) if step.timed else 0.0
    return total, ""


def main() -> int:
    """Run what was asked for in both places; print a table. Exit code 1 if anything failed on XtreemFS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="default", help="a lab that is up (xos lab up --nodes 3 --core 1)")
    parser.add_argument("--only", action="append", default=[], help="programs whose name has this in it")
    parser.add_argument("--not-local", action="store_true", help="leave the local disk out")
    options = parser.parse_args()
    home, local = Home(options.lab), LocalDisk()
    failed = 0
    try:
        for number, program in enumerate(PROGRAMS):
            if options.only and not any(word in program.name for word in options.only):
                continue
            if shutil.which(program.tool) is None:
                print(f"{program.name:52} left out: no {program.tool} here", flush=True)
                continue
            here, trouble_here = (0.0, "") if options.not_local else attempt(local, program, number)
            start = time.monotonic()
            there, trouble = attempt(home, program, number)
            ratio = f"{there / here:7.1f}x" if here > 0 and not trouble_here else "       -"
            print(f"{program.name:52} local {here:7.2f} s  XtreemFS {there:7.2f} s {ratio}  {'FAILED' if trouble else 'ok'}"
                  f"{' (fails on the local disk, too)' if trouble_here else ''}  [{time.monotonic() - start:.1f} s]", flush=True)  # fmt: skip
            for line in trouble.splitlines() or (f"(local) {trouble_here}".splitlines() if trouble_here else ()):
                print(f"    {line[:200]}", flush=True)
            failed += bool(trouble)
    finally:
        home.close()
        local.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
