"""Unix accounts of the VO's members on this node, and its groups: numbers from the store, names for NSS through the userdb process.

No file lists users: xosd writes a snapshot for userdb whenever membership changed, and userdb answers from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xtreemos.foundation.accounts import Account, Accounts, NameTaken, Team, write_snapshot
from xtreemos.foundation.paths import NodePaths
from xtreemos.node.sshd import front_path

if TYPE_CHECKING:
    from xtreemos.node.vo_runtime import VoRuntime
    from xtreemos.vo.model import PublicUser

log = logging.getLogger(__name__)


class Guests:
    """Keeps the snapshot in step with the VOs."""

    def __init__(self, paths: NodePaths, accounts: Accounts) -> None:
        self._paths = paths
        self._accounts = accounts
        self._written: tuple[tuple[Account, ...], tuple[Team, ...]] | None = None

    def add_vo(self, vo: str) -> None:
        """Make the folder that sandboxes of this VO see as their userdb."""
        (self._paths.userdb / vo).mkdir(parents=True, exist_ok=True)

    def update(self, vos: Mapping[str, VoRuntime]) -> None:
        """Enter new members and groups, and write the snapshot if anything changed."""
        members: list[Account] = []
        teams: list[Team] = []
        for vo, runtime in sorted(vos.items()):
            for user in sorted(runtime.users):
                try:
                    members.append(Account(user, vo, self._accounts.uid_for(user, vo)))
                except NameTaken as error:
                    log.warning("%s@%s has no account here: %s", user, vo, error)
            teams += self._teams(vo, runtime.users)
        found = tuple(members), tuple(teams)
        if found != self._written:
            front = front_path(self._paths)
            write_snapshot(self._paths.snapshot, *found, shell=str(front))
            self._written = found

    def _teams(self, vo: str, users: Mapping[str, PublicUser]) -> list[Team]:
        members: dict[str, list[str]] = {
            group: [] for group in self._accounts.teams(vo)
        }  # files of a group that is empty keep its name
        for user, record in sorted(users.items()):
            for group in record.groups:
                members.setdefault(group, []).append(user)
        found = []
        for group in sorted(members):
            try:
                found.append(Team(group, vo, self._accounts.gid_for(group, vo), tuple(members[group])))
            except NameTaken as error:
                log.warning("group %s of VO %s has no number here: %s", group, vo, error)
        return found

    def gids(self, user: str, vo: str) -> tuple[int, ...]:
        """Return the numbers of a user's groups, beside their own: what their programs are in from the start on."""
        _accounts, teams = self._written or ((), ())
        return tuple(team.gid for team in teams if team.vo == vo and user in team.members)
