"""Claims about what a mount process leaves to the one that takes its place."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.xtreemfs.client import ledger as module
from xtreemos.xtreemfs.client.ledger import LEDGER_BYTES, Ledger
from xtreemos.xtreemfs.client.lockbook import LockBook
from xtreemos.xtreemfs.protocol import LockRow


def memory():
    return mmap.mmap(-1, LEDGER_BYTES)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["know", "forget", "note_dirty", "note_clean"]), st.integers(1, 6)),
        st.tuples(st.just("open"), st.integers(1, 6), st.integers(1, 1 << 63), st.integers(0, 1 << 31)),
        st.tuples(st.sampled_from(["close", "end_pass"]), st.integers(1, 6)),
        st.tuples(st.just("pass_by"), st.integers(1, 6), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_next_process_reads_what_the_former_one_knew(steps):
    kept = memory()
    ledger = Ledger(kept)
    known, dirty, files, passed = set(), set(), {}, {}
    for step, first, *more in steps:
        getattr(ledger, step)(first, *more)
        match step:
            case "know":
                known.add(first)
            case "forget":
                known.discard(first)
            case "note_dirty":
                dirty.add(first)
            case "note_clean":
                dirty.discard(first)
            case "open":
                files.setdefault(first, tuple(more))
            case "close":
                files.pop(first, None)
            case "pass_by":
                passed[first] = more[0]
            case _:
                passed.pop(first, None)
    after = Ledger(kept)
    assert (set(after.inodes()), after.dirty(), after.passed()) == (known, dirty, passed)
    assert {fh: (ino, flags) for fh, ino, flags in after.files()} == files
    assert (ledger.generation, after.generation, Ledger(kept).generation) == (0, 1, 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2), st.integers(0, 20), st.integers(0, 10), st.booleans()), max_size=25))
def test_locks_are_left_as_the_book_has_them(steps):
    kept = memory()
    book = LockBook(Ledger(kept))
    for lock, owner, start, length, write in steps:
        if lock:
            book.add("m", LockRow(5, "p", owner, start, start + length, write, 1), fh=owner << 40)
        else:
            book.remove("m", 5, "p", owner, start, start + length)
    left = Ledger(kept).locks()
    assert sorted(map(str, (row for _fh, row in left))) == sorted(map(str, book.rows("m")))
    assert all(fh == row.owner << 40 for fh, row in left)


def test_a_row_that_was_being_written_is_not_there():
    kept = memory()
    ledger = Ledger(kept)
    ledger.know(5)
    ledger.know(6)
    kept[2 * 48 + 47] = 0  # of the second row the kind, which is its last byte, is still to come
    assert Ledger(kept).inodes() == [5]


def test_places_are_used_again():
    ledger = Ledger(kept := memory())
    for ino in range(1, 1000):
        ledger.know(ino)
        ledger.forget(ino)
    ledger.know(7)
    assert (Ledger(kept).inodes(), kept[12:16]) == ([7], (2).to_bytes(4, "little"))


def test_what_did_not_fit_is_not_taken_over_in_part(monkeypatch):
    monkeypatch.setattr(module, "SLOTS_MAX", 3)
    ledger = Ledger(kept := memory())
    for ino in (1, 2, 3):
        ledger.know(ino)
    ledger.forget(3)
    with pytest.raises(ValueError, match="cannot be taken over"):
        Ledger(kept)
