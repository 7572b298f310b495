"""Withdrawn credentials as a file server process keeps them: fed by the directory, and the connections of a removed node ended at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from xtreemos.fabric.rpc import Server
from xtreemos.vo.model import Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.xtreemfs.directory import State

log = logging.getLogger(__name__)


class Withdrawn:
    """One per process. `known` is what admission asks; `on_new(kind, name)` hears of each new one (kind sid, user or node)."""

    def __init__(self, servers: Iterable[Server], on_new: Callable[[str, str], None] = lambda _kind, _name: None) -> None:
        self.known = RevocationSet()
        self._servers = servers
        self._on_new = on_new

    def take(self, state: State) -> None:
        """Take over what the directory knows now."""
        for key, value in state.revoked.items():
            try:
                new = self.known.apply(key, Revocation.from_bytes(value))
                _word, kind, name = key.split(".", 2)
            except (msgspec.MsgspecError, ValueError):
                log.warning("the directory's record %s cannot be read", key)
                continue
            if new:
                self._on_new(kind, name)
                if kind == "node":
                    self._hang_up(name)
        self.known.synced = True

    def _hang_up(self, node: str) -> None:
        for peer in [peer for server in self._servers for peer in server.peers]:
            if peer.caller.kind == "node" and peer.caller.name == node:
                log.info("revoked: connection of %s ends", peer.caller)
                peer.close()
