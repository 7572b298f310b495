"""Who may give back a job's network."""

from __future__ import annotations

from xtreemos.foundation.jobnet import JobNetPool
from xtreemos.node.nets import Nets


def test_only_a_network_that_was_kept_is_adopted_and_only_once(tmp_path):
    nets = Nets(JobNetPool(tmp_path), kept=["/run/xtreemos/netns/xj44"])
    assert nets.adopt("/run/xtreemos/netns/xj2") is None  # of a job that had ended: the number is another's by now
    assert nets.adopt("/run/xtreemos/netns/xj44") == "/run/xtreemos/netns/xj44"
    assert nets.adopt("/run/xtreemos/netns/xj44") is None
    assert nets.adopt(None) is None
