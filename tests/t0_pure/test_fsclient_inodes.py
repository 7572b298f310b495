"""Claims about what the client keeps of inodes, names and locks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xtreemos.xtreemfs.client.inodes import Changed, Inode, Inodes, Listed, overlaps, without
from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.client.lockbook import LockBook
from xtreemos.xtreemfs.model import Attr, Level
from xtreemos.xtreemfs.protocol import ListedEntry, LockRow

FILE = Attr(5, 0o100644, 1, 0, 0, 10, 8, 0, 100, 100, 100, 100, 1)
FOLDER = Attr(6, 0o40755, 2, 0, 0, 4096, 8, 0, 100, 100, 100, 100, 1)


def newer(attr: Attr, **changes: int) -> Attr:
    return Attr(*[changes.get(name, getattr(attr, name)) for name in Attr.__struct_fields__[:-1]], attr.version + 1)


def test_older_attributes_do_not_replace_newer_ones():
    inode = Inode(5, newer(FILE, size=20))
    inode.take_attr(FILE)
    assert inode.size == 20


def test_own_changes_stay_on_top_until_they_are_told():
    inode = Inode(5, FILE)
    inode.size, inode.mtime_ns = 50, 200
    inode.changed = Changed.SIZE | Changed.MTIME
    inode.take_attr(newer(FILE, size=10, mode=0o100600))
    assert (inode.size, inode.mtime_ns, inode.mode) == (50, 200, 0o100600)
    update = inode.update(epoch=3)
    assert update is not None
    assert (update.size, update.mtime_ns, update.ctime_ns, update.epoch) == (50, 200, -1, 3)
    inode.size = 60
    inode.told(update)
    assert inode.changed == Changed.SIZE
    inode.forget_changes()
    assert inode.size == 60


def test_what_is_in_no_complete_directory_is_absent_unless_it_is_doubtful():
    folder = Inode(6, FOLDER)
    folder.keep_name(b"a", 7)
    assert (folder.find_name(b"a"), folder.find_name(b"b")) == (7, None)
    folder.know_all([ListedEntry(b"a", 1, 7, 0o100644)])
    assert (folder.find_name(b"a"), folder.find_name(b"b")) == (7, 0)
    folder.drop(Level.READ, (b"a", b"b"))
    assert (folder.find_name(b"a"), folder.find_name(b"b"), folder.find_name(b"c")) == (None, None, 0)
    folder.keep_name(b"b", 9)
    assert folder.find_name(b"b") == 9
    folder.drop(Level.NONE, ())
    assert folder.find_name(b"c") is None


def test_a_listing_goes_on_behind_any_cookie():
    listed = Listed(tuple(ListedEntry(b"%d" % n, n * 3, n, 0o100644) for n in range(1, 10)), 1)
    assert [row.cookie for row in listed.after(10)] == [12, 15, 18, 21, 24, 27]
    assert [row.cookie for row in listed.after(27)] == []


def test_the_idle_are_given_up_oldest_first_and_the_busy_never():
    inodes = Inodes()
    for number in range(1, 101):
        inodes.take(Attr(number, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)).lookups = number % 2
    given = inodes.idle(count_max=90)
    assert [inode.ino for inode in given] == [2 * n for n in range(1, 20)]
    assert not inodes.idle(count_max=100)


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda t: (t[0], t[0] + t[1])), max_size=6)


@given(SPANS, SPANS)
def test_ranges_less_holes_are_what_no_page_of_a_hole_touches(whole, holes):
    unit = 8
    left = without(whole, holes, unit)
    paged = {at for begin, end in holes for at in range(begin // unit * unit, -(-end // unit) * unit)}
    assert {at for span in left for at in range(*span)} == {at for span in whole for at in range(*span)} - paged
    assert not any(overlaps(span, holes) for span in left)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 10)), max_size=20))
def test_the_lock_book_has_every_locked_byte_once(steps):
    book, model = LockBook(Ledger()), {}
    for count, (lock, start, length) in enumerate(steps):
        end = start + length
        if lock:
            book.add("m", LockRow(5, "p", 1, start, end, True, count), fh=7)
            model.update(dict.fromkeys(range(start, end + 1), count))
        else:
            book.remove("m", 5, "p", 1, start, end)
            model = {at: pid for at, pid in model.items() if not start <= at <= end}
    assert sorted((at, row.pid) for row in book.rows("m") for at in range(row.start, row.end + 1)) == sorted(model.items())
    assert book.has("m", 5, "p", 1) == bool(model)
    assert book.rows("other") == ()


def test_an_owner_that_lost_a_lock_is_known_until_it_closes():
    book = LockBook(Ledger())
    row = LockRow(5, "p", 1, 0, 9, True, 1)
    book.add("m", row, fh=7)
    book.lose("m", row)
    assert book.is_lost(5, {("p", 1)})
    assert not book.is_lost(5, {("p", 2)})
    book.forgive(5, {("p", 1)})
    assert not book.is_lost(5, {("p", 1)})
