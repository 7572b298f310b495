"""Runs many cases in several worker processes and gathers their results; prepares the views of the tested folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.calls import vocabulary
from xtreemos.testing.posix.execute import Runner
from xtreemos.testing.posix.model import Case, Facts, Result
from xtreemos.testing.posix.process import Call, Process, Views

TOGETHER = 96
"""Cases that a worker runs side by side; each may hold a few descriptors."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: what is tested, as whom, how."""

    folder: str
    facts: Facts
    jobs: int = 2
    tick_s: float = 0.012
    pretend: bool = False


class _Worker:
    """What lives in a worker process between batches."""

    def __init__(self, plan: Plan, cases: Sequence[Case], run_folder: str, parent: str, calls: Mapping[str, Call] | None) -> None:
        self._cases = cases
        self._views, self.privileges = _views(run_folder, parent)
        process = Process(plan.facts, self._views, calls or vocabulary())
        prefix = f"w{os.getpid()}"
        os.mkdir(os.path.join(run_folder, prefix), 0o755)
        os.chmod(os.path.join(run_folder, prefix), 0o755)  # noqa: S103  # callers walk through it
        self._runner = Runner(process, prefix, plan.tick_s, pretend=plan.pretend)

    def run(self, numbers: Sequence[int]) -> list[Result]:
        wanted = [self._cases[number] for number in numbers]
        lacking = [one for one in wanted if one.needs and one.needs not in self.privileges]
        results = [Result(one.id, skipped=f"this host does not allow: {one.needs}") for one in lacking]
        try:
            return results + list(self._runner.run([one for one in wanted if one not in lacking]))
        finally:
            self._runner.close()


_worker: _Worker | None = None


def _views(run_folder: str, parent: str) -> tuple[Views, frozenset[str]]:
    """Make the views below `parent` in a mount namespace of this process; without the privilege only the plain one."""
    privileges = set()
    views = Views(run_folder, run_folder)
    with contextlib.suppress(PermissionError):  # a container without CAP_SYS_ADMIN: cases that need it are skipped by name
        libc.own_mount_namespace()
        libc.mount("views", parent, "tmpfs", libc.MS_NOSUID)
        os.chmod(parent, 0o755)  # noqa: S103  # callers walk through it
        views = Views(run_folder, f"{parent}/rw", f"{parent}/ro", f"{parent}/xdev")
        for path in (views.absolute, views.readonly, views.elsewhere):
            os.mkdir(path)
        os.chmod(views.elsewhere, 0o777)  # noqa: S103  # callers make files there
        libc.mount(run_folder, views.absolute, None, libc.MS_BIND)
        libc.mount(run_folder, views.readonly, None, libc.MS_BIND)
        libc.mount("none", views.readonly, None, libc.MS_BIND | libc.MS_REMOUNT | libc.MS_RDONLY)
        privileges.add("mount")
    probe = os.path.join(tempfile.gettempdir(), f"xos-posix-device-{os.getpid()}")
    with contextlib.suppress(PermissionError):
        os.mknod(probe, 0o020600, os.makedev(1, 3))
        os.unlink(probe)
        privileges.add("mknod")
        if not os.statvfs(run_folder).f_flag & os.ST_NODEV:
            privileges.add("devices")
    return views, frozenset(privileges)


def _begin(plan: Plan, cases: Sequence[Case], run_folder: str, parent: str, calls: Mapping[str, Call] | None) -> None:
    global _worker
    os.umask(0)
    _worker = _Worker(plan, cases, run_folder, parent, calls)


def _run(numbers: Sequence[int]) -> list[Result]:
    assert _worker is not None
    return _worker.run(numbers)


def run(plan: Plan, cases: Sequence[Case], calls: Mapping[str, Call] | None = None) -> Iterator[Result]:
    """Run cases below `plan.folder`; yields a result for each, in the order of completion.

    Makes a folder of its own there and removes it at the end. Raises BrokenProcessPool if a worker died.
    """
    run_folder = tempfile.mkdtemp(prefix="posix-", dir=os.path.abspath(plan.folder))
    os.chmod(run_folder, 0o755)  # noqa: S103  # callers walk through it
    parent = tempfile.mkdtemp(prefix="xos-posix-views-")  # empty but for the workers, who cover it in mount namespaces of their own
    batches = [range(start, min(start + TOGETHER, len(cases))) for start in range(0, len(cases), TOGETHER)]
    pool = ProcessPoolExecutor(
        max(1, min(plan.jobs, len(batches))), get_context("fork"), _begin, (plan, cases, run_folder, parent, calls)
    )
    try:
        waiting: list[Future[list[Result]]] = [pool.submit(_run, batch) for batch in batches]
        for done in as_completed(waiting):
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(run_folder, ignore_errors=True)
        shutil.rmtree(parent, ignore_errors=True)
