"""`python bench/fs_soak.py`: many programs on a real XtreemFS for long, with an OSD dead and one slow; then kills by the hundred.

First part: 24 programs on three mounts write and read each other's files; of four OSDs one is killed soon and comes back near the end, one is
stopped for most of each quarter of a second. Wanted: no call that takes longer than its deadline, no failure but of files on the dead OSD, no
byte that is wrong, a probe in another folder that is never held up, and neither memory nor descriptors that grow. Second part: as many
kills of mounts, MRC and OSDs as asked for; everything that was synced must be there. Exit code 0: all of it held.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from xtreemos.testing import fsjepsen_check as check
from xtreemos.testing.fsgrid import Process
from xtreemos.testing.fsjepsen import Plan, Report, Run, run
from xtreemos.testing.fsjepsen_net import CutGrid
from xtreemos.testing.fsjepsen_worker import content
from xtreemos.xtreemfs.model import VolumePolicy

SLOW_STOP_S, SLOW_GO_S = 0.2, 0.05
SAMPLE_S = 5.0
PROBE_S = 5.0
"""A folder that has nothing to do with the dead OSD answers within this, on a machine that is busy."""
GROWTH_MIB = 64
GROWTH_FDS = 40
"""Not of OSDs, which keep up to 1,024 columns open on purpose."""
KILLS = ("kill-mrc", "kill-mrc", "kill-osd", "kill-osd", "kill-osd", "kill-mount")
KILLS_PLAN_S = 60.0
KILLS_EVERY_S = 1.5
"""Mean time from a process that is back to the next kill: enough for the programs to get something done, so that there is something to lose."""


class Background(threading.Thread):
    """Does something at a pace until the end of a `with`."""

    def __init__(self, every_s: float) -> None:
        super().__init__(daemon=True)
        self.every_s = every_s
        self.over = threading.Event()
        self.failure = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        """See `threading.Thread`."""
        while not self.over.wait(self.every_s):
            try:
                self.step()
            except OSError as error:
                self.failure = self.failure or f"{type(self).__name__}: {error}"

    def step(self) -> None:
        """Once."""
        raise NotImplementedError


class Slow(Background):
    """Lets a process run for a fifth of the time."""

    def __init__(self, victim: Process) -> None:
        super().__init__(SLOW_GO_S)
        self.victim = victim

    def step(self) -> None:
        """See `Background`."""
        self.victim.send(signal.SIGSTOP)
        try:
            self.over.wait(SLOW_STOP_S)
        finally:
            self.victim.send(signal.SIGCONT)


class Probe(Background):
    """A shell in another folder: makes, lists and removes a name, and looks at the clock."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0.5)
        self.folder = folder
        self.longest_s = 0.0

    def step(self) -> None:
        """See `Background`."""
        begun = time.monotonic()
        (self.folder / "x").mkdir()
        list(self.folder.iterdir())
        (self.folder / "x").rmdir()
        self.longest_s = max(self.longest_s, time.monotonic() - begun)


class Sampler(Background):
    """Memory and descriptors of every process, now and then."""

    def __init__(self, processes: dict[str, Process]) -> None:
        super().__init__(SAMPLE_S)
        self.processes = processes
        self.rows: dict[str, list[tuple[int, int]]] = {name: [] for name in processes}
        """Name -> rows of (MiB, descriptors)."""

    def step(self) -> None:
        """See `Background`."""
        for name, process in self.processes.items():
            if pid := process.pid:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.rows[name].append((pages >> 8, len(list(Path(f"/proc/{pid}/fd").iterdir()))))

    def growth(self) -> dict[str, tuple[int, int]]:
        """Name -> how much more there was in the last quarter than in the second, by their medians."""
        found = {}
        for name, rows in self.rows.items():
            if len(rows) >= 8:
                quarter = len(rows) // 4
                before, after = rows[quarter : 2 * quarter], rows[-quarter:]
                found[name] = tuple(
                    int(statistics.median(row[at] for row in after) - statistics.median(row[at] for row in before)) for at in (0, 1)
                )
        return found  # type: ignore[return-value]  # two numbers each


class SoakRun(Run):
    """Programs that the run of a plan starts; judged here."""

    def judge(self, dead: str) -> Report:
        """Look at what they wrote down."""
        logs = [check.read_log(f"w{number}", self._log(number)) for number in range(self.plan.workers)]
        self.judge_calls(logs)
        wrong = check.check_soak(logs, dead)
        if wrong:
            self.report.problems.append(wrong)
        return self.report


def soak(seconds: float, *, workers: int, seed: int, pause_s: float) -> Report:
    """The first part."""
    with CutGrid(osds=4, mounts=3, policy=VolumePolicy(width=2, object_bytes=1 << 18)) as grid:
        plan = Plan("soak", seconds, workers, seed=seed, pause_s=pause_s)
        soaking = SoakRun(grid, plan, "soak")
        soaking.prepare()
        probe_folder = grid.paths[0] / "probe"
        probe_folder.mkdir()
        dead, slow = grid.osds[3], grid.osds[2]
        named = {"mrc": grid.mrc, "osd n1": grid.osds[0], "osd n2": grid.osds[1], "osd n3": slow} | {
            mounted.node: mounted for mounted in grid.mounts
        }
        begin = time.monotonic() + 0.3
        with Probe(probe_folder) as probe, Sampler(dict(named)) as sampler, Slow(slow):
            with soaking.programs(begin):
                soaking.rest_until(begin + seconds * 0.15)
                dead.kill()
                soaking.rest_until(begin + seconds * 0.85)
                dead.start()
                soaking.rest_until(begin + seconds)
                soaking.wait_workers()
            report = soaking.judge("n4")
        problems = report.problems
        problems += [thread.failure for thread in (probe, sampler) if thread.failure]
        if probe.longest_s > PROBE_S:
            problems.append(f"another folder was held up for {probe.longest_s:.1f} s")
        growth = sampler.growth()
        problems += [
            f"{name} grew by {mib} MiB, {fds} descriptors"
            for name, (mib, fds) in growth.items()
            if mib > GROWTH_MIB or (fds > GROWTH_FDS and not name.startswith("osd"))
        ]
        problems += check_all(grid.paths[1] / "soak" / "files")
        for mounted in grid.mounts:
            if status := mounted.ask("fs.status")["bugs"]:
                problems.append(f"{mounted.node}: {status} faults inside")
    sys.stdout.write(f"probe at most {probe.longest_s:.2f} s; growth (MiB, descriptors): {growth}\n")
    for at, when in ((0, "begin"), (-1, "end")):
        rows = ", ".join(f"{name} {rows[at]}" for name, rows in sampler.rows.items() if rows)
        sys.stdout.write(f"at the {when} (MiB, descriptors): {rows}\n")
    return report


def check_all(folder: Path) -> list[str]:
    """When the dead OSD is back, every file is whole."""
    wrong = []
    for path in folder.iterdir():
        if path.suffix != ".new":
            _who, tag, length = path.name.split(".")
            if path.read_bytes() != content(int(tag), int(length)):
                wrong.append(f"{path.name} is not what was written")
    return wrong


def kills(count: int, *, seed: int) -> tuple[int, Counter[str], list[str]]:
    """The second part: returns (kills, by kind, what was wrong)."""
    made: Counter[str] = Counter()
    done = 0
    while made.total() < count:
        plan = Plan("files", KILLS_PLAN_S, 6, KILLS, KILLS_EVERY_S, seed + made.total(), 0.01)
        appends = Plan("append", KILLS_PLAN_S, 16, KILLS, KILLS_EVERY_S, seed + made.total(), 0.02)
        for report in run([plan, appends], keep=Path(tempfile.gettempdir()) / "fsjepsen"):
            made.update(report.faults)
            done += report.done
            sys.stdout.write(f"{made.total()} kills, {done} operations done\n")
            sys.stdout.write(f"{report}\n")
            sys.stdout.flush()
            if report.problems:
                return made.total(), made, report.problems
    return made.total(), made, []


def main() -> int:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument(
        "--pause", type=float, default=0.05, dest="pause_s", help="mean rest of each program between its operations, s"
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    found = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts, processes and folders go
    problems: list[str] = []
    if found.seconds:
        report = soak(found.seconds, workers=found.workers, seed=found.seed, pause_s=found.pause_s)
        sys.stdout.write(f"{report}\n")
        problems += report.problems
    if found.kills:
        total, by_kind, wrong = kills(found.kills, seed=found.seed)
        sys.stdout.write(f"{total} kills {dict(by_kind)}: {wrong or 'nothing that was synced is lost'}\n")
        problems += wrong
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
