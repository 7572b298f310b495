"""CDA methods of membership: invite, accept, password, list, roles, suspend, restore, remove.

An invitation works once because acceptance moves the user from `invited` to `active` by compare-and-set; the token's record is only
the proof. Removal leaves a tombstone: a name, and the uids and files that hang on it, never pass to another person.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.errors import RevisionMismatch
from xtreemos.vo.desk import Desk, Method, kinds
from xtreemos.vo.errors import AlreadyThere, BadToken, LoginRefused, NoSuchMember, NotAllowed
from xtreemos.vo.model import GROUPS_MAX, INVITE_S, USER_ROLES, PublicUser, TokenRecord, User
from xtreemos.vo.passwords import check_new
from xtreemos.vo.sessions import NoParams, Sessions
from xtreemos.vo.tokens import holds, make_token, secret_hash

_BAD_TOKEN = "this token is not valid (any more)"  # noqa: S105  # a message, not a secret


class InviteParams(msgspec.Struct, forbid_unknown_fields=True):
    """`again` makes a new token for somebody who is invited already, or who forgot the password (old sessions end)."""

    user: str
    roles: list[str] = msgspec.field(default_factory=lambda: ["member"])
    again: bool = False


class AcceptParams(msgspec.Struct, forbid_unknown_fields=True):
    """`id` and `secret` out of the token's text."""

    id: str
    secret: bytes
    password: str


class PasswordParams(msgspec.Struct, forbid_unknown_fields=True):
    """Old and new password of the caller."""

    old: str
    new: str


class UserParams(msgspec.Struct, forbid_unknown_fields=True):
    """A user by name."""

    user: str


class GroupsParams(msgspec.Struct, forbid_unknown_fields=True):
    """The groups that a user is in from now on."""

    user: str
    groups: list[str]


class RolesParams(msgspec.Struct, forbid_unknown_fields=True):
    """The roles that a user has from now on."""

    user: str
    roles: list[str]


class Members:
    """The handlers; state is in the registry."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.sessions = Sessions(desk)

    async def invite(self, caller: Caller, params: InviteParams) -> dict[str, Any]:
        """Enter a user and make the one-time token for it; answers `{user, token, expires_at}`."""
        desk, now = self.desk, self.desk.now()
        user, roles = names.check_user(params.user), check_roles(params.roles)
        if any(user in one.groups for one in await desk.registry.users.all()):
            raise AlreadyThere(f"VO {desk.vo} has a group {user}", "choose another name: a user has a group of that name, too")

        def enter(old: User | None) -> User:
            if old is None:
                return User(name=user, state="invited", roles=roles, created_at=now, invited_by=str(caller))
            if old.state == "removed":
                raise AlreadyThere(f"the name {user} belonged to somebody else", "choose another one")
            if not params.again:
                raise AlreadyThere(f"{user} is in VO {desk.vo} already", "add --again for a new token")
            return msgspec.structs.replace(old, state="invited", password="")

        await desk.registry.users.change(user, enter)
        if params.again:
            await self._tell(user)
            await self._end_all(user, str(caller))
        token = make_token("invite", vo=desk.vo, endpoints=desk.endpoints, ca=desk.keys.secrets.root_sha256, rng=desk.rng)
        record = TokenRecord(
            kind="invite",
            secret_sha256=secret_hash(token.secret),
            expires_at=now + INVITE_S,
            made_by=str(caller),
            user=user,
            roles=roles,
        )
        await desk.registry.tokens.create(token.id, record, ttl_s=INVITE_S)
        return {"user": user, "token": token.text(), "expires_at": record.expires_at}

    async def accept(self, _caller: Caller, params: AcceptParams) -> dict[str, Any]:
        """Set the password of an invited user; answers `{user, vo}`. The token works once."""
        desk = self.desk
        held = await desk.registry.tokens.get(_token_id(params.id))
        if held is None or not holds(held.record, kind="invite", secret=params.secret, now=desk.now()):
            raise BadToken(_BAD_TOKEN, "ask who invited you for a new one")
        name = held.record.user
        check_new(params.password, name)
        password = await desk.passwords.hash(params.password)
        try:
            # Consuming comes first: of two who hold the token one wins here, and an older token of the same user
            # loses below. A crash in between costs a new invitation, never a second use.
            await desk.registry.tokens.delete(params.id, held)
        except RevisionMismatch as error:
            raise BadToken(_BAD_TOKEN, "ask who invited you for a new one") from error

        def activate(old: User | None) -> User:
            if old is None or old.state != "invited":
                raise BadToken(_BAD_TOKEN, "ask who invited you for a new one")
            return msgspec.structs.replace(old, state="active", password=password)

        await desk.registry.users.change(name, activate)
        await self._tell(name)
        desk.user_attempts.succeeded(name, clear=True)
        return {"user": name, "vo": desk.vo}

    async def set_password(self, caller: Caller, params: PasswordParams) -> dict[str, Any]:
        """Change the caller's own password; every other session of the user ends. Answers `{ended}` (a count)."""
        desk, clock = self.desk, self.desk.clock()
        check_new(params.new, caller.name)
        desk.user_attempts.begin(caller.name, clock)
        held = await desk.registry.users.get(caller.name)
        if held is None or not await desk.passwords.verify(held.record.password, params.old):
            raise LoginRefused("the old password is wrong")
        desk.user_attempts.succeeded(caller.name, clear=True)
        password = await desk.passwords.hash(params.new)

        def set_it(user: User | None) -> User:
            if user is None or user.state != "active" or user.password != held.record.password:
                raise LoginRefused("the account changed meanwhile", "log in again")
            return msgspec.structs.replace(user, password=password)

        await desk.registry.users.change(caller.name, set_it)
        others = [sid for sid in await desk.registry.sessions(caller.name).names() if sid != caller.sid]
        for sid in others:
            await self.sessions.end(caller.name, sid, str(caller))
        await desk.publish_account()
        return {"ended": len(others)}

    async def members(self, _caller: Caller, _params: NoParams) -> dict[str, Any]:
        """Answer `{members: [{user, state, roles, groups}]}`, sorted by name; removed ones are left out."""
        found = [user for user in await self.desk.registry.users.all() if user.state != "removed"]
        return {
            "members": [
                {"user": user.name, "state": user.state, "roles": list(user.roles), "groups": list(user.groups)} for user in found
            ]
        }

    async def suspend(self, caller: Caller, params: UserParams) -> dict[str, Any]:
        """Stop a user at once: no log-in, no renewal, every credential void. Answers `{user, state}`."""
        if names.check_user(params.user) == caller.name:
            raise NotAllowed("you cannot suspend yourself", "another administrator can")
        return await self._set_state(caller, params.user, "suspended", revoke=True)

    async def restore(self, caller: Caller, params: UserParams) -> dict[str, Any]:
        """Let a suspended user log in again; old credentials stay void. Answers `{user, state}`."""
        return await self._set_state(caller, params.user, "active", revoke=False)

    async def remove(self, caller: Caller, params: UserParams) -> dict[str, Any]:
        """End a membership for good. Answers `{user, state}`."""
        if names.check_user(params.user) == caller.name:
            raise NotAllowed("you cannot remove yourself", "another administrator can")
        return await self._set_state(caller, params.user, "removed", revoke=True)

    async def set_roles(self, caller: Caller, params: RolesParams) -> dict[str, Any]:
        """Give a user other roles; if any is taken away, sessions end (they carry roles). Answers `{user, roles}`."""
        name, roles = names.check_user(params.user), check_roles(params.roles)
        held = await self._held(name)
        if name == caller.name and "admin" not in roles:
            raise NotAllowed("you cannot take the role admin from yourself", "another administrator can")

        def decide(user: User | None) -> User:
            return msgspec.structs.replace(user or held, roles=roles)

        await self.desk.registry.users.change(name, decide)
        if not set(held.roles) <= set(roles):
            await self._end_all(name, str(caller))
        await self._tell(name)
        return {"user": name, "roles": list(roles)}

    async def set_groups(self, _caller: Caller, params: GroupsParams) -> dict[str, Any]:
        """Put a user into these groups and no others: what they may do there is said by policies. Answers `{user, groups}`."""
        name, groups = names.check_user(params.user), check_groups(params.groups)
        held = await self._held(name)
        for group in groups:
            if await self.desk.registry.users.get(group) is not None:
                raise AlreadyThere(
                    f"VO {self.desk.vo} has, or had, a user {group}", "choose another name: a user has a group of that name, too"
                )

        def decide(user: User | None) -> User:
            return msgspec.structs.replace(user or held, groups=groups)

        await self.desk.registry.users.change(name, decide)
        await self._tell(name)
        return {"user": name, "groups": list(groups)}

    async def _held(self, name: str) -> User:
        held = await self.desk.registry.users.get(name)
        if held is None or held.record.state == "removed":
            raise NoSuchMember(f"VO {self.desk.vo} has no user {name}", "see `xos vo members`")
        return held.record

    async def _set_state(self, caller: Caller, user: str, state: Any, *, revoke: bool) -> dict[str, Any]:
        name = names.check_user(user)
        await self._held(name)

        def decide(old: User | None) -> User:
            if old is None or (old.state == "removed" and state != "removed"):
                raise NoSuchMember(f"VO {self.desk.vo} has no user {name}", "see `xos vo members`")
            if state == "active" and not old.password:
                raise NotAllowed(f"{name} has not accepted the invitation yet")
            return msgspec.structs.replace(old, state=state, password="" if state == "removed" else old.password)

        await self.desk.registry.users.change(name, decide)
        if revoke:
            await self._end_all(name, str(caller), standing=True)
        else:
            await self.desk.revoke_user(name, str(caller), standing=False)
        await self._tell(name)
        return {"user": name, "state": state}

    async def _end_all(self, name: str, who: str, *, standing: bool = False) -> None:
        """Void everything that was issued to a user up to now, in all three dialects."""
        await self.desk.revoke_user(name, who, standing=standing)
        for sid in await self.desk.registry.sessions(name).names():
            await self.sessions.end(name, sid, who)
        await self.desk.publish_account()

    async def _tell(self, name: str) -> None:
        """Make the public half follow the deciding one; looks again afterwards, since another CDA may be telling too."""
        registry = self.desk.registry
        held = await registry.users.get(name)
        while held is not None:
            user = held.record
            if user.state in {"active", "suspended"}:
                await registry.public_users.put(name, PublicUser(name=name, state=user.state, roles=user.roles, groups=user.groups))
            else:
                await registry.public_users.delete(name)
            held = await registry.users.get(name)
            if held is not None and held.record == user:
                return


def check_groups(groups: list[str]) -> tuple[str, ...]:
    """Return groups sorted and once each; a group is named like a user. Raises BadName, NotAllowed for too many."""
    if len(groups) > GROUPS_MAX:
        raise NotAllowed(f"a user is in {GROUPS_MAX} groups at most")
    return tuple(sorted({names.check_user(group) for group in groups}))


def check_roles(roles: list[str]) -> tuple[str, ...]:
    """Return roles sorted and once each; raises NotAllowed for one that a user cannot have."""
    if not roles or not set(roles) <= USER_ROLES:
        raise NotAllowed(f"roles of users are {', '.join(sorted(USER_ROLES))}")
    return tuple(sorted(set(roles)))


def _token_id(text: str) -> str:
    """A token id becomes part of a registry key, so it must be hexadecimal and nothing else."""
    if len(text) != 16 or not set(text) <= set("0123456789abcdef"):
        raise BadToken(_BAD_TOKEN, "copy the whole word that starts with xos1.")
    return text


def table(desk: Desk) -> dict[str, Method]:
    """Rows of the CDA's table."""
    members = Members(desk)
    admin, user = kinds("user", "local"), kinds("user")
    reader = kinds("user", "node", "local")
    return {
        "invite": Method(admin, InviteParams, members.invite, admin=True),
        "accept": Method(kinds("anonymous"), AcceptParams, members.accept),
        "set_password": Method(user, PasswordParams, members.set_password),
        "members": Method(reader, NoParams, members.members, audited=False),
        "suspend": Method(admin, UserParams, members.suspend, admin=True),
        "restore": Method(admin, UserParams, members.restore, admin=True),
        "remove": Method(admin, UserParams, members.remove, admin=True),
        "set_roles": Method(admin, RolesParams, members.set_roles, admin=True),
        "set_groups": Method(admin, GroupsParams, members.set_groups, admin=True),
    }
