"""open: the permission matrix, and every combination of flags against every kind of file. Source: IEEE 1003.1 open; open(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EPERM, EROFS, ETXTBSY

from xtreemos.testing.posix.model import (
    CALLERS,
    OTHER,
    OWNER,
    ROOT,
    USERS,
    Case,
    Facts,
    Group,
    Has,
    Step,
    absent,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    mark,
    meets,
    moved,
    tries,
)  # fmt: skip
from xtreemos.testing.posix.tables.kit import content, denied, folder, octal, rights

ACCESS = {"RDONLY": (os.O_RDONLY, 4), "WRONLY": (os.O_WRONLY, 2), "RDWR": (os.O_RDWR, 6)}
EXTRA = {"": 0, "TRUNC": os.O_TRUNC, "APPEND": os.O_APPEND, "CREAT": os.O_CREAT}
RUN = b"#!/bin/sh\nexit 7\n"


def _mode_for(who: str, bits: int, rest: int) -> int:
    """A mode that gives `bits` to the class of a caller and `rest` to the two other classes."""
    shift = {OWNER: 6, "peer": 3, "member": 3, OTHER: 0}[who]
    return sum((bits if shift == place else rest) << place for place in (6, 3, 0))


def _opens(error: int, path: str, flags: int, who: str, kind: str = "file") -> Iterator[Group]:
    """Opening fails with `error`, or gives a descriptor of a thing of that kind."""
    yield tries(error, "open", path, flags, who=who, keep="f")
    if not error:
        yield Step("fstat", ("@f",), who, Has({"kind": kind}))


def _uses(flags: int) -> Iterator[Group]:
    """The descriptor kept in `f`, of a file that holds "abc", does what its access mode says and no more."""
    access = flags & os.O_ACCMODE
    read = b"" if flags & os.O_TRUNC else b"abc"
    yield gives(read, "pread", "@f", 9, 0) if access != os.O_WRONLY else fails(EBADF, "pread", "@f", 9, 0)
    yield gives(2, "pwrite", "@f", b"xy", 0) if access != os.O_RDONLY else fails((EBADF, EINVAL), "pwrite", "@f", b"xy", 0)


def _permission_matrix() -> Iterator[Case]:
    """Exactly one class of bits counts, even where another gives more."""
    for who in USERS:
        for bits in range(8):
            for rest in (0, 7):
                mode = _mode_for(who, bits, rest)
                for name, (flags, needed) in ACCESS.items():
                    for extra, more in EXTRA.items():
                        wanted = needed | (2 if extra == "TRUNC" else 0)
                        may = bits & wanted == wanted
                        after: Group = attrs("n", size=0 if extra == "TRUNC" and may else 3, mode=mode)
                        yield case(
                            f"open/permission/{who}/{octal(mode)}/{name}{'+' if extra else ''}{extra}",
                            has("file", "n", 0o600), content("n", b"abc"), do("chmod", "n", mode, who=ROOT),
                            _opens(denied(may), "n", flags | more, who), after, _uses(flags | more) if may else (),
                        )  # fmt: skip


def _permission_of_folders() -> Iterator[Case]:
    for who in USERS:
        for bits in range(8):
            for rest in (0, 7):
                mode = _mode_for(who, bits, rest)
                yield case(
                    f"open/folder-read/{who}/{octal(mode)}",
                    folder("d", mode), _opens(denied(bool(bits & 4)), "d", os.O_RDONLY | os.O_DIRECTORY, who, "dir"),
                )  # fmt: skip
                yield case(
                    f"open/folder-search/{who}/{octal(mode)}",
                    folder("d"), has("file", "d/n", 0o666), do("chmod", "d", mode, who=ROOT), _opens(denied(bool(bits & 1)), "d/n", os.O_RDWR, who),
                )  # fmt: skip
                may = bits & 3 == 3  # write and search
                yield case(
                    f"open/folder-create/{who}/{octal(mode)}",
                    folder("d", mode), tries(denied(may), "open", "d/n", os.O_RDWR | os.O_CREAT, 0o640, who=who),
                    attrs("d/n", user=who, mode=0o640, size=0, nlink=1, kind="file") if may else absent("d/n"),
                )  # fmt: skip
    for mode in range(8):
        yield case(
            f"open/folder-create/root/{octal(mode * 0o111)}", folder("d", mode * 0o111), do("open", "d/n", os.O_RDWR | os.O_CREAT, 0o600, who=ROOT),
            attrs("d/n", user=ROOT),
        )  # fmt: skip
        for name, (flags, _) in ACCESS.items():
            yield case(
                f"open/permission/root/{octal(mode * 0o111)}/{name}",
                has("file", "n", mode * 0o111),
                _opens(0, "n", flags, ROOT),
            )


def _every_mode() -> Iterator[Case]:
    """All 512 modes, for a caller of each class, reading and writing told apart."""
    for mode in range(0o1000):
        steps: list[Group] = [has("file", "n", mode)]
        for who in ("owner", "member", "other"):
            bits = rights(mode, who)
            steps += [
                _opens(denied(bool(bits & 4)), "n", os.O_RDONLY, who),
                _opens(denied(bool(bits & 2)), "n", os.O_WRONLY, who),
            ]
        yield case(f"open/every-mode/{octal(mode)}", *steps)


def _expected(kind: str, access: str, flags: int) -> int:
    """The errno of opening an existing thing of a kind that everybody may use, 0 for success; not for device files."""
    creating, only_new = flags & os.O_CREAT, flags & os.O_EXCL
    if creating and only_new:
        return EEXIST
    if kind == "symlink":
        return ELOOP if flags & os.O_NOFOLLOW and not flags & os.O_DIRECTORY else ENOTDIR if flags & os.O_DIRECTORY else 0
    if kind == "dir":
        return EISDIR if creating or access != "RDONLY" or flags & os.O_TRUNC else 0
    if flags & os.O_DIRECTORY:
        return ENOTDIR
    if kind == "socket":
        return ENXIO
    if kind == "fifo":
        return ENXIO if access == "WRONLY" else 0
    return 0


def _flags_by_kind() -> Iterator[Case]:
    toggles = {
        "CREAT": os.O_CREAT,
        "EXCL": os.O_EXCL,
        "TRUNC": os.O_TRUNC,
        "APPEND": os.O_APPEND,
        "NOFOLLOW": os.O_NOFOLLOW,
        "DIRECTORY": os.O_DIRECTORY,
    }
    names = list(toggles)
    for kind in ("file", "dir", "fifo", "socket", "symlink"):
        for access in ACCESS:
            for number in range(1 << len(names)):
                chosen = [name for bit, name in enumerate(names) if number >> bit & 1]
                flags = sum(toggles[name] for name in chosen) | ACCESS[access][0]
                if "EXCL" in chosen and "CREAT" not in chosen:
                    continue  # undefined by the standard
                if "DIRECTORY" in chosen and "CREAT" in chosen:
                    continue  # differs between kernels
                error = _expected(kind, access, flags)
                setup: list[Group] = [has("file", "n", 0o666), content("n", b"abc")]
                if kind == "symlink":
                    setup += [do("symlink", "n", "x")]
                elif kind == "file":
                    setup = [has("file", "x", 0o666), content("x", b"abc")]
                else:
                    setup = [has(kind, "x", 0o777)]
                after: list[Group] = [attrs("x", kind=kind)]
                if kind in {"file", "symlink"}:
                    after.append(attrs("x" if kind == "file" else "n", size=0 if not error and "TRUNC" in chosen else 3))
                yield case(
                    f"open/flags/{kind}/{'+'.join([access, *chosen])}",
                    *setup,
                    _opens(error, "x", flags | os.O_NONBLOCK, OWNER, "file" if kind == "symlink" else kind),
                    *after,
                )


def _creating() -> Iterator[Case]:
    for mode in (0o000, 0o644, 0o666, 0o777, 0o4755, 0o1777, 0o2775):
        for mask in (0, 0o022, 0o027, 0o777, 0o111):
            for who in (OWNER, OTHER):
                yield case(
                    f"open/umask/{who}/{octal(mode)}-{octal(mask)}",
                    do("umask", mask), do("open", "n", os.O_CREAT | os.O_WRONLY, mode, who=who), attrs("n", mode=mode & ~mask, user=who, nlink=1, size=0),
                )  # fmt: skip
    for access, (flags, _) in ACCESS.items():
        yield case(
            f"open/create-without-rights-in-the-mode/{access}", do("open", "n", flags | os.O_CREAT, 0, keep="f"), attrs("n", mode=0)
        )
        yield case(
            f"open/dangling-symlink-creates-its-target/{access}",
            do("symlink", "n", "s"),
            do("open", "s", flags | os.O_CREAT),
            attrs("n", kind="file"),
        )
        yield case(
            f"open/dangling-symlink-without-creating/{access}",
            do("symlink", "n", "s"),
            fails(ENOENT, "open", "s", flags),
            absent("n"),
        )
        yield case(
            f"open/dangling-symlink-exclusive/{access}",
            do("symlink", "n", "s"),
            fails(EEXIST, "open", "s", flags | os.O_CREAT | os.O_EXCL),
            absent("n"),
        )
        yield case(f"open/missing/{access}", fails(ENOENT, "open", "n", flags))
        yield case(
            f"open/create-behind-a-slash/{access}", fails((EISDIR, ENOENT, ENOTDIR), "open", "n/", flags | os.O_CREAT), absent("n")
        )
    for mode, group in ((0o2777, "extra"), (0o2777, "elsewhere"), (0o777, "extra")):
        inherits = bool(mode & 0o2000)
        yield case(
            f"open/new-file-takes-the-group-of-a-setgid-folder/{octal(mode)}/{group}",
            folder("d", mode, group=group), do("open", "d/n", os.O_CREAT | os.O_WRONLY), attrs("d/n", group=group if inherits else "team", mode=0o644),
        )  # fmt: skip
    for who in (OWNER, OTHER):
        kept = 0o2775 if who == OWNER else 0o775
        yield case(
            f"open/setgid-in-a-folder-of-a-group/{who}",
            folder("d", 0o2777, group="extra"), do("open", "d/n", os.O_CREAT | os.O_WRONLY, 0o2775, who=who), attrs("d/n", group="extra", mode=kept),
        )  # fmt: skip


def _times() -> Iterator[Case]:
    w, c, t = os.O_WRONLY, os.O_CREAT, os.O_TRUNC
    full = (has("file", "d/n"), content("d/n", b"abc"))
    yield case("open/create-moves-times-of-the-folder", folder("d"), mark("d"), do("open", "d/n", w | c), moved("d", "mc"))
    yield case("open/new-file-has-new-times", folder("d"), mark("d"), do("open", "d/n", w | c), moved("d/n", "amc", since="d"))
    yield case(
        "open/existing-moves-no-time",
        folder("d"),
        full,
        mark("d", "d/n"),
        do("open", "d/n", w | c),
        moved("d", ""),
        moved("d/n", ""),
    )
    yield case(
        "open/truncate-moves-times",
        folder("d"),
        full,
        mark("d", "d/n"),
        do("open", "d/n", w | t),
        moved("d/n", "mc"),
        moved("d", ""),
    )
    yield case(
        "open/refused-truncate-moves-no-time",
        folder("d"),
        full,
        mark("d/n"),
        fails(EACCES, "open", "d/n", w | t, who=OTHER),
        moved("d/n", ""),
    )
    yield case(
        "open/exclusive-moves-no-time",
        folder("d"),
        full,
        mark("d", "d/n"),
        fails(EEXIST, "open", "d/n", w | c | os.O_EXCL),
        moved("d", ""),
    )
    yield case(
        "write/moves-times", has("file", "n"), do("open", "n", w, keep="f"), mark("n"), do("write", "@f", b"x"), moved("n", "mc")
    )
    yield case(
        "write/nothing-moves-no-time",
        has("file", "n"),
        do("open", "n", w, keep="f"),
        mark("n"),
        do("write", "@f", b""),
        moved("n", ""),
    )


def _write_only_things() -> Iterator[Case]:
    yield case(
        "open/creation-mode-binds-later-opens-only",
        do("open", "n", os.O_CREAT | os.O_RDWR, 0, keep="f"),
        gives(3, "write", "@f", b"abc"),
    )
    yield case(
        "open/creation-mode-binds-later-opens", do("open", "n", os.O_CREAT | os.O_RDWR, 0), fails(EACCES, "open", "n", os.O_RDONLY)
    )
    for flags, name in ((os.O_WRONLY, "write"), (os.O_RDWR, "read-write"), (os.O_WRONLY | os.O_TRUNC, "truncate")):
        for kind in ("file", "dir"):
            yield case(
                f"open/read-only/{name}/{kind}",
                has(kind, "n"),
                fails((EROFS, EISDIR), "open", "%ro/n", flags, who=ROOT),
                needs="mount",
            )
        for kind in ("fifo", "char"):
            needs = "mount" if kind == "fifo" else "mknod"
            yield case(
                f"open/read-only-does-not-bind/{name}/{kind}",
                has(kind, "n", 0o666),
                tries(0, "open", "%ro/n", os.O_RDWR),
                needs=needs,
            )
    yield case(
        "open/read-only/create", fails(EROFS, "open", "%ro/n", os.O_WRONLY | os.O_CREAT, who=ROOT), absent("n"), needs="mount"
    )
    yield case("open/read-only/read", has("file", "n"), do("open", "%ro/n", os.O_RDONLY), needs="mount")


def _programs() -> Iterator[Case]:
    for mode in (0o755, 0o711, 0o555, 0o444, 0o644, 0o700, 0o070, 0o007, 0o001, 0o010, 0o100):
        for who in CALLERS:
            bits = 7 if who == ROOT and mode & 0o111 else 0 if who == ROOT else rights(mode, who)
            want = EACCES if not bits & 1 else 0
            readable = who == ROOT or bits & 4
            step = fails(EACCES, "exec", "./n", who=who) if want else gives(7, "exec", "./n", who=who)
            if not want and not readable:  # the kernel starts the shell, which then may not read its script
                step = meets("the shell's complaint", lambda code: code not in {0, 7}, "exec", "./n", who=who)
            yield case(
                f"exec/permission/{who}/{octal(mode)}",
                content("n", RUN),
                do("chown", "n", "owner", "team", who=ROOT),
                do("chmod", "n", mode, who=ROOT),
                step,
            )
    yield case(
        "exec/text-busy-for-writers",
        do("spew", "n", b"x"),
        do("chmod", "n", 0o755),
        do("open", "n", os.O_WRONLY, keep="f"),
        fails(ETXTBSY, "exec", "./n"),
    )
    for kind in ("dir", "fifo", "socket"):
        yield case(f"exec/wrong-kind/{kind}", has(kind, "n", 0o777), fails(EACCES, "exec", "./n"))


def _flags_in_use() -> Iterator[Case]:
    yield case(
        "open/append-writes-at-the-end", has("file", "n"), content("n", b"abc"), do("open", "n", os.O_WRONLY | os.O_APPEND, keep="f"),
        do("lseek", "@f", 0, 0), do("write", "@f", b"de"), gives(b"abcde", "slurp", "n"),
    )  # fmt: skip
    yield case(
        "open/no-atime-for-others", has("file", "n", 0o666), fails(EPERM, "open", "n", os.O_RDONLY | os.O_NOATIME, who=OTHER)
    )
    for who in (OWNER, ROOT):
        yield case(f"open/no-atime/{who}", has("file", "n", 0o666), do("open", "n", os.O_RDONLY | os.O_NOATIME, who=who))
    yield case(
        "open/no-atime-reads-move-no-time", has("file", "n"), content("n", b"abc"), do("open", "n", os.O_RDONLY | os.O_NOATIME, keep="f"), mark("n"),
        do("read", "@f", 3), moved("n", "", same="amc"),
    )  # fmt: skip
    for who in (OWNER, OTHER):
        yield case(
            f"open/fifo-without-reader/{who}",
            has("fifo", "n", 0o666),
            fails(ENXIO, "open", "n", os.O_WRONLY | os.O_NONBLOCK, who=who),
        )
    yield case("open/fifo-reader-need-not-wait", has("fifo", "n", 0o666), do("open", "n", os.O_RDONLY | os.O_NONBLOCK))
    yield case(
        "open/creat-truncates", has("file", "n"), content("n", b"abc"), do("creat", "n", 0o600), attrs("n", size=0, mode=0o644)
    )
    yield case(
        "open/distinct-files-have-distinct-numbers",
        do("spew", "a", b""),
        do("lstat", "a", keep="a"),
        do("spew", "b", b""),
        *_differs("b", "a"),
    )
    yield case(
        "open/lowest-descriptors-are-distinct",
        has("file", "n"),
        do("open", "n", 0, keep="a"),
        meets("an open file", bool, "dup", "@a"),
    )
    yield case("open/tmpfile-needs-writing", fails((EINVAL, EISDIR), "open", ".", os.O_TMPFILE | os.O_RDONLY))


def _differs(path: str, slot: str) -> Iterator[Group]:
    from xtreemos.testing.posix.model import like

    yield like(path, slot, "ino", differs=True)


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    parts = (
        _permission_matrix,
        _permission_of_folders,
        _every_mode,
        _flags_by_kind,
        _creating,
        _times,
        _write_only_things,
        _programs,
        _flags_in_use,
    )
    for part in parts:
        yield from part()
