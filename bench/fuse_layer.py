"""What the FUSE layer itself costs: a file system in memory and one by passthrough, no cache in the kernel unless said. Root.

`python bench/fuse_layer.py [--seconds 1] [--rounds 3] [--one-core]` prints a table: medians of the rounds. The program that measures and
the server are two processes; `--one-core` pins both to one CPU, which on small virtual machines is faster (no wake-ups across CPUs).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from xtreemos.testing.fusekit_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
BLOCK = 4096
FILE_BYTES = 256 * MIB
CPU_ROW = "server CPU per stat, us"


@contextlib.contextmanager
def served(*arguments: str, cpu: int | None) -> Iterator[ServerProcess]:
    with tempfile.TemporaryDirectory(prefix="fuse-bench-") as folder, ServerProcess(Path(folder), *arguments) as server:
        if cpu is not None:
            os.sched_setaffinity(server.process.pid, {cpu})
        yield server


def rate(action: Callable[[], object], seconds: float) -> float:
    """Return how often a second `action` runs."""
    done, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        action()
        done += 1
    return done / taken


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


def stats(folder: Path, seconds: float) -> float:
    (folder / "f").touch()
    return rate(lambda: os.stat(folder / "f"), seconds)


def open_close(folder: Path, seconds: float) -> float:
    (folder / "f").touch()
    return rate(lambda: os.close(os.open(folder / "f", os.O_RDONLY)), seconds)


def create_unlink(folder: Path, seconds: float) -> float:
    def both() -> None:
        os.close(os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(folder / "new")

    return rate(both, seconds)


def filled(folder: Path) -> Path:
    path = folder / "big"
    if not path.exists() or path.stat().st_size != FILE_BYTES:
        with path.open("wb", buffering=0) as file:
            for _ in range(FILE_BYTES // MIB):
                file.write(os.urandom(16) * (MIB // 16))
        os.sync()
    return path


def random_read(folder: Path, seconds: float) -> float:
    path, choice = filled(folder), random.Random(1)
    drop_caches()
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read() -> None:
        offset = choice.randrange(FILE_BYTES // BLOCK) * BLOCK
        os.pread(fd, BLOCK, offset)
        os.posix_fadvise(fd, offset, BLOCK, os.POSIX_FADV_DONTNEED)  # so that the next read of it asks again

    try:
        return rate(read, seconds)
    finally:
        os.close(fd)


def sequential_read(folder: Path, _: float) -> float:
    path = filled(folder)
    drop_caches()
    start, buffer = time.perf_counter(), bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return FILE_BYTES / MIB / (time.perf_counter() - start)


def sequential_write(folder: Path, _: float) -> float:
    data, path = bytes(MIB), filled(folder)  # written over: finding memory for new content is no cost of the layer
    start = time.perf_counter()
    with path.open("r+b", buffering=0) as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(data)
    return FILE_BYTES / MIB / (time.perf_counter() - start)


def small_write(folder: Path, seconds: float) -> float:
    fd, data = os.open(folder / "small", os.O_CREAT | os.O_RDWR), bytes(BLOCK)
    place = iter(range(1 << 40))
    try:
        return rate(lambda: os.pwrite(fd, data, next(place) % 1024 * BLOCK), seconds)
    finally:
        os.close(fd)
        os.unlink(folder / "small")


MEASURES: dict[str, Callable[[Path, float], float]] = {
    "stat/s": stats,
    "open+close/s": open_close,
    "create+unlink/s": create_unlink,
    "4 KiB random read/s": random_read,
    "4 KiB write/s": small_write,
    "sequential read MiB/s": sequential_read,
    "sequential write MiB/s": sequential_write,
}


def cpu_per_stat_us(folder: Path, seconds: float, pid: int) -> float:
    """Return the server's CPU time for one stat: hardly depends on what else the machine does."""

    def used_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used_s()
    done = stats(folder, seconds) * seconds
    return (used_s() - before) / done * 1e6


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, float]:
    return {name: statistics.median(run(folder, seconds) for _ in range(rounds)) for name, run in MEASURES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cpu = 0 if arguments.one_core else None
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="fuse-bench-lower-", dir=ROOT / "build") as lower:
        variants = {
            "memory, nothing cached": ["--cache-ms", "0"],
            "memory, 1 s of cache": ["--cache-ms", "1000"],
            "passthrough": ["--passthrough", lower, "--options", '{"passthrough": true}'],
        }
        for title, words in variants.items():
            with served(*words, cpu=cpu) as server:
                columns[title] = measure(server.path, arguments.seconds, arguments.rounds)
                columns[title][CPU_ROW] = cpu_per_stat_us(server.path, 2 * arguments.seconds, server.process.pid)
        columns["the folder below"] = measure(Path(lower), arguments.seconds, arguments.rounds)
    if arguments.json:
        print(json.dumps(columns))
        return 0
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name in [*MEASURES, CPU_ROW]:
        print(f"| {name} | " + " | ".join(f"{column[name]:,.0f}" if name in column else "-" for column in columns.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
