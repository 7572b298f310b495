"""The jobs of a node without the node: `LocalJobs` and its service on a real store, with a jobd of which the test says what it does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.nodestore import NodeStore
from xtreemos.errors import XosError
from xtreemos.fabric import rpc
from xtreemos.fabric.caller import Caller
from xtreemos.foundation.accounts import Accounts
from xtreemos.foundation.cgroups import Cgroups
from xtreemos.foundation.paths import NodePaths
from xtreemos.names import unix_name
from xtreemos.node.deposits import Deposits
from xtreemos.node.jobs import LocalJobs
from xtreemos.node.service import JobService

VO = "xost3"
USER = "alice"


class ScriptedJobd:
    """Speaks jobd's protocol; `known` is its list. `on_start(call)` decides what a start does: answer, fail, or die by `die`."""

    _lives = itertools.count(1)

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._server: rpc.Server | None = None
        self.known: dict[str, dict[str, Any]] = {}
        self.signals: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.starts: list[str] = []
        self.on_start: Any = self.take
        self._watches: list[rpc.ServerCall] = []

    async def up(self) -> None:
        """Begin a new life."""
        self._life = next(self._lives)
        table = {name: getattr(self, f"_{name}") for name in ("hello", "list", "start", "watch", "signal", "forget", "attach")}
        self._server = await rpc.serve_unix(self._socket, table)

    async def die(self) -> None:
        """End this life: connections break, nobody listens. What it knew is `known`'s to say."""
        if self._server is not None:
            server, self._server, self._watches = self._server, None, []
            await server.close()

    def tell(self, key: str, **changes: Any) -> None:
        """Something happened to a job: every watch hears of it."""
        self.known[key] |= changes
        for watch in self._watches:
            watch.send_event({"type": "job", **self.known[key]})

    async def take(self, call: rpc.ServerCall) -> Any:
        """Start it."""
        params = call.params
        self.known[params["job"]] = {
            "job": params["job"],
            "state": "running",
            "meta": params["meta"],
            "exit": None,
            "started_at": 1.0,
        }
        return {"pid": 4711}

    async def _hello(self, _call: rpc.ServerCall) -> Any:
        return {"pid": self._life, "version": "test", "started_at": float(self._life)}

    async def _list(self, _call: rpc.ServerCall) -> Any:
        return list(self.known.values())

    async def _start(self, call: rpc.ServerCall) -> Any:
        self.starts.append(call.params["job"])
        return await self.on_start(call)

    async def _watch(self, call: rpc.ServerCall) -> Any:
        self._watches.append(call)
        await asyncio.Event().wait()

    async def _signal(self, call: rpc.ServerCall) -> Any:
        self.signals.append((call.params["job"], call.params["signal"]))
        return {}

    async def _forget(self, call: rpc.ServerCall) -> Any:
        keys = call.params.get("jobs") or [call.params["job"]]
        self.forgotten += keys
        for key in keys:
            self.known.pop(key, None)
        return {}

    async def _attach(self, call: rpc.ServerCall) -> Any:
        while self.known[call.params["job"]]["exit"] is None:
            await call.receive()
        return {"exit": self.known[call.params["job"]]["exit"]}


class NodeKit:
    """`jobs`, its `service`, the `store` and a scripted `jobd`; `as_user` connects to the service as somebody."""

    def __init__(self, folder: Path) -> None:
        self.paths = NodePaths(folder)
        self.paths.jobs.mkdir(parents=True)
        self.paths.run.mkdir(parents=True, exist_ok=True)
        self.store = NodeStore(self.paths.private / "jobs.sqlite")
        self._executor = ThreadPoolExecutor(1)
        self.given_back: list[str] = []
        self._nets = itertools.count(1)
        self.refusal: XosError | None = None
        self.jobs = LocalJobs(
            paths=self.paths, node="n1", facts=lambda: {"cpus": 2, "memory": 1 << 30}, slots=4, store=self.store,
            commit=GroupCommit(self.store, self._executor), accounts=Accounts(self.paths.private / "accounts.sqlite"),
            cgroups=Cgroups("t3", folder, {}), take_net=self._take_net, give_net=self._give_net, allowed=self._allowed,
        )  # fmt: skip
        self.jobd = ScriptedJobd(self.paths.jobd_socket)
        self.service = JobService(self.jobs, Deposits())

    async def _take_net(self, _vo: str) -> str | None:
        return f"/net/{next(self._nets)}"

    def _give_net(self, path: str, _vo: str) -> None:
        self.given_back.append(path)

    def _allowed(self, _spec: Any) -> None:
        if self.refusal is not None:
            raise self.refusal

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[rpc.Server]:
        """Jobd lives, the jobs follow it, the service listens; all ended at the end."""
        await self.jobd.up()
        server = await rpc.serve_unix(self.paths.run / "service", self.service.methods())
        following = asyncio.create_task(self.jobs.follow())
        self.server = server
        try:
            await asyncio.wait_for(self.jobs.wait_life(), 10)
            yield server
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await server.close()
            await self.jobd.die()

    async def as_user(self, name: str = USER, vo: str = VO) -> rpc.Peer:
        """Connect as a user of a VO."""
        before = set(self.server.peers)
        peer = await rpc.connect_unix(self.paths.run / "service")
        while not (fresh := self.server.peers - before):
            await asyncio.sleep(0)
        fresh.pop().caller = Caller("user", vo=vo, name=name, sid="ab" * 16)
        return peer

    def close(self) -> None:
        """Remove what a start made outside the folder."""
        self.store.close()
        self._executor.shutdown()
        shutil.rmtree(Path("/home") / unix_name(USER, VO), ignore_errors=True)


async def until(holds: Any) -> None:
    """Wait until `holds()`; the test's own time limit is the bound."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)
