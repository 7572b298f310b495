"""A removed node's connections to file servers end at once; everybody else's stay."""

from types import SimpleNamespace

import pytest

from xtreemos.fabric.caller import Caller
from xtreemos.vo.model import Revocation
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.doors import Withdrawn


class Peer:
    def __init__(self, caller):
        self.caller = caller
        self.closed = False

    def close(self):
        self.closed = True


@pytest.mark.log_warnings("cannot be read")
def test_a_removed_nodes_connections_end_and_others_stay():
    peers = [Peer(Caller("node", vo="demo", name="n2")), Peer(Caller("node", vo="demo", name="n3")), Peer(Caller("local", name="n2", uid=0))]
    heard = []
    held = Withdrawn([SimpleNamespace(peers=peers)], lambda *row: heard.append(row))
    record = Revocation(at=5, until=10**10).to_bytes()
    state = State(revoked={"revoked.node.n2": record, "revoked.user.bob": record, "junk": b"?"})
    held.take(state)
    held.take(state)
    assert [peer.closed for peer in peers] == [True, False, False]
    assert heard == [("node", "n2"), ("user", "bob")]
    assert held.known.covers(Caller("node", vo="demo", name="n2"), 5)
    assert not held.known.covers(Caller("node", vo="demo", name="n3"), 5)
