"""POSIX access control lists through their xattrs: decisions, mask, inheritance, mode, bad lists. Source: acl(5), IEEE 1003.1e draft 17."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL, ENODATA, EOPNOTSUPP, EPERM, EROFS

from xtreemos.testing.posix.model import (
    KINDS,
    MEMBER,
    OTHER,
    OWNER,
    PEER,
    ROOT,
    USERS,
    Case,
    Facts,
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
)
from xtreemos.testing.posix.tables.kit import folder, octal

ASKED = (4, 2, 1, 6, 7)
GROUPS_OF = {OWNER: {"team", "extra"}, PEER: {"team"}, MEMBER: {"members", "team"}, OTHER: {"others", "elsewhere"}}


def rwx(bits: int) -> str:
    """Bits as `r-x`."""
    return "".join(sign if bits & bit else "-" for bit, sign in ((4, "r"), (2, "w"), (1, "x")))


def granted(acl: str, who: str, asked: int) -> bool:
    """Whether a list on a file of owner and team grants `asked` to a caller: the algorithm of acl(5), "Access check algorithm"."""
    entries = [word.split(":") for word in acl.split(",")]
    bits = {
        (letter, name): sum(bit for bit, sign in zip((4, 2, 1), text, strict=True) if sign != "-") for letter, name, text in entries
    }
    mask = bits.get(("m", ""), 7)
    if who == OWNER:
        return bits["u", ""] & asked == asked
    if ("u", who) in bits:
        return bits["u", who] & mask & asked == asked
    matching = [value for (letter, name), value in bits.items() if letter == "g" and (name or "team") in GROUPS_OF[who]]
    if matching:
        return any(value & mask & asked == asked for value in matching)
    return bits["o", ""] & asked == asked


LISTS = (
    "u::rwx,g::---,o::---", "u::---,g::rwx,o::rwx", "u::rwx,u:peer:r--,g::---,m::rwx,o::---", "u::rwx,u:peer:rwx,g::---,m::r--,o::---",
    "u::rwx,u:peer:---,g::rwx,m::rwx,o::rwx", "u::rwx,u:other:rw-,g::---,m::rw-,o::---", "u::rwx,u:other:rwx,g::---,m::--x,o::r--",
    "u::rwx,u:other:---,g::---,m::rwx,o::rwx", "u::rwx,u:member:-w-,g::r--,m::rwx,o::---", "u::rw-,g::r--,g:members:-w-,m::rwx,o::---",
    "u::rw-,g::r--,g:members:rw-,m::r-x,o::rwx", "u::rwx,g::---,g:others:rwx,m::rwx,o::---", "u::rwx,g::---,g:others:-w-,g:elsewhere:r--,m::rwx,o::---",
    "u::rwx,g::---,g:elsewhere:rwx,m::r--,o::---", "u::rwx,g::rwx,m::---,o::---", "u::rwx,g::rwx,m::r-x,o::rwx", "u::rwx,u:owner:---,g::---,m::rwx,o::---",
    "u::---,u:owner:rwx,g::rwx,m::rwx,o::rwx", "u::rwx,u:peer:r--,u:member:-w-,u:other:--x,g::---,g:members:rwx,g:others:rwx,m::rwx,o::---",
    "u::rwx,g::---,g:extra:rwx,m::rwx,o::---", "u::r--,g::-w-,g:others:---,m::rwx,o::rwx",
)  # fmt: skip


def _decisions() -> Iterator[Case]:
    for kind in ("file", "dir"):
        for number, acl in enumerate(LISTS):
            for who in USERS:
                steps = [tries(0 if granted(acl, who, asked) else EACCES, "access", "n", asked, who=who) for asked in ASKED]
                yield case(f"acl/decision/{kind}/{number}/{who}", has(kind, "n", 0), do("setacl", "n", "access", acl), steps)
    for number, acl in enumerate(LISTS):
        for who in USERS:
            may = {asked: granted(acl, who, asked) for asked in (2, 3, 4)}
            yield case(f"acl/open-decides/{number}/{who}", has("file", "n", 0), do("setacl", "n", "access", acl), tries(0 if may[4] else EACCES, "open", "n", os.O_RDONLY, who=who),
                       tries(0 if may[2] else EACCES, "open", "n", os.O_WRONLY, who=who), tries(0 if granted(acl, who, 6) else EACCES, "open", "n", os.O_RDWR, who=who))  # fmt: skip
            yield case(
                f"acl/folder-decides/{number}/{who}",
                folder("d", 0),
                do("setacl", "d", "access", acl),
                tries(0 if may[3] else EACCES, "mkdir", "d/n", 0o755, who=who),
                tries(0 if may[4] else EACCES, "names", "d", who=who),
            )


def _mode() -> Iterator[Case]:
    """The mode shows the list: owner, mask (or group), other; and chmod changes these entries."""
    for kind in ("file", "dir"):
        for number, acl in enumerate(LISTS):
            bits = {
                tuple(word.split(":")[:2]): sum(bit for bit, sign in zip((4, 2, 1), word.split(":")[2], strict=True) if sign != "-")
                for word in acl.split(",")
            }
            middle = bits.get(("m", ""), bits["g", ""])
            mode = bits["u", ""] << 6 | middle << 3 | bits["o", ""]
            long = ("m", "") in bits
            kept = gives(acl, "getacl", "n", "access", who=ROOT) if long else fails(ENODATA, "getacl", "n", "access", who=ROOT)
            yield case(
                f"acl/mode-shows-it/{kind}/{number}",
                has(kind, "n", 0),
                do("setacl", "n", "access", acl),
                attrs("n", mode=mode),
                kept,
            )
            after = ",".join(
                {"u:": "u::rw-", "o:": "o::--x", "m:": "m::r-x", "g:": "g::r-x"}.get(":".join(word.split(":")[:2]), word)
                if not (long and word.startswith("g::"))
                else word
                for word in acl.split(",")
            )
            shown = gives(after, "getacl", "n", "access", who=ROOT) if long else fails(ENODATA, "getacl", "n", "access", who=ROOT)
            yield case(
                f"acl/chmod-changes-it/{kind}/{number}",
                has(kind, "n", 0),
                do("setacl", "n", "access", acl),
                do("chmod", "n", 0o651),
                attrs("n", mode=0o651),
                shown,
            )
        extended = LISTS[2]
        yield case(
            f"acl/removed/{kind}",
            has(kind, "n", 0o640),
            do("setacl", "n", "access", extended),
            do("removeacl", "n", "access"),
            fails(ENODATA, "getacl", "n", "access"),
        )
        yield case(
            f"acl/setting-moves-ctime/{kind}", has(kind, "n"), mark("n"), do("setacl", "n", "access", extended), moved("n", "c")
        )
        yield case(
            f"acl/special-bits-stay/{kind}",
            has(kind, "n", 0o1755 if kind == "dir" else 0o755),
            do("setacl", "n", "access", extended),
            attrs("n", mode=(0o1000 if kind == "dir" else 0) | 0o770),
        )
        yield case(
            f"acl/survives-rename/{kind}",
            has(kind, "n"),
            do("setacl", "n", "access", extended),
            do("rename", "n", "m"),
            gives(extended, "getacl", "m", "access"),
        )
        yield case(
            f"acl/is-listed/{kind}",
            has(kind, "n"),
            do("setacl", "n", "access", extended),
            gives(["system.posix_acl_access"], "listxattr", "n"),
        )
        yield case(
            f"acl/plain-list-is-not-listed/{kind}",
            has(kind, "n"),
            do("setacl", "n", "access", LISTS[0]),
            gives([], "listxattr", "n"),
            attrs("n", mode=0o700),
        )
        for who in USERS:
            error = 0 if who == OWNER else EPERM
            yield case(
                f"acl/only-the-owner-sets-it/{kind}/{who}",
                has(kind, "n", 0o777),
                tries(error, "setacl", "n", "access", extended, who=who),
                attrs("n", mode=0o770 if not error else 0o777),
            )
        yield case(
            f"acl/read-only/{kind}",
            has(kind, "n"),
            fails(EROFS, "setacl", "%ro/n", "access", extended, who=ROOT),
            attrs("n", mode=0o644),
            needs="mount",
        )
        yield case(
            f"acl/group-decides-setgid/{kind}",
            has(kind, "n", 0o2770, group="elsewhere"),
            do("setacl", "n", "access", extended),
            attrs("n", mode=0o770),
        )


DEFAULTS = (
    "u::rwx,g::r-x,o::---",
    "u::rwx,u:other:rwx,g::r-x,m::rwx,o::r--",
    "u::rw-,u:peer:r--,g::rwx,g:others:-wx,m::rw-,o::---",
    "u::---,u:other:rwx,g::---,m::---,o::---",
)


def _inherited(acl: str, mode: int) -> tuple[str, int]:
    """The access list and mode of what is made with `mode` in a folder with this default: the umask does not count."""
    words = []
    has_mask = ",m::" in acl
    out_mode = 0
    for word in acl.split(","):
        letter, name, text = word.split(":")
        bits = sum(bit for bit, sign in zip((4, 2, 1), text, strict=True) if sign != "-")
        place = {"u": 6, "o": 0, "m": 3, "g": 3}[letter] if not name and not (letter == "g" and has_mask) else -1
        if place >= 0:
            bits &= mode >> place & 7
            out_mode |= bits << place
        words.append(f"{letter}:{name}:{rwx(bits)}")
    return ",".join(words), out_mode


def _inheritance() -> Iterator[Case]:
    makers: dict[str, Callable[[int], Step]] = {
        "file": lambda mode: do("open", "d/n", os.O_CREAT | os.O_WRONLY, mode),
        "dir": lambda mode: do("mkdir", "d/n", mode),
        "fifo": lambda mode: do("mkfifo", "d/n", mode),
        "socket": lambda mode: do("mknod", "d/n", "socket", mode),
    }
    for kind, maker in makers.items():
        for number, acl in enumerate(DEFAULTS):
            for mode in (0o777, 0o666, 0o640, 0o700, 0o000, 0o007):
                for mask in (0, 0o077):
                    want, out_mode = _inherited(acl, mode)
                    shown = (
                        gives(want, "getacl", "d/n", "access", who=ROOT)
                        if ",m::" in acl
                        else fails(ENODATA, "getacl", "d/n", "access", who=ROOT)
                    )
                    below = gives(acl, "getacl", "d/n", "default", who=ROOT) if kind == "dir" else ()
                    yield case(
                        f"acl/inherited/{kind}/{number}/{octal(mode)}-{octal(mask)}",
                        folder("d", 0o777),
                        do("setacl", "d", "default", acl),
                        do("umask", mask),
                        maker(mode),
                        attrs("d/n", mode=out_mode, kind=kind),
                        shown,
                        below,
                    )
    for number, acl in enumerate(DEFAULTS):
        yield case(
            f"acl/default-does-not-decide/{number}",
            folder("d", 0o700),
            do("setacl", "d", "default", acl),
            attrs("d", mode=0o700),
            fails(EACCES, "names", "d", who=OTHER),
            gives(acl, "getacl", "d", "default"),
        )
        yield case(
            f"acl/default-removed/{number}",
            folder("d"),
            do("setacl", "d", "default", acl),
            do("removeacl", "d", "default"),
            do("umask", 0o022),
            do("mkdir", "d/n", 0o777),
            attrs("d/n", mode=0o755),
            fails(ENODATA, "getacl", "d/n", "default"),
        )
        yield case(
            f"acl/symlink-inherits-nothing/{number}",
            folder("d", 0o777),
            do("setacl", "d", "default", acl),
            do("symlink", "x", "d/n"),
            attrs("d/n", mode=0o777),
        )
        yield case(
            f"acl/two-levels/{number}",
            folder("d", 0o777),
            do("setacl", "d", "default", acl),
            do("mkdir", "d/e", 0o777),
            do("mkdir", "d/e/f", 0o777, who=ROOT),
            gives(acl, "getacl", "d/e/f", "default", who=ROOT),
        )
        yield case(
            f"acl/rename-inherits-nothing/{number}",
            folder("d", 0o777),
            do("setacl", "d", "default", acl),
            has("file", "n", 0o604),
            do("rename", "n", "d/n"),
            attrs("d/n", mode=0o604),
            fails(ENODATA, "getacl", "d/n", "access"),
        )
    for kind in ("file", "fifo", "socket"):
        yield case(
            f"acl/default-of-no-folder/{kind}",
            has(kind, "n"),
            fails((EACCES, EINVAL, EOPNOTSUPP), "setacl", "n", "default", DEFAULTS[0]),
        )


def entry(tag: int, bits: int, number: int = 0xFFFFFFFF) -> bytes:
    """One entry of a list in the kernel's form."""
    return struct.pack("<HHI", tag, bits, number)


def _bad() -> Iterator[Case]:
    head = (2).to_bytes(4, "little")
    u, g, o, m = entry(1, 7), entry(4, 5), entry(0x20, 0), entry(0x10, 7)
    bad = {
        "version": (3).to_bytes(4, "little") + u + g + o, "short": head + u + g + o[:-1], "no-owner": head + g + o, "no-group": head + u + o, "no-other": head + u + g, "two-owners": head + u + u + g + o,
        "user-without-mask": head + u + entry(2, 7, 61003) + g + o, "group-without-mask": head + u + g + entry(8, 7, 61003) + o, "unknown-tag": head + u + g + entry(0x40, 1) + o, "bad-bits": head + entry(1, 8) + g + o,
        "wrong-order": head + g + u + o, "two-masks": head + u + entry(2, 7, 61003) + g + m + m + o, "header-cut": head[:3],
    }  # fmt: skip
    for which in ("access", "default"):
        for name, raw in bad.items():
            yield case(
                f"acl/bad-list/{which}/{name}",
                folder("d", 0o750),
                fails((EINVAL, EOPNOTSUPP), "setacl_raw", "d", which, raw),
                attrs("d", mode=0o750),
                fails(ENODATA, "getacl", "d", which),
            )
    for kind in KINDS:
        if kind in {"block", "char"}:
            yield case(f"acl/kind/{kind}", has(kind, "n", 0o600), do("setacl", "n", "access", LISTS[2]), attrs("n", mode=0o770))
    for count in (10, 24):
        raw = head + u + b"".join(entry(2, n % 8, 62000 + n) for n in range(count)) + g + m + o
        yield case(
            f"acl/many-entries/{count}",
            has("file", "n"),
            do("setacl_raw", "n", "access", raw),
            gives(raw, "getxattr", "n", "system.posix_acl_access"),
            attrs("n", mode=0o770),
        )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_decisions, _mode, _inheritance, _bad):
        yield from part()
