"""chmod, fchmod, fchmodat: who may, what changes, what the set-id bits do. Source: IEEE 1003.1 chmod; chmod(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF, EPERM, EROFS

from xtreemos.testing.posix.model import (
    CALLERS,
    OTHER,
    OWNER,
    PLAIN_KINDS,
    ROOT,
    Case,
    Facts,
    attrs,
    case,
    do,
    fails,
    has,
    mark,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import folder, octal

MODES = (0o000, 0o100, 0o010, 0o001, 0o200, 0o020, 0o002, 0o400, 0o040, 0o004, 0o111, 0o644, 0o755, 0o777)
SPECIAL = (0o1000, 0o2000, 0o4000, 0o7777, 0o6755, 0o1777)


def _callers() -> Iterator[Case]:
    """Only the owner and root may; a refused call changes neither mode nor time."""
    for kind in PLAIN_KINDS:
        for who in CALLERS:
            may = who in {OWNER, ROOT}
            for mode in MODES:
                yield case(
                    f"chmod/caller/{kind}/{who}/{octal(mode)}",
                    has(kind, "n", 0o640 if mode != 0o640 else 0o600),
                    tries(0 if may else EPERM, "chmod", "n", mode, who=who),
                    attrs("n", mode=mode if may else 0o640, user=OWNER, group="team", kind=kind),
                )


def _times() -> Iterator[Case]:
    for kind in PLAIN_KINDS:
        yield case(
            f"chmod/ctime-moves/{kind}", has(kind, "n"), mark("n"), do("chmod", "n", 0o600), moved("n", "c"), attrs("n", mode=0o600)
        )
        yield case(
            f"chmod/ctime-moves-for-the-same-mode/{kind}",
            has(kind, "n", 0o600),
            mark("n"),
            do("chmod", "n", 0o600),
            moved("n", "c"),
        )
        yield case(
            f"chmod/refused-moves-no-time/{kind}",
            has(kind, "n"),
            mark("n"),
            fails(EPERM, "chmod", "n", 0o600, who=OTHER),
            moved("n", ""),
        )
        yield case(
            f"chmod/parent-times-stay/{kind}", folder("d"), has(kind, "d/n"), mark("d"), do("chmod", "d/n", 0o600), moved("d", "")
        )


def _special_bits() -> Iterator[Case]:
    """A caller outside the file's group cannot set its set-group-id bit; only root sets the sticky bit of what is no directory freely."""
    for kind in PLAIN_KINDS:
        for mode in SPECIAL:
            for who in (OWNER, ROOT):
                yield case(
                    f"chmod/special/{kind}/{who}/{octal(mode)}",
                    has(kind, "n", 0o600),
                    do("chmod", "n", mode, who=who),
                    attrs("n", mode=mode),
                )
            yield case(
                f"chmod/setgid-outside-the-group/{kind}/{octal(mode)}",
                has(kind, "n", 0o600, group="elsewhere"),
                do("chmod", "n", mode),
                attrs("n", mode=mode & ~0o2000),
            )
            yield case(
                f"chmod/setgid-by-supplementary-group/{kind}/{octal(mode)}",
                has(kind, "n", 0o600, group="extra"),
                do("chmod", "n", mode),
                attrs("n", mode=mode),
            )
            yield case(
                f"chmod/setgid-by-root-outside-the-group/{kind}/{octal(mode)}",
                has(kind, "n", 0o600, group="elsewhere"),
                do("chmod", "n", mode, who=ROOT),
                attrs("n", mode=mode),
            )


def _symlinks() -> Iterator[Case]:
    for kind in ("file", "dir", "fifo"):
        for who in CALLERS:
            may = who in {OWNER, ROOT}
            yield case(
                f"chmod/through-symlink/{kind}/{who}",
                has(kind, "n", 0o640), do("symlink", "n", "s"), mark("s", "n"), tries(0 if may else EPERM, "chmod", "s", 0o711, who=who),
                attrs("n", mode=0o711 if may else 0o640), moved("s", ""), moved("n", "c" if may else ""),
            )  # fmt: skip


def _descriptors() -> Iterator[Case]:
    for kind in ("file", "dir"):
        for who in CALLERS:
            may = who in {OWNER, ROOT}
            for mode in MODES:
                yield case(
                    f"fchmod/caller/{kind}/{who}/{octal(mode)}",
                    has(kind, "n", 0o644), do("open", "n", os.O_RDONLY, who=ROOT, keep="f"), mark("n") if mode == 0 else (),
                    tries(0 if may else EPERM, "chmod", "@f", mode, who=who), attrs("n", mode=mode if may else 0o644),
                    moved("n", "c" if may else "") if mode == 0 else (),
                )  # fmt: skip
        yield case(
            f"fchmod/path-descriptor/{kind}",
            has(kind, "n"),
            do("open", "n", os.O_PATH, keep="f"),
            fails(EBADF, "chmod", "@f", 0o600),
            attrs("n", mode=0o644),
        )
    yield case("fchmod/closed", has("file", "n"), fails(EBADF, "chmod", 987654, 0o600))
    yield case(
        "fchmod/unlinked",
        has("file", "n"),
        do("open", "n", os.O_RDONLY, keep="f"),
        do("unlink", "n"),
        do("chmod", "@f", 0o600),
        do("fstat", "@f"),
    )


def _open_file_keeps_its_rights() -> Iterator[Case]:
    for mode in (0o000, 0o400, 0o200):
        yield case(
            f"chmod/open-descriptor-keeps-its-rights/{octal(mode)}",
            has("file", "n", 0o600), do("open", "n", os.O_RDWR, keep="f"), do("chmod", "n", mode), do("write", "@f", b"abc"),
            do("lseek", "@f", 0, 0), do("read", "@f", 3), attrs("n", size=3, mode=mode),
        )  # fmt: skip


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    yield from _callers()
    yield from _times()
    yield from _special_bits()
    yield from _symlinks()
    yield from _descriptors()
    yield from _open_file_keeps_its_rights()
    for kind in PLAIN_KINDS:
        yield case(
            f"chmod/read-only/{kind}",
            has(kind, "n"),
            fails(EROFS, "chmod", "%ro/n", 0o600, who=ROOT),
            attrs("n", mode=0o644),
            needs="mount",
        )
