"""POSIX access control lists as the kernel passes them in the xattrs `system.posix_acl_access` and `..._default`. Pure.

With POSIX_ACL negotiated the kernel checks them and the file system keeps them: it takes the mode from a list that is set
(`mode_of`), changes the list at chmod (`with_mode`), and hands a directory's default list to what is made in it (`inherit`).
Source: POSIX 1003.1e draft 17, section 23; acl(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, iter_unpack

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF
VERSION = 2

_HEADER, _ROW = Struct("<I"), Struct("<HHI")
_ROW_FORMAT = "<HHI"

Row = tuple[int, int, int]  # tag, permissions 0..7, uid or gid (NO_ID where the tag has none)
Acl = tuple[Row, ...]


def decode(value: bytes) -> Acl:
    """Decode an xattr's value.

    Raises:
        ValueError: it is no list: wrong version or length, a tag missing, double or out of order.
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ROW.size or _HEADER.unpack_from(value)[0] != VERSION:
        raise ValueError("not an access control list of version 2")
    acl: Acl = tuple((tag, perm, ident) for tag, perm, ident in iter_unpack(_ROW_FORMAT, value[_HEADER.size :]))
    check(acl)
    return acl


def encode(acl: Acl) -> bytes:
    """Encode a list as an xattr's value."""
    return _HEADER.pack(VERSION) + b"".join(_ROW.pack(*row) for row in acl)


def check(acl: Acl) -> None:
    """Raise ValueError unless the list is one: each of owner, group, others once, a mask if anybody is named, in order."""
    tags = [tag for tag, _, _ in acl]
    if tags != sorted(tags) or any(perm > 7 for _, perm, _ in acl):
        raise ValueError("an access control list is out of order")
    single = [tag for tag in tags if tag not in {USER, GROUP}]
    named = len(single) != len(tags)
    wanted = [USER_OBJ, GROUP_OBJ, MASK, OTHER] if named or MASK in tags else [USER_OBJ, GROUP_OBJ, OTHER]
    idents = [(tag, ident) for tag, _, ident in acl if tag in {USER, GROUP}]
    if single != wanted or len(set(idents)) != len(idents):
        raise ValueError("an access control list lacks an entry or has one twice")


def is_minimal(acl: Acl) -> bool:
    """Tell whether the list says no more than a mode does."""
    return len(acl) == 3


def mode_of(acl: Acl, mode: int) -> int:
    """Return `mode` with the permission bits that an access list stands for: its mask counts as the group's."""
    perms = {tag: perm for tag, perm, _ in acl}
    return mode & ~0o777 | perms[USER_OBJ] << 6 | perms.get(MASK, perms[GROUP_OBJ]) << 3 | perms[OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return the access list after a chmod to `mode`."""
    group_tag = MASK if any(tag == MASK for tag, _, _ in acl) else GROUP_OBJ
    new = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple((tag, new.get(tag, perm), ident) for tag, perm, ident in acl)


def inherit(default: Acl | None, mode: int, umask: int) -> tuple[int, Acl | None]:
    """Return the mode and the access list of what is made with `mode` in a directory with this default list.

    Without a default list the umask counts; with one it does not. The access list is None if it says no more than the mode.
    A new directory also gets `default` itself as its default list.
    """
    if default is None:
        return mode & ~umask, None
    old = mode_of(default, mode)
    new = mode & (old | ~0o777)
    acl = with_mode(default, new)
    return new, None if is_minimal(acl) else acl


def minimal(mode: int) -> Acl:
    """Return the list that says what `mode` says."""
    return ((USER_OBJ, mode >> 6 & 7, NO_ID), (GROUP_OBJ, mode >> 3 & 7, NO_ID), (OTHER, mode & 7, NO_ID))


def make(rows: Iterable[Row]) -> Acl:
    """Return a checked list of `rows` in any order."""
    acl = tuple(sorted(rows))
    check(acl)
    return acl
