"""A mounted file system: a session together with its place in the file tree."""

from __future__ import annotations

import asyncio
import logging
import os

from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.options import MountOptions

log = logging.getLogger(__name__)


class Mount:
    """A file system that is mounted and served. Made by `mount`."""

    def __init__(self, session: Session, mountpoint: str, namespace_pid: int | None) -> None:
        self.session = session
        self.mountpoint = mountpoint
        self._namespace_pid = namespace_pid

    async def wait_ended(self) -> None:
        """Return when it is no longer mounted anywhere, or was aborted."""
        await self.session.wait_ended()

    async def unmount(self, *, lazy: bool = False, force: bool = False) -> None:
        """Unmount, see `syscalls.unmount`. The session is served meanwhile, since closing files asks it; then `close` it.

        Raises:
            MountFailed: busy, or not mounted any more.
        """
        await asyncio.to_thread(syscalls.unmount, self.mountpoint, lazy=lazy, force=force, namespace_pid=self._namespace_pid)

    async def close(self) -> None:
        """Take the mount away whatever its state, abort what still waits, free everything. Safe to call twice."""
        try:
            if not self.session.has_ended:
                await self.unmount(lazy=True, force=True)
        except MountFailed as failed:
            log.debug("already unmounted: %s", failed)
        finally:
            await self.session.close()


async def mount(
    mountpoint: str | os.PathLike[str],
    handlers: Handlers,
    options: MountOptions | None = None,
    *,
    namespace_pid: int | None = None,
    by_fusermount: bool | None = None,
) -> Mount:
    """Mount `handlers` at an existing folder and begin to serve it on the running loop.

    Args:
        handlers: the file system.
        mountpoint: absolute path of a folder, as the mount name space sees it.
        options: `MountOptions()` if not given.
        namespace_pid: a process whose mount name space is meant; ours if None. Root only.
        by_fusermount: through fusermount3 rather than mount(2); None: if not root.

    Returns:
        The mount, with the negotiation done. The kernel's read-ahead was raised to `max_readahead_bytes` if we are root.

    Raises:
        MountFailed: see the text. ProtocolError: the kernel is too old. Nothing is left mounted.
    """
    options = options or MountOptions()
    path = os.path.abspath(os.fspath(mountpoint))
    if by_fusermount if by_fusermount is not None else os.geteuid() != 0:
        if namespace_pid is not None:
            raise MountFailed("fusermount3 mounts in its own mount name space only")
        fd = await asyncio.to_thread(syscalls.mount_by_fusermount, path, options)
    else:
        fd = await asyncio.to_thread(syscalls.mount_as_root, path, options, namespace_pid=namespace_pid)
    session = Session(fd, handlers, options)
    mounted = Mount(session, path, namespace_pid)
    try:
        session.start()
        await session.wait_ready()
        _raise_read_ahead(mounted, options, namespace_pid)
    except BaseException:
        await mounted.close()
        raise
    return mounted


def _raise_read_ahead(mounted: Mount, options: MountOptions, namespace_pid: int | None) -> None:
    """Best effort: a sandbox may show /sys read-only, and the mount works without."""
    device = syscalls.device_of(mounted.mountpoint, namespace_pid=namespace_pid) if os.geteuid() == 0 else None
    if device is None:
        return
    try:
        syscalls.set_read_ahead(device, options.max_readahead_bytes)
    except MountFailed as failed:
        log.info("read-ahead stays at the kernel's default: %s", failed)
