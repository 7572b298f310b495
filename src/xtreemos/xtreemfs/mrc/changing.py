"""How a change is done once though it may be sent several times: what the methods that change names and attributes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.lease.model import How, Need
from xtreemos.xtreemfs.model import Attr
from xtreemos.xtreemfs.mrc.model import Reply
from xtreemos.xtreemfs.mrc.outbox import Allowed, Plan
from xtreemos.xtreemfs.mrc.serving import Core

ATTRIBUTES: Final = b"."  # stands among the names of a directory for its own attributes


class Changing:
    """Base of such methods."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _change(
        self,
        client: str,
        once: p.Once | None,
        needs: Callable[[], tuple[Need, ...]],
        execute: Callable[[Allowed], Plan],
        again: Callable[[Reply], Plan],
    ) -> Awaitable[Any]:
        """Do a change, or give its answer `again` if it was done: now, or by the time its turn comes (the same was sent twice)."""
        core = self._core

        def do_once(allowed: Allowed) -> Plan:
            said = core.answered(client, once)
            return execute(allowed) if said is None else again(said)

        return core.leasing.ask(client, needs if core.answered(client, once) is None else tuple, do_once)

    def _was(self, client: str, attr: Attr, link: bytes = b"") -> p.Grant:
        """Return what is told again of an inode: attributes of then, not to be kept, and what the client holds now."""
        held = self._core.leasing.table.held(client, attr.ino)
        return p.Grant(attr, int(held.level), held.epoch, b"", None, link, False, False, int(held.shared), held.watched)

    def _for_attributes(self, ino: int) -> Need:
        """Return what a change of an inode's attributes needs. Of a directory others forget only these: they keep its names."""
        return Need(ino, How.NAMES, (ATTRIBUTES,)) if self._core.state.inode(ino).is_dir else Need(ino, How.ALONE)
