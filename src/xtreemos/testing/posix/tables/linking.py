"""link and linkat: one file, several names. Source: IEEE 1003.1 link; link(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EEXIST, ENOENT, ENOTDIR, EPERM, EROFS, EXDEV

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.model import (
    KINDS,
    OTHER,
    OWNER,
    ROOT,
    USERS,
    Case,
    Facts,
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
from xtreemos.testing.posix.tables.kit import content, folder, octal

LINKABLE = tuple(kind for kind in KINDS if kind != "dir")


def _shared_attributes() -> Iterator[Case]:
    """All names show the same attributes, and any of them changes them."""
    for kind in LINKABLE:
        yield case(
            f"link/counts/{kind}",
            has(kind, "a"), do("lstat", "a", keep="a"), do("link", "a", "b"), attrs("b", nlink=2), like("b", "a", "ino", "mode", "user", "group", "size"),
            do("link", "b", "c"), attrs("a", nlink=3), attrs("c", nlink=3), do("unlink", "a"), absent("a"), attrs("b", nlink=2),
            do("unlink", "c"), attrs("b", nlink=1), do("unlink", "b"), absent("b"),
        )  # fmt: skip
        if kind != "symlink":
            yield case(
                f"link/attributes-are-shared/{kind}", has(kind, "a"), do("link", "a", "b"), do("chmod", "b", 0o711), attrs("a", mode=0o711),
                do("chown", "a", -1, "extra"), attrs("b", group="extra"),
            )  # fmt: skip
        yield case(
            f"link/times/{kind}",
            has(kind, "a"),
            folder("d"),
            mark("a", "d", "."),
            do("link", "a", "d/b"),
            moved("a", "c"),
            moved("d", "mc"),
            moved(".", ""),
        )
        yield case(
            f"link/unlink-moves-ctime/{kind}", has(kind, "a"), do("link", "a", "b"), mark("a"), do("unlink", "b"), moved("a", "c")
        )
        for other in KINDS:
            yield case(
                f"link/exists/{kind}-{other}", has(kind, "a"), has(other, "b"), mark("a", "b"), fails(EEXIST, "link", "a", "b"), attrs("a", nlink=1, kind=kind),
                attrs("b", kind=other), moved("a", ""), moved("b", ""),
            )  # fmt: skip
        yield case(f"link/onto-itself/{kind}", has(kind, "a"), fails(EEXIST, "link", "a", "a"), attrs("a", nlink=1))
        yield case(f"link/twice/{kind}", has(kind, "a"), do("link", "a", "b"), fails(EEXIST, "link", "a", "b"), attrs("a", nlink=2))
        yield case(
            f"link/another-file-system/{kind}",
            has(kind, "a"),
            fails(EXDEV, "link", "a", "%xdev/b", who=ROOT),
            attrs("a", nlink=1),
            needs="mount",
        )
        yield case(
            f"link/read-only/{kind}", has(kind, "a"), fails(EROFS, "link", "%ro/a", "%ro/b", who=ROOT), absent("b"), needs="mount"
        )


def _content() -> Iterator[Case]:
    yield case(
        "link/content-is-shared",
        do("spew", "a", b"one"),
        do("link", "a", "b"),
        do("spew", "b", b"two!"),
        gives(b"two!", "slurp", "a"),
        attrs("a", size=4),
    )
    yield case(
        "link/content-outlives-a-name",
        do("spew", "a", b"one"),
        do("link", "a", "b"),
        do("unlink", "a"),
        gives(b"one", "slurp", "b"),
    )
    yield case("link/replaced-name-leaves-the-other", do("spew", "a", b"1"), do("link", "a", "b"), do("spew", "c", b"2"), do("rename", "c", "a"),
               gives(b"1", "slurp", "b"), gives(b"2", "slurp", "a"), attrs("b", nlink=1))  # fmt: skip
    yield case(
        "link/in-other-folders",
        folder("d"),
        folder("e"),
        do("spew", "d/a", b"1"),
        do("link", "d/a", "e/b"),
        listing("d", "a"),
        listing("e", "b"),
    )
    for count in (10, 100, 1000):
        yield case(
            f"link/many/{count}",
            folder("d"),
            do("spew", "a", b"x"),
            *(do("link", "a", f"d/{n}") for n in range(count - 1)),
            attrs("a", nlink=count),
        )


def _folders_are_not_linked() -> Iterator[Case]:
    for who in (OWNER, ROOT):
        yield case(
            f"link/folder/{who}", folder("a"), fails((EPERM, EACCES), "link", "a", "b", who=who), absent("b"), attrs("a", nlink=2)
        )
    for path in (".", ".."):
        yield case(f"link/folder/{'dot' * len(path)}", fails((EPERM, EACCES), "link", path, "b"), absent("b"))


def _symlinks() -> Iterator[Case]:
    for kind in ("file", "fifo", "dir"):
        yield case(
            f"link/symlink-itself/{kind}",
            has(kind, "a"),
            do("symlink", "a", "s"),
            do("link", "s", "b"),
            attrs("b", kind="symlink", nlink=2),
        )
    at = libc.AT_FDCWD
    yield case(
        "linkat/follows-if-asked",
        has("file", "a"),
        do("symlink", "a", "s"),
        do("linkat", at, "s", at, "b", libc.AT_SYMLINK_FOLLOW),
        attrs("a", nlink=2),
    )
    yield case(
        "linkat/does-not-follow",
        has("file", "a"),
        do("symlink", "a", "s"),
        do("linkat", at, "s", at, "b", 0),
        attrs("b", kind="symlink"),
    )
    yield case("linkat/unknown-flag", has("file", "a"), fails(22, "linkat", at, "a", at, "b", 0x80), absent("b"))
    yield case(
        "linkat/dangling", do("symlink", "x", "s"), fails(ENOENT, "linkat", at, "s", at, "b", libc.AT_SYMLINK_FOLLOW), absent("b")
    )


def _permissions(facts: Facts) -> Iterator[Case]:
    for who in USERS:
        shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
        for bits in range(8):
            mode = sum((bits if shift == place else 7) << place for place in (6, 3, 0))
            may = bits & 3 == 3  # write and search
            yield case(
                f"link/permission-of-the-target-folder/{who}/{octal(mode)}",
                has("file", "a", 0o666, user=who), folder("d", mode), tries(0 if may else EACCES, "link", "a", "d/b", who=who),
                attrs("a", nlink=2 if may else 1),
            )  # fmt: skip
            search = bool(bits & 1)
            yield case(
                f"link/permission-of-the-source-folder/{who}/{octal(mode)}",
                folder("d"), has("file", "d/a", 0o666, user=who), do("chmod", "d", mode, who=ROOT), tries(0 if search else EACCES, "link", "d/a", "b", who=who),
                attrs("d/a", nlink=2 if search else 1),
            )  # fmt: skip
    for kind, mode, who in [
        (kind, mode, who) for kind in LINKABLE for mode in (0o600, 0o644, 0o666, 0o4666, 0o2676) for who in (OWNER, OTHER, ROOT)
    ]:
        if kind == "symlink" and mode != 0o600:
            continue
        safe = kind == "file" and mode == 0o666
        may = who in {OWNER, ROOT} or safe or not facts.protected_hardlinks
        yield case(
            f"link/file-of-another/{kind}/{octal(mode)}/{who}", has(kind, "a", mode), tries(0 if may else EPERM, "link", "a", "b", who=who),
            attrs("a", nlink=2 if may else 1),
        )  # fmt: skip


def cases(facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_shared_attributes, _content, _folders_are_not_linked, _symlinks):
        yield from part()
    yield from _permissions(facts)
    yield case("link/missing", fails(ENOENT, "link", "a", "b"), absent("b"))
    yield case("link/behind-a-slash", has("file", "a"), fails((ENOENT, ENOTDIR), "link", "a", "b/"), absent("b"))
    yield case("link/from-behind-a-slash", has("file", "a"), fails(ENOTDIR, "link", "a/", "b"), absent("b"))
    for flags in (0, libc.AT_EMPTY_PATH):
        step = (
            do("linkat", "@f", "", libc.AT_FDCWD, "b", flags, who=ROOT)
            if flags
            else fails(ENOENT, "linkat", "@f", "", libc.AT_FDCWD, "b", 0, who=ROOT)
        )
        yield case(
            f"linkat/empty-path/{flags:#x}",
            content("a", b"x"),
            do("open", "a", os.O_RDONLY, who=ROOT, keep="f"),
            step,
            attrs("a", nlink=2 if flags else 1),
        )
