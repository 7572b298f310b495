"""The MRC as a process: killed under load, over TLS with tickets, and refusing whoever is not who they should be."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from mrc_kit import FILE, Client, until
from xtreemos.errors import RemoteError, XosError
from xtreemos.fabric import rpc
from xtreemos.testing.osdgrid import OsdGrid
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.model import Session
from xtreemos.vo.tls import client_context, identify_node
from xtreemos.vo.x509 import vo_dns
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.capability import Verifier
from xtreemos.xtreemfs.credential import load_identity
from xtreemos.xtreemfs.directory import FolderDirectory
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import OsdRecord, make_ino
from xtreemos.xtreemfs.ticket import Ticket, sign_ticket


class Mrc:
    """One MRC process on node n1."""

    def __init__(self, folder):
        self.folder = folder
        self.directory = FolderDirectory(folder / "dir", vo="demo", node="n1")
        self.process = None
        self.argv = []

    async def begin(self, *more):
        await self.directory.put(
            OsdRecord(node="n1", address="", total_bytes=1 << 40, free_bytes=1 << 40, beat_at=int(time.time()) + 600)
        )
        self.argv = [
            sys.executable,
            "-m",
            "xtreemos.xtreemfs.mrc",
            "--vo",
            "demo",
            "--node",
            "n1",
            "--folder",
            str(self.folder / "mrc"),
        ]
        self.argv += ["--directory", str(self.folder / "dir"), "--socket", str(self.folder / "s"), *more]
        await self.again()

    async def again(self):
        self.launch()
        for _wait in range(400):
            with contextlib.suppress(XosError):
                (await rpc.connect_unix(self.folder / "s")).close()
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            await asyncio.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def launch(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, stderr=log)

    async def client(self, ticket=b"local:alice", **more):
        client = Client(await rpc.connect_unix(self.folder / "s"))
        await client.open(ticket, **more)
        return client

    def end(self, number=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)
        return self.process.returncode if self.process is not None else None

    def audited(self):
        self.directory.look()
        return [json.loads(line) for line in (self.folder / "mrc" / "audit.jsonl").read_text().splitlines()]


def program(module, *words):
    """Run one of our programs to its end."""
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False, timeout=20)


def with_process(folder, use, *more):
    async def work():
        mrc = Mrc(folder)
        try:
            async with asyncio.timeout(55):
                await mrc.begin(*more)
                await use(mrc)
        finally:
            mrc.end()

    asyncio.run(work())


def test_killed_under_load_it_has_every_acknowledged_name_and_no_half_one(tmp_path):
    async def use(mrc):
        first = await mrc.client()
        root = make_ino((await first.mkvol("vol")).id, 1)
        first.cut()
        dead = [first.id]
        made, going, removed = set(), set(), set()
        for turn in range(5):
            clients = [await mrc.client(dead=tuple(dead)) for _number in range(3)]
            dead = [client.id for client in clients]  # else the next ones would wait for their leases to end

            async def load(client, number, turn=turn):
                with contextlib.suppress(XosError):
                    for step in range(10_000):
                        name = f"{turn}.{number}.{step}"
                        await client.create(root, name)
                        made.add(name)
                        if step % 3 == 0:
                            going.add(name)  # from here on either is right
                            await client.unlink(root, name)
                            removed.add(name)

            tasks = [asyncio.create_task(load(client, number)) for number, client in enumerate(clients)]
            wanted = len(made) + 30 + 7 * turn
            await until(lambda wanted=wanted: len(made) >= wanted)
            mrc.end(signal.SIGKILL)
            await asyncio.gather(*tasks)
            for client in clients:
                client.cut()
            await mrc.again()
        reader = await mrc.client(dead=tuple(dead))
        found, cookie = set(), 0
        while True:
            page = await reader.call("mrc.readdir", protocol.ReadDir(reader.who, root, cookie, 4096, attrs=False), protocol.Listing)
            found |= {entry.name.decode() for entry in page.entries}
            if page.end:
                break
            cookie = page.entries[-1].cookie
        assert len(made) > 100
        assert made - going <= found, "an acknowledged name is gone"
        assert not found & removed, "a removed name is back"
        reader.cut()
        assert mrc.end() == 0
        assert program("xtreemos.xtreemfs.mrc.fsck", str(tmp_path / "mrc")).stdout.strip() == "sound"

    with_process(tmp_path, use)


def test_a_damaged_log_keeps_it_from_starting_with_one_clear_line(tmp_path):
    async def use(mrc):
        client = await mrc.client()
        root = make_ino((await client.mkvol("vol")).id, 1)
        for number in range(20):
            await client.create(root, f"f{number}")
        client.cut()
        mrc.end(signal.SIGKILL)
        (segment,) = (tmp_path / "mrc" / "log").iterdir()
        data = bytearray(segment.read_bytes())
        data[1000] ^= 1
        segment.write_bytes(data)
        done = program(*mrc.argv[2:])
        assert done.returncode == 1
        assert "cannot be read" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    with_process(tmp_path, use)


# -- over TLS ----------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Tls:
    """A VO of three nodes and users with log-ins."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.grid = OsdGrid("demo")
        for node in ("n1", "n2", "n3"):
            self.grid.certify(node, folder / "credentials" / node, core=node == "n1")

    def ticket(self, user, node, roles=("member",)):
        now = int(time.time())
        session = Session(sid="ab" * 16, user=user, created_at=now, ends_at=now + 3600, expires_at=now + 3600, roles=roles)
        keys = SessionKeys.fresh()
        credentials = self.grid._issuer.issue_user(session, keys.public(), serial=1000, now=now)
        return sign_ticket(Ticket("demo", user, node, now, now + 600), credentials.x509, keys.x509)

    async def client(self, node, ticket=b"", folder="credentials"):
        identity = load_identity(self.folder / folder / node)
        peer = await rpc.connect_tls(
            "127.0.0.1", self.port, client_context(identity.trust, identity), vo_dns("demo"), identify=identify_node(identity.trust, time.time, "n1")
        )  # fmt: skip
        client = Client(peer)
        await client.open(ticket)
        return client


def with_tls(folder, use):
    tls = Tls(folder)

    async def work(mrc):
        await use(mrc, tls)

    with_process(folder, work, "--listen", f"127.0.0.1:{tls.port}", "--credential", str(folder / "credentials" / "n1"))


def test_over_tls_a_node_acts_for_those_who_gave_it_a_ticket_and_for_nobody_else(tmp_path):
    async def use(mrc, tls):
        good = await tls.client("n2", tls.ticket("alice", "n2"))
        volume = await good.mkvol("vol")
        root = make_ino(volume.id, 1)
        made = await good.create(root, "f", FILE | 0o600)
        mrc.directory.look()
        capability = Verifier("demo", lambda node: mrc.directory.state.mrcs[node].keys).capability(made.entry.capability)
        assert (capability.node, capability.mrc, volume.owner) == ("n2", "n1", "alice")
        with pytest.raises(FsError, match="is for node n2, not n3"):
            await tls.client("n3", tls.ticket("alice", "n2"))
        forged = bytearray(tls.ticket("alice", "n3"))
        forged[-1] ^= 1
        with pytest.raises(FsError):
            await tls.client("n3", bytes(forged))
        with pytest.raises(FsError):
            await tls.client("n3", b"local:alice")
        nobody = await tls.client("n3")
        with pytest.raises(FsError) as caught:
            await nobody.acquire(made.entry.attr.ino, 1, "r")
        assert caught.value.errno == errno.EACCES
        bob = await tls.client("n3", tls.ticket("bob", "n3"))
        with pytest.raises(RemoteError, match="does not own"):
            await bob.act(tls.ticket("bob", "n3"), root_of=volume.id)
        admin = await tls.client("n3", tls.ticket("carol", "n3", ("admin", "member")))
        await admin.act(tls.ticket("carol", "n3", ("admin", "member")), root_of=volume.id)
        with pytest.raises(RemoteError, match="another node"):
            await bob.call("mrc.session", protocol.OpenSession(good.id))
        refusals = mrc.audited()
        assert {"mrc.act", "mrc.session"} <= {row["what"] for row in refusals}
        assert all(row["who"] == "node n3@demo" and not row["allowed"] for row in refusals)
        for client in (good, nobody, bob, admin):
            client.cut()

    with_tls(tmp_path, use)


def test_root_of_the_servers_own_machine_needs_tickets_too_where_there_is_a_grid(tmp_path):
    async def use(mrc, tls):
        with pytest.raises(FsError):
            await mrc.client(b"local:alice")
        local = await mrc.client(tls.ticket("alice", "n1"))
        volume = await local.mkvol("vol")
        assert volume.owner == "alice"
        with pytest.raises(RemoteError, match="does not own"):
            await local.act(b"", root_of=volume.id)
        local.cut()

    with_tls(tmp_path, use)


def test_strangers_get_nowhere(tmp_path):
    async def use(mrc, tls):
        identity = load_identity(tmp_path / "credentials" / "n2")
        anonymous = await rpc.connect_tls(
            "127.0.0.1", tls.port, client_context(identity.trust), vo_dns("demo"), identify=identify_node(identity.trust, time.time, "n1")
        )  # fmt: skip
        with pytest.raises(RemoteError, match="serves nodes"):
            await anonymous.call("mrc.names", {"m": protocol.Names((1,))}, timeout_s=5)
        anonymous.close()
        OsdGrid("demo").certify("n2", tmp_path / "others" / "n2")  # the same name, another root
        with pytest.raises(XosError):
            await tls.client("n2", folder="others")
        assert "mrc.names" in {row["what"] for row in mrc.audited()}
        assert mrc.process.poll() is None

    with_tls(tmp_path, use)
