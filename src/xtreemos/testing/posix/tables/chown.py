"""chown, lchown, fchown: who may give what to whom, and that set-id bits do not survive it. Source: IEEE 1003.1 chown; chown(2).

POSIX lets a system restrict giving files away; Linux does (_POSIX_CHOWN_RESTRICTED), and so must we.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF, EPERM, EROFS

from xtreemos.testing.posix.model import (
    CALLERS,
    KINDS,
    OTHER,
    OWNER,
    PEER,
    PLAIN_KINDS,
    ROOT,
    USERS,
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

GROUPS = ("team", "extra", "members", "others", "elsewhere")
GROUPS_OF = {"owner": {"team", "extra"}, "peer": {"team"}, "member": {"members", "team"}, "other": {"others", "elsewhere"}}


def _may(who: str, user: str | int, group: str | int) -> bool:
    """Whether `who` may set these on a file of owner and team."""
    if who == ROOT:
        return True
    if user == -1 and group == -1:
        return True
    return who == OWNER and user in {-1, OWNER} and (group == -1 or group in GROUPS_OF[OWNER])


def _matrix() -> Iterator[Case]:
    wanted: list[tuple[str | int, str | int]] = [(user, -1) for user in USERS] + [(-1, group) for group in GROUPS]
    wanted += [(-1, -1), (OWNER, "extra"), (OWNER, "members"), (PEER, "team"), (OTHER, "others"), (ROOT, "root")]
    for kind in KINDS:
        for who in CALLERS:
            for user, group in wanted:
                may = _may(who, user, group)
                yield case(
                    f"chown/caller/{kind}/{who}/{user}:{group}",
                    has(kind, "n"), tries(0 if may else EPERM, "lchown", "n", user, group, who=who),
                    attrs("n", user=user if may and user != -1 else OWNER, group=group if may and group != -1 else "team", kind=kind),
                )  # fmt: skip


def _set_id_bits() -> Iterator[Case]:
    """A change by anybody takes both bits from a file that its group may execute; set-group-id without group execution stays (locking)."""
    for mode in (0o4755, 0o2755, 0o6755, 0o6711, 0o4644, 0o6777, 0o6110):
        cleared = mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)
        for who, user, group in (
            (OWNER, -1, "extra"),
            (OWNER, OWNER, -1),
            (ROOT, OTHER, "others"),
            (ROOT, -1, "extra"),
            (ROOT, OWNER, "team"),
        ):
            for through in ("chown", "lchown"):
                yield case(
                    f"{through}/set-id-bits-go/{octal(mode)}/{who}/{user}:{group}",
                    has("file", "n", mode), attrs("n", mode=mode), do(through, "n", user, group, who=who), attrs("n", mode=cleared),
                )  # fmt: skip
            yield case(
                f"fchown/set-id-bits-go/{octal(mode)}/{who}/{user}:{group}",
                has("file", "n", mode), do("open", "n", os.O_RDONLY, who=ROOT, keep="f"), do("chown", "@f", user, group, who=who),
                attrs("n", mode=cleared),
            )  # fmt: skip
        for who in (OWNER, ROOT):
            yield case(
                f"chown/set-id-bits-of-a-folder-stay/{octal(mode)}/{who}",
                folder("n", mode),
                do("chown", "n", -1, "extra", who=who),
                attrs("n", mode=mode),
            )
        yield case(
            f"chown/refused-leaves-set-id-bits/{octal(mode)}",
            has("file", "n", mode),
            fails(EPERM, "chown", "n", -1, "others"),
            attrs("n", mode=mode),
        )


def _group_execution_decides() -> Iterator[Case]:
    for mode in (0o2644, 0o2701, 0o2666):
        yield case(
            f"chown/setgid-without-group-execution-in-own-group/{octal(mode)}",
            has("file", "n", mode), do("chown", "n", -1, "extra"), attrs("n", mode=mode, group="extra"),
        )  # fmt: skip


def _times() -> Iterator[Case]:
    for kind in KINDS:
        yield case(f"chown/ctime-moves/{kind}", has(kind, "n"), mark("n"), do("lchown", "n", -1, "extra"), moved("n", "c"))
        yield case(
            f"chown/ctime-moves-for-the-same-owner/{kind}",
            has(kind, "n"),
            mark("n"),
            do("lchown", "n", OWNER, "team"),
            moved("n", "c"),
        )
        yield case(
            f"chown/refused-moves-no-time/{kind}", has(kind, "n"), mark("n"), fails(EPERM, "lchown", "n", OTHER, -1), moved("n", "")
        )
        yield case(
            f"chown/parent-times-stay/{kind}",
            folder("d"),
            has(kind, "d/n"),
            mark("d"),
            do("lchown", "d/n", -1, "extra"),
            moved("d", ""),
        )


def _follow() -> Iterator[Case]:
    for kind in PLAIN_KINDS:
        for who, user, group in ((OWNER, -1, "extra"), (ROOT, OTHER, "others")):
            yield case(
                f"chown/follows-symlink/{kind}/{who}",
                has(kind, "n"), has("symlink", "s"), do("unlink", "s"), do("symlink", "n", "s"), do("chown", "s", user, group, who=who),
                attrs("n", user=OWNER if user == -1 else user, group=group), attrs("s", user=OWNER, group="team", kind="symlink"),
            )  # fmt: skip
            yield case(
                f"lchown/does-not-follow/{kind}/{who}",
                has(kind, "n"), do("symlink", "n", "s"), do("lchown", "s", user, group, who=who),
                attrs("s", user=OWNER if user == -1 else user, group=group, kind="symlink"), attrs("n", user=OWNER, group="team"),
            )  # fmt: skip


def _descriptors() -> Iterator[Case]:
    for kind in ("file", "dir"):
        for who in CALLERS:
            for user, group in ((-1, "extra"), (OTHER, -1), (-1, "others"), (OWNER, "team")):
                may = _may(who, user, group)
                yield case(
                    f"fchown/caller/{kind}/{who}/{user}:{group}",
                    has(kind, "n"), do("open", "n", os.O_RDONLY, who=ROOT, keep="f"), tries(0 if may else EPERM, "chown", "@f", user, group, who=who),
                    attrs("n", user=user if may and user != -1 else OWNER, group=group if may and group != -1 else "team"),
                )  # fmt: skip
    yield case("fchown/closed", fails(EBADF, "chown", 987654, -1, "team"))
    yield case(
        "fchown/path-descriptor", has("file", "n"), do("open", "n", os.O_PATH, keep="f"), fails(EBADF, "chown", "@f", -1, "extra")
    )
    yield case(
        "fchown/unlinked", has("file", "n"), do("open", "n", os.O_RDONLY, keep="f"), do("unlink", "n"), do("chown", "@f", -1, "extra"),
        do("fstat", "@f"),
    )  # fmt: skip


def _new_owner_rules() -> Iterator[Case]:
    """After a change the new owner's rights hold, and the old one's no longer do."""
    for user in (PEER, OTHER):
        yield case(
            f"chown/the-new-owner-may/{user}",
            has("file", "n", 0o600), do("chown", "n", user, -1, who=ROOT), fails(EPERM, "chmod", "n", 0o640), do("chmod", "n", 0o604, who=user),
            attrs("n", mode=0o604, user=user),
        )  # fmt: skip


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_matrix, _set_id_bits, _group_execution_decides, _times, _follow, _descriptors, _new_owner_rules):
        yield from part()
    for kind in KINDS:
        yield case(
            f"chown/read-only/{kind}",
            has(kind, "n"),
            fails(EROFS, "lchown", "%ro/n", OTHER, -1, who=ROOT),
            attrs("n", user=OWNER),
            needs="mount",
        )
