"""unlink, rmdir: who may remove what, from which folders, and what open files keep. Source: IEEE 1003.1; unlink(2), rmdir(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS

from xtreemos.testing.posix.model import (
    CALLERS,
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
    listing,
    mark,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import folder, octal, open_file


def remover(kind: str) -> str:
    """The call that removes such a thing."""
    return "rmdir" if kind == "dir" else "unlink"


def _plain() -> Iterator[Case]:
    for kind in KINDS:
        call = remover(kind)
        yield case(
            f"{call}/removes/{kind}",
            folder("d"),
            has(kind, "d/n"),
            do(call, "d/n"),
            absent("d/n"),
            listing("d"),
            attrs("d", nlink=2),
        )
        yield case(
            f"{call}/moves-times-of-the-folder/{kind}",
            folder("d"),
            has(kind, "d/n"),
            mark("d", "."),
            do(call, "d/n"),
            moved("d", "mc"),
            moved(".", ""),
        )
        yield case(
            f"{call}/refused-moves-no-time/{kind}",
            folder("d", 0o555),
            has(kind, "d/n"),
            mark("d", "d/n"),
            fails(EACCES, call, "d/n"),
            moved("d", ""),
            moved("d/n", ""),
        )
        yield case(f"{call}/twice/{kind}", has(kind, "n"), do(call, "n"), fails(ENOENT, call, "n"))
        yield case(
            f"{call}/read-only/{kind}", has(kind, "n"), fails(EROFS, call, "%ro/n", who=ROOT), attrs("n", kind=kind), needs="mount"
        )
        wrong, error = ("unlink", (EISDIR, EPERM)) if kind == "dir" else ("rmdir", (ENOTDIR,))
        for who in (OWNER, ROOT):
            yield case(
                f"{wrong}/wrong-kind/{kind}/{who}",
                has(kind, "n"),
                mark("n", "."),
                fails(error, wrong, "n", who=who),
                attrs("n", kind=kind),
                moved(".", ""),
            )
        yield case(
            f"{call}/made-again/{kind}",
            has(kind, "n"),
            do(call, "n"),
            has(kind, "n"),
            attrs("n", kind=kind, nlink=2 if kind == "dir" else 1),
        )
        yield case(
            f"unlink/symlink-only/{kind}",
            has(kind, "n"),
            do("symlink", "n", "s"),
            do("unlink", "s"),
            absent("s"),
            attrs("n", kind=kind),
        )
        yield case(
            f"rmdir/symlink/{kind}",
            has(kind, "n"),
            do("symlink", "n", "s"),
            fails(ENOTDIR, "rmdir", "s"),
            attrs("n", kind=kind),
            attrs("s", kind="symlink"),
        )
        yield case(
            f"rmdir/not-empty/{kind}",
            folder("d"),
            has(kind, "d/n"),
            mark("d"),
            fails((ENOTEMPTY, EEXIST), "rmdir", "d"),
            moved("d", ""),
            listing("d", "n"),
        )


def _permissions() -> Iterator[Case]:
    """The folder's rights decide; those of the file do not matter."""
    for kind in ("file", "dir", "fifo", "symlink", "socket"):
        for who in USERS:
            shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
            for bits in range(8):
                for rest in (0, 7):
                    mode = sum((bits if shift == place else rest) << place for place in (6, 3, 0))
                    may = bits & 3 == 3  # write and search
                    yield case(
                        f"{remover(kind)}/permission/{kind}/{who}/{octal(mode)}",
                        folder("d"), has(kind, "d/n", 0, user=ROOT, group="root"), do("chmod", "d", mode, who=ROOT),
                        tries(0 if may else EACCES, remover(kind), "d/n", who=who), absent("d/n") if may else attrs("d/n", kind=kind),
                    )  # fmt: skip


def _sticky() -> Iterator[Case]:
    """In a sticky folder only the owner of the entry, of the folder, and root may remove."""
    for kind in KINDS:
        for holder in (OWNER, OTHER, ROOT):
            for user in (OWNER, "peer", OTHER, ROOT):
                for who in CALLERS:
                    may = who in {holder, user, ROOT}
                    yield case(
                        f"{remover(kind)}/sticky/{kind}/folder-{holder}/entry-{user}/{who}",
                        folder("d", 0o1777, user=holder), has(kind, "d/n", 0o777, user=user), tries(0 if may else (EPERM, EACCES), remover(kind), "d/n", who=who),
                        absent("d/n") if may else attrs("d/n", kind=kind, user=user),
                    )  # fmt: skip


def _open_files() -> Iterator[Case]:
    yield case(
        "unlink/open-file-lives-on", do("spew", "n", b"abc"), do("open", "n", os.O_RDWR, keep="f"), do("unlink", "n"), absent("n"), open_file(nlink=0, size=3),
        gives(b"abc", "read", "@f", 10), do("pwrite", "@f", b"defg", 3), open_file(nlink=0, size=7), gives(b"abcdefg", "pread", "@f", 10, 0),
        do("ftruncate", "@f", 2), open_file(size=2), gives(b"ab", "pread", "@f", 10, 0), do("chmod", "@f", 0o600), open_file(mode=0o600), do("fsync", "@f"),
    )  # fmt: skip
    yield case(
        "unlink/open-file-with-another-name",
        do("spew", "n", b"abc"),
        do("link", "n", "m"),
        do("open", "n", os.O_RDWR, keep="f"),
        do("unlink", "n"),
        open_file(nlink=1),
    )
    yield case("unlink/new-file-of-that-name-is-another", do("spew", "n", b"old"), do("open", "n", os.O_RDWR, keep="f"), do("unlink", "n"), do("spew", "n", b"newer"),
               gives(b"old", "read", "@f", 10), gives(b"newer", "slurp", "n"), open_file(nlink=0, size=3))  # fmt: skip
    yield case("rename/replaced-open-file-lives-on", do("spew", "n", b"old"), do("spew", "m", b"newer"), do("open", "n", os.O_RDWR, keep="f"), do("rename", "m", "n"),
               gives(b"old", "read", "@f", 10), open_file(nlink=0), gives(b"newer", "slurp", "n"))  # fmt: skip
    yield case(
        "rmdir/open-folder-lives-on",
        folder("d"),
        do("open", "d", os.O_RDONLY | os.O_DIRECTORY, keep="f"),
        do("rmdir", "d"),
        open_file(nlink=0),
        gives([], "names", "@f"),
    )
    yield case("rmdir/nothing-is-made-in-a-removed-folder", folder("d"), do("open", "d", os.O_RDONLY | os.O_DIRECTORY, keep="f"), do("rmdir", "d"),
               fails(ENOENT, "openat", "@f", "n", os.O_CREAT | os.O_WRONLY), fails(ENOENT, "mkdirat", "@f", "n", 0o755), fails(ENOENT, "symlinkat", "x", "@f", "n"))  # fmt: skip
    yield case(
        "unlink/open-fifo",
        has("fifo", "n"),
        do("open", "n", os.O_RDWR, keep="f"),
        do("unlink", "n"),
        do("write", "@f", b"x"),
        gives(b"x", "read", "@f", 1),
    )
    for count in (2, 50):
        yield case(f"unlink/many-open-unlinked/{count}", *(
            step for n in range(count) for step in (do("spew", f"n{n}", b"%d" % n), do("open", f"n{n}", os.O_RDONLY, keep=f"f{n}"), do("unlink", f"n{n}"))
        ), *(gives(b"%d" % n, "read", f"@f{n}", 9) for n in range(count)), listing("."))  # fmt: skip


def _dots() -> Iterator[Case]:
    yield case("rmdir/dot", folder("d"), fails(EINVAL, "rmdir", "d/."), attrs("d", kind="dir"))
    yield case(
        "rmdir/dot-dot", folder("d"), folder("d/e"), fails((ENOTEMPTY, EEXIST, EINVAL), "rmdir", "d/e/.."), attrs("d/e", kind="dir")
    )
    yield case("rmdir/dot-here", fails(EINVAL, "rmdir", "."))
    yield case("rmdir/root-of-all", fails((EBUSY, EPERM, EACCES), "rmdir", "/", who=ROOT))
    yield case("rmdir/slash-behind", folder("d"), do("rmdir", "d/"), absent("d"))
    yield case("unlink/slash-behind-a-file", has("file", "n"), fails(ENOTDIR, "unlink", "n/"), attrs("n", kind="file"))
    yield case("unlink/slash-behind-a-folder", folder("d"), fails((EISDIR, EPERM, ENOTDIR), "unlink", "d/"), attrs("d", kind="dir"))
    yield case(
        "unlink/slash-behind-a-symlink-to-a-file",
        has("file", "n"),
        do("symlink", "n", "s"),
        fails(ENOTDIR, "unlink", "s/"),
        attrs("s", kind="symlink"),
    )
    yield case(
        "rmdir/slash-behind-a-symlink-to-a-folder",
        folder("d"),
        do("symlink", "d", "s"),
        fails(ENOTDIR, "rmdir", "s/"),
        attrs("d", kind="dir"),
    )
    yield case("unlink/dot", fails((EISDIR, EPERM, EINVAL), "unlink", "."))


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_plain, _permissions, _sticky, _open_files, _dots):
        yield from part()
