"""Commands that change names: create, link, unlink, rename. Pure functions of the state; errnos and their order as Linux gives them.

Everything is checked before the first change, though the overlay would take back what a refused command did.
Source: link(2), mkdir(2), mknod(2), open(2), rename(2), rmdir(2), symlink(2), unlink(2), acl(5); fs/namei.c for the order of checks.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import LINKS_MAX, SYMLINK_BYTES_MAX, volume_of
from xtreemos.xtreemfs.mrc import acl as acls
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import quota, schema
from xtreemos.xtreemfs.mrc.access import check_create, check_delete, check_searched, require
from xtreemos.xtreemfs.mrc.model import DIRECTORY_BYTES, FIRST_COOKIE, LINKABLE, WRITE, Inode, Name, Writer
from xtreemos.xtreemfs.mrc.state import Change, State

NOREPLACE: Final = 1
EXCHANGE: Final = 2
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_TYPES: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES)


class Moved(Exception):  # no failure: the driver asks the right holders and tries again
    """A name stands for another inode than when its holders were asked. Nothing was done."""


class Made(NamedTuple):
    """An inode that got a name, and the directory afterwards."""

    inode: Inode
    folder: Inode


class Removed(NamedTuple):
    """An inode that lost a name (nlink 0: its last), and the directory afterwards."""

    inode: Inode
    folder: Inode


class Swapped(NamedTuple):
    """What a rename left: the inode, both directories, and what lost (or exchanged) its name."""

    inode: Inode
    folder: Inode
    new_folder: Inode
    replaced: Inode | None


def create(state: State, c: do.Create) -> Made:
    """See `commands.Create`. Refusals: ENOTDIR, EACCES, EINVAL, ENAMETOOLONG, EEXIST, ENOENT, EPERM, EMLINK, EDQUOT."""
    folder = state.inode(c.dir)
    kind = stat.S_IFMT(c.mode)
    if kind not in _TYPES:
        raise FsError(errno.EINVAL)
    if c.anonymous:
        _check_anonymous(folder, c, kind)
    else:
        check_searched(folder, c.cred, c.name)
        if state.find_name(c.dir, c.name) is not None:
            raise FsError(errno.EEXIST)
        check_create(folder, c.cred)
    if kind in _DEVICES and not c.cred.root:
        raise FsError(errno.EPERM, "only a volume's root may make devices in it")
    if kind == stat.S_IFLNK and not 0 < len(c.link) <= SYMLINK_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG if c.link else errno.ENOENT)
    if kind == stat.S_IFDIR and folder.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)
    gid, owner_mode, acl, default_acl = _rights(folder, c, kind)
    volume = volume_of(c.dir)
    size = len(c.link) if kind == stat.S_IFLNK else 0
    state.charge(volume, c.cred.uid, 0, 1)
    is_dir = kind == stat.S_IFDIR
    inode = Inode(
        ino=state.new_ino(volume), mode=owner_mode, nlink=0 if c.anonymous else 2 if is_dir else 1, uid=c.cred.uid, gid=gid,
        size=DIRECTORY_BYTES if is_dir else size, blocks=DIRECTORY_BYTES // 512 if is_dir else 0, rdev=c.rdev if kind in _DEVICES else 0,
        atime_ns=c.now_ns, mtime_ns=c.now_ns, ctime_ns=c.now_ns, btime_ns=c.now_ns, version=state.seq,
        flags=LINKABLE if c.anonymous else 0, parent=c.dir if is_dir else 0, cookie=FIRST_COOKIE if is_dir else 0, acl=acl, default_acl=default_acl,
    )  # fmt: skip
    if c.layout is not None or c.link:
        state.put_cold(inode.ino, layout=c.layout if kind == stat.S_IFREG else None, link=c.link)
    state.put_inode(inode)
    if kind == stat.S_IFREG and c.session:
        state.put_writer(inode.ino, c.session, Writer(c.epoch), fresh=True)
        if c.promise:
            quota.promise_room(state, inode)
    if c.anonymous:
        state.leave(inode, keep=True)
        return Made(inode, folder)
    state.add_name(folder, c.name, inode)
    folder.nlink += is_dir
    _touch(state, folder, c.now_ns)
    state.changes.append(Change("create", inode.ino, c.dir, c.name))
    return Made(inode, folder)


def _check_anonymous(folder: Inode, c: do.Create, kind: int) -> None:
    if not folder.is_dir:
        raise FsError(errno.ENOTDIR)
    if kind != stat.S_IFREG or not c.session:
        raise FsError(errno.EINVAL)
    check_create(folder, c.cred)


def _rights(folder: Inode, c: do.Create, kind: int) -> tuple[int, int, bytes, bytes]:
    """Return (gid, mode, access ACL, default ACL) of a new inode: set-group-id directories, default ACLs, else the umask."""
    gid = folder.gid if folder.mode & stat.S_ISGID else c.cred.gid
    bits = c.mode & 0o7777
    if folder.mode & stat.S_ISGID:
        if kind == stat.S_IFDIR:
            bits |= stat.S_ISGID
        elif bits & stat.S_ISGID and bits & stat.S_IXGRP and not (c.cred.root or c.cred.in_group(gid)):
            bits &= ~stat.S_ISGID
    if kind == stat.S_IFLNK:
        return gid, kind | 0o777, b"", b""
    if not folder.default_acl:
        return gid, kind | (bits & ~c.umask), b"", b""
    acl, permissions = acls.inherit(acls.parse(folder.default_acl), bits)
    mode = kind | (bits & ~0o777) | permissions
    return gid, mode, b"" if acls.is_minimal(acl) else acls.encode(acl), folder.default_acl if kind == stat.S_IFDIR else b""


def _touch(state: State, folder: Inode, now_ns: int) -> None:
    """Write a directory whose names changed."""
    folder.mtime_ns = folder.ctime_ns = now_ns
    state.put_inode(folder)


def link(state: State, c: do.Link) -> Made:
    """See `commands.Link`. Refusals: ENOTDIR, EACCES, EEXIST, EXDEV, EPERM (a directory), ENOENT (gone), EMLINK."""
    inode = state.inode(c.ino)
    folder = state.inode(c.dir)
    check_searched(folder, c.cred, c.name)
    if state.find_name(c.dir, c.name) is not None:
        raise FsError(errno.EEXIST)
    if volume_of(c.ino) != volume_of(c.dir):
        raise FsError(errno.EXDEV)
    check_create(folder, c.cred)
    if inode.is_dir:
        raise FsError(errno.EPERM)
    if inode.nlink == 0 and not inode.flags & LINKABLE:
        raise FsError(errno.ENOENT)
    if inode.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)
    if inode.nlink == 0:
        inode.flags &= ~LINKABLE
        state.kv.delete(schema.ORPHAN + schema.pack64(inode.ino))
    inode.nlink += 1
    inode.ctime_ns = c.now_ns
    state.put_inode(inode)
    state.add_name(folder, c.name, inode)
    _touch(state, folder, c.now_ns)
    state.changes.append(Change("link", c.ino, c.dir, c.name))
    return Made(inode, folder)


def unlink(state: State, c: do.Unlink) -> Removed:
    """See `commands.Unlink`. Refusals: ENOTDIR, EACCES, ENAMETOOLONG, ENOENT, EPERM (sticky), EISDIR, ENOTDIR, EBUSY, ENOTEMPTY."""
    folder = state.inode(c.dir)
    check_searched(folder, c.cred, c.name)
    name = _found(state, c.dir, c.name)
    victim = state.inode(name.ino)
    check_delete(folder, victim, c.cred, directory=c.directory)
    if c.directory and victim.entries:
        raise FsError(errno.ENOTEMPTY)
    if c.ino and c.ino != name.ino:
        raise Moved
    state.remove_name(folder, c.name, name.cookie)
    folder.nlink -= c.directory
    _touch(state, folder, c.now_ns)
    _lose_name(state, victim, c.now_ns, keep=c.keep)
    state.changes.append(Change("rmdir" if c.directory else "unlink", victim.ino, c.dir, c.name))
    return Removed(victim, folder)


def _found(state: State, folder: int, name: bytes) -> Name:
    found = state.find_name(folder, name)
    if found is None:
        raise FsError(errno.ENOENT)
    return found


def _lose_name(state: State, victim: Inode, now_ns: int, *, keep: bool) -> None:
    victim.nlink = 0 if victim.is_dir else victim.nlink - 1
    victim.ctime_ns = now_ns
    victim.version = state.seq
    if victim.nlink == 0:
        state.leave(victim, keep=keep)
    else:
        state.put_inode(victim)


def rename(state: State, c: do.Rename) -> Swapped:
    """See `commands.Rename`. Refusals in this order: EINVAL (flags), EXDEV, those of names, ENOENT, EEXIST, EINVAL or ENOTEMPTY (into itself),
    EACCES, EPERM, ENOTDIR, EISDIR, EMLINK, ENOTEMPTY.
    """
    if c.flags & ~(NOREPLACE | EXCHANGE) or c.flags == NOREPLACE | EXCHANGE:
        raise FsError(errno.EINVAL)
    if volume_of(c.dir) != volume_of(c.new_dir):
        raise FsError(errno.EXDEV)
    folder = state.inode(c.dir)
    new_folder = folder if c.new_dir == c.dir else state.inode(c.new_dir)
    check_searched(folder, c.cred, c.name)
    check_searched(new_folder, c.cred, c.new_name)
    name = _found(state, c.dir, c.name)
    target = state.find_name(c.new_dir, c.new_name)
    if target is not None and c.flags & NOREPLACE:
        raise FsError(errno.EEXIST)
    if target is None and c.flags & EXCHANGE:
        raise FsError(errno.ENOENT)
    inode = state.inode(name.ino)
    other = state.inode(target.ino) if target is not None else None
    _check_loops(state, c.flags, folder, new_folder, inode, other)
    if other is not None and other.ino == inode.ino:
        return Swapped(inode, folder, new_folder, None)
    _check_rename_rights(c, folder, new_folder, inode, other)
    if other is not None and not c.flags & EXCHANGE and other.entries:
        raise FsError(errno.ENOTEMPTY)
    if (c.ino and c.ino != inode.ino) or (c.new_ino and c.new_ino != (other.ino if other else 0)):
        raise Moved
    if other is not None and target is not None and c.flags & EXCHANGE:
        return _exchange(state, c, _Sides(folder, new_folder, inode, other, name, target))
    return _move(state, c, _Sides(folder, new_folder, inode, other, name, target))


class _Sides(NamedTuple):
    folder: Inode
    new_folder: Inode
    inode: Inode
    other: Inode | None
    name: Name
    target: Name | None


def _check_loops(state: State, flags: int, folder: Inode, new_folder: Inode, inode: Inode, other: Inode | None) -> None:
    if folder.ino == new_folder.ino:
        return
    if inode.is_dir and state.is_below(inode.ino, new_folder):
        raise FsError(errno.EINVAL)
    if other is not None and other.is_dir and state.is_below(other.ino, folder):
        raise FsError(errno.EINVAL if flags & EXCHANGE else errno.ENOTEMPTY)


def _check_rename_rights(c: do.Rename, folder: Inode, new_folder: Inode, inode: Inode, other: Inode | None) -> None:
    check_delete(folder, inode, c.cred, directory=inode.is_dir)
    if other is None:
        check_create(new_folder, c.cred)
    else:
        check_delete(new_folder, other, c.cred, directory=other.is_dir if c.flags & EXCHANGE else inode.is_dir)
    if folder.ino == new_folder.ino:
        return
    if inode.is_dir:
        require(inode, c.cred, WRITE)  # its ".." changes
    if c.flags & EXCHANGE and other is not None and other.is_dir:
        require(other, c.cred, WRITE)
    gains = inode.is_dir - (other is not None and other.is_dir)
    if gains > 0 and new_folder.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)
    if c.flags & EXCHANGE and gains < 0 and folder.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)


def _move(state: State, c: do.Rename, side: _Sides) -> Swapped:
    folder, new_folder, inode, other, name, target = side
    state.remove_name(folder, c.name, name.cookie)
    folder.nlink -= inode.is_dir
    if target is None or other is None:
        state.add_name(new_folder, c.new_name, inode)
    else:
        state.replace_name(new_folder, c.new_name, inode, target.cookie)
        new_folder.nlink -= other.is_dir
        _lose_name(state, other, c.now_ns, keep=c.keep)
    new_folder.nlink += inode.is_dir
    _finish_rename(state, c, folder, new_folder, inode)
    state.changes.append(Change("rename-from", inode.ino, c.dir, c.name))
    state.changes.append(Change("rename-to", inode.ino, c.new_dir, c.new_name))
    return Swapped(inode, folder, new_folder, other)


def _finish_rename(state: State, c: do.Rename, folder: Inode, new_folder: Inode, inode: Inode) -> None:
    if inode.is_dir:
        inode.parent = new_folder.ino
    inode.ctime_ns = c.now_ns
    state.put_inode(inode)
    _touch(state, folder, c.now_ns)
    if new_folder is not folder:
        _touch(state, new_folder, c.now_ns)


def _exchange(state: State, c: do.Rename, side: _Sides) -> Swapped:
    folder, new_folder, inode, other, name, target = side
    assert other is not None, "checked by rename"
    assert target is not None, "checked by rename"
    state.replace_name(folder, c.name, other, name.cookie)
    state.replace_name(new_folder, c.new_name, inode, target.cookie)
    shift = inode.is_dir - other.is_dir
    folder.nlink -= shift
    new_folder.nlink += shift
    if other.is_dir:
        other.parent = folder.ino
    other.ctime_ns = c.now_ns
    state.put_inode(other)
    _finish_rename(state, c, folder, new_folder, inode)
    for ino, at, called in ((inode.ino, c.new_dir, c.new_name), (other.ino, c.dir, c.name)):
        state.changes.append(Change("rename-to", ino, at, called))
    return Swapped(inode, folder, new_folder, other)
