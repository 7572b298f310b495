"""The mount's control socket, for root of this node: what it does now, write everything back, let go of who logged out.

Methods (parameters and answers are maps): `fs.status` {} -> counts; `fs.flush` {} -> {"failed": files}: everything written so far is at the OSDs and told;
`fs.sync` {} -> the same, and on their disks; `fs.forget` {"uid": n or None}: tickets are asked for anew; `fs.stop` {}: writes back, unmounts and ends;
`fs.unmount` {"lazy"} -> {"failed", "mounted"}: the polite way, see `_unmount`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs.fuse.errors import FuseError

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.client.operations import Operations
    from xtreemos.xtreemfs.fuse.mounting import Mount


class Control:
    """The socket of one mount."""

    def __init__(self, client: Client, operations: Operations, mounted: Mount, stop: asyncio.Event) -> None:
        self._client = client
        self._operations = operations
        self._mounted = mounted
        self._stop = stop
        self._server: rpc.Server | None = None
        self._settled = asyncio.Event()
        self._settled.set()

    async def start(self, path: Path, more: Mapping[str, Handler]) -> None:
        """Listen; only root is served. `more` methods beside our own."""
        table: dict[str, Handler] = {**more,
            "fs.status": self._status, "fs.flush": self._flush, "fs.sync": self._sync, "fs.forget": self._forget, "fs.stop": self._end,
            "fs.unmount": self._unmount,
        }  # fmt: skip
        self._server = await rpc.serve_unix(path, table, mode=0o600, allowed_uid=0)

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            await self._server.close()

    async def _status(self, _call: ServerCall) -> dict[str, Any]:
        return self.status()

    def status(self) -> dict[str, Any]:
        """What the mount does, as numbers."""
        client = self._client
        kernel = self._mounted.session.statistics()
        return {
            "mountpoint": self._mounted.mountpoint,
            "vo": client.directory.vo,
            "volume": client.volume,
            "up_s": (time.time_ns() - client.started_ns) // 10**9,
            "requests": kernel.requests,
            "errors": kernel.errors,
            "bugs": kernel.bugs,
            "outstanding": kernel.outstanding,
            "lock_waits": kernel.lock_waits,
            "notifications": kernel.notifications,
            "epochs": client.coherence.epochs,
            "inodes": len(client.inodes),
            "open_files": len(self._operations.files),
            "dirty_bytes": client.store.dirty_bytes,
            "ahead_bytes": client.store.ahead_bytes,
            "read_bytes": client.osds.read_bytes,
            "written_bytes": client.osds.written_bytes,
            "locks": len(client.locks),
            "passthrough": {
                "open": client.passthrough.open,
                "opened": client.passthrough.opened,
                "mapped": len(client.passthrough.mapped),
                "refused": client.passthrough.refused,
            },
            "mrcs": {name: _session_row(session) for name, session in client.sessions.items()},
            "osds": {
                node: {"up": link.peer is not None, "calls": link.calls, "failures": link.failures}
                for node, link in client.osds.links().items()
            },
        }

    async def _flush(self, _call: ServerCall) -> dict[str, Any]:
        before = self._failed()
        await self._client.flush_all()
        return {"failed": self._failed() - before}

    async def _sync(self, _call: ServerCall) -> dict[str, Any]:
        return await self.sync()

    async def sync(self) -> dict[str, Any]:
        """Bring everything written so far to the disks of the object servers; {"failed": files for which that did not work}."""
        before = self._failed()
        await self._client.flush_all()
        answer = {"failed": self._failed() - before}
        for inode in self._client.inodes:
            if inode.data is not None and inode.data.busy:
                try:
                    await inode.data.sync()
                    await self._client.tell(inode)
                except FuseError:
                    answer["failed"] += 1
        return answer

    def _failed(self) -> int:
        return sum(inode.data.errors for inode in self._client.inodes if inode.data is not None)

    async def _forget(self, call: ServerCall) -> None:
        uid = call.params.get("uid")
        for session in self._client.sessions.values():
            session.actors.forget(uid if isinstance(uid, int) else None)
            session.principals.relearn()

    async def _end(self, _call: ServerCall) -> None:
        self._stop.set()

    async def _unmount(self, call: ServerCall) -> dict[str, Any]:
        """Unmount and end, losing nothing; what does not work leaves everything as it was. MountFailed: in use.

        First all is written back and synced, then it is unmounted, then what came in between is synced as well. `lazy`: it goes out of sight at
        once, and the process ends (writing back) when the last program has closed its files.
        """
        if call.params.get("lazy"):
            await self._mounted.unmount(lazy=True)
            return {"failed": 0, "mounted": False}
        answer = await self.sync()
        if answer["failed"]:
            return {**answer, "mounted": True}
        self._settled.clear()  # from here on the mount may end before we have answered
        try:
            await self._mounted.unmount()
            answer = await self.sync()
            self._stop.set()
        finally:
            self._settled.set()
        return {**answer, "mounted": False}

    async def wait_settled(self) -> None:
        """Wait until no unmount is under way."""
        await self._settled.wait()


def _session_row(session: Any) -> dict[str, Any]:
    return {
        "up": session.link.peer is not None,
        "valid_ms": session.valid_ns() // 10**6,
        "calls": session.link.calls,
        "failures": session.link.failures,
        "leases": session.holder.lease_count(),
        "recalls": session.recalls,
        "suspensions": session.suspensions,
        "waiting": sum(map(len, session.waiting.values())),
    }
