"""`python -m xtreemos.testing.fsx DIR`: random operations on a few files, each checked against a model in memory.

    fsx DIR                          one mount
    fsx --clients DIR1 DIR2 DIR3     the same files through several mounts of one file system, by turns
    fsx --command 'ssh n2 python -m xtreemos.testing.fsx --worker DIR' ...   the same on several hosts

Each operation is finished before the next begins, whoever does it: the file system must behave as one machine's. The seed is printed
and repeats the run. A failure prints the last operations and writes all of them to a file for --replay, where they can be thinned out.

A worker speaks MessagePack behind a 4-byte little-endian length on its standard input and output: a request is an operation of
`fsxmodel.Op` as a list, the answer `[problem, data, size, data_at, hole_at]`; the first request is `[seed, files, prefix]`.
"""

from __future__ import annotations

import argparse
import collections
import errno
import json
import mmap
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from xtreemos.testing.fsxmodel import ALWAYS, KINDS, Draw, Model, Op, Setting, operations, pool, seek_problem
from xtreemos.testing.posix.libc import FALLOC_COLLAPSE, FALLOC_INSERT, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO, fallocate

LAST_OPS_SHOWN = 40
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
        return mmap.mmap(fd, op.offset + op.length - start, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start), op.offset - start

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
            mapping.flush()  # other clients are promised to see a mapping's bytes only from here on
        return Answer(size=os.fstat(fd).st_size)

    def _copy(self, op: Op, fd: int) -> Answer:
        target, done = self._fds[op.other], 0
        while done < op.length:
            count = os.copy_file_range(fd, target, op.length - done, op.offset + done, op.to + done)
            if not count:
                return Answer(f"copied {done} of {op.length} bytes, then no more")
            done += count
        return Answer(size=os.fstat(target).st_size)

    def _sendfile(self, op: Op, fd: int) -> Answer:
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


@dataclass(frozen=True, slots=True)
class Failure:
    """The first operation that went wrong: its number from 0, what was wrong, and the operations up to it that are shown."""

    number: int
    problem: str
    last: tuple[Op, ...]


def judge(op: Op, answer: Answer, model: Model) -> str:
    """Carry an operation out on the model and compare; "" if the answer is right."""
    want = model.apply(op)
    if answer.problem:
        return answer.problem
    if answer.size != want.size:
        return f"the size is {answer.size}, must be {want.size}"
    if want.data is not None and answer.data != want.data:
        return difference(answer.data or b"", want.data, op.offset)
    return seek_problem(model.files[op.file], op.offset, answer.data_at, answer.hole_at) if op.kind == "seek" else ""


def difference(got: bytes, want: bytes, offset: int) -> str:
    """Say where two byte strings part."""
    if len(got) != len(want):
        return f"read {len(got)} bytes, must be {len(want)}"
    first = next(number for number, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
    wrong = sum(a != b for a, b in zip(got, want, strict=True))
    what = "zeros" if not any(got[first : first + 16]) else "other bytes"
    return f"{wrong} bytes differ, the first at {offset + first}: {got[first : first + 8].hex()} ({what}), must be {want[first : first + 8].hex()}"


def exercise(ops: Iterable[Op], clients: Sequence[Client], model: Model, check_every: int, told: Callable[[int], None]) -> Failure | int:
    """Carry out operations one after another; every `check_every` of them all files are read whole by every client.

    `told` is given the number of each operation before it begins. Returns the first failure, or how many operations there were.
    """
    last: collections.deque[Op] = collections.deque(maxlen=LAST_OPS_SHOWN)
    number = -1
    for number, op in enumerate(ops):  # noqa: B007  # the count is used below
        told(number)
        last.append(op)
        if problem := judge(op, clients[op.client].perform(op), model):
            return Failure(number, problem, tuple(last))
        if number % check_every == check_every - 1 and (problem := _compare_all(clients, model)):
            return Failure(number, problem, tuple(last))
    problem = _compare_all(clients, model)
    return Failure(number, problem, tuple(last)) if problem else number + 1


def _compare_all(clients: Sequence[Client], model: Model) -> str:
    for index, client in enumerate(clients):
        for file, content in enumerate(model.files):
            answer = client.perform(Op("read", index, file, 0, len(content) + 1))
            if problem := answer.problem or ("" if answer.data == content else difference(answer.data or b"", bytes(content), 0)):
                return f"whole file {file} through client {index}: {problem}"
    return ""


def supported(clients: Sequence[Client]) -> tuple[str, ...]:
    """The kinds of operations that no client refuses as unknown to its file system. Tried on file 0, which is left empty."""
    refused = set()
    for client in clients:
        for kind in KINDS:
            if kind in ALWAYS:
                continue
            client.perform(Op("truncate", 0, 0, 0, 4 * mmap.PAGESIZE))
            answer = client.perform(Op(kind, 0, 0, 0, mmap.PAGESIZE, 0, 0, 3 * mmap.PAGESIZE))
            if answer.problem.startswith(("EOPNOTSUPP", "ENOTSUP", "ENOSYS", "ENODEV")):
                refused.add(kind)
        client.perform(Op("truncate", 0, 0, 0, 0))
    return tuple(kind for kind in KINDS if kind not in refused)


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m xtreemos.testing.fsx", description="random file operations against a model in memory")
    parser.add_argument("folder", nargs="?", help="the folder to test")
    parser.add_argument("--clients", nargs="+", default=[], metavar="DIR", help="the same folder through several mounts")
    parser.add_argument("--command", action="append", default=[], metavar="CMD", help="a worker's command line; may be repeated")
    parser.add_argument("--worker", metavar="DIR", help="be a worker in this folder, on standard input and output")
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock; printed")
    parser.add_argument("--ops", type=int, default=100_000, help="operations (default: 100000)")
    parser.add_argument("--files", type=int, default=2, help="files (default: 2)")
    parser.add_argument("--file-kib", type=int, default=256, help="bound of each file (default: 256)")
    parser.add_argument("--op-kib", type=int, default=64, help="bound of each operation, at most 512 (default: 64)")
    parser.add_argument("--without", action="append", default=[], choices=sorted(set(KINDS) - {"write", "truncate", "size"}), help="leave a kind out")
    parser.add_argument("--check-every", type=int, default=1000, metavar="N", help="read all files whole after N operations (default: 1000)")
    parser.add_argument("--replay", metavar="FILE", help="carry out the operations of a failure's file")
    parser.add_argument("--save", metavar="FILE", default="fsx-failure.json", help="where a failure's operations go (default: fsx-failure.json)")
    return parser.parse_args(argv)


def _clients(said: argparse.Namespace, seed: int, files: int, prefix: str) -> Iterator[Client]:
    for folder in [*([said.folder] if said.folder else []), *said.clients]:
        yield LocalClient(folder, seed, files, prefix)
    for command in said.command:
        yield ProcessClient(command, seed, files, prefix)


def _run(said: argparse.Namespace, prefix: str, told: Callable[[int], None]) -> int:
    """Run in this process; returns the exit code."""
    saved = json.loads(Path(said.replay).read_text(encoding="utf-8")) if said.replay else None
    seed = saved["setting"]["seed"] if saved else said.seed
    files = saved["setting"]["files"] if saved else said.files
    clients = list(_clients(said, seed, files, prefix))
    try:
        kinds = tuple(kind for kind in supported(clients) if kind not in said.without)
        setting = Setting(seed, files, len(clients), said.file_kib << 10, min(said.op_kib, 512, said.file_kib) << 10, kinds)
        print(f"seed {seed}, {len(clients)} clients; not supported or left out: {', '.join(k for k in KINDS if k not in kinds) or 'nothing'}", flush=True)
        model = Model(setting)
        ops = (Op(*one) for one in saved["ops"]) if saved else _drawn(setting, model, said.ops)
        started = time.monotonic()
        ended = exercise(ops, clients, model, said.check_every, told)
        if isinstance(ended, int):
            seconds = time.monotonic() - started
            print(f"{ended} operations without a difference, {ended / max(seconds, 1e-9):.0f}/s")
            return 0
        _tell(said, setting, ended, None if saved is None else [Op(*one) for one in saved["ops"]])
        return 1
    finally:
        for client in clients:
            client.close()


def _drawn(setting: Setting, model: Model, count: int) -> Iterator[Op]:
    draw = Draw(setting)
    for _ in range(count):
        yield draw.next(model.files)


def _tell(said: argparse.Namespace, setting: Setting, failure: Failure, replayed: list[Op] | None) -> None:
    for number, op in enumerate(failure.last, failure.number - len(failure.last) + 1):
        print(f"{number:>9} client {op.client} file {op.file} {op.kind} {op.offset}+{op.length}" + (f" to {op.other} at {op.to}" if op.kind in {"copy", "sendfile"} else ""))
    print(f"FAILED at operation {failure.number}: {failure.problem}\nseed {setting.seed}; repeat with --seed {setting.seed} --ops {failure.number + 1}, or --replay {said.save}")
    done = replayed[: failure.number + 1] if replayed else list(operations(setting, failure.number + 1))
    Path(said.save).write_text(json.dumps({"setting": asdict(setting), "problem": failure.problem, "ops": done}), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Run in a child process and watch it: a mapping that the file system cannot fill ends a process by SIGBUS, and that is a finding."""
    said = options(argv)
    if said.worker:
        return work(said.worker, sys.stdin.buffer, sys.stdout.buffer)
    said.seed = said.seed if said.seed is not None else time.time_ns() & 0xFFFFFFFF
    counter = mmap.mmap(-1, 8)
    prefix = f"fsx-{os.getpid()}-"
    child = get_context("fork").Process(target=_child, args=(said, prefix, counter))
    child.start()
    child.join()
    code = child.exitcode or 0
    if code < 0:
        number = _LENGTH.unpack_from(counter)[0]
        print(f"FAILED: {signal.Signals(-code).name} in operation {number}; repeat with --seed {said.seed} --ops {number + 1}")
        return 1
    return code


def _child(said: argparse.Namespace, prefix: str, counter: mmap.mmap) -> None:
    sys.exit(_run(said, prefix, lambda number: _LENGTH.pack_into(counter, 0, number)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
