"""A grid grows from one core node to three: who carries the fabric, and in what order, so that nothing acknowledged is lost.

One or three nodes carry the fabric, never two. A machine that joins with a core token becomes a *candidate*: it has the keys, and
is a plain resource until there are two candidates. Then the founding node writes a plan to its disk and starts again; before it
serves anything it carries the plan out (each step may be repeated after a crash):

1. close the VOs' submission streams (a member who submits now is told to try again), back every stream up;
2. tell the candidates to start their servers as a cluster of three;
3. restart its own server as a member of the cluster;
4. restore the streams with three copies; open submissions again; forget the plan.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from xtreemos.errors import PermissionRefused, TryLater, XosError
from xtreemos.fabric import rpc, stream, subjects
from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.grow import backup, restore_grown
from xtreemos.fabric.natsserver import write_config
from xtreemos.fabric.rpc import ServerCall
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import ROUTE_PORT, RPC_PORT, NodePaths
from xtreemos.node import start, supervise
from xtreemos.node.config import NodeConfig, save_node
from xtreemos.node.vo_runtime import VoRuntime
from xtreemos.vo.founding import load_grid
from xtreemos.vo.tls import client_context, identify_node
from xtreemos.vo.x509 import vo_dns

log = logging.getLogger(__name__)

CORES = 3
RETRY_S = 0.5
GROWN_S = 120.0


class Plan(msgspec.Struct, frozen=True):
    """Who the three are: (name, address) rows, the founder first."""

    nodes: list[tuple[str, str]]

    @property
    def peers(self) -> list[str]:
        """Route listeners of the cluster."""
        return [f"{address}:{ROUTE_PORT}" for _name, address in self.nodes]


def plan_path(paths: NodePaths) -> Any:
    """Where the founder keeps the plan until it is carried out."""
    return paths.private / "grow.json"


def wanted(config: NodeConfig, runtime: VoRuntime) -> Plan | None:
    """Return the plan if this is the founder of a grid that has just got its second candidate, else None. Pure."""
    if not config.founder or config.routes:
        return None
    others = sorted(
        (node.joined_at, name, node.addresses[0]) for name, node in runtime.nodes.items() if node.core and name != config.name
    )
    if len(others) < CORES - 1:
        return None
    return Plan([(config.name, config.address), *((name, address) for _at, name, address in others[: CORES - 1])])


def note(paths: NodePaths, plan: Plan) -> None:
    """Write the plan down."""
    write_atomically(plan_path(paths), msgspec.json.encode(plan))


def noted(paths: NodePaths) -> Plan | None:
    """Return the plan that waits to be carried out."""
    path = plan_path(paths)
    return msgspec.json.decode(path.read_bytes(), type=Plan) if path.exists() else None


async def carry_out(paths: NodePaths, config: NodeConfig, vos: Mapping[str, VoRuntime], plan: Plan) -> NodeConfig:
    """Do what the module says; returns the new configuration. Repeats a step until it succeeds."""
    folder = paths.private / "grow"
    if not config.routes:
        for vo, runtime in vos.items():
            await _patiently(f"backup of VO {vo}", lambda runtime=runtime, vo=vo: _back_up(runtime.fabric, folder / vo))
        for name, address in plan.nodes[1:]:
            await _patiently(f"enlisting {name}", lambda name=name, address=address: _enlist(vos, plan, name, address))
        config = msgspec.structs.replace(config, routes=plan.peers)
        save_node(paths, config)
    grid = load_grid(paths.private)
    write_config(start.server_config(paths, config, grid))
    _restart_server(paths)
    log.info("the fabric restarts as a cluster of %d", CORES)
    await _patiently(
        "restoring",
        lambda: restore_grown([(runtime.fabric, folder / vo) for vo, runtime in vos.items()], copies=CORES, timeout_s=60),
    )
    plan_path(paths).unlink()
    log.info("the fabric has %d servers", CORES)
    return config


async def _patiently(what: str, step: Any) -> None:
    end = time.monotonic() + GROWN_S
    while True:
        try:
            await step()
            return
        except XosError as error:
            log.warning("growing: %s: %s; again", what, error)
            if time.monotonic() > end:
                raise TryLater(f"the grid could not grow: {what}: {error.message}", "it is tried again") from error
            await asyncio.sleep(RETRY_S)


async def _back_up(fabric: Fabric, folder: Any) -> None:
    await fabric.wait_connected(20)
    found = await stream.stream_info(fabric, subjects.SUBMIT_STREAM)
    closed = {**found["config"], "subjects": ["jobs.closed"]}
    await stream.api(fabric, f"STREAM.UPDATE.{subjects.SUBMIT_STREAM}", closed)
    await backup(fabric, folder)


async def _enlist(vos: Mapping[str, VoRuntime], plan: Plan, name: str, address: str) -> None:
    """Tell one candidate; it answers when its server is on its way."""
    runtime = next(iter(vos.values()))
    accounts = {vo.issued.trust.document.nats_account: await vo.account_jwt() for vo in vos.values()}
    await _ask(runtime, name, address, "core.enlist", {"peers": plan.peers, "accounts": accounts, "grid": runtime.entry.grid})


async def _ask(runtime: VoRuntime, name: str, address: str, method: str, params: dict[str, Any]) -> Any:
    trust, identity = runtime.issued.trust, runtime.issued.identity
    peer = await rpc.connect_tls(
        address, RPC_PORT, client_context(trust, identity), vo_dns(trust.vo), identify=identify_node(trust, time.time, name)
    )
    try:
        return await peer.call(method, params, timeout_s=30)
    finally:
        peer.close()


async def wait_candidates(runtime: VoRuntime, plan: Plan) -> None:
    """Wait until every candidate serves the VO and holds the keys: it was seen in the VO before it had got them."""
    for name, address in plan.nodes[1:]:
        while True:
            try:
                if (await _ask(runtime, name, address, "core.ready", {}))["ready"]:
                    break
            except XosError as error:
                log.info("candidate %s is not ready: %s", name, error)
            await asyncio.sleep(RETRY_S)


def is_candidate(paths: NodePaths, vo: str) -> bool:
    """Tell whether this machine holds what a core node needs."""
    return (paths.private / "grid.secret").exists() and (paths.private / "vo" / vo / "issuing.secret").exists()


def _restart_server(paths: NodePaths) -> None:
    row = supervise.read_pids(str(paths.run)).get("nats-server")
    if row:
        os.kill(int(row["pid"]), signal.SIGTERM)


async def enlist(paths: NodePaths, config: NodeConfig, call: ServerCall) -> NodeConfig:
    """On a candidate: become a core node of the cluster that the founder plans; returns the new configuration.

    Raises:
        PermissionRefused: the caller is no core node, or this machine's owner did not agree to be one.
    """
    if not call.caller.has_role("core"):
        raise PermissionRefused(f"{call.caller} is no core node")
    if not (paths.private / "grid.secret").exists():
        raise PermissionRefused(f"the owner of {config.name} did not agree to carry the fabric", "join with --core")
    peers = [str(one) for one in call.params["peers"]]
    config = msgspec.structs.replace(config, core=True, routes=peers, grid=str(call.params["grid"]))
    grid = load_grid(paths.private)
    server = start.server_config(paths, config, grid)
    accounts = {**server.accounts, **{str(key): str(token) for key, token in call.params["accounts"].items() if token}}
    write_config(dataclasses.replace(server, accounts=accounts))
    save_node(paths, config)
    start.refresh_services(paths, config)
    return config
