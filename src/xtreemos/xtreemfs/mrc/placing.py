"""Where a new file's bytes go: a pure choice among the object servers that the directory knows."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import OSD_SILENT_S, Layout, OsdRecord, Replica, VolumePolicy

FREE_BYTES_MIN: Final = 64 << 20  # an OSD with less than this gets no new files, nor one with less than a hundredth left


def usable(record: OsdRecord, now_s: float) -> bool:
    """Whether new files may be placed on an OSD: online, heard of lately, with room."""
    room = record.free_bytes >= FREE_BYTES_MIN and record.free_bytes * 100 >= record.total_bytes
    return record.state == "online" and now_s - record.beat_at <= OSD_SILENT_S and room


def candidates(osds: Iterable[OsdRecord], now_s: float) -> list[OsdRecord]:
    """Return the OSDs that can take new files, by node; good for a second or so."""
    return sorted((record for record in osds if usable(record, now_s)), key=lambda record: record.node)


def choose(policy: VolumePolicy, good: list[OsdRecord], *, near: str, turn: int) -> Layout:
    """Choose the layout of a new file.

    Args:
        policy: of the volume: width, object size, near or spread.
        good: `candidates`.
        near: node of the client that makes the file.
        turn: any number, another one for each file: spreads files over OSDs, more on those with more room.

    Returns:
        A layout of one replica; fewer columns than the policy's width if there are not so many OSDs.

    Raises:
        FsError(ENOSPC): no OSD can take it.
    """
    if not good:
        raise FsError(errno.ENOSPC, "no object server has room", "see `xos fs stat`")
    own = [record for record in good if record.node == near] if policy.placement == "near" else []
    chosen = own[:1]
    rest = [record for record in good if record not in chosen]
    while rest and len(chosen) < policy.width:
        chosen.append(rest.pop(_weighted(rest, turn)))
        turn = turn // 7 + 1
    return Layout(1, policy.object_bytes, (Replica(tuple(record.node for record in chosen)),))


def _weighted(records: list[OsdRecord], turn: int) -> int:
    """Return an index, each about as often (over many turns) as its OSD's share of the free space."""
    total = sum(record.free_bytes for record in records)
    # The golden ratio's multiples fall evenly over 0..1, so that few files are spread well already.
    at = int(turn * 0.6180339887498949 % 1.0 * total)
    for index, record in enumerate(records):
        at -= record.free_bytes
        if at < 0:
            return index
    return len(records) - 1
