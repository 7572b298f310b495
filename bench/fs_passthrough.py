"""An object on the own node: the local file beside a mount without and with passthrough, in one run; `make bench` does not run it.

`python bench/fs_passthrough.py [rounds]` as root, with the suite installed: a file of 512 MiB is read in sequence (MiB/s) and in random blocks of 4 KiB
(per second), each with empty page caches of the whole machine and again, and opened and closed (microseconds). Prints one line for each.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from xtreemos.testing.fsgrid import FsGrid

FILE_BYTES = 512 << 20
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 4096
COLD_READS, WARM_READS, OPENS = 2000, 50_000, 200


def main() -> None:
    """Measure in turns and print."""
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            show("local", fill(Path(folder) / "file"))
        for name, smallest_bytes in (("without passthrough", None), ("with passthrough", CHUNK_BYTES)):
            with FsGrid(osds=1, mounts=1, together=True, passthrough=smallest_bytes) as grid:
                show(name, fill(grid.paths[0] / "file"))


def fill(path: Path) -> Path:
    """Make the file, on its disk when this returns."""
    chunk = os.urandom(CHUNK_BYTES)
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // CHUNK_BYTES):
            file.write(chunk)
        os.fsync(file.fileno())
    return path


def show(name: str, path: Path) -> None:
    """Measure one file and print its line."""
    empty_page_caches()
    figures = [f"sequential cold {sequential(path):.0f} MiB/s, warm {sequential(path):.0f} MiB/s"]
    empty_page_caches()
    figures.append(f"4 KiB cold {scattered(path, COLD_READS):.0f}/s")
    sequential(path)
    figures.append(f"warm {scattered(path, WARM_READS):.0f}/s; open and close {opening(path):.0f} us")
    print(f"{name}: {', '.join(figures)}", flush=True)


def empty_page_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def sequential(path: Path) -> float:
    """MiB a second."""
    buffer = bytearray(CHUNK_BYTES)
    opened = os.open(path, os.O_RDONLY)
    began = time.perf_counter()
    while os.readv(opened, [buffer]):
        pass
    seconds = time.perf_counter() - began
    os.close(opened)
    return FILE_BYTES / seconds / 2**20


def scattered(path: Path, count: int) -> float:
    """Blocks a second."""
    draw = random.Random(1)
    opened = os.open(path, os.O_RDONLY)
    began = time.perf_counter()
    for _ in range(count):
        os.pread(opened, BLOCK_BYTES, draw.randrange(FILE_BYTES // BLOCK_BYTES) * BLOCK_BYTES)
    seconds = time.perf_counter() - began
    os.close(opened)
    return count / seconds


def opening(path: Path) -> float:
    """Microseconds."""
    began = time.perf_counter()
    for _ in range(OPENS):
        os.close(os.open(path, os.O_RDONLY))
    return (time.perf_counter() - began) / OPENS * 1e6


if __name__ == "__main__":
    main()
