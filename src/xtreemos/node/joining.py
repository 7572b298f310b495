"""How a node enters a VO: the first one by founding it, others by a token. Keys are made here and stay on the machine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from xtreemos.errors import TryLater, XosError
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.sysaccount import SystemAccount
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import NodePaths
from xtreemos.node.config import NodeConfig
from xtreemos.node.vo_runtime import VoRuntime, connect_fabric
from xtreemos.vo.cda import Cda
from xtreemos.vo.client import CdaClient, Issued
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.document import Trust, open_document
from xtreemos.vo.founding import GridSecrets, VoSecrets, issue_server, load_vo, new_server_key
from xtreemos.vo.grid import GridFile, VoEntry
from xtreemos.vo.model import Consent, Credentials
from xtreemos.vo.tokens import parse_token, sign_consent

EMPTY_GRID = GridFile()
SERVED_S = 60.0


def trust_of(secrets: VoSecrets) -> Trust:
    """Return the VO as verifiers see it."""
    return open_document(secrets.document, root_sha256=secrets.root_sha256, vo=secrets.vo)


def owner_key(paths: NodePaths) -> ed25519.Ed25519PrivateKey:
    """Return the key by which the machine's owner consents, made at the first use; it never leaves the machine."""
    path = paths.private / "owner.key"
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key
    key = ed25519.Ed25519PrivateKey.generate()
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_atomically(path, key.private_bytes(serialization.Encoding.PEM, form, none))
    return key


def provisional(secrets: VoSecrets, node: str) -> Issued:
    """Keys without certificates, for the first moments of a VO, when nobody could issue any yet."""
    nothing = Credentials(
        vo=secrets.vo, name=node, sid="", serial=0, issued_at=0, expires_at=0, ends_at=0, roles=(), ssh="", nats="", x509=()
    )
    return Issued(SessionKeys.fresh(), nothing, trust_of(secrets))


async def open_first(
    node: str,
    entry: VoEntry,
    folder: Path,
    grid: GridSecrets,
    system: SystemAccount,
) -> VoRuntime:
    """Open a VO that was founded this moment: its buckets are made, its CDA answers to this process only."""
    secrets = load_vo(folder)
    issued = provisional(secrets, node)
    fabric = await connect_fabric(node, entry, issued, secrets, wait_s=20)
    runtime = VoRuntime(node=node, entry=entry, folder=folder, issued=issued, fabric=fabric, secrets=secrets)
    await runtime.serve_core(grid, system, None, first=True)
    return runtime


async def join_self(cda: Cda, trust: Trust, paths: NodePaths, config: NodeConfig) -> Issued:
    """Let the founding node join its own VO, by the very calls that any other node makes."""
    anybody, local = Caller("anonymous", vo=trust.vo), Caller("local", uid=0)
    token = parse_token((await cda.call("resource_invite", local, {"core": True}))["token"])
    found = await cda.call("challenge", anybody, {"purpose": "join", "subject": config.name})
    keys = SessionKeys.fresh()
    public, proofs = keys.public(), keys.prove(trust.vo, found["sid"], found["challenge"])
    consent = Consent(vo=trust.vo, node=config.name, core=True, at=int(time.time()), x509_public=public.x509)
    answer = await cda.call(
        "join_node",
        anybody,
        {
            "id": token.id,
            "secret": token.secret,
            "node": config.name,
            "addresses": [config.address],
            "challenge": found["challenge"],
            "keys": {name: getattr(public, name) for name in ("ssh", "nats", "x509")},
            "proofs": {name: getattr(proofs, name) for name in ("ssh", "nats", "x509")},
            "consent": sign_consent(consent, owner_key(paths)),
            "extra": {},
        },
    )
    return Issued(keys, Credentials.from_bytes(answer["credentials"]), trust)


async def wait_served(runtime: VoRuntime) -> None:
    """Wait until the CDA of a VO answers on this node."""
    end = time.monotonic() + SERVED_S
    while runtime.cda is None:
        if time.monotonic() > end:
            raise TryLater(f"VO {runtime.vo} is founded but its services do not start", "see the node's log")
        await asyncio.sleep(0.05)  # the service is made by another task, which tells nobody else


def core_parcel(grid: GridSecrets, node: str, addresses: tuple[str, ...]) -> dict[str, Any]:
    """What a further core node needs to carry the fabric; travels only in the answer to a core token."""
    key, pem = new_server_key()
    return {
        "grid_secrets": grid.to_bytes(),
        "cert": issue_server(grid, key.public_key(), node=node, addresses=addresses, now=int(time.time())),
        "key": pem,
    }


async def leave(runtime: VoRuntime, node: str) -> None:
    """Tell the VO that this node is gone."""
    client = CdaClient(runtime.issued.trust, runtime.entry.endpoints, lambda: runtime.issued.identity)
    try:
        await client.call("remove_node", {"node": node})
    except XosError as error:
        raise TryLater(f"the VO could not be told: {error.message}", "try `xos leave` again") from error
