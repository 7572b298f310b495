"""The network of a lab: a switch namespace with one bridge per site that routes between them, and a cable to every node.

The switch is a network namespace that a process of the lab holds, connected to nothing outside: the host's own network and its
list of named namespaces stay as they are. A node's
cable is a veth pair whose switch end bears the node's name. A cut node's frames are dropped silently at its port, both ways,
as on a broken path: no link goes down, no connection is refused. Everything here is done with ip(8), nft(8) and tc(8).

Knows interfaces; must not know processes or mounts of nodes (except the pid whose network namespace gets the cable's end).
"""

from __future__ import annotations

import subprocess
from dataclasses import replace

from xtreemos.lab import groups, linux
from xtreemos.lab.launch import is_alive, launch
from xtreemos.lab.model import Lab, LabError, Node, Running

SWITCH = "switch"
_PREFIX = 24
_BATCH = ["ip", "-batch", "-"]
_DROP_RULES = """
table bridge lab {
  set cut { type ifname; }
  chain from_node { type filter hook prerouting priority -300; policy accept; iifname @cut drop; }
  chain to_node { type filter hook postrouting priority 300; policy accept; oifname @cut drop; }
}
"""


def make_switch(lab: Lab) -> Running:
    """Make the switch namespace with a bridge per site and return the process that holds it."""
    groups.make(lab.name, SWITCH)
    switch = launch(lab.name, SWITCH, linux.CLONE_NEWNET | linux.CLONE_NEWPID, lambda: None)
    held = replace(lab, switch=switch)
    lines = ["link set lo up"]
    for site in range(1, lab.sites + 1):
        lines += [f"link add s{site} type bridge", f"addr add 10.78.{site}.1/{_PREFIX} dev s{site}", f"link set s{site} up"]
    _in_switch(held, _BATCH, "\n".join(lines))
    _in_switch(held, ["nft", "-f", "-"], _DROP_RULES)
    _in_switch(held, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    return switch


def plug_in(lab: Lab, node: Node, pid: int) -> None:
    """Lay the cable from the switch to the network namespace of process `pid` and bring the node's network up."""
    port = node.name
    _in_switch(lab, _BATCH, "\n".join([
        f"link add {port} type veth peer name eth0 netns {pid}",
        f"link set {port} master s{node.site}",
        f"link set {port} up",
    ]))  # fmt: skip
    _run(["nsenter", f"--net=/proc/{pid}/ns/net", *_BATCH], "\n".join([
        "link set lo up",
        f"addr add {node.address}/{_PREFIX} dev eth0",
        "link set eth0 up",
        f"route add default via 10.78.{node.site}.1",
    ]))  # fmt: skip


def link_down(lab: Lab, node: Node) -> None:
    """Take the node's link down at once, so that nothing its dying processes say gets out."""
    if _port_exists(lab, node):
        _in_switch(lab, ["ip", "link", "set", node.name, "down"])


def unplug(lab: Lab, node: Node) -> None:
    """Remove the node's cable, if it is still there (the kernel also removes it, some time after the node's namespace)."""
    if _port_exists(lab, node):
        try:
            _in_switch(lab, ["ip", "link", "delete", node.name])
        except LabError:
            if _port_exists(lab, node):
                raise


def _port_exists(lab: Lab, node: Node) -> bool:
    return node.name in _in_switch(lab, ["ip", "-o", "link", "show"]).replace("@", " ").split()


def cut(lab: Lab, node: Node) -> None:
    """Drop every frame from and to the node, silently. Cutting twice is no error."""
    _in_switch(lab, ["nft", "add", "element", "bridge", "lab", "cut", f'{{ "{node.name}" }}'])


def heal(lab: Lab, node: Node) -> None:
    """Let the node's frames pass again."""
    if node.name in cut_nodes(lab):
        _in_switch(lab, ["nft", "delete", "element", "bridge", "lab", "cut", f'{{ "{node.name}" }}'])


def cut_nodes(lab: Lab) -> set[str]:
    """Names of the nodes that are cut off now."""
    text = _in_switch(lab, ["nft", "list", "set", "bridge", "lab", "cut"])
    _, found, elements = text.partition("elements = {")
    return {word.strip().strip('"') for word in elements.partition("}")[0].split(",")} if found else set()


def delay(lab: Lab, one: Node, other: Node, delay_ms: int) -> None:
    """Add `delay_ms` to every packet between two nodes, in each direction; 0 takes it away. Needs the netem queue of the kernel."""
    if not _has_netem(lab):
        raise LabError("this kernel cannot delay packets (module sch_netem is missing)", "use a kernel that has it")
    for port, peer in ((one, other), (other, one)):
        _delay_towards(lab, port, peer, delay_ms)


def _has_netem(lab: Lab) -> bool:
    """Try netem on the switch's own loopback: the only sure way to know."""
    try:
        _in_switch(lab, ["tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms"])
    except LabError:
        return False
    return True


def _delay_towards(lab: Lab, port: Node, peer: Node, delay_ms: int) -> None:
    """At the port of one node, let packets from `peer` through a netem queue of their own (one class of HTB per peer)."""
    dev, handle = port.name, f"{0x100 + peer.index:x}"
    shown = _in_switch(lab, ["tc", "qdisc", "show", "dev", dev])
    if "htb" not in shown:
        _in_switch(lab, ["tc", "qdisc", "replace", "dev", dev, "root", "handle", "1:", "htb", "default", "0"])
    match = ["protocol", "ip", "prio", str(peer.index), "u32", "match", "ip", "src", f"{peer.address}/32"]
    if f"netem {handle}:" in shown:
        _in_switch(lab, ["tc", "filter", "delete", "dev", dev, "parent", "1:", "protocol", "ip", "prio", str(peer.index)])
        _in_switch(lab, ["tc", "class", "delete", "dev", dev, "classid", f"1:{handle}"])
    if delay_ms > 0:
        _in_switch(lab, ["tc", "class", "add", "dev", dev, "parent", "1:", "classid", f"1:{handle}", "htb", "rate", "10gbit"])
        netem = ["netem", "delay", f"{delay_ms}ms", "limit", "100000"]
        _in_switch(lab, ["tc", "qdisc", "add", "dev", dev, "parent", f"1:{handle}", "handle", f"{handle}:", *netem])
        _in_switch(lab, ["tc", "filter", "add", "dev", dev, "parent", "1:", *match, "flowid", f"1:{handle}"])


def _in_switch(lab: Lab, argv: list[str], text: str = "") -> str:
    if lab.switch is None or not is_alive(lab.switch):
        raise LabError(f"the network of lab {lab.name} is gone", f"`xos lab down --name {lab.name}` clears up")
    return _run(["nsenter", f"--net=/proc/{lab.switch.pid}/ns/net", *argv], text)


def _run(argv: list[str], text: str = "") -> str:
    """Run a network tool and return its output; raise LabError with the first line it complained with."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise LabError(f"{argv[0]} is not installed", "install iproute2, nftables and util-linux") from missing
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[0]
        raise LabError(f"the lab's network refused `{' '.join(argv[-6:])}`: {said}")
    return done.stdout
