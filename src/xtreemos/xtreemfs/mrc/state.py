"""The store in words of the domain: inodes, names, usage, pins. What a command's code works with; one `State` per command.

Pure: everything goes to the `Kv` below. Nothing is checked here that a caller could be refused for, but that things exist and quotas.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import NUMBER_BITS, WIDTH_MAX, Layout, make_ino, volume_of
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.kv import Kv
from xtreemos.xtreemfs.mrc.model import HAS_XATTRS, TYPE_SHIFT, Cold, Inode, Name, Promise, Reply, Session, Usage, Volume, Writer

T = TypeVar("T")
SCAN_ROWS: Final = 1024

_encode: Final = msgspec.msgpack.Encoder().encode
_to_inode: Final = msgspec.msgpack.Decoder(Inode).decode
_to_cold: Final = msgspec.msgpack.Decoder(Cold).decode
_to_volume: Final = msgspec.msgpack.Decoder(Volume).decode
_to_usage: Final = msgspec.msgpack.Decoder(Usage).decode
_to_session: Final = msgspec.msgpack.Decoder(Session).decode
_to_writer: Final = msgspec.msgpack.Decoder(Writer).decode
_to_garbage: Final = msgspec.msgpack.Decoder(tuple[int | str, ...]).decode
_to_promise: Final = msgspec.msgpack.Decoder(Promise).decode
_to_reply: Final = msgspec.msgpack.Decoder(Reply).decode
_NOTHING: Final = Usage()
_NO_GARBAGE: Final = _encode(())


class Change(NamedTuple):
    """One row of the event stream: what happened to which inode, under which name (b"" where none is meant)."""

    kind: str
    """create, link, unlink, rmdir, rename-from, rename-to, attr, data, xattr."""
    ino: int
    dir: int = 0
    name: bytes = b""


class State:
    """The state as command number `seq` finds and changes it."""

    def __init__(self, kv: Kv, seq: int) -> None:
        self.kv = kv
        self.seq = seq
        self.changes: list[Change] = []

    # -- inodes ----------------------------------------------------------------------------------------------------------

    def find_inode(self, ino: int) -> Inode | None:
        """Return a fresh copy of an inode, None if there is none."""
        data = self.kv.get(schema.inode_key(ino))
        return _to_inode(data) if data is not None else None

    def inode(self, ino: int) -> Inode:
        """Return a fresh copy of an inode; FsError(ESTALE) if there is none."""
        data = self.kv.get(schema.inode_key(ino))
        if data is None:
            raise FsError(errno.ESTALE)
        return _to_inode(data)

    def put_inode(self, inode: Inode) -> None:
        """Write an inode as changed by this command."""
        inode.version = self.seq
        self.kv.put(schema.inode_key(inode.ino), _encode(inode))

    def new_ino(self, volume: int) -> int:
        """Take the next inode number of a volume."""
        key = schema.COUNTER + schema.pack32(volume)
        number = schema.unpack64(self.kv.get(key) or bytes(8)) + 1
        if number >= 1 << NUMBER_BITS:
            raise FsError(errno.ENOSPC, "the volume has no inode numbers left")
        self.kv.put(key, schema.pack64(number))
        return make_ino(volume, number)

    def cold(self, ino: int) -> Cold:
        """Return layout and link target."""
        data = self.kv.get(schema.COLD + schema.pack64(ino))
        return _to_cold(data) if data is not None else Cold()

    def put_cold(self, ino: int, *, layout: Layout | None = None, link: bytes = b"") -> None:
        """Write layout or link target."""
        self.kv.put(schema.COLD + schema.pack64(ino), _encode(Cold(layout, link)))

    # -- names -----------------------------------------------------------------------------------------------------------

    def find_name(self, folder: int, name: bytes) -> Name | None:
        """Return what a name stands for, None if it does not exist."""
        data = self.kv.get(schema.name_key(folder, name))
        return schema.to_name(data) if data is not None else None

    def add_name(self, folder: Inode, name: bytes, inode: Inode) -> None:
        """Add a new name; the caller writes `folder` (and `inode`) afterwards."""
        folder.cookie += 1
        folder.entries += 1
        self._write_name(folder.ino, name, inode, folder.cookie)

    def replace_name(self, folder: Inode, name: bytes, inode: Inode, cookie: int) -> None:
        """Let an existing name stand for another inode; it keeps its place in listings."""
        self._write_name(folder.ino, name, inode, cookie)

    def _write_name(self, folder: int, name: bytes, inode: Inode, cookie: int) -> None:
        kind = inode.mode >> TYPE_SHIFT
        self.kv.put(schema.name_key(folder, name), schema.name_value(Name(inode.ino, kind, cookie)))
        self.kv.put(schema.cookie_key(folder, cookie), schema.entry_value(inode.ino, kind, name))

    def remove_name(self, folder: Inode, name: bytes, cookie: int) -> None:
        """Remove a name; the caller writes `folder` afterwards."""
        folder.entries -= 1
        self.kv.delete(schema.name_key(folder.ino, name))
        self.kv.delete(schema.cookie_key(folder.ino, cookie))

    def is_below(self, ino: int, folder: Inode) -> bool:
        """Whether directory `folder` is `ino` or lies below it."""
        while folder.ino != ino:
            if folder.parent == folder.ino:
                return False
            folder = self.inode(folder.parent)
        return True

    # -- usage -----------------------------------------------------------------------------------------------------------

    def usage(self, volume: int, owner: int | None, table: bytes = schema.USAGE) -> Usage:
        """Return what a volume (`owner` None) or one owner in it has; with `table` LIMIT the owner's limits."""
        data = self.kv.get(schema.usage_key(volume, owner, table))
        return _to_usage(data) if data is not None else _NOTHING

    def limits(self, volume: int, owner: int | None) -> Usage:
        """Return the limits of a volume or of one owner in it; 0: none."""
        if owner is not None:
            return self.usage(volume, owner, schema.LIMIT)
        row = self.find_volume(volume)
        return Usage(row.quota_bytes, row.quota_files) if row else _NOTHING

    def room(self, volume: int, owner: int, *, promised: bool = True) -> Usage | None:
        """Return the bytes and files that quotas leave for files of `owner` (each may be negative), None if none is limited.

        What is `promised` to writers and not used yet is not left; without it the answer is what is not used.
        """
        left: list[tuple[int, int]] = []
        for whose in (None, owner):
            limit = self.limits(volume, whose)
            if limit.bytes or limit.files:
                used = self.usage(volume, whose)
                taken = used.bytes + (self.usage(volume, whose, schema.PROMISED).bytes if promised else 0)
                unlimited = 1 << 62
                left.append(
                    (limit.bytes - taken if limit.bytes else unlimited, limit.files - used.files if limit.files else unlimited)
                )
        return Usage(min(row[0] for row in left), min(row[1] for row in left)) if left else None

    def charge(self, volume: int, owner: int, size: int, files: int, *, check: bool = True) -> None:
        """Count bytes and files for a volume and an owner.

        Raises:
            FsError(EDQUOT): with `check`, if something grows beyond a limit.
        """
        if check and (size > 0 or files > 0):
            room = self.room(volume, owner)
            if room is not None and (size > max(room.bytes, 0) or files > max(room.files, 0)):
                raise FsError(errno.EDQUOT)
        for whose in (None, owner):
            used = self.usage(volume, whose)
            self._put_usage(schema.usage_key(volume, whose), Usage(used.bytes + size, used.files + files))

    def _put_usage(self, key: bytes, usage: Usage) -> None:
        if usage.bytes or usage.files:
            self.kv.put(key, _encode(usage))
        else:
            self.kv.delete(key)

    def owners(self, volume: int) -> list[int]:
        """Return who has files or limits in a volume, by number."""
        found = set()
        for table in (schema.USAGE, schema.LIMIT):
            prefix = table + schema.pack32(volume) + b"u"
            found |= {schema.unpack32(key[-4:]) for key, _value in self.scan_all(*schema.prefix_range(prefix))}
        return sorted(found)

    def put_limits(self, volume: int, owner: int, limit: Usage) -> None:
        """Set the limits of an owner in a volume; zeros remove them."""
        self._put_usage(schema.usage_key(volume, owner, schema.LIMIT), limit)

    # -- promises: room that writers may use without asking ------------------------------------------------------------

    def find_promise(self, ino: int) -> Promise | None:
        """Return what the writers of a file are promised, None if nothing."""
        data = self.kv.get(schema.PROMISE + schema.pack64(ino))
        return _to_promise(data) if data is not None else None

    def put_promise(self, inode: Inode, reach: int) -> None:
        """Let a file grow to `reach` bytes; what it has of that, and whose it is, is counted anew. Nothing is kept of what is used up."""
        self.end_promise(inode.ino)
        rest = reach - inode.size
        if rest > 0:
            self.kv.put(schema.PROMISE + schema.pack64(inode.ino), _encode(Promise(reach, inode.uid, rest)))
            self._count_promised(inode.volume, inode.uid, rest)

    def follow_promise(self, inode: Inode) -> None:
        """A file's size was changed: what it has grown by is promised no more."""
        held = self.find_promise(inode.ino)
        if held is not None:
            self.put_promise(inode, held.reach)

    def end_promise(self, ino: int) -> None:
        """Nothing is promised to a file's writers any more."""
        held = self.find_promise(ino)
        if held is not None:
            self.kv.delete(schema.PROMISE + schema.pack64(ino))
            self._count_promised(volume_of(ino), held.owner, -held.rest)

    def _count_promised(self, volume: int, owner: int, change: int) -> None:
        for whose in (None, owner):
            held = self.usage(volume, whose, schema.PROMISED)
            self._put_usage(schema.usage_key(volume, whose, schema.PROMISED), Usage(held.bytes + change))

    def promises(self, volume: int) -> Iterator[tuple[int, Promise]]:
        """Yield rows (ino, `Promise`) of a volume by number: the files made first come first."""
        for key, value in self.scan_all(*schema.volume_range(schema.PROMISE, volume)):
            yield schema.ino_of(key), _to_promise(value)

    # -- life and death --------------------------------------------------------------------------------------------------

    def scan_all(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows of a range, page by page; rows may be changed meanwhile."""
        while True:
            rows = self.kv.scan(start, end, SCAN_ROWS)
            yield from rows
            if len(rows) < SCAN_ROWS:
                return
            start = rows[-1][0] + b"\0"

    def leave(self, inode: Inode, *, keep: bool) -> None:
        """Let go of an inode whose last name went: it lives on (`keep`) while somebody has it open."""
        if keep:
            self.put_inode(inode)
            self.kv.put(schema.ORPHAN + schema.pack64(inode.ino), b"")
        else:
            self.free(inode)

    def orphans(self) -> list[int]:
        """Return all inodes without a name."""
        return [schema.ino_of(key) for key, _value in self.scan_all(*schema.prefix_range(schema.ORPHAN))]

    def free(self, inode: Inode) -> None:
        """Delete an inode, give back its quota, and put its columns on the garbage list."""
        ino = inode.ino
        if stat.S_ISREG(inode.mode):
            self.add_garbage(ino, self.cold(ino).layout)
            for key, _value in self.kv.scan(*schema.prefix_range(schema.WRITER + schema.pack64(ino)), SCAN_ROWS):
                self.kv.delete(key)
        if inode.flags & HAS_XATTRS:
            for key, _value in list(self.scan_all(*schema.prefix_range(schema.XATTR + schema.pack64(ino)))):
                self.kv.delete(key)
        self.end_promise(ino)
        self.kv.delete(schema.inode_key(ino))
        self.kv.delete(schema.ORPHAN + schema.pack64(ino))
        if not inode.is_dir:
            self.kv.delete(schema.COLD + schema.pack64(ino))
        self.charge(inode.volume, inode.uid, -inode.size if inode.is_file else 0, -1)

    def add_garbage(self, ino: int, layout: Layout | None, width: int = 0) -> None:
        """Remember that a file's columns are to be deleted on its OSDs: those of its layout, or the first `width`."""
        osds = sorted({osd for replica in layout.replicas for osd in replica.osds}) if layout else []
        if osds and layout is not None:
            width = width or max(len(replica.osds) for replica in layout.replicas)
            self.kv.put(schema.GARBAGE + schema.pack64(ino), _encode((width, *osds)))

    def garbage(self, ino: int) -> tuple[str, ...]:
        """Return the OSDs that have not answered the deletion of a file yet."""
        data = self.kv.get(schema.GARBAGE + schema.pack64(ino))
        return _osds_of(data) if data is not None else ()

    def garbage_width(self, ino: int) -> int:
        """Return how many columns a deleted file had at most."""
        row = _to_garbage(self.kv.get(schema.GARBAGE + schema.pack64(ino)) or _NO_GARBAGE)
        return next((item for item in row if isinstance(item, int)), WIDTH_MAX)

    def garbage_done(self, ino: int, osd: str) -> None:
        """Note that an OSD has deleted its columns of a file."""
        left = [name for name in self.garbage(ino) if name != osd]
        key = schema.GARBAGE + schema.pack64(ino)
        if left:
            self.kv.put(key, _encode((self.garbage_width(ino), *left)))
        else:
            self.kv.delete(key)

    def all_garbage(self, after: int, limit: int) -> list[tuple[int, tuple[str, ...]]]:
        """Return at most `limit` rows (ino, OSDs to ask) with larger inode numbers than `after`."""
        start = schema.GARBAGE + schema.pack64(after + 1)
        rows = self.kv.scan(start, schema.prefix_range(schema.GARBAGE)[1], limit)
        return [(schema.ino_of(key), _osds_of(value)) for key, value in rows]

    # -- volumes, sessions, principals -----------------------------------------------------------------------------------

    def find_volume(self, volume: int) -> Volume | None:
        """Return a volume of this MRC, None if it has none of that id."""
        data = self.kv.get(schema.VOLUME + schema.pack32(volume))
        return _to_volume(data) if data is not None else None

    def put_volume(self, row: Volume) -> None:
        """Write a volume's row."""
        self.kv.put(schema.VOLUME + schema.pack32(row.record.id), _encode(row))

    def volumes(self) -> list[Volume]:
        """Return all volumes, also those not told yet and those being deleted, by id."""
        return [_to_volume(value) for _key, value in self.scan_all(*schema.prefix_range(schema.VOLUME))]

    def volume_id(self, name: str) -> int | None:
        """Return the id of the volume of that name that is not gone."""
        data = self.kv.get(schema.VOLUME_NAME + name.encode())
        return schema.unpack32(data) if data is not None else None

    def sessions(self) -> list[Session]:
        """Return all sessions that were opened and not closed."""
        return [_to_session(value) for _key, value in self.scan_all(*schema.prefix_range(schema.SESSION))]

    def session(self, client: str) -> Session | None:
        """Return a session, None if it was never opened or is over."""
        data = self.kv.get(schema.SESSION + client.encode())
        return _to_session(data) if data is not None else None

    def put_session(self, session: Session) -> None:
        """Write a session's row."""
        self.kv.put(schema.SESSION + session.client.encode(), _encode(session))

    def end_session(self, client: str) -> None:
        """Forget a session, and what it was answered."""
        self.kv.delete(schema.SESSION + client.encode())
        self.kv.delete(schema.BELOW + client.encode())
        for key, _value in list(self.scan_all(*schema.prefix_range(schema.REPLY + client.encode()))):
            self.kv.delete(key)

    # -- answers that may have been lost ---------------------------------------------------------------------------------

    def find_reply(self, client: str, number: int) -> Reply | None:
        """Return what a session's change answered, None if it was not done (or its answer is kept no more)."""
        data = self.kv.get(schema.reply_key(client, number))
        return _to_reply(data) if data is not None else None

    def put_reply(self, client: str, number: int, reply: Reply) -> None:
        """Keep what a session's change answered."""
        self.kv.put(schema.reply_key(client, number), _encode(reply))

    def answered_below(self, client: str) -> int:
        """Return the number below which a session's changes were answered: 0 at first."""
        return schema.unpack64(self.kv.get(schema.BELOW + client.encode()) or bytes(8))

    def forget_replies(self, client: str, below: int, count_max: int) -> None:
        """A session needs no answer below this number; there are at most `count_max` behind the last such number."""
        first = self.answered_below(client)
        for number in range(first, min(below, first + count_max)):
            self.kv.delete(schema.reply_key(client, number))
        if below > first:
            self.kv.put(schema.BELOW + client.encode(), schema.pack64(below))

    def put_writer(self, ino: int, client: str, writer: Writer, *, fresh: bool = False) -> None:
        """Note who may write a file (client "": nobody any more, it is being fenced). Those with smaller epochs may not any more."""
        for key, value in () if fresh else self.kv.scan(*schema.prefix_range(schema.WRITER + schema.pack64(ino)), SCAN_ROWS):
            if _to_writer(value).epoch < writer.epoch:
                self.kv.delete(key)
        self.kv.put(schema.WRITER + schema.pack64(ino) + client.encode(), _encode(writer))

    def end_writer(self, ino: int, client: str) -> None:
        """Note that a client writes a file no more; with the last one ends what they were promised."""
        self.kv.delete(schema.WRITER + schema.pack64(ino) + client.encode())
        if self.find_promise(ino) is not None and not self.writers_of(ino):
            self.end_promise(ino)

    def writers_of(self, ino: int) -> list[str]:
        """Return the clients that may write a file and did not say that they ended ("": one that is being fenced)."""
        rows = self.kv.scan(*schema.prefix_range(schema.WRITER + schema.pack64(ino)), SCAN_ROWS)
        return [key[9:].decode() for key, _value in rows]

    def writing(self, volume: int) -> Iterator[int]:
        """Yield the inodes of a volume that have a writer, by number."""
        return (schema.ino_of(key) for key, _value in self.scan_all(*schema.volume_range(schema.WRITER, volume)))

    def writers(self) -> list[tuple[int, str, Writer]]:
        """Return rows (ino, client, `Writer`) of those who may write and did not say that they ended, by inode."""
        rows = self.scan_all(*schema.prefix_range(schema.WRITER))
        return [(schema.ino_of(key), key[9:].decode(), _to_writer(value)) for key, value in rows]

    def number_of(self, kind: str, name: str) -> int | None:
        """Return a principal's number, None if it has none yet."""
        data = self.kv.get(schema.PRINCIPAL + kind.encode() + name.encode())
        return schema.unpack32(data) if data is not None else None

    def principal(self, number: int) -> tuple[str, str] | None:
        """Return (kind, name) of a principal's number, None if nobody has it."""
        data = self.kv.get(schema.NUMBER + schema.pack32(number)) if 0 <= number < 1 << 32 else None
        return (data[:1].decode(), data[1:].decode()) if data is not None else None


def _osds_of(row: bytes) -> tuple[str, ...]:
    return tuple(item for item in _to_garbage(row) if isinstance(item, str))
