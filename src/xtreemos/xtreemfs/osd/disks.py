"""The folders that an OSD keeps its columns in: each knows which OSD it belongs to and which others belong with it.

Without that a disk that is not mounted would look like an empty one, and every file on it like a hole.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xtreemos.errors import XosError
from xtreemos.foundation.files import write_atomically
from xtreemos.xtreemfs.osd.files import RealDisk
from xtreemos.xtreemfs.osd.marks import LmdbTable, Marks
from xtreemos.xtreemfs.osd.shelf import Shelf

NAME_FILE = "osd-disk.json"
LOCKED_FILE = "locked"
"""A disk whose folder has a file of this name gets no new bytes; put there by an administrator."""


class DiskRefused(XosError):
    """A folder given to an OSD is another OSD's, is in use, or one that belongs with it is missing. Nothing was started."""

    fault = "environment"
    code = "osd-disk"


class DiskName(msgspec.Struct, frozen=True):
    """What stands in a disk's folder."""

    vo: str
    node: str
    id: str
    together: tuple[str, ...]
    """Ids of all disks of this OSD."""


class Disks:
    """The disks of one OSD, opened. `shelves` are in the order of their ids, which is the same at every start."""

    def __init__(self, folders: Sequence[Path], *, vo: str, node: str) -> None:
        self._locks: list[int] = []
        self.folders = list(folders)
        try:
            names = {folder: self._name(folder, vo, node) for folder in folders}
            self._join(names)
        except DiskRefused:
            self._unlock()
            raise
        ordered = sorted(folders, key=lambda folder: names[folder].id)
        self.tables = [LmdbTable(folder / "marks") for folder in ordered]
        self.disks = [RealDisk(folder / "columns") for folder in ordered]
        self.shelves = [Shelf(disk, Marks(table)) for disk, table in zip(self.disks, self.tables, strict=True)]

    @staticmethod
    def _join(names: dict[Path, DiskName]) -> None:
        """Refuse disks of which one is missing; let each know all others."""
        known = {name.id for name in names.values()}
        for folder, name in names.items():
            missing = sorted(set(name.together) - known)
            if missing:
                raise DiskRefused(
                    f"disk {missing[0]} of this OSD is missing: {folder} knows it", "mount it, or its files would seem to be empty"
                )
        for folder, name in names.items():
            if set(name.together) != known:
                named = msgspec.structs.replace(name, together=tuple(sorted(known)))
                write_atomically(folder / NAME_FILE, msgspec.json.encode(named))

    def _name(self, folder: Path, vo: str, node: str) -> DiskName:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DiskRefused(f"another OSD runs on {folder}") from error
        path = folder / NAME_FILE
        if not path.exists():
            if (folder / "columns").exists():
                raise DiskRefused(f"{folder} has columns but no {NAME_FILE}", "restore that file")
            made = DiskName(vo, node, secrets.token_hex(8), ())
            write_atomically(path, msgspec.json.encode(made))
            return made
        name = msgspec.json.decode(path.read_bytes(), type=DiskName)
        if (name.vo, name.node) != (vo, node):
            raise DiskRefused(f"{folder} belongs to the OSD of {name.node} in VO {name.vo}")
        return name

    def locked(self) -> bool:
        """Whether an administrator locked one of the disks."""
        return any((folder / LOCKED_FILE).exists() for folder in self.folders)

    def close(self) -> None:
        """Close tables and folders."""
        for table in self.tables:
            table.close()
        for disk in self.disks:
            disk.close()
        self._unlock()

    def _unlock(self) -> None:
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
