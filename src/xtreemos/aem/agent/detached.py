"""Detached jobs as the agent sees them: signed submissions, and what the VO's manager says of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from xtreemos.aem.agent.session import Session
from xtreemos.aem.agent.tickets import Tickets
from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.client import JobsClient
from xtreemos.aem.manager.fabricport import FabricPort
from xtreemos.aem.manager.signed import sign_submission
from xtreemos.fabric.connection import Fabric


class Detached:
    """One session's line to the manager of detached jobs."""

    def __init__(self, fabric: Fabric, session: Session, tickets: Tickets) -> None:
        self._session = session
        self._tickets = tickets
        self._client = JobsClient(FabricPort(fabric), session.credentials.name, clock_s=time.monotonic)

    async def submit(self, spec: JobSpec) -> str:
        """Sign and submit; returns the job id when the VO's log has it."""
        spec = msgspec.structs.replace(spec, files=self._tickets.for_job(spec.job))
        record = sign_submission(spec, self._session.credentials.x509, self._session.issued.keys.x509)
        return await self._client.submit(record)

    async def rows(self, *, ended: bool = True) -> list[dict[str, Any]]:
        """Return listing rows of the user's detached jobs."""
        return [_row(row) for row in await self._client.list_jobs(ended=ended)]

    async def rows_of(self, jobs: Iterable[str]) -> list[dict[str, Any]]:
        """Return listing rows of those of `jobs` that are detached ones of the user."""
        return [_row(row) for row in await self._client.known(jobs)]

    async def kill(self, job: str, number: int) -> None:
        """Send a signal; a job that waits is called off."""
        await self._client.kill(job, number)

    async def wait(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Wait until jobs have ended; returns their exit records by job."""
        return {row["job"]: dict(_row(row)["exit"] or {}) async for row in self._client.wait_jobs(jobs, every=True)}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Say a manager's row as `xos ps` does (see LocalJobs.usage)."""
    ended = row.get("state") == "ended"
    record = row.get("exit") or (
        {"code": None, "signal": None, "reason": row.get("reason") or row.get("outcome")} if ended else None
    )
    return {
        "job": row["job"],
        "user": row.get("user", ""),
        "node": row.get("node", ""),
        "state": "ended" if ended else row.get("state", "queued"),
        "command": row.get("name", ""),
        "reason": row.get("reason", "") if not ended else "",
        "submitted_at": row.get("submitted_at"),
        "started_at": None,
        "attempt": row.get("attempt", 0),
        "detached": True,
        "tty": False,
        "exit": record,
        "cpu_s": float(record.get("user_s") or 0) + float(record.get("system_s") or 0) if record else 0.0,
    }
