"""access, faccessat, chdir: what a caller may do by the mode alone. Source: IEEE 1003.1 access; access(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EINVAL, ELOOP, ENOENT, ENOTDIR, EROFS

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.model import OTHER, OWNER, PLAIN_KINDS, ROOT, USERS, Case, Facts, Group, case, do, fails, has, tries
from xtreemos.testing.posix.tables.kit import folder, octal, rights


def _matrix() -> Iterator[Case]:
    """Every right of every class on every kind, and every combination that is asked for."""
    for kind in PLAIN_KINDS:
        for who in (*USERS, ROOT):
            for mode in (0, *(bits << shift for bits in range(1, 8) for shift in (0, 3, 6)), 0o754, 0o457, 0o770, 0o077, 0o707):
                bits = rights(mode, who)
                if who == ROOT:
                    bits = 6 | (1 if kind == "dir" or mode & 0o111 else 0)
                steps = [tries(0 if bits & wanted == wanted else EACCES, "access", "n", wanted, who=who) for wanted in range(8)]
                yield case(f"access/matrix/{kind}/{who}/{octal(mode)}", has(kind, "n", mode), steps)


def _groups() -> Iterator[Case]:
    for group, classes in {"team": "ggg.", "extra": "g...", "members": "..g.", "others": "...g", "elsewhere": "...g"}.items():
        for who, letter in zip(("owner", "peer", "member", "other"), classes, strict=True):
            want = 0 if letter == "g" else EACCES
            yield case(
                f"access/groups-count/{group}/{who}",
                has("file", "n", 0o040, user=ROOT, group=group),
                tries(want, "access", "n", os.R_OK, who=who),
            )
            yield case(
                f"access/groups-bind/{group}/{who}",
                has("file", "n", 0o404, user=ROOT, group=group),
                tries(EACCES if letter == "g" else 0, "access", "n", os.R_OK, who=who),
            )


def _paths() -> Iterator[Case]:
    for wanted in range(8):
        yield case(f"access/missing/{wanted}", fails(ENOENT, "access", "n", wanted))
        yield case(f"access/dangling/{wanted}", do("symlink", "gone", "n"), fails(ENOENT, "access", "n", wanted))
        yield case(f"access/not-a-folder/{wanted}", has("file", "n", 0o777), fails(ENOTDIR, "access", "n/x", wanted))
        yield case(f"access/loop/{wanted}", do("symlink", "n", "n"), fails(ELOOP, "access", "n", wanted))
        yield case(
            f"access/follows/{wanted}",
            has("file", "n", 0o500),
            do("symlink", "n", "s"),
            tries(0 if wanted & 5 == wanted else EACCES, "access", "s", wanted),
        )
        yield case(
            f"faccessat/not-follow/{wanted}",
            do("symlink", "gone", "s"),
            do("faccessat", libc.AT_FDCWD, "s", wanted, libc.AT_SYMLINK_NOFOLLOW),
        )
        yield case(
            f"faccessat/effective/{wanted}",
            has("file", "n", 0o500),
            tries(0 if wanted & 5 == wanted else EACCES, "faccessat", libc.AT_FDCWD, "n", wanted, libc.AT_EACCESS),
        )
        error = EROFS if wanted & 2 else 0
        yield case(
            f"access/read-only/{wanted}", has("file", "n", 0o777), tries(error, "access", "%ro/n", wanted, who=ROOT), needs="mount"
        )
    yield case("access/unknown-bits", has("file", "n"), fails(EINVAL, "access", "n", 8))
    for bits in range(8):
        for who in USERS:
            shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
            mode = bits << shift
            if not bits and who != OWNER:
                continue
            want = 0 if bits & 1 else EACCES
            checks: list[Group] = [
                tries(want, "access", "d/n", 0, who=who),
                tries(want, "stat", "d/n", who=who),
                tries(want, "lstat", "d/n", who=who),
                tries(want, "chdir", "d", who=who),
            ]
            yield case(f"access/search/{who}/{octal(mode)}", folder("d"), has("file", "d/n", 0o777), do("chmod", "d", mode), checks)
            yield case(
                f"names/read/{who}/{octal(mode)}", folder("d", mode), tries(0 if bits & 4 else EACCES, "names", "d", who=who)
            )
    for kind in PLAIN_KINDS:
        if kind != "dir":
            yield case(f"chdir/kind/{kind}", has(kind, "n", 0o777), fails(ENOTDIR, "chdir", "n"))
    yield case("chdir/fd", folder("d"), do("open", "d", os.O_RDONLY, keep="d"), do("chdir", "@d"))
    yield case("chdir/path-fd", folder("d", 0o111), do("open", "d", os.O_PATH, keep="d"), do("chdir", "@d"))


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_matrix, _groups, _paths):
        yield from part()
