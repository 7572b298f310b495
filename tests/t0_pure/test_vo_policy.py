"""The three-sided decision: AND of all, errors refuse, no author widens another's set."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.vo.errors import BadPolicy
from xtreemos.vo.policy import GROUPS_MAX, TEXT_BYTES_MAX, Policies, Request, decide, load_site

RUN = Request(user="alice", vo="demo", action="run", node="n1", site="s1", tags=("gpu",), cpus=2, hour=12)
PERMIT = "permit (principal, action, resource);"
FORBID = '@id("closed") @why("the machine is closed") forbid (principal, action, resource);'


def three(user="", vo="", site=""):
    return Policies("user", user), Policies("vo", vo), Policies("site", site)


def test_defaults_permit():
    assert decide(RUN, *three()).allowed


@pytest.mark.parametrize("texts", list(itertools.product([PERMIT, FORBID, PERMIT + FORBID, ""], repeat=3)))
def test_a_decision_is_the_and_of_the_three_sides(texts):
    decision = decide(RUN, *three(*texts))
    sides = ["forbid" not in text for text in texts]
    assert decision.allowed == all(sides)
    assert [opinion.allowed for opinion in decision.opinions] == sides
    assert decision.who_refused == next((side for side, good in zip(("user", "vo", "site"), sides, strict=True) if not good), None)


def test_a_refusal_names_the_side_the_policy_and_why():
    assert decide(RUN, *three(site=FORBID)).why == "the node's owner refuses run on n1: closed: the machine is closed"
    night = "permit (principal, action, resource) when { context.hour < 6 };"
    assert decide(RUN, *three(vo=night)).why == "the VO refuses run on n1: no policy permits it"


RULES = [
    ('forbid (principal, action == Action::"run", resource) when { context.cpus > 1 };', False),
    ('forbid (principal, action == Action::"login", resource);', True),
    ('forbid (principal == User::"alice", action, resource);', False),
    ('forbid (principal == User::"bob", action, resource);', True),
    ('forbid (principal in Group::"students", action, resource);', False),
    ('permit (principal, action, resource) when { principal.roles.contains("admin") };', False),
    ('permit (principal, action, resource) when { resource.tags.contains("gpu") };', True),
    ("forbid (principal, action, resource) when { context.network };", True),
]


@pytest.mark.parametrize(("text", "allowed"), RULES)
def test_rules_see_user_groups_node_and_limits(text, allowed):
    request = dataclasses.replace(RUN, groups=("students",))
    assert decide(request, *three(site=text)).allowed is allowed


BAD = [
    "permit (",
    "forbid (principal, action, resource) when { context.missing > 3 };",
    "forbid (principal, action, resource) when { principal.missing };",
    "forbid (principal is Robot, action, resource);",
    'forbid (principal, action == Action::"fly", resource);',
    'forbid (principal, action, resource) when { context.cpus > "3" };',
    "permit (principal == ?principal, action, resource);",
    PERMIT * (TEXT_BYTES_MAX // len(PERMIT) + 1),
]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_policy_is_not_taken(text):
    with pytest.raises(BadPolicy):
        Policies("vo", text)


def test_an_error_while_evaluating_refuses_even_beside_a_permit():
    """Cedar skips a policy that errors: here an overflow in a forbid. Skipped it would let pass."""
    overflow = "forbid (principal, action, resource) when { context.memory_bytes + 9223372036854775807 > 0 };"
    request = dataclasses.replace(RUN, memory_bytes=1)
    decision = decide(request, *three(site=PERMIT + overflow))
    assert not decision.allowed
    assert "could not be evaluated" in decision.why


@pytest.mark.parametrize(
    "change",
    [{"action": "fly"}, {"cpus": "2"}, {"cpus": -1}, {"hour": 1 << 63}, {"groups": tuple(map(str, range(GROUPS_MAX + 1)))}],
)
def test_a_request_that_no_policy_can_judge_does_not_exist(change):
    with pytest.raises(BadPolicy):
        dataclasses.replace(RUN, **change)


NASTY = st.text(st.sampled_from("\"'\\\n:();ab&|{}\u0000é"), max_size=12)


@given(user=NASTY, node=NASTY, program=NASTY)
def test_no_text_in_a_request_becomes_policy(user, node, program):
    request = dataclasses.replace(RUN, user=user, node=node, program=program)
    only_alice = 'permit (principal == User::"alice", action, resource);'
    assert decide(request, *three(vo=only_alice)).allowed is (user == "alice")
    assert decide(request, *three()).allowed


@given(st.lists(st.sampled_from([PERMIT, FORBID, *(text for text, _ in RULES)]), max_size=4), st.integers(0, 8))
def test_nothing_in_one_set_widens_another(texts, cpus):
    request = dataclasses.replace(RUN, cpus=cpus)
    text = "\n".join(texts)
    assert not decide(request, *three(user=text, vo=text, site=FORBID)).allowed
    alone = decide(request, *three(vo=text)).allowed
    assert decide(request, *three(user=text, vo=text, site=PERMIT)).allowed == alone


def test_the_owners_file_missing_permits_and_a_bad_one_refuses_everything(tmp_path):
    user, vo, _ = three()
    assert decide(RUN, user, vo, load_site(tmp_path)).allowed
    file = tmp_path / "policy.cedar"
    file.write_text(FORBID)
    assert not decide(RUN, user, vo, load_site(tmp_path)).allowed
    for bad in (b"permit (", b"\xff\xfe"):
        file.write_bytes(bad)
        decision = decide(RUN, user, vo, load_site(tmp_path))
        assert (decision.allowed, decision.who_refused) == (False, "site")
        assert "cannot be used" in decision.why
