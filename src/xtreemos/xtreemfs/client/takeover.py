"""Going on where a mount process was killed: on its connection to the kernel, so that programs keep working folders and open files.

A kept mount (`fuse.keeping`) leaves three things: a descriptor of the connection, what was agreed on it (`Will`), and the ledger. Node ids
are inode numbers, so the kernel's are good. What else it believes on the dead process's word is taken back before the MRCs hear of us, for only
then others get what that process held: names and attributes before anything is answered, pages while requests that keep some locked are
already waiting (see `recall`). Requests that were not answered come again from the kernel. What was lost with the process is told: unwritten
bytes at fsync and close, locks that others got meanwhile, changes of names and appends of which nobody knows whether they were done.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
import select
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from xtreemos.xtreemfs.client.client import Client
from xtreemos.xtreemfs.client.ledger import LEDGER_BYTES, Ledger
from xtreemos.xtreemfs.client.operations import Operations
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.constants import NOTIFY_MINOR, ROOT_ID, UNIQUE_RESEND, InitFlag, Notify, Op
from xtreemos.xtreemfs.fuse.driver import Session as Kernel
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.fuse.keeping import Keeper, Kept
from xtreemos.xtreemfs.fuse.mounting import Mount, resumed
from xtreemos.xtreemfs.fuse.options import MountOptions, Negotiated
from xtreemos.xtreemfs.fuse.replies import ROUTES
from xtreemos.xtreemfs.model import VO_ROOT_INO, Attr, volume_of

log = logging.getLogger(__name__)

DIRECTORY_S: Final = 15.0  # volumes that the directory does not know after so long are gone, and open files of them with them
PURGE_S: Final = 8.0  # the kernel drops its pages within milliseconds; after so long something is wrong, and programs wait no more
ONCE_OPS: Final = {
    Op.CREATE, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.SETXATTR, Op.REMOVEXATTR,
}  # fmt: skip
DONE_ALREADY: Final = {errno.EEXIST, errno.ENOENT, errno.ENODATA, errno.ENOTEMPTY}


class Will(msgspec.Struct, frozen=True):
    """What is kept beside the descriptors of connection and ledger."""

    mountpoint: str
    device: tuple[int, int]
    client: str
    minor: int
    flags: int
    max_write: int
    max_readahead: int

    @property
    def negotiated(self) -> Negotiated:
        """What the kernel agreed on."""
        return Negotiated(self.minor, InitFlag(self.flags), self.max_write, self.max_readahead)


class Left(msgspec.Struct, frozen=True):
    """A mount whose process has died, and that can be taken over. `fd` is ours."""

    fd: int
    will: Will
    ledger: Ledger


def find(keeper: Keeper, mountpoint: Path) -> Left | None:
    """Return what was left of the mount at a folder. What cannot be gone on with is let go: its programs get ENOTCONN."""
    kept = keeper.look()
    if kept is None:
        return None
    try:
        return _read(kept, mountpoint)
    except (ValueError, msgspec.MsgspecError) as unfit:
        log.warning("the mount that is there is not taken over: %s", unfit)
        kept.close()
        keeper.clear()
        return None


def _read(kept: Kept, mountpoint: Path) -> Left:
    will = msgspec.json.decode(kept.text, type=Will)
    fd, memory = kept.fds
    if will.minor < NOTIFY_MINOR[Notify.RESEND]:
        raise ValueError("this kernel cannot send requests again")
    watch = select.poll()
    watch.register(fd, 0)
    if watch.poll(0):
        raise ValueError("its connection has ended")
    if will.mountpoint != str(mountpoint) or syscalls.device_of(str(mountpoint)) != will.device:
        raise ValueError(f"it is not at {mountpoint}")
    left = Left(fd, will, Ledger(mmap.mmap(memory, LEDGER_BYTES)))
    os.close(memory)
    return left


def fresh_memory() -> tuple[int, mmap.mmap]:
    """Return memory for a ledger that can be kept, and its descriptor."""
    fd = os.memfd_create("xtreemfs-ledger", os.MFD_CLOEXEC)
    os.ftruncate(fd, LEDGER_BYTES)
    return fd, mmap.mmap(fd, LEDGER_BYTES)


def keep(keeper: Keeper, mounted: Mount, memory: int, client: str) -> None:
    """Have a new mount outlive this process; `memory` is the ledger's descriptor, `client` the id of our sessions."""
    agreed = mounted.session.negotiated
    keeper.clear()
    if mounted.device is not None:
        will = Will(mounted.mountpoint, mounted.device, client, agreed.minor, agreed.flags, agreed.max_write, agreed.max_readahead)
        keeper.put(msgspec.json.encode(will), [mounted.session.fd, memory])


async def take_over(left: Left, client: Client, operations: Operations, options: MountOptions) -> Mount:
    """Go on with a mount; it is served when this returns. `client` was made with its ledger and session id."""
    await _wait_volumes(client)
    doubt_repeated(operations)
    mounted = resumed(left.will.mountpoint, left.fd, operations, options, left.will.negotiated)
    kernel = mounted.session
    restore(client, operations)
    known = [ROOT_ID, *(client.node_of(ino) for ino in client.ledger.inodes())]
    if client.has_epochs:
        await kernel.increase_epoch()
    await kernel.invalidate_inodes(known, pages=False)
    await kernel.resend()  # before anything is read: what we have read ourselves would come twice
    kernel.start()
    client.start(_purge(client, kernel, known))
    log.info("taken over: %d inodes, %d open files", len(known), len(operations.files))
    return mounted


async def _wait_volumes(client: Client) -> None:
    """Wait until the directory has told where the volumes are that the kernel knows."""
    ledger = client.ledger
    wanted = {volume_of(ino) for ino in ledger.inodes()} | {volume_of(ino) for _fh, ino, _flags in ledger.files()}
    wanted.discard(volume_of(VO_ROOT_INO))
    changed = asyncio.Event()
    client.directory.on_change(lambda _state: changed.set())
    try:
        async with asyncio.timeout(DIRECTORY_S):
            while any(client.directory.state.volume_by_id(number) is None for number in wanted):
                changed.clear()
                await changed.wait()
    except TimeoutError:
        log.warning("the directory does not know all volumes that are in use here; their files are closed")


def restore(client: Client, operations: Operations) -> None:
    """Have open, locked and lost what the ledger says."""
    ledger = client.ledger
    client.inodes.adopted.update(ledger.inodes())
    for fh, ino, flags in ledger.files():
        try:
            session = client.session_of(ino)
        except FuseError:
            ledger.close(fh)
            continue
        inode = client.inodes.take(_unknown_file(ino))
        inode.pages = True
        operations.keep_open(session, inode, fh, flags)
    for ino, number in ledger.passed().items():
        _restore_passed(client, operations, ino, number)
    for fh, row in ledger.locks():
        handle = operations.files.get(fh)
        if handle is None:
            ledger.lock(fh, row.ino, row.kind, row.owner, [])
            continue
        handle.lock_owners.add((row.kind, row.owner))
        client.locks.add(client.session_of(row.ino).mrc, row, fh)
    for ino in ledger.dirty():
        lost = client.inodes.get(ino)
        if lost is None:
            ledger.note_clean(ino)
        else:
            log.warning("unwritten bytes of inode %x are lost", ino)
            client.data_of(lost).was_lost()


def _restore_passed(client: Client, operations: Operations, ino: int, number: int) -> None:
    try:
        session = client.session_of(ino)
    except FuseError:
        client.ledger.end_pass(ino)
        return
    inode = client.inodes.take(_unknown_file(ino))
    client.passthrough.restore(session, inode, number)
    stores = any(handle.inode is inode and handle.flags & os.O_ACCMODE == os.O_RDWR for handle in operations.files.values())
    if inode.backing is not None and stores:
        client.start(operations.lend(session, inode, None))


def _unknown_file(ino: int) -> Attr:
    """Attributes of a file of which nothing is known but its number."""
    return Attr(ino, stat.S_IFREG, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1)


async def _purge(client: Client, kernel: Kernel, known: list[int]) -> None:
    """Have the kernel drop all pages, then let sessions be opened. Of files that nobody has open no page is locked."""
    try:
        async with asyncio.timeout(PURGE_S):
            in_use = {client.node_of(inode.ino) for inode in client.inodes if inode.handles}
            await kernel.invalidate_inodes([node for node in known if node not in in_use], pages=True)
            await client.coherence.empty_kernel(lambda inode: bool(inode.handles))
    except TimeoutError:
        log.error("the kernel has not dropped its pages within %g s; they may be old", PURGE_S)  # noqa: TRY400  # no stack tells more
    finally:
        client.admit()


def doubt_repeated(operations: Operations) -> None:
    """Have changes that must not be done twice answered EIO when they come again: of names if they look as if they had been done, appends always."""
    for op, (name, _encode) in ROUTES.items():
        if op == Op.WRITE:
            setattr(operations, name, _appending_once(operations.write))
        elif op in ONCE_OPS and op != Op.RENAME2:  # which has RENAME's method
            setattr(operations, name, _doubting(getattr(operations, name)))


def _appending_once(write: Callable[[m.Write], Any]) -> Callable[[m.Write], Any]:
    def appending_once(request: m.Write) -> Any:
        if request.unique & UNIQUE_RESEND and request.flags & os.O_APPEND:
            raise FuseError(errno.EIO)
        return write(request)

    return appending_once


def _doubting(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def doubting(request: Any) -> Any:
        answer = handler(request)
        return _doubted(answer) if request.unique & UNIQUE_RESEND else answer

    return doubting


async def _doubted(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except FuseError as error:
        raise FuseError(errno.EIO if error.errno in DONE_ALREADY else error.errno) from error
