"""Runs cases in one process: each in a folder of its own, many side by side so that the clock is waited for once for all of them.

A case is a generator of judged steps that pauses where it needs the clock of the file system to move on. Those that use helper
processes run alone, one after another.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from xtreemos.testing.posix.actors import ANSWER_S_MAX, Stuck, Troupe
from xtreemos.testing.posix.model import ROOT, Case, Outcome, Result, Step
from xtreemos.testing.posix.process import Place, Process

CASE_S_MAX = 60
PRETENDED_CASE_S_MAX = 2
"""A case with a call left out may wait for ever: for the other end of a pipe that was never opened."""
BLOCKED_S = 0.05
"""How long a call must go on waiting to count as blocked."""
TRACE_STEPS_MAX = 30


class TookTooLong(Exception):
    """A case was still running after CASE_S_MAX."""


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong


class Runner:
    """Runs cases below the tested folder.

    Args:
        process: makes the calls; its views say which folder is tested.
        prefix: name of this runner's own folder there; must exist.
        tick_s: how long the clock of the file system needs to move on, seconds.
        pretend: do not make the last call that changes anything, and say it went well: whoever passes then proves nothing.
    """

    def __init__(self, process: Process, prefix: str, tick_s: float, *, pretend: bool = False) -> None:
        self._process = process
        self._prefix = prefix
        self._tick_s = tick_s
        self.pretend = pretend
        self._troupe = Troupe(process)
        self._count = 0

    def run(self, cases: Sequence[Case]) -> Iterator[Result]:
        """Run cases together; results in no particular order."""
        signal.signal(signal.SIGALRM, _on_alarm)
        together = [one for one in cases if not one.uses_actors]
        active = [(one, running) for one in together for running in [_Running(self, one)]]
        while active:
            for _, running in active:
                running.go_on()
            yield from (running.result for _, running in active if running.result)
            active = [(one, running) for one, running in active if not running.result]
            if active:
                self._wait_tick()
        for one in cases:
            if one.uses_actors:
                yield self._alone(one)

    def _alone(self, one: Case) -> Result:
        running = _Running(self, one)
        running.go_on()
        while not running.result:
            self._wait_tick()
            running.go_on()
        return running.result

    def _wait_tick(self) -> None:
        select.select([], [], [], self._tick_s)  # nothing tells when a file system's clock moves on

    def close(self) -> None:
        self._troupe.close()

    def fresh(self) -> str:
        """Make a folder that everybody may write to; returns its name below the tested one."""
        self._count += 1
        name = f"{self._prefix}/c{self._count}"
        path = os.path.join(self._process.views.folder, name)
        os.mkdir(path)
        os.chown(path, self._process.facts.uid("owner"), self._process.facts.gid("team"))
        os.chmod(path, 0o777)  # noqa: S103  # every caller works here
        return name

    def remove(self, name: str) -> None:
        self._process.leave()
        shutil.rmtree(os.path.join(self._process.views.folder, name))

    def step(self, place: Place, step: Step) -> tuple[Outcome, str]:
        """Carry out one step and judge it."""
        try:
            outcome = self._by_actor(step) if step.actor else self._process.perform(place, step.call, step.args, step.who)
        except (TypeError, AssertionError, KeyError):
            if not self.pretend:
                raise
            return Outcome(errno.EINVAL), "what it needs was only pretended"
        if step.phase in {"begin", "blocked"}:
            return outcome, "" if not outcome.error else "it did not wait"
        if step.keep:
            place.slots[step.keep] = outcome.value
        return outcome, step.want.judge(outcome, place.slots)

    def _by_actor(self, step: Step) -> Outcome:
        actor = self._troupe.get(step.actor)
        if step.call == "die":
            self._troupe.drop(step.actor)
            return Outcome(0)
        if step.phase == "begin":
            actor.begin(step.call, step.args, step.who, step.keep)
            return Outcome(0)
        if step.phase == "blocked":
            return Outcome(int(actor.finished_within(BLOCKED_S)))
        if step.phase == "end":
            return actor.outcome()
        return actor.perform(step.call, step.args, step.who, step.keep)

    def prepare(self, one: Case, name: str) -> None:
        if one.uses_actors:
            self._process.leave()
            self._troupe.enter(name, {step.actor for step in one.steps if step.actor})


LOOKING = frozenset(
    [
        "lstat",
        "stat",
        "fstat",
        "fstatat",
        "names",
        "slurp",
        "tick",
        "birth",
        "umask",
        "close",
        "readlink",
        "readlinkat",
        "getacl",
        "getxattr",
        "lgetxattr",
        "listxattr",
        "access",
        "faccessat",
        "chdir",
        "opendir",
        "readdir",
        "readdir_sorted",
        "rewinddir",
        "seek_everywhere",
        "statvfs",
        "pathconf",
        "read",
        "pread",
        "peek",
        "lseek",
        "exec",
        "dup",
    ]
)
"""Calls that change nothing that a later call could see."""


def last_change(one: Case) -> int:
    """The index of the last step by which a case changes something, of users if there is one, else of root; -1 if it only looks."""
    acts = [number for number, step in enumerate(one.steps) if step.call not in LOOKING and step.phase == "run" and not step.actor]
    users = [number for number in acts if one.steps[number].who != ROOT]
    rest = [number for number in acts if one.steps[number].call != "make"]
    return (users or rest or [-1])[-1]


class _Running:
    """One case under way."""

    def __init__(self, runner: Runner, one: Case) -> None:
        self._runner = runner
        self._case = one
        self._next = 0
        self._checks = 0
        self._place: Place | None = None
        self._trace: list[str] = []
        self._left_out = last_change(one) if runner.pretend else -1
        self.result: Result | None = None

    def go_on(self) -> None:
        """Run to the next tick, or to the end; `result` is set then."""
        signal.setitimer(signal.ITIMER_REAL, PRETENDED_CASE_S_MAX if self._left_out >= 0 else CASE_S_MAX)
        try:
            problem = self._until_tick()
        except TookTooLong:
            problem = f"took longer than {CASE_S_MAX} s"
        except Stuck:
            problem = f"a helper process died, or gave no answer for {ANSWER_S_MAX:.0f} s"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if problem or self._next >= len(self._case.steps):
            self._end(problem)

    def _until_tick(self) -> str:
        if self._place is None:
            self._place = Place(self._runner.fresh())
            self._runner.prepare(self._case, self._place.name)
        while self._next < len(self._case.steps):
            step = self._case.steps[self._next]
            self._next += 1
            if step.call == "tick":
                return ""
            if self._next - 1 == self._left_out:
                outcome = Outcome(0)
                problem = step.want.judge(outcome, self._place.slots)
                self._place.slots[step.keep] = -1
            else:
                outcome, problem = self._runner.step(self._place, step)
            self._checks += 1
            self._trace.append(f"{step} -> {outcome}"[:300])
            if problem:
                return f"step {self._next}: {step}: {problem}"
        return ""

    def _end(self, problem: str) -> None:
        assert self._place is not None
        self._place.close()
        try:
            self._runner.remove(self._place.name)
        except OSError as refused:
            problem = problem or f"its folder could not be removed: {refused}"
        self.result = Result(self._case.id, problem, "", self._checks, tuple(self._trace[-TRACE_STEPS_MAX:]) if problem else ())
