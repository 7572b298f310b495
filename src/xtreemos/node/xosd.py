"""`python -m xtreemos.node.xosd --dir DIR`: the daemon that decides on one node. Only here are the rooms wired together.

It may be killed or upgraded at any time: jobs live under jobd, what was accepted is in the store, what is true of the VO is in the
fabric; everything here is built again from those three.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from xtreemos.aem.groupcommit import GroupCommit
from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.fabricport import FabricPort
from xtreemos.aem.manager.model import Capacity
from xtreemos.aem.manager.signed import Submission
from xtreemos.aem.nodejobs import ContactFile, Hooks
from xtreemos.aem.nodejobs import NodeJobs as DetachedJobs
from xtreemos.aem.nodestore import NodeStore
from xtreemos.errors import NotFound, PermissionRefused, RemoteError, Unreachable, XosError
from xtreemos.fabric import rpc, subjects
from xtreemos.fabric.caller import CallerKind
from xtreemos.fabric.link import Message
from xtreemos.fabric.rpc import Handler, Server, ServerCall
from xtreemos.fabric.sysaccount import SystemAccount
from xtreemos.foundation import query
from xtreemos.foundation.accounts import Accounts
from xtreemos.foundation.cgroups import Cgroups
from xtreemos.foundation.facts import live_facts, read_tags, static_facts
from xtreemos.foundation.paths import NATS_PORT, RPC_PORT, NodePaths
from xtreemos.node import growing, joining, start
from xtreemos.node.admin import Admin
from xtreemos.node.arrays import Arrays, may_share
from xtreemos.node.config import NodeConfig, load_node, save_node
from xtreemos.node.deposits import Deposits
from xtreemos.node.dirservice import DirService
from xtreemos.node.files import Files
from xtreemos.node.guests import Guests
from xtreemos.node.homes import place_of, unbind_all
from xtreemos.node.jobs import SLOTS_PER_CPU, LocalJobs, ensure_home
from xtreemos.node.nets import Nets, open_pool
from xtreemos.node.policies import NodePolicy
from xtreemos.node.refusals import NoSuchJob
from xtreemos.node.service import JobService, guarded
from xtreemos.node.sharing import SharedVolumes
from xtreemos.node.sshd import SshDoors
from xtreemos.node.sshlogin import SshLogins
from xtreemos.node.vo_runtime import VoRuntime, connect_system
from xtreemos.vo.founding import GridSecrets, load_grid
from xtreemos.vo.grid import GridFile, VoEntry, save_grid, with_entry
from xtreemos.vo.grid import load_grid as load_grid_file
from xtreemos.vo.model import PublicUser, Revocation
from xtreemos.vo.tls import Gate

log = logging.getLogger("xtreemos.node.xosd")

FACTS_S = 2.0  # live facts are read at most this often
LAST_WORDS_S = 1.5  # a revoked session's programs tell how they ended before its connections go
ANSWER_S = 0.5  # a revoked connection lives this much longer: the answer to the log-out that revoked it is still on the way


class Xosd:
    """The daemon. `main` runs until it is told to end."""

    def __init__(self, directory: Path) -> None:
        self.paths = NodePaths(directory)
        self.config: NodeConfig = load_node(self.paths)
        self.grid: GridSecrets | None = load_grid(self.paths.private) if self.config.core else None
        self.vos: dict[str, VoRuntime] = {}
        self.gate = Gate()
        self.system: SystemAccount | None = None
        self.store = NodeStore(self.paths.private / "jobs.sqlite", self.config.vos)
        self.commit = GroupCommit(self.store, ThreadPoolExecutor(1, "store"))
        self.accounts = Accounts(self.paths.private / "accounts.sqlite")
        self.policy = NodePolicy(self.paths.private, lambda: self.config, self.facts, self._member)
        self.guests = Guests(self.paths, self.accounts)
        self._facts = static_facts(self.config.name, self.paths.dir, self.paths.private / "tags")
        self._live_facts: tuple[float, dict[str, Any]] = (0.0, {})
        self.slots = self.config.slots or SLOTS_PER_CPU * int(self._facts["cpus"])
        self.nets: Nets | None = None
        self.jobs = LocalJobs(
            paths=self.paths,
            node=self.config.name,
            facts=self.facts,
            slots=self.slots,
            store=self.store,
            commit=self.commit,
            accounts=self.accounts,
            cgroups=Cgroups.detect(self.config.name),
            take_net=self._take_net,
            give_net=self._give_net,
            allowed=self._allowed,
        )
        self.jobs.gids = self.guests.gids
        self.arrays = Arrays(self.jobs)
        self.deposits = Deposits()
        self.service = JobService(self.jobs, self.deposits)
        self.ssh = SshDoors(self.paths, self.config.name, self._take_net, self._give_net)
        self.files = Files(self.paths, self.config.name, self.accounts.uid_for)
        self.dir = DirService(self.vos, self.config.name)
        make_place: Callable[[str, str, int], object] = ensure_home
        if self.config.files == "grid":
            self.jobs.home = self.files.ensure_home
            self.jobs.keep_ticket = self.files.keep
            self.jobs.shared = SharedVolumes(self.vos).binds
            make_place = place_of
        self.logins = SshLogins(jobs=self.jobs, accounts=self.accounts, vos=self.vos, doors=self.ssh, make_place=make_place)
        self.detached: dict[str, DetachedJobs] = {}
        self.draining = False
        self._began_at = time.time()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[Server] = []
        self._stop = asyncio.Event()
        self._growing = False

    # -- facts -----------------------------------------------------------------------------------------------------------

    def facts(self) -> Mapping[str, Any]:
        """Return everything this node says of itself."""
        now = time.monotonic()
        if now - self._live_facts[0] > FACTS_S:
            self._live_facts = (now, {**live_facts(self.paths.dir), "tags": read_tags(self.paths.private / "tags")})
        users = sorted({one.user for one in self.jobs.live.values()})
        return {**self._facts, **self._live_facts[1], "users": users}

    def _member(self, user: str, vo: str) -> PublicUser | None:
        runtime = self.vos.get(vo)
        return runtime.users.get(user) if runtime else None

    def _allowed(self, spec: JobSpec) -> None:
        if self.draining:
            raise PermissionRefused(f"node {self.config.name} is leaving the grid", "use another node")
        self.policy.check_run(spec, self.config.name)

    async def _take_net(self, vo: str) -> str | None:
        return None if self.nets is None else (await self.nets.take(vo)).path

    def _give_net(self, path: str, vo: str) -> None:
        if self.nets is not None:
            self.nets.give_back(path, vo)

    # -- tasks -----------------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task that belongs to the daemon; its failure is a bug and ends the daemon (the supervisor starts it again)."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("task %s failed; xosd ends and is started again", task.get_name(), exc_info=task.exception())
            self._stop.set()

    # -- life ------------------------------------------------------------------------------------------------------------

    async def main(self) -> int:
        """Serve until SIGTERM (0) or a failure inside (1)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._start()
        log.info("node %s serves %s", self.config.name, ", ".join(self.vos) or "no VO yet")
        await self._stop.wait()
        await self._close()
        return 0

    async def _start(self) -> None:
        self._servers.append(await rpc.serve_unix(self.paths.admin_socket, Admin(self).methods(), mode=0o600, allowed_uid=0))
        self.jobs.on_detached_ended = self._detached_ended
        self.jobs.on_jobd = self._jobd_knows
        if self.config.network != "none":
            self.nets = await self._open_nets()
            self.jobs.adopt_net = self.nets.adopt
        self.ssh.start()
        self._servers.append(await rpc.serve_unix(self.paths.guests_socket, self.deposits.methods(), mode=0o666))
        front_socket = self.paths.run / "ssh.sock"
        self._servers.append(await rpc.serve_unix(front_socket, self.logins.methods(), mode=0o666))  # each handler looks at the uid
        if self.grid is not None:
            self.system = await connect_system(self.config, self.grid)
        grid_file = load_grid_file(self.paths.dir) if self.paths.grid_json.exists() else None
        plan = growing.noted(self.paths)
        if plan is not None and grid_file is not None:
            await self._grow(grid_file, plan)
        for vo in self.config.vos:
            assert grid_file is not None, "a node of a VO has a grid file"
            await self.open_vo(grid_file.entry(vo))
        self._servers.append(await rpc.serve_tls("0.0.0.0", RPC_PORT, self.gate.context, self._methods(), self.gate.identify))
        self.spawn(self.jobs.follow(), "follow jobd")
        self.spawn(self.jobs.reap_orphans(), "orphans")
        self.spawn(self.jobs.sweep(), "sweep")
        self.spawn(self.arrays.tidy(), "sandboxes of arrays")

    async def _grow(self, grid_file: GridFile, plan: growing.Plan) -> None:
        """Carry out the plan to become three before anything is served."""
        found = [
            VoRuntime.open(node=self.config.name, entry=grid_file.entry(vo), folder=self.vo_folder(vo), core=True)
            for vo in self.config.vos
        ]
        runtimes = {runtime.vo: runtime for runtime in await asyncio.gather(*found)}
        try:
            self.config = await growing.carry_out(self.paths, self.config, runtimes, plan)
        finally:
            for runtime in runtimes.values():
                await runtime.close()

    def _members_changed(self, runtime: VoRuntime) -> None:
        """Users or nodes of a VO changed: accounts, and who the core nodes are."""
        self.guests.update(self.vos)
        cores = sorted((node.joined_at, node.addresses[0]) for node in runtime.nodes.values() if node.core)
        endpoints = [f"{address}:{RPC_PORT}" for _at, address in cores]
        carriers = endpoints if len(cores) >= growing.CORES else endpoints[:1]
        fabric = [one.replace(f":{RPC_PORT}", f":{NATS_PORT}") for one in carriers]
        if carriers and (carriers, fabric) != (runtime.entry.endpoints, runtime.entry.fabric):
            runtime.entry = msgspec.structs.replace(runtime.entry, endpoints=carriers, fabric=fabric)
            runtime.fabric.set_servers(tuple(fabric))
            if runtime.cda is not None:
                runtime.cda.desk.endpoints = tuple(carriers)
            self.remember(runtime.entry)
        plan = growing.wanted(self.config, runtime)
        if plan is not None and not self._growing:
            self._growing = True
            self.spawn(self._prepare_to_grow(runtime, plan), "prepare to grow")

    async def _prepare_to_grow(self, runtime: VoRuntime, plan: growing.Plan) -> None:
        await growing.wait_candidates(runtime, plan)
        growing.note(self.paths, plan)
        log.info("three core nodes are there: the fabric grows")
        self._stop.set()  # carried out by the next start, before anything is served

    async def _ready(self, call: ServerCall) -> Any:
        """Tell a core node whether this machine could be one."""
        return {"ready": growing.is_candidate(self.paths, call.caller.vo)}

    async def _enlist(self, call: ServerCall) -> Any:
        """Become one of three core nodes; this daemon starts again as one."""
        self.config = await growing.enlist(self.paths, self.config, call)
        asyncio.get_running_loop().call_later(0.2, self._stop.set)
        return {}

    async def _open_nets(self) -> Nets:
        while True:
            try:
                return await open_pool(self.paths, self.config)
            except Unreachable:
                await asyncio.sleep(0.05)  # jobd is just starting

    async def _close(self) -> None:
        self.ssh.close()
        for server in self._servers:
            await server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for runtime in self.vos.values():
            await runtime.close()

    async def open_vo(self, entry: VoEntry) -> VoRuntime:
        """Serve a VO from now on."""
        runtime = await VoRuntime.open(node=self.config.name, entry=entry, folder=self.vo_folder(entry.vo), core=self.config.core)
        self.vos[entry.vo] = runtime
        runtime.on_users = lambda: self._members_changed(runtime)
        runtime.on_revoked = lambda key, record: self._revoked(runtime, key, record)
        runtime.on_renewed = lambda: self._present(runtime)
        self._present(runtime)
        self.guests.add_vo(entry.vo)
        if self.config.files == "grid":
            self.spawn(self.files.follow(entry.vo), f"homes {entry.vo}")
        if self.config.core:
            self.spawn(self._serve_core(runtime), f"core {entry.vo}")
        else:
            self.spawn(runtime.run(self.spawn), f"vo {entry.vo}")
        await runtime.fabric.subscribe(subjects.nodes("query"), lambda message: self._answer_query(runtime, message), concurrency=4)
        self.detached[entry.vo] = self._detached_jobs(runtime)
        self.spawn(self.detached[entry.vo].run(), f"detached {entry.vo}")
        await self.jobs.tell_jobd_again()
        return runtime

    def _present(self, runtime: VoRuntime) -> None:
        """Show the node's current credentials of a VO wherever it listens."""
        self.gate.set_identity(runtime.issued.identity, runtime.admission)
        vos = self.config.vos
        try:
            self.ssh.offer(runtime.vo, vos.index(runtime.vo) if runtime.vo in vos else len(vos), runtime.issued)
        except XosError as error:
            log.warning("%s", error.line())

    async def _serve_core(self, runtime: VoRuntime) -> None:
        assert self.grid is not None
        assert self.system is not None
        while True:
            try:
                await runtime.fabric.wait_connected(60)
                await self.system.check_safe(1)
                await runtime.serve_core(self.grid, self.system, lambda node, facts: self.welcome(runtime, node, facts))
                break
            except XosError as error:
                log.warning("VO %s: the fabric is not ready: %s; again", runtime.vo, error)
                await asyncio.sleep(1.0)
        await runtime.run(self.spawn)

    def vo_folder(self, vo: str) -> Path:
        """Where the keys of a VO are."""
        return self.paths.private / "vo" / vo

    # -- detached jobs ---------------------------------------------------------------------------------------------------

    def _detached_jobs(self, runtime: VoRuntime) -> DetachedJobs:
        hooks = Hooks(
            verify=runtime.verify_submission,
            admit=self._admit_detached,
            launch=self._launch_detached,
            signal=functools.partial(self._signal_detached, runtime.vo),
            capacity=lambda: Capacity(
                self.jobs.slots_left(runtime.vo), float(self._facts["cpus"]) * SLOTS_PER_CPU, int(self._facts["memory"])
            ),
            facts=lambda: (int(self._live_facts[0]), dict(self.facts())),
            draining=lambda: self.draining,
            clock_s=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            wall_at=time.time,
        )
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        contact = ContactFile(self.paths.private / f"contact-{runtime.vo}", boot)
        return DetachedJobs(
            FabricPort(runtime.fabric), self.config.name, runtime.vo, self.store, self.commit, hooks, clock_id=boot, contact=contact
        )

    async def _jobd_knows(self, known: dict[tuple[str, int], float | None], life: str) -> None:
        for detached in self.detached.values():
            await detached.recover(known, life)

    async def _admit_detached(self, submission: Submission, _attempt: int) -> None:
        error = self.jobs.refusal(submission.spec)
        if error is not None:
            raise error

    async def _launch_detached(self, submission: Submission, attempt: int) -> float:
        try:
            spec, sid = submission.spec, submission.caller.sid
            if submission.array and may_share(spec):
                running = await self.arrays.launch(spec, submission.array, attempt=attempt, sid=sid)
            else:
                running = await self.jobs.start(spec, attempt=attempt, sid=sid)
        except RemoteError as error:
            if error.code == "job-exists":
                return time.time()
            raise
        return running.started_at

    async def _signal_detached(self, vo: str, job: str, attempt: int, number: int) -> None:
        await self.jobs.signal(self.jobs.find(job, vo, None, attempt), number)

    async def _detached_ended(self, job: str, attempt: int, record: dict[str, Any], cause: Any) -> None:
        vo = self.jobs.live[f"{job}.{attempt}"].vo
        await self.detached[vo].ended(job, attempt, record, cause)

    # -- what the fabric asks --------------------------------------------------------------------------------------------

    async def _answer_query(self, runtime: VoRuntime, message: Message) -> bytes | None:
        """Answer `nodes.query`: this node judges by itself whether it matches. `all`: say so also if it does not."""
        asked = msgspec.msgpack.decode(message.data)
        facts = self.facts()
        answer: dict[str, Any] = {"members": max(1, len(runtime.nodes))}
        try:
            matches = query.parse(asked.get("where")).matches(facts)
        except query.BadQuery:
            return None
        if matches:
            answer["candidate"] = {
                "node": self.config.name,
                "address": self.config.address,
                "port": RPC_PORT,
                "free": 0 if self.draining else self.jobs.free,
                "running": self.jobs.running_count,
                "ssh": self.ssh.port(runtime.vo),
                "facts": facts,
            }
        elif not asked.get("all"):
            return None
        return msgspec.msgpack.encode(answer)

    # -- methods ---------------------------------------------------------------------------------------------------------

    def _methods(self) -> dict[str, Handler]:
        """What the TLS listener offers; `cda.*` checks callers by itself."""
        names = (
            "challenge", "login", "renew", "logout", "whoami", "sessions", "revoke_session", "invite", "accept", "set_password", "members",
            "suspend", "restore", "remove", "set_roles", "resource_invite", "join_node", "renew_node", "remove_node", "node_list", "trust",
            "issuing_keys", "audit_note", "audit_heads", "set_groups", "accept_share",
        )  # fmt: skip
        table = {f"cda.{name}": self._cda(name) for name in names}
        anybody: frozenset[CallerKind] = frozenset({"anonymous", "user", "node"})
        node: frozenset[CallerKind] = frozenset({"node"})
        own = {
            "ping": guarded(anybody, _ping),
            "grid.facts": guarded(anybody, self._grid_facts),
            "core.ready": guarded(node, self._ready),
            "core.enlist": guarded(node, self._enlist),
            "dir.put": guarded(node, self.dir.put_remote),
            "files.delegate": guarded(frozenset({"user"}), self._delegate),
        }
        return {**table, **self.service.methods(), **own}

    async def _delegate(self, call: ServerCall) -> Any:
        """Take a user's ticket for their files; where homes are folders of this node there is nothing to take it for."""
        if self.config.files == "grid":
            return await self.files.delegate(call)
        if call.params.get("home"):
            ensure_home(call.caller.name, call.caller.vo, self.accounts.uid_for(call.caller.name, call.caller.vo))
        return {}

    def _cda(self, name: str) -> Handler:
        async def handle(call: ServerCall) -> Any:
            runtime = self.vos.get(call.caller.vo)
            if runtime is None or runtime.cda is None:
                raise NotFound(f"node {self.config.name} is no core node of VO {call.caller.vo}", "ask a core node")
            return await runtime.cda.call(name, call.caller, call.params)

        return handle

    async def _grid_facts(self, call: ServerCall) -> Any:
        """Tell where the VO is to be found: what a client writes into its grid file."""
        return self._facts_of(call.caller.vo)

    def _facts_of(self, vo: str) -> dict[str, Any]:
        entry = self.vos[vo].entry
        return {"grid": entry.grid, "endpoints": list(entry.endpoints), "fabric": list(entry.fabric)}

    async def welcome(self, runtime: VoRuntime, node: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a joining node is told beside its credentials."""
        assert self.grid is not None
        told = self._facts_of(runtime.vo)
        if facts["core"]:
            told["core"] = joining.core_parcel(self.grid, node, tuple(facts["addresses"]))
        return told

    async def _revoked(self, runtime: VoRuntime, key: str, record: Revocation) -> None:
        """Drop connections and end programs of what was revoked. Old records come again at each start: what began later is not meant."""
        _word, kind, name = key.split(".", 2)
        for running in list(self.jobs.live.values()):
            hit = running.sid == name if kind == "sid" else kind == "user" and running.user == name
            hit = hit and (kind == "sid" or record.standing or running.started_at <= record.at + 1)
            if running.vo == runtime.vo and hit and running.exit is None and (kind == "user" or not running.detached):
                log.info("revoked: %s of %s ends", running.key, running.user)
                with contextlib.suppress(NoSuchJob, RemoteError):
                    await self.jobs.signal(running, signal.SIGHUP)
                    await self.jobs.signal(running, signal.SIGKILL)
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._drop, runtime.vo, kind, name, record)

    def _drop(self, vo: str, kind: str, name: str, record: Revocation) -> None:
        """End the connections of a revoked credential; those of later ones of a user who was restored stay."""
        self.ssh.revoked(vo, kind, name, math.inf if kind == "sid" or record.standing else record.at + 1)
        for peer in [peer for server in self._servers for peer in server.peers]:
            caller = peer.caller
            if kind != "sid" and not record.standing and record.at < self._began_at and caller.serial not in record.serials:
                continue
            if caller.vo == vo and name == (caller.sid if kind == "sid" else caller.name) and kind in ("sid", caller.kind):
                log.info("revoked: connection of %s ends", peer.caller)
                peer.close()

    def remember(self, entry: VoEntry) -> None:
        """Keep where a VO is to be found, and that this node serves it."""
        grid_file = load_grid_file(self.paths.dir) if self.paths.grid_json.exists() else joining.EMPTY_GRID
        save_grid(self.paths.dir, msgspec.structs.replace(with_entry(grid_file, entry), node=self.config.name))
        if entry.vo not in self.config.vos:
            self.config = msgspec.structs.replace(self.config, vos=[*self.config.vos, entry.vo])
            save_node(self.paths, self.config)
            start.refresh_services(self.paths, self.config)

    def forget(self, vo: str) -> None:
        """Serve a VO no more: started again by the supervisor, without it."""
        self.gate.remove(vo)
        self.ssh.withdraw(vo)
        unbind_all(vo)
        self.config = msgspec.structs.replace(self.config, vos=[name for name in self.config.vos if name != vo])
        save_node(self.paths, self.config)
        start.refresh_services(self.paths, self.config)
        self._stop.set()


async def _ping(_call: ServerCall) -> Any:
    return {}


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="xosd")
    parser.add_argument("--dir", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    async def run() -> int:
        return await Xosd(args.dir).main()

    try:
        return uvloop.run(run())
    except XosError as error:
        log.critical("%s", error.line())
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
