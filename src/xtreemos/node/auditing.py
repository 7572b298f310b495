"""The node's side of audit heads: it notes with the VO how far each audit is, and compares its file with what was noted.

Whoever takes records off the end of a node's audit, or writes it anew, does not reach what a core node keeps. What was decided in
the last NOTE_S seconds before is not noted yet; and a node whose daemon itself is hostile notes what it likes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from xtreemos.errors import Unreachable, XosError
from xtreemos.foundation.paths import NodePaths
from xtreemos.vo.audit import Audit, Head, verify_file
from xtreemos.vo.errors import AuditBroken

log = logging.getLogger(__name__)

NOTE_S: Final = 10.0
AGAIN_S: Final = 30.0

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""(method of the CDA, params) -> its answer, asked as this node; raises XosError."""


async def noted_head(ask: Ask) -> Head | None:
    """Return what the VO has noted of this node's audit, None if nothing yet; raises XosError."""
    rows = (await ask("audit_heads", {}))["heads"]
    return Head(int(rows[0]["count"]), str(rows[0]["hash"])) if rows else None


async def note_for_ever(vo: str, audit: Audit, ask: Ask) -> None:
    """Keep the VO's note of `audit` not more than NOTE_S behind; ends, with the evidence kept, if the two contradict each other.

    Compared is first what an earlier daemon left: a file that was cut meanwhile must not become the noted one by growing again.
    """
    told: Head | None = None
    compared = False
    while True:
        try:
            if not compared:
                await _compare(audit, await noted_head(ask))
                compared = True
            head = audit.position()
            if head != told:
                await audit.durable(head.count)
                await ask("audit_note", {"count": head.count, "hash": head.hash})
                told = head
        except AuditBroken as error:
            log.error("VO %s: %s; nothing of it is noted any more", vo, error.line())  # noqa: TRY400  # no bug of ours
            return
        except XosError as error:
            if error.code == AuditBroken.code:
                log.error("VO %s: %s; nothing of it is noted any more", vo, error.line())  # noqa: TRY400  # no bug of ours
                return
            log.info("VO %s: the audit is not noted now: %s", vo, error)
            await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))  # no secret
            continue
        await asyncio.sleep(NOTE_S * random.uniform(0.8, 1.2))  # no secret


async def _compare(audit: Audit, noted: Head | None) -> None:
    await audit.durable(audit.position().count)
    await asyncio.to_thread(verify_file, audit.path, noted)


def audit_path(paths: NodePaths, vo: str) -> Path:
    """Where this node's audit of a VO is."""
    return paths.private / "vo" / vo / "audit.jsonl"


def check_noted(path: Path, noted: Mapping[str, Any] | None) -> str:
    """Compare the file with the VO's note (`count`, `hash`; None if there is none yet); return one line for people.

    Raises:
        AuditBroken: records are gone, or are not those that were noted.
    """
    head = Head(int(noted["count"]), str(noted["hash"])) if noted is not None else None
    if not path.exists():
        if head is None:
            raise Unreachable(f"there is no audit {path} and the VO has noted none", "ask on a node of that VO")
        raise AuditBroken(f"{path}: the VO noted {head.count} records and the file is gone", "ask who took it")
    count, _hash = verify_file(path, head)
    if head is None:
        return f"{count} records, the chain is whole; the VO has not noted any yet"
    behind = f"; {count - head.count} later ones are not noted yet" if count > head.count else ""
    return f"{count} records, the chain is whole and agrees with the VO's note of {head.count}{behind}"
