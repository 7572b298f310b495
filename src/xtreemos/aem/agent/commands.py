"""`ps`, `kill`, `wait`, `logs`, `attach`, `top`, `nodes`, `whoami`, `sub`: what the agent answers beside running programs.

Each command is an async function that writes through an `Out`; `CommandRun` makes it look like a run to the ghost, so that a
long one (`wait`, `logs -f`, `top`) streams and ends on Ctrl-C like any program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from xtreemos.aem import options
from xtreemos.aem.agent.core import AgentCore
from xtreemos.aem.agent.nodes import Candidate
from xtreemos.aem.agent.ports import Done, Ended, Hello, Output, Run, RunEvent
from xtreemos.aem.agent.remote import Placement, RemoteRun
from xtreemos.aem.agent.tables import exit_code_of, nodes_table, ps_table, signal_words, top_screen
from xtreemos.aem.jobspec import JobSpec, Winsize, from_wire
from xtreemos.aem.manager.model import NoManager
from xtreemos.aem.options import Parser
from xtreemos.errors import EXIT_FAILURE, NotFound, Unreachable, UsageError, XosError
from xtreemos.foundation import query
from xtreemos.names import check_job

log = logging.getLogger(__name__)

ALL_NODES = 10_000
ASK_S = 1.0
LOOK_S = 0.2
EVENTS_MAX = 64


class Out:
    """Where a command writes."""

    def __init__(self, events: asyncio.Queue[RunEvent], hello: Hello) -> None:
        self._events = events
        self.terminal = hello.isatty[1]
        self.size = Winsize(hello.tty.rows, hello.tty.cols) if hello.tty else Winsize(24, 80)

    async def write(self, text: str | bytes) -> None:
        """Write to standard output."""
        data = text.encode() if isinstance(text, str) else text
        for at in range(0, len(data), 32768):
            await self._events.put(Output(1, data[at : at + 32768]))

    async def error(self, text: str) -> None:
        """Write one line to standard error."""
        await self._events.put(Output(2, f"xos: {text}\n".encode()))


class CommandRun:
    """A command as a run: see aem/agent/ports.py, Run."""

    wants_tty = False

    def __init__(self, token: str, work: Callable[[Out], Awaitable[int]], hello: Hello) -> None:
        self.token = token
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue(EVENTS_MAX)
        self._out = Out(self._events, hello)
        self._killed_by: int | None = None
        self._task = asyncio.create_task(self._run(work), name=f"command {token}")

    async def _run(self, work: Callable[[Out], Awaitable[int]]) -> None:
        record: dict[str, Any] = {"code": EXIT_FAILURE, "signal": None, "core": False}
        try:
            record["code"] = await work(self._out)
        except options.HelpWanted as text:
            record["code"] = 0
            await self._out.write(str(text))
        except XosError as error:
            record["code"] = error.exit_code
            await self._out.error(error.line())
        except Exception:
            log.exception("command %s failed", self.token)
            await self._out.error("the session's agent failed inside; see its log")
        except asyncio.CancelledError:
            record = {"code": None, "signal": self._killed_by or int(signal.SIGINT), "core": False}
        await self._events.put(Ended(record))

    async def read(self) -> RunEvent:
        return await self._events.get()

    async def write_stdin(self, data: bytes) -> None:
        """Commands read nothing."""

    async def close_stdin(self) -> None:
        """Commands read nothing."""

    async def stdin_closed(self) -> None:
        """Say at once that nothing is read."""

    async def signal(self, number: int) -> None:
        """End on the signals that end a program."""
        if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL, signal.SIGPIPE):
            self._killed_by = number
            self._task.cancel()

    def consumed(self, stream: int, count: int) -> None:
        """Nothing is kept."""

    async def renice(self, nice: int) -> None:
        """A command is part of the agent."""

    async def winsize(self, rows: int, cols: int) -> None:
        """Remember the size for commands that fill the screen."""
        self._out.size = Winsize(rows, cols)

    async def output_broken(self, stream: int) -> None:
        """Nobody reads any more."""
        if stream == 1:
            await self.signal(signal.SIGPIPE)

    def detach(self) -> None:
        """The ghost is gone: end."""
        self._task.cancel()


def _parser(name: str, text: str, *, as_json: bool = True) -> Parser:
    parser = Parser(prog=f"xos {name}", description=text)
    if as_json:
        parser.add_argument("--json", action="store_true", help="one JSON value for programs")
    parser.add_argument("--vo", help=argparse.SUPPRESS)
    return parser


class Commands:
    """The commands of one session."""

    def __init__(
        self,
        core: AgentCore,
        *,
        whoami: Callable[[], dict[str, Any]],
        detached: Any = None,
        ssh_config: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self.core = core
        self.whoami = whoami
        self.detached = detached
        self.ssh_config = ssh_config

    async def start(self, name: str, words: list[str], hello: Hello) -> Run | Done:
        """Start one command."""
        if name == "attach":
            return await self._attach(words, hello)
        work: Callable[[list[str], Hello, Out], Awaitable[int]] = getattr(self, f"_{name.replace('-', '_')}")
        return CommandRun(f"{name}-{time.monotonic_ns()}", lambda out: work(words, hello, out), hello)

    # -- jobs ------------------------------------------------------------------------------------------------------------

    async def rows(self, everybody: bool = False, jobs: list[str] | None = None) -> list[dict[str, Any]]:
        """Return rows of the user's jobs (see NodeJobs.usage), the VO's nodes asked at once, queued detached ones included.

        With `jobs` detached ones are asked for by name, and not all that ended within a day.
        """
        wanted = "" if everybody else f"users=={self.core.user}"
        nodes = await self._ask_nodes(wanted)
        answers = await asyncio.gather(
            *(self.core.pool.call(one.node, "job.list", {"everybody": everybody}, timeout_s=5.0) for one in nodes),
            return_exceptions=True,
        )
        rows: dict[str, dict[str, Any]] = {}
        if self.detached is not None:
            for row in await (self.detached.rows() if jobs is None else self.detached.rows_of(jobs)):
                rows[row["job"]] = row
        for answer in answers:
            if isinstance(answer, XosError):
                continue  # a node that went away between two questions has nothing to list
            if isinstance(answer, BaseException):
                raise answer
            for row in answer["jobs"]:
                rows[row["job"]] = {**rows.get(row["job"], {}), **row}
        return sorted(rows.values(), key=lambda row: (row.get("started_at") or row.get("submitted_at") or 0.0, row["job"]))

    async def _ask_nodes(self, where: str) -> list[Candidate]:
        """Return the nodes that match; none if none answers: what the VO's manager knows is shown all the same."""
        try:
            return await self.core.pool.ask(where, ALL_NODES, ASK_S)
        except Unreachable:
            return []

    async def _ps(self, words: list[str], _hello: Hello, out: Out) -> int:
        parser = _parser("ps", "List your jobs.")
        parser.add_argument("-a", "--all", action="store_true", help="of all users, as far as you may see them; ended ones too")
        chosen = parser.parse_args(words)
        rows = await self.rows()
        if not chosen.all:
            rows = [row for row in rows if row.get("state") != "exited" and row.get("state") != "ended"]
        if chosen.json:
            await out.write(json.dumps(rows, indent=1) + "\n")
        else:
            await out.write(ps_table(rows, out.size.cols if out.terminal else None))
        return 0

    async def _top(self, words: list[str], _hello: Hello, out: Out) -> int:
        parser = _parser("top", "Show your jobs and the nodes, again every second.", as_json=False)
        parser.add_argument("-n", type=int, default=0, metavar="N", help="stop after N screens")
        parser.add_argument("-d", type=float, default=1.0, metavar="S", help="seconds between screens")
        chosen = parser.parse_args(words)
        shown = 0
        while True:
            rows = [row for row in await self.rows() if row.get("state") not in ("exited", "ended")]
            nodes = await self._ask_nodes("")
            screen = top_screen(rows, nodes, out.size.cols if out.terminal else None)
            await out.write(("\x1b[H\x1b[2J" if out.terminal else "") + screen)
            shown += 1
            if chosen.n and shown >= chosen.n:
                return 0
            await asyncio.sleep(max(0.1, chosen.d))

    async def _find(self, job: str) -> dict[str, Any]:
        check_job(job)
        run = self.core.runs.get(job)
        if run is not None:
            return {"job": job, "node": run.node, "state": "running", "detached": False}
        for row in await self.rows(jobs=[job]):
            if row["job"] == job:
                return row
        raise NotFound(f"there is no job {job} of yours", "see `xos ps -a`")

    async def _kill(self, words: list[str], _hello: Hello, out: Out) -> int:
        number, jobs = signal_words(words)
        failed = 0
        rows = await self._by_job(jobs) if len(jobs) > 1 else {}
        for job in jobs:
            try:
                row = rows.get(job) or await self._find(job)
                if row.get("state") in ("exited", "ended"):
                    raise NotFound(f"job {job} has already ended")
                if self.detached is not None and row.get("detached"):
                    await self.detached.kill(job, number)
                else:
                    await self.core.pool.call(row["node"], "job.signal", {"job": job, "signal": number})
            except XosError as error:
                failed = error.exit_code
                await out.error(error.line())
        return failed

    async def _wait(self, words: list[str], _hello: Hello, out: Out) -> int:
        parser = _parser("wait", "Wait until jobs have ended; the exit code is that of the last one.")
        parser.add_argument("jobs", nargs="+", metavar="JOB")
        chosen = parser.parse_args(words)
        rows = await self._find_all(chosen.jobs)
        detached = [job for job, row in rows.items() if row.get("detached") and not row.get("exit")]
        others = [job for job in rows if job not in set(detached)]
        ends = dict(zip(others, await asyncio.gather(*(self._wait_one(rows[job]) for job in others)), strict=True))
        if detached:
            ends |= await self.detached.wait(detached)
        for job in rows:
            if ends[job].get("reason"):
                await out.error(f"job {job}: {ends[job]['reason']}")
        if chosen.json:
            await out.write(json.dumps([{"job": job, "exit": ends[job]} for job in chosen.jobs], indent=1) + "\n")
        return exit_code_of(ends[chosen.jobs[-1]])

    async def _by_job(self, jobs: list[str]) -> dict[str, dict[str, Any]]:
        return {row["job"]: row for row in await self.rows(jobs=jobs)}

    async def _find_all(self, jobs: list[str]) -> dict[str, dict[str, Any]]:
        """Return the row of each job, from one look at everything; waits for a manager, because who waits, waits."""
        while True:
            try:
                rows = await self._by_job(jobs) if len(jobs) > 1 else {}
                return {job: rows.get(job) or await self._find(job) for job in jobs}
            except XosError as error:
                if error.code != NoManager.code:
                    raise
                await asyncio.sleep(LOOK_S)

    async def _wait_one(self, row: dict[str, Any]) -> dict[str, Any]:
        if row.get("exit"):
            return dict(row["exit"])
        job = row["job"]
        peer = await self.core.pool.peer(row["node"])
        return dict(await peer.open("job.wait", {"job": job}).result())

    async def _logs(self, words: list[str], _hello: Hello, out: Out) -> int:
        parser = _parser("logs", "Show what a detached job wrote.", as_json=False)
        parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
        parser.add_argument("--stderr", action="store_true", help="standard error only")
        parser.add_argument("--stdout", action="store_true", help="standard output only")
        parser.add_argument("job", metavar="JOB")
        chosen = parser.parse_args(words)
        row = await self._find(chosen.job)
        while row.get("state") in ("queued", "starting"):
            if not chosen.follow:
                raise NotFound(
                    f"job {chosen.job} has not started yet", row.get("reason") or "wait for it: xos logs -f " + chosen.job
                )
            await asyncio.sleep(LOOK_S)  # the manager tells of ends, not of starts
            row = await self._find(chosen.job)
        if not row.get("node"):
            raise NotFound(f"job {chosen.job} never started", row.get("reason") or "see `xos ps -a`")
        streams = [1, 2] if chosen.stdout == chosen.stderr else [1] if chosen.stdout else [2]
        call = await self.core.pool.open(row["node"], "job.logs", {"job": chosen.job, "follow": chosen.follow, "streams": streams})
        while True:
            frame = await call.receive()
            if frame.kind.name == "DATA":
                if frame.stream == 1:
                    await out.write(frame.body)
                else:
                    await out._events.put(Output(2, frame.body))  # noqa: SLF001  # bytes as they are, not a message of ours
                call.send_ack(frame.stream, frame.offset + len(frame.body))
            elif frame.kind.name == "RESULT":
                return 0

    async def _attach(self, words: list[str], hello: Hello) -> Run:
        parser = _parser("attach", "Connect this terminal to a running job.", as_json=False)
        parser.add_argument("job", metavar="JOB")
        chosen = parser.parse_args(words)
        row = await self._find(chosen.job)
        if row.get("detached") and not row.get("tty"):
            raise UsageError(f"job {chosen.job} runs detached and has no terminal", f"follow its output: xos logs -f {chosen.job}")
        return await self.join(chosen.job, row["node"], hello)

    async def resume(self, token: str, hello: Hello) -> Run:
        """Take up the run of a ghost that outlived an agent."""
        return await self.join(token, (await self._find(token))["node"], hello)

    async def join(self, job: str, node: str, hello: Hello) -> Run:
        """Attach to a job that runs on `node`; whoever was attached is told that it was taken over."""
        call = await self.core.pool.open(node, "job.attach", {"job": job, "offsets": {}, "steal": True, "describe": True})
        first = await call.receive()
        spec: JobSpec = from_wire(first.body["spec"])
        placement = Placement(node, call, int(first.body["attempt"]))
        run = RemoteRun(spec, placement, place=self.core.place, reattach=self.core.reattach, retryable=False, joined=True)
        self.core.remember(run)
        if spec.tty is not None and hello.tty is not None:
            await run.winsize(hello.tty.rows, hello.tty.cols)
        return run

    async def _sub(self, words: list[str], hello: Hello, out: Out) -> int:
        chosen = options.parse("sub", words)
        if self.detached is None:
            raise UsageError("this VO takes no detached jobs")
        spec = self.core.spec(chosen, hello, detached=True)
        await self.detached.submit(spec)
        await out.write("".join(f"{job}\n" for job in spec.tasks()))
        return 0

    # -- the VO ----------------------------------------------------------------------------------------------------------

    async def _nodes(self, words: list[str], _hello: Hello, out: Out) -> int:
        parser = _parser("nodes", "List nodes of the VO; each answers about itself.")
        parser.add_argument("--where", metavar="EXPR", help="only those that match, for example 'cpus>=2 and memory>=1G'")
        chosen = parser.parse_args(words)
        query.parse(chosen.where)
        nodes = sorted(await self.core.pool.ask(chosen.where, ALL_NODES, ASK_S), key=lambda one: one.node)
        if chosen.json:
            rows = [
                {**one.facts, "node": one.node, "address": one.address, "running": one.running, "free": one.free} for one in nodes
            ]
            await out.write(json.dumps(rows, indent=1) + "\n")
        else:
            await out.write(nodes_table(nodes))
        return 0

    async def _ssh_config(self, words: list[str], _hello: Hello, out: Out) -> int:
        text = "Print what makes plain ssh, scp and sftp work with this session: xos ssh-config > ~/.ssh/config.d/VO"
        _parser("ssh-config", text, as_json=False).parse_args(words)
        if self.ssh_config is None:
            raise UsageError("`xos ssh-config` is not offered here")
        await out.write(await self.ssh_config())
        return 0

    async def _whoami(self, words: list[str], _hello: Hello, out: Out) -> int:
        chosen = _parser("whoami", "Tell who you are in the grid.").parse_args(words)
        me = self.whoami()
        if chosen.json:
            await out.write(json.dumps(me, indent=1) + "\n")
        else:
            left = max(0, int(me["expires_at"] - time.time()))
            await out.write(
                f"{me['user']}@{me['vo']}  session {me['sid'][:8]}  roles {','.join(me['roles'])}  valid {left // 3600}h{left % 3600 // 60:02d}m\n"
            )
        return 0
