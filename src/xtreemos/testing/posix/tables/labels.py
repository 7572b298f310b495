"""Extended attributes: names, values, limits, flags, rights. Source: xattr(7), setxattr(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import E2BIG, EACCES, EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, EPERM, ERANGE, EROFS

from xtreemos.testing.posix.model import (
    KINDS,
    OTHER,
    OWNER,
    ROOT,
    USERS,
    Case,
    Facts,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    mark,
    moved,
    tries,
)
from xtreemos.testing.posix.tables.kit import octal, rights

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
VALUES = {
    "empty": b"",
    "one": b"x",
    "zeros": bytes(10),
    "all-bytes": bytes(range(256)),
    "text": "żółw".encode(),
    "1000": b"v" * 1000,
    "3000": b"w" * 3000,
}


def _values() -> Iterator[Case]:
    for kind in ("file", "dir"):
        for name, value in VALUES.items():
            yield case(
                f"setxattr/value/{kind}/{name}",
                has(kind, "n"),
                do("setxattr", "n", "user.a", value),
                gives(value, "getxattr", "n", "user.a"),
                gives(["user.a"], "listxattr", "n"),
            )
            yield case(
                f"setxattr/replaced/{kind}/{name}",
                has(kind, "n"),
                do("setxattr", "n", "user.a", b"before"),
                do("setxattr", "n", "user.a", value),
                gives(value, "getxattr", "n", "user.a"),
            )
            yield case(
                f"removexattr/gone/{kind}/{name}",
                has(kind, "n"),
                do("setxattr", "n", "user.a", value),
                do("removexattr", "n", "user.a"),
                fails(ENODATA, "getxattr", "n", "user.a"),
                gives([], "listxattr", "n"),
            )
            yield case(f"setxattr/by-descriptor/{kind}/{name}", has(kind, "n"), do("open", "n", os.O_RDONLY, keep="f"), do("setxattr", "@f", "user.a", value), gives(value, "getxattr", "n", "user.a"), gives(["user.a"], "listxattr", "@f"),
                       do("removexattr", "@f", "user.a"), gives([], "listxattr", "n"))  # fmt: skip
        for count in (2, 10, 30):
            yield case(f"listxattr/many/{kind}/{count}", has(kind, "n"), *(do("setxattr", "n", f"user.k{n:02}", b"%d" % n) for n in range(count)), gives([f"user.k{n:02}" for n in range(count)], "listxattr", "n"),
                       *(gives(b"%d" % n, "getxattr", "n", f"user.k{n:02}") for n in range(count)))  # fmt: skip
        yield case(
            f"getxattr/none/{kind}",
            has(kind, "n"),
            fails(ENODATA, "getxattr", "n", "user.a"),
            fails(ENODATA, "removexattr", "n", "user.a"),
            gives([], "listxattr", "n"),
        )
        for flags, there, error in (
            (0, False, 0),
            (0, True, 0),
            (CREATE, False, 0),
            (CREATE, True, EEXIST),
            (REPLACE, False, ENODATA),
            (REPLACE, True, 0),
        ):
            before = (do("setxattr", "n", "user.a", b"old"),) if there else ()
            after = (
                gives(b"new" if not error else b"old", "getxattr", "n", "user.a")
                if there or not error
                else fails(ENODATA, "getxattr", "n", "user.a")
            )
            yield case(
                f"setxattr/flags/{kind}/{flags}/{'there' if there else 'new'}",
                has(kind, "n"),
                before,
                tries(error, "setxattr", "n", "user.a", b"new", flags),
                after,
            )
        for length, error in ((1, 0), (100, 0), (250, 0), (251, ERANGE), (1000, ERANGE)):
            yield case(
                f"setxattr/name-length/{kind}/{length}",
                has(kind, "n"),
                tries(error, "setxattr", "n", "user." + "k" * length, b"v"),
                gives([] if error else ["user." + "k" * length], "listxattr", "n"),
            )
        yield case(
            f"setxattr/value-too-large/{kind}",
            has(kind, "n"),
            fails((E2BIG, ENOSPC), "setxattr", "n", "user.a", b"v" * 65537),
            gives([], "listxattr", "n"),
        )
        yield case(
            f"setxattr/64-kib/{kind}",
            has(kind, "n"),
            do("setxattr", "n", "user.a", b"v" * 65536),
            gives(b"v" * 65536, "getxattr", "n", "user.a"),
        )
        for name in ("nonsense", "unknown.a", "User.a", "systemx.a"):
            yield case(f"setxattr/namespace/{kind}/{name}", has(kind, "n"), fails(EOPNOTSUPP, "setxattr", "n", name, b"v"))
        for text in ("user.a b", "user.ż", "user.A", "user.a.b.c", "user.\n", "user.-"):
            yield case(
                f"setxattr/name/{kind}/{text.encode().hex()}",
                has(kind, "n"),
                do("setxattr", "n", text, b"v"),
                do("setxattr", "n", text.swapcase().replace("USER", "user") + "2", b"w"),
                gives(b"v", "getxattr", "n", text),
            )


def _rights() -> Iterator[Case]:
    for kind in ("file", "dir"):
        for who in (*USERS, ROOT):
            for bits in range(8):
                shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0, ROOT: 0}[who]
                mode = bits << shift
                may_write, may_read = who == ROOT or rights(mode, who) & 2, who == ROOT or rights(mode, who) & 4
                yield case(
                    f"setxattr/rights/{kind}/{who}/{octal(mode)}",
                    has(kind, "n", mode),
                    tries(0 if may_write else EACCES, "setxattr", "n", "user.a", b"v", who=who),
                    gives(["user.a"] if may_write else [], "listxattr", "n", who=ROOT),
                )
                yield case(f"getxattr/rights/{kind}/{who}/{octal(mode)}", has(kind, "n", mode), do("setxattr", "n", "user.a", b"v", who=ROOT),
                           gives(b"v", "getxattr", "n", "user.a", who=who) if may_read else fails(EACCES, "getxattr", "n", "user.a", who=who))  # fmt: skip
                yield case(f"removexattr/rights/{kind}/{who}/{octal(mode)}", has(kind, "n", mode), do("setxattr", "n", "user.a", b"v", who=ROOT), tries(0 if may_write else EACCES, "removexattr", "n", "user.a", who=who),
                           gives([] if may_write else ["user.a"], "listxattr", "n", who=ROOT))  # fmt: skip
        for who in USERS:
            yield case(
                f"setxattr/trusted/{kind}/{who}",
                has(kind, "n", 0o777),
                fails(EPERM, "setxattr", "n", "trusted.a", b"v", who=who),
                fails(ENODATA, "getxattr", "n", "trusted.a", who=who),
            )
            yield case(
                f"listxattr/trusted-is-hidden/{kind}/{who}",
                has(kind, "n", 0o777),
                do("setxattr", "n", "trusted.a", b"v", who=ROOT),
                gives([], "listxattr", "n", who=who),
            )
        yield case(
            f"setxattr/trusted/{kind}/root",
            has(kind, "n"),
            do("setxattr", "n", "trusted.a", b"v", who=ROOT),
            gives(b"v", "getxattr", "n", "trusted.a", who=ROOT),
            gives(["trusted.a"], "listxattr", "n", who=ROOT),
        )
    for who, user, error in ((OWNER, OWNER, 0), (OTHER, OWNER, EPERM), (OTHER, OTHER, 0), (ROOT, OWNER, 0)):
        yield case(
            f"setxattr/sticky-folder/{user}/{who}",
            has("dir", "d", 0o1777, user=user),
            tries(error, "setxattr", "d", "user.a", b"v", who=who),
        )


def _kinds() -> Iterator[Case]:
    for kind in KINDS:
        if kind in {"file", "dir"}:
            continue
        call, get = ("lsetxattr", "lgetxattr") if kind == "symlink" else ("setxattr", "getxattr")
        for who in (OWNER, ROOT):
            yield case(
                f"setxattr/kind-refused/{kind}/{who}",
                has(kind, "n", 0o777),
                fails(EPERM, call, "n", "user.a", b"v", who=who),
                fails((ENODATA, EPERM), get, "n", "user.a", who=who),
            )
        yield case(
            f"setxattr/kind-trusted/{kind}",
            has(kind, "n", 0o777),
            do(call, "n", "trusted.a", b"v", who=ROOT),
            gives(b"v", get, "n", "trusted.a", who=ROOT),
        )
    yield case(
        "setxattr/follows-symlink",
        has("file", "n"),
        do("symlink", "n", "s"),
        do("setxattr", "s", "user.a", b"v"),
        gives(b"v", "getxattr", "n", "user.a"),
    )
    for kind in ("file", "dir"):
        yield case(f"setxattr/moves-ctime/{kind}", has(kind, "n"), mark("n"), do("setxattr", "n", "user.a", b"v"), moved("n", "c"))
        yield case(
            f"removexattr/moves-ctime/{kind}",
            has(kind, "n"),
            do("setxattr", "n", "user.a", b"v"),
            mark("n"),
            do("removexattr", "n", "user.a"),
            moved("n", "c"),
        )
        yield case(
            f"setxattr/refused-moves-no-time/{kind}",
            has(kind, "n"),
            mark("n"),
            fails(EACCES, "setxattr", "n", "user.a", b"v", who=OTHER),
            moved("n", ""),
        )
        yield case(
            f"setxattr/read-only/{kind}",
            has(kind, "n"),
            fails(EROFS, "setxattr", "%ro/n", "user.a", b"v", who=ROOT),
            gives([], "listxattr", "n"),
            needs="mount",
        )
        yield case(
            f"rename/keeps-xattrs/{kind}",
            has(kind, "n"),
            do("setxattr", "n", "user.a", b"v"),
            do("rename", "n", "m"),
            gives(b"v", "getxattr", "m", "user.a"),
        )
        yield case(
            f"chown/keeps-xattrs/{kind}",
            has(kind, "n"),
            do("setxattr", "n", "user.a", b"v"),
            do("chown", "n", OTHER, "others", who=ROOT),
            gives(b"v", "getxattr", "n", "user.a", who=OTHER),
        )
    yield case(
        "link/shares-xattrs",
        has("file", "n"),
        do("setxattr", "n", "user.a", b"v"),
        do("link", "n", "m"),
        do("setxattr", "m", "user.b", b"w"),
        gives(["user.a", "user.b"], "listxattr", "n"),
    )
    yield case(
        "truncate/keeps-xattrs",
        has("file", "n"),
        do("setxattr", "n", "user.a", b"v"),
        do("truncate", "n", 0),
        gives(b"v", "getxattr", "n", "user.a"),
        attrs("n", size=0),
    )
    yield case(
        "unlink/new-file-has-no-xattrs",
        has("file", "n"),
        do("setxattr", "n", "user.a", b"v"),
        do("unlink", "n"),
        do("spew", "n", b""),
        gives([], "listxattr", "n"),
    )
    yield case(
        "mkdir/inherits-no-xattrs",
        has("dir", "d", 0o755),
        do("setxattr", "d", "user.a", b"v"),
        do("mkdir", "d/e", 0o755),
        gives([], "listxattr", "d/e"),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_values, _rights, _kinds):
        yield from part()
