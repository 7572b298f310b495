"""Values that both sides of the lease protocol share, and its times and bounds.

Pure. The MRC's side is `table.Table` (its messages: `table_model`), the client's is `holder.Holder` (`holder_model`); docs/protocols/leases.md
tells them together. Times are seconds of the caller's own monotonic clock; no two machines' clocks are ever compared.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from xtreemos.xtreemfs.model import Level

LEASE_S = 10.0
"""A client's session, on the MRC's clock from the arrival of the last renewal, on the client's from the sending of it."""
RENEW_S = 2.5
MARGIN_S = 1.0
"""The client stops so much earlier: for clocks whose rates differ (by up to 5 % each way), and for dropping what the kernel caches."""
REOPEN_S = 0.5
"""A client whose session is over opens it again after so long."""
RECALL_ANSWER_S = 45.0
"""A live client that leaves a recall unanswered for so long is not renewed any more: it ends up as if it were cut off."""
LAPSED_S = 3600.0
"""What nobody else wanted of an expired session is kept so long for its return; then all of it is evicted and the session forgotten."""
LEASES_PER_CLIENT_MAX = 200_000
SHRINK_BATCH = 1_000
"""Leases asked back at a time from a client that has more than LEASES_PER_CLIENT_MAX, the oldest first."""
OPS_PER_CLIENT_MAX = 4_096
"""Operations of one client that may wait in the MRC."""
SESSIONS_MAX = 10_000


class How(IntEnum):
    """What an operation needs of an inode: what the *others* must have given back before it is done."""

    NAMES = 0
    """A directory's names change: others have forgotten these names, its attributes and listing; they keep the directory."""
    READ = 1
    """Others have at most READ."""
    ALONE = 2
    """Others have nothing."""


class Need(msgspec.Struct, frozen=True):
    """One inode that an operation needs; `names` with How.NAMES only."""

    ino: int
    how: How
    names: tuple[bytes, ...] = ()


class Give(msgspec.Struct, frozen=True):
    """What an operation's answer wants to grant its asker. `level` NONE asks only what is held."""

    ino: int
    level: Level = Level.NONE
    epoch: int = 0
    """Of a WRITE lease (or of writing shared): larger than every earlier one of this inode, unless `Allowed.fresh` was False."""
    shared: Level = Level.NONE
    """Where `Allowed.shared`: what the asker may do at the OSDs without a lease, instead of `level`."""


class Given(msgspec.Struct, frozen=True):
    """What a client holds of an inode after an answer; goes into the answer."""

    ino: int
    level: Level
    epoch: int = 0
    cache: bool = True
    """Whether attributes (of a directory also its listing) in this answer may be kept. False while somebody else waits to change them."""
    shared: Level = Level.NONE
    """Not NONE: no lease, but a capability; each read and write goes to the OSDs, nothing is kept."""
    watched: bool = False
    """Somebody else's kernel reads the OSD's file directly: what is written under WRITE is at the OSD before the program goes on."""


class Claim(msgspec.Struct, frozen=True):
    """One inode that a client says it still has when it opens its session again (`protocol.Held`)."""

    ino: int
    level: Level
    epoch: int = 0
    pin: bool = False
    through: Level = Level.NONE
    shared: Level = Level.NONE
