"""Reading the MRC's state for somebody: lookups, listings, xattrs, with the rights that each needs. Pure; nothing is changed."""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.mrc import access, attributes, schema
from xtreemos.xtreemfs.mrc.model import READ, SEARCH, WRITE, Cred, Inode, Name
from xtreemos.xtreemfs.mrc.state import State

PAGE_ROWS_MAX: Final = 4096


class Page(NamedTuple):
    """Some names of a directory in the order of cookies; `end`: there are no more."""

    rows: list[tuple[bytes, Name]]
    end: bool


def lookup(state: State, cred: Cred, folder: int, name: bytes) -> tuple[Inode, Inode | None]:
    """Return (directory, what the name stands for or None). ENOTDIR, EACCES, ENAMETOOLONG, ESTALE. `..` is the directory's parent."""
    where = state.inode(folder)
    if name == b"..":
        if not where.is_dir:
            raise FsError(errno.ENOTDIR)
        access.require(where, cred, SEARCH)
        return where, state.inode(where.parent)
    access.check_searched(where, cred, name)
    found = state.find_name(folder, name)
    return where, state.inode(found.ino) if found is not None else None


def listing(state: State, cred: Cred, folder: int, cookie: int, count: int) -> tuple[Inode, Page]:
    """Return (directory, page after `cookie`). ENOTDIR, EACCES, ESTALE."""
    where = state.inode(folder)
    if not where.is_dir:
        raise FsError(errno.ENOTDIR)
    access.require(where, cred, READ)
    count = max(1, min(count, PAGE_ROWS_MAX))
    end = schema.cookie_key(folder, (1 << 64) - 1)
    rows = state.kv.scan(schema.cookie_key(folder, max(cookie, 0) + 1), end, count + 1)
    names = []
    for key, value in rows[:count]:
        ino, kind, name = schema.to_entry(value)
        names.append((name, Name(ino, kind, schema.cookie_of(key))))
    return where, Page(names, len(rows) <= count)


def may_list_with_attrs(where: Inode, cred: Cred) -> bool:
    """Whether a listing may tell attributes too: that takes the right to search the directory."""
    return access.may(where, cred, SEARCH)


def get_xattr(state: State, cred: Cred, ino: int, name: bytes) -> bytes:
    """Return an xattr's value. ENODATA, EOPNOTSUPP, EACCES, EINVAL."""
    inode = state.inode(ino)
    if name in {attributes.ACCESS_ACL, attributes.DEFAULT_ACL}:
        if stat.S_ISLNK(inode.mode):
            raise FsError(errno.EOPNOTSUPP)
        value = inode.acl if name == attributes.ACCESS_ACL else inode.default_acl
        if not value:
            raise FsError(errno.ENODATA)
        return value
    access.check_xattr(inode, cred, name, write=False)
    held = state.kv.get(schema.xattr_key(ino, name))
    if held is None:
        raise FsError(errno.ENODATA)
    return held


def list_xattrs(state: State, cred: Cred, ino: int) -> list[bytes]:
    """Return the names that `cred` may see, sorted."""
    inode = state.inode(ino)
    names = [name for name, _value in attributes.xattr_rows(state, inode) if cred.root or not name.startswith(b"trusted.")]
    if inode.acl:
        names.append(attributes.ACCESS_ACL)
    if inode.default_acl:
        names.append(attributes.DEFAULT_ACL)
    return sorted(names)


def wanted_bits(mode: str) -> int:
    """Return what opening with "r", "w" or "rw" asks for."""
    return (READ if "r" in mode else 0) | (WRITE if "w" in mode else 0)
