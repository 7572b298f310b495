"""The public file of a grid: what a client needs to log in. No secret is in it.

Per VO: the fingerprint of its root, its signed document, and where core nodes are.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from xtreemos.errors import NotFound, UsageError
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import RPC_PORT
from xtreemos.names import check_vo
from xtreemos.vo.document import Trust, open_document


class NoGrid(NotFound):
    """This folder holds no grid; the text says how to get one."""

    code = "no-grid"


class VoEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One VO as clients see it: endpoints are `host:port` of core nodes' RPC, `fabric` of their NATS servers."""

    vo: str
    root_sha256: bytes
    document: bytes
    endpoints: list[str]
    fabric: list[str]
    grid: str

    def trust(self) -> Trust:
        """Return the VO as verifiers see it (checked against the fingerprint)."""
        return open_document(self.document, root_sha256=self.root_sha256, vo=self.vo)


class GridFile(msgspec.Struct, frozen=True, kw_only=True):
    """The public file. `node` is this machine's own node name, if it is one."""

    vos: dict[str, VoEntry] = {}
    node: str = ""
    default_vo: str = ""

    def entry(self, vo: str) -> VoEntry:
        """Return a VO's entry; raises NoGrid if it is not known here."""
        if vo not in self.vos:
            known = ", ".join(sorted(self.vos)) or "none"
            raise NoGrid(f"VO {vo} is not known on this machine (known: {known})", "accept an invitation: xos vo accept TOKEN")
        return self.vos[vo]


def load_grid(directory: Path) -> GridFile:
    """Read `grid.json`; raises NoGrid if there is none, UsageError if it is damaged."""
    path = directory / "grid.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=GridFile)
    except FileNotFoundError:
        raise NoGrid(
            f"there is no grid in {directory}", "found one with `xos up`, or accept an invitation: xos vo accept TOKEN"
        ) from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}", "move it away and accept the invitation again") from error


def save_grid(directory: Path, grid: GridFile) -> None:
    """Write `grid.json`, readable by everybody."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "grid.json", msgspec.json.format(msgspec.json.encode(grid), indent=1), 0o644)


def with_entry(grid: GridFile, entry: VoEntry) -> GridFile:
    """Return `grid` with one VO added or renewed; the first one becomes the default."""
    check_vo(entry.vo)
    vos = {**grid.vos, entry.vo: entry}
    return msgspec.structs.replace(grid, vos=vos, default_vo=grid.default_vo or entry.vo)


def split_endpoint(endpoint: str, default_port: int = RPC_PORT) -> tuple[str, int]:
    """Split `host:port` (port may be missing)."""
    host, colon, port = endpoint.rpartition(":")
    if not colon:
        return endpoint, default_port
    if not port.isdigit():
        raise UsageError(f"{endpoint!r} is no HOST:PORT")
    return host.strip("[]"), int(port)
