"""What a node knows of itself; kept in the private `node/node.json`. Keys have files of their own (vo/founding.py)."""

from __future__ import annotations

from typing import Literal

import msgspec

from xtreemos.errors import UsageError
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import NodePaths
from xtreemos.names import check_node
from xtreemos.vo.grid import NoGrid


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The private file. `address` is where other nodes and agents reach this one; `core` nodes carry NATS and the CDA."""

    name: str
    address: str
    grid: str = ""
    core: bool = False
    founder: bool = False
    routes: list[str] = []
    vos: list[str] = []
    slots: int = 0
    network: str = "outgoing"
    site: str = ""
    """Where the machine stands, in the owner's word, for policies that are the same on many machines."""
    files: Literal["grid", "local"] = "grid"
    """grid: homes and volumes of XtreemFS; local: homes are folders of this node alone."""
    storage_bytes: int = -1
    """What the owner gives to the VOs' files, each VO; 0 nothing, -1 as the OSD sees fit (half of what is free)."""
    created_at: float = 0.0


def load_node(paths: NodePaths) -> NodeConfig:
    """Read `node/node.json`; raises NoGrid if this machine is no node."""
    path = paths.private / "node.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=NodeConfig)
    except FileNotFoundError:
        raise NoGrid(
            f"this machine is no node yet (no {path})", "found a grid with `xos up`, or join one: xos join TOKEN"
        ) from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}", "restore it from a backup, or leave and join again") from error
    check_node(config.name)
    return config


def save_node(paths: NodePaths, config: NodeConfig) -> None:
    """Write `node/node.json`."""
    paths.private.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.private.chmod(0o700)
    write_atomically(paths.private / "node.json", msgspec.json.format(msgspec.json.encode(config), indent=1))
