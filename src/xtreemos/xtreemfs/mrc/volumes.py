"""Commands about volumes, quotas, principals, sessions, pins and garbage. Pure functions of the state."""

from __future__ import annotations

import errno
import hashlib
import stat
from typing import Final

import msgspec

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import FIRST_PRINCIPAL, make_ino
from xtreemos.xtreemfs.mrc import acl as acls
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.model import (
    DIRECTORY_BYTES,
    FIRST_COOKIE,
    ROOT_NUMBER,
    VOLUME_ID_MAX,
    Inode,
    Session,
    Usage,
    Volume,
    Writer,
)
from xtreemos.xtreemfs.mrc.state import State

SHARES_MAX: Final = 32  # VOs that one volume is shared with
_PRINCIPALS: Final = FIRST_PRINCIPAL  # how many numbers there are: 2^30 up to 2^31, so that they fit a signed 32-bit uid


def make_volume(state: State, c: do.MakeVolume) -> Volume:
    """See `commands.MakeVolume`. Refusals: EINVAL (id), EEXIST (name or id taken)."""
    record = c.record
    if not 1 <= record.id <= VOLUME_ID_MAX:
        raise FsError(errno.EINVAL, f"volume id {record.id} is out of range")
    if state.find_volume(record.id) is not None or state.volume_id(record.name) is not None:
        raise FsError(errno.EEXIST, f"a volume {record.name} exists already")
    policy = record.policy
    row = Volume(record, "new", policy.quota_bytes, policy.quota_files)
    ino = make_ino(record.id, ROOT_NUMBER)
    state.put_volume(row)
    state.kv.put(schema.VOLUME_NAME + record.name.encode(), schema.pack32(record.id))
    state.kv.put(schema.COUNTER + schema.pack32(record.id), schema.pack64(ROOT_NUMBER))
    now = c.now_ns
    state.put_inode(
        Inode(
            ino=ino,
            mode=stat.S_IFDIR | c.mode & 0o7777,
            nlink=2,
            uid=c.uid,
            gid=c.gid,
            size=DIRECTORY_BYTES,
            blocks=DIRECTORY_BYTES // 512,
            rdev=0,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            version=state.seq,
            parent=ino,
            cookie=FIRST_COOKIE,
            default_acl=acls.encode(acls.of_mode(c.mode)) if c.inherited else b"",
        )
    )
    state.charge(record.id, c.uid, 0, 1, check=False)
    return row


def _live(state: State, volume: int) -> Volume:
    row = state.find_volume(volume)
    if row is None or row.state == "gone":
        raise FsError(errno.ENOENT, "there is no such volume here")
    return row


def volume_told(state: State, c: do.VolumeTold) -> Volume:
    """See `commands.VolumeTold`."""
    row = msgspec.structs.replace(_live(state, c.volume), state="live")
    state.put_volume(row)
    return row


def remove_volume(state: State, c: do.RemoveVolume) -> Volume:
    """See `commands.RemoveVolume`. Refusals: ENOENT, ENOTEMPTY."""
    row = _live(state, c.volume)
    root = state.inode(make_ino(c.volume, ROOT_NUMBER))
    if root.entries and not c.force:
        raise FsError(errno.ENOTEMPTY)
    record = msgspec.structs.replace(row.record, removed=True)
    row = msgspec.structs.replace(row, record=record, state="gone")
    state.put_volume(row)
    state.kv.delete(schema.VOLUME_NAME + record.name.encode())
    return row


def purge(state: State, c: do.Purge) -> bool:
    """See `commands.Purge`. Returns whether nothing of the volume is left."""
    row = state.find_volume(c.volume)
    if row is None:
        return True
    if row.state != "gone":
        raise FsError(errno.EBUSY, "the volume is in use")
    left = c.keys
    for table in schema.BY_INO:  # inodes first, while their layouts are still there
        for key, _value in state.kv.scan(*schema.volume_range(table, c.volume), left):
            left -= 1
            if table == schema.INODE:
                inode = state.inode(schema.ino_of(key))
                if inode.is_file:
                    state.add_garbage(inode.ino, state.cold(inode.ino).layout)
            state.kv.delete(key)
        if left <= 0:
            return False
    for table in (schema.USAGE, schema.LIMIT, schema.PROMISED):
        for key, _value in list(state.scan_all(*schema.prefix_range(table + schema.pack32(c.volume)))):
            state.kv.delete(key)
    state.kv.delete(schema.COUNTER + schema.pack32(c.volume))
    state.kv.delete(schema.VOLUME + schema.pack32(c.volume))
    return True


def set_quota(state: State, c: do.SetQuota) -> None:
    """See `commands.SetQuota`. A limit below what is there stops growth and takes nothing away."""
    row = _live(state, c.volume)
    if c.bytes < 0 or c.files < 0:
        raise FsError(errno.EINVAL)
    if c.owner >= 0:
        state.put_limits(c.volume, c.owner, Usage(c.bytes, c.files))
        return
    policy = msgspec.structs.replace(row.record.policy, quota_bytes=c.bytes, quota_files=c.files)
    record = msgspec.structs.replace(row.record, policy=policy)
    state.put_volume(msgspec.structs.replace(row, record=record, quota_bytes=c.bytes, quota_files=c.files))


def set_share(state: State, c: do.SetShare) -> Volume:
    """See `commands.SetShare`. EINVAL: a home, or too many."""
    row = _live(state, c.volume)
    others = tuple(share for share in row.record.shares if share.vo != c.vo)
    if c.share is not None and (row.record.kind == "home" or len(others) >= SHARES_MAX):
        raise FsError(errno.EINVAL, f"a home is not shared, and another volume with {SHARES_MAX} VOs at most")
    record = msgspec.structs.replace(row.record, shares=(*others, c.share) if c.share is not None else others)
    row = msgspec.structs.replace(row, record=record)
    state.put_volume(row)
    return row


def principals(state: State, c: do.Principals) -> list[int]:
    """See `commands.Principals`; returns the numbers.

    A number is tried where a hash of the name puts it, then upwards: so several MRCs nearly always agree, though nobody may rely on it.
    """
    numbers = []
    for kind, name in c.names:
        number = state.number_of(kind, name)
        if number is None:
            number = FIRST_PRINCIPAL + int.from_bytes(hashlib.sha256(f"{kind}.{name}".encode()).digest()[:4]) % _PRINCIPALS
            while state.principal(number) is not None:
                number = FIRST_PRINCIPAL + (number + 1 - FIRST_PRINCIPAL) % _PRINCIPALS
            state.kv.put(schema.NUMBER + schema.pack32(number), kind.encode() + name.encode())
            state.kv.put(schema.PRINCIPAL + kind.encode() + name.encode(), schema.pack32(number))
        numbers.append(number)
    return numbers


def free(state: State, c: do.Free) -> None:
    """See `commands.Free`. One that has a name again, or is gone already, is left alone."""
    for ino in c.inos:
        inode = state.find_inode(ino)
        if inode is not None and inode.nlink == 0:
            state.free(inode)


def writer(state: State, c: do.Writer) -> None:
    """See `commands.Writer`; ESTALE for an inode that is gone."""
    state.inode(c.ino)
    state.put_writer(c.ino, c.client, Writer(c.epoch, c.through))


def writers_done(state: State, c: do.WritersDone) -> None:
    """See `commands.WritersDone`."""
    for ino, client in c.rows:
        state.end_writer(ino, client)


def open_session(state: State, c: do.OpenSession) -> None:
    """See `commands.OpenSession`. One that was there has expired: it begins anew, and its answers are forgotten."""
    state.end_session(c.client)
    state.put_session(Session(c.client, c.node, c.now_s, state.seq))


def close_session(state: State, c: do.CloseSession) -> None:
    """See `commands.CloseSession`."""
    state.end_session(c.client)


def epochs(state: State, c: do.Epochs) -> None:
    """See `commands.Epochs`."""
    held = schema.unpack64(state.kv.get(schema.EPOCH) or bytes(8))
    state.kv.put(schema.EPOCH, schema.pack64(max(held, c.below)))


def deleted(state: State, c: do.Deleted) -> None:
    """See `commands.Deleted`."""
    for ino in c.inos:
        state.garbage_done(ino, c.osd)
