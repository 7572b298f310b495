"""Volumes of other VOs in the sandboxes of this one: those that their VO shares, ours has accepted, and this node serves.

They are shown at the path that they have for everybody, /xos/OWNER/VOLUME, and nothing else of the other VO is. One whose metadata server is
away is left out, so that no program waits for another VO's machines.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from xtreemos.foundation.sandbox import Bind
from xtreemos.vo.model import Accepted
from xtreemos.xtreemfs.model import Share, VolumeRecord

if TYPE_CHECKING:
    from xtreemos.node.vo_runtime import VoRuntime

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # a program that starts waits no longer for a volume that does not answer
AWAY_S: Final = 5.0  # and the next ones do not wait for so long


class SharedVolumes:
    """What jobs of a VO see below /xos."""

    def __init__(self, vos: Mapping[str, VoRuntime]) -> None:
        self._vos = vos
        self._away_until: dict[str, float] = {}

    async def binds(self, vo: str) -> tuple[Bind, ...]:
        """Return what is shown to a job: its own VO's files, and volumes of others."""
        found = [Bind(f"/xos/{vo}")]
        for owner, volume, share in self.agreed(vo):
            path = f"/xos/{owner}/{volume}"
            if await self._is_there(path):
                found.append(Bind(path, writable=share.write))
        return tuple(found)

    def agreed(self, vo: str) -> Iterator[tuple[str, str, Share]]:
        """Yield (owning VO, volume, its VO's half) of what both halves agree about, as far as this node serves both VOs."""
        runtime = self._vos.get(vo)
        for key, value in list(runtime.public.items()) if runtime is not None else ():
            owner = self._vos.get(key.partition(".")[2]) if key.startswith("accepted.") else None
            if owner is None:
                continue
            try:
                for volume in Accepted.from_bytes(value).volumes:
                    held = owner.public.get(f"volume.{volume}")
                    record = msgspec.json.decode(held, type=VolumeRecord) if held is not None else None
                    share = record.share_with(vo, time.time()) if record is not None and not record.removed else None
                    if share is not None:
                        yield owner.vo, volume, share
            except msgspec.MsgspecError:
                log.warning("VO %s: the record %s cannot be read", vo, key)

    async def _is_there(self, path: str) -> bool:
        if self._away_until.get(path, 0.0) > time.monotonic():
            return False
        try:
            async with asyncio.timeout(LOOK_S):
                await asyncio.to_thread(os.stat, path)
        except (OSError, TimeoutError) as error:
            log.warning("%s is not shown to programs: %s", path, str(error) or "its metadata server does not answer")
            self._away_until[path] = time.monotonic() + AWAY_S
            return False
        return True
