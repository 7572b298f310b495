"""Values of XtreemFS that every part of it shares: inode numbers, attributes, layouts, capabilities, records of the directory service.

Pure: no I/O, clock or randomness. What they mean together is told in docs/notes/0003-xtreemfs.md and docs/protocols/xtreemfs.md.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from enum import IntEnum
from typing import Literal

import msgspec

from xtreemos.errors import UsageError

NUMBER_BITS = 40
"""An inode number is `volume id << 40 | number in the volume`: unique in the VO, and the FUSE node id, so no table maps them."""
VO_ROOT_INO = 1  # volume ids begin at 1, so this can be no file: the list of the VO's volumes
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
XATTR_NAME_BYTES_MAX = 255
XATTR_BYTES_MAX = 64 * 1024
LINKS_MAX = 1 << 20
FILE_BYTES_MAX = (1 << 63) - 1
OBJECT_BYTES = 4 << 20  # of a striped file: one request of 1 MiB touches one OSD, 4 of them fill an object
WIDTH_MAX = 64
SUM_BYTES = 16 * 1024  # bytes under one checksum

NOBODY = 65534


def make_ino(volume: int, number: int) -> int:
    """Return the inode number of file `number` (>= 1; 1 is the root) of volume id `volume` (>= 1)."""
    return volume << NUMBER_BITS | number


def volume_of(ino: int) -> int:
    """Return the volume id in an inode number; 0 for the VO's own root."""
    return ino >> NUMBER_BITS


class Level(IntEnum):
    """What a client may do with an inode by itself, from the MRC's grant until it gives it back or its session expires."""

    NONE = 0
    READ = 1  # shared: answer reads, attributes and (of a directory) names from its cache
    WRITE = 2  # alone: also keep writes, sizes and times to itself for a while


class Attr(msgspec.Struct, frozen=True, array_like=True):
    """Attributes of one inode as the VO knows them. Times are nanoseconds since 1970; `uid`, `gid` are principals (see `Principal`)."""

    ino: int
    mode: int
    """Type and permission bits, as st_mode."""
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    """Bytes allocated / 512, as last told by the writer; 0 for what has no data."""
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int
    """Grows with every change of this inode in the MRC (never repeats): the newer of two copies is the one with the larger."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, so has a layout."""
        return stat.S_ISREG(self.mode)


class Replica(msgspec.Struct, frozen=True, array_like=True):
    """One whole copy of a file: object k lies on `osds[k % len(osds)]`."""

    osds: tuple[str, ...]
    complete: bool = True


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """Where the bytes of a file are. `version` grows when replicas change; an OSD refuses a client that has an older one.

    A file of width 1 is one file on its OSD, byte for byte (so that a client of the same node can be given that very file).
    In a striped file an OSD packs its objects: object k of width w begins at `(k // w) * object_bytes` of the OSD's column.
    """

    version: int
    object_bytes: int
    replicas: tuple[Replica, ...]

    def pieces(self, offset: int, length: int, replica: int = 0) -> Iterator[Piece]:
        """Cut a byte range of the file into what goes to one OSD in one piece.

        Args:
            offset: first byte of the file, >= 0.
            length: bytes, >= 0; 0 gives nothing.
            replica: index into `replicas`.

        Returns:
            Pieces in file order, not empty, together exactly the range.
        """
        osds = self.replicas[replica].osds
        width = len(osds)
        if width == 1:
            if length:
                yield Piece(osds[0], 0, offset, offset, length)
            return
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, self.object_bytes)
            take = min(end - offset, self.object_bytes - inside)
            column = index % width
            yield Piece(osds[column], column, offset, index // width * self.object_bytes + inside, take)
            offset += take

    def column_bytes(self, size: int, column: int, replica: int = 0) -> int:
        """Return how long column `column` of a file of `size` bytes is (bytes on that OSD, holes included)."""
        width = len(self.replicas[replica].osds)
        if width == 1:
            return size
        whole, rest = divmod(size, self.object_bytes)
        rounds, last = divmod(whole, width)
        own = rounds * self.object_bytes
        if column < last:
            return own + self.object_bytes
        return own + rest if column == last else own

    def size_from_columns(self, columns: tuple[int, ...]) -> int:
        """Return the smallest file size that explains columns of these lengths (after a writer died without telling)."""
        width = len(columns)
        if width == 1:
            return columns[0]
        size = 0
        for column, length in enumerate(columns):
            if length:
                rounds, inside = divmod(length - 1, self.object_bytes)
                size = max(size, (rounds * width + column) * self.object_bytes + inside + 1)
        return size


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file that lies in one piece on one OSD."""

    osd: str
    column: int
    offset: int
    """In the file."""
    at: int
    """In the OSD's column."""
    length: int


class Capability(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an MRC lets one client do with the data of one file; signed (see `xtreemfs.capability`). OSDs need nothing else."""

    vo: str
    mrc: str
    """Node name of the MRC that signed: names the key."""
    client: str
    """The client session it was given to; void when that session's `SessionToken` has expired."""
    node: str
    """TLS peer that may show it; "" only where there is no TLS (Unix socket of the own node)."""
    ino: int
    mode: Literal["r", "w"]
    epoch: int
    """Grows with every WRITE lease of the file: an OSD that saw a larger one refuses this one's writes."""
    layout_version: int
    quota_bytes: int
    """The writer may not grow the file beyond this size before it asks the MRC again."""
    expires_at: int
    """Seconds since 1970; hours away, for the session token is what expires soon."""


class SessionToken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The MRC has heard of this client lately; signed. Each renewal (some seconds) brings a new one."""

    vo: str
    mrc: str
    client: str
    node: str
    expires_at_ms: int
    """Milliseconds since 1970: the lease's end on the MRC's clock."""


class Principal(msgspec.Struct, frozen=True, array_like=True):
    """Who a number stands for in one VO: `kind` u(ser) or g(roup), `name` in the VO.

    Numbers of users and groups begin at FIRST_PRINCIPAL (a user's own group has the user's number); smaller ones are plain numbers
    as they came in on a mount by the volume's owner as its root (`xos fs mount --root`), shown as they are.
    """

    kind: Literal["u", "g"]
    number: int
    name: str


FIRST_PRINCIPAL = 1 << 30


class VolumePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume's owner decided for new files."""

    width: int = 1
    object_bytes: int = OBJECT_BYTES
    placement: Literal["near", "spread"] = "near"
    """near: on the node of the client that makes the file, if it has an OSD with room."""
    quota_bytes: int = 0  # 0: none
    quota_files: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= WIDTH_MAX:
            raise UsageError(f"a width of {self.width} is not between 1 and {WIDTH_MAX}")
        if self.object_bytes < SUM_BYTES or self.object_bytes % SUM_BYTES:
            raise UsageError(f"objects of {self.object_bytes} bytes are not whole checksum blocks of {SUM_BYTES}")


class Share(msgspec.Struct, frozen=True, array_like=True):
    """A volume's VO agrees that members of another VO use the volume: to read it, or to write as well."""

    vo: str
    root_sha256: bytes
    """Of the other VO's root certificate: a VO that only has the name is not meant."""
    write: bool
    until: int
    """Seconds since 1970; 0: until it is taken back."""

    def is_over(self, now_s: float) -> bool:
        """Whether its time is over."""
        return 0 < self.until <= now_s


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """DIR: a volume, key `volume.NAME` of bucket `fs`. Its MRC writes it, nobody else."""

    name: str
    id: int
    mrc: str
    owner: str
    """User name in the VO."""
    kind: Literal["home", "shared"] = "shared"
    created_at: int = 0
    policy: VolumePolicy = VolumePolicy()
    removed: bool = False
    shares: tuple[Share, ...] = ()
    """At most one with each other VO."""

    def share_with(self, vo: str, now_s: float) -> Share | None:
        """Return the agreement with another VO that is in force, None if there is none."""
        return next((share for share in self.shares if share.vo == vo and not share.is_over(now_s)), None)


class MrcRecord(msgspec.Struct, frozen=True, kw_only=True):
    """DIR: a metadata server, key `mrc.NODE`. `keys` are its raw Ed25519 public keys, the newest first: OSDs verify with these."""

    node: str
    address: str
    """host:port."""
    keys: tuple[bytes, ...]
    socket: str = ""
    """Unix socket for clients of the same node."""


class OsdRecord(msgspec.Struct, frozen=True, kw_only=True):
    """DIR: an object server, key `osd.NODE`, written again every `OSD_BEAT_S` with what it has left."""

    node: str
    address: str
    socket: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    state: Literal["online", "full", "locked", "failing"] = "online"
    beat_at: int = 0
    """Seconds since 1970."""


OSD_BEAT_S = 10
OSD_SILENT_S = 60
"""No new file is placed on an OSD that was not heard of for so long."""
