"""CDA methods of audit heads: each node has noted how far its audit is, so that a cut or exchanged file is found.

A note only goes forward. What it says is the node's own word: the VO cannot know a record that a node never told of, but once a
head stands here nobody on that machine alone can take back what led to it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from xtreemos.errors import UsageError
from xtreemos.fabric.caller import Caller
from xtreemos.vo.desk import Desk, Method, kinds
from xtreemos.vo.errors import AuditBroken
from xtreemos.vo.model import AuditHead
from xtreemos.vo.sessions import NoParams

HASH_CHARS: Final = 64


class NoteParams(msgspec.Struct, forbid_unknown_fields=True):
    """`count` records, the last one with `hash` (hexadecimal)."""

    count: int
    hash: str


class Heads:
    """The handlers; state is in the registry."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def note(self, caller: Caller, params: NoteParams) -> dict[str, Any]:
        """Note how far the calling node's audit is; answers `{}`.

        Raises:
            AuditBroken: it was further, or as far with another end. Definite: the earlier note stays.
        """
        if params.count < 0 or len(params.hash) != HASH_CHARS or not set(params.hash) <= set("0123456789abcdef"):
            raise UsageError("this is no head of an audit")
        new = AuditHead(count=params.count, hash=params.hash, at=self.desk.now())

        def decide(old: AuditHead | None) -> AuditHead:
            if old is None or new.count > old.count:
                return new
            if (new.count, new.hash) == (old.count, old.hash):
                return old
            raise AuditBroken(
                f"the audit of node {caller.name} had {old.count} records and is now said to have {new.count}",
                "keep its file and ask who changed it",
            )

        await self.desk.registry.audit_heads.change(caller.name, decide)
        return {}

    async def listed(self, caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{heads: [{node, count, hash, at}]}` by node: all that are noted, to a node its own."""
        shelf = self.desk.registry.audit_heads
        names = [caller.name] if caller.kind == "node" else await shelf.names()
        held = [(name, await shelf.get(name)) for name in names]
        rows = [(name, one.record) for name, one in held if one is not None]
        return {"heads": [{"node": name, "count": row.count, "hash": row.hash, "at": row.at} for name, row in rows]}


def table(desk: Desk) -> dict[str, Method]:
    """Rows of the CDA's table."""
    heads = Heads(desk)
    return {
        "audit_note": Method(kinds("node"), NoteParams, heads.note, audited=False),
        "audit_heads": Method(kinds("user", "node", "local"), NoParams, heads.listed, admin=True, audited=False),
    }
