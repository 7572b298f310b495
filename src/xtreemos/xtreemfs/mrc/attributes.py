"""Commands that change what an inode says of itself: attributes, xattrs, ACLs, and a writer's last word. Pure functions of the state.

Source: chmod(2), chown(2), truncate(2), utimensat(2), setxattr(2), acl(5); fs/attr.c, fs/xattr.c and fs/posix_acl.c for the order of checks.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX
from xtreemos.xtreemfs.mrc import access, schema
from xtreemos.xtreemfs.mrc import acl as acls
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.model import HAS_XATTRS, LIST_BYTES_MAX, WRITE, XATTRS_BYTES_MAX, Cred, Inode
from xtreemos.xtreemfs.mrc.state import Change, State

ACCESS_ACL: Final = b"system.posix_acl_access"
DEFAULT_ACL: Final = b"system.posix_acl_default"
CREATE, REPLACE = 1, 2  # flags of setxattr(2)
ATIME, MTIME = 1, 2  # bits of `times_now`
UNCHANGED: Final = -1  # other negative times are before 1970
_KINDS: Final = stat.S_ISUID | stat.S_ISGID


def set_attr(state: State, c: do.SetAttr) -> Inode:
    """See `commands.SetAttr`. Refusals: EPERM, EACCES, EISDIR, EINVAL, EFBIG, EDQUOT. Nothing is changed unless everything may be."""
    inode = state.inode(c.ino)
    _check_set_attr(inode, c)
    if c.size >= 0:
        _resize(state, inode, c)
    if (
        c.uid >= 0
        or c.gid >= 0
        or (c.mode < 0 and c.size < 0 and c.atime_ns == UNCHANGED and c.mtime_ns == UNCHANGED and not c.times_now)
    ):
        _chown(state, inode, c)
    if c.mode >= 0:
        _chmod(inode, c)
    if c.times_now & ATIME or c.atime_ns != UNCHANGED:
        inode.atime_ns = c.now_ns if c.times_now & ATIME else c.atime_ns
    if c.times_now & MTIME or c.mtime_ns != UNCHANGED:
        inode.mtime_ns = c.now_ns if c.times_now & MTIME else c.mtime_ns
    inode.ctime_ns = c.now_ns
    state.put_inode(inode)
    state.changes.append(Change("data" if c.size >= 0 else "attr", c.ino))
    return inode


def _check_set_attr(inode: Inode, c: do.SetAttr) -> None:
    cred = c.cred
    if cred.reader:
        raise FsError(errno.EROFS)
    if c.size >= 0:
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        if not inode.is_file:
            raise FsError(errno.EINVAL)
        if not c.held:
            access.require(inode, cred, WRITE)
        if c.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
    if c.uid >= 0 and not (cred.root or (cred.uid == inode.uid == c.uid)):
        raise FsError(errno.EPERM)
    if c.gid >= 0 and not (cred.root or (cred.uid == inode.uid and (c.gid == inode.gid or cred.in_group(c.gid)))):
        raise FsError(errno.EPERM)
    if c.mode >= 0:
        access.require_owner(inode, cred)
    if (c.times_now or c.atime_ns != UNCHANGED or c.mtime_ns != UNCHANGED) and c.size < 0:
        both_now = c.times_now == ATIME | MTIME and c.atime_ns == UNCHANGED and c.mtime_ns == UNCHANGED
        access.check_times(inode, cred, both_now=both_now)


def _resize(state: State, inode: Inode, c: do.SetAttr) -> None:
    held = state.find_promise(inode.ino)
    state.end_promise(inode.ino)  # first of all it grows by what it was promised
    state.charge(inode.volume, inode.uid, c.size - inode.size, 0)
    inode.mode = access.without_set_ids(inode, c.cred) if not c.cred.root else inode.mode
    inode.size = c.size
    if held is not None:
        state.put_promise(inode, held.reach)
    if c.size == 0:
        inode.blocks = 0
    if c.mtime_ns == UNCHANGED and not c.times_now & MTIME:
        inode.mtime_ns = c.now_ns


def _chown(state: State, inode: Inode, c: do.SetAttr) -> None:
    inode.mode = access.without_set_ids(inode, c.cred)
    if c.uid >= 0 and c.uid != inode.uid:
        size = inode.size if inode.is_file else 0
        held = state.find_promise(inode.ino)
        state.end_promise(inode.ino)
        state.charge(inode.volume, inode.uid, -size, -1, check=False)
        state.charge(inode.volume, c.uid, size, 1)
        inode.uid = c.uid
        if held is not None:
            room = state.room(inode.volume, c.uid)
            if room is not None and held.rest > room.bytes:
                raise FsError(errno.EDQUOT, "its writers were promised more room than its new owner has")
            state.put_promise(inode, held.reach)
    if c.gid >= 0:
        inode.gid = c.gid


def _chmod(inode: Inode, c: do.SetAttr) -> None:
    bits = access.without_foreign_sgid(c.mode & 0o7777, inode.gid, c.cred)
    inode.mode = stat.S_IFMT(inode.mode) | bits
    if inode.acl:
        inode.acl = acls.encode(acls.with_mode(acls.parse(inode.acl), bits))


def update(state: State, c: do.Update) -> Inode:
    """See `commands.Update`. Bytes that are on the OSDs are charged even beyond a quota: what is there is there."""
    inode = state.inode(c.ino)
    if not inode.is_file and (c.size >= 0 or c.blocks >= 0):
        raise FsError(errno.EINVAL)
    if c.size >= 0:
        if c.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        if c.size != inode.size:
            state.charge(inode.volume, inode.uid, c.size - inode.size, 0, check=False)
        inode.size = c.size
        state.follow_promise(inode)
    if c.done:
        state.end_promise(inode.ino)
    if c.blocks >= 0:
        inode.blocks = c.blocks
    if c.mode >= 0:
        inode.mode &= ~_KINDS | c.mode
    inode.mtime_ns = c.mtime_ns if c.mtime_ns != UNCHANGED else inode.mtime_ns
    inode.ctime_ns = c.ctime_ns if c.ctime_ns != UNCHANGED else inode.ctime_ns
    inode.atime_ns = c.atime_ns if c.atime_ns != UNCHANGED else inode.atime_ns
    state.put_inode(inode)
    if c.size >= 0 or c.mtime_ns != UNCHANGED:
        state.changes.append(Change("data", c.ino))
    return inode


# -- xattrs --------------------------------------------------------------------------------------------------------------


def set_xattr(state: State, c: do.SetXattr) -> Inode:
    """See `commands.SetXattr`. Refusals: ERANGE, EINVAL, E2BIG, EOPNOTSUPP, EPERM, EACCES, EEXIST, ENODATA, ENOSPC."""
    _check_xattr_shape(c)
    inode = state.inode(c.ino)
    if c.name in {ACCESS_ACL, DEFAULT_ACL}:
        _set_acl(inode, c.cred, c.name, c.value)
    else:
        access.check_xattr(inode, c.cred, c.name, write=True)
        key = schema.xattr_key(c.ino, c.name)
        held = state.kv.get(key)
        if c.flags & CREATE and held is not None:
            raise FsError(errno.EEXIST)
        if c.flags & REPLACE and held is None:
            raise FsError(errno.ENODATA)
        _check_xattr_room(state, inode, c)
        state.kv.put(key, c.value)
        inode.flags |= HAS_XATTRS
    inode.ctime_ns = c.now_ns
    state.put_inode(inode)
    state.changes.append(Change("xattr", c.ino, 0, c.name))
    return inode


def _check_xattr_shape(c: do.SetXattr) -> None:
    if not 0 < len(c.name) <= XATTR_NAME_BYTES_MAX or b"\0" in c.name:
        raise FsError(errno.ERANGE)
    if c.flags & ~(CREATE | REPLACE):
        raise FsError(errno.EINVAL)
    if len(c.value) > XATTR_BYTES_MAX:
        raise FsError(errno.E2BIG)


def _check_xattr_room(state: State, inode: Inode, c: do.SetXattr) -> None:
    if not inode.flags & HAS_XATTRS:
        return
    others = [(name, value) for name, value in xattr_rows(state, inode) if name != c.name]
    names = sum(len(name) + 1 for name, _value in others) + len(c.name) + 1
    if names > LIST_BYTES_MAX or sum(len(name) + len(value) for name, value in others) + len(c.value) > XATTRS_BYTES_MAX:
        raise FsError(errno.ENOSPC, "the inode has too many extended attributes")


def xattr_rows(state: State, inode: Inode) -> list[tuple[bytes, bytes]]:
    """Return rows (name, value) of all xattrs but ACLs, by name."""
    if not inode.flags & HAS_XATTRS:
        return []
    return [(key[9:], value) for key, value in state.scan_all(*schema.prefix_range(schema.XATTR + schema.pack64(inode.ino)))]


def _set_acl(inode: Inode, cred: Cred, name: bytes, value: bytes) -> None:
    if stat.S_ISLNK(inode.mode):
        raise FsError(errno.EOPNOTSUPP)
    acl = acls.parse(value)
    if name == DEFAULT_ACL and not inode.is_dir:
        if acl:
            raise FsError(errno.EACCES)
        return
    access.require_owner(inode, cred)
    if name == DEFAULT_ACL:
        inode.default_acl = acls.encode(acl) if acl else b""
        return
    if acl:
        bits = access.without_foreign_sgid(inode.mode & ~0o777 | acls.mode_of(acl), inode.gid, cred)
        inode.mode = bits
    inode.acl = acls.encode(acl) if acl and not acls.is_minimal(acl) else b""


def remove_xattr(state: State, c: do.RemoveXattr) -> Inode:
    """See `commands.RemoveXattr`. Refusals: EOPNOTSUPP, EPERM, EACCES, ENODATA."""
    inode = state.inode(c.ino)
    if c.name in {ACCESS_ACL, DEFAULT_ACL}:
        if not (inode.acl if c.name == ACCESS_ACL else inode.default_acl):
            access.require_owner(inode, c.cred)
            raise FsError(errno.ENODATA)
        _set_acl(inode, c.cred, c.name, b"")
    else:
        access.check_xattr(inode, c.cred, c.name, write=True)
        key = schema.xattr_key(c.ino, c.name)
        if state.kv.get(key) is None:
            raise FsError(errno.ENODATA)
        state.kv.delete(key)
    inode.ctime_ns = c.now_ns
    state.put_inode(inode)
    state.changes.append(Change("xattr", c.ino, 0, c.name))
    return inode
