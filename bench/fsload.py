"""Loads for file systems: `python fsload.py DIR [--only NAME] [--scale X]` prints one JSON object of rates. Standard library only.

It runs anywhere (in a namespace, in a job), on any directory, and does the same to every contender. Each phase says what was counted; data
phases end with fsync unless the name says otherwise. Cold means: the caller dropped or remounted the caches between (see `--phase`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1 << 20
BLOCK = 4096
TREE_BRANCH, TREE_DEPTH, TREE_ITEMS = 6, 4, 8
"""The tree of JuiceFS's published mdtest run: `mdtest -b 6 -I 8 -z 4`, 1,555 folders with 8 items each."""


def timed(work: Callable[[], int]) -> float:
    """Return what `work` counts, per second."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


class Load:
    """One directory and a scale; each public method is a group of phases and returns {phase: rate}."""

    def __init__(self, root: Path, scale: float) -> None:
        self.root = root
        self.scale = scale

    # -- metadata --------------------------------------------------------------------------------------------------------

    def mdtest(self) -> dict[str, float]:
        """Operations a second, one task, in mdtest's order: folders first, then files of no bytes."""
        top = self.root / "mdtest"
        depth = TREE_DEPTH if self.scale >= 1 else TREE_DEPTH - 1
        folders = list(_tree(top, depth))
        found: dict[str, float] = {}
        found["tree create"] = timed(lambda: sum(_done(os.mkdir(path)) for path in folders))
        for kind, make, remove in (("dir", os.mkdir, os.rmdir), ("file", _touch, os.unlink)):
            items = [f"{path}/{kind}.{number}" for path in folders for number in range(TREE_ITEMS)]
            found[f"{kind} create"] = timed(lambda m=make, i=items: sum(_done(m(path)) for path in i))
            found[f"{kind} stat"] = timed(lambda i=items: sum(_done(os.stat(path)) for path in i))
            if kind == "file":
                found["file read"] = timed(lambda i=items: sum(_read(path) for path in i))
            found[f"{kind} remove"] = timed(lambda r=remove, i=items: sum(_done(r(path)) for path in i))
        found["tree remove"] = timed(lambda: sum(_done(os.rmdir(path)) for path in reversed(folders)))
        return found

    def small(self) -> dict[str, float]:
        """Files of 4 KiB a second: written (created, written, closed), copied, read back, removed."""
        count = max(50, int(1000 * self.scale))
        source, copy = self.root / "small", self.root / "small-copy"
        source.mkdir()
        data = os.urandom(BLOCK)
        found = {"small write": timed(lambda: sum(_write(source / str(n), data) for n in range(count)))}
        found["small copy"] = timed(lambda: _done(shutil.copytree(source, copy)) * count)
        found["small read"] = timed(lambda: sum(_read(copy / str(n)) for n in range(count)))
        found["small remove"] = timed(
            lambda: sum(_done(os.unlink(where / str(n))) for where in (source, copy) for n in range(count))
        )
        source.rmdir()
        copy.rmdir()
        return found

    # -- data ------------------------------------------------------------------------------------------------------------

    def _bytes(self) -> int:
        return max(16, int(256 * self.scale)) * MIB

    def write(self) -> dict[str, float]:
        """MiB a second: 1 MiB writes of a new file with one fsync; random 4 KiB overwrites with one fsync."""
        path, total = self.root / "data", self._bytes()
        chunk = os.urandom(MIB)

        def sequential() -> int:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for _ in range(total // MIB):
                os.write(fd, chunk)
            os.fsync(fd)
            os.close(fd)
            return total // MIB

        def scattered() -> int:
            fd = os.open(path, os.O_WRONLY)
            places = random.Random(1)
            count = max(500, int(4000 * self.scale))
            for _ in range(count):
                os.pwrite(fd, chunk[:BLOCK], places.randrange(total // BLOCK) * BLOCK)
            os.fsync(fd)
            os.close(fd)
            return count

        return {"seq write MiB": timed(sequential), "random write 4k": timed(scattered)}

    def read(self) -> dict[str, float]:
        """Of the file that `write` made: MiB a second in order, 4 KiB reads a second at random places."""
        path, total = self.root / "data", self._bytes()

        def sequential() -> int:
            fd = os.open(path, os.O_RDONLY)
            count = 0
            while data := os.read(fd, MIB):
                count += len(data)
            os.close(fd)
            assert count == total, f"{path} has {count} bytes, {total} were written"
            return count // MIB

        def scattered() -> int:
            fd = os.open(path, os.O_RDONLY)
            places = random.Random(2)
            count = max(500, int(8000 * self.scale))
            for _ in range(count):
                os.pread(fd, BLOCK, places.randrange(total // BLOCK) * BLOCK)
            os.close(fd)
            return count

        return {"seq read MiB": timed(sequential), "random read 4k": timed(scattered)}

    # -- programs --------------------------------------------------------------------------------------------------------

    def programs(self) -> dict[str, float]:
        """Times a minute of what people do: unpack a source tree, build it, look at it with git."""
        work = self.root / "programs"
        work.mkdir()
        archive = _make_archive(self.root / "source.tar", max(40, int(400 * self.scale)))
        found = {"untar": 60 * timed(lambda: _run(["tar", "-xf", str(archive), "-C", str(work)]))}
        tree = work / "source"
        quiet = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "b",
            "GIT_AUTHOR_EMAIL": "b@b",
            "GIT_COMMITTER_NAME": "b",
            "GIT_COMMITTER_EMAIL": "b@b",
        }
        found["git add+commit"] = 60 * timed(
            lambda: _run(["sh", "-c", "git init -q . && git add . && git commit -qm all"], cwd=tree, env=quiet)
        )
        found["git status"] = 60 * timed(lambda: _run(["git", "status", "--porcelain"], cwd=tree, env=quiet))
        found["build"] = 60 * timed(lambda: _run(["make", "-s", "-j2"], cwd=tree))
        found["rm -r"] = 60 * timed(lambda: _done(shutil.rmtree(work)))
        archive.unlink()
        return found


def _done(_result: object) -> int:
    return 1


def _tree(top: Path, depth: int) -> Iterator[str]:
    yield str(top)
    if depth:
        for number in range(TREE_BRANCH):
            yield from _tree(top / str(number), depth - 1)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _write(path: Path, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.close(fd)
    return 1


def _read(path: str | Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, MIB)
    os.close(fd)
    return 1


def _run(argv: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
    subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
    return 1


def _make_archive(path: Path, files: int) -> Path:
    """Make a C project with that many files in 20 folders as a tar archive; the same for everybody."""
    staging = Path(f"/tmp/fsload-{os.getpid()}") / "source"  # a folder of this process
    for number in range(files):
        folder = staging / f"part{number % 20}"
        folder.mkdir(parents=True, exist_ok=True)
        body = "\n".join(f"int f{number}_{line}(int x) {{ return x * {line} + {number}; }}" for line in range(60))
        (folder / f"file{number}.c").write_text(body + "\n")
    rules = "SRC := $(wildcard part*/*.c)\nall: $(SRC:.c=.o)\n%.o: %.c\n\t$(CC) -O0 -c -o $@ $<\n"
    (staging / "Makefile").write_text(rules)
    _run(["tar", "-cf", str(path), "-C", str(staging.parent), "source"])
    shutil.rmtree(staging.parent)
    return path


GROUPS = ("mdtest", "small", "write", "read", "programs")


def main() -> int:
    """Run the groups asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--only", action="append", choices=GROUPS)
    parser.add_argument("--scale", type=float, default=1.0, help="1: the sizes of the published page")
    args = parser.parse_args()
    load = Load(args.dir, args.scale)
    found: dict[str, float] = {}
    for name in args.only or GROUPS:
        found |= getattr(load, name)()
    json.dump({name: round(rate, 2) for name, rate in found.items()}, sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
