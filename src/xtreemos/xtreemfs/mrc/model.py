"""Values of the MRC's state: an inode, a name, a volume, who acts, what is counted. And the bounds of all of it.

Pure. `Inode` alone is mutable: the machine works on a fresh copy out of the store and puts it back whole, so nobody shares one.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, Literal

import msgspec

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import NUMBER_BITS, Attr, Layout, VolumePolicy, VolumeRecord

VOLUME_ID_MAX: Final = (1 << 23) - 1  # so that inode numbers stay below 2^63: signed numbers are all some programs have
ROOT_NUMBER: Final = 1
FIRST_COOKIE: Final = 16  # smaller ones are the client's own ("." and "..")
DIRECTORY_BYTES: Final = 4096
XATTRS_BYTES_MAX: Final = 1 << 20  # names and values of one inode together
LIST_BYTES_MAX: Final = 64 * 1024  # names of one inode as listxattr gives them: the kernel takes no more
GROUPS_MAX: Final = 4096
PURGE_KEYS: Final = 512  # keys deleted by one purge command: a removed volume never holds up others for long
CLIENT_BYTES: Final = 32  # of a session id
VOLUME_NAME: Final = r"[a-z0-9_][a-z0-9._-]{0,62}"
HOME_PREFIX: Final = "home-"

LINKABLE: Final = 1  # flag of an inode made by O_TMPFILE: link may give it its first name
HAS_XATTRS: Final = 2  # flag: rows under the inode's xattr prefix may exist
TYPE_SHIFT: Final = 12

READ, WRITE, SEARCH = 4, 2, 1
"""What is asked of a permission check, as in `access(2)`."""


class Inode(msgspec.Struct, array_like=True):
    """One inode as it is stored (hot part; layout and symlink target lie apart). Fields as in `Attr`, times in nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int
    """Number of the last command that changed it."""
    flags: int = 0
    parent: int = 0
    """Of a directory: the one that holds its name (its own number for a volume's root). Others may have many names and know none."""
    entries: int = 0
    """Of a directory: how many names it holds."""
    cookie: int = 0
    """Of a directory: the largest cookie it ever gave; cookies are never used again."""
    acl: bytes = b""
    """Access ACL in the xattr's own format, "" if the mode bits say all."""
    default_acl: bytes = b""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def volume(self) -> int:
        """Id of its volume."""
        return self.ino >> NUMBER_BITS

    def attr(self) -> Attr:
        """Return what others may see of it."""
        return Attr(
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.size, self.blocks, self.rdev,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns, self.version,
        )  # fmt: skip


class Name(msgspec.Struct, frozen=True, array_like=True):
    """A directory entry: whose name it is, of which type (`mode >> 12`), and its place in listings."""

    ino: int
    type: int
    cookie: int


class Cred(msgspec.Struct, frozen=True, array_like=True):
    """Who acts, in principals (or plain ids on a mount as root). `root`: holds the powers of uid 0 in this volume.

    `reader`: changes nothing, whatever mode bits, ACLs and owners say.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    root: bool = False
    reader: bool = False

    def in_group(self, gid: int) -> bool:
        """Whether `gid` is one of its groups."""
        return gid == self.gid or gid in self.groups


class Volume(msgspec.Struct, frozen=True, array_like=True):
    """A volume of this MRC. `state`: new (DIR was not told yet), live, gone (its tree is being deleted)."""

    record: VolumeRecord
    state: Literal["new", "live", "gone"]
    quota_bytes: int = 0
    quota_files: int = 0


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a volume or one owner in it has: sum of file sizes in bytes, number of inodes. Also used for limits (0: none)."""

    bytes: int = 0
    files: int = 0


class Cold(msgspec.Struct, frozen=True, array_like=True):
    """What is read only when a file is opened or a symlink followed."""

    layout: Layout | None = None
    link: bytes = b""


class Writer(msgspec.Struct, frozen=True, array_like=True):
    """Somebody may write a file with `epoch`. `through`: level of passthrough, by which writes go past the lease."""

    epoch: int
    through: int = 0


class Promise(msgspec.Struct, frozen=True, array_like=True):
    """A file may be made `reach` bytes long by its writers; `rest` of that was not used when it was counted for `owner`. Bytes."""

    reach: int
    owner: int
    rest: int


class Session(msgspec.Struct, frozen=True, array_like=True):
    """A client that was heard of: its node ("" on a server without TLS) and when it came, seconds since 1970."""

    client: str
    node: str
    opened_at: int
    life: int = 0
    """Number of the command that opened it (0: by an older server). A session that is opened anew has another one."""


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What a change answered that may be sent again: attributes as they were then, in the order of its result."""

    attrs: tuple[Attr, ...]


def new_volume_record(*, name: str, number: int, mrc: str, owner: str, kind: str, now_s: int, policy: VolumePolicy) -> VolumeRecord:
    """Return the DIR record of a new volume; raises FsError(EINVAL) for an id out of range."""
    if not 1 <= number <= VOLUME_ID_MAX:
        raise FsError(errno.EINVAL, f"volume id {number} is not between 1 and {VOLUME_ID_MAX}")
    shape: Literal["home", "shared"] = "home" if kind == "home" else "shared"
    return VolumeRecord(name=name, id=number, mrc=mrc, owner=owner, kind=shape, created_at=now_s, policy=policy)
