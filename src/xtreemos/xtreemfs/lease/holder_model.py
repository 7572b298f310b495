"""Events and effects of the client's side of leases. Pure; what they mean in sequence is told in docs/protocols/leases.md.

`op` is any number that the driver uses once: one request of the kernel that relies on the lease of one inode.
"""

from __future__ import annotations

import msgspec

from xtreemos.xtreemfs.lease.model import Claim
from xtreemos.xtreemfs.model import Level


class Event(msgspec.Struct, frozen=True):
    """Base of what happens to a holder."""


class Begin(Event, frozen=True):
    """An operation wants to rely on `level` of an inode. Answered by Go (now or later) or Fail."""

    op: int
    ino: int
    level: Level
    writeback: bool = False
    """The kernel writes back a dirty page of a mapping: must be served as long as the lease is held, or an invalidation never ends."""


class End(Event, frozen=True):
    """The operation is over. `dirty`: it left something unwritten here (or may have)."""

    op: int
    dirty: bool = False


class Cancel(Event, frozen=True):
    """Whoever waits for Go has given up."""

    op: int


class Granted(Event, frozen=True):
    """An answer of the MRC says what we hold. `asked`: it answers an Ask."""

    ino: int
    level: Level
    epoch: int = 0
    shared: Level = Level.NONE
    asked: bool = False
    watched: bool = False
    """Another kernel reads the OSD's file directly: see `Holder.writes_through`."""


class AskFailed(Event, frozen=True):
    """An Ask was refused by the MRC (not: the connection broke, that is Cut)."""

    ino: int


class Recalled(Event, frozen=True):
    """`protocol.Recall` arrived."""

    seq: int
    ino: int
    level: Level
    names: tuple[bytes, ...] = ()


class Flushed(Event, frozen=True):
    """Answer to Flush: what was unwritten then is on the OSDs. `ok` False: given up, as GaveUp."""

    ino: int
    ok: bool = True


class GaveUp(Event, frozen=True):
    """The driver gave up writing (for an fsync, or without a lease): nobody knows what the OSDs got, or will get."""

    ino: int


class Invalidated(Event, frozen=True):
    """Answer to Invalidate."""

    ino: int


class Released(Event, frozen=True):
    """The MRC has answered SendRelease."""

    ino: int


class Cleaned(Event, frozen=True):
    """The driver wrote by itself (fsync, back-pressure) all that was unwritten in the inode, and has been answered."""

    ino: int


class Pin(Event, frozen=True):
    """The first handle of the inode was opened here (`on`), or the last one was closed."""

    ino: int
    on: bool


class Through(Event, frozen=True):
    """Passthrough is wanted at this level, or (NONE) was ended. Wait for Released or Opened before the kernel is given the OSD's file."""

    ino: int
    level: Level


class Give(Event, frozen=True):
    """These fell out of the client's caches: leases that nobody relies on go back."""

    inos: tuple[int, ...]


class Stale(Event, frozen=True):
    """An OSD refused a write of ours because it saw a larger epoch: the lease is lost, whatever we think."""

    ino: int
    epoch: int
    """That we had shown: an older one than we have now is no news."""


class Connected(Event, frozen=True):
    """A connection to the MRC stands. Answered by OpenSession."""


class Cut(Event, frozen=True):
    """The connection is gone, with all that was under way on it."""


class Opened(Event, frozen=True):
    """The MRC answered OpenSession (`protocol.Welcome`)."""

    sent_s: float
    """When OpenSession was sent, on the clock of `now_s`."""
    lost: tuple[int, ...] = ()


class RenewAnswered(Event, frozen=True):
    """The MRC answered SendRenew."""

    sent_s: float


class SessionOver(Event, frozen=True):
    """The MRC says that our session has expired (to a renewal, a request, or OpenSession itself)."""


class Tick(Event, frozen=True):
    """Time has passed; due at `Holder.next_wake()`."""


class Effect(msgspec.Struct, frozen=True):
    """Base of what the driver must do; in the order given."""


class Go(Effect, frozen=True):
    """The operation may be served now. What it writes carries `epoch`; what it read is cached only if `generation` is still the inode's."""

    op: int
    epoch: int
    direct: bool
    """Without a lease: at the OSDs, nothing is kept, sizes come from there."""
    generation: int


class Fail(Effect, frozen=True):
    """The operation is not served: the MRC refused the lease."""

    op: int


class Ask(Effect, frozen=True):
    """Ask the MRC for this level (`protocol.Acquire`, or GetAttr for READ). Answered by Granted(asked), AskFailed, or Cut."""

    ino: int
    level: Level


class Flush(Effect, frozen=True):
    """Write everything unwritten of the inode and wait for the OSDs' answers, sizes and times into the Update. Answered by Flushed."""

    ino: int


class Invalidate(Effect, frozen=True):
    """Drop own and kernel's copies of what `level` does not cover, and of a directory `names`, attributes and listing. Answered by Invalidated.

    Own copies go at once, before anything is awaited. `again`: the second round, for what operations brought in during the first.
    """

    ino: int
    level: Level
    names: tuple[bytes, ...] = ()
    again: bool = False


class SendRelease(Effect, frozen=True):
    """Send `protocol.Release`, with an Update if WRITE was held at `epoch`. Answered by Released, or Cut."""

    ino: int
    level: Level
    seq: int
    pin: bool
    through: Level
    epoch: int
    unsure: bool
    """Writes of ours were given up and may still arrive: the MRC must fence us."""


class SendForget(Effect, frozen=True):
    """Send `protocol.Forget`; the answer is fed back as Released for each of them."""

    inos: tuple[int, ...]


class FailDirty(Effect, frozen=True):
    """What is unwritten in the inode is void: drop it, tell EIO at fsync and close."""

    ino: int


class SendRenew(Effect, frozen=True):
    """Send `protocol.Renew` and remember when."""


class OpenSession(Effect, frozen=True):
    """Send `protocol.OpenSession` with this and the locks, and remember when."""

    held: tuple[Claim, ...]


class Reopen(Effect, frozen=True):
    """Feed Connected again, REOPEN_S from now."""


class Suspend(Effect, frozen=True):
    """Our session is over on our clock: nothing may be answered from caches, the kernel's go too (inodes' pages, attributes, all names).

    `early`: the MRC has ended it before its time, so the kernel was told that it may believe things for longer.
    """

    early: bool = False


class Resume(Effect, frozen=True):
    """The session stands again; what is not reported lost is as it was."""
