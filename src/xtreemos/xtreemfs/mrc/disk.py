"""What the log needs of a disk, and the real one. Small on purpose: tests put a disk that loses power in its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class File(Protocol):
    """One open file of known size, written at offsets."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; in the kernel, not yet on the disk. OSError: nothing is known of what was written."""

    def sync(self) -> None:
        """Return when everything written is on the disk. OSError: nothing is known."""

    def resize(self, size: int) -> None:
        """Cut or extend by zeros, with the space allocated, durably. OSError(ENOSPC): no room, nothing changed."""

    def close(self) -> None:
        """Let go of it."""


class Disk(Protocol):
    """One folder of such files."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""

    def create(self, name: str, size: int) -> File:
        """Make a file of `size` zero bytes, space allocated, its name durable. OSError(ENOSPC): no room, nothing is left."""

    def open(self, name: str) -> File:
        """Open a file that exists."""

    def remove(self, name: str) -> None:
        """Remove a file; its name may come back after a power cut."""

    def free_bytes(self) -> int:
        """Return how much can still be written."""


class _RealFile:
    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def resize(self, size: int) -> None:
        held = os.fstat(self._fd).st_size
        if size < held:
            os.ftruncate(self._fd, size)
        elif size > held:
            os.posix_fallocate(self._fd, held, size - held)
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class FolderDisk:
    """A folder of the machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def names(self) -> list[str]:
        """See `Disk`."""
        return sorted(path.name for path in self._folder.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        """See `Disk`."""
        return (self._folder / name).read_bytes()

    def create(self, name: str, size: int) -> File:
        """See `Disk`."""
        path = self._folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        file = _RealFile(descriptor)
        try:
            file.resize(size)
        except OSError:
            file.close()
            path.unlink()
            raise
        self._sync_folder()
        return file

    def open(self, name: str) -> File:
        """See `Disk`."""
        return _RealFile(os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC))

    def remove(self, name: str) -> None:
        """See `Disk`."""
        (self._folder / name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """See `Disk`."""
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
