"""`python -m xtreemos.xtreemfs.osd`: one OSD of one VO on one node. Root starts it: xosd, or a person for a file system without a grid."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
import sys
from pathlib import Path

import uvloop

from xtreemos.errors import XosError
from xtreemos.xtreemfs.nodedirectory import open_directory
from xtreemos.xtreemfs.osd.server import Options, serve
from xtreemos.xtreemfs.osd.store import OPEN_MAX


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="xtreemos.xtreemfs.osd", description="Serve objects of XtreemFS from folders of this node."
    )
    parser.add_argument("--vo", required=True)
    parser.add_argument("--node", required=True, help="name of this node in the VO")
    parser.add_argument("--disk", required=True, action="append", type=Path, help="folder to keep columns in; may be given again")
    parser.add_argument(
        "--directory", required=True, type=Path, help="xosd's socket (*.sock), or a folder of records without a grid"
    )
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket for clients of this node")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help="TLS for other nodes; without it nodes are not compared")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="where others reach --listen, if not there")
    parser.add_argument("--credential", type=Path, help="folder of the node's credential of the VO")
    parser.add_argument("--audit", type=Path, help="file of the audit; by default audit.jsonl on the first disk")
    parser.add_argument("--limit-bytes", type=int, default=0, help="how much columns may take in all; 0: what the disks have")
    found = parser.parse_args(argv)
    if bool(found.listen) != bool(found.credential):
        parser.error("--listen and --credential belong together")
    return found


async def _main(found: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    directory = open_directory(found.directory, vo=found.vo, node=found.node)
    options = Options(
        disks=found.disk,
        socket=found.socket,
        listen=found.listen,
        address=found.address,
        credential=found.credential,
        limit_bytes=found.limit_bytes,
        audit=found.audit,
    )
    await serve(options, directory, stop)


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM. Returns the exit code."""
    found = _arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s osd %(levelname)s %(message)s", stream=sys.stderr)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * OPEN_MAX + 4096
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))
    try:
        uvloop.run(_main(found))
    except XosError as error:
        sys.stderr.write(f"{error.line()}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
