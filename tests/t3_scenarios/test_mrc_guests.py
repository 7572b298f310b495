"""Members of another VO at a running MRC: one volume, by agreement, and nothing else."""

import errno
import time
from types import SimpleNamespace

import pytest

from mrc_kit import FILE, run
from xtreemos.errors import RemoteError
from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.model import Principal, make_ino, volume_of
from xtreemos.xtreemfs.neighbours import Neighbour


async def refused(number, awaitable):
    with pytest.raises(FsError) as caught:
        await awaitable
    assert caught.value.errno == number


def other_vo(state):
    """VO phys as a server sees it: `state` is its directory."""

    async def run():
        pass

    trust = SimpleNamespace(root_sha256=b"phys")
    directory = SimpleNamespace(state=state, on_change=lambda _call: None, run=run)
    return lambda vo: Neighbour(directory, SimpleNamespace(trust=lambda: trust)) if vo == "phys" else None


def test_guests_use_the_volume_that_is_shared_with_their_vo_and_nothing_else(tmp_path):
    async def work(grid):
        await grid.stop()
        (grid.folder / "dir" / "members.json").write_text('{"root": ["admin"], "alice": ["member"]}')
        grid.directory.look()
        await grid.start(neighbour=other_vo(State(members={"carol": ("admin",), "dave": ()}, accepted={"demo": ("lib", "later")})))
        r, a = await grid.client(b"local:root"), await grid.client(b"local:alice")
        roots = {name: make_ino((await a.mkvol(name)).id, 1) for name in ("lib", "other", "later")}
        for root in roots.values():
            await a.call("mrc.setattr", protocol.SetAttr(a.who, root, time.time_ns(), mode=0o777))
        made = await a.create(roots["lib"], "f", FILE | 0o666)
        ino = made.entry.attr.ino

        def share(client, mode, vo="phys", name="lib", until=0):
            return client.call("mrc.share", protocol.ShareVolume(client.who, name, vo, mode, until))

        for client, more in ((a, {}), (r, {"vo": "chem"}), (r, {"name": "nosuch"}), (r, {"vo": "../x"})):
            with pytest.raises((RemoteError, FsError)):
                await share(client, "rw", **more)
        g = await grid.client(b"local:carol@phys")
        await refused(errno.EACCES, g.lookup(roots["lib"], "f"))
        await share(r, "r")
        assert (await g.lookup(roots["lib"], "f")).entry.attr.ino == ino
        await g.acquire(ino, 1, "r")
        now = time.time_ns()
        for change in (g.acquire(ino, 2, "w"), g.create(roots["lib"], "g"), g.unlink(roots["lib"], "f")):
            await refused(errno.EACCES, change)
        await refused(errno.EROFS, g.call("mrc.setattr", protocol.SetAttr(g.who, ino, now)))
        for root in (roots["other"], roots["later"]):
            await refused(errno.EACCES, g.lookup(root, "f"))
        assert (
            await a.call(
                "mrc.numbers", protocol.Numbers((("u", "carol@phys"), ("u", "eve@phys"), ("u", "carol@chem"))), tuple[int, ...]
            )
        )[1:] == (-1, -1)
        await share(r, "rw")
        theirs = (await g.create(roots["lib"], "g")).entry.attr
        names = await a.call("mrc.names", protocol.Names((theirs.uid,)), list[Principal])
        assert [row.name for row in names] == ["carol@phys"], "never the same as a member called carol"
        await share(r, "r")
        await refused(errno.EROFS, g.call("mrc.setattr", protocol.SetAttr(g.who, theirs.ino, now, mode=0o777)))
        for call in (
            g.mkvol("theirs"), g.mkvol("x", "home"), share(g, "rw"), g.call("mrc.rmvol", protocol.RemoveVolume(g.who, "lib", True)),
            g.call("mrc.setquota", protocol.SetQuota(g.who, "lib", "", 1, 1)), g.call("mrc.volstat", protocol.VolumeStat(g.who, "other")),
            g.act(b"local:carol@phys", root_of=volume_of(roots["lib"])),
        ):  # fmt: skip
            with pytest.raises((RemoteError, FsError)):
                await call
        await share(r, "")
        for call in (g.getattr(ino), g.acquire(ino, 1, "r"), g.acquire(ino, 2, ""), g.lookup(roots["lib"], "f")):
            await refused(errno.EACCES, call)
        await share(r, "rw", until=int(time.time()) - 1)
        await refused(errno.EACCES, g.getattr(ino))
        assert "is not shared with VO phys, of carol@phys" in grid.audited()
        await grid.stop()
        await grid.start(neighbour=other_vo(State(members={"carol": ()}, accepted={"demo": ("lib",)})))
        r, g = await grid.client(b"local:root"), await grid.client(b"local:carol@phys")
        await share(r, "r")
        assert (await g.lookup(roots["lib"], "f")).entry is not None
        home = await (await grid.client(b"local:alice")).mkvol("", "home")
        await refused(errno.EINVAL, share(r, "r", name=home.name))

    run(tmp_path, work)
