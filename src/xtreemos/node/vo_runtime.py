"""One VO as this node serves it: credentials, fabric connection, admission, revocations, and on core nodes the CDA and the manager.

The node's own credentials of the VO lie in `node/vo/VO/` (0600), on core nodes with the VO's issuing keys beside them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from xtreemos.aem.agent.session import fabric_settings, pack, unpack
from xtreemos.aem.manager.driver import ManagerDriver
from xtreemos.aem.manager.fabricport import FabricPort, ensure_job_streams
from xtreemos.aem.manager.signed import Submission, verify_submission
from xtreemos.errors import RemoteError, XosError
from xtreemos.fabric import jwt, subjects
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.connection import Fabric, Settings
from xtreemos.fabric.kv import Bucket, Deleted, Entry, WatchEvent, ensure_bucket, open_bucket
from xtreemos.fabric.lease import Lease, boot_clock_s
from xtreemos.fabric.link import Credentials as FabricCredentials
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.fabric.stream import Synced, copies_possible, stream_info
from xtreemos.fabric.sysaccount import SystemAccount
from xtreemos.foundation import query
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import NATS_PORT
from xtreemos.node.auditing import note_for_ever
from xtreemos.node.config import NodeConfig
from xtreemos.vo.admission import Admission
from xtreemos.vo.audit import Audit
from xtreemos.vo.cda import Cda
from xtreemos.vo.chaincache import ChainCache
from xtreemos.vo.client import CdaClient, Issued
from xtreemos.vo.document import Trust
from xtreemos.vo.errors import Revoked
from xtreemos.vo.founding import GridSecrets, VoSecrets, fabric_dns, load_vo
from xtreemos.vo.grid import VoEntry
from xtreemos.vo.model import PublicNode, PublicUser, Revocation
from xtreemos.vo.registry import Registry
from xtreemos.vo.revocation import RevocationSet, is_revocation
from xtreemos.vo.watching import follow

log = logging.getLogger(__name__)

SERVICE_TOKEN_S = 12 * 3600
RENEW_NODE_AT = 0.5
ASK_CORE_S = 10.0
SYSTEM_PING_S = 2.0  # nothing is heard on that connection that a user waits for, and it is nearly always idle
REVOCATIONS_MAX = 1024  # events that wait while a revocation is carried out; then the watch waits, too
LEASE_S = 5
_CREDENTIAL_FILE = "node.secret"


class VoAccount:
    """The VO's NATS account as the operator's key makes it (vo.desk.Account)."""

    def __init__(self, trust: Trust, grid: GridSecrets, system: SystemAccount) -> None:
        self._trust = trust
        self._grid = grid
        self._system = system

    def mint(self, revocations: Mapping[str, int], issued_at: int) -> str:
        """Make the account's JWT: roles as scoped keys, these user keys void."""
        return mint_vo_account(self._trust, self._grid, revocations, issued_at)

    async def publish(self, token: str) -> None:
        """Bring it to the servers."""
        await self._system.push_account(token)


def mint_vo_account(trust: Trust, grid: GridSecrets, revocations: Mapping[str, int], issued_at: int) -> str:
    """Make a VO's account JWT, signed by the grid's operator."""
    document = trust.document
    scopes = [jwt.Scope(key, role, subjects.permissions(role)) for role, key in document.nats_roles.items()]
    return jwt.mint_account(
        KeyPair.from_seed(grid.signing_seed),
        account=document.nats_account,
        name=document.vo,
        now=issued_at,
        scopes=scopes,
        limits=jwt.AccountLimits(),
        revocations=revocations,
    )


def save_credential(folder: Path, issued: Issued) -> None:
    """Keep the node's own keys and credentials of a VO."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / _CREDENTIAL_FILE, pack(issued))


def load_credential(folder: Path) -> Issued:
    """Read what `save_credential` wrote."""
    return unpack((folder / _CREDENTIAL_FILE).read_bytes())


class VoRuntime:
    """Everything of one VO while the daemon runs. Make it by `open`; `run` keeps it going; cancel `run` to end it."""

    def __init__(
        self, *, node: str, entry: VoEntry, folder: Path, issued: Issued, fabric: Fabric, secrets: VoSecrets | None
    ) -> None:
        self.node = node
        self.vo = entry.vo
        self.entry = entry
        self.folder = folder
        self.issued = issued
        self.fabric = fabric
        self.secrets = secrets
        self.revoked = RevocationSet()
        self._chains = ChainCache()
        self.audit = Audit(folder / "audit.jsonl")
        self.admission = Admission(issued.trust, self.revoked, self.audit, time.time)
        self.users: dict[str, PublicUser] = {}
        self.nodes: dict[str, PublicNode] = {}
        self.cda: Cda | None = None
        self.first_account_jwt = ""
        self.manager: ManagerDriver | None = None
        self.on_users: Callable[[], None] | None = None
        self.on_revoked: Callable[[str, Revocation], Awaitable[None]] | None = None
        self.on_renewed: Callable[[], None] | None = None
        self.public: dict[str, bytes] = {}
        """The whole public bucket, for the directory service of XtreemFS."""
        self.watchers: set[Callable[[str, bytes | None], None]] = set()
        self.synced = asyncio.Event()

    @classmethod
    async def open(cls, *, node: str, entry: VoEntry, folder: Path, core: bool) -> VoRuntime:
        """Load credentials and connect; does not wait for the fabric, a cut-off node serves what it can."""
        issued = load_credential(folder)
        secrets = load_vo(folder) if core else None
        fabric = await connect_fabric(node, entry, issued, secrets, wait_s=None)
        runtime = cls(node=node, entry=entry, folder=folder, issued=issued, fabric=fabric, secrets=secrets)
        if secrets is None:
            fabric._credentials = runtime.fabric_credentials  # noqa: SLF001  # credentials are renewed in place
        return runtime

    def fabric_credentials(self) -> FabricCredentials:
        """What this (plain) node shows to the fabric, now."""
        return FabricCredentials(self.issued.credentials.nats, self.issued.keys.nats)

    async def account_jwt(self) -> str:
        """Return the VO's account JWT as last decided (core nodes)."""
        vo = await open_bucket(self.fabric, subjects.VO_BUCKET)
        held = await Registry(vo, vo).account.get("jwt")
        return held.record.jwt if held else self.first_account_jwt

    async def serve_core(self, grid: GridSecrets, system: SystemAccount, node_extra: Any, *, first: bool = False) -> None:
        """On a core node: offer the CDA and stand for manager. `first` makes the VO's buckets and streams.

        Only the founding moment may make them: a server of a growing cluster must not fill the place of what is being restored.
        """
        assert self.secrets is not None
        if first:
            copies = copies_possible(self.fabric)
            vo = await ensure_bucket(self.fabric, subjects.VO_BUCKET, copies=copies)
            pub = await ensure_bucket(self.fabric, subjects.PUBLIC_BUCKET, copies=copies)
            await ensure_job_streams(self.fabric, copies=copies)
        else:
            vo = await open_bucket(self.fabric, subjects.VO_BUCKET)
            pub = await open_bucket(self.fabric, subjects.PUBLIC_BUCKET)
            info = await stream_info(self.fabric, subjects.SUBMIT_STREAM)
            await ensure_job_streams(self.fabric, copies=int(info["config"]["num_replicas"]))
        account = VoAccount(self.issued.trust, grid, system)
        self.first_account_jwt = account.mint({}, self.issued.trust.document.issued_at)
        self.cda = Cda(
            Registry(vo, pub),
            self.secrets,
            audit=self.audit,
            account=account,
            endpoints=tuple(self.entry.endpoints),
            node_extra=node_extra,
        )
        self.manager = ManagerDriver(
            FabricPort(self.fabric),
            lambda: Lease(vo, "lease.jobs", self.node, LEASE_S, sole=True),  # one xosd per node: its supervisor sees to that
            verify=self.verify_submission,
            matches=lambda where, facts: query.parse(where).matches(facts),
            is_admin=self.is_admin,
            clock_s=boot_clock_s,
        )

    def verify_chain(self, chain: Any, at: float) -> Caller:
        """Judge the certificates of a submission; they must have been valid when it was made."""
        caller, issued_at = self._chains.verify(chain, self.issued.trust, int(at))
        if self.revoked.covers(caller, issued_at):
            raise Revoked(f"the session of {caller} was revoked")
        return caller

    def verify_submission(self, record: bytes) -> Submission:
        """Check what a user signed to have a detached job."""
        return verify_submission(record, self.verify_chain)

    def is_admin(self, user: str) -> bool:
        """Tell whether a user administers the VO, as this node knows."""
        found = self.users.get(user)
        return found is not None and "admin" in found.roles

    async def run(self, spawn: Callable[[Coroutine[Any, Any, Any], str], Any]) -> None:
        """Follow the VO's public bucket and renew credentials, for ever; the manager if this is a core node."""
        if self.manager is not None:
            spawn(self.manager.run(), f"manager {self.vo}")
        spawn(self._renew_for_ever(), f"renew {self.vo}")
        spawn(note_for_ever(self.vo, self.audit, self.ask_cda), f"audit {self.vo}")
        while True:
            try:
                pub = await open_bucket(self.fabric, subjects.PUBLIC_BUCKET, follow=self.secrets is None)
                async with asyncio.TaskGroup() as tasks:
                    revocations: asyncio.Queue[WatchEvent] = asyncio.Queue(REVOCATIONS_MAX)
                    tasks.create_task(follow(revocations.get, self.revoked, self._was_revoked))
                    tasks.create_task(self._follow_public(pub, revocations))
            except* XosError as group:
                log.warning("VO %s: %s; again", self.vo, group.exceptions[0])
                await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _was_revoked(self, key: str, record: Revocation) -> None:
        if self.on_revoked is not None:
            await self.on_revoked(key, record)

    async def _follow_public(self, pub: Bucket, revocations: asyncio.Queue[WatchEvent]) -> None:
        """Keep users and nodes in memory; told on when the whole state was seen and after each change. Revocations are handed on.

        One watch for both: an idle one costs its server a message a second.
        """
        synced = False
        async for event in pub.watch(">"):
            if isinstance(event, Synced) or is_revocation(event.key):
                await revocations.put(event)
            if isinstance(event, Synced):
                synced = True
                self.synced.set()
            elif isinstance(event, (Entry, Deleted)):
                self._apply(event)
            if synced and self.on_users is not None:
                self.on_users()

    def _apply(self, event: Entry | Deleted) -> None:
        value = None if isinstance(event, Deleted) else event.value
        if value is None:
            self.public.pop(event.key, None)
        else:
            self.public[event.key] = value
        for tell in self.watchers:
            tell(event.key, value)
        kind, _dot, name = event.key.partition(".")
        tables: dict[str, dict[str, Any]] = {"user": self.users, "node": self.nodes}
        table = tables.get(kind)
        if table is None:
            return
        if isinstance(event, Deleted):
            table.pop(name, None)
            return
        try:
            table[name] = (PublicUser if kind == "user" else PublicNode).from_bytes(event.value)
        except msgspec.MsgspecError:
            log.warning("VO %s: the record %s cannot be read", self.vo, event.key)

    def core(self) -> CdaClient:
        """Return the way to the VO's core nodes, as this node and with what it knows of them now."""
        return CdaClient(self.issued.trust, self.entry.endpoints, lambda: self.issued.identity)

    async def ask_cda(self, method: str, params: Mapping[str, Any]) -> Any:
        """Call a method of the VO's CDA, on any core node, as this node; raises XosError."""
        return await self.core().call(method, params)

    async def ask_core(self, method: str, params: Mapping[str, Any]) -> Any:
        """Call a method that core nodes have, on any of them, as this node; raises XosError."""
        return await self.core().ask(method, params, timeout_s=ASK_CORE_S)

    async def _renew_for_ever(self) -> None:
        client = self.core()
        while True:
            made = self.issued.credentials
            await asyncio.sleep(max(1.0, made.issued_at + (made.expires_at - made.issued_at) * RENEW_NODE_AT - time.time()))
            try:
                self.issued = await client.renew_node(self.node)
            except (RemoteError, XosError) as error:
                log.warning("VO %s: this node's credentials could not be renewed: %s", self.vo, error)
                await asyncio.sleep(60.0 * random.uniform(0.5, 1.5))
                continue
            save_credential(self.folder, self.issued)
            self.admission.trust = self.issued.trust
            if self.secrets is None:
                self.fabric.renew()
            if self.on_renewed is not None:
                self.on_renewed()

    async def close(self) -> None:
        """End the connection."""
        await self.fabric.close()
        self.audit.close()


async def connect_fabric(node: str, entry: VoEntry, issued: Issued, secrets: VoSecrets | None, *, wait_s: float | None) -> Fabric:
    """Connect to a VO's account: with `secrets` as a service (core nodes), else as this node."""
    if secrets is None:
        settings = fabric_settings(entry, issued, subjects.node_inbox(node), f"xosd {node}")
        return await Fabric.connect(settings, lambda: FabricCredentials(issued.credentials.nats, issued.keys.nats), wait_s=wait_s)
    settings = fabric_settings(entry, issued, subjects.service_inbox(node), f"xosd {node}")
    return await Fabric.connect(settings, lambda: service_credentials(node, issued.trust, secrets), wait_s=wait_s)


def service_credentials(node: str, trust: Trust, secrets: VoSecrets) -> FabricCredentials:
    """Make a fresh short-lived user with the role `service`."""
    key, now = KeyPair.generate(KeyKind.USER), int(time.time())
    token = jwt.mint_user(
        KeyPair.from_seed(secrets.nats_roles["service"]),
        account=trust.document.nats_account,
        user=key.public,
        name=node,
        now=now,
        expires_at=now + SERVICE_TOKEN_S,
    )
    return FabricCredentials(token, key)


async def connect_system(config: NodeConfig, grid: GridSecrets) -> SystemAccount:
    """Connect to the system account of the fabric; does not wait for it."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_verify_locations(cadata=grid.fabric_ca_pem)
    settings = Settings(
        servers=(f"{config.address}:{NATS_PORT}",),
        tls=tls,
        inbox=subjects.service_inbox(config.name),
        name=f"xosd {config.name} system",
        tls_name=fabric_dns(grid.name),
        ping_s=SYSTEM_PING_S,
    )
    fabric = await Fabric.connect(settings, lambda: system_credentials(grid), wait_s=None)
    return SystemAccount(fabric, operator_claims(grid, int(config.created_at)))


def operator_jwt(grid: GridSecrets, now: int) -> str:
    """Make the operator's token, which every NATS server of the grid is configured with."""
    return jwt.mint_operator(
        KeyPair.from_seed(grid.operator_seed),
        name=grid.name,
        system_account=grid.system_account_public,
        now=now,
        signing_keys=[grid.signing_public],
    )


def operator_claims(grid: GridSecrets, now: int) -> jwt.Claims:
    """Return the operator as verifiers of account tokens see it."""
    return jwt.verify_operator(operator_jwt(grid, now), operator=grid.operator_public, now=time.time())


def system_credentials(grid: GridSecrets) -> FabricCredentials:
    """Make the token of the system account's user."""
    key, now = KeyPair.from_seed(grid.system_user_seed, KeyKind.USER), int(time.time())
    token = jwt.mint_user(
        KeyPair.from_seed(grid.system_account_seed),
        account=grid.system_account_public,
        user=key.public,
        name="system",
        now=now,
        expires_at=now + SERVICE_TOKEN_S,
    )
    return FabricCredentials(token, key)
