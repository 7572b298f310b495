"""Answers and notifications into bytes: the encoding half of the FUSE codec, and the negotiation. Pure.

A body is what follows the 16-byte header of a reply; `header` makes that. Encoders take (answer, request) and pass bytes through as
they are, so a file system may keep answers encoded. A value that does not fit its field is the file system's bug: `struct.error`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import HEADER_OUT_BYTES, MAJOR, MINOR_MAX, MINOR_MIN, PAGE_BYTES, InitFlag, Notify, Op
from xtreemos.xtreemfs.fuse.errors import FuseError, ProtocolError
from xtreemos.xtreemfs.fuse.options import MountOptions, Negotiated

NS = 1_000_000_000
HEADER_OUT = Struct("=IiQ")  # length, error or notification code, unique
_ATTR = "QQQqqqIIIIIIIIII"  # ino, size, blocks, 3 times, 3 x ns, mode, nlink, uid, gid, rdev, blksize, flags
ENTRY = Struct("=QQQQII" + _ATTR)
ATTR = Struct("=QI4x" + _ATTR)
OPENED = Struct("=QIi")
WRITTEN = Struct("=I4x")
STATFS = Struct("=QQQQQIII28x")
LOCK = Struct("=QQII")
IOCTL = Struct("=iIII")
INIT = Struct("=IIIIHHIIHHIIH22x")
DIRENT = Struct("=QQII")
_SX_TIME = "qI4x"
STATX = Struct("=QII16x" + "IIQIIIH2xQQQQ" + 4 * _SX_TIME + "IIII112x")
U64 = Struct("=Q")

Encoded = m.Buffer | list[m.Buffer]
Encoder = Callable[[Any, Any], Encoded]

INVAL_INODE = Struct("=Qqq")
INVAL_ENTRY = Struct("=QII")
DELETE = Struct("=QQI4x")
STORE = Struct("=QQI4x")
RETRIEVE = Struct("=QQQI4x")
PRUNE = Struct("=I12x")


def header(unique: int, body_bytes: int, error: int = 0) -> bytes:
    """Return the header of a reply; `error` is a positive errno or 0."""
    return HEADER_OUT.pack(HEADER_OUT_BYTES + body_bytes, -error, unique)


def _attr_fields(attr: m.Attr) -> tuple[int, ...]:
    a_s, a_ns = divmod(attr.atime_ns, NS)
    m_s, m_ns = divmod(attr.mtime_ns, NS)
    c_s, c_ns = divmod(attr.ctime_ns, NS)
    return (
        attr.ino, attr.size, attr.blocks, a_s, m_s, c_s, a_ns, m_ns, c_ns,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, attr.flags,
    )  # fmt: skip


def encode_entry(answer: m.Entry | bytes, _: object = None) -> bytes:
    """Encode what lookup and its kin answer: 128 bytes."""
    if isinstance(answer, bytes):
        return answer
    e_s, e_ns = divmod(answer.entry_valid_ns, NS)
    a_s, a_ns = divmod(answer.attr_valid_ns, NS)
    return ENTRY.pack(answer.nodeid, answer.generation, e_s, a_s, e_ns, a_ns, *_attr_fields(answer.attr))


def encode_attr(answer: m.AttrReply | bytes, _: object = None) -> bytes:
    """Encode what getattr and setattr answer: 104 bytes."""
    if isinstance(answer, bytes):
        return answer
    return ATTR.pack(*divmod(answer.valid_ns, NS), *_attr_fields(answer.attr))


def encode_statx(answer: m.StatxReply | bytes, _: object = None) -> bytes:
    """Encode what statx answers: 288 bytes."""
    if isinstance(answer, bytes):
        return answer
    a = answer.attr
    times = (value for ns in (a.atime_ns, answer.btime_ns, a.ctime_ns, a.mtime_ns) for value in divmod(ns, NS))
    rdev = (a.rdev >> 8 & 0xFFF, a.rdev & 0xFF | a.rdev >> 12 & 0xFFF00)
    return STATX.pack(
        *divmod(answer.valid_ns, NS), 0,
        answer.mask, a.blksize, answer.attributes, a.nlink, a.uid, a.gid, a.mode, a.ino, a.size, a.blocks, answer.attributes_mask,
        *times, *rdev, 0, 0,
    )  # fmt: skip


def encode_opened(answer: m.Opened | bytes, _: object = None) -> bytes:
    """Encode what open and opendir answer."""
    if isinstance(answer, bytes):
        return answer
    return OPENED.pack(answer.fh, answer.flags, answer.backing_id)


def encode_created(answer: m.Created | bytes, _: object = None) -> bytes:
    """Encode what create and tmpfile answer."""
    if isinstance(answer, bytes):
        return answer
    return encode_entry(answer.entry) + encode_opened(answer.opened)


def _read(answer: m.Buffer | Sequence[m.Buffer], request: m.Read) -> Encoded:
    if isinstance(answer, (list, tuple)):
        parts = list(answer)
        size = sum(memoryview(part).nbytes for part in parts)
    else:
        parts, size = [answer], memoryview(answer).nbytes  # type: ignore[arg-type]  # a buffer: the sequence case is above
    if size > request.size:
        raise ValueError(f"{size} bytes answered where {request.size} were asked for")
    return parts


def _listing(answer: Listing | m.Buffer, request: m.Read) -> Encoded:
    body = answer.body if isinstance(answer, Listing) else answer
    if len(body) > request.size:
        raise ValueError(f"{len(body)} bytes of names answered where {request.size} were asked for")
    return body


def _sized(value: bytes, size: int) -> bytes:
    """Answer GETXATTR and LISTXATTR: only the length if no room was offered."""
    if size == 0:
        return WRITTEN.pack(len(value))
    if len(value) > size:
        raise FuseError(errno.ERANGE)
    return value


def _getxattr(answer: bytes, request: m.GetXattr) -> bytes:
    return _sized(bytes(answer), request.size)


def _listxattr(answer: Sequence[bytes] | bytes, request: m.ListXattr) -> bytes:
    return _sized(answer if isinstance(answer, bytes) else b"".join(name + b"\0" for name in answer), request.size)


def _statfs(a: m.StatFsReply | bytes, _: object) -> bytes:
    if isinstance(a, bytes):
        return a
    return STATFS.pack(a.blocks, a.bfree, a.bavail, a.files, a.ffree, a.bsize, a.namelen, a.frsize)


def _lock(answer: m.LockReply, _: object) -> bytes:
    return LOCK.pack(answer.start, answer.end, answer.type, answer.pid)


def _ioctl(answer: m.IoctlReply, request: m.Ioctl) -> Encoded:
    if len(answer.data) > request.out_size:
        raise ValueError(f"{len(answer.data)} bytes answered where {request.out_size} fit")
    return IOCTL.pack(answer.result, 0, 0, 0) + answer.data


def _nothing(answer: object, _: object) -> bytes:
    if answer is not None:
        raise TypeError(f"nothing is answered here, not {type(answer).__name__}")
    return b""


def _pack_int(layout: Struct) -> Encoder:
    def encode(answer: int, _: object) -> bytes:
        return layout.pack(answer)

    return encode


def _bytes(answer: bytes, _: object) -> bytes:
    return bytes(answer)


_WRITTEN, _U64 = _pack_int(WRITTEN), _pack_int(U64)

# operation -> (handler method, encoder of its answer)
ROUTES: dict[int, tuple[str, Encoder]] = {
    Op.LOOKUP: ("lookup", encode_entry),
    Op.GETATTR: ("getattr", encode_attr),
    Op.SETATTR: ("setattr", encode_attr),
    Op.READLINK: ("readlink", _bytes),
    Op.SYMLINK: ("symlink", encode_entry),
    Op.MKNOD: ("mknod", encode_entry),
    Op.MKDIR: ("mkdir", encode_entry),
    Op.UNLINK: ("unlink", _nothing),
    Op.RMDIR: ("rmdir", _nothing),
    Op.RENAME: ("rename", _nothing),
    Op.LINK: ("link", encode_entry),
    Op.OPEN: ("open", encode_opened),
    Op.READ: ("read", _read),
    Op.WRITE: ("write", _WRITTEN),
    Op.STATFS: ("statfs", _statfs),
    Op.RELEASE: ("release", _nothing),
    Op.FSYNC: ("fsync", _nothing),
    Op.SETXATTR: ("setxattr", _nothing),
    Op.GETXATTR: ("getxattr", _getxattr),
    Op.LISTXATTR: ("listxattr", _listxattr),
    Op.REMOVEXATTR: ("removexattr", _nothing),
    Op.FLUSH: ("flush", _nothing),
    Op.OPENDIR: ("opendir", encode_opened),
    Op.READDIR: ("readdir", _listing),
    Op.RELEASEDIR: ("releasedir", _nothing),
    Op.FSYNCDIR: ("fsyncdir", _nothing),
    Op.GETLK: ("getlk", _lock),
    Op.SETLK: ("setlk", _nothing),
    Op.SETLKW: ("setlk", _nothing),
    Op.ACCESS: ("access", _nothing),
    Op.CREATE: ("create", encode_created),
    Op.BMAP: ("bmap", _U64),
    Op.IOCTL: ("ioctl", _ioctl),
    Op.POLL: ("poll", _WRITTEN),
    Op.FALLOCATE: ("fallocate", _nothing),
    Op.READDIRPLUS: ("readdirplus", _listing),
    Op.RENAME2: ("rename", _nothing),
    Op.LSEEK: ("lseek", _U64),
    Op.COPY_FILE_RANGE: ("copy_file_range", _WRITTEN),
    Op.SYNCFS: ("syncfs", _nothing),
    Op.TMPFILE: ("tmpfile", encode_created),
    Op.STATX: ("statx", encode_statx),
    Op.COPY_FILE_RANGE_64: ("copy_file_range", _U64),
}  # fmt: skip


class Listing:
    """A page of a directory under construction, at most `size` bytes. `next_offset` is the cookie from which to go on after that name.

    An entry that does not fit is refused (False) and must not be counted as looked up; the page then is full.
    """

    __slots__ = ("body", "size")

    def __init__(self, size: int) -> None:
        self.body = bytearray()
        self.size = size

    def add(self, name: bytes, ino: int, mode: int, next_offset: int) -> bool:
        """Add a name for READDIR; of `mode` only the type matters. Tell whether it fitted."""
        padding = -len(name) % 8
        if len(self.body) + DIRENT.size + len(name) + padding > self.size:
            return False
        self.body += DIRENT.pack(ino, next_offset, len(name), mode >> 12 & 0xF) + name + bytes(padding)
        return True

    def add_plus(self, name: bytes, entry: m.Entry | bytes, ino: int, mode: int, next_offset: int) -> bool:
        """Add a name for READDIRPLUS; `entry` with nodeid 0 gives the name alone. Tell whether it fitted.

        For `.` and `..` nodeid 0 is to be used: the kernel does not count them.
        """
        padding = -len(name) % 8
        if len(self.body) + ENTRY.size + DIRENT.size + len(name) + padding > self.size:
            return False
        self.body += encode_entry(entry) + DIRENT.pack(ino, next_offset, len(name), mode >> 12 & 0xF) + name + bytes(padding)
        return True


NO_ENTRY = bytes(ENTRY.size)  # for `add_plus`: the name alone


def negotiate(init: m.Init, options: MountOptions) -> tuple[Negotiated | None, bytes]:
    """Decide what to agree on; return it and the body of the reply. None: a newer major, the kernel will ask again.

    Raises:
        ProtocolError: the kernel is older than 7.31 (Linux 5.4).
    """
    if init.major > MAJOR:
        return None, INIT.pack(MAJOR, MINOR_MAX, *[0] * 11)
    if init.major < MAJOR or init.minor < MINOR_MIN:
        raise ProtocolError(
            f"the kernel speaks FUSE {init.major}.{init.minor}", f"Linux with FUSE {MAJOR}.{MINOR_MIN} or newer is needed"
        )
    flags = options.wanted_flags() & InitFlag(init.flags)
    if flags >> 32:
        flags |= InitFlag.INIT_EXT
    minor = min(init.minor, MINOR_MAX)
    agreed = Negotiated(minor, flags, options.max_write_bytes, min(init.max_readahead, options.max_readahead_bytes))
    body = INIT.pack(
        MAJOR, minor, agreed.max_readahead, flags & 0xFFFFFFFF, options.max_background, options.congestion_threshold,
        options.max_write_bytes, options.time_granularity_ns, options.max_write_bytes // PAGE_BYTES, 0, flags >> 32,
        options.max_stack_depth if flags & InitFlag.PASSTHROUGH else 0, options.request_timeout_s,
    )  # fmt: skip
    return agreed, body


def notification(code: Notify, *parts: m.Buffer) -> list[m.Buffer]:
    """Return the message of a notification, in parts for one writev."""
    return [HEADER_OUT.pack(HEADER_OUT_BYTES + sum(len(part) for part in parts), code, 0), *parts]
