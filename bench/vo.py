"""Figures of the VO room on this machine: credential issue, log-ins beside the password hash, verification, policy, lookups.

    .venv/bin/python bench/vo.py

Log-ins run the whole CDA method (proofs, registry in memory, durable audit), with the argon2 cost turned down to almost nothing;
the hash with production parameters is told apart. One core, process time for the core figure and wall time beside it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from xtreemos.fabric.caller import Caller
from xtreemos.testing.kv import MemoryBucket
from xtreemos.vo import founding, ssh, tokens, x509
from xtreemos.vo.audit import Audit
from xtreemos.vo.cda import Cda
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.model import Session
from xtreemos.vo.passwords import Passwords
from xtreemos.vo.policy import Policies, Request, decide
from xtreemos.vo.registry import Registry

NOBODY = Caller("anonymous")
LOGINS = 1000
WAVE = 50


def rate(name: str, work: Callable[[], object], seconds: float = 1.0) -> None:
    """Run `work` for about `seconds` and print how often a second of process time allows."""
    count, cpu, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        work()
        count += 1
    print(f"{name:<44} {count / (time.process_time() - cpu):>10.0f} /s/core")


async def logins(folder: Path, secrets: founding.VoSecrets) -> None:
    passwords = Passwords(memory_kib=8, time_cost=1)
    audit = Audit(folder / "audit")
    vo, pub = MemoryBucket("vo"), MemoryBucket("pub")
    for bucket in (vo, pub):
        bucket.expire = lambda: None  # type: ignore[method-assign]  # it looks at every key each time: not ours to measure
    cda = Cda(Registry(vo, pub), secrets, time.time, os.urandom, audit=audit, passwords=passwords)
    users = [f"user{number}" for number in range(WAVE)]
    for user in users:
        token = tokens.parse_token((await cda.call("invite", Caller("local", uid=0), {"user": user}))["token"])
        await cda.call("accept", NOBODY, {"id": token.id, "secret": token.secret, "password": "correct horse"})
    ready = []
    for number in range(LOGINS):
        user = users[number % WAVE]
        asked = await cda.call("challenge", NOBODY, {"purpose": "login", "subject": user})
        keys = SessionKeys.fresh()
        proofs = keys.prove("demo", asked["sid"], asked["challenge"])
        ready.append(
            {
                "user": user,
                "password": "correct horse",
                "challenge": asked["challenge"],
                "keys": msgspec.structs.asdict(keys.public()),
                "proofs": msgspec.structs.asdict(proofs),
            }
        )
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, LOGINS, WAVE):
        await asyncio.gather(*(cda.call("login", NOBODY, params) for params in ready[start : start + WAVE]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{'log-ins beside the hash, audit durable':<44} {LOGINS / cpu:>10.0f} /s/core  ({LOGINS / wall:.0f} /s wall)")
    passwords.close()
    audit.close()


def main() -> None:
    now = int(time.time())
    vo = founding.found_vo("demo", now)
    keys = founding.IssuingKeys(vo.secrets)
    issuer, session_keys = Issuer(keys), SessionKeys.fresh()
    public = session_keys.public()
    session = Session(sid="a" * 32, user="alice", created_at=now, ends_at=now + 9, expires_at=now + 999, roles=("member",))
    got = issuer.issue_user(session, public, serial=1, now=now)
    rate("three fresh keys and their proofs (client)", lambda: SessionKeys.fresh().prove("demo", "a" * 32, "x"))
    rate("issue of all three credentials", lambda: issuer.issue_user(session, public, serial=1, now=now))
    rate("strict check, X.509", lambda: x509.verify_x509(got.x509, keys.trust, now))
    rate("strict check, SSH", lambda: ssh.verify_ssh_user(got.ssh, keys.trust, now))
    sets = (Policies("user"), Policies("vo", ROLES), Policies("site", HOURS))
    request = Request(user="alice", vo="demo", action="run", node="n1", hour=12)
    rate("three-sided decision, 3 small sets", lambda: decide(request, *sets))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(logins(Path(folder), vo.secrets))
    passwords = Passwords()
    stored = asyncio.run(passwords.hash("correct horse"))
    rate("argon2id, production parameters", lambda: asyncio.run(passwords.verify(stored, "correct horse")))
    passwords.close()


ROLES = 'permit (principal, action, resource) when { principal.roles.contains("member") };'
HOURS = "forbid (principal, action, resource) when { context.hour < 6 };"

if __name__ == "__main__":
    main()
