"""POSIX ACLs in the format of their xattrs: checking, evaluating, inheriting, and keeping them in step with the mode bits. Pure.

Source: acl(5); the withdrawn POSIX 1003.1e draft 17, section 23; the kernel's fs/posix_acl.c for what programs really meet.
`u32 LE version 2`, then rows of `u16 tag, u16 permissions, u32 id`.
"""

from __future__ import annotations

import errno
import struct
from functools import lru_cache
from typing import Final, NamedTuple

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.mrc.model import Cred

VERSION: Final = 2
ENTRIES_MAX: Final = 1024
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID: Final = 0xFFFFFFFF
_HEAD = struct.Struct("<I")
_ROW = struct.Struct("<HHI")


class Entry(NamedTuple):
    """One row. `id` counts for USER and GROUP only."""

    tag: int
    perm: int
    id: int


Acl = tuple[Entry, ...]


@lru_cache(maxsize=4096)
def parse(value: bytes) -> Acl:
    """Return the rows of a valid ACL, in canonical order; () for one without rows.

    Raises:
        FsError(EINVAL): not version 2, or rows missing, twice, or unknown. FsError(EOPNOTSUPP): another version.
    """
    if not value:
        return ()
    if len(value) < _HEAD.size or (len(value) - _HEAD.size) % _ROW.size or len(value) > _HEAD.size + ENTRIES_MAX * _ROW.size:
        raise FsError(errno.EINVAL, "that is no ACL")
    if _HEAD.unpack_from(value)[0] != VERSION:
        raise FsError(errno.EOPNOTSUPP, "an ACL of another version")
    rows = [Entry(*_ROW.unpack_from(value, at)) for at in range(_HEAD.size, len(value), _ROW.size)]
    if rows:
        _check(rows)
    return tuple(sorted(rows, key=lambda row: (row.tag, row.id)))


def _check(rows: list[Entry]) -> None:
    counts = {tag: sum(row.tag == tag for row in rows) for tag in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)}
    named = [(row.tag, row.id) for row in rows if row.tag in (USER, GROUP)]
    good = (
        sum(counts.values()) == len(rows)
        and counts[USER_OBJ] == counts[GROUP_OBJ] == counts[OTHER] == 1
        and counts[MASK] <= 1
        and (counts[MASK] == 1 or not named)
        and len(set(named)) == len(named)
        and all(number != NO_ID for _tag, number in named)
        and not any(row.perm & ~7 for row in rows)
    )
    if not good:
        raise FsError(errno.EINVAL, "the ACL's rows do not fit together")


def encode(acl: Acl) -> bytes:
    """Return the xattr's value: inverse of `parse`."""
    return _HEAD.pack(VERSION) + b"".join(_ROW.pack(*row) for row in acl)


def _perm(acl: Acl, tag: int) -> int | None:
    return next((row.perm for row in acl if row.tag == tag), None)


def is_minimal(acl: Acl) -> bool:
    """Whether mode bits can say the same."""
    return all(row.tag in (USER_OBJ, GROUP_OBJ, OTHER) for row in acl)


def mode_of(acl: Acl) -> int:
    """Return the nine permission bits that stand for this ACL (the mask takes the group's place)."""
    mask = _perm(acl, MASK)
    group = mask if mask is not None else _perm(acl, GROUP_OBJ)
    return (_perm(acl, USER_OBJ) or 0) << 6 | (group or 0) << 3 | (_perm(acl, OTHER) or 0)


def of_mode(mode: int) -> Acl:
    """Return the ACL that says what nine permission bits say."""
    return Entry(USER_OBJ, mode >> 6 & 7, NO_ID), Entry(GROUP_OBJ, mode >> 3 & 7, NO_ID), Entry(OTHER, mode & 7, NO_ID)


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return the ACL after a chmod to `mode`: owner and others follow, the group bits set the mask (or the group if there is none)."""
    group_tag = MASK if _perm(acl, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(row._replace(perm=bits.get(row.tag, row.perm)) for row in acl)


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """Return (access ACL, permission bits) of what is made with `mode` in a directory with this default ACL. The umask plays no part."""
    group_tag = MASK if _perm(default, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple(row._replace(perm=row.perm & bits[row.tag]) if row.tag in bits else row for row in default)
    return acl, mode_of(acl)


def permits(acl: Acl, cred: Cred, group: int, want: int) -> bool:
    """Evaluate for somebody who is not the owner. `group`: the file's; `want`: bits of 4 read, 2 write, 1 search or execute."""
    mask = _perm(acl, MASK)
    limit = 7 if mask is None else mask
    for row in acl:
        if row.tag == USER and row.id == cred.uid:
            return want & ~(row.perm & limit) == 0
    found = False
    for row in acl:
        if (row.tag == GROUP_OBJ and cred.in_group(group)) or (row.tag == GROUP and cred.in_group(row.id)):
            found = True
            if want & ~(row.perm & limit) == 0:
                return True
    return not found and want & ~(_perm(acl, OTHER) or 0) == 0
