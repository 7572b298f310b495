"""fsck over MRC and OSDs: each kind of difference is found, what can be is mended, and a second look then finds only what is lost."""

from __future__ import annotations

import pytest

from mrc_kit import ALICE, LAYOUT, World
from xtreemos.xtreemfs.model import VolumePolicy, VolumeRecord, make_ino
from xtreemos.xtreemfs.mrc import checking, crosscheck
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.crosscheck import Columns
from xtreemos.xtreemfs.protocol import ColumnRow

MIB = 1 << 20
OBJECT = 4 * MIB


def there(ino, column=0, length=-1, taken=4096):
    return ColumnRow(ino, column, "there", length, taken)


@pytest.fixture
def world():
    one = World()
    made = one.make("f", cred=ALICE)
    one.set(made.ino, ALICE, size=6 * MIB)
    inode = one.ino(made.ino)
    inode.blocks = 100
    one.state.put_inode(inode)
    assert not checking.check(one.kv)
    return one


def ino_of(world, name="f"):
    return world.get(name).ino


def whole(world):
    return {"n1": [there(ino_of(world), 0)], "n2": [there(ino_of(world), 1)]}


def look(world, rows, silent=(), volumes=None):
    seen = checking.look(world.kv)
    known = {row.record.id: row.record for row in seen.volumes.values()} | (volumes or {})
    return crosscheck.check(seen, world.state, Columns(rows, frozenset(silent)), "n1", known)


def mend(world, findings):
    for finding in findings:
        if finding.problem is not None:
            finding.problem.repair(world.state)
    checking.repair(world.kv, lambda _text: None)


def test_what_fits_is_sound(world):
    assert look(world, whole(world)) == []


def test_a_file_of_which_nothing_is_there_is_named_by_its_path(world):
    found = look(world, {"n1": [], "n2": []})
    assert len(found) == 1
    assert ":/f (inode" in found[0].text
    assert found[0].problem is None


def test_a_column_that_its_osd_misses_is_lost_although_others_are_there(world):
    rows = whole(world)
    rows["n2"] = [ColumnRow(ino_of(world), 1, "lost", 2 * MIB, 0)]
    assert look(world, rows)[0].text.endswith("column 1 is lost on n2")


def test_a_hole_needs_no_column(world):
    assert look(world, {"n1": whole(world)["n1"], "n2": []}) == []
    inode = world.ino(ino_of(world))
    inode.blocks = 0
    world.state.put_inode(inode)
    assert look(world, {"n1": [], "n2": []}) == []


def test_silence_of_an_osd_proves_nothing(world):
    assert look(world, {"n1": []}, silent=["n2"]) == []


def test_an_osd_that_nobody_knows_is_told(world):
    assert "n2, which is no object server" in look(world, {"n1": whole(world)["n1"]})[0].text


def test_columns_of_no_file_become_one_in_lost_and_found(world):
    stray = make_ino(1, 77)
    rows = whole(world)
    rows["n1"] += [there(stray, 0, OBJECT)]
    rows["n2"] += [there(stray, 1, MIB)]
    seen = checking.look(world.kv)
    assert crosscheck.suspects(seen, Columns(rows), "n1", {}) == {stray}
    found = look(world, rows)
    assert len(found) == 1
    mend(world, found)
    inode = world.ino(stray)
    assert (inode.size, inode.nlink) == (OBJECT + MIB, 1)
    assert world.state.cold(stray).layout.replicas[0].osds == LAYOUT.replicas[0].osds
    assert world.names(world.get("lost+found").ino) == [f"#{stray:x}"]
    assert (look(world, rows), checking.check(world.kv)) == ([], [])
    assert world.make("next").ino > stray, "its number is not given again"


def test_a_file_that_one_osd_was_told_to_delete_is_deleted_on_the_others(world):
    stray = make_ino(1, 78)
    rows = whole(world)
    rows["n1"] += [ColumnRow(stray, 0, "deleted", 0, 0)]
    rows["n2"] += [there(stray, 1, MIB)]
    mend(world, look(world, rows))
    assert world.state.find_inode(stray) is None
    assert world.state.garbage(stray) == ("n2",)
    assert look(world, rows) == [], "it is on its way"


def test_columns_of_a_removed_volume_are_deleted(world):
    stray = make_ino(9, 5)
    gone = VolumeRecord(name="old", id=9, mrc="n1", owner="alice", removed=True)
    rows = whole(world)
    rows["n1"] += [there(stray, 0, 5)]
    found = look(world, rows, volumes={9: gone})
    assert found[0].mends == "its columns are deleted"
    mend(world, found)
    assert world.state.garbage(stray) == ("n1",)


def test_columns_of_another_mrc_are_no_business_of_ours(world):
    rows = whole(world)
    rows["n1"] += [there(make_ino(9, 5), 0, 5)]
    assert look(world, rows, volumes={9: VolumeRecord(name="b", id=9, mrc="n2", owner="bob")}) == []


def test_columns_of_a_volume_that_nobody_knows_are_told_and_left_alone(world):
    rows = whole(world)
    rows["n1"] += [there(make_ino(9, 5), 0, 5)]
    found = look(world, rows)
    assert "nobody knows" in found[0].text
    assert found[0].problem is None


def test_files_that_wait_for_their_deletion_are_no_strays(world):
    ino = ino_of(world)
    world.unlink("f")
    assert look(world, {"n1": [there(ino, 0)], "n2": [there(ino, 1)]}) == []
    world.run(do.Deleted("n1", (ino,)))
    assert look(world, {"n1": [], "n2": [there(ino, 1)]}) == []


def test_a_width_that_the_columns_do_not_show_is_the_volume_s():
    world = World(policy=VolumePolicy(width=3, object_bytes=MIB))
    stray = make_ino(1, 50)
    mend(world, look(world, {"n1": [], "n2": [there(stray, 1, 10)]}))
    assert world.ino(stray).size == MIB + 10
    assert len(world.state.cold(stray).layout.replicas[0].osds) == 3
