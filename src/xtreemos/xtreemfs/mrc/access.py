"""Who may do what with an inode: permission bits, ACLs, the sticky bit, set-id bits. Pure; the errno is the one Linux gives.

Source: path_resolution(7), chmod(2), chown(2), unlink(2), rename(2), utimensat(2), xattr(7); fs/namei.c and fs/attr.c for the order of checks.
"""

from __future__ import annotations

import errno
import stat

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import NAME_BYTES_MAX
from xtreemos.xtreemfs.mrc import acl as acls
from xtreemos.xtreemfs.mrc.model import READ, SEARCH, WRITE, Cred, Inode


def may(inode: Inode, cred: Cred, want: int) -> bool:
    """Whether `cred` has all of `want` (bits READ, WRITE, SEARCH; SEARCH of a file is execution)."""
    mode = inode.mode
    if cred.reader and want & WRITE:
        return False
    if cred.root:
        return not want & SEARCH or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if cred.uid == inode.uid:
        return want & ~(mode >> 6) == 0
    if inode.acl:
        return acls.permits(acls.parse(inode.acl), cred, inode.gid, want)
    if cred.in_group(inode.gid):
        return want & ~(mode >> 3) == 0
    return want & ~mode == 0


def require(inode: Inode, cred: Cred, want: int) -> None:
    """Raise FsError(EACCES) unless `may`."""
    if not may(inode, cred, want):
        raise FsError(errno.EACCES)


def owns(inode: Inode, cred: Cred) -> bool:
    """Whether `cred` is the owner or has root's powers."""
    return not cred.reader and (cred.root or cred.uid == inode.uid)


def require_owner(inode: Inode, cred: Cred) -> None:
    """Raise FsError(EPERM) unless `owns`."""
    if not owns(inode, cred):
        raise FsError(errno.EPERM)


def check_searched(folder: Inode, cred: Cred, name: bytes) -> None:
    """Check what every use of a name in `folder` needs, in this order: ENOTDIR, EACCES (search), EINVAL or ENAMETOOLONG (the name)."""
    if not folder.is_dir:
        raise FsError(errno.ENOTDIR)
    require(folder, cred, SEARCH)
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL, "that is no name of a directory entry")


def check_create(folder: Inode, cred: Cred) -> None:
    """Check that `cred` may add a name: EACCES, or ENOENT if the directory itself has been removed."""
    if folder.nlink == 0:
        raise FsError(errno.ENOENT)
    require(folder, cred, WRITE | SEARCH)


def check_delete(folder: Inode, victim: Inode, cred: Cred, *, directory: bool) -> None:
    """Check that `cred` may take the name of `victim` away: EACCES, EPERM (sticky), ENOTDIR or EISDIR, EBUSY (a volume's root)."""
    require(folder, cred, WRITE | SEARCH)
    if folder.mode & stat.S_ISVTX and not (cred.root or cred.uid in {folder.uid, victim.uid}):
        raise FsError(errno.EPERM)
    if directory and not victim.is_dir:
        raise FsError(errno.ENOTDIR)
    if not directory and victim.is_dir:
        raise FsError(errno.EISDIR)
    if victim.is_dir and victim.parent == victim.ino:
        raise FsError(errno.EBUSY)


def without_foreign_sgid(mode: int, gid: int, cred: Cred) -> int:
    """Return `mode`, its set-group-id bit cleared if `cred` is neither in that group nor root."""
    return mode if cred.root or cred.in_group(gid) else mode & ~stat.S_ISGID


def without_set_ids(inode: Inode, cred: Cred) -> int:
    """Return the mode after data or owner of the inode changed: set-id bits of what is no directory go away."""
    mode = inode.mode
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not (cred.root or cred.in_group(inode.gid))):
        mode &= ~stat.S_ISGID
    return mode


def check_times(inode: Inode, cred: Cred, *, both_now: bool) -> None:
    """Check a change of times: the owner may; setting both to now also whoever may write (EACCES, else EPERM)."""
    if owns(inode, cred):
        return
    if not both_now:
        raise FsError(errno.EPERM)
    require(inode, cred, WRITE)


def check_xattr(inode: Inode, cred: Cred, name: bytes, *, write: bool) -> None:
    """Check access to one xattr that is no ACL. Names of unknown kind are EOPNOTSUPP; what may not even be seen is ENODATA."""
    kind, dot, rest = name.partition(b".")
    if not dot or kind not in {b"user", b"trusted", b"security"}:
        raise FsError(errno.EOPNOTSUPP)
    if not rest:
        raise FsError(errno.EINVAL)
    if kind == b"trusted":
        if not cred.root:
            raise FsError(errno.EPERM if write else errno.ENODATA)
    elif kind == b"security":
        if write and not cred.root:
            raise FsError(errno.EPERM)
    else:
        if not (inode.is_file or inode.is_dir):
            raise FsError(errno.EPERM if write else errno.ENODATA)
        if write and inode.is_dir and inode.mode & stat.S_ISVTX and not owns(inode, cred):
            raise FsError(errno.EPERM)
        require(inode, cred, WRITE if write else READ)
