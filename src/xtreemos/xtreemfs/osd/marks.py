"""What an OSD knows durably beside the columns themselves: marks, fences, files that are gone, damage. One LMDB per disk.

Keys, all numbers big-endian: `m` ino u64 column u16 -> Mark; `f` ino -> Fence; `t` ino -> time (u64) when the file was deleted;
`d` ino column block u64 -> DamageRow. A commit is one LMDB transaction, so all of it or nothing, on the disk when it returns.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

import lmdb
import msgspec

from xtreemos.xtreemfs.capability import Fence
from xtreemos.xtreemfs.osd.model import DamageRow, Key, Mark

MAP_BYTES: Final = 16 << 30  # address space, not disk: about 100 million marks
_COLUMN = struct.Struct(">QH")
_BLOCK = struct.Struct(">QHQ")
_INO = struct.Struct(">Q")

Rows = Mapping[bytes, bytes | None]
"""Key -> value; None removes it."""


def mark_row(key: Key) -> bytes:
    """Key of a column's mark."""
    return b"m" + _COLUMN.pack(*key)


def fence_row(ino: int) -> bytes:
    """Key of a file's fence."""
    return b"f" + _INO.pack(ino)


def gone_row(ino: int) -> bytes:
    """Key of the word that a file was deleted."""
    return b"t" + _INO.pack(ino)


def damage_row(key: Key, block: int) -> bytes:
    """Key of a damaged block."""
    return b"d" + _BLOCK.pack(*key, block)


class Table(Protocol):
    """An ordered table of bytes with atomic, durable commits."""

    def get(self, key: bytes) -> bytes | None:
        """Return a value, None if there is none."""

    def commit(self, rows: Rows) -> None:
        """Put and remove, all or nothing; durable when it returns. OSError: nothing was changed."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All rows whose key begins so, in order."""


class LmdbTable:
    """A `Table` in LMDB."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._env = lmdb.open(str(folder), map_size=MAP_BYTES, max_readers=64, mode=0o600)

    def get(self, key: bytes) -> bytes | None:
        """See `Table`."""
        with self._env.begin() as transaction:
            value = transaction.get(key)
        return bytes(value) if value is not None else None

    def commit(self, rows: Rows) -> None:
        """See `Table`."""
        try:
            with self._env.begin(write=True) as transaction:
                for key, value in rows.items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        except lmdb.Error as error:
            raise OSError(errno.EIO, str(error)) from error

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `Table`."""
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(prefix):
                return
            for key, value in cursor:
                if not bytes(key).startswith(prefix):
                    return
                yield bytes(key), bytes(value)

    def close(self) -> None:
        """Close it."""
        self._env.close()


class Marks:
    """The rows as values. Reads are current; what is to be written goes through `Table.commit` as rows."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def mark(self, key: Key) -> Mark | None:
        """Return a column's durable mark."""
        value = self.table.get(mark_row(key))
        return msgspec.msgpack.decode(value, type=Mark) if value is not None else None

    def fence(self, ino: int) -> Fence:
        """Return a file's fence; (0, 0) if none was put up."""
        value = self.table.get(fence_row(ino))
        return msgspec.msgpack.decode(value, type=Fence) if value is not None else Fence()

    def is_gone(self, ino: int) -> bool:
        """Whether the file was deleted here."""
        return self.table.get(gone_row(ino)) is not None

    def marks(self) -> Iterator[tuple[Key, Mark]]:
        """All marks."""
        for key, value in self.table.scan(b"m"):
            yield Key(*_COLUMN.unpack(key[1:])), msgspec.msgpack.decode(value, type=Mark)

    def gone(self) -> Iterator[tuple[int, int]]:
        """Deleted files: (ino, seconds since 1970)."""
        for key, value in self.table.scan(b"t"):
            yield _INO.unpack(key[1:])[0], _INO.unpack(value)[0]

    def damage(self) -> Iterator[DamageRow]:
        """All damage rows."""
        for _key, value in self.table.scan(b"d"):
            yield msgspec.msgpack.decode(value, type=DamageRow)


def encode(value: msgspec.Struct) -> bytes:
    """Encode a value of a row."""
    return msgspec.msgpack.encode(value)


def encode_time(at_s: int) -> bytes:
    """Encode the time of a `t` row."""
    return _INO.pack(at_s)
