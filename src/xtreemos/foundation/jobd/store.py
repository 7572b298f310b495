"""What jobd finds of its earlier life: folders of jobs it had started. Their processes are killed, their ends written down.

`jobd.json` in a job's folder says that jobd started it and nobody has said `forget` yet; `exit.json` says how it ended.
"""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

from xtreemos.foundation.cgroups import Cgroups, Group
from xtreemos.foundation.jobd.container import Runtime
from xtreemos.foundation.jobd.job import persist, read_record
from xtreemos.foundation.jobd.model import REASON_JOBD, ExitRecord
from xtreemos.foundation.jobd.task import JOURNAL, read_journal

BURY_TIMEOUT_MS = 5000


class FormerJob:
    """A job of an earlier life, of which only the record is left."""

    def __init__(self, folder: Path, job: str, meta: Any, record: dict[str, Any]) -> None:
        self.job = job
        self.record = record
        self._folder = folder
        self._meta = meta

    def describe(self) -> dict[str, Any]:
        """Return the row of `list` and `watch`."""
        return {
            "job": self.job,
            "state": "exited",
            "signal": None,
            "pid": None,
            "stdio": None,
            "started_at": self.record["started_at"],
            "attached": False,
            "exit": self.record,
            "meta": self._meta,
        }

    @property
    def ended(self) -> bool:
        """It has."""
        return True

    def signal(self, number: int) -> None:
        """Nothing is left of it that could hear a signal."""

    def forget(self) -> None:
        """Let go of it."""
        (self._folder / "jobd.json").unlink(missing_ok=True)


class FormerTask(FormerJob):
    """A task of an array of an earlier life: it stands in the journal of the container that it shared."""

    def forget(self) -> None:
        """Let go of it."""
        _note(self._folder / JOURNAL, {"forget": self.job})


def _note(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a journal, durably."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, b"\n" + json.dumps(line).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


def recover(jobs_dir: Path, runtime: Runtime, cgroups: Cgroups) -> dict[str, FormerJob]:
    """Kill what an earlier jobd left running, write its exit records, return its jobs by name."""
    found: dict[str, FormerJob] = {}
    for marker in sorted(jobs_dir.glob("*/jobd.json")):
        try:
            known = json.loads(marker.read_text())
            job = known["job"]
        except (ValueError, KeyError):
            continue  # cut off by a power loss before anything was started
        group = cgroups.adopt(job)
        _end(cgroups, group)
        record = read_record(marker.parent)
        if record is None:
            record = _lost(marker.stat().st_mtime).to_wire()
            persist(marker.parent, "exit.json", record)
        found[job] = FormerJob(marker.parent, job, known.get("meta"), record)
        for task in read_journal(marker.parent / JOURNAL):
            ended = task.record
            if ended is None:
                ended = _lost(task.started_at).to_wire()
                _note(marker.parent / JOURNAL, {"job": task.job, "exit": ended})
            found[task.job] = FormerTask(marker.parent, task.job, task.meta, ended)
    runtime.bury_all()
    return found


def _end(cgroups: Cgroups, group: Group) -> None:
    """Kill a group and wait until the kernel says that it is empty."""
    if not group.v2.exists():
        return
    cgroups.kill(group)
    with (group.v2 / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        end = time.monotonic() + BURY_TIMEOUT_MS / 1000
        while "populated 1" in events.read() and time.monotonic() < end:
            poll.poll(100)
            events.seek(0)
    cgroups.remove(group)


def _lost(started_at: float) -> ExitRecord:
    return ExitRecord(None, None, core=False, user_s=0.0, system_s=0.0, rss_bytes_max=0, started_at=started_at,
                      ended_at=time.time(), reason=REASON_JOBD)  # fmt: skip
