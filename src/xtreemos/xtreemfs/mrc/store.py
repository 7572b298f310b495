"""The MRC's store on disk: LMDB in one long write transaction, and the log that stands between its commits.

A command is applied to the transaction and appended to the log; it may be answered when the log is on the disk. Now and then the
transaction is committed (its number, `schema.SEQ`, goes with it) and the log before it is trimmed. After a crash LMDB is as it was at
its last commit, and the log is played again: the same commands in the same order, so the same state. Keys: see `schema`.

Synchronous, and one process only (a lock on the folder): when to sync and commit is the driver's business.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import Final, Protocol

import lmdb

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import log as logs
from xtreemos.xtreemfs.mrc import machine, schema
from xtreemos.xtreemfs.mrc.disk import Disk, FolderDisk
from xtreemos.xtreemfs.mrc.errors import ChangeUnknown, FolderInUse, StoreBroken
from xtreemos.xtreemfs.mrc.kv import Kv, Row
from xtreemos.xtreemfs.mrc.namespace import Moved

log = logging.getLogger(__name__)

MAP_BYTES: Final = 256 << 30  # address space, not disk: the file grows as it is needed
RESERVE_BYTES: Final = 256 << 20  # less free space than this, and nothing may be added
LAST_RESERVE_BYTES: Final = 64 << 20  # and less than this, and nothing may be changed: removing writes too
SPACE_CHECK_COMMANDS: Final = 256  # between looks at the free space; a command writes some KiB at most, xattrs aside
_GROWING: Final = (do.Create, do.Link, do.SetXattr, do.MakeVolume, do.Principals)


class Base(Kv, Protocol):
    """A store below the log: what is in it is durable after `commit`."""

    def commit(self) -> None:
        """Make everything put so far durable, all or nothing."""

    def close(self) -> None:
        """Drop what was not committed."""


class LmdbKv:
    """A `Base` in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One writer, no readers beside it (the folder is locked by `Store`); durable commits; pages are read at random.
        self._env = lmdb.open(str(folder), map_size=MAP_BYTES, max_readers=2, readahead=False, mode=0o600, metasync=True, sync=True)
        self._begin()

    def _begin(self) -> None:
        self._txn = self._env.begin(write=True, buffers=False)
        self._cursor = self._txn.cursor()

    def get(self, key: bytes) -> bytes | None:
        """See `Kv`."""
        return self._txn.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """See `Kv`."""
        self._txn.put(key, value)

    def delete(self, key: bytes) -> None:
        """See `Kv`."""
        self._txn.delete(key)

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See `Kv`."""
        rows: list[Row] = []
        if limit <= 0 or not self._cursor.set_range(start):
            return rows
        for key, value in self._cursor.iternext(keys=True, values=True):
            if key >= end:
                break
            rows.append((key, value))
            if len(rows) >= limit:
                break
        return rows

    def commit(self) -> None:
        """See `Base`."""
        try:
            self._txn.commit()
        except lmdb.Error as error:
            raise StoreBroken(f"the MRC's store cannot be written: {error}", "look at its disk, then start it again") from error
        self._begin()

    def close(self) -> None:
        """See `Base`."""
        self._txn.abort()
        self._env.close()


class Store:
    """The state and its log. `execute` changes it, `sync` makes what was executed durable, `commit` shortens the next start."""

    def __init__(
        self, base: Base, disk: Disk, *, segment_bytes: int = logs.SEGMENT_BYTES, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Recover.

        Raises:
            LogDamaged, StoreBroken: it cannot go on from what is there; nothing was changed.
        """
        self.kv = base
        self._base = base
        self._disk = disk
        self._reserve_bytes = reserve_bytes
        self._free_bytes = disk.free_bytes()
        self._until_check = SPACE_CHECK_COMMANDS
        found = logs.recover(disk)
        self.torn = found.torn
        """A tail that a crash left and recovery cut off: commands that nobody was told were done."""
        self.committed = machine.last_seq(base)
        """Number of the last command in the last commit."""
        self.replayed = self._replay(found.records)
        """How many commands of the log were applied again."""
        self.seq = machine.last_seq(base)
        """Number of the last command executed."""
        self._log = logs.Log(disk, self.seq, segment_bytes=segment_bytes)
        self._log.trim(self.committed)
        if found.torn is not None:
            log.warning(
                "the log's torn tail was cut: %d bytes of %s, from command %d on",
                found.torn.bytes,
                found.torn.segment,
                found.torn.seq,
            )

    def _replay(self, records: list[logs.Record]) -> int:
        if self.committed and records and records[0].seq > self.committed + 1:
            raise StoreBroken(
                f"the log begins with command {records[0].seq}, the store ends with {self.committed}", "commands between are lost"
            )
        done = 0
        for record in records:
            if record.seq <= self.committed:
                continue
            try:
                machine.apply(self.kv, record.seq, do.decode(record.payload))
            except (FsError, ChangeUnknown, Moved) as error:
                raise StoreBroken(
                    f"command {record.seq} of the log does not fit the store: {error}", "run the MRC's fsck"
                ) from error
            done += 1
        if done:
            self._base.commit()
            self.committed += done
        return done

    @property
    def durable(self) -> int:
        """Number of the last command that is on the disk."""
        return self._log.durable

    def execute(self, command: do.Command) -> machine.Outcome:
        """Apply a command and append it to the log.

        Raises:
            FsError, ChangeUnknown: refused (ENOSPC: the MRC's disk is too full for it); nothing changed. Moved: see `machine.apply`.
            StoreBroken: the process must end.
        """
        payload = do.encode(command)
        self._check_room(command, len(payload))
        outcome = machine.apply(self.kv, self.seq + 1, command)
        self.seq = self._log.append(payload)
        return outcome

    def _check_room(self, command: do.Command, size: int) -> None:
        self._until_check -= 1
        if self._until_check <= 0:
            self._until_check = SPACE_CHECK_COMMANDS
            self._free_bytes = self._disk.free_bytes()
        if self._free_bytes < self._reserve_bytes:
            self._until_check = 0  # so near the end look each time: room may be made, or go
            last = min(LAST_RESERVE_BYTES, self._reserve_bytes // 4)
            if isinstance(command.change if isinstance(command, do.Once) else command, _GROWING) or self._free_bytes < last:
                raise FsError(errno.ENOSPC, "the metadata server's disk is full", "remove files, or give it a larger disk")
        try:
            self._log.reserve(size)
        except OSError as error:
            raise FsError(errno.ENOSPC, "the metadata server's disk is full", "remove files, or give it a larger disk") from error

    def sync(self) -> None:
        """Return when all executed commands are on the disk; StoreBroken: the process must end."""
        self._log.sync()

    @property
    def log(self) -> logs.Log:
        """The log, for syncing in a thread (`take`, `write_out`)."""
        return self._log

    def commit(self) -> None:
        """Make the store durable as it is now, and trim the log. Log first: the store must never be ahead of it."""
        self.sync()
        self._base.commit()
        self.committed = self.seq
        self._log.trim(self.committed)

    def close(self) -> None:
        """Commit and close. After StoreBroken it only closes."""
        try:
            self.commit()
            self._log.close()
        finally:
            self._base.close()


class Lock:
    """The right to use an MRC's folder, until `close` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Take it; FolderInUse: another process has it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise FolderInUse(f"another process uses {folder}", "is this MRC running already?") from error

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)


def open_store(folder: Path) -> Store:
    """Open (or begin) the store in `folder`: `db/` and `log/`. The caller holds its `Lock`.

    Raises:
        LogDamaged, StoreBroken: see `Store`; also if the store has a format of another version.
    """
    base = LmdbKv(folder / "db")
    held = base.get(schema.FORMAT_KEY)
    if held is None:
        base.put(schema.FORMAT_KEY, schema.FORMAT)
        base.commit()
    elif held != schema.FORMAT:
        base.close()
        raise StoreBroken(f"the store in {folder} has format {held!r}, this program knows {schema.FORMAT!r}")
    try:
        return Store(base, FolderDisk(folder / "log"))
    except BaseException:
        base.close()
        raise
