"""Backups of streams, and growing the fabric from one core node to three with them.

A lone nats-server and a member of a cluster do not read each other's JetStream folder: a server that finds the streams of its
lone days in a cluster calls them orphans and deletes them after 30 s [tried, 2.15.1]. So `ServerConfig.store_dir` differs, and
growing is: `backup` every account while nobody writes; restart as a cluster of three with an empty folder; `restore` with
three copies. Sequences are kept, so revisions and fencing tokens stay valid. The old folder stays as it was: if growing fails,
starting the lone server again brings everything back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.errors import ApiError, NoResponders, Unreachable
from xtreemos.fabric.stream import api, scale_streams, stream_info, stream_names

CHUNK_BYTES = 128 << 10
CHUNK_S_MAX = 10.0
RESTORE_TRY_S = 20.0
RESTORE_S_MAX = 60.0
HEARD_S = 1.0
logger = logging.getLogger(__name__)


async def backup(fabric: Fabric, folder: Path) -> list[str]:
    """Write every stream of the account to `folder` (NAME.json, NAME.snapshot); returns their names.

    Each stream is whole by itself; nobody should write meanwhile if they must fit together. For the service role.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = await stream_names(fabric)
    for name in names:
        await _backup_one(fabric, name, folder)
    return names


async def _backup_one(fabric: Fabric, name: str, folder: Path) -> None:
    inbox = f"{fabric.settings.inbox}.b{os.urandom(8).hex()}"
    chunks = await fabric.listen(inbox)
    try:
        body = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": CHUNK_BYTES, "jsck": True}
        facts = await api(fabric, f"STREAM.SNAPSHOT.{name}", body, timeout_s=30)
        with (folder / f"{name}.snapshot").open("wb") as file:
            while True:
                chunk = await chunks.next(CHUNK_S_MAX)
                if chunk is None:
                    raise Unreachable(f"the connection broke during the backup of {name}", "make the backup again")
                if chunk.reply:
                    await fabric.publish(chunk.reply, b"")  # the server waits for this before it sends much more
                if not chunk.data:
                    break
                file.write(chunk.data)
            file.flush()
            os.fsync(file.fileno())
    except TimeoutError:
        raise Unreachable(f"the backup of {name} got stuck", "make it again") from None
    finally:
        await chunks.close()
    (folder / f"{name}.json").write_text(json.dumps({"config": facts["config"], "state": facts["state"]}))


async def restore(fabric: Fabric, folder: Path, *, copies: int | None = None) -> list[str]:
    """Bring back every stream of a `backup` that is not there; returns the names in the folder. May be repeated."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    present = set(await stream_names(fabric))
    for name in names:
        facts = json.loads((folder / f"{name}.json").read_text())
        if name not in present:
            await _restore_patiently(fabric, name, folder, facts, copies)
    return names


async def _restore_patiently(fabric: Fabric, name: str, folder: Path, facts: dict[str, Any], copies: int | None) -> None:
    """A young cluster changes leaders, and a restore does not survive that: begin anew, over whatever half came."""
    config = facts["config"] | ({"num_replicas": copies} if copies is not None else {})
    deadline_s = time.monotonic() + RESTORE_S_MAX
    while True:
        try:
            await _restore_once(fabric, name, folder / f"{name}.snapshot", {"config": config, "state": facts["state"]})
            return
        except (Unreachable, ApiError) as cause:
            if time.monotonic() > deadline_s:
                raise
            logger.info("restoring %s begins anew: %s", name, cause)
        await asyncio.sleep(0.5)
        if name in await stream_names(fabric):
            if await _last_seq(fabric, name) == int(facts["state"]["last_seq"]):
                return
            await api(fabric, f"STREAM.DELETE.{name}", timeout_s=RESTORE_TRY_S)


async def _last_seq(fabric: Fabric, name: str) -> int:
    return int((await stream_info(fabric, name, timeout_s=RESTORE_TRY_S))["state"]["last_seq"])


async def _restore_once(fabric: Fabric, name: str, snapshot: Path, facts: dict[str, Any]) -> None:
    started = await api(fabric, f"STREAM.RESTORE.{name}", facts, timeout_s=RESTORE_TRY_S)
    subject = str(started["deliver_subject"])
    with snapshot.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            _check(await _send_chunk(fabric, subject, chunk), name)
    _check(await _send_chunk(fabric, subject, b""), name)
    wanted, found = int(facts["state"]["last_seq"]), await _last_seq(fabric, name)
    if found != wanted:
        raise Unreachable(f"stream {name} came back up to {found} instead of {wanted}", "restore it again")


async def _send_chunk(fabric: Fabric, subject: str, chunk: bytes) -> bytes:
    """The restoring server may be another than ours, and ours hears of its subscription a moment later."""
    deadline_s = time.monotonic() + HEARD_S
    while True:
        try:
            return await fabric.request(subject, chunk, RESTORE_TRY_S)
        except NoResponders:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.02)


def _check(answer: bytes, name: str) -> None:
    error = json.loads(answer).get("error") if answer else None
    if error is not None:
        raise ApiError(
            f"{error.get('description')} (restoring {name})",
            err_code=int(error.get("err_code", 0)),
            status=int(error.get("code", 0)),
        )


async def restore_grown(fabrics: Sequence[tuple[Fabric, Path]], *, copies: int = 3, timeout_s: float = 60) -> None:
    """After the restart as a cluster: restore the backup of each account and wait until every stream has all its copies."""
    deadline_s = time.monotonic() + timeout_s
    for fabric, folder in fabrics:
        await _wait_cluster(fabric, copies, deadline_s)
        await restore(fabric, folder, copies=copies)
        await scale_streams(fabric, copies, timeout_s=max(1.0, deadline_s - time.monotonic()))


async def _wait_cluster(fabric: Fabric, servers: int, deadline_s: float) -> None:
    while fabric.cluster_size < servers:
        if time.monotonic() > deadline_s:
            raise Unreachable(f"the fabric has {fabric.cluster_size} of {servers} servers", definite=True)
        await asyncio.sleep(0.1)  # the servers tell clients by INFO, which nobody waits for
