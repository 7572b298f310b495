"""`python -m xtreemos.testing.fsx DIR`: random operations on a few files, each checked against a model in memory.

    fsx DIR                          one mount
    fsx --clients DIR1 DIR2 DIR3     the same files through several mounts of one file system, by turns
    fsx --command 'ssh n2 python -m xtreemos.testing.fsx --worker DIR' ...   the same on several hosts

Each operation is finished before the next begins, whoever does it: the file system must behave as one machine's. The seed is printed
and repeats the run. A failure prints the last operations and writes all of them to a file for --replay, where they can be thinned out.

What a worker speaks on its standard input and output is said in `fsxclient`.
"""

from __future__ import annotations

import argparse
import collections
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from xtreemos.testing.fsxclient import Answer, Client, LocalClient, ProcessClient, work
from xtreemos.testing.fsxmodel import ALWAYS, KINDS, Draw, Model, Op, Setting, operations, seek_problem

LAST_OPS_SHOWN = 40


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


def exercise(
    ops: Iterable[Op], clients: Sequence[Client], model: Model, check_every: int, told: Callable[[int], None]
) -> Failure | int:
    """Carry out operations one after another; every `check_every` of them all files are read whole by every client.

    `told` is given the number of each operation before it begins. Returns the first failure, or how many operations there were.
    """
    last: collections.deque[Op] = collections.deque(maxlen=LAST_OPS_SHOWN)
    number = -1
    for number, op in enumerate(ops):  # the count is used below
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
            if problem := answer.problem or (
                "" if answer.data == bytes(content) else difference(answer.data or b"", bytes(content), 0)
            ):
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
    parser = argparse.ArgumentParser(
        prog="python -m xtreemos.testing.fsx", description="random file operations against a model in memory"
    )
    parser.add_argument("folder", nargs="?", help="the folder to test")
    parser.add_argument("--clients", nargs="+", default=[], metavar="DIR", help="the same folder through several mounts")
    parser.add_argument("--command", action="append", default=[], metavar="CMD", help="a worker's command line; may be repeated")
    parser.add_argument("--worker", metavar="DIR", help="be a worker in this folder, on standard input and output")
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock; printed")
    parser.add_argument("--ops", type=int, default=100_000, help="operations (default: 100000)")
    parser.add_argument("--files", type=int, default=2, help="files (default: 2)")
    parser.add_argument("--file-kib", type=int, default=256, help="bound of each file (default: 256)")
    parser.add_argument("--op-kib", type=int, default=64, help="bound of each operation, at most 512 (default: 64)")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=sorted(set(KINDS) - {"write", "truncate", "size"}),
        help="leave a kind out",
    )
    parser.add_argument(
        "--check-every", type=int, default=1000, metavar="N", help="read all files whole after N operations (default: 1000)"
    )
    parser.add_argument("--replay", metavar="FILE", help="carry out the operations of a failure's file")
    parser.add_argument(
        "--save", metavar="FILE", default="fsx-failure.json", help="where a failure's operations go (default: fsx-failure.json)"
    )
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
        print(
            f"seed {seed}, {len(clients)} clients; not supported or left out: {', '.join(k for k in KINDS if k not in kinds) or 'nothing'}",
            flush=True,
        )
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
        print(
            f"{number:>9} client {op.client} file {op.file} {op.kind} {op.offset}+{op.length}"
            + (f" to {op.other} at {op.to}" if op.kind in {"copy", "sendfile"} else "")
        )
    print(
        f"FAILED at operation {failure.number}: {failure.problem}\nseed {setting.seed}; repeat with --seed {setting.seed} --ops {failure.number + 1}, or --replay {said.save}"
    )
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
        number = int.from_bytes(counter[:8], "little")
        print(f"FAILED: {signal.Signals(-code).name} in operation {number}; repeat with --seed {said.seed} --ops {number + 1}")
        return 1
    return code


def _child(said: argparse.Namespace, prefix: str, counter: mmap.mmap) -> None:
    sys.exit(_run(said, prefix, lambda number: counter.__setitem__(slice(0, 8), number.to_bytes(8, "little"))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
