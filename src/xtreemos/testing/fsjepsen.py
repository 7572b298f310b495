"""`python -m xtreemos.testing.fsjepsen WORKLOAD...`: programs on several mounts of one file system, faults, and a judge of what they were told.

The file system is real (`fsgrid`), the programs are processes of their own (`fsjepsen_worker`), each fault is drawn from a seed. What a run
brought is a `Report`; `problems` is empty if everything was as promised in docs/xtreemfs-promises.md. The seed makes the faults come
again in the same order, not the timing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from xtreemos.testing import fsjepsen_check as check
from xtreemos.testing.fsgrid import FsGrid, MountProcess, Process, wait_for
from xtreemos.testing.fsjepsen_net import CutGrid
from xtreemos.testing.fsjepsen_worker import content
from xtreemos.xtreemfs.model import VolumePolicy

WORKER = Path(__file__).with_name("fsjepsen_worker.py")
CALL_S = 33.0
"""A system call that took longer broke its promise: 15 s for the lease, 15 s for the data, and what a busy machine adds."""
END_S = 45.0
"""So long after the end every program is over, or hangs."""
FREEZE_S = 12.5
"""Longer than a lease."""
AWAY_S = 18.0
"""Longer than the deadline of a call."""
SLOTS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `workers` are spread over the mounts by turns."""

    workload: str
    seconds: float = 8.0
    workers: int = 6
    faults: tuple[str, ...] = ()
    every_s: float = 1.0
    """Mean time between faults."""
    seed: int = 0
    pause_s: float = 0.0
    """Mean rest of a worker between operations."""
    sync: bool = True
    how: str = "lockf"


@dataclass(slots=True)
class Report:
    """What a run brought."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    slowest: tuple[str, float] = ("", 0.0)
    warnings: list[str] = field(default_factory=list)
    """What the mounts had to complain of, with their names."""

    def __str__(self) -> str:
        head = f"{self.plan.workload} (seed {self.plan.seed}): {self.done} done, failed {dict(self.failed)}, faults {dict(self.faults)}"
        return "\n".join([f"{head}, slowest call {self.slowest[0]} {self.slowest[1]:g} s", *self.problems])


class Faults:
    """Makes faults on a grid, one at a time, until the end of a `with`; everything is well again afterwards."""

    def __init__(self, grid: CutGrid, kinds: Sequence[str], *, every_s: float, seed: str) -> None:
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.error: BaseException | None = None
        self._grid = grid
        self._kinds = kinds
        self._every_s = every_s
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")

    def __enter__(self) -> Self:
        if self._kinds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._kinds:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._random.expovariate(1 / self._every_s) if self._every_s else 0):
                self.one(self._random.choice(self._kinds))
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits for it
            self.error = error

    def one(self, kind: str) -> None:
        """Make one fault and mend it."""
        what, _dash, whom = kind.partition("-")
        victim = self._victim(whom)
        self.counts[kind] += 1
        self.story.append(f"{time.monotonic():.3f} {kind} {victim.log.stem}")
        match what:
            case "kill":
                victim.kill()
                self._rest(self._random.random() * 0.3)
                start(self._grid, victim)
            case "away":
                victim.kill()
                self._rest(AWAY_S)
                start(self._grid, victim)
            case "blink" | "freeze" | "stall":
                victim.pause()
                self._rest({"blink": self._random.random() * 2, "freeze": FREEZE_S, "stall": AWAY_S}[what])
                victim.resume()
            case "cut" | "isolate":
                assert isinstance(victim, MountProcess)
                self._grid.cut(victim)
                self._rest(self._random.random() * 2 if what == "cut" else FREEZE_S)
                self._grid.heal(victim)
            case _:
                raise ValueError(kind)
        self.story.append(f"{time.monotonic():.3f} mended")

    def _victim(self, whom: str) -> Process:
        victims: dict[str, list[Process]] = {"mrc": [self._grid.mrc], "osd": self._grid.osds, "mount": [*self._grid.mounts]}
        return self._random.choice(victims[whom])

    @staticmethod
    def _rest(seconds: float) -> None:
        time.sleep(seconds)


def start(grid: FsGrid, victim: Process) -> None:
    """Start a process that was killed."""
    victim.start()
    if victim is grid.mrc:
        wait_for(grid.mrc_socket.exists, "the MRC")


class Run:
    """One plan on one grid; the grid may have had others before, each works in a folder of its own."""

    def __init__(self, grid: CutGrid, plan: Plan, name: str) -> None:
        self.grid = grid
        self.plan = plan
        self.name = name
        self.logs = grid.folder / f"logs-{name}"
        self.report = Report(plan)
        self._popens: list[subprocess.Popen[bytes]] = []

    def folder(self, mount: int) -> Path:
        """The run's folder through one mount."""
        return self.grid.paths[mount] / self.name

    def prepare(self) -> None:
        """Make what the workers expect."""
        own = self.folder(0)
        own.mkdir()
        for name in ("names", "elect", "files"):
            (own / name).mkdir()
        for name, size in (("register", 4096), ("append", 0), ("counter", 8)):
            with (own / name).open("wb") as file:
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
        self.logs.mkdir()

    def go(self) -> Report:
        """Run it and judge it."""
        self.prepare()
        faults = Faults(self.grid, self.plan.faults, every_s=self.plan.every_s, seed=f"{self.plan.workload} {self.plan.seed}")
        begin = time.monotonic() + 0.3
        with self.programs(begin):
            with faults:
                self.rest_until(begin + self.plan.seconds)
            self.wait_workers()
            self._judge(faults)
        self.report.faults = faults.counts
        if self.report.problems:
            self.report.problems.append("\n".join(faults.story))
        return self.report

    @contextlib.contextmanager
    def programs(self, begin: float) -> Iterator[None]:
        """Start the workers, which begin at a time of CLOCK_MONOTONIC; none is left afterwards."""
        try:
            for number in range(self.plan.workers):
                self._popens.append(self._start_worker(number, begin))
            yield
        finally:
            for popen in self._popens:
                popen.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(5)  # one that cannot be killed is a finding, told elsewhere

    def _start_worker(self, number: int, begin: float) -> subprocess.Popen[bytes]:
        options = {
            "name": f"w{number}", "seed": self.plan.seed, "begin": begin, "end": begin + self.plan.seconds, "slots": SLOTS,
            "pause_s": self.plan.pause_s, "sync": self.plan.sync, "how": self.plan.how, "step_s": 0.1,
        }  # fmt: skip
        folder = str(self.folder(number % len(self.grid.mounts)))
        words = [sys.executable, "-S", str(WORKER), self._kind(number), folder, str(self._log(number)), json.dumps(options)]
        with (self.logs / f"w{number}.err").open("wb") as errors:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=errors)

    def _kind(self, number: int) -> str:
        kinds = self.plan.workload.split("+")  # "register+mapped": by turns
        return kinds[number // len(self.grid.mounts) % len(kinds)]

    def _log(self, number: int) -> Path:
        return self.logs / f"w{number}.log"

    @staticmethod
    def rest_until(at: float) -> None:
        """Sleep until a time of CLOCK_MONOTONIC."""
        time.sleep(max(0.0, at - time.monotonic()))

    def wait_workers(self) -> None:
        """Wait for the programs; one that does not end is a finding, one that cannot be killed another."""
        end = time.monotonic() + END_S
        for number, popen in enumerate(self._popens):
            try:
                code = popen.wait(max(0.1, end - time.monotonic()))
                if code:
                    words = (self.logs / f"w{number}.err").read_text()[-1500:]
                    self.report.problems.append(f"w{number} ended with {code}: {words}")
            except subprocess.TimeoutExpired:
                stack = Path(f"/proc/{popen.pid}/stack").read_text() if popen.poll() is None else ""
                popen.kill()
                try:
                    popen.wait(5)
                    self.report.problems.append(f"w{number} hung:\n{stack}")
                except subprocess.TimeoutExpired:
                    self.report.problems.append(f"w{number} hung and could not be killed:\n{stack}")

    # ------------------------------------------------------------------------------------------------------------- judging

    def _judge(self, faults: Faults) -> None:
        logs = [check.read_log(f"w{number}", self._log(number)) for number in range(self.plan.workers)]
        self.judge_calls(logs)
        report = self.report
        for mounted in self.grid.mounts:
            status = mounted.ask("fs.status")
            if status["bugs"]:
                report.problems.append(f"{mounted.node}: {status['bugs']} faults inside\n{mounted.text()[-3000:]}")
        for process in (self.grid.mrc, *self.grid.osds, *self.grid.mounts):
            at = process.text().find("Traceback")
            if at >= 0:
                report.problems.append(f"{process.log.stem} logged:\n{process.text()[max(0, at - 300) : at + 2500]}")
        if report.failed and not faults.counts:
            report.problems.append("calls failed without a fault")
        report.warnings = [
            f"{mounted.node}: {line}"
            for mounted in self.grid.mounts
            for line in mounted.text().splitlines()
            if " WARNING " in line or " ERROR " in line
        ]
        wrong = self._wrong(logs, faults)
        if wrong:
            report.problems.append(wrong)

    def judge_calls(self, logs: Sequence[check.Log]) -> None:
        """Count, and look for calls that took too long."""
        report = self.report
        for log in logs:
            report.done += sum(event.is_done for event in log.events)
            report.failed.update(f"{event.op[0]}: {os.strerror(event.error)}" for event in log.events if event.error)
            for what, seconds in log.slow:
                if seconds > report.slowest[1]:
                    report.slowest = (what, seconds)
                if seconds > CALL_S:
                    report.problems.append(f"{log.worker}: {what} took {seconds:g} s")

    def _wrong(self, logs: list[check.Log], faults: Faults) -> str:
        folder = self.folder(len(self.grid.mounts) - 1)
        kinds = " ".join(faults.counts)
        late = "osd" in kinds or "cut" in kinds or "isolate" in kinds
        match self.plan.workload.split("+")[0]:
            case "register" | "mapped":
                return check.check_register(logs, late=late)
            case "append":
                return check.check_appends(logs, (folder / "append").read_bytes(), torn="mount" in kinds or "osd" in kinds)
            case "names":
                return check.check_names(logs)
            case "elect":
                return check.check_elections(logs, os.listdir(folder / "elect"))
            case "locked":
                return check.check_locks(logs, int.from_bytes((folder / "counter").read_bytes(), "big"), late=late)
            case "files":
                return check_files(logs, folder / "files")
            case other:
                raise ValueError(other)


def check_files(logs: Sequence[check.Log], folder: Path) -> str:
    """Compare what is in a folder with what `Files` workers were promised; "": all of it is there."""
    expected = check.expected_files(logs)
    there = set(os.listdir(folder))
    for name, may in expected.items():
        if may is None:
            continue
        data = (folder / name).read_bytes() if name in there else None
        if not any(data is None if one is None else data == content(*one) for one in may):
            return f"{name} must be one of {may}, is {'not there' if data is None else f'{len(data)} bytes {data[:32]!r}'}"
    strange = there - set(expected)
    return f"nobody made {sorted(strange)[:5]}" if strange else ""


def run(plans: Sequence[Plan], *, mounts: int = 3, osds: int = 2, width: int = 2, keep: Path | None = None) -> list[Report]:
    """Carry out plans one after the other on one file system. `keep`: the logs of a run with problems are copied there."""
    policy = VolumePolicy(width=min(width, osds), object_bytes=1 << 18)
    reports = []
    with CutGrid(osds=osds, mounts=mounts, policy=policy, verbose=bool(os.environ.get("FSJEPSEN_VERBOSE"))) as grid:
        for number, plan in enumerate(plans):
            reports.append(Run(grid, plan, f"r{number}").go())
            if reports[-1].problems and keep is not None:
                target = keep / f"{plan.workload}-{plan.seed}"
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                for name in ("append", "counter", "register"):
                    shutil.copy(grid.paths[-1] / f"r{number}" / name, target / f"{name}.bytes")
                for path in (*grid.folder.glob("*.log"), *grid.folder.glob(f"logs-r{number}/*")):
                    shutil.copy(path, target / path.name)
    return reports


FAULTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "servers": ("kill-mrc", "kill-osd", "blink-mrc", "blink-osd"),
    "clients": ("kill-mount", "blink-mount", "freeze-mount"),
    "net": ("cut-mount", "isolate-mount"),
    "away": ("away-osd", "stall-osd"),
    "all": ("kill-mrc", "kill-osd", "blink-mrc", "blink-osd", "kill-mount", "blink-mount", "freeze-mount", "cut-mount", "isolate-mount"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run some by hand. Exit code 1: something is wrong."""
    parser = argparse.ArgumentParser(prog="xtreemos.testing.fsjepsen")
    parser.add_argument("workloads", nargs="+", help="register mapped register+mapped append names elect locked files")
    parser.add_argument("--faults", default="none", help=f"{' '.join(FAULTS)}, or kinds such as kill-mrc,freeze-mount")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--every", type=float, default=1.0, dest="every_s")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--pause", type=float, default=0.0, dest="pause_s")
    parser.add_argument("--plain", action="store_true", help="no fsync in registers")
    parser.add_argument("--how", default="lockf", choices=("lockf", "flock"))
    parser.add_argument("--warnings", action="store_true", help="show what the mounts complained of")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "fsjepsen", help="logs of runs with problems are copied there"
    )
    found: Any = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts, processes and folders go
    kinds = FAULTS.get(found.faults, tuple(found.faults.split(",")))
    plans = [
        Plan(workload, found.seconds, found.workers, kinds, found.every_s, found.seed, found.pause_s, not found.plain, found.how)
        for workload in found.workloads
    ]
    reports = run(plans, keep=found.keep)
    for report in reports:
        sys.stdout.write(f"{report}\n")
        if found.warnings:
            sys.stdout.write("".join(f"    {line}\n" for line in report.warnings))
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
