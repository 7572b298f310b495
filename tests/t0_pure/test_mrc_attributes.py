"""Attributes, ACLs and xattrs in the MRC's machine, as chmod(2), chown(2), truncate(2), utimensat(2), acl(5) and xattr(7) have them."""

import errno
import stat

import pytest

from mrc_kit import ALICE, BOB, EVE, FIFO, FILE, LINK, ROOT, SUPER, World, refused
from xtreemos.xtreemfs.mrc import access, acl, views
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from xtreemos.xtreemfs.mrc.attributes import ACCESS_ACL, DEFAULT_ACL
from xtreemos.xtreemfs.mrc.model import Cred, Usage

NONE = acl.NO_ID


@pytest.fixture
def world():
    return World()


def put(world, ino, name, value, cred=SUPER, flags=0):
    return world.run(do.SetXattr(cred, ino, name, value, flags, world.now))


def drop(world, ino, name, cred=SUPER):
    return world.run(do.RemoveXattr(cred, ino, name, world.now))


def rows(*entries):
    return acl.encode(tuple(Entry(*entry) for entry in entries))


# -- chmod and chown ---------------------------------------------------------------------------------------------------------


def test_only_the_owner_changes_a_mode(world):
    made = world.make("f", cred=ALICE)
    refused(errno.EPERM, world.set, made.ino, BOB, mode=0o777)
    changed = world.set(made.ino, ALICE, mode=0o4711)
    assert (changed.mode, changed.ctime_ns) == (FILE | 0o4711, world.now - 1)


def test_chmod_clears_the_group_bit_of_a_foreign_group(world):
    made = world.make("f", cred=ALICE)
    world.set(made.ino, SUPER, gid=77)
    assert world.set(made.ino, ALICE, mode=0o2755).mode & 0o7777 == 0o755
    assert world.set(made.ino, SUPER, mode=0o2755).mode & 0o7777 == 0o2755
    world.set(made.ino, SUPER, gid=2000)
    assert world.set(made.ino, ALICE, mode=0o2755).mode & 0o7777 == 0o2755


def test_owners_give_files_to_their_own_groups_only(world):
    made = world.make("f", cred=ALICE)
    assert world.set(made.ino, ALICE, gid=2000).gid == 2000
    refused(errno.EPERM, world.set, made.ino, ALICE, gid=3000)
    refused(errno.EPERM, world.set, made.ino, ALICE, uid=BOB.uid)
    refused(errno.EPERM, world.set, made.ino, BOB, gid=2000)
    assert world.set(made.ino, ALICE, uid=ALICE.uid).uid == ALICE.uid
    assert world.set(made.ino, SUPER, uid=BOB.uid).uid == BOB.uid


@pytest.mark.parametrize(("mode", "after"), [(0o6755, 0o755), (0o4744, 0o744), (0o2744, 0o2744), (0o6711, 0o711)])
def test_chown_clears_set_id_bits(world, mode, after):
    made = world.make("f", cred=ALICE)
    world.set(made.ino, SUPER, gid=2000)
    world.set(made.ino, ALICE, mode=mode)
    assert world.set(made.ino, ALICE, gid=2000).mode & 0o7777 == after
    folder = world.mkdir("d", 0o6755, ALICE)
    assert world.set(folder.ino, SUPER, gid=3).mode & 0o7777 == 0o6755, "directories keep theirs"


def test_chown_moves_the_quota(world):
    made = world.make("f", cred=ALICE)
    world.set(made.ino, ALICE, size=10)
    world.set(made.ino, SUPER, uid=BOB.uid)
    assert (world.state.usage(1, ALICE.uid), world.state.usage(1, BOB.uid)) == (Usage(), Usage(10, 1))


# -- truncate and times --------------------------------------------------------------------------------------------------------


def test_truncate_needs_the_right_to_write_or_a_lease_that_proves_it(world):
    made = world.make("f", FILE | 0o444, ALICE)
    refused(errno.EACCES, world.set, made.ino, ALICE, size=3)
    assert world.set(made.ino, ALICE, size=3, held=True).size == 3
    refused(errno.EISDIR, world.set, ROOT, SUPER, size=0)
    refused(errno.EINVAL, world.set, world.make("p", FIFO | 0o666).ino, SUPER, size=0)
    refused(errno.EFBIG, world.set, made.ino, SUPER, size=1 << 63)


def test_truncate_clears_set_id_bits_of_others(world):
    made = world.make("f", FILE | 0o6777, ALICE)
    world.set(made.ino, ALICE, mode=0o6777)
    assert world.set(made.ino, SUPER, size=5).mode & 0o7777 == 0o6777
    changed = world.set(made.ino, BOB, size=6)
    assert (changed.mode & 0o7777, changed.mtime_ns) == (0o777, world.now - 1)


def test_times_of_others(world):
    made = world.make("f", FILE | 0o666, ALICE)
    assert world.set(made.ino, ALICE, atime_ns=5, mtime_ns=6).mtime_ns == 6
    refused(errno.EPERM, world.set, made.ino, BOB, atime_ns=5)
    assert world.set(made.ino, BOB, times_now=3).atime_ns == world.now - 1
    refused(errno.EPERM, world.set, made.ino, BOB, times_now=1)
    world.set(made.ino, ALICE, mode=0o644)
    refused(errno.EACCES, world.set, made.ino, BOB, times_now=3)


def test_times_before_1970_are_times(world):
    made = world.make("f", cred=ALICE)
    assert world.set(made.ino, ALICE, mtime_ns=-86_400_000_000_000).mtime_ns == -86_400_000_000_000
    assert world.run(do.Update(made.ino, atime_ns=-2)).atime_ns == -2
    assert world.set(made.ino, ALICE, mode=0o600).mtime_ns == -86_400_000_000_000


def test_a_writers_last_word_changes_what_it_says_only(world):
    made = world.make("f", FILE | 0o6777, ALICE)
    world.run(do.Update(made.ino, size=100, blocks=8, mtime_ns=7, mode=0o777))
    now = world.ino(made.ino)
    assert (now.size, now.blocks, now.mtime_ns, now.atime_ns, now.mode) == (100, 8, 7, made.atime_ns, FILE | 0o777)
    world.run(do.Update(made.ino, mode=0o6777))
    assert world.ino(made.ino).mode == FILE | 0o777, "bits can only go"
    refused(errno.EINVAL, world.run, do.Update(ROOT, size=1))


def test_versions_never_repeat(world):
    made = world.make("f")
    seen = [made.version]
    seen += [world.set(made.ino, SUPER, mode=step).version for step in range(3)]
    assert seen == sorted(set(seen))


# -- permission bits and ACLs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cred", "mode", "want", "yes"),
    [
        (ALICE, 0o400, 4, True), (ALICE, 0o077, 4, False), (BOB, 0o040, 4, True), (BOB, 0o704, 4, False), (EVE, 0o004, 4, True), (EVE, 0o770, 4, False),
        (SUPER, 0o000, 6, True), (SUPER, 0o666, 1, False), (SUPER, 0o001, 1, True), (ALICE, 0o600, 6, True), (ALICE, 0o400, 6, False),
    ],
)  # fmt: skip
def test_the_first_class_that_fits_decides(world, cred, mode, want, yes):
    made = world.make("f", FILE | 0o600, ALICE)
    world.set(made.ino, SUPER, gid=2000)
    assert access.may(world.set(made.ino, SUPER, mode=mode), cred, want) is yes


def test_acl_evaluation(world):
    made = world.make("f", FILE | 0o600, ALICE)
    put(world, made.ino, ACCESS_ACL, rows(
        (USER_OBJ, 6, NONE), (USER, 7, BOB.uid), (GROUP_OBJ, 0, NONE), (GROUP, 6, 3000), (GROUP, 1, 3001), (MASK, 5, NONE), (OTHER, 2, NONE)
    ), ALICE)  # fmt: skip
    inode = world.ino(made.ino)
    assert inode.mode & 0o777 == 0o652, "the mask stands where the group stood"
    assert access.may(inode, BOB, 5)
    assert not access.may(inode, BOB, 2), "masked"
    several = Cred(9, 3000, (3001,))
    assert access.may(inode, several, 4)
    assert access.may(inode, several, 1)
    assert not access.may(inode, several, 5), "rights of two groups do not add up"
    assert not access.may(inode, Cred(9, made.gid), 2), "who is in the group is not others"
    assert access.may(inode, EVE, 2)


def test_chmod_and_acl_move_together(world):
    made = world.make("f", FILE | 0o600, ALICE)
    put(
        world,
        made.ino,
        ACCESS_ACL,
        rows((USER_OBJ, 6, NONE), (USER, 7, BOB.uid), (GROUP_OBJ, 5, NONE), (MASK, 7, NONE), (OTHER, 0, NONE)),
    )
    world.set(made.ino, ALICE, mode=0o741)
    entries = {(entry.tag, entry.perm) for entry in acl.parse(views.get_xattr(world.state, ALICE, made.ino, ACCESS_ACL))}
    assert entries == {(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 5), (MASK, 4), (OTHER, 1)}


def test_a_minimal_acl_becomes_the_mode(world):
    made = world.make("f", FILE | 0o600, ALICE)
    changed = put(world, made.ino, ACCESS_ACL, rows((USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 1, NONE)), ALICE)
    assert (changed.mode & 0o777, changed.acl) == (0o751, b"")
    refused(errno.ENODATA, views.get_xattr, world.state, ALICE, made.ino, ACCESS_ACL)


def test_default_acls_are_inherited_instead_of_the_umask(world):
    folder = world.mkdir("d", 0o755, ALICE)
    default = rows((USER_OBJ, 7, NONE), (USER, 6, BOB.uid), (GROUP_OBJ, 5, NONE), (MASK, 7, NONE), (OTHER, 0, NONE))
    put(world, folder.ino, DEFAULT_ACL, default, ALICE)
    made = world.make("f", FILE | 0o664, ALICE, folder.ino, umask=0o77)
    assert made.mode & 0o777 == 0o660
    assert access.may(made, BOB, 6)
    inner = world.mkdir("e", 0o700, ALICE, folder.ino, umask=0o77)
    assert inner.default_acl == default
    assert inner.mode & 0o777 == 0o700
    assert not access.may(inner, BOB, 4), "the mask took the group's bits of mkdir"
    assert world.make("s", LINK | 0o777, ALICE, folder.ino).mode & 0o777 == 0o777


@pytest.mark.parametrize(
    "value",
    [
        b"\2\0\0", b"\2\0\0\0\1\0", rows((USER_OBJ, 7, NONE)), rows((USER_OBJ, 7, NONE), (GROUP_OBJ, 7, NONE), (OTHER, 9, NONE)),
        rows((USER_OBJ, 7, NONE), (USER, 7, 5), (GROUP_OBJ, 7, NONE), (OTHER, 0, NONE)),
        rows((USER_OBJ, 7, NONE), (USER, 7, 5), (USER, 6, 5), (GROUP_OBJ, 7, NONE), (MASK, 7, NONE), (OTHER, 0, NONE)),
        rows((USER_OBJ, 7, NONE), (GROUP_OBJ, 7, NONE), (OTHER, 0, NONE), (0x40, 0, NONE)),
    ],
)  # fmt: skip
def test_acls_that_make_no_sense_are_refused(world, value):
    refused(errno.EINVAL, put, world, world.make("f").ino, ACCESS_ACL, value)


def test_who_may_set_which_acl(world):
    made, folder = world.make("f", cred=ALICE), world.mkdir("d", cred=ALICE)
    good = rows((USER_OBJ, 7, NONE), (USER, 7, 5), (GROUP_OBJ, 5, NONE), (MASK, 7, NONE), (OTHER, 0, NONE))
    refused(errno.EPERM, put, world, made.ino, ACCESS_ACL, good, BOB)
    refused(errno.EACCES, put, world, made.ino, DEFAULT_ACL, good, ALICE)
    refused(errno.EOPNOTSUPP, put, world, world.make("s", LINK | 0o777).ino, ACCESS_ACL, good)
    refused(errno.EOPNOTSUPP, put, world, made.ino, b"system.other", b"")
    put(world, folder.ino, DEFAULT_ACL, good, ALICE)
    assert views.list_xattrs(world.state, ALICE, folder.ino) == [DEFAULT_ACL]
    refused(errno.EPERM, drop, world, folder.ino, DEFAULT_ACL, BOB)
    drop(world, folder.ino, DEFAULT_ACL, ALICE)
    refused(errno.ENODATA, drop, world, folder.ino, DEFAULT_ACL, ALICE)


def test_an_acl_by_one_outside_the_group_clears_its_bit(world):
    made = world.make("f", cred=ALICE)
    world.set(made.ino, SUPER, gid=77)
    world.set(made.ino, SUPER, mode=0o2755)
    good = rows((USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 0, NONE))
    assert put(world, made.ino, ACCESS_ACL, good, ALICE).mode & stat.S_ISGID == 0


# -- xattrs ----------------------------------------------------------------------------------------------------------------------


def test_xattrs_are_set_read_listed_and_removed(world):
    made = world.make("f", cred=ALICE)
    put(world, made.ino, b"user.a", b"\0\xff", ALICE, 1)
    refused(errno.EEXIST, put, world, made.ino, b"user.a", b"", ALICE, 1)
    refused(errno.ENODATA, put, world, made.ino, b"user.b", b"", ALICE, 2)
    put(world, made.ino, b"user.a", b"new", ALICE, 2)
    assert views.get_xattr(world.state, ALICE, made.ino, b"user.a") == b"new"
    assert views.list_xattrs(world.state, EVE, made.ino) == [b"user.a"]
    drop(world, made.ino, b"user.a", ALICE)
    refused(errno.ENODATA, drop, world, made.ino, b"user.a", ALICE)
    assert views.list_xattrs(world.state, EVE, made.ino) == []


@pytest.mark.parametrize(
    ("kind", "name", "cred", "get", "put_"),
    [
        ("f", b"user.x", EVE, errno.EACCES, errno.EACCES), ("p", b"user.x", ALICE, errno.ENODATA, errno.EPERM),
        ("s", b"user.x", ALICE, errno.ENODATA, errno.EPERM), ("f", b"trusted.x", ALICE, errno.ENODATA, errno.EPERM),
        ("f", b"security.x", ALICE, errno.ENODATA, errno.EPERM), ("f", b"other.x", ALICE, errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        ("f", b"user.", ALICE, errno.EINVAL, errno.EINVAL), ("f", b"user", ALICE, errno.EOPNOTSUPP, errno.EOPNOTSUPP),
    ],
)  # fmt: skip
def test_namespaces_have_rights_of_their_own(world, kind, name, cred, get, put_):
    made = world.make(kind, {"f": FILE | 0o600, "p": FIFO | 0o666, "s": LINK | 0o777}[kind], ALICE)
    refused(get, views.get_xattr, world.state, cred, made.ino, name)
    refused(put_, put, world, made.ino, name, b"", cred)


def test_root_sets_what_others_do_not_see(world):
    made = world.make("f", cred=ALICE)
    put(world, made.ino, b"trusted.x", b"1")
    put(world, made.ino, b"security.x", b"2")
    assert views.list_xattrs(world.state, ALICE, made.ino) == [b"security.x"]
    assert views.get_xattr(world.state, ALICE, made.ino, b"security.x") == b"2"
    assert views.list_xattrs(world.state, SUPER, made.ino) == [b"security.x", b"trusted.x"]


def test_user_xattrs_of_a_sticky_directory_are_its_owners(world):
    folder = world.mkdir("tmp", 0o1777)
    refused(errno.EPERM, put, world, folder.ino, b"user.x", b"", ALICE)


def test_xattrs_have_bounds(world):
    made = world.make("f")
    refused(errno.E2BIG, put, world, made.ino, b"user.x", b"x" * 65537)
    refused(errno.ERANGE, put, world, made.ino, b"user." + b"x" * 251, b"")
    refused(errno.EINVAL, put, world, made.ino, b"user.x", b"", SUPER, 4)
    for number in range(15):
        put(world, made.ino, b"user.%d" % number, b"x" * 65536)
    refused(errno.ENOSPC, put, world, made.ino, b"user.last", b"x" * 65536)


def test_xattrs_go_with_their_inode(world):
    made = world.make("f")
    put(world, made.ino, b"user.x", b"1")
    world.unlink("f")
    assert not [key for key in world.kv.rows if key[:1] == b"x"]
