"""`xos fs stat`: the magic attributes of a file (see xtreemfs/client/magic.py) beside what stat(2) says. Works for whoever may read it."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtreemos.cli import fs_text
from xtreemos.errors import PermissionRefused, UsageError, XosError

PREFIX = "user.xtreemfs."
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def look(path: Path) -> dict[str, Any]:
    """Return what there is to know of a path.

    Raises:
        UsageError: there is no such file, or it is not in the grid. PermissionRefused: it may not be read.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
        volume = _ask(path, "volume")
    except OSError as error:
        raise _refused(path, error) from error
    if volume is None:
        raise UsageError(f"{path} is not in the grid's files", "those are below /xos and the homes that are there")
    layout = _ask(path, "layout")
    return {
        "path": str(path),
        "kind": _KINDS.get(stat.S_IFMT(status.st_mode), "other"),
        "volume": volume,
        "ino": status.st_ino,
        "owner": _name(pwd.getpwuid, status.st_uid),
        "group": _name(grp.getgrgid, status.st_gid),
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "size": status.st_size,
        "allocated": status.st_blocks * 512,
        "links": status.st_nlink,
        "mtime": status.st_mtime,
        "mrc": _ask(path, "mrc"),
        "lease": _ask(path, "lease"),
        "epoch": _number(_ask(path, "epoch")),
        "dirty_bytes": _number(_ask(path, "dirty")),
        "passthrough": _ask(path, "passthrough"),
        "layout": json.loads(layout) if layout else None,
    }


def _ask(path: Path, what: str) -> str | None:
    """Return one magic attribute, None if this kind of file has none."""
    try:
        return os.getxattr(path, PREFIX + what, follow_symlinks=False).decode()
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):  # EPERM: user.* of what is no file or folder
            return None
        raise


def _refused(path: Path, error: OSError) -> XosError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionRefused(f"you may not look at {path}", "ask its owner")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UsageError(f"there is no {path}")
    if error.errno == errno.ESTALE:
        return UsageError(f"{path} is in no volume", "name a file or folder below /xos/VO/VOLUME")
    return XosError(f"{path} cannot be looked at: {(error.strerror or str(error)).lower()}", "see `xos fs top`")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None else None


def _name(find: Callable[[int], Any], number: int) -> str:
    try:
        return str(find(number)[0])
    except KeyError:
        return str(number)


def text_of(row: dict[str, Any]) -> str:
    """Return it for people."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["mtime"]))
    lines = [
        f"{row['path']}: {row['kind']} in volume {row['volume']}",
        f"  owner    {row['owner']}, group {row['group']}, mode {row['mode']}, {row['links']} links",
        f"  size     {row['size']} bytes ({fs_text.size(row['allocated'])} allocated), changed {when}",
        f"  inode    {row['ino']:x} at the metadata server on {row['mrc']}",
        f"  lease    {row['lease']} on this node" + (f", epoch {row['epoch']}" if row["epoch"] else ""),
    ]
    if row["layout"]:
        copies = row["layout"]["replicas"]
        width = len(copies[0])
        striped = f"{width} columns of {fs_text.size(row['layout']['object_bytes'])} objects" if width > 1 else "whole"
        lines.append(f"  layout   {striped}, version {row['layout']['version']}")
        lines += [f"  data on  {' '.join(osds)}" for osds in copies]
    if row.get("passthrough") not in (None, "no"):
        lines.append(f"  kernel   reads the object server's file by itself: {row['passthrough']}")
    if row["dirty_bytes"]:
        lines.append(f"  unsent   {fs_text.size(row['dirty_bytes'])} written here and not yet at the object servers")
    return "\n".join(lines)
