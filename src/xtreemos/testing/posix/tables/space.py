"""Space and memory: fallocate, mappings, pipes, sizes. Source: fallocate(2), mmap(2), fifo(7), statvfs(3)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENODEV, EOPNOTSUPP, ESPIPE

from xtreemos.testing.posix.libc import FALLOC_COLLAPSE, FALLOC_INSERT, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO
from xtreemos.testing.posix.model import (
    OWNER,
    Case,
    Facts,
    Has,
    Step,
    attrs,
    case,
    do,
    fails,
    gives,
    has,
    in_process,
    like,
    listing,
    mark,
    meets,
    moved,
)
from xtreemos.testing.posix.tables.kit import PAGE, TEXT, ends, folder, opened


def _space() -> Iterator[Case]:
    for offset, length in ((0, 1), (0, 4096), (100, 10), (5000, 5000), (0, 1 << 20)):
        size = max(300, offset + length)
        yield case(
            f"fallocate/grows/{offset}+{length}",
            opened(data=TEXT[:300]),
            do("fallocate", "@f", 0, offset, length),
            ends(TEXT[:300].ljust(size, b"\0")),
        )
        yield case(
            f"fallocate/keep-size/{offset}+{length}",
            opened(data=TEXT[:300]),
            do("fallocate", "@f", FALLOC_KEEP_SIZE, offset, length),
            ends(TEXT[:300]),
        )
        yield case(
            f"posix_fallocate/grows/{offset}+{length}",
            opened(data=TEXT[:300]),
            do("posix_fallocate", "@f", offset, length),
            ends(TEXT[:300].ljust(size, b"\0")),
        )
    punch = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
    body = TEXT[:20000]
    for offset, length in (
        (0, 1),
        (0, 4096),
        (1, 4095),
        (100, 300),
        (4096, 8192),
        (4000, 9000),
        (19999, 1),
        (19000, 5000),
        (20000, 4096),
        (50000, 10),
        (0, 20000),
    ):
        zeroed = body[:offset] + b"\0" * max(0, min(length, 20000 - offset)) + body[offset + length :]
        yield case(
            f"fallocate/punch/{offset}+{length}",
            opened(data=body),
            mark("n"),
            do("fallocate", "@f", punch, offset, length),
            ends(zeroed[:20000]),
        )
        grown = zeroed[:20000].ljust(max(20000, offset + length), b"\0")
        yield case(
            f"fallocate/zero/{offset}+{length}", opened(data=body), do("fallocate", "@f", FALLOC_ZERO, offset, length), ends(grown)
        )
        yield case(
            f"fallocate/zero-keep-size/{offset}+{length}",
            opened(data=body),
            do("fallocate", "@f", FALLOC_ZERO | FALLOC_KEEP_SIZE, offset, length),
            ends(zeroed[:20000]),
        )
    yield case(
        "fallocate/punch-frees-space",
        opened(data=b"x" * (1 << 20)),
        do("fsync", "@f"),
        do("fallocate", "@f", punch, 0, 1 << 20),
        do("fsync", "@f"),
        meets("few blocks", lambda v: isinstance(v, dict) and v["blocks"] < 512, "lstat", "n"),
    )
    yield case(
        "fallocate/collapse",
        opened(data=body + b"x" * 480),
        do("fallocate", "@f", FALLOC_COLLAPSE, 4096, 8192),
        ends((body + b"x" * 480)[:4096] + (body + b"x" * 480)[12288:]),
    )
    yield case(
        "fallocate/insert",
        opened(data=body),
        do("fallocate", "@f", FALLOC_INSERT, 4096, 8192),
        ends(body[:4096] + b"\0" * 8192 + body[4096:]),
    )
    for mode in (0, FALLOC_KEEP_SIZE, punch, FALLOC_ZERO):
        for offset, length in ((-1, 10), (0, 0), (0, -1)):
            yield case(
                f"fallocate/refused/{mode}/{offset}+{length}",
                opened(data=b"abc"),
                fails(EINVAL, "fallocate", "@f", mode, offset, length),
                ends(b"abc"),
            )
        yield case(
            f"fallocate/not-for-writing/{mode}",
            opened(os.O_RDONLY, b"abc"),
            fails(EBADF, "fallocate", "@f", mode, 0, 9),
            ends(b"abc"),
        )
        yield case(
            f"fallocate/too-far/{mode}",
            opened(data=b"abc"),
            fails((EFBIG, EINVAL), "fallocate", "@f", mode, (1 << 63) - 10, 100),
            ends(b"abc"),
        )
        yield case(
            f"fallocate/of-a-folder/{mode}",
            folder("d"),
            do("open", "d", os.O_RDONLY, keep="f"),
            fails((EBADF, EISDIR, ENODEV), "fallocate", "@f", mode, 0, 9),
        )
        yield case(
            f"fallocate/of-a-pipe/{mode}",
            has("fifo", "n"),
            do("open", "n", os.O_RDWR, keep="f"),
            fails((ESPIPE, ENODEV), "fallocate", "@f", mode, 0, 9),
        )
    yield case(
        "fallocate/moves-times",
        opened(data=b"abc"),
        mark("n"),
        do("fallocate", "@f", 0, 0, 9999),
        moved("n", "c", same=""),
        attrs("n", size=9999),
    )
    yield case("fallocate/punch-moves-times", opened(data=body), mark("n"), do("fallocate", "@f", punch, 0, 9), moved("n", "mc"))
    yield case(
        "fallocate/unknown-mode", opened(data=b"abc"), fails((EOPNOTSUPP, EINVAL), "fallocate", "@f", 1 << 20, 0, 9), ends(b"abc")
    )
    yield case(
        "fallocate/punch-without-keep-size",
        opened(data=b"abc"),
        fails((EOPNOTSUPP, EINVAL), "fallocate", "@f", FALLOC_PUNCH_HOLE, 0, 2),
        ends(b"abc"),
    )


def _mapping() -> Iterator[Case]:
    both, shared, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, mmap.MAP_PRIVATE
    size = 3 * PAGE
    for at in (0, 1, PAGE - 1, PAGE, 2 * PAGE + 5):
        page = TEXT[:size]
        changed = page[:at] + b"ZZZ" + page[at + 3 :]
        yield case(
            f"mmap/poke-is-read/{at}",
            opened(data=page),
            do("mmap", "@f", size, shared, both),
            do("poke", at, b"ZZZ"),
            gives(b"ZZZ", "pread", "@f", 3, at),
            ends(changed),
        )
        yield case(
            f"mmap/write-is-seen/{at}",
            opened(data=page),
            do("mmap", "@f", size, shared, both),
            gives(page[at : at + 3], "peek", at, 3),
            do("pwrite", "@f", b"YYY", at),
            gives(b"YYY", "peek", at, 3),
        )
        yield case(
            f"mmap/synced/{at}",
            opened(data=page),
            do("mmap", "@f", size, shared, both),
            do("poke", at, b"ZZZ"),
            do("msync"),
            do("munmap"),
            ends(changed),
        )
        yield case(
            f"mmap/private-stays-private/{at}",
            opened(data=page),
            do("mmap", "@f", size, private, both),
            do("poke", at, b"ZZZ"),
            gives(b"ZZZ", "peek", at, 3),
            ends(page),
        )
    yield case(
        "mmap/outlives-the-descriptor",
        opened(data=TEXT[:size]),
        do("mmap", "@f", size, shared, both),
        do("close", "@f"),
        do("poke", 5, b"ZZZ"),
        do("munmap"),
        gives(TEXT[:5] + b"ZZZ" + TEXT[8:size], "slurp", "n"),
    )
    yield case(
        "mmap/outlives-the-name",
        opened(data=TEXT[:size]),
        do("mmap", "@f", size, shared, both),
        do("unlink", "n"),
        gives(TEXT[:9], "peek", 0, 9),
    )
    yield case("mmap/behind-the-end-is-zero", opened(data=b"abc"), do("mmap", "@f", 3, shared, both), gives(b"abc", "peek", 0, 3))
    yield case(
        "mmap/not-for-writing",
        opened(os.O_RDONLY, TEXT[:size]),
        fails(EACCES, "mmap", "@f", size, shared, both),
        do("mmap", "@f", size, private, both),
    )
    yield case("mmap/not-for-reading", opened(os.O_WRONLY, TEXT[:size]), fails(EACCES, "mmap", "@f", size, shared, mmap.PROT_READ))
    yield case(
        "mmap/of-a-folder",
        folder("d"),
        do("open", "d", os.O_RDONLY, keep="f"),
        fails((ENODEV, EACCES), "mmap", "@f", PAGE, shared, mmap.PROT_READ),
    )
    yield case(
        "mmap/moves-mtime",
        opened(data=TEXT[:size]),
        do("mmap", "@f", size, shared, both),
        mark("n"),
        do("poke", 0, b"ZZZ"),
        do("msync"),
        do("munmap"),
        do("fsync", "@f"),
        moved("n", "mc"),
    )
    yield case("mmap/other-process-sees-it", opened(data=TEXT[:size]), do("open", "n", os.O_RDWR, actor="a", keep="g"), do("mmap", "@f", size, shared, both), do("poke", 0, b"ZZZ"),
               gives(b"ZZZ", "pread", "@g", 3, 0, actor="a"), do("pwrite", "@g", b"YYY", 9, actor="a"), gives(b"YYY", "peek", 9, 3))  # fmt: skip


def _pipes() -> Iterator[Case]:
    place = has("fifo", "n", 0o666)
    reader, writer = os.O_RDONLY, os.O_WRONLY
    meet = (place, Step("open", ("n", reader), OWNER, actor="r", phase="begin", keep="f"), Step("open", (), OWNER, actor="r", phase="blocked"), do("open", "n", writer, actor="w", keep="f"),
            Step("open", (), OWNER, actor="r", phase="end"))  # fmt: skip
    yield case(
        "fifo/open-waits-for-the-other-end",
        meet,
        gives(3, "write", "@f", b"abc", actor="w"),
        gives(b"abc", "read", "@f", 9, actor="r"),
    )
    yield case("fifo/end-of-file-after-the-last-writer", meet, do("close", "@f", actor="w"), gives(b"", "read", "@f", 9, actor="r"))
    yield case("fifo/no-reader-breaks-the-pipe", meet, do("close", "@f", actor="r"), fails(32, "write", "@f", b"x", actor="w"))
    yield case(
        "fifo/read-waits-for-bytes",
        meet,
        Step("read", ("@f", 9), OWNER, actor="r", phase="begin"),
        Step("read", (), OWNER, actor="r", phase="blocked"),
        do("write", "@f", b"late", actor="w"),
        Step("read", (), OWNER, actor="r", phase="end"),
    )
    yield case("fifo/writer-waits-too", place, Step("open", ("n", writer), OWNER, actor="w", phase="begin", keep="f"), Step("open", (), OWNER, actor="w", phase="blocked"), do("open", "n", reader, keep="g"),
               Step("open", (), OWNER, actor="w", phase="end"), do("write", "@f", b"abc", actor="w"), gives(b"abc", "read", "@g", 9))  # fmt: skip
    yield case(
        "fifo/nothing-is-stored",
        place,
        do("open", "n", os.O_RDWR, keep="f"),
        do("write", "@f", b"abc"),
        attrs("n", size=0, kind="fifo"),
        gives(b"abc", "read", "@f", 9),
    )
    yield case(
        "fifo/not-waiting",
        place,
        do("open", "n", reader | os.O_NONBLOCK, keep="f"),
        do("open", "n", writer, keep="g"),
        fails(11, "read", "@f", 9),
        do("write", "@g", b"x"),
        gives(b"x", "read", "@f", 9),
    )
    yield case(
        "fifo/two-names-one-pipe",
        place,
        do("link", "n", "m"),
        do("open", "n", os.O_RDWR, keep="f"),
        do("open", "m", os.O_RDWR, keep="g"),
        do("write", "@f", b"abc"),
        gives(b"abc", "read", "@g", 9),
    )
    yield case(
        "fifo/renamed-pipe-goes-on",
        place,
        do("open", "n", os.O_RDWR, keep="f"),
        do("rename", "n", "m"),
        do("open", "m", os.O_RDWR, keep="g"),
        do("write", "@f", b"abc"),
        gives(b"abc", "read", "@g", 9),
    )


def _sizes() -> Iterator[Case]:
    yield case(
        "statvfs/is-told",
        Step("statvfs", (".",), OWNER, Has({"name_max": 255})),
        meets(
            "sane numbers", lambda v: isinstance(v, dict) and v["blocks"] >= v["free"] >= 0 and v["block"] >= 512, "statvfs", "."
        ),
    )
    yield case("stat/new-file-is-small", has("file", "n"), attrs("n", size=0, blocks=0))
    yield case("stat/symlink-size-is-its-target", do("symlink", "x" * 100, "n"), attrs("n", size=100))
    yield case(
        "stat/a-megabyte-takes-blocks",
        do("spew", "n", b"x" * (1 << 20)),
        do("open", "n", os.O_RDWR, keep="f"),
        do("fsync", "@f"),
        meets("a megabyte of blocks", lambda v: isinstance(v, dict) and v["blocks"] * 512 >= 1 << 20, "lstat", "n"),
    )
    yield case(
        "stat/number-is-stable",
        do("spew", "n", b"x"),
        do("lstat", "n", keep="b"),
        do("rename", "n", "m"),
        do("spew", "m", b"yy"),
        like("m", "b", "ino", "dev"),
        listing(".", "m"),
    )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    yield from _space()
    yield from (in_process(one, "m") for one in _mapping())
    yield from _pipes()
    yield from _sizes()
