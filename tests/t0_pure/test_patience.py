"""How long an agent looks for a node."""

from __future__ import annotations

from xtreemos.aem.agent.patience import SAY_AFTER_S, Patience
from xtreemos.errors import PermissionRefused, RemoteError, Unreachable

FULL = ("n1", RemoteError({"code": "node-full", "message": "full"}))
AWAY = ("n2", Unreachable("n2 does not answer"))
NO = ("n3", PermissionRefused("no"))


def test_full_nodes_are_waited_for_without_end_and_the_user_is_told_once():
    one = Patience(0.0, 15.0)
    assert one.lasts([FULL, NO], 0.0)
    assert one.line(0.5) is None
    assert one.lasts([FULL], 1000.0)
    assert one.line(1000.0) == "xos: all 1 matching nodes are full; waiting (Ctrl-C gives up)"
    assert one.line(2000.0) is None


def test_nodes_that_are_away_are_waited_for_a_while():
    one = Patience(0.0, 15.0)
    assert one.lasts([AWAY, NO], 1.0)
    assert "n2" in one.line(SAY_AFTER_S + 0.1)
    assert one.lasts([], 16.0)  # now they do not even answer the question
    assert not one.lasts([], 16.1)
    assert one.refusals == [AWAY, NO]


def test_who_refuses_is_not_asked_again():
    assert not Patience(0.0, 15.0).lasts([NO], 0.0)
    assert not Patience(0.0, 15.0).lasts([], 0.0)
