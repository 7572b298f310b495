"""How much room the writers of a file are promised where a quota bounds it, and what is missing for more. Pure functions of the state.

A writer grows its file without asking as far as its capability says. That much is promised: used and promised bytes together never
exceed a limit. A first promise is a small part of what is left, so that many files can be begun without calling anything back; who
asks for more gets what it needs at once and as much again, so that a long file asks seldom. What stands in the way of that and is not
used is called back (`serving.Core.make_room`) before anybody hears EDQUOT.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xtreemos.xtreemfs.model import FILE_BYTES_MAX
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.model import Inode
from xtreemos.xtreemfs.mrc.state import State

FIRST_PART: Final = 256
"""A first promise is this part of what is left: a thousand files that are begun together leave a fiftieth of it, not nothing."""
FIRST_BYTES_MAX: Final = 1 << 20
MORE_PART: Final = 4
"""Who asks for more gets at most this part of what is left beyond what it needs now, so that there is something for the next."""
MORE_BYTES_MAX: Final = 1 << 30


class Shortage(NamedTuple):
    """Why a file cannot become as long as its writer wants: `bytes` are missing under the limit of `owner` (None: of the volume).

    `promised`: bytes that others were promised under that limit and have not used.
    """

    bytes: int
    owner: int | None
    promised: int


def promise_room(state: State, inode: Inode, end: int = 0) -> int:
    """Promise room to a file's writers: up to `end` bytes if there is as much, and some more; what they have they keep.

    Returns:
        How long the file may become, bytes; FILE_BYTES_MAX where nothing is limited.
    """
    room = state.room(inode.volume, inode.uid)
    if room is None:
        return FILE_BYTES_MAX
    held = state.find_promise(inode.ino)
    rest = held.rest if held is not None else 0
    left = max(0, room.bytes) + rest
    want = max(0, end - inode.size)
    growth = min(left // FIRST_PART, FIRST_BYTES_MAX)
    if rest < want <= left:
        growth = want + max(growth, min(end, (left - want) // MORE_PART, MORE_BYTES_MAX)) if want < left else want
    reach = min(inode.size + max(rest, min(growth, left)), FILE_BYTES_MAX)
    state.put_promise(inode, reach)
    return reach


def promise(state: State, c: do.Promise) -> int:
    """See `commands.Promise`; returns how long the file may become. ESTALE for an inode that is gone."""
    return promise_room(state, state.inode(c.ino), c.end)


def shortage(state: State, inode: Inode, end: int) -> Shortage | None:
    """Return what keeps a file from becoming `end` bytes long, None if nothing does. Of two limits that one which lacks more."""
    held = state.find_promise(inode.ino)
    rest = held.rest if held is not None else 0
    worst: Shortage | None = None
    for owner in (None, inode.uid):
        limit = state.limits(inode.volume, owner).bytes
        if not limit:
            continue
        promised = state.usage(inode.volume, owner, schema.PROMISED).bytes - rest
        missing = end - inode.size - (limit - state.usage(inode.volume, owner).bytes - promised)
        if missing > 0 and (worst is None or missing > worst.bytes):
            worst = Shortage(missing, owner, promised)
    return worst
