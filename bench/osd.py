"""Figures of one OSD process and the client library to it: Unix socket and TLS on loopback, large and small requests, syncs.

    .venv/bin/python bench/osd.py [FOLDER]

Server and client are two processes; caches are warm, one node, one column per file. Also: what sums beside each file cost against rows
in LMDB, which decided where they are.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import lmdb
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from xtreemos.testing.osdgrid import OsdGrid
from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.directory import FolderDirectory
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Capability, Layout, MrcRecord, Replica, SessionToken, make_ino
from xtreemos.xtreemfs.protocol import Rights
from xtreemos.xtreemfs.striping import OsdConnections, StripedFile

MIB = 1 << 20
FILE_MIB = 96
SMALL = 2000
ROUNDS = 3


def rights(signer: Signer, ino: int) -> Callable[[], Rights]:
    now = int(time.time())
    cap = Capability("demo", "n1", "c1", "n1", ino, "w", 1, 1, FILE_BYTES_MAX, now + 3600)
    token = SessionToken("demo", "n1", "c1", "n1", (now + 3600) * 1000)
    shown = Rights(signer.capability(cap), signer.session(token))
    return lambda: shown


async def timed(name: str, unit: str, count: float, work: Callable[[], Awaitable[None]]) -> None:
    """Print the median rate of some rounds."""
    rates = []
    for _round in range(ROUNDS):
        begin = time.perf_counter()
        await work()
        rates.append(count / (time.perf_counter() - begin))
    print(f"  {name:34} {statistics.median(rates):10.0f} {unit}", flush=True)


async def pipelined(count: int, depth: int, step: Callable[[int], Awaitable[object]]) -> None:
    async def lane(first: int) -> None:
        for number in range(first, count, depth):
            await step(number)

    await asyncio.gather(*(lane(first) for first in range(depth)))


async def measure(connections: OsdConnections, signer: Signer, base: int) -> None:
    file = StripedFile(connections, Layout(1, 4 * MIB, (Replica(("n1",)),)), rights(signer, make_ino(1, base)))
    data = os.urandom(MIB)
    for depth in (1, 4):

        async def write(depth: int = depth) -> None:
            await pipelined(FILE_MIB, depth, lambda number: file.write(number * MIB, data))

        async def read(depth: int = depth) -> None:
            await pipelined(FILE_MIB, depth, lambda number: file.read(number * MIB, MIB))

        await timed(f"write 1 MiB, {depth} at a time", "MiB/s", FILE_MIB, write)
        await timed(f"read 1 MiB, {depth} at a time", "MiB/s", FILE_MIB, read)
    begin = time.perf_counter()
    await file.sync()
    print(f"  sync of {FILE_MIB} MiB{'':21} {1000 * (time.perf_counter() - begin):10.0f} ms", flush=True)
    span = FILE_MIB * MIB // 4096
    for depth in (1, 16):

        async def small_read(depth: int = depth) -> None:
            await pipelined(SMALL, depth, lambda number: file.read(number * 7919 % span * 4096, 4096))

        async def small_write(depth: int = depth) -> None:
            await pipelined(SMALL, depth, lambda number: file.write(number * 7919 % span * 4096, data[:4096]))

        await timed(f"read 4 KiB at random, {depth} at a time", "/s", SMALL, small_read)
        await timed(f"write 4 KiB at random, {depth} at a time", "/s", SMALL, small_write)
    made = itertools.count(1)

    async def create(*, sync: bool) -> None:
        one = StripedFile(connections, file.layout, rights(signer, make_ino(2, base * 1000_000 + next(made))))
        await one.write(0, data[:4096])
        if sync:
            await one.sync()

    await timed("new files of 4 KiB, 8 at a time", "/s", 400, lambda: pipelined(400, 8, lambda _n: create(sync=False)))
    await timed("new files of 4 KiB, synced, 8 at a time", "/s", 100, lambda: pipelined(100, 8, lambda _n: create(sync=True)))


async def run(folder: Path) -> None:
    signer = Signer(b"b" * 32)
    directory = FolderDirectory(folder / "dir", vo="demo", node="n1")
    await directory.put(MrcRecord(node="n1", address="", keys=(signer.public,)))
    grid = OsdGrid()
    credential = grid.certify("n1", folder / "credential", core=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "xtreemos.xtreemfs.osd", "--vo", "demo", "--node", "n1", "--disk", str(folder / "disk")]
    argv += ["--directory", str(folder / "dir"), "--socket", str(folder / "s"), "--listen", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*argv, "--credential", str(credential)], stderr=subprocess.DEVNULL)  # noqa: ASYNC220  # nothing else runs yet
    try:
        while "n1" not in directory.state.osds:
            await asyncio.sleep(0.05)
            directory.look()
        local = OsdConnections(directory)
        print("Unix socket")
        await measure(local, signer, 1)
        await local.close()
        away = FolderDirectory(folder / "dir", vo="demo", node="elsewhere")  # so that it takes TLS; its certificate says n1
        identity = CredentialFolder(credential)
        remote = OsdConnections(away, lambda: identity.identity)
        print("TLS on loopback")
        await measure(remote, signer, 2)
        await remote.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def sums_beside(folder: Path) -> None:
    """Sums in a file of their own or in LMDB rows: 1 MiB write and sync, and a new small file synced."""
    data, sums = os.urandom(MIB), os.urandom(256)
    table = lmdb.open(str(folder / "sums"), map_size=1 << 30)

    def in_file(number: int) -> None:
        fd = os.open(folder / f"a{number}", os.O_RDWR | os.O_CREAT)
        sfd = os.open(folder / f"a{number}.sums", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, data[:size], 0)
        os.pwrite(sfd, sums[: 4 * -(-size // 16384)], 64)
        os.fdatasync(fd)
        os.fdatasync(sfd)
        os.close(fd)
        os.close(sfd)

    def in_table(number: int) -> None:
        fd = os.open(folder / f"b{number}", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, data[:size], 0)
        os.fdatasync(fd)
        with table.begin(write=True) as transaction:
            transaction.put(b"%d" % number, sums[: 4 * -(-size // 16384)])
        os.close(fd)

    print("Sums beside, written and synced one by one")
    for size in (4096, MIB):
        for name, work in (("file", in_file), ("LMDB", in_table)):
            begin = time.perf_counter()
            for number in range(100):
                work(size * 1000 + number)
            print(f"  {size:8} bytes, {name} {10 * (time.perf_counter() - begin):19.2f} ms each")
    table.close()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="bench-osd."))
    folder.mkdir(exist_ok=True)
    try:
        uvloop.run(run(folder))
        sums_beside(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
