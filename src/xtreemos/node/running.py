"""One attempt as a node holds it while jobd has it: a value, and how it goes into jobd's `meta` and comes back. No I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SANDBOX = 0  # attempts of jobs count from 1


@dataclass(slots=True)
class Running:
    """What xosd remembers of a live attempt; all of it can be found again from jobd's meta."""

    job: str
    attempt: int
    user: str
    vo: str
    sid: str
    name: str
    leased: bool
    detached: bool
    tty: bool
    started_at: float
    state: str = "running"
    netns: str | None = None
    attached: int = 0
    left_at: float = field(default_factory=time.monotonic)
    exit: dict[str, Any] | None = None
    array: str = ""
    """Of a task that shares its array's sandbox: the array's id; that sandbox is attempt SANDBOX of it."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """It has ended and jobd has forgotten it: its name and folder are free."""

    @property
    def key(self) -> str:
        """The name jobd knows."""
        return f"{self.job}.{self.attempt}"


def split_key(key: str) -> tuple[str, int]:
    """Split jobd's `JOB.ATTEMPT`."""
    job, _dot, attempt = key.rpartition(".")
    return job, int(attempt)


def meta_of(running: Running) -> dict[str, Any]:
    """Return what jobd keeps of it for a daemon that is started again."""
    return {
        "user": running.user, "vo": running.vo, "sid": running.sid, "name": running.name, "leased": running.leased,
        "detached": running.detached, "tty": running.tty, "started_at": running.started_at, "netns": running.netns,
        "array": running.array,
    }  # fmt: skip


def running_of(row: dict[str, Any], job: str, attempt: int, adopt_net: Callable[[str | None], str | None]) -> Running:
    """Build it out of a row of jobd's list; `adopt_net` tells which network is still its own."""
    meta = row.get("meta") or {}
    found = Running(
        job=job,
        attempt=attempt,
        user=str(meta.get("user", "")),
        vo=str(meta.get("vo", "")),
        sid=str(meta.get("sid", "")),
        name=str(meta.get("name", "")),
        leased=bool(meta.get("leased")),
        detached=bool(meta.get("detached")),
        tty=bool(meta.get("tty")),
        started_at=float(meta.get("started_at") or 0),
        state=str(row.get("state", "running")),
        netns=adopt_net(meta.get("netns")),
        array=str(meta.get("array", "")),
    )
    found.started.set()
    return found
