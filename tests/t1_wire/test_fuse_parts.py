"""The small parts of the FUSE layer: buffers, lookup counts, access lists; and those of the file system in memory."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.testing.fusekit_locks import TO_END, Held, LockTable
from xtreemos.testing.fusekit_sparse import BLOCK_BYTES, Sparse
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse.buffers import IDLE_MAX, BufferPool, is_free
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.nodes import NodeTable

# buffers


def test_a_buffer_is_used_again_once_nobody_looks_into_it():
    pool = BufferPool(8192)
    buffer = pool.take()
    pool.give_back(buffer)
    assert pool.take() is buffer
    assert pool.made == 1


def test_a_buffer_that_a_slice_looks_into_is_not_used_again():
    pool = BufferPool(8192)
    buffer = pool.take()
    kept = memoryview(buffer)[80:90][2:4]
    pool.give_back(buffer)
    assert not is_free(buffer)
    assert pool.take() is not buffer
    kept.release()
    assert is_free(buffer)
    assert len(buffer) == 8192


def test_the_pool_keeps_only_so_many():
    pool = BufferPool(8192)
    for buffer in [pool.take() for _ in range(IDLE_MAX + 5)]:
        pool.give_back(buffer)
    assert len(pool._idle) == IDLE_MAX


# lookup counts


@given(st.lists(st.tuples(st.integers(2, 5), st.integers(-3, 1))))
def test_a_node_is_known_exactly_while_the_kernel_holds_counts(steps):
    table, counts = NodeTable("root"), {}
    for nodeid, step in steps:
        if step > 0:
            table.looked_up(nodeid, f"node {nodeid}")
            counts[nodeid] = counts.get(nodeid, 0) + 1
        elif step < 0 and counts.get(nodeid, 0) >= -step:
            counts[nodeid] += step
            gone = table.forget(nodeid, -step)
            assert gone == (f"node {nodeid}" if counts[nodeid] == 0 else None)
        for known, held in counts.items():
            assert (known in table) == (held > 0)
            assert table.count(known) == held


def test_the_root_is_never_forgotten():
    table = NodeTable("root")
    table.looked_up(1, "root")
    assert table.forget(1, 5) is None
    assert table.get(1) == "root"


def test_an_unknown_node_is_stale():
    with pytest.raises(FuseError, match="ESTALE"):
        NodeTable("root").get(7)


# access lists

USERS = st.lists(
    st.tuples(st.sampled_from([acl.USER, acl.GROUP]), st.integers(0, 7), st.integers(0, 9)),
    max_size=5,
    unique_by=lambda r: (r[0], r[2]),
)


@st.composite
def lists(draw):
    named = draw(USERS)
    base = [(tag, draw(st.integers(0, 7)), acl.NO_ID) for tag in (acl.USER_OBJ, acl.GROUP_OBJ, acl.OTHER)]
    mask = [(acl.MASK, draw(st.integers(0, 7)), acl.NO_ID)] if named or draw(st.booleans()) else []
    return tuple(sorted([*base, *named, *mask], key=lambda row: (row[0], row[2])))


@given(lists())
def test_an_access_list_survives_its_encoding(rows):
    assert acl.decode(acl.encode(rows)) == rows


@given(st.binary(max_size=60))
def test_bytes_that_are_no_access_list_are_a_value_error(raw):
    try:
        acl.decode(raw)
    except ValueError:
        return
    assert raw[:4] == struct.pack("<I", 2)


@given(lists(), st.integers(0, 0o7777))
def test_chmod_and_the_list_agree_on_the_mode(rows, mode):
    assert acl.mode_of(acl.with_mode(rows, mode), mode) == mode


@given(lists(), st.integers(0, 0o777), st.integers(0, 0o777))
def test_what_inherits_a_list_gets_no_more_than_it_asked_for(default, mode, umask):
    new, access = acl.inherit(default, mode, umask)
    assert new & ~mode == 0
    assert access is None or acl.mode_of(access, new) == new
    assert (access is None) == (len(default) == 3)


def test_without_a_default_list_the_umask_counts():
    assert acl.inherit(None, 0o666, 0o027) == (0o640, None)


def test_the_kernels_own_file_system_inherits_alike(tmp_path):
    """The reference is whatever lies under tmp_path, if it knows access lists."""
    default = acl.make(
        [
            (acl.USER_OBJ, 7, acl.NO_ID),
            (acl.USER, 5, 1234),
            (acl.GROUP_OBJ, 5, acl.NO_ID),
            (acl.MASK, 7, acl.NO_ID),
            (acl.OTHER, 1, acl.NO_ID),
        ]
    )
    try:
        os.setxattr(tmp_path, acl.DEFAULT, acl.encode(default))
    except OSError as refused:
        pytest.skip(f"no access lists below {tmp_path}: {refused}")
    made = tmp_path / "made"
    os.close(os.open(made, os.O_CREAT | os.O_WRONLY, 0o664))
    mode, access = acl.inherit(default, 0o664, 0o022)
    assert stat.S_IMODE(made.stat().st_mode) == mode
    assert acl.decode(os.getxattr(made, acl.ACCESS)) == access


# record locks


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(0, 15),
            st.integers(0, 15),
            st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]),
        )
    )
)
def test_locks_are_as_if_every_byte_had_its_own(steps):
    table, bytes_held = LockTable(), {}
    for owner, a, b, kind in steps:
        wanted = Held(owner, min(a, b), max(a, b), kind, 1, 1)
        span = range(wanted.start, wanted.end + 1)
        clash = any(
            who != owner and fcntl.F_WRLCK in {kind, held} for place in span for who, held in bytes_held.get(place, {}).items()
        )
        if kind != fcntl.F_UNLCK:
            assert (table.conflict(wanted) is not None) == clash
            if clash:
                continue
        table.put(wanted)
        for place in span:
            bytes_held.setdefault(place, {}).pop(owner, None)
            if kind != fcntl.F_UNLCK:
                bytes_held[place][owner] = kind
        found = {place: {lock.owner: lock.type for lock in table.held if lock.start <= place <= lock.end} for place in range(16)}
        assert found == {place: bytes_held.get(place, {}) for place in range(16)}


def test_locks_of_a_handle_or_an_owner_are_dropped_together():
    table = LockTable()
    table.put(Held(1, 0, TO_END, fcntl.F_RDLCK, 1, 5))
    table.put(Held(2, 0, TO_END, fcntl.F_RDLCK, 1, 6))
    assert table.drop(fh=5)
    assert not table.drop(owner=1)
    assert [lock.owner for lock in table.held] == [2]


# content with holes

PLACE = st.integers(0, 3 * BLOCK_BYTES)


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "truncate", "punch", "allocate"]), PLACE, st.integers(0, BLOCK_BYTES + 10)), max_size=12
    )
)
def test_content_with_holes_reads_like_plain_bytes(steps):
    content, plain = Sparse(), bytearray()
    for number, (what, place, length) in enumerate(steps, start=1):
        if what == "write":
            content.write(place, memoryview(bytes([number]) * length))
            plain.extend(bytes(max(0, place + length - len(plain))))
            plain[place : place + length] = bytes([number]) * length
        elif what == "truncate":
            content.truncate(place)
            plain = plain[:place] + bytes(max(0, place - len(plain)))
        elif what == "punch":
            content.punch(place, length)
            stop = min(len(plain), place + length)
            plain[place:stop] = bytes(max(0, stop - place))
        else:
            content.allocate(place, length)
    assert b"".join(content.read(0, 1 << 20)) == plain
    assert content.size == len(plain)


def test_holes_and_data_are_found_where_they_begin():
    content = Sparse()
    content.write(2 * BLOCK_BYTES, memoryview(b"x"))
    content.truncate(4 * BLOCK_BYTES)
    assert content.seek(0, data=True) == 2 * BLOCK_BYTES
    assert content.seek(0, data=False) == 0
    assert content.seek(2 * BLOCK_BYTES, data=False) == 3 * BLOCK_BYTES
    assert content.seek(3 * BLOCK_BYTES, data=True) is None
    assert content.seek(4 * BLOCK_BYTES, data=False) is None
