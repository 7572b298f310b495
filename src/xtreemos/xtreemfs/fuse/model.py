"""Values of the FUSE protocol: what the kernel asks, what a file system answers. Knows no bytes.

Names, targets and xattr names are `bytes`: the kernel promises no encoding. Times are nanoseconds since 1970, negative before.
Requests are frozen and carry who asks: `uid` and `gid` are the file system ids of the calling thread, `pid` its thread id as the
mount's pid name space sees it (0 if it cannot), `unique` the kernel's number of the request.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xtreemos.xtreemfs.fuse.constants import PAGE_BYTES

Buffer = bytes | bytearray | memoryview


class Request(msgspec.Struct, frozen=True, gc=False):
    """What every request carries. `nodeid` is the inode that it is about; for names, the directory."""

    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int


class Unknown(Request, frozen=True, gc=False):
    """An operation that we do not know; answered with ENOSYS."""

    opcode: int


class Init(Request, frozen=True, gc=False):
    """The kernel's side of the negotiation; `max_readahead` in bytes, `flags` all 64 bits."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Destroy(Request, frozen=True, gc=False):
    """The file system is gone (block device mounts only)."""


class Interrupt(Request, frozen=True, gc=False):
    """Whoever waits for request `target` had a signal."""

    target: int


class NotifyReply(Request, frozen=True, gc=False):
    """Cached pages that RETRIEVE number `unique` asked for."""

    offset: int
    data: bytes


class Lookup(Request, frozen=True, gc=False):
    """Find a name in a directory."""

    name: bytes


class Forget(Request, frozen=True, gc=False):
    """The kernel gives back lookup counts: `nodes` is rows of (nodeid, count >= 1). No answer is sent."""

    nodes: tuple[tuple[int, int], ...]


class GetAttr(Request, frozen=True, gc=False):
    """`fh` is the open handle that fstat came through, if any."""

    fh: int | None


class Statx(Request, frozen=True, gc=False):
    """`flags` and `mask` are those of statx(2)."""

    fh: int | None
    flags: int
    mask: int


class SetAttr(Request, frozen=True, gc=False):
    """Attributes to set; None leaves one as it is. `*_now` asks for the file system's own present time.

    `kill_suidgid`: clear set-user-id, and set-group-id of a group-executable file, with this change of size or owner.
    """

    fh: int | None
    mode: int | None
    uid_new: int | None
    gid_new: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    atime_now: bool
    mtime_now: bool
    lock_owner: int | None
    kill_suidgid: bool


class ReadLink(Request, frozen=True, gc=False):
    """Read the target of a symbolic link."""


class Symlink(Request, frozen=True, gc=False):
    """Make a symbolic link."""

    name: bytes
    target: bytes
    groups: tuple[int, ...] = ()


class MkNod(Request, frozen=True, gc=False):
    """`mode` has the type; `umask` is still to be applied if DONT_MASK was negotiated."""

    mode: int
    rdev: int
    umask: int
    name: bytes
    groups: tuple[int, ...] = ()


class MkDir(Request, frozen=True, gc=False):
    """Make a directory."""

    mode: int
    umask: int
    name: bytes
    groups: tuple[int, ...] = ()


class Unlink(Request, frozen=True, gc=False):
    """Remove a name that is no directory."""

    name: bytes


class RmDir(Request, frozen=True, gc=False):
    """Remove an empty directory."""

    name: bytes


class Rename(Request, frozen=True, gc=False):
    """RENAME and RENAME2; `flags` are those of renameat2(2)."""

    newdir: int
    flags: int
    name: bytes
    newname: bytes


class Link(Request, frozen=True, gc=False):
    """A further name in directory `nodeid` for inode `oldnodeid`."""

    oldnodeid: int
    name: bytes


class Open(Request, frozen=True, gc=False):
    """OPEN and OPENDIR; `flags` as in open(2) without O_CREAT, O_EXCL and O_NOCTTY."""

    flags: int
    open_flags: int


class Create(Request, frozen=True, gc=False):
    """CREATE and TMPFILE (whose `name` means nothing). O_EXCL is in `flags` if the caller said so."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes
    groups: tuple[int, ...] = ()


class Read(Request, frozen=True, gc=False):
    """READ, READDIR and READDIRPLUS: at most `size` bytes from `offset` (for directories: a cookie of ours)."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class Write(Request, frozen=True, gc=False):
    """`data` looks into a read buffer of the driver: see the contract for how long."""

    fh: int
    offset: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview


class StatFs(Request, frozen=True, gc=False):
    """Ask for sizes of the whole file system."""


class Release(Request, frozen=True, gc=False):
    """RELEASE and RELEASEDIR: the last descriptor of handle `fh` is closed."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Fsync(Request, frozen=True, gc=False):
    """FSYNC and FSYNCDIR."""

    fh: int
    datasync: bool


class SetXattr(Request, frozen=True, gc=False):
    """`flags` as in setxattr(2); `setxattr_flags` only with SETXATTR_EXT."""

    flags: int
    setxattr_flags: int
    name: bytes
    value: bytes


class GetXattr(Request, frozen=True, gc=False):
    """`size` is the caller's room, 0 if it only asks how much it needs. Answer the whole value: the driver looks at `size`."""

    size: int
    name: bytes


class ListXattr(Request, frozen=True, gc=False):
    """`size` is the caller's room; answer all names, as for GetXattr."""

    size: int


class RemoveXattr(Request, frozen=True, gc=False):
    """Remove an extended attribute."""

    name: bytes


class Flush(Request, frozen=True, gc=False):
    """A descriptor of `fh` is closed: POSIX locks of `lock_owner` on this file end."""

    fh: int
    lock_owner: int


class Lock(Request, frozen=True, gc=False):
    """GETLK, SETLK and SETLKW. `end` is inclusive, 2**63 - 1 means to the end; `type` is F_RDLCK, F_WRLCK or F_UNLCK.

    `flock`: a BSD lock, which knows nothing of the others. POSIX and OFD locks differ by `owner` alone. `wait`: SETLKW.
    """

    fh: int
    owner: int
    start: int
    end: int
    type: int
    lock_pid: int
    flock: bool
    wait: bool


class Access(Request, frozen=True, gc=False):
    """May the caller do `mask` (R_OK, W_OK, X_OK)?"""

    mask: int


class Bmap(Request, frozen=True, gc=False):
    """Where on a block device lies block `block` of this file?"""

    block: int
    block_bytes: int


class Ioctl(Request, frozen=True, gc=False):
    """`data` came with the call, at most `out_size` bytes may go back."""

    fh: int
    flags: int
    cmd: int
    arg: int
    out_size: int
    data: bytes


class Poll(Request, frozen=True, gc=False):
    """`kh` is what a later poll notification names; `wanted`: such a notification is asked for."""

    fh: int
    kh: int
    events: int
    wanted: bool


class Fallocate(Request, frozen=True, gc=False):
    """`mode` as in fallocate(2)."""

    fh: int
    offset: int
    length: int
    mode: int


class Lseek(Request, frozen=True, gc=False):
    """Only SEEK_DATA and SEEK_HOLE arrive."""

    fh: int
    offset: int
    whence: int


class CopyFileRange(Request, frozen=True, gc=False):
    """COPY_FILE_RANGE and its 64-bit form."""

    fh_in: int
    offset_in: int
    nodeid_out: int
    fh_out: int
    offset_out: int
    length: int
    flags: int


class SyncFs(Request, frozen=True, gc=False):
    """Make everything durable."""


class Attr(msgspec.Struct, frozen=True, gc=False):
    """Attributes of an inode, as stat(2) tells them; `blocks` of 512 bytes; `flags` are ATTR_*."""

    ino: int
    mode: int
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    blocks: int = 0
    rdev: int = 0
    blksize: int = PAGE_BYTES
    flags: int = 0


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A name that was found: counts as one lookup of `nodeid` unless that is 0, which means: certainly absent for `entry_valid_ns`.

    (nodeid, generation) must be unique for the life of the file system; the times say how long the kernel may trust name and attributes.
    """

    nodeid: int
    attr: Attr
    generation: int = 0
    entry_valid_ns: int = 0
    attr_valid_ns: int = 0


class AttrReply(msgspec.Struct, frozen=True, gc=False):
    """Attributes and how long the kernel may trust them."""

    attr: Attr
    valid_ns: int = 0


class StatxReply(msgspec.Struct, frozen=True, gc=False):
    """Attributes with birth time; `mask` (STATX_*) says which are told, `attributes` are STATX_ATTR_* out of `attributes_mask`."""

    attr: Attr
    mask: int
    btime_ns: int = 0
    attributes: int = 0
    attributes_mask: int = 0
    valid_ns: int = 0


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A handle; `flags` are FOPEN_*; `backing_id` of `Session.backing_open` with FOPEN_PASSTHROUGH."""

    fh: int = 0
    flags: int = 0
    backing_id: int = 0


class Created(msgspec.Struct, frozen=True, gc=False):
    """A new file and its first handle."""

    entry: Entry
    opened: Opened


class StatFsReply(msgspec.Struct, frozen=True, gc=False):
    """As statvfs(3): counts of `frsize` bytes."""

    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    bsize: int = PAGE_BYTES
    namelen: int = 255
    frsize: int = PAGE_BYTES


class LockReply(msgspec.Struct, frozen=True, gc=False):
    """The lock that is in the way, or type F_UNLCK."""

    type: int
    start: int = 0
    end: int = 0
    pid: int = 0


class IoctlReply(msgspec.Struct, frozen=True, gc=False):
    """`result` is what ioctl(2) returns."""

    result: int = 0
    data: bytes = b""


Scattered = Sequence[Buffer]
