"""CDA methods of machines: invite a resource, join, renew, leave, list; and what strangers and core nodes may fetch.

Joining needs two yeses: the VO's (a one-time token) and the owner's (a consent signed by a key that stays on the machine). The token
is consumed by compare-and-set before anything is issued. Who re-joins under a name must hold the same owner's key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.errors import KeyExists, RevisionMismatch
from xtreemos.vo import pop
from xtreemos.vo.credentials import check_proofs
from xtreemos.vo.desk import Desk, Method, add_issue, kinds
from xtreemos.vo.errors import AlreadyThere, BadCredential, BadToken, NoSuchMember, NotAllowed, Replayed, Revoked
from xtreemos.vo.members import _token_id
from xtreemos.vo.model import (
    JOIN_S,
    NODE_CREDENTIAL_S,
    Consent,
    Issue,
    Node,
    Proofs,
    PublicKeys,
    PublicNode,
    TokenRecord,
)
from xtreemos.vo.registry import Held
from xtreemos.vo.revocation import subject_key
from xtreemos.vo.sessions import NoParams, RenewParams
from xtreemos.vo.tokens import holds, make_token, open_consent, secret_hash

NodeExtra = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
CONSENT_S_MAX: Final = 3600
ADDRESSES_MAX: Final = 8
_BAD_TOKEN = "this token is not valid (any more)"  # noqa: S105  # a message, not a secret


class ResourceInviteParams(msgspec.Struct, forbid_unknown_fields=True):
    """`core` nodes carry the fabric and a CDA: give such a token to a machine that may hold the VO's issuing keys."""

    core: bool = False
    life_s: int = JOIN_S


class JoinParams(msgspec.Struct, forbid_unknown_fields=True):
    """`id`, `secret` out of the token; `consent` from `tokens.sign_consent`; `extra` goes to the fabric's own hook."""

    id: str
    secret: bytes
    node: str
    addresses: list[str]
    challenge: str
    keys: PublicKeys
    proofs: Proofs
    consent: bytes
    extra: dict[str, Any] = {}


class NodeParams(msgspec.Struct, forbid_unknown_fields=True):
    """A node by name."""

    node: str


class Machines:
    """The handlers; state is in the registry."""

    def __init__(self, desk: Desk, node_extra: NodeExtra | None) -> None:
        self.desk = desk
        self.node_extra = node_extra

    async def resource_invite(self, caller: Caller, params: ResourceInviteParams) -> dict[str, Any]:
        """Make a one-time token for a machine; answers `{token, expires_at, core}`."""
        desk, now = self.desk, self.desk.now()
        token = make_token("join", vo=desk.vo, endpoints=desk.endpoints, ca=desk.keys.secrets.root_sha256, rng=desk.rng)
        life_s = max(60, min(params.life_s, JOIN_S))
        record = TokenRecord(
            kind="join",
            secret_sha256=secret_hash(token.secret),
            expires_at=now + life_s,
            made_by=str(caller),
            core=params.core,
        )
        await desk.registry.tokens.create(token.id, record, ttl_s=life_s)
        return {"token": token.text(), "expires_at": record.expires_at, "core": params.core}

    async def join_node(self, _caller: Caller, params: JoinParams) -> dict[str, Any]:
        """Make a machine a node; answers `{credentials, document, core, extra}`."""
        desk, now = self.desk, self.desk.now()
        name, addresses = names.check_node(params.node), check_addresses(params.addresses)
        token = await desk.registry.tokens.get(_token_id(params.id))
        if token is None or not holds(token.record, kind="join", secret=params.secret, now=now):
            raise BadToken(_BAD_TOKEN, "ask an administrator of the VO for a new one")
        challenge = pop.open_challenge(
            params.challenge, desk.keys.secrets.challenge_key, purpose="join", vo=desk.vo, subject=name, now=now
        )
        check_proofs(params.keys, params.proofs, vo=desk.vo, sid=challenge.sid, challenge=params.challenge)
        owner = self._check_consent(params, core=token.record.core, now=now)
        held = await desk.registry.nodes.get(name)
        if held and held.record.owner != owner:
            raise AlreadyThere(f"VO {desk.vo} has another machine named {name}", "join under another name: --name")
        try:
            await desk.registry.tokens.delete(params.id, token)
        except RevisionMismatch as error:
            raise BadToken(_BAD_TOKEN, "ask an administrator of the VO for a new one") from error
        serial = desk.serial()
        issue = Issue(serial=serial, nats_key=params.keys.nats, expires_at=now + NODE_CREDENTIAL_S)
        node = Node(
            name=name,
            sid=challenge.sid,
            addresses=addresses,
            core=token.record.core,
            owner=owner,
            consent=params.consent,
            joined_at=now,
            expires_at=issue.expires_at,
            issues=(issue,),
        )
        await self._enter(node, held)
        return await self._welcome(node, params, serial=serial, now=now)

    async def _enter(self, node: Node, held: Held[Node] | None) -> None:
        shelf = self.desk.registry.nodes
        try:
            await (shelf.replace(node.name, held, node) if held else shelf.create(node.name, node))
        except (KeyExists, RevisionMismatch) as error:
            raise AlreadyThere(f"another machine joined as {node.name} just now", "join under another name: --name") from error
        if held:
            await self.desk.revoke(f"revoked.sid.{held.record.sid}", held.record.issues, f"node {node.name} joined again")
            await self.desk.publish_account()

    async def _welcome(self, node: Node, params: JoinParams, *, serial: int, now: int) -> dict[str, Any]:
        """Issue, tell everybody, and let the fabric add what a (core) node needs of it."""
        facts = {"core": node.core, "addresses": list(node.addresses), "extra": params.extra}
        extra = dict(await self.node_extra(node.name, facts)) if self.node_extra else {}
        credentials = self.desk.issuer.issue_node(node, params.keys, serial=serial, now=now)
        await self._tell(node, params.keys.ssh)
        return {
            "credentials": credentials.to_bytes(),
            "document": self.desk.keys.secrets.document,
            "core": node.core,
            "extra": extra,
        }

    async def _tell(self, node: Node, ssh_host_key: str) -> None:
        public = PublicNode(
            name=node.name,
            addresses=node.addresses,
            core=node.core,
            joined_at=node.joined_at,
            ssh_host_key=ssh_host_key,
        )
        await self.desk.registry.public_nodes.put(node.name, public)

    def _check_consent(self, params: JoinParams, *, core: bool, now: int) -> str:
        """The owner agreed to this VO, this name, these keys, now; returns the owner's key."""
        consent, owner = open_consent(params.consent)
        agreed = Consent(vo=self.desk.vo, node=params.node, core=consent.core, at=consent.at, x509_public=params.keys.x509)
        if consent != agreed or abs(now - consent.at) > CONSENT_S_MAX:
            raise BadCredential("consent is for something else", hint="run `xos join` on the machine itself")
        if core and not consent.core:
            raise NotAllowed(
                "the machine's owner did not agree that it becomes a core node", "join with --core, or use another token"
            )
        return owner

    async def renew_node(self, caller: Caller, params: RenewParams) -> dict[str, Any]:
        """Give a node new credentials on new keys; answers `{credentials, document, core}`."""
        desk, now = self.desk, self.desk.now()
        key = desk.keys.secrets.challenge_key
        challenge = pop.open_challenge(params.challenge, key, purpose="renew-node", vo=desk.vo, subject=caller.name, now=now)
        check_proofs(params.keys, params.proofs, vo=desk.vo, sid=challenge.sid, challenge=params.challenge)
        held = await desk.registry.nodes.get(caller.name)
        if held is None or held.record.sid != challenge.sid:
            raise Revoked("this node is no longer in the VO", hint="join again with a new token")
        if held.record.generation != challenge.generation:
            raise Replayed("challenge was used before", hint="try again")
        serial = desk.serial()
        issue = Issue(serial=serial, nats_key=params.keys.nats, expires_at=now + NODE_CREDENTIAL_S)
        node = msgspec.structs.replace(
            held.record,
            generation=held.record.generation + 1,
            expires_at=issue.expires_at,
            issues=add_issue(held.record.issues, issue, now),
        )
        try:
            await desk.registry.nodes.replace(node.name, held, node)
        except RevisionMismatch as error:
            raise Replayed("the node's record changed meanwhile", hint="try again") from error
        await self._tell(node, params.keys.ssh)
        credentials = desk.issuer.issue_node(node, params.keys, serial=serial, now=now)
        return {"credentials": credentials.to_bytes(), "document": desk.keys.secrets.document, "core": node.core}

    async def remove_node(self, caller: Caller, params: NodeParams) -> dict[str, Any]:
        """Take a node out of the VO: by an administrator, or the node itself (`xos leave`). Answers `{node}`."""
        desk, name = self.desk, names.check_node(params.node)
        if caller.kind == "node" and caller.name != name:
            raise NotAllowed(f"{caller} may only leave by itself")
        held = await desk.registry.nodes.get(name)
        if held is None:
            raise NoSuchMember(f"VO {desk.vo} has no node {name}", "see `xos nodes`")
        while held is not None:
            await desk.revoke(subject_key("node", name), held.record.issues, str(caller))
            try:
                await desk.registry.nodes.delete(name, held)
            except RevisionMismatch:
                held = await desk.registry.nodes.get(name)
                continue
            break
        await desk.registry.public_nodes.delete(name)
        await desk.registry.audit_heads.delete(name)  # a machine that joins under the name again begins its own audit
        await desk.publish_account()
        return {"node": name}

    async def node_list(self, _caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{nodes: [{node, addresses, core, joined_at, ssh_host_key}]}`, sorted by name."""
        found = await self.desk.registry.public_nodes.all()
        return {
            "nodes": [
                {
                    "node": node.name,
                    "addresses": list(node.addresses),
                    "core": node.core,
                    "joined_at": node.joined_at,
                    "ssh_host_key": node.ssh_host_key,
                }
                for node in found
            ]
        }

    async def trust(self, _caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{vo, document, ca_pem, root_sha256}`; who knows the fingerprint checks the rest by itself."""
        trust = self.desk.keys.trust
        return {
            "vo": self.desk.vo,
            "document": self.desk.keys.secrets.document,
            "ca_pem": trust.root_pem,
            "root_sha256": trust.root_sha256,
        }

    async def issuing_keys(self, caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Hand the VO's issuing keys to a core node, over its own verified connection; answers `{secrets}`."""
        held = await self.desk.registry.nodes.get(caller.name)
        if held is None or not held.record.core or not caller.has_role("core"):
            raise NotAllowed(f"{caller} is not a core node of VO {self.desk.vo}")
        return {"secrets": self.desk.keys.secrets.to_bytes()}


def check_addresses(addresses: list[str]) -> tuple[str, ...]:
    """Return addresses in their one written form; raises BadCredential for what is none."""
    try:
        found = tuple(str(ipaddress.ip_address(address)) for address in addresses)
    except ValueError as error:
        raise BadCredential("bad address", str(error)[:100], hint="give IP addresses") from error
    if not 1 <= len(found) <= ADDRESSES_MAX:
        raise BadCredential("bad address", f"1 to {ADDRESSES_MAX} wanted", hint="give the addresses others reach")
    return found


def table(desk: Desk, node_extra: NodeExtra | None) -> dict[str, Method]:
    """Rows of the CDA's table."""
    machines = Machines(desk, node_extra)
    anybody, node, admin = kinds("anonymous"), kinds("node"), kinds("user", "local")
    reader = kinds("user", "node", "local")
    return {
        "resource_invite": Method(admin, ResourceInviteParams, machines.resource_invite, admin=True),
        "join_node": Method(anybody, JoinParams, machines.join_node),
        "renew_node": Method(node, RenewParams, machines.renew_node),
        "remove_node": Method(reader, NodeParams, machines.remove_node, admin=True),
        "node_list": Method(reader, NoParams, machines.node_list, audited=False),
        "trust": Method(anybody, NoParams, machines.trust, audited=False),
        "issuing_keys": Method(node, NoParams, machines.issuing_keys),
    }
