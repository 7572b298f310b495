"""Bytes: writing, appending, positions, holes, copies. Source: IEEE 1003.1; open(2), lseek(2), copy_file_range(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF, EINVAL, EISDIR, ENXIO, ESPIPE

from xtreemos.testing.posix.model import (
    OWNER,
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
    meets,
    moved,
)
from xtreemos.testing.posix.tables.kit import PAGE, RW, TEXT, ends, folder, opened


def _writing() -> Iterator[Case]:
    for at in (0, 1, 3, 4095, 4096, 4097, 10000, 131071, 131072, 1 << 20):
        for size in (1, 2, 4096, 5000, 70000):
            data = (TEXT * 4)[:size]
            yield case(
                f"pwrite/at/{at}+{size}",
                opened(data=b"abc"),
                gives(size, "pwrite", "@f", data, at),
                ends(b"abc".ljust(at, b"\0")[:at] + data + b"abc"[at + size :]),
            )
            yield case(
                f"pwrite/reads-back/{at}+{size}",
                opened(),
                do("pwrite", "@f", data, at),
                gives(data, "pread", "@f", size + 10, at),
                gives(b"", "pread", "@f", 10, at + size),
            )
    for size in (0, 1, 4096, 100_000):
        data = (TEXT * 5)[:size]
        yield case(
            f"write/moves-the-position/{size}",
            opened(),
            gives(size, "write", "@f", data),
            gives(size, "lseek", "@f", 0, os.SEEK_CUR),
            ends(data),
        )
        yield case(f"writev/joins/{size}", opened(), gives(size + 3, "writev", "@f", data, b"", b"end"), ends(data + b"end"))
        yield case(
            f"read/moves-the-position/{size}",
            opened(data=data),
            gives(data, "read", "@f", size + 5),
            gives(size, "lseek", "@f", 0, os.SEEK_CUR),
            gives(b"", "read", "@f", 5),
        )
        yield case(
            f"dup/shares-the-position/{size}",
            opened(data=data + b"rest"),
            do("dup", "@f", keep="g"),
            do("lseek", "@f", size, 0),
            gives(b"rest", "read", "@g", 9),
        )
        yield case(
            f"open/positions-are-apart/{size}",
            opened(data=data + b"rest"),
            do("open", "n", os.O_RDONLY, keep="g"),
            do("lseek", "@f", size, 0),
            gives((data + b"rest")[:9], "read", "@g", 9),
        )
    for flags, name in ((os.O_RDONLY, "reading"), (os.O_PATH, "nothing")):
        yield case(
            f"write/open-for-{name}",
            opened(flags, b"abc"),
            fails(EBADF, "write", "@f", b"x"),
            fails(EBADF, "pwrite", "@f", b"x", 0),
            ends(b"abc"),
        )
    yield case(
        "read/open-for-writing", opened(os.O_WRONLY, b"abc"), fails(EBADF, "read", "@f", 1), fails(EBADF, "pread", "@f", 1, 0)
    )
    yield case(
        "pread/negative",
        opened(data=b"abc"),
        fails(EINVAL, "pread", "@f", 1, -1),
        fails(EINVAL, "pwrite", "@f", b"x", -1),
        ends(b"abc"),
    )
    for sync in ("fsync", "fdatasync"):
        yield case(f"{sync}/is-answered", opened(), do("write", "@f", TEXT), do(sync, "@f"), ends(TEXT))
        yield case(f"{sync}/read-only-descriptor", opened(os.O_RDONLY, b"abc"), do(sync, "@f"), ends(b"abc"))
        yield case(f"{sync}/closed", fails(EBADF, sync, 987654))
        yield case(f"{sync}/pipe", has("fifo", "n"), do("open", "n", os.O_RDWR, keep="f"), fails((EINVAL,), sync, "@f"))
    for flag, name in ((os.O_SYNC, "sync"), (os.O_DSYNC, "dsync")):
        yield case(f"open/{name}-writes", do("open", "n", RW | flag, keep="f"), gives(len(TEXT), "write", "@f", TEXT), ends(TEXT))


def _appending() -> Iterator[Case]:
    add = os.O_WRONLY | os.O_APPEND
    yield case("append/pwrite-goes-to-the-end", opened(add, b"abc"), gives(1, "pwrite", "@f", b"x", 0), ends(b"abcx"))
    yield case(
        "append/two-descriptors",
        opened(add),
        do("open", "n", add, keep="g"),
        *(do("write", f"@{'fg'[n % 2]}", b"%d" % n) for n in range(10)),
        ends(b"0123456789"),
    )
    yield case("append/position-is-the-end", opened(add, b"abc"), do("write", "@f", b"de"), gives(5, "lseek", "@f", 0, os.SEEK_CUR))
    yield case("append/after-truncation", opened(add, b"abc"), do("truncate", "n", 1), do("write", "@f", b"z"), ends(b"az"))
    yield case(
        "append/flag-is-set-later",
        opened(os.O_WRONLY, b"abc"),
        do("fcntl", "@f", 4, os.O_APPEND),
        do("write", "@f", b"z"),
        ends(b"abcz"),
    )
    yield case("append/flag-is-taken-away", opened(add, b"abc"), do("fcntl", "@f", 4, 0), do("write", "@f", b"z"), ends(b"zbc"))
    for size in (2, 100, 4096, 9000):
        writers = [Step("append_records", ("n", letter, 60, size), OWNER, actor=letter, phase="begin") for letter in "abc"]
        over = [Step("append_records", (), OWNER, actor=letter, phase="end") for letter in "abc"]
        yield case(
            f"append/whole-records-of-three/{size}",
            has("file", "n"),
            writers,
            over,
            gives({f"{letter}{size - 1}": 60 for letter in "abc"}, "records", "n"),
            attrs("n", size=180 * size),
        )


def _seeking() -> Iterator[Case]:
    for whence, offset, want in (
        (0, 0, 0),
        (0, 5, 5),
        (0, 100, 100),
        (1, 3, 5),
        (1, -2, 0),
        (2, 0, 10),
        (2, -10, 0),
        (2, 7, 17),
        (0, 1 << 40, 1 << 40),
    ):
        yield case(
            f"lseek/to/{whence}/{offset}",
            opened(data=b"0123456789"),
            do("lseek", "@f", 2, 0),
            gives(want, "lseek", "@f", offset, whence),
            attrs("n", size=10),
        )
    for whence, offset in ((0, -1), (1, -3), (2, -11), (9, 0), (-1, 0)):
        yield case(
            f"lseek/refused/{whence}/{offset}",
            opened(data=b"0123456789"),
            do("lseek", "@f", 2, 0),
            fails(EINVAL, "lseek", "@f", offset, whence),
            gives(2, "lseek", "@f", 0, 1),
        )
    yield case("lseek/pipe", has("fifo", "n"), do("open", "n", os.O_RDWR, keep="f"), fails(ESPIPE, "lseek", "@f", 0, 0))
    data, hole = os.SEEK_DATA, os.SEEK_HOLE
    for size in (1, 4096, 10000):
        full = opened(data=TEXT[:size])
        yield case(
            f"lseek/data-of-a-full-file/{size}",
            full,
            gives(0, "lseek", "@f", 0, data),
            gives(size - 1, "lseek", "@f", size - 1, data),
            gives(size, "lseek", "@f", 0, hole),
        )
        for whence in (data, hole):
            yield case(
                f"lseek/behind-the-end/{whence}/{size}",
                full,
                fails(ENXIO, "lseek", "@f", size, whence),
                fails(ENXIO, "lseek", "@f", size + 5, whence),
            )
    yield case("lseek/data-of-an-empty-file", opened(), fails(ENXIO, "lseek", "@f", 0, data), fails(ENXIO, "lseek", "@f", 0, hole))
    mib = 1 << 20
    sparse = (opened(), do("pwrite", "@f", b"x" * PAGE, 4 * mib), do("ftruncate", "@f", 8 * mib), do("fsync", "@f"))
    yield case(
        "lseek/hole-before-data",
        sparse,
        gives(0, "lseek", "@f", 0, hole),
        gives(4 * mib, "lseek", "@f", 0, data),
        meets("at most the data's start", lambda v: isinstance(v, int) and 0 < v <= 4 * mib, "lseek", "@f", mib, data),
    )
    yield case(
        "lseek/hole-behind-data",
        sparse,
        meets("within the hole", lambda v: isinstance(v, int) and 4 * mib < v <= 5 * mib, "lseek", "@f", 4 * mib, hole),
        fails(ENXIO, "lseek", "@f", 7 * mib, data),
    )
    yield case(
        "lseek/holes-cost-little",
        sparse,
        meets("few blocks", lambda v: isinstance(v, dict) and v["blocks"] * 512 < 4 * mib, "lstat", "n"),
    )


def _copying() -> Iterator[Case]:
    for source, target, count in (
        (0, 0, 10),
        (5, 0, 100),
        (0, 7, 4096),
        (4096, 8192, 8192),
        (100, 20000, 300),
        (0, 0, 20000),
        (19999, 0, 50),
        (20000, 0, 50),
        (0, 100000, 5),
    ):
        chunk = TEXT[:20000][source : source + count]
        want = (
            (TEXT[::-1][:9000].ljust(target, b"\0")[:target] + chunk + TEXT[::-1][:9000][target + len(chunk) :])
            if chunk
            else TEXT[::-1][:9000]
        )
        two = (do("spew", "m", TEXT[:20000]), do("open", "m", os.O_RDONLY, keep="m"), opened(data=TEXT[::-1][:9000]))
        yield case(
            f"copy_file_range/{source}-{target}+{count}",
            two,
            gives(len(chunk), "copy_file_range", "@m", "@f", count, source, target),
            ends(want),
            gives(0, "lseek", "@f", 0, 1),
        )
    yield case(
        "copy_file_range/positions-move",
        do("spew", "m", b"0123456789"),
        do("open", "m", os.O_RDONLY, keep="m"),
        opened(),
        do("lseek", "@m", 4, 0),
        gives(6, "copy_file_range", "@m", "@f", 99, None, None),
        ends(b"456789"),
        gives(6, "lseek", "@f", 0, 1),
        gives(10, "lseek", "@m", 0, 1),
    )
    yield case(
        "copy_file_range/within-a-file",
        opened(data=b"0123456789"),
        gives(3, "copy_file_range", "@f", "@f", 3, 0, 7),
        ends(b"0123456012"),
    )
    yield case(
        "copy_file_range/overlap",
        opened(data=b"0123456789"),
        fails(EINVAL, "copy_file_range", "@f", "@f", 5, 0, 3),
        ends(b"0123456789"),
    )
    yield case(
        "copy_file_range/target-not-for-writing",
        do("spew", "m", b"abc"),
        do("open", "m", os.O_RDONLY, keep="m"),
        opened(os.O_RDONLY, b"xyz"),
        fails(EBADF, "copy_file_range", "@m", "@f", 3, 0, 0),
        ends(b"xyz"),
    )
    yield case(
        "copy_file_range/source-not-for-reading",
        do("spew", "m", b"abc"),
        do("open", "m", os.O_WRONLY, keep="m"),
        opened(data=b"xyz"),
        fails(EBADF, "copy_file_range", "@m", "@f", 3, 0, 0),
        ends(b"xyz"),
    )
    yield case(
        "copy_file_range/target-for-appending",
        do("spew", "m", b"abc"),
        do("open", "m", os.O_RDONLY, keep="m"),
        opened(os.O_WRONLY | os.O_APPEND, b"xyz"),
        fails(EBADF, "copy_file_range", "@m", "@f", 3, None, None),
        ends(b"xyz"),
    )
    yield case(
        "copy_file_range/of-a-folder",
        folder("d"),
        do("open", "d", os.O_RDONLY, keep="m"),
        opened(),
        fails(EISDIR, "copy_file_range", "@m", "@f", 3, None, None),
    )
    yield case(
        "copy_file_range/of-a-pipe",
        has("fifo", "p"),
        do("open", "p", os.O_RDWR, keep="m"),
        opened(),
        fails(EINVAL, "copy_file_range", "@m", "@f", 3, None, None),
    )
    yield case(
        "copy_file_range/moves-times",
        do("spew", "m", b"abc"),
        do("open", "m", os.O_RDONLY, keep="m"),
        opened(),
        mark("n"),
        do("copy_file_range", "@m", "@f", 3, 0, 0),
        moved("n", "mc"),
    )
    for count in (1, 4096, 20000):
        yield case(
            f"sendfile/to-a-file/{count}",
            do("spew", "m", TEXT[:20000]),
            do("open", "m", os.O_RDONLY, keep="m"),
            opened(),
            gives(count, "sendfile", "@f", "@m", 0, count),
            ends(TEXT[:count]),
        )
        yield case(
            f"sendfile/from-memory/{count}",
            do("open_memory", TEXT[:20000], keep="m"),
            opened(),
            gives(count, "sendfile", "@f", "@m", 0, count),
            ends(TEXT[:count]),
        )


def cases(_facts: Facts) -> Iterator[Case]:
    """Cases of this table."""
    for part in (_writing, _appending, _seeking, _copying):
        yield from part()
