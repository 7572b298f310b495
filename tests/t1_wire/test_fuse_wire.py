"""The FUSE codec against a kernel's side that was written apart from it, and against arbitrary bytes."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.testing import fusekit_kernel as kernel
from xtreemos.xtreemfs.fuse import constants as c
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse import notifications, replies, wire
from xtreemos.xtreemfs.fuse.constants import InitFlag, Op
from xtreemos.xtreemfs.fuse.errors import FuseError, ProtocolError
from xtreemos.xtreemfs.fuse.options import MountOptions

KINDS = {
    Op.LOOKUP: m.Lookup, Op.FORGET: m.Forget, Op.GETATTR: m.GetAttr, Op.SETATTR: m.SetAttr, Op.READLINK: m.ReadLink,
    Op.SYMLINK: m.Symlink, Op.MKNOD: m.MkNod, Op.MKDIR: m.MkDir, Op.UNLINK: m.Unlink, Op.RMDIR: m.RmDir, Op.RENAME: m.Rename,
    Op.LINK: m.Link, Op.OPEN: m.Open, Op.READ: m.Read, Op.WRITE: m.Write, Op.STATFS: m.StatFs, Op.RELEASE: m.Release, Op.FSYNC: m.Fsync,
    Op.SETXATTR: m.SetXattr, Op.GETXATTR: m.GetXattr, Op.LISTXATTR: m.ListXattr, Op.REMOVEXATTR: m.RemoveXattr, Op.FLUSH: m.Flush,
    Op.INIT: m.Init, Op.OPENDIR: m.Open, Op.READDIR: m.Read, Op.RELEASEDIR: m.Release, Op.FSYNCDIR: m.Fsync, Op.GETLK: m.Lock,
    Op.SETLK: m.Lock, Op.SETLKW: m.Lock, Op.ACCESS: m.Access, Op.CREATE: m.Create, Op.INTERRUPT: m.Interrupt, Op.BMAP: m.Bmap,
    Op.DESTROY: m.Destroy, Op.IOCTL: m.Ioctl, Op.POLL: m.Poll, Op.NOTIFY_REPLY: m.NotifyReply, Op.BATCH_FORGET: m.Forget,
    Op.FALLOCATE: m.Fallocate, Op.READDIRPLUS: m.Read, Op.RENAME2: m.Rename, Op.LSEEK: m.Lseek, Op.COPY_FILE_RANGE: m.CopyFileRange,
    Op.SYNCFS: m.SyncFs, Op.TMPFILE: m.Create, Op.STATX: m.Statx, Op.COPY_FILE_RANGE_64: m.CopyFileRange,
}  # fmt: skip

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAME = st.binary(min_size=0, max_size=300).map(lambda raw: raw.replace(b"\0", b"x"))
WIDE = {"fh", "offset", "lock_owner", "owner", "start", "end", "newdir", "oldnodeid", "block", "length", "kh", "target", "arg", "size_set"} | {
    "fh_in", "offset_in", "nodeid_out", "fh_out", "offset_out"
}  # fmt: skip
TIME = st.integers(-(2**40), 2**40)


def field(kind, name, hint):
    """What a field of a request may hold."""
    if name in {"unique", "nodeid"}:
        return U64
    if name.endswith("_ns"):
        return st.none() | TIME
    if name == "nodes":
        return st.lists(st.tuples(U64, U64), max_size=50).map(tuple)
    if name == "groups":
        return st.lists(U32, max_size=5).map(tuple)
    if hint is memoryview:
        return st.binary(max_size=5000).map(memoryview)
    if hint is bytes:
        return st.binary(max_size=5000) if name in {"value", "data"} else NAME
    if hint is bool:
        return st.booleans()
    if kind is m.Lseek and name == "offset":
        return st.integers(-(2**63), 2**63 - 1)
    if (kind, name) in {(m.CopyFileRange, "flags"), (m.SetAttr, "size")}:
        base = U64
    elif kind is m.Init and name == "flags":
        base = U64.map(lambda flags: flags | InitFlag.INIT_EXT)
    else:
        base = U64 if name in WIDE else U32
    return st.none() | base if type(None) in get_args(hint) else base


@st.composite
def messages(draw):
    op = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[op]
    values = {name: draw(field(kind, name, hint)) for name, hint in get_type_hints(kind).items()}
    if kind is m.Lock:
        values["wait"] = op == Op.SETLKW
    if op == Op.RENAME:
        values["flags"] = 0
    if op == Op.FORGET:
        values["nodes"] = ((values["nodeid"], draw(U64)),)
    return op, kind(**values)


@given(messages())
def test_every_request_decodes_to_what_the_kernel_meant(given_message):
    op, request = given_message
    data = kernel.encode(op, request)
    assert wire.decode(data, wire.decoders(InitFlag.SETXATTR_EXT)) == request


@given(messages(), st.data())
def test_no_shortened_or_changed_message_raises_anything_but_protocol_error(given_message, data):
    op, request = given_message
    raw = bytearray(kernel.encode(op, request))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    if len(raw) >= 4 and data.draw(st.booleans()):
        raw[:4] = struct.pack("=I", len(raw))  # so that the length is not what refuses it
    for flags in (InitFlag(0), InitFlag.SETXATTR_EXT):
        try:
            found = wire.decode(raw, wire.decoders(flags))
        except ProtocolError:
            continue
        assert isinstance(found, m.Request)


@given(st.sampled_from(range(60)), st.binary(max_size=300), st.integers(0, 5))
def test_arbitrary_bodies_raise_nothing_but_protocol_error(opcode, body, extensions):
    who = m.StatFs(1, 2, 3, 4, 5)
    raw = bytearray(kernel.message(opcode, who, body))
    raw[36:38] = struct.pack("=H", extensions)
    try:
        found = wire.decode(raw)
    except ProtocolError:
        return
    assert isinstance(found, m.Request)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_protocol_error(raw):
    with pytest.raises(ProtocolError):
        wire.decode(raw[:4] + b"\xff\xff\xff\xff" + raw[8:] if len(raw) < 40 else bytes(4) + raw)


def test_setxattr_without_the_extension_is_decoded_when_it_was_not_negotiated():
    request = m.SetXattr(1, 2, 3, 4, 5, 1, 0, b"user.a", b"v\0w")
    assert wire.decode(kernel.encode(Op.SETXATTR, request, InitFlag(0)), wire.decoders(InitFlag(0))) == request


def test_an_unknown_operation_is_a_request_of_its_own():
    assert wire.decode(kernel.message(4711, m.StatFs(1, 2, 3, 4, 5), b"x")) == m.Unknown(1, 2, 3, 4, 5, 4711)


def test_a_writes_data_is_looked_at_and_not_copied():
    raw = bytearray(kernel.encode(Op.WRITE, m.Write(1, 2, 3, 4, 5, 6, 7, 0, 0, 0, memoryview(b"abc"))))
    request = wire.decode(raw)
    raw[-1:] = b"X"
    assert isinstance(request, m.Write)
    assert bytes(request.data) == b"abX"


def test_supplementary_groups_come_out_from_behind_a_security_context():
    request = m.MkDir(1, 2, 3, 4, 5, 0o755, 0o22, b"d")
    secctx = struct.pack("=II", 32, 1) + bytes(24)
    raw = kernel.message(
        Op.MKDIR, request, struct.pack("=II", 0o755, 0o22) + b"d\0", extensions=secctx + kernel.group_extension((7, 8, 9))
    )
    assert wire.decode(raw) == msgspec.structs.replace(request, groups=(7, 8, 9))


# answers


def test_negative_times_round_down_to_whole_seconds_with_positive_nanoseconds():
    body = replies.encode_attr(m.AttrReply(m.Attr(1, 0o100644, atime_ns=-1)))
    fields = replies.ATTR.unpack(body)
    assert (fields[5], fields[8]) == (-1, 999_999_999)


def test_an_answer_in_bytes_is_sent_as_it_stands():
    assert replies.encode_entry(b"ready") == b"ready"


@pytest.mark.parametrize(("size", "wanted"), [(0, struct.pack("=II", 5, 0)), (5, b"value"), (9, b"value")])
def test_xattr_sizes_are_the_layers_business(size, wanted):
    encode = replies.ROUTES[Op.GETXATTR][1]
    assert encode(b"value", m.GetXattr(1, 1, 0, 0, 0, size, b"user.a")) == wanted


def test_too_little_room_for_an_xattr_is_erange():
    encode = replies.ROUTES[Op.LISTXATTR][1]
    with pytest.raises(FuseError, match="ERANGE"):
        encode([b"user.a", b"user.b"], m.ListXattr(1, 1, 0, 0, 0, 8))


@given(st.lists(NAME.filter(bool), max_size=40), st.integers(0, 4000), st.booleans())
def test_a_listing_never_exceeds_its_size_and_parses_back(names, size, plus):
    page = replies.Listing(size)
    entry = m.Entry(7, m.Attr(7, 0o100644))
    taken = []
    for cookie, name in enumerate(names, start=1):
        if not (page.add_plus(name, entry, 7, 0o100644, cookie) if plus else page.add(name, 7, 0o100644, cookie)):
            break
        taken.append((cookie, name))
    assert len(page.body) <= size
    at, found = 0, []
    while at < len(page.body):
        at += replies.ENTRY.size if plus else 0
        ino, cookie, length, kind = replies.DIRENT.unpack_from(page.body, at)
        assert (ino, kind) == (7, 8)
        found.append((cookie, bytes(page.body[at + 24 : at + 24 + length])))
        at += 24 + length + -length % 8
    assert found == taken


def test_a_notification_says_its_own_length():
    for _, _, parts in (
        notifications.inval_inode(1),
        notifications.inval_entry(1, b"name"),
        notifications.delete(1, 2, b"name"),
        notifications.store(1, 0, b"data"),
        notifications.poll_wakeup(3),
        notifications.increase_epoch(),
        notifications.prune([1, 2, 3]),
    ):
        whole = b"".join(bytes(part) for part in parts)
        length, code, unique = replies.HEADER_OUT.unpack_from(whole)
        assert (length, unique) == (len(whole), 0)
        assert code in set(c.Notify)


# negotiation


def init(minor=45, flags=(1 << 43) - 1, major=7):
    return m.Init(1, 0, 0, 0, 0, major, minor, 1 << 17, flags)


def test_only_what_both_want_is_agreed():
    agreed, body = replies.negotiate(init(flags=InitFlag.POSIX_LOCKS | InitFlag.WRITEBACK_CACHE), MountOptions())
    assert agreed.flags == InitFlag.POSIX_LOCKS
    assert len(body) == 64


def test_a_newer_kernel_is_answered_with_our_minor_and_an_older_one_with_its_own():
    assert replies.negotiate(init(minor=60), MountOptions())[0].minor == 45
    assert replies.negotiate(init(minor=31), MountOptions())[0].minor == 31


def test_a_kernel_of_another_major_is_told_ours():
    agreed, body = replies.negotiate(init(major=8), MountOptions())
    assert agreed is None
    assert struct.unpack_from("=I", body) == (7,)


def test_a_kernel_that_is_too_old_is_refused():
    with pytest.raises(ProtocolError, match=r"7\.30"):
        replies.negotiate(init(minor=30), MountOptions())


def test_passthrough_tells_the_stack_depth_and_excludes_the_writeback_cache():
    _, body = replies.negotiate(init(), MountOptions(passthrough=True))
    assert replies.INIT.unpack(body)[-2] == 1
    with pytest.raises(ValueError, match="passthrough"):
        MountOptions(passthrough=True, writeback_cache=True)


def test_structures_are_as_large_as_the_kernels_header_says(tmp_path):
    """The header of this machine may be older than our newest structures: those it does not know are left out."""
    sizes = {
        "fuse_entry_out": replies.ENTRY.size, "fuse_attr_out": replies.ATTR.size, "fuse_open_out": replies.OPENED.size,
        "fuse_write_out": replies.WRITTEN.size, "fuse_statfs_out": replies.STATFS.size, "fuse_lk_out": replies.LOCK.size,
        "fuse_ioctl_out": replies.IOCTL.size, "fuse_init_out": replies.INIT.size, "fuse_dirent": replies.DIRENT.size,
        "fuse_notify_inval_inode_out": replies.INVAL_INODE.size, "fuse_notify_inval_entry_out": replies.INVAL_ENTRY.size,
        "fuse_notify_delete_out": replies.DELETE.size, "fuse_notify_store_out": replies.STORE.size,
        "fuse_notify_retrieve_out": replies.RETRIEVE.size, "fuse_setattr_in": wire.SETATTR.size, "fuse_write_in": wire.WRITE.size,
        "fuse_lk_in": wire.LOCK.size, "fuse_ioctl_in": wire.IOCTL.size, "fuse_init_in": wire.INIT.size, "fuse_in_header": 40,
        "fuse_notify_retrieve_in": wire.RETRIEVE_IN.size, "fuse_setxattr_in": wire.SETXATTR_EXT.size, "fuse_poll_in": wire.POLL.size,
    }  # fmt: skip
    source = tmp_path / "sizes.c"
    lines = "".join(f'printf("%zu\\n", sizeof(struct {name}));' for name in sizes)
    source.write_text(f"#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{ {lines} return 0; }}\n")
    try:
        subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as missing:
        pytest.skip(f"no compiler or header: {missing}")
    found = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout.split()
    assert dict(zip(sizes, map(int, found), strict=True)) == sizes
    assert ctypes.sizeof(ctypes.c_uint64) == 8
