"""fsck of the MRC: each single corruption is found, mended, and a second run finds nothing."""

from random import Random

import msgspec
import pytest

from mrc_kit import ALICE, BOB, FILE, LAYOUT, LINK, ROOT, SUPER, World
from xtreemos.xtreemfs.model import VolumeRecord, make_ino
from xtreemos.xtreemfs.mrc import checking, fsck, schema
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.kv import MemoryKv
from xtreemos.xtreemfs.mrc.model import Usage
from xtreemos.xtreemfs.mrc.store import Lock, open_store

encode = msgspec.msgpack.encode


def town():
    """A volume with some of everything, and a second one."""
    world = World()
    a = world.mkdir("a", cred=ALICE)
    b = world.mkdir("b", 0o777, ALICE, a.ino)
    world.mkdir("c", cred=BOB, at=b.ino)
    made = world.make("f", cred=ALICE, at=a.ino)
    world.set(made.ino, ALICE, size=1000)
    world.link(made.ino, "g", ALICE, b.ino)
    world.make("s", LINK | 0o777, BOB)
    world.run(do.SetXattr(ALICE, made.ino, b"user.x", b"1", 0, 5))
    world.make("open", cred=BOB)
    world.unlink("open", BOB, keep=True)
    world.make("gone", cred=BOB)
    world.unlink("gone", BOB)
    world.run(do.SetQuota(1, -1, 1 << 30, 0))
    world.run(do.Create(ALICE, ROOT, b"w", FILE | 0o644, 0, 5, layout=LAYOUT, session="a", epoch=3, promise=True))
    world.run(do.Principals((("u", "alice"), ("g", "staff"))))
    world.run(do.MakeVolume(VolumeRecord(name="other", id=2, mrc="n1", owner="bob"), 0o755, 5, 5, 1))
    world.make("x", at=make_ino(2, 1))
    return world


def ino(world, path):
    at = ROOT
    for name in path.split("/"):
        at = world.get(name, at=at).ino
    return at


def edit(path, **fields):
    """Change fields of an inode."""
    return lambda world: world.kv.put(
        schema.inode_key(ino(world, path)), encode(msgspec.structs.replace(world.ino(ino(world, path)), **fields))
    )


def cut(key_of):
    """Delete a row."""
    return lambda world: world.kv.delete(key_of(world))


def put(key_of, value):
    """Write a row."""
    return lambda world: world.kv.put(key_of(world), value)


def cycle(world):
    """a/b becomes a directory of c, which lies below it; its name in a goes."""
    a, b, c = ino(world, "a"), ino(world, "a/b"), ino(world, "a/b/c")
    state = world.state
    folder, below, inode = state.inode(a), state.inode(c), state.inode(b)
    state.remove_name(folder, b"b", state.find_name(a, b"b").cookie)
    state.add_name(below, b"b", inode)
    for row in (folder, below, inode):
        state.put_inode(row)


def second_name(world):
    state = world.state
    root = state.inode(ROOT)
    state.add_name(root, b"again", state.inode(ino(world, "a/b")))
    state.put_inode(root)


CORRUPTIONS = {
    "nlink of a file": edit("a/f", nlink=7),
    "nlink of a directory": edit("a", nlink=9),
    "count of names": edit("a", entries=5),
    "largest cookie": edit("a", cookie=16),
    "parent": edit("a/b", parent=ROOT),
    "parent of a root": lambda world: world.kv.put(schema.inode_key(ROOT), encode(msgspec.structs.replace(world.ino(ROOT), parent=5))),
    "xattr flag": edit("a/f", flags=0),
    "inode gone": cut(lambda world: schema.inode_key(ino(world, "a/f"))),
    "inode unreadable": put(lambda world: schema.inode_key(ino(world, "a/f")), b"\xc1"),
    "inode of another": put(lambda world: schema.inode_key(ino(world, "a/f")), encode(World().make("z"))),
    "directory gone": cut(lambda world: schema.inode_key(ino(world, "a/b"))),
    "name gone": cut(lambda world: schema.name_key(ROOT, b"s")),
    "directory's name gone": cut(lambda world: schema.name_key(ino(world, "a"), b"b")),
    "only name gone with its place": lambda world: [
        world.kv.delete(key) for key in (schema.cookie_key(ROOT, world.state.find_name(ROOT, b"s").cookie), schema.name_key(ROOT, b"s"))
    ],
    "place in listings gone": cut(lambda world: schema.cookie_key(ROOT, world.state.find_name(ROOT, b"s").cookie)),
    "place of nothing": put(lambda _world: schema.cookie_key(ROOT, 999), schema.entry_value(77, 8, b"ghost")),
    "wrong type": lambda world: world.kv.put(
        schema.name_key(ROOT, b"s"), schema.name_value(msgspec.structs.replace(world.state.find_name(ROOT, b"s"), type=8))
    ),
    "one place for two names": lambda world: world.kv.put(
        schema.name_key(ROOT, b"s"), schema.name_value(msgspec.structs.replace(world.state.find_name(ROOT, b"s"), cookie=world.state.find_name(ROOT, b"w").cookie))
    ),
    "ring of directories": cycle,
    "second name of a directory": second_name,
    "orphan with a name": put(lambda world: schema.ORPHAN + schema.pack64(ino(world, "a/f")), b""),
    "orphan that is not there": put(lambda _world: schema.ORPHAN + schema.pack64(ROOT + 500), b""),
    "orphan forgotten": lambda world: world.kv.delete(schema.ORPHAN + schema.pack64(world.state.orphans()[0])),
    "layout of nothing": put(lambda _world: schema.COLD + schema.pack64(ROOT + 500), b"\x92\xc0\xa0"),
    "xattr of nothing": put(lambda _world: schema.xattr_key(ROOT + 500, b"user.x"), b""),
    "writer of nothing": put(lambda _world: schema.WRITER + schema.pack64(ROOT + 500) + b"a", encode([1])),
    "promise of nothing": put(lambda _world: schema.PROMISE + schema.pack64(ROOT + 500), encode([1, 2, 3])),
    "promise miscounted": put(lambda world: schema.PROMISE + schema.pack64(ino(world, "w")), encode([9000, 1, 1])),
    "promise used up": put(lambda world: schema.PROMISE + schema.pack64(ino(world, "a/f")), encode([1000, ALICE.uid, 0])),
    "promised of the volume": cut(lambda _world: schema.usage_key(1, None, schema.PROMISED)),
    "promised of nobody": put(lambda _world: schema.usage_key(1, 424242, schema.PROMISED), encode(Usage(5))),
    "answer of no session": put(lambda _world: schema.reply_key("0" * 32, 7), encode([[]])),
    "count of no session": put(lambda _world: schema.BELOW + b"0" * 32, schema.pack64(5)),
    "garbage that lives": put(lambda world: schema.GARBAGE + schema.pack64(ino(world, "a/f")), encode(["n1"])),
    "usage of the volume": put(lambda _world: schema.usage_key(1, None), encode(Usage(1, 1))),
    "usage of an owner": cut(lambda _world: schema.usage_key(1, ALICE.uid)),
    "usage of nobody": put(lambda _world: schema.usage_key(1, 424242), encode(Usage(1, 1))),
    "volume gone": cut(lambda _world: schema.VOLUME + schema.pack32(2)),
    "volume's name gone": cut(lambda _world: schema.VOLUME_NAME + b"other"),
    "name of no volume": put(lambda _world: schema.VOLUME_NAME + b"ghost", schema.pack32(99)),
    "root gone": cut(lambda _world: schema.inode_key(make_ino(2, 1))),
    "inode counter": put(lambda _world: schema.COUNTER + schema.pack32(1), schema.pack64(2)),
    "principal's name": lambda world: world.kv.delete(next(key for key in world.kv.rows if key[:1] == schema.PRINCIPAL)),
    "principal's number": lambda world: world.kv.delete(next(key for key in world.kv.rows if key[:1] == schema.NUMBER)),
}  # fmt: skip


def test_a_sound_store_has_no_problems():
    assert checking.check(town().kv) == []


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_each_corruption_is_found_and_mended(what):
    world = town()
    before = dict(world.kv.rows)
    CORRUPTIONS[what](world)
    assert world.kv.rows != before, "that corrupts nothing"
    told = []
    assert checking.repair(world.kv, told.append) == len(told) > 0
    assert checking.check(world.kv) == []
    world.make("after")  # and it can be worked with
    assert checking.check(world.kv) == []


def test_what_lost_its_name_is_found_again_with_all_below_it():
    world = town()
    b = ino(world, "a/b")
    world.kv.delete(schema.name_key(ino(world, "a"), b"b"))
    checking.repair(world.kv, lambda _text: None)
    assert ino(world, f"lost+found/#{b:x}/c") > 0
    assert world.ino(ino(world, f"lost+found/#{b:x}/g")).nlink == 2


def test_random_corruption_is_always_mended():
    random = Random(3)
    good = town().kv.rows
    for _turn in range(150):
        kv = MemoryKv(good)
        for _damage in range(random.randrange(1, 4)):
            key = random.choice(sorted(kv.rows))
            if key[:1] not in b"mVvs":
                kv.delete(key)
        checking.repair(kv, lambda _text: None)
        assert checking.check(kv) == []


def make_folder(folder):
    lock, store = Lock(folder), open_store(folder)
    store.execute(do.MakeVolume(VolumeRecord(name="vol", id=1, mrc="n1", owner="alice"), 0o777, 0, 0, 1))
    for number in range(50):
        store.execute(do.Create(SUPER, ROOT, b"f%d" % number, FILE | 0o644, 0, 5, layout=LAYOUT))
        store.sync()
    return lock, store


def test_the_program_checks_and_mends_a_folder(tmp_path, capsys):
    lock, store = make_folder(tmp_path)
    store.kv.put(schema.usage_key(1, None), encode(Usage(1, 1)))
    store.close()
    lock.close()
    assert fsck.main([str(tmp_path)]) == 1
    assert "miscounted" in capsys.readouterr().out
    assert fsck.main([str(tmp_path), "--repair"]) == 0
    assert fsck.main([str(tmp_path)]) == 0
    assert "sound" in capsys.readouterr().out


def test_a_running_mrc_is_left_alone(tmp_path, capsys):
    lock, store = make_folder(tmp_path)
    assert fsck.main([str(tmp_path), "--repair"]) == 1
    assert "another process" in capsys.readouterr().err
    store.close()
    lock.close()


@pytest.mark.log_warnings("torn tail")
def test_a_damaged_log_is_cut_at_the_damage_only_when_asked_for_and_kept(tmp_path, capsys):
    lock, store = make_folder(tmp_path)
    store.log.close()
    store.kv.close()  # a crash: the log has it all, the store's commit nothing
    lock.close()
    (segment,) = (tmp_path / "log").iterdir()
    data = bytearray(segment.read_bytes())
    data[3000] ^= 1
    segment.write_bytes(data)
    assert fsck.main([str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().out
    assert segment.read_bytes() == data
    assert fsck.main([str(tmp_path), "--repair"]) == 0
    assert (tmp_path / next(path.name for path in tmp_path.glob("log.damaged-*")) / segment.name).read_bytes() == data
    assert fsck.main([str(tmp_path)]) == 0
    lock, store = Lock(tmp_path), open_store(tmp_path)
    assert 5 < store.seq < 51
    store.close()
    lock.close()
