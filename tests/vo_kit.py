"""What VO tests share: a dict-backed bucket, a clock, a founded VO (once per run), and clients that log in and join."""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import json
import os
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519

from xtreemos.fabric.caller import Caller
from xtreemos.fabric.errors import KeyExists, RevisionMismatch
from xtreemos.vo import founding, tokens
from xtreemos.vo.audit import Audit
from xtreemos.vo.cda import Cda
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.model import Consent, Credentials
from xtreemos.vo.passwords import Passwords
from xtreemos.vo.registry import Registry
from xtreemos.vo.x509 import verify_x509

START = 1_800_000_000
ROOT = Caller("local", uid=0)
NOBODY = Caller("anonymous", address="192.0.2.7")


@functools.cache
def founded(vo: str = "demo") -> founding.Founding:
    return founding.found_vo(vo, START - 1000)


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class _Entry:
    key: str
    value: bytes
    revision: int


@dataclass
class DictBucket:
    """Compare-and-set over a dict; every call yields once, so that tasks race as they would over a network."""

    items: dict = field(default_factory=dict)
    revision: int = 0

    async def get(self, key):
        await asyncio.sleep(0)
        return self.items.get(key)

    def _set(self, key, value):
        self.revision += 1
        self.items[key] = _Entry(key, value, self.revision)
        return self.revision

    async def create(self, key, value, ttl_s=None):
        await asyncio.sleep(0)
        if key in self.items:
            raise KeyExists(key)
        return self._set(key, value)

    async def update(self, key, value, revision, ttl_s=None):
        await asyncio.sleep(0)
        if key not in self.items or self.items[key].revision != revision:
            raise RevisionMismatch(key, revision)
        return self._set(key, value)

    async def put(self, key, value, ttl_s=None):
        await asyncio.sleep(0)
        return self._set(key, value)

    async def delete(self, key, revision=None):
        await asyncio.sleep(0)
        if revision is not None and (key not in self.items or self.items[key].revision != revision):
            raise RevisionMismatch(key, revision)
        self.items.pop(key, None)

    async def keys(self, pattern=">"):
        await asyncio.sleep(0)
        glob = pattern.replace(">", "*")
        return sorted(key for key in self.items if fnmatch.fnmatchcase(key, glob))

    async def entries(self, pattern=">"):
        return [self.items[key] for key in await self.keys(pattern)]


@dataclass
class FakeAccount:
    """Notes what would go to the NATS servers."""

    published: list = field(default_factory=list)

    def mint(self, revocations, issued_at):
        return json.dumps({"revocations": dict(revocations), "iat": issued_at})

    async def publish(self, jwt):
        await asyncio.sleep(0)
        self.published.append(jwt)

    @property
    def revoked(self):
        return set(json.loads(self.published[-1])["revocations"]) if self.published else set()


@dataclass
class World:
    """One VO: a registry, a clock, and as many CDAs as a test wants."""

    folder: object
    vo: str = "demo"
    clock: Clock = field(default_factory=Clock)
    account: FakeAccount = field(default_factory=FakeAccount)

    def __post_init__(self):
        self.vo_bucket, self.pub = DictBucket(), DictBucket()
        self.registry = Registry(self.vo_bucket, self.pub)
        self.passwords = Passwords(memory_kib=8, time_cost=1)
        self.secrets = founded(self.vo).secrets
        self.keys = founding.IssuingKeys(self.secrets)
        self.trust = self.keys.trust
        self.audit = Audit(self.folder / "audit.jsonl")
        self.cda = self.another_cda()

    def another_cda(self, **options):
        options = {"audit": self.audit, "passwords": self.passwords, "account": self.account, **options}
        return Cda(self.registry, self.secrets, self.clock, os.urandom, endpoints=("192.0.2.1:7601",), **options)

    def audited(self):
        return [json.loads(line) for line in self.audit.path.read_text().splitlines()]

    async def member(self, user="alice", password="correct horse", roles=("member",), cda=None):
        cda = cda or self.cda
        made = await cda.call("invite", ROOT, {"user": user, "roles": list(roles)})
        token = tokens.parse_token(made["token"])
        await cda.call("accept", NOBODY, {"id": token.id, "secret": token.secret, "password": password})

    async def login_params(self, user="alice", password="correct horse", **more):
        asked = await self.cda.call("challenge", NOBODY, {"purpose": "login", "subject": user})
        keys = SessionKeys.fresh()
        return proven(keys, self.vo, asked) | {"user": user, "password": password} | more

    async def login(self, user="alice", password="correct horse", cda=None, **more):
        params = await self.login_params(user, password, **more)
        return self.credentials(await (cda or self.cda).call("login", NOBODY, params))

    def credentials(self, answer):
        return Credentials.from_bytes(answer["credentials"])

    def caller(self, credentials):
        return verify_x509(credentials.x509, self.trust, int(self.clock()))[0]

    async def join_params(self, node="n1", *, core=False, owner=None, token=None, consent_core=None):
        made = token or (await self.cda.call("resource_invite", ROOT, {"core": core}))["token"]
        parsed = tokens.parse_token(made)
        asked = await self.cda.call("challenge", NOBODY, {"purpose": "join", "subject": node})
        keys = SessionKeys.fresh()
        consent = Consent(
            vo=self.vo,
            node=node,
            core=core if consent_core is None else consent_core,
            at=int(self.clock()),
            x509_public=keys.public().x509,
        )
        signed = tokens.sign_consent(consent, owner or ed25519.Ed25519PrivateKey.generate())
        facts = {"id": parsed.id, "secret": parsed.secret, "node": node, "addresses": ["192.0.2.9"], "consent": signed}
        return proven(keys, self.vo, asked) | facts


def proven(keys, vo, asked):
    proofs = keys.prove(vo, asked["sid"], asked["challenge"])
    return {
        "challenge": asked["challenge"],
        "keys": msgspec.structs.asdict(keys.public()),
        "proofs": msgspec.structs.asdict(proofs),
    }
