"""The client's side of OSDs: byte ranges of a *file*, read and written over all OSDs that it lies on, at the same time.

A `StripedFile` is one file with its layout and a way to get the rights of the moment; an `OsdConnections` is shared by all files of a
process. Requests to one OSD are pipelined, at most IN_FLIGHT_MAX at a time per file operation; each has a deadline, and every failure is
one FsError that names the OSD. A connection that ends is made anew once and the request sent again, which is safe: all requests of this
protocol mean the same when they are done twice by the same writer.

Sums are computed here before bytes leave and checked here when they arrive. It knows no leases, caches or metadata servers.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from xtreemos.errors import Unreachable, XosError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import ConnectionLost, NoConnection, Peer
from xtreemos.vo.tls import Identity
from xtreemos.xtreemfs.calls import answer_of, params
from xtreemos.xtreemfs.dialing import dial_tls
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.errors import FsError, errno_of
from xtreemos.xtreemfs.model import Layout, Piece
from xtreemos.xtreemfs.osd.blocks import sums_of
from xtreemos.xtreemfs.protocol import (
    OsdAllocate,
    OsdData,
    OsdFile,
    OsdRead,
    OsdSeek,
    OsdStat,
    OsdSync,
    OsdTruncate,
    OsdWrite,
    OsdWritten,
    Rights,
)

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")

REQUEST_BYTES = 1 << 20
"""Of one request: large enough that its fixed cost does not count, small enough that four are under way in an object."""
IN_FLIGHT_MAX = 4
CALL_S = 30.0
BAD_SUM_TRIES = 2

RightsNow = Callable[[], Rights]
"""The capability and the session token of the moment; called for each request, for tokens are renewed every few seconds."""


class Answer(NamedTuple):
    """What a call brought: its value, bytes beside it, and descriptors, which are the receiver's."""

    value: Any
    tail: Buffer
    fds: list[int]


class OsdConnections:
    """Connections to OSDs, one each, made when first used: the Unix socket of one on this node, TLS to others.

    `identity` gives the node's own certificate of the moment; None where all OSDs are reached by Unix sockets.
    """

    def __init__(self, directory: Directory, identity: Callable[[], Identity] | None = None, *, call_s: float = CALL_S) -> None:
        self._directory = directory
        self._identity = identity
        self._call_s = call_s
        self._peers: dict[str, Peer] = {}
        self._making: dict[str, asyncio.Task[Peer]] = {}

    async def peer(self, node: str) -> Peer:
        """Return the connection to a node's OSD. Raises FsError or Unreachable: the OSD is unknown, or does not answer."""
        peer = self._peers.get(node)
        if peer is not None and not peer.is_lost:
            return peer
        making = self._making.get(node)
        if making is None:
            making = self._making[node] = asyncio.create_task(self._make(node), name=f"connect to the OSD on {node}")
            making.add_done_callback(lambda task: self._made(node, task))
        return await asyncio.shield(making)

    def _made(self, node: str, task: asyncio.Task[Peer]) -> None:
        self._making.pop(node, None)
        if not task.cancelled() and task.exception() is None:
            self._peers[node] = task.result()

    async def _make(self, node: str) -> Peer:
        record = self._directory.state.osds.get(node)
        if record is None:
            raise FsError(errno.EHOSTUNREACH, f"the directory knows no OSD on {node}", "see `xos fs osds`")
        if record.socket and (node == self._directory.node or not record.address):
            return await rpc.connect_unix(Path(record.socket))
        if self._identity is None:
            raise FsError(errno.EHOSTUNREACH, f"the OSD on {node} is on another node, and this process has no certificate")
        return await dial_tls(record, self._identity())

    async def close(self) -> None:
        """End all connections."""
        for task in list(self._making.values()):
            task.cancel()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    async def call(
        self, node: str, method: str, message: Callable[[], Any], *, tail: Buffer = b"", want_tail: bool = False
    ) -> Answer:
        """Make one call to the OSD on a node.

        Raises:
            FsError: what the OSD refused, or ETIMEDOUT, or EHOSTUNREACH; the line names the node.
        """
        try:
            async with asyncio.timeout(self._call_s):
                try:
                    return await self._once(node, method, message, tail, want_tail)
                except (ConnectionLost, NoConnection):  # the OSD was started again, perhaps: once more, on a connection of its own
                    return await self._once(node, method, message, tail, want_tail)
        except TimeoutError as error:
            raise FsError(
                errno.ETIMEDOUT, f"the OSD on {node} did not answer within {self._call_s:g} s", "it may have been done"
            ) from error
        except Unreachable as error:
            raise FsError(errno.EHOSTUNREACH, f"the OSD on {node} cannot be reached: {error.message}", error.hint) from error
        except FsError:
            raise
        except XosError as error:
            raise FsError(errno_of(error), f"the OSD on {node}: {error.message}", error.hint) from error

    async def _once(self, node: str, method: str, message: Callable[[], Any], tail: Buffer, want_tail: bool) -> Answer:
        peer = await self.peer(node)
        beside = {"tail": True} if want_tail else {}
        call = peer.open(method, {**params(message()), **beside}, tail=tail)
        try:
            value = await call.result()
            return Answer(value, call.tail, call.fds)
        finally:
            call.close()


class StripedFile:
    """One file on its OSDs. `rights` gives what is shown to them. Not for files whose layout changes: make another one then.

    It remembers which columns it has changed since they were synced and in which boot of their OSDs, so `sync` tells if any of it was lost.
    """

    def __init__(self, connections: OsdConnections, layout: Layout, rights: RightsNow, *, replica: int = 0) -> None:
        self.layout = layout
        self.lengths: dict[int, int] = {}
        """Length of each column as last told."""
        self.blocks: dict[int, int] = {}
        """512-byte units allocated of each column as last told."""
        self._connections = connections
        self._rights = rights
        self._replica = replica
        self._osds = layout.replicas[replica].osds
        self._unsynced: dict[int, str] = {}
        self._lent: dict[int, str] = {}
        """Columns that the kernel may write by itself, so that each sync asks their OSDs, with the boot of the last one."""

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self._osds)

    @property
    def unsynced(self) -> tuple[int, ...]:
        """Columns that were changed and not synced."""
        return tuple(self._unsynced)

    # ------------------------------------------------------------------------------------------------------------- bytes

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes at `offset`; what no OSD has (holes, behind the end) is zeros.

        Raises:
            FsError: EIO for damage on the OSD or on the way, ETIMEDOUT, EHOSTUNREACH, EACCES, ESTALE.
        """
        pieces = self._pieces(offset, length)
        if len(pieces) == 1:
            data = await self._read(pieces[0])
            return data if len(data) == length else bytes(data).ljust(length, b"\0")
        out = bytearray(length)

        async def fill(piece: Piece) -> None:
            data = await self._read(piece)
            at = piece.offset - offset
            out[at : at + len(data)] = data

        await _all([fill(piece) for piece in pieces])
        return out

    async def _read(self, piece: Piece) -> Buffer:
        for _try in range(BAD_SUM_TRIES):
            call = await self._connections.call(
                piece.osd, "osd.read", lambda: OsdRead(self._rights(), piece.column, piece.at, piece.length), want_tail=True
            )
            answer = answer_of(call.value, OsdData)
            data = call.tail
            if len(data) <= piece.length and sums_of(data, piece.at) == answer.sums:
                return data
        raise FsError(errno.EIO, f"bytes from the OSD on {piece.osd} do not fit their sums")

    async def write(self, offset: int, data: Buffer, rights: RightsNow | None = None) -> None:
        """Write bytes; they are durable after `sync`. `data` must not be changed until this returns. Raises as `read`, and ENOSPC, EDQUOT.

        `rights`: those of these very bytes; what it raises ends the write before anything is sent (again).
        """
        view = memoryview(data).cast("B")
        shown = rights or self._rights

        async def send(piece: Piece) -> None:
            part = view[piece.offset - offset : piece.offset - offset + piece.length]
            sums = sums_of(part, piece.at)
            call = await self._connections.call(
                piece.osd, "osd.write", lambda: OsdWrite(shown(), piece.column, piece.at, b"", sums), tail=part
            )
            self._changed(piece.column, call)

        await _all([send(piece) for piece in self._pieces(offset, len(view))])

    def _pieces(self, offset: int, length: int) -> list[Piece]:
        """Requests for a range."""
        return [
            Piece(piece.osd, piece.column, piece.offset + cut, piece.at + cut, min(REQUEST_BYTES, piece.length - cut))
            for piece in self.layout.pieces(offset, length, self._replica)
            for cut in range(0, piece.length, REQUEST_BYTES)
        ]

    # ------------------------------------------------------------------------------------------------------------ columns

    async def truncate(self, size: int) -> None:
        """Give every column the length that it has in a file of `size` bytes."""
        await self._columns(
            range(self.width),
            "osd.truncate",
            lambda column: OsdTruncate(self._rights(), column, self.layout.column_bytes(size, column, self._replica)),
        )

    async def allocate(self, offset: int, length: int, how: Literal["a", "k", "p", "z"]) -> None:
        """Allocate, allocate and keep the size, punch or zero a range of the file."""

        async def ask(piece: Piece) -> None:
            call = await self._connections.call(
                piece.osd, "osd.allocate", lambda: OsdAllocate(self._rights(), piece.column, piece.at, piece.length, how)
            )
            self._changed(piece.column, call)

        await _all([ask(piece) for piece in self.layout.pieces(offset, length, self._replica)])

    async def sync(self) -> None:
        """Make durable what was changed through this object.

        Raises:
            FsError(EIO): an OSD's machine went down in between, or its disk failed: changes since the last sync may be lost.
        """
        before = {**self._lent, **self._unsynced}
        answers = await self._ask(tuple(before), "osd.sync", lambda column: OsdSync(self._rights(), column))
        lost = []
        for column, written in answers:
            self._told(column, written)
            self._unsynced.pop(column, None)
            if column in self._lent:
                self._lent[column] = written.boot
            if written.boot != before[column]:
                lost.append(self._osds[column])
        if lost:
            raise FsError(errno.EIO, f"the OSD on {lost[0]} went down since the last sync: what was written meanwhile may be lost")

    async def stat(self) -> tuple[int, int]:
        """Ask all OSDs; returns (the smallest size that explains their columns, 512-byte units allocated in all)."""
        answers = await self._ask(range(self.width), "osd.stat", lambda column: OsdStat(self._rights(), column))
        for column, written in answers:
            self._told(column, written)
        return self.layout.size_from_columns(tuple(written.length for _column, written in answers)), sum(
            written.blocks for _column, written in answers
        )

    async def seek(self, offset: int, size: int, what: Literal["d", "h"]) -> int:
        """Return where the next data ("d") or hole ("h") at or after `offset` is in a file of `size` bytes; `size` counts as a hole; -1: no data."""
        at = offset
        while at < size:
            for piece in self.layout.pieces(at, size - at, self._replica):
                found = await self._seek(piece, what)
                if found == -1 and what == "h":
                    return piece.offset
                if found != -1 and found < piece.at + piece.length:
                    return piece.offset + found - piece.at
                at = piece.offset + piece.length
        return size if what == "h" else -1

    async def _seek(self, piece: Piece, what: Literal["d", "h"]) -> int:
        call = await self._connections.call(piece.osd, "osd.seek", lambda: OsdSeek(self._rights(), piece.column, piece.at, what))
        return answer_of(call.value, int)

    async def descriptor(self, *, write: bool) -> int:
        """Return a descriptor of the file itself, for passthrough; the caller's to close.

        With `write`, call `sync` when the program does, and once more after it was closed: only then sums are made anew.

        Raises:
            FsError(EOPNOTSUPP): the file is striped, or its OSD is not on this node.
        """
        if self.width != 1:
            raise FsError(errno.EOPNOTSUPP, "a striped file has no descriptor")
        call = await self._connections.call(self._osds[0], "osd.file", lambda: OsdFile(self._rights(), 0, write))
        if len(call.fds) != 1:
            for descriptor in call.fds:
                os.close(descriptor)
            raise FsError(errno.EOPNOTSUPP, f"the OSD on {self._osds[0]} is not on this node")
        self._told(0, answer_of(call.value, OsdWritten))
        if write:
            self._lent.setdefault(0, answer_of(call.value, OsdWritten).boot)
        return call.fds[0]

    # ------------------------------------------------------------------------------------------------------------- helpers

    async def _columns(self, columns: Iterable[int], method: str, message: Callable[[int], Any]) -> None:
        async def ask(column: int) -> None:
            self._changed(column, await self._connections.call(self._osds[column], method, lambda: message(column)))

        await _all([ask(column) for column in columns])

    async def _ask(self, columns: Iterable[int], method: str, message: Callable[[int], Any]) -> list[tuple[int, OsdWritten]]:
        async def ask(column: int) -> tuple[int, OsdWritten]:
            call = await self._connections.call(self._osds[column], method, lambda: message(column))
            return column, answer_of(call.value, OsdWritten)

        return await _all([ask(column) for column in columns])

    def _changed(self, column: int, call: Answer) -> None:
        written = answer_of(call.value, OsdWritten)
        self._unsynced.setdefault(column, written.boot)
        self._told(column, written)

    def _told(self, column: int, written: OsdWritten) -> None:
        self.lengths[column] = written.length
        self.blocks[column] = written.blocks


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do things, IN_FLIGHT_MAX at a time; return their results in order. The first failure cancels the rest and is raised when all have ended."""
    if len(work) == 1:
        return [await work[0]]
    slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def one(step: Coroutine[Any, Any, T]) -> T:
        async with slots:
            return await step

    tasks = [asyncio.ensure_future(one(step)) for step in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for step in work:
            step.close()  # those that never began
