"""The grid's files on this node: which processes serve them, the users' tickets, and their homes.

The mount process of a VO (`xtreemfs.client`) is reached by its control socket. A home is a volume of the user's own; here it is bound
over `/home/USER.VO`, a folder that nobody can write as long as nothing is mounted there, so that nothing is ever written beside it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtreemos.errors import RemoteError, TryLater, Unreachable, XosError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Peer, ServerCall
from xtreemos.foundation.paths import NodePaths
from xtreemos.names import unix_name
from xtreemos.node.config import NodeConfig
from xtreemos.node.homes import HOMES, bind_home, bound
from xtreemos.xtreemfs.errors import TicketRefused
from xtreemos.xtreemfs.ticket import peek_ticket

log = logging.getLogger(__name__)

HOME_S = 15.0
AGAIN_S = 0.1
WAITS = f"try again later; a program waits {HOME_S:g} s for its home"
MRC_PORT = 7610  # of the first VO; the next one's is PORTS higher
OSD_PORT = 7611
PORTS = 2
FOLLOW_S = 0.3  # between looks for a mount process that is away
REBIND_S = 2.0  # between tries to bind homes that could not be bound


class HomeMissing(TryLater):
    """The user's home cannot be reached from this node now; the program was not started. See `xos fs volumes` and the node's log."""

    code = "home-missing"


def services(paths: NodePaths, config: NodeConfig, env: dict[str, str]) -> list[dict[str, Any]]:
    """Return the file system's rows of the supervisor's list: for each VO an OSD if the owner gives space, an MRC on core nodes, the mount."""
    rows: list[dict[str, Any]] = []
    if config.files != "grid":
        return rows
    for index, vo in enumerate(config.vos):
        folder, run = paths.private / "fs" / vo, paths.run / "fs" / vo
        common = ["--vo", vo, "--node", config.name, "--directory", str(paths.admin_socket)]
        common += ["--credential", str(paths.private / "vo" / vo)]

        def row(name: str, module: str, *words: str, vo: str = vo, common: list[str] = common) -> dict[str, Any]:
            argv = [sys.executable, "-m", f"xtreemos.xtreemfs.{module}", *words, *common]
            return {"name": f"{name}.{vo}", "argv": argv, "env": env}

        if config.core:
            listen = f"{config.address}:{MRC_PORT + PORTS * index}"
            rows.append(row("mrc", "mrc", "--folder", str(folder / "mrc"), "--socket", str(run / "mrc.sock"), "--listen", listen))
        if config.storage_bytes:
            listen = f"{config.address}:{OSD_PORT + PORTS * index}"
            words = ["--socket", str(run / "osd.sock"), "--listen", listen, "--limit-bytes", str(max(0, config.storage_bytes))]
            rows.append(row("osd", "osd", "--disk", str(folder / "osd"), *words))
        words = ["--control", str(run / "mount.sock"), "--users", str(run / "users.sock"), "--snapshot", str(paths.snapshot)]
        rows.append({**row("mount", "client", f"/xos/{vo}", *words, "--tickets", str(run / "tickets")), "keeps": True})
    return rows


class Files:
    """Tickets and homes. One per xosd."""

    def __init__(self, paths: NodePaths, node: str, uid_for: Callable[[str, str], int]) -> None:
        self._paths = paths
        self._node = node
        self._uid_for = uid_for
        self._peers: dict[str, Peer] = {}
        self._homes: dict[tuple[str, str], asyncio.Task[Path]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def delegate(self, call: ServerCall) -> Any:
        """`files.delegate {ticket, home}` of a user: this node may act for them on their files, and (`home`) has their home mounted.

        The MRC judges the ticket; here only what is plainly wrong is refused.
        """
        record = bytes(call.params.get("ticket") or b"")
        ticket = peek_ticket(record)
        if (ticket.user, ticket.vo, ticket.node) != (call.caller.name, call.caller.vo, self._node) or ticket.job:
            raise TicketRefused(f"{call.caller} cannot give node {self._node} a ticket of {ticket.user[:40]}@{ticket.vo[:40]}")
        await self.keep(ticket.vo, record)
        if call.params.get("home"):
            await self.ensure_home(ticket.user, ticket.vo, self._uid_for(ticket.user, ticket.vo))
        return {}

    async def keep(self, vo: str, record: bytes) -> None:
        """Hand a ticket to the mount process, which keeps it; mounts of single volumes hear of it, too. Raises Unreachable if that is away."""
        await self._call(vo, "delegate", {"ticket": record})
        for socket in (self._paths.run / "fs" / vo / "mounts").glob("*.sock"):
            task = asyncio.create_task(_tell_mount(socket, record), name=f"ticket for {socket.stem}")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _call(self, vo: str, method: str, params: dict[str, Any]) -> Any:
        return await (await self._peer(vo)).call(method, params, timeout_s=HOME_S)

    async def _peer(self, vo: str) -> Peer:
        peer = self._peers.get(vo)
        if peer is None or peer.is_lost:
            peer = self._peers[vo] = await rpc.connect_unix(self._paths.run / "fs" / vo / "mount.sock")
        return peer

    async def follow(self, vo: str) -> None:
        """Bind the homes of a VO anew whenever its mount process has been started again; for ever."""
        while True:
            try:
                peer = await self._peer(vo)
            except Unreachable:
                await asyncio.sleep(FOLLOW_S)
                continue
            while not peer.is_lost and not await self._rebind(vo):
                await asyncio.wait({peer.lost}, timeout=REBIND_S)
            await asyncio.wait({peer.lost})

    async def _rebind(self, vo: str) -> bool:
        """Bind dead homes anew; tell whether all of them are alive now."""
        whole = True
        for user in [user for user, is_alive in bound(vo).items() if not is_alive]:
            try:
                await self.ensure_home(user, vo, self._uid_for(user, vo))
                log.info("the home of %s@%s is bound anew", user, vo)
            except (XosError, OSError) as error:
                log.warning("the home of %s@%s could not be bound anew: %s", user, vo, error)
                whole = False
        return whole

    async def ensure_home(self, user: str, vo: str, uid: int) -> Path:
        """Have the user's home mounted at its place on this node; return that.

        Raises:
            HomeMissing: it cannot be reached, with the reason. PermissionRefused: the place is taken. Definite: nothing was started.
        """
        key = (user, vo)
        task = self._homes.get(key)
        if task is None:
            task = self._homes[key] = asyncio.create_task(self._mount_home(user, vo, uid), name=f"home of {user}@{vo}")
            task.add_done_callback(lambda done: (self._homes.pop(key, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _mount_home(self, user: str, vo: str, uid: int) -> Path:
        place = HOMES / unix_name(user, vo)
        end = time.monotonic() + HOME_S
        while True:
            try:
                answer = await self._call(vo, "home", {"user": user, "uid": uid})
                break
            except Unreachable as error:
                if time.monotonic() > end:
                    raise _missing(user, vo, error) from error
            except RemoteError as error:
                if not error.retry or time.monotonic() > end:
                    raise _missing(user, vo, error) from error
            await asyncio.sleep(AGAIN_S)
        try:
            await asyncio.to_thread(bind_home, Path(str(answer["path"])), place)
        except OSError as error:  # the file system's own word: it waits as long as HOME_S, too
            raise HomeMissing(f"the home of {user}@{vo} cannot be reached: {error.strerror}", WAITS) from error
        return place


def _missing(user: str, vo: str, error: XosError) -> HomeMissing:
    return HomeMissing(f"the home of {user}@{vo} cannot be reached: {error.message}", error.hint or WAITS)


async def _tell_mount(socket: Path, record: bytes) -> None:
    """Hand a ticket to a mount that `xos fs mount` made. One that does not take it goes on with what it has."""
    try:
        peer = await rpc.connect_unix(socket)
        try:
            await peer.call("delegate", {"ticket": record}, timeout_s=HOME_S)
        finally:
            peer.close()
    except XosError as error:
        log.info("the mount of %s does not take a ticket: %s", socket, error)
