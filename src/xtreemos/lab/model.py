"""What a lab is: its nodes, sites, addresses and names, as frozen values.

Pure: no I/O, clock or randomness. Labs never meet: each has a switch namespace of its own that is connected to nothing else,
so all of them use the same addresses, 10.78.SITE.0/24, with the switch as gateway .1 and node N at .(10 + N).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from xtreemos.errors import NotFound, UsageError, XosError

DEFAULT_NAME = "default"
VO = "demo"
NODES_MAX = 200  # the last byte of an address is 10 + N
SITES_MAX = 50
CORES_IF_POSSIBLE = 3
RECORD_VERSION = 1
_LAB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_USERS_OF_A_LAB = ("alice", "bob")


class LabError(XosError):
    """The lab could not do it; the text says which step failed. Run `xos lab down` to remove what is left of a broken lab."""

    fault = "environment"
    code = "lab"


class NoSuchLab(NotFound):
    """There is no lab of that name; make it with `xos lab up`, see all with `xos lab list`."""

    code = "no-such-lab"


class NoSuchNode(NotFound):
    """The lab has no node of that name; see its nodes with `xos lab list`."""

    code = "no-such-node"


class WrongState(XosError):
    """The node is not in the state that the command needs (it is off, frozen or already running). Nothing was done."""

    fault = "caller"
    code = "wrong-state"


@dataclass(frozen=True, slots=True)
class Running:
    """The init process of a live node, or what holds the switch: its pid and start time (clock ticks after boot, which makes the pid unmistakable)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the lab. `init` is None while its power is off."""

    index: int
    site: int
    core: bool
    init: Running | None = None

    @property
    def name(self) -> str:
        """`n1`, `n2`, ...: host name, and name of its port on the switch."""
        return f"n{self.index}"

    @property
    def address(self) -> str:
        """IPv4 address of its eth0."""
        return f"10.78.{self.site}.{10 + self.index}"


@dataclass(frozen=True, slots=True)
class Lab:
    """A whole lab as `lab.json` keeps it. `switch` holds the bridges' network namespace; `ready` is False until `up` has finished;
    a `bare` lab has machines without our software.
    """

    name: str
    sites: int
    nodes: tuple[Node, ...]
    switch: Running | None = None
    ready: bool = False
    bare: bool = False
    files: str = "grid"
    """What `xos up --files` is told on each node."""

    def node(self, name: str) -> Node:
        """Return the node called `name`; raise NoSuchNode."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise NoSuchNode(f"lab {self.name} has no node {name!r}", f"its nodes are {', '.join(n.name for n in self.nodes)}")

    def with_node(self, node: Node) -> Lab:
        """Return the lab with `node` in place of its namesake, or added."""
        others = [other for other in self.nodes if other.index != node.index]
        return replace(self, nodes=tuple(sorted([*others, node], key=lambda n: n.index)))

    def to_json(self) -> dict[str, Any]:
        """Return what `lab.json` holds."""
        return {"version": RECORD_VERSION, **asdict(self)}


def lab_from_json(raw: dict[str, Any]) -> Lab:
    """Rebuild a Lab from what `to_json` made; raise LabError if another version wrote it."""
    if raw.get("version") != RECORD_VERSION:
        raise LabError("the lab was made by another version of xos", "remove it with `xos lab down`")
    nodes = tuple(
        Node(
            index=int(item["index"]),
            site=int(item["site"]),
            core=bool(item["core"]),
            init=_running(item["init"]),
        )
        for item in raw["nodes"]
    )
    return Lab(str(raw["name"]), int(raw["sites"]), nodes, _running(raw["switch"]), bool(raw["ready"]), bool(raw["bare"]), str(raw.get("files", "grid")))


def _running(raw: dict[str, Any] | None) -> Running | None:
    return Running(int(raw["pid"]), int(raw["start_ticks"])) if raw else None


def check_lab_name(text: str) -> str:
    """Return `text` if it may name a lab (it becomes a folder, a cgroup and a network namespace)."""
    if not _LAB_NAME.fullmatch(text):
        raise UsageError(f"{text[:64]!r} is not a valid lab name", "use 1 to 31 of a-z, 0-9 and -")
    return text


def plan(name: str, nodes: int, sites: int, core: int | None = None) -> Lab:
    """Lay out a new lab: nodes go round the sites in turn; `core` nodes (default 3 if there are as many, else 1) come first."""
    check_lab_name(name)
    if not 1 <= nodes <= NODES_MAX:
        raise UsageError(f"a lab has 1 to {NODES_MAX} nodes, not {nodes}")
    if not 1 <= sites <= min(SITES_MAX, nodes):
        raise UsageError(f"a lab of {nodes} nodes has 1 to {min(SITES_MAX, nodes)} sites, not {sites}")
    if core is None:
        core = CORES_IF_POSSIBLE if nodes >= CORES_IF_POSSIBLE else 1
    if core not in {1, CORES_IF_POSSIBLE} or core > nodes:
        raise UsageError(f"1 or {CORES_IF_POSSIBLE} nodes can be core nodes, and at most all {nodes}, not {core}")
    members = tuple(Node(index, 1 + (index - 1) % sites, index <= core) for index in range(1, nodes + 1))
    return Lab(name, sites, members)


def next_node(lab: Lab, site: str | None = None) -> Node:
    """Lay out the node that `add` makes: the next number, in the given site (`s2`) or the next in turn; never a core node."""
    index = 1 + max(node.index for node in lab.nodes)
    if index > NODES_MAX:
        raise UsageError(f"a lab has at most {NODES_MAX} nodes")
    sites = {f"s{number}": number for number in range(1, lab.sites + 1)}
    if site is not None and site not in sites:
        raise UsageError(f"lab {lab.name} has no site {site!r}", f"its sites are {', '.join(sites)}")
    return Node(index, sites[site] if site else 1 + (index - 1) % lab.sites, core=False)


def hosts_file(lab: Lab, me: Node) -> str:
    """Text of a node's /etc/hosts: itself and all its fellows by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{node.address} {node.name}" for node in sorted({*lab.nodes, me}, key=lambda n: n.index)]
    return "\n".join(lines) + "\n"


def user_names() -> tuple[str, ...]:
    """Users that `up` makes, the VO's administrator first."""
    return _USERS_OF_A_LAB
