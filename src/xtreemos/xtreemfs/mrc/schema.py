"""Keys of the MRC's ordered store, every column explained. Pure: bytes in, bytes out.

All numbers in keys are big-endian, so byte order is number order. The volume id is the upper part of an inode number: every table
that begins with an inode number lists one volume in one range. Values are MessagePack arrays of the structs in `model` unless said otherwise.

| prefix | key | value | why |
|---|---|---|---|
| `i` | ino 8 | `Inode` | one read gives attributes, ACLs and what a directory operation changes |
| `l` | ino 8 | `Cold` | layout or link target: read at open only, so listing with attributes does not drag it along |
| `d` | dir 8, name | ino 8, type 1, cookie 8 (raw) | lookup: one read |
| `c` | dir 8, cookie 8 | ino 8, type 1, name (raw) | listing in the order names came: stable under changes, resumable at any cookie |
| `x` | ino 8, name | value (raw) | one row per xattr; ACLs are not here but in the inode |
| `o` | ino 8 | "" | an inode without a name that somebody has open (who: the lease table knows, from the clients) |
| `w` | ino 8, client | `Writer` | a client may write the file and its end is not noted: if it dies, the size is asked from the OSDs (client "": being fenced) |
| `g` | ino 8 | list: number of columns (none in old rows: 64), OSD names | a file that is gone, whose OSDs have not all answered its deletion |
| `v` | id 4 | `Volume` | |
| `V` | name | id 4 (raw) | names are unique among volumes that are not gone |
| `k` | id 4 | 8 (raw) | largest inode number given in the volume |
| `u` | id 4, kind 1, owner 4 | `Usage` | kind `v`: the volume (owner 0), `u`: one owner in it |
| `q` | id 4, kind 1, owner 4 | `Usage` | limits of owners (kind `u`); a volume's own are in its row |
| `r` | ino 8 | `Promise` | how far the writers of a file may let it grow, where a quota bounds that; its rest stands in `R` |
| `R` | id 4, kind 1, owner 4 | `Usage` | as `u`: bytes that are promised and not used yet |
| `n` | kind 1, name | number 4 (raw) | principals by name |
| `N` | number 4 | kind 1, name (raw) | and back |
| `s` | session | `Session` | a restarted MRC waits for these |
| `a` | session 32, number 8 | `Reply` | a change was done, and its answer may have been lost: when it is sent again this is answered |
| `b` | session 32 | 8 (raw) | the session's changes below this number were answered; they have no rows in `a` and are never done again |
| `m` | word | raw | `seq`: last command applied (8), `epoch`: epochs below this may have been given (8), `format` |
"""

from __future__ import annotations

import struct
from typing import Final

from xtreemos.xtreemfs.model import NUMBER_BITS
from xtreemos.xtreemfs.mrc.model import Name

FORMAT: Final = b"xos-mrc-1"
KEY_BYTES_MAX: Final = 511  # LMDB's

INODE, COLD, NAME, COOKIE, XATTR, ORPHAN, WRITER, GARBAGE = b"i", b"l", b"d", b"c", b"x", b"o", b"w", b"g"
VOLUME, VOLUME_NAME, COUNTER, USAGE, LIMIT, PRINCIPAL, NUMBER, SESSION = b"v", b"V", b"k", b"u", b"q", b"n", b"N", b"s"
PROMISE, PROMISED, REPLY, BELOW = b"r", b"R", b"a", b"b"
SEQ, EPOCH, FORMAT_KEY = b"mseq", b"mepoch", b"mformat"
BY_INO: Final = (INODE, COLD, NAME, COOKIE, XATTR, ORPHAN, WRITER, PROMISE)
"""Tables whose key begins with an inode number (garbage not: it outlives its volume)."""

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_NAME = struct.Struct(">QBQ")
_ENTRY = struct.Struct(">QB")
_DIR_COOKIE = struct.Struct(">QQ")
_USAGE = struct.Struct(">IcI")

pack64 = _U64.pack
pack32 = _U32.pack


def unpack64(data: bytes) -> int:
    """Return the number of 8 bytes."""
    return int(_U64.unpack(data)[0])


def unpack32(data: bytes) -> int:
    """Return the number of 4 bytes."""
    return int(_U32.unpack(data)[0])


def inode_key(ino: int) -> bytes:
    """Key of an inode's row."""
    return INODE + pack64(ino)


def ino_of(key: bytes) -> int:
    """Inode number in the key of any table of `BY_INO` (or of garbage)."""
    return int(_U64.unpack_from(key, 1)[0])


def name_key(folder: int, name: bytes) -> bytes:
    """Key of a name."""
    return NAME + pack64(folder) + name


def cookie_key(folder: int, cookie: int) -> bytes:
    """Key of a name's place in listings."""
    return COOKIE + _DIR_COOKIE.pack(folder, cookie)


def cookie_of(key: bytes) -> int:
    """Cookie in a key of the cookie table."""
    return int(_U64.unpack_from(key, 9)[0])


def name_value(name: Name) -> bytes:
    """Value of a name's row."""
    return _NAME.pack(name.ino, name.type, name.cookie)


def to_name(value: bytes) -> Name:
    """Inverse of `name_value`."""
    return Name(*_NAME.unpack(value))


def entry_value(ino: int, kind: int, name: bytes) -> bytes:
    """Value of a row of the cookie table."""
    return _ENTRY.pack(ino, kind) + name


def to_entry(value: bytes) -> tuple[int, int, bytes]:
    """Return (ino, type, name): inverse of `entry_value`."""
    ino, kind = _ENTRY.unpack_from(value)
    return ino, kind, value[_ENTRY.size :]


def xattr_key(ino: int, name: bytes) -> bytes:
    """Key of one xattr."""
    return XATTR + pack64(ino) + name


def usage_key(volume: int, owner: int | None, table: bytes = USAGE) -> bytes:
    """Key of usage (or limits) of a volume (`owner` None) or of one owner in it."""
    return table + (_USAGE.pack(volume, b"v", 0) if owner is None else _USAGE.pack(volume, b"u", owner & 0xFFFFFFFF))


def reply_key(client: str, number: int) -> bytes:
    """Key of the answer to a session's change."""
    return REPLY + client.encode() + _U64.pack(number)


def volume_range(table: bytes, volume: int) -> tuple[bytes, bytes]:
    """Return (first key, key after the last) of a volume's rows in a table of `BY_INO`."""
    return table + pack64(volume << NUMBER_BITS), table + pack64((volume + 1) << NUMBER_BITS)


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """Return (first key, key after the last) of all keys with this prefix (not all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    return prefix, stripped[:-1] + bytes([stripped[-1] + 1])
