"""A program that uses a mounted file system and writes down what it asked and what it was told: `python fsjepsen_worker.py KIND FOLDER LOG JSON`.

It stands for any program, so it uses system calls and knows nothing of ours. Each line of its log is one JSON array, written before a call
or after it, with CLOCK_MONOTONIC: `["i", number, op, time]`, `["r", number, result, time]` or `["e", number, errno, time]`; `["s", what,
seconds]` is a system call that took long. It ends at the time `end`. Calls that fail are part of its life: it opens its files again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

SLOT_BYTES = 8
SLOW_S = 5.0
AGAIN_S = 0.05
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


class Worker:
    """What all kinds share: the log, and one open file."""

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        self.folder = folder
        self.name: str = options["name"]
        self.end: float = options["end"]
        self.pause_s: float = options.get("pause_s", 0.0)
        self.options = options
        self.random = random.Random(f"{options['seed']} {self.name}")
        self.fd = -1
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._number = 0

    def note(self, *row: Any) -> None:
        """Add a line to the log; one write, so that a kill tears no line."""
        os.write(self._log, json.dumps(row).encode() + b"\n")

    def timed(self, what: str, call: Callable[..., T], *args: Any) -> T:
        """Make a system call; a slow one is noted."""
        begun = time.monotonic()
        try:
            return call(*args)
        finally:
            took = time.monotonic() - begun
            if took > SLOW_S:
                self.note("s", what, round(took, 2))

    def attempt(self, op: list[Any], work: Callable[[], Any]) -> bool:
        """Carry out one operation and write down how it went; tell whether it did."""
        self._number += 1
        number = self._number
        self.note("i", number, op, time.monotonic())
        try:
            result = work()
        except OSError as error:
            self.note("e", number, error.errno, time.monotonic())
            return False
        self.note("r", number, result, time.monotonic())
        return True

    def open(self, name: str, flags: int) -> bool:
        """Open a file again; tell whether that worked. On failure a moment has passed."""
        self.close()
        try:
            self.fd = self.timed("open", os.open, f"{self.folder}/{name}", flags, 0o644)
        except OSError as error:
            self.note("o", error.errno)
            time.sleep(AGAIN_S)
            return False
        return True

    def close(self) -> None:
        """Close the file; what that says of earlier writes is known from fsync."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                self.timed("close", os.close, self.fd)
            self.fd = -1

    def run(self) -> None:
        """Work until the end."""
        while time.monotonic() < self.end:
            self.turn()
            if self.pause_s:
                time.sleep(self.random.random() * 2 * self.pause_s)
        self.close()

    def turn(self) -> None:
        """One step."""
        raise NotImplementedError


class Register(Worker):
    """Reads and writes numbers of 8 bytes at fixed places of one file. `sync`: each is followed by fsync, and counts only with it."""

    def turn(self) -> None:
        if self.fd < 0 and not self.open("register", os.O_RDWR):
            return
        slot = self.random.randrange(self.options["slots"])
        if self.random.random() < self.options.get("write_share", 0.5):
            self._number += 1
            value = int(self.name[1:]) * 1_000_000 + self._number
            good = self.attempt(["write", slot, value], lambda: self.put(slot, value))
        else:
            good = self.attempt(["read", slot], lambda: self.get(slot))
        if not good:
            self.close()

    def put(self, slot: int, value: int) -> None:
        self.timed("pwrite", os.pwrite, self.fd, value.to_bytes(SLOT_BYTES, sys.byteorder), slot * SLOT_BYTES)
        self.sync()

    def get(self, slot: int) -> int:
        data = self.timed("pread", os.pread, self.fd, SLOT_BYTES, slot * SLOT_BYTES)
        if len(data) != SLOT_BYTES:
            raise OSError(errno.ENODATA, "short")
        self.sync()
        return int.from_bytes(data, sys.byteorder)

    def sync(self) -> None:
        if self.options.get("sync"):
            self.timed("fsync", os.fsync, self.fd)


class Mapped(Register):
    """As `Register`, by a shared mapping. A fault that cannot be served is SIGBUS, so only for runs in which all are served."""

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        super().__init__(folder, log, options)
        self.map: mmap.mmap | None = None

    def mapping(self) -> mmap.mmap:
        if self.map is None:
            self.map = mmap.mmap(self.fd, self.options["slots"] * SLOT_BYTES)
        return self.map

    def put(self, slot: int, value: int) -> None:
        # memoryview casts store 8 bytes at once; a slice is copied in an order of its own
        memoryview(self.mapping()).cast("Q")[slot] = value
        self.mapping().flush()

    def get(self, slot: int) -> int:
        return int(memoryview(self.mapping()).cast("Q")[slot])


class Append(Worker):
    """Adds records to one file and syncs it now and then."""

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        super().__init__(folder, log, options)
        self.count = 0

    def turn(self) -> None:
        if self.fd < 0 and not self.open("append", os.O_WRONLY | os.O_APPEND):
            return
        self.count += 1
        line = record(self.name, self.count, self.random.randrange(8, 900))
        good = self.attempt(["append", self.count], lambda: self.write(line))
        if good and self.count % 4 == 0:
            good = self.attempt(["fsync", self.count], lambda: self.timed("fsync", os.fsync, self.fd))
        if not good:
            self.close()

    def write(self, line: bytes) -> int:
        if self.timed("write", os.write, self.fd, line) != len(line):
            raise OSError(errno.ENODATA, "short")
        return len(line)


def record(name: str, number: int, padding: int) -> bytes:
    """One line that shows whether it is whole."""
    text = f"{name} {number} {'x' * padding}"
    return f"<{text} {zlib.crc32(text.encode()):08x}>\n".encode()


class Names(Worker):
    """Makes, moves, exchanges and removes three names in one folder; symbolic links, for their text tells which one it is."""

    def turn(self) -> None:
        if self.fd < 0 and not self.open("names", os.O_RDONLY | os.O_DIRECTORY):
            return
        one, other = self.random.sample(("a", "b", "c"), 2)
        self._number += 1
        token = f"{self.name}.{self._number}"
        kind = self.random.choice(("make", "make", "read", "read", "list", "unlink", "move", "take", "swap"))
        rows: dict[str, list[Any]] = {"make": [kind, one, token], "list": [kind]}
        row = rows.get(kind, [kind, one, other])
        if not self.attempt(row, lambda: self.answer(lambda: self.do(kind, one, other, token))):
            self.close()

    def do(self, kind: str, one: str, other: str, token: str) -> Any:
        fd = self.fd
        match kind:
            case "make":
                self.timed(kind, lambda: os.symlink(token, one, dir_fd=fd))
            case "read":
                return self.timed(kind, lambda: os.readlink(one, dir_fd=fd))
            case "list":
                return sorted(self.timed(kind, os.listdir, fd))
            case "unlink":
                self.timed(kind, lambda: os.unlink(one, dir_fd=fd))
            case "move":
                self.timed(kind, lambda: os.rename(one, other, src_dir_fd=fd, dst_dir_fd=fd))
            case "take":
                self.timed(kind, rename2, fd, one, other, RENAME_NOREPLACE)
            case _:
                self.timed(kind, rename2, fd, one, other, RENAME_EXCHANGE)
        return "ok"

    @staticmethod
    def answer(work: Callable[[], Any]) -> Any:
        """Refusals of the file system's own rules are answers, everything else is a failure."""
        try:
            return work()
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOENT}:
                return errno.errorcode[error.errno]
            raise


def rename2(fd: int, one: str, other: str, flags: int) -> None:
    """renameat2(2) within a folder."""
    if LIBC.renameat2(fd, one.encode(), fd, other.encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


class Elect(Worker):
    """Races for names: by O_EXCL for even ones, by a rename that does not replace for odd ones."""

    def turn(self) -> None:
        if self.fd < 0 and not self.open("elect", os.O_RDONLY | os.O_DIRECTORY):
            return
        step = self.options["step_s"]
        at = int((time.monotonic() - self.options["begin"]) / step)
        time.sleep(max(0.0, self.options["begin"] + (at + 1) * step - time.monotonic()))
        if not self.attempt(["elect", at], lambda: Names.answer(lambda: self.race(at))):
            self.close()

    def race(self, at: int) -> str:
        own = f"{self.name}.{at}"
        name = f"e{at}"
        if at % 2:
            os.close(self.timed("create", lambda: os.open(own, os.O_WRONLY | os.O_CREAT, dir_fd=self.fd)))
            self.timed("rename", rename2, self.fd, own, name, RENAME_NOREPLACE)
        else:
            os.close(self.timed("create", lambda: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=self.fd)))
        return "ok"


class Locked(Worker):
    """Adds one to a number under a lock; what it read before is the result, with the times at which it held the lock."""

    def turn(self) -> None:
        if self.fd < 0 and not self.open("counter", os.O_RDWR):
            return
        how = getattr(fcntl, self.options.get("how", "lockf"))
        try:
            how(self.fd, fcntl.LOCK_EX)
        except OSError as error:
            self.note("l", error.errno)
            self.close()
            return
        got = time.monotonic()
        good = self.attempt(["add"], lambda: self.add(got))
        try:
            how(self.fd, fcntl.LOCK_UN)
        except OSError as error:
            self.note("l", error.errno)
            good = False
        if not good:
            self.close()

    def add(self, got: float) -> list[float]:
        value = int.from_bytes(self.timed("pread", os.pread, self.fd, SLOT_BYTES, 0), "big")
        self.timed("pwrite", os.pwrite, self.fd, (value + 1).to_bytes(SLOT_BYTES, "big"), 0)
        self.timed("fsync", os.fsync, self.fd)
        return [value, got, time.monotonic()]


class Files(Worker):
    """Makes, overwrites, renames and removes files of its own; each step is synced before it counts."""

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        super().__init__(folder, log, options)
        self.count = 0
        self.mine: list[str] = []

    def turn(self) -> None:
        self.count += 1
        kind = self.random.choice(("make", "make", "over", "move", "remove")) if len(self.mine) > 3 else "make"
        if len(self.mine) > 60:
            kind = "remove"
        new = f"{self.name}.{self.count}"
        old = self.random.choice(self.mine) if kind != "make" else new
        tag = self.random.randrange(1, 1 << 30)
        length = self.random.choice((10, 5_000, 70_000, 1_500_000))
        rows: dict[str, list[Any]] = {"make": [kind, new, tag, length], "over": [kind, old, tag, length], "move": [kind, old, new]}
        row = rows.get(kind, [kind, old])
        if self.attempt(row, lambda: self.do(kind, old, new, content(tag, length))):
            if kind == "make":
                self.mine.append(new)
            elif kind == "move":
                self.mine[self.mine.index(old)] = new
            elif kind == "remove":
                self.mine.remove(old)
        else:
            if old in self.mine:
                self.mine.remove(old)  # nobody knows how it is now: left alone
            time.sleep(AGAIN_S)

    def do(self, kind: str, old: str, new: str, data: bytes) -> None:
        path = f"{self.folder}/files/{old}"
        if kind == "move":
            self.timed("rename", os.rename, path, f"{self.folder}/files/{new}")
            return
        if kind == "remove":
            self.timed("unlink", os.unlink, path)
            return
        self.write_all(self, path, os.O_EXCL if kind == "make" else os.O_TRUNC, data)

    @staticmethod
    def write_all(worker: Worker, path: str, flag: int, data: bytes) -> None:
        """Make a file and sync it."""
        fd = worker.timed("create", os.open, path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
        try:
            at = 0
            while at < len(data):
                at += worker.timed("write", os.write, fd, data[at : at + 131072])
            worker.timed("fsync", os.fsync, fd)
        finally:
            with contextlib.suppress(OSError):
                worker.timed("close", os.close, fd)


class Soak(Worker):
    """Writes files whose names tell what is in them, and reads those of others; what fails is looked at: on which OSDs does it lie?"""

    OWN_MAX = 15

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        super().__init__(folder, log, options)
        self.mine: list[str] = []

    def turn(self) -> None:
        folder = f"{self.folder}/files"
        if self.random.random() < 0.4:
            name = f"{self.name}.{self.random.randrange(1, 1 << 30)}.{self.random.choice((100, 40_000, 600_000, 3_000_000))}"
            if self.tried(["put", name], f"{folder}/{name}.new", lambda: self.put(folder, name)):
                self.mine.append(name)
        elif len(self.mine) > self.OWN_MAX:
            name = self.mine.pop(self.random.randrange(len(self.mine)))
            self.tried(["remove", name], f"{folder}/{name}", lambda: self.timed("unlink", os.unlink, f"{folder}/{name}"))
        else:
            there: list[str] = []
            self.tried(["list"], folder, lambda: there.extend(self.timed("listdir", os.listdir, folder)))
            whole = [name for name in there if not name.endswith(".new")]
            if whole:
                name = self.random.choice(whole)
                self.tried(["get", name], f"{folder}/{name}", lambda: Names.answer(lambda: self.get(f"{folder}/{name}", name)))

    def tried(self, op: list[Any], path: str, work: Callable[[], Any]) -> bool:
        """As `attempt`; of what failed it is noted where it lies."""
        good = self.attempt(op, work)
        if not good:
            try:
                where = os.getxattr(path, "user.xtreemfs.osds").decode()
            except OSError as error:
                where = errno.errorcode[error.errno or 0]
            self.note("x", op[-1], where)
        return good

    def put(self, folder: str, name: str) -> None:
        _who, tag, length = name.split(".")
        path = f"{folder}/{name}.new"
        Files.write_all(self, path, os.O_EXCL, content(int(tag), int(length)))
        self.timed("rename", os.rename, path, f"{folder}/{name}")

    def get(self, path: str, name: str) -> str:
        _who, tag, length = name.split(".")
        fd = self.timed("open", os.open, path, os.O_RDONLY)
        try:
            parts = []
            while part := self.timed("read", os.read, fd, 262144):
                parts.append(part)
        finally:
            self.timed("close", os.close, fd)
        data = b"".join(parts)
        return "same" if data == content(int(tag), int(length)) else f"different: {len(data)} bytes"


def content(tag: int, length: int) -> bytes:
    """The bytes that belong to a tag; every 16 bytes tell their tag and place."""
    return b"".join(b"%08x%08x" % (tag, at) for at in range(length // 16 + 1))[:length]


KINDS: dict[str, type[Worker]] = {
    "register": Register, "mapped": Mapped, "append": Append, "names": Names, "elect": Elect, "locked": Locked, "files": Files,
    "soak": Soak,
}  # fmt: skip


def main() -> None:
    """Run one."""
    kind, folder, log, options = sys.argv[1:]
    KINDS[kind](folder, log, json.loads(options)).run()


if __name__ == "__main__":
    main()
