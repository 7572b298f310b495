"""This machine's own node, if it is one: a program that lands here gets the caller's very descriptors instead of copies of bytes.

The agent deposits them with xosd over a Unix socket and gets a ticket; the call that starts the program, over TLS and with the
session's credentials like any other, names the ticket. So the descriptors say nothing about who may run what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.fabric import rpc
from xtreemos.foundation.paths import NodePaths

DEPOSIT_S = 2.0


class LocalNode:
    """The node `name` on this machine; `name` is empty if there is none."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._socket = NodePaths(directory).guests_socket
        self._peer: rpc.Peer | None = None

    async def deposit(self, descriptors: Sequence[int]) -> str | None:
        """Hand descriptors over; returns the ticket, or None if this machine's node does not take them."""
        try:
            if self._peer is None or self._peer.is_lost:
                self._peer = await rpc.connect_unix(self._socket)
            answer = await self._peer.call("fds.deposit", {}, fds=descriptors, timeout_s=DEPOSIT_S)
        except XosError:
            return None  # the bytes go the long way then
        return str(answer["ticket"])

    def close(self) -> None:
        """End the connection."""
        if self._peer is not None:
            self._peer.close()
