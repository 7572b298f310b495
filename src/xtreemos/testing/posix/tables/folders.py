"""The calls relative to a folder's descriptor, O_PATH and O_TMPFILE. Source: IEEE 1003.1 openat and its family; open(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EINVAL, ENOENT, ENOTDIR

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.model import (
    KINDS,
    OTHER,
    OWNER,
    ROOT,
    USERS,
    Case,
    Facts,
    Has,
    Step,
    absent,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    listing,
    mark,
    meets,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import content, folder, octal, open_file

OPENS = {"read": os.O_RDONLY | os.O_DIRECTORY, "path": os.O_PATH | os.O_DIRECTORY}


def _calls(fd: str, name: str) -> dict[str, tuple[Step, ...]]:
    """By call: what is done at a folder's descriptor, and what must be so then."""
    here = libc.AT_FDCWD
    return {
        "openat-create": (do("openat", fd, name, os.O_CREAT | os.O_WRONLY, 0o640), attrs(f"d/{name}", kind="file", mode=0o640)),
        "openat": (do("openat", fd, "there", os.O_RDONLY, keep="g"), gives(b"abc", "read", "@g", 9)),
        "mkdirat": (do("mkdirat", fd, name, 0o750), attrs(f"d/{name}", kind="dir", mode=0o750)),
        "mkfifoat": (do("mkfifoat", fd, name, 0o640), attrs(f"d/{name}", kind="fifo", mode=0o640)),
        "mknodat": (do("mknodat", fd, name, "file", 0o640), attrs(f"d/{name}", kind="file", mode=0o640)),
        "symlinkat": (do("symlinkat", "there", fd, name), gives("there", "readlinkat", fd, name)),
        "linkat-to": (do("linkat", here, "beside", fd, name, 0), attrs("beside", nlink=2)),
        "linkat-from": (do("linkat", fd, "there", here, name, 0), attrs("d/there", nlink=2)),
        "renameat-to": (do("renameat", here, "beside", fd, name), absent("beside"), attrs(f"d/{name}", kind="file")),
        "renameat-from": (do("renameat", fd, "there", here, name), absent("d/there"), attrs(name, kind="file")),
        "renameat-within": (do("renameat", fd, "there", fd, name), absent("d/there"), attrs(f"d/{name}", kind="file")),
        "unlinkat": (do("unlinkat", fd, "there"), absent("d/there")),
        "unlinkat-folder": (do("rmdirat", fd, "sub"), absent("d/sub")),
        "fstatat": (Step("fstatat", (fd, "there"), OWNER, Has({"size": 3, "kind": "file"})),),
        "fchmodat": (do("fchmodat", fd, "there", 0o604), attrs("d/there", mode=0o604)),
        "fchownat": (do("fchownat", fd, "there", -1, "extra"), attrs("d/there", group="extra")),
        "utimensat": (do("utimensat", fd, "there", (5, 6, 7, 8), 0), attrs("d/there", atime=5_000_000_006, mtime=7_000_000_008)),
        "faccessat": (do("faccessat", fd, "there", os.R_OK, 0), fails(EACCES, "faccessat", fd, "there", os.X_OK, 0)),
    }


def _at() -> Iterator[Case]:
    place = (
        folder("d"),
        folder("d/sub"),
        has("file", "d/there"),
        content("d/there", b"abc"),
        has("file", "beside"),
        has("file", "x"),
    )
    for how, flags in OPENS.items():
        for name, steps in _calls("@d", "n").items():
            yield case(f"{name}/at-a-folder/{how}", place, do("open", "d", flags, keep="d"), steps)
            if name == "faccessat":
                continue
            yield case(
                f"{name}/the-folder-moved/{how}",
                place,
                do("open", "d", flags, keep="d"),
                do("rename", "d", "e"),
                do("rename", "e", "d"),
                steps,
            )
        for name, steps in _calls("@f", "n").items():
            first = steps[0]
            yield case(
                f"{name}/at-a-file/{how}",
                place,
                do("open", "x", flags & os.O_PATH, keep="f"),
                fails(ENOTDIR, first.call, *first.args),
            )
    for name, steps in _calls("@f", "n").items():
        first = steps[0]
        args = tuple(987654 if arg == "@f" else arg for arg in first.args)
        yield case(f"{name}/at-no-descriptor", place, fails(EBADF, first.call, *args))
        paths = tuple(
            f"%abs/d/{arg}"
            if isinstance(arg, str) and arg in {"n", "there", "sub"} and not (first.call == "symlinkat" and arg == "there")
            else arg
            for arg in args
        )
        if name not in {
            "linkat-from",
            "linkat-to",
            "renameat-from",
            "renameat-to",
            "renameat-within",
        }:  # the absolute path is another mount
            yield case(f"{name}/absolute-needs-no-descriptor", place, do(first.call, *paths))
    for who in USERS:
        shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
        for bits in range(8):
            mode = bits << shift
            want = 0 if bits & 1 else EACCES
            yield case(f"openat/search-is-asked-at-the-call/{who}/{bits}", place, do("open", "d", OPENS["path"], who=ROOT, keep="d"), do("chmod", "d/there", 0o777, who=ROOT),
                       do("chmod", "d", mode, who=ROOT), tries(want, "openat", "@d", "there", os.O_RDONLY, who=who))  # fmt: skip


def _path_descriptors() -> Iterator[Case]:
    for kind in KINDS:
        nofollow = os.O_PATH | os.O_NOFOLLOW
        yield case(
            f"o-path/any-kind/{kind}",
            has(kind, "n", 0),
            do("open", "n", nofollow, keep="f"),
            Step("fstat", ("@f",), OWNER, Has({"kind": kind})),
        )
        refused = [
            fails(EBADF, *call)
            for call in (
                ("read", "@f", 1),
                ("write", "@f", b"x"),
                ("ftruncate", "@f", 0),
                ("chmod", "@f", 0o600),
                ("lseek", "@f", 0, 0),
                ("fsync", "@f"),
            )
        ]
        yield case(f"o-path/is-for-nothing-else/{kind}", has(kind, "n"), do("open", "n", nofollow, keep="f"), refused)
        yield case(f"o-path/moves-no-time/{kind}", has(kind, "n"), mark("n"), do("open", "n", nofollow), moved("n", "", same="amc"))
    for who in USERS:
        yield case(
            f"o-path/needs-search/{who}",
            folder("d", 0o666),
            has("file", "d/n", 0o777),
            fails(EACCES, "open", "d/n", os.O_PATH, who=who),
        )
        yield case(
            f"o-path/needs-no-rights/{who}",
            has("file", "n", 0),
            do("open", "n", os.O_PATH, who=who, keep="f"),
            Step("fstat", ("@f",), who, Has({"mode": 0})),
        )
    yield case(
        "o-path/link-by-empty-path",
        content("n", b"x"),
        do("open", "n", os.O_PATH, who=ROOT, keep="f"),
        do("linkat", "@f", "", libc.AT_FDCWD, "m", libc.AT_EMPTY_PATH, who=ROOT),
        attrs("n", nlink=2),
    )


def _nameless() -> Iterator[Case]:
    flags = os.O_TMPFILE | os.O_RDWR
    for mode in (0o000, 0o600, 0o644, 0o666, 0o777):
        for mask in (0, 0o022, 0o077):
            yield case(
                f"tmpfile/mode/{octal(mode)}-{octal(mask)}",
                do("umask", mask),
                do("open", ".", flags, mode, keep="f"),
                open_file(kind="file", mode=mode & ~mask, nlink=0, size=0, user=OWNER),
                listing("."),
            )
    yield case(
        "tmpfile/read-and-write",
        do("open", ".", flags, 0o600, keep="f"),
        gives(3, "write", "@f", b"abc"),
        gives(b"abc", "pread", "@f", 9, 0),
        open_file(size=3),
    )
    yield case(
        "tmpfile/gets-a-name",
        do("open", ".", flags, 0o640, keep="f"),
        do("write", "@f", b"abc"),
        do("link_from_fd", "@f", "n"),
        gives(b"abc", "slurp", "n"),
        attrs("n", nlink=1, mode=0o640, user=OWNER),
    )
    yield case(
        "tmpfile/gets-two-names",
        do("open", ".", flags, 0o640, keep="f"),
        do("link_from_fd", "@f", "n"),
        do("link_from_fd", "@f", "m"),
        attrs("n", nlink=2),
        listing(".", "m", "n"),
    )
    yield case(
        "tmpfile/exclusive-gets-no-name",
        do("open", ".", flags | os.O_EXCL, 0o640, keep="f"),
        fails(ENOENT, "link_from_fd", "@f", "n"),
        listing("."),
    )
    yield case(
        "tmpfile/name-is-taken",
        has("file", "n"),
        do("open", ".", flags, 0o640, keep="f"),
        fails(17, "link_from_fd", "@f", "n"),
        attrs("n", size=0, nlink=1),
    )
    yield case(
        "tmpfile/goes-with-its-descriptor",
        do("open", ".", flags, 0o640, keep="f"),
        do("write", "@f", b"abc"),
        do("close", "@f"),
        listing("."),
    )
    yield case("tmpfile/read-only-is-refused", fails((EINVAL, 21), "open", ".", os.O_TMPFILE | os.O_RDONLY))
    yield case("tmpfile/moves-no-time-of-the-folder", folder("d"), mark("d"), do("open", "d", flags, 0o600), moved("d", ""))
    for mode in range(8):
        error = 0 if mode & 3 == 3 else EACCES  # write and search
        yield case(f"tmpfile/permission/{octal(mode)}", folder("d", mode), tries(error, "open", "d", flags, 0o600, who=OTHER))
    for kind in ("file", "fifo", "socket"):
        yield case(f"tmpfile/not-in/{kind}", has(kind, "n", 0o777), fails(ENOTDIR, "open", "n", flags, 0o600))
    yield case(
        "tmpfile/group-of-a-setgid-folder",
        folder("d", 0o2777, group="elsewhere"),
        do("open", "d", flags, 0o600, keep="f"),
        open_file(group="elsewhere"),
    )
    yield case(
        "tmpfile/two-are-two",
        do("open", ".", flags, 0o600, keep="f"),
        do("open", ".", flags, 0o600, keep="g"),
        do("write", "@f", b"a"),
        gives(b"", "pread", "@g", 9, 0),
    )


def _birth() -> Iterator[Case]:
    for kind in KINDS:
        yield case(
            f"statx/birth-is-told/{kind}",
            has(kind, "n"),
            meets("a time", lambda value: isinstance(value, int) and value > 0, "birth", "n"),
        )
    yield case(
        "statx/birth-stays",
        do("spew", "n", b"a"),
        do("birth", "n", keep="b"),
        *mark("n"),
        do("spew", "n", b"bc"),
        do("chmod", "n", 0o600),
        do("rename", "n", "m"),
        do("same_birth", "m", "@b"),
    )
    yield case("statx/birth-is-not-after-change", do("spew", "n", b"a"), do("birth_before_ctime", "n"))
    yield case("statx/new-file-is-younger", do("spew", "n", b"a"), *mark("n"), do("spew", "m", b"a"), do("younger", "m", "n"))


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_at, _path_descriptors, _nameless, _birth):
        yield from part()
