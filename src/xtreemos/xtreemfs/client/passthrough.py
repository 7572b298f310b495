"""Files of this node's own OSD, handed to the kernel: it reads and maps them past us, at the speed of the disk (FUSE passthrough).

A file of one column is byte for byte the OSD's file. When such a file is opened for reading and is open in no other way here, the OSD lends a
descriptor, the MRC is told (`Through`: from then on whoever writes the file anywhere writes through, so its bytes are at the OSD before the
program goes on), and the kernel gets it with the answer to the open. Sizes, times and rights stay ours. Nobody can take such an open back.

All opens of an inode that exist at the same time agree on the kernel's file or have none: the first one decides. So a program that opens
the file for writing beside such a reader gets it, too, but with FOPEN_DIRECT_IO: its reads and writes come to us. What it stores in a
shared mapping does not; for that (O_RDWR only) the OSD is told that its sums count for nothing until the file is closed. `docs/protocols/
xtreemfs-client.md` says what that means.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from xtreemos.errors import XosError
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.calls import answer_of
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.fuse.constants import InitFlag
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import Level

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.client.inodes import Inode
    from xtreemos.xtreemfs.client.session import Session

log = logging.getLogger(__name__)

SMALLEST_BYTES = 8 << 20  # of a file, by default: to hand it over and end that costs as much as a few MiB read through us
AGREE_S = 1.0  # an open waits so long for OSD and MRC, then it goes on without
CLOSED_S = 0.1  # after a close the kernel has let go of a file that is not mapped
LOOK_S = 2.0  # between looks whether a closed file is still mapped


@dataclass(eq=False, slots=True)
class Backing:
    """The OSD's file behind an inode, for as long as it is open here."""

    number: int
    """What the kernel calls it."""
    lent: int = -1
    """A descriptor for writing while a program may store into it by a mapping."""
    lent_ns: int = 0
    """When the file had been changed last before that."""


class Passthrough:
    """See the module. `smallest_bytes` of a file, None: never."""

    def __init__(self, client: Client, smallest_bytes: int | None = SMALLEST_BYTES) -> None:
        self._client = client
        self._smallest_bytes = smallest_bytes
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self.refused = "off" if smallest_bytes is None else ""
        """Why nothing is handed over; "": it is."""
        self.open = 0
        self.opened = 0
        self.mapped: dict[int, Inode] = {}
        """Closed, but perhaps still mapped: the MRC has not heard that it is over."""
        self._looking: asyncio.Future[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the kernel is to be asked for it when the mount begins."""
        return self._smallest_bytes is not None

    # ---------------------------------------------------------------------------------------------------------- for opens

    def pays(self, session: Session, inode: Inode, flags: int) -> bool:
        """Tell whether an open should have the kernel's own file: it only reads a large file of this node's OSD that is not open yet."""
        client, layout = self._client, inode.layout
        if self.refused or flags & (os.O_ACCMODE | os.O_DIRECT) or inode.handles or inode.backing is not None or layout is None:
            return False
        if self._smallest_bytes is None or inode.size < self._smallest_bytes or client.kernel is None or session.link.peer is None:
            return False
        osds = layout.replicas[0].osds
        if len(layout.replicas) != 1 or tuple(osds) != (client.directory.node,):
            return False
        if not client.kernel.negotiated.has(InitFlag.PASSTHROUGH):
            self.refused = "the kernel cannot (Linux 6.9 or newer)"
            return False
        return not _is_unwritten(inode)

    def lock(self, inode: Inode) -> asyncio.Lock:
        """Return what is held by the open that tries to get an inode's file handed over: the next one finds what came of it."""
        return self._locks.setdefault(inode.ino, asyncio.Lock())

    async def prepare(self, session: Session, inode: Inode) -> Backing | None:
        """Borrow the OSD's file, declare it to the MRC, register it with the kernel; None if it is not to be had now.

        To be called while an operation relies on READ. The caller says `begin` or `drop` before anything else can happen.
        """
        try:
            async with asyncio.timeout(AGREE_S):
                descriptor = await self._client.data_of(inode).striped.descriptor(write=False)
        except (TimeoutError, XosError) as error:
            log.debug("inode %x is not lent: %s", inode.ino, error)
            return None
        backing = None
        try:
            if os.fstat(descriptor).st_size == inode.size and await self._is_agreed(session, inode):
                backing = self._register(descriptor)
            return backing
        finally:
            os.close(descriptor)
            if backing is None:
                self._undeclare(session, inode)

    async def _is_agreed(self, session: Session, inode: Inode) -> bool:
        try:
            async with asyncio.timeout(AGREE_S):
                if not session.holder.is_agreed(inode.ino, Level.READ):  # it still is if the file was closed just now
                    await session.through(inode.ino, Level.READ)
        except TimeoutError:
            return False
        return session.can(inode.ino, Level.READ) and not inode.handles and not _is_unwritten(inode)

    def _register(self, descriptor: int) -> Backing | None:
        kernel = self._client.kernel
        assert kernel is not None, "an open came from it"
        try:
            return Backing(kernel.backing_open(descriptor))
        except OSError as error:
            self.refused = f"the kernel refuses the OSD's files: {_REASONS.get(error.errno or 0, error.strerror)}"
            log.warning("no passthrough: %s", self.refused)
            return None

    def begin(self, inode: Inode, backing: Backing) -> None:
        """From here on every open of the inode has this file of the kernel's, until the last one is closed."""
        inode.backing = backing
        self._client.ledger.pass_by(inode.ino, backing.number)
        self.open += 1
        self.opened += 1

    def restore(self, session: Session, inode: Inode, number: int) -> None:
        """A process before us has handed it over, under this number; 0: it is closed, and perhaps still mapped."""
        session.feed(h.Through(inode.ino, Level.READ))
        self.begin(inode, Backing(number))
        if not inode.handles or not number:
            self.end(inode)

    def drop(self, session: Session, inode: Inode, backing: Backing) -> None:
        """It is not needed after all."""
        self._let_go(backing)
        self._undeclare(session, inode)

    def _let_go(self, backing: Backing) -> None:
        kernel = self._client.kernel
        if backing.lent >= 0:
            os.close(backing.lent)
        if kernel is not None and not kernel.has_ended and backing.number:
            kernel.backing_close(backing.number)

    def end(self, inode: Inode) -> None:
        """The last open is closed."""
        backing, inode.backing = inode.backing, None
        assert backing is not None, "it was begun"
        self.open -= 1
        self._client.ledger.pass_by(inode.ino, 0)
        self._let_go(backing)
        inode.keep_pages = False  # of before, or left by a splice: what went past them since nobody has noted
        self.mapped[inode.ino] = inode
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
            self._client.start(self._looking)

    async def _look(self) -> None:
        """A mapping outlives the file that it was made of, and the kernel does not tell. The OSD can: it asks whether it is alone with the file."""
        try:
            wait_s = CLOSED_S
            while self.mapped:
                await asyncio.sleep(wait_s)
                for inode in list(self.mapped.values()):
                    if inode.backing is None and await self._is_mapped(inode):
                        continue
                    del self.mapped[inode.ino]
                    if inode.backing is None:  # else it was opened again
                        await self._over(inode)
                wait_s = LOOK_S
        finally:
            self._looking = None

    async def _is_mapped(self, inode: Inode) -> bool:
        client = self._client
        message = protocol.OsdInUse(inode.ino, 0)
        try:
            answer = await client.osds.call(client.directory.node, "osd.inuse", lambda: message)
            return answer_of(answer.value, bool)
        except XosError as error:
            log.debug("whether inode %x is mapped is not known: %s", inode.ino, error)
            return True

    async def _over(self, inode: Inode) -> None:
        """Nobody reads the OSD's file by itself any more. A file without a name is freed when its lease goes, which has to wait for this."""
        try:
            session = self._client.session_of(inode.ino)
            async with asyncio.timeout(AGREE_S):
                await session.through(inode.ino, Level.NONE)
            self._client.ledger.end_pass(inode.ino)
        except (FuseError, TimeoutError) as error:
            log.debug("the MRC of inode %x hears with the next session: %s", inode.ino, error)
        if inode.attr.nlink == 0 and not inode.handles:
            self._client.give_later(inode)

    def _undeclare(self, session: Session, inode: Inode) -> None:
        if inode.backing is None and inode.ino not in self.mapped:
            session.feed(h.Through(inode.ino, Level.NONE))

    # --------------------------------------------------------------------------------------------- for writers beside them

    def writes_through(self, session: Session, inode: Inode) -> bool:
        """Tell whether what a program writes has to be at the OSD before it goes on: some kernel reads the OSD's file, here or elsewhere."""
        return inode.backing is not None or session.holder.writes_through(inode.ino)

    async def lend(self, inode: Inode, backing: Backing) -> None:
        """Have the OSD's sums count for nothing until the file is closed here. To be called while an operation relies on WRITE. FuseError."""
        try:
            descriptor = await self._client.data_of(inode).striped.descriptor(write=True)
        except FsError as error:
            raise FuseError(error.errno) from error
        if inode.backing is backing and backing.lent < 0:
            backing.lent, backing.lent_ns = descriptor, os.fstat(descriptor).st_mtime_ns
        else:
            os.close(descriptor)

    def has_news(self, inode: Inode) -> bool:
        """Tell whether something may have been stored by a mapping: others' caches do not know. A page that is dirty tells of its first store only."""
        backing = inode.backing
        if backing is None or backing.lent < 0:
            return False
        return os.fstat(backing.lent).st_mtime_ns != backing.lent_ns


def _is_unwritten(inode: Inode) -> bool:
    return inode.data is not None and bool(inode.data.dirty or inode.data.is_late)


_REASONS = {
    errno.ELOOP: "they lie on a stacked file system (overlayfs)",
    errno.EPERM: "this mount is not root's",
    errno.EOPNOTSUPP: "their file system cannot",
}
