"""Unix accounts of the VO's members on this node: uids from the store, names for NSS through the userdb process.

No file lists users: xosd writes a snapshot for userdb whenever membership changed, and userdb answers from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xtreemos.foundation.accounts import Account, Accounts, NameTaken, write_snapshot
from xtreemos.foundation.paths import NodePaths
from xtreemos.node.sshd import front_path

if TYPE_CHECKING:
    from xtreemos.node.vo_runtime import VoRuntime

log = logging.getLogger(__name__)


class Guests:
    """Keeps the snapshot in step with the VOs."""

    def __init__(self, paths: NodePaths, accounts: Accounts) -> None:
        self._paths = paths
        self._accounts = accounts
        self._written: tuple[Account, ...] | None = None

    def add_vo(self, vo: str) -> None:
        """Make the folder that sandboxes of this VO see as their userdb."""
        (self._paths.userdb / vo).mkdir(parents=True, exist_ok=True)

    def update(self, vos: Mapping[str, VoRuntime]) -> None:
        """Enter new members and write the snapshot if anything changed."""
        members: list[Account] = []
        for vo, runtime in sorted(vos.items()):
            for user in sorted(runtime.users):
                try:
                    members.append(Account(user, vo, self._accounts.uid_for(user, vo)))
                except NameTaken as error:
                    log.warning("%s@%s has no account here: %s", user, vo, error)
        found = tuple(members)
        if found != self._written:
            front = front_path(self._paths)
            write_snapshot(self._paths.snapshot, found, shell=str(front))
            self._written = found
