"""The lease table without its sessions' lives: holdings of inodes, operations that wait for them, recalls.

Base class of `table.Table`; see there. What is "in the way" is decided in `table_state`.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterable

from xtreemos.xtreemfs.lease.model import OPS_PER_CLIENT_MAX, Give, Given, How, Need
from xtreemos.xtreemfs.lease.table_model import (
    Again,
    Answer,
    Ask,
    Done,
    Drop,
    Effect,
    Fence,
    Fenced,
    Forget,
    NoSession,
    Orphan,
    Proceed,
    Refuse,
    Release,
    SendRecall,
    ThroughGone,
    Unused,
    Withdraw,
)
from xtreemos.xtreemfs.lease.table_state import (
    NONE,
    READ,
    WRITE,
    Asked,
    Holding,
    Inode,
    Op,
    Session,
    allowed,
    blocked,
    covered,
    in_the_way,
    is_shared,
    is_watched,
    may_read,
    merged,
    others_wait_to_change,
)
from xtreemos.xtreemfs.model import Level


class Queues:
    """See the module. Subclasses say in `_usable` whether a session stands."""

    def __init__(self) -> None:
        self._inodes: dict[int, Inode] = {}
        self._ops: dict[int, Op] = {}
        self._sessions: dict[str, Session] = {}
        self._turns = itertools.count(1)
        self._seqs = itertools.count(1)
        self._out: list[Effect] = []
        self._now_s = 0.0
        self._graced = False

    def _usable(self, session: Session) -> bool:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- questions

    def held(self, client: str, ino: int) -> Given:
        """Tell what a client holds. Grants nothing."""
        inode = self._inodes.get(ino)
        if inode is None:
            return Given(ino, NONE)
        cache = not others_wait_to_change(inode, ino, client)
        holding = inode.holders.get(client)
        if holding is None:
            return Given(ino, NONE, 0, cache)
        return Given(ino, holding.level, holding.epoch, cache, holding.shared, holding.level == WRITE and is_watched(inode, client))

    def glance(self, client: str, ino: int, now_s: float) -> Given:
        """Grant READ if nobody has to be asked and nobody is kept waiting by it; else tell what is held. Never waits."""
        self._now_s = now_s
        session = self._sessions.get(client)
        if session is None or not self._usable(session):
            return Given(ino, NONE, 0, cache=False)
        inode = self._inodes.setdefault(ino, Inode())
        if may_read(inode, ino, client):
            holding = self._holding(session, ino, inode)
            holding.level = max(holding.level, READ)
        given = self.held(client, ino)
        self._settle(session, ino)
        return given

    def name_free(self, client: str, ino: int, name: bytes) -> bool:
        """Tell whether a name of a directory that `client` holds may be remembered: nobody else waits to change it."""
        inode = self._inodes.get(ino)
        if inode is None or not inode.queue:
            return True
        return not any(op.client != client and _changes(op.needs[ino], name) for op in inode.queue)

    def in_use(self, ino: int) -> bool:
        """Tell whether somebody may have the inode open: it must live on without a name."""
        inode = self._inodes.get(ino)
        return inode is not None and bool(inode.holders)

    def is_written(self, ino: int, epoch: int) -> bool:
        """Tell whether an epoch up to this one may still be written with, or is being fenced."""
        inode = self._inodes.get(ino)
        return inode is not None and (
            inode.fencing > 0 or any(holding.writes and holding.epoch <= epoch for holding in inode.holders.values())
        )

    # ------------------------------------------------------------------------------------------------------ operations

    def _on_ask(self, event: Ask) -> None:
        session = self._sessions.get(event.client)
        if session is None or not self._usable(session):
            self._out.append(NoSession(event.client, event.op))
        elif len(session.ops) >= OPS_PER_CLIENT_MAX:
            self._out.append(Refuse(event.op))
        else:
            op = Op(event.op, event.client, merged(event.needs), next(self._turns))
            self._ops[op.number] = op
            session.ops.add(op.number)
            self._enqueue(op)
            self._try(op)

    def _on_again(self, event: Again) -> None:
        op = self._ops.get(event.op)
        if op is None:
            return
        assert op.proceeding, f"operation {op.number} is told Again without Proceed"
        self._dequeue(op)
        touched = set(op.needs)
        op.needs, op.proceeding, op.allowed = merged(event.needs), False, {}
        self._enqueue(op)
        self._try(op)
        self._pump(touched)

    def _on_done(self, event: Done) -> None:
        op = self._ops.get(event.op)
        if op is None:
            return
        assert op.proceeding, f"operation {op.number} is told Done without Proceed"
        session = self._sessions[op.client]
        given = []
        for give in event.gives:
            self._grant(session, op, give)
        for give in event.gives:
            given.append(self.held(op.client, give.ino))
            self._settle(session, give.ino)
        self._out.append(Answer(op.number, tuple(given)))
        self._remove(op)

    def _grant(self, session: Session, op: Op, give: Give) -> None:
        """Give what an executed operation may give. What the needs do not cover is given only where nobody has to be asked."""
        if not (give.level or give.shared):
            return
        inode = self._inodes.setdefault(give.ino, Inode())
        allow = op.allowed.get(give.ino)
        own = inode.holders.get(op.client)
        if give.shared:
            assert allow, f"sharing of inode {give.ino} was not asked for"
            assert allow.shared, f"sharing of inode {give.ino} was not allowed"
            holding = self._holding(session, give.ino, inode)
            holding.shared = max(holding.shared, give.shared)
            if give.shared == WRITE:
                holding.epoch, inode.unsized = give.epoch, True
            return
        if give.level == READ and not (own and own.level):
            leased = allow is not None and not allow.shared and op.needs[give.ino].how != How.NAMES
            if not leased and not may_read(inode, give.ino, op.client):
                return
        elif give.level == WRITE and not (own and own.level == WRITE):
            fresh = allow is None and not inode.holders and not inode.queue
            assert fresh or (allow is not None and allow.level == WRITE), f"WRITE of inode {give.ino} was not allowed"
            known = max((holding.epoch for holding in inode.holders.values()), default=0)
            assert give.epoch > known, f"epoch {give.epoch} of inode {give.ino} is not above {known}"
        holding = self._holding(session, give.ino, inode)
        if give.level == WRITE and holding.level < WRITE:
            holding.epoch = give.epoch
        holding.level, holding.shared = max(holding.level, give.level), NONE

    def _on_drop(self, event: Drop) -> None:
        op = self._ops.get(event.op)
        if op is not None:
            assert not op.proceeding, f"operation {op.number} is dropped while it is executed"
            self._remove(op)

    def _remove(self, op: Op) -> None:
        del self._ops[op.number]
        self._sessions[op.client].ops.discard(op.number)
        self._dequeue(op)
        self._pump(op.needs)

    def _enqueue(self, op: Op) -> None:
        for ino in op.needs:
            insort(self._inodes.setdefault(ino, Inode()).queue, op, key=_turn)

    def _dequeue(self, op: Op) -> None:
        for ino in op.needs:
            inode = self._inodes[ino]
            inode.queue.remove(op)
            if inode.idle:
                del self._inodes[ino]

    def _pump(self, inos: Iterable[int]) -> None:
        """Look again at everything that waits for these inodes, the earliest first."""
        waiting = {op.number: op for ino in inos if (inode := self._inodes.get(ino)) for op in inode.queue if not op.proceeding}
        for op in sorted(waiting.values(), key=_turn):
            if op.number in self._ops:
                self._try(op)

    def _try(self, op: Op) -> None:
        """Let an operation proceed, or ask back what is in its way, or leave it waiting for an earlier one."""
        if op.proceeding:
            return
        for need in op.needs.values():
            if blocked(self._inodes[need.ino], op, need):
                return
        waits = False
        for need in op.needs.values():
            inode = self._inodes[need.ino]
            if covered(inode, op.client, need.how):
                continue
            shared = need.how != How.NAMES and is_shared(inode, op.client)
            for client, holding, stays in list(in_the_way(inode, op, need, shared)):
                waits |= not self._take(self._sessions[client], need, holding, stays, op)
            waits |= inode.fencing > 0 or (self._graced and need.how != How.READ)
        if not waits:
            op.proceeding = True
            op.allowed = {need.ino: allowed(self._inodes[need.ino], op, need) for need in op.needs.values()}
            self._out.append(Proceed(op.number, tuple(op.allowed.values())))

    def _take(self, session: Session, need: Need, holding: Holding, stays: Level, op: Op) -> bool:
        """Make a client's holding shrink. Returns whether that is done at once."""
        if not session.live:
            self._evict(session, need.ino)
            self._settle(session, need.ino)
        elif session.connected:
            names = op if need.how == How.NAMES else None
            if not any(_answers(asked, stays, names) for asked in holding.recalls.values()):
                self._recall(session, need.ino, holding, stays, names)
        return not session.live

    def _recall(self, session: Session, ino: int, holding: Holding, level: Level, op: Op | None) -> None:
        seq = next(self._seqs)
        holding.recalls[seq] = Asked(level, op)
        session.recalls[seq] = (ino, self._now_s)
        self._out.append(SendRecall(session.client, seq, ino, level, op.needs[ino].names if op else ()))

    # -------------------------------------------------------------------------------------------------------- holdings

    def _holding(self, session: Session, ino: int, inode: Inode) -> Holding:
        """The client's holding, as the one granted last; a new empty one if it has none."""
        session.inos.pop(ino, None)
        session.inos[ino] = None
        holding = inode.holders.get(session.client)
        if holding is None:
            holding = inode.holders[session.client] = Holding()
        return holding

    def _settle(self, session: Session, ino: int) -> None:
        """After a change: forget what is empty; an orphan that nobody has open is not needed any more."""
        inode = self._inodes.get(ino)
        if inode is None:
            return
        holding = inode.holders.get(session.client)
        if holding is not None and holding.empty:
            for seq in holding.recalls:
                session.recalls.pop(seq, None)
            del inode.holders[session.client]
            session.inos.pop(ino, None)
        if inode.orphan and not inode.holders:
            inode.orphan = False
            self._out.append(Unused(ino))
        if inode.idle:
            del self._inodes[ino]

    def _evict(self, session: Session, ino: int) -> None:
        """Take a lease from a client whose session is over: at once, or with a fence if it could write."""
        inode = self._inodes[ino]
        holding = inode.holders[session.client]
        if holding.writes:
            inode.fencing += 1
            self._out.append(Fence(ino, session.client, holding.epoch, bool(holding.through)))
            for other in inode.holders.values():
                other.epoch = 0 if other.shared else other.epoch  # fenced with it: who writes shared needs a new epoch too
        holding.level, holding.shared, holding.restored = NONE, NONE, False
        self._ask_size(ino, inode)

    def _on_release(self, event: Release) -> None:
        session = self._sessions.get(event.client)
        if session is None or not self._usable(session):
            self._out.append(NoSession(event.client))
            return
        inode = self._inodes.get(event.ino)
        if not (inode and event.client in inode.holders) and not (event.pin or event.through):
            return  # nothing is left of it
        inode = self._inodes.setdefault(event.ino, Inode())
        holding = self._holding(session, event.ino, inode)
        level = event.level
        if event.unsure and holding.writes:
            self._evict(session, event.ino)
        for seq in [seq for seq in holding.recalls if seq <= event.seq]:
            asked = holding.recalls.pop(seq)
            session.recalls.pop(seq, None)
            level = min(level, asked.level)
            if asked.op is not None:
                asked.op.acked.add((event.ino, event.client))
            elif asked.level == NONE:
                holding.shared = NONE
        holding.level = min(holding.level, level)
        if holding.level == NONE and event.seq == 0 and event.through == NONE:
            holding.shared = NONE
        holding.pin, holding.through = event.pin, event.through
        inode.unsized |= event.through == WRITE
        self._ask_size(event.ino, inode)
        self._settle(session, event.ino)
        self._pump((event.ino,))

    def _ask_size(self, ino: int, inode: Inode) -> None:
        """When nobody writes without a lease any more: a fence that evicts nobody tells how long the file is."""
        if inode.unsized and not any(holding.writes or holding.through == WRITE for holding in inode.holders.values()):
            inode.unsized = False
            inode.fencing += 1
            self._out.append(Fence(ino, "", 0, through=False))

    def _on_forget(self, event: Forget) -> None:
        session = self._sessions.get(event.client)
        if session is None or not self._usable(session):
            return
        for ino in event.inos:
            holding = self._inodes[ino].holders[event.client] if ino in session.inos else None
            if holding is None or holding.level != READ or holding.pin or holding.through:
                continue
            holding.level = NONE
            self._settle(session, ino)
        self._pump(event.inos)

    def _on_fenced(self, event: Fenced) -> None:
        inode = self._inodes.get(event.ino)
        if inode is None or not inode.fencing:
            return
        inode.fencing -= 1
        if inode.idle:
            del self._inodes[event.ino]
        self._pump((event.ino,))

    def _on_through_gone(self, event: ThroughGone) -> None:
        session = self._sessions.get(event.client)
        if session is None or event.ino not in session.inos:
            return
        inode = self._inodes[event.ino]
        inode.holders[event.client].through = NONE
        self._ask_size(event.ino, inode)
        self._settle(session, event.ino)
        self._pump((event.ino,))

    def _on_withdraw(self, event: Withdraw) -> None:
        for ino in event.inos:
            inode = self._inodes.get(ino)
            for client, holding in list(inode.holders.items()) if inode is not None else ():
                session = self._sessions[client]
                stays = READ if holding.level == WRITE else NONE
                if not holding.writes:
                    continue
                if not session.live:
                    self._evict(session, ino)
                    self._settle(session, ino)
                elif session.connected and not any(_answers(asked, stays, None) for asked in holding.recalls.values()):
                    self._recall(session, ino, holding, stays, None)

    def _on_orphan(self, event: Orphan) -> None:
        inode = self._inodes.get(event.ino)
        if inode is None or not inode.holders:
            self._out.append(Unused(event.ino))
        else:
            inode.orphan = True


def _turn(op: Op) -> int:
    return op.turn


def _changes(need: Need, name: bytes) -> bool:
    return need.how == How.ALONE or (need.how == How.NAMES and name in need.names)


def _answers(asked: Asked, stays: Level, op: Op | None) -> bool:
    """Tell whether a recall that is under way brings what is wanted: a level, or that the names of `op` are forgotten."""
    return asked.level == NONE or asked.op is op if op is not None else asked.level <= stays
