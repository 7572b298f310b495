"""The MRC as a client of object servers: fencing evicted writers, asking sizes, deleting what is gone. Tries until each OSD answered."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from xtreemos.errors import Unreachable, XosError
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs.model import Layout
from xtreemos.xtreemfs.protocol import OsdDelete, OsdFence
from xtreemos.xtreemfs.striping import OsdConnections

log = logging.getLogger(__name__)

CALL_S: Final = 10.0
FENCE_AGAIN_S: Final = 0.5
FENCE_AGAIN_S_MAX: Final = 10.0
DELETE_BATCH: Final = 256
BACKOFF_S: Final = 1.0
BACKOFF_S_MAX: Final = 60.0


class Osds:
    """Calls to OSDs over connections that come back."""

    def __init__(self, connections: OsdConnections) -> None:
        self._connections = connections

    async def _call(self, node: str, method: str, message: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_S):
                peer = await self._connections.peer(node)
        except TimeoutError:
            raise Unreachable(f"the object server on {node} does not answer") from None
        return await peer.call(method, calls.params(message), timeout_s=CALL_S)

    async def fence(self, ino: int, epoch: int, layout: Layout) -> int:
        """Fence a file at all its OSDs with `epoch`; return the size that its columns explain. Tries for ever; cancel to give up."""
        size = 0
        for replica in layout.replicas:
            columns = await asyncio.gather(*(self._fence_one(osd, ino, epoch, at) for at, osd in enumerate(replica.osds)))
            alone = Layout(layout.version, layout.object_bytes, (replica,))
            size = max(size, alone.size_from_columns(tuple(columns)))
        return size

    async def _fence_one(self, osd: str, ino: int, epoch: int, column: int) -> int:
        wait_s, told = FENCE_AGAIN_S, False
        while True:
            try:
                lengths = await self._call(osd, "osd.fence", OsdFence(ino, epoch, (column,)))
                return int(lengths[0])
            except XosError as error:
                if not told:
                    log.warning("inode %x cannot be fenced at %s yet: %s", ino, osd, error)
                    told = True
            await asyncio.sleep(wait_s)
            wait_s = min(FENCE_AGAIN_S_MAX, wait_s * 2)

    async def delete(self, osd: str, inos: tuple[int, ...], width: int) -> None:
        """Delete all columns of these files, none wider than `width`, on one OSD; RemoteError or Unreachable if that is not known to be done."""
        await self._call(osd, "osd.delete", OsdDelete(inos, width))

    async def close(self) -> None:
        """End all connections."""
        await self._connections.close()


class Patience:
    """Which OSDs are worth trying again now: each failure doubles its wait."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}

    def ready(self, osd: str, now_s: float) -> bool:
        """Whether it may be asked."""
        return now_s >= self._until.get(osd, (0.0, 0.0))[0]

    def failed(self, osd: str, now_s: float) -> bool:
        """It did not answer; returns whether this is the first time."""
        before = self._until.get(osd)
        wait_s = min(BACKOFF_S_MAX, before[1] * 2) if before else BACKOFF_S
        self._until[osd] = (now_s + wait_s, wait_s)
        return before is None

    def answered(self, osd: str) -> None:
        """It answered."""
        self._until.pop(osd, None)
