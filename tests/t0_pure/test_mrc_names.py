"""Names in the MRC's machine, as link(2), mkdir(2), open(2), rename(2), rmdir(2), symlink(2), unlink(2) and pjdfstest have them."""

import errno
import stat

import pytest

from mrc_kit import ALICE, BOB, DIR, EVE, FIFO, FILE, LINK, ROOT, SUPER, World, refused
from xtreemos.xtreemfs.model import LINKS_MAX
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc import machine, views
from xtreemos.xtreemfs.mrc.kv import MemoryKv
from xtreemos.xtreemfs.mrc.model import Usage
from xtreemos.xtreemfs.mrc.namespace import EXCHANGE, NOREPLACE, Moved


@pytest.fixture
def world():
    return World()


def test_a_new_file_has_owner_group_mode_and_times_of_its_making(world):
    made = world.make("f", FILE | 0o6777, ALICE, umask=0o27)
    assert (made.uid, made.gid, made.mode) == (ALICE.uid, ALICE.gid, FILE | 0o6750)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns == world.now - 1
    root = world.ino(ROOT)
    assert (root.mtime_ns, root.ctime_ns, root.entries, root.nlink) == (made.mtime_ns, made.ctime_ns, 1, 2)


def test_set_group_id_directories_pass_their_group_on(world):
    folder = world.mkdir("d", 0o2777, SUPER)
    world.set(folder.ino, gid=2000, mode=0o2777)
    inner = world.mkdir("e", 0o755, EVE, folder.ino)
    assert (inner.gid, inner.mode & 0o7777) == (2000, 0o2755)
    assert world.make("f", FILE | 0o2775, EVE, folder.ino).mode & 0o7777 == 0o775, (
        "not Eve's group: the bit would give her its rights"
    )
    assert world.make("g", FILE | 0o2775, ALICE, folder.ino).mode & 0o7777 == 0o2775


def test_making_is_refused_in_the_order_of_linux(world):
    world.make("there", FILE | 0o644, ALICE)
    shut = world.mkdir("shut", 0o700, BOB)
    refused(errno.ENOTDIR, world.make, "x", at=world.get("there").ino)
    refused(errno.EACCES, world.make, "x", cred=ALICE, at=shut.ino)
    refused(errno.ENAMETOOLONG, world.make, "n" * 256)
    world.make("n" * 255)
    readonly = world.mkdir("ro", 0o755, BOB)
    world.make("f", cred=BOB, at=readonly.ino)
    refused(errno.EEXIST, world.make, "f", cred=ALICE, at=readonly.ino)
    refused(errno.EACCES, world.make, "g", cred=ALICE, at=readonly.ino)
    refused(errno.EPERM, world.make, "dev", stat.S_IFCHR | 0o600, ALICE)
    assert world.make("dev", stat.S_IFBLK | 0o600, SUPER, rdev=7).rdev == 7
    refused(errno.EINVAL, world.make, "odd", 0o130000)
    for name in (".", "..", "", "a/b", "a\0b"):
        refused(errno.EINVAL, world.make, name)


def test_a_removed_directory_takes_no_names(world):
    folder = world.mkdir("d")
    world.run(do.Unlink(SUPER, ROOT, b"d", world.now, True, 0, True))
    refused(errno.ENOENT, world.make, "f", at=folder.ino)
    world.run(do.Free((folder.ino,)))
    refused(errno.ESTALE, world.make, "f", at=folder.ino)


@pytest.mark.parametrize(("target", "number"), [(b"", errno.ENOENT), (b"x" * 4096, errno.ENAMETOOLONG)])
def test_a_symlink_needs_a_target_of_good_length(world, target, number):
    refused(number, world.run, do.Create(SUPER, ROOT, b"s", LINK | 0o777, 0, 5, link=target))


def test_a_symlink_has_the_length_of_its_target_and_no_umask(world):
    made = world.make("s", LINK | 0o600, ALICE, umask=0o77)
    assert (made.size, made.mode) == (6, LINK | 0o777)
    assert world.state.cold(made.ino).link == b"target"


def test_directories_count_their_subdirectories(world):
    a = world.mkdir("a")
    world.mkdir("b", at=a.ino)
    assert (world.ino(a.ino).nlink, world.ino(ROOT).nlink) == (3, 3)
    world.rmdir("b", at=a.ino)
    assert world.ino(a.ino).nlink == 2
    world.make("f", at=a.ino)
    assert world.ino(a.ino).nlink == 2
    assert views.lookup(world.state, SUPER, a.ino, b"..")[1].ino == ROOT


def test_links_are_counted_and_the_last_one_frees_the_inode(world):
    made = world.make("f", cred=ALICE)
    world.link(made.ino, "g", ALICE)
    assert world.ino(made.ino).nlink == 2
    gone = world.unlink("f", ALICE).inode
    assert (gone.nlink, gone.ctime_ns) == (1, world.now - 1)
    assert world.unlink("g", ALICE).inode.nlink == 0
    assert world.state.find_inode(made.ino) is None
    assert world.state.garbage(made.ino) == ("n1", "n2")
    assert world.state.usage(1, ALICE.uid) == Usage()


def test_a_file_that_is_open_outlives_its_last_name(world):
    made = world.make("f", cred=ALICE)
    world.set(made.ino, ALICE, size=100)
    world.unlink("f", ALICE, keep=True)
    assert world.ino(made.ino).nlink == 0
    assert world.state.orphans() == [made.ino]
    assert world.state.usage(1, ALICE.uid) == Usage(100, 1)
    world.run(do.Free((made.ino,)))
    assert (world.state.find_inode(made.ino), world.state.orphans()) == (None, [])
    assert world.state.usage(1, ALICE.uid) == Usage()
    refused(errno.ESTALE, world.link, made.ino, "again")


def test_links_are_refused_in_the_order_of_linux(world):
    folder, made = world.mkdir("d"), world.make("f")
    refused(errno.EEXIST, world.link, folder.ino, "f")
    refused(errno.EPERM, world.link, folder.ino, "x")
    refused(errno.EACCES, world.link, made.ino, "x", BOB, folder.ino)
    world.unlink("f", keep=True)
    refused(errno.ENOENT, world.link, made.ino, "x")
    inode = world.make("many")
    inode.nlink = LINKS_MAX
    world.state.put_inode(inode)
    refused(errno.EMLINK, world.link, inode.ino, "x")


def test_a_file_without_a_name_may_get_one(world):
    made = world.run(do.Create(ALICE, ROOT, b"", FILE | 0o600, 0o22, world.now, session="s", epoch=1, anonymous=True)).inode
    assert made.nlink == 0
    assert world.names() == []
    assert world.state.orphans() == [made.ino]
    world.link(made.ino, "f", ALICE)
    assert (world.ino(made.ino).nlink, world.state.orphans()) == (1, [])
    world.unlink("f", keep=True)
    refused(errno.ENOENT, world.link, made.ino, "again")


def test_unlinking_is_refused_in_the_order_of_linux(world):
    world.mkdir("d")
    world.make("f")
    world.make("f", at=world.get("d").ino)
    refused(errno.ENOENT, world.unlink, "none")
    refused(errno.EISDIR, world.unlink, "d")
    refused(errno.ENOTDIR, world.rmdir, "f")
    refused(errno.ENOTEMPTY, world.rmdir, "d")
    refused(errno.EACCES, world.unlink, "f", ALICE, world.get("d").ino)
    refused(errno.ENAMETOOLONG, world.unlink, "n" * 256)


def test_in_a_sticky_directory_only_owners_remove_and_rename(world):
    sticky = world.mkdir("tmp", 0o1777)
    at = sticky.ino
    for name in ("a", "b", "c"):
        world.make(name, cred=ALICE, at=at)
    refused(errno.EPERM, world.unlink, "a", BOB, at)
    refused(errno.EPERM, world.rename, "a", "x", BOB, at)
    world.make("mine", cred=BOB, at=at)
    refused(errno.EPERM, world.rename, "mine", "a", BOB, at)
    world.unlink("a", ALICE, at)
    world.unlink("b", SUPER, at)
    world.set(at, uid=BOB.uid)
    world.unlink("c", BOB, at)


def test_what_a_name_stood_for_when_asked_must_still_be_there(world):
    world.make("f")
    with pytest.raises(Moved):
        machine.apply(world.kv, 99, do.Unlink(SUPER, ROOT, b"f", 1, ino=12345))
    world.make("g")
    with pytest.raises(Moved):
        machine.apply(world.kv, 99, do.Rename(SUPER, ROOT, b"f", ROOT, b"g", 0, 1, world.get("f").ino, 12345))
    assert world.names() == ["f", "g"]


# -- rename ----------------------------------------------------------------------------------------------------------------

KINDS = {"file": FILE | 0o644, "dir": DIR | 0o755, "link": LINK | 0o777, "fifo": FIFO | 0o644}


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", [*KINDS, "nothing"])
def test_rename_replaces_like_by_like_only(world, old, new):
    source = world.make("old", KINDS[old])
    if new != "nothing":
        victim = world.make("new", KINDS[new])
    if new == "dir" and old != "dir":
        refused(errno.EISDIR, world.rename, "old", "new")
        return
    if old == "dir" and new not in {"dir", "nothing"}:
        refused(errno.ENOTDIR, world.rename, "old", "new")
        return
    done = world.rename("old", "new")
    assert world.names() == ["new"]
    assert world.get("new").ino == source.ino
    assert world.ino(ROOT).nlink == 2 + (old == "dir")
    assert world.ino(source.ino).ctime_ns == world.now - 1
    if new != "nothing":
        assert (done.replaced.ino, done.replaced.nlink) == (victim.ino, 0)
        assert world.state.find_inode(victim.ino) is None


def test_rename_moves_a_directory_with_its_parent(world):
    a, b = world.mkdir("a"), world.mkdir("b")
    d = world.mkdir("d", at=a.ino)
    world.rename("d", "e", at=a.ino, to=b.ino)
    assert world.ino(d.ino).parent == b.ino
    assert (world.ino(a.ino).nlink, world.ino(b.ino).nlink) == (2, 3)


def test_rename_into_itself_or_over_its_ancestor_is_refused(world):
    a = world.mkdir("a")
    b = world.mkdir("b", at=a.ino)
    c = world.mkdir("c", at=b.ino)
    refused(errno.EINVAL, world.rename, "a", "x", to=c.ino)
    refused(errno.EINVAL, world.rename, "a", "x", to=a.ino)
    refused(errno.ENOTEMPTY, world.rename, "c", "a", at=b.ino, to=ROOT)
    refused(errno.EINVAL, world.rename, "c", "a", at=b.ino, to=ROOT, flags=EXCHANGE)


def test_rename_onto_a_directory_with_names_is_refused(world):
    world.mkdir("a")
    world.make("f", at=world.mkdir("b").ino)
    refused(errno.ENOTEMPTY, world.rename, "a", "b")


def test_rename_of_two_names_of_one_inode_does_nothing(world):
    made = world.make("f")
    world.link(made.ino, "g")
    world.rename("f", "g")
    assert world.names() == ["f", "g"]


def test_rename_with_flags(world):
    world.make("f")
    world.make("g")
    refused(errno.EEXIST, world.rename, "f", "g", flags=NOREPLACE)
    world.rename("f", "h", flags=NOREPLACE)
    refused(errno.ENOENT, world.rename, "h", "none", flags=EXCHANGE)
    refused(errno.EINVAL, world.rename, "h", "g", flags=NOREPLACE | EXCHANGE)
    refused(errno.EINVAL, world.rename, "h", "g", flags=4)


def test_exchange_swaps_any_two_kinds_and_their_parents(world):
    a, b = world.mkdir("a"), world.mkdir("b")
    d, f = world.mkdir("d", at=a.ino), world.make("f", at=b.ino)
    world.rename("d", "f", at=a.ino, to=b.ino, flags=EXCHANGE)
    assert (world.get("d", at=a.ino).ino, world.get("f", at=b.ino).ino) == (f.ino, d.ino)
    assert (world.ino(d.ino).parent, world.ino(a.ino).nlink, world.ino(b.ino).nlink) == (b.ino, 2, 3)


def test_rename_rights(world):
    a, b = world.mkdir("a", 0o777), world.mkdir("b", 0o755)
    world.make("f", cred=ALICE, at=a.ino)
    refused(errno.EACCES, world.rename, "f", "f", ALICE, a.ino, b.ino)
    world.mkdir("mine", 0o555, ALICE, a.ino)
    c = world.mkdir("c", 0o777)
    refused(errno.EACCES, world.rename, "mine", "mine", ALICE, a.ino, c.ino)  # its ".." would change
    world.rename("mine", "other", ALICE, a.ino)


def test_a_volume_root_has_no_name_to_take_away(world):
    refused(errno.ENOENT, world.rmdir, "vol")


# -- listing -----------------------------------------------------------------------------------------------------------------


def test_listing_pages_are_stable_while_names_come_and_go(world):
    for number in range(10):
        world.make(f"f{number}")
    first = views.listing(world.state, SUPER, ROOT, 0, 4)[1]
    world.unlink("f0")
    world.unlink("f5")
    world.make("late")
    seen = [name for name, _row in first.rows]
    cookie = first.rows[-1][1].cookie
    while True:
        page = views.listing(world.state, SUPER, ROOT, cookie, 3)[1]
        seen += [name for name, _row in page.rows]
        if page.end:
            break
        cookie = page.rows[-1][1].cookie
    assert seen == [b"f0", b"f1", b"f2", b"f3", b"f4", b"f6", b"f7", b"f8", b"f9", b"late"]


def test_a_replaced_name_keeps_its_place(world):
    world.make("a")
    world.make("b")
    world.make("c")
    world.rename("c", "a")
    assert world.names() == ["a", "b"]


# -- determinism -------------------------------------------------------------------------------------------------------------


def test_the_same_commands_make_the_same_store(world):
    a = world.mkdir("a", cred=ALICE)
    world.make("f", cred=ALICE, at=a.ino)
    world.rename("f", "g", ALICE, a.ino, ROOT)
    world.unlink("g", keep=True)
    again = MemoryKv()
    for seq, command in enumerate(world.log, 1):
        machine.apply(again, seq, do.decode(do.encode(command)))
    assert again.rows == world.kv.rows
