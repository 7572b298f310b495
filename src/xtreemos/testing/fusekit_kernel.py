"""The kernel's side of the FUSE codec, for tests without a kernel: requests into bytes. Pure; written apart from the decoder it checks."""

from __future__ import annotations

import struct
from struct import Struct

from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import InitFlag, Op

HEADER = Struct("=IIQQIIIHH")
NS = 1_000_000_000


def message(opcode: int, request: m.Request, body: bytes, *, extensions: bytes = b"") -> bytes:
    """Return a whole message as the device would give it."""
    length = HEADER.size + len(body) + len(extensions)
    head = HEADER.pack(
        length, opcode, request.unique, request.nodeid, request.uid, request.gid, request.pid, len(extensions) // 8, 0
    )
    return head + body + extensions


def group_extension(groups: tuple[int, ...]) -> bytes:
    """Return the extension that carries supplementary groups, padded to 8 bytes."""
    size = 12 + 4 * len(groups)
    padded = size + -size % 8
    return struct.pack(f"=III{len(groups)}I", padded, c.EXT_GROUPS, len(groups), *groups) + bytes(padded - size)


def encode(opcode: Op, r: m.Request, flags: InitFlag = InitFlag.SETXATTR_EXT) -> bytes:
    """Encode a request as a kernel would that negotiated `flags`."""
    groups: tuple[int, ...] = getattr(r, "groups", ())
    return message(opcode, r, _body(opcode, r, flags), extensions=group_extension(groups) if groups else b"")


def _body(opcode: Op, r: m.Request, flags: InitFlag) -> bytes:
    match r:
        case m.Lookup() | m.Unlink() | m.RmDir() | m.RemoveXattr():
            return r.name + b"\0"
        case m.Symlink():
            return r.name + b"\0" + r.target + b"\0"
        case m.MkNod():
            return struct.pack("=IIII", r.mode, r.rdev, r.umask, 0) + r.name + b"\0"
        case m.MkDir():
            return struct.pack("=II", r.mode, r.umask) + r.name + b"\0"
        case m.Rename():
            head = struct.pack("=QII", r.newdir, r.flags, 0) if opcode == Op.RENAME2 else struct.pack("=Q", r.newdir)
            return head + r.name + b"\0" + r.newname + b"\0"
        case m.Link():
            return struct.pack("=Q", r.oldnodeid) + r.name + b"\0"
        case m.Open():
            return struct.pack("=II", r.flags, r.open_flags)
        case m.Create():
            return struct.pack("=IIII", r.flags, r.mode, r.umask, r.open_flags) + r.name + b"\0"
        case m.SetXattr():
            more = struct.pack("=II", r.setxattr_flags, 0) if flags & InitFlag.SETXATTR_EXT else b""
            return struct.pack("=II", len(r.value), r.flags) + more + r.name + b"\0" + r.value
        case m.GetXattr():
            return struct.pack("=II", r.size, 0) + r.name + b"\0"
        case m.ListXattr():
            return struct.pack("=II", r.size, 0)
        case m.Access():
            return struct.pack("=II", r.mask, 0)
        case m.Interrupt():
            return struct.pack("=Q", r.target)
        case m.Bmap():
            return struct.pack("=QII", r.block, r.block_bytes, 0)
        case m.Forget():
            if opcode == Op.FORGET:
                return struct.pack("=Q", r.nodes[0][1])
            return struct.pack("=II", len(r.nodes), 0) + b"".join(struct.pack("=QQ", *row) for row in r.nodes)
        case m.Init():
            return struct.pack("=IIIII44x", r.major, r.minor, r.max_readahead, r.flags & 0xFFFFFFFF, r.flags >> 32)
        case _:
            return _file_body(r)


def _file_body(r: m.Request) -> bytes:
    match r:
        case m.GetAttr():
            return struct.pack("=IIQ", 0 if r.fh is None else c.GETATTR_FH, 0, r.fh or 0)
        case m.Statx():
            return struct.pack("=IIQII", 0 if r.fh is None else c.GETATTR_FH, 0, r.fh or 0, r.flags, r.mask)
        case m.SetAttr():
            return _setattr(r)
        case m.Read():
            return struct.pack("=QQIIQII", r.fh, r.offset, r.size, r.read_flags, r.lock_owner, r.flags, 0)
        case m.Write():
            return struct.pack("=QQIIQII", r.fh, r.offset, len(r.data), r.write_flags, r.lock_owner, r.flags, 0) + bytes(r.data)
        case m.Release():
            return struct.pack("=QIIQ", r.fh, r.flags, r.release_flags, r.lock_owner)
        case m.Fsync():
            return struct.pack("=QII", r.fh, c.FSYNC_FDATASYNC if r.datasync else 0, 0)
        case m.Flush():
            return struct.pack("=QIIQ", r.fh, 0, 0, r.lock_owner)
        case m.Lock():
            return struct.pack("=QQQQIIII", r.fh, r.owner, r.start, r.end, r.type, r.lock_pid, c.LK_FLOCK if r.flock else 0, 0)
        case m.Ioctl():
            return struct.pack("=QIIQII", r.fh, r.flags, r.cmd, r.arg, len(r.data), r.out_size) + r.data
        case m.Poll():
            return struct.pack("=QQII", r.fh, r.kh, c.POLL_SCHEDULE_NOTIFY if r.wanted else 0, r.events)
        case m.Fallocate():
            return struct.pack("=QQQII", r.fh, r.offset, r.length, r.mode, 0)
        case m.Lseek():
            return struct.pack("=QqII", r.fh, r.offset, r.whence, 0)
        case m.CopyFileRange():
            return struct.pack("=QQQQQQQ", r.fh_in, r.offset_in, r.nodeid_out, r.fh_out, r.offset_out, r.length, r.flags)
        case m.NotifyReply():
            return struct.pack("=QQIIQQ", 0, r.offset, len(r.data), 0, 0, 0) + r.data
        case m.SyncFs():
            return bytes(8)
        case _:
            return b""


def _setattr(r: m.SetAttr) -> bytes:
    marks = {
        c.FATTR_FH: r.fh is not None, c.FATTR_MODE: r.mode is not None, c.FATTR_UID: r.uid_new is not None,
        c.FATTR_GID: r.gid_new is not None, c.FATTR_SIZE: r.size is not None, c.FATTR_ATIME: r.atime_ns is not None,
        c.FATTR_MTIME: r.mtime_ns is not None, c.FATTR_CTIME: r.ctime_ns is not None, c.FATTR_ATIME_NOW: r.atime_now,
        c.FATTR_MTIME_NOW: r.mtime_now, c.FATTR_LOCKOWNER: r.lock_owner is not None, c.FATTR_KILL_SUIDGID: r.kill_suidgid,
    }  # fmt: skip
    times = [divmod(t or 0, NS) for t in (r.atime_ns, r.mtime_ns, r.ctime_ns)]
    return struct.pack(
        "=IIQQQqqqIIIIIIII",
        sum(bit for bit, marked in marks.items() if marked), 0, r.fh or 0, r.size or 0, r.lock_owner or 0,
        *[s for s, _ in times], *[ns for _, ns in times], r.mode or 0, 0, r.uid_new or 0, r.gid_new or 0, 0,
    )  # fmt: skip
