"""`python -m xtreemos.xtreemfs.client`: one mount of one VO's files. Root starts it: xosd, or a person for a file system without a grid."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from xtreemos.errors import Unreachable, UsageError, XosError
from xtreemos.fabric import rpc
from xtreemos.fabric.rpc import Peer
from xtreemos.xtreemfs.client import takeover
from xtreemos.xtreemfs.client.actors import Identities, PlainIdentities
from xtreemos.xtreemfs.client.client import Client
from xtreemos.xtreemfs.client.control import Control
from xtreemos.xtreemfs.client.desk import Desk
from xtreemos.xtreemfs.client.former import SessionFile, take_away_dead
from xtreemos.xtreemfs.client.gate import Gate
from xtreemos.xtreemfs.client.ledger import Ledger
from xtreemos.xtreemfs.client.operations import Operations
from xtreemos.xtreemfs.client.osds import Dialer
from xtreemos.xtreemfs.client.passthrough import SMALLEST_BYTES
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.dialing import dial_tls
from xtreemos.xtreemfs.directory import Directory
from xtreemos.xtreemfs.errors import VolumeUnknown
from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.fuse.keeping import Keeper
from xtreemos.xtreemfs.fuse.mounting import Mount, mount
from xtreemos.xtreemfs.fuse.options import MountOptions
from xtreemos.xtreemfs.model import MrcRecord, OsdRecord
from xtreemos.xtreemfs.nodedirectory import open_directory
from xtreemos.xtreemfs.nodeidentities import NodeIdentities, OwnerRoot

log = logging.getLogger(__name__)

VOLUME_S = 15.0  # a volume that the directory does not know after so long is not there


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="xtreemos.xtreemfs.client", description="Mount the files of a VO on this node.")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--vo", required=True)
    parser.add_argument("--node", required=True, help="name of this node in the VO")
    parser.add_argument(
        "--directory", required=True, type=Path, help="xosd's socket (*.sock), or a folder of records without a grid"
    )
    parser.add_argument("--volume", default="", help="mount this volume, not the folder of all volumes")
    parser.add_argument("--root", action="store_true", help="act as root of the volumes, with this machine's plain ids")
    parser.add_argument("--control", type=Path, help="Unix socket for status, flush and the like")
    parser.add_argument(
        "--credential", type=Path, help="folder of the node's credential of the VO; without it servers are reached by Unix sockets"
    )
    parser.add_argument("--snapshot", type=Path, help="the node's list of members (userdb.json); tells local uids")
    parser.add_argument("--tickets", type=Path, help="root-only folder to keep users' tickets in")
    parser.add_argument("--users", type=Path, help="Unix socket for everybody of this machine: volumes, quotas")
    parser.add_argument("--as", dest="owner", default="", help="with --root: by the ticket of this user, who owns the volume")
    parser.add_argument("--near", help="node whose OSD is preferred for new files, by default this one")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--allow-devices", action="store_true", help="honour device files and set-user-id bits")
    parser.add_argument(
        "--passthrough", default=str(SMALLEST_BYTES), metavar="BYTES|off",
        help="files of this node's OSD of at least so many bytes are read by the kernel itself (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args(argv)


def make_dialer(node: str, credential: CredentialFolder | None) -> Dialer:
    """Return how to reach servers: those of this node (without a credential all) by Unix socket, others by TLS."""

    async def dial(record: MrcRecord | OsdRecord) -> Peer:
        if record.socket and (record.node == node or credential is None):
            return await rpc.connect_unix(Path(record.socket))
        if credential is None or not record.address:
            raise Unreachable(f"there is no way from here to node {record.node}", "does this mount have a credential?")
        return await dial_tls(record, credential.identity)

    return dial


def make_identities(found: argparse.Namespace) -> Identities:
    """Return what this mount knows of people."""
    if found.snapshot is None or found.tickets is None:
        if found.root:
            return PlainIdentities()
        raise UsageError("without xosd only a mount as root of the volumes is possible", "give --root")
    people = NodeIdentities(found.snapshot, found.tickets, vo=found.vo)
    return OwnerRoot(people, found.owner) if found.root else people


def _passthrough_bytes(text: str) -> int | None:
    if text == "off":
        return None
    if not text.isdecimal():
        raise UsageError(f"--passthrough {text}: neither a number of bytes nor off", "such as --passthrough 1048576")
    return int(text)


async def _wait_volume(directory: Directory, name: str) -> None:
    changed = asyncio.Event()
    directory.on_change(lambda _state: changed.set())
    try:
        async with asyncio.timeout(VOLUME_S):
            while (record := directory.state.volumes.get(name)) is None or record.removed:
                changed.clear()
                await changed.wait()
    except TimeoutError:
        raise VolumeUnknown(f"there is no volume {name}", "`xos fs volumes` lists them") from None


async def _main(found: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    directory = open_directory(found.directory, vo=found.vo, node=found.node)
    following = asyncio.create_task(directory.run())
    try:
        if found.volume:
            await _wait_volume(directory, found.volume)
        credential = CredentialFolder(found.credential) if found.credential is not None else None
        place = _Place(found.mountpoint)
        before = place.left.will.client if place.left is not None else ""
        ids = SessionFile(found.control.with_suffix(".sessions"), before) if found.control is not None else None
        client = Client(
            directory,
            make_identities(found),
            make_dialer(found.node, credential),
            volume=found.volume,
            near=found.near,
            client_id=ids.mine if ids is not None else "",
            former=ids.former if ids is not None else (),
            passthrough_bytes=_passthrough_bytes(found.passthrough),
            ledger=place.ledger,
        )
        await _serve(found, place, client, credential, stop)
    finally:
        following.cancel()


class _Place:
    """Where the mount is to be: what a process before us has left there, and what the next one will find."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = Path(
            os.path.realpath(mountpoint.parent), mountpoint.name
        )  # as the kernel lists it, and without asking a dead mount
        self._keeper = Keeper.inherited()
        self.left = takeover.find(self._keeper, self.mountpoint) if self._keeper is not None else None
        self._memory = -1
        if self.left is not None:
            self.ledger = self.left.ledger
        elif self._keeper is not None:
            self._memory, memory = takeover.fresh_memory()
            self.ledger = Ledger(memory)
        else:
            self.ledger = Ledger()

    async def mounted(self, client: Client, operations: Operations, options: MountOptions) -> Mount:
        """Mount it, or go on with it."""
        if self.left is not None:
            return await takeover.take_over(self.left, client, operations, options)
        take_away_dead(self.mountpoint)
        made = await mount(self.mountpoint, operations, options)
        if self._keeper is not None:
            takeover.keep(self._keeper, made, self._memory, client.id)
        return made

    def ended(self) -> None:
        """It is unmounted: nothing is left for the next process."""
        if self._keeper is not None:
            self._keeper.clear()


async def _serve(
    found: argparse.Namespace, place: _Place, client: Client, credential: CredentialFolder | None, stop: asyncio.Event
) -> None:
    options = MountOptions(
        source=f"{found.vo}{':' + found.volume if found.volume else ''}",
        nosuid=not found.allow_devices,
        nodev=not found.allow_devices,
        readonly=found.read_only,
        passthrough=client.passthrough.is_wanted,
    )
    operations = Operations(client)
    people = client.identities
    gate = Gate(client, people, operations) if isinstance(people, NodeIdentities) else None
    try:
        mounted = await place.mounted(client, operations, options)
    except BaseException:
        place.ended()
        raise
    control = Control(client, operations, mounted, stop)
    desk = None
    if isinstance(people, NodeIdentities | OwnerRoot):
        desk = Desk(client, people, found.mountpoint, control.status, gate.look if gate is not None else lambda: None)
    if found.control is not None:
        await control.start(found.control, desk.root_methods() if desk is not None else {})
    if desk is not None and found.users is not None:
        await desk.start(found.users)
    running = [asyncio.create_task(client.run()), asyncio.create_task(_look(credential))]
    if gate is not None:
        running.append(asyncio.create_task(gate.run()))
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(mounted.wait_ended())]
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    try:
        await asyncio.wait([*running, *ends], return_when=asyncio.FIRST_COMPLETED)
        await control.wait_settled()
        await _unmount(client, mounted)
    finally:
        for task in [*running, *ends]:
            task.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.error("the mount ended by a fault inside", exc_info=result)
        if desk is not None:
            await desk.close()
        await control.close()
        await mounted.close()
        place.ended()
        await client.close()


async def _look(credential: CredentialFolder | None) -> None:
    while True:
        await asyncio.sleep(5.0)
        if credential is not None:
            credential.look()


async def _unmount(client: Client, mounted: Mount) -> None:
    if mounted.session.has_ended:
        return
    await client.flush_all()
    try:
        await mounted.unmount()
    except MountFailed as busy:
        log.warning("%s; it is taken away under those who use it", busy)


def main(argv: list[str] | None = None) -> int:
    """Run until it is unmounted or told to end. Returns the exit code."""
    found = _arguments(sys.argv[1:] if argv is None else argv)
    level = logging.DEBUG if found.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s mount %(levelname)s %(message)s", stream=sys.stderr)
    try:
        uvloop.run(_main(found))
    except XosError as error:
        sys.stderr.write(f"{error.line()}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
