"""mkdir, mkfifo, mknod, symlink, and a socket's bind: making names. Source: IEEE 1003.1 of each; mknod(2), unix(7)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EACCES, EADDRINUSE, EEXIST, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS

from xtreemos.testing.posix.model import (
    KINDS,
    OTHER,
    OWNER,
    ROOT,
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
    mark,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import folder, octal

Maker = Callable[[str, int], tuple[str, tuple[object, ...]]]
MAKERS: dict[str, tuple[str, Maker]] = {
    "mkdir": ("dir", lambda path, mode: ("mkdir", (path, mode))),
    "mkfifo": ("fifo", lambda path, mode: ("mkfifo", (path, mode))),
    "mknod-file": ("file", lambda path, mode: ("mknod", (path, "file", mode))),
    "mknod-fifo": ("fifo", lambda path, mode: ("mknod", (path, "fifo", mode))),
    "mknod-socket": ("socket", lambda path, mode: ("mknod", (path, "socket", mode))),
    "symlink": ("symlink", lambda path, _mode: ("symlink", ("target", path))),
    "open-creat": ("file", lambda path, mode: ("open", (path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))),
}
MODES = (0o000, 0o111, 0o222, 0o444, 0o644, 0o700, 0o755, 0o777, 0o1777)
MASKS = (0o000, 0o022, 0o027, 0o077, 0o137, 0o777)


def make(name: str, path: str, *, mode: int = 0o777, who: str = OWNER, error: int | tuple[int, ...] = 0) -> Step:
    """The step that makes something by one of MAKERS."""
    call, args = MAKERS[name][1](path, mode)
    return tries(error, call, *args, who=who)


def _modes() -> Iterator[Case]:
    for name, (kind, _) in MAKERS.items():
        for mode in MODES:
            for mask in MASKS:
                want = 0o777 if kind == "symlink" else mode & ~mask
                if kind == "symlink" and mode:
                    continue
                yield case(
                    f"{name}/mode/{octal(mode)}-{octal(mask)}",
                    do("umask", mask), make(name, "n", mode=mode), attrs("n", kind=kind, mode=want, user=OWNER, group="team", nlink=2 if kind == "dir" else 1),
                )  # fmt: skip


def _permissions() -> Iterator[Case]:
    """Making needs write and search of the folder, by the one class that counts."""
    for name, (kind, _) in MAKERS.items():
        for who in USERS:
            shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
            for bits in range(8):
                for rest in (0, 7):
                    mode = sum((bits if shift == place else rest) << place for place in (6, 3, 0))
                    may = bits & 3 == 3  # write and search
                    yield case(
                        f"{name}/permission/{who}/{octal(mode)}",
                        folder("d", mode), make(name, "d/n", who=who, error=0 if may else EACCES),
                        attrs("d/n", kind=kind, user=who) if may else absent("d/n"),
                    )  # fmt: skip
        yield case(
            f"{name}/permission/root", folder("d", 0), make(name, "d/n", who=ROOT), attrs("d/n", user=ROOT, group="root", kind=kind)
        )


def _existing() -> Iterator[Case]:
    for name in MAKERS:
        for kind in KINDS:
            for who in (OWNER, OTHER):
                yield case(
                    f"{name}/exists/{kind}/{who}",
                    has(kind, "n"), mark("n", "."), make(name, "n", error=EEXIST, who=who), attrs("n", kind=kind), moved("n", ""), moved(".", ""),
                )  # fmt: skip
        yield case(f"{name}/exists/dangling-symlink", do("symlink", "gone", "n"), make(name, "n", error=EEXIST), absent("gone"))
        yield case(
            f"{name}/exists/symlink-to-folder", folder("d"), do("symlink", "d", "n"), make(name, "n", error=EEXIST), listing("d")
        )
        yield case(f"{name}/exists/dot", make(name, ".", error=(EEXIST, ENOENT)))
        yield case(f"{name}/exists/dot-dot", make(name, "..", error=EEXIST))


def _times() -> Iterator[Case]:
    for name in MAKERS:
        yield case(f"{name}/moves-times-of-the-folder", folder("d"), mark("d"), make(name, "d/n"), moved("d", "mc"))
        yield case(f"{name}/has-new-times", folder("d"), mark("d"), make(name, "d/n"), moved("d/n", "amc", since="d"))
        yield case(f"{name}/refused-moves-no-time", folder("d", 0o555), mark("d"), make(name, "d/n", error=EACCES), moved("d", ""))


def _groups() -> Iterator[Case]:
    """A set-group-id folder gives its group to what is made in it, and the bit to folders."""
    for name, (kind, _) in MAKERS.items():
        for mode in (0o777, 0o2777, 0o3777):
            for group in ("team", "extra", "elsewhere"):
                for who in (OWNER, OTHER):
                    inherits = bool(mode & 0o2000)
                    own = "team" if who == OWNER else "others"
                    want = 0o777 if kind == "symlink" else 0o755 | (0o2000 if inherits and kind == "dir" else 0)
                    yield case(
                        f"{name}/group-of-the-folder/{octal(mode)}/{group}/{who}",
                        folder("d", mode, group=group), make(name, "d/n", mode=0o755, who=who),
                        attrs("d/n", group=group if inherits else own, user=who, mode=want),
                    )  # fmt: skip


def _folder_links() -> Iterator[Case]:
    yield case(
        "mkdir/links-of-the-parent-grow",
        folder("d"),
        *_count_links("d", 2),
        do("mkdir", "d/a", 0o755),
        *_count_links("d", 3),
        *_count_links("d/a", 2),
    )
    yield case(
        "mkdir/links-of-the-parent-shrink", folder("d"), do("mkdir", "d/a", 0o755), do("mkdir", "d/b", 0o755), *_count_links("d", 4), do("rmdir", "d/a"),
        *_count_links("d", 3), do("rmdir", "d/b"), *_count_links("d", 2),
    )  # fmt: skip
    yield case(
        "mkdir/files-do-not-link-the-parent", folder("d"), do("spew", "d/a", b""), do("symlink", "x", "d/b"), *_count_links("d", 2)
    )
    yield case("mkdir/new-folder-is-empty", do("mkdir", "d", 0o755), listing("d"))
    yield case(
        "mkdir/dot-dot-is-the-parent", folder("d"), do("mkdir", "d/a", 0o755), do("stat", "d", keep="p"), _same("d/a/..", "p")
    )
    yield case("mkdir/dot-is-itself", do("mkdir", "d", 0o755), do("stat", "d", keep="p"), _same("d/.", "p"))
    for path in ("d/", "d//", "./d", "d/."):
        error = ENOENT if path == "d/." else 0
        yield case(
            f"mkdir/slashes/{path.replace('/', '_')}",
            tries(error, "mkdir", path, 0o755),
            absent("d") if error else attrs("d", kind="dir"),
        )
    for path in ("n/", "n/."):
        for name, (kind, _) in MAKERS.items():
            if kind not in {"dir", "file"}:
                yield case(
                    f"{name}/slash-behind/{path.replace('/', '_')}", make(name, path, error=(ENOENT, ENOTDIR, EEXIST)), absent("n")
                )


def _same(path: str, slot: str) -> Step:
    from xtreemos.testing.posix.model import like

    return like(path, slot, "ino", "dev")


def _count_links(path: str, count: int) -> tuple[Step, ...]:
    return (attrs(path, nlink=count),)


def _devices() -> Iterator[Case]:
    for kind in ("block", "char"):
        for who in USERS:
            yield case(
                f"mknod-device/refused/{kind}/{who}",
                fails(EPERM, "mknod", "n", kind, 0o600, os.makedev(1, 3), who=who),
                absent("n"),
            )
        for major, minor in ((1, 3), (8, 17), (255, 255), (259, 1048575), (4095, 4096), (0, 0)):
            device = os.makedev(major, minor)
            yield case(
                f"mknod-device/number/{kind}/{major}.{minor}",
                do("mknod", "n", kind, 0o640, device, who=ROOT), attrs("n", kind=kind, rdev=device, mode=0o640, user=ROOT, nlink=1), needs="mknod",
            )  # fmt: skip
        yield case(
            f"mknod-device/exists/{kind}",
            has("file", "n"),
            fails(EEXIST, "mknod", "n", kind, 0o600, 0, who=ROOT),
            attrs("n", kind="file"),
            needs="mknod",
        )
        yield case(
            f"mknod-device/moves-times/{kind}",
            folder("d"),
            mark("d"),
            do("mknod", "d/n", kind, 0o600, 0, who=ROOT),
            moved("d", "mc"),
            needs="mknod",
        )
    yield case(
        "mknod-device/null-swallows", do("mknod", "n", "char", 0o666, os.makedev(1, 3), who=ROOT), do("open", "n", os.O_RDWR, keep="f"),
        gives(3, "write", "@f", b"abc"), gives(b"", "read", "@f", 3), needs="devices",
    )  # fmt: skip


def _targets() -> Iterator[Case]:
    """What a symlink says is kept as it is, whatever it means."""
    texts = {
        "plain": "target", "deep": "a/b/c", "absolute": "/nowhere/at/all", "slashes": "//a///b//", "dots": "../../..", "itself": "n", "space": " a b ",
        "newline": "a\nb", "utf-8": "zażółć", "invalid-utf-8": b"\xff\xfe".decode(errors="surrogateescape"), "one": "x", "long-name": "y" * 255,
        "255": "a/" * 127 + "b", "1000": "c/" * 500, "4095": "d" * 4095,
    }  # fmt: skip
    for name, text in texts.items():
        size = len(os.fsencode(text))
        yield case(
            f"symlink/target/{name}",
            do("symlink", text, "n"),
            gives(text, "readlink", "n"),
            attrs("n", kind="symlink", size=size, nlink=1),
        )
    yield case("symlink/target/4096", fails(ENAMETOOLONG, "symlink", "e" * 4096, "n"), absent("n"))
    yield case("symlink/target/empty", fails(ENOENT, "symlink", "", "n"), absent("n"))
    for kind in ("file", "dir", "fifo", "socket"):
        yield case(f"readlink/not-a-symlink/{kind}", has(kind, "n"), fails(22, "readlink", "n"))
    yield case("readlink/moves-no-ctime", do("symlink", "x", "n"), mark("n"), do("readlink", "n"), moved("n", ""))
    for who in USERS:
        yield case(f"readlink/needs-no-rights/{who}", do("symlink", "x", "n"), gives("x", "readlink", "n", who=who))
        yield case(
            f"readlink/needs-search/{who}",
            folder("d", 0o600),
            do("symlink", "x", "d/n", who=ROOT),
            fails(EACCES, "readlink", "d/n", who=who),
        )


def _sockets() -> Iterator[Case]:
    yield case(
        "bind/makes-a-socket",
        do("umask", 0o022),
        do("bind_socket", "n"),
        attrs("n", kind="socket", mode=0o755, user=OWNER, nlink=1),
    )
    for kind in KINDS:
        yield case(f"bind/exists/{kind}", has(kind, "n"), fails(EADDRINUSE, "bind_socket", "n"), attrs("n", kind=kind))
    for mode, may in ((0o755, False), (0o777, True), (0o773, True), (0o775, False), (0o772, False)):
        yield case(
            f"bind/permission/{octal(mode)}", folder("d", mode), tries(0 if may else EACCES, "bind_socket", "d/n", who=OTHER)
        )
    yield case("connect/by-name", do("bind_socket", "n"), do("connect_socket", "n"))
    yield case("connect/by-a-second-name", do("bind_socket", "n"), do("link", "n", "m"), do("connect_socket", "m"))
    yield case("connect/through-symlink", do("bind_socket", "n"), do("symlink", "n", "m"), do("connect_socket", "m"))
    yield case("connect/after-rename", do("bind_socket", "n"), do("rename", "n", "m"), do("connect_socket", "m"))
    yield case("connect/nobody-listens", has("socket", "n"), fails(111, "connect_socket", "n"))
    yield case("connect/after-unlink", do("bind_socket", "n"), do("unlink", "n"), fails(ENOENT, "connect_socket", "n"))
    for kind in ("file", "fifo", "dir"):
        yield case(f"connect/no-socket/{kind}", has(kind, "n", 0o777), fails(111, "connect_socket", "n"))
    for mode in range(8):
        may = bool(mode & 2)
        steps: list[Group] = [
            do("bind_socket", "n"),
            do("chmod", "n", mode),
            tries(0 if may else EACCES, "connect_socket", "n", who=OTHER),
        ]
        yield case(f"connect/needs-write/{octal(mode)}", *steps)


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_modes, _permissions, _existing, _times, _groups, _folder_links, _devices, _targets, _sockets):
        yield from part()
    for name in MAKERS:
        yield case(f"{name}/read-only", make(name, "%ro/n", who=ROOT, error=EROFS), absent("n"), needs="mount")
        yield case(
            f"{name}/read-only-exists",
            has("file", "n"),
            make(name, "%ro/n", who=ROOT, error=(EROFS, EEXIST)),
            attrs("n", kind="file"),
            needs="mount",
        )
