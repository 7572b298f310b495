"""Methods that change attributes, and xattrs: `mrc.setattr`, `getxattr`, `setxattr`, `listxattr`, `removexattr`."""

from __future__ import annotations

import errno
from collections.abc import Callable

from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.xtreemfs import calls
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.lease.model import Give, How, Need
from xtreemos.xtreemfs.model import Level, volume_of
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import views
from xtreemos.xtreemfs.mrc.changing import Changing
from xtreemos.xtreemfs.mrc.model import Inode, Reply
from xtreemos.xtreemfs.mrc.outbox import Allowed, Plan


class Attrs(Changing):
    """The methods; `handlers` is their table."""

    def handlers(self) -> dict[str, Handler]:
        """Return method -> handler."""
        return {
            "mrc.setattr": self.setattr, "mrc.getxattr": self.getxattr, "mrc.setxattr": self.setxattr, "mrc.listxattr": self.listxattr,
            "mrc.removexattr": self.removexattr,
        }  # fmt: skip

    async def setattr(self, call: ServerCall) -> p.Grant:
        """A new size is taken only from who holds WRITE (or writes shared): it is who cuts the columns on the OSDs."""
        core = self._core
        m, client = core.opened(call, p.SetAttr)
        cred, once = core.cred(call, m.who, m.ino), calls.once_of(call.params)
        if m.size >= 0:
            await core.make_room(m.ino, m.size)

        def execute(_allowed: Allowed) -> Plan:
            held = core.leasing.table.held(client, m.ino)
            writes = Level.WRITE in (held.level, held.shared) and held.epoch == m.epoch
            if m.size >= 0 and not writes and core.state.inode(m.ino).is_file:
                raise FsError(errno.ESTALE, "the size of a file is set by who holds its WRITE lease", "acquire it first")
            now_ns = core.now_ns(m.now_ns)
            command = do.SetAttr(cred, m.ino, now_ns, m.mode, m.uid, m.gid, m.size, m.atime_ns, m.mtime_ns, m.times_now, writes)
            return self._changed(core.change(client, once, command, volume_of(m.ino)))

        def needs() -> tuple[Need, ...]:
            # With its mode a directory's ACL changes, which is read as an xattr; of these no answer says "do not keep".
            has_acl = m.mode >= 0 and core.state.inode(m.ino).acl
            return (Need(m.ino, How.ALONE) if has_acl else self._for_attributes(m.ino),)

        try:
            return await self._change_inode(client, once, needs, execute)
        except FsError as error:
            if error.errno != errno.EDQUOT or core.state.find_promise(m.ino) is None:
                raise
        await core.withdraw((m.ino,))  # a new owner may have room for the file, but not for what its writers were promised
        return await self._change_inode(client, once, needs, execute)

    async def _change_inode(
        self, client: str, once: p.Once | None, needs: Callable[[], tuple[Need, ...]], execute: Callable[[Allowed], Plan]
    ) -> p.Grant:
        def again(said: Reply) -> Plan:
            return Plan((), lambda _given: self._was(client, said.attrs[0]))

        return await self._change(client, once, needs, execute, again)  # type: ignore[no-any-return]

    def _changed(self, inode: Inode) -> Plan:
        return Plan((Give(inode.ino),), lambda given: self._core.grant(inode, given[0]))

    async def setxattr(self, call: ServerCall) -> p.Grant:
        """Xattrs and ACLs."""
        core = self._core
        m, client = core.opened(call, p.SetXattr)
        cred, once = core.cred(call, m.who, m.ino), calls.once_of(call.params)

        def execute(_allowed: Allowed) -> Plan:
            command = do.SetXattr(cred, m.ino, m.name, m.value, m.flags, core.now_ns(m.now_ns))
            return self._changed(core.change(client, once, command, volume_of(m.ino)))

        return await self._change_inode(client, once, lambda: (Need(m.ino, How.ALONE),), execute)

    async def removexattr(self, call: ServerCall) -> p.Grant:
        """Xattrs and ACLs."""
        core = self._core
        m, client = core.opened(call, p.RemoveXattr)
        cred, once = core.cred(call, m.who, m.ino), calls.once_of(call.params)

        def execute(_allowed: Allowed) -> Plan:
            command = do.RemoveXattr(cred, m.ino, m.name, core.now_ns(m.now_ns))
            return self._changed(core.change(client, once, command, volume_of(m.ino)))

        return await self._change_inode(client, once, lambda: (Need(m.ino, How.ALONE),), execute)

    async def getxattr(self, call: ServerCall) -> bytes:
        """See `views.get_xattr`."""
        m = calls.message_of(call.params, p.GetXattr)
        value = views.get_xattr(self._core.state, self._core.cred(call, m.who, m.ino), m.ino, m.name)
        return await self._core.leasing.ordered(value, call)

    async def listxattr(self, call: ServerCall) -> list[bytes]:
        """See `views.list_xattrs`."""
        m = calls.message_of(call.params, p.ListXattr)
        names = views.list_xattrs(self._core.state, self._core.cred(call, m.who, m.ino), m.ino)
        return await self._core.leasing.ordered(names, call)
