"""Record locks of processes (POSIX), of open files (OFD), and BSD locks: who excludes whom, what ends them. Source: fcntl(2), flock(2)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from errno import EACCES, EAGAIN, EBADF, EDEADLK, EINVAL, EWOULDBLOCK

from xtreemos.testing.posix.model import OTHER, OWNER, Case, Facts, Step, Succeeds, Want, case, do, fails, gives, has

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
NAMES = {R: "read", W: "write"}
BUSY = (EAGAIN, EACCES)
RANGES = {"same": (0, 10, 0, 10), "overlap": (0, 10, 5, 10), "inside": (0, 100, 40, 5), "around": (40, 5, 0, 100), "touching": (0, 10, 10, 10), "apart": (0, 10, 50, 10),
          "to-the-end": (0, 0, 1 << 40, 1), "last-byte": (0, 10, 9, 1), "beyond": (0, 10, 10, 0)}  # fmt: skip


def collide(a: int, a_len: int, b: int, b_len: int) -> bool:
    """Whether two ranges share a byte; length 0 means to the end of all."""
    a_end, b_end = a + a_len if a_len else 1 << 62, b + b_len if b_len else 1 << 62
    return a < b_end and b < a_end


def both(*extra: Step, mode: int = 0o666) -> tuple[Step, ...]:
    """Set-up: `n` is open for reading and writing as `f` in actors a and b."""
    return (
        has("file", "n", mode),
        do("open", "n", os.O_RDWR, actor="a", keep="f"),
        do("open", "n", os.O_RDWR, actor="b", keep="f"),
        *extra,
    )


def begin(call: str, *args: object, actor: str = "b") -> tuple[Step, ...]:
    """A call that must go on waiting."""
    return (Step(call, args, OWNER, actor=actor, phase="begin"), Step(call, args, OWNER, actor=actor, phase="blocked"))


def end(call: str, want: Want = Succeeds(), actor: str = "b") -> Step:  # noqa: B008  # frozen
    """The end of a call that `begin` began."""
    return Step(call, (), OWNER, want, actor=actor, phase="end")


def _matrix() -> Iterator[Case]:
    """Every pair of types on every pair of ranges, for both families."""
    for family in ("", "ofd_"):
        for first in (R, W):
            for second in (R, W):
                for name, (a, a_len, b, b_len) in RANGES.items():
                    clash = collide(a, a_len, b, b_len) and W in {first, second}
                    held = do(f"{family}setlk", "@f", first, a, a_len, actor="a")
                    seen = gives([first, a, a_len] if clash else [U], f"{family}getlk", "@f", second, b, b_len, actor="b")
                    step = (
                        fails(BUSY, f"{family}setlk", "@f", second, b, b_len, actor="b")
                        if clash
                        else do(f"{family}setlk", "@f", second, b, b_len, actor="b")
                    )
                    yield case(f"{family}lock/two-processes/{NAMES[first]}-{NAMES[second]}/{name}", both(), held, seen, step)
                    if clash:
                        free = do(f"{family}setlk", "@f", U, a, a_len, actor="a")
                        yield case(f"{family}lock/waits/{NAMES[first]}-{NAMES[second]}/{name}", both(), held, begin(f"{family}setlkw", "@f", second, b, b_len), free, end(f"{family}setlkw"),
                                   fails(BUSY, f"{family}setlk", "@f", W, b, 1, actor="a"))  # fmt: skip


def _own() -> Iterator[Case]:
    """A process does not exclude itself; a later lock replaces, splits and joins."""
    for first in (R, W):
        for second in (R, W):
            yield case(f"lock/own-is-replaced/{NAMES[first]}-{NAMES[second]}", both(), do("setlk", "@f", first, 0, 100, actor="a"), do("setlk", "@f", second, 20, 10, actor="a"),
                       gives([second, 20, 10] if second != first else [first, 0, 100], "getlk", "@f", W, 20, 10, actor="b"))  # fmt: skip
    yield case("lock/unlock-splits", both(), do("setlk", "@f", W, 0, 100, actor="a"), do("setlk", "@f", U, 40, 20, actor="a"), gives([U], "getlk", "@f", W, 40, 20, actor="b"),
               gives([W, 0, 40], "getlk", "@f", W, 0, 100, actor="b"), gives([W, 60, 40], "getlk", "@f", W, 50, 100, actor="b"))  # fmt: skip
    yield case(
        "lock/neighbours-join",
        both(),
        do("setlk", "@f", W, 0, 10, actor="a"),
        do("setlk", "@f", W, 10, 10, actor="a"),
        gives([W, 0, 20], "getlk", "@f", R, 15, 1, actor="b"),
    )
    yield case(
        "lock/many-ranges",
        both(),
        *(do("setlk", "@f", W, 2 * n, 1, actor="a") for n in range(100)),
        *(do("setlk", "@f", W, 2 * n + 1, 1, actor="b") for n in range(100)),
        gives([W, 198, 1], "getlk", "@f", W, 198, 1, actor="b"),
    )
    yield case(
        "lock/two-descriptors-of-a-process",
        both(do("open", "n", os.O_RDWR, actor="a", keep="g")),
        do("setlk", "@f", W, 0, 10, actor="a"),
        do("setlk", "@g", W, 0, 10, actor="a"),
    )
    yield case(
        "lock/dup-shares",
        both(do("dup", "@f", actor="a", keep="g")),
        do("setlk", "@f", W, 0, 10, actor="a"),
        do("setlk", "@g", U, 0, 10, actor="a"),
        do("setlk", "@f", W, 0, 10, actor="b"),
    )
    yield case(
        "ofd_lock/two-descriptors-of-a-process",
        both(do("open", "n", os.O_RDWR, actor="a", keep="g")),
        do("ofd_setlk", "@f", W, 0, 10, actor="a"),
        fails(BUSY, "ofd_setlk", "@g", W, 0, 10, actor="a"),
    )
    yield case(
        "ofd_lock/dup-shares",
        both(do("dup", "@f", actor="a", keep="g")),
        do("ofd_setlk", "@f", W, 0, 10, actor="a"),
        do("ofd_setlk", "@g", R, 0, 10, actor="a"),
        gives([R, 0, 10], "ofd_getlk", "@f", W, 0, 1, actor="b"),
    )
    for one, two in (("", "ofd_"), ("ofd_", "")):
        yield case(
            f"{one}lock/excludes-the-other-family",
            both(),
            do(f"{one}setlk", "@f", W, 0, 10, actor="a"),
            fails(BUSY, f"{two}setlk", "@f", R, 5, 1, actor="b"),
        )


def _endings() -> Iterator[Case]:
    """What takes locks away, and what leaves them."""
    spare = do("open", "n", os.O_RDWR, actor="a", keep="g")
    for family, goes in (("", True), ("ofd_", False)):
        want = do(f"{family}setlk", "@f", W, 0, 10, actor="b") if goes else fails(BUSY, f"{family}setlk", "@f", W, 0, 10, actor="b")
        yield case(
            f"{family}lock/close-of-another-descriptor/{'ends' if goes else 'leaves'}-it",
            both(spare),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("close", "@g", actor="a"),
            want,
        )
        yield case(
            f"{family}lock/close-ends-it",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("close", "@f", actor="a"),
            do(f"{family}setlk", "@f", W, 0, 10, actor="b"),
        )
        yield case(
            f"{family}lock/death-ends-it",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("die", actor="a"),
            do(f"{family}setlkw", "@f", W, 0, 10, actor="b"),
        )
        yield case(
            f"{family}lock/death-wakes-the-waiting",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            begin(f"{family}setlkw", "@f", W, 0, 10),
            do("die", actor="a"),
            end(f"{family}setlkw"),
        )
        yield case(
            f"{family}lock/close-wakes-the-waiting",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            begin(f"{family}setlkw", "@f", W, 0, 10),
            do("close", "@f", actor="a"),
            end(f"{family}setlkw"),
        )
        yield case(
            f"{family}lock/survives-unlink",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("unlink", "n"),
            fails(BUSY, f"{family}setlk", "@f", W, 0, 10, actor="b"),
        )
        yield case(
            f"{family}lock/survives-rename",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("rename", "n", "m"),
            fails(BUSY, f"{family}setlk", "@f", W, 0, 10, actor="b"),
        )
        yield case(
            f"{family}lock/by-another-name",
            both(),
            do("link", "n", "m"),
            do("open", "m", os.O_RDWR, actor="b", keep="m"),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            fails(BUSY, f"{family}setlk", "@m", W, 0, 10, actor="b"),
        )
        yield case(
            f"{family}lock/does-not-bind-writers",
            both(),
            do(f"{family}setlk", "@f", W, 0, 0, actor="a"),
            gives(3, "write", "@f", b"abc", actor="b"),
            gives(b"abc", "pread", "@f", 9, 0, actor="a"),
        )
        yield case(
            f"{family}lock/refused/write-on-a-reader",
            has("file", "n"),
            do("open", "n", os.O_RDONLY, keep="f"),
            fails(EBADF, f"{family}setlk", "@f", W, 0, 1),
            do(f"{family}setlk", "@f", R, 0, 1),
        )
        yield case(
            f"{family}lock/refused/read-on-a-writer",
            has("file", "n"),
            do("open", "n", os.O_WRONLY, keep="f"),
            fails(EBADF, f"{family}setlk", "@f", R, 0, 1),
            do(f"{family}setlk", "@f", W, 0, 1),
        )
        for start, length in ((-1, 1), (0, -5), (5, -10)):
            yield case(
                f"{family}lock/refused/range/{start}+{length}",
                both(),
                fails(EINVAL, f"{family}setlk", "@f", W, start, length, actor="a"),
            )
        yield case(
            f"{family}lock/length-may-be-negative",
            both(),
            do(f"{family}setlk", "@f", W, 20, -10, actor="a"),
            gives([W, 10, 10], f"{family}getlk", "@f", W, 0, 0, actor="b"),
        )
        yield case(
            f"{family}lock/other-user",
            both(mode=0o666),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do("open", "n", os.O_RDWR, who=OTHER, actor="b", keep="o"),
            fails(BUSY, f"{family}setlk", "@o", W, 0, 10, who=OTHER, actor="b"),
        )
        yield case(f"{family}lock/two-waiters", both(do("open", "n", os.O_RDWR, actor="c", keep="f")), do(f"{family}setlk", "@f", W, 0, 10, actor="a"), begin(f"{family}setlkw", "@f", R, 0, 10), begin(f"{family}setlkw", "@f", R, 0, 10, actor="c"),
                   do(f"{family}setlk", "@f", U, 0, 0, actor="a"), end(f"{family}setlkw"), end(f"{family}setlkw", actor="c"))  # fmt: skip
        yield case(
            f"{family}lock/wait-for-part-only",
            both(),
            do(f"{family}setlk", "@f", W, 0, 10, actor="a"),
            do(f"{family}setlk", "@f", W, 100, 10, actor="a"),
            begin(f"{family}setlkw", "@f", W, 0, 10),
            do(f"{family}setlk", "@f", U, 0, 10, actor="a"),
            end(f"{family}setlkw"),
        )
    yield case(
        "lock/downgrade-wakes",
        both(),
        do("setlk", "@f", W, 0, 10, actor="a"),
        begin("setlkw", "@f", R, 0, 10),
        do("setlk", "@f", R, 0, 10, actor="a"),
        end("setlkw"),
    )
    yield case("lock/deadlock-is-told", both(), do("setlk", "@f", W, 0, 1, actor="a"), do("setlk", "@f", W, 1, 1, actor="b"), begin("setlkw", "@f", W, 0, 1), fails(EDEADLK, "setlkw", "@f", W, 1, 1, actor="a"),
               do("setlk", "@f", U, 0, 1, actor="a"), end("setlkw"))  # fmt: skip


def _bsd() -> Iterator[Case]:
    shared, exclusive, free, now = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB
    names = {shared: "shared", exclusive: "exclusive"}
    for first, one in names.items():
        for second, two in names.items():
            clash = exclusive in {first, second}
            word = f"{one}-{two}"
            held = do("flock", "@f", first, actor="a")
            step = (
                fails(EWOULDBLOCK, "flock", "@f", second | now, actor="b") if clash else do("flock", "@f", second | now, actor="b")
            )
            yield case(f"flock/two-processes/{word}", both(), held, step)
            yield case(f"flock/two-opens/{word}", has("file", "n"), do("open", "n", os.O_RDONLY, keep="f"), do("open", "n", os.O_RDONLY, keep="g"), do("flock", "@f", first),
                       fails(EWOULDBLOCK, "flock", "@g", second | now) if clash else do("flock", "@g", second | now))  # fmt: skip
            yield case(f"flock/converted/{word}", both(), held, do("flock", "@f", second, actor="a"),
                       fails(EWOULDBLOCK, "flock", "@f", shared | now, actor="b") if second == exclusive else do("flock", "@f", shared | now, actor="b"))  # fmt: skip
            yield case(
                f"flock/dup-shares/{word}",
                both(do("dup", "@f", actor="a", keep="g")),
                held,
                do("flock", "@g", second | now, actor="a"),
            )
            if clash:
                for how, release in {
                    "unlock": do("flock", "@f", free, actor="a"),
                    "close": do("close", "@f", actor="a"),
                    "death": do("die", actor="a"),
                }.items():
                    yield case(f"flock/waits-until-{how}/{word}", both(), held, begin("flock", "@f", second), release, end("flock"))
    yield case(
        "flock/close-of-a-dup-leaves-it",
        both(do("dup", "@f", actor="a", keep="g")),
        do("flock", "@f", exclusive, actor="a"),
        do("close", "@g", actor="a"),
        fails(EWOULDBLOCK, "flock", "@f", shared | now, actor="b"),
    )
    yield case(
        "flock/close-of-another-open-leaves-it",
        both(do("open", "n", 0, actor="a", keep="g")),
        do("flock", "@f", exclusive, actor="a"),
        do("close", "@g", actor="a"),
        fails(EWOULDBLOCK, "flock", "@f", shared | now, actor="b"),
    )
    for one, two in (("flock", "setlk"), ("setlk", "flock"), ("flock", "ofd_setlk")):
        args = {"flock": (exclusive | now,), "setlk": (W, 0, 0), "ofd_setlk": (W, 0, 0)}
        yield case(f"{one}/is-apart-from-{two}", both(), do(one, "@f", *args[one], actor="a"), do(two, "@f", *args[two], actor="b"))
    yield case(
        "flock/of-a-folder",
        has("dir", "d", 0o755),
        do("open", "d", os.O_RDONLY, keep="f"),
        do("open", "d", os.O_RDONLY, keep="g"),
        do("flock", "@f", exclusive),
        fails(EWOULDBLOCK, "flock", "@g", exclusive | now),
    )
    yield case("flock/bad-operation", both(), fails(EINVAL, "flock", "@f", 0, actor="a"))
    yield case("flock/closed", fails(EBADF, "flock", 987654, exclusive))
    yield case(
        "flock/needs-no-rights-to-write",
        has("file", "n", 0o444),
        do("open", "n", os.O_RDONLY, keep="f"),
        do("flock", "@f", exclusive),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_matrix, _own, _endings, _bsd):
        yield from part()
