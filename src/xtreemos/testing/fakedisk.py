"""A disk and a table in memory that lose power: what was not synced is forgotten, kept, torn into sectors or reordered, as a seed says.

`FakeDisk` and `FakeTable` pass the same tests as the real ones (`osd.files`, `osd.marks`). `fuse_ops` counts down with each operation; at
zero the operation is carried out in part and `PowerCut` is raised, then `after_power_cut` gives the disk that the next start finds.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from xtreemos.xtreemfs.osd.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, Buffer, File
from xtreemos.xtreemfs.osd.marks import Rows

SECTOR_BYTES = 512


class PowerCut(BaseException):  # not an Exception: no code may catch it and go on
    """The power is gone."""


@dataclass(eq=False)
class _Inode:
    now: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(where, bytes) of writes, (length, None) of truncates, since the last sync."""


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        if at < len(content):
            del content[at:]
        content.extend(bytes(at - len(content)))
        return
    if len(content) < at + len(data):
        content.extend(bytes(at + len(data) - len(content)))
    content[at : at + len(data)] = data


class Power:
    """Shared by a disk and a table: when the power goes, and how what was under way is torn."""

    def __init__(self, seed: int, fuse_ops: int = -1) -> None:
        self.random = random.Random(seed)
        self.fuse_ops = fuse_ops
        self.count = 0

    def step(self) -> bool:
        """One operation begins; returns whether it is the last, to be done in part."""
        self.count += 1
        self.fuse_ops -= 1
        return self.fuse_ops == 0


class FakeFile:
    """See `osd.files.File`."""

    def __init__(self, disk: FakeDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode
        self._open = True

    def pread(self, length: int, at: int, *, wait: bool = True) -> bytes | None:  # noqa: ARG002  # memory never waits
        """See `File`."""
        assert self._open, "a read of a closed file"
        if self._disk.bad_reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self._inode.now[at : at + length])

    def _change(self, at: int, data: bytes | None) -> None:
        assert self._open, "a change of a closed file"
        if self._disk.power.step():
            if data is not None:
                cut = self._disk.power.random.randrange(len(data) + 1)
                _apply(self._inode.now, at, data[:cut])
                self._inode.pending.append((at, data[:cut]))
            raise PowerCut
        _apply(self._inode.now, at, data)
        self._inode.pending.append((at, data))

    def pwrite(self, data: Buffer, at: int) -> None:
        """See `File`. With `room_bytes` too small a part is written before ENOSPC."""
        more = max(0, at + len(data) - len(self._inode.now))
        if more > self._disk.room_bytes:
            some = bytes(data)[: max(0, len(data) - more + self._disk.room_bytes)]
            if some:
                self._change(at, some)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.room_bytes -= more
        self._change(at, bytes(data))

    def truncate(self, length: int) -> None:
        """See `File`."""
        self._change(length, None)

    def allocate(self, mode: int, at: int, length: int) -> None:
        """See `File`."""
        size = len(self._inode.now)
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            end = min(at + length, size)
            if at < end:
                self._change(at, bytes(end - at))
        elif not mode & FALLOC_KEEP_SIZE and at + length > size:
            self._change(at + length, None)

    def seek(self, at: int, whence: int) -> int:
        """See `File`; all bytes are data."""
        if at >= len(self._inode.now):
            return -1
        return at if whence == os.SEEK_DATA else len(self._inode.now)

    def size(self) -> tuple[int, int]:
        """See `File`."""
        return len(self._inode.now), -(-len(self._inode.now) // 512)

    def sync(self) -> None:
        """See `File`. With `bad_syncs` it fails, and the kernel forgets, as a real one does, that anything was to be written."""
        if self._disk.power.step():
            raise PowerCut
        if self._disk.bad_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._disk.sync_inode(self._inode)

    def close(self) -> None:
        """See `File`."""
        self._open = False


class FakeDisk:
    """See `osd.files.Disk`."""

    def __init__(self, power: Power) -> None:
        self.power = power
        self.names: dict[str, _Inode] = {}
        self.durable_names: dict[str, _Inode] = {}
        self.room_bytes = 1 << 40
        self.bad_reads = False
        self.bad_syncs = False

    def sync_inode(self, inode: _Inode) -> None:
        """Make a file's bytes durable."""
        inode.durable = bytearray(inode.now)
        inode.pending.clear()

    def open(self, name: str, *, create: bool) -> File | None:
        """See `Disk`."""
        if name not in self.names:
            if not create:
                return None
            if self.power.step():
                raise PowerCut
            self.names[name] = _Inode()
        return FakeFile(self, self.names[name])

    def unlink(self, name: str) -> int | None:
        """See `Disk`."""
        if name not in self.names:
            return None
        if self.power.step():
            raise PowerCut
        return len(self.names.pop(name).now)

    def sync_names(self, folder: str) -> None:
        """See `Disk`."""
        if self.power.step():
            raise PowerCut
        kept = {name: inode for name, inode in self.durable_names.items() if not name.startswith(f"{folder}/")}
        self.durable_names = kept | {name: inode for name, inode in self.names.items() if name.startswith(f"{folder}/")}

    def sync_all(self) -> None:
        """See `Disk`."""
        if self.power.step():
            raise PowerCut
        for inode in self.names.values():
            self.sync_inode(inode)
        self.durable_names = dict(self.names)

    def walk(self) -> Iterator[tuple[str, int]]:
        """See `Disk`."""
        yield from [(name, len(inode.now)) for name, inode in self.names.items()]

    def is_lent(self, _name: str) -> bool:
        """See `Disk`; nobody else is here."""
        return False

    def space(self) -> tuple[int, int]:
        """See `Disk`."""
        return 1 << 41, self.room_bytes

    def after_power_cut(self, power: Power, *, process_only: bool = False) -> FakeDisk:
        """Return the disk that the next start finds. `process_only`: the kernel lived on, with all it was given and did not write yet."""
        found = FakeDisk(power)
        if process_only:
            found.names, found.durable_names = self.names, self.durable_names
            return found
        chance = self.power.random
        for name in sorted(set(self.names) | set(self.durable_names)):
            now, durable = self.names.get(name), self.durable_names.get(name)
            inode = now if now is durable or chance.random() < 0.5 else durable
            if inode is None:
                continue
            content = _torn(inode, chance)
            found.names[name] = found.durable_names[name] = _Inode(content, bytearray(content))
        return found


def _torn(inode: _Inode, chance: random.Random) -> bytearray:
    """What of a file's unsynced operations reached the disk: any subset, in any order, writes by sectors."""
    content = bytearray(inode.durable)
    steps: list[tuple[int, bytes | None]] = []
    keep = chance.choice((0.0, 0.3, 0.7, 1.0))
    for at, data in inode.pending:
        if data is None:
            steps.append((at, None))
            continue
        edge = at - at % SECTOR_BYTES
        for begin in range(edge, at + len(data), SECTOR_BYTES):
            first, last = max(at, begin), min(at + len(data), begin + SECTOR_BYTES)
            steps.append((first, data[first - at : last - at]))
    if chance.random() < 0.3:
        chance.shuffle(steps)
    for at, piece in steps:
        if chance.random() < keep:
            _apply(content, at, piece)
    return content


class FakeTable:
    """See `osd.marks.Table`: a commit is all or nothing, also when the power goes in its midst."""

    def __init__(self, power: Power, rows: dict[bytes, bytes] | None = None) -> None:
        self.power = power
        self.rows = dict(rows or {})
        self.full = False

    def get(self, key: bytes) -> bytes | None:
        """See `Table`."""
        return self.rows.get(key)

    def commit(self, rows: Rows) -> None:
        """See `Table`."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        last = self.power.step()
        if last and self.power.random.random() < 0.5:
            raise PowerCut
        for key, value in rows.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        if last:
            raise PowerCut

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `Table`."""
        yield from sorted((key, value) for key, value in self.rows.items() if key.startswith(prefix))
