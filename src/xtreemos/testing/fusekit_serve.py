"""Mounts one of the example file systems until it is unmounted, or told to end by SIGTERM: `python -m xtreemos.testing.fusekit_serve`.

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
from xtreemos.xtreemfs.fuse.mounting import Mount, mount
from xtreemos.xtreemfs.fuse.options import MountOptions


async def serve(mountpoint: str, handlers: Handlers, options: MountOptions, *, by_fusermount: bool = False) -> None:
    """Serve until the end; SIGUSR1 prints `facts`."""
    mounted = await mount(mountpoint, handlers, options, by_fusermount=by_fusermount or None)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(mounted.close()))
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(facts(mounted), flush=True))
    print("mounted", flush=True)
    await mounted.wait_ended()
    await mounted.close()


def facts(mounted: Mount) -> str:
    """Return what the session counted, and what the kernel makes a file system in memory hold, as one line of JSON."""
    statistics = mounted.session.statistics()
    found = {name: getattr(statistics, name) for name in statistics.__slots__}
    handlers = mounted.session.handlers
    if isinstance(handlers, MemFs):
        found |= {"nodes": len(handlers.nodes), "handles": len(handlers.handles)}
    return json.dumps(found)


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
    handlers: Handlers = MemFs(cache_ns=arguments.cache_ms * 1_000_000, owner=(os.geteuid(), os.getegid()))
    options = MountOptions(source="fusekit", subtype="fusekit", **arguments.options)
    if arguments.passthrough:
        from xtreemos.testing.fusekit_passthrough import PassthroughFs

        handlers = PassthroughFs(os.open(arguments.passthrough, os.O_PATH | os.O_DIRECTORY))
    asyncio.run(serve(arguments.mountpoint, handlers, options, by_fusermount=arguments.fusermount))
    return 0


if __name__ == "__main__":
    sys.exit(main())
