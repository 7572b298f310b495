"""What a node offers over its connections: one table of methods with who may call each, and the handlers for jobs.

Handlers check the caller by `Caller` only; what a caller may do with a job is decided by ownership (same VO, same user).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from xtreemos.aem.jobspec import JobSpec, from_wire, to_wire
from xtreemos.errors import PermissionRefused, UsageError, XosError
from xtreemos.fabric.caller import CallerKind
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.foundation.frames import CHUNK_BYTES, WINDOW_BYTES, Kind
from xtreemos.node.deposits import Deposits
from xtreemos.node.jobs import LocalJobs
from xtreemos.node.refusals import NoSuchJob
from xtreemos.node.running import SANDBOX, Running

log = logging.getLogger(__name__)

POLL_S = 0.1  # how often a followed log is looked at: a file tells nobody that it grew


class NotForYou(PermissionRefused):
    """A method is not for this kind of caller; nothing was done."""

    code = "not-for-you"


def guarded(kinds: frozenset[CallerKind], handler: Handler) -> Handler:
    """Return `handler` behind a check of who calls."""

    async def checked(call: ServerCall) -> Any:
        if call.caller.kind not in kinds:
            raise NotForYou(f"{call.caller} may not call {call.method}", "log in first: xos login USER@VO")
        return await handler(call)

    return checked


class JobService:
    """Handlers of `run.start` and `job.*`."""

    def __init__(self, jobs: LocalJobs, deposits: Deposits) -> None:
        self.jobs = jobs
        self.deposits = deposits

    def methods(self) -> dict[str, Handler]:
        """Return the table for users' connections."""
        user: frozenset[CallerKind] = frozenset({"user"})
        table: Mapping[str, Callable[[ServerCall], Awaitable[Any]]] = {
            "run.start": self.start,
            "run.void": self.void,
            "job.attach": self.attach,
            "job.signal": self.signal,
            "job.list": self.list,
            "job.wait": self.wait,
            "job.logs": self.logs,
        }
        return {name: guarded(user, self._settled(handler)) for name, handler in table.items()}

    def _settled(self, handler: Handler) -> Handler:
        """Return `handler` that waits until this daemon knows which jobs there are: just started, it knows of none."""

        async def wait_and_handle(call: ServerCall) -> Any:
            await self.jobs.wait_life()
            return await handler(call)

        return wait_and_handle

    def _find(self, call: ServerCall) -> Running:
        attempt = call.params.get("attempt")
        job, caller = str(call.params.get("job", "")), call.caller
        return self.jobs.find(job, caller.vo, caller.name, int(attempt) if attempt else None)

    def _former_exit(self, call: ServerCall) -> dict[str, Any] | None:
        attempt = call.params.get("attempt")
        job, caller = str(call.params.get("job", "")), call.caller
        return self.jobs.former_exit(job, caller.vo, caller.name, int(attempt) if attempt else None)

    async def start(self, call: ServerCall) -> Any:
        """Start a foreground job and stay as its line: `started`, then frames as jobd's attach."""
        spec = from_wire(call.params.get("spec"))
        if (spec.user, spec.vo) != (call.caller.name, call.caller.vo):
            raise PermissionRefused(f"{call.caller} cannot start programs as {spec.user}@{spec.vo}")
        if spec.detached:
            raise UsageError("a detached job goes to the VO's manager", "use xos sub")
        attempt, trial = int(call.params.get("attempt") or 1), int(call.params.get("trial") or 0)
        self.jobs.check_not_void(spec.vo, spec.user, spec.job, attempt, trial)
        ticket = str(call.params.get("fds") or "")
        fds = self.deposits.take(ticket) if ticket else ()
        try:
            running = await self._start(spec, attempt, call, fds)
        finally:
            for fd in fds:
                os.close(fd)
        call.send_event({"type": "started", "node": self.jobs.node, "attempt": attempt})
        return await self.jobs.attach(running, call, {"offsets": {}})

    async def void(self, call: ServerCall) -> Any:
        """Tell whether an attempt is here; one that is not will never start by that trial, which may still be on its way."""
        job, attempt = str(call.params.get("job", "")), int(call.params.get("attempt") or 1)
        try:
            self._find(call)
        except NoSuchJob:
            if self._former_exit(call) is None:
                trial = int(call.params.get("trial") or 0)
                await self.jobs.make_void(call.caller.vo, call.caller.name, job, attempt, trial)
                return {"here": False}
        return {"here": True}

    async def _start(self, spec: JobSpec, attempt: int, call: ServerCall, fds: tuple[int, ...]) -> Running:
        starting = asyncio.ensure_future(self.jobs.run(spec, attempt=attempt, sid=call.caller.sid, fds=fds))
        try:
            running = await asyncio.shield(starting)
        except asyncio.CancelledError:
            if call.peer.is_lost:
                raise  # the caller asks again what became of it; if not, it ends as an orphan
            # The caller gave up while we started: nothing may stay running that nobody waits for.
            with contextlib.suppress(XosError):
                await self.jobs.signal(await starting, 9)
            raise
        return running

    async def attach(self, call: ServerCall) -> Any:
        """Join the streams of a running job again; of one that has ended and gave everything away, return its end."""
        try:
            running = self._find(call)
        except NoSuchJob:
            record = self._former_exit(call)
            if record is None or call.params.get("describe"):
                raise
            return {"exit": record}
        params: dict[str, Any] = {"offsets": dict(call.params.get("offsets") or {}), "steal": bool(call.params.get("steal"))}
        if call.params.get("describe"):
            described = await self.jobs.describe(running)
            call.send_event({"type": "described", "spec": to_wire(described), "attempt": running.attempt})
            params["offsets"] = None
        return await self.jobs.attach(running, call, params)

    async def signal(self, call: ServerCall) -> Any:
        """Send a signal to a whole job."""
        number = call.params.get("signal")
        if not isinstance(number, int) or not 0 < number <= 64:
            raise UsageError(f"{number!r} is no signal")
        await self.jobs.signal(self._find(call), number)
        return {}

    async def list(self, call: ServerCall) -> Any:
        """List the caller's jobs here, or (administrators) everybody's of the VO."""
        everybody = bool(call.params.get("everybody")) and call.caller.has_role("admin")
        rows = [
            self.jobs.usage(one)
            for one in self.jobs.live.values()
            if one.vo == call.caller.vo and (everybody or one.user == call.caller.name) and one.attempt != SANDBOX
        ]
        return {"jobs": rows}

    async def wait(self, call: ServerCall) -> Any:
        """Return the exit record of a job when it has ended."""
        running = self._find(call)
        while running.exit is None:
            await self.jobs.wait_change()
        return running.exit

    async def logs(self, call: ServerCall) -> Any:
        """Send what a detached job wrote, and with `follow` go on until it has ended."""
        job = str(call.params.get("job", ""))
        folder, ended = self.jobs.spool_of(job, call.caller.vo, call.caller.name)
        streams = [stream for stream in call.params.get("streams") or (1, 2) if stream in (1, 2)]
        readers = {stream: _Reader(folder / {1: "stdout", 2: "stderr"}[stream]) for stream in streams}
        acked = dict.fromkeys(streams, 0)
        try:
            while True:
                last = ended()  # looked at before reading: what was written before the end is then read for certain
                for stream, reader in readers.items():
                    await _send_file(call, stream, reader, acked)
                if last or not call.params.get("follow"):
                    return {}
                await asyncio.sleep(POLL_S)
        finally:
            for reader in readers.values():
                reader.close()


class _Reader:
    """A spool file that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._fd = -1

    def read(self) -> bytes:
        """Return the next bytes, b"" if there are none now."""
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return b""
        return os.pread(self._fd, CHUNK_BYTES, self.offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


async def _send_file(call: ServerCall, stream: int, reader: _Reader, acked: dict[int, int]) -> None:
    while data := reader.read():
        call.send_data(stream, reader.offset, data)
        reader.offset += len(data)
        while reader.offset - acked[stream] > WINDOW_BYTES:
            frame = await call.receive()
            if frame.kind is Kind.ACK:
                acked[frame.stream] = frame.offset
        await call.peer.drain()
