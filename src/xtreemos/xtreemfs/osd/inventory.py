"""`osd.columns`: what an OSD has, for the file system's check. Root of the node and nodes with an MRC may ask."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final

from xtreemos.fabric.caller import Caller
from xtreemos.fabric.rpc import ServerCall
from xtreemos.xtreemfs.calls import message_of
from xtreemos.xtreemfs.errors import CapabilityRefused, FsError
from xtreemos.xtreemfs.osd.model import Key, key_of
from xtreemos.xtreemfs.osd.shelf import Shelf
from xtreemos.xtreemfs.osd.store import Store
from xtreemos.xtreemfs.protocol import ColumnRow, OsdColumns

ROWS: Final = 4096  # of one EVENT
INOS_MAX: Final = 10_000


def may_ask(caller: Caller, mrcs: Iterable[str], node: str) -> None:
    """Raise CapabilityRefused unless the caller is root of this node or a node that has an MRC of the VO."""
    if caller.kind == "local" and caller.uid == 0:
        return
    if caller.kind == "node" and (caller.name in mrcs or caller.name == node):
        return
    raise CapabilityRefused(f"{caller} has no metadata server of this VO", "root of a core node or of the node itself may ask")


async def columns(store: Store, call: ServerCall) -> dict[str, Any]:
    """Send all columns as EVENTs of `ColumnRow`s, or (`inos`) those of some files with their lengths. Answers how many rows."""
    message = message_of(call.params, OsdColumns)
    if len(message.inos) > INOS_MAX:
        raise FsError(errno.EINVAL, f"more than {INOS_MAX} files in one call")
    count = 0
    for shelf in store.shelves:
        rows = await store.thread(_rows, shelf, frozenset(message.inos))
        if message.inos:
            rows = [await _with_length(store, row) for row in rows]
        for at in range(0, len(rows), ROWS):
            call.send_event(rows[at : at + ROWS])
            await call.peer.drain()
        count += len(rows)
    return {"columns": count}


def _rows(shelf: Shelf, inos: frozenset[int]) -> list[ColumnRow]:
    names = [(key_of(name), taken) for name, taken in shelf.disk.walk()]
    there = {key: taken for key, taken in names if key is not None and (not inos or key.ino in inos)}
    marked = {key: mark.length for key, mark in shelf.marks.marks() if mark.clean and (not inos or key.ino in inos)}
    rows = [ColumnRow(*key, "there", marked.get(key, -1), taken) for key, taken in there.items()]
    rows += [ColumnRow(*key, "lost", length, 0) for key, length in marked.items() if key not in there]
    rows += [ColumnRow(ino, 0, "deleted", 0, 0) for ino, _at in shelf.marks.gone() if not inos or ino in inos]
    return sorted(rows)


async def _with_length(store: Store, row: ColumnRow) -> ColumnRow:
    if row.state != "there":
        return row
    try:
        async with store.entry(Key(row.ino, row.column)) as entry:
            length = entry.column.length if entry.column is not None else -1
    except FsError:
        length = -1  # it is damaged: reading says so
    return ColumnRow(row.ino, row.column, row.state, length, row.taken_bytes)
