"""Events and effects of the MRC's lease table. Pure; what they mean in sequence is told in docs/protocols/leases.md.

An operation is one request of a client that the MRC executes in one step: `op` is any number that the driver uses once.
"""

from __future__ import annotations

import msgspec

from xtreemos.xtreemfs.lease.model import Claim, Give, Given, Need
from xtreemos.xtreemfs.model import Level


class Event(msgspec.Struct, frozen=True):
    """Base of what happens to the table."""


class Writer(msgspec.Struct, frozen=True):
    """From the store, for a restart: this client was given WRITE (or writing shared) and is not known to have given it back.

    Only rows of the inode's largest epoch. A row whose fence was begun has `client` "": nobody can have it back.
    """

    ino: int
    client: str
    epoch: int
    through: Level = Level.NONE


class Open(Event, frozen=True):
    """A client opened its session, or opened it again, on a new connection."""

    client: str
    held: tuple[Claim, ...] = ()
    anew: bool = False
    """By another process than before, which has died: it did not give back what is not claimed."""


class Cut(Event, frozen=True):
    """The client's connection is gone: what it had asked is dropped, what it holds stays until it expires."""

    client: str


class Close(Event, frozen=True):
    """The client ended its session itself, after giving everything back (or an administrator made sure that it is dead)."""

    client: str


class Renew(Event, frozen=True):
    """A renewal arrived."""

    client: str


class Ask(Event, frozen=True):
    """A client wants an operation done. Answered by Proceed (now or later), Refuse or NoSession."""

    op: int
    client: str
    needs: tuple[Need, ...]


class Again(Event, frozen=True):
    """Answer to Proceed: the store has changed meanwhile, the operation needs other inodes. Its place in the queues stays."""

    op: int
    needs: tuple[Need, ...]


class Done(Event, frozen=True):
    """Answer to Proceed: the operation was executed, or refused by the store. `gives` is what its answer should grant."""

    op: int
    gives: tuple[Give, ...] = ()


class Drop(Event, frozen=True):
    """Whoever asked has given up waiting. Unknown operations are ignored: it may just have been done."""

    op: int


class Release(Event, frozen=True):
    """A client gives back: it has at most `level` from now on. `seq` > 0: answers all recalls of the inode up to this one."""

    client: str
    ino: int
    level: Level
    seq: int = 0
    pin: bool = False
    through: Level = Level.NONE
    """Not NONE: its kernel reads (READ) or writes (WRITE) the OSD's very file, whatever lease it has."""
    unsure: bool = False
    """It gave up writes that may still arrive at OSDs: it is fenced like one that was evicted."""


class Forget(Event, frozen=True):
    """A client gives back READ leases of these inodes; such as it holds at WRITE, pinned or through are not touched."""

    client: str
    inos: tuple[int, ...]


class Fenced(Event, frozen=True):
    """Answer to Fence: all OSDs of the file refuse the evicted client, and the file's size is known again."""

    ino: int


class ThroughGone(Event, frozen=True):
    """It is certain that no kernel of this evicted client still has the OSD's file of the inode open."""

    client: str
    ino: int


class Orphan(Event, frozen=True):
    """The inode has lost its last name. Answered by Unused, now or when nobody has it open."""

    ino: int


class Withdraw(Event, frozen=True):
    """Whoever may write these inodes shall give that back (and may ask for it anew). Answered by nothing: see `Table.is_written`."""

    inos: tuple[int, ...]


class Tick(Event, frozen=True):
    """Time has passed; due at `Table.next_wake()`."""


class Effect(msgspec.Struct, frozen=True):
    """Base of what the driver must do; in the order given."""


class Allowed(msgspec.Struct, frozen=True):
    """What may be given of one needed inode. `fresh`: giving WRITE (or writing shared) needs a new epoch, made durable first."""

    ino: int
    level: Level
    shared: bool
    """Somebody's kernel uses the OSD's file directly: no lease, give `shared` instead. The file's true size is asked from the OSD."""
    fresh: bool
    epoch: int
    """What the asker has now (not `fresh`), or the other writers have (shared, not `fresh`)."""


class Proceed(Effect, frozen=True):
    """Execute the operation now, and say Done (or Again) before any other event."""

    op: int
    allowed: tuple[Allowed, ...]


class Answer(Effect, frozen=True):
    """Send the operation's answer, with this in it: one for each of Done's `gives`, in order."""

    op: int
    given: tuple[Given, ...]


class Refuse(Effect, frozen=True):
    """The operation is not done: this client has too many waiting (EAGAIN)."""

    op: int


class NoSession(Effect, frozen=True):
    """Operation, or (`op` 0) renewal, release or forgetting of a client whose session is over: it must open it again."""

    client: str
    op: int = 0


class SendRecall(Effect, frozen=True):
    """Send `protocol.Recall`, after every answer to this client that came before it in the order of effects."""

    client: str
    seq: int
    ino: int
    level: Level
    names: tuple[bytes, ...]


class Opened(Effect, frozen=True):
    """Answer Open; a `new` client's id is made durable first (also of one that had lapsed, or is another process now). `lost`: claimed, but given to others meanwhile."""

    client: str
    new: bool
    lost: tuple[int, ...]


class Renewed(Effect, frozen=True):
    """Answer Renew, with a session token that expires in LEASE_S."""

    client: str


class Lapsed(Effect, frozen=True):
    """The client's session has expired: its locks go to others now. Its leases go one by one, when somebody wants them.

    Its durable id goes before anything that follows is done: after a restart it must not be believed when it claims what others got.
    """

    client: str


class Forgotten(Effect, frozen=True):
    """Nothing is left of this session."""

    client: str


class Fence(Effect, frozen=True):
    """Evicted writer: make an epoch larger than `epoch` durable, fence the file at its OSDs with it, store the true size, say Fenced.

    Operations on the inode wait until then. It is the driver's to try until it succeeds. `client` "": nobody is evicted, but files were
    written without a lease, and only the OSDs know the size.
    """

    ino: int
    client: str
    epoch: int
    through: bool
    """Its kernel may go on writing the OSD's file: no fence holds that, only ThroughGone ends it. (Nobody caches until then.)"""


class Unused(Effect, frozen=True):
    """No name and nobody has it open: delete the inode and its objects."""

    ino: int


class GraceOver(Effect, frozen=True):
    """After a restart: all who will come back are back. Inodes without a name that are not `in_use` may be deleted; locks are granted again."""
