"""CDA methods of a session's life: challenge, log-in, renewal, log-out, revocation.

Races that matter, and why they end well:
- Replay, or one challenge at two CDAs: a log-in *creates* `session.USER.SID` and the sid stands in the challenge; one of two fails.
  A renewal names the generation it replaces, and the session is changed by compare-and-set.
- Suspension during a log-in: suspending writes the user's state first and then revokes every session it finds. A log-in creates its
  session first and then reads the user again. Whichever came first, one of them sees the other.
- Revocation during a renewal: revoking writes the revocation first, then removes the session by compare-and-set; if a renewal came
  between, the revocation is widened by what that renewal issued.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.errors import KeyExists, RevisionMismatch
from xtreemos.vo import pop
from xtreemos.vo.credentials import check_proofs
from xtreemos.vo.desk import Desk, Method, add_issue, kinds
from xtreemos.vo.errors import Busy, LoginRefused, NoSuchMember, NotAllowed, Replayed, Revoked
from xtreemos.vo.model import (
    CHALLENGE_S,
    CREDENTIAL_S_MAX,
    SESSION_S_MAX,
    Credentials,
    Issue,
    Proofs,
    PublicKeys,
    Session,
    User,
)
from xtreemos.vo.registry import Held
from xtreemos.vo.revocation import sid_key

_WRONG: Final = "user name or password is wrong"


class NoParams(msgspec.Struct, forbid_unknown_fields=True):
    """Takes nothing."""


class ChallengeParams(msgspec.Struct, forbid_unknown_fields=True):
    """`subject` is the user (login) or node name (join); renewals know it from the caller."""

    purpose: pop.Purpose
    subject: str = ""


class LoginParams(msgspec.Struct, forbid_unknown_fields=True):
    """`keys` and `proofs` as `SessionKeys.public()` and `.prove()`; `roles` narrows the session (None: all of the user's)."""

    user: str
    password: str
    challenge: str
    keys: PublicKeys
    proofs: Proofs
    roles: list[str] | None = None
    life_s: int = CREDENTIAL_S_MAX


class RenewParams(msgspec.Struct, forbid_unknown_fields=True):
    """Fresh keys, proven; the old session is proven by the connection."""

    challenge: str
    keys: PublicKeys
    proofs: Proofs


class SidParams(msgspec.Struct, forbid_unknown_fields=True):
    """A session by its id."""

    sid: str


class Sessions:
    """The handlers; state is in the registry."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def challenge(self, caller: Caller, params: ChallengeParams) -> dict[str, Any]:
        """Answer `{challenge, sid, vo, expires_at}` for one later call of `purpose`."""
        subject, sid, generation = await self._challenge_facts(caller, params)
        now = self.desk.now()
        challenge = pop.Challenge(
            purpose=params.purpose,
            vo=self.desk.vo,
            subject=subject,
            sid=sid,
            generation=generation,
            expires_at=now + CHALLENGE_S,
            nonce=self.desk.rng(16),
        )
        text = challenge.seal(self.desk.keys.secrets.challenge_key)
        return {"challenge": text, "sid": sid, "vo": self.desk.vo, "expires_at": challenge.expires_at}

    async def _challenge_facts(self, caller: Caller, params: ChallengeParams) -> tuple[str, str, int]:
        """Subject, session id and generation that a challenge is bound to."""
        if params.purpose == "login":
            return names.check_user(params.subject), self.desk.rng(16).hex(), 0
        if params.purpose == "join":
            return names.check_node(params.subject), self.desk.rng(16).hex(), 0
        if params.purpose == "renew" and caller.kind == "user":
            held = await self._own_session(caller)
            return caller.name, caller.sid, held.record.generation
        if params.purpose == "renew-node" and caller.kind == "node":
            node = await self.desk.registry.nodes.get(caller.name)
            if node is None:
                raise Revoked("this node is no longer in the VO")
            return caller.name, node.record.sid, node.record.generation
        raise NotAllowed(f"{caller} has nothing to renew", "log in first: `xos login USER@VO`")

    async def login(self, caller: Caller, params: LoginParams) -> dict[str, Any]:
        """Open a session; answers `{credentials, document}`."""
        desk, now = self.desk, self.desk.now()
        names.check_user(params.user)
        challenge = pop.open_challenge(
            params.challenge,
            desk.keys.secrets.challenge_key,
            purpose="login",
            vo=desk.vo,
            subject=params.user,
            now=now,
        )
        check_proofs(params.keys, params.proofs, vo=desk.vo, sid=challenge.sid, challenge=params.challenge)
        user = await self._authenticate(caller, params)
        session = self._new_session(user, challenge.sid, params, now)
        serial = desk.serial()
        session = _issued(session, serial, params.keys.nats, now)
        shelf = desk.registry.sessions(user.name)
        try:
            await shelf.create(session.sid, session, ttl_s=session.ends_at - now)
        except KeyExists as error:
            raise Replayed("challenge was used before", hint="try again") from error
        if await desk.registry.is_session_revoked(session.sid):  # the same message, sent again after the log-out
            await self.end(user.name, session.sid, str(caller))
            raise Replayed("challenge was used before", hint="try again")
        again = await desk.registry.users.get(user.name)
        if again is None or again.record.state != "active" or again.record.password != user.password:
            await self.end(user.name, session.sid, str(caller))
            raise LoginRefused(_WRONG)
        return self._answer(desk.issuer.issue_user(session, params.keys, serial=serial, now=now))

    def _answer(self, credentials: Credentials) -> dict[str, Any]:
        return {"credentials": credentials.to_bytes(), "document": self.desk.keys.secrets.document}

    def _new_session(self, user: User, sid: str, params: LoginParams, now: int) -> Session:
        roles = tuple(sorted(user.roles if params.roles is None else {*params.roles}))
        if not roles or not set(roles) <= set(user.roles):
            raise NotAllowed(
                f"{user.name} does not have the roles {', '.join(roles)}", "leave the role away, or ask an administrator"
            )
        life_s = max(60, min(params.life_s, CREDENTIAL_S_MAX))
        return Session(sid=sid, user=user.name, created_at=now, ends_at=now + SESSION_S_MAX, expires_at=now + life_s, roles=roles)

    async def _authenticate(self, caller: Caller, params: LoginParams) -> User:
        """Check the password; the work is the same whether the user exists or not."""
        desk, clock = self.desk, self.desk.clock()
        desk.user_attempts.begin(params.user, clock)
        if caller.address:
            desk.address_attempts.begin(caller.address, clock)
        held = await desk.registry.users.get(params.user)
        user = held.record if held else User(name=params.user, state="invited")
        good = await self._verify(params, caller, user.password)
        if not good or user.state in ("invited", "removed"):
            raise LoginRefused(_WRONG, "or you were not invited; passwords are set by `xos vo accept`")
        desk.user_attempts.succeeded(params.user, clear=True)
        desk.address_attempts.succeeded(caller.address, clear=False)
        if user.state == "suspended":
            raise LoginRefused(f"{user.name} is suspended in VO {desk.vo}", "ask an administrator of the VO")
        return user

    async def _verify(self, params: LoginParams, caller: Caller, stored: str) -> bool:
        try:
            return await self.desk.passwords.verify(stored, params.password)
        except Busy:  # nothing was checked, so nothing counts
            self.desk.user_attempts.succeeded(params.user, clear=False)
            self.desk.address_attempts.succeeded(caller.address, clear=False)
            raise

    async def renew(self, caller: Caller, params: RenewParams) -> dict[str, Any]:
        """Give the session new credentials on new keys, without password; answers as `login`."""
        desk, now = self.desk, self.desk.now()
        key = desk.keys.secrets.challenge_key
        challenge = pop.open_challenge(params.challenge, key, purpose="renew", vo=desk.vo, subject=caller.name, now=now)
        if challenge.sid != caller.sid:
            raise Replayed("challenge is of another session")
        check_proofs(params.keys, params.proofs, vo=desk.vo, sid=challenge.sid, challenge=params.challenge)
        held = await self._own_session(caller)
        if held.record.generation != challenge.generation:
            raise Replayed("challenge was used before", hint="try again")
        user = await desk.registry.users.get(caller.name)
        if user is None or user.record.state != "active":
            raise Revoked(f"{caller.name} is no longer an active member", hint="ask an administrator of the VO")
        session, serial = self._renewed(held.record, user.record, now), desk.serial()
        session = _issued(session, serial, params.keys.nats, now)
        try:
            await desk.registry.sessions(caller.name).replace(caller.sid, held, session, ttl_s=session.ends_at - now)
        except RevisionMismatch as error:
            raise Replayed("session changed meanwhile", hint="try again") from error
        return self._answer(desk.issuer.issue_user(session, params.keys, serial=serial, now=now))

    def _renewed(self, session: Session, user: User, now: int) -> Session:
        """The next generation, as long as the one before lived; roles only shrink within a session."""
        roles = tuple(sorted(set(session.roles) & set(user.roles)))
        if not roles:
            raise Revoked("none of the session's roles is left")
        return msgspec.structs.replace(
            session, expires_at=min(now + CREDENTIAL_S_MAX, session.ends_at), generation=session.generation + 1, roles=roles
        )

    async def _own_session(self, caller: Caller) -> Held[Session]:
        held = await self.desk.registry.sessions(caller.name).get(caller.sid)
        if held is None or self.desk.now() >= held.record.ends_at:
            raise Revoked("the session is over")
        if await self.desk.registry.is_revoked(caller.sid, caller.name, held.record.created_at):
            raise Revoked("the session was revoked")
        return held

    async def end(self, user: str, sid: str, who: str) -> None:
        """Revoke one session and remove it. Repeating it is harmless."""
        shelf, key = self.desk.registry.sessions(user), sid_key(sid)
        while True:
            held = await shelf.get(sid)
            await self.desk.revoke(key, held.record.issues if held else (), who)
            if held is None:
                break
            try:
                await shelf.delete(sid, held)
            except RevisionMismatch:
                continue
            break

    async def logout(self, caller: Caller, _params: NoParams) -> dict[str, Any]:
        """End the caller's own session everywhere; answers `{sid}`."""
        await self.end(caller.name, caller.sid, str(caller))
        await self.desk.publish_account()
        return {"sid": caller.sid}

    async def whoami(self, caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{vo, user, sid, roles, created_at, expires_at, ends_at}` of the caller's session."""
        session = (await self._own_session(caller)).record
        return {
            "vo": self.desk.vo,
            "user": session.user,
            "sid": session.sid,
            "roles": list(session.roles),
            "created_at": session.created_at,
            "expires_at": session.expires_at,
            "ends_at": session.ends_at,
        }

    async def sessions(self, caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{sessions: [{sid, created_at, expires_at, ends_at, roles}]}` of the calling user."""
        found = await self.desk.registry.sessions(caller.name).all()
        fields = ("sid", "created_at", "expires_at", "ends_at", "roles")
        return {"sessions": [{name: getattr(session, name) for name in fields} for session in found]}

    async def revoke_session(self, caller: Caller, params: SidParams) -> dict[str, Any]:
        """End a session: one's own, or as administrator anybody's."""
        owner = await self.desk.registry.session_owner(params.sid)
        may_any = caller.kind == "local" or caller.has_role("admin")
        if owner is None or (owner != caller.name and not may_any):
            raise NoSuchMember(f"you have no session {params.sid}", "see `xos whoami`")
        await self.end(owner, params.sid, str(caller))
        await self.desk.publish_account()
        return {"sid": params.sid, "user": owner}


def _issued(session: Session, serial: int, nats_key: str, now: int) -> Session:
    issue = Issue(serial=serial, nats_key=nats_key, expires_at=session.expires_at)
    return msgspec.structs.replace(session, issues=add_issue(session.issues, issue, now))


def table(desk: Desk) -> dict[str, Method]:
    """Rows of the CDA's table."""
    sessions = Sessions(desk)
    anybody, user = kinds("anonymous"), kinds("user")
    return {
        "challenge": Method(anybody, ChallengeParams, sessions.challenge, audited=False),
        "login": Method(anybody, LoginParams, sessions.login),
        "renew": Method(user, RenewParams, sessions.renew),
        "logout": Method(user, NoParams, sessions.logout),
        "whoami": Method(user, NoParams, sessions.whoami, audited=False),
        "sessions": Method(user, NoParams, sessions.sessions, audited=False),
        "revoke_session": Method(kinds("user", "local"), SidParams, sessions.revoke_session),
    }
