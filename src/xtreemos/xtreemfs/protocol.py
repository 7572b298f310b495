"""Messages between client, MRC and OSD: the parameters and results of every method, as MessagePack arrays. Wire shapes only.

They travel as calls of `fabric.rpc` (TLS between nodes, a root-only Unix socket on the same node). A method `mrc.lookup` takes the struct
`Lookup`; what it answers stands beside it. A refusal is an ERROR frame whose `code` is the errno's name ("ENOENT"), see `errors`.

Every file system method begins with `who`: an actor number that `mrc.act` gave for a user's ticket on this connection, and, for
an actor that is root of the volume, the plain ids to act as.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from xtreemos.xtreemfs.model import WIDTH_MAX, Attr, Layout


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages: arrays, so fields may be added at the end with defaults."""


class Who(Message, frozen=True, array_like=True):
    """On whose behalf. `uid`, `gid`, `groups` count only if the actor is root of the volume; else the MRC knows better."""

    actor: int
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()


# ---------------------------------------------------------------------------------------------------- sessions and leases


class Once(Message, frozen=True, array_like=True):
    """Goes beside the message of a change (see `calls`): it may be sent again when its answer was lost, and has effect once.

    Numbers of one session grow by one; all below `below` were answered or given up, so their answers need not be kept any longer.
    """

    life: int
    """`Welcome.life` of the session when it was sent first."""
    number: int
    below: int


class OpenSession(Message, frozen=True, array_like=True):
    """`mrc.session`, a call that stays open: results come as EVENTs (`Welcome`, then `Recall`s), ERROR ends the session.

    `held` is what a client still has after the connection (or the MRC) went away: within the lease it goes on as if nothing happened.
    """

    client: str
    """128 random bits, hex; made by the client once and used by no other process, but the one that takes over its mount (`anew`)."""
    held: tuple[Held, ...] = ()
    locks: tuple[LockRow, ...] = ()
    dead: tuple[str, ...] = ()
    """Earlier sessions of this node whose process is certain to have ended: closed at once, not after their lease."""
    anew: bool = False
    """Another process opened it, which was killed: its leases are taken as from an expired one; locks and pins that are named here stay."""


class Held(Message, frozen=True, array_like=True):
    """One inode that a client has something of. `pin`: open there, so it must live on although its last name is gone."""

    ino: int
    level: int
    epoch: int
    pin: bool
    through: int = 0
    """Level of passthrough: the kernel reads or writes the OSD's file itself."""
    shared: int = 0
    """Level without a lease: each read and write goes to the OSDs."""


class Welcome(Message, frozen=True, array_like=True, tag="welcome"):
    """The session stands. `lease_ms`: it ends so long after the *sending* of the last renewal that was answered."""

    lease_ms: int
    lost: tuple[int, ...] = ()
    """Inodes of `held` that were given to others meanwhile: unwritten data of these is void (EIO)."""
    lost_locks: tuple[LockRow, ...] = ()
    """Locks of `locks` that others have now: their owners must not go on as if they had them (EIO)."""
    life: int = 0
    """Goes into `Once`: another one means that the MRC has forgotten the session in between, and what it had answered."""


class Recall(Message, frozen=True, array_like=True, tag="recall"):
    """Give back: after it the client has at most `level` of `ino`, and of a directory nothing about `names`.

    Answer by `mrc.release` with this `seq`, after everything unwritten is on the OSDs, sizes told, and the kernel's copies gone.
    """

    seq: int
    ino: int
    level: int
    names: tuple[bytes, ...] = ()


class Release(Message, frozen=True, array_like=True):
    """`mrc.release` -> None. Answers a recall (`seq` > 0) or gives back freely (`seq` 0). `attr`: the writer's last word."""

    ino: int
    level: int
    seq: int = 0
    update: Update | None = None
    pin: bool = False
    through: int = 0
    """Level of passthrough that goes on (or begins: with `seq` 0 and the level that is held)."""
    unsure: bool = False
    """Writes were given up and may still arrive at the OSDs: the file must be fenced."""


RELEASES_MAX = 256
"""Of one message."""


class Releases(Message, frozen=True, array_like=True):
    """`mrc.releases` -> [int...], for each in its order 0, or the errno that `mrc.release` would have had; all of them are done."""

    releases: tuple[Release, ...]
    """At most RELEASES_MAX."""


class Update(Message, frozen=True, array_like=True):
    """`mrc.update` -> Attr; also in a Release. What a WRITE holder changed by itself; -1 means unchanged. Refused (ESTALE) under an older epoch."""

    ino: int
    epoch: int
    size: int = -1
    blocks: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1
    atime_ns: int = -1
    mode: int = -1
    """Only to clear set-user-id and set-group-id bits after a write."""
    done: bool = False
    """Nobody here writes it now: room that was promised beyond its size is given back, and the capability not used beyond it."""


UPDATES_MAX = 256
"""Of one message: each is a record of the log, and all are executed in one step."""


class Updates(Message, frozen=True, array_like=True):
    """`mrc.updates` -> [int...], for each in its order 0, or the errno that `mrc.update` would have had; the others are done all the same."""

    updates: tuple[Update, ...]
    """At most UPDATES_MAX."""


class Renew(Message, frozen=True, array_like=True):
    """`mrc.renew` -> Renewed."""

    client: str


class Renewed(Message, frozen=True, array_like=True):
    """A fresh session token for the OSDs (see `capability`)."""

    token: bytes


class Act(Message, frozen=True, array_like=True):
    """`mrc.act` -> Acting. `ticket`: a user's signed permission for this node (see `ticket`); b"" for nobody's rights."""

    ticket: bytes
    root_of: int = 0
    """Volume id: act as its root (refused unless the user owns it or administers the VO)."""


class Acting(Message, frozen=True, array_like=True):
    """The actor number, good on this connection until `expires_at` (seconds since 1970)."""

    actor: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    expires_at: int


class Bye(Message, frozen=True, array_like=True):
    """`mrc.bye` -> None: the client ends its session; everything was given back."""

    client: str


class Forget(Message, frozen=True, array_like=True):
    """`mrc.forget` -> None: gives back READ leases of many inodes that fell out of the client's cache."""

    inos: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------------- names


class Grant(Message, frozen=True, array_like=True):
    """An inode and what the client now holds of it."""

    attr: Attr
    level: int = 0
    epoch: int = 0
    """Of a WRITE lease, else 0."""
    capability: bytes = b""
    layout: Layout | None = None
    link: bytes = b""
    """Target of a symlink."""
    named: bool = True
    """Whether the name may be cached as well (the directory is held at READ and nobody is changing this name)."""
    cache: bool = True
    """Whether `attr` may be kept under `level`; False while somebody else waits to change it."""
    shared: int = 0
    """Not 0: no lease, for a kernel writes the file by passthrough; each read and write goes to the OSDs, with `capability`."""
    watched: bool = False
    """Another kernel reads the file by passthrough: what is written under WRITE has to be at the OSD before the program goes on."""


class Lookup(Message, frozen=True, array_like=True):
    """`mrc.lookup` -> Grant, or NoEntry."""

    who: Who
    dir: int
    name: bytes


class NoEntry(Message, frozen=True, array_like=True):
    """There is no such name. `named`: that may be remembered while the directory is held. It is a value, for it is no failure."""

    named: bool
    dir_attr: Attr | None = None


class Looked(Message, frozen=True, array_like=True):
    """Answer of `mrc.lookup`."""

    entry: Grant | None
    missing: NoEntry | None = None
    dir_level: int = 0
    """What the client now holds of the directory."""
    dir_cache: bool = True
    """Whether the directory's attributes may be kept under that."""


class GetAttr(Message, frozen=True, array_like=True):
    """`mrc.getattr` -> Grant."""

    who: Who
    ino: int


class Acquire(Message, frozen=True, array_like=True):
    """`mrc.acquire` -> Grant with capability and layout of a file: asks for a lease, and `open`s by the rights asked for.

    `mode` is checked against the file's permissions: "r", "w", "rw", or "" to ask for the lease alone under rights checked before.
    """

    who: Who
    ino: int
    level: int
    mode: str = ""
    truncate: bool = False
    end: int = 0
    """With level WRITE, where there is a quota: how long the file wants to become, bytes. If it cannot, the capability says less."""


class Create(Message, frozen=True, array_like=True):
    """`mrc.create` -> Made. Makes any kind of inode (`mode` carries the type); a regular file comes with a WRITE lease.

    `umask` is applied by the MRC unless the directory has a default ACL. `exclusive` False opens an existing regular file.
    """

    who: Who
    dir: int
    name: bytes
    mode: int
    umask: int
    now_ns: int
    rdev: int = 0
    link: bytes = b""
    exclusive: bool = True
    near: str = ""
    """Node whose OSD is preferred."""
    anonymous: bool = False
    """O_TMPFILE: no name; lives while pinned or until it is linked."""


class Made(Message, frozen=True, array_like=True):
    """The new (or found) inode, and its directory afterwards."""

    entry: Grant
    dir_attr: Attr
    found: bool = False
    dir_cache: bool = True
    """Whether `dir_attr` may be kept (by who holds the directory)."""


class Link(Message, frozen=True, array_like=True):
    """`mrc.link` -> Made."""

    who: Who
    ino: int
    dir: int
    name: bytes
    now_ns: int


class Unlink(Message, frozen=True, array_like=True):
    """`mrc.unlink` -> Gone. `directory`: rmdir."""

    who: Who
    dir: int
    name: bytes
    now_ns: int
    directory: bool = False


class Gone(Message, frozen=True, array_like=True):
    """What lost a name (nlink 0: it is pinned for this client if that holds it, until released without pin)."""

    attr: Attr
    dir_attr: Attr
    dir_cache: bool = True
    """Whether `dir_attr` may be kept (by who holds the directory)."""


class Rename(Message, frozen=True, array_like=True):
    """`mrc.rename` -> Renamed. `flags` as renameat2: 1 NOREPLACE, 2 EXCHANGE."""

    who: Who
    dir: int
    name: bytes
    new_dir: int
    new_name: bytes
    flags: int
    now_ns: int


class Renamed(Message, frozen=True, array_like=True):
    """Attributes afterwards; `replaced` is what lost its name, or (EXCHANGE) the other one."""

    attr: Attr
    dir_attr: Attr
    new_dir_attr: Attr
    replaced: Attr | None = None
    dir_cache: bool = True
    """Whether `dir_attr` and `new_dir_attr` may be kept (by who holds them)."""


class ReadDir(Message, frozen=True, array_like=True):
    """`mrc.readdir` -> Listing: entries after `cookie` (0: from the start; "." and ".." are the client's business)."""

    who: Who
    dir: int
    cookie: int
    count: int
    attrs: bool = True


class ListedEntry(Message, frozen=True, array_like=True):
    """One name. Its cookie stays the same for as long as the name exists. `attr` None if a writer elsewhere would have to be asked."""

    name: bytes
    cookie: int
    ino: int
    mode: int
    attr: Attr | None = None
    link: bytes = b""


class Listing(Message, frozen=True, array_like=True):
    """A page of a directory in the order of cookies; READ is granted on each entry that has an `attr`."""

    entries: tuple[ListedEntry, ...]
    end: bool
    dir_level: int = 0
    parent: int = 0
    dir_cache: bool = True
    """Whether the listing may be kept under `dir_level`."""
    dir_attr: Attr | None = None


# ------------------------------------------------------------------------------------------------------------- attributes


class SetAttr(Message, frozen=True, array_like=True):
    """`mrc.setattr` -> Grant: chmod, chown, utimens, and truncate of a file whose WRITE lease the client holds. -1: unchanged.

    Other negative times are before 1970 (the last nanosecond before it cannot be said: round it to -2).
    """

    who: Who
    ino: int
    now_ns: int
    mode: int = -1
    uid: int = -1
    gid: int = -1
    size: int = -1
    atime_ns: int = -1
    mtime_ns: int = -1
    times_now: int = 0
    """1: atime, 2: mtime are "now" (write permission suffices for these)."""
    epoch: int = 0


class GetXattr(Message, frozen=True, array_like=True):
    """`mrc.getxattr` -> bytes."""

    who: Who
    ino: int
    name: bytes


class SetXattr(Message, frozen=True, array_like=True):
    """`mrc.setxattr` -> Grant. `flags` 1 create, 2 replace. `kill_sgid`: an ACL by one outside the file's group clears that bit."""

    who: Who
    ino: int
    name: bytes
    value: bytes
    flags: int
    now_ns: int
    kill_sgid: bool = False


class ListXattr(Message, frozen=True, array_like=True):
    """`mrc.listxattr` -> list of names (bytes)."""

    who: Who
    ino: int


class RemoveXattr(Message, frozen=True, array_like=True):
    """`mrc.removexattr` -> Grant."""

    who: Who
    ino: int
    name: bytes
    now_ns: int


class StatFs(Message, frozen=True, array_like=True):
    """`mrc.statfs` -> StatFsAnswer."""

    who: Who
    ino: int


class StatFsAnswer(Message, frozen=True, array_like=True):
    """As statvfs, of the volume: its quota, or what its OSDs have."""

    bytes_total: int
    bytes_free: int
    files_total: int
    files_free: int


# ------------------------------------------------------------------------------------------------------------------ locks


class LockRow(Message, frozen=True, array_like=True):
    """One lock: `kind` p(osix and OFD, by byte range) or b(sd, whole file). `end` inclusive, FILE_BYTES_MAX for "to the end"."""

    ino: int
    kind: Literal["p", "b"]
    owner: int
    """The kernel's lock owner, 64 bits; together with the client it names the holder."""
    start: int
    end: int
    write: bool
    pid: int


class SetLock(Message, frozen=True, array_like=True):
    """`mrc.lock` -> bool: whether it was got. `wait`: the call stays open until it is (closing the call gives up waiting)."""

    who: Who
    row: LockRow
    wait: bool = False


class Unlock(Message, frozen=True, array_like=True):
    """`mrc.unlock` -> None. `all_of_owner`: everything of this owner in the file (close)."""

    who: Who
    ino: int
    kind: Literal["p", "b"]
    owner: int
    start: int = 0
    end: int = (1 << 63) - 1
    all_of_owner: bool = False


class TestLock(Message, frozen=True, array_like=True):
    """`mrc.testlock` -> LockRow | None: who stands in the way."""

    who: Who
    row: LockRow


# ---------------------------------------------------------------------------------------------------------------- volumes


class MakeVolume(Message, frozen=True, array_like=True):
    """`mrc.mkvol` -> VolumeRecord as a map. `kind` "home" is made for the actor itself, once; its record if it is there.

    `group`: the top folder belongs to this group of the VO, and what is made in it gets permissions as far as that folder has them.
    """

    who: Who
    name: str
    kind: str
    mode: int
    policy: dict[str, int | str] = {}  # msgspec copies defaults
    group: str = ""


class RemoveVolume(Message, frozen=True, array_like=True):
    """`mrc.rmvol` -> None: refused (ENOTEMPTY) unless it is empty or `force`."""

    who: Who
    name: str
    force: bool = False


class VolumeStat(Message, frozen=True, array_like=True):
    """`mrc.volstat` -> Quotas: what a volume and its owners have, and their limits. For its owner and administrators; others see themselves."""

    who: Who
    name: str


class QuotaRow(Message, frozen=True, array_like=True):
    """Use and limits (0: none) of one owner in a volume; `user` is "" for the volume itself."""

    user: str
    bytes_used: int
    files_used: int
    bytes_max: int
    files_max: int


class Quotas(Message, frozen=True, array_like=True):
    """The volume's own row first, then one per owner that has files or a limit, by number."""

    rows: tuple[QuotaRow, ...]


class SetQuota(Message, frozen=True, array_like=True):
    """`mrc.setquota` -> None: limits of a volume (`user` "") or of one user in it; 0: none. For its owner and administrators."""

    who: Who
    name: str
    user: str
    bytes_max: int
    files_max: int


class ShareVolume(Message, frozen=True, array_like=True):
    """`mrc.share` -> None: members of VO `vo` may use the volume ("r" reading, "rw" writing too), or may no more (""). For administrators.

    `until`: seconds since 1970, 0: for ever. It takes effect when that VO has accepted it as well (`accepted.VO` in its directory).
    """

    who: Who
    name: str
    vo: str
    mode: Literal["r", "rw", ""]
    until: int = 0


class Follow(Message, frozen=True, array_like=True):
    """`mrc.events`, a call that stays open: EVENTs `Changes` of one volume, from those after number `after` on (-1: from now on)."""

    who: Who
    name: str
    after: int = -1


class ChangeRow(Message, frozen=True, array_like=True):
    """One change. `kind`: create, link, unlink, rmdir, rename-from, rename-to, attr, data, xattr; the rows of one command share `number`."""

    number: int
    kind: str
    ino: int
    dir: int
    name: bytes


class Changes(Message, frozen=True, array_like=True):
    """Changes in order. `lost`: those between `after` and the first one here are not kept any more, look at the volume itself."""

    rows: tuple[ChangeRow, ...]
    lost: bool = False


class Status(Message, frozen=True, array_like=True):
    """`mrc.status` (root of the node, or an administrator) -> map: counts, rates and log position for operators."""

    who: Who


class Names(Message, frozen=True, array_like=True):
    """`mrc.names` -> list of Principal for these numbers (unknown ones are left out)."""

    numbers: tuple[int, ...]


class Numbers(Message, frozen=True, array_like=True):
    """`mrc.numbers` -> list of principal numbers for these (kind, name), given now to members and groups that had none; -1 for others."""

    names: tuple[tuple[Literal["u", "g"], str], ...]


# ------------------------------------------------------------------------------------------------------------------- OSD


class Rights(Message, frozen=True, array_like=True):
    """What a client shows with every OSD request: a signed capability and a signed session token, as they came from the MRC."""

    capability: bytes
    session: bytes


class OsdRead(Message, frozen=True, array_like=True):
    """`osd.read` -> OsdData. `at`, `length` in the OSD's column; bytes after the column's end are not sent."""

    rights: Rights
    column: int
    at: int
    length: int


class OsdData(Message, frozen=True, array_like=True):
    """Bytes and the CRC-32 of each SUM_BYTES block they touch, cut at their ends (the OSD checked its stored sums first)."""

    data: bytes
    sums: tuple[int, ...]


class OsdWrite(Message, frozen=True, array_like=True):
    """`osd.write` -> OsdWritten. `sums`: CRC-32 of each SUM_BYTES-aligned block part of `data`, computed where the bytes were made."""

    rights: Rights
    column: int
    at: int
    data: bytes
    sums: tuple[int, ...]


class OsdWritten(Message, frozen=True, array_like=True):
    """`boot`: if it differs at the next sync from what the write answered, unsynced data was lost in a power cut."""

    boot: str
    length: int
    """Of the column, now."""
    blocks: int
    """Bytes allocated / 512, now."""


class OsdTruncate(Message, frozen=True, array_like=True):
    """`osd.truncate` -> OsdWritten."""

    rights: Rights
    column: int
    length: int


class OsdAllocate(Message, frozen=True, array_like=True):
    """`osd.allocate` -> OsdWritten. `how`: a(llocate), k(eep size), p(unch a hole), z(ero)."""

    rights: Rights
    column: int
    at: int
    length: int
    how: Literal["a", "k", "p", "z"]


class OsdSeek(Message, frozen=True, array_like=True):
    """`osd.seek` -> int: position of the next data (`what` "d") or hole ("h") at or after `at` in the column; -1: none (ENXIO)."""

    rights: Rights
    column: int
    at: int
    what: Literal["d", "h"]


class OsdSync(Message, frozen=True, array_like=True):
    """`osd.sync` -> OsdWritten: data, length and sums of the column are on disk."""

    rights: Rights
    column: int


class OsdStat(Message, frozen=True, array_like=True):
    """`osd.stat` -> OsdWritten, without side effects (length 0 if there is no such column)."""

    rights: Rights
    column: int


class OsdFile(Message, frozen=True, array_like=True):
    """`osd.file` (Unix socket only) -> OsdWritten and a descriptor of the column's file, for passthrough. `write`: sums are void until `osd.sync`."""

    rights: Rights
    column: int
    write: bool


class OsdInUse(Message, frozen=True, array_like=True):
    """`osd.inuse` (Unix socket only) -> bool: somebody beside the OSD has the column's file open or mapped."""

    ino: int
    column: int


class OsdFence(Message, frozen=True, array_like=True):
    """`osd.fence` (MRC) -> tuple of column lengths: from now on no smaller epoch may write this file; how long the columns here are."""

    ino: int
    epoch: int
    columns: tuple[int, ...]


class OsdDelete(Message, frozen=True, array_like=True):
    """`osd.delete` (MRC) -> None: these files are gone; space is free when it returns, a repeated call changes nothing."""

    inos: tuple[int, ...]
    width: int = WIDTH_MAX
    """None of them ever had a column with this number or a larger one, so these need not be looked for."""


class OsdStatus(Message, frozen=True, array_like=True):
    """`osd.status` -> map with total_bytes, free_bytes, files, state, disks, damaged (rows), counters."""


class OsdScrub(Message, frozen=True, array_like=True):
    """`osd.scrub` (root of the node, a node with an MRC, or an administrator) -> EVENTs {done, total, damaged}, then RESULT {files, bytes, damaged: rows, torn: rows}."""

    repair: bool = False


class OsdColumns(Message, frozen=True, array_like=True):
    """`osd.columns` (root of the node, or a node with an MRC) -> EVENTs of lists of ColumnRow, then {columns}. `inos`: only these files."""

    inos: tuple[int, ...] = ()


class ColumnRow(Message, frozen=True, array_like=True, order=True):
    """A column that an OSD has. `state`: there; lost (it should be there, with `length` bytes, and is not); deleted (the whole file)."""

    ino: int
    column: int
    state: Literal["there", "lost", "deleted"]
    length: int
    """Bytes, holes included; -1: not known (only told of clean columns, or where files were asked for)."""
    taken_bytes: int
