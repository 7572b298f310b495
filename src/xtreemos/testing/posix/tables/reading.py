"""Folders as streams: every entry once, positions, entries that come and go. Source: IEEE 1003.1 readdir, telldir, seekdir, rewinddir."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EACCES, EBADF, EINVAL, EISDIR, ENOENT, ENOTDIR

from xtreemos.testing.posix.model import KINDS, OTHER, Case, Facts, attrs, case, do, fails, gives, has, listing, mark, meets, moved
from xtreemos.testing.posix.tables.kit import folder, octal

DOTS = [".", ".."]


def _all_names(count: int, prefix: str = "f") -> list[str]:
    return [f"{prefix}{number:05}" for number in range(count)]


def _streams() -> Iterator[Case]:
    for count in (0, 1, 2, 10, 100, 700):
        wanted = sorted(DOTS + _all_names(count))
        made = (folder("d"), do("many", "d", count))
        yield case(f"readdir/all-once/{count}", made, do("opendir", "d"), gives(wanted, "readdir_sorted"), gives([], "readdir"))
        yield case(
            f"readdir/rewind/{count}",
            made,
            do("opendir", "d"),
            do("readdir", count // 2 + 1),
            do("rewinddir"),
            gives(wanted, "readdir_sorted"),
        )
        yield case(
            f"readdir/rewind-sees-news/{count}",
            made,
            do("opendir", "d"),
            do("readdir"),
            do("many", "d", 5, "g"),
            do("rewinddir"),
            gives(sorted(wanted + _all_names(5, "g")), "readdir_sorted"),
        )
        yield case(f"seekdir/every-position/{count}", made, do("opendir", "d"), gives([], "seek_everywhere"))
        yield case(f"readdir/empty-after-removal/{count}", made, do("remove_many", "d", count), listing("d"), do("rmdir", "d"))
    for count in (10, 200, 1000):
        yield case(f"readdir/entries-that-stay-are-seen-once/{count}", folder("d"), do("many", "d", count), do("many", "d", 50, "g"), do("opendir", "d"), do("readdir", 5, keep="first"),
                   do("remove_many", "d", 50, "g"), meets(f"the {count} that stayed, once each", _stayed(count), "readdir"))  # fmt: skip
        yield case(
            f"readdir/removal-while-reading/{count}",
            folder("d"),
            do("many", "d", count),
            do("opendir", "d"),
            do("readdir", count // 2),
            do("remove_many", "d", count),
            do("readdir"),
            listing("d"),
        )


def _only_dots(names: object) -> bool:
    return isinstance(names, list) and set(names) <= set(DOTS)


def _stayed(count: int) -> Callable[[object], bool]:
    """The test that of `count` names that stay, no more than the five read before are missing, and none comes twice."""
    wanted = set(_all_names(count))

    def test(names: object) -> bool:
        if not isinstance(names, list):
            return False
        mine = [name for name in names if name in wanted]
        return len(mine) == len(set(mine)) and len(mine) >= count - 5  # up to five came before the removal

    return test


def _kinds() -> Iterator[Case]:
    yield case("readdir/kinds", folder("d"), *(has(kind, f"d/{kind}") for kind in KINDS), listing("d", *KINDS))
    for kind in KINDS:
        if kind != "dir":
            yield case(
                f"opendir/kind/{kind}", has(kind, "n", 0o777), fails(ENOENT if kind == "symlink" else ENOTDIR, "opendir", "n")
            )
    yield case(
        "opendir/through-symlink",
        folder("d"),
        has("file", "d/n"),
        do("symlink", "d", "s"),
        do("opendir", "s"),
        gives([".", "..", "n"], "readdir_sorted"),
    )
    for mode in range(8):
        for call in ("opendir", "names"):
            step = do(call, "d", who=OTHER) if mode & 4 else fails(EACCES, call, "d", who=OTHER)
            yield case(f"{call}/permission/{octal(mode)}", folder("d", mode), step)
    yield case(
        "opendir/rights-are-those-of-the-open",
        folder("d"),
        has("file", "d/n"),
        do("opendir", "d"),
        do("chmod", "d", 0),
        gives([".", "..", "n"], "readdir_sorted"),
    )
    yield case(
        "readdir/removed-folder-is-empty",
        folder("d"),
        do("opendir", "d"),
        do("rmdir", "d"),
        meets("nothing but dots", _only_dots, "readdir"),
    )
    yield case("readdir/moves-no-mtime", folder("d"), do("many", "d", 20), mark("d"), listing("d", *_all_names(20)), moved("d", ""))
    yield case(
        "read/of-a-folder",
        folder("d"),
        do("open", "d", os.O_RDONLY, keep="d"),
        fails(EISDIR, "read", "@d", 10),
        fails((EBADF, EISDIR), "write", "@d", b"x"),
    )
    yield case("fsync/of-a-folder", folder("d"), do("many", "d", 3), do("open", "d", os.O_RDONLY, keep="d"), do("fsync", "@d"))
    yield case(
        "names/by-file-descriptor",
        has("file", "n"),
        do("open", "n", os.O_RDONLY, keep="f"),
        fails((ENOTDIR, EINVAL), "names", "@f"),
    )
    for count in (1, 5, 50, 500):
        yield case(
            f"mkdir/links-count-subfolders/{count}",
            folder("d"),
            *(folder(f"d/s{number}") for number in range(count)),
            attrs("d", nlink=count + 2),
            do("rmdir", "d/s0"),
            attrs("d", nlink=count + 1),
        )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    yield from _streams()
    yield from _kinds()
