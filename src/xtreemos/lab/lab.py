"""The operations of `xos lab`: each takes the lab's lock, changes the machines, then the record, and returns one line to print.

Order within an operation: the record says less than there is, never more; whatever it does not know, `down` finds by its group.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from xtreemos.errors import UsageError
from xtreemos.lab import groups, linux, netns, product, store
from xtreemos.lab.enter import require_root
from xtreemos.lab.launch import is_alive
from xtreemos.lab.model import VO, Lab, LabError, Node, WrongState, hosts_file, next_node, plan, user_names
from xtreemos.lab.node import PLACES, Machine, power_on
from xtreemos.lab.view import checkout

Say = Callable[[str], None]
_JOINS_AT_A_TIME = 4
_REAP_WAIT_S = 3.0


def up(name: str, *, nodes: int, sites: int, core: int | None = None, bare: bool = False, files: str = "grid", say: Say) -> list[str]:
    """Make a lab and, unless `bare`, the grid on it; return the closing lines. What fails is left for a look and for `down`."""
    require_root()
    lab = replace(plan(name, nodes, sites, core), files=files)
    with store.locked(name):
        if groups.exists(name):
            raise LabError(f"lab {name} exists already, or an unfinished one is left", f"`xos lab down --name {name}` removes it")
        store.create(replace(lab, nodes=(), bare=bare))
        compiling = _compile_checkout()
        members = lab.nodes
        lab = replace(lab, nodes=(), bare=bare, switch=netns.make_switch(lab))
        store.save(lab)
        for node in members:
            lab = _switch_on(lab, node)
        for node in lab.nodes:
            _write_hosts(lab, node)
        say(f"lab {name}: {nodes} machines in {sites} {'site' if sites == 1 else 'sites'} are on")
        compiling.wait()
        if not bare:
            _make_grid(lab, say)
        store.save(replace(lab, ready=True))
    return _closing_lines(lab)


def down(name: str) -> str:
    """Remove a lab whatever state it is in: processes, networks, groups, mounts, folder."""
    require_root()
    with store.locked(name):
        if not groups.exists(name) and not store.lab_dir(name).exists():
            return f"there is no lab {name}"
        pids = groups.held_pids(name)
        groups.kill_and_remove(name)  # takes the namespaces along, and with them every network and mount of the nodes
        _wait_reaped(pids)
        _unmount_below(store.lab_dir(name))
        store.remove(name)
    _remove_places()
    return f"lab {name} is gone"


def _remove_places() -> None:
    """Remove the mount points on the host after the machine's last lab, whoever's: the mounts of another lab's nodes would go with them."""
    if groups.any_lab():
        return
    for place in PLACES:
        with contextlib.suppress(OSError):  # the machine itself uses it
            os.rmdir(place)


def down_all() -> list[str]:
    """Remove every lab of this user."""
    require_root()
    return [down(name) for name in store.names()] or ["there is no lab"]


def rows(name: str | None = None) -> list[dict[str, Any]]:
    """List nodes: rows of {lab, name, site, address, core, state: running|cut|frozen|off, cut, frozen, processes, log}."""
    require_root()
    labs = [store.load(one) for one in ([name] if name else store.names())]
    return [row for lab in labs for row in _rows_of(lab)]


def _rows_of(lab: Lab) -> Iterable[dict[str, Any]]:
    cut = netns.cut_nodes(lab) if is_alive(lab.switch) else set()
    for node in lab.nodes:
        on, frozen = is_alive(node.init), groups.is_frozen(lab.name, node.name)
        yield {
            "lab": lab.name,
            "name": node.name,
            "site": f"s{node.site}",
            "address": node.address,
            "core": node.core,
            "state": "off" if not on else "frozen" if frozen else "cut" if node.name in cut else "running",
            "cut": node.name in cut,
            "frozen": frozen,
            "processes": groups.processes(lab.name, node.name),
            "log": str(store.node_dir(lab, node) / "log"),
        }


def kill(name: str, node_name: str) -> str:
    """Cut the node's power: its link goes first, so that nothing its dying processes say gets out; then SIGKILL to all."""
    with _changing(name) as lab:
        node = _alive(lab, node_name)
        count = groups.processes(name, node.name)
        netns.link_down(lab, node)
        groups.kill_and_remove(name, node.name)
        netns.unplug(lab, node)
        store.save(lab.with_node(replace(node, init=None)))
    return f"{node.name}: power cut, {count} processes killed"


def start(name: str, node_name: str) -> str:
    """Switch a node on again, on the state its disk had when the power went."""
    with _changing(name) as lab:
        node = lab.node(node_name)
        if is_alive(node.init):
            raise WrongState(f"{node.name} is on already")
        now = _switch_on(lab, node)
        if not now.bare:
            product.boot(now, now.node(node_name))
    return f"{node.name}: on again"


def add(name: str, site: str | None = None) -> str:
    """Add a machine to the lab and make it a resource of the VO."""
    with _changing(name) as lab:
        node = next_node(lab, site)
        now = _switch_on(lab.with_node(node), node)
        for other in now.nodes:
            _write_hosts(now, other)
        if not now.bare:
            _join(now, now.node(node.name))
            product.wait_ready(now, _speaker(now), user_names()[0])
    return f"{node.name}: added to site s{node.site} with address {node.address}"


def freeze(name: str, node_name: str) -> str:
    """Stop every process of a node where it stands."""
    with _changing(name) as lab:
        node = _alive(lab, node_name)
        groups.set_frozen(name, node.name, frozen=True)
    return f"{node.name}: frozen"


def thaw(name: str, node_name: str) -> str:
    """Let the processes of a frozen node go on."""
    with _changing(name) as lab:
        node = _alive(lab, node_name)
        groups.set_frozen(name, node.name, frozen=False)
    return f"{node.name}: thawed"


def cut(name: str, node_name: str) -> str:
    """Cut a node off from all others: its packets vanish silently, both ways."""
    with _changing(name) as lab:
        node = lab.node(node_name)
        netns.cut(lab, node)
    return f"{node.name}: cut off from the network"


def heal(name: str, node_name: str) -> str:
    """End what `cut` began."""
    with _changing(name) as lab:
        node = lab.node(node_name)
        netns.heal(lab, node)
    return f"{node.name}: back on the network"


def delay(name: str, one: str, other: str, delay_ms: int) -> str:
    """Make packets between two nodes take `delay_ms` longer, in each direction; 0 ends it."""
    if delay_ms < 0 or one == other:
        raise UsageError("a delay needs two different nodes and 0 or more milliseconds")
    with _changing(name) as lab:
        netns.delay(lab, _alive(lab, one), _alive(lab, other), delay_ms)
    return f"{one} and {other}: {delay_ms} ms apart each way"


@contextlib.contextmanager
def _changing(name: str) -> Iterator[Lab]:
    """Be root, hold the lab's lock, and have the record as it is once the lock is held."""
    require_root()
    store.load(name)  # no such lab: say so without waiting
    with store.locked(name):
        yield store.load(name)


def _alive(lab: Lab, node_name: str) -> Node:
    node = lab.node(node_name)
    if not is_alive(node.init):
        raise WrongState(f"{node.name} is off", f"`xos lab start {node.name}` switches it on")
    return node


def _switch_on(lab: Lab, node: Node) -> Lab:
    """Give a node power and network, record it, and return the lab with it. Clears away what an earlier life left."""
    groups.kill_and_remove(lab.name, node.name)
    netns.unplug(lab, node)
    init = power_on(Machine(lab, node, store.make_node_dir(lab, node)))
    netns.plug_in(lab, node, init.pid)
    lab = lab.with_node(replace(node, init=init))
    store.save(lab)
    return lab


def _write_hosts(lab: Lab, node: Node) -> None:
    """Tell a running node the names of its fellows, through the view its init has of the file system."""
    if node.init and is_alive(node.init):
        Path(f"/proc/{node.init.pid}/root/etc/hosts").write_text(hosts_file(lab, node))


def _compile_checkout() -> subprocess.Popen[bytes]:
    """Compile our modules once on the host: the nodes see the checkout read-only and would compile at every start."""
    return subprocess.Popen(
        [sys.executable, "-m", "compileall", "-qq", str(checkout() / "src")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _unmount_below(folder: Path) -> None:
    """Undo mounts below a lab's folder, deepest first: deleting it must never reach through one."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in points if Path(point).is_relative_to(folder)), key=len, reverse=True):
        linux.detach(point)


def _wait_reaped(pids: list[int]) -> None:
    """Give the host's init a moment to take in the dead, so that `ps` shows nothing of us when we say so."""
    end = time.monotonic() + _REAP_WAIT_S
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.01)


def _make_grid(lab: Lab, say: Say) -> None:
    """Found the grid and the VO on the first node, make the users, and let the other machines join."""
    first, admin = lab.nodes[0], user_names()[0]
    product.found(lab, first)
    say(f"{first.name}: founded the grid")
    passwords = {user: secrets.token_urlsafe(12) for user in user_names()}
    store.save_users(lab.name, passwords)
    product.accept(lab, first, product.create_vo(lab, first, admin), passwords[admin])
    for user in user_names()[1:]:
        product.accept(lab, first, product.invite_user(lab, first, admin, user), passwords[user])
    say(f"{first.name}: founded VO {VO} with users {', '.join(user_names())}")
    for node in (node for node in lab.nodes[1:] if node.core):
        _join(lab, node)  # one by one: each changes who serves the fabric
    with ThreadPoolExecutor(_JOINS_AT_A_TIME) as pool:
        list(pool.map(lambda node: _join(lab, node), (node for node in lab.nodes[1:] if not node.core)))
    product.wait_ready(lab, first, admin)
    say(f"{', '.join(node.name for node in lab.nodes)}: resources of VO {VO}")


def _join(lab: Lab, node: Node) -> None:
    """Make a machine a resource, by a token that the administrator makes on a node that is on."""
    product.join(lab, node, product.invite_node(lab, _speaker(lab), user_names()[0], core=node.core))


def _speaker(lab: Lab) -> Node:
    """The node where the administrator types: the first one that is on and not frozen."""
    for node in lab.nodes:
        if is_alive(node.init) and not groups.is_frozen(lab.name, node.name):
            return node
    raise WrongState(f"no node of lab {lab.name} is on", "start one with `xos lab start NODE`")


def _closing_lines(lab: Lab) -> list[str]:
    option = "" if lab.name == "default" else f" --name {lab.name}"
    if lab.bare:
        return [f"lab {lab.name} is up (machines only): xos lab exec{option} n1 -- bash"]
    return [
        f"lab {lab.name} is up: {len(lab.nodes)} nodes, VO {VO}",
        f"  passwords: {store.lab_dir(lab.name)}/users.json",
        f"  log in as alice: xos lab exec{option} n1 --user alice -- bash",
        f"  then run a program in the grid: xos run -- hostname; take the lab down with: xos lab down{option}",
    ]
