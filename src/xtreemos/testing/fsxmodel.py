"""What files must hold after a sequence of operations: the operations, how they are drawn, and the model in memory. Pure.

One seed decides all operations: they depend on the model, never on what the tested file system answers, so that a run is repeated, and
its operations are written out, without it. Bytes are taken from a pool made of the seed, so that an operation is a few numbers only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

POOL_BYTES = 1 << 20
KINDS = {
    "write": 22, "read": 18, "append": 8, "truncate": 5, "mapread": 7, "mapwrite": 9, "punch": 5, "zero": 4, "fallocate": 3, "keep": 2,
    "copy": 5, "sendfile": 3, "seek": 4, "fsync": 1, "reopen": 2, "size": 2, "collapse": 1, "insert": 1,
}  # fmt: skip
"""How often each kind is drawn, in relation to the others."""
ALWAYS = frozenset({"write", "read", "append", "truncate", "size", "reopen", "fsync"})
BLOCK_BYTES = 4096
"""collapse and insert move whole blocks of this size."""


class Op(NamedTuple):
    """One operation. `file` and `other` are file numbers, `client` says who does it; the bytes written are the pool's from `source` on.

    `offset` and `length` are bytes; for truncate `length` is the new size, for copy and sendfile `to` is the offset in `other`.
    """

    kind: str
    client: int
    file: int
    offset: int
    length: int
    source: int = 0
    other: int = 0
    to: int = 0


class Expected(NamedTuple):
    """What an operation must give: bytes read (None if it reads none), and the size of the file that it changed or looked at."""

    data: bytes | None
    size: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made of, all of it: two runs with the same setting do the same.

    `file_bytes_max` bounds each file, `op_bytes_max` each operation; `kinds` are those that every client supports.
    """

    seed: int
    files: int = 2
    clients: int = 1
    file_bytes_max: int = 256 << 10
    op_bytes_max: int = 64 << 10
    kinds: tuple[str, ...] = tuple(KINDS)


class Model:
    """The files as they must be."""

    def __init__(self, setting: Setting) -> None:
        self.files = [bytearray() for _ in range(setting.files)]
        self._pool = pool(setting.seed)

    def apply(self, op: Op) -> Expected:
        """Carry out an operation and say what it must give."""
        content = self.files[op.file]
        handler = getattr(self, f"_{op.kind}", None)
        data = handler(op, content) if handler else None
        changed = self.files[op.other] if op.kind in {"copy", "sendfile"} else content
        return Expected(data, len(changed))

    def _put(self, content: bytearray, offset: int, data: bytes | bytearray | memoryview) -> None:
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def _bytes(self, op: Op) -> memoryview:
        return self._pool[op.source : op.source + op.length]

    def _read(self, op: Op, content: bytearray) -> bytes:
        return bytes(content[op.offset : op.offset + op.length])

    _mapread = _read

    def _write(self, op: Op, content: bytearray) -> None:
        self._put(content, op.offset, self._bytes(op))

    _mapwrite = _write

    def _append(self, op: Op, content: bytearray) -> None:
        content.extend(self._bytes(op))

    def _truncate(self, op: Op, content: bytearray) -> None:
        if op.length < len(content):
            del content[op.length :]
        else:
            content.extend(bytes(op.length - len(content)))

    def _punch(self, op: Op, content: bytearray) -> None:
        end = min(len(content), op.offset + op.length)
        if op.offset < end:
            content[op.offset : end] = bytes(end - op.offset)

    def _zero(self, op: Op, content: bytearray) -> None:
        self._put(content, op.offset, bytes(op.length))

    def _fallocate(self, op: Op, content: bytearray) -> None:
        if op.offset + op.length > len(content):
            content.extend(bytes(op.offset + op.length - len(content)))

    def _copy(self, op: Op, content: bytearray) -> None:
        self._put(self.files[op.other], op.to, bytes(content[op.offset : op.offset + op.length]))

    _sendfile = _copy

    def _collapse(self, op: Op, content: bytearray) -> None:
        del content[op.offset : op.offset + op.length]

    def _insert(self, op: Op, content: bytearray) -> None:
        content[op.offset : op.offset] = bytes(op.length)


def pool(seed: int) -> memoryview:
    """Bytes to write, none of them zero, so that a hole is never mistaken for data."""
    return memoryview(random.Random(seed).randbytes(POOL_BYTES).replace(b"\0", b"\x01"))


def seek_problem(content: bytearray, offset: int, data_at: int | None, hole_at: int | None) -> str:
    """Judge what SEEK_DATA and SEEK_HOLE said for an offset below the size; None stands for ENXIO. "" if it may be so."""
    end = len(content)
    if any(content[offset : end if data_at is None else data_at]):
        return f"SEEK_DATA from {offset} says {data_at}, and skips data"
    if data_at is not None and not offset <= data_at < end:
        return f"SEEK_DATA from {offset} says {data_at}, outside of {offset}..{end}"
    if hole_at is None or not offset <= hole_at <= end:
        return f"SEEK_HOLE from {offset} says {hole_at}, outside of {offset}..{end}"
    if hole_at < end and content[hole_at]:
        return f"SEEK_HOLE from {offset} says {hole_at}, where data is"
    return ""


class Draw:
    """Draws operations that make sense for the model's state."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._random = random.Random(setting.seed ^ 0x5EED)
        kinds = [kind for kind in KINDS if kind in setting.kinds]
        self._kinds, self._weights = kinds, list(_running_sums(KINDS[kind] for kind in kinds))

    def next(self, files: Sequence[bytearray]) -> Op:
        """The next operation; what it cannot be for the sizes of now becomes a write."""
        chance, setting = self._random, self._setting
        kind = chance.choices(self._kinds, cum_weights=self._weights)[0]
        client, file = chance.randrange(setting.clients), chance.randrange(setting.files)
        size, top = len(files[file]), setting.file_bytes_max
        length = self._length()
        if kind in {"read", "mapread", "mapwrite", "copy", "sendfile", "seek", "collapse", "insert"} and size < 1:
            kind = "write"
        if kind == "append" and size + length > top:
            kind = "truncate"
        if kind == "truncate":
            return Op(
                kind,
                client,
                file,
                0,
                chance.choice((0, size // 2, chance.randrange(top), chance.randrange(top), min(top, size + length))),
            )
        if kind in {"collapse", "insert"}:
            return self._moved(kind, client, file, size)
        if kind in {"mapread", "mapwrite", "copy", "sendfile"}:
            offset = chance.randrange(size)
            length = min(length, size - offset)
        elif kind == "read":
            offset = chance.randrange(size + 100)
        elif kind == "seek":
            offset = chance.randrange(size)
        else:
            offset = min(self._offset(size), top - length)
        source = chance.randrange(POOL_BYTES - length)
        if kind in {"copy", "sendfile"}:
            return self._copied(Op(kind, client, file, offset, length), files)
        return Op(kind, client, file, offset, length, source)

    def _length(self) -> int:
        chance, most = self._random, self._setting.op_bytes_max
        return chance.choice(
            (1, chance.randint(1, 100), chance.randint(1, 8192), 4096, chance.randint(1, most), chance.randint(1, most))
        )

    def _offset(self, size: int) -> int:
        chance = self._random
        return chance.choice(
            (size, chance.randrange(size + 1), chance.randrange(self._setting.file_bytes_max), chance.randrange(size + 1) & ~4095)
        )

    def _moved(self, kind: str, client: int, file: int, size: int) -> Op:
        """Whole blocks that lie inside the file, at least one byte before its end."""
        blocks, chance = (size - 1) // BLOCK_BYTES, self._random
        count = chance.randint(1, 4)
        if blocks < count + 1 or (kind == "insert" and size + count * BLOCK_BYTES > self._setting.file_bytes_max):
            return Op("size", client, file, 0, 0)
        return Op(kind, client, file, chance.randrange(blocks - count + 1) * BLOCK_BYTES, count * BLOCK_BYTES)

    def _copied(self, op: Op, files: Sequence[bytearray]) -> Op:
        chance = self._random
        other = chance.randrange(len(files))
        to = min(self._offset(len(files[other])), self._setting.file_bytes_max - op.length)
        if other == op.file and (op.kind == "sendfile" or (to < op.offset + op.length and op.offset < to + op.length)):
            return Op("size", op.client, op.file, 0, 0)  # ranges that overlap are refused by the kernel
        return op._replace(other=other, to=to)


def _running_sums(weights: Iterator[int]) -> Iterator[int]:
    total = 0
    for weight in weights:
        total += weight
        yield total


def operations(setting: Setting, count: int) -> Iterator[Op]:
    """The operations of a run, without any file."""
    model, draw = Model(setting), Draw(setting)
    for _ in range(count):
        op = draw.next(model.files)
        model.apply(op)
        yield op
