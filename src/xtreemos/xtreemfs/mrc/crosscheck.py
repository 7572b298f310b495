"""What an MRC knows against what the OSDs have: columns without a file, files without their columns; and the changes that mend it.

Pure, like `checking`: a picture of the store and rows of columns in, problems out. Nothing that could be somebody's data is deleted:
columns of a volume that lives and of no file become a file in its `lost+found`. Only what belongs to a removed volume, or to a
file that one of its OSDs was told to delete, goes. Data that is lost cannot be mended; it is named by path, again at each run.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from xtreemos.xtreemfs.model import NUMBER_BITS, SUM_BYTES, WIDTH_MAX, Layout, Replica, VolumeRecord
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.checking import Picture, Problem, Repair, find_home
from xtreemos.xtreemfs.mrc.model import ROOT_NUMBER, Inode
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.protocol import ColumnRow

LAYOUT_VERSION: Final = 1
PATH_PARTS_MAX: Final = 4096


@dataclass
class Columns:
    """What the OSDs have. `silent` are those that could not be asked: nothing is concluded from their silence."""

    rows: dict[str, list[ColumnRow]] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def by_file(self) -> dict[int, dict[int, list[tuple[str, ColumnRow]]]]:
        """Return ino -> column -> (OSD, row) of columns that are there."""
        found: dict[int, dict[int, list[tuple[str, ColumnRow]]]] = {}
        for osd, rows in self.rows.items():
            for row in rows:
                if row.state == "there":
                    found.setdefault(row.ino, {}).setdefault(row.column, []).append((osd, row))
        return found

    def keys(self, state: str) -> set[tuple[str, int, int]]:
        """Return (OSD, ino, column) of all rows of a state."""
        return {(osd, row.ino, row.column) for osd, rows in self.rows.items() for row in rows if row.state == state}


class Finding(msgspec.Struct, frozen=True):
    """One problem. `ino` is its file; `mends` tells what repair does, "" if nothing can."""

    text: str
    ino: int
    mends: str = ""
    problem: Problem | None = None


def suspects(seen: Picture, columns: Columns, mrc: str, volumes: Mapping[int, VolumeRecord]) -> set[int]:
    """Return the files of which `check` needs the lengths of columns: those that no inode is known of."""
    return {ino for ino in columns.by_file() if ino not in seen.inodes and _is_ours(ino, seen, mrc, volumes)}


def check(seen: Picture, state: State, columns: Columns, mrc: str, volumes: Mapping[int, VolumeRecord]) -> list[Finding]:
    """Compare; [] if everything fits.

    Args:
        seen: the store.
        state: the same store, for layouts and garbage.
        columns: what the OSDs have; of suspects with lengths.
        mrc: name of this MRC's node.
        volumes: all volumes that the directory knows or knew, by id; removed ones are marked so.

    Returns:
        Findings, files without their columns first.
    """
    return [*_missing(seen, state, columns, volumes), *_strays(seen, state, columns, mrc, volumes)]


def _is_ours(ino: int, seen: Picture, mrc: str, volumes: Mapping[int, VolumeRecord]) -> bool:
    number = ino >> NUMBER_BITS
    if number in seen.volumes:
        return True
    record = volumes.get(number)
    return record is not None and record.mrc == mrc


# -- files without columns -------------------------------------------------------------------------------------------------


def _missing(seen: Picture, state: State, columns: Columns, volumes: Mapping[int, VolumeRecord]) -> Iterator[Finding]:
    there, lost = columns.keys("there"), columns.keys("lost")
    for ino, inode in seen.inodes.items():
        row = seen.volumes.get(ino >> NUMBER_BITS)
        if not inode.is_file or not inode.size or (row is not None and row.state == "gone"):
            continue
        name = f"{path_of(ino, seen, volumes)} (inode {ino:x})"
        layout = state.cold(ino).layout
        if layout is None:
            if inode.blocks:
                yield Finding(f"{name}: nobody knows on which object servers its {inode.size} bytes are", ino)
            continue
        for replica in layout.replicas:
            unknown = sorted({osd for osd in replica.osds if osd not in columns.rows and osd not in columns.silent})
            if unknown:
                yield Finding(f"{name}: lies on {', '.join(unknown)}, which is no object server of this VO (any more)", ino)
                continue
            places = {(osd, ino, column) for column, osd in enumerate(replica.osds)}
            for osd, _ino, column in sorted(places & lost):
                yield Finding(f"{name}: column {column} is lost on {osd}", ino)
            asked = columns.silent.isdisjoint(replica.osds)
            if inode.blocks and asked and not places & (there | lost):  # no blocks: all of it may be a hole
                yield Finding(f"{name}: {inode.size} bytes, and nothing of it on {', '.join(replica.osds)}", ino)


def path_of(ino: int, seen: Picture, volumes: Mapping[int, VolumeRecord]) -> str:
    """Return VOLUME:/a/b for an inode (one of its names), for people."""
    parts: list[str] = []
    at = ino
    while at & (1 << NUMBER_BITS) - 1 != ROOT_NUMBER and len(parts) < PATH_PARTS_MAX:
        holders = seen.held_by.get(at)
        if not holders:
            parts.append("?")
            break
        at, name = holders[0]
        parts.append(name.decode(errors="replace"))
    number = ino >> NUMBER_BITS
    row, record = seen.volumes.get(number), volumes.get(number)
    volume = row.record.name if row is not None else record.name if record is not None else str(number)
    return f"{volume}:/{'/'.join(reversed(parts))}"


# -- columns without files -------------------------------------------------------------------------------------------------


def _strays(seen: Picture, state: State, columns: Columns, mrc: str, volumes: Mapping[int, VolumeRecord]) -> Iterator[Finding]:
    deleted = {ino for _osd, ino, _column in columns.keys("deleted")}
    for ino, held in sorted(columns.by_file().items()):
        osds = sorted({osd for rows in held.values() for osd, _row in rows})
        number, row = ino >> NUMBER_BITS, seen.volumes.get(ino >> NUMBER_BITS)
        if ino in seen.inodes or not set(osds) - set(state.garbage(ino)) or (row is not None and row.state == "gone"):
            continue  # (columns at places where the layout has none are passed over: a layout may have been changed)
        if row is None and number not in volumes:
            yield Finding(f"columns of inode {ino:x} on {', '.join(osds)}, of a volume that nobody knows", ino)
        elif not _is_ours(ino, seen, mrc, volumes):
            continue
        elif row is None or ino in deleted:
            why = "its volume is removed" if row is None else "it was deleted"
            problem = Problem(f"inode {ino:x} is still on {', '.join(osds)}: {why}", _discard(ino, osds))
            yield Finding(problem.text, ino, "its columns are deleted", problem)
        else:
            taken = sum(one.taken_bytes for rows in held.values() for _osd, one in rows)
            problem = Problem(
                f"{row.record.name}: {taken} bytes of inode {ino:x} on {', '.join(osds)} belong to no file",
                _rescue(ino, held, row.record),
            )
            yield Finding(problem.text, ino, "they become a file in lost+found", problem)


def _discard(ino: int, osds: Iterable[str]) -> Repair:
    layout = Layout(LAYOUT_VERSION, SUM_BYTES, (Replica(tuple(osds)),))
    return lambda state: state.add_garbage(ino, layout, WIDTH_MAX)  # which columns, no layout says


def _rescue(ino: int, held: Mapping[int, list[tuple[str, ColumnRow]]], record: VolumeRecord) -> Repair:
    """Give columns an inode again, as long as they are; what has no column reads as a hole."""
    width = max(max(held) + 1, record.policy.width if max(held) else 1)
    first = held[min(held)][0][0]
    osds = tuple(held[column][0][0] if column in held else first for column in range(width))
    layout = Layout(LAYOUT_VERSION, record.policy.object_bytes, (Replica(osds),))
    size = layout.size_from_columns(tuple(max(0, held[column][0][1].length) if column in held else 0 for column in range(width)))
    blocks = sum(rows[0][1].taken_bytes for rows in held.values()) // 512

    def run(state: State) -> None:
        root = state.find_inode(ino >> NUMBER_BITS << NUMBER_BITS | ROOT_NUMBER)
        if root is None or state.find_inode(ino) is not None:
            return
        key = schema.COUNTER + schema.pack32(ino >> NUMBER_BITS)
        number = ino & (1 << NUMBER_BITS) - 1
        if schema.unpack64(state.kv.get(key) or bytes(8)) < number:  # first, or lost+found itself could get this number
            state.kv.put(key, schema.pack64(number))
        now = root.mtime_ns
        state.put_inode(Inode(ino, stat.S_IFREG | 0o600, 1, root.uid, root.gid, size, blocks, 0, now, now, now, now, 0))
        state.put_cold(ino, layout=layout)
        find_home(ino)(state)

    return run
