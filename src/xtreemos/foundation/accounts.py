"""Uids of grid users and gids of their VOs' groups on this node: one per (name, VO), durable, never given twice.

A number is a local matter: the grid's file system stores VO identity. It is never reused, because files, keyrings or processes of its
former owner may still be here. A user's own group has the user's number; groups of a VO have numbers out of the same range. Only members are entered, and only by whoever decides
membership: a *lookup* of a name must never make an account (else guessing names would). SQLite, one writer per node.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xtreemos import names
from xtreemos.errors import XosError

PASSWD = Path("/etc/passwd")
GROUP = Path("/etc/group")
SCHEMA = """
CREATE TABLE IF NOT EXISTS account (
    uid  INTEGER PRIMARY KEY,  -- also the gid; rows are never deleted, so max(uid) + 1 is always fresh
    user TEXT NOT NULL,        -- name in the VO
    vo   TEXT NOT NULL,
    UNIQUE (user, vo)
) STRICT;
CREATE TABLE IF NOT EXISTS team (
    gid  INTEGER PRIMARY KEY,  -- never a uid of the other table: users' own groups have those numbers
    name TEXT NOT NULL,        -- of a group of the VO
    vo   TEXT NOT NULL,
    UNIQUE (name, vo)
) STRICT;
"""


class NameTaken(XosError):
    """A local account of this machine has that name or number, and the grid never shadows it; or a user has the name of a group."""

    fault = "environment"
    code = "name-taken"


class UidsUsedUp(XosError):
    """The whole range of uids is used up on this node."""

    fault = "environment"
    code = "uids-used-up"


@dataclass(frozen=True, slots=True)
class Account:
    """A grid user on this node."""

    user: str
    vo: str
    uid: int

    @property
    def unix_name(self) -> str:
        """Name outside sandboxes."""
        return names.unix_name(self.user, self.vo)


@dataclass(frozen=True, slots=True)
class Team:
    """A group of a VO on this node. `members`: users in it, sorted."""

    name: str
    vo: str
    gid: int
    members: tuple[str, ...]


class Accounts:
    """The node's table of numbers, in `path` (SQLite). Not for several threads."""

    def __init__(self, path: Path, *, passwd: Path = PASSWD, group: Path = GROUP) -> None:
        self._files = (passwd, group)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # an answered uid owns files at once: it must survive a power cut
        self._db.executescript(SCHEMA)

    def uid_for(self, user: str, vo: str) -> int:
        """Return the uid of a member, entering it the first time. The caller knows that it is a member.

        Raises:
            NameTaken: /etc/passwd or /etc/group has that name. UidsUsedUp: none is left. Nothing was entered.
        """
        names.check_user(user)
        names.check_vo(vo)
        found = self.find(user, vo)
        return self._enter("INSERT INTO account (uid, user, vo) VALUES (?, ?, ?)", user, vo) if found is None else found

    def gid_for(self, group: str, vo: str) -> int:
        """Return the gid of a group of a VO, entering it the first time. The caller knows that it has members.

        Raises:
            NameTaken: /etc/passwd or /etc/group has that name, or a user of the VO. UidsUsedUp: none is left. Nothing was entered.
        """
        names.check_user(group)
        names.check_vo(vo)
        if self.find(group, vo) is not None:  # the user's own group has that name
            raise NameTaken(f"group {group} has the name of a user of VO {vo}", "its administrator should choose another name")
        row = self._db.execute("SELECT gid FROM team WHERE name = ? AND vo = ?", (group, vo)).fetchone()
        return int(row[0]) if row else self._enter("INSERT INTO team (gid, name, vo) VALUES (?, ?, ?)", group, vo)

    def _enter(self, insert: str, name: str, vo: str) -> int:
        local_names, local_ids = local_accounts(*self._files)
        if names.unix_name(name, vo) in local_names:
            raise NameTaken(f"this machine has a local account {names.unix_name(name, vo)}", "its owner must rename it")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            number = self._next(local_ids)
            self._db.execute(insert, (number, name, vo))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return number

    def _next(self, local_ids: set[int]) -> int:
        (last,) = self._db.execute(
            "SELECT max(number) FROM (SELECT uid AS number FROM account UNION ALL SELECT gid FROM team)"
        ).fetchone()
        number = names.FIRST_GRID_UID if last is None else last + 1
        while number in local_ids:
            number += 1
        if number > names.LAST_GRID_UID:
            raise UidsUsedUp("no uid is left for grid users on this machine", "found the node anew on an empty machine")
        return int(number)

    def find(self, user: str, vo: str) -> int | None:
        """Return the uid of a user who was entered before, else None."""
        row = self._db.execute("SELECT uid FROM account WHERE user = ? AND vo = ?", (user, vo)).fetchone()
        return row[0] if row else None

    def by_uid(self, uid: int) -> Account | None:
        """Return whose uid this is, None if nobody's."""
        row = self._db.execute("SELECT user, vo, uid FROM account WHERE uid = ?", (uid,)).fetchone()
        return Account(*row) if row else None

    def all(self) -> list[Account]:
        """Everybody ever entered, by uid."""
        return [Account(*row) for row in self._db.execute("SELECT user, vo, uid FROM account ORDER BY uid")]

    def teams(self, vo: str) -> list[str]:
        """Names of all groups of a VO ever entered."""
        return [row[0] for row in self._db.execute("SELECT name FROM team WHERE vo = ?", (vo,))]

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def local_accounts(passwd: Path = PASSWD, group: Path = GROUP) -> tuple[set[str], set[int]]:
    """Return names and numbers of the machine's own users and groups."""
    found_names: set[str] = set()
    numbers: set[int] = set()
    for path in (passwd, group):
        if not path.exists():
            continue
        for line in path.read_text(errors="replace").splitlines():
            fields = line.split(":")
            found_names.add(fields[0])
            if len(fields) > 2 and fields[2].isdigit():
                numbers.add(int(fields[2]))
    return found_names, numbers


def write_snapshot(
    path: Path,
    accounts: Iterable[Account],
    teams: Iterable[Team] = (),
    *,
    shell: str = "/bin/bash",
    sandbox_shell: str = "/bin/bash",
) -> None:
    """Write what `userdb` answers from, replaced atomically; it notices by itself.

    Form: JSON `{"users": [{"user", "vo", "uid", "home", "sandbox_home", "shell", "sandbox_shell"}], "groups": [{"group", "vo", "gid",
    "members"}]}`.
    """
    users = [
        {
            "user": account.user,
            "vo": account.vo,
            "uid": account.uid,
            "home": f"/home/{account.unix_name}",  # never /home/NAME: that may be a local person's
            "sandbox_home": f"/home/{account.unix_name}",  # the same path inside and outside
            "shell": shell,  # what sshd starts outside of any sandbox
            "sandbox_shell": sandbox_shell,
        }
        for account in accounts
    ]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    groups = [{"group": team.name, "vo": team.vo, "gid": team.gid, "members": list(team.members)} for team in teams]
    temporary.write_text(json.dumps({"users": users, "groups": groups}))
    os.chmod(temporary, 0o644)  # names and uids are public on the machine, as /etc/passwd is
    temporary.replace(path)
