"""Requests of the kernel out of bytes: the decoding half of the FUSE codec. Pure; what a WRITE carries is looked at, never copied.

`decode` is for one message; a driver takes `decoders` once and calls the row of each operation itself, which saves a lookup and
lets it count. Whatever the bytes are, the only exception is `ProtocolError`. The encoding half is `replies`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import HEADER_IN_BYTES, InitFlag, Op
from xtreemos.xtreemfs.fuse.errors import ProtocolError

HEADER_IN = Struct("=IIQQIIIHxx")  # length, opcode, unique, nodeid, uid, gid, pid, extension length in 8 bytes
EXT_HEADER = Struct("=II")
NS = 1_000_000_000

# Fixed parts of requests, after the header.
SETATTR = Struct("=I4xQQQqqqIIII4xII4x")
WRITE = Struct("=QQIIQI4x")
LOCK = Struct("=QQQQIII4x")
IOCTL = Struct("=QIIQII")
GETATTR = Struct("=I4xQ")
STATX = Struct("=I4xQII")
POLL = Struct("=QQII")
FSYNC = Struct("=QI4x")
SETXATTR = Struct("=II")
SETXATTR_EXT = Struct("=III4x")
INIT = Struct("=IIIII44x")
INIT_OLD = Struct("=IIII")
COUNT = Struct("=I4x")
FORGET_ONE = Struct("=QQ")
RETRIEVE_IN = Struct("=8xQI20x")
U64 = Struct("=Q")

Who = tuple[int, int, int, int, int]  # unique, nodeid, uid, gid, pid
Decoder = Callable[[Who, m.Buffer, int, int], m.Request]  # who, message, end of its body, end of the message (extensions between)


def _short(name: str, end: int) -> ProtocolError:
    return ProtocolError(f"{name} of {end} bytes is too short")


def _fixed(kind: type[Any], fmt: str) -> Decoder:
    """Build the decoder of an operation whose body is one fixed structure, its fields in the order of `kind`'s own."""
    unpack, wanted, name = Struct(fmt).unpack_from, HEADER_IN_BYTES + Struct(fmt).size, kind.__name__

    def decode(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
        if end < wanted:
            raise _short(name, end)
        request: m.Request = kind(*who, *unpack(data, HEADER_IN_BYTES))
        return request

    return decode


def _bare(kind: type[Any]) -> Decoder:
    def decode(who: Who, _data: m.Buffer, _end: int, _all: int) -> m.Request:
        request: m.Request = kind(*who)
        return request

    return decode


def _named(kind: type[Any], fmt: str = "=", count: int = 1, *, extended: bool = False) -> Decoder:
    """Build the decoder of an operation with a fixed structure, then `count` names that end in NUL, then extensions if `extended`."""
    unpack, start, name = Struct(fmt).unpack_from, HEADER_IN_BYTES + Struct(fmt).size, kind.__name__

    def decode(who: Who, data: m.Buffer, end: int, whole: int) -> m.Request:
        if end < start:
            raise _short(name, end)
        fields = unpack(data, HEADER_IN_BYTES)
        names = _names(data, start, end, count)
        if extended and whole > end:
            return kind(*who, *fields, *names, _groups(data, end, whole))  # type: ignore[no-any-return]  # kind is one of the request types
        return kind(*who, *fields, *names)  # type: ignore[no-any-return]  # the same

    return decode


def _names(data: m.Buffer, start: int, end: int, count: int) -> list[bytes]:
    names = bytes(data[start:end]).split(b"\0")
    if len(names) != count + 1 or names.pop():
        raise ProtocolError(f"expected {count} names that end in NUL, found something else in {end - start} bytes")
    return names


def _groups(data: m.Buffer, at: int, end: int) -> tuple[int, ...]:
    """Read the supplementary group of the caller out of a request's extensions; security contexts are passed over."""
    groups: tuple[int, ...] = ()
    while at < end:
        if end - at < EXT_HEADER.size:
            raise ProtocolError("an extension is cut off")
        size, kind = EXT_HEADER.unpack_from(data, at)
        if size < EXT_HEADER.size or at + size > end:
            raise ProtocolError("an extension says a wrong size")
        if kind == c.EXT_GROUPS:
            if size < EXT_HEADER.size + 4:
                raise ProtocolError("a group extension is too short")
            (count,) = Struct("=I").unpack_from(data, at + EXT_HEADER.size)
            if EXT_HEADER.size + 4 + 4 * count > size:
                raise ProtocolError("a group extension says a wrong count")
            groups = Struct(f"={count}I").unpack_from(data, at + EXT_HEADER.size + 4)
        at += size + -size % 8
    return groups


def _need(name: str, end: int, layout: Struct) -> None:
    if end < HEADER_IN_BYTES + layout.size:
        raise _short(name, end)


def _getattr(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("GETATTR", end, GETATTR)
    flags, fh = GETATTR.unpack_from(data, HEADER_IN_BYTES)
    return m.GetAttr(*who, fh if flags & c.GETATTR_FH else None)


def _statx(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("STATX", end, STATX)
    get_flags, fh, flags, mask = STATX.unpack_from(data, HEADER_IN_BYTES)
    return m.Statx(*who, fh if get_flags & c.GETATTR_FH else None, flags, mask)


def _setattr(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("SETATTR", end, SETATTR)
    valid, fh, size, owner, a_s, m_s, c_s, a_ns, m_ns, c_ns, mode, uid, gid = SETATTR.unpack_from(data, HEADER_IN_BYTES)
    return m.SetAttr(
        *who,
        fh if valid & c.FATTR_FH else None,
        mode if valid & c.FATTR_MODE else None,
        uid if valid & c.FATTR_UID else None,
        gid if valid & c.FATTR_GID else None,
        size if valid & c.FATTR_SIZE else None,
        a_s * NS + a_ns if valid & c.FATTR_ATIME else None,
        m_s * NS + m_ns if valid & c.FATTR_MTIME else None,
        c_s * NS + c_ns if valid & c.FATTR_CTIME else None,
        bool(valid & c.FATTR_ATIME_NOW),
        bool(valid & c.FATTR_MTIME_NOW),
        owner if valid & c.FATTR_LOCKOWNER else None,
        bool(valid & c.FATTR_KILL_SUIDGID),
    )


def _symlink(who: Who, data: m.Buffer, end: int, whole: int) -> m.Request:
    name, target = _names(data, HEADER_IN_BYTES, end, 2)
    return m.Symlink(*who, name, target, _groups(data, end, whole) if whole > end else ())


def _rename(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("RENAME", end, U64)
    (newdir,) = U64.unpack_from(data, HEADER_IN_BYTES)
    return m.Rename(*who, newdir, 0, *_names(data, HEADER_IN_BYTES + 8, end, 2))


def _write(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("WRITE", end, WRITE)
    fh, offset, size, write_flags, owner, flags = WRITE.unpack_from(data, HEADER_IN_BYTES)
    start = HEADER_IN_BYTES + WRITE.size
    if start + size > end:
        raise ProtocolError(f"WRITE says {size} bytes and has {end - start}")
    return m.Write(*who, fh, offset, write_flags, owner, flags, memoryview(data)[start : start + size])


def _fsync(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("FSYNC", end, FSYNC)
    fh, flags = FSYNC.unpack_from(data, HEADER_IN_BYTES)
    return m.Fsync(*who, fh, bool(flags & c.FSYNC_FDATASYNC))


def _setxattr(layout: Struct) -> Decoder:
    start = HEADER_IN_BYTES + layout.size

    def decode(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
        _need("SETXATTR", end, layout)
        size, flags, *more = layout.unpack_from(data, HEADER_IN_BYTES)
        name, nul, value = bytes(data[start:end]).partition(b"\0")
        if not nul or len(value) != size:
            raise ProtocolError("SETXATTR's name or value does not fit its length")
        return m.SetXattr(*who, flags, more[0] if more else 0, name, value)

    return decode


def _lock(*, wait: bool) -> Decoder:
    def decode(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
        _need("GETLK, SETLK or SETLKW", end, LOCK)
        fh, owner, start, last, kind, pid, flags = LOCK.unpack_from(data, HEADER_IN_BYTES)
        return m.Lock(*who, fh, owner, start, last, kind, pid, bool(flags & c.LK_FLOCK), wait)

    return decode


def _ioctl(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("IOCTL", end, IOCTL)
    fh, flags, cmd, arg, in_size, out_size = IOCTL.unpack_from(data, HEADER_IN_BYTES)
    start = HEADER_IN_BYTES + IOCTL.size
    if start + in_size > end:
        raise ProtocolError(f"IOCTL says {in_size} bytes and has {end - start}")
    return m.Ioctl(*who, fh, flags, cmd, arg, out_size, bytes(data[start : start + in_size]))


def _poll(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("POLL", end, POLL)
    fh, kh, flags, events = POLL.unpack_from(data, HEADER_IN_BYTES)
    return m.Poll(*who, fh, kh, events, bool(flags & c.POLL_SCHEDULE_NOTIFY))


def _forget(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("FORGET", end, U64)
    return m.Forget(*who, ((who[1], U64.unpack_from(data, HEADER_IN_BYTES)[0]),))


def _batch_forget(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("BATCH_FORGET", end, COUNT)
    (count,) = COUNT.unpack_from(data, HEADER_IN_BYTES)
    start = HEADER_IN_BYTES + COUNT.size
    if start + count * FORGET_ONE.size > end:
        raise ProtocolError(f"BATCH_FORGET says {count} and has {end - start} bytes")
    return m.Forget(*who, tuple(FORGET_ONE.iter_unpack(memoryview(data)[start : start + count * FORGET_ONE.size])))


def _init(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    if end >= HEADER_IN_BYTES + INIT.size:
        major, minor, readahead, flags, flags2 = INIT.unpack_from(data, HEADER_IN_BYTES)
        return m.Init(*who, major, minor, readahead, flags | (flags2 << 32 if flags & InitFlag.INIT_EXT else 0))
    _need("INIT", end, INIT_OLD)
    return m.Init(*who, *INIT_OLD.unpack_from(data, HEADER_IN_BYTES))


def _notify_reply(who: Who, data: m.Buffer, end: int, _: int) -> m.Request:
    _need("NOTIFY_REPLY", end, RETRIEVE_IN)
    offset, size = RETRIEVE_IN.unpack_from(data, HEADER_IN_BYTES)
    start = HEADER_IN_BYTES + RETRIEVE_IN.size
    return m.NotifyReply(*who, offset, bytes(data[start : min(end, start + size)]))


DECODERS: dict[int, Decoder] = {
    Op.LOOKUP: _named(m.Lookup),
    Op.FORGET: _forget,
    Op.GETATTR: _getattr,
    Op.SETATTR: _setattr,
    Op.READLINK: _bare(m.ReadLink),
    Op.SYMLINK: _symlink,
    Op.MKNOD: _named(m.MkNod, "=III4x", extended=True),
    Op.MKDIR: _named(m.MkDir, "=II", extended=True),
    Op.UNLINK: _named(m.Unlink),
    Op.RMDIR: _named(m.RmDir),
    Op.RENAME: _rename,
    Op.LINK: _named(m.Link, "=Q"),
    Op.OPEN: _fixed(m.Open, "=II"),
    Op.READ: _fixed(m.Read, "=QQIIQI4x"),
    Op.WRITE: _write,
    Op.STATFS: _bare(m.StatFs),
    Op.RELEASE: _fixed(m.Release, "=QIIQ"),
    Op.FSYNC: _fsync,
    Op.SETXATTR: _setxattr(SETXATTR),
    Op.GETXATTR: _named(m.GetXattr, "=I4x"),
    Op.LISTXATTR: _fixed(m.ListXattr, "=I4x"),
    Op.REMOVEXATTR: _named(m.RemoveXattr),
    Op.FLUSH: _fixed(m.Flush, "=Q8xQ"),
    Op.INIT: _init,
    Op.OPENDIR: _fixed(m.Open, "=II"),
    Op.READDIR: _fixed(m.Read, "=QQIIQI4x"),
    Op.RELEASEDIR: _fixed(m.Release, "=QIIQ"),
    Op.FSYNCDIR: _fsync,
    Op.GETLK: _lock(wait=False),
    Op.SETLK: _lock(wait=False),
    Op.SETLKW: _lock(wait=True),
    Op.ACCESS: _fixed(m.Access, "=I4x"),
    Op.CREATE: _named(m.Create, "=IIII", extended=True),
    Op.INTERRUPT: _fixed(m.Interrupt, "=Q"),
    Op.BMAP: _fixed(m.Bmap, "=QI4x"),
    Op.DESTROY: _bare(m.Destroy),
    Op.IOCTL: _ioctl,
    Op.POLL: _poll,
    Op.NOTIFY_REPLY: _notify_reply,
    Op.BATCH_FORGET: _batch_forget,
    Op.FALLOCATE: _fixed(m.Fallocate, "=QQQI4x"),
    Op.READDIRPLUS: _fixed(m.Read, "=QQIIQI4x"),
    Op.RENAME2: _named(m.Rename, "=QI4x", 2),
    Op.LSEEK: _fixed(m.Lseek, "=QqI4x"),
    Op.COPY_FILE_RANGE: _fixed(m.CopyFileRange, "=QQQQQQQ"),
    Op.SYNCFS: _bare(m.SyncFs),
    Op.TMPFILE: _named(m.Create, "=IIII", extended=True),
    Op.STATX: _statx,
    Op.COPY_FILE_RANGE_64: _fixed(m.CopyFileRange, "=QQQQQQQ"),
}  # fmt: skip


def decoders(flags: InitFlag) -> dict[int, Decoder]:
    """Return the decoder of each operation under the negotiated `flags`."""
    table = dict(DECODERS)
    if flags & InitFlag.SETXATTR_EXT:
        table[Op.SETXATTR] = _setxattr(SETXATTR_EXT)
    return table


def unknown(who: Who, opcode: int) -> m.Unknown:
    """Return the request for an operation that has no decoder."""
    return m.Unknown(*who, opcode)


def decode(data: m.Buffer, table: dict[int, Decoder] = DECODERS) -> m.Request:
    """Decode one whole message as read from the device.

    Args:
        data: the message; a WRITE's `data` will look into it.
        table: of `decoders`.

    Raises:
        ProtocolError: whatever is wrong with it; nothing else is ever raised.
    """
    length = len(data)
    if length < HEADER_IN_BYTES:
        raise _short("a message", length)
    said, opcode, *who, extensions = HEADER_IN.unpack_from(data)
    return decode_body(opcode, (who[0], who[1], who[2], who[3], who[4]), data, (said, length, extensions), table)


def decode_body(opcode: int, who: Who, data: m.Buffer, lengths: tuple[int, int, int], table: dict[int, Decoder]) -> m.Request:
    """Decode a message whose header is unpacked; `lengths` is (said in the header, read, extensions in 8 bytes)."""
    said, length, extensions = lengths
    end = length - 8 * extensions
    if said != length or end < HEADER_IN_BYTES:
        raise ProtocolError(f"a message of {length} bytes says {said}, of which {8 * extensions} are extensions")
    decoder = table.get(opcode)
    if decoder is None:
        return unknown(who, opcode)
    return decoder(who, data, end, length)
