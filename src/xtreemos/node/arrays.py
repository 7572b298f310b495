"""Tasks of one array on this node: they share one sandbox, which is made for the first and goes when none has come for a while.

A task is an attempt like any other (store, name at jobd, output, record, signals); only its container is shared, with the tasks of
the same array alone: one submission of one session. In `LocalJobs.live` the container stands as attempt 0 of the array's id. A task
with limits of its own (cores, memory) gets a sandbox of its own: the limits are a container's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xtreemos.aem.jobspec import JobSpec
from xtreemos.errors import RemoteError, TryLater, XosError
from xtreemos.node.jobs import SPOOL_BYTES_MAX, START_S, LocalJobs
from xtreemos.node.running import SANDBOX, Running, meta_of

log = logging.getLogger(__name__)

IDLE_S = 3.0
"""A sandbox without tasks is kept so long for the next ones."""
TRIES = 3
TASKS_PER_CALL_MAX = 64


@dataclass(slots=True, eq=False)
class _Shared:
    """One array's sandbox: `running` once it was started; `waiting` are tasks on their way to jobd."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: Running | None = None
    waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = field(default_factory=list)
    sender: asyncio.Task[None] | None = None
    idle_looks: int = 0


def may_share(spec: JobSpec) -> bool:
    """Tell whether a task of an array may run in the array's sandbox."""
    return spec.cpus is None and spec.memory_bytes is None


class Arrays:
    """Launches tasks, and ends sandboxes that have no more of them (`tidy`)."""

    def __init__(self, jobs: LocalJobs) -> None:
        self._jobs = jobs
        self._shared: dict[str, _Shared] = {}

    async def launch(self, spec: JobSpec, array: str, *, attempt: int, sid: str) -> Running:
        """Start a task; return when it runs.

        Raises:
            XosError: as `LocalJobs.start`.
        """
        running = self._jobs.enter(spec, attempt=attempt, sid=sid, array=array)
        try:
            await self._start(spec, array, running)
        except RemoteError as error:
            if error.code == "job-exists":
                return await self._jobs.adopt(running)
            self._jobs.let_go(running)
            raise
        except (XosError, OSError) as error:
            if not isinstance(error, XosError) or error.definite:
                self._jobs.let_go(running)
            raise
        finally:
            running.started.set()
        if running.exit is None:
            running.state = "running"
        return running

    async def _start(self, spec: JobSpec, array: str, running: Running) -> None:
        task = self._task_params(spec, running)
        for _ in range(TRIES):
            shared = self._shared.setdefault(array, _Shared())
            async with shared.lock:
                await self._open(shared, spec, array, running)
            try:
                await self._send(shared, array, task)
            except NoSandbox:
                continue  # it ended meanwhile: the next one
            return
        raise NoSandbox(f"the sandbox of array {array} does not stay", "see the node's log")

    def _task_params(self, spec: JobSpec, running: Running) -> dict[str, Any]:
        spool = self._jobs.paths.jobs / running.key / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "job": running.key,
            "env": {"XOS_JOB": spec.job, "XOS_INDEX": spec.env.get("XOS_INDEX", "0")},
            "spool_dir": str(spool),
            "spool_bytes_max": SPOOL_BYTES_MAX,
            "wall_s": spec.wall_s,
            "meta": meta_of(running),
        }

    async def _open(self, shared: _Shared, spec: JobSpec, array: str, task: Running) -> None:
        """Make sure that the array's sandbox stands; one of an earlier daemon serves as well."""
        held = shared.running or self._jobs.live.get(f"{array}.{SANDBOX}")
        if held is not None and held.exit is not None:
            await held.gone.wait()  # its name and folder are free only then
            held = None
        if held is None:
            env = {name: value for name, value in spec.env.items() if name != "XOS_INDEX"}
            frame = msgspec.structs.replace(spec, job=array, wall_s=None, retry=0, env=env)
            held = await self._jobs.start(frame, attempt=SANDBOX, sid=task.sid, stdio="tasks")
        shared.running = held
        shared.idle_looks = 0

    async def _send(self, shared: _Shared, array: str, task: dict[str, Any]) -> None:
        """Hand a task to jobd, together with others that come at the same moment."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        shared.waiting.append((task, sent))
        if shared.sender is None or shared.sender.done():
            shared.sender = asyncio.create_task(self._send_all(shared, array), name=f"tasks of {array}")
        await sent

    async def _send_all(self, shared: _Shared, array: str) -> None:
        while shared.waiting:
            group, shared.waiting = shared.waiting[:TASKS_PER_CALL_MAX], shared.waiting[TASKS_PER_CALL_MAX:]
            params = {"job": f"{array}.{SANDBOX}", "tasks": [task for task, _ in group]}
            try:
                rows = await (await self._jobs.jobd()).call("tasks", params, timeout_s=START_S)
                errors = [RemoteError(row["error"]) if row["error"] else None for row in rows]
            except RemoteError as error:
                gone = error.code == "no-such-job"
                errors = [NoSandbox(f"array {array} has no sandbox") if gone else error] * len(group)  # type: ignore[list-item]
            except XosError as error:
                errors = [error] * len(group)  # type: ignore[list-item]
            for (_, sent), failed in zip(group, errors, strict=True):
                if sent.done():
                    continue
                if failed is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(failed)

    async def tidy(self) -> None:
        """End sandboxes whose array has no task here, for ever; those that an earlier daemon left too."""
        while True:
            await asyncio.sleep(IDLE_S / 2)
            sandboxes = [one for one in self._jobs.live.values() if one.attempt == SANDBOX and one.exit is None]
            busy = {one.array for one in self._jobs.live.values() if one.array} if sandboxes else set()
            for running in sandboxes:
                shared = self._shared.setdefault(running.job, _Shared(running=running))
                shared.idle_looks = 0 if running.job in busy else shared.idle_looks + 1
                if shared.idle_looks > 2:
                    await self._end(shared, running)
            for array in [name for name, one in self._shared.items() if one.running and one.running.gone.is_set()]:
                if not self._shared[array].lock.locked() and not self._shared[array].waiting:
                    del self._shared[array]

    async def _end(self, shared: _Shared, running: Running) -> None:
        async with shared.lock:
            if shared.waiting or shared.idle_looks <= 2:
                return
            try:
                await (await self._jobs.jobd()).call("close", {"job": running.key}, timeout_s=START_S)
                async with asyncio.timeout(START_S):
                    await running.gone.wait()
            except (XosError, TimeoutError) as error:
                log.warning("the sandbox of array %s: %s", running.job, error)
            shared.running = None


class NoSandbox(TryLater):
    """The sandbox of an array of jobs ended before its task could start in it; the task did not run and may be started again."""

    code = "no-sandbox"
