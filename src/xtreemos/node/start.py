"""What `xos up`, `down`, `join` and `vo accept` do on this machine, as root and outside the daemons: files, and the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from xtreemos.errors import TryLater, Unreachable, UsageError, XosError
from xtreemos.fabric import jwt, rpc
from xtreemos.fabric.natsserver import SLACK_US, ServerConfig, TlsFiles, argv, write_config
from xtreemos.fabric.nkeys import KeyPair
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.jobd.launch import command as jobd_command
from xtreemos.foundation.paths import NATS_PORT, ROUTE_PORT, NodePaths
from xtreemos.names import check_node, check_vo
from xtreemos.node import files, homes, mounts, supervise
from xtreemos.node.config import NodeConfig, load_node, save_node
from xtreemos.node.joining import owner_key
from xtreemos.node.sshd import hang_up_all
from xtreemos.node.vo_runtime import operator_jwt, save_credential
from xtreemos.vo.audit import verify_file
from xtreemos.vo.client import CdaClient, Issued, fetch_trust
from xtreemos.vo.document import Trust
from xtreemos.vo.founding import GridSecrets, VoSecrets, found_grid, issue_server, load_grid, new_server_key, save
from xtreemos.vo.grid import GridFile, VoEntry, save_grid, with_entry
from xtreemos.vo.grid import load_grid as load_grid_file
from xtreemos.vo.tokens import Token, parse_token, sign_consent

READY_S = 60.0
DOWN_S = 30.0
END_S = 10.0
_POLL_S = 0.02
USERDB_DIR = Path("/run/systemd/userdb")
USERDB_SERVICE = "org.xtreemos.vo"


def is_node(paths: NodePaths) -> bool:
    """Tell whether this machine is a node already."""
    return (paths.private / "node.json").exists()


def found(paths: NodePaths, name: str, address: str, grid_name: str) -> None:
    """Make this machine the first core node of a new grid."""
    check_node(name)
    check_vo(grid_name)
    grid = found_grid(grid_name, int(time.time()))
    save(paths.private, grid)
    key, pem = new_server_key()
    certificate = issue_server(grid, key.public_key(), node=name, addresses=(address,), now=int(time.time()))
    _write_fabric_files(paths, grid, certificate, pem)
    save_node(paths, NodeConfig(name=name, address=address, grid=grid_name, core=True, founder=True, created_at=time.time()))
    save_grid(paths.dir, GridFile(node=name))


def _write_fabric_files(paths: NodePaths, grid: GridSecrets, certificate: bytes, key: bytes) -> None:
    paths.fabric.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(paths.fabric / "ca.pem", grid.fabric_ca_pem.encode())
    write_atomically(paths.fabric / "cert.pem", certificate)
    write_atomically(paths.fabric / "key.pem", key)


def server_config(paths: NodePaths, config: NodeConfig, grid: GridSecrets) -> ServerConfig:
    """Describe this node's NATS server."""
    now = int(config.created_at)
    signing = KeyPair.from_seed(grid.signing_seed)
    system = jwt.mint_account(signing, account=grid.system_account_public, name="SYS", now=now)
    return ServerConfig(
        name=config.name,
        folder=paths.fabric,
        tls=TlsFiles(paths.fabric / "ca.pem", paths.fabric / "cert.pem", paths.fabric / "key.pem"),
        operator_jwt=operator_jwt(grid, now),
        system_account=grid.system_account_public,
        accounts={grid.system_account_public: system},
        host=config.address,
        client_port=NATS_PORT,
        route_port=ROUTE_PORT,
        peers=config.routes,
        cluster=grid.name,
        log_file=paths.log / "nats-server.log",
    )


@dataclass(frozen=True, slots=True)
class Gives:
    """What the owner decides about the grid's files on this machine; None leaves it as it is (NodeConfig has the meanings)."""

    files: Literal["grid", "local"] | None = None
    storage_bytes: int | None = None


_NOTHING = Gives()


def set_files(paths: NodePaths, gives: Gives) -> None:
    """Write the owner's decision; `up` carries it out. Where homes are is looked at when xosd starts, so it starts again if that changed."""
    before = load_node(paths)
    after = _with_gives(paths, before, gives)
    save_node(paths, after)
    if after.files != before.files:
        _end_xosd(paths)


def _with_gives(paths: NodePaths, config: NodeConfig, gives: Gives) -> NodeConfig:
    if gives.files is not None:
        config = msgspec.structs.replace(config, files=gives.files)
    if gives.storage_bytes is not None:
        config = msgspec.structs.replace(config, storage_bytes=gives.storage_bytes)
    if config.storage_bytes < 0:  # said once: a limit that follows what is free would start the OSD anew each time
        free = shutil.disk_usage(paths.private).free
        config = msgspec.structs.replace(config, storage_bytes=free // 2)
    return config


def services(paths: NodePaths, config: NodeConfig) -> list[dict[str, Any]]:
    """Return what the supervisor keeps running on this node, in order."""
    source = str(Path(__file__).resolve().parents[2])
    env = {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}
    rows: list[dict[str, Any]] = [{"name": "jobd", "argv": jobd_command(paths.run, paths.jobs, config.name), "env": env}]
    userdb = [sys.executable, "-m", "xtreemos.foundation.userdb", "--snapshot", str(paths.snapshot)]
    userdb += ["--socket", str(USERDB_DIR / USERDB_SERVICE), "--vo-sockets", str(paths.userdb)]
    rows.append({"name": "userdb", "argv": userdb, "env": env})
    if config.core:
        command = argv(server_config(paths, config, load_grid(paths.private)))
        rows.append({"name": "nats-server", "argv": command, "env": {}, "slack_us": SLACK_US})
    rows.append({"name": "xosd", "argv": [sys.executable, "-m", "xtreemos.node.xosd", "--dir", str(paths.dir)], "env": env})
    return rows + files.services(paths, config, env)


def refresh_services(paths: NodePaths, config: NodeConfig) -> None:
    """Write the supervisor's list anew and let it read it: what runs and stays is left alone."""
    for vo in config.vos:
        (paths.run / "fs" / vo).mkdir(parents=True, exist_ok=True)  # its sockets but users.sock are root's
        for kind in ("mrc", "osd"):
            (paths.private / "fs" / vo / kind).mkdir(parents=True, exist_ok=True, mode=0o700)
        if config.files == "grid":
            Path("/xos", vo).mkdir(parents=True, exist_ok=True)
        else:
            homes.unbind_all(vo)
    _tidy_mountpoints(config)
    write_atomically(paths.services, json.dumps(services(paths, config), indent=1).encode())
    running = supervisor_pid(paths)
    if running:
        os.kill(running, signal.SIGHUP)


def _tidy_mountpoints(config: NodeConfig) -> None:
    """Remove the empty mount points of VOs whose files are not mounted here (any more)."""
    for folder in Path("/xos").glob("*"):
        if config.files != "grid" or folder.name not in config.vos:
            with contextlib.suppress(OSError):  # still mounted, or somebody's own: it stays
                folder.rmdir()


def up(paths: NodePaths, *, restart: bool = False) -> dict[str, Any]:
    """Start the supervisor (or let a running one read its list again) and wait until xosd answers; returns its status.

    Args:
        paths: the node's.
        restart: end an xosd that runs first, so that it starts with the software and settings of now. Jobs go on: they are jobd's.
    """
    config = load_node(paths)
    for folder in (paths.run, paths.log, paths.jobs, paths.userdb):
        folder.mkdir(parents=True, exist_ok=True)
    paths.jobs.chmod(0o700)
    USERDB_DIR.mkdir(parents=True, exist_ok=True)
    if config.core:
        write_config(server_config(paths, config, load_grid(paths.private)))
    refresh_services(paths, config)
    if supervisor_pid(paths) is None:
        _start_supervisor(paths)
    elif restart:
        _end_xosd(paths)
    return asyncio.run(_wait_ready(paths))


def _end_xosd(paths: NodePaths) -> None:
    """End xosd, if it runs, and wait until it is gone; the supervisor starts it again."""
    row = supervise.read_pids(str(paths.run)).get("xosd")
    if row is None:
        return
    pid = int(row["pid"])
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.kill(pid, number)
                if select.select([watched], [], [], END_S)[0]:
                    return
        finally:
            os.close(watched)


def supervisor_pid(paths: NodePaths) -> int | None:
    """Return the supervisor's process id, if it runs."""
    row = supervise.read_pids(str(paths.run)).get("supervise")
    return int(row["pid"]) if row else None


def _start_supervisor(paths: NodePaths) -> None:
    words, env = supervise.command(str(paths.services), str(paths.run), str(paths.log))
    launcher = [sys.executable, "-m", "xtreemos.node.launch", str(paths.run / "cgroup1"), *words]
    with (paths.log / "supervise.log").open("ab") as log:
        subprocess.Popen(  # its own session: it outlives this command and its terminal
            launcher, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )


async def _wait_ready(paths: NodePaths) -> dict[str, Any]:
    end = time.monotonic() + READY_S
    last: XosError = TryLater("the node does not start", f"see {paths.log}/xosd.log")
    while time.monotonic() < end:
        try:
            peer = await rpc.connect_unix(paths.admin_socket)
            try:
                status: dict[str, Any] = await peer.call("status", timeout_s=5)
            finally:
                peer.close()
            if status["jobd"]:
                return status
        except XosError as error:
            last = error
        await asyncio.sleep(_POLL_S)
    raise TryLater(f"the node does not start: {last.message}", f"see {paths.log}/xosd.log")


def down(paths: NodePaths) -> bool:
    """Stop the supervisor and with it everything it keeps; returns whether it ran."""
    pid = supervisor_pid(paths)
    if pid is None:
        return False
    mounts.end_all(paths, lambda line: print(f"xos: {line}", file=sys.stderr))  # while there are servers to write to
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        import select

        if not select.select([descriptor], [], [], DOWN_S)[0]:
            raise TryLater(f"the node did not stop within {DOWN_S:g} s", f"see {paths.log}/supervise.log")
    finally:
        os.close(descriptor)
    config = load_node(paths)
    for vo in config.vos:
        homes.unbind_all(vo)
    _tidy_mountpoints(config)
    hang_up_all(paths)
    return True


def guess_address() -> str:
    """Return the address by which this machine speaks to others (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: only the routing table is asked
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def join(paths: NodePaths, text: str, *, name: str, address: str, core: bool, gives: Gives = _NOTHING) -> dict[str, Any]:
    """Make this machine a resource of the VO that a token names; starts the node if need be. Returns its status and `joined`."""
    token = parse_token(text)
    check_node(name)
    if token.kind != "join":
        raise UsageError("this token invites a person", f"accept it with: xos vo accept {'TOKEN'}")
    if is_node(paths):
        config = load_node(paths)
        if config.name != name and name != socket.gethostname().partition(".")[0].lower():
            raise UsageError(f"this machine is node {config.name} already", "leave the name away")
    else:
        config = NodeConfig(name=name, address=address, created_at=time.time())
    asyncio.run(_join(paths, token, config, gives, core))
    status = up(paths)
    asyncio.run(_tell_joined(paths, token.vo))
    return {**status, "joined": token.vo}


async def _join(paths: NodePaths, token: Token, config: NodeConfig, gives: Gives, core: bool) -> None:
    trust, _answer = await fetch_trust(token)
    client = CdaClient(trust, list(token.endpoints))
    paths.private.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = _with_gives(paths, config, gives)
    owner = owner_key(paths)
    issued, answer = await client.join(
        token, node=config.name, addresses=[config.address], consent=lambda agreed: sign_consent(agreed, owner), core=core, extra={}
    )
    told = answer["extra"]
    entry = _entry(trust, told)
    folder = paths.private / "vo" / token.vo
    save_credential(folder, issued)
    if told.get("core"):
        await _become_candidate(paths, folder, client, issued, told["core"])
    known = load_grid_file(paths.dir) if paths.grid_json.exists() else GridFile()
    save_grid(paths.dir, msgspec.structs.replace(with_entry(known, entry), node=config.name))
    vos = config.vos if token.vo in config.vos else [*config.vos, token.vo]
    save_node(paths, msgspec.structs.replace(config, grid=config.grid or entry.grid, vos=vos))


async def _become_candidate(paths: NodePaths, folder: Path, client: CdaClient, issued: Issued, parcel: dict[str, Any]) -> None:
    """Keep what a core node needs: the fabric's keys, its certificate, the VO's issuing keys."""
    grid = GridSecrets.from_bytes(parcel["grid_secrets"])
    save(paths.private, grid)
    _write_fabric_files(paths, grid, parcel["cert"], parcel["key"])
    mine = CdaClient(issued.trust, client.endpoints, lambda: issued.identity)
    save(folder, VoSecrets.from_bytes((await mine.call("issuing_keys"))["secrets"]))


def _entry(trust: Trust, told: dict[str, Any]) -> VoEntry:
    return VoEntry(
        vo=trust.vo,
        root_sha256=trust.root_sha256,
        document=trust.signed,
        endpoints=[str(one) for one in told["endpoints"]],
        fabric=[str(one) for one in told["fabric"]],
        grid=str(told["grid"]),
    )


async def _tell_joined(paths: NodePaths, vo: str) -> None:
    peer = await rpc.connect_unix(paths.admin_socket)
    try:
        await peer.call("vo.joined", {"vo": vo}, timeout_s=30)
    finally:
        peer.close()


def accept_invitation(directory: Path, text: str, password: str) -> dict[str, Any]:
    """Set an invited person's password and remember the VO in this user's (or machine's) grid file."""
    token = parse_token(text)
    if token.kind != "invite":
        raise UsageError("this token is for a machine", "its owner uses it with: xos join TOKEN")
    return asyncio.run(_accept(directory, token, password))


async def _accept(directory: Path, token: Token, password: str) -> dict[str, Any]:
    trust, _answer = await fetch_trust(token)
    client = CdaClient(trust, list(token.endpoints))
    answer: dict[str, Any] = await client.call("accept", {"id": token.id, "secret": token.secret, "password": password})
    peer = await client.connect()
    try:
        told = await peer.call("grid.facts", timeout_s=10)
    finally:
        peer.close()
    known = load_grid_file(directory) if (directory / "grid.json").exists() else GridFile()
    if token.vo not in known.vos:
        target = directory if os.access(directory, os.W_OK) or (not directory.exists() and os.geteuid() == 0) else user_dir()
        save_grid(target, with_entry(load_grid_file(target) if (target / "grid.json").exists() else known, _entry(trust, told)))
    return answer


def user_dir() -> Path:
    """Return the folder for a user's own grid file."""
    return Path.home() / ".config" / "xtreemos"


def audit_lines(paths: NodePaths, vo: str, count: int) -> tuple[int, list[dict[str, Any]]]:
    """Check this node's audits of a VO, its own and its metadata server's; return how many decisions they have and the last `count` of them."""
    found = [
        path for path in (paths.private / "vo" / vo / "audit.jsonl", paths.private / "fs" / vo / "mrc/audit.jsonl") if path.exists()
    ]
    if not found:
        raise Unreachable(f"this node keeps no audit of VO {vo}", "ask on a core node")
    total, rows = 0, []
    for path in found:
        held, _head = verify_file(path)
        total += held
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[-count:]]
    return total, sorted(rows, key=lambda row: row["at"])[-count:]
