"""Methods about sessions and leases: `mrc.session`, `renew`, `bye`, `act`, `acquire`, `release`, `releases`, `update`, `updates`, `forget`."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import Any, Final, cast

from xtreemos.errors import PermissionRefused
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease import table_model as table
from xtreemos.xtreemfs.lease.model import LEASE_S, Claim, Give, Given, How, Need
from xtreemos.xtreemfs.model import Level, SessionToken, volume_of
from xtreemos.xtreemfs.mrc import access, views
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.actors import Audit
from xtreemos.xtreemfs.mrc.model import READ, WRITE, Cred, Inode
from xtreemos.xtreemfs.mrc.outbox import Allowed, Plan
from xtreemos.xtreemfs.mrc.serving import Core

CLAIMS_MAX: Final = 250_000  # what one client may say it has: a little more than it may have
_CLIENT_ID: Final = re.compile(r"[0-9a-f]{32}")


class Opening:
    """The methods; `handlers` is their table."""

    def __init__(self, core: Core, audit: Audit, reclaim: Callable[[str, tuple[p.LockRow, ...]], tuple[p.LockRow, ...]]) -> None:
        self._core = core
        self._audit = audit
        self._reclaim = reclaim
        self.nodes: dict[str, str] = {row.client: row.node for row in core.state.sessions()}
        """Session -> node that opened it: no other may take it over."""
        self._lock_rows: dict[str, tuple[p.LockRow, ...]] = {}
        """Of sessions that are being opened: locks they say they have, then those of them that they have not."""
        self.ended: set[tuple[int, str]] = set()
        """(inode, client) that gave the right to write back; noted in the store now and then."""

    def handlers(self) -> dict[str, Handler]:
        """Return method -> handler."""
        return {
            "mrc.session": self.session, "mrc.renew": self.renew, "mrc.bye": self.bye, "mrc.act": self.act,
            "mrc.acquire": self.acquire, "mrc.release": self.release,
            "mrc.releases": self.releases, "mrc.update": self.update,
            "mrc.updates": self.updates, "mrc.forget": self.forget,
        }  # fmt: skip

    # -- sessions --------------------------------------------------------------------------------------------------------

    async def session(self, call: ServerCall) -> None:
        """Stays open: `Welcome`, then recalls, until the connection ends or another one takes the session over."""
        core = self._core
        m = calls.message_of(call.params, p.OpenSession)
        node = core.node_of(call)
        if not _CLIENT_ID.fullmatch(m.client) or len(m.held) > CLAIMS_MAX:
            raise FsError(errno.EINVAL, "that is no session id, or too much is claimed")
        self._check_node(call, m.client, node)
        self.nodes[m.client] = node
        for client in m.dead:
            if client != m.client and client in self.nodes:
                self._check_node(call, client, node)
                core.leasing.feed(table.Close(client))
        claims = tuple(
            Claim(row.ino, Level(row.level), row.epoch, row.pin, Level(row.through), Level(row.shared)) for row in m.held
        )
        self._lock_rows[m.client] = m.locks
        ended, opened = await core.leasing.attach(call, table.Open(m.client, claims, m.anew))
        try:
            lost_locks = self._lock_rows.pop(m.client, ())
            row = core.state.session(m.client)
            call.send_event(p.Welcome(int(LEASE_S * 1000), opened.lost, lost_locks, row.life if row is not None else 0))
            await ended
        finally:
            core.leasing.detach(call, m.client)

    def reclaim(self, client: str) -> None:
        """The table has opened the session: its locks are taken back; of what it brought, those stay that are lost."""
        self._lock_rows[client] = self._reclaim(client, self._lock_rows.get(client, ()))

    def _check_node(self, call: ServerCall, client: str, node: str) -> None:
        held = self.nodes.get(client, node)
        if held != node:
            self._audit(str(call.caller), "mrc.session", f"session {client[:8]} belongs to node {held}")
            raise PermissionRefused("that session was opened by another node", "make a new session id")

    async def renew(self, call: ServerCall) -> p.Renewed:
        """A new session token."""
        m = calls.message_of(call.params, p.Renew)
        client = self._core.leasing.client_of(call.peer)
        if m.client != client:
            raise FsError(errno.EINVAL, "that is not the session of this connection")
        await self._core.leasing.renew(client)
        return p.Renewed(self._token(client, self._core.node_of(call)))

    def _token(self, client: str, node: str) -> bytes:
        core = self._core
        ends_ms = int((time.time() + LEASE_S) * 1000)
        return core.signer.session(SessionToken(core.vo, core.node, client, node, ends_ms))

    async def bye(self, call: ServerCall) -> None:
        """Everything of the session ends."""
        m, client = self._core.opened(call, p.Bye)
        if m.client != client:
            raise FsError(errno.EINVAL, "that is not the session of this connection")
        self._core.leasing.feed(table.Close(client))
        await self._core.leasing.ordered(None, call)

    async def act(self, call: ServerCall) -> p.Acting:
        """An actor for a ticket."""
        m = calls.message_of(call.params, p.Act)
        acting = self._core.actors.act(call.peer, self._core.node_of(call), m)
        return await self._core.leasing.ordered(acting, call)

    # -- leases ----------------------------------------------------------------------------------------------------------

    async def acquire(self, call: ServerCall) -> p.Grant:
        """A lease, and the opening of a file by the rights asked for."""
        core = self._core
        m, client = core.opened(call, p.Acquire)
        cred, node = core.cred(call, m.who, m.ino), core.node_of(call)
        inode = core.state.inode(m.ino)
        rights = self._check_open(client, cred, inode, m)
        if inode.is_dir:
            given = core.leasing.table.glance(client, m.ino, core.leasing.now_s())
            return await core.leasing.ordered(core.grant(inode, given), call)
        alone = m.level >= Level.WRITE and inode.is_file
        if alone and m.end:
            await core.make_room(m.ino, m.end)

        def execute(allowed: Allowed) -> Plan:
            found = core.state.inode(m.ino)
            self._check_open(client, cred, found, m)
            core.allow(client, m.ino, rights)
            give = self._give(client, allowed[m.ino], alone=alone)
            if m.truncate:
                command = do.SetAttr(cred, m.ino, time.time_ns(), size=0, held=True)
                found = core.execute(command, volume_of(m.ino))
            if alone:
                core.promise(found, m.end)
            cold = core.state.cold(m.ino)

            def finish(given: tuple[Given, ...]) -> p.Grant:
                if found.is_file:
                    return core.open_grant(client, node, found, given[0], cold.layout)
                return core.grant(found, given[0], link=cold.link)

            return Plan((give,), finish)

        need = Need(m.ino, How.ALONE if alone else How.READ)
        return await core.leasing.ask(client, lambda: (need,), execute)  # type: ignore[no-any-return]

    def _check_open(self, client: str, cred: Cred, inode: Inode, m: p.Acquire) -> int:
        """Check the rights asked for; return what the client may do with the data from now on."""
        if inode.is_dir and (m.level >= Level.WRITE or "w" in m.mode or m.truncate):
            raise FsError(errno.EISDIR)
        wanted = views.wanted_bits(m.mode) | (WRITE if m.truncate else 0)
        if wanted:
            access.require(inode, cred, wanted)
            return wanted
        held = self._core.rights.get(client, {}).get(inode.ino, 0)
        if m.level >= Level.WRITE and not held & WRITE:
            access.require(inode, cred, WRITE)
            return held | WRITE
        if not held and access.may(inode, cred, READ):
            return READ
        return held

    def _give(self, client: str, allowed: table.Allowed, *, alone: bool) -> Give:
        core, ino = self._core, allowed.ino
        level = Level.WRITE if alone else Level.READ
        epoch = allowed.epoch
        if alone and allowed.fresh:
            epoch = core.leasing.new_epoch()
            core.execute(do.Writer(client, ino, epoch))
        elif alone and allowed.shared:
            core.execute(do.Writer(client, ino, epoch))
        if alone:
            self.ended.discard((ino, client))
        return Give(ino, shared=level, epoch=epoch) if allowed.shared else Give(ino, level, epoch if alone else 0)

    async def release(self, call: ServerCall) -> None:
        """Give back, with the writer's last word; or declare passthrough."""
        m, client = self._core.opened(call, p.Release)
        refused = self._release(client, m)
        await self._core.leasing.ordered(None, call)
        if refused is not None:
            raise refused

    async def releases(self, call: ServerCall) -> list[int]:
        """Many that no recall asked for apart, one after the other."""
        m, client = self._core.opened(call, p.Releases)
        if len(m.releases) > p.RELEASES_MAX:
            raise FsError(errno.EINVAL, f"more than {p.RELEASES_MAX} releases in one message")
        refusals = [self._release(client, one) for one in m.releases]
        answer = [0 if refused is None else refused.errno for refused in refusals]
        return await self._core.leasing.ordered(answer, call)

    def _release(self, client: str, m: p.Release) -> FsError | None:
        core = self._core
        held = core.leasing.table.held(client, m.ino)
        writes = Level.WRITE in (held.level, held.shared)
        refused: FsError | None = None
        if m.update is not None:
            try:
                self._apply(client, m.update)
            except FsError as error:  # evicted meanwhile: what it holds ends all the same
                refused = error
        if m.through == Level.WRITE and held.epoch and writes:
            core.execute(do.Writer(client, m.ino, held.epoch, m.through))
        core.leasing.feed(table.Release(client, m.ino, Level(m.level), m.seq, m.pin, Level(m.through), m.unsure))
        if not m.unsure:  # one that gave up writes stays a writer on record until it is fenced
            self._note_end(client, m.ino, wrote=writes)
        if m.level == Level.NONE and not m.pin and not m.through:
            core.disallow(client, m.ino)
        return refused

    def _note_end(self, client: str, ino: int, *, wrote: bool) -> None:
        if not wrote:
            return
        now = self._core.leasing.table.held(client, ino)
        if Level.WRITE not in (now.level, now.shared):
            if self._core.state.find_promise(ino) is not None:
                self._core.execute(do.WritersDone(((ino, client),)))  # at once: others may wait for what it was promised
            else:
                self.ended.add((ino, client))

    async def update(self, call: ServerCall) -> Any:
        """What a writer changed by itself; it keeps its lease (fsync)."""
        m, client = self._core.opened(call, p.Update)
        inode = self._apply(client, m)
        return await self._core.leasing.ordered(inode.attr(), call)

    async def updates(self, call: ServerCall) -> list[int]:
        """What a writer changed of many files that nobody waits for."""
        m, client = self._core.opened(call, p.Updates)
        if len(m.updates) > p.UPDATES_MAX:
            raise FsError(errno.EINVAL, f"more than {p.UPDATES_MAX} updates in one message")
        answer = []
        for update in m.updates:
            try:
                self._apply(client, update)
                answer.append(0)
            except FsError as refused:
                answer.append(refused.errno)
        return await self._core.leasing.ordered(answer, call)

    def _apply(self, client: str, m: p.Update) -> Inode:
        """Refuses (ESTALE) who does not hold WRITE under that epoch."""
        core = self._core
        held = core.leasing.table.held(client, m.ino)
        if Level.WRITE not in (held.level, held.shared) or held.epoch != m.epoch:
            raise FsError(errno.ESTALE, "the file was given to another client")
        command = do.Update(m.ino, m.size, m.blocks, m.mtime_ns, m.ctime_ns, m.atime_ns, m.mode, m.done)
        if command == do.Update(m.ino):
            return core.state.inode(m.ino)
        return cast("Inode", core.execute(command, volume_of(m.ino)))

    async def forget(self, call: ServerCall) -> None:
        """READ leases that fell out of the client's cache."""
        m, client = self._core.opened(call, p.Forget)
        self._core.leasing.feed(table.Forget(client, m.inos))
        for ino in m.inos:
            if not self._core.leasing.table.held(client, ino).level:
                self._core.disallow(client, ino)
        await self._core.leasing.ordered(None, call)

    def flush_ended(self) -> None:
        """Note in the store who writes no more (those that have not begun again)."""
        rows = tuple(sorted(self.ended))
        if rows:
            self._core.execute(do.WritersDone(rows))
            self.ended.clear()
