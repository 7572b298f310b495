"""The agent's view of the VO's nodes: a few candidates per query, and warm connections to the ones in use.

No list of all nodes is kept: a query is put to the nodes, each answers about itself, and the best few answers are remembered for
CANDIDATES_S so that the next program starts without asking. The node itself has the last word when a program is sent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xtreemos.errors import RemoteError, TryLater, Unreachable, XosError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import ClientCall, Peer
from xtreemos.vo.document import Trust
from xtreemos.vo.tls import Identity, client_context, identify_node
from xtreemos.vo.x509 import vo_dns

log = logging.getLogger(__name__)

CANDIDATES_S = 2.0
WANTED = 8
GATHER_S = 0.6
PING_EVERY_S = 1.0
PING_LOST_S = 3.0
CONNECT_S = 3.0


class NoNode(TryLater):
    """No node of the VO takes the program now; the text says why. Nothing was started."""

    code = "no-node"


class NodesSilent(Unreachable):
    """Not one node of the VO answered a query, so it is not known whether some match. Nothing was started."""

    code = "nodes-silent"
    definite = True


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node's answer about itself. `free` is how many more jobs it would take, `running` how many it has, `ssh` its sshd's port."""

    node: str
    address: str
    port: int
    free: int = 0
    running: int = 0
    ssh: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


Gather = Callable[[str, int, float], Awaitable[list[dict[str, Any]]]]
Connected = Callable[[str, Peer], Awaitable[None]]
"""Told of each new connection (node, its peer) before anything else goes over it; must not raise."""


async def _nothing(_node: str, _peer: Peer) -> None:
    return


def candidate(answer: dict[str, Any]) -> Candidate:
    """Build a candidate out of a node's answer."""
    return msgspec.convert(answer, Candidate)


def order(candidates: list[Candidate], avoid: frozenset[str], ours: dict[str, int]) -> list[Candidate]:
    """Return candidates best first: free ones, fewest jobs per core (counting those we have just sent), avoided ones last.

    `ours` maps a node to the programs this agent started there since the answer.
    """

    def key(one: Candidate) -> tuple[bool, bool, float, str]:
        cpus = max(float(one.facts.get("cpus", 1)), 0.1)
        running = one.running + ours.get(one.node, 0)
        return one.node in avoid, one.free <= ours.get(one.node, 0), running / cpus, one.node

    return sorted(candidates, key=key)


class NodePool:
    """Candidates and connections of one session."""

    def __init__(self, trust: Trust, identity: Callable[[], Identity], gather: Gather, on_connected: Connected = _nothing) -> None:
        self._trust = trust
        self._identity = identity
        self._gather = gather
        self._on_connected = on_connected
        self._known: dict[str, tuple[float, list[Candidate]]] = {}
        self._peers: dict[str, Peer] = {}
        self._connecting: dict[str, asyncio.Task[Peer]] = {}
        self._addresses: dict[str, Candidate] = {}
        self._ours: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshing: dict[str, asyncio.Task[list[Candidate]]] = {}

    async def candidates(self, where: str | None, node: str | None) -> list[Candidate]:
        """Return nodes that say they match, at once if a recent answer is known.

        Raises:
            NoNode: none answered. Unreachable: the fabric is away and nothing is remembered.
        """
        query = where or ""
        if node is not None:
            query = f"({query}) and node=='{node}'" if query else f"node=='{node}'"
        known = self._known.get(query)
        if known is not None:
            if time.monotonic() - known[0] > CANDIDATES_S:
                self._refresh(query)
            return known[1]
        return await asyncio.shield(self._refresh(query))

    def know(self, node: str, address: str, port: int) -> None:
        """Take a node's address as known without asking (this machine's own)."""
        self._addresses.setdefault(node, Candidate(node, address, port))

    async def ask(self, where: str | None, wanted: int, wait_s: float) -> list[Candidate]:
        """Ask afresh for up to `wanted` nodes that match."""
        answers = await self._gather(where or "", wanted, wait_s)
        found = [candidate(answer) for answer in answers]
        for one in found:
            self._addresses[one.node] = one
        return found

    def _refresh(self, query: str) -> asyncio.Task[list[Candidate]]:
        task = self._refreshing.get(query)
        if task is None:
            task = self._refreshing[query] = asyncio.create_task(self._refresh_now(query), name=f"ask nodes {query!r}")
            task.add_done_callback(lambda done: (self._refreshing.pop(query, None), done.cancelled() or done.exception()))
        return task

    async def _refresh_now(self, query: str) -> list[Candidate]:
        found = await self.ask(query, WANTED, GATHER_S)
        if not found:
            self._known.pop(query, None)
            raise NoNode(f"no node matches {query!r}" if query else "no node of the VO answers", "see `xos nodes`")
        self._ours.clear()
        self._known[query] = (time.monotonic(), found)
        return found

    def forget(self, query_node: str) -> None:
        """Drop remembered answers that name this node (it refused, or is away)."""
        for query, (when, found) in list(self._known.items()):
            rest = [one for one in found if one.node != query_node]
            if rest:
                self._known[query] = (when, rest)
            else:
                del self._known[query]

    def was_seen(self, node: str | None) -> bool:
        """Tell whether a node has answered in this session: if it does not now, it is away."""
        return node in self._addresses

    def started(self, node: str) -> None:
        """Count a program that was just sent to `node`, until its next answer."""
        self._ours[node] = self._ours.get(node, 0) + 1

    def ordered(self, candidates: list[Candidate], avoid: frozenset[str]) -> list[Candidate]:
        """Return candidates best first."""
        return order(candidates, avoid, self._ours)

    # -- connections -----------------------------------------------------------------------------------------------------

    async def peer(self, node: str) -> Peer:
        """Return a live connection to `node`, made now if there is none.

        Raises:
            NoConnection: no connection. Definite: nothing was sent.
        """
        peer = self._peers.get(node)
        if peer is not None and not peer.is_lost:
            return peer
        task = self._connecting.get(node)
        if task is None:
            task = self._connecting[node] = asyncio.create_task(self._connect(node), name=f"connect {node}")
            task.add_done_callback(lambda done: (self._connecting.pop(node, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _connect(self, node: str) -> Peer:
        one = self._addresses.get(node)
        if one is None:
            await self.ask(f"node=='{node}'", 1, GATHER_S)
            one = self._addresses.get(node)
        if one is None:
            raise rpc.NoConnection(f"node {node} does not answer", "see `xos nodes`")
        context: ssl.SSLContext = client_context(self._trust, self._identity())
        peer = await rpc.connect_tls(
            one.address,
            one.port,
            context,
            vo_dns(self._trust.vo),
            identify=identify_node(self._trust, time.time, node),
            timeout_s=CONNECT_S,
        )
        await self._on_connected(node, peer)
        self._peers[node] = peer
        self._spawn(self._watch(node, peer), f"watch {node}")
        return peer

    async def _watch(self, node: str, peer: Peer) -> None:
        """End a connection whose other end no longer answers: TCP alone would wait for minutes."""
        while not peer.is_lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_EVERY_S):
                    await asyncio.shield(peer.lost)
            try:
                await peer.call("ping", timeout_s=PING_LOST_S)
            except RemoteError:
                continue
            except XosError as error:
                log.info("node %s: %s", node, error)
                peer.close()
        if self._peers.get(node) is peer:
            del self._peers[node]
        self.forget(node)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self, node: str, method: str, params: dict[str, Any]) -> ClientCall:
        """Open a call to `node`."""
        return (await self.peer(node)).open(method, params)

    async def call(self, node: str, method: str, params: dict[str, Any] | None = None, timeout_s: float = 10.0) -> Any:
        """Make a call to `node` and return its result."""
        return await (await self.peer(node)).call(method, params, timeout_s=timeout_s)

    async def warm(self, count: int = 3) -> None:
        """Connect to a few nodes ahead of the first program."""
        with contextlib.suppress(XosError):
            found = await self.candidates(None, None)
            await asyncio.gather(*(self.peer(one.node) for one in found[:count]), return_exceptions=True)

    async def tell_all(self) -> None:
        """Tell of every connection again: what was said at its beginning has changed."""
        await asyncio.gather(*(self._on_connected(node, peer) for node, peer in list(self._peers.items())))

    async def close(self) -> None:
        """End every connection."""
        for task in list(self._tasks):
            task.cancel()
        for peer in list(self._peers.values()):
            peer.close()
        self._peers.clear()
