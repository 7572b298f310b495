"""What the owner's policy on a node gets to see of a job."""

from __future__ import annotations

import os

import pytest

from xtreemos.aem.jobspec import JobSpec
from xtreemos.node.config import NodeConfig
from xtreemos.node.policies import FILE, NodePolicy
from xtreemos.node.refusals import OwnerRefuses
from xtreemos.vo.model import PublicUser

SPEC = JobSpec(job="jaaaaaaaaaaaa", vo="demo", user="alice", argv=["make", "all"], cpus=2.5, memory_bytes=1 << 30, wall_s=90.5)
MEMBER = PublicUser(name="alice", state="active", roles=("admin", "member"), groups=("staff", "students"))
CONFIG = NodeConfig(name="n1", address="192.0.2.1", site="hall-2", core=True, network="outgoing")


class Node:
    """A policy with what it asks; `rule` is a condition under which it refuses."""

    def __init__(self, folder):
        self.folder, self.config, self.member = folder, CONFIG, MEMBER
        self.policy = NodePolicy(folder, lambda: self.config, lambda: {"tags": ["gpu"]}, lambda user, vo: self.member)
        self.count = 0

    def refuses(self, head, condition="true"):
        self.count += 1
        path = self.folder / FILE
        path.write_text(f'@id("r") @why("so") forbid ({head}, action, resource) when {{ {condition} }};')
        os.utime(path, ns=(self.count * 10**9,) * 2)  # a file that changed has another time
        try:
            self.policy.check_run(SPEC, "n1")
        except OwnerRefuses as error:
            return "r: so" in error.line()
        return False


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("condition", "refused"),
    [
        ('resource.site == "hall-2"', True),
        ('resource.site == "hall-1"', False),
        ("resource.core", True),
        ("!resource.core", False),
        ("context.network", True),
        ('resource.tags.contains("gpu")', True),
        ('principal.roles.contains("admin")', True),
        ('principal.vo == "demo"', True),
        ('context.program == "make"', True),
        ("context.cpus == 2 && context.memory_bytes == 1073741824 && context.wall_s == 90", True),
        ("context.hour < 24 && context.weekday >= 1", True),
    ],
)
def test_a_rule_can_look_at_everything_that_the_owners_page_names(node, condition, refused):
    assert node.refuses("principal", condition) is refused


@pytest.mark.parametrize(("group", "refused"), [("students", True), ("staff", True), ("guests", False)])
def test_a_rule_can_ask_for_groups_of_the_vo(node, group, refused):
    assert node.refuses(f'principal in Group::"{group}"') is refused


def test_a_user_of_whom_the_vo_said_nothing_here_is_in_no_group_and_has_no_role(node):
    node.member = None
    assert not node.refuses('principal in Group::"students"')
    assert not node.refuses("principal", 'principal.roles.contains("member")')


def test_what_the_owner_changed_of_the_node_counts_at_once(node):
    node.config = NodeConfig(name="n1", address="192.0.2.1", network="none")
    assert not node.refuses("principal", "context.network")
    assert not node.refuses("principal", "resource.core")
    assert node.refuses("principal", 'resource.site == ""')
