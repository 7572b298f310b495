"""Networks for jobs: a pool of prepared network name spaces, each tied to the node by a pair of virtual interfaces.

A job's network sees its gateway and, if the node's policy lets it, what lies behind the node (masqueraded). It never sees another
job's network, whatever VO that job belongs to, nor the node itself except the ports that policy lists; nor the grid's control ports
anywhere. Making one costs some 30 ms of other programs' time, so the pool is filled ahead (`fill`, in a background thread of the
caller), `take` costs nothing, and up to `kept` used ones serve again: a job has no right to change its network, and when the
container has ended no process, socket or abstract name of it is left in there. Even so it serves only jobs of the same *owner*
again (what that is the caller knows: a VO): whatever of a network might tell of its former job tells nobody else. Running jobs keep
theirs when xosd starts again.

Addresses: 10.244.0.1 is the gateway on every pair, job number i (from 2) is 10.244.(i / 256).(i % 256), each with a host route: so
there is no shared segment on which jobs could meet. Everything lives in the network name space of the caller, except that
`ip_forward` is switched on there and left on. Knows no jobs and no VO.
"""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xtreemos.errors import XosError
from xtreemos.foundation.paths import NATS_PORT, ROUTE_PORT, RPC_PORT, SSHD_PORT

PREFIX = "xj"  # our interfaces, and nobody else's
GATEWAY = "10.244.0.1"
SUBNET = "10.244.0.0/16"
FIRST, LAST = 2, 65534
TABLE = "xtreemos_jobs"
CONTROL_PORTS = (RPC_PORT, NATS_PORT, ROUTE_PORT, SSHD_PORT)


class NetworkFailed(XosError):
    """A job's network could not be made or removed; the text has the tool's own words."""

    fault = "environment"
    code = "job-network"


@dataclass(frozen=True, slots=True)
class JobNet:
    """One prepared network: `path` goes into `SandboxSpec.netns`, `address` is the job's, `interface` the node's end."""

    path: str
    address: str
    interface: str
    number: int


def _run(command: Sequence[str], text: str = "") -> None:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NetworkFailed(f"{command[0]}: {result.stderr.strip()[:300]}", "see `xos doctor`")


def address_of(number: int) -> str:
    """Return the address of job network `number`."""
    return f"10.244.{number >> 8}.{number & 0xFF}"


def ruleset(*, outgoing: bool, node_ports: Sequence[int]) -> str:
    """Return the nftables rules of all job networks of a node. Pure; replaces what an earlier life left."""
    listed = ", ".join(map(str, node_ports))
    control = ", ".join(str(port) for port in CONTROL_PORTS if port not in node_ports)
    allowed = f'iifname "{PREFIX}*" tcp dport {{ {listed} }} accept' if node_ports else ""
    refuse_control = f'iifname "{PREFIX}*" tcp dport {{ {control} }} reject with tcp reset' if control else ""
    leave = "accept" if outgoing else "reject with icmpx admin-prohibited"
    return f"""
table inet {TABLE} {{}}
delete table inet {TABLE}
table inet {TABLE} {{
  chain input {{
    type filter hook input priority -5; policy accept;
    iifname "{PREFIX}*" ct state established,related accept
    iifname "{PREFIX}*" icmp type echo-request accept
    {allowed}
    iifname "{PREFIX}*" reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -5; policy accept;
    iifname "{PREFIX}*" oifname "{PREFIX}*" drop
    iifname "{PREFIX}*" ip saddr != {SUBNET} drop
    iifname "{PREFIX}*" meta nfproto ipv6 drop
    {refuse_control}
    iifname "{PREFIX}*" {leave}
    oifname "{PREFIX}*" ct state established,related accept
    oifname "{PREFIX}*" drop
  }}
  chain output {{
    type filter hook output priority -5; policy accept;
    oifname "{PREFIX}*" ct state established,related accept
    oifname "{PREFIX}*" drop
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {SUBNET} oifname != "{PREFIX}*" masquerade
  }}
}}
"""


class JobNetPool:
    """Networks ready for jobs. Safe to use from several threads; `fill` may take long, `take` does so only when empty."""

    def __init__(
        self, netns_dir: Path, *, size: int = 4, kept: int | None = None, outgoing: bool = True, node_ports: Sequence[int] = ()
    ) -> None:
        """`size` are made ahead; up to `kept` (if not given: `size`) of those that jobs gave back wait for the next ones."""
        self._dir = netns_dir
        self._size = size
        self._kept = size if kept is None else kept
        self._outgoing = outgoing
        self._node_ports = tuple(node_ports)
        self._fresh: deque[JobNet] = deque()  # nobody's yet
        self._waiting: deque[tuple[str, JobNet]] = deque()  # (owner, network given back), oldest first
        self._used: set[int] = set()
        self._leaving: set[int] = set()  # being destroyed
        self._last = FIRST - 1
        self._lock = threading.Lock()

    def open(self, keep: Sequence[str] = ()) -> None:
        """Remove what an earlier life left, but for the paths in `keep` (of running jobs); set the rules, switch forwarding on.

        Call once, before anything else.
        """
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.destroy_all(keep)
        _run(["nft", "-f", "-"], ruleset(outgoing=self._outgoing, node_ports=self._node_ports))
        if self._outgoing:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def fill(self, owner: str = "") -> int:
        """Make networks until `size` are ready for `owner` ("": for anybody); return how many were made."""
        made = 0
        while self.ready_count(owner) < self._size:
            self._fresh.append(self._make())
            made += 1
        return made

    def take(self, owner: str) -> JobNet:
        """Return a network for one job: one that the owner's jobs used, else a fresh one; makes one now if none is ready."""
        with self._lock:
            for index in range(len(self._waiting) - 1, -1, -1):  # the latest: the others may then go when room is needed
                if self._waiting[index][0] == owner:
                    net = self._waiting[index][1]
                    del self._waiting[index]
                    return net
            if self._fresh:
                return self._fresh.popleft()
        return self._make()

    def give_back(self, net: JobNet, owner: str) -> None:
        """Take back the network of an owner's job whose processes are all gone; a second time means nothing.

        Twice in the pool it would be given to two jobs at once. Without an owner ("") it serves nobody again.
        """
        with self._lock:
            if net.number not in self._used or net.number in self._leaving or self._is_ready(net):
                return
            leaving = net
            if owner:
                self._waiting.append((owner, net))
                if len(self._fresh) + len(self._waiting) <= self._kept:
                    return
                leaving = self._waiting.popleft()[1]
            self._leaving.add(leaving.number)
        self._destroy(leaving.interface, Path(leaving.path))
        with self._lock:
            self._used.discard(leaving.number)
            self._leaving.discard(leaving.number)

    def _is_ready(self, net: JobNet) -> bool:
        return net in self._fresh or any(net == waiting for _owner, waiting in self._waiting)

    def ready_count(self, owner: str = "") -> int:
        """Return how many networks wait for a job of `owner` ("": of anybody)."""
        with self._lock:
            return len(self._fresh) + sum(1 for one, _net in self._waiting if one == owner)

    def find(self, path: str) -> JobNet:
        """Return the network at `path` as a value, for `give_back` after another life took it."""
        number = int(Path(path).name.removeprefix(PREFIX))
        return JobNet(path, address_of(number), f"{PREFIX}{number}", number)

    def destroy_all(self, keep: Sequence[str] = ()) -> None:
        """Remove every network and rule of ours in this name space but those in `keep`; jobs in a removed one lose theirs."""
        self._fresh.clear()
        self._waiting.clear()
        kept = {self.find(path) for path in keep}
        interfaces = {net.interface for net in kept}
        for interface in _interfaces():
            if interface.startswith(PREFIX) and interface not in interfaces:
                _run(["ip", "link", "del", interface])
        for path in self._dir.glob(f"{PREFIX}*"):
            if path.name not in interfaces:
                _unpin(path)
        with self._lock:
            self._used = {net.number for net in kept}
        _run(["nft", "-f", "-"], f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")

    def _number(self) -> int:
        with self._lock:
            for step in range(1, LAST - FIRST + 2):
                number = FIRST + (self._last + step - FIRST) % (LAST - FIRST + 1)
                if number not in self._used:
                    self._last = number
                    self._used.add(number)
                    return number
        raise NetworkFailed("all job networks of this node are in use", "wait until jobs end")

    def _make(self) -> JobNet:
        number = self._number()
        address = address_of(number)
        interface = f"{PREFIX}{number}"
        path = self._dir / interface
        try:
            path.touch(mode=0o600)
            _run(["unshare", f"--net={path}", "true"])
            # the far end gets no IPv6 address: nothing but what the rules name passes
            outside = f"link add {interface} type veth peer name eth0 netns {path}\n"
            outside += f"addr add {GATEWAY}/32 dev {interface}\nlink set {interface} up\nroute add {address}/32 dev {interface}\n"
            _run(["ip", "-batch", "-"], outside)
            inside = f"link set lo up\naddr add {address}/32 dev eth0\nlink set eth0 up\n"
            inside += f"route add {GATEWAY}/32 dev eth0 scope link\nroute add default via {GATEWAY}\n"
            _run(["nsenter", f"--net={path}", "ip", "-batch", "-"], inside)
        except NetworkFailed:
            self._destroy(interface, path)
            with self._lock:
                self._used.discard(number)
            raise
        return JobNet(str(path), address, interface, number)

    def _destroy(self, interface: str, path: Path) -> None:
        if interface in _interfaces():
            _run(["ip", "link", "del", interface])
        _unpin(path)


def _interfaces() -> list[str]:
    """Names of the interfaces of this thread's network name space (/sys may show another one's)."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return [line.split(":")[0].strip() for line in lines]


def _unpin(path: Path) -> None:
    if path.exists():
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)  # not mounted after a reboot: fine
        path.unlink()
