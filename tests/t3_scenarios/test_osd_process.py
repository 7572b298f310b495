"""The OSD as a process: killed under load, over TLS, with renewed certificates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import sys

import pytest

from osd_kit import INO, SIGNER, VO, layout, rights
from xtreemos.errors import RemoteError, XosError
from xtreemos.fabric import rpc
from xtreemos.testing.osdgrid import OsdGrid
from xtreemos.xtreemfs import protocol as p
from xtreemos.xtreemfs.calls import params
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.directory import FolderDirectory
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import SUM_BYTES, MrcRecord, make_ino
from xtreemos.xtreemfs.striping import OsdConnections, StripedFile


class Osd:
    """One OSD process on node n1."""

    def __init__(self, folder):
        self.folder = folder
        self.directory = FolderDirectory(folder / "dir", vo=VO, node="n1")
        self.process = None
        self.argv = []

    async def begin(self, *more):
        await self.directory.put(MrcRecord(node="n1", address="", keys=(SIGNER.public,)))
        self.argv = [sys.executable, "-m", "xtreemos.xtreemfs.osd", "--vo", VO, "--node", "n1", "--disk", str(self.folder / "disk")]
        self.argv += ["--directory", str(self.folder / "dir"), "--socket", str(self.folder / "s"), *more]
        await self.again()

    async def again(self):
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "dir" / "osd.n1.json").unlink()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, stderr=log)  # noqa: ASYNC220  # nothing else runs yet
        for _wait in range(400):
            self.directory.look()
            if "n1" in self.directory.state.osds:
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            await asyncio.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def end(self, number=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)
        return self.process.returncode if self.process is not None else None


def with_process(folder, use, *more):
    async def work():
        osd = Osd(folder)
        try:
            async with asyncio.timeout(55):
                await osd.begin(*more)
                await use(osd)
        finally:
            osd.end()

    asyncio.run(work())


def test_killed_under_load_it_keeps_what_was_written_and_reports_nothing_but_torn_blocks(tmp_path):
    async def use(osd):
        chance = random.Random(5)
        known: dict[int, bytes] = {}
        for turn in range(4):
            connections = OsdConnections(osd.directory, call_s=5)

            async def writer(number, turn=turn, connections=connections):
                ino = make_ino(3, number + 1)
                file = StripedFile(connections, layout("n1"), lambda: rights(ino=ino))
                step = 0
                while number < 3 or step < 3:  # three write for ever, three are done before the kill
                    step += 1
                    data = f"{turn}.{step}.".encode() * (3 * SUM_BYTES // 8)
                    known.pop(ino, None)  # from here on either of the two, or a mixture
                    await file.write(0, data)
                    if step % 3 == 0:
                        await file.sync()
                    await file.truncate(len(data))
                    known[ino] = data

            tasks = [asyncio.create_task(writer(number)) for number in range(6)]
            await asyncio.wait(tasks[3:])
            await asyncio.sleep(chance.random() * 0.3)
            osd.end(signal.SIGKILL)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            before = dict(known)
            assert len(before) >= 3
            await connections.close()
            await osd.again()
            connections = OsdConnections(osd.directory, call_s=5)
            for number in range(6):
                ino = make_ino(3, number + 1)
                file = StripedFile(connections, layout("n1"), lambda ino=ino: rights(ino=ino))
                size, _blocks = await file.stat()
                found = bytes(await file.read(0, size))
                if ino in before:
                    assert found == before[ino]
            peer = await connections.peer("n1")
            status = await peer.call("osd.status", params(p.OsdStatus()))
            assert [row for row in status["damaged"] if row[3] != "torn"] == []
            await connections.close()

    with_process(tmp_path, use)


def test_it_ends_on_sigterm_with_everything_clean(tmp_path):
    async def use(osd):
        connections = OsdConnections(osd.directory)
        file = StripedFile(connections, layout("n1"), rights)
        await file.write(0, b"left unsynced")
        await connections.close()
        assert osd.end() == 0
        await osd.again()
        connections = OsdConnections(osd.directory)
        peer = await connections.peer("n1")
        assert (await peer.call("osd.status", params(p.OsdStatus())))["dirty_columns"] == 0
        assert await StripedFile(connections, layout("n1"), rights).read(0, 13) == b"left unsynced"
        await connections.close()

    with_process(tmp_path, use)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def with_tls(tmp_path, use):
    grid = OsdGrid(VO)
    for node in ("n1", "n2", "n3"):
        grid.certify(node, tmp_path / "credentials" / node, core=node == "n1")

    def away(osd, node):
        own = FolderDirectory(osd.folder / "dir", vo=VO, node=node)
        credential = CredentialFolder(tmp_path / "credentials" / node)
        return OsdConnections(own, lambda: credential.identity, call_s=10)

    async def work(osd):
        await use(osd, grid, lambda node: away(osd, node))

    with_process(tmp_path, work, "--listen", f"127.0.0.1:{free_port()}", "--credential", str(tmp_path / "credentials" / "n1"))


def test_over_tls_a_node_uses_its_own_capabilities_and_nobody_elses(tmp_path):
    async def use(_osd, _grid, away):
        n2, n3 = away("n2"), away("n3")
        shown = rights(node="n2")
        data = os.urandom(3 << 20)
        file = StripedFile(n2, layout("n1"), lambda: shown)
        await file.write(0, data)
        await file.sync()
        assert bytes(await file.read(0, len(data))) == data
        stolen = StripedFile(n3, layout("n1"), lambda: shown)
        stolen._unsynced[0] = "some boot"
        works = (lambda: stolen.read(0, 10), lambda: stolen.write(0, b"x"), stolen.sync, stolen.stat, lambda: stolen.truncate(0))
        for work in works:
            with pytest.raises(FsError, match="given to node n2, not to n3") as caught:
                await work()
            assert caught.value.errno == errno.EACCES
        with pytest.raises(FsError):
            await file.descriptor(write=False)
        text = (tmp_path / "disk" / "audit.jsonl").read_text()
        assert all(f'"what": "osd.{what}"' in text for what in ("read", "write", "sync", "stat", "truncate", "file"))
        assert "node n3@demo" in text
        await n2.close()
        await n3.close()

    with_tls(tmp_path, use)


def test_with_a_listener_the_unix_socket_takes_capabilities_of_its_own_node_only(tmp_path):
    async def use(osd, _grid, _away):
        local = OsdConnections(osd.directory)
        await StripedFile(local, layout("n1"), lambda: rights(node="n1")).write(0, b"x")
        for other in ("n2", ""):
            with pytest.raises(FsError, match="not to n1"):
                await StripedFile(local, layout("n1"), lambda other=other: rights(node=other)).write(0, b"x")
        await local.close()

    with_tls(tmp_path, use)


def test_a_node_without_an_mrc_may_not_delete_nor_fence_nor_scrub(tmp_path):
    async def use(_osd, _grid, away):
        n2 = away("n2")
        peer = await n2.peer("n1")
        for method, message in (
            ("osd.delete", p.OsdDelete((INO,))),
            ("osd.fence", p.OsdFence(INO, 9, (0,))),
            ("osd.scrub", p.OsdScrub()),
        ):
            with pytest.raises(RemoteError) as caught:
                await peer.call(method, params(message))
            assert caught.value.code == "capability-refused"
        text = (tmp_path / "disk" / "audit.jsonl").read_text()
        assert all(f'"what": "{method}"' in text for method in ("osd.delete", "osd.fence", "osd.scrub"))
        await n2.close()

    with_tls(tmp_path, use)


def test_a_stranger_and_another_vos_node_get_nowhere(tmp_path):
    async def use(osd, _grid, away):
        OsdGrid("other").certify("n2", tmp_path / "credentials" / "n2")
        stranger = away("n2")
        with pytest.raises(XosError):
            await StripedFile(stranger, layout("n1"), lambda: rights(node="n2")).read(0, 1)
        await stranger.close()
        OsdGrid(VO).certify("n2", tmp_path / "credentials" / "n2")  # the same name, another root
        stranger = away("n2")
        with pytest.raises(XosError):
            await StripedFile(stranger, layout("n1"), lambda: rights(node="n2")).read(0, 1)
        await stranger.close()
        assert osd.process.poll() is None

    with_tls(tmp_path, use)


def test_a_renewed_certificate_is_taken_without_a_restart(tmp_path):
    async def use(osd, grid, away):
        grid.certify("n1", tmp_path / "credentials" / "n1", core=True)
        n2 = away("n2")
        await asyncio.sleep(6)  # CREDENTIAL_LOOK_S and one
        await StripedFile(n2, layout("n1"), lambda: rights(node="n2")).write(0, b"x")
        peer = await n2.peer("n1")
        assert peer.caller.name == "n1"
        assert peer.caller.serial > 4
        await n2.close()
        assert osd.process.poll() is None

    with_tls(tmp_path, use)


@pytest.mark.parametrize("kind", ["osd --disk", "mrc --folder"])
def test_nobody_is_let_in_before_the_directory_was_seen(tmp_path, kind):
    """What is withdrawn, who is a member and who signs is not known until then."""
    name, _space, option = kind.partition(" ")
    argv = [sys.executable, "-m", f"xtreemos.xtreemfs.{name}", "--vo", VO, "--node", "n1", option, str(tmp_path / "own")]
    argv += ["--directory", str(tmp_path / "xosd.sock"), "--socket", str(tmp_path / "s")]

    async def work():
        seen = asyncio.Event()

        async def watch(call):
            if call.params == {"vo": VO}:
                asked.set()
                await seen.wait()
                call.send_event("synced")
                await asyncio.Event().wait()

        asked = asyncio.Event()
        xosd = await rpc.serve_unix(tmp_path / "xosd.sock", {"dir.watch": watch}, mode=0o600, allowed_uid=0)
        process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
        try:
            await asyncio.wait_for(asked.wait(), 20)
            assert not (tmp_path / "s").exists()
            seen.set()
            async with asyncio.timeout(20):
                while not (tmp_path / "s").exists():
                    await asyncio.sleep(0.02)
            (tmp_path / "s").unlink()
        finally:
            process.send_signal(signal.SIGTERM)
            said = (await asyncio.wait_for(process.communicate(), 20))[1]
            assert process.returncode == 0, said.decode()
            await xosd.close()

    asyncio.run(work())
