"""Extended attributes that are no attributes but questions and orders to the file system: `user.xtreemfs.*` (and `xtreemfs.*`).

They are listed nowhere, so that tools which copy attributes do not meet them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import Level, volume_of

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.base import Base
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.client.inodes import Inode

PREFIXES = (b"user.xtreemfs.", b"xtreemfs.")
READABLE = ("layout", "osds", "lease", "epoch", "volume", "mrc", "ino", "dirty", "width", "passthrough")
WRITABLE = ("lease", "flush")


def is_magic(name: bytes) -> bool:
    """Whether a name is one of ours."""
    return name.startswith(PREFIXES)


def _plain(name: bytes) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :].decode("ascii", "replace")
    return ""


async def read(ops: Base, ino: int, q: m.GetXattr) -> bytes:
    """Answer a question about an inode as text. FuseError(ENODATA): there is no such question, or no answer for this kind of inode."""
    client = ops.client
    what = _plain(q.name)
    if what not in READABLE:
        raise FuseError(errno.ENODATA)
    session = client.session_of(ino)
    inode = client.inodes.get(ino)
    if inode is None or (inode.attr.is_file and inode.layout is None):  # else nobody need be asked, who may be what is looked for
        inode = await ops.fresh_inode(session, ino, q)
    record = client.directory.state.volume_by_id(volume_of(ino))
    layout = inode.layout
    answers = {
        "lease": session.holder.level(ino).name.lower(),
        "epoch": str(session.holder.epoch(ino)),
        "volume": record.name if record is not None else "",
        "mrc": session.mrc,
        "ino": str(ino),
        "passthrough": _passthrough(client, inode),
        "dirty": str(inode.data.dirty.total_bytes if inode.data is not None else 0),
    }
    if layout is not None:
        answers["layout"] = msgspec.json.encode(
            {"version": layout.version, "object_bytes": layout.object_bytes, "replicas": [list(r.osds) for r in layout.replicas]}
        ).decode()
        answers["osds"] = " ".join(layout.replicas[0].osds)
        answers["width"] = str(len(layout.replicas[0].osds))
    if what not in answers:
        raise FuseError(errno.ENODATA)
    return answers[what].encode()


def _passthrough(client: Client, inode: Inode) -> str:
    """Whether programs that have it open read the OSD's file itself."""
    if inode.backing is not None:
        return "yes"
    return f"no: {client.passthrough.refused}" if client.passthrough.refused else "no"


async def write(ops: Base, ino: int, q: m.SetXattr) -> None:
    """Carry out an order: `lease` = "none" gives the lease back, `flush` = anything sends what is unwritten."""
    client = ops.client
    what = _plain(q.name)
    if what not in WRITABLE:
        raise FuseError(errno.EPERM if what in READABLE else errno.ENODATA)
    session = client.session_of(ino)
    inode = await ops.fresh_inode(session, ino, q)
    if inode.data is not None:
        await inode.data.flush()
    if what == "lease":
        if q.value.strip() != Level.NONE.name.lower().encode():
            raise FuseError(errno.EINVAL)
        session.feed(h.Give((ino,)))
