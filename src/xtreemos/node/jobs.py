"""The jobs of one node: admission, the durable record, the sandbox, and the line to jobd.

xosd may die at any moment; what is true is in the store (accepted, ended) and in jobd (running). `recover` compares the two after
a restart. Nobody hears of a start that is not in the store; what jobd runs and the store lacks belongs to nobody and is hung up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import JobSpec, carried_env
from xtreemos.aem.manager.model import Cause, Ended, Said
from xtreemos.aem.nodestore import AttemptState, NodeStore, Offer, plan_recovery
from xtreemos.errors import RemoteError, Unreachable, XosError
from xtreemos.fabric import rpc
from xtreemos.foundation import query, sandbox
from xtreemos.foundation.accounts import Accounts
from xtreemos.foundation.cgroups import Cgroups, cgroup_path
from xtreemos.foundation.frames import Kind
from xtreemos.foundation.jobd.model import REASON_JOBD
from xtreemos.foundation.paths import NodePaths
from xtreemos.foundation.sandbox import SandboxSpec
from xtreemos.foundation.tools import native
from xtreemos.names import unix_name
from xtreemos.node import jobfolders
from xtreemos.node.refusals import JobdRestarted, NodeFull, NoSuchJob, NotMatching, OwnerRefuses, StartUnknown
from xtreemos.node.running import SANDBOX, Running, meta_of, running_of, split_key

log = logging.getLogger(__name__)

JOB_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PIDS_MAX = 4096
SPOOL_BYTES_MAX = 1 << 30
START_S = 30.0
FIND_OUT_EVERY_S = 0.1
FIND_OUT_S = 10.0  # a jobd that went away in the midst of a start is back after this, or nobody can say what became of it
SLOTS_PER_CPU = 16
VOID_MAX = 10_000
SWEEP_S = 120.0
KEEP_ENDED_S = 3600.0  # an ended foreground job's streams wait this long for an agent that comes back
"""Seconds without an attached agent after which a foreground job is hung up; shorter if it may be started again elsewhere."""
ORPHAN_S = 60.0
FENCE_S = 10.0
ORPHAN_LOOK_S = 1.0
IDLE_LOOK_S = 5.0  # a node without jobs wakes up less often; still twice before the first of them may be an orphan


DetachedEnded = Callable[[str, int, dict[str, Any], Cause], Awaitable[None]]
JobdKnows = Callable[[dict[tuple[str, int], float | None], str], Awaitable[Any]]


class LocalJobs:
    """Starts, follows and lists the jobs of this node."""

    def __init__(
        self,
        *,
        paths: NodePaths,
        node: str,
        facts: Callable[[], Mapping[str, Any]],
        slots: int,
        store: NodeStore,
        commit: GroupCommit,
        accounts: Accounts,
        cgroups: Cgroups,
        take_net: Callable[[str], Awaitable[str | None]],
        give_net: Callable[[str, str], None],
        allowed: Callable[[JobSpec], None],
    ) -> None:
        self.paths = paths
        self.node = node
        self.facts = facts
        self.slots = slots
        self.store = store
        self.commit = commit
        self.accounts = accounts
        self.cgroups = cgroups
        self.take_net = take_net
        self.give_net = give_net
        self.allowed = allowed
        self.live: dict[str, Running] = {}
        self.life = ""
        self.on_detached_ended: DetachedEnded | None = None
        self.on_jobd: JobdKnows | None = None
        self.home: Callable[[str, str, int], Awaitable[Path]] = _folder_home
        self.keep_ticket: Callable[[str, bytes], Awaitable[None]] = _no_ticket
        self.shared: Callable[[str], Awaitable[tuple[sandbox.Bind, ...]]] = _nothing_shared
        self.gids: Callable[[str, str], tuple[int, ...]] = lambda _user, _vo: ()
        self.adopt_net: Callable[[str | None], str | None] = lambda _path: None
        self._jobd: rpc.Peer | None = None
        self._system = sandbox.probe_system()
        self._init = str(native("init"))
        self._roots: set[int] = set()
        self._changed = asyncio.Condition()
        self._alive = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()
        self._forgotten: list[str] = []
        self._forgetting: asyncio.Task[None] | None = None
        self._void: deque[tuple[str, str, str, int, int]] = deque(maxlen=VOID_MAX)

    async def wait_life(self) -> None:
        """Wait until jobd was asked what it has, so that store and jobd agree."""
        await self._alive.wait()

    async def tell_jobd_again(self) -> None:
        """Compare store and jobd again: a VO was added that did not hear it."""
        if self._jobd is not None:
            self._jobd.close()

    # -- jobd ------------------------------------------------------------------------------------------------------------

    async def jobd(self) -> rpc.Peer:
        """Return the connection to jobd, made again if it broke."""
        if self._jobd is None or self._jobd.is_lost:
            self._jobd = await rpc.connect_unix(self.paths.jobd_socket)
        return self._jobd

    async def follow(self) -> None:
        """Keep in step with jobd for ever: recover, then take its events; again after each break."""
        while True:
            try:
                peer = await self.jobd()
                await self._recover(peer)
                call = peer.open("watch")
                while True:
                    frame = await call.receive()
                    if isinstance(frame.body, dict):
                        await self._on_jobd_event(frame.body)
            except XosError as error:
                log.warning("jobd: %s; connecting again", error)
                await asyncio.sleep(0.2)

    async def _recover(self, peer: rpc.Peer) -> None:
        hello = await peer.call("hello", timeout_s=10)
        life = f"{hello['pid']}@{hello['started_at']}"
        rows = await peer.call("list", timeout_s=10)
        known = {split_key(row["job"]): row for row in rows}
        self.life = life
        for key, row in known.items():
            known_here = self.live.get(row["job"])
            if known_here is None:
                self.live[row["job"]] = running_of(row, *key, self.adopt_net)
            elif known_here.state == "starting" and known_here.started.is_set():  # its start was not answered
                known_here.state = str(row["state"])
        for running in [one for one in self.live.values() if one.started.is_set() and split_key(one.key) not in known]:
            self.let_go(running)
        if self.on_jobd is not None:
            await self.on_jobd({key: row.get("started_at") for key, row in known.items()}, life)
        self._alive.set()
        plan = plan_recovery(self.store.live("run"), known, life)
        for row in known.values():
            ended = self.live.get(row["job"])  # None: ended and forgotten while we worked on others
            if row.get("exit") is not None and ended is not None and ended.exit is None:
                await self._ended(ended, row["exit"])
        gone = [one for one in plan.lost if not self._is_starting(f"{one.job}.{one.attempt}")]
        lost = [Ended(one.job, one.attempt, Cause.LOST, f"node {self.node} went down while it ran") for one in gone]
        if lost:
            await self.commit.do(self.store.ended, lost, time.time())
            for end in lost:
                self.live.pop(f"{end.job}.{end.attempt}", None)
                await self._tell()

    def _is_starting(self, key: str) -> bool:
        """Tell whether its start is under way: whoever waits for that finds out by himself what became of it."""
        running = self.live.get(key)
        return running is not None and not running.started.is_set()

    def let_go(self, running: Running) -> None:
        """Jobd does not know it any more: it occupies nothing."""
        self.live.pop(running.key, None)
        self._free_net(running)

    def _free_net(self, running: Running) -> None:
        netns, running.netns = running.netns, None
        if netns:
            self.give_net(netns, running.vo)

    async def _on_jobd_event(self, body: dict[str, Any]) -> None:
        running = self.live.get(str(body.get("job", "")))
        if running is None:
            return
        state = str(body.get("state", running.state))
        if body.get("exit") is not None and running.exit is None:
            running.exit = body["exit"]
            self._spawn(self._end_at_once(running, body["exit"]), f"end {running.key}")  # ends that come together share a commit
        elif state in ("running", "stopped"):
            running.state = state

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def _end_at_once(self, running: Running, record: dict[str, Any]) -> None:
        try:
            await self._ended(running, record)
        except XosError as error:
            log.warning("the end of %s could not be noted: %s; asking jobd again", running.key, error)
            running.exit = None
            await self.tell_jobd_again()

    async def _ended(self, running: Running, record: dict[str, Any]) -> None:
        running.exit = record
        running.state = "exited"
        running.left_at = time.monotonic()
        cause = Cause.LOST if record.get("reason") == REASON_JOBD else Cause.EXITED
        if running.attempt == SANDBOX:
            pass  # no attempt of a job: the store does not know it
        elif running.detached and self.on_detached_ended is not None:
            await self.on_detached_ended(running.job, running.attempt, record, cause)
        else:
            end = Ended(running.job, running.attempt, cause, record.get("reason") or "", record)
            await self.commit.do(self.store.ended, [end], time.time())
        self._free_net(running)
        await self._tell()
        if running.detached:
            await self.forget(running)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def forget(self, running: Running) -> None:
        """Let go of an ended attempt: jobd drops its streams, its folder goes."""
        self.live.pop(running.key, None)
        self._forgotten.append(running.key)
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = self._spawn(self._forget_all(), "forget")
        await asyncio.shield(self._forgetting)
        if not running.detached or running.attempt == SANDBOX:
            await asyncio.to_thread(jobfolders.remove, self.paths.jobs, [running.key])
        running.gone.set()

    async def _forget_all(self) -> None:
        """Tell jobd of all that is to be forgotten by now, in one call."""
        while self._forgotten:
            keys, self._forgotten = self._forgotten, []
            with contextlib.suppress(RemoteError):
                await (await self.jobd()).call("forget", {"jobs": keys}, timeout_s=10)

    async def sweep(self) -> None:
        """Delete what ended jobs left on the disk when its time is over, for ever."""
        await self.wait_life()
        while True:
            folders = await asyncio.to_thread(jobfolders.scan, self.paths.jobs, set(self.live))
            gone = [key for key in jobfolders.superfluous(folders, time.time()) if key not in self.live]
            if gone:
                log.info("%d folders of ended jobs are deleted", len(gone))
                await asyncio.to_thread(jobfolders.remove, self.paths.jobs, gone)
            await asyncio.sleep(SWEEP_S)

    # -- admission -------------------------------------------------------------------------------------------------------

    @property
    def running_count(self) -> int:
        """How many attempts occupy this node."""
        return sum(1 for one in self.live.values() if one.exit is None and one.attempt != SANDBOX)

    @property
    def free(self) -> int:
        """How many more it would take."""
        return max(0, self.slots - self.running_count)

    def slots_left(self, vo: str) -> int:
        """How many detached jobs of `vo` may run at once now: the slots that nothing else occupies."""
        others = sum(
            1 for one in self.live.values() if one.exit is None and one.attempt != SANDBOX and not (one.detached and one.vo == vo)
        )
        return max(0, self.slots - others)

    def refusal(self, spec: JobSpec) -> XosError | None:
        """Tell why this node does not take `spec` now, or None. A detached one may wait here for room: that is not asked then."""
        try:
            self._admit(spec)
        except XosError as error:
            return error
        return None

    def _admit(self, spec: JobSpec) -> None:
        if spec.node is not None and spec.node != self.node:
            raise NotMatching(f"this is node {self.node}, not {spec.node}")
        facts = self.facts()
        if not query.parse(spec.where).matches(facts):
            raise NotMatching(f"node {self.node} does not match {spec.where!r}", "see `xos nodes --where ...`")
        if spec.cpus is not None and spec.cpus > float(facts["cpus"]):
            raise NotMatching(f"node {self.node} has {facts['cpus']} cores, {spec.cpus:g} are wanted")
        if spec.memory_bytes is not None and spec.memory_bytes > int(facts["memory"]):
            raise NotMatching(
                f"node {self.node} has {int(facts['memory']) >> 20} MiB of memory, {spec.memory_bytes >> 20} are wanted"
            )
        self.allowed(spec)
        if self.free <= 0 and not spec.detached:
            raise NodeFull(f"node {self.node} is full ({self.slots} jobs)", "wait, or ask for another node")

    async def make_void(self, vo: str, user: str, job: str, attempt: int, trial: int) -> None:
        """Refuse this start of a user's attempt, which is not here, if it still comes; another trial of it may start.

        Memory suffices for that: a message to an earlier daemon died with it. What that one noted of it is withdrawn.
        """
        self._void.append((vo, user, job, attempt, trial))
        await self.commit.do(self.store.withdraw, vo, user, job, attempt)

    def check_not_void(self, vo: str, user: str, job: str, attempt: int, trial: int) -> None:
        """Raise NoSuchJob for a start that its caller has given up."""
        if (vo, user, job, attempt, trial) in self._void:
            raise NoSuchJob(f"job {job} came too late to node {self.node}", "its agent has started it by another message")

    # -- start -----------------------------------------------------------------------------------------------------------

    async def run(
        self,
        spec: JobSpec,
        *,
        attempt: int,
        sid: str,
        fds: tuple[int, ...] = (),
        netns: str | None = None,
    ) -> Running:
        """Admit, record and start a foreground job; return when it runs. `netns` is a network that the caller keeps for it.

        Raises:
            NodeFull, NotMatching, OwnerRefuses, JobdRestarted: not started, another node may take it. StartUnknown: nobody knows.
            XosError: not started.
        """
        self._check_free(spec, attempt)
        self._admit(spec)
        offer = Offer(
            spec.job,
            attempt,
            spec.vo,
            spec.user,
            command_line(spec),
            msgspec.msgpack.encode(spec),
            origin="run",
            leased=spec.retry > 0,
        )
        # The record goes to disk while the container is made; the caller hears of a start only when both are done.
        recording = asyncio.ensure_future(self.commit.do(self._accept_and_hand_over, offer))
        try:
            running = await self.start(spec, attempt=attempt, sid=sid, fds=fds, netns=netns)
        except XosError as error:
            await recording
            if isinstance(error, JobdRestarted):  # the agent may come again with this very attempt
                await self.commit.do(self.store.withdraw, spec.vo, spec.user, spec.job, attempt)
            elif error.definite:
                await self.commit.do(self.store.ended, [Ended(spec.job, attempt, Cause.REFUSED, error.line())], time.time())
            raise
        answer = await recording
        if answer.said is not Said.ACCEPTED:
            await self.signal(running, 9)
            raise NoSuchJob(f"job {spec.job} was already given to node {self.node}", answer.reason)
        return running

    def _check_free(self, spec: JobSpec, attempt: int) -> None:
        """Raise NoSuchJob if the attempt's name is in use: a start must not disturb what runs, least of all another's.

        A detached job of the same user may come twice: jobd then says that it is there.
        """
        holder = self.live.get(f"{spec.job}.{attempt}")
        if holder is not None and not (spec.detached and (holder.vo, holder.user, holder.detached) == (spec.vo, spec.user, True)):
            raise NoSuchJob(f"job {spec.job} was already given to node {self.node}", "its agent has started it by another message")

    def _accept_and_hand_over(self, offer: Offer) -> Any:
        answer = self.store.accept([offer], time.time())[0]
        if answer.said is Said.ACCEPTED:
            self.store.hand_over([(offer.job, offer.attempt)], self.life)
        return answer

    def enter(self, spec: JobSpec, *, attempt: int, sid: str, array: str = "") -> Running:
        """Count an attempt as live from now on; `let_go` if it does not start. Raises NoSuchJob: its name is in use."""
        self._check_free(spec, attempt)
        running = Running(
            spec.job, attempt, spec.user, spec.vo, sid, command_line(spec), spec.retry > 0, spec.detached, spec.tty is not None, time.time(),
            state="starting", array=array,
        )  # fmt: skip
        self.live[running.key] = running
        return running

    async def start(
        self,
        spec: JobSpec,
        *,
        attempt: int,
        sid: str,
        stdio: str | None = None,
        fds: tuple[int, ...] = (),
        netns: str | None = None,
    ) -> Running:
        """Make the sandbox and hand the recorded attempt to jobd. `stdio` "tasks" makes the sandbox of an array (see `arrays`)."""
        running = self.enter(spec, attempt=attempt, sid=sid)
        uid = self.accounts.uid_for(spec.user, spec.vo)
        try:
            if spec.files:
                await self.keep_ticket(spec.vo, spec.files)
            home = await self.home(spec.user, spec.vo, uid)
            running.netns = None if netns else await self.take_net(spec.vo)
            work = await self.shared(spec.vo)
            params = self._prepare(spec, running, uid, home, work, netns or running.netns, stdio=stdio, fds=bool(fds))
            await self._hand_over(running, params, fds)
        except RemoteError as error:
            if error.code == "job-exists" and spec.detached:
                return await self.adopt(running)
            self.let_go(running)
            raise
        except StartUnknown:
            raise  # the next look at jobd tells; until then it counts as running
        except BaseException:
            self.let_go(running)
            raise
        finally:
            running.started.set()
        if running.exit is None:
            running.state = "running"
        return running

    async def _hand_over(self, running: Running, params: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Have jobd start it; returns when it runs, or ran and is lost with a jobd that died.

        Raises:
            RemoteError: jobd refused. JobdRestarted, StartUnknown: see there.
        """
        try:
            await (await self.jobd()).call("start", params, timeout_s=START_S, fds=fds)
        except rpc.NoConnection as error:
            raise JobdRestarted(f"jobd of node {self.node} does not answer; nothing was started", "try again") from error
        except Unreachable as error:
            log.warning("%s: %s; asking jobd what became of it", running.key, error)
            await self._find_out(running)

    async def _find_out(self, running: Running) -> None:
        """Jobd went away in the midst of a start: ask it, or its next life, which writes down what may have run before it runs."""
        end = time.monotonic() + FIND_OUT_S
        while time.monotonic() < end:
            try:
                rows = await (await self.jobd()).call("list", timeout_s=FIND_OUT_S)
            except Unreachable:
                rows = [{"job": running.key, "state": "starting"}]  # not back yet
            row = next((row for row in rows if row["job"] == running.key), None)
            if row is None:
                raise JobdRestarted(f"jobd of node {self.node} was started anew; nothing was started", "try again")
            if row["state"] != "starting":
                self.live[running.key] = running
                if row.get("exit") is not None and running.exit is None:
                    await self._ended(running, row["exit"])
                return
            await asyncio.sleep(FIND_OUT_EVERY_S)
        raise StartUnknown(f"jobd of node {self.node} went away while it started job {running.job}", "see `xos ps`")

    async def adopt(self, asked: Running) -> Running:
        """An earlier daemon's last word reached jobd after we had looked: follow what runs, also if it has ended by now."""
        self._free_net(asked)
        rows = await (await self.jobd()).call("list", timeout_s=10)
        row = next((row for row in rows if row["job"] == asked.key), None)
        if row is None:
            return asked  # it ended meanwhile, and the watch told
        running = self.live[asked.key] = running_of(row, asked.job, asked.attempt, self.adopt_net)
        if row.get("exit") is not None:
            await self._ended(running, row["exit"])
        return running

    def _prepare(
        self,
        spec: JobSpec,
        running: Running,
        uid: int,
        home: Path,
        work: tuple[sandbox.Bind, ...],
        netns: str | None,
        *,
        stdio: str | None,
        fds: bool,
    ) -> dict[str, Any]:
        """Write the job's folder and bundle; return what jobd is asked."""
        folder = self.paths.jobs / running.key
        (folder / "spool").mkdir(parents=True, exist_ok=True, mode=0o700)
        group = cgroup_path(self.cgroups.tag, running.key)
        tasks = stdio == "tasks"
        described = replace(self._sandbox(spec, uid, home, folder, group, netns, fds), work=work, serves_tasks=tasks)
        bundle = sandbox.write_bundle(folder, described)
        return {
            "job": running.key,
            "bundle": str(bundle),
            "stdio": "fds" if fds else stdio or ("spool" if spec.detached else "pty" if spec.tty else "pipes"),
            "merged": spec.merged,
            "stderr_apart": spec.stderr_apart,
            "rows": spec.tty.rows if spec.tty else 24,
            "cols": spec.tty.cols if spec.tty else 80,
            **({"spool_dir": str(folder / "spool"), "spool_bytes_max": SPOOL_BYTES_MAX} if spec.detached and not tasks else {}),
            "wall_s": spec.wall_s,
            "cgroup": {"cpus": spec.cpus, "memory_bytes": spec.memory_bytes, "pids_max": PIDS_MAX},
            "meta": meta_of(running),
        }

    def _sandbox(self, spec: JobSpec, uid: int, home: Path, folder: Path, cgroup: str, netns: str | None, fds: bool) -> SandboxSpec:
        env = carried_env(spec.env)
        env |= {
            "HOME": str(home),
            "USER": spec.user,
            "LOGNAME": spec.user,
            "SHELL": "/bin/bash",
            "PATH": JOB_PATH,
            "XOS_JOB": spec.job,
            "XOS_NODE": self.node,
            "XOS_VO": spec.vo,
        }
        return SandboxSpec(
            uid=uid,
            gid=uid,
            groups=self.gids(spec.user, spec.vo),
            hostname=self.node,
            argv=tuple(spec.argv),
            env=tuple(env.items()),
            home=str(home),
            cwd=spec.cwd or str(home),
            fifo_dir=str(folder / "fifo"),
            init_path=self._init,
            root=self._root_of(uid),
            cgroup_path=cgroup,
            system=self._system,
            umask=spec.umask,
            nice=max(0, spec.nice),
            rlimits=tuple((f"RLIMIT_{name}", soft, hard) for name, (soft, hard) in spec.rlimits.items()),
            ignored_signals=tuple(spec.ignored_signals),
            terminal=(spec.tty.rows, spec.tty.cols) if spec.tty else None,
            stderr_apart=spec.stderr_apart,
            stdio_fds=fds,
            userdb_dir=str(self.paths.run / "userdb" / spec.vo),
            netns=netns,
            hidden=(str(self.paths.dir),),
        )

    def _root_of(self, uid: int) -> str:
        """Return the folder that is the root of a user's sandboxes, all read-only: made once, it spares each job twenty folders."""
        root = self.paths.private / "roots" / str(uid)
        if uid not in self._roots:
            root.parent.mkdir(exist_ok=True, mode=0o700)
            sandbox.make_root(root, self._system)
            self._roots.add(uid)
        return str(root)

    # -- what callers do with jobs ---------------------------------------------------------------------------------------

    def find(self, job: str, vo: str, user: str | None, attempt: int | None = None) -> Running:
        """Return a live (or just ended) attempt of `user` (None: anybody's) in `vo`; raises NoSuchJob."""
        found = [
            one
            for one in self.live.values()
            if one.job == job and one.vo == vo and attempt in (None, one.attempt) and one.attempt != SANDBOX
        ]
        if not found or (user is not None and found[-1].user != user):
            raise NoSuchJob(f"node {self.node} runs no job {job} of yours", "see `xos ps`")
        return found[-1]

    async def signal(self, running: Running, number: int) -> None:
        """Send a signal to the whole tree of a job; to one that is just starting, as soon as it runs."""
        await running.started.wait()
        await (await self.jobd()).call("signal", {"job": running.key, "signal": number}, timeout_s=10)

    async def attach(self, running: Running, call: rpc.ServerCall, params: dict[str, Any]) -> Any:
        """Join a caller's open call to jobd's: frames go both ways until the job has ended and all was acknowledged."""
        peer = await rpc.connect_unix(self.paths.jobd_socket)
        running.attached += 1
        try:
            inner = peer.open(
                "attach", {"job": running.key, "offsets": params.get("offsets") or {}, "steal": bool(params.get("steal"))}
            )
            up = asyncio.create_task(_pump(call, inner, peer), name=f"up {running.key}")
            try:
                result = await _pump(inner, call, call.peer)
            finally:
                up.cancel()
                with contextlib.suppress(asyncio.CancelledError, XosError):
                    await up
            # The caller is told first: should this daemon die now, jobd still has the end, and recovery records it.
            self._finish(running, result)
            return result
        finally:
            running.attached -= 1
            running.left_at = time.monotonic()
            peer.close()

    def _finish(self, running: Running, result: Any) -> None:
        async def finish() -> None:
            if running.exit is None and isinstance(result, dict) and result.get("exit"):
                await self._ended(running, result["exit"])
            if not running.detached:
                await self.forget(running)

        task = asyncio.create_task(finish(), name=f"finish {running.key}")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    def former_exit(self, job: str, vo: str, user: str, attempt: int | None) -> dict[str, Any] | None:
        """Return how a foreground job ended that is here no more: its agent has all its output but may not have heard the end.

        None if it did not end, is not known here, or is another user's or VO's.
        """
        rows = [one for one in self.store.get(vo, job, user) if one.origin == "run" and attempt in (None, one.attempt)]
        return rows[-1].exit if rows and rows[-1].state is AttemptState.ENDED else None

    async def describe(self, running: Running) -> JobSpec:
        """Return what a foreground job was started as.

        Raises:
            NoSuchJob: it is a detached one, which has no terminal to attach to.
        """
        attempts = [
            one for one in self.store.get(running.vo, running.job, running.user) if one.attempt == running.attempt and one.record
        ]
        if not attempts or running.detached:
            raise NoSuchJob(f"job {running.job} has no terminal to attach to", f"follow its output: xos logs -f {running.job}")
        return msgspec.msgpack.decode(attempts[0].record, type=JobSpec)

    def spool_of(self, job: str, vo: str, user: str) -> tuple[Path, Callable[[], bool]]:
        """Return the folder of a detached job's output, and a function that tells whether it has ended.

        Raises:
            NoSuchJob: not known here, not the user's in this VO, or not detached.
        """
        attempts = [one for one in self.store.get(vo, job, user) if one.origin == "sub"]
        key = f"{job}.{attempts[-1].attempt}" if attempts else ""
        if not attempts:
            raise NoSuchJob(f"node {self.node} has no output of a job {job} of yours", "see `xos ps -a`")
        return self.paths.jobs / key / "spool", lambda: key not in self.live

    async def wait_change(self) -> None:
        """Wait until some job of this node ended."""
        async with self._changed:
            await self._changed.wait()

    async def reap_orphans(self) -> None:
        """Hang up foreground jobs whose agent stays away; those that may run elsewhere die before that can happen."""
        while True:
            await asyncio.sleep(ORPHAN_LOOK_S if self.live else IDLE_LOOK_S)
            now = time.monotonic()
            for running in list(self.live.values()):
                if running.detached or running.attached:
                    continue
                away_s = now - running.left_at
                try:
                    if running.exit is not None:
                        if away_s > KEEP_ENDED_S:
                            await self.forget(running)
                    elif away_s > (FENCE_S if running.leased else ORPHAN_S):
                        log.info("%s: no agent for %.0f s; ending it", running.key, away_s)
                        await self.signal(running, 9 if running.leased or away_s > 2 * ORPHAN_S else 1)
                except XosError as error:
                    log.warning("%s: %s", running.key, error)

    def usage(self, running: Running) -> dict[str, Any]:
        """Return a listing row of an attempt, with what it uses now."""
        row: dict[str, Any] = {
            "job": running.job, "attempt": running.attempt, "user": running.user, "vo": running.vo, "node": self.node, "state": running.state,
            "command": running.name, "started_at": running.started_at, "tty": running.tty, "detached": running.detached, "exit": running.exit,
            "cpu_s": 0.0, "memory_bytes": 0, "pids": 0,
        }  # fmt: skip
        if running.exit is not None:
            row["cpu_s"] = float(running.exit.get("user_s", 0)) + float(running.exit.get("system_s", 0))
            return row
        with contextlib.suppress(OSError, XosError):
            stats = self.cgroups.stats(self.cgroups.adopt(running.key))
            row |= {"cpu_s": stats.cpu_s, "memory_bytes": stats.memory_bytes, "pids": stats.pids}
        return row


async def _pump(source: rpc.Call, target: rpc.Call, target_peer: rpc.Peer) -> Any:
    """Copy frames until RESULT; raises what `source` raises."""
    source.forward_to(target)
    while True:
        frame = await source.receive()
        if frame.kind is Kind.RESULT:
            return frame.body
        target.forward(frame)
        await target_peer.drain()


def command_line(spec: JobSpec) -> str:
    """Return the program and its arguments for listings, bounded."""
    return " ".join(spec.argv)[:160]


async def _no_ticket(_vo: str, _ticket: bytes) -> None:
    """Files are local here: there is nothing to hand a user's word to."""


async def _nothing_shared(_vo: str) -> tuple[sandbox.Bind, ...]:
    return ()


async def _folder_home(user: str, vo: str, uid: int) -> Path:
    return ensure_home(user, vo, uid)


def ensure_home(user: str, vo: str, uid: int) -> Path:
    """Make sure that the user's home exists on this node, 0700 and the user's; never through a link somebody laid."""
    home = Path("/home") / unix_name(user, vo)
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
    status = home.lstat()
    if not os.path.isdir(home) or home.is_symlink() or status.st_uid != uid:
        raise OwnerRefuses(f"{home} is not the home of {user}", "the node's owner must move it away")
    return home
