"""The agent's middle: a command line comes in, a running job or an answer comes out.

It decides where a program goes (candidates in order, each node has its own last word) and keeps what `xos ps`, `kill`, `wait`
need to know of the jobs it started. How bytes get to a terminal is `ghosts`, how they get to a node `remote`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

from xtreemos.aem import options
from xtreemos.aem.agent.local import LocalNode
from xtreemos.aem.agent.nodes import Candidate, NodePool, NoNode
from xtreemos.aem.agent.patience import Patience, Refusals
from xtreemos.aem.agent.ports import Done, GoTo, Hello, NotMine, Run
from xtreemos.aem.agent.remote import LOST_S, NodeDied, Placement, RemoteRun, start_params
from xtreemos.aem.jobspec import JobSpec, Winsize, carried_env
from xtreemos.errors import RemoteError, TryLater, Unreachable, UsageError, XosError
from xtreemos.fabric.rpc import ClientCall, ConnectionLost
from xtreemos.foundation.frames import Kind
from xtreemos.names import array_id, job_id

log = logging.getLogger(__name__)

START_S = 30.0
INFINITY = 2**63 - 1
LOOK_AGAIN_S = 0.25
ELSEWHERE = frozenset(
    {
        "node-full",
        "not-matching",
        "owner-refuses",
        "home-missing",
        "no-connection",
        "nodes-silent",
        "try-later",
        "jobd-restarted",
        "job-store-broken",
    }
)
COMMANDS = ("run", "sub", "ps", "kill", "wait", "logs", "attach", "nodes", "whoami", "top", "ssh-config")
ALIASES = {"xsub": "sub", "xps": "ps", "xkill": "kill", "xwait": "wait"}

Say = Callable[[str], None]


class AgentCore:
    """Everything that one session does, apart from terminals and sockets."""

    def __init__(self, *, vo: str, user: str, pool: NodePool, local: LocalNode | None = None, commands: Any = None) -> None:
        self.vo = vo
        self.user = user
        self.pool = pool
        self.local = local
        self.commands = commands
        self.runs: dict[str, RemoteRun] = {}
        self._trials = itertools.count(1)
        self._ending: set[asyncio.Task[None]] = set()

    # -- words -----------------------------------------------------------------------------------------------------------

    async def launch(self, hello: Hello) -> Run | Done:
        """Carry out one command line; errors become one line and an exit code."""
        try:
            name, words = split_command(hello.words)
            if name == "run":
                return await self.run(options.parse("run", words), hello)
            if self.commands is None:
                raise UsageError(f"`xos {name}` is not offered here")
            answer: Run | Done = await self.commands.start(name, words, hello)
            return answer
        except options.HelpWanted as wanted:
            return Done(0, str(wanted).encode(), b"")
        except XosError as error:
            return Done(error.exit_code, b"", f"xos: {error.line()}\n".encode())

    def spec(self, chosen: options.RunOptions, hello: Hello, *, detached: bool = False) -> JobSpec:
        """Describe the job that `chosen` asks for, as `hello`'s process would have run it locally."""
        local = hello.environment
        env = carried_env(local)
        for row in chosen.env:
            name, equals, value = row.partition("=")
            if equals:
                env[name] = value
            elif name in local:
                env[name] = local[name]
        terminal = bool(hello.tty and hello.tty.raw_allowed) if chosen.force_tty is None else chosen.force_tty
        size = Winsize(hello.tty.rows, hello.tty.cols) if hello.tty else Winsize(24, 80)
        return JobSpec(
            job=array_id(os.urandom(8)) if chosen.count > 1 else job_id(os.urandom(8)),
            vo=self.vo,
            user=self.user,
            argv=chosen.argv,
            env=env,
            cwd=os.fsdecode(hello.cwd),
            umask=hello.umask,
            nice=hello.nice,
            rlimits=carried_limits(hello.rlimits),
            cpus=chosen.cpus,
            memory_bytes=chosen.memory_bytes,
            wall_s=chosen.wall_s,
            where=chosen.where,
            node=chosen.node,
            tty=size if terminal and not detached else None,
            merged=hello.merged and not terminal and not detached,
            stderr_apart=terminal and not detached and not hello.isatty[2],
            detached=detached,
            retry=chosen.retry,
            ignored_signals=list(hello.ignored),
            submitted_at=time.time(),
            count=chosen.count if detached else 1,
        )

    # -- running ---------------------------------------------------------------------------------------------------------

    async def run(self, chosen: options.RunOptions, hello: Hello) -> Run:
        """Begin to place and start a program; what becomes of it are the run's events."""
        if chosen.vo not in (None, self.vo):
            raise UsageError(f"this session is of VO {self.vo}, not {chosen.vo}", f"log in first: xos login USER@{chosen.vo}")
        spec = self.spec(chosen, hello)
        placement = await self._place_here(spec, chosen, hello)
        run = RemoteRun(
            spec,
            placement,
            place=self.place,
            reattach=self.reattach,
            retryable=True,
            direct=placement is not None,
            times=chosen.times,
        )
        self.remember(run)
        if chosen.no_stdin:
            await run.close_stdin()
        return run

    def remember(self, run: RemoteRun) -> None:
        """Keep `run` until it is done; one that attached later takes its place and stays."""
        self.runs[run.spec.job] = run
        run.on_done(lambda: self.runs.pop(run.spec.job) if self.runs.get(run.spec.job) is run else None)

    async def _place_here(self, spec: JobSpec, chosen: options.RunOptions, hello: Hello) -> Placement | None:
        """Start a program with the caller's own descriptors if this machine's node is the best place for it; else None.

        Not with `--retry`: who reads the descriptors itself leaves nothing to replay.
        """
        if self.local is None or not self.local.name or hello.descriptors is None or spec.tty or spec.retry or chosen.no_stdin:
            return None
        try:
            best = self.pool.ordered(await self.pool.candidates(spec.where, spec.node), frozenset())[:1]
        except (NoNode, Unreachable):
            return None  # `place` looks again, and has the patience for daemons that are just starting anew
        if [one.node for one in best] != [self.local.name]:
            return None
        ticket = await self.local.deposit(hello.descriptors)
        if ticket is None:
            return None
        try:
            return await self._start_on(spec, 1, self.local.name, ticket)
        except XosError as error:
            if error.code not in ELSEWHERE or not error.definite:
                raise
            return None

    async def place(self, spec: JobSpec, attempt: int, avoid: frozenset[str], say: Say) -> Placement:
        """Find a node that takes this attempt and start it there.

        Waits while every matching node is full, and up to LOST_S for nodes that are away (the user is told); gives up at once
        when none matches or all refuse.

        Raises:
            NoNode, or what the last node said. Definite: not started.
        """
        patience = Patience(time.monotonic(), LOST_S)
        while True:
            try:
                found = self.pool.ordered(await self.pool.candidates(spec.where, spec.node), avoid)
            except (NoNode, Unreachable) as error:
                placement, refusals = None, self._silence(spec, error, patience)
            else:
                placement, refusals = await self._try_each(spec, attempt, found)
            if placement is not None:
                return placement
            if not patience.lasts(refusals, time.monotonic()):
                raise _no_node(patience.refusals)
            if line := patience.line(time.monotonic()):
                say(line)
            await asyncio.sleep(LOOK_AGAIN_S)

    def _silence(self, spec: JobSpec, error: XosError, patience: Patience) -> Refusals:
        """Say what it means that no node offered itself: raises `error` if that is the answer."""
        if isinstance(error, Unreachable):
            return [(spec.node or "the nodes", error)]
        if self.pool.was_seen(spec.node):
            return [(str(spec.node), Unreachable(f"node {spec.node} does not answer", "see `xos nodes`"))]
        if not patience.some_were_there:
            raise error
        return []

    async def _try_each(
        self, spec: JobSpec, attempt: int, candidates: list[Candidate]
    ) -> tuple[Placement | None, list[tuple[str, XosError]]]:
        refusals: list[tuple[str, XosError]] = []
        for one in candidates:
            try:
                return await self._start_on(spec, attempt, one.node), refusals
            except XosError as error:
                if error.code not in ELSEWHERE or not error.definite:
                    raise
                refusals.append((one.node, error))
                if error.code != "node-full":
                    self.pool.forget(one.node)
        return None, refusals

    async def _start_on(self, spec: JobSpec, attempt: int, node: str, ticket: str = "") -> Placement:
        params = start_params(spec, attempt)
        if ticket:
            params["fds"] = ticket
        while True:
            trial = next(self._trials)
            call = await self.pool.open(node, "run.start", {**params, "trial": trial})
            self.pool.started(node)
            try:
                async with asyncio.timeout(START_S):
                    frame = await call.receive()
            except TimeoutError:
                call.close()
                raise NodeDied(f"node {node} took the program and does not answer", "it may have started; see `xos ps`") from None
            except asyncio.CancelledError:
                self._unwanted(call, spec)
                raise
            except ConnectionLost as error:
                placement = await self._make_sure(spec, attempt, trial, node)
                if placement is not None:
                    return placement
                if ticket:  # the descriptors are gone with the daemon that held them
                    raise TryLater(f"node {node} has just started again; nothing was started", "try again") from error
                continue
            assert frame.kind is Kind.EVENT, "a start is answered by the event `started` first"
            return Placement(node, call, attempt)

    def _unwanted(self, call: ClientCall, spec: JobSpec) -> None:
        """Nobody waits for a program any more whose start is under way: end it when it is there."""

        async def end() -> None:
            call.send_event({"type": "signal", "signal": int(signal.SIGKILL)})
            with contextlib.suppress(XosError, TimeoutError):  # if this fails the node ends it, as an orphan
                async with asyncio.timeout(START_S):
                    while (frame := await call.receive()).kind is not Kind.RESULT:
                        if frame.kind is Kind.DATA:
                            call.send_ack(frame.stream, frame.offset + len(frame.body))
            call.close()

        task = asyncio.create_task(end(), name=f"end {spec.job}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _make_sure(self, spec: JobSpec, attempt: int, trial: int, node: str) -> Placement | None:
        """The line broke before the node said that it started: find the program there (returned), or have it never start (None).

        Raises:
            NodeDied: the node does not come back; nobody knows.
        """
        params = {"job": spec.job, "attempt": attempt, "trial": trial}
        since = time.monotonic()
        while time.monotonic() - since < LOST_S:
            try:
                answer = await self.pool.call(node, "run.void", params)
                if not answer["here"]:
                    return None
                call = await self.reattach(node, {"job": spec.job, "attempt": attempt, "offsets": {}, "steal": True})
                return Placement(node, call, attempt)
            except (Unreachable, TryLater) as error:
                log.info("node %s, is %s there? %s", node, spec.job, error)
                await asyncio.sleep(LOOK_AGAIN_S)
        raise NodeDied(f"node {node} took the program and is away since", "it may have started; see `xos ps`")

    async def reattach(self, node: str, params: dict[str, Any]) -> ClientCall:
        """Open the streams of a running job on `node` again."""
        return await self.pool.open(node, "job.attach", params)


def split_command(argv: list[str]) -> tuple[str, list[str]]:
    """Return the subcommand and its words out of a whole command line (`xos [--grid D] [--vo V] run ...`, or an alias).

    What stands before the subcommand was for `choose`.
    """
    program = os.path.basename(argv[0]) if argv else "xos"
    if program in ALIASES:
        return ALIASES[program], argv[1:]
    if program != "xos":
        return "run", ["--", program, *argv[1:]]
    at = len(_before_subcommand(argv)) + 1
    if at >= len(argv) or argv[at] not in COMMANDS:
        raise UsageError("no command the agent knows", "see `xos --help`")
    return argv[at], argv[at + 1 :]


def _before_subcommand(argv: list[str]) -> list[str]:
    at = 1
    while at < len(argv) and argv[at].startswith("-"):
        at += 2 if argv[at] in ("--grid", "--vo") else 1
    return argv[1:at]


def choose(argv: list[str], vo: str) -> GoTo | NotMine | None:
    """Tell who answers a command line: None is the agent of `vo`, GoTo another VO's, NotMine the Python command line.

    `--vo` counts before the subcommand, or before the program of `run` and `sub`.
    """
    program = os.path.basename(argv[0])
    if program not in (*ALIASES, "xos"):
        return None
    before = _before_subcommand(argv) if program == "xos" else []
    if "--grid" in before or "-h" in before or "--help" in before:
        return NotMine()
    rest = argv[len(before) + 1 :]
    if rest[:1] in (["run"], ["sub"]):
        before += options.own_words(rest[0], rest[1:])
    else:
        before += rest
    named = [before[at + 1] for at, word in enumerate(before[:-1]) if word == "--vo"]
    return GoTo(named[-1]) if named and named[-1] != vo else None


def carried_limits(rlimits: tuple[tuple[int, int], ...]) -> dict[str, tuple[int, int]]:
    """Return the limits that go with a job: those that are not infinite. Locked memory and process counts are the node's affair.

    `rlimits`: (soft, hard) per resource number, as in Hello; -1 in the result is infinity.
    """
    kept = {}
    for name in ("CPU", "FSIZE", "DATA", "STACK", "CORE", "NOFILE", "AS"):
        number = getattr(resource, f"RLIMIT_{name}")
        if number >= len(rlimits):
            continue
        soft, hard = (-1 if value >= INFINITY else value for value in rlimits[number])
        if (soft, hard) != (-1, -1):
            kept[name] = (soft, hard)
    return kept


def _no_node(refusals: list[tuple[str, XosError]]) -> XosError:
    if not refusals:
        return NoNode("no node of the VO takes programs now", "see `xos nodes`")
    error = refusals[-1][1]
    if len(refusals) == 1:
        return error
    reasons = {error.message for _node, error in refusals}
    if len(reasons) == 1:
        return error
    rows = "; ".join(f"{node}: {error.message}" for node, error in refusals[:3])
    return RemoteError({**error.to_wire(), "message": f"none of {len(refusals)} nodes takes the program ({rows})"})
