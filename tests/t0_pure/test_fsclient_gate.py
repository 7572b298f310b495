"""The door of a mount: programs that carry the number of a group which their user has left are refused what is the group's."""

import asyncio
import errno
import os
from types import SimpleNamespace
from typing import ClassVar

import pytest

from xtreemos.xtreemfs.client import gate as gates
from xtreemos.xtreemfs.client.gate import Gate
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.replies import ROUTES
from xtreemos.xtreemfs.model import NOBODY, VO_ROOT_INO, Share, VolumeRecord, make_ino

ALICE, BOB, CAROL, DAVE = 7001, 7002, 7010, 7011  # carol and dave are members of another VO; dave is not logged in
STUDENTS = os.getgid()  # what this program carries
STAFF = STUDENTS + 1
NUMBERS = {("u", "alice"): ALICE, ("u", "bob"): BOB, ("g", "students"): STUDENTS, ("g", "staff"): STAFF}
OURS, THEIRS, NAMED, OWN, STRANGE = (make_ino(1, number) for number in range(2, 7))


class People:
    """What the node knows of people, and nobody's ticket is withdrawn."""

    changes = 0

    def local_id(self, kind, name):
        return NUMBERS.get((kind, name), NOBODY)

    def name_of(self, kind, number):
        return next((name for (one, name), local in NUMBERS.items() if (one, local) == (kind, number)), None)

    tickets: ClassVar = {CAROL: ["a ticket"]}

    def guest_of(self, uid):
        return "phys" if uid in {CAROL, DAVE} else ""

    def guest_tickets(self, uid):
        return self.tickets.get(uid, [])

    def withdraw(self, _revoked):
        return []

    def look(self):
        pass


class Scene:
    """A gate before operations that let everything through; principals are local numbers here."""

    def __init__(self):
        rows = [
            (OURS, ALICE, STUDENTS, ()),
            (THEIRS, ALICE, STAFF, ()),
            (NAMED, ALICE, STAFF, (STUDENTS,)),
            (OWN, BOB, STUDENTS, ()),
            (STRANGE, NOBODY, STAFF, ()),
        ]
        self.inodes = {ino: inode(ino, uid, gid, named) for ino, uid, gid, named in rows}
        self.relearned = self.emptied = 0
        principals = SimpleNamespace(local=lambda _kind, number: number, relearn=self._relearn)
        volume = VolumeRecord(name="v", id=1, mrc="n1", owner="alice")
        self.directory = SimpleNamespace(state=State(volumes={"v": volume}), on_change=self._on_change)
        self.sessions = {"n1": SimpleNamespace(principals=principals, actors=SimpleNamespace(forget=lambda _uid=None: None))}
        self.coherence = SimpleNamespace(empty_kernel=self._empty)
        self.people = People()
        self.forgotten = set()
        self.ops = SimpleNamespace(**{name: lambda _request: "done" for name, _encode in ROUTES.values()})
        known = _Inodes(self.inodes)
        client = SimpleNamespace(
            directory=self.directory,
            sessions=self.sessions,
            coherence=self.coherence,
            inodes=known,
            ino_of=lambda node: node,
            start=asyncio.run,
        )
        self.gate = Gate(client, self.people, self.ops)

    def _relearn(self):
        self.relearned += 1

    def _on_change(self, call):
        self.tell = call

    async def _empty(self, wanted):
        self.forgotten = {ino for ino, one in self.inodes.items() if wanted(one)}

    def groups(self, **groups):
        self.directory.state = State(
            volumes=self.directory.state.volumes,
            members=dict.fromkeys(("alice", "bob"), ("member",)),
            groups={"alice": (), "bob": (), **groups},
        )
        self.tell(self.directory.state)

    def refused(self, uid, pid=None):
        found = set()
        for ino in self.inodes:
            try:
                self.ops.open(SimpleNamespace(uid=uid, pid=os.getpid() if pid is None else pid, nodeid=ino))
            except FuseError:
                found.add(ino)
        return found


class _Inodes(dict):
    def __iter__(self):
        return iter(list(self.values()))


def inode(ino, uid, gid, named):
    rows = [(acl.USER_OBJ, 6, acl.NO_ID), (acl.GROUP_OBJ, 4, acl.NO_ID), (acl.MASK, 4, acl.NO_ID), (acl.OTHER, 0, acl.NO_ID)]
    lists = {acl.ACCESS: acl.encode(acl.make([*rows, *((acl.GROUP, 4, one) for one in named)]))} if named else {}
    return SimpleNamespace(ino=ino, attr=SimpleNamespace(uid=uid, gid=gid), xattrs=lists)


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(gates, "_carried_by_all", set)
    return Scene()


def test_members_pass_and_who_has_left_is_refused_what_is_the_groups_and_not_their_own(scene):
    scene.groups(alice=("students",), bob=("students",))
    assert scene.refused(BOB) == set()
    scene.groups(alice=("students",))
    assert scene.refused(BOB) == {OURS, NAMED}
    assert scene.forgotten == {OURS, NAMED, OWN}, "the kernel asks again"
    assert scene.refused(ALICE) == set()


def test_a_program_that_does_not_carry_the_number_passes_and_one_that_is_not_to_be_seen_does_not(scene):
    scene.groups(bob=("staff",))
    scene.groups(bob=())
    assert scene.refused(BOB) == set(), "it is in other groups"
    assert scene.refused(BOB, pid=0) == {THEIRS, NAMED, STRANGE}
    assert scene.refused(BOB, pid=2**22 + 1) == set(), "it has ended"


def test_who_is_in_the_group_again_passes(scene):
    for groups in (("students",), (), ("students",)):
        scene.groups(bob=groups)
    assert scene.refused(BOB) == set()


def test_programs_from_before_the_mount_was_started_are_found(scene, monkeypatch):
    monkeypatch.setattr(gates, "_carried_by_all", lambda: {(BOB, STUDENTS), (BOB, STAFF), (ALICE, 5), (0, STUDENTS)})
    scene.groups(bob=("staff",))
    assert scene.refused(BOB) == {OURS, NAMED}


def test_the_machines_programs_are_seen_with_their_numbers():
    assert (os.getuid(), os.getgid()) in gates._carried_by_all()


def test_new_numbers_make_the_kernel_ask_again_for_whom_it_knows_as_nobody(scene):
    scene.gate._look_at_numbers()
    assert scene.relearned == 0
    scene.people.changes = 1
    scene.gate._look_at_numbers()
    assert (scene.relearned, scene.forgotten) == (1, {STRANGE})


def shared(scene, *shares):
    volumes = {
        "v": VolumeRecord(name="v", id=1, mrc="n1", owner="alice", shares=shares),
        "w": VolumeRecord(name="w", id=2, mrc="n1", owner="alice"),
    }
    scene.directory.state = State(volumes=volumes)
    scene.tell(scene.directory.state)


def errno_of(call, request):
    try:
        call(request)
    except FuseError as error:
        return error.errno
    return 0


def test_guests_are_let_in_to_what_is_shared_with_their_vo_and_to_nothing_else(scene):
    ops = scene.ops
    reading, writing = m.Open(*_at(OURS), os.O_RDONLY, 0), m.Open(*_at(OURS), os.O_RDWR, 0)
    other = m.Open(*_at(make_ino(2, 5)), os.O_RDONLY, 0)
    for share, may_read, may_write in (
        ((), errno.EACCES, errno.EACCES),
        ((Share("chem", b"", True, 0),), errno.EACCES, errno.EACCES),
        ((Share("phys", b"", True, 1),), errno.EACCES, errno.EACCES),
        ((Share("phys", b"", False, 0),), 0, errno.EROFS),
        ((Share("phys", b"", True, 0),), 0, 0),
    ):
        shared(scene, *share)
        assert (errno_of(ops.open, reading), errno_of(ops.open, writing), errno_of(ops.setattr, reading)) == (
            may_read,
            may_write,
            may_write,
        )
        assert errno_of(ops.open, other) == errno.EACCES
        assert errno_of(ops.lookup, m.Lookup(*_at(VO_ROOT_INO), b"v")) == may_read
        assert (
            errno_of(ops.lookup, m.Lookup(*_at(VO_ROOT_INO), b"w"))
            == errno_of(ops.opendir, m.Open(*_at(VO_ROOT_INO), 0, 0))
            == errno.EACCES
        )
    assert errno_of(ops.open, m.Open(*_at(OURS, DAVE), os.O_RDONLY, 0)) == errno.EACCES, "without a log-in"


def test_the_kernel_forgets_a_volume_that_is_shared_no_more(scene):
    shared(scene, Share("phys", b"", True, 0))
    assert scene.forgotten == set()
    shared(scene, Share("phys", b"", False, 0))
    assert scene.forgotten == set(scene.inodes)


def _at(node, uid=CAROL):
    return 1, node, uid, uid, os.getpid()
