"""What userdb answers: systemd's user database calls as a function of the call and the users and groups that are known. Pure.

Source: systemd docs/USER_GROUP_API.md. Standard library only, as `userdb`, which says why.
"""

from __future__ import annotations

from typing import Any

SERVICE = "org.xtreemos.vo"
_ERROR = "io.systemd.UserDatabase."
Reply = dict[str, Any]


def error(name: str, **parameters: Any) -> Reply:
    """A varlink error reply."""
    return {"error": name if "." in name else _ERROR + name, "parameters": parameters}


class Directory:
    """The users and groups that one socket answers for; pure. `vo` None: all of the machine, by Unix names."""

    def __init__(
        self,
        users: list[dict[str, Any]],
        vo: str | None,
        local_names: frozenset[str],
        groups: list[dict[str, Any]] | tuple[()] = (),
    ) -> None:
        self.vo = vo
        self.local_names = local_names
        self.by_name: dict[str, dict[str, Any]] = {}
        self.by_uid: dict[int, dict[str, Any]] = {}
        self._enter_users(users)
        self.groups = {name: {"name": name, "uid": user["uid"]} for name, user in self.by_name.items()}  # everybody's own
        self.members: dict[str, list[str]] = {}
        self._enter_groups(groups, {(user["user"], user["vo"]): user["uid"] for user in users})
        self.by_gid = {group["uid"]: group for group in self.groups.values()}

    def _shown(self, name: str, vo: str) -> str | None:
        """Return under which name something of a VO is shown here; None if it cannot be."""
        if self.vo is not None and vo != self.vo:
            return None
        shown = f"{name}.{vo}" if self.vo is None or name in self.local_names else name
        return None if shown in self.local_names else shown  # /etc/passwd always wins: the protocol itself detects no collisions

    def _enter_groups(self, groups: list[dict[str, Any]] | tuple[()], uids: dict[tuple[str, str], int]) -> None:
        for group in groups:
            name = self._shown(group["group"], group["vo"])
            if name is None or name in self.groups:
                continue
            self.groups[name] = {"name": name, "uid": group["gid"]}
            found = [self.by_uid.get(uids.get((user, group["vo"]), -1)) for user in group["members"]]
            self.members[name] = [user["name"] for user in found if user is not None]

    def _enter_users(self, users: list[dict[str, Any]]) -> None:
        vo = self.vo
        for user in users:
            unix_name = f"{user['user']}.{user['vo']}"
            name = self._shown(user["user"], user["vo"])
            if name is None:
                continue
            home = user["home"] if vo is None else user["sandbox_home"]
            shell = user["shell"] if vo is None else user.get("sandbox_shell", user["shell"])
            record = {"name": name, "uid": user["uid"], "home": home, "shell": shell, "real": unix_name}
            self.by_name[name] = self.by_uid[user["uid"]] = record

    def answer(self, call: Any, *, privileged: bool) -> list[Reply]:
        """Answer one call; `privileged` for a peer of uid 0."""
        method = call.get("method") if isinstance(call, dict) else None
        parameters = call.get("parameters") or {} if isinstance(call, dict) else {}
        if not isinstance(method, str) or not isinstance(parameters, dict):
            return [error("org.varlink.service.InvalidParameter", parameter="method")]
        if method == "org.varlink.service.GetInfo":
            info = {"vendor": "XtreemOS", "product": "userdb", "version": "1", "url": "", "interfaces": ["io.systemd.UserDatabase"]}
            return [{"parameters": info}]
        if method not in {_ERROR + name for name in ("GetUserRecord", "GetGroupRecord", "GetMemberships")}:
            return [error("org.varlink.service.MethodNotFound", method=method)]
        if parameters.get("service") != SERVICE:
            return [error("BadService")]
        if method.endswith("GetMemberships"):
            return self._memberships(parameters)
        return [self._record(parameters, "user" if method.endswith("GetUserRecord") else "group", privileged=privileged)]

    def _record(self, parameters: dict[str, Any], kind: str, *, privileged: bool) -> Reply:
        name_key, id_key = ("userName", "uid") if kind == "user" else ("groupName", "gid")
        name, number = parameters.get(name_key), parameters.get(id_key)
        if name is None and number is None:
            return error("EnumerationNotSupported")
        if name is not None and not isinstance(name, str):
            return error("org.varlink.service.InvalidParameter", parameter=name_key)
        if number is not None and (not _is_int(number)):
            return error("org.varlink.service.InvalidParameter", parameter=id_key)
        names, numbers = (self.by_name, self.by_uid) if kind == "user" else (self.groups, self.by_gid)
        by_name = names.get(name) if name is not None else None
        by_id = numbers.get(number) if number is not None else None
        found = by_name or by_id
        if found is None:
            return error("NoRecordFound")
        if name is not None and number is not None and by_name is not by_id:
            return error("ConflictingRecordFound")
        if not _passes(parameters, kind, found["uid"]):
            return error("NonMatchingRecordFound")
        return _user_reply(found, privileged=privileged) if kind == "user" else _group_reply(found)

    def _memberships(self, parameters: dict[str, Any]) -> list[Reply]:
        """Tell who is in which group of a VO, a reply for each; that users are in their own groups is not told as a membership."""
        user, group = parameters.get("userName"), parameters.get("groupName")
        if user is None and group is None:
            return [error("EnumerationNotSupported")]
        rows = [
            {"userName": member, "groupName": name}
            for name, members in self.members.items() if group in (None, name)
            for member in members if user in (None, member)
        ]  # fmt: skip
        if not rows:
            return [error("NoRecordFound")]
        return [{"parameters": row, **({"continues": True} if at < len(rows) else {})} for at, row in enumerate(rows, 1)]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _passes(parameters: dict[str, Any], kind: str, number: int) -> bool:
    """Apply the caller's filters; a filter of a wrong type matches nothing."""
    low, high = ("uidMin", "uidMax") if kind == "user" else ("gidMin", "gidMax")
    least, most, mask = parameters.get(low), parameters.get(high), parameters.get("dispositionMask")
    return (
        (least is None or (_is_int(least) and least <= number))
        and (most is None or (_is_int(most) and number <= most))
        and (mask is None or (isinstance(mask, list) and "dynamic" in mask))
    )


def _user_reply(found: dict[str, Any], *, privileged: bool) -> Reply:
    record: dict[str, Any] = {
        "userName": found["name"],
        "uid": found["uid"],
        "gid": found["uid"],
        "realName": found["real"],
        "homeDirectory": found["home"],
        "shell": found["shell"],
        "disposition": "dynamic",
        "service": SERVICE,  # mandatory: glibc's module refuses records without it
    }
    if privileged:  # without it shadow reads `!*` and sshd says that the account is locked
        record["privileged"] = {"hashedPassword": ["*"]}
    return {"parameters": {"record": record, "incomplete": not privileged}}


def _group_reply(found: dict[str, Any]) -> Reply:
    record = {"groupName": found["name"], "gid": found["uid"], "disposition": "dynamic", "service": SERVICE}
    return {"parameters": {"record": record, "incomplete": False}}
