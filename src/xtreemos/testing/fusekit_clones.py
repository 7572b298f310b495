"""One mount served by several processes on cloned descriptors: `python -m xtreemos.testing.fusekit_clones FOLDER --processes 2`.

The file system is one directory with one file of fixed content, so the processes need no common state. Example, test and benchmark of
`Session.clone`. Ends by SIGTERM or when it is unmounted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import errno
import json
import os
import signal
import stat
import subprocess
import sys

from xtreemos.xtreemfs.fuse import device
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import ROOT_ID, InitFlag
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.mounting import mount
from xtreemos.xtreemfs.fuse.options import MountOptions, Negotiated

FILE_ID = 2
CONTENT = bytes(1 << 20)


class FixedFs(Handlers):
    """A directory with the file `f`, for ever. `who` is a file whose size is the pid of the process that answered."""

    def _attr(self, nodeid: int) -> m.Attr:
        if nodeid == ROOT_ID:
            return m.Attr(ROOT_ID, stat.S_IFDIR | 0o755, nlink=2)
        return m.Attr(nodeid, stat.S_IFREG | 0o644, len(CONTENT) if nodeid == FILE_ID else os.getpid())

    def lookup(self, request: m.Lookup) -> m.Entry:
        nodeid = {b"f": FILE_ID, b"who": FILE_ID + 1}.get(request.name)
        if nodeid is None:
            raise FuseError(errno.ENOENT)
        return m.Entry(nodeid, self._attr(nodeid))

    def getattr(self, request: m.GetAttr) -> m.AttrReply:
        return m.AttrReply(self._attr(request.nodeid))

    def read(self, request: m.Read) -> memoryview:
        return memoryview(CONTENT)[request.offset : request.offset + request.size]


async def serve_clone(device_fd: int, negotiated: Negotiated) -> None:
    """Serve a clone of a descriptor that we inherited, until the mount ends."""
    session = Session(device.clone(device_fd), FixedFs(), MountOptions(), negotiated=negotiated)
    os.close(device_fd)
    session.start()
    print("ready", flush=True)
    await session.wait_ended()
    await session.close()


async def serve(folder: str, processes: int) -> None:
    """Mount, start the other processes, serve."""
    mounted = await mount(folder, FixedFs(), MountOptions(source="fusekit", subtype="fusekit"))
    fd, agreed = mounted.session.fd, mounted.session.negotiated
    facts = json.dumps({**dataclasses.asdict(agreed), "flags": int(agreed.flags)})
    argv = [sys.executable, "-m", "xtreemos.testing.fusekit_clones", folder, "--clone-of", str(fd), "--negotiated", facts]
    children = [
        await asyncio.to_thread(subprocess.Popen, argv, pass_fds=[fd], stdout=subprocess.PIPE) for _ in range(processes - 1)
    ]
    for child in children:
        assert child.stdout is not None
        await asyncio.to_thread(child.stdout.readline)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(mounted.close()))
    print("mounted", flush=True)
    await mounted.wait_ended()
    await mounted.close()
    for child in children:
        await asyncio.to_thread(child.wait)


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clone-of", type=int)
    parser.add_argument("--negotiated", type=json.loads)
    arguments = parser.parse_args()
    if arguments.clone_of is None:
        asyncio.run(serve(arguments.folder, arguments.processes))
    else:
        facts = arguments.negotiated
        asyncio.run(serve_clone(arguments.clone_of, Negotiated(**{**facts, "flags": InitFlag(facts["flags"])})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
