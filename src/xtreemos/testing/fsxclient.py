"""Who carries out fsx's operations: a client in this process, a worker process on any host, and the worker's side.

A worker speaks MessagePack behind a 4-byte little-endian length on its standard input and output: a request is an operation of
`fsxmodel.Op` as a list, the answer `[problem, data, size, data_at, hole_at]`; the first request is `[seed, files, prefix]`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shlex
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from xtreemos.testing.fsxmodel import Op, pool
from xtreemos.testing.posix.libc import FALLOC_COLLAPSE, FALLOC_INSERT, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO, fallocate

_LENGTH = struct.Struct("<I")
_FALLOCATES = {
    "punch": FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, "zero": FALLOC_ZERO, "fallocate": 0, "keep": FALLOC_KEEP_SIZE, "collapse": FALLOC_COLLAPSE,
    "insert": FALLOC_INSERT,
}  # fmt: skip


class Answer(NamedTuple):
    """What a client saw: `problem` is "" or what went wrong; the positions are those of SEEK_DATA and SEEK_HOLE, None for ENXIO."""

    problem: str = ""
    data: bytes | None = None
    size: int = -1
    data_at: int | None = None
    hole_at: int | None = None


class Client(Protocol):
    """Who carries out operations: in this process, or by a worker."""

    def perform(self, op: Op) -> Answer: ...
    def close(self) -> None: ...


class LocalClient:
    """Carries out operations on files named `prefix` and a number in a folder, made where they are missing."""

    def __init__(self, folder: str, seed: int, files: int, prefix: str) -> None:
        self._paths = [os.path.join(folder, f"{prefix}{number}") for number in range(files)]
        self._pool = pool(seed)
        self._fds = [self._open(number) for number in range(files)]

    def _open(self, number: int) -> int:
        return os.open(self._paths[number], os.O_RDWR | os.O_CREAT, 0o644)

    def perform(self, op: Op) -> Answer:
        """Carry out one operation. An OSError or a short transfer is a problem in words; nothing else is caught."""
        try:
            return self._perform(op)
        except OSError as refused:
            return Answer(f"{errno.errorcode.get(refused.errno or 0, '?')}: {refused.strerror}")

    def _perform(self, op: Op) -> Answer:
        fd = self._fds[op.file]
        if op.kind in _FALLOCATES:
            fallocate(fd, _FALLOCATES[op.kind], op.offset, op.length)
            return Answer(size=os.fstat(fd).st_size)
        handler: Callable[[Op, int], Answer] = getattr(self, f"_{op.kind}")
        return handler(op, fd)

    def _size(self, _op: Op, fd: int) -> Answer:
        return Answer(size=os.fstat(fd).st_size)

    def _read(self, op: Op, fd: int) -> Answer:
        return Answer(data=os.pread(fd, op.length, op.offset), size=os.fstat(fd).st_size)

    def _write(self, op: Op, fd: int) -> Answer:
        done = os.pwrite(fd, self._pool[op.source : op.source + op.length], op.offset)
        return Answer("" if done == op.length else f"wrote {done} of {op.length} bytes", size=os.fstat(fd).st_size)

    def _append(self, op: Op, _fd: int) -> Answer:
        fd = os.open(self._paths[op.file], os.O_WRONLY | os.O_APPEND)
        try:
            done = os.write(fd, self._pool[op.source : op.source + op.length])
            return Answer("" if done == op.length else f"appended {done} of {op.length} bytes", size=os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def _truncate(self, op: Op, fd: int) -> Answer:
        if op.length & 1:
            os.ftruncate(fd, op.length)
        else:
            os.truncate(self._paths[op.file], op.length)
        return Answer(size=os.fstat(fd).st_size)

    def _mapped(self, op: Op, fd: int) -> tuple[mmap.mmap, int] | Answer:
        size = os.fstat(fd).st_size
        if size < op.offset + op.length:  # touching it would end this process with SIGBUS
            return Answer(f"the file has {size} bytes, too few to map {op.offset}+{op.length}", size=size)
        start = op.offset & ~(mmap.PAGESIZE - 1)
        return mmap.mmap(
            fd, op.offset + op.length - start, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start
        ), op.offset - start

    def _mapread(self, op: Op, fd: int) -> Answer:
        mapped = self._mapped(op, fd)
        if isinstance(mapped, Answer):
            return mapped
        mapping, at = mapped
        with mapping:
            return Answer(data=mapping[at : at + op.length], size=os.fstat(fd).st_size)

    def _mapwrite(self, op: Op, fd: int) -> Answer:
        mapped = self._mapped(op, fd)
        if isinstance(mapped, Answer):
            return mapped
        mapping, at = mapped
        with mapping:
            mapping[at : at + op.length] = bytes(self._pool[op.source : op.source + op.length])
            if op.source & 1:  # else nothing but the kernel knows of the new bytes, and whoever looks next has to find them
                mapping.flush()
        return Answer(size=os.fstat(fd).st_size)

    def _copy(self, op: Op, fd: int) -> Answer:
        os.fstat(fd)  # as cp does: a kernel takes the length that it knows, and another client may have made it longer
        target, done = self._fds[op.other], 0
        while done < op.length:
            count = os.copy_file_range(fd, target, op.length - done, op.offset + done, op.to + done)
            if not count:
                return Answer(f"copied {done} of {op.length} bytes, then no more")
            done += count
        return Answer(size=os.fstat(target).st_size)

    def _sendfile(self, op: Op, fd: int) -> Answer:
        os.fstat(fd)  # see _copy
        target, done = self._fds[op.other], 0
        os.lseek(target, op.to, os.SEEK_SET)
        while done < op.length:
            count = os.sendfile(target, fd, op.offset + done, op.length - done)
            if not count:
                return Answer(f"sent {done} of {op.length} bytes, then no more")
            done += count
        return Answer(size=os.fstat(target).st_size)

    def _seek(self, op: Op, fd: int) -> Answer:
        found: list[int | None] = []
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            try:
                found.append(os.lseek(fd, op.offset, whence))
            except OSError as refused:
                if refused.errno != errno.ENXIO:
                    raise
                found.append(None)
        return Answer(size=os.fstat(fd).st_size, data_at=found[0], hole_at=found[1])

    def _fsync(self, _op: Op, fd: int) -> Answer:
        os.fsync(fd)
        return Answer(size=os.fstat(fd).st_size)

    def _reopen(self, op: Op, fd: int) -> Answer:
        os.close(fd)
        self._fds[op.file] = self._open(op.file)
        return Answer(size=os.fstat(self._fds[op.file]).st_size)

    def close(self) -> None:
        """Close and remove the files; another client may have removed them already."""
        for fd, path in zip(self._fds, self._paths, strict=True):
            os.close(fd)
            Path(path).unlink(missing_ok=True)


def _send(stream: BinaryIO, message: object) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _receive(stream: BinaryIO) -> bytes:
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""


class ProcessClient:
    """Carries out operations by a worker process, on this host or another; `command` is a whole command line."""

    def __init__(self, command: str, seed: int, files: int, prefix: str) -> None:
        self._worker = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._to: BinaryIO = self._worker.stdin  # type: ignore[assignment]  # Popen without text gives binary streams
        self._from: BinaryIO = self._worker.stdout  # type: ignore[assignment]
        _send(self._to, [seed, files, prefix])

    def perform(self, op: Op) -> Answer:
        try:
            _send(self._to, list(op))
            body = _receive(self._from)
        except BrokenPipeError:
            body = b""
        if not body:
            return Answer(f"the worker ended, code {self._worker.wait()}")
        return msgspec.msgpack.decode(body, type=Answer)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the worker ended before us, with a request on its way
            self._to.close()
        self._from.close()
        self._worker.wait()


def work(folder: str, requests: BinaryIO, answers: BinaryIO) -> int:
    """Serve one run as a worker in a folder, until the requests end."""
    seed, files, prefix = msgspec.msgpack.decode(_receive(requests), type=tuple[int, int, str])
    client = LocalClient(folder, seed, files, prefix)
    try:
        while body := _receive(requests):
            _send(answers, list(client.perform(Op(*msgspec.msgpack.decode(body, type=list[str | int])))))  # type: ignore[arg-type]
    finally:
        client.close()
    return 0
