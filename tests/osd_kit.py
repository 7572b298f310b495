"""What the tests of the OSD and of the client's library to it share: signed rights, a running OSD, files on it."""

from __future__ import annotations

import asyncio
import contextlib
import time

from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.directory import FolderDirectory
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, SUM_BYTES, Capability, Layout, MrcRecord, Replica, SessionToken, make_ino
from xtreemos.xtreemfs.osd.server import Options, Server
from xtreemos.xtreemfs.protocol import Rights
from xtreemos.xtreemfs.striping import OsdConnections, StripedFile

SIGNER = Signer(b"m" * 32)
VO = "demo"
INO = make_ino(1, 7)


def rights(*, ino=INO, mode="w", epoch=1, node="n1", signer=SIGNER, now_s=None, quota=FILE_BYTES_MAX, layout=1, **more):
    now_s = time.time() if now_s is None else now_s
    fields = {"vo": VO, "mrc": "n1", "client": "c1"} | {k: v for k, v in more.items() if k in ("vo", "mrc", "client")}
    capability = Capability(
        **fields, node=node, ino=ino, mode=mode, epoch=epoch, layout_version=layout, quota_bytes=quota,
        expires_at=int(now_s) + more.get("life_s", 3600),
    )  # fmt: skip
    session = SessionToken(
        **fields, node=more.get("session_node", node), expires_at_ms=int(now_s * 1000) + more.get("session_ms", 10_000)
    )
    return Rights(signer.capability(capability), signer.session(session))


def layout(*osds, object_bytes=4 * SUM_BYTES):
    return Layout(1, object_bytes, (Replica(osds),))


class Osds:
    """OSDs of one machine in this process, one per name, each with its own directory view, and connections to them."""

    def __init__(self, folder):
        self.folder = folder
        self.servers = {}
        self.running = {}
        self.directory = FolderDirectory(folder / "dir", vo=VO, node="n1")
        self.connections = OsdConnections(self.directory, call_s=20)

    async def begin(self, *names, disks=1, **options):
        await self.directory.put(MrcRecord(node="n1", address="", keys=(SIGNER.public,)))
        for name in names:
            own = FolderDirectory(self.folder / "dir", vo=VO, node=name)
            folders = [self.folder / name / f"d{number}" for number in range(disks)]
            server = Server(Options(disks=folders, socket=self.folder / f"{name}.sock", **options), own)
            await server.start()
            self.servers[name] = server
            self.running[name] = asyncio.gather(server.run(), own.run())
        self.directory.look()

    async def end(self, *names):
        for name in names or list(self.servers):
            task = self.running.pop(name)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.servers.pop(name).close()

    def file(self, *names, ino=INO, **more):
        return StripedFile(self.connections, layout(*(names or ["n1"])), lambda: rights(ino=ino, **more))


def with_osds(folder, use, *names, **options):
    """Run `use(osds)` with OSDs of these names."""

    async def work():
        osds = Osds(folder)
        try:
            async with asyncio.timeout(50):
                await osds.begin(*(names or ["n1"]), **options)
                return await use(osds)
        finally:
            await osds.connections.close()
            await osds.end()

    return asyncio.run(work())
