"""May this user do this on this node? Three Cedar policy sets, each asked apart, all must say yes.

The user's own limits, the VO's rules and the site's rules have different authors, so they are never put into one set: one author's
`permit` could widen what another forbids. A set without any `permit` starts from "everything is permitted", so that an owner may
write only what is forbidden; an empty set permits.

Cedar's traps (notes/vo-security.md 5.4): a policy that *errors* is skipped, so a `forbid` with a missing attribute would let pass.
Hence: every set is validated against the schema when it is loaded, requests are checked against it as well, and the answer is yes
only if the decision is Allow and there was no error at all. Names go in as {type, id}, never as text of the language.

It knows no clock and no registry; `load_site` is the only I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import cedarpy

from xtreemos.vo.errors import BadPolicy

Side = Literal["user", "vo", "site"]
Action = Literal["run", "login", "forward"]
SIDE_TEXT: Final[dict[Side, str]] = {"user": "the user's own limits", "vo": "the VO", "site": "the node's owner"}
TEXT_BYTES_MAX: Final = 256 * 1024
GROUPS_MAX: Final = 256
SITE_FILE: Final = "policy.cedar"

SCHEMA: Final = """
entity Group;
entity User in [Group] { vo: String, roles: Set<String> };
entity Node { vo: String, site: String, core: Bool, tags: Set<String> };
action run, login, forward appliesTo {
    principal: [User],
    resource: [Node],
    context: { program: String, cpus: Long, memory_bytes: Long, wall_s: Long, network: Bool, hour: Long, weekday: Long },
};
"""
_SCHEMA = cedarpy.Schema.from_str(SCHEMA)
_PERMIT_ALL: Final = '\n@id("default")\npermit (principal, action, resource);\n'


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants: all facts that a policy may look at.

    Zero `cpus`, `memory_bytes` and `wall_s` mean "not said". `hour` 0-23 and `weekday` 1 (Monday) - 7 are the node's local time.
    """

    user: str
    vo: str
    action: Action
    node: str
    roles: tuple[str, ...] = ("member",)
    groups: tuple[str, ...] = ()
    site: str = ""
    core: bool = False
    tags: tuple[str, ...] = ()
    program: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    wall_s: int = 0
    network: bool = False
    hour: int = 0
    weekday: int = 1

    def __post_init__(self) -> None:
        """Refuse what the schema would: then a side without policies need not be asked."""
        numbers = (self.cpus, self.memory_bytes, self.wall_s, self.hour, self.weekday)
        if self.action not in get_args(Action) or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
            raise BadPolicy(f"this is no request that a policy can judge: {self.action!r}, {numbers}")
        if len(self.groups) > GROUPS_MAX:
            raise BadPolicy(f"a user may be in {GROUPS_MAX} groups at most")


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one side says; `why` is one line for the user and the audit."""

    side: Side
    allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """All three together. `who_refused` is the first side that said no, None if allowed."""

    allowed: bool
    who_refused: Side | None
    why: str
    opinions: tuple[Opinion, ...]


class Policies:
    """One side's set, checked. A set that could not be loaded (`broken`) refuses everything."""

    def __init__(self, side: Side, text: str = "") -> None:
        """Parse and validate.

        Args:
            side: whose set it is.
            text: Cedar policies; `@id` names one and `@why` is told to who is refused.

        Raises:
            BadPolicy: too long, does not parse or breaks the schema; nothing is taken.
        """
        self.side = side
        self.text = text
        self.problem = ""
        if len(text.encode()) > TEXT_BYTES_MAX:
            raise BadPolicy(
                f"the policy of {SIDE_TEXT[side]} is longer than {TEXT_BYTES_MAX} bytes", "write fewer, more general rules"
            )
        try:
            policies = json.loads(cedarpy.policies_to_json_str(text))
            if not any(item["effect"] == "permit" for item in policies["staticPolicies"].values()):
                text += _PERMIT_ALL
                policies = json.loads(cedarpy.policies_to_json_str(text))
            checked = cedarpy.validate_policies(text, SCHEMA)
            self._set = cedarpy.PolicySet.from_str(text)
        except ValueError as error:
            raise BadPolicy(f"the policy of {SIDE_TEXT[side]} does not parse: {str(error)[:200]}", "see the policy page") from error
        if policies["templates"]:
            raise BadPolicy(f"the policy of {SIDE_TEXT[side]} has templates", "write whole policies")
        if not checked.validation_passed:
            first = checked.errors[0].error if checked.errors else "unknown"
            raise BadPolicy(f"the policy of {SIDE_TEXT[side]} breaks the schema: {str(first)[:200]}", "see the policy page")
        self._annotations: dict[str, dict[str, str]] = {
            name: item.get("annotations") or {} for name, item in policies["staticPolicies"].items()
        }

    @classmethod
    def broken(cls, side: Side, problem: str) -> Policies:
        """A set that refuses everything, because the real one could not be loaded."""
        policies = cls(side)
        policies.problem = problem
        return policies

    def opinion(self, request: dict[str, Any], entities: cedarpy.Entities) -> Opinion:
        """Ask this side."""
        if self.problem:
            return Opinion(self.side, allowed=False, why=self.problem)
        if not self.text.strip():
            return Opinion(self.side, allowed=True, why="default")
        answer = cedarpy.is_authorized(request, self._set, entities, schema=_SCHEMA)
        errors = list(answer.diagnostics.errors)
        if errors:
            return Opinion(self.side, allowed=False, why=f"its policy could not be evaluated: {str(errors[0])[:200]}")
        reasons = ", ".join(sorted(self._say(name) for name in answer.diagnostics.reasons))
        if answer.decision == cedarpy.Decision.Allow:
            return Opinion(self.side, allowed=True, why=reasons)
        return Opinion(self.side, allowed=False, why=reasons or "no policy permits it")

    def _say(self, name: str) -> str:
        notes = self._annotations.get(name, {})
        shown = notes.get("id", name)
        return f"{shown}: {notes['why']}" if notes.get("why") else shown


def decide(request: Request, user_set: Policies, vo_set: Policies, site_set: Policies) -> Decision:
    """Ask all three sides."""
    asked, entities = _cedar(request)
    opinions = tuple(policies.opinion(asked, entities) for policies in (user_set, vo_set, site_set))
    assert [opinion.side for opinion in opinions] == ["user", "vo", "site"]
    refused = next((opinion for opinion in opinions if not opinion.allowed), None)
    if refused is None:
        return Decision(allowed=True, who_refused=None, why="", opinions=opinions)
    why = f"{SIDE_TEXT[refused.side]} refuses {request.action} on {request.node}: {refused.why}"
    return Decision(allowed=False, who_refused=refused.side, why=why, opinions=opinions)


def _cedar(request: Request) -> tuple[dict[str, Any], cedarpy.Entities]:
    """Write a request as Cedar wants it: only JSON values, so that no name can become syntax."""
    principal, resource = {"type": "User", "id": request.user}, {"type": "Node", "id": request.node}
    groups = [{"type": "Group", "id": group} for group in request.groups]
    entities = [
        {"uid": principal, "attrs": {"vo": request.vo, "roles": list(request.roles)}, "parents": groups},
        {
            "uid": resource,
            "attrs": {"vo": request.vo, "site": request.site, "core": request.core, "tags": list(request.tags)},
            "parents": [],
        },
        *({"uid": group, "attrs": {}, "parents": []} for group in groups),
    ]
    context = {
        "program": request.program,
        "cpus": request.cpus,
        "memory_bytes": request.memory_bytes,
        "wall_s": request.wall_s,
        "network": request.network,
        "hour": request.hour,
        "weekday": request.weekday,
    }
    asked = {
        "principal": principal,
        "action": {"type": "Action", "id": request.action},
        "resource": resource,
        "context": context,
    }
    return asked, cedarpy.Entities.from_json_str(json.dumps(entities))


def load_site(folder: Path) -> Policies:
    """Read the owner's `policy.cedar` in `folder`; a missing one permits, a bad one refuses everything (and says why)."""
    path = folder / SITE_FILE
    try:
        return Policies("site", path.read_text())
    except FileNotFoundError:
        return Policies("site")
    except (OSError, UnicodeDecodeError, BadPolicy) as error:
        return Policies.broken("site", f"{path.name} cannot be used: {str(error)[:300]}")
