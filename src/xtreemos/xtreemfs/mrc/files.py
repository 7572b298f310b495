"""Methods about names, and reading: `mrc.lookup`, `getattr`, `create`, `link`, `unlink`, `rename`, `readdir`, `statfs`."""

from __future__ import annotations

import errno
import itertools
import stat
import time
from typing import Any, Final

from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.lease.model import Give, How, Need
from xtreemos.xtreemfs.model import Layout, Level, OsdRecord, volume_of
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import placing, views
from xtreemos.xtreemfs.mrc.changing import Changing
from xtreemos.xtreemfs.mrc.model import READ, WRITE, Cred, Name, Reply
from xtreemos.xtreemfs.mrc.namespace import EXCHANGE, Moved
from xtreemos.xtreemfs.mrc.outbox import Allowed, Plan
from xtreemos.xtreemfs.mrc.serving import Core

LISTING_BYTES: Final = 1 << 20  # of one answer, about: a page of link targets would fill a frame
ATTR_ROWS_MAX: Final = 1024  # names of one page with attributes: each is a read of the store
CANDIDATES_S: Final = 1.0  # between looks at which OSDs have gone silent
_FILES_TOTAL: Final = 1 << 40


class Files(Changing):
    """The methods; `handlers` is their table."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._turns = itertools.count(int(time.time() * 1000))
        self._candidates: list[OsdRecord] = []
        self._seen: State | None = None
        self._looked_s = 0.0

    def handlers(self) -> dict[str, Handler]:
        """Return method -> handler."""
        return {
            "mrc.lookup": self.lookup, "mrc.getattr": self.getattr, "mrc.create": self.create, "mrc.link": self.link,
            "mrc.unlink": self.unlink, "mrc.rename": self.rename, "mrc.readdir": self.readdir, "mrc.statfs": self.statfs,
        }  # fmt: skip

    # -- reading ---------------------------------------------------------------------------------------------------------

    async def lookup(self, call: ServerCall) -> p.Looked:
        """Never waits for a recall: what is being changed elsewhere is told from before the change, not to be kept."""
        core = self._core
        m, client = core.opened(call, p.Lookup)
        state = core.state
        folder, inode = views.lookup(state, core.cred(call, m.who, m.dir), m.dir, m.name)
        now = core.leasing.now_s()
        leases = core.leasing.table
        held = leases.glance(client, m.dir, now)
        named = held.level > Level.NONE and m.name != b".." and leases.name_free(client, m.dir, m.name)
        if inode is None:
            answer = p.Looked(None, p.NoEntry(named, folder.attr()), int(held.level), held.cache)
        else:
            link = state.cold(inode.ino).link if stat.S_ISLNK(inode.mode) else b""
            given = leases.glance(client, inode.ino, now)
            answer = p.Looked(core.grant(inode, given, named=named, link=link), None, int(held.level), held.cache)
        return await core.leasing.ordered(answer, call)

    async def getattr(self, call: ServerCall) -> p.Grant:
        """Waits for a writer elsewhere to tell what it did, but for directories."""
        core = self._core
        m, client = core.opened(call, p.GetAttr)
        core.cred(call, m.who, m.ino)
        inode = core.state.inode(m.ino)
        if inode.is_dir:
            given = core.leasing.table.glance(client, m.ino, core.leasing.now_s())
            return await core.leasing.ordered(core.grant(inode, given), call)
        node = core.node_of(call)

        def execute(allowed: Allowed) -> Plan:
            found = core.state.inode(m.ino)
            if allowed[m.ino].shared:
                core.allow(client, m.ino, READ)  # the true size is at the OSD: the client must be able to ask
                layout = core.state.cold(m.ino).layout
                give = Give(m.ino, shared=Level.READ, epoch=allowed[m.ino].epoch)
                return Plan((give,), lambda given: core.open_grant(client, node, found, given[0], layout))
            link = core.state.cold(m.ino).link if stat.S_ISLNK(found.mode) else b""
            return Plan((Give(m.ino, Level.READ),), lambda given: core.grant(found, given[0], link=link))

        return await core.leasing.ask(client, lambda: (Need(m.ino, How.READ),), execute)  # type: ignore[no-any-return]

    async def readdir(self, call: ServerCall) -> p.Listing:
        """A page; READ is granted on what comes with attributes."""
        core = self._core
        m, client = core.opened(call, p.ReadDir)
        state, cred = core.state, core.cred(call, m.who, m.dir)
        count = min(m.count, ATTR_ROWS_MAX) if m.attrs else m.count
        folder, page = views.listing(state, cred, m.dir, m.cookie, count)
        now = core.leasing.now_s()
        held = core.leasing.table.glance(client, m.dir, now)
        with_attrs = m.attrs and views.may_list_with_attrs(folder, cred)
        entries: list[p.ListedEntry] = []
        size = 0
        for name, row in page.rows:
            entry = self._listed(client, name, row, now) if with_attrs else p.ListedEntry(name, row.cookie, row.ino, row.type << 12)
            entries.append(entry)
            size += len(name) + len(entry.link) + 128
            if size > LISTING_BYTES:
                break
        end = page.end and len(entries) == len(page.rows)
        return await core.leasing.ordered(
            p.Listing(tuple(entries), end, int(held.level), folder.parent, held.cache, folder.attr()), call
        )

    def _listed(self, client: str, name: bytes, row: Name, now_s: float) -> p.ListedEntry:
        core = self._core
        state = core.state
        inode = state.inode(row.ino)
        given = core.leasing.table.glance(client, row.ino, now_s)
        link = state.cold(row.ino).link if stat.S_ISLNK(inode.mode) else b""
        attr = inode.attr() if given.level and given.cache else None
        return p.ListedEntry(name, row.cookie, row.ino, inode.mode, attr, link)

    async def statfs(self, call: ServerCall) -> p.StatFsAnswer:
        """The quota where there is one, else what the OSDs have."""
        core = self._core
        m = calls.message_of(call.params, p.StatFs)
        cred = core.cred(call, m.who, m.ino)
        volume = volume_of(m.ino)
        state = core.state
        used, limit, room = state.usage(volume, None), state.limits(volume, None), state.room(volume, cred.uid, promised=False)
        osds = core.directory.state.osds.values()
        total, free = sum(row.total_bytes for row in osds), sum(row.free_bytes for row in osds if row.state == "online")
        files_total, files_free = _FILES_TOTAL, _FILES_TOTAL - used.files
        if limit.bytes:
            total = limit.bytes
        if room is not None:
            free, files_free = max(0, min(free, room.bytes)), max(0, min(files_free, room.files))
        if limit.files:
            files_total = limit.files
        return await core.leasing.ordered(p.StatFsAnswer(total, free, files_total, files_free), call)

    # -- names -----------------------------------------------------------------------------------------------------------

    async def create(self, call: ServerCall) -> p.Made:
        """Any kind of inode; a regular file comes with WRITE, others with READ."""
        core = self._core
        m, client = core.opened(call, p.Create)
        cred, node, once = core.cred(call, m.who, m.dir), core.node_of(call), calls.once_of(call.params)
        is_file = stat.S_ISREG(m.mode)

        def again(said: Reply) -> Plan:
            attr, folder = said.attrs
            if is_file:
                core.allow(client, attr.ino, READ | WRITE)
            made = p.Made(self._was(client, attr, m.link), folder, False, False)
            open_here = (table.Release(client, attr.ino, Level.NONE, pin=True),) if m.anonymous else ()
            return Plan((), lambda _given: made, open_here)

        there = False

        def needs() -> tuple[Need, ...]:
            nonlocal there
            there = not m.anonymous and core.state.find_name(m.dir, m.name) is not None
            # What is there already is opened or refused: others need not forget it.
            return () if there or m.anonymous else (Need(m.dir, How.NAMES, (m.name,)),)

        def execute(_allowed: Allowed) -> Plan:
            if there and core.state.find_name(m.dir, m.name) is None:
                raise Moved
            if not m.exclusive and not m.anonymous:
                found = self._found(client, cred, m)
                if found is not None:
                    return found
            layout = self._layout(volume_of(m.dir), m.near or node) if is_file else None
            epoch, now_ns = core.leasing.new_epoch() if is_file else 0, core.now_ns(m.now_ns)
            made = core.change(
                client,
                once,
                do.Create(
                    cred, m.dir, m.name, m.mode, m.umask, now_ns, m.rdev, m.link, layout, client, epoch, m.anonymous, is_file
                ),
                volume_of(m.dir),
            )
            ino = made.inode.ino
            give = Give(ino, Level.WRITE, epoch) if is_file else Give(ino, Level.READ)
            if is_file:
                core.allow(client, ino, READ | WRITE)

            def finish(given: Any) -> p.Made:
                grant = (
                    core.open_grant(client, node, made.inode, given[0], layout)
                    if is_file
                    else core.grant(made.inode, given[0], link=m.link)
                )
                return p.Made(_named(grant, given[1].level > 0), made.folder.attr(), False, given[1].cache)

            return Plan((give, Give(m.dir)), finish, (table.Orphan(ino),) if m.anonymous else ())

        return await self._change(client, once, needs, execute, again)  # type: ignore[no-any-return]

    def _found(self, client: str, cred: Cred, m: p.Create) -> Plan | None:
        """Answer of a create that opens what is there."""
        core = self._core
        folder, inode = views.lookup(core.state, cred, m.dir, m.name)
        if inode is None:
            return None
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        link = core.state.cold(inode.ino).link if stat.S_ISLNK(inode.mode) else b""
        ino = inode.ino

        def finish(given: Any) -> p.Made:
            seen = core.leasing.table.glance(client, ino, core.leasing.now_s())
            grant = core.grant(inode, seen, link=link)
            return p.Made(_named(grant, given[0].level > 0), folder.attr(), True, given[0].cache)

        return Plan((Give(m.dir),), finish)

    def _layout(self, volume: int, near: str) -> Layout:
        now_s = time.time()
        state = self._core.directory.state
        if state is not self._seen or now_s - self._looked_s > CANDIDATES_S:
            self._seen, self._looked_s = state, now_s
            self._candidates = placing.candidates(state.osds.values(), now_s)
        return placing.choose(self._core.volumes[volume].policy, self._candidates, near=near, turn=next(self._turns))

    async def link(self, call: ServerCall) -> p.Made:
        """One more name."""
        core = self._core
        m, client = core.opened(call, p.Link)
        cred, once = core.cred(call, m.who, m.dir), calls.once_of(call.params)

        def execute(_allowed: Allowed) -> Plan:
            made = core.change(client, once, do.Link(cred, m.ino, m.dir, m.name, core.now_ns(m.now_ns)), volume_of(m.dir))

            def finish(given: Any) -> p.Made:
                grant = _named(core.grant(made.inode, given[0]), given[1].level > 0)
                return p.Made(grant, made.folder.attr(), False, given[1].cache)

            return Plan((Give(m.ino), Give(m.dir)), finish)

        def again(said: Reply) -> Plan:
            attr, folder = said.attrs
            return Plan((), lambda _given: p.Made(self._was(client, attr), folder, False, False))

        needs = (Need(m.dir, How.NAMES, (m.name,)), Need(m.ino, How.ALONE))
        return await self._change(client, once, lambda: needs, execute, again)  # type: ignore[no-any-return]

    async def unlink(self, call: ServerCall) -> p.Gone:
        """Unlink or rmdir."""
        core = self._core
        m, client = core.opened(call, p.Unlink)
        cred, once = core.cred(call, m.who, m.dir), calls.once_of(call.params)
        seen, full = 0, False

        def needs() -> tuple[Need, ...]:
            nonlocal seen, full
            found = core.state.find_name(m.dir, m.name)
            seen = found.ino if found else 0
            full = self._is_full(seen)
            if full:
                return ()  # it will be refused: those who work there keep their folder's name
            return (Need(m.dir, How.NAMES, (m.name,)), *((Need(seen, How.ALONE),) if seen else ()))

        def execute(_allowed: Allowed) -> Plan:
            found = core.state.find_name(m.dir, m.name)
            if (found is not None and found.ino != seen) or full != self._is_full(seen):
                raise Moved
            keep = bool(seen) and core.leasing.table.in_use(seen)
            command = do.Unlink(cred, m.dir, m.name, core.now_ns(m.now_ns), m.directory, seen, keep)
            gone = core.change(client, once, command, volume_of(m.dir))
            after = (table.Orphan(seen),) if keep and gone.inode.nlink == 0 else ()
            return Plan((Give(m.dir),), lambda given: p.Gone(gone.inode.attr(), gone.folder.attr(), given[0].cache), after)

        def again(said: Reply) -> Plan:
            attr, folder = said.attrs
            return Plan((), lambda _given: p.Gone(attr, folder, False))

        return await self._change(client, once, needs, execute, again)  # type: ignore[no-any-return]

    async def rename(self, call: ServerCall) -> p.Renamed:
        """As renameat2."""
        core = self._core
        m, client = core.opened(call, p.Rename)
        cred, once = core.cred(call, m.who, m.dir), calls.once_of(call.params)
        seen = other = 0
        full = False

        def look() -> tuple[int, int]:
            one, two = core.state.find_name(m.dir, m.name), core.state.find_name(m.new_dir, m.new_name)
            return one.ino if one else 0, two.ino if two else 0

        def needs() -> tuple[Need, ...]:
            nonlocal seen, other, full
            seen, other = look()
            exchange = bool(m.flags & EXCHANGE)
            full = not exchange and self._is_full(other)
            if full:
                return ()  # it will be refused
            rows = [Need(m.dir, How.NAMES, (m.name,)), Need(m.new_dir, How.NAMES, (m.new_name,))]
            rows += [self._for_attributes(seen)] if seen else []
            rows += [self._for_attributes(other) if exchange else Need(other, How.ALONE)] if other else []
            return tuple(rows)

        def execute(_allowed: Allowed) -> Plan:
            if look() != (seen, other) or full != (not m.flags & EXCHANGE and self._is_full(other)):
                raise Moved
            keep = bool(other) and core.leasing.table.in_use(other)
            now_ns = core.now_ns(m.now_ns)
            command = do.Rename(cred, m.dir, m.name, m.new_dir, m.new_name, m.flags, now_ns, seen, other, keep)
            done = core.change(client, once, command, volume_of(m.dir))
            lost = done.replaced
            after = (table.Orphan(other),) if keep and lost is not None and lost.nlink == 0 else ()

            def finish(given: Any) -> p.Renamed:
                replaced = lost.attr() if lost is not None else None
                cache = given[0].cache and given[1].cache
                return p.Renamed(done.inode.attr(), done.folder.attr(), done.new_folder.attr(), replaced, cache)

            return Plan((Give(m.dir), Give(m.new_dir)), finish, after)

        def again(said: Reply) -> Plan:
            attr, folder, new_folder, *replaced = said.attrs
            return Plan((), lambda _given: p.Renamed(attr, folder, new_folder, replaced[0] if replaced else None, False))

        return await self._change(client, once, needs, execute, again)  # type: ignore[no-any-return]

    def _is_full(self, ino: int) -> bool:
        """Whether this is a directory that cannot be removed because it is not empty. 0: no inode."""
        inode = self._core.state.inode(ino) if ino else None
        return inode is not None and inode.is_dir and inode.entries > 0


def _named(grant: p.Grant, named: bool) -> p.Grant:
    """Return the grant, with the name to be cached or not."""
    if grant.named == named:
        return grant
    return p.Grant(
        grant.attr, grant.level, grant.epoch, grant.capability, grant.layout, grant.link, named, grant.cache, grant.shared
    )
