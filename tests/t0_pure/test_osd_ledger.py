"""Marks of columns: never cleaner than the column is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.xtreemfs.osd import blocks
from xtreemos.xtreemfs.osd.ledger import Ledger
from xtreemos.xtreemfs.osd.model import Key, Mark, data_name, folders_with, key_of, sums_name

KEY = Key(1 << 40 | 7, 0)


def changed(ledger, now_s=0.0):
    ledger.marked(KEY)
    ledger.changed(KEY, now_s)


def test_a_clean_column_needs_a_durable_dirty_mark_before_its_first_change_and_only_then():
    ledger = Ledger()
    assert ledger.mark_needed(KEY, Mark(clean=True, length=5))
    changed(ledger)
    assert not ledger.mark_needed(KEY, Mark(clean=True, length=5))


def test_a_column_that_was_never_synced_needs_no_mark():
    assert not Ledger().mark_needed(KEY, None)


def test_a_change_without_a_mark_is_a_bug():
    with pytest.raises((AssertionError, KeyError)):
        Ledger().changed(KEY, 0.0)


def test_only_what_was_synced_after_its_last_change_settles():
    ledger = Ledger()
    changed(ledger)
    ledger.finished(KEY)
    before = ledger.changes(KEY)
    changed(ledger)
    ledger.finished(KEY)
    ledger.synced(KEY, before)
    assert ledger.settling(1.0) == []
    ledger.synced(KEY, ledger.changes(KEY))
    assert ledger.settling(1.0) == [KEY]


def test_a_sync_beside_a_change_that_is_under_way_does_not_cover_it():
    ledger = Ledger()
    changed(ledger)  # begun, not ended
    assert ledger.unsynced(1.0) == {KEY: 0}
    ledger.synced(KEY, ledger.changes(KEY))
    ledger.finished(KEY)
    assert ledger.settling(1.0) == []


def test_a_column_being_settled_may_not_change_and_is_clean_afterwards():
    ledger = Ledger()
    changed(ledger)
    ledger.finished(KEY)
    ledger.synced(KEY, 1)
    ledger.settling(1.0)
    assert ledger.is_settling(KEY)
    with pytest.raises(AssertionError):
        ledger.changed(KEY, 2.0)
    ledger.settled([KEY], durable=True)
    assert len(ledger) == 0
    assert ledger.mark_needed(KEY, Mark(clean=True, length=1))


def test_after_a_clean_mark_that_may_or_may_not_be_durable_a_dirty_one_is_needed():
    ledger = Ledger()
    changed(ledger)
    ledger.finished(KEY)
    ledger.synced(KEY, 1)
    ledger.settling(1.0)
    ledger.settled([KEY], durable=False)
    assert ledger.mark_needed(KEY, None)


def test_lent_and_young_columns_do_not_settle():
    ledger = Ledger()
    changed(ledger, now_s=5.0)
    ledger.finished(KEY)
    ledger.synced(KEY, 1)
    assert ledger.settling(4.9) == []
    ledger.lend(KEY, lent=True)
    assert ledger.settling(9.0) == []
    assert ledger.lent() == [KEY]
    ledger.lend(KEY, lent=False)
    assert ledger.settling(9.0) == [KEY]


@given(st.integers(0, 2**63), st.integers(0, 63))
def test_names_of_columns_are_read_back_and_sums_are_no_columns(ino, column):
    key = Key(ino, column)
    assert key_of(data_name(key)) == key
    assert key_of(sums_name(key)) is None
    folder = data_name(key).partition("/")[0]
    together = folders_with(folder)
    assert folder in together
    assert all(folders_with(name) == together for name in together)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 17))
def test_parts_of_blocks_are_the_range(at, length):
    found = list(blocks.parts(at, length))
    assert sum(take for _block, _inside, take in found) == length
    assert all(take > 0 and inside + take <= 16384 for _block, inside, take in found)
    place = at
    for block, inside, take in found:
        assert block * 16384 + inside == place
        place += take


def test_a_hole_fits_zeros_of_any_length_and_nothing_else():
    assert blocks.fits(blocks.HOLE, blocks.zero_sum(100), 100)
    assert not blocks.fits(blocks.HOLE, blocks.zero_sum(100) ^ 1, 100)
    assert blocks.fits(blocks.stored(0), 0, 5)
    assert not blocks.fits(blocks.stored(7), 8, 5)
