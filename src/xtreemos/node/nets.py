"""Networks for jobs as xosd uses them: opened with the ones of running jobs kept, filled in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from xtreemos.errors import XosError
from xtreemos.fabric import rpc
from xtreemos.foundation.jobnet import JobNet, JobNetPool
from xtreemos.foundation.paths import NodePaths
from xtreemos.node.config import NodeConfig
from xtreemos.node.sshd import noted

log = logging.getLogger(__name__)

READY = 8
LOW = 4  # with fewer ready than this new ones are made: to replace each one that is lent would make and destroy one for every job
KEPT_MAX = 48  # networks that wait after a burst of jobs; each costs the kernel some 100 KiB


class Nets:
    """The pool of one node."""

    def __init__(self, pool: JobNetPool, kept: Iterable[str] = ()) -> None:
        """`kept`: networks of jobs that an earlier daemon started and that still run."""
        self._pool = pool
        self._kept = set(kept)
        self._filling: asyncio.Task[None] | None = None

    async def take(self, vo: str) -> JobNet:
        """Return a network for a job of a VO; at once if one is ready."""
        ready = self._pool.ready_count(vo)
        net = self._pool.take(vo) if ready else await asyncio.to_thread(self._pool.take, vo)
        if ready <= LOW:
            self._fill(vo)
        return net

    def adopt(self, path: str | None) -> str | None:
        """Return `path` if it is the network of a job of an earlier daemon, to be given back once; None if it was not kept.

        Numbers are used again: the network that an ended job had may by now be another job's.
        """
        if path not in self._kept:
            return None
        self._kept.discard(path)
        return path

    def give_back(self, path: str, vo: str) -> None:
        """Take back the network of a VO's ended job; only jobs of that VO get it again."""
        try:
            self._pool.give_back(self._pool.find(path), vo)
        except XosError as error:
            log.warning("%s", error)

    def _fill(self, vo: str = "") -> None:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill_now(vo), name="fill networks")

    async def _fill_now(self, vo: str) -> None:
        try:
            await asyncio.to_thread(self._pool.fill, vo)
        except XosError as error:
            log.warning("%s", error)


async def open_pool(paths: NodePaths, config: NodeConfig) -> Nets:
    """Open the node's pool; networks of jobs that jobd runs are kept."""
    peer = await rpc.connect_unix(paths.jobd_socket)
    try:
        rows = await peer.call("list", timeout_s=10)
    finally:
        peer.close()
    keep = [str(row["meta"]["netns"]) for row in rows if (row.get("meta") or {}).get("netns") and row.get("exit") is None]
    keep += [one.network for one in noted(paths) if one.network]
    pool = JobNetPool(paths.run / "netns", size=READY, kept=KEPT_MAX, outgoing=config.network == "outgoing")
    await asyncio.to_thread(pool.open, keep)
    nets = Nets(pool, keep)
    nets._fill()  # noqa: SLF001  # the first networks are made while the rest of the daemon starts
    return nets
