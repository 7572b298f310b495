"""Changes that are sent again, in a simulation: power cuts before and after the log, answers lost, requests sent twice and late.

Every change that is answered has had effect once; one whose session ended is refused and never done again.
"""

from random import Random

import pytest

from mrc_kit import ALICE, LAYOUT, ROOT, CutBase, CutDisk, PowerCut
from xtreemos.xtreemfs.client.changes import Changes
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import VolumeRecord
from xtreemos.xtreemfs.mrc import checking, replies, views
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.errors import ChangeUnknown
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.mrc.store import Store

STEPS = 900
CLIENTS = 3
FILES = 12
SEGMENT = 1 << 16


class Mrc:
    """A server's store and its disk; what it answers is on the disk before anybody hears it."""

    def __init__(self, random):
        self.random = random
        self.disk = CutDisk(random)
        self.base = CutBase(self.disk)
        self.done = []
        """(session, life, number) of every change that was done, by number of its command."""
        self.boot()
        self.store.execute(do.MakeVolume(VolumeRecord(name="vol", id=1, mrc="n1", owner="alice"), 0o777, 0, 0, 1))
        self.done.append(None)

    def boot(self):
        self.store = Store(self.base, self.disk, segment_bytes=SEGMENT, reserve_bytes=0)
        del self.done[self.store.seq :]
        self.waiting = []
        self.disk.fuel = self.random.randrange(10, 90)

    def cut(self):
        self.disk.power_on()
        self.base = CutBase(self.disk, self.base.durable)
        self.boot()

    @property
    def state(self):
        return State(self.store.kv, self.store.seq)

    def open(self, client):
        """Open a session as the lease table would have it done: a new one if it is not known."""
        if self.state.session(client) is None:
            self.store.execute(do.OpenSession(client, "n1", 1))
            self.done.append(None)
        self.store.sync()
        return self.state.session(client).life

    def expire(self, client):
        if self.state.session(client) is not None:
            self.store.execute(do.CloseSession(client))
            self.done.append(None)

    def take(self, client, once, command):
        """Do a change or find its answer; the answer is told by `sync`."""
        try:
            said = replies.find(self.state, client, once.life, once.number)
            if said is None:
                self.store.execute(do.Once(client, once.life, once.number, once.below, command))
                self.done.append((client, once.life, once.number))
                said = replies.find(self.state, client, once.life, once.number)
            answer = said.attrs[0].ino
        except (FsError, ChangeUnknown) as error:
            answer = error
        self.waiting.append((client, once, answer))

    def sync(self):
        self.store.sync()
        told, self.waiting = self.waiting, []
        return told


class Client:
    """Programs that make, rename and remove files of their own, some at once; `may` is what each file's name can be now."""

    def __init__(self, name):
        self.name = name
        self.changes = Changes()
        self.may = [{None} for _file in range(FILES)]
        self.pending = {}
        """number -> [change, file, command, what is true afterwards, whether it was sent]"""
        self.unknown = 0
        self.answered = 0

    def begin(self, random, mrc):
        free = [at for at in range(FILES) if len(self.may[at]) == 1 and at not in {row[1] for row in self.pending.values()}]
        if not free:
            return
        at = random.choice(free)
        (now,) = self.may[at]
        if now is None:
            after = b"%s.%d" % (self.name[-4:].encode(), at)
            command = do.Create(ALICE, ROOT, after, 0o100644, 0, 5, layout=LAYOUT, session=self.name, epoch=1)
        elif random.random() < 0.5:
            after = now[:-1] if now.endswith(b"'") else now + b"'"
            command = do.Rename(ALICE, ROOT, now, ROOT, after, 1, 5)
        else:
            after = None
            command = do.Unlink(ALICE, ROOT, now, 5)
        change = self.changes.begin()
        self.pending[change.number] = [change, at, command, after, False]

    def send(self, random):
        if self.pending:
            row = self.pending[random.choice(list(self.pending))]
            once = row[0].once(uncertain=row[4])
            row[4] = True
            return self.name, once, row[2]
        return None

    def hear(self, once, answer):
        row = self.pending.get(once.number)
        if row is None:
            return
        if isinstance(answer, ChangeUnknown):
            self.may[row[1]].add(row[3])
            self.unknown += 1
        else:
            assert not isinstance(answer, Exception), f"{row[2]} was done twice, or not at all: {answer}"
            self.may[row[1]] = {row[3]}
            self.answered += 1
        self.end(row)

    def give_up(self, random):
        if self.pending:
            row = self.pending[random.choice(list(self.pending))]
            self.may[row[1]].add(row[3])
            self.end(row)

    def end(self, row):
        del self.pending[row[0].number]
        self.changes.end(row[0])


class Town:
    """The server, its clients, and a network that keeps requests, doubles them, and delivers them in any order, also to a server that was restarted."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.mrc = Mrc(self.random)
        self.clients = {name: Client(name) for name in (f"{number:032x}" for number in range(CLIENTS))}
        self.wire = []
        self.cuts = 0
        for client in self.clients.values():
            client.changes.life = self.mrc.open(client.name)

    def step(self):
        random = self.random
        client = self.clients[random.choice(list(self.clients))]
        kind = random.choices(
            ["begin", "send", "deliver", "sync", "lose", "expire", "give up", "commit"], [6, 8, 12, 6, 0.7, 0.15, 0.15, 0.5]
        )[0]
        if kind == "begin":
            client.begin(random, self.mrc)
        elif kind == "send" and (sent := client.send(random)) is not None:
            self.wire += [sent] * random.choice([1, 1, 1, 2])
        elif kind == "deliver" and self.wire:
            self.mrc.take(*self.wire.pop(random.randrange(len(self.wire))))
        elif kind == "sync":
            self.tell(self.mrc.sync())
        elif kind == "lose":
            self.mrc.waiting = [row for row in self.mrc.waiting if random.random() < 0.5]
        elif kind == "expire":
            self.mrc.expire(client.name)
            client.changes.life = self.mrc.open(client.name)
        elif kind == "give up":
            client.give_up(random)
        elif kind == "commit":
            self.mrc.store.commit()

    def tell(self, rows):
        for name, once, answer in rows:
            self.clients[name].hear(once, answer)

    def run(self):
        for _step in range(STEPS):
            try:
                self.step()
            except PowerCut:
                self.cuts += 1
                while True:
                    try:
                        self.mrc.cut()
                        for (
                            client
                        ) in self.clients.values():  # a life that was told is on the disk: else it would be another one now
                            client.changes.life = self.mrc.open(client.name)
                        break
                    except PowerCut:
                        continue
        self.mrc.disk.fuel = 1 << 60
        while any(client.pending for client in self.clients.values()):
            for client in self.clients.values():
                if (sent := client.send(self.random)) is not None:
                    self.mrc.take(*sent)
            self.tell(self.mrc.sync())
        for late in self.wire:  # whatever was still under way arrives at last
            self.mrc.take(*late)
        self.mrc.sync()


@pytest.mark.log_warnings("torn tail was cut")
@pytest.mark.parametrize("seed", range(15))
def test_a_change_has_effect_once_whatever_is_lost_or_comes_twice(seed):
    town = Town(seed)
    town.run()
    done = [row for row in town.mrc.done if row is not None]
    assert len(done) == len(set(done)), "a change was done twice"
    names = {name for name, _row in views.listing(town.mrc.state, ALICE, ROOT, 0, 4096)[1].rows}
    for client in town.clients.values():
        for at, may in enumerate(client.may):
            base = b"%s.%d" % (client.name[-4:].encode(), at)
            there = {name for name in (base, base + b"'") if name in names}
            assert (there or {None}) <= may, f"file {at}: {there} is there, {may} could be"
    assert checking.check(town.mrc.store.kv) == []
    assert town.cuts
    assert sum(client.answered for client in town.clients.values()) > 50
