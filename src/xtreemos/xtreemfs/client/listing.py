"""Listing directories: from what is cached under the directory's lease, else page by page from the MRC; and the folder of volumes."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Iterable

from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.client.base import Base, DirHandle
from xtreemos.xtreemfs.client.inodes import LISTING_MAX, Inode, Listed
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.replies import NO_ENTRY, Listing
from xtreemos.xtreemfs.lease import holder_model as h
from xtreemos.xtreemfs.model import VO_ROOT_INO, Level, make_ino

PAGE_ENTRIES = 1000  # per request to the MRC
COOKIE_SHIFT = 2  # cookies of the kernel: 1 behind ".", 2 behind "..", then the MRC's + 2


class ListingOps(Base):
    """opendir, readdir, readdirplus, releasedir, fsyncdir."""

    def opendir(self, q: m.Open) -> m.Opened:  # noqa: ARG002  # rights were checked by the kernel, and are by the MRC
        """See `fuse.handlers`."""
        fh = self.next_handle()
        self.dirs[fh] = DirHandle()
        return m.Opened(fh)

    def releasedir(self, q: m.Release) -> None:
        """See `fuse.handlers`."""
        self.dirs.pop(q.fh, None)

    def fsyncdir(self, q: m.Fsync) -> None:
        """See `fuse.handlers`: what the MRC has answered is durable."""

    def readdir(self, q: m.Read) -> Listing | Awaitable[Listing]:
        """See `fuse.handlers`."""
        return self._read_dir(q, plus=False)

    def readdirplus(self, q: m.Read) -> Listing | Awaitable[Listing]:
        """See `fuse.handlers`."""
        return self._read_dir(q, plus=True)

    def _read_dir(self, q: m.Read, *, plus: bool) -> Listing | Awaitable[Listing]:
        ino = self.client.ino_of(q.nodeid)
        if ino == VO_ROOT_INO:
            return self._list_volumes(q, plus=plus)
        session = self.client.session_of(ino)
        folder = self.client.inodes.get(ino)
        if folder is not None and folder.listing is not None and session.can(ino, Level.READ):
            rows = folder.listing.after(max(0, q.offset - COOKIE_SHIFT))
            return self._fill(session, folder, q, rows, folder.listing.parent, plus=plus)
        return self._read_dir_later(session, ino, q, plus=plus)

    async def _read_dir_later(self, session: Session, ino: int, q: m.Read, *, plus: bool) -> Listing:
        handle = self.dirs.setdefault(q.fh, DirHandle())  # it may have been opened before our time (see `takeover`)
        after = max(0, q.offset - COOKIE_SHIFT)
        rows = [row for row in handle.rows if row.cookie > after]
        at_end = handle.end and after >= handle.rows_after
        if q.offset == 0 or after < handle.rows_after or not (rows or at_end):
            await self._fetch(session, ino, q, handle, after)
            rows = handle.rows
        folder = self.client.inodes.get(ino)
        if folder is None:
            folder = await self.fresh_inode(session, ino, q)
        return self._fill(session, folder, q, rows, handle.parent, plus=plus)

    async def _fetch(self, session: Session, ino: int, q: m.Read, handle: DirHandle, after: int) -> None:
        client = self.client
        asked_at = client.coherence.count
        folder = client.inodes.get(ino)
        if after == 0:
            handle.gathered, handle.gathered_at = [], asked_at
            handle.gathered_changes = folder.changes if folder is not None else 0
        # Rights are those of the open, which the kernel has checked; a mount as root need not ask again.
        on_behalf = None if client.identities.plain else q
        page = await session.call(
            on_behalf, ino, "mrc.readdir", lambda who: p.ReadDir(who, ino, after, PAGE_ENTRIES, attrs=True), p.Listing, again=True
        )
        if page.dir_level:
            session.feed(h.Granted(ino, Level(page.dir_level)))
        if page.dir_attr is not None:
            folder = self.take_folder(session, page.dir_attr, asked_at, cache=page.dir_cache)
        for row in page.entries:
            if row.attr is not None:
                client.take(session, p.Grant(row.attr, Level.READ, link=row.link), asked_at)
        await client.learn(session, [row.attr for row in page.entries if row.attr is not None])
        handle.rows, handle.rows_after, handle.end, handle.parent = list(page.entries), after, page.end, page.parent
        self._gather(session, folder, handle, page, after)

    def _gather(self, session: Session, folder: Inode | None, handle: DirHandle, page: p.Listing, after: int) -> None:
        """Keep the whole listing once it was seen from the first name to the last under one lease."""
        rows = handle.gathered
        if rows is None or folder is None:
            return
        whole = folder.invalidated <= handle.gathered_at and folder.changes == handle.gathered_changes
        follows = (rows[-1].cookie if rows else 0) == after and len(rows) + len(page.entries) <= LISTING_MAX
        if not (whole and follows and page.dir_cache and session.can(folder.ino, Level.READ)):
            handle.gathered = None
            return
        rows += page.entries
        if page.end:
            folder.listing, handle.gathered = Listed(tuple(rows), page.parent), None
            folder.know_all(rows)

    def _fill(
        self, session: Session, folder: Inode, q: m.Read, rows: Iterable[p.ListedEntry], parent: int, *, plus: bool
    ) -> Listing:
        client = self.client
        listing = Listing(q.size)
        for cookie, name, ino in ((1, b".", folder.ino), (2, b"..", parent or folder.ino)):
            if q.offset < cookie and not _add(listing, name, ino, stat.S_IFDIR, cookie, plus=plus):
                return listing
        valid = session.valid_ns()
        for row in rows:
            cookie = row.cookie + COOKIE_SHIFT
            inode = client.inodes.get(row.ino) if plus else None
            if inode is None or not (inode.fresh and session.can(row.ino, Level.READ) and client.is_known(session, inode.attr)):
                if not _add(listing, row.name, row.ino, row.mode, cookie, plus=plus):
                    break
                continue
            # Never with a validity of the name: the kernel takes a row's epoch when it comes to it, not when it asked, so a name that was
            # called back while the answer lay unread would come in as a new one (fs/fuse/readdir.c, fuse_direntplus_link).
            entry = m.Entry(client.node_of(row.ino), client.fuse_attr(session, inode), 0, 0, valid)
            if not listing.add_plus(row.name, entry, row.ino, row.mode, cookie):
                break
            inode.lookups += 1
            client.ledger.know(row.ino)
        return listing

    # ------------------------------------------------------------------------------------------------- folder of volumes

    def _list_volumes(self, q: m.Read, *, plus: bool) -> Listing:
        listing = Listing(q.size)
        records = sorted(self.client.directory.state.volumes.values(), key=lambda record: record.id)
        rows = [(1, b".", VO_ROOT_INO), (2, b"..", VO_ROOT_INO)]
        rows += [(COOKIE_SHIFT + r.id, r.name.encode(), make_ino(r.id, 1)) for r in records if not r.removed]
        for cookie, name, ino in rows:
            if cookie > q.offset and not _add(listing, name, ino, stat.S_IFDIR, cookie, plus=plus):
                break
        return listing


def _add(listing: Listing, name: bytes, ino: int, mode: int, cookie: int, *, plus: bool) -> bool:
    return listing.add_plus(name, NO_ENTRY, ino, mode, cookie) if plus else listing.add(name, ino, mode, cookie)
