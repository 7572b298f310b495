"""rename, renameat2: every pair of kinds, rights, sticky folders, own subtrees, NOREPLACE and EXCHANGE.

Source: IEEE 1003.1 rename; rename(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS, EXDEV

from xtreemos.testing.posix.libc import RENAME_EXCHANGE, RENAME_NOREPLACE
from xtreemos.testing.posix.model import (
    CALLERS,
    KINDS,
    OTHER,
    OWNER,
    PEER,
    ROOT,
    USERS,
    Case,
    Facts,
    Group,
    absent,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    like,
    listing,
    mark,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import folder, octal


def _pair_error(source: str, target: str) -> int:
    if source == "dir" and target != "dir":
        return ENOTDIR
    return EISDIR if source != "dir" and target == "dir" else 0


def _pairs() -> Iterator[Case]:
    for source in KINDS:
        for target in ("", *KINDS):
            error = _pair_error(source, target) if target else 0
            for across in (False, True):
                new = "e/b" if across else "a2"
                setup: list[Group] = [folder("e"), has(source, "a"), do("lstat", "a", keep="a")]
                setup += [has(target, new)] if target else []
                after: list[Group] = (
                    [absent("a"), like(new, "a", "ino", "kind", "mode", "user", "group")]
                    if not error
                    else [like("a", "a", "ino"), attrs(new, kind=target)]
                )
                where = "across" if across else "beside"
                yield case(f"rename/kinds/{source}-{target or 'nothing'}/{where}", *setup, tries(error, "rename", "a", new), *after)
                times: list[Group] = [
                    mark("a", "e"),
                    tries(error, "rename", "a", new),
                    moved(new if not error else "a", "c" if not error else "", since="a"),
                ]
                if across:
                    times.append(moved("e", "mc" if not error else ""))
                yield case(f"rename/times/{source}-{target or 'nothing'}/{where}", *setup, *times)
                there = [tries(EEXIST if target else 0, "renameat2", "a", new, RENAME_NOREPLACE)]
                yield case(
                    f"rename/noreplace/{source}-{target or 'nothing'}/{where}",
                    *setup,
                    *there,
                    like("a" if target else new, "a", "ino"),
                )
                if target:
                    swapped = [
                        do("lstat", new, keep="b"),
                        do("renameat2", "a", new, RENAME_EXCHANGE),
                        like("a", "b", "ino", "kind"),
                        like(new, "a", "ino", "kind"),
                    ]
                    yield case(f"rename/exchange/{source}-{target}/{where}", *setup, *swapped)
                else:
                    yield case(
                        f"rename/exchange/{source}-nothing/{where}",
                        *setup,
                        fails(ENOENT, "renameat2", "a", new, RENAME_EXCHANGE),
                        like("a", "a", "ino"),
                    )


def _links() -> Iterator[Case]:
    """Two names of one file: renaming one to the other does nothing."""
    for kind in KINDS:
        if kind == "dir":
            continue
        yield case(
            f"rename/same-file/{kind}",
            has(kind, "a"),
            do("link", "a", "b"),
            do("rename", "a", "b"),
            attrs("a", nlink=2),
            attrs("b", nlink=2),
        )
        yield case(
            f"rename/same-file-noreplace/{kind}",
            has(kind, "a"),
            do("link", "a", "b"),
            fails(EEXIST, "renameat2", "a", "b", RENAME_NOREPLACE),
            attrs("a", nlink=2),
        )
        yield case(
            f"rename/replaced-file-loses-a-link/{kind}",
            has(kind, "a"),
            has(kind, "b"),
            do("link", "b", "c"),
            mark("c"),
            do("rename", "a", "b"),
            attrs("c", nlink=1),
            moved("c", "c"),
        )
        yield case(
            f"rename/keeps-links/{kind}",
            has(kind, "a"),
            do("link", "a", "b"),
            do("rename", "a", "c"),
            attrs("c", nlink=2),
            attrs("b", nlink=2),
            absent("a"),
        )
    for kind in KINDS:
        yield case(
            f"rename/onto-itself/{kind}", has(kind, "a"), mark("a", "."), do("rename", "a", "a"), moved("a", ""), moved(".", "")
        )


def _folders() -> Iterator[Case]:
    move = do("rename", "d/s", "e/s")
    yield case(
        "rename/folder-changes-links-of-parents",
        folder("d"),
        folder("e"),
        folder("d/s"),
        move,
        attrs("d", nlink=2),
        attrs("e", nlink=3),
        attrs("e/s", nlink=2),
    )
    yield case(
        "rename/folder-replacing-changes-links",
        folder("d"),
        folder("e"),
        folder("d/s"),
        folder("e/s"),
        move,
        attrs("d", nlink=2),
        attrs("e", nlink=3),
    )
    yield case(
        "rename/folder-gets-a-new-parent",
        folder("d"),
        folder("e"),
        folder("d/s"),
        do("lstat", "e", keep="e"),
        move,
        do("stat", "e/s/.."),
        like("e/s/..", "e", "ino"),
    )
    yield case(
        "rename/folder-takes-its-tree",
        folder("d"),
        folder("e"),
        folder("d/s"),
        do("spew", "d/s/f", b"x"),
        folder("d/s/g"),
        move,
        listing("e/s", "f", "g"),
        gives(b"x", "slurp", "e/s/f"),
    )
    yield case(
        "rename/onto-full-folder",
        folder("d"),
        folder("e"),
        has("file", "e/f"),
        fails((ENOTEMPTY, EEXIST), "rename", "d", "e"),
        listing("e", "f"),
        attrs("d", kind="dir"),
    )
    yield case(
        "rename/exchange-parent-links",
        folder("d"),
        folder("d/s"),
        folder("e"),
        has("file", "e/f"),
        do("renameat2", "d/s", "e/f", RENAME_EXCHANGE),
        attrs("d", nlink=2),
        attrs("e", nlink=3),
    )
    for flags, name in ((0, "plain"), (RENAME_NOREPLACE, "noreplace")):
        for target in ("d/s", "d/s/t", "d/a/b"):
            yield case(f"rename/into-own-subtree/{name}/{target.replace('/', '_')}", folder("d"), folder("d/a"), has("file", "d/f"),
                       fails((EINVAL, ENOENT), "renameat2", "d", target, flags), listing("d", "a", "f"))  # fmt: skip
    for path in ("d/a", "d/a/b"):
        yield case(
            f"rename/exchange-with-own-subtree/{path.replace('/', '_')}",
            folder("d"),
            folder("d/a"),
            folder("d/a/b"),
            fails(EINVAL, "renameat2", "d", path, RENAME_EXCHANGE),
        )
        yield case(
            f"rename/onto-an-ancestor/{path.replace('/', '_')}",
            folder("d"),
            folder("d/a"),
            folder("d/a/b"),
            fails((ENOTEMPTY, EEXIST, EINVAL), "rename", path, "d"),
        )
    for source, target in (
        (".", "b"),
        ("..", "b"),
        ("d/.", "b"),
        ("d/..", "b"),
        ("d", "."),
        ("d", ".."),
        ("d", "e/."),
        ("d", "e/.."),
        ("a", "."),
        ("a", ".."),
    ):
        yield case(f"rename/dots/{source.replace('/', '_')}-{target.replace('/', '_')}", folder("d"), folder("e"), has("file", "a"),
                   fails((EINVAL, EBUSY, ENOTEMPTY, EEXIST, EISDIR), "rename", source, target), attrs("d", kind="dir"))  # fmt: skip
    for source, target, error in (
        ("d/", "b", 0),
        ("d", "b/", 0),
        ("d/", "b/", 0),
        ("a/", "b", ENOTDIR),
        ("a", "b/", ENOTDIR),
        ("a", "a2/", ENOTDIR),
        ("d", "e/", 0),
    ):
        yield case(f"rename/slashes/{source.replace('/', '_')}-{target.replace('/', '_')}", folder("d"), folder("e"), has("file", "a"), has("file", "a2"),
                   tries(error, "rename", source, target), attrs("a", kind="file"))  # fmt: skip


def _symlinks() -> Iterator[Case]:
    for kind in ("file", "dir", "fifo"):
        yield case(
            f"rename/symlink-itself/{kind}",
            has(kind, "a"),
            do("symlink", "a", "s"),
            do("rename", "s", "t"),
            gives("a", "readlink", "t"),
            attrs("a", kind=kind),
            absent("s"),
        )
        yield case(
            f"rename/onto-symlink/{kind}",
            has("file", "a"),
            has(kind, "b"),
            do("symlink", "b", "s"),
            do("rename", "a", "s"),
            attrs("s", kind="file"),
            attrs("b", kind=kind),
        )


def _permissions() -> Iterator[Case]:
    """Both folders need write and search; a folder that changes its parent needs write itself."""
    for who in USERS:
        shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
        for bits in range(8):
            for rest in (0, 7):
                mode = sum((bits if shift == place else rest) << place for place in (6, 3, 0))
                may = bits & 3 == 3  # write and search
                error = 0 if may else EACCES
                yield case(f"rename/source-folder/{who}/{octal(mode)}", folder("d"), has("file", "d/a"), do("chmod", "d", mode, who=ROOT), tries(error, "rename", "d/a", "b", who=who),
                           absent("d/a") if may else attrs("d/a", kind="file"), attrs("b", kind="file") if may else absent("b"))  # fmt: skip
                yield case(f"rename/target-folder/{who}/{octal(mode)}", folder("d"), has("file", "a"), do("chmod", "d", mode, who=ROOT), tries(error, "rename", "a", "d/b", who=who),
                           attrs("d/b", kind="file") if may else attrs("a", kind="file"))  # fmt: skip
                yield case(f"rename/target-replaced/{who}/{octal(mode)}", folder("d"), has("file", "a"), has("file", "d/b", 0, user=ROOT), do("lstat", "a", keep="a"), do("chmod", "d", mode, who=ROOT),
                           tries(error, "rename", "a", "d/b", who=who), like("d/b" if may else "a", "a", "ino"))  # fmt: skip
                moves = bool(bits & 2)
                yield case(f"rename/folder-that-changes-its-parent/{who}/{octal(mode)}", folder("e", 0o777), folder("d", mode), tries(0 if moves else EACCES, "rename", "d", "e/d", who=who),
                           attrs("e/d" if moves else "d", kind="dir"))  # fmt: skip
                yield case(
                    f"rename/folder-that-keeps-its-parent/{who}/{octal(mode)}",
                    folder("e", 0o777),
                    folder("e/d", mode),
                    do("rename", "e/d", "e/f", who=who),
                    listing("e", "f"),
                )


def _sticky() -> Iterator[Case]:
    for kind in ("file", "dir", "fifo", "symlink"):
        for holder in (OWNER, OTHER):
            for user in (OWNER, PEER, OTHER):
                for who in CALLERS:
                    may = who in {holder, user, ROOT}
                    error = 0 if may else (EPERM, EACCES)
                    name = f"{kind}/folder-{holder}/entry-{user}/{who}"
                    place = folder("d", 0o1777, user=holder)
                    yield case(f"rename/sticky-source/{name}", place, folder("e", 0o777), has(kind, "d/a", 0o777, user=user), tries(error, "rename", "d/a", "e/a", who=who),
                               attrs("e/a" if may else "d/a", user=user, kind=kind))  # fmt: skip
                    yield case(f"rename/sticky-target/{name}", place, folder("e", 0o777), has(kind, "e/a", 0o777, user=who), has(kind, "d/a", 0o777, user=user), do("lstat", "e/a", keep="a"),
                               tries(error, "rename", "e/a", "d/a", who=who), like("d/a" if may else "e/a", "a", "ino"))  # fmt: skip
                    yield case(
                        f"rename/sticky-new-name/{name}",
                        place,
                        has(kind, "d/a", 0o777, user=user),
                        tries(error, "rename", "d/a", "d/b", who=who),
                        attrs("d/b" if may else "d/a", user=user),
                    )


def _elsewhere() -> Iterator[Case]:
    for kind in KINDS:
        yield case(
            f"rename/another-file-system/{kind}",
            has(kind, "a"),
            fails(EXDEV, "rename", "a", "%xdev/b", who=ROOT),
            attrs("a", kind=kind),
            needs="mount",
        )
        yield case(
            f"rename/read-only/{kind}",
            has(kind, "a"),
            fails(EROFS, "rename", "%ro/a", "%ro/b", who=ROOT),
            attrs("a", kind=kind),
            needs="mount",
        )
        yield case(f"rename/missing-onto/{kind}", has(kind, "b"), fails(ENOENT, "rename", "a", "b"), attrs("b", kind=kind))
    yield case("rename/missing", fails(ENOENT, "rename", "a", "b"))
    yield case(
        "rename/flags-exclude-each-other",
        has("file", "a"),
        has("file", "b"),
        fails(EINVAL, "renameat2", "a", "b", RENAME_EXCHANGE | RENAME_NOREPLACE),
    )
    yield case("rename/unknown-flag", has("file", "a"), fails(EINVAL, "renameat2", "a", "b", 64), absent("b"))


def _open_files() -> Iterator[Case]:
    yield case(
        "rename/open-file-follows",
        do("spew", "a", b"abc"),
        do("open", "a", os.O_RDWR, keep="f"),
        do("rename", "a", "b"),
        do("write", "@f", b"xyz1"),
        gives(b"xyz1", "slurp", "b"),
        attrs("b", size=4),
    )
    yield case(
        "rename/open-folder-follows",
        folder("d"),
        do("open", "d", os.O_RDONLY, keep="f"),
        do("rename", "d", "e"),
        do("openat", "@f", "n", os.O_CREAT | os.O_WRONLY),
        listing("e", "n"),
    )
    for count in (3, 40):
        steps = [do("rename", f"n{number}", f"n{number + 1}") for number in range(count)]
        yield case(
            f"rename/chain/{count}",
            do("spew", "n0", b"abc"),
            *steps,
            listing(".", f"n{count}"),
            gives(b"abc", "slurp", f"n{count}"),
        )
    yield case(
        "rename/back-and-forth",
        folder("d"),
        do("spew", "a", b"x"),
        *(step for _ in range(20) for step in (do("rename", "a", "d/a"), do("rename", "d/a", "a"))),
        listing("d"),
        listing(".", "a", "d"),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_pairs, _links, _folders, _symlinks, _permissions, _sticky, _elsewhere, _open_files):
        yield from part()
