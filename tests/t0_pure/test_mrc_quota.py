"""Room that writers are promised under a quota: never more than there is, and all of it to whoever can use it."""

import contextlib
import errno
from random import Random

import pytest

from mrc_kit import ALICE, BOB, ROOT, SUPER, World, refused
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, VolumePolicy
from xtreemos.xtreemfs.mrc import checking, quota, schema
from xtreemos.xtreemfs.mrc import commands as do

VOLUME = 1
QUOTA = 100 << 20
OWNER_QUOTA = 40 << 20


def promised(world, owner=None):
    return world.state.usage(VOLUME, owner, schema.PROMISED).bytes


class Writers:
    """Clients that keep to the protocol: they write as far as they were told, ask for more, and give back what is called back.

    `sizes` is what they have written; the MRC hears of it late.
    """

    def __init__(self, random, **policy):
        self.world = World(policy=VolumePolicy(**policy))
        self.random = random
        self.sizes = {}
        self.reach = {}
        self.uids = {}
        self.names = {}
        self.epochs = 0
        self.withdrawn = 0

    def create(self, cred):
        self.epochs += 1
        made = self.world.make(f"f{self.epochs}", cred=cred, session="s", epoch=self.epochs, promise=True)
        self.sizes[made.ino], self.uids[made.ino], self.names[made.ino] = 0, cred.uid, b"f%d" % self.epochs
        row = self.world.state.find_promise(made.ino)
        self.reach[made.ino] = row.reach if row else 0
        return made.ino

    def tell(self, ino, *, done=False):
        self.world.run(do.Update(ino, size=self.sizes[ino], done=done))
        if done:
            self.reach[ino] = self.sizes[ino]

    def give(self, ino):
        self.tell(ino)
        self.world.run(do.WritersDone(((ino, "s"),)))
        self.reach.pop(ino)
        self.withdrawn += 1

    def write(self, ino, end):
        """Write up to byte `end`; tell whether there was room."""
        if end > max(self.sizes[ino], self.reach.get(ino, 0)):
            self.ask(ino, end)
        if end > max(self.sizes[ino], self.reach[ino]):
            return False
        self.sizes[ino] = max(self.sizes[ino], end)
        return True

    def ask(self, ino, end):
        world = self.world
        while True:
            short = quota.shortage(world.state, world.ino(ino), end)
            if short is None or short.bytes > short.promised:
                break
            self.give(
                next(other for other, row in world.state.promises(VOLUME) if other != ino and short.owner in (None, row.owner))
            )
        if ino not in self.reach:
            self.epochs += 1
            world.run(do.Writer("s", ino, self.epochs))
        self.reach[ino] = world.run(do.Promise(ino, end))

    def remove(self, ino):
        self.world.run(do.Unlink(SUPER, ROOT, self.names[ino], self.world.now))
        for table in (self.sizes, self.reach, self.uids, self.names):
            table.pop(ino, None)

    def check(self):
        for owner, limit in ((None, QUOTA), (ALICE.uid, OWNER_QUOTA)):
            used = self.world.state.usage(VOLUME, owner).bytes
            assert used + promised(self.world, owner) <= limit, "more was promised than there is"
            assert sum(size for ino, size in self.sizes.items() if owner in (None, self.uids[ino])) <= limit
        for ino, reach in self.reach.items():
            row = self.world.state.find_promise(ino)
            assert reach <= max(self.world.ino(ino).size, row.reach if row else 0), "a writer believes in more than was promised"


@pytest.mark.parametrize("seed", range(8))
def test_promised_and_used_never_exceed_a_quota_and_what_fits_is_never_refused(seed):
    random = Random(seed)
    writers = Writers(random, quota_bytes=QUOTA)
    writers.world.run(do.SetQuota(VOLUME, ALICE.uid, OWNER_QUOTA, 0))
    refusals = 0
    for step in range(600):
        inos = list(writers.sizes)
        kind = random.choices(["create", "write", "tell", "done", "give", "remove", "chown"], [3, 12, 3, 2, 1, 1.5, 0.5])[0]
        ino = random.choice(inos) if inos else 0
        if kind == "create" or not inos:
            writers.create(random.choice([ALICE, BOB]))
        elif kind == "write":
            end = writers.sizes[ino] + int(2 ** random.uniform(0, 25))
            before, size = sum(writers.sizes.values()), writers.sizes[ino]
            mine = sum(s for i, s in writers.sizes.items() if writers.uids[i] == ALICE.uid)
            if not writers.write(ino, end):
                refusals += 1
                fits = before + end - size <= QUOTA and (writers.uids[ino] != ALICE.uid or mine + end - size <= OWNER_QUOTA)
                assert not fits, "EDQUOT although there was room"
        elif kind == "tell" and ino in writers.reach:
            writers.tell(ino)
        elif kind == "done" and ino in writers.reach:
            writers.tell(ino, done=True)
        elif kind == "give" and ino in writers.reach:
            writers.give(ino)
        elif kind == "remove":
            writers.remove(ino)
        elif kind == "chown":
            with contextlib.suppress(FsError):
                writers.world.set(ino, uid=BOB.uid)
                writers.uids[ino] = BOB.uid
        writers.check()
        if step % 50 == 0:
            assert checking.check(writers.world.kv) == []
    assert refusals > 10, "the quota was never reached"
    assert writers.withdrawn > 10, "nothing was ever called back"


@pytest.mark.parametrize("piece", [4096, 128 << 10, 1 << 20])
def test_one_writer_fills_a_quota_to_the_last_piece(piece):
    writers = Writers(Random(0), quota_bytes=QUOTA)
    ino = writers.create(BOB)
    asked = 0
    end = piece
    while end <= QUOTA:
        asked += writers.reach[ino] < end
        assert writers.write(ino, end)
        end += piece
    assert writers.sizes[ino] > QUOTA - piece
    assert not writers.write(ino, QUOTA + 1)
    assert writers.write(ino, QUOTA), "exactly the quota fits"
    assert asked < 40, "room grows with use: a long file asks seldom"


def test_many_small_files_fill_a_quota():
    writers = Writers(Random(0), quota_bytes=4 << 20)
    for _file in range(400):
        assert writers.write(writers.create(BOB), 10_000)
    assert sum(writers.sizes.values()) == 4_000_000
    assert not writers.write(writers.create(BOB), 1 << 20)


def test_a_file_that_is_closed_gives_back_what_it_did_not_use():
    world = World(policy=VolumePolicy(quota_bytes=QUOTA))
    made = world.make("f", session="s", epoch=1, promise=True)
    assert promised(world) == QUOTA // quota.FIRST_PART
    world.run(do.Update(made.ino, size=1000))
    assert promised(world) == QUOTA // quota.FIRST_PART - 1000
    world.run(do.Update(made.ino, size=1000, done=True))
    assert promised(world) == promised(world, 0) == 0
    assert world.run(do.Promise(made.ino, 5000)) > 5000
    world.run(do.WritersDone(((made.ino, "s"),)))
    assert promised(world) == 0


def test_a_fenced_writers_promise_stays_until_its_size_is_known():
    world = World(policy=VolumePolicy(quota_bytes=QUOTA))
    made = world.make("f", session="s", epoch=1, promise=True)
    before = promised(world)
    world.run(do.Writer("", made.ino, 2))
    assert promised(world) == before
    world.run(do.Update(made.ino, size=700))
    world.run(do.WritersDone(((made.ino, ""),)))
    assert promised(world) == 0
    assert world.state.usage(VOLUME, None).bytes == 700


def test_a_new_owner_needs_room_for_what_is_promised():
    world = World(policy=VolumePolicy(quota_bytes=QUOTA))
    world.run(do.SetQuota(VOLUME, ALICE.uid, 2000, 0))
    made = world.make("f", cred=BOB, session="s", epoch=1, promise=True)
    refused(errno.EDQUOT, world.set, made.ino, uid=ALICE.uid)
    world.run(do.Update(made.ino, size=1500, done=True))
    world.set(made.ino, uid=ALICE.uid)
    assert world.run(do.Promise(made.ino, 2000)) == 2000
    assert (promised(world, ALICE.uid), promised(world, BOB.uid)) == (500, 0)


def test_without_a_quota_nothing_is_promised_and_nothing_bounds_a_file():
    world = World()
    made = world.make("f", session="s", epoch=1, promise=True)
    assert world.run(do.Promise(made.ino, 5000)) == FILE_BYTES_MAX
    assert promised(world) == 0
