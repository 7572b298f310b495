"""One OSD and its clients over its Unix socket: rights, fences, damage, space, descriptors, deletion, scrubs."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time

import msgspec
import pytest

from osd_kit import INO, SIGNER, rights, with_osds
from xtreemos.errors import RemoteError
from xtreemos.fabric import rpc
from xtreemos.foundation.frames import Kind
from xtreemos.vo.audit import verify_file
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.calls import params
from xtreemos.xtreemfs.capability import Signer
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import SUM_BYTES, WIDTH_MAX, MrcRecord, make_ino
from xtreemos.xtreemfs.osd.blocks import sums_of
from xtreemos.xtreemfs.osd.model import Key, data_name

DATA = bytes(range(256)) * 512  # 128 KiB


def path_of(osds, ino=INO, name="n1", column=0):
    return osds.folder / name / "d0" / "columns" / data_name(Key(ino, column))


def audit_of(osds, name="n1"):
    path = osds.folder / name / "d0" / "audit.jsonl"
    verify_file(path)
    return [json.loads(line) for line in path.read_text().splitlines()]


async def raw(osds, method, message, name="n1", **more):
    peer = await rpc.connect_unix(osds.folder / f"{name}.sock")
    try:
        return await peer.call(method, {**params(message), **more}, timeout_s=10)
    finally:
        peer.close()


def write_of(shown, at=0, data=b"x"):
    return p.OsdWrite(shown, 0, at, data, sums_of(data, at))


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (lambda: rights(signer=Signer(b"x" * 32)), "not signed by the MRC"),
        (lambda: rights(mode="r"), "reading only"),
        (lambda: rights(session_ms=-1), "session ended"),
        (lambda: rights(life_s=-1), "expired"),
        (lambda: rights(vo="other"), "of VO other"),
        (lambda: rights(mrc="n9"), "no known MRC"),
        (lambda: p.Rights(rights().capability, rights(client="c2").session), "another client's"),
        (lambda: p.Rights(rights().session, rights().session), "cannot be read"),
        (lambda: p.Rights(b"", b""), "0 bytes"),
    ],
    ids=[
        "forged",
        "wrong-mode",
        "session-over",
        "expired",
        "wrong-vo",
        "unknown-mrc",
        "other-client",
        "token-as-capability",
        "empty",
    ],
)
def test_a_write_without_the_right_is_refused_audited_and_leaves_nothing(tmp_path, shown, why):
    async def use(osds):
        with pytest.raises(RemoteError, match=why) as caught:
            await raw(osds, "osd.write", write_of(shown()))
        assert caught.value.code == ("signer-unknown" if "known MRC" in why else "capability-refused")
        assert not path_of(osds).exists()
        (record,) = audit_of(osds)
        assert (record["what"], record["allowed"]) == ("osd.write", False)
        assert why in record["why"]

    with_osds(tmp_path, use)


@pytest.mark.parametrize("field", ["ino", "epoch", "quota_bytes", "expires_at", "node", "mode"])
def test_a_widened_capability_is_refused_and_audited(tmp_path, field):
    async def use(osds):
        good = rights(mode="r")
        body = msgspec.msgpack.decode(good.capability[64:])
        names = ["vo", "mrc", "client", "node", "ino", "mode", "epoch", "layout_version", "quota_bytes", "expires_at"]
        at = names.index(field)
        body[at] = "w" if field == "mode" else "n2" if field == "node" else body[at] + 1
        widened = p.Rights(good.capability[:64] + msgspec.msgpack.encode(body), good.session)
        with pytest.raises(RemoteError, match="not signed"):
            await raw(osds, "osd.read", p.OsdRead(widened, 0, 0, 10))
        assert len(audit_of(osds)) == 1

    with_osds(tmp_path, use)


def test_the_same_refusal_again_and_again_does_not_fill_the_audit(tmp_path):
    async def use(osds):
        for _time in range(50):
            with pytest.raises(RemoteError):
                await raw(osds, "osd.write", write_of(rights(mode="r")))
        assert len(audit_of(osds)) == 1

    with_osds(tmp_path, use)


def test_an_older_epoch_may_not_write_but_read_and_an_older_layout_neither(tmp_path):
    async def use(osds):
        await raw(osds, "osd.write", write_of(rights(epoch=5, layout=3), 0, b"new"))
        with pytest.raises(RemoteError) as caught:
            await raw(osds, "osd.write", write_of(rights(epoch=4, layout=3), 0, b"old"))
        assert caught.value.code == "ESTALE"
        assert (await raw(osds, "osd.read", p.OsdRead(rights(epoch=4, layout=3), 0, 0, 9)))[0] == b"new"
        with pytest.raises(RemoteError) as caught:
            await raw(osds, "osd.read", p.OsdRead(rights(epoch=5, layout=2), 0, 0, 9))
        assert caught.value.code == "ESTALE"
        assert [record["what"] for record in audit_of(osds)] == ["osd.write", "osd.read"]

    with_osds(tmp_path, use)


def test_a_fence_stops_the_old_writer_tells_lengths_and_outlives_the_process(tmp_path):
    async def use(osds):
        file = osds.file(epoch=3)
        await file.write(0, b"12345")
        assert tuple(await raw(osds, "osd.fence", p.OsdFence(INO, 4, (0, 1)))) == (5, 0)
        assert tuple(await raw(osds, "osd.fence", p.OsdFence(INO, 2, (0,)))) == (5,)
        for _start in range(2):
            with pytest.raises(FsError) as caught:
                await file.write(0, b"late")
            assert caught.value.errno == errno.ESTALE
            await osds.end("n1")
            await osds.begin("n1")
        await osds.file(epoch=4).write(0, b"next")
        assert await file.read(0, 5) == b"next5"

    with_osds(tmp_path, use)


@pytest.mark.parametrize(
    ("method", "message"), [("osd.fence", p.OsdFence(INO, 9, (0,))), ("osd.delete", p.OsdDelete((INO,)))], ids=["fence", "delete"]
)
def test_only_an_mrc_may_fence_and_delete(tmp_path, method, message):
    async def use(osds):
        await osds.file().write(0, b"kept")
        (osds.folder / "dir" / "mrc.n1.json").unlink()
        osds.servers["n1"].service._directory.look()
        with pytest.raises(RemoteError) as caught:
            await raw(osds, method, message)
        assert caught.value.code == "capability-refused"
        assert path_of(osds).exists()
        assert audit_of(osds)[0]["what"] == method

    with_osds(tmp_path, use)


def test_a_file_is_deleted_up_to_the_width_that_was_told(tmp_path):
    async def use(osds):
        file = osds.file("n1", "n1", "n1")
        await file.write(0, bytes(3 * file.layout.object_bytes))
        assert path_of(osds, column=2).exists()
        for width in (0, WIDTH_MAX + 1):
            with pytest.raises(RemoteError):
                await raw(osds, "osd.delete", p.OsdDelete((INO,), width))
        assert path_of(osds).exists()
        await raw(osds, "osd.delete", p.OsdDelete((INO,), 3))
        assert not [name for name in osds.folder.rglob("*") if f"{INO:016x}" in name.name]

    with_osds(tmp_path, use)


def test_deleting_frees_the_space_at_once_for_good_and_twice_is_no_error(tmp_path):
    async def use(osds):
        file = osds.file()
        await file.write(0, DATA)
        await file.sync()
        await raw(osds, "osd.fence", p.OsdFence(INO, 2, (0,)))
        for _time in range(2):
            await raw(osds, "osd.delete", p.OsdDelete((INO,)))
            assert not path_of(osds).exists()
            held = [
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")
            ]
            assert not [name for name in held if f"{INO:016x}" in name]
        with pytest.raises(FsError) as caught:  # a late writer must not bring it back
            await osds.file(epoch=9).write(0, b"x")
        assert caught.value.errno == errno.ESTALE
        await osds.end("n1")
        await osds.begin("n1")
        with pytest.raises(FsError):
            await osds.file(epoch=9).write(0, b"x")
        assert not path_of(osds).exists()

    with_osds(tmp_path, use)


def clean(osds, name="n1"):
    """Have everything synced and marked clean now."""

    async def work():
        store = osds.servers[name].store
        for shelf in store.shelves:
            await store.sync_all(shelf, older_s=-1)
            await store.settle(shelf, quiet_s=-1)
            assert len(shelf.ledger) == 0

    return work()


@pytest.mark.log_warnings("is damaged")
def test_a_damaged_block_is_eio_counted_listed_and_found_by_a_scrub_and_a_rewrite_heals_it(tmp_path):
    async def use(osds):
        file = osds.file()
        await file.write(0, DATA)
        await file.sync()
        await clean(osds)
        with path_of(osds).open("r+b") as column:
            column.seek(2 * SUM_BYTES + 9)
            column.write(b"!")
        with pytest.raises(FsError, match="block 2 of column 0") as caught:
            await file.read(0, len(DATA))
        assert caught.value.errno == errno.EIO
        assert "n1" in str(caught.value)
        assert await file.read(0, 2 * SUM_BYTES) == DATA[: 2 * SUM_BYTES]
        status = await raw(osds, "osd.status", p.OsdStatus())
        assert [row[:4] for row in status["damaged"]] == [[INO, 0, 2, "damaged"]]
        with pytest.raises(FsError):  # into a part of it: would give damage a fresh sum
            await file.write(2 * SUM_BYTES + 100, b"abc")
        assert await scrub(osds) == {"files": 1, "damaged": [[INO, 0, 2, "damaged"]], "torn": []}
        await file.write(2 * SUM_BYTES, DATA[2 * SUM_BYTES : 3 * SUM_BYTES])
        assert await file.read(0, len(DATA)) == DATA
        await clean(osds)
        assert await scrub(osds) == {"files": 1, "damaged": [], "torn": []}
        assert (await raw(osds, "osd.status", p.OsdStatus()))["damaged"] == []

    with_osds(tmp_path, use)


async def scrub(osds):
    peer = await rpc.connect_unix(osds.folder / "n1.sock")
    try:
        call = peer.open("osd.scrub", params(p.OsdScrub()))
        events = []
        while (frame := await call.receive()).kind is Kind.EVENT:
            events.append(frame.body)
        assert events[-1]["done"] == events[-1]["total"]
        return {"files": frame.body["files"], **{k: [row[:4] for row in frame.body[k]] for k in ("damaged", "torn")}}
    finally:
        peer.close()


@pytest.mark.log_warnings("is gone from its disk|has .* bytes, not|is damaged")
@pytest.mark.parametrize("how", ["removed", "shorter", "longer"])
def test_a_clean_column_that_is_gone_or_has_another_length_is_no_hole_but_an_error(tmp_path, how):
    async def use(osds):
        file = osds.file()
        await file.write(0, DATA)
        await file.sync()
        await clean(osds)
        await osds.end("n1")
        path = path_of(osds)
        if how == "removed":
            path.unlink()
        else:
            os.truncate(path, len(DATA) + (5 if how == "longer" else -5))
        await osds.begin("n1")
        with pytest.raises(FsError) as caught:
            await file.read(0, 10)
        assert caught.value.errno == errno.EIO

    with_osds(tmp_path, use)


def test_the_owners_limit_refuses_new_bytes_cleanly_and_deleting_makes_room(tmp_path):
    async def use(osds):
        file, other = osds.file(), osds.file(ino=INO + 1)
        await file.write(0, DATA)
        with pytest.raises(FsError) as caught:
            await other.write(0, 40 * DATA)
        assert caught.value.errno == errno.ENOSPC
        assert osds.servers["n1"].record().state == "full"
        await file.write(0, DATA)  # bytes that are there already need no room
        assert await file.read(0, len(DATA)) == DATA
        await raw(osds, "osd.delete", p.OsdDelete((INO + 1,)))
        await osds.file(ino=INO + 2).write(0, DATA)
        assert osds.servers["n1"].record().state == "online"

    with_osds(tmp_path, use, limit_bytes=3 << 20)


def test_an_administrator_locks_a_disk_and_reads_go_on(tmp_path):
    async def use(osds):
        file = osds.file()
        await file.write(0, b"here")
        (osds.folder / "n1" / "d0" / "locked").touch()
        await osds.servers["n1"]._beat()
        osds.directory.look()
        assert osds.directory.state.osds["n1"].state == "locked"
        with pytest.raises(FsError, match="locked"):
            await file.write(0, DATA)
        assert await file.read(0, 4) == b"here"

    with_osds(tmp_path, use)


def test_the_quota_in_a_capability_is_kept(tmp_path):
    async def use(osds):
        file = osds.file(quota=1000)
        await file.write(0, bytes(1000))
        for work in (file.write(999, b"ab"), file.truncate(1001), file.allocate(0, 1001, "a")):
            with pytest.raises(FsError) as caught:
                await work
            assert caught.value.errno == errno.EDQUOT
        await file.write(500, b"inside")

    with_osds(tmp_path, use)


def test_bytes_that_were_changed_on_their_way_are_refused(tmp_path):
    async def use(osds):
        message = p.OsdWrite(rights(), 0, 0, b"abd", sums_of(b"abc", 0))
        with pytest.raises(RemoteError) as caught:
            await raw(osds, "osd.write", message)
        assert caught.value.code == "EBADMSG"

    with_osds(tmp_path, use)


@pytest.mark.parametrize(
    "message",
    [
        lambda r: ("osd.read", p.OsdRead(r, 0, -1, 5)),
        lambda r: ("osd.read", p.OsdRead(r, 0, 0, 5 << 20)),
        lambda r: ("osd.read", p.OsdRead(r, 64, 0, 5)),
        lambda r: ("osd.write", p.OsdWrite(r, 0, -1, b"a", sums_of(b"a", 0))),
        lambda r: ("osd.truncate", p.OsdTruncate(r, 0, -1)),
        lambda r: ("osd.truncate", p.OsdTruncate(r, 0, 1 << 63)),
        lambda r: ("osd.allocate", p.OsdAllocate(r, 0, 1 << 62, 1 << 62, "a")),
        lambda r: ("osd.fence", p.OsdFence(INO, 1, (99,))),
        lambda r: ("osd.delete", p.OsdDelete(tuple(range(20_000)))),
    ],
)
def test_impossible_requests_are_refused_and_nothing_breaks(tmp_path, message):
    async def use(osds):
        with pytest.raises(RemoteError) as caught:
            await raw(osds, *message(rights()))
        assert caught.value.code in ("EINVAL", "EFBIG")
        await osds.file().write(0, b"still here")

    with_osds(tmp_path, use)


def test_a_descriptor_gives_the_file_itself_and_after_the_sync_its_sums_are_right(tmp_path):
    async def use(osds):
        file = osds.file()
        await file.write(0, b"hello world")
        await clean(osds)
        fd = await file.descriptor(write=False)
        assert os.pread(fd, 20, 0) == b"hello world"
        with pytest.raises(OSError, match="Bad file"):
            os.pwrite(fd, b"x", 0)
        os.close(fd)
        fd = await file.descriptor(write=True)
        os.pwrite(fd, DATA, 5)
        assert await file.read(0, 8) == b"hello" + DATA[:3]  # others see it, sums or not
        await file.sync()
        assert len(osds.servers["n1"].store.shelves[0].ledger) == 1  # still lent: not clean
        os.pwrite(fd, b"LAST", 0)  # after a sync, behind the OSD's back
        assert await file.read(0, 4) == b"LAST"
        os.close(fd)
        await file.sync()
        assert await file.stat() == (len(DATA) + 5, file.blocks[0])
        await clean(osds)
        assert (await scrub(osds))["damaged"] == []
        await osds.end("n1")
        await osds.begin("n1")
        assert await file.read(0, len(DATA) + 5) == b"LASTo" + DATA

    with_osds(tmp_path, use)


def test_a_descriptor_that_outlives_the_osds_process_makes_no_damage(tmp_path):
    async def use(osds):
        file = osds.file()
        await file.write(0, DATA)
        fd = await file.descriptor(write=True)
        await osds.end("n1")
        os.pwrite(fd, b"while it was away", 0)
        await osds.begin("n1")
        await asyncio.sleep(0.3)  # its recovery finds the descriptor out
        os.pwrite(fd, b"afterwards", SUM_BYTES)
        assert await file.read(0, 17) == b"while it was away"
        assert await file.read(SUM_BYTES, 10) == b"afterwards"
        os.close(fd)
        await file.sync()
        await clean(osds)
        assert await scrub(osds) == {"files": 1, "damaged": [], "torn": []}
        assert (await raw(osds, "osd.status", p.OsdStatus()))["damaged"] == []

    with_osds(tmp_path, use)


def test_a_reader_gets_no_descriptor_for_writing(tmp_path):
    async def use(osds):
        with pytest.raises(FsError) as caught:
            await osds.file(mode="r").descriptor(write=True)
        assert caught.value.errno == errno.EACCES
        assert len(audit_of(osds)) == 1

    with_osds(tmp_path, use)


def test_more_files_than_may_be_open_are_served_and_keep_their_sums(tmp_path, monkeypatch):
    monkeypatch.setattr("xtreemos.xtreemfs.osd.store.OPEN_MAX", 4)

    async def use(osds):
        files = [osds.file(ino=make_ino(2, number)) for number in range(1, 40)]
        await asyncio.gather(*(file.write(number, DATA[:5000]) for number, file in enumerate(files)))
        assert osds.servers["n1"].store.open_count <= 4
        for number, file in enumerate(files):
            assert await file.read(number, 5000) == DATA[:5000]
        await clean(osds)
        assert await scrub(osds) == {"files": 39, "damaged": [], "torn": []}

    with_osds(tmp_path, use)


def test_two_disks_share_the_columns_and_a_missing_one_stops_the_start(tmp_path):
    from xtreemos.xtreemfs.osd.disks import DiskRefused

    async def use(osds):
        for number in range(1, 30):
            await osds.file(ino=make_ino(2, number)).write(0, DATA)
        await osds.end("n1")
        with pytest.raises(DiskRefused, match="missing"):
            await osds.begin("n1", disks=1)
        osds.servers.clear()
        await osds.begin("n1", disks=2)
        for number in range(1, 30):
            assert await osds.file(ino=make_ino(2, number)).read(0, 9) == DATA[:9]

    with_osds(tmp_path, use, disks=2)


def test_another_osds_folder_and_one_in_use_are_refused(tmp_path):
    from xtreemos.xtreemfs.osd.disks import DiskRefused, Disks

    first = Disks([tmp_path / "d"], vo="demo", node="n1")
    with pytest.raises(DiskRefused, match="another OSD runs"):
        Disks([tmp_path / "d"], vo="demo", node="n1")
    first.close()
    with pytest.raises(DiskRefused, match="belongs to"):
        Disks([tmp_path / "d"], vo="demo", node="n2")


def test_a_cancelled_write_is_done_or_not_and_the_next_goes_on(tmp_path):
    async def use(osds):
        file = osds.file()
        big = os.urandom(4 << 20)
        for _turn in range(5):
            task = asyncio.create_task(file.write(0, big))
            await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await file.write(0, big)
        assert bytes(await file.read(0, len(big))) == big

    with_osds(tmp_path, use)


def test_the_record_in_the_directory_says_what_is_left(tmp_path):
    async def use(osds):
        record = osds.directory.state.osds["n1"]
        assert record.state == "online"
        assert 0 < record.free_bytes <= record.total_bytes
        assert abs(time.time() - record.beat_at) < 20
        assert record.socket == str(tmp_path / "n1.sock")
        assert SIGNER.public in osds.directory.state.mrcs["n1"].keys

    with_osds(tmp_path, use)


def test_a_client_of_an_mrc_that_has_just_come_up_waits_until_the_osd_hears_of_it(tmp_path):
    async def use(osds):
        writing = asyncio.create_task(raw(osds, "osd.write", write_of(rights(mrc="n9"))))
        await asyncio.wait({writing}, timeout=0.3)
        assert not writing.done()
        await osds.directory.put(MrcRecord(node="n9", address="", keys=(SIGNER.public,)))
        await writing
        assert path_of(osds).read_bytes() == b"x"
        assert not (osds.folder / "n1/d0/audit.jsonl").exists() or audit_of(osds) == []

    with_osds(tmp_path, use)
