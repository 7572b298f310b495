"""Files over several OSDs: any range, holes, truncation, seeks; one OSD away, slow, mad or restarted."""

from __future__ import annotations

import asyncio
import errno
import os
import random

import pytest

from osd_kit import INO, rights, with_osds
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Attached
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import SUM_BYTES, OsdRecord
from xtreemos.xtreemfs.protocol import OsdData
from xtreemos.xtreemfs.striping import OsdConnections

NAMES = ("n1", "n2", "n3")
OBJECT = 4 * SUM_BYTES


@pytest.mark.parametrize("names", [("n1",), NAMES], ids=["one", "three"])
@pytest.mark.parametrize("seed", range(4))
def test_a_striped_file_is_like_bytes_in_memory(tmp_path, names, seed):
    async def use(osds):
        chance, file, told = random.Random(seed), osds.file(*names), bytearray()
        top = 12 * OBJECT
        for _step in range(60):
            at, length = chance.randrange(top), chance.choice((1, 300, 4096, SUM_BYTES, OBJECT, 3 * OBJECT + 77))
            what = chance.choices(["write", "read", "truncate", "punch", "zero", "sync", "grow"], [40, 30, 8, 6, 6, 6, 4])[0]
            if what == "write":
                data = chance.randbytes(length)
                await file.write(at, data)
                told.extend(bytes(max(0, at + length - len(told))))
                told[at : at + length] = data
            elif what == "read":
                assert bytes(await file.read(at, length)) == bytes(told[at : at + length]).ljust(length, b"\0")
            elif what in ("truncate", "grow"):
                size = chance.randrange(top) if what == "truncate" else len(told) + chance.randrange(OBJECT)
                await file.truncate(size)
                del told[size:]
                told.extend(bytes(size - len(told)))
            elif what in ("punch", "zero"):
                await file.allocate(at, length, "p" if what == "punch" else "k")
                if what == "punch" and at < len(told):
                    end = min(len(told), at + length)
                    told[at:end] = bytes(end - at)
            else:
                await file.sync()
                assert file.unsynced == ()
        size, blocks = await file.stat()
        assert size <= len(told)
        assert blocks == sum(file.blocks.values())
        assert bytes(await file.read(0, len(told) + 99)) == bytes(told) + bytes(99)

    with_osds(tmp_path, use, *names)


def test_columns_lie_on_their_osds_and_a_width_of_one_is_the_file_itself(tmp_path):
    async def use(osds):
        data = os.urandom(5 * OBJECT)
        await osds.file("n2").write(0, data)
        await osds.file(*NAMES, ino=INO + 1).write(0, data)
        found = {}
        for name in NAMES:
            for path in (tmp_path / name).rglob("*.0?"):
                found[name, path.name.partition(".")[0][-1], int(path.suffix[1:])] = path.read_bytes()
        assert found["n2", "7", 0] == data
        assert found["n1", "8", 0] == data[:OBJECT] + data[3 * OBJECT : 4 * OBJECT]
        assert found["n2", "8", 1] == data[OBJECT : 2 * OBJECT] + data[4 * OBJECT :]
        assert found["n3", "8", 2] == data[2 * OBJECT : 3 * OBJECT]

    with_osds(tmp_path, use, *NAMES)


def test_seek_finds_data_and_holes_over_columns(tmp_path):
    async def use(osds):
        file = osds.file(*NAMES)
        size = 12 * OBJECT
        await file.write(4 * OBJECT, bytes(range(256)) * 256)
        await file.write(9 * OBJECT, b"x" * OBJECT)
        await file.truncate(size)
        assert await file.seek(0, size, "d") == 4 * OBJECT
        assert await file.seek(4 * OBJECT, size, "h") == 5 * OBJECT
        assert await file.seek(5 * OBJECT, size, "d") == 9 * OBJECT
        assert await file.seek(9 * OBJECT + 5, size, "h") == 10 * OBJECT
        assert await file.seek(10 * OBJECT, size, "d") == -1
        assert await file.seek(11 * OBJECT, size, "h") == 11 * OBJECT

    with_osds(tmp_path, use, *NAMES)


def test_an_osd_that_is_down_fails_what_lies_on_it_names_it_and_serves_again_when_it_is_back(tmp_path):
    async def use(osds):
        file = osds.file(*NAMES)
        data = os.urandom(6 * OBJECT)
        await file.write(0, data)
        await osds.end("n2")
        with pytest.raises(FsError, match="the OSD on n2 cannot be reached") as caught:
            await file.read(0, len(data))
        assert caught.value.errno == errno.EHOSTUNREACH
        assert bytes(await file.read(0, OBJECT)) == data[:OBJECT]
        await osds.begin("n2")
        assert bytes(await file.read(0, len(data))) == data
        await file.write(OBJECT, b"again")
        await file.sync()

    with_osds(tmp_path, use, *NAMES)


def test_an_osd_that_nobody_knows_is_named(tmp_path):
    async def use(osds):
        with pytest.raises(FsError, match="knows no OSD on n9"):
            await osds.file("n9").read(0, 1)

    with_osds(tmp_path, use)


def test_an_osd_that_does_not_answer_is_given_up_at_the_deadline(tmp_path):
    async def use(osds):
        async def never(_call):
            await asyncio.Event().wait()

        server = await rpc.serve_unix(tmp_path / "slow.sock", {"osd.read": never})
        await osds.directory.put(OsdRecord(node="n8", address="", socket=str(tmp_path / "slow.sock")))
        osds.connections = OsdConnections(osds.directory, call_s=0.2)
        with pytest.raises(FsError, match=r"the OSD on n8 did not answer within 0\.2 s") as caught:
            await osds.file("n8").read(0, 1)
        assert caught.value.errno == errno.ETIMEDOUT
        await server.close()

    with_osds(tmp_path, use)


def test_bytes_that_do_not_fit_their_sums_are_asked_for_again_and_then_refused(tmp_path):
    async def use(osds):
        asked = []

        async def lies(_call):
            asked.append(1)
            return Attached(OsdData(b"", (1,)), b"abc")

        server = await rpc.serve_unix(tmp_path / "mad.sock", {"osd.read": lies})
        await osds.directory.put(OsdRecord(node="n8", address="", socket=str(tmp_path / "mad.sock")))
        with pytest.raises(FsError, match="n8 do not fit their sums") as caught:
            await osds.file("n8").read(0, 3)
        assert caught.value.errno == errno.EIO
        assert len(asked) == 2
        await server.close()

    with_osds(tmp_path, use)


def test_a_sync_after_an_osd_lost_its_memory_tells_so_once(tmp_path):
    async def use(osds):
        file = osds.file(*NAMES)
        await file.write(0, bytes(3 * OBJECT))
        osds.servers["n2"].store._boot = "another boot"  # the machine went down and came back
        with pytest.raises(FsError, match="the OSD on n2 went down") as caught:
            await file.sync()
        assert caught.value.errno == errno.EIO
        await file.write(0, bytes(3 * OBJECT))
        await file.sync()

    with_osds(tmp_path, use, *NAMES)


def test_rights_are_asked_for_at_each_request(tmp_path):
    async def use(osds):
        file = osds.file()
        shown = [rights(session_ms=-1), rights()]
        file._rights = lambda: shown.pop(0)
        with pytest.raises(FsError, match="session ended"):
            await file.write(0, b"x")
        await file.write(0, b"x")
        assert shown == []

    with_osds(tmp_path, use)


def test_a_striped_file_has_no_descriptor(tmp_path):
    async def use(osds):
        with pytest.raises(FsError) as caught:
            await osds.file(*NAMES).descriptor(write=False)
        assert caught.value.errno == errno.EOPNOTSUPP

    with_osds(tmp_path, use, *NAMES)


def test_the_first_failure_ends_the_others_and_leaves_nothing_running(tmp_path):
    async def use(osds):
        file = osds.file(*NAMES, quota=OBJECT)
        with pytest.raises(FsError) as caught:
            await file.write(0, bytes(9 * OBJECT))
        assert caught.value.errno == errno.EDQUOT
        await osds.file(*NAMES).write(0, b"fine")

    with_osds(tmp_path, use, *NAMES)
