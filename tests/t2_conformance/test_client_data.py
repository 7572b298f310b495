"""Claims about the data path of a mount without any server: an OSD that is reached late, and leases that come and go meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from xtreemos.xtreemfs.client.data import FileData
from xtreemos.xtreemfs.client.inodes import Inode
from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.client.store import DataStore
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import Attr, Layout, Replica
from xtreemos.xtreemfs.protocol import Rights
from xtreemos.xtreemfs.striping import Answer, Buffer, OsdConnections

pytestmark = pytest.mark.log_warnings("unwritten bytes of inode 7 are lost|could not be written")


class LateOsd(OsdConnections):
    """An OSD that is reached when it is told to be; it keeps what it was sent."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.refusal = 0
        self.got: list[tuple[bytes, bytes]] = []
        """Rows of (session token, bytes)."""

    async def call(
        self, node: str, method: str, message: Callable[[], Any], *, tail: Buffer = b"", want_tail: bool = False
    ) -> Answer:
        await self.reached.wait()
        if self.refusal:
            raise FuseError(self.refusal)
        self.got.append((message().rights.session, bytes(tail)))
        return Answer(["boot", len(tail), 8], b"", [])


class Lease:
    """What the data path asks of leases, and what it told."""

    def __init__(self) -> None:
        self.token = b"first"
        self.given_up = 0

    def generation(self, _ino: int) -> int:
        return 1

    def rights(self, _inode: Inode) -> Rights:
        return Rights(b"", self.token)

    def fenced(self, _inode: Inode, _epoch: int) -> None:
        raise AssertionError("nobody fences here")

    def gave_up(self, _inode: Inode) -> None:
        self.given_up += 1


def opened() -> tuple[FileData, LateOsd, Lease]:
    osd, lease = LateOsd(), Lease()
    inode = Inode(7, Attr(7, 0o100644, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1))
    inode.layout = Layout(1, 1 << 20, (Replica(("n1",)),))
    return FileData(inode, DataStore(osd, lambda _ino: lease, Ledger())), osd, lease


def test_bytes_that_were_given_up_never_go_out_under_a_later_lease():
    async def scene() -> None:
        data, osd, lease = opened()
        data.write(0, b"old")
        data.pump(full_only=False)
        await asyncio.sleep(0)  # the piece waits for its OSD now
        data.fail(errno.EIO)
        lease.token = b"second"
        data.write(0, b"new")
        osd.reached.set()
        await data.flush()
        await data.settle()
        assert osd.got == [(b"second", b"new")]
        assert data.errors == 1

    asyncio.run(scene())


def test_one_piece_that_fails_voids_the_file_s_others_and_is_told_once():
    async def scene() -> None:
        data, osd, lease = opened()
        for offset in (0, 10_000, 20_000):
            data.write(offset, b"x")
        data.pump(full_only=False)
        osd.refusal = errno.ETIMEDOUT
        osd.reached.set()
        await data.flush()
        await data.settle()
        assert (data.errors, data.error, lease.given_up) == (1, errno.EIO, 1)
        assert not data.dirty

    asyncio.run(scene())
