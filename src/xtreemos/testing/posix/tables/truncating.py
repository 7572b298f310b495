"""truncate, ftruncate: lengths, zeros behind the end, times, rights, set-id bits; and that writing clears set-id bits.

Source: IEEE 1003.1 truncate, ftruncate, write; truncate(2), inode(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENOENT, ENXIO, EROFS

from xtreemos.testing.posix.model import (
    CALLERS,
    OTHER,
    OWNER,
    ROOT,
    USERS,
    Case,
    Facts,
    Group,
    Step,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    mark,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import content, folder, octal

LENGTHS = (0, 1, 2, 511, 4095, 4096, 4097, 65535, 131072, 1048575, 1048577)
HUGE = (1 << 31, (1 << 32) + 1, 1 << 40)
BY = ("truncate", "ftruncate")


def cut(by: str, length: int, *, who: str = OWNER, path: str = "n", error: int | tuple[int, ...] = 0) -> tuple[Step, ...]:
    """Change the length of `path` by name, or by a descriptor that root opened for it."""
    if by == "truncate":
        return (tries(error, "truncate", path, length, who=who),)
    return (do("open", path, os.O_RDWR, who=ROOT, keep="t"), tries(error, "ftruncate", "@t", length, who=who))


def _lengths() -> Iterator[Case]:
    text = bytes(range(1, 251)) * 20
    for by in BY:
        for before in (0, 1, 4096, 5000):
            for after in LENGTHS:
                want = text[:before][:after].ljust(after, b"\0")
                yield case(
                    f"{by}/length/{before}-{after}",
                    do("spew", "n", text[:before]),
                    cut(by, after),
                    attrs("n", size=after),
                    gives(want, "slurp", "n"),
                )
        for size in HUGE:
            yield case(
                f"{by}/sparse/{size}", do("spew", "n", b"abc"), cut(by, size), attrs("n", size=size), do("open", "n", os.O_RDONLY, keep="f"),
                gives(b"abc\0", "pread", "@f", 4, 0), gives(b"\0\0", "pread", "@f", 9, size - 2), gives(b"", "pread", "@f", 9, size),
            )  # fmt: skip
        for between in (1, 100, 4000, 4096, 4999):
            yield case(
                f"{by}/cut-bytes-come-back-as-zeros/{between}",
                do("spew", "n", text),
                cut(by, between),
                cut(by, 5000),
                gives(text[:between].ljust(5000, b"\0"), "slurp", "n"),
            )
        yield case(f"{by}/negative", do("spew", "n", b"abc"), cut(by, -1, error=EINVAL), attrs("n", size=3))


def _times() -> Iterator[Case]:
    for by in BY:
        for before, after, what in ((3, 0, "to-nothing"), (3, 2, "shorter"), (3, 9, "longer"), (0, 9, "from-nothing")):
            yield case(
                f"{by}/moves-times/{what}",
                do("spew", "n", b"x" * before),
                mark("n", "."),
                cut(by, after),
                moved("n", "mc"),
                moved(".", ""),
            )
        yield case(f"{by}/refused-moves-no-time", do("spew", "n", b"abc"), mark("n"), cut(by, -1, error=EINVAL), moved("n", ""))
    yield case("ftruncate/same-length-moves-times", do("spew", "n", b"abc"), mark("n"), cut("ftruncate", 3), moved("n", "mc"))
    yield case(
        "truncate/without-rights-moves-no-time",
        has("file", "n"),
        mark("n"),
        fails(EACCES, "truncate", "n", 9, who=OTHER),
        moved("n", ""),
    )


def _rights() -> Iterator[Case]:
    for who in USERS:
        shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
        for bits in range(8):
            for rest in (0, 7):
                mode = sum((bits if shift == place else rest) << place for place in (6, 3, 0))
                may = bool(bits & 2)
                yield case(
                    f"truncate/permission/{who}/{octal(mode)}", has("file", "n", mode), tries(0 if may else EACCES, "truncate", "n", 77, who=who),
                    attrs("n", size=77 if may else 0),
                )  # fmt: skip
    for mode in (0, 0o444):
        yield case(
            f"truncate/permission/root/{octal(mode)}",
            has("file", "n", mode),
            do("truncate", "n", 77, who=ROOT),
            attrs("n", size=77),
        )
    for mode in (0o600, 0o000, 0o644):
        yield case(
            f"truncate/search/{octal(mode)}",
            folder("d"),
            has("file", "d/n", 0o666),
            do("chmod", "d", mode),
            fails(EACCES, "truncate", "d/n", 3),
        )
    for who in CALLERS:
        yield case(
            f"ftruncate/rights-are-those-of-the-open/{who}", has("file", "n", 0), cut("ftruncate", 77, who=who), attrs("n", size=77)
        )
    for flags, error in ((os.O_RDONLY, (EINVAL, EBADF)), (os.O_PATH, (EBADF,))):
        yield case(
            f"ftruncate/not-open-for-writing/{flags:#x}",
            do("spew", "n", b"abc"),
            do("open", "n", flags, keep="f"),
            fails(error, "ftruncate", "@f", 0),
            attrs("n", size=3),
        )
    yield case(
        "ftruncate/open-for-appending",
        do("spew", "n", b"abc"),
        do("open", "n", os.O_WRONLY | os.O_APPEND, keep="f"),
        do("ftruncate", "@f", 1),
        attrs("n", size=1),
    )
    yield case("ftruncate/closed", fails(EBADF, "ftruncate", 987654, 0))


def _wrong_kinds() -> Iterator[Case]:
    for who in (OWNER, ROOT):
        yield case(f"truncate/kind/dir/{who}", folder("n"), fails(EISDIR, "truncate", "n", 0, who=who))
        for kind in ("fifo", "socket"):
            yield case(
                f"truncate/kind/{kind}/{who}",
                has(kind, "n", 0o666),
                fails((EINVAL, ENXIO), "truncate", "n", 0, who=who),
                attrs("n", kind=kind),
            )
    yield case("truncate/kind/dangling-symlink", do("symlink", "gone", "n"), fails(ENOENT, "truncate", "n", 0))
    yield case(
        "truncate/through-symlink",
        do("spew", "a", b"abc"),
        do("symlink", "a", "n"),
        do("truncate", "n", 1),
        attrs("a", size=1),
        attrs("n", kind="symlink"),
    )
    yield case("truncate/missing", fails(ENOENT, "truncate", "n", 0))
    yield case(
        "truncate/read-only",
        do("spew", "n", b"abc"),
        fails(EROFS, "truncate", "%ro/n", 0, who=ROOT),
        attrs("n", size=3),
        needs="mount",
    )
    yield case(
        "truncate/other-names-see-it",
        do("spew", "n", b"abc"),
        do("link", "n", "m"),
        do("truncate", "m", 1),
        attrs("n", size=1),
        gives(b"a", "slurp", "n"),
    )
    yield case(
        "truncate/open-descriptors-see-it", do("spew", "n", b"abcdef"), do("open", "n", os.O_RDWR, keep="f"), do("truncate", "n", 2), gives(b"ab", "pread", "@f", 9, 0),
        do("pwrite", "@f", b"z", 4), gives(b"ab\0\0z", "slurp", "n"),
    )  # fmt: skip
    yield case(
        "truncate/position-stays",
        do("spew", "n", b"abcdef"),
        do("open", "n", os.O_RDWR, keep="f"),
        do("read", "@f", 4),
        do("ftruncate", "@f", 1),
        gives(4, "lseek", "@f", 0, 1),
    )
    for length, error in ((99, 0), (100, 0), (101, EFBIG)):
        yield case(f"truncate/limit-of-the-process/{length}", has("file", "n"), Step("limit_file_size", (100,), ROOT, actor="a"),
                   Step("truncate", ("n", length), OWNER, tries(error, "x").want, actor="a"), Step("limit_file_size", (-1,), ROOT, actor="a"), attrs("n", size=0 if error else length))  # fmt: skip
    yield case("write/limit-of-the-process", has("file", "n"), Step("limit_file_size", (100,), ROOT, actor="a"), do("open", "n", os.O_WRONLY, actor="a", keep="f"),
               gives(100, "write", "@f", b"x" * 150, actor="a"), fails(EFBIG, "write", "@f", b"x", actor="a"), Step("limit_file_size", (-1,), ROOT, actor="a"), attrs("n", size=100))  # fmt: skip
    yield case(
        "truncate/text-busy",
        content("n", b"#!/bin/sh\n"),
        do("chown", "n", OWNER, "team", who=ROOT),
        do("chmod", "n", 0o755),
        do("truncate", "n", 0),
        attrs("n", size=0),
    )


def _set_id_bits() -> Iterator[Case]:
    """Whoever lacks the privilege and changes content takes set-user-id away, and set-group-id where the group may execute."""
    changes: dict[str, tuple[Step, ...]] = {
        "write": (do("write", "@f", b"x"),), "pwrite": (do("pwrite", "@f", b"x", 1),), "writev": (do("writev", "@f", b"a", b"b"),),
        "ftruncate": (do("ftruncate", "@f", 1),), "ftruncate-longer": (do("ftruncate", "@f", 9),), "fallocate": (do("fallocate", "@f", 0, 0, 4096),),
    }  # fmt: skip
    for mode in (0o4777, 0o2777, 0o6777, 0o6767, 0o2767, 0o4766):
        cleared = mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)
        for who in (OWNER, OTHER, ROOT):
            want = mode if who == ROOT else cleared
            for what, steps in changes.items():
                acts = tuple(Step(one.call, one.args, who) for one in steps)
                soft = (
                    mode & 0o2010 == 0o2000 and who == OTHER
                )  # kernels differ: the bit then means locking, and who is outside the group
                ends: Group = attrs("n", mode=want) if not soft else ()
                yield case(f"{what}/set-id-bits/{octal(mode)}/{who}", content("n", b"abc"), do("chown", "n", OWNER, "team", who=ROOT), do("chmod", "n", mode, who=ROOT),
                           do("open", "n", os.O_RDWR, who=who, keep="f"), acts, ends)  # fmt: skip
            if mode & 0o2010 == 0o2000 and who == OTHER:
                continue
            yield case(f"truncate/set-id-bits/{octal(mode)}/{who}", content("n", b"abc"), do("chown", "n", OWNER, "team", who=ROOT), do("chmod", "n", mode, who=ROOT),
                       do("truncate", "n", 1, who=who), attrs("n", mode=want, size=1))  # fmt: skip
            yield case(f"open-truncate/set-id-bits/{octal(mode)}/{who}", content("n", b"abc"), do("chown", "n", OWNER, "team", who=ROOT), do("chmod", "n", mode, who=ROOT),
                       do("open", "n", os.O_WRONLY | os.O_TRUNC, who=who), attrs("n", mode=want, size=0))  # fmt: skip
            yield case(f"read/set-id-bits-stay/{octal(mode)}/{who}", content("n", b"abc"), do("chown", "n", OWNER, "team", who=ROOT), do("chmod", "n", mode, who=ROOT),
                       do("open", "n", os.O_RDONLY, who=who, keep="f"), gives(b"abc", "read", "@f", 3), attrs("n", mode=mode))  # fmt: skip
    yield case(
        "write/refused-leaves-set-id-bits",
        has("file", "n", 0o4755),
        do("open", "n", os.O_RDONLY, who=OTHER, keep="f"),
        fails(EBADF, "write", "@f", b"x", who=OTHER),
        attrs("n", mode=0o4755),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_lengths, _times, _rights, _wrong_kinds, _set_id_bits):
        yield from part()
