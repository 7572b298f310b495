"""`python -m xtreemos.xtreemfs.mrc`: one MRC of one VO on one core node. Root starts it: xosd, or a person for a file system without a grid."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from xtreemos.errors import XosError
from xtreemos.xtreemfs.mrc.server import Options, serve
from xtreemos.xtreemfs.nodedirectory import open_directory

log = logging.getLogger(__name__)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="xtreemos.xtreemfs.mrc", description="Serve names, attributes and leases of XtreemFS volumes."
    )
    parser.add_argument("--vo", required=True)
    parser.add_argument("--node", required=True, help="name of this node in the VO")
    parser.add_argument("--folder", required=True, type=Path, help="folder for the store, its log, the signing key and the audit")
    parser.add_argument(
        "--directory", required=True, type=Path, help="xosd's socket (*.sock), or a folder of records without a grid"
    )
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket for root of this node")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help="TLS for other nodes; without it there are no tickets")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="where others reach --listen, if not there")
    parser.add_argument("--credential", type=Path, help="folder of the node's credential of the VO")
    found = parser.parse_args(argv)
    if bool(found.listen) != bool(found.credential):
        parser.error("--listen and --credential belong together")
    return found


async def _main(found: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    directory = open_directory(found.directory, vo=found.vo, node=found.node)
    options = Options(found.folder, found.socket, found.listen, found.address, found.credential)
    await serve(options, directory, stop)


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM. Returns the exit code."""
    found = _arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mrc %(levelname)s %(message)s", stream=sys.stderr)
    try:
        uvloop.run(_main(found))
    except XosError as error:
        log.error("%s", error.line())  # noqa: TRY400  # what is wrong with the disk or the port needs no traceback
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
