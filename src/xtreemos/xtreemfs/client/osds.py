"""Connections to OSDs as a mount wants them: an OSD that is away for a moment is waited for, and signals do not tear requests.

What is asked of them is `striping`'s business.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs.client.links import Link
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import MrcRecord, OsdRecord
from xtreemos.xtreemfs.striping import Answer, Buffer, OsdConnections

Dialer = Callable[[MrcRecord | OsdRecord], Awaitable[Peer]]


class PatientOsds(OsdConnections):
    """`OsdConnections` over `Link`s; every failure is a FuseError."""

    def __init__(self, directory: Directory, dialer: Dialer) -> None:
        super().__init__(directory)
        self._dialer = dialer
        self._links: dict[str, Link] = {}
        self.read_bytes = 0
        self.written_bytes = 0

    def link(self, node: str) -> Link:
        """Return the link to the OSD of a node, which need not be there."""
        if node not in self._links:

            async def dial() -> Peer:
                record = self._directory.state.osds.get(node)
                if record is None:
                    raise FuseError(errno.EHOSTUNREACH)
                return await self._dialer(record)

            self._links[node] = Link(f"the OSD on {node}", dial)
        return self._links[node]

    def links(self) -> dict[str, Link]:
        """All links by node."""
        return dict(self._links)

    async def peer(self, node: str) -> Peer:
        """See `OsdConnections`."""
        return await self.link(node).wait_peer()

    async def call(
        self, node: str, method: str, message: Callable[[], Any], *, tail: Buffer = b"", want_tail: bool = False
    ) -> Answer:
        """See `OsdConnections`. FuseError: the OSD's errno, or ETIMEDOUT."""
        call = await self.link(node).raw(method, message, tail=tail, want_tail=want_tail)
        self.read_bytes += len(call.tail)
        self.written_bytes += len(tail)
        return Answer(call.body, call.tail, call.fds)

    async def close(self) -> None:
        """End all connections."""
        for link in self._links.values():
            await link.close()
