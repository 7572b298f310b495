"""What root of this machine asks of its xosd, over the admin socket: status, founding a VO, serving a joined one, leaving."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from xtreemos.errors import NotFound, UsageError
from xtreemos.fabric.caller import Caller, CallerKind
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.foundation.paths import NATS_PORT, RPC_PORT
from xtreemos.names import check_user, check_vo
from xtreemos.node import joining
from xtreemos.node.auditing import noted_head
from xtreemos.node.config import load_node
from xtreemos.node.service import guarded
from xtreemos.node.vo_runtime import mint_vo_account, save_credential
from xtreemos.vo.founding import found_vo, save
from xtreemos.vo.grid import VoEntry, load_grid

if TYPE_CHECKING:
    from xtreemos.node.xosd import Xosd

TERM_S = 10.0  # programs of a VO that this node leaves have so long to end by themselves


class Admin:
    """Handlers over the daemon `node`."""

    def __init__(self, node: Xosd) -> None:
        self.node = node

    def methods(self) -> dict[str, Handler]:
        """Return the table of the socket that only uid 0 may use."""
        root: frozenset[CallerKind] = frozenset({"local"})
        table: dict[str, Handler] = {
            "status": self._status,
            "vo.create": self._vo_create,
            "vo.joined": self._vo_joined,
            "leave": self._leave,
            "audit.noted": self._audit_noted,
        }
        table |= self.node.dir.local_methods()
        return {name: guarded(root, handler) for name, handler in table.items()}

    async def _status(self, _call: ServerCall) -> Any:
        node = self.node
        rows = []
        for vo, runtime in sorted(node.vos.items()):
            state = runtime.fabric.state
            rows.append({
                "vo": vo, "connected": state.connected, "server": state.server, "reason": state.reason, "cut_s": round(runtime.fabric.cut_s(), 1),
                "members": len(runtime.users), "nodes": len(runtime.nodes), "cda": runtime.cda is not None,
                "manager": runtime.manager.leads if runtime.manager else False,
            })  # fmt: skip
        return {
            "node": node.config.name, "address": node.config.address, "core": node.config.core, "grid": node.config.grid, "pid": os.getpid(),
            "jobs": node.jobs.running_count, "free": node.jobs.free, "jobd": node.jobs.life != "", "vos": rows,
        }  # fmt: skip

    async def _vo_create(self, call: ServerCall) -> Any:
        """Found a VO on this grid and make this node its first resource; answers the administrator's invitation."""
        node = self.node
        vo, admin = check_vo(str(call.params.get("vo"))), check_user(str(call.params.get("admin")))
        if node.grid is None or node.system is None:
            raise UsageError("this node is not the founding node of a grid", "run it there")
        if vo in node.config.vos:
            raise UsageError(f"VO {vo} exists already", "see `xos vo list`")
        founding = found_vo(vo, int(time.time()), fabric_ca=node.grid.fabric_ca_pem)
        folder = node.vo_folder(vo)
        save(folder, founding.secrets)
        root = save(folder, founding.root)
        trust = joining.trust_of(founding.secrets)
        await node.system.push_account(mint_vo_account(trust, node.grid, {}, int(time.time())))
        entry = VoEntry(
            vo=vo,
            root_sha256=founding.secrets.root_sha256,
            document=founding.secrets.document,
            endpoints=[f"{node.config.address}:{RPC_PORT}"],
            fabric=[f"{node.config.address}:{NATS_PORT}"],
            grid=node.grid.name,
        )
        save_credential(folder, joining.provisional(founding.secrets, node.config.name))
        runtime = await joining.open_first(node.config.name, entry, folder, node.grid, node.system)
        assert runtime.cda is not None
        issued = await joining.join_self(runtime.cda, trust, node.paths, node.config)
        save_credential(folder, issued)
        invitation = await runtime.cda.call("invite", Caller("local", uid=0), {"user": admin, "roles": ["admin", "member"]})
        await runtime.close()
        node.remember(entry)
        await node.open_vo(entry)
        await joining.wait_served(node.vos[vo])
        return {"vo": vo, "invite": invitation["token"], "admin": admin, "root_key": str(root)}

    async def _vo_joined(self, call: ServerCall) -> Any:
        """`xos join` stored new credentials: serve that VO too."""
        node = self.node
        vo = check_vo(str(call.params.get("vo")))
        node.config = load_node(node.paths)
        if vo not in node.vos:
            await node.open_vo(load_grid(node.paths.dir).entry(vo))
        return {"vo": vo}

    async def _audit_noted(self, call: ServerCall) -> Any:
        """Tell what the VO has noted of this node's audit: `{count, hash}`, or nil."""
        vo = check_vo(str(call.params.get("vo")))
        runtime = self.node.vos.get(vo)
        if runtime is None:
            raise NotFound(f"this node is no resource of VO {vo}", "see `xos status`")
        noted = await noted_head(runtime.ask_cda)
        return noted and {"count": noted.count, "hash": noted.hash}

    async def _leave(self, call: ServerCall) -> Any:
        """Take this node out of a VO: no new jobs, the running ones end (at once, or by themselves with `drain`)."""
        node = self.node
        vo = check_vo(str(call.params.get("vo")))
        runtime = node.vos.get(vo)
        if runtime is None:
            raise NotFound(f"this node is no resource of VO {vo}", "see `xos status`")
        if node.config.core:
            raise UsageError("a core node cannot leave: it carries the VO's fabric", "move the core role first")
        node.draining = True
        try:
            async with asyncio.timeout(None if call.params.get("drain") else TERM_S):
                await self._end_jobs(vo, None if call.params.get("drain") else signal.SIGTERM)
        except TimeoutError:
            await self._end_jobs(vo, signal.SIGKILL)
        await joining.leave(runtime, node.config.name)
        node.forget(vo)
        return {"vo": vo}

    async def _end_jobs(self, vo: str, number: int | None) -> None:
        """Wait until no job of a VO runs here, having sent each of them a signal."""
        jobs = self.node.jobs
        for running in [one for one in jobs.live.values() if one.vo == vo and one.exit is None]:
            if number is not None:
                await jobs.signal(running, number)
        while any(one.vo == vo and one.exit is None for one in jobs.live.values()):
            await jobs.wait_change()
