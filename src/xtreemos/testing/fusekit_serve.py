"""Mounts one of the example file systems until it is unmounted or told to end by SIGTERM: `python -m xtreemos.testing.fusekit_serve`.

Prints `mounted` when programs may use it. For tests and benchmarks, where the program that uses a mount must not be the one that serves it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys

from xtreemos.testing.fusekit_memfs import MemFs
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.mounting import mount
from xtreemos.xtreemfs.fuse.options import MountOptions


async def serve(mountpoint: str, handlers: Handlers, options: MountOptions, *, by_fusermount: bool = False) -> None:
    """Serve until the end, then print the session's statistics as one line of JSON."""
    mounted = await mount(mountpoint, handlers, options, by_fusermount=by_fusermount or None)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(mounted.close()))
    print("mounted", flush=True)
    await mounted.wait_ended()
    statistics = mounted.session.statistics()
    await mounted.close()
    print(json.dumps({name: getattr(statistics, name) for name in statistics.__slots__}), flush=True)


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("--cache-ms", type=int, default=1000, help="how long the kernel may trust names and attributes")
    parser.add_argument("--options", type=json.loads, default={}, help="fields of MountOptions as JSON")
    parser.add_argument("--fusermount", action="store_true")
    parser.add_argument(
        "--passthrough", metavar="FOLDER", help="show this folder, files by passthrough, in place of a new tree in memory"
    )
    arguments = parser.parse_args()
    handlers: Handlers = MemFs(cache_ns=arguments.cache_ms * 1_000_000)
    options = MountOptions(source="fusekit", subtype="fusekit", **arguments.options)
    if arguments.passthrough:
        from xtreemos.testing.fusekit_passthrough import PassthroughFs

        handlers = PassthroughFs(os.open(arguments.passthrough, os.O_PATH | os.O_DIRECTORY))
    asyncio.run(serve(arguments.mountpoint, handlers, options, by_fusermount=arguments.fusermount))
    return 0


if __name__ == "__main__":
    sys.exit(main())
