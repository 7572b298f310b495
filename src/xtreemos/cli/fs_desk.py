"""Which VO `xos fs` means, and its sockets on this machine: `users.sock` for everybody; mount, OSD and MRC for root."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtreemos.cli import context
from xtreemos.errors import Unreachable, UsageError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Peer
from xtreemos.names import check_vo

CALL_S = 30.0
SOCKETS = {
    "users": "the mount process",
    "mount": "the mount process",
    "osd": "an object server (this node gives no space, or it is down)",
    "mrc": "a metadata server (they are on core nodes)",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A VO's files on this machine: the run folder with their sockets, and where they are mounted."""

    vo: str
    run: Path

    @property
    def mountpoint(self) -> Path:
        """The folder of the VO's volumes."""
        return Path("/xos") / self.vo

    @contextlib.asynccontextmanager
    async def peer(self, name: str) -> AsyncIterator[Peer]:
        """Connect to one of `SOCKETS`. Unreachable says which process is missing."""
        try:
            peer = await rpc.connect_unix(self.run / f"{name}.sock")
        except Unreachable as error:
            log = context.node_paths().log
            hint = f"see `xos status` and {log}/{'mount' if name == 'users' else name}.{self.vo}.log"
            raise Unreachable(f"{SOCKETS[name]} of VO {self.vo} does not answer on this machine", hint) from error
        try:
            yield peer
        finally:
            peer.close()

    async def ask(
        self, method: str, params: Mapping[str, Any] | None = None, *, socket: str = "users", wait_s: float = CALL_S
    ) -> Any:
        """Make one call. RemoteError carries the words and exit code of who refused."""
        async with self.peer(socket) as peer:
            return await peer.call(method, dict(params or {}), timeout_s=wait_s)


def choose(vo: str | None) -> Place:
    """Return the place of the VO that is meant: the option, the job's, the account's, the session's, or the only one here.

    Raises:
        UsageError: there are several, or none. Unreachable: this machine has no files of that VO.
    """
    folder = context.node_paths().run / "fs"
    here = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    named = vo or context.vo_option() or os.environ.get("XOS_VO") or _of_account(here) or _of_session()
    if named is None:
        if not here:
            raise Unreachable("this machine has no files of the grid", "is it a node that is up? see `xos status`")
        if len(here) > 1:
            raise UsageError(f"this machine is in several VOs: {', '.join(here)}", "say which with --vo")
        named = here[0]
    if check_vo(named) not in here:
        raise Unreachable(f"the files of VO {named} are not on this machine", "use a node of that VO; see `xos status`")
    return Place(named, folder / named)


def _of_account(here: list[str]) -> str | None:
    """The VO of a grid account (alice.demo), None for an account of the machine's own."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None
    vo = name.rpartition(".")[2]
    return vo if "." in name and vo in here else None


def _of_session() -> str | None:
    """The VO of the last log-in of this user."""
    try:
        target = os.path.basename(os.readlink(context.agent_socket()))
    except OSError:
        return None
    return target.removeprefix("agent-").removesuffix(".sock")
