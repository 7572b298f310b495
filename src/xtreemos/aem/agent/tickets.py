"""The session's word to nodes that they may act for the user on the grid's files (see `xtreemfs.ticket`).

A node gets its ticket when the agent connects to it, before the first program is sent there, and again after each renewal of the
credentials; a detached job carries one that any node of the VO may show, for its manager chooses where it runs.
"""

from __future__ import annotations

import logging
import time

from xtreemos.aem.agent.session import Session
from xtreemos.errors import RemoteError, XosError
from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs.ticket import ANY_NODE, JOB_LIFE_S, Ticket, sign_ticket

log = logging.getLogger(__name__)

DELEGATE_S = 5.0
HOME_S = 20.0


class Tickets:
    """Makes tickets of one session and brings them to nodes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def for_node(self, node: str) -> bytes:
        """Return a ticket for `node` that lives as long as the credentials."""
        return self._sign(node, "", self._session.credentials.expires_at)

    def for_job(self, job: str) -> bytes:
        """Return a ticket for one detached job, wherever it runs."""
        return self._sign(ANY_NODE, job, int(time.time()) + JOB_LIFE_S)

    def _sign(self, node: str, job: str, expires_at: int) -> bytes:
        issued = self._session.issued
        made = issued.credentials
        ticket = Ticket(made.vo, made.name, node, int(time.time()), expires_at, job)
        return sign_ticket(ticket, made.x509, issued.keys.x509)

    async def give(self, node: str, peer: Peer) -> None:
        """Give a node its ticket. One that does not take it says what is wrong with the files when a program is sent there."""
        try:
            await peer.call("files.delegate", {"ticket": self.for_node(node)}, timeout_s=DELEGATE_S)
        except RemoteError as error:
            log.warning("node %s takes no ticket for files: %s", node, error)
        except XosError as error:
            log.info("node %s: %s", node, error)

    async def mount_home(self, node: str, peer: Peer) -> None:
        """Have the user's home mounted on `node`, the machine of this agent. Raises what the node says is wrong."""
        await peer.call("files.delegate", {"ticket": self.for_node(node), "home": True}, timeout_s=HOME_S)
