"""What tests of the MRC share: a disk that loses power, a world of one volume, and a running server with clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Self

import msgspec
import pytest

from xtreemos.errors import RemoteError
from xtreemos.fabric import rpc
from xtreemos.foundation.frames import Kind
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.directory import FolderDirectory
from xtreemos.xtreemfs.errors import FsError, errno_of
from xtreemos.xtreemfs.model import Layout, OsdRecord, Replica, VolumePolicy, VolumeRecord, make_ino
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import machine, views
from xtreemos.xtreemfs.mrc.kv import MemoryKv
from xtreemos.xtreemfs.mrc.model import Cred, Inode
from xtreemos.xtreemfs.mrc.server import Options, Server
from xtreemos.xtreemfs.mrc.state import State

ROOT = make_ino(1, 1)
SUPER = Cred(0, 0, (), root=True)
ALICE = Cred(1001, 1001, (2000,))
BOB = Cred(1002, 1002, (2000,))
EVE = Cred(1003, 1003)
LAYOUT = Layout(1, 4 << 20, (Replica(("n1", "n2")),))
FILE, DIR, LINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO


# -- the machine alone ---------------------------------------------------------------------------------------------------


class World:
    """One volume (id 1) on a store in memory; each call is a command. Times are the commands' numbers."""

    def __init__(self, *, mode: int = 0o777, policy: VolumePolicy | None = None) -> None:
        self.kv = MemoryKv()
        self.log: list[do.Command] = []
        record = VolumeRecord(name="vol", id=1, mrc="n1", owner="alice", policy=policy or VolumePolicy())
        self.run(do.MakeVolume(record, mode, 0, 0, 1))

    def run(self, command: do.Command) -> Any:
        before = dict(self.kv.rows)
        try:
            outcome = machine.apply(self.kv, len(self.log) + 1, command)
        except FsError:
            assert self.kv.rows == before, "a refused command changed something"
            raise
        self.log.append(command)
        return outcome.result

    @property
    def state(self) -> State:
        return State(self.kv, len(self.log))

    @property
    def now(self) -> int:
        return 1_000_000 + len(self.log)

    def make(self, name: str, mode: int = FILE | 0o644, cred: Cred = SUPER, at: int = ROOT, umask: int = 0, **more: Any) -> Inode:
        command = do.Create(
            cred, at, name.encode(), mode, umask, self.now, layout=LAYOUT if stat.S_ISREG(mode) else None,
            link=b"target" if stat.S_ISLNK(mode) else b"", **more,
        )  # fmt: skip
        return self.run(command).inode

    def mkdir(self, name: str, mode: int = 0o755, cred: Cred = SUPER, at: int = ROOT, **more: Any) -> Inode:
        return self.make(name, DIR | mode, cred, at, **more)

    def unlink(self, name: str, cred: Cred = SUPER, at: int = ROOT, *, directory: bool = False, keep: bool = False) -> Any:
        return self.run(do.Unlink(cred, at, name.encode(), self.now, directory, 0, keep))

    def rmdir(self, name: str, cred: Cred = SUPER, at: int = ROOT) -> Any:
        return self.unlink(name, cred, at, directory=True)

    def link(self, ino: int, name: str, cred: Cred = SUPER, at: int = ROOT) -> Any:
        return self.run(do.Link(cred, ino, at, name.encode(), self.now))

    def rename(self, name: str, new: str, cred: Cred = SUPER, at: int = ROOT, to: int = 0, flags: int = 0) -> Any:
        return self.run(do.Rename(cred, at, name.encode(), to or at, new.encode(), flags, self.now))

    def set(self, ino: int, cred: Cred = SUPER, **fields: Any) -> Inode:
        return self.run(do.SetAttr(cred, ino, self.now, **fields))

    def get(self, name: str, cred: Cred = SUPER, at: int = ROOT) -> Inode | None:
        return views.lookup(self.state, cred, at, name.encode())[1]

    def ino(self, ino: int) -> Inode:
        return self.state.inode(ino)

    def names(self, at: int = ROOT) -> list[str]:
        return [name.decode() for name, _row in views.listing(self.state, SUPER, at, 0, 4096)[1].rows]


def refused(number: int, call: Callable[..., Any], *args: Any, **more: Any) -> None:
    """Assert that a call is refused with this errno."""
    with pytest.raises(FsError) as caught:
        call(*args, **more)
    assert caught.value.errno == number, f"{caught.value.code} instead of {errno.errorcode[number]}"


# -- a disk that loses power ----------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """The machine lost power at a fail point."""


class CutDisk:
    """A `Disk` in memory: what was not synced may be lost in any part when the power goes; the power goes after `fuel` steps."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.fuel = 1 << 60
        self.files: dict[str, bytearray] = {}
        self.pending: list[tuple[str, int, bytes]] = []
        self.room = 1 << 40

    def step(self) -> None:
        self.fuel -= 1
        if self.fuel < 0:
            raise PowerCut

    def power_on(self) -> None:
        """What the disk holds after a power cut: of each unsynced write a part, or nothing, or all; in any order of pages."""
        for name, offset, data in self.pending:
            if name not in self.files:
                continue
            for page in range(0, len(data), 64):  # small pages, so that records tear often
                fate = self.random.random()
                piece = data[page : page + 64]
                if fate < 0.5:
                    continue
                if fate < 0.6:
                    piece = piece[: self.random.randrange(len(piece) + 1)]
                self._put(name, offset + page, piece)
        self.pending.clear()
        self.fuel = 1 << 60

    def _put(self, name: str, offset: int, data: bytes) -> None:
        self.files[name][offset : offset + len(data)] = data

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        held = bytearray(self.files[name])
        for other, offset, data in self.pending:
            if other == name:
                held[offset : offset + len(data)] = data
        return bytes(held)

    def create(self, name: str, size: int) -> Any:
        self.step()
        if size > self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.files[name] = bytearray(size)
        return _CutFile(self, name)

    def open(self, name: str) -> Any:
        return _CutFile(self, name)

    def remove(self, name: str) -> None:
        self.step()
        self.files.pop(name, None)

    def free_bytes(self) -> int:
        return self.room


class _CutFile:
    def __init__(self, disk: CutDisk, name: str) -> None:
        self.disk, self.name = disk, name

    def write(self, offset: int, data: bytes) -> None:
        self.disk.step()
        self.disk.pending.append((self.name, offset, bytes(data)))

    def sync(self) -> None:
        self.disk.step()
        for name, offset, data in [row for row in self.disk.pending if row[0] == self.name]:
            self.disk._put(name, offset, data)
        self.disk.pending = [row for row in self.disk.pending if row[0] != self.name]
        self.disk.step()  # on the disk, but nobody was told

    def resize(self, size: int) -> None:
        self.disk.step()
        self.sync()
        held = self.disk.files[self.name]
        self.disk.files[self.name] = held[:size] + bytes(max(0, size - len(held)))

    def close(self) -> None:
        pass


class CutBase(MemoryKv):
    """A store below the log whose commits are whole or nothing, like LMDB's."""

    def __init__(self, disk: CutDisk, durable: dict[bytes, bytes] | None = None) -> None:
        super().__init__(durable)
        self.disk = disk
        self.durable = dict(durable or {})

    def commit(self) -> None:
        self.disk.step()
        self.durable = dict(self.rows)
        self.disk.step()

    def close(self) -> None:
        pass


# -- a running server ------------------------------------------------------------------------------------------------------


class Client:
    """One connection with a session; answers every recall at once unless `stubborn`."""

    def __init__(self, peer: rpc.Peer) -> None:
        self.peer = peer
        self.id = secrets.token_hex(16)
        self.who = protocol.Who(0)
        self.recalls: list[protocol.Recall] = []
        self.stubborn = False
        self.pin: set[int] = set()
        self.last_words: dict[int, protocol.Update] = {}
        """What it says of an inode when that is called back."""
        self.session: rpc.ClientCall | None = None
        self.welcome: protocol.Welcome | None = None
        self._task: asyncio.Task[None] | None = None

    async def call(self, method: str, message: Any, kind: Any = None, once: protocol.Once | None = None) -> Any:
        """Call; a refusal with an errno comes as FsError."""
        try:
            body = await self.peer.call(method, calls.params(message, once), timeout_s=15)
        except RemoteError as error:
            if error.code.startswith("E") or error.code in {
                "ticket-refused",
                "capability-refused",
                "volume-unknown",
                "actor-unknown",
            }:
                raise FsError(errno_of(error), error.message) from error
            raise
        return calls.answer_of(body, kind) if kind is not None else body

    async def open(self, ticket: bytes = b"local:alice", **more: Any) -> None:
        self.session = self.peer.open("mrc.session", calls.params(protocol.OpenSession(self.id, **more)))
        frame = await asyncio.wait_for(self.session.receive(), 10)
        self.welcome = calls.answer_of(frame.body, protocol.Welcome | protocol.Recall)
        self._task = asyncio.create_task(self._follow(self.session))
        await self.act(ticket)

    async def act(self, ticket: bytes, root_of: int = 0) -> protocol.Acting:
        acting = await self.call("mrc.act", protocol.Act(ticket, root_of), protocol.Acting)
        self.who = protocol.Who(acting.actor)
        return acting

    async def _follow(self, session: rpc.ClientCall) -> None:
        with contextlib.suppress(RemoteError, rpc.ConnectionLost):
            while True:
                frame = await session.receive()
                if frame.kind is Kind.RESULT:
                    return
                recall = calls.answer_of(frame.body, protocol.Welcome | protocol.Recall)
                self.recalls.append(recall)
                if not self.stubborn:
                    await self.give(recall)

    async def give(self, recall: protocol.Recall, update: protocol.Update | None = None) -> None:
        pin = recall.ino in self.pin
        update = update or self.last_words.pop(recall.ino, None)
        await self.call("mrc.release", protocol.Release(recall.ino, recall.level, recall.seq, update, pin))

    async def create(self, at: int, name: str, mode: int = FILE | 0o644, **more: Any) -> protocol.Made:
        return await self.call(
            "mrc.create", protocol.Create(self.who, at, name.encode(), mode, 0o22, time.time_ns(), **more), protocol.Made
        )

    async def lookup(self, at: int, name: str) -> protocol.Looked:
        return await self.call("mrc.lookup", protocol.Lookup(self.who, at, name.encode()), protocol.Looked)

    async def acquire(self, ino: int, level: int = 2, mode: str = "rw", **more: Any) -> protocol.Grant:
        return await self.call("mrc.acquire", protocol.Acquire(self.who, ino, level, mode, **more), protocol.Grant)

    async def getattr(self, ino: int) -> protocol.Grant:
        return await self.call("mrc.getattr", protocol.GetAttr(self.who, ino), protocol.Grant)

    async def unlink(self, at: int, name: str, *, directory: bool = False) -> protocol.Gone:
        return await self.call("mrc.unlink", protocol.Unlink(self.who, at, name.encode(), time.time_ns(), directory), protocol.Gone)

    async def mkvol(self, name: str, kind: str = "shared", policy: dict[str, Any] | None = None) -> VolumeRecord:
        return await self.call("mrc.mkvol", protocol.MakeVolume(self.who, name, kind, 0o755, policy or {}), VolumeRecord)

    def cut(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.peer.close()


class Osd:
    """An object server as the MRC sees one: it remembers fences and deletions."""

    def __init__(self) -> None:
        self.fenced: list[tuple[int, int]] = []
        self.deleted: set[int] = set()
        self.lengths: dict[tuple[int, int], int] = {}
        self.away = False

    async def fence(self, call: rpc.ServerCall) -> list[int]:
        m = calls.message_of(call.params, protocol.OsdFence)
        if self.away:
            raise FsError(errno.EIO)
        self.fenced.append((m.ino, m.epoch))
        return [self.lengths.get((m.ino, column), 0) for column in m.columns]

    async def delete(self, call: rpc.ServerCall) -> None:
        m = calls.message_of(call.params, protocol.OsdDelete)
        if self.away:
            raise FsError(errno.EIO)
        self.deleted.update(m.inos)


class Grid:
    """A server in a folder, with object servers `n1` and `n2`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = FolderDirectory(folder / "dir", vo="demo", node="n1")
        self.server: Server | None = None
        self.osds = {"n1": Osd(), "n2": Osd()}
        self._running: asyncio.Future[Any] | None = None
        self._listeners: list[rpc.Server] = []
        self._clients: list[Client] = []

    async def __aenter__(self) -> Self:
        for node, osd in self.osds.items():
            path = self.folder / f"{node}.sock"
            self._listeners.append(await rpc.serve_unix(path, {"osd.fence": osd.fence, "osd.delete": osd.delete}))
            await self.beat(node, free_bytes=1 << 40)
        await self.start()
        return self

    async def beat(self, node: str, *, free_bytes: int, **more: Any) -> None:
        record = OsdRecord(
            node=node, address="", socket=str(self.folder / f"{node}.sock"), total_bytes=1 << 41, free_bytes=free_bytes, beat_at=int(time.time())
        )  # fmt: skip
        await self.directory.put(msgspec.structs.replace(record, **more))

    async def start(self, **more: Any) -> Server:
        self.server = Server(Options(self.folder / "mrc", self.folder / "mrc.sock"), self.directory, **more)
        await self.server.start()
        self._running = asyncio.gather(self.server.run(), self.directory.run())
        return self.server

    async def stop(self) -> None:
        """End the server; clients lose their connections."""
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        assert self.server is not None
        await self.server.close()
        self._running = self.server = None

    async def client(self, ticket: bytes = b"local:alice", **more: Any) -> Client:
        client = Client(await rpc.connect_unix(self.folder / "mrc.sock"))
        self._clients.append(client)
        await client.open(ticket, **more)
        return client

    async def kill(self) -> None:
        """End the server as kill -9 would: nothing is committed or said; a new one finds store and log as they were on the disk."""
        assert self._running is not None
        assert self.server is not None
        server, self.server = self.server, None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await server._doors.close()
        await server.worker.close()
        server.store._base.close()
        server.store._log.close()
        server.audit.close()
        server._lock.close()

    async def again(self, client: Client, **more: Any) -> Client:
        """The same session on a new connection."""
        other = Client(await rpc.connect_unix(self.folder / "mrc.sock"))
        other.id, other.pin, other.stubborn = client.id, client.pin, client.stubborn
        self._clients.append(other)
        await other.open(**more)
        return other

    async def __aexit__(self, *_error: object) -> None:
        for client in self._clients:
            client.cut()
        if self.server is not None:
            await self.stop()
        for listener in self._listeners:
            await listener.close()

    def audited(self) -> str:
        return (self.folder / "mrc" / "audit.jsonl").read_text()


def run(tmp_path: Path, work: Callable[[Grid], Any]) -> None:
    """Run a test's coroutine with a grid, with a deadline."""

    async def inside() -> None:
        async with Grid(tmp_path) as grid:
            await asyncio.wait_for(work(grid), 30)

    asyncio.run(inside())


async def until(true: Callable[[], Any], within_s: float = 10) -> None:
    """Wait for a condition, looking at it often."""
    for _turn in itertools.count():
        if true():
            return
        assert _turn < within_s * 50, "it did not come true"
        await asyncio.sleep(0.02)
