"""How one node's process reaches a file server on another: TLS with its own certificate, to that very node."""

from __future__ import annotations

import time

from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Peer
from xtreemos.vo.grid import split_endpoint
from xtreemos.vo.tls import Identity, client_context, identify_node
from xtreemos.vo.x509 import vo_dns
from xtreemos.xtreemfs.model import MrcRecord, OsdRecord


async def dial_tls(record: MrcRecord | OsdRecord, identity: Identity) -> Peer:
    """Connect to the server of a record. NoConnection: it does not answer, or another node does. Definite."""
    host, port = split_endpoint(record.address)
    who = identify_node(identity.trust, time.time, record.node)
    return await rpc.connect_tls(host, port, client_context(identity.trust, identity), vo_dns(identity.trust.vo), identify=who)
