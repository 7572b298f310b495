"""What the lease table keeps, and the rules that read it: who is in whose way. No transitions here, see `table`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from xtreemos.xtreemfs.lease.model import How, Need
from xtreemos.xtreemfs.lease.table_model import Allowed
from xtreemos.xtreemfs.model import Level

NONE, READ, WRITE = Level.NONE, Level.READ, Level.WRITE


@dataclass(slots=True, eq=False)
class Asked:
    """A recall that was sent and not answered yet. `op`: the operation for whose names it is, None for a level."""

    level: Level
    op: Op | None


@dataclass(slots=True, eq=False)
class Holding:
    """What one client has of one inode."""

    level: Level = NONE
    epoch: int = 0
    shared: Level = NONE
    through: Level = NONE
    pin: bool = False
    restored: bool = False
    """From the store after a restart: WRITE or writing shared, only the client knows which."""
    recalls: dict[int, Asked] = field(default_factory=dict)

    @property
    def writes(self) -> bool:
        """Whether OSDs may get writes of this client for it."""
        return WRITE in (self.level, self.shared)

    @property
    def empty(self) -> bool:
        return not (self.level or self.shared or self.through or self.pin)


@dataclass(slots=True, eq=False)
class Inode:
    """One inode of which anybody has or wants anything."""

    holders: dict[str, Holding] = field(default_factory=dict)
    queue: list[Op] = field(default_factory=list)
    """Operations that need it, not done yet, by turn."""
    fencing: int = 0
    """Fences asked for and not answered."""
    orphan: bool = False
    unsized: bool = False
    """Somebody wrote without a lease: only the OSDs know how long it is."""

    @property
    def idle(self) -> bool:
        """Whether nothing is kept that has to be remembered."""
        return not (self.holders or self.queue or self.fencing or self.orphan or self.unsized)


@dataclass(slots=True, eq=False)
class Op:
    """One request that waits, or is being executed."""

    number: int
    client: str
    needs: dict[int, Need]
    turn: int
    proceeding: bool = False
    acked: set[tuple[int, str]] = field(default_factory=set)
    """(directory, client) that have forgotten our names."""
    allowed: dict[int, Allowed] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Session:
    """One client. Live until `expires_s`; then lapsed: it has what nobody else wanted."""

    client: str
    expires_s: float
    live: bool = True
    connected: bool = True
    condemned: bool = False
    """It left a recall unanswered for too long: not renewed until it has expired."""
    forget_s: float = math.inf
    ops: set[int] = field(default_factory=set)
    inos: dict[int, None] = field(default_factory=dict)
    """Inodes of which it has something, the one granted longest ago first."""
    recalls: dict[int, tuple[int, float]] = field(default_factory=dict)
    """seq -> (ino, sent at), the oldest first."""


def merged(needs: tuple[Need, ...]) -> dict[int, Need]:
    """Bring several needs of one inode into one that implies them all."""
    table: dict[int, Need] = {}
    for need in needs:
        other = table.get(need.ino)
        if other is None:
            table[need.ino] = need
        elif other.how == need.how:
            table[need.ino] = Need(need.ino, need.how, tuple(dict.fromkeys(other.names + need.names)))
        else:
            table[need.ino] = Need(need.ino, How.ALONE)
    return table


def conflict(one: How, other: How) -> bool:
    """Tell whether two operations' needs of one inode cannot be granted side by side."""
    return one != other or one == How.ALONE


def covered(inode: Inode, client: str, how: How) -> bool:
    """Tell whether the asker's own lease already excludes everything that the need excludes."""
    holding = inode.holders.get(client)
    if holding is None or how == How.NAMES or holding.restored or inode.fencing:
        return False
    return holding.level == WRITE or (holding.level == READ and how == How.READ)


def is_shared(inode: Inode, client: str) -> bool:
    """Tell whether `client` can have no lease but only share, because somebody's kernel writes the OSD's file, which no recall stops.

    One that only reads it directly is in nobody's way: a writer writes through (`is_watched`).
    """
    if any(holding.through == WRITE for name, holding in inode.holders.items() if name != client):
        return True
    anybody = any(holding.through for holding in inode.holders.values())
    return anybody and any(holding.shared == WRITE for holding in inode.holders.values())


def is_watched(inode: Inode, client: str) -> bool:
    """Tell whether a kernel other than the client's own has the OSD's file: it sees what is there, at any time."""
    return any(holding.through for name, holding in inode.holders.items() if name != client)


def in_the_way(inode: Inode, op: Op, need: Need, shared: bool) -> Iterator[tuple[str, Holding, Level]]:
    """Yield the others' holdings that must shrink before the operation, each with the level that may stay."""
    if need.how == How.NAMES:
        for client, holding in inode.holders.items():
            if client != op.client and holding.level and (need.ino, client) not in op.acked:
                yield client, holding, READ
        return
    stays = READ if need.how == How.READ and not shared else NONE
    for client, holding in inode.holders.items():
        if client == op.client:
            if holding.shared == WRITE and not shared:  # before it has a lease, what it writes without one must be over
                yield client, holding, NONE
        elif holding.level > stays:
            yield client, holding, stays
        elif holding.shared and not shared and (need.how == How.ALONE or holding.shared == WRITE):
            yield client, holding, NONE


def blocked(inode: Inode, op: Op, need: Need) -> bool:
    """Tell whether an earlier operation on the inode must be done first."""
    for other in inode.queue:
        if other.turn >= op.turn:
            return False
        if conflict(other.needs[need.ino].how, need.how):
            return not covered(inode, op.client, need.how)
    return False


def allowed(inode: Inode, op: Op, need: Need) -> Allowed:
    """Tell what may be given of a needed inode now that nothing is in the way."""
    own = inode.holders.get(op.client)
    shared = need.how != How.NAMES and is_shared(inode, op.client)
    if need.how != How.ALONE:
        return Allowed(need.ino, READ, shared, False, own.epoch if own and own.writes else 0)
    if not shared:
        fresh = own is None or own.level != WRITE
        return Allowed(need.ino, WRITE, False, fresh, 0 if fresh or own is None else own.epoch)
    epoch = max((holding.epoch for holding in inode.holders.values() if holding.shared == WRITE), default=0)
    return Allowed(need.ino, NONE, True, not epoch, epoch)


def others_wait_to_change(inode: Inode, ino: int, client: str) -> bool:
    """Tell whether an operation of somebody else waits that will change the inode's attributes or names."""
    return any(op.client != client and op.needs[ino].how != How.READ for op in inode.queue)


def may_read(inode: Inode, ino: int, client: str) -> bool:
    """Tell whether READ may be granted without asking or keeping anybody waiting."""
    if inode.fencing or is_shared(inode, client):
        return False
    if any(holding.writes for name, holding in inode.holders.items() if name != client):
        return False
    return not others_wait_to_change(inode, ino, client)
