"""What must be true of a store, and the changes that make it true again. Pure: reads a `Kv`, returns problems with their repairs.

The names (table `d`) are believed before anything that can be derived from them: link counts, listing order, parents. What has no name
any more goes to `lost+found` of its volume; nothing that could be somebody's data is ever deleted. Takes about 1.3 GB of
memory and 30 s per million names.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from xtreemos.xtreemfs.model import NUMBER_BITS, VolumeRecord, make_ino
from xtreemos.xtreemfs.mrc import schema
from xtreemos.xtreemfs.mrc.kv import Kv
from xtreemos.xtreemfs.mrc.model import (
    CLIENT_BYTES,
    DIRECTORY_BYTES,
    FIRST_COOKIE,
    HAS_XATTRS,
    ROOT_NUMBER,
    TYPE_SHIFT,
    Inode,
    Name,
    Promise,
    Usage,
    Volume,
)
from xtreemos.xtreemfs.mrc.state import State

LOST_FOUND: Final = b"lost+found"
ROUNDS_MAX: Final = 8  # of repair: one may bring another to light (a directory found again has names of its own)
_encode: Final = msgspec.msgpack.Encoder().encode

Repair = Callable[[State], None]


class Problem(NamedTuple):
    """One thing that is not as it must be, in one line, and what mends it."""

    text: str
    repair: Repair


@dataclass
class Picture:
    """The whole store as rows by table, read once."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    unreadable: list[bytes] = field(default_factory=list)
    names: dict[int, dict[bytes, Name]] = field(default_factory=dict)
    """directory -> name -> entry"""
    cookies: dict[tuple[int, int], tuple[int, int, bytes]] = field(default_factory=dict)
    held_by: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    """inode -> its (directory, name)s"""
    orphans: set[int] = field(default_factory=set)
    volumes: dict[int, Volume] = field(default_factory=dict)


def _rows(state: State, table: bytes) -> Iterator[tuple[bytes, bytes]]:
    return state.scan_all(*schema.prefix_range(table))


def look(kv: Kv) -> Picture:
    """Read the store."""
    state = State(kv, 0)
    seen = Picture()
    for key, value in _rows(state, schema.INODE):
        try:
            inode = msgspec.msgpack.decode(value, type=Inode)
        except msgspec.MsgspecError:
            inode = None
        if inode is None or inode.ino != schema.ino_of(key):
            seen.unreadable.append(key)
        else:
            seen.inodes[inode.ino] = inode
    for key, value in _rows(state, schema.NAME):
        folder, name, entry = schema.ino_of(key), key[9:], schema.to_name(value)
        seen.names.setdefault(folder, {})[name] = entry
        seen.held_by.setdefault(entry.ino, []).append((folder, name))
    for key, value in _rows(state, schema.COOKIE):
        seen.cookies[schema.ino_of(key), schema.cookie_of(key)] = schema.to_entry(value)
    seen.orphans = {schema.ino_of(key) for key, _value in _rows(state, schema.ORPHAN)}
    seen.volumes = {row.record.id: row for row in state.volumes()}
    return seen


def check(kv: Kv) -> list[Problem]:
    """Return everything that is wrong, in the order in which it is to be mended; [] for a sound store."""
    seen = look(kv)
    state = State(kv, 0)
    problems = list(_volumes(seen, state))
    going = {number for number, row in seen.volumes.items() if row.state == "gone"}
    for rule in (_unreadable, _dangling, _index, _folders, _links, _attachments):
        problems += [problem for problem in rule(seen, state, going) if problem is not None]
    if not problems:  # counters are derived from the rest: they are judged when that is sound
        problems = list(_usage(seen, state, going))
    return problems


def repair(kv: Kv, tell: Callable[[str], None]) -> int:
    """Mend everything; return how many problems there were. Raises RuntimeError if it does not come to an end (a bug)."""
    count = 0
    for _round in range(ROUNDS_MAX):
        problems = check(kv)
        if not problems:
            return count
        state = State(kv, schema.unpack64(kv.get(schema.SEQ) or bytes(8)))
        for problem in problems:
            tell(problem.text)
            problem.repair(state)
        count += len(problems)
    raise RuntimeError(f"the store is not sound after {ROUNDS_MAX} rounds of repair")


def _put(key: bytes, value: bytes) -> Repair:
    return lambda state: state.kv.put(key, value)


def _delete(*keys: bytes) -> Repair:
    def run(state: State) -> None:
        for key in keys:
            state.kv.delete(key)

    return run


def _save(inode: Inode) -> Repair:
    return lambda state: state.put_inode(inode)


# -- rules ---------------------------------------------------------------------------------------------------------------


def _volumes(seen: Picture, state: State) -> Iterator[Problem]:
    used = {ino >> NUMBER_BITS for ino in seen.inodes} | {ino >> NUMBER_BITS for ino in seen.names}
    for number in sorted(used - seen.volumes.keys()):
        name = f"recovered-{number}"
        row = Volume(VolumeRecord(name=name, id=number, mrc="", owner=""), "live")
        yield Problem(f"volume {number} has files and no record: it becomes {name}", lambda state, row=row: state.put_volume(row))  # type: ignore[misc]
    for number, row in seen.volumes.items():
        if row.state == "gone":
            continue
        name = row.record.name
        if state.volume_id(name) != number:
            yield Problem(
                f"volume {name} is not found by its name", _put(schema.VOLUME_NAME + name.encode(), schema.pack32(number))
            )
        root = make_ino(number, ROOT_NUMBER)
        if root not in seen.inodes:
            made = Inode(
                root, stat.S_IFDIR | 0o700, 2, 0, 0, DIRECTORY_BYTES, 8, 0, 0, 0, 0, 0, 0, parent=root, cookie=FIRST_COOKIE
            )
            yield Problem(f"volume {name} has no root", _save(made))
        largest = max((ino for ino in seen.inodes if ino >> NUMBER_BITS == number), default=0) & (1 << NUMBER_BITS) - 1
        key = schema.COUNTER + schema.pack32(number)
        if schema.unpack64(state.kv.get(key) or bytes(8)) < largest:
            yield Problem(f"volume {name} would give inode numbers again", _put(key, schema.pack64(largest)))
    for key, value in _rows(state, schema.VOLUME_NAME):
        held = seen.volumes.get(schema.unpack32(value))
        if held is None or held.state == "gone" or held.record.name.encode() != key[1:]:
            yield Problem(f"the name {key[1:]!r} stands for a volume that is not there", _delete(key))


def _unreadable(seen: Picture, _state: State, _going: set[int]) -> Iterator[Problem]:
    for key in seen.unreadable:
        yield Problem(f"the record of inode {schema.ino_of(key):x} cannot be read: it goes", _delete(key))


def _dangling(seen: Picture, _state: State, going: set[int]) -> Iterator[Problem]:
    for folder, names in seen.names.items():
        if folder >> NUMBER_BITS in going:
            continue
        where = seen.inodes.get(folder)
        for name, entry in names.items():
            keys = schema.name_key(folder, name), schema.cookie_key(folder, entry.cookie)
            if where is None or not where.is_dir:
                yield Problem(f"the name {name!r} is in {folder:x}, which is no directory", _delete(*keys))
            elif entry.ino not in seen.inodes:
                yield Problem(f"the name {name!r} in {folder:x} stands for inode {entry.ino:x}, which is not there", _delete(*keys))


def _index(seen: Picture, _state: State, going: set[int]) -> Iterator[Problem]:
    """Names and their places in listings say the same."""
    for folder, names in seen.names.items():
        taken: set[int] = set()
        for name, entry in names.items():
            inode = seen.inodes.get(entry.ino)
            if folder >> NUMBER_BITS in going or inode is None or folder not in seen.inodes:
                continue
            kind = inode.mode >> TYPE_SHIFT
            if entry.cookie in taken or entry.cookie <= FIRST_COOKIE:
                yield Problem(
                    f"the name {name!r} in {folder:x} has no place of its own in listings", _renumber(folder, name, entry.ino)
                )
            elif entry.type != kind:
                right = schema.name_value(Name(entry.ino, kind, entry.cookie))
                yield Problem(f"the name {name!r} in {folder:x} has the wrong type", _put(schema.name_key(folder, name), right))
            elif seen.cookies.get((folder, entry.cookie)) != (entry.ino, kind, name):
                right = schema.entry_value(entry.ino, kind, name)
                yield Problem(
                    f"the name {name!r} in {folder:x} is not listed right", _put(schema.cookie_key(folder, entry.cookie), right)
                )
            taken.add(entry.cookie)
    for (folder, cookie), (_ino, _kind, name) in seen.cookies.items():
        held = seen.names.get(folder, {}).get(name)
        if folder >> NUMBER_BITS not in going and (held is None or held.cookie != cookie):
            yield Problem(f"listings of {folder:x} show {name!r}, which is not there", _delete(schema.cookie_key(folder, cookie)))


def _renumber(folder: int, name: bytes, ino: int) -> Repair:
    def run(state: State) -> None:
        where, inode = state.find_inode(folder), state.find_inode(ino)
        if where is not None and inode is not None:
            where.cookie = max(where.cookie, FIRST_COOKIE) + 1
            state.replace_name(where, name, inode, where.cookie)
            state.put_inode(where)

    return run


def _folders(seen: Picture, _state: State, going: set[int]) -> Iterator[Problem]:
    """Directories know their parents, what they hold, and hang together."""
    for ino, inode in seen.inodes.items():
        if not inode.is_dir or ino >> NUMBER_BITS in going:
            continue
        names = seen.names.get(ino, {})
        subdirs = sum(1 for entry in names.values() if (child := seen.inodes.get(entry.ino)) and child.is_dir)
        largest = max((entry.cookie for entry in names.values()), default=FIRST_COOKIE)
        nlink = 0 if ino in seen.orphans and not seen.held_by.get(ino) else 2 + subdirs
        right = msgspec.structs.replace(inode, nlink=nlink, entries=len(names), cookie=max(inode.cookie, largest))
        holders = seen.held_by.get(ino, [])
        root = ino & (1 << NUMBER_BITS) - 1 == ROOT_NUMBER
        if root:
            right.parent = ino
        elif len(holders) == 1:
            right.parent = holders[0][0]
        if right != inode:
            yield Problem(f"directory {ino:x} miscounts what it holds, or does not know its parent", _save(right))
        for folder, name in holders[0 if root else 1 :]:
            keys = schema.name_key(folder, name), schema.cookie_key(folder, seen.names[folder][name].cookie)
            yield Problem(f"directory {ino:x} has a second name, {name!r} in {folder:x}: it goes", _delete(*keys))
        if not root and len(holders) == 1 and not _hangs(seen, ino):
            folder, name = holders[0]
            keys = schema.name_key(folder, name), schema.cookie_key(folder, seen.names[folder][name].cookie)
            yield Problem(f"directory {ino:x} lies below itself: its name {name!r} goes", _delete(*keys))
            return  # one cut may mend the whole ring; the next round sees


def _hangs(seen: Picture, ino: int) -> bool:
    """Whether a directory is below a root, or below one that has no name (which will be mended by itself)."""
    met: set[int] = set()
    while ino not in met:
        met.add(ino)
        if ino & (1 << NUMBER_BITS) - 1 == ROOT_NUMBER:
            return True
        holders = seen.held_by.get(ino, [])
        if not holders:
            return True
        ino = holders[0][0]
    return False


def _links(seen: Picture, _state: State, going: set[int]) -> Iterator[Problem]:
    """Link counts are the numbers of names; what has none is pinned, or lost."""
    for ino, inode in seen.inodes.items():
        if ino >> NUMBER_BITS in going or ino & (1 << NUMBER_BITS) - 1 == ROOT_NUMBER:
            continue
        count = len(seen.held_by.get(ino, []))
        if not count and ino not in seen.orphans:
            yield Problem(f"inode {ino:x} has no name: it goes to {LOST_FOUND.decode()}", find_home(ino))
        elif not inode.is_dir and inode.nlink != count:
            right = msgspec.structs.replace(inode, nlink=count)
            yield Problem(f"inode {ino:x} has {count} names and says {inode.nlink}", _save(right))
    for ino in seen.orphans:
        if ino not in seen.inodes or seen.held_by.get(ino):
            yield Problem(f"inode {ino:x} is kept as one without a name, and is none", _delete(schema.ORPHAN + schema.pack64(ino)))


def find_home(ino: int) -> Repair:
    """Give an inode a name in the `lost+found` of its volume."""

    def run(state: State) -> None:
        inode = state.find_inode(ino)
        if inode is None:
            return
        home = _lost_found(state, ino >> NUMBER_BITS)
        name = b"#%x" % ino
        if state.find_name(home.ino, name) is None:
            state.add_name(home, name, inode)
        if inode.is_dir:
            inode.parent = home.ino
            home.nlink += 1
        else:
            inode.nlink = 1
        state.put_inode(inode)
        state.put_inode(home)

    return run


def _lost_found(state: State, volume: int) -> Inode:
    root = state.inode(make_ino(volume, ROOT_NUMBER))
    found = state.find_name(root.ino, LOST_FOUND)
    held = state.find_inode(found.ino) if found is not None else None
    if held is not None and held.is_dir:
        return held
    made = Inode(
        state.new_ino(volume), stat.S_IFDIR | 0o700, 2, root.uid, root.gid, DIRECTORY_BYTES, 8, 0,
        root.mtime_ns, root.mtime_ns, root.mtime_ns, root.mtime_ns, 0, parent=root.ino, cookie=FIRST_COOKIE,
    )  # fmt: skip
    name = LOST_FOUND if found is None else LOST_FOUND + b".%x" % made.ino
    state.put_inode(made)
    state.add_name(root, name, made)
    root.nlink += 1
    state.put_inode(root)
    return made


def _attachments(seen: Picture, state: State, going: set[int]) -> Iterator[Problem]:
    """Rows that belong to an inode have one; garbage has none; principals are known both ways."""
    for table, what in ((schema.COLD, "layout"), (schema.XATTR, "xattr"), (schema.WRITER, "writer"), (schema.PROMISE, "promise")):
        for key, _value in _rows(state, table):
            ino = schema.ino_of(key)
            inode = seen.inodes.get(ino)
            if ino >> NUMBER_BITS in going:
                continue
            if inode is None:
                yield Problem(f"a {what} of inode {ino:x}, which is not there", _delete(key))
            elif table == schema.XATTR and not inode.flags & HAS_XATTRS:
                inode.flags |= HAS_XATTRS
                yield Problem(f"inode {ino:x} does not know of its xattrs", _save(inode))
    for table, what in ((schema.REPLY, "an answer"), (schema.BELOW, "the count of answers")):
        for key, _value in _rows(state, table):
            if state.session(key[1 : 1 + CLIENT_BYTES].decode("ascii", "replace")) is None:
                yield Problem(f"{what} is kept for a session that is over", _delete(key))
    for key, _value in _rows(state, schema.GARBAGE):
        if schema.ino_of(key) in seen.inodes:
            yield Problem(f"inode {schema.ino_of(key):x} is to be deleted on its OSDs, and lives", _delete(key))
    for key, value in _rows(state, schema.NUMBER):
        if state.kv.get(schema.PRINCIPAL + value) != key[1:]:
            yield Problem(f"the name {value[1:]!r} does not lead to its number", _put(schema.PRINCIPAL + value, key[1:]))
    for key, value in _rows(state, schema.PRINCIPAL):
        if state.kv.get(schema.NUMBER + value) is None:
            yield Problem(f"the number of {key[2:]!r} does not lead to its name", _put(schema.NUMBER + value, key[1:]))


def _usage(seen: Picture, state: State, going: set[int]) -> Iterator[Problem]:
    """Counters say what there is, and what is promised of the rest."""
    right: dict[bytes, list[int]] = {}
    for ino, inode in seen.inodes.items():
        for owner in (None, inode.uid):
            row = right.setdefault(schema.usage_key(ino >> NUMBER_BITS, owner), [0, 0])
            row[0] += inode.size if inode.is_file else 0
            row[1] += 1
    for key, _value in _rows(state, schema.PROMISE):
        ino = schema.ino_of(key)
        held = state.find_promise(ino)
        if held is None or ino >> NUMBER_BITS in going:
            continue
        inode = seen.inodes[ino]
        rest = held.reach - inode.size
        if (rest, inode.uid) != (held.rest, held.owner) or rest <= 0:
            good = _encode(Promise(held.reach, inode.uid, rest)) if rest > 0 else None
            yield Problem(
                f"what the writers of inode {ino:x} are promised is miscounted", _put(key, good) if good else _delete(key)
            )
        for owner in (None, inode.uid) if rest > 0 else ():
            right.setdefault(schema.usage_key(ino >> NUMBER_BITS, owner, schema.PROMISED), [0, 0])[0] += rest
    told = {
        key: value
        for table in (schema.USAGE, schema.PROMISED)
        for key, value in _rows(state, table)
        if schema.unpack32(key[1:5]) not in going
    }
    for key in sorted(right.keys() | told.keys()):
        if schema.unpack32(key[1:5]) in going:
            continue
        want = _encode(Usage(*right[key])) if key in right else None
        if told.get(key) != want:
            yield Problem(
                f"usage of volume {schema.unpack32(key[1:5])} is miscounted", _put(key, want) if want is not None else _delete(key)
            )
