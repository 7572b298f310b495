"""What the documentation shows to be copied can be copied: policies load, queries parse, commands have known words."""

import re
from pathlib import Path

import pytest

from xtreemos.foundation import query
from xtreemos.vo import policy

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OWNERS = re.findall(r"```cedar\n(.*?)```", (DOCS / "how-to" / "owners.md").read_text(), re.DOTALL)
NOBODY, NOTHING = policy.Policies("user"), policy.Policies("vo")


def allowed(text: str, **facts: object) -> bool:
    wanted = {"user": "alice", "vo": "physics", "action": "run", "node": "n2", "program": "sh"} | facts
    return policy.decide(policy.Request(**wanted), NOBODY, NOTHING, policy.Policies("site", text)).allowed


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        ("physics", {}, {"vo": "demo"}),
        ("people", {}, {"user": "mallory"}),
        ("office hours", {"weekday": 1, "hour": 20}, {"weekday": 1, "hour": 8}),
        ("small jobs", {"wall_s": 60, "memory_bytes": 1 << 30}, {"wall_s": 60}),
        ("students", {"groups": ("students",), "site": "hall-2"}, {"groups": ("students", "staff"), "site": "hall-1"}),
        ("students", {"groups": ("staff",), "site": "hall-1"}, {"core": True}),
        ("blender", {"program": "ffmpeg"}, {"program": "sh"}),
        ("blender", {"roles": ("admin",)}, {"roles": ("member",)}),
    ],
)
def test_owners_example_does_what_the_page_says(rule, yes, no):
    (text,) = [example for example in OWNERS if rule in example]
    assert allowed(text, **yes)
    assert not allowed(text, **no)


def test_every_example_of_a_policy_is_tried_above():
    assert len(OWNERS) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_queries_on_the_page_can_be_asked(page):
    for text in re.findall(r"--(?:on|where) '([^'\n]*)'", page.read_text()):
        query.parse(text)
