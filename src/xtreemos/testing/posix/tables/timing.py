"""utimensat and futimens: who may set which times, NOW and OMIT, nanoseconds; and which calls move atime. Source: IEEE 1003.1; utimensat(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EINVAL, ENOENT, ENOTDIR, EPERM, EROFS

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.libc import UTIME_NOW, UTIME_OMIT
from xtreemos.testing.posix.model import (
    CALLERS,
    KINDS,
    OTHER,
    OWNER,
    PLAIN_KINDS,
    ROOT,
    USERS,
    Case,
    Facts,
    Group,
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
from xtreemos.testing.posix.tables.kit import FOREVER_AGO, content, folder, octal, rights

HERE = libc.AT_FDCWD
NOFOLLOW = libc.AT_SYMLINK_NOFOLLOW
A_NS, M_NS = FOREVER_AGO[0] * 10**9 + FOREVER_AGO[1], FOREVER_AGO[2] * 10**9 + FOREVER_AGO[3]
Quad = tuple[int, int, int, int]
FORMS: dict[str, Quad | None] = {
    "both": FOREVER_AGO, "null": None, "now-now": (0, UTIME_NOW, 0, UTIME_NOW), "now-omit": (0, UTIME_NOW, 0, UTIME_OMIT),
    "omit-now": (0, UTIME_OMIT, 0, UTIME_NOW), "omit-omit": (0, UTIME_OMIT, 0, UTIME_OMIT), "set-omit": (*FOREVER_AGO[:2], 0, UTIME_OMIT),
    "omit-set": (0, UTIME_OMIT, *FOREVER_AGO[2:]), "set-now": (*FOREVER_AGO[:2], 0, UTIME_NOW), "now-set": (0, UTIME_NOW, *FOREVER_AGO[2:]),
}  # fmt: skip
MOMENTS = (
    (0, 0), (0, 1), (1, 999_999_999), (1_234_567_890, 123_456_789), ((1 << 31) - 1, 0), (1 << 31, 7), ((1 << 32) - 1, 5), ((1 << 33), 1), (4_000_000_000, 999_999_999),
    (-1, 0), (-86400, 500_000_000),
)  # fmt: skip


def after(form: str) -> tuple[Group, ...]:
    """Post-conditions of a call that succeeded, on `n`, marked before."""
    words = {"both": "set-set", "null": "now-now"}.get(form, form).split("-")
    up = "".join(letter for letter, word in zip("am", words, strict=True) if word == "now")
    same = "".join(letter for letter, word in zip("am", words, strict=True) if word == "omit")
    exact = {name: value for name, value, word in zip(("atime", "mtime"), (A_NS, M_NS), words, strict=True) if word == "set"}
    quiet = form == "omit-omit"
    return (moved("n", up + ("" if quiet else "c"), same=same + ("c" if quiet else "")), *([attrs("n", **exact)] if exact else []))


def _may(who: str, form: str, mode: int) -> int:
    """The errno for a file of owner and team with this mode, 0 if allowed."""
    if who in {OWNER, ROOT} or form == "omit-omit":
        return 0
    if form in {"null", "now-now"}:
        return 0 if rights(mode, who) & 2 else EACCES
    return EPERM


def _forms() -> Iterator[Case]:
    for kind in KINDS:
        flags = NOFOLLOW if kind == "symlink" else 0
        for form, times in FORMS.items():
            yield case(
                f"utimensat/form/{kind}/{form}", has(kind, "n"), mark("n"), do("utimensat", HERE, "n", times, flags), after(form)
            )
    for kind in ("file", "dir"):
        for form, times in FORMS.items():
            yield case(
                f"futimens/form/{kind}/{form}",
                has(kind, "n"),
                do("open", "n", os.O_RDONLY, keep="f"),
                mark("n"),
                do("utimensat", "@f", None, times, 0),
                after(form),
            )


def _rights() -> Iterator[Case]:
    for kind in PLAIN_KINDS:
        for who in CALLERS:
            for mode in (0o000, 0o222, 0o444, 0o600, 0o660, 0o662, 0o666, 0o200, 0o020, 0o002):
                for form, times in FORMS.items():
                    if kind not in {"file", "dir"} and form not in {"null", "both", "now-omit"}:
                        continue
                    error = _may(who, form, mode)
                    yield case(
                        f"utimensat/rights/{kind}/{who}/{octal(mode)}/{form}", has(kind, "n", mode), mark("n"), tries(error, "utimensat", HERE, "n", times, 0, who=who),
                        after(form) if not error else moved("n", "", same="amc"),
                    )  # fmt: skip
    for form in ("null", "now-now", "both"):
        yield case(f"futimens/rights-of-a-writer/{form}", has("file", "n", 0o666), do("open", "n", os.O_WRONLY, who=OTHER, keep="f"),
                   tries(EPERM if form == "both" else 0, "utimensat", "@f", None, FORMS[form], 0, who=OTHER))  # fmt: skip


def _moments() -> Iterator[Case]:
    for kind in ("file", "dir", "symlink", "fifo"):
        for seconds, nanoseconds in MOMENTS:
            exact = seconds * 10**9 + nanoseconds
            yield case(f"utimensat/moment/{kind}/{seconds}.{nanoseconds:09}", has(kind, "n"), do("utimensat", HERE, "n", (seconds, nanoseconds, seconds, nanoseconds), NOFOLLOW),
                       attrs("n", atime=exact, mtime=exact))  # fmt: skip
    for bad in (1_000_000_000, -1, 2_000_000_000):
        yield case(f"utimensat/bad-nanoseconds/{bad}", has("file", "n"), mark("n"), fails(EINVAL, "utimensat", HERE, "n", (1, bad, 1, 0), 0), fails(EINVAL, "utimensat", HERE, "n", (1, 0, 1, bad), 0),
                   moved("n", "", same="amc"))  # fmt: skip
    yield case(
        "utimensat/seconds-beside-omit-do-not-count",
        has("file", "n"),
        mark("n"),
        do("utimensat", HERE, "n", (99, UTIME_OMIT, 99, UTIME_OMIT), 0),
        moved("n", "", same="amc"),
    )
    yield case(
        "utimensat/seconds-beside-now-do-not-count",
        has("file", "n"),
        mark("n"),
        do("utimensat", HERE, "n", (99, UTIME_NOW, 99, UTIME_NOW), 0),
        moved("n", "amc"),
    )


def _paths() -> Iterator[Case]:
    for kind in ("file", "dir", "fifo"):
        yield case(
            f"utimensat/follows/{kind}",
            has(kind, "n"),
            do("symlink", "n", "s"),
            mark("s"),
            do("utimensat", HERE, "s", FOREVER_AGO, 0),
            attrs("n", atime=A_NS, mtime=M_NS),
            moved("s", "", same="mc"),
        )
        yield case(
            f"utimensat/does-not-follow/{kind}",
            has(kind, "n"),
            do("symlink", "n", "s"),
            mark("n"),
            do("utimensat", HERE, "s", FOREVER_AGO, NOFOLLOW),
            attrs("s", mtime=M_NS),
            moved("n", "", same="amc"),
        )
    for kind in KINDS:
        yield case(
            f"utimensat/read-only/{kind}",
            has(kind, "n"),
            fails(EROFS, "utimensat", HERE, "%ro/n", None, NOFOLLOW, who=ROOT),
            needs="mount",
        )
        yield case(
            f"utimensat/parent-times-stay/{kind}",
            folder("d"),
            has(kind, "d/n"),
            mark("d"),
            do("utimensat", HERE, "d/n", FOREVER_AGO, NOFOLLOW),
            moved("d", ""),
        )
    yield case("utimensat/missing", fails(ENOENT, "utimensat", HERE, "n", None, 0))
    yield case("utimensat/empty", fails(ENOENT, "utimensat", HERE, "", None, 0))
    yield case("utimensat/unknown-flag", has("file", "n"), fails(EINVAL, "utimensat", HERE, "n", None, 0x8000))
    yield case("futimens/closed", fails(EBADF, "utimensat", 987654, None, None, 0))
    yield case(
        "utimensat/at-a-folder",
        folder("d"),
        has("file", "d/n"),
        do("open", "d", os.O_RDONLY, keep="d"),
        do("utimensat", "@d", "n", FOREVER_AGO, 0),
        attrs("d/n", mtime=M_NS),
    )
    yield case(
        "utimensat/at-a-file",
        has("file", "n"),
        do("open", "n", os.O_RDONLY, keep="f"),
        fails(ENOTDIR, "utimensat", "@f", "x", None, 0),
    )
    for who in USERS:
        yield case(
            f"utimensat/search/{who}",
            folder("d", 0o666),
            has("file", "d/n", 0o666),
            fails(EACCES, "utimensat", HERE, "d/n", None, 0, who=who),
        )


def _atime() -> Iterator[Case]:
    """Reading moves atime (relatime: at least when it is not later than mtime); other calls leave it alone."""
    fresh = do("utimensat", HERE, "n", FOREVER_AGO, 0)
    yield case(
        "read/moves-atime",
        content("n", b"abc"),
        do("chown", "n", OWNER, "team", who=ROOT),
        fresh,
        do("open", "n", os.O_RDONLY, keep="f"),
        mark("n"),
        do("read", "@f", 3),
        moved("n", "a"),
    )
    for what, step in {
        "chmod": do("chmod", "n", 0o600), "chown": do("chown", "n", -1, "extra"), "rename": do("rename", "n", "n"), "link": do("link", "n", "m"), "stat": do("stat", "n"),
        "truncate": do("truncate", "n", 1), "open": do("open", "n", os.O_RDONLY), "access": do("access", "n", 4), "xattr": do("setxattr", "n", "user.a", b"1"),
    }.items():  # fmt: skip
        yield case(f"{what}/leaves-atime", do("spew", "n", b"abc"), fresh, step, attrs("n", atime=A_NS))
    for what, step in {
        "chmod": do("chmod", "n", 0o600),
        "chown": do("chown", "n", -1, "extra"),
        "link": do("link", "n", "m"),
        "xattr": do("setxattr", "n", "user.a", b"1"),
    }.items():
        yield case(f"{what}/leaves-mtime", do("spew", "n", b"abc"), fresh, step, attrs("n", mtime=M_NS))
    yield case(
        "write/moves-mtime-from-long-ago",
        do("spew", "n", b"abc"),
        fresh,
        mark("n"),
        do("open", "n", os.O_WRONLY, keep="f"),
        gives(1, "write", "@f", b"x"),
        moved("n", "mc", same="a"),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_forms, _rights, _moments, _paths, _atime):
        yield from part()
