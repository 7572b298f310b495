"""The audit: every decision of a VO's services on this node, one JSON line each, chained by hashes, durable before it is answered.

Line: `{"seq", "at", "vo", "who", "what", "allowed", "why", "detail", "prev", "hash"}`; `hash` is SHA-256 over the line without it, and
`prev` is the hash before, so that changing or dropping a line in the middle is found. Cutting off the *end*, or writing the whole file
anew, is found only against a head that was noted elsewhere: each node has its `Head` noted in the VO's registry by a core node
(`vo/heads.py`, `node/auditing.py`). No secrets, ever: callers pass names and reasons, not parameters.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xtreemos.vo.errors import AuditBroken

GENESIS: Final = "0" * 64
WHY_MAX: Final = 300
_KEEP: Final = "keep the file and ask who changed it"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One decision. `who` as `str(Caller)`, `what` a method or check, `why` one line; `detail` only names and numbers."""

    at: int
    vo: str
    who: str
    what: str
    allowed: bool
    why: str = ""
    detail: Mapping[str, str | int | bool] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stood: how many records it had, >= 0, and the hash of the last one (GENESIS if none)."""

    count: int
    hash: str


def line_of(record: AuditRecord, seq: int, prev: str) -> tuple[str, str]:
    """Return the line (without newline) and its hash."""
    fields: dict[str, Any] = {
        "seq": seq,
        "at": record.at,
        "vo": record.vo,
        "who": record.who[:200],
        "what": record.what,
        "allowed": record.allowed,
        "why": record.why[:WHY_MAX],
        "detail": dict(record.detail or {}),
        "prev": prev,
    }
    digest = hashlib.sha256(_canonical(fields)).hexdigest()
    return json.dumps({**fields, "hash": digest}, sort_keys=True), digest


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def verify_file(path: Path, noted: Head | None = None) -> tuple[int, str]:
    """Check the whole chain of a file, and that the chain whose head was `noted` elsewhere is its beginning.

    Returns:
        (number of records, hash of the last one, GENESIS if none).

    Raises:
        AuditBroken: names the first line that does not hold, or says that records are gone or are not those that were noted.
    """
    count, prev = 0, GENESIS
    agrees = noted is None or noted == Head(0, GENESIS)
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                fields = json.loads(raw)
                digest = fields.pop("hash")
                good = fields["seq"] == count and fields["prev"] == prev and raw.endswith(b"\n")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise AuditBroken(f"{path}: line {number} is not an audit record") from error
            if not good or hashlib.sha256(_canonical(fields)).hexdigest() != digest:
                raise AuditBroken(f"{path}: the chain breaks at line {number}", _KEEP)
            count, prev = count + 1, digest
            agrees = agrees or noted == Head(count, prev)
    if noted is not None and not agrees:
        if count < noted.count:
            raise AuditBroken(f"{path}: the VO noted {noted.count} records, {count} are here: the end was cut off", _KEEP)
        raise AuditBroken(f"{path}: record {noted.count} is not the one that the VO noted: the file was written anew", _KEEP)
    return count, prev


class Audit:
    """Appends to one file. `append` orders and writes; `durable` waits until the disk has it, many waiters per flush."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._drop_torn_line()
        self._seq, self.head = verify_file(path)
        self._durable = self._seq
        self._flushing = asyncio.Lock()

    def _drop_torn_line(self) -> None:
        """A power cut may leave half a line; nobody was told of it, so it goes."""
        data_end = os.fstat(self._file).st_size
        tail_start = max(0, data_end - 64 * 1024)
        tail = os.pread(self._file, data_end - tail_start, tail_start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._file, tail_start + tail.rfind(b"\n") + 1)

    def position(self) -> Head:
        """Return where the chain stands now; durable once `durable(position().count)` returns."""
        return Head(self._seq, self.head)

    def append(self, record: AuditRecord) -> int:
        """Write a record (to the kernel); returns the number to hand to `durable`."""
        line, self.head = line_of(record, self._seq, self.head)
        data = line.encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise AuditBroken(f"{self.path}: the disk is full", "make room; nothing is decided without an audit")
        self._seq += 1
        return self._seq

    async def durable(self, number: int) -> None:
        """Wait until everything up to `number` is on the disk; one flush serves all who wait."""
        while self._durable < number:
            async with self._flushing:
                if self._durable >= number:
                    return
                upto = self._seq
                await asyncio.to_thread(os.fdatasync, self._file)
                self._durable = upto

    async def write(self, record: AuditRecord) -> None:
        """Append and wait until it is durable."""
        await self.durable(self.append(record))

    def close(self) -> None:
        """Flush and close the file."""
        os.fdatasync(self._file)
        os.close(self._file)
