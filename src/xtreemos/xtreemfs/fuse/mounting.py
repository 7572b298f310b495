"""A mounted file system: a session together with its place in the file tree."""

from __future__ import annotations

import asyncio
import logging
import os

from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.driver import Session
from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.fuse.handlers import Handlers
from xtreemos.xtreemfs.fuse.options import MountOptions, Negotiated

log = logging.getLogger(__name__)


class Mount:
    """A file system that is mounted and served. Made by `mount`."""

    def __init__(self, session: Session, mountpoint: str, namespace_pid: int | None) -> None:
        self.session = session
        self.mountpoint = mountpoint
        self._namespace_pid = namespace_pid
        self.device = syscalls.device_of(mountpoint, namespace_pid=namespace_pid)  # (major, minor), None if not found

    async def wait_ended(self) -> None:
        """Return when it is no longer mounted anywhere, or was aborted."""
        await self.session.wait_ended()

    async def unmount(self, *, lazy: bool = False, force: bool = False) -> None:
        """Unmount, see `syscalls.unmount`. The session is served meanwhile, since closing files asks it; then `close` it.

        Raises:
            MountFailed: busy, or not mounted any more.
        """
        await asyncio.to_thread(syscalls.unmount, self.mountpoint, lazy=lazy, force=force, namespace_pid=self._namespace_pid)

    def _is_uppermost(self) -> bool:
        """Tell whether an unmount would meet us: we may be unmounted lazily, and somebody else mounted here since."""
        return self.device is None or syscalls.device_of(self.mountpoint, namespace_pid=self._namespace_pid) == self.device

    async def close(self) -> None:
        """Take the mount away whatever its state, abort what still waits, free everything. Safe to call twice."""
        try:
            if not self.session.has_ended and self._is_uppermost():
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
    # As the kernel will list it. In another name space links lead elsewhere than here.
    path = os.path.realpath(mountpoint) if namespace_pid is None else os.path.abspath(mountpoint)
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
        _raise_read_ahead(mounted, options)
    except BaseException:
        await mounted.close()
        raise
    return mounted


def resumed(mountpoint: str, fd: int, handlers: Handlers, options: MountOptions, negotiated: Negotiated) -> Mount:
    """Return the mount at a folder whose server has died, over a descriptor of its connection that outlived it. Nothing is read yet.

    What the kernel still believes on the word of the dead server is to be taken back first; then `session.resend` lines up again the
    requests that were not answered, and `session.start` reads.
    """
    return Mount(Session(fd, handlers, options, negotiated=negotiated), mountpoint, None)


def _raise_read_ahead(mounted: Mount, options: MountOptions) -> None:
    """Best effort: a sandbox may show /sys read-only, and the mount works without."""
    if mounted.device is None or os.geteuid() != 0:
        return
    try:
        syscalls.set_read_ahead(mounted.device, options.max_readahead_bytes)
    except MountFailed as failed:
        log.info("read-ahead stays at the kernel's default: %s", failed)
