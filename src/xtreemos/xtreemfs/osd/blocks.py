"""Sums of blocks: CRC-32 of each SUM_BYTES of a column, the last one of what there is of it. Pure.

A stored sum is 0 for a block nobody wrote (a hole: it must read as zeros, however long it is); a CRC that happens to be 0 is stored as
NO_ZERO. So a sums file may be sparse, and growing a file by zeros changes at most the sum of what was its last block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from zlib import crc32

from xtreemos.xtreemfs.model import SUM_BYTES

HOLE = 0
NO_ZERO = 0xFFFFFFFF
_ZEROS = bytes(SUM_BYTES)

Buffer = bytes | bytearray | memoryview


@lru_cache(maxsize=4096)
def zero_sum(length: int) -> int:
    """CRC-32 of `length` (<= SUM_BYTES) zeros."""
    return crc32(memoryview(_ZEROS)[:length])


def stored(crc: int) -> int:
    """Return what is stored for a CRC."""
    return crc or NO_ZERO


def fits(sum_: int, crc: int, length: int) -> bool:
    """Tell whether a block of `length` bytes with this CRC is what the stored sum says."""
    return crc == zero_sum(length) if sum_ == HOLE else stored(crc) == sum_


def zeros_after(sum_: int, more: int) -> int:
    """Return the stored sum of a block after `more` zeros were added to it; a hole stays one. Not for NO_ZERO, which may mean two CRCs."""
    return HOLE if sum_ == HOLE else stored(crc32(memoryview(_ZEROS)[:more], sum_))


def parts(at: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a byte range into parts of blocks.

    Yields:
        (block number, first byte inside the block, bytes), ascending, without gaps; nothing for length 0.
    """
    end = at + length
    while at < end:
        block, inside = divmod(at, SUM_BYTES)
        take = min(end - at, SUM_BYTES - inside)
        yield block, inside, take
        at += take


def sums_of(data: Buffer, at: int) -> tuple[int, ...]:
    """Return the CRC-32 of each block part of bytes that lie at `at` in their column: what travels beside them."""
    view = memoryview(data)
    found = []
    cut = 0
    for _block, _inside, take in parts(at, len(view)):
        found.append(crc32(view[cut : cut + take]))
        cut += take
    return tuple(found)
