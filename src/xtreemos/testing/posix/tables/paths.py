"""What every call that takes a path owes to the path: limits of names, broken prefixes, loops, search rights. Source: IEEE 1003.1, 4.13."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.model import (
    KINDS,
    OTHER,
    OWNER,
    USERS,
    Case,
    Facts,
    Group,
    Step,
    absent,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    listing,
)
from xtreemos.testing.posix.tables.kit import folder

HERE = libc.AT_FDCWD
NAME_MAX, PATH_MAX = 255, 4096
LINKS_MAX = 40
Use = Callable[[str], tuple[str, tuple[object, ...]]]

# Calls on what is there already; `x` is a file beside.
USING: dict[str, Use] = {
    "open": lambda p: ("open", (p, os.O_RDONLY)), "stat": lambda p: ("stat", (p,)), "lstat": lambda p: ("lstat", (p,)), "chmod": lambda p: ("chmod", (p, 0o755)),
    "chown": lambda p: ("chown", (p, -1, "extra")), "lchown": lambda p: ("lchown", (p, -1, "extra")), "truncate": lambda p: ("truncate", (p, 0)),
    "unlink": lambda p: ("unlink", (p,)), "rename-from": lambda p: ("rename", (p, "y")), "link-from": lambda p: ("link", (p, "y")),
    "access": lambda p: ("access", (p, os.R_OK)), "utimensat": lambda p: ("utimensat", (HERE, p, None, 0)), "getxattr": lambda p: ("listxattr", (p,)),
    "exchange": lambda p: ("renameat2", ("x", p, libc.RENAME_EXCHANGE)), "setxattr": lambda p: ("setxattr", (p, "user.a", b"1")), "statvfs": lambda p: ("statvfs", (p,)),
}  # fmt: skip
# Calls on folders that are there.
ENTERING: dict[str, Use] = {
    "rmdir": lambda p: ("rmdir", (p,)),
    "opendir": lambda p: ("names", (p,)),
    "chdir": lambda p: ("chdir", (p,)),
}
# Calls that make a name.
NAMING: dict[str, Use] = {
    "create": lambda p: ("open", (p, os.O_CREAT | os.O_WRONLY)), "create-exclusive": lambda p: ("open", (p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "mkdir": lambda p: ("mkdir", (p, 0o755)), "mkfifo": lambda p: ("mkfifo", (p, 0o644)), "mknod": lambda p: ("mknod", (p, "file", 0o644)),
    "symlink": lambda p: ("symlink", ("x", p)), "link-to": lambda p: ("link", ("x", p)), "rename-to": lambda p: ("rename", ("x", p)), "bind": lambda p: ("bind_socket", (p,)),
}  # fmt: skip
ALL = USING | ENTERING | NAMING
SHORT = {"bind"}
"""A socket's address is at most 107 bytes, and empty it means something else."""
LONG = {name: use for name, use in ALL.items() if name not in SHORT}


def act(use: Use, path: str, error: int | tuple[int, ...] = 0, who: str = OWNER) -> Step:
    """Make a call of this module's dictionaries on a path."""
    call, args = use(path)
    return fails(error, call, *args, who=who) if error else do(call, *args, who=who)


def _prefixes() -> Iterator[Case]:
    for name, use in ALL.items():
        beside = has("file", "x", 0o666)
        yield case(f"path/missing-prefix/{name}", beside, act(use, "gone/n", ENOENT), listing(".", "x"))
        yield case(f"path/dangling-prefix/{name}", beside, do("symlink", "gone", "s"), act(use, "s/n", ENOENT), absent("gone"))
        if name in LONG:
            yield case(f"path/empty/{name}", beside, act(use, "", ENOENT), listing(".", "x"))
        for kind in KINDS:
            if kind not in {"dir", "symlink"}:
                yield case(
                    f"path/prefix-is-{kind}/{name}", beside, has(kind, "f", 0o777), act(use, "f/n", ENOTDIR), attrs("f", kind=kind)
                )
        yield case(
            f"path/prefix-is-symlink-to-file/{name}",
            beside,
            do("symlink", "x", "s"),
            act(use, "s/n", ENOTDIR),
            attrs("x", kind="file"),
        )
        yield case(f"path/loop-of-one/{name}", beside, do("symlink", "s", "s"), act(use, "s/n", ELOOP), listing(".", "s", "x"))
        yield case(
            f"path/loop-of-two/{name}",
            beside,
            do("symlink", "t", "s"),
            do("symlink", "s", "t"),
            act(use, "s/n", ELOOP),
            listing(".", "s", "t", "x"),
        )
        for who in USERS:
            shift = {OWNER: 0o677, "peer": 0o767, "member": 0o767, OTHER: 0o776}[who]
            place = (beside, folder("d"), has("dir" if name in ENTERING else "file", "d/n", 0o777) if name not in NAMING else ())
            yield case(f"path/no-search/{name}/{who}", place, do("chmod", "d", shift), act(use, "d/n", EACCES, who))
        yield case(
            f"path/no-search-deeper/{name}", beside, folder("d"), folder("d/e"), do("chmod", "d", 0o666), act(use, "d/e/n", EACCES)
        )


def _loops() -> Iterator[Case]:
    for name, use in (USING | ENTERING).items():
        if name in {"lstat", "lchown", "unlink", "rename-from", "link-from", "exchange"}:
            continue  # they look at the link itself
        error = (ELOOP, ENOTDIR) if name == "rmdir" else ELOOP
        yield case(f"path/last-part-loops/{name}", do("symlink", "s", "s"), act(use, "s", error))
    chain = tuple(do("symlink", "end" if number == 0 else f"s{number - 1}", f"s{number}") for number in range(LINKS_MAX + 1))
    yield case("path/forty-links", do("spew", "end", b"yes"), chain, gives(b"yes", "slurp", f"s{LINKS_MAX - 1}"))
    yield case("path/forty-one-links", do("spew", "end", b"yes"), chain, fails(ELOOP, "slurp", f"s{LINKS_MAX}"))


def _names() -> Iterator[Case]:
    longest, longer = "n" * NAME_MAX, "n" * (NAME_MAX + 1)
    for name, use in LONG.items():
        beside = has("file", "x", 0o666)
        kind = "dir" if name in ENTERING else "file"
        there = has(kind, longest, 0o777) if name not in NAMING else ()
        yield case(f"path/longest-name/{name}", beside, there, act(use, longest))
        yield case(f"path/name-too-long/{name}", beside, act(use, longer, ENAMETOOLONG), listing(".", "x"))
        yield case(f"path/prefix-too-long/{name}", beside, act(use, f"{longer}/n", ENAMETOOLONG), listing(".", "x"))
        yield case(
            f"path/longest-prefix/{name}",
            beside,
            folder(longest, 0o777),
            act(use, f"{longest}/../{longest}/n", ENOENT) if name not in NAMING else act(use, f"{longest}/n"),
        )
    texts = {
        "space": " ", "dots": "...", "dash": "-rf", "newline": "a\nb", "tab": "\t", "quote": "'\"`$", "star": "*?[", "backslash": "a\\b", "utf-8": "żółw", "combining": "e\u0301",
        "composed": "é", "emoji": "🐢" * 63, "invalid": b"\xff\x80\xfe".decode(errors="surrogateescape"), "controls": "".join(map(chr, range(1, 32))), "tilde": "~", "colon": "c:",
        "hidden": ".hidden", "two-dots": "..a", "trailing-dot": "a.", "trailing-space": "a ", "delete": "\x7f", "latin-1": b"\xe9".decode(errors="surrogateescape"),
    }  # fmt: skip
    for what, text in texts.items():
        for kind in ("file", "dir", "symlink", "fifo"):
            yield case(
                f"name/{what}/{kind}",
                has(kind, text),
                listing(".", text),
                attrs(text, kind=kind),
                do("rename", text, "p"),
                absent(text),
                do("rename", "p", text),
                listing(".", text),
            )
    for one, two in (("A", "a"), ("é", "e\u0301"), ("n", "n "), ("x", "x."), ("ß", "ss"), ("K", "\u212a")):
        yield case(
            f"name/distinct/{one.encode().hex()}-{two.encode().hex()}",
            do("spew", one, b"1"),
            do("spew", two, b"2"),
            gives(b"1", "slurp", one),
            gives(b"2", "slurp", two),
        )
    for length in (1, 2, 100, 127, 128, 129, 200, 254, 255):
        for kind in ("file", "dir", "symlink"):
            yield case(
                f"name/length/{length}/{kind}", has(kind, "q" * length), listing(".", "q" * length), attrs("q" * length, kind=kind)
            )
    for length in (256, 257, 300, 512, 1000, 4000):
        yield case(
            f"name/too-long/{length}",
            fails(ENAMETOOLONG, "spew", "q" * length, b""),
            fails(ENAMETOOLONG, "mkdir", "q" * length, 0o755),
            listing("."),
        )
    yield case("name/max-is-told", gives(NAME_MAX, "pathconf", ".", "PC_NAME_MAX"), gives(PATH_MAX, "pathconf", ".", "PC_PATH_MAX"))


def _long_paths() -> Iterator[Case]:
    for name, use in LONG.items():
        made: tuple[Group, ...] = (has("file", "x", 0o666), do("long_path", PATH_MAX - 1, "n", keep="p"))
        if name in ENTERING:
            made += (do("mkdir", "@p", 0o777),)
        elif name in USING:
            made += (do("spew", "@p", b""),)
        yield case(f"path/longest/{name}", made, act(use, "@p"))
        yield case(
            f"path/too-long/{name}", has("file", "x", 0o666), do("long_path", PATH_MAX, "n", keep="p"), act(use, "@p", ENAMETOOLONG)
        )
        for length in (PATH_MAX, PATH_MAX + 1, 8192):
            yield case(
                f"path/too-long-of-slashes/{name}/{length}",
                has("file", "x", 0o666),
                act(use, "./" + "/" * (length - 3) + "x", ENAMETOOLONG),
                attrs("x", kind="file", nlink=1),
            )


def _shapes() -> Iterator[Case]:
    for text in (
        "d//n",
        "d/./n",
        "./d/n",
        "d/e/../n",
        "d/e/./../n",
        "d///e//..//n",
        "../{}/d/n",
        "s/n",
        "s/../d/n",
        "./././d/././n",
    ):
        if "{}" in text:
            continue
        yield case(
            f"path/shape/{text.replace('/', '|')}",
            folder("d"),
            folder("d/e"),
            do("spew", "d/n", b"yes"),
            do("symlink", "d", "s"),
            gives(b"yes", "slurp", text),
        )
    yield case("path/absolute", do("spew", "n", b"yes"), gives(b"yes", "slurp", "%abs/n"))
    yield case(
        "path/absolute-symlink", do("spew", "n", b"yes"), do("symlink", "/", "s"), do("stat", "s"), gives("/", "readlink", "s")
    )
    yield case("path/dot-dot-needs-the-folder", fails(ENOENT, "stat", "gone/.."))
    yield case("path/dot-dot-of-a-file", has("file", "n"), fails(ENOTDIR, "stat", "n/.."))
    yield case(
        "path/symlink-then-dot-dot",
        folder("d"),
        folder("d/e"),
        do("symlink", "d/e", "s"),
        do("spew", "d/n", b"yes"),
        gives(b"yes", "slurp", "s/../n"),
    )
    for kind in KINDS:
        if kind not in {"dir", "symlink"}:
            yield case(
                f"path/slash-behind/{kind}",
                has(kind, "n"),
                fails(ENOTDIR, "stat", "n/"),
                fails(ENOTDIR, "lstat", "n/"),
                fails(ENOTDIR, "open", "n/", os.O_RDONLY | os.O_NONBLOCK),
            )
    yield case(
        "path/slash-behind-a-symlink-is-the-folder",
        folder("d"),
        do("symlink", "d", "s"),
        attrs("s", kind="symlink"),
        attrs("s/", kind="dir"),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_prefixes, _loops, _names, _long_paths, _shapes):
        yield from part()
