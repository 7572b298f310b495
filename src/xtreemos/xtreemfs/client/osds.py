"""The OSDs as the client uses them: a range of a file is read or written by requests to all OSDs that it lies on, at the same time.

Sums are computed here before bytes leave and checked here when they arrive, so that nothing in between can change them unseen. It knows
layouts and rights, but no leases: whoever calls holds one.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar
from zlib import crc32

from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs.client.links import Link
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import SUM_BYTES, Layout, MrcRecord, OsdRecord, Piece
from xtreemos.xtreemfs.protocol import (
    OsdAllocate,
    OsdData,
    OsdRead,
    OsdSeek,
    OsdStat,
    OsdSync,
    OsdTruncate,
    OsdWrite,
    OsdWritten,
    Rights,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview
RightsNow = Callable[[], Rights]
"""Makes the rights when a request is sent: session tokens are renewed while one waits."""
READ_BYTES_MAX = 1 << 20  # of one request; longer ranges are cut, so that they come in parallel

Dialer = Callable[[MrcRecord | OsdRecord], Awaitable[Peer]]


class Target(Protocol):
    """A file, as far as its OSDs matter."""

    ino: int
    layout: Layout


def sums_of(data: Buffer, at: int) -> tuple[int, ...]:
    """Return the CRC-32 of each SUM_BYTES block part of bytes that lie at `at` in their column."""
    view = memoryview(data)
    if at % SUM_BYTES == 0 and len(view) <= SUM_BYTES:
        return (crc32(view),) if view else ()
    first = SUM_BYTES - at % SUM_BYTES
    cuts = [0, *range(first, len(view), SUM_BYTES), len(view)]
    return tuple(crc32(view[a:b]) for a, b in itertools.pairwise(cuts) if b > a)


class Osds:
    """Links to all OSDs that this client uses."""

    def __init__(self, directory: Directory, dialer: Dialer) -> None:
        self._directory = directory
        self._dialer = dialer
        self._links: dict[str, Link] = {}
        self.read_bytes = 0
        self.written_bytes = 0

    def link(self, node: str) -> Link:
        """Return the link to the OSD of a node, which need not be there."""
        if node not in self._links:

            async def dial() -> Peer:
                record = self._directory.state.osds.get(node)
                if record is None:
                    raise FuseError(errno.EHOSTUNREACH)
                return await self._dialer(record)

            self._links[node] = Link(f"the OSD on {node}", dial)
        return self._links[node]

    def links(self) -> dict[str, Link]:
        """All links by node."""
        return dict(self._links)

    async def close(self) -> None:
        """End all connections."""
        for link in self._links.values():
            await link.close()

    # ------------------------------------------------------------------------------------------------------------- bytes

    async def read(self, layout: Layout, rights: RightsNow, offset: int, length: int) -> bytes | bytearray:
        """Return `length` bytes at `offset`; what no OSD has is zeros. FuseError: EIO for damage, ETIMEDOUT, ESTALE, EACCES."""
        pieces = list(layout.pieces(offset, length))
        if len(pieces) == 1 and length <= READ_BYTES_MAX:
            data = await self._read(pieces[0], rights)
            return data if len(data) == length else bytes(data) + bytes(length - len(data))
        out = bytearray(length)

        async def fill(piece: Piece) -> None:
            data = await self._read(piece, rights)
            out[piece.offset - offset : piece.offset - offset + len(data)] = data

        await all_of([fill(part) for piece in pieces for part in _parts(piece)])
        return out

    async def _read(self, piece: Piece, rights: RightsNow) -> bytes:
        for attempt in (1, 2):
            got: OsdData = await self.link(piece.osd).call(
                "osd.read", _Later(lambda: OsdRead(rights(), piece.column, piece.at, piece.length)), OsdData
            )
            if len(got.data) <= piece.length and sums_of(got.data, piece.at) == got.sums:
                self.read_bytes += len(got.data)
                return got.data
            log.error(
                "bytes from the OSD on %s do not fit their sums (column %d at %d, try %d)",
                piece.osd,
                piece.column,
                piece.at,
                attempt,
            )
        raise FuseError(errno.EIO)

    async def write(self, layout: Layout, rights: RightsNow, offset: int, data: Buffer) -> list[tuple[int, OsdWritten]]:
        """Write bytes to all complete replicas; return rows of (column, what its OSD says)."""
        view = memoryview(data)
        rows: list[tuple[int, OsdWritten]] = []

        async def send(piece: Piece) -> None:
            part = view[piece.offset - offset : piece.offset - offset + piece.length]
            sums = sums_of(part, piece.at)
            message = _Later(lambda: OsdWrite(rights(), piece.column, piece.at, part, sums))  # type: ignore[arg-type]  # a buffer goes out as bytes
            rows.append((piece.column, await self.link(piece.osd).call("osd.write", message, OsdWritten)))
            self.written_bytes += piece.length

        await all_of([send(piece) for piece in layout.pieces(offset, len(view))])
        return rows

    # ----------------------------------------------------------------------------------------------------------- columns

    async def sync(self, layout: Layout, rights: RightsNow, columns: Sequence[int]) -> list[tuple[int, OsdWritten]]:
        """Bring columns to their disks; rows of (column, answer)."""
        return await self._columns(layout, columns, "osd.sync", lambda column: OsdSync(rights(), column))

    async def stat(self, layout: Layout, rights: RightsNow) -> list[tuple[int, OsdWritten]]:
        """Ask for lengths and allocations of all columns."""
        return await self._columns(layout, range(_width(layout)), "osd.stat", lambda column: OsdStat(rights(), column))

    async def truncate(self, layout: Layout, rights: RightsNow, size: int) -> list[tuple[int, OsdWritten]]:
        """Set the length of every column to what a file of `size` bytes has."""
        return await self._columns(
            layout,
            range(_width(layout)),
            "osd.truncate",
            lambda column: OsdTruncate(rights(), column, layout.column_bytes(size, column)),
        )

    async def allocate(self, layout: Layout, rights: RightsNow, offset: int, length: int, how: str) -> list[tuple[int, OsdWritten]]:
        """Allocate, punch or zero a range (see `OsdAllocate.how`)."""
        rows: list[tuple[int, OsdWritten]] = []

        async def ask(piece: Piece) -> None:
            message = _Later(lambda: OsdAllocate(rights(), piece.column, piece.at, piece.length, how))  # type: ignore[arg-type]  # one of four letters
            rows.append((piece.column, await self.link(piece.osd).call("osd.allocate", message, OsdWritten)))

        await all_of([ask(piece) for piece in layout.pieces(offset, length)])
        return rows

    async def seek(self, layout: Layout, rights: RightsNow, offset: int, size: int, what: str) -> int:
        """Return the place of the next data ("d") or hole ("h") at or after `offset`, `size` if there is no hole before the end, -1 for no data."""
        at = offset
        while at < size:
            for piece in layout.pieces(at, size - at):
                message = _Later(lambda piece=piece: OsdSeek(rights(), piece.column, piece.at, what))  # type: ignore[misc,arg-type]  # bound now
                found: int = await self.link(piece.osd).call("osd.seek", message, int)
                if found == -1:
                    if what == "h":
                        return piece.offset  # the column ends before the piece: all hole
                elif found < piece.at + piece.length:
                    return piece.offset + found - piece.at
                at = piece.offset + piece.length
        return size if what == "h" else -1

    async def _columns(
        self, layout: Layout, columns: Sequence[int], method: str, make: Callable[[int], Any]
    ) -> list[tuple[int, OsdWritten]]:
        osds = layout.replicas[0].osds

        async def ask(column: int) -> tuple[int, OsdWritten]:
            return column, await self.link(osds[column]).call(method, _Later(lambda: make(column)), OsdWritten)

        return await all_of([ask(column) for column in columns])


def _Later(make: Callable[[], Any]) -> Callable[[Peer], Awaitable[Any]]:  # noqa: N802  # reads as a value
    async def message(_peer: Peer) -> Any:
        return make()

    return message


def _width(layout: Layout) -> int:
    return len(layout.replicas[0].osds)


def _parts(piece: Piece) -> list[Piece]:
    """Cut a piece into requests."""
    cuts = range(0, piece.length, READ_BYTES_MAX)
    return [Piece(piece.osd, piece.column, piece.offset + c, piece.at + c, min(READ_BYTES_MAX, piece.length - c)) for c in cuts]


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do things at the same time; return their results in order. The first failure is raised after all have ended."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    return [task.result() for task in tasks]
