"""Where a node and a user's session keep their files. The only place that joins these paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIR = Path("/var/lib/xtreemos")
RPC_PORT = 7601
NATS_PORT = 7602
ROUTE_PORT = 7603
SSHD_PORT = 7622


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Paths of one node whose folder is `dir`."""

    dir: Path

    @property
    def grid_json(self) -> Path:
        """Public facts of the grid, 0644."""
        return self.dir / "grid.json"

    @property
    def private(self) -> Path:
        """Keys and state, 0700."""
        return self.dir / "node"

    @property
    def run(self) -> Path:
        """Sockets and process ids; gone after a reboot on the default folder."""
        return Path("/run/xtreemos") if self.dir == DEFAULT_DIR else self.dir / "run"

    @property
    def log(self) -> Path:
        """One log file per process."""
        return Path("/var/log/xtreemos") if self.dir == DEFAULT_DIR else self.dir / "log"

    @property
    def jobd_socket(self) -> Path:
        """Where jobd listens, for uid 0 only."""
        return self.run / "jobd.sock"

    @property
    def admin_socket(self) -> Path:
        """Where xosd listens for commands of this machine."""
        return self.run / "xosd.sock"

    @property
    def guests_socket(self) -> Path:
        """Where xosd takes descriptors from agents of this machine; anybody may connect."""
        return self.run / "guests.sock"

    @property
    def jobs(self) -> Path:
        """One folder per job attempt: bundle, spool, init's FIFO."""
        return self.private / "jobs"

    @property
    def userdb(self) -> Path:
        """One folder per VO with the socket that its sandboxes ask for names."""
        return self.run / "userdb"

    @property
    def snapshot(self) -> Path:
        """The members that userdb answers for."""
        return self.run / "userdb.json"

    @property
    def services(self) -> Path:
        """What the supervisor keeps running."""
        return self.private / "services.json"

    @property
    def fabric(self) -> Path:
        """Configuration, certificates and data of the NATS server (core nodes)."""
        return self.private / "fabric"


def find_grid_dir(option: str | None = None) -> Path:
    """Tell which folder holds the grid's facts: option, XOS_GRID, the user's own, the machine's."""
    if option:
        return Path(option)
    if os.environ.get("XOS_GRID"):
        return Path(os.environ["XOS_GRID"])
    own = Path(os.environ.get("HOME", "/")) / ".config" / "xtreemos"
    try:
        return own if (own / "grid.json").exists() else DEFAULT_DIR
    except OSError:  # the home cannot be looked into: it may be the grid's own, not reachable before the log-in
        return DEFAULT_DIR


def agent_dir() -> Path:
    """Folder of the session agent's sockets for the calling user; the caller checks owner and mode."""
    if os.environ.get("XOS_AGENT_DIR"):
        return Path(os.environ["XOS_AGENT_DIR"])
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "xtreemos"
    return Path(f"/tmp/xtreemos-{os.getuid()}")  # noqa: S108  # per-uid, 0700, owner checked by whoever opens it
