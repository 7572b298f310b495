"""What jobd finds of its earlier life: folders of jobs it had started. Their processes are killed, their ends written down.

`jobd.json` in a job's folder says that jobd started it and nobody has said `forget` yet; `exit.json` says how it ended.
"""

from __future__ import annotations

import json
import select
import time
from pathlib import Path
from typing import Any

from xtreemos.foundation.cgroups import Cgroups, Group
from xtreemos.foundation.jobd.container import Runtime
from xtreemos.foundation.jobd.job import persist, read_record
from xtreemos.foundation.jobd.model import REASON_JOBD, ExitRecord

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

    def forget(self) -> None:
        """Let go of it."""
        (self._folder / "jobd.json").unlink(missing_ok=True)


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
