"""What a session may tell the kernel unasked, as methods. When it is safe to wait for one: docs/protocols/fuse.md, notification rules."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Sequence

from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse import replies
from xtreemos.xtreemfs.fuse.constants import EXPIRE_ONLY, NOTIFY_MINOR, InitFlag, Notify
from xtreemos.xtreemfs.fuse.errors import NotifyFailed, SessionEnded
from xtreemos.xtreemfs.fuse.notify import Notifier
from xtreemos.xtreemfs.fuse.options import Negotiated

ATTRIBUTES_ONLY = -1  # as `offset` of invalidate_inode
U64_MASK = (1 << 64) - 1

Message = tuple[str, int, Sequence[m.Buffer]]  # name, ordering key, parts


def inval_inode(nodeid: int, offset: int = 0, length: int = 0, lane: int = 0) -> Message:
    """Drop attributes, and pages of the range: `length` 0 to the end, `offset` -1 no pages. `lane`: not behind what waits in another lane."""
    return (
        "invalidate_inode",
        nodeid + lane,
        replies.notification(Notify.INVAL_INODE, replies.INVAL_INODE.pack(nodeid, offset, length)),
    )


def inval_entry(parent: int, name: bytes, *, expire_only: bool = False) -> Message:
    """Drop a name, or have it looked up again at its next use."""
    body = replies.INVAL_ENTRY.pack(parent, len(name), EXPIRE_ONLY if expire_only else 0)
    return "invalidate_entry", parent, replies.notification(Notify.INVAL_ENTRY, body, name + b"\0")


def delete(parent: int, child: int, name: bytes) -> Message:
    """Tell that a name was removed."""
    return "notify_delete", parent, replies.notification(Notify.DELETE, replies.DELETE.pack(parent, child, len(name)), name + b"\0")


def store(nodeid: int, offset: int, data: m.Buffer) -> Message:
    """Put bytes into the page cache."""
    return "store", nodeid, replies.notification(Notify.STORE, replies.STORE.pack(nodeid, offset, len(data)), data)


def poll_wakeup(kh: int) -> Message:
    """Wake those who poll."""
    return "notify_poll", kh, replies.notification(Notify.POLL, replies.U64.pack(kh))


def increase_epoch() -> Message:
    """Have every name looked up again."""
    return "increase_epoch", 0, replies.notification(Notify.INC_EPOCH)


def prune(nodeids: Sequence[int]) -> Message:
    """Drop inodes that are not in use."""
    ids = b"".join(map(replies.U64.pack, nodeids))
    return "prune", 0, replies.notification(Notify.PRUNE, replies.PRUNE.pack(len(nodeids)), ids)


def resend() -> Message:
    """Have every request sent again that was read and not answered."""
    return "resend", 0, replies.notification(Notify.RESEND)


class Notifications:
    """The notification half of a session. Each method: see docs/protocols/fuse.md; each raises NotifyFailed or SessionEnded."""

    def __init__(self, notifier: Notifier, names: Notifier) -> None:
        """`names` sends what waits for a directory's lock, so that nothing else waits behind it."""
        self._notifier = notifier
        self._names = names
        self._negotiated: Negotiated | None = None
        self._numbers = itertools.count(1)
        self._retrieving: dict[int, asyncio.Future[bytes]] = {}

    @property
    def negotiated(self) -> Negotiated:
        """What was agreed on. Raises SessionEnded before that."""
        if self._negotiated is None:
            raise SessionEnded("the kernel has not opened this file system yet")
        return self._negotiated

    async def invalidate_inode(self, nodeid: int, offset: int = 0, length: int = 0, *, lane: int = 0) -> None:
        await self._notifier.send(*inval_inode(nodeid, offset, length, lane))

    def invalidate_inode_nowait(self, nodeid: int, offset: int = 0, length: int = 0) -> asyncio.Future[bool]:
        return self._notifier.send_nowait(*inval_inode(nodeid, offset, length))

    async def invalidate_entry(self, parent: int, name: bytes, *, expire_only: bool = False) -> None:
        await self._names.send(*inval_entry(parent, name, expire_only=self._may_expire(expire_only)))

    def invalidate_entry_nowait(self, parent: int, name: bytes, *, expire_only: bool = False) -> asyncio.Future[bool]:
        return self._names.send_nowait(*inval_entry(parent, name, expire_only=self._may_expire(expire_only)))

    async def notify_delete(self, parent: int, child: int, name: bytes) -> None:
        await self._names.send(*delete(parent, child, name))

    def notify_delete_nowait(self, parent: int, child: int, name: bytes) -> asyncio.Future[bool]:
        return self._names.send_nowait(*delete(parent, child, name))

    async def store(self, nodeid: int, offset: int, data: m.Buffer) -> None:
        await self._notifier.send(*store(nodeid, offset, data))

    def store_nowait(self, nodeid: int, offset: int, data: m.Buffer) -> asyncio.Future[bool]:
        return self._notifier.send_nowait(*store(nodeid, offset, data))

    async def notify_poll(self, kh: int) -> None:
        await self._notifier.send(*poll_wakeup(kh))

    def notify_poll_nowait(self, kh: int) -> asyncio.Future[bool]:
        return self._notifier.send_nowait(*poll_wakeup(kh))

    async def increase_epoch(self) -> None:
        self._need(Notify.INC_EPOCH)
        await self._notifier.send(*increase_epoch())

    def increase_epoch_nowait(self) -> asyncio.Future[bool]:
        self._need(Notify.INC_EPOCH)
        return self._notifier.send_nowait(*increase_epoch())

    async def resend(self) -> None:
        self._need(Notify.RESEND)
        await self._notifier.send(*resend())

    async def invalidate_inodes(self, nodeids: Sequence[int], *, pages: bool) -> None:
        await self._notifier.send_all([inval_inode(nodeid, 0 if pages else ATTRIBUTES_ONLY) for nodeid in nodeids])

    async def prune(self, nodeids: Sequence[int]) -> None:
        self._need(Notify.PRUNE)
        await self._notifier.send(*prune(nodeids))

    def prune_nowait(self, nodeids: Sequence[int]) -> asyncio.Future[bool]:
        self._need(Notify.PRUNE)
        return self._notifier.send_nowait(*prune(nodeids))

    async def retrieve(self, nodeid: int, offset: int, size: int) -> bytes:
        """Return the cached bytes from `offset`: at most `size` and only until the first page that is not cached; empty if none is."""
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._retrieving[number] = future
        body = replies.RETRIEVE.pack(number, nodeid, offset, size)
        try:
            # The answer comes as a request of its own, and only if the kernel knows the inode: an unknown one must not be waited for.
            if not await self._notifier.send_known("retrieve", nodeid, replies.notification(Notify.RETRIEVE, body)):
                return b""
            return await future
        finally:
            del self._retrieving[number]

    def _retrieved(self, reply: m.NotifyReply) -> None:
        future = self._retrieving.get(reply.unique)
        if future is not None and not future.done():
            future.set_result(reply.data)

    def _end_retrieving(self) -> None:
        for future in self._retrieving.values():
            if not future.done():
                future.set_exception(SessionEnded("the file system is not mounted any more"))

    def _may_expire(self, wanted: bool) -> bool:
        return wanted and self.negotiated.has(InitFlag.HAS_EXPIRE_ONLY)  # else the name is dropped, which is stronger

    def _need(self, code: Notify) -> None:
        if self.negotiated.minor < NOTIFY_MINOR[code]:
            raise NotifyFailed(code.name.lower(), errno.ENOSYS)
