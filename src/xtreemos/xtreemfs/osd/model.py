"""Values of the OSD: names of columns, marks, damage rows, counters. Pure."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

FOLDERS = 4096
"""Columns are spread over so many folders of a disk; a million columns are 250 names in each (two files per column: 500)."""
FOLDERS_AT_ONCE = 64
"""Folders are made so many together, for one sync of their names: new files have numbers in a row, so they will want the next ones too."""
_FOLDER = re.compile(r"[0-9a-f]{3}")


class Key(NamedTuple):
    """A column: inode number and number of the column in the layout."""

    ino: int
    column: int


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What is durably known of a column that was synced once. `clean`: `length` bytes and all sums are on the disk."""

    clean: bool
    length: int


class DamageRow(msgspec.Struct, frozen=True, array_like=True):
    """A block that did not fit its sum. `torn`: of a column with unsynced changes before a crash, taken as it was found."""

    ino: int
    column: int
    block: int
    kind: Literal["damaged", "torn"]
    found_at: int
    """Seconds since 1970."""


def data_name(key: Key) -> str:
    """Name of a column's bytes on a disk, below its folder."""
    folder = (key.ino ^ key.ino >> 12 ^ key.column * 0x9E5) % FOLDERS
    return f"{folder:03x}/{key.ino:016x}.{key.column:02x}"


def sums_name(key: Key) -> str:
    """Name of a column's sums, in the same folder."""
    return data_name(key) + ".sums"


def folders_with(folder: str) -> list[str]:
    """Return the folders to make when this one is missing, in order; itself alone if its name is not one of ours."""
    if not _FOLDER.fullmatch(folder):
        return [folder]
    first = int(folder, 16) // FOLDERS_AT_ONCE * FOLDERS_AT_ONCE
    return [f"{number:03x}" for number in range(first, first + FOLDERS_AT_ONCE)]


def key_of(name: str) -> Key | None:
    """Return the column of a data file's name; None for sums and strangers."""
    ino, dot, column = name.rpartition("/")[2].partition(".")
    if not dot or len(ino) != 16 or len(column) != 2:
        return None
    try:
        return Key(int(ino, 16), int(column, 16))
    except ValueError:
        return None
