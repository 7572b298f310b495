"""Where homes appear on this node: binds of volumes over `/home/USER.VO`, told from the kernel's list of mounts.

A place without its home is a folder that nobody can write, so that nothing is ever written beside the home. Nothing here asks the file
system itself for more than the root of a mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from xtreemos.errors import PermissionRefused
from xtreemos.names import unix_name

HOMES = Path("/home")
MOUNTINFO = Path("/proc/self/mountinfo")
FS_TYPE = "fuse.xtreemfs"
PLACE_MODE = 0o555
STACK_MAX = 16  # mounts over one another at one place
_MS_BIND = 4096
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


def make_place(place: Path) -> None:
    """Make the empty folder over which a home is mounted."""
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=PLACE_MODE)


def place_of(user: str, vo: str, _uid: int) -> Path:
    """Make the place of a user's home, without the home; return it."""
    place = HOMES / unix_name(user, vo)
    make_place(place)
    return place


def bind_home(source: Path, place: Path) -> None:
    """Show `source` at `place`, unless it is there already; a dead mount of an earlier mount process is taken away first.

    A path to `source` is walked only if there is something to do: after another node changed names, the kernel drops and finds anew what a walk
    passes, and for that moment programs that work in the home have no working folder (getcwd says ENOENT).
    """
    if is_bound(source, place):
        return
    wanted = source.stat()
    make_place(place)
    for _try in range(STACK_MAX):
        try:
            found = place.lstat()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        else:
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return
            if place.is_symlink() or not os.path.isdir(place):
                raise PermissionRefused(f"{place} is no folder", "the node's owner must move it away")
            if not os.path.ismount(place):
                break
        unbind(place)
    if _libc.mount(os.fsencode(source), os.fsencode(place), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def is_bound(source: Path, place: Path, mountinfo: str | None = None) -> bool:
    """Tell from the kernel's list whether `place` shows `source`, a folder right below a mount that is in use now."""
    mounts = {row[2]: row[:2] for row in _mounts(mountinfo)}  # of several at one place the last is on top
    (device, _root), here = mounts.get(str(source.parent), ("", "")), mounts.get(str(place))
    return here == (device, f"/{source.name}")


def _mounts(mountinfo: str | None) -> Iterator[tuple[str, str, str, str]]:
    """Rows of (device, root within it, place, type of file system)."""
    text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape") if mountinfo is None else mountinfo
    for line in text.splitlines():
        left, _dash, kind = line.partition(" - ")
        _id, _parent, device, root, place = left.split(" ")[:5]
        yield device, root, place, kind.split(" ")[0]


def unbind(place: Path) -> None:
    """Take the uppermost mount from a place, whoever uses it. OSError: none is there."""
    if _libc.umount2(os.fsencode(place), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def bound(vo: str, mountinfo: str | None = None) -> dict[str, bool]:
    """Tell whose homes of a VO are bound here: user -> whether it is the mount that is at /xos/VO now, and not one of a process that has ended.

    `mountinfo`: the kernel's text, read if None. The file system is not asked: one that has died may still answer from the kernel's cache.
    """
    devices: dict[str, str] = {}
    now = ""
    for device, _root, place, kind in _mounts(mountinfo):
        folder, _slash, name = place.rpartition("/")
        user, _dot, of_vo = name.rpartition(".")
        if place == f"/xos/{vo}":
            now = device
        elif folder == str(HOMES) and of_vo == vo and user and kind == FS_TYPE:
            devices[user] = device
    return {user: device == now for user, device in sorted(devices.items())}


def unbind_all(vo: str) -> None:
    """Take away every home of a VO from this node, and the places that were made for them; homes that are folders of this node stay."""
    while users := bound(vo):
        for user in users:
            with contextlib.suppress(FileNotFoundError):
                unbind(HOMES / unix_name(user, vo))
    for place in HOMES.glob(f"*.{vo}"):
        found = place.lstat()
        if found.st_uid == 0 and stat.S_IMODE(found.st_mode) == PLACE_MODE:
            with contextlib.suppress(OSError):  # not empty: somebody's own
                place.rmdir()
