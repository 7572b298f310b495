"""Which volumes of other VOs are shown to programs on a node."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from xtreemos.foundation.sandbox import Bind
from xtreemos.node import sharing
from xtreemos.node.sharing import SharedVolumes
from xtreemos.vo.model import Accepted
from xtreemos.xtreemfs.model import Share, VolumeRecord


def node(*shares, accepted=("lib", "gone"), serves=("demo", "phys"), removed=False):
    lib = VolumeRecord(name="lib", id=1, mrc="n1", owner="alice", shares=shares, removed=removed)
    buckets = {
        "demo": {"volume.lib": msgspec.json.encode(lib), "volume.home-alice": b"", "user.alice": b"?"},
        "phys": {"accepted.demo": Accepted(vo="demo", volumes=accepted).to_bytes(), "accepted.chem": b"?"},
    }
    return SharedVolumes({vo: SimpleNamespace(vo=vo, public=buckets[vo]) for vo in serves})


def agreed(found, vo="phys"):
    return [(owner, volume) for owner, volume, _share in found.agreed(vo)]


def test_a_volume_is_shown_while_both_vos_say_so_and_the_node_serves_both():
    share = Share("phys", b"", False, 0)
    assert agreed(node(share)) == [("demo", "lib")]
    assert agreed(node(share), "demo") == agreed(node(share, serves=("phys",))) == agreed(node(share, removed=True)) == []
    assert agreed(node(share, accepted=("other",))) == agreed(node()) == agreed(node(Share("phys", b"", True, 1))) == []


@pytest.mark.log_warnings("is not shown to programs")
@pytest.mark.parametrize(("write", "there"), [(True, True), (False, True), (True, False)])
def test_one_that_does_not_answer_is_left_out_for_a_while(monkeypatch, write, there):
    asked = []

    def stat(path):
        asked.append(path)
        if not there:
            raise TimeoutError(110, "timed out")

    monkeypatch.setattr(sharing.os, "stat", stat)
    found = node(Share("phys", b"", write, 0))
    own, lib = Bind("/xos/phys"), Bind("/xos/demo/lib", writable=write)
    for _try in range(2):
        assert asyncio.run(found.binds("phys")) == ((own, lib) if there else (own,))
    assert len(asked) == (2 if there else 1)
