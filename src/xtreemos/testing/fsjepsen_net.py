"""A small file system (`fsgrid`) whose mounts reach their servers by wires that can be cut.

Each mount has a directory of its own, in which the servers' sockets are those of a relay. The relay is a thread with an event loop; bytes pass as
they come. Descriptors do not pass, so there is no passthrough.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

from xtreemos.testing.fsgrid import FsGrid, MountProcess

CHUNK_BYTES = 1 << 18


class Wire:
    """One relayed socket: listens on `here`, connects to `there` for each who comes, unless it is cut."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here = here
        self.there = there
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.here)

    async def close(self) -> None:
        """End everything; returns when all connections are closed."""
        if self._server is not None:
            self._server.close()
        await self.cut()
        while self._serving:
            await asyncio.wait(list(self._serving))

    async def cut(self) -> None:
        """End what stands, and refuse what comes."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    async def heal(self) -> None:
        """Let everything through."""
        self._cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._serving.add(me)
        me.add_done_callback(self._serving.discard)
        with contextlib.ExitStack() as ends:
            self._hold(ends, writer)
            if self._cut:
                return
            try:
                far_reader, far_writer = await asyncio.open_unix_connection(self.there)
            except OSError:
                return  # the server is away, and so is the wire
            self._hold(ends, far_writer)
            both = [asyncio.ensure_future(_pass(reader, far_writer)), asyncio.ensure_future(_pass(far_reader, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)

    def _hold(self, ends: contextlib.ExitStack, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        ends.callback(self._writers.discard, writer)
        ends.callback(writer.transport.abort)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


class CutGrid(FsGrid):
    """An `FsGrid` with wires. Mounts are made in `start`, when it is known what there is to reach."""

    def __init__(self, **settings: Any) -> None:
        mounts = settings.pop("mounts", 1)
        super().__init__(mounts=0, **settings)
        self._wanted = mounts
        self._wires: dict[str, list[Wire]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)

    def start(self) -> Self:
        """See `FsGrid`."""
        super().start()
        self._thread.start()
        for _ in range(self._wanted):
            self.add_mount()
        return self

    def _mount(self, node: str) -> MountProcess:
        folder = self.folder / f"dir-{node}"
        folder.mkdir()
        wires = []
        for path in self.directory.glob("*.json"):
            record = json.loads(path.read_bytes())
            if record.get("socket"):
                there = Path(record["socket"])
                wires.append(Wire(self.folder / f"{node}-{there.name}", there))
                record["socket"] = str(wires[-1].here)
            (folder / path.name).write_text(json.dumps(record))
        for wire in wires:
            self._do(wire.open())
        self._wires[node] = wires
        made = super()._mount(node)
        made.words[made.words.index("--directory") + 1] = str(folder)
        return made

    def cut(self, mounted: MountProcess) -> None:
        """Cut a mount from all servers."""
        for wire in self._wires[mounted.node]:
            self._do(wire.cut())

    def heal(self, mounted: MountProcess) -> None:
        """Join it again."""
        for wire in self._wires[mounted.node]:
            self._do(wire.heal())

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    def close(self) -> None:
        """See `FsGrid`."""
        super().close()
        if self._thread.is_alive():
            for wire in (wire for wires in self._wires.values() for wire in wires):
                self._do(wire.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
