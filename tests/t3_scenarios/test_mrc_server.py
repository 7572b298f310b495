"""A running MRC and its clients over a real Unix socket: leases, recalls, restarts, refusals."""

import asyncio
import errno
import json
import time

import msgspec
import pytest

from mrc_kit import DIR, FILE, Client, run, until
from xtreemos.errors import RemoteError
from xtreemos.fabric import rpc
from xtreemos.foundation.files import write_atomically
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.capability import Verifier, check_rights
from xtreemos.xtreemfs.errors import FsError, TicketRefused, errno_of
from xtreemos.xtreemfs.lease import model as lease_model
from xtreemos.xtreemfs.model import FILE_BYTES_MAX, Principal, VolumeRecord, make_ino, volume_of
from xtreemos.xtreemfs.mrc import opening, replies
from xtreemos.xtreemfs.ticket import Holder


async def world(grid, name="vol", **policy):
    """Return (client, root of a new volume)."""
    client = await grid.client()
    volume = await client.mkvol(name, policy=policy)
    return client, make_ino(volume.id, 1)


async def refused(number, awaitable):
    with pytest.raises(FsError) as caught:
        await awaitable
    assert caught.value.errno == number


def test_what_one_client_makes_another_finds(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        assert made.entry.level == 2
        b = await grid.client(b"local:bob")
        found = await b.lookup(root, "f")
        assert found.entry.attr == made.entry.attr
        assert found.entry.level == 0, "a holds it for writing"
        assert found.entry.named
        missing = await b.lookup(root, "g")
        assert missing.missing.named
        await refused(errno.EACCES, b.create(root, "h"))
        names = await b.call("mrc.names", protocol.Names((made.entry.attr.uid, 5)), tuple[Principal, ...])
        assert names == (Principal("u", made.entry.attr.uid, "alice"),)

    run(tmp_path, work)


def test_a_capability_opens_the_file_and_nothing_else(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        renewed = await a.call("mrc.renew", protocol.Renew(a.id), protocol.Renewed)
        verifier = Verifier("demo", lambda mrc: grid.directory.state.mrcs[mrc].keys)
        capability, token = verifier.capability(made.entry.capability), verifier.session(renewed.token)
        assert (capability.ino, capability.mode, capability.epoch, capability.quota_bytes) == (
            made.entry.attr.ino,
            "w",
            made.entry.epoch,
            FILE_BYTES_MAX,
        )
        check_rights(capability, token, node="n1", now_s=time.time(), write=True)
        await a.call("mrc.release", protocol.Release(capability.ino, 0))
        reader = verifier.capability((await a.acquire(capability.ino, 1, "r")).capability)
        assert reader.mode == "r"
        again = await a.acquire(capability.ino, 2, "rw")
        assert again.epoch > made.entry.epoch

    run(tmp_path, work)


def test_opening_needs_the_rights_asked_for(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f", FILE | 0o640)
        b = await grid.client(b"local:eve")
        await refused(errno.EACCES, b.acquire(made.entry.attr.ino, 1, "r"))
        await refused(errno.EACCES, b.acquire(made.entry.attr.ino, 2, ""))
        assert not a.recalls, "a refused open disturbs nobody"
        seen = await b.getattr(made.entry.attr.ino)
        assert (seen.level, seen.capability) == (1, b"")
        await refused(errno.EISDIR, a.acquire(root, 2, "w"))

    run(tmp_path, work)


def test_a_reader_waits_for_the_writers_last_word(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        ino, epoch = made.entry.attr.ino, made.entry.epoch
        b = await grid.client(b"local:bob")
        a.stubborn = True
        reading = asyncio.create_task(b.getattr(ino))
        await until(lambda: a.recalls)
        await asyncio.sleep(0.05)
        assert not reading.done()
        assert (a.recalls[0].ino, a.recalls[0].level) == (ino, 1)
        await a.give(a.recalls[0], protocol.Update(ino, epoch, size=1000, blocks=8, mtime_ns=77))
        seen = await reading
        assert (seen.attr.size, seen.attr.mtime_ns, seen.level) == (1000, 77, 1)
        late = protocol.Update(ino, epoch, size=5)
        await refused(errno.ESTALE, a.call("mrc.update", late))

    run(tmp_path, work)


def test_fsync_tells_a_size_and_keeps_the_lease(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        update = protocol.Update(made.entry.attr.ino, made.entry.epoch, size=5)
        assert (await a.call("mrc.update", update, protocol.Attr)).size == 5
        await grid.stop()
        await grid.start()
        assert grid.server.core.state.inode(made.entry.attr.ino).size == 5

    run(tmp_path, work)


def test_many_updates_in_one_message_count_each_for_itself(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = [(await a.create(root, name)).entry for name in ("f", "g", "h")]
        rows = [protocol.Update(entry.attr.ino, entry.epoch, size=5) for entry in made]
        rows[1] = protocol.Update(made[1].attr.ino, made[1].epoch - 1, size=5)
        assert await a.call("mrc.updates", protocol.Updates(tuple(rows)), list[int]) == [0, errno.ESTALE, 0]
        too_many = protocol.Updates(tuple(rows[:1] * (protocol.UPDATES_MAX + 1)))
        await refused(errno.EINVAL, a.call("mrc.updates", too_many))
        await grid.stop()
        await grid.start()
        assert [grid.server.core.state.inode(entry.attr.ino).size for entry in made] == [5, 0, 5]

    run(tmp_path, work)


def test_many_releases_in_one_message_count_each_for_itself(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = [(await a.create(root, name)).entry for name in ("f", "g")]
        words = [protocol.Update(entry.attr.ino, entry.epoch + late, size=7) for late, entry in enumerate(made)]
        rows = tuple(protocol.Release(word.ino, 0, update=word) for word in words)
        assert await a.call("mrc.releases", protocol.Releases(rows), list[int]) == [0, errno.ESTALE]
        too_many = protocol.Releases(rows[:1] * (protocol.RELEASES_MAX + 1))
        await refused(errno.EINVAL, a.call("mrc.releases", too_many))
        b = await grid.client(b"local:alice")
        for entry, size in zip(made, (7, 0), strict=True):
            assert (await b.acquire(entry.attr.ino)).attr.size == size
        assert not a.recalls, "both were given back, the refused one too"

    run(tmp_path, work)


def test_a_change_of_a_name_recalls_that_name_only(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = await grid.client(b"local:alice")
        await a.lookup(root, "f")
        await a.lookup(root, "g")
        await b.create(root, "f")
        assert [(recall.ino, recall.level, recall.names) for recall in a.recalls] == [(root, 1, (b"f",))]
        assert (await a.lookup(root, "f")).entry is not None

    run(tmp_path, work)


def test_others_keep_a_directory_and_its_names_when_it_changes_itself(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = await grid.client(b"local:alice")
        folder = (await a.create(root, "d", DIR | 0o755)).entry.attr.ino
        await a.lookup(folder, "x")
        now = time.time_ns()
        await b.call("mrc.setattr", protocol.SetAttr(b.who, folder, now, mtime_ns=5), protocol.Grant)
        await b.call("mrc.rename", protocol.Rename(b.who, root, b"d", root, b"e", 0, now), protocol.Renamed)
        told = [(recall.ino, recall.level, recall.names) for recall in a.recalls]
        assert [row for row in told if row[0] == folder] == [(folder, 1, (b".",))] * 2
        seen = await a.getattr(folder)
        assert (seen.level, seen.attr.mtime_ns) == (1, 5)

    run(tmp_path, work)


def test_what_will_be_refused_is_called_back_from_nobody(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = await grid.client(b"local:alice")
        for name in ("full", "other"):
            folder = (await a.create(root, name, DIR | 0o755)).entry.attr.ino
            await a.create(folder, "f")
        a.recalls.clear()
        await refused(errno.EEXIST, b.create(root, "full", DIR | 0o755))
        await refused(errno.ENOTEMPTY, b.unlink(root, "full", directory=True))
        rename = protocol.Rename(b.who, root, b"other", root, b"full", 0, time.time_ns())
        await refused(errno.ENOTEMPTY, b.call("mrc.rename", rename, protocol.Renamed))
        assert a.recalls == []

    run(tmp_path, work)


def test_unlinking_an_open_file_keeps_it_until_the_last_close(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = await grid.client(b"local:alice")
        ino = (await a.create(root, "f")).entry.attr.ino
        a.pin.add(ino)
        gone = await b.unlink(root, "f")
        assert gone.attr.nlink == 0
        assert (await a.getattr(ino)).attr.nlink == 0
        await asyncio.sleep(0.6)
        assert grid.server.core.state.orphans() == [ino]
        await a.call("mrc.release", protocol.Release(ino, 0))
        await until(lambda: grid.osds["n1"].deleted == {ino})
        await refused(errno.ESTALE, a.getattr(ino))
        await until(lambda: not grid.server.core.state.all_garbage(0, 10))

    run(tmp_path, work)


def test_a_file_without_a_name_goes_with_its_session_or_gets_a_name(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        lost = (await a.create(root, "", anonymous=True)).entry.attr
        kept = (await a.create(root, "", anonymous=True)).entry.attr
        await a.call("mrc.link", protocol.Link(a.who, kept.ino, root, b"kept", time.time_ns()))
        await a.call("mrc.bye", protocol.Bye(a.id))
        b = await grid.client(b"local:alice")
        await until(lambda: grid.server.core.state.find_inode(lost.ino) is None)
        assert (await b.lookup(root, "kept")).entry.attr.nlink == 1

    run(tmp_path, work)


def test_objects_are_deleted_when_the_osd_is_back(tmp_path):
    async def work(grid):
        a, root = await world(grid, width=2)
        made = await a.create(root, "f")
        assert sorted(made.entry.layout.replicas[0].osds) == ["n1", "n2"]
        grid.osds["n2"].away = True
        await a.unlink(root, "f")
        await a.call("mrc.forget", protocol.Forget((made.entry.attr.ino,)))
        await a.call("mrc.release", protocol.Release(made.entry.attr.ino, 0))
        await until(lambda: grid.osds["n1"].deleted)
        await asyncio.sleep(0.3)
        assert grid.server.core.state.all_garbage(0, 10) == [(made.entry.attr.ino, ("n2",))]
        grid.osds["n2"].away = False
        await until(lambda: grid.osds["n2"].deleted)
        await until(lambda: not grid.server.core.state.all_garbage(0, 10))

    run(tmp_path, work)


test_objects_are_deleted_when_the_osd_is_back = pytest.mark.log_warnings("cannot be deleted yet")(
    test_objects_are_deleted_when_the_osd_is_back
)


@pytest.fixture
def short_leases(monkeypatch):
    for module in (lease_model, opening):
        monkeypatch.setattr(module, "LEASE_S", 1.0)
    from xtreemos.xtreemfs.lease import table

    monkeypatch.setattr(table, "LEASE_S", 1.0)


def test_a_dead_writers_file_is_fenced_and_its_size_asked_before_others_go_on(tmp_path, short_leases):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        ino = made.entry.attr.ino
        grid.osds["n1"].lengths[ino, 0] = 4242
        a.cut()
        b = await grid.client(b"local:alice")
        renewing = asyncio.create_task(_renew(b))
        seen = await b.getattr(ino)
        renewing.cancel()
        assert seen.attr.size == 4242
        ((fenced, epoch),) = grid.osds["n1"].fenced
        assert fenced == ino
        assert epoch > made.entry.epoch
        assert grid.server.core.state.writers() == []
        back = await grid.again(a, held=(protocol.Held(ino, 2, made.entry.epoch, False),))
        assert back.welcome.lost == (ino,)

    run(tmp_path, work)


async def _renew(client):
    while True:
        await client.call("mrc.renew", protocol.Renew(client.id))
        await asyncio.sleep(0.2)


def test_a_restarted_server_takes_back_what_clients_held_and_gives_it_to_nobody_else(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        ino, epoch = made.entry.attr.ino, made.entry.epoch
        lock = protocol.LockRow(ino, "p", 7, 0, 9, True, 1)
        assert await a.call("mrc.lock", protocol.SetLock(a.who, lock)) is True
        b = await grid.client(b"local:alice")
        await grid.stop()
        await grid.start()
        b = await grid.again(b)
        waiting = asyncio.create_task(b.acquire(ino, 2, "rw"))
        locking = asyncio.create_task(b.call("mrc.lock", protocol.SetLock(b.who, lock)))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert not locking.done()
        a.stubborn = True
        a = await grid.again(a, held=(protocol.Held(ino, 2, epoch, False),), locks=(lock,))
        assert (a.welcome.lost, a.welcome.lost_locks) == ((), ())
        assert (await a.call("mrc.update", protocol.Update(ino, epoch, size=9), protocol.Attr)).size == 9
        await until(lambda: a.recalls)
        await a.give(a.recalls[0])
        granted = await waiting
        assert (granted.attr.size, granted.epoch > epoch) == (9, True)
        assert await locking is False

    run(tmp_path, work)


def test_a_dead_session_of_the_same_node_is_closed_at_once(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        made = await a.create(root, "f")
        a.cut()
        b = await grid.client(b"local:alice", dead=(a.id,))
        granted = await b.acquire(made.entry.attr.ino, 2, "rw")
        assert granted.epoch > made.entry.epoch

    run(tmp_path, work)


def test_two_clients_that_change_each_others_directories_do_not_wait_for_ever(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = await grid.client(b"local:alice")
        one = (await a.create(root, "one", DIR | 0o755)).entry.attr.ino
        two = (await b.create(root, "two", DIR | 0o755)).entry.attr.ino

        async def churn(client, mine, other):
            for number in range(40):
                await client.create(mine, f"{client.id[:4]}{number}")
                await client.call("mrc.rename", protocol.Rename(
                    client.who, mine, f"{client.id[:4]}{number}".encode(), other, f"{client.id[:4]}{number}".encode(), 0, time.time_ns()
                ))  # fmt: skip
                await client.lookup(other, f"{client.id[:4]}{number}")

        await asyncio.gather(churn(a, one, two), churn(b, two, one))
        total = [await a.call("mrc.readdir", protocol.ReadDir(a.who, folder, 0, 4096), protocol.Listing) for folder in (one, two)]
        assert [len(listing.entries) for listing in total] == [40, 40]

    run(tmp_path, work)


# -- locks -------------------------------------------------------------------------------------------------------------------


def test_a_blocking_lock_is_given_when_its_holder_goes_and_can_be_given_up(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        ino = (await a.create(root, "f")).entry.attr.ino
        b = await grid.client(b"local:alice")
        row = protocol.LockRow(ino, "b", 1, 0, FILE_BYTES_MAX, True, 5)
        assert await a.call("mrc.lock", protocol.SetLock(a.who, row)) is True
        assert await b.call("mrc.lock", protocol.SetLock(b.who, row)) is False
        blocker = await b.call("mrc.testlock", protocol.TestLock(b.who, row), protocol.LockRow | None)
        assert blocker == row
        given_up = asyncio.create_task(b.call("mrc.lock", protocol.SetLock(b.who, row, wait=True)))
        await asyncio.sleep(0.05)
        given_up.cancel()
        waiting = asyncio.create_task(b.call("mrc.lock", protocol.SetLock(b.who, row, wait=True)))
        await asyncio.sleep(0.05)
        await a.call("mrc.unlock", protocol.Unlock(a.who, ino, "b", 1))
        assert await waiting is True
        assert [owner for owner, _row in grid.server.locking.locks.rows()] == [b.id]

    run(tmp_path, work)


# -- volumes, quotas, events ---------------------------------------------------------------------------------------------------


def test_a_home_is_made_once_on_demand(tmp_path):
    async def work(grid):
        a = await grid.client(b"local:alice")
        first = await a.mkvol("", "home")
        assert (first.name, first.owner, first.kind) == ("home-alice", "alice", "home")
        assert await a.mkvol("whatever", "home") == first
        root = await a.getattr(make_ino(first.id, 1))
        assert root.attr.mode & 0o777 == 0o755
        assert grid.directory.state.volumes["home-alice"] == first
        with pytest.raises(RemoteError, match="no name for a volume"):
            await a.mkvol("home-bob")
        with pytest.raises(RemoteError, match="no name for a volume"):
            await a.mkvol("../x")

    run(tmp_path, work)


def test_a_removed_volume_is_gone_for_all_and_its_objects_are_deleted(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        ino = (await a.create(root, "f")).entry.attr.ino
        await refused(errno.ENOTEMPTY, a.call("mrc.rmvol", protocol.RemoveVolume(a.who, "vol")))
        b = await grid.client(b"local:bob")
        with pytest.raises(RemoteError, match="does not own"):
            await b.call("mrc.rmvol", protocol.RemoveVolume(b.who, "vol", force=True))
        assert "does not own volume vol" in grid.audited()
        await a.call("mrc.rmvol", protocol.RemoveVolume(a.who, "vol", force=True))
        await refused(errno.ESTALE, b.lookup(root, "f"))
        assert grid.directory.state.volumes["vol"].removed
        await until(lambda: grid.osds["n1"].deleted == {ino})
        await until(lambda: not grid.server.core.state.volumes())
        again = await a.mkvol("vol")
        assert again.id != volume_of(root)

    run(tmp_path, work)


def test_a_quota_bounds_what_a_capability_lets_write(tmp_path):
    async def work(grid):
        a, root = await world(grid, quota_bytes=1000, quota_files=4)
        verifier = Verifier("demo", lambda mrc: grid.directory.state.mrcs[mrc].keys)
        made = await a.create(root, "f")
        other = await a.create(root, "g")
        first = [verifier.capability(one.entry.capability).quota_bytes for one in (made, other)]
        assert first == [3, 3], "a little for a start"
        ino, more = made.entry.attr.ino, other.entry.attr.ino
        assert 990 <= verifier.capability((await a.acquire(ino, end=990)).capability).quota_bytes <= 997, "the other's stays"
        a.last_words[ino] = protocol.Update(ino, made.entry.epoch, size=300)
        asked = await a.acquire(more, end=650)
        assert 650 <= verifier.capability(asked.capability).quota_bytes <= 700, "what the first did not use was called back"
        assert (await a.getattr(ino)).attr.size == 300
        await a.call("mrc.update", protocol.Update(more, other.entry.epoch, size=0, done=True))
        await a.create(root, "h")
        await refused(errno.EDQUOT, a.create(root, "i"))
        quotas = await a.call("mrc.volstat", protocol.VolumeStat(a.who, "vol"), protocol.Quotas)
        assert quotas.rows[0] == protocol.QuotaRow("", 300, 4, 1000, 4)
        assert quotas.rows[1] == protocol.QuotaRow("alice", 300, 4, 0, 0)
        await a.call("mrc.setquota", protocol.SetQuota(a.who, "vol", "", 5000, 0))
        assert grid.directory.state.volumes["vol"].policy.quota_bytes == 5000
        stat = await a.call("mrc.statfs", protocol.StatFs(a.who, root), protocol.StatFsAnswer)
        assert (stat.bytes_total, stat.bytes_free) == (5000, 4700)

    run(tmp_path, work)


def test_without_room_on_osds_no_file_is_made(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        await grid.beat("n1", free_bytes=0)
        assert (await a.create(root, "f")).entry.layout.replicas[0].osds == ("n2",)
        await grid.beat("n2", free_bytes=1 << 40, beat_at=int(time.time()) - 1000)
        await refused(errno.ENOSPC, a.create(root, "g"))
        assert (await a.create(root, "d", DIR | 0o755)).entry.attr.is_dir

    run(tmp_path, work)


def test_changes_of_a_volume_are_followed_and_resumed(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        follow = a.peer.open("mrc.events", {"m": protocol.Follow(a.who, "vol")})
        await asyncio.sleep(0.05)
        made = await a.create(root, "f")
        first = msg(await follow.receive())
        assert [(row.kind, row.ino, row.dir, row.name) for row in first.rows] == [("create", made.entry.attr.ino, root, b"f")]
        follow.close()
        await a.call("mrc.rename", protocol.Rename(a.who, root, b"f", root, b"g", 0, time.time_ns()))
        await a.unlink(root, "g")
        again = a.peer.open("mrc.events", {"m": protocol.Follow(a.who, "vol", first.rows[-1].number)})
        assert [row.kind for row in msg(await again.receive()).rows] == ["rename-from", "rename-to", "unlink"]
        await grid.stop()
        await grid.start()
        b = await grid.client()
        after = b.peer.open("mrc.events", {"m": protocol.Follow(b.who, "vol", first.rows[-1].number)})
        told = msg(await after.receive())
        assert (told.lost, told.rows) == (True, ())
        eve = await grid.client(b"local:eve")
        with pytest.raises(RemoteError, match="does not own"):
            await eve.call("mrc.events", protocol.Follow(eve.who, "vol"))

    def msg(frame):
        from xtreemos.xtreemfs import calls

        return calls.answer_of(frame.body, protocol.Changes)

    run(tmp_path, work)


# -- refusals ------------------------------------------------------------------------------------------------------------------


def audits(grid):
    return [json.loads(line)["what"] for line in grid.audited().splitlines()]


def test_a_forged_ticket_is_refused_and_audited(tmp_path):
    def verify(ticket, node):
        if ticket != b"alice's":
            raise TicketRefused("the ticket was changed after it was signed")
        return Holder("alice", "demo", frozenset({"member"}), int(time.time()) + 60, "ab")

    async def work(grid):
        await grid.stop()
        await grid.start(verify=verify)
        good = await grid.client(b"alice's")
        volume = await good.mkvol("vol")
        bad = Client(await rpc.connect_unix(tmp_path / "mrc.sock"))
        grid._clients.append(bad)
        with pytest.raises(FsError, match="changed after"):
            await bad.act(b"forged")
        with pytest.raises(FsError):
            await bad.act(b"local:alice")
        assert audits(grid) == ["mrc.act"], "the same refusal again within a minute is not written again"
        nobody = await bad.act(b"")
        assert nobody.uid == 65534
        with pytest.raises(RemoteError, match="does not own the volume"):
            await bad.act(b"", root_of=volume.id)
        with pytest.raises(RemoteError, match="takes a user"):
            await bad.mkvol("theirs")
        assert (await good.act(b"alice's", root_of=volume.id)).uid > 0

    run(tmp_path, work)


def test_root_of_a_volume_is_nobody_in_another(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        other = make_ino((await a.mkvol("other")).id, 1)
        made = await a.create(root, "f", FILE | 0o600)
        bob = await grid.client(b"local:bob")
        with pytest.raises(RemoteError, match="does not own the volume"):
            await bob.act(b"local:bob", root_of=volume_of(root))
        acting = await a.act(b"", root_of=volume_of(root))
        a.who = protocol.Who(acting.actor, 0, 0)
        assert (await a.create(root, "dev", 0o020600, rdev=259)).entry.attr.rdev == 259
        a.who = protocol.Who(acting.actor, 1234, 1234)
        await refused(errno.EACCES, a.acquire(made.entry.attr.ino, 1, "r"))
        a.who = protocol.Who(acting.actor, 0, 0)
        await refused(errno.EACCES, a.create(other, "f"))
        assert "mrc.root" in audits(grid)

    run(tmp_path, work)


def test_a_session_belongs_to_its_connection_and_actors_to_theirs(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        b = Client(await rpc.connect_unix(tmp_path / "mrc.sock"))
        grid._clients.append(b)
        with pytest.raises(RemoteError, match="no session"):
            await b.call("mrc.lookup", protocol.Lookup(a.who, root, b"f"))
        await b.open()
        b.who = protocol.Who(a.who.actor + 100)
        await refused(errno.EACCES, b.lookup(root, "f"))
        with pytest.raises(FsError):
            await b.call("mrc.renew", protocol.Renew(a.id))
        with pytest.raises(FsError):
            await b.call("mrc.lookup", protocol.Names((1,)))

    run(tmp_path, work)


def test_a_second_connection_takes_the_session_over(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        other = await grid.again(a)
        await asyncio.sleep(0.05)
        with pytest.raises(RemoteError, match="no session"):
            await a.lookup(root, "f")
        assert (await other.lookup(root, "f")).missing is not None

    run(tmp_path, work)


def test_only_one_process_has_the_folder(tmp_path):
    async def work(grid):
        from xtreemos.xtreemfs.mrc.errors import FolderInUse
        from xtreemos.xtreemfs.mrc.server import Options, Server

        with pytest.raises(FolderInUse):
            Server(Options(tmp_path / "mrc", tmp_path / "other.sock"), grid.directory)

    run(tmp_path, work)


def test_the_status_tells_what_an_operator_wants_to_know(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        await a.create(root, "f")
        status = await a.call("mrc.status", protocol.Status(a.who))
        assert status["seq"] == status["durable"] > 3
        assert (status["volumes"], status["connected"], status["leases"] >= 1) == (1, 1, True)

    run(tmp_path, work)


def in_groups(grid, **groups):
    """Say who is in which group, as the registry does."""
    write_atomically(grid.folder / "dir" / "groups.json", msgspec.json.encode(groups))
    grid.directory.look()


def test_groups_are_what_the_registry_says_at_each_request(tmp_path):
    async def work(grid):
        in_groups(grid, alice=["students"], bob=["students"])
        a, b, e = [await grid.client(b"local:" + name) for name in (b"alice", b"bob", b"eve")]
        record = await a.call("mrc.mkvol", protocol.MakeVolume(a.who, "class", "shared", 0o2770, {}, "students"), VolumeRecord)
        root = make_ino(record.id, 1)
        made = await b.create(root, "f", FILE | 0o666)
        ino = made.entry.attr.ino
        students, own, nothing = await a.call(
            "mrc.numbers", protocol.Numbers((("g", "students"), ("g", "bob"), ("g", "nosuch"))), tuple[int, ...]
        )
        assert (made.entry.attr.gid, made.entry.attr.mode & 0o777, nothing, own) == (students, 0o660, -1, -1)
        assert [row.name for row in await a.call("mrc.names", protocol.Names((students,)), list[Principal])] == ["students"]
        await refused(errno.EACCES, e.lookup(root, "f"))
        await refused(errno.EACCES, e.acquire(ino, 1, "r"))
        mine = await e.create(make_ino((await e.mkvol("own")).id, 1), "mine")
        await refused(
            errno.EPERM, e.call("mrc.setattr", protocol.SetAttr(e.who, mine.entry.attr.ino, time.time_ns(), gid=students))
        )
        await b.acquire(ino, 2, "rw")
        in_groups(grid, alice=["students"], eve=["students"])
        await refused(errno.EACCES, b.lookup(root, "f"))
        await refused(errno.EACCES, b.create(root, "g"))
        assert (await e.lookup(root, "f")).entry is not None, "who came in acts on the same actor"
        await e.call("mrc.setattr", protocol.SetAttr(e.who, mine.entry.attr.ino, time.time_ns(), gid=students))

    run(tmp_path, work)


# -- changes that are sent again ----------------------------------------------------------------------------------------------


def changes(who, root, ino):
    """(method, message, answer) of every kind of change, each of which would fail if it were done a second time."""
    now = time.time_ns()
    return [
        ("mrc.create", protocol.Create(who, root, b"new", FILE | 0o644, 0, now), protocol.Made),
        ("mrc.create", protocol.Create(who, root, b"dir", DIR | 0o755, 0, now), protocol.Made),
        ("mrc.link", protocol.Link(who, ino, root, b"other", now), protocol.Made),
        ("mrc.rename", protocol.Rename(who, root, b"other", root, b"moved", 1, now), protocol.Renamed),
        ("mrc.rename", protocol.Rename(who, root, b"new", root, b"moved", 2, now), protocol.Renamed),
        ("mrc.unlink", protocol.Unlink(who, root, b"moved", now), protocol.Gone),
        ("mrc.unlink", protocol.Unlink(who, root, b"dir", now, True), protocol.Gone),
        ("mrc.setattr", protocol.SetAttr(who, ino, now, mode=0o600), protocol.Grant),
        ("mrc.setxattr", protocol.SetXattr(who, ino, b"user.x", b"1", 1, now), protocol.Grant),
        ("mrc.removexattr", protocol.RemoveXattr(who, ino, b"user.x", now), protocol.Grant),
    ]


def told(answer):
    """The attributes in an answer, without what is held: that may be another thing when it is given again."""
    entry = getattr(answer, "entry", None)
    parts = (
        [entry.attr, answer.dir_attr]
        if entry is not None
        else [getattr(answer, name, None) for name in ("attr", "dir_attr", "replaced")]
    )
    return [attr for attr in parts if attr is not None]


@pytest.mark.parametrize("restarts", [False, True], ids=["the connection breaks", "the server is killed"])
def test_a_change_that_is_sent_again_is_answered_again_and_done_once(tmp_path, restarts):
    async def work(grid):
        a, root = await world(grid)
        ino = (await a.create(root, "f")).entry.attr.ino
        count = len(changes(a.who, root, ino))
        for number in range(1, count + 1):
            life = a.welcome.life
            assert life
            method, message, kind = changes(a.who, root, ino)[number - 1]
            first = await a.call(method, message, kind, protocol.Once(life, number, number))
            seq = grid.server.store.seq
            a.cut()
            if restarts:
                await grid.kill()
                await grid.start()
                assert grid.server.store.seq >= seq, "an answer was told that was not on the disk"
            a = await grid.again(a)
            method, message, kind = changes(a.who, root, ino)[number - 1]
            again = await a.call(method, message, kind, protocol.Once(a.welcome.life, number, number))
            assert a.welcome.life == life
            assert told(again) == told(first)
            twice = await asyncio.gather(
                *(a.call(method, message, kind, protocol.Once(life, number, number)) for _time in range(3))
            )
            assert [told(answer) for answer in twice] == [told(first)] * 3
            found = getattr(again, "entry", again)
            assert not getattr(found, "cache", False) or not getattr(found, "level", 0), "an old answer is not kept"
        listing = await a.call("mrc.readdir", protocol.ReadDir(a.who, root, 0, 100), protocol.Listing)
        assert sorted(row.name for row in listing.entries) == [b"f", b"new"]
        assert len(list(grid.server.core.state.kv.scan(b"a", b"b", 100))) == 1, "what was heard is not kept"

    run(tmp_path, work)


def test_only_members_and_administrators_make_a_groups_volume(tmp_path):
    async def work(grid):
        (grid.folder / "dir" / "members.json").write_text('{"root": ["admin"], "alice": ["member"]}')
        in_groups(grid, bob=["students"])

        def make(client, name, kind="shared", group="students"):
            return client.call("mrc.mkvol", protocol.MakeVolume(client.who, name, kind, 0o2770, {}, group), VolumeRecord)

        a, b, r = [await grid.client(b"local:" + name) for name in (b"alice", b"bob", b"root")]
        for client, more in ((a, {}), (a, {"group": "nosuch"}), (b, {"kind": "home"})):
            with pytest.raises(RemoteError):
                await make(client, "no", **more)
        assert "alice is not in group students" in grid.audited()
        assert (await make(b, "one")).owner == "bob"
        assert (await make(r, "two")).owner == "root"

    run(tmp_path, work)


def test_a_change_of_an_ended_session_is_refused_and_not_done(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        once = protocol.Once(a.welcome.life, 1, 1)
        await a.call("mrc.create", protocol.Create(a.who, root, b"one", FILE | 0o644, 0, 5), protocol.Made, once)
        await a.unlink(root, "one")
        await a.call("mrc.bye", protocol.Bye(a.id))
        a = await grid.again(a)
        assert a.welcome.life > once.life
        for straggler in (once, protocol.Once(once.life, 2, 1)):
            with pytest.raises(RemoteError) as caught:
                await a.call("mrc.create", protocol.Create(a.who, root, b"one", FILE | 0o644, 0, 5), protocol.Made, straggler)
            assert (caught.value.code, errno_of(caught.value)) == ("fs-change-unknown", errno.EIO)
        assert (await a.lookup(root, "one")).entry is None
        await a.call(
            "mrc.create", protocol.Create(a.who, root, b"b", DIR | 0o755, 0, 5), protocol.Made, protocol.Once(a.welcome.life, 5, 4)
        )
        with pytest.raises(RemoteError):
            await a.call(
                "mrc.create",
                protocol.Create(a.who, root, b"c", DIR | 0o755, 0, 5),
                protocol.Made,
                protocol.Once(a.welcome.life, 3, 3),
            )
        far = protocol.Once(a.welcome.life, 5 + replies.CHANGES_MAX, 5)
        with pytest.raises(FsError, match="under way"):
            await a.call("mrc.create", protocol.Create(a.who, root, b"c", DIR | 0o755, 0, 5), protocol.Made, far)
        await a.call("mrc.bye", protocol.Bye(a.id))
        assert not grid.server.core.state.kv.scan(b"a", b"c", 10), "nothing is kept of a session that is over"

    run(tmp_path, work)


def test_a_file_without_a_name_lives_until_its_lost_answer_is_asked_for_again(tmp_path):
    async def work(grid):
        a, root = await world(grid)
        once = protocol.Once(a.welcome.life, 1, 1)
        message = protocol.Create(a.who, root, b"", FILE | 0o600, 0, 5, anonymous=True)
        made = await a.call("mrc.create", message, protocol.Made, once)
        a.cut()
        await grid.kill()
        await grid.start()
        a = await grid.again(a)
        message = protocol.Create(a.who, root, b"", FILE | 0o600, 0, 5, anonymous=True)
        again = await a.call("mrc.create", message, protocol.Made, once)
        ino = again.entry.attr.ino
        assert ino == made.entry.attr.ino
        await until(lambda: not grid.server.leasing.table.in_grace)
        grid.server.worker._free_unused()
        assert (await a.acquire(ino, mode="")).level == 2
        await a.call("mrc.link", protocol.Link(a.who, ino, root, b"named", 5), protocol.Made)
        assert (await a.lookup(root, "named")).entry.attr.ino == ino

    run(tmp_path, work)
