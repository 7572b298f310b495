"""Claims about unwritten data and readahead, checked against a plain model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xtreemos.xtreemfs.client import dirty, readahead
from xtreemos.xtreemfs.client.dirty import BUCKET_BYTES, DirtyFile

NEAR = st.sampled_from([0, 1, 100, BUCKET_BYTES - 7, BUCKET_BYTES, BUCKET_BYTES + 9, 2 * BUCKET_BYTES - 1])
OFFSETS = st.builds(lambda a, b: a + b, NEAR, st.integers(0, 50))
LENGTHS = st.one_of(st.integers(1, 60), st.sampled_from([dirty.KEEP_BYTES, BUCKET_BYTES, BUCKET_BYTES + 3]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, LENGTHS),
        st.tuples(st.just("take"), st.booleans(), st.integers(1, 4)),
        st.tuples(st.just("land"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("truncate"), OFFSETS, st.just(0)),
        st.tuples(st.just("punch"), OFFSETS, st.integers(1, 80)),
    ),
    max_size=25,
)
SPACE = 4 * BUCKET_BYTES


class Model:
    """An OSD and the truth beside a DirtyFile."""

    def __init__(self) -> None:
        self.file = DirtyFile()
        self.truth = bytearray(SPACE)
        self.osd = bytearray(SPACE)

    def land(self, index: int) -> None:
        if self.file.flying:
            extent = self.file.flying[index % len(self.file.flying)]
            self.osd[extent.start : extent.end] = extent.data
            self.file.landed(extent)

    def land_all(self) -> None:
        while self.file.flying:
            self.land(0)

    def seen(self, offset: int, length: int) -> bytes:
        got = bytearray(self.osd[offset : offset + length])
        for start, data in self.file.overlay(offset, length):
            got[start - offset : start - offset + len(data)] = data
        return bytes(got)


@settings(max_examples=40)
@given(STEPS)
def test_reads_over_unwritten_data_see_the_newest_bytes(steps):
    model = Model()
    for count, (what, first, second) in enumerate(steps):
        if what == "write":
            data = bytes([1 + count]) * second
            model.file.write(first, data)
            model.truth[first : first + second] = data
        elif what == "take":
            flying = list(model.file.flying)
            taken = model.file.take(full_only=first, count_max=second)
            assert len(taken) <= second
            for extent in taken:
                assert not any(f.start < extent.end and extent.start < f.end for f in flying)
                assert len(extent.data) <= BUCKET_BYTES
        elif what == "land":
            model.land(first)
        elif what == "truncate":
            model.land_all()
            model.file.truncate(first)
            model.osd[first:] = bytes(SPACE - first)
            model.truth[first:] = bytes(SPACE - first)
        else:
            model.land_all()
            model.file.punch(first, second)
            model.osd[first : first + second] = bytes(second)
            model.truth[first : first + second] = bytes(second)
        held = list(model.file.extents())
        assert model.file.total_bytes == sum(len(e.data) for e in held)
        assert model.file.cost_bytes == model.file.total_bytes + len(held) * dirty.EXTENT_COST_BYTES
    for edge in {0, *(s[1] for s in steps if s[0] == "write")}:
        assert model.seen(edge, 200) == model.truth[edge : edge + 200]
    while model.file:
        model.file.take()
        model.land_all()
    assert model.osd == model.truth


@given(st.lists(st.tuples(OFFSETS, LENGTHS), max_size=8), OFFSETS, st.integers(1, 100))
def test_covers_tells_whether_every_byte_is_there(writes, offset, length):
    file, marks = DirtyFile(), bytearray(SPACE)
    for at, size in writes:
        file.write(at, bytes(size))
        marks[at : at + size] = b"x" * size
    assert file.covers(offset, length) == (marks[offset : offset + length] == b"x" * length)


def test_small_writes_one_after_another_become_one_extent():
    file = DirtyFile()
    assert [file.write(at, b"y" * 4096) for at in range(0, BUCKET_BYTES, 4096)].index(True) == BUCKET_BYTES // 4096 - 1
    (extent,) = file.take(full_only=True)
    assert (extent.start, len(extent.data)) == (0, BUCKET_BYTES)


def test_a_large_write_is_not_copied():
    file, data = DirtyFile(), memoryview(bytearray(BUCKET_BYTES))
    file.write(0, data)
    (extent,) = file.take()
    assert isinstance(extent.data, memoryview)
    assert extent.data.obj is data.obj


def test_a_stream_is_read_ahead_and_each_block_once():
    planner, wanted = readahead.Planner(), []
    size = 64 << 20
    for at in range(0, size, 128 * 1024):
        wanted += planner.on_read(at, 128 * 1024, size)
    assert wanted == sorted(set(wanted))
    assert wanted[-1] == 63
    assert len(wanted) >= 62
    assert planner.window_bytes == readahead.WINDOW_BYTES_MAX


def test_random_reads_are_not_read_ahead():
    planner = readahead.Planner()
    places = [(n * 7919 % 1000) * (10 << 20) for n in range(1, 200)]
    assert not [b for at in places for b in planner.on_read(at, 4096, 1 << 40)]


@given(st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(1, 1 << 20)), max_size=50), st.integers(0, 1 << 26))
def test_nothing_is_fetched_behind_the_end(reads, size):
    planner = readahead.Planner()
    for offset, length in reads:
        blocks = planner.on_read(offset, length, size)
        assert all(block * readahead.BLOCK_BYTES < size for block in blocks)
        assert len(blocks) <= readahead.WINDOW_BYTES_MAX // readahead.BLOCK_BYTES + 1
