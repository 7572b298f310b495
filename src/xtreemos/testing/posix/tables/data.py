"""Bytes: appending, positions, holes, space, copies, mappings, pipes. Source: IEEE 1003.1; open(2), lseek(2), fallocate(2), copy_file_range(2), mmap(2), fifo(7)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from errno import EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENODEV, ENXIO, EOPNOTSUPP, ESPIPE

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
    like,
    listing,
    mark,
    meets,
    moved,
)
from xtreemos.testing.posix.tables.kit import folder

RW = os.O_RDWR | os.O_CREAT
PAGE = 4096
TEXT = bytes(range(1, 256)) * 80


def opened(flags: int = RW, data: bytes = b"") -> tuple[Step, ...]:
    """Set-up: `n` holds `data` and is open as `f`."""
    return (do("spew", "n", data), do("open", "n", flags, keep="f"))


def ends(data: bytes) -> tuple[Step, ...]:
    return (gives(data, "slurp", "n"), attrs("n", size=len(data)))


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
    for part in (_writing, _appending, _seeking, _space, _copying, _mapping, _pipes, _sizes):
        yield from part()
