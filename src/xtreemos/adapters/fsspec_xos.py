"""`xos://VOLUME/path` for fsspec (pandas, dask, pyarrow, zarr ...): the mounted files of the grid under names that mean the same on every node.

It works on the mount, as the local file system does, so all that POSIX promises holds here as well (coherence included). What it adds: the names,
and transactions that commit by renaming within the folder, so each file appears whole or not at all.

    fsspec.open("xos://data/table.csv")                  # the job's VO, the account's, or the only one of this machine
    fsspec.filesystem("xos", vo="physics")               # said
"""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

MOUNTS = Path("/xos")
PART_PREFIX = ".xos-part-"


class XosFileSystem(DirFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The volumes of one VO. Paths are `VOLUME/path`; the root lists the volumes."""

    protocol = "xos"
    cachable = True

    def __init__(self, vo: str | None = None, mount: str | None = None, auto_mkdir: bool = False, **storage_options: Any) -> None:
        """Make it.

        Args:
            vo: which VO; by default the job's, the account's, or the only one that is mounted here.
            mount: folder to take for the root, in place of /xos/VO.
            auto_mkdir: make missing folders when a file is opened for writing.
            storage_options: as every fsspec file system takes them.

        Raises:
            FileNotFoundError: the VO's files are not mounted on this machine. ValueError: there are several VOs here and none was named.
        """
        root = mount or str(MOUNTS / (vo or _find_vo()))
        if not os.path.isdir(root):
            raise FileNotFoundError(f"{root}: the grid's files are not mounted on this machine")
        inner = _Files(auto_mkdir=auto_mkdir, skip_instance_cache=True)  # its own: transactions are kept in it
        super().__init__(path=os.path.realpath(root), fs=inner, **storage_options)
        self.vo = vo

    def _join(self, path: Any) -> Any:
        """Keep a slash at the end: to copy to `folder/` means into it."""
        joined = super()._join(path)
        return f"{joined}/" if isinstance(path, str) and path.endswith("/") and not joined.endswith("/") else joined

    @property
    def fsid(self) -> str:
        """One VO's files are the same from every node."""
        return f"xos_{self.path}"

    @property
    def transaction(self) -> Any:
        """A context: files opened for writing in it appear together at its end, each by a rename, or (an exception) not at all."""
        return self.fs.transaction

    def start_transaction(self) -> Any:
        """Begin a transaction without a context."""
        return self.fs.start_transaction()

    def end_transaction(self) -> None:
        """Commit it."""
        self.fs.end_transaction()

    def link(self, src: str, dst: str, **kwargs: Any) -> None:
        """Make a hard link (within a volume)."""
        self.fs.link(self._join(src), self._join(dst), **kwargs)

    def symlink(self, src: str, dst: str, **kwargs: Any) -> None:
        """Make a symbolic link; it is relative, so that it leads to the same file from every mount."""
        target = self._join(dst)
        os.symlink(os.path.relpath(self._join(src), os.path.dirname(target)), target, **kwargs)

    def islink(self, path: str) -> bool:
        """Whether it is a symbolic link."""
        return bool(self.fs.islink(self._join(path)))

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is something of that name, a dangling link included."""
        return bool(self.fs.lexists(self._join(path), **kwargs))

    def chmod(self, path: str, mode: int) -> None:
        """Change permission bits."""
        self.fs.chmod(self._join(path), mode)

    def local_path(self, path: str) -> str:
        """Return the path for programs that know nothing of fsspec."""
        return cast("str", self._join(path))


class _Files(LocalFileSystem):  # type: ignore[misc]
    """The local file system with openers whose transactions stay in the folder."""

    protocol = ("xos-mounted",)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        del block_size
        path = self._strip_protocol(path)
        if self.auto_mkdir and any(letter in mode for letter in "wxa"):
            self.makedirs(self._parent(path), exist_ok=True)
        return _Opener(path, mode, fs=self, **kwargs)


class _Opener(LocalFileOpener):  # type: ignore[misc]
    """An open file. In a transaction it is written beside its place, and takes it by a rename."""

    f: Any
    temp: str

    def _open(self) -> None:
        first = self.f is None or self.f.closed
        if not first or self.autocommit or "w" not in self.mode:
            super()._open()
            return
        folder, name = os.path.split(self.path)
        descriptor, self.temp = tempfile.mkstemp(dir=folder, prefix=f"{PART_PREFIX}{name[:64]}-")
        mask = os.umask(0o077)
        os.umask(mask)
        os.fchmod(descriptor, 0o666 & ~mask)
        self.f = os.fdopen(descriptor, self.mode)

    def commit(self) -> None:
        """Let it appear under its name, whole and on the disks of the object servers."""
        if self.autocommit:
            raise RuntimeError("this file is in no transaction")
        self.f.close()
        descriptor = os.open(self.temp, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(self.temp, self.path)

    def discard(self) -> None:
        """Forget it."""
        if self.autocommit:
            raise RuntimeError("this file is in no transaction")
        self.f.close()
        os.remove(self.temp)


def _find_vo() -> str:
    """Tell which VO is meant where none is named."""
    named = os.environ.get("XOS_VO")
    here = sorted(entry.name for entry in os.scandir(MOUNTS) if entry.is_dir()) if MOUNTS.is_dir() else []
    if named:
        return named
    account = _account().rpartition(".")[2]
    if account in here:
        return account
    if len(here) == 1:
        return here[0]
    if not here:
        raise FileNotFoundError(f"{MOUNTS}: the grid's files are not mounted on this machine")
    raise ValueError(f"this machine is in several VOs ({', '.join(here)}): say vo=")


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


fsspec.register_implementation("xos", XosFileSystem, clobber=True)
