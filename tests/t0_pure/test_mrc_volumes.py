"""Volumes, quotas, principals, sessions and garbage in the MRC's machine; and where files are placed."""

import errno

import msgspec
import pytest

from mrc_kit import ALICE, BOB, FILE, LAYOUT, ROOT, SUPER, World, refused
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import FIRST_PRINCIPAL, WIDTH_MAX, OsdRecord, VolumePolicy, VolumeRecord, make_ino
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import placing, schema
from xtreemos.xtreemfs.mrc.model import Cred, Usage, Writer


@pytest.fixture
def world():
    return World()


def volume(number, name, **more):
    return do.MakeVolume(VolumeRecord(name=name, id=number, mrc="n1", owner="alice", **more), 0o755, ALICE.uid, ALICE.gid, 5)


def test_names_and_ids_of_volumes_are_unique(world):
    refused(errno.EEXIST, world.run, volume(2, "vol"))
    refused(errno.EEXIST, world.run, volume(1, "other"))
    refused(errno.EINVAL, world.run, volume(0, "other"))
    world.run(volume(2, "other"))
    assert [row.record.name for row in world.state.volumes()] == ["vol", "other"]
    assert world.ino(make_ino(2, 1)).uid == ALICE.uid


def test_a_removed_volume_is_purged_whole_and_its_name_is_free_at_once(world):
    folder = world.mkdir("d")
    files = [world.make(f"f{number}", at=folder.ino).ino for number in range(20)]
    world.run(do.SetXattr(SUPER, folder.ino, b"user.x", b"1", 0, 5))
    world.run(volume(2, "other"))
    refused(errno.ENOTEMPTY, world.run, do.RemoveVolume(1))
    world.run(do.RemoveVolume(1, force=True))
    world.run(volume(3, "vol"))
    steps = 1
    while not world.run(do.Purge(1, 7)):
        steps += 1
    assert steps > 5
    assert {ino for ino, _osds in world.state.all_garbage(0, 100)} == set(files)
    for ino in files:
        for osd in LAYOUT.replicas[0].osds:
            world.run(do.Deleted(osd, (ino,)))
    left = [key for key in world.kv.rows if key[:1] in b"ildcxowg" and key[1:9] < make_ino(2, 0).to_bytes(8)]
    assert (left, world.state.find_volume(1)) == ([], None)
    refused(errno.EBUSY, world.run, do.Purge(2, 7))


def test_garbage_stays_until_every_osd_has_answered(world):
    made = world.make("f")
    world.unlink("f")
    world.run(do.Deleted("n1", (made.ino, 12345)))
    assert world.state.all_garbage(0, 10) == [(made.ino, ("n2",))]
    assert world.state.garbage_width(made.ino) == len(LAYOUT.replicas[0].osds)
    world.run(do.Deleted("n1", (made.ino,)))
    world.run(do.Deleted("n2", (made.ino,)))
    assert world.state.all_garbage(0, 10) == []


def test_garbage_of_which_no_width_was_written_down_may_have_any(world):
    world.kv.put(schema.GARBAGE + schema.pack64(77), msgspec.msgpack.encode(["n1", "n2"]))
    assert (world.state.garbage(77), world.state.garbage_width(77)) == (("n1", "n2"), WIDTH_MAX)
    world.run(do.Deleted("n1", (77,)))
    assert (world.state.garbage(77), world.state.garbage_width(77)) == (("n2",), WIDTH_MAX)


def test_quotas_refuse_growth_before_it_happens():
    world = World(policy=VolumePolicy(quota_bytes=1000, quota_files=3))
    made = world.make("f", cred=ALICE)
    world.set(made.ino, ALICE, size=1000)
    refused(errno.EDQUOT, world.set, made.ino, ALICE, size=1001)
    world.set(made.ino, ALICE, size=900)
    world.make("g", cred=BOB)
    refused(errno.EDQUOT, world.make, "h", cred=BOB)
    world.run(do.Update(made.ino, size=2000))  # what a writer did already is counted, not refused
    assert world.state.usage(1, None) == Usage(2000, 3)
    refused(errno.EDQUOT, world.set, world.get("g").ino, BOB, size=1)
    world.set(made.ino, ALICE, size=10)
    world.set(world.get("g").ino, BOB, size=1)


def test_owners_have_limits_of_their_own(world):
    world.run(do.SetQuota(1, ALICE.uid, 100, 2))
    made = world.make("f", cred=ALICE)
    refused(errno.EDQUOT, world.set, made.ino, ALICE, size=101)
    world.make("g", cred=ALICE)
    refused(errno.EDQUOT, world.make, "h", cred=ALICE)
    other = world.make("h", cred=BOB)
    refused(errno.EDQUOT, world.set, other.ino, SUPER, uid=ALICE.uid)
    assert world.state.room(1, ALICE.uid) == Usage(100, 0)
    assert world.state.room(1, BOB.uid) is None
    world.run(do.SetQuota(1, ALICE.uid, 0, 0))
    world.make("i", cred=ALICE)
    refused(errno.ENOENT, world.run, do.SetQuota(9, -1, 1, 1))


def test_principals_keep_their_numbers_and_users_and_groups_do_not_share_any(world):
    names = (("u", "alice"), ("g", "alice"), ("u", "bob"))
    numbers = world.run(do.Principals(names))
    assert len(set(numbers)) == 3
    assert all(FIRST_PRINCIPAL <= number < 2 * FIRST_PRINCIPAL for number in numbers)
    assert world.run(do.Principals(names[::-1])) == numbers[::-1]
    assert world.state.principal(numbers[1]) == ("g", "alice")
    other = World()
    assert other.run(do.Principals(names[::-1])) == numbers[::-1], "another MRC gives the same"


def test_writers_of_older_epochs_are_superseded(world):
    made = world.run(do.Create(ALICE, ROOT, b"f", FILE | 0o644, 0, 5, layout=LAYOUT, session="a", epoch=3)).inode
    assert world.state.writers() == [(made.ino, "a", Writer(3))]
    world.run(do.Writer("b", made.ino, 4))
    world.run(do.Writer("c", made.ino, 4, through=2))
    assert world.state.writers() == [(made.ino, "b", Writer(4)), (made.ino, "c", Writer(4, 2))]
    world.run(do.WritersDone(((made.ino, "b"),)))
    world.run(do.Writer("", made.ino, 5))
    assert world.state.writers() == [(made.ino, "", Writer(5))]
    world.unlink("f")
    assert world.state.writers() == []


def test_sessions_are_known_until_they_are_closed(world):
    world.run(do.OpenSession("ab", "n1", 5))
    assert [row.client for row in world.state.sessions()] == ["ab"]
    world.run(do.CloseSession("ab"))
    assert world.state.sessions() == []


# -- placing -------------------------------------------------------------------------------------------------------------------


def osd(node, free=1 << 40, **more):
    return OsdRecord(node=node, address="", total_bytes=1 << 41, free_bytes=free, beat_at=more.pop("beat_at", 100), **more)


def test_new_files_avoid_osds_that_are_silent_full_or_failing():
    rows = [osd("a", beat_at=10), osd("b", free=1000), osd("c", state="failing"), osd("d", free=(1 << 41) // 200), osd("e")]
    good = placing.candidates(rows, 100)
    assert [row.node for row in good] == ["e"]
    with pytest.raises(FsError, match="no object server"):
        placing.choose(VolumePolicy(), [], near="a", turn=1)


def test_near_takes_the_own_node_first_and_spread_does_not():
    good = [osd(name) for name in "abcd"]
    for turn in range(50):
        assert placing.choose(VolumePolicy(width=2), good, near="c", turn=turn).replicas[0].osds[0] == "c"
    firsts = {placing.choose(VolumePolicy(placement="spread"), good, near="c", turn=turn).replicas[0].osds[0] for turn in range(50)}
    assert firsts == {"a", "b", "c", "d"}


def test_columns_are_on_different_osds_and_no_more_than_there_are():
    good = [osd(name) for name in "abc"]
    for turn in range(50):
        osds = placing.choose(VolumePolicy(width=5), good, near="", turn=turn).replicas[0].osds
        assert sorted(osds) == ["a", "b", "c"]


def test_more_room_draws_more_files():
    good = [osd("big", free=3 << 40), osd("small", free=1 << 40)]
    picks = [placing.choose(VolumePolicy(), good, near="", turn=turn).replicas[0].osds[0] for turn in range(1000)]
    assert 700 < picks.count("big") < 800


def test_what_is_made_in_a_groups_volume_is_the_groups_whatever_the_umask():
    world = World()
    record = VolumeRecord(name="class", id=7, mrc="n1", owner="alice")
    world.run(do.MakeVolume(record, 0o2770, ALICE.uid, 77, 1, inherited=True))
    top = make_ino(7, 1)
    member, owner = Cred(BOB.uid, BOB.gid, (77,)), Cred(ALICE.uid, ALICE.gid, (77,))
    folder = world.mkdir("d", 0o777, at=top, cred=member, umask=0o077)
    assert (folder.mode & 0o7777, folder.gid) == (0o2770, 77)
    for at in (top, folder.ino):
        made = world.make("f", FILE | 0o666, at=at, cred=owner, umask=0o077)
        assert (made.mode & 0o7777, made.gid, made.acl) == (0o660, 77, b"")
        world.set(made.ino, member, size=5)
    refused(errno.EACCES, world.make, "h", at=top, cred=BOB)
    refused(errno.EACCES, world.set, made.ino, BOB, size=6)


def test_an_owner_may_give_a_file_to_their_own_groups_only(world):
    made = world.make("f", cred=ALICE)
    refused(errno.EPERM, world.set, made.ino, ALICE, gid=77)
    assert world.set(made.ino, Cred(ALICE.uid, ALICE.gid, (77,)), gid=77).gid == 77
    refused(errno.EPERM, world.set, made.ino, Cred(BOB.uid, BOB.gid, (77,)), gid=77)
