"""Giving back what was cached: own copies, the kernel's, and what is unwritten, so that no deadlock can come of it.

The kernel's part follows docs/notes/0003-xtreemfs.md, "The kernel's caches, without deadlock". Dropping pages waits for requests that keep pages
locked: READs, and WRITEs with a partial last page. Those that wait for a lease at that time are left out of the range (their pages are not up to
date). One that arrives while its pages are being dropped is served at once, whatever the holder's queue says (`Coherence.passes`): the lease is
still ours until the release is sent, and what was served so is dropped in another round.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.client.coherent import Op, now_s
from xtreemos.xtreemfs.client.inodes import Inode, Span, overlaps, without
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse.constants import PAGE_BYTES
from xtreemos.xtreemfs.fuse.errors import FuseError, NotifyFailed, SessionEnded
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import Level, volume_of
from xtreemos.xtreemfs.protocol import Rights

if TYPE_CHECKING:
    from xtreemos.xtreemfs.client.client import Client
    from xtreemos.xtreemfs.fuse.driver import Session as Kernel

log = logging.getLogger(__name__)

WHOLE: Span = (0, 1 << 62)
LOCKED_S = 0.1  # a page or name that the kernel has not dropped by then is locked
CONTENDED_S = 30.0  # since a directory's lock was in the way last, or since another node changed a name in it after that
NAMES_MAX = 256  # dropped one by one; if more are to go, all of the mount do
LANES = 3  # threads that give-backs of one inode may keep waiting in the kernel; attributes go by one more, which never waits


class Coherence:
    """What leases mean for this mount: see `coherent.Coherent` and `store.Coherence`, both of which it is."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.count = 0
        """Grows with every recall of anything: answers to questions from before are not kept for what was recalled since."""
        self.epochs = 0
        """How often the kernel had to forget all names at once."""

    # -------------------------------------------------------------------------------------------------- for the data path

    def generation(self, ino: int) -> int:
        """See `store.Coherence`."""
        return self._client.session_of(ino).holder.generation(ino)

    def rights(self, inode: Inode) -> Rights:
        """See `store.Coherence`."""
        session = self._client.session_of(inode.ino)
        epoch = session.holder.epoch(inode.ino)
        record = (self._client.capability(inode, "w", epoch) if epoch else None) or self._client.capability(inode, "r")
        if record is None:
            raise FuseError(errno.EACCES)
        return session.rights(record)

    def fenced(self, inode: Inode, epoch: int) -> None:
        """See `store.Coherence`."""
        self._client.session_of(inode.ino).feed(h.Stale(inode.ino, epoch))

    def gave_up(self, inode: Inode) -> None:
        """See `store.Coherence`."""
        self._client.session_of(inode.ino).feed(h.GaveUp(inode.ino))

    def passes(self, session: Session, inode: Inode, span: Span, level: Level) -> bool:
        """Whether a request has to be served now although it would have to wait: its pages are being dropped under a lease that is still ours."""
        spans = inode.invalidating
        if spans is None or not overlaps(span, spans):
            return False
        if session.holder.level(inode.ino) < level:
            return False
        inode.passed.append(span)
        return True

    @contextlib.contextmanager
    def pending(self, inode: Inode, span: Span | None, *, write: bool) -> Iterator[None]:
        """Around what a request waits for that keeps pages locked: they are left out when pages are dropped, also if that has begun."""
        if span is None:
            yield
            return
        spans = inode.writing if write else inode.reading
        spans.append(span)
        if (
            inode.stuck is not None
            and not inode.stuck.done()
            and inode.invalidating is not None
            and overlaps(span, inode.invalidating)
        ):
            inode.stuck.set_result(None)
        try:
            yield
        finally:
            spans.remove(span)

    # ------------------------------------------------------------------------------------------------------ for a session

    async def ask(self, session: Session, peer: Peer, op: Op, level: Level) -> protocol.Grant:
        """See `coherent.Coherent`."""
        client = self._client
        asked_at = self.count
        who = await session.who(peer, op.request, op.ino)
        inode = client.inodes.get(op.ino)
        if inode is not None and stat.S_ISREG(inode.mode):
            method, message = "mrc.acquire", protocol.Acquire(who, op.ino, level)
        else:
            method, message = "mrc.getattr", protocol.GetAttr(who, op.ino)  # type: ignore[assignment]  # one of two
        grant = calls.answer_of(await peer.call(method, calls.params(message)), protocol.Grant)
        inode = client.note(session, grant, asked_at)
        if grant.level and inode.attr.is_file:
            inode.fresh = True  # it is held as soon as the holder hears of it, in this same step
        return grant

    async def flush(self, ino: int) -> bool:
        """See `coherent.Coherent`."""
        inode = self._client.inodes.get(ino)
        if inode is None:
            return True
        inode.dirty_told = False
        if inode.data is None:
            return True
        errors = inode.data.errors
        await inode.data.flush()
        return inode.data.errors == errors

    def drop(self, ino: int, level: Level, names: tuple[bytes, ...]) -> None:
        """See `coherent.Coherent`."""
        self.count += 1
        inode = self._client.inodes.get(ino)
        if inode is None:
            return
        inode.invalidated = self.count
        inode.true_until_released |= inode.fresh
        inode.drop(level, names)
        if inode.served is None:
            session = self._client.session_of(ino)
            inode.served = [op.span for op in session.ops.values() if op.ino == ino and op.span is not None and op.go is not None]

    async def invalidate(self, ino: int, level: Level, names: tuple[bytes, ...], *, again: bool) -> None:
        """See `coherent.Coherent`."""
        inode = self._client.inodes.get(ino)
        kernel = self._client.kernel
        if inode is None or kernel is None:
            return
        try:
            if names or level < Level.READ:
                await self._drop_names(kernel, inode, names if level >= Level.READ else ())
            if (names or level < Level.READ) and not again:
                await kernel.invalidate_inode(self._client.node_of(ino), -1, 0, lane=LANES)
            if inode.pages and (level < Level.READ or inode.writers):
                await self._drop_pages(inode, (inode.served or []) if again else [WHOLE])
        except SessionEnded:
            return
        except NotifyFailed as failed:
            log.error("the kernel does not take back inode %x: %s", ino, failed)  # noqa: TRY400  # no stack tells more

    async def _drop_names(self, kernel: Kernel, inode: Inode, names: tuple[bytes, ...]) -> None:
        """Have the kernel forget these names of a directory (all, if none are given), as far as it may remember them.

        Name by name: it waits for the directory's lock, which a request of our own may hold that waits for others, and they for us. If the
        kernel cannot do it soon, all names of the mount go, which takes no lock; but then a folder in which programs work is for a moment
        without its name: getcwd fails until the name is looked up again. So that this is not done again and again for a directory in
        which several nodes change names, the kernel keeps none of its names until they leave off.
        """
        now = now_s()
        if now < inode.contended_until_s:
            inode.contended_until_s = now + CONTENDED_S
        remembered = self._client.kernel_names.of(inode.ino, names)
        if not remembered:
            return
        if len(remembered) <= NAMES_MAX:
            node = self._client.node_of(inode.ino)
            dropped = asyncio.gather(*(kernel.invalidate_entry(node, name) for name in remembered))
            done, _late = await asyncio.wait({dropped}, timeout=LOCKED_S)
            if done:
                dropped.result()
                return
            dropped.add_done_callback(_look_at)
            inode.contended_until_s = now_s() + CONTENDED_S
        self.epochs += 1
        await kernel.increase_epoch()
        if now_s() < inode.contended_until_s:  # none was noted since, so all are of the old epoch
            self._client.kernel_names.forget(inode.ino)

    async def _drop_pages(self, inode: Inode, spans: list[Span]) -> None:
        kernel = self._client.kernel
        node = self._client.node_of(inode.ino)
        assert kernel is not None
        while spans:
            try:
                await self._drop_spans(kernel, inode, node, spans)
            finally:
                inode.invalidating = None
            if inode.data is not None and inode.passed:
                await inode.data.flush()
            spans, inode.passed = inode.passed, []

    async def _drop_spans(self, kernel: Kernel, inode: Inode, node: int, spans: list[Span]) -> None:
        """Drop these pages, but for those that become pending meanwhile.

        A write that comes while we give back READ waits for its own lease, so for this. If its page is not up to date, the kernel keeps it locked
        meanwhile, and waits for it, holding up the thread that asked: the rest is dropped through another one. If it is up to date, it is
        not locked, and has to go. Which it is the kernel does not tell; so such pages are dropped last, and not waited for for long.
        """
        while spans:
            sure = without(without(spans, inode.reading, PAGE_BYTES), inode.writing, PAGE_BYTES)
            spans = without(spans, [*sure, *inode.reading], PAGE_BYTES) if inode.writing else []
            undone = await self._drop_some(kernel, inode, node, sure)
            if undone:
                spans = [*undone, *spans]
                continue
            if spans:
                await self._drop_some(kernel, inode, node, without(spans, inode.reading, PAGE_BYTES), within_s=LOCKED_S)
            return

    async def _drop_some(
        self, kernel: Kernel, inode: Inode, node: int, spans: list[Span], *, within_s: float | None = None
    ) -> list[Span]:
        """Drop pages; return them if another request came for some of them meanwhile. With `within_s` it is given up after so long."""
        free = [lane for lane in range(LANES) if lane not in inode.held_up]
        lane = free[0] if free else 0
        inode.invalidating, inode.stuck = spans, asyncio.get_running_loop().create_future()
        dropped = asyncio.gather(*(kernel.invalidate_inode(node, a, 0 if b >= WHOLE[1] else b - a, lane=lane) for a, b in spans))
        ends: set[asyncio.Future[Any]] = {dropped}
        if len(free) > 1 and within_s is None:
            ends.add(inode.stuck)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=within_s if len(free) > 1 else None)
        inode.stuck = None
        if dropped.done():
            dropped.result()
            return []
        inode.held_up.add(lane)
        dropped.add_done_callback(functools.partial(_late, inode, lane))
        return spans

    def fail_dirty(self, ino: int) -> None:
        """See `coherent.Coherent`."""
        inode = self._client.inodes.get(ino)
        if inode is None:
            return
        if inode.data is not None:
            inode.data.fail(errno.EIO)
        inode.forget_changes()
        inode.dirty_told = False

    def last_word(self, ino: int, epoch: int) -> protocol.Update | None:
        """See `coherent.Coherent`."""
        inode = self._client.inodes.get(ino)
        return None if inode is None else inode.update(epoch)

    def released(self, ino: int, level: Level, update: protocol.Update | None) -> None:
        """See `coherent.Coherent`."""
        inode = self._client.inodes.get(ino)
        if inode is None:
            return
        inode.served = None
        inode.true_until_released = False
        if level < Level.READ or inode.writers:
            inode.pages = False
        if update is not None:
            inode.told(update)

    def suspended(self, session: Session, *, early: bool) -> None:
        """See `coherent.Coherent`."""
        self.count += 1
        self._client.start(self._empty_kernel(session, early=early))

    async def _empty_kernel(self, session: Session, *, early: bool) -> None:
        def is_its(inode: Inode) -> bool:
            record = self._client.directory.state.volume_by_id(volume_of(inode.ino))
            return record is not None and record.mrc == session.mrc

        kernel = self._client.kernel
        if early and self._client.has_epochs and kernel is not None:
            with contextlib.suppress(SessionEnded):
                self.epochs += 1
                await kernel.increase_epoch()
        # In good time the names have ended with the session by themselves: the kernel looks them up again without dropping them first.
        await self.empty_kernel(is_its, names=False)

    async def empty_kernel(self, wanted: Callable[[Inode], bool], *, names: bool = True) -> None:
        """Have the kernel forget attributes and pages of the inodes that are wanted, and (`names`) all names in them: it asks again."""
        client = self._client
        kernel = client.kernel
        if kernel is None:
            return
        try:
            for inode in filter(wanted, list(client.inodes)):
                if names:
                    await self._drop_names(kernel, inode, ())
                if inode.lookups:
                    await kernel.invalidate_inode(client.node_of(inode.ino), -1, 0, lane=LANES)
                if inode.pages:
                    await self._drop_pages(inode, [WHOLE])
        except SessionEnded:
            return
        except NotifyFailed as failed:
            log.error("the kernel's caches could not be emptied: %s", failed)  # noqa: TRY400

    def locks(self, session: Session) -> tuple[protocol.LockRow, ...]:
        """See `coherent.Coherent`."""
        return self._client.locks.rows(session.mrc)

    def opened(self, session: Session, welcome: protocol.Welcome) -> None:
        """See `coherent.Coherent`."""
        if welcome.lost:
            log.warning("%d inodes were given to others while %s was away", len(welcome.lost), session.link.label)
        for ino in welcome.lost:
            # Others have changed it since: our own word on its size, told or not, must not go over theirs when we get it again.
            inode = self._client.inodes.get(ino)
            if inode is not None:
                inode.forget_changes()
        for row in welcome.lost_locks:
            log.warning("a lock on inode %x was given to others while %s was away", row.ino, session.link.label)
            self._client.locks.lose(session.mrc, row)


def _look_at(dropped: asyncio.Future[list[None]]) -> None:
    """Names that nobody waits for any more are dropped, or the mount is gone, which is no news."""
    if not dropped.cancelled():
        dropped.exception()


def _late(inode: Inode, lane: int, dropped: asyncio.Future[list[None]]) -> None:
    """Pages that nobody waits for any more are dropped, or the mount is gone, which is no news."""
    inode.held_up.discard(lane)
    _look_at(dropped)
