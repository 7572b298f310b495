"""Mounts of single volumes that root of this machine asked for (`xos fs mount`): each a process of its own, beside the supervised mount of the VO.

They are started detached and found again by what lies in RUN/fs/VO/mounts: NAME.json (`Record`), NAME.sock (control), NAME.log, NAME.tickets
(the tickets that it may use; xosd hands it new ones). NAME is a hash of the folder. `xos fs umount` and `xos down` end them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from xtreemos.errors import NotFound, PermissionRefused, TryLater, Unreachable, UsageError, XosError
from xtreemos.fabric import rpc
from xtreemos.foundation.files import write_atomically
from xtreemos.foundation.paths import NodePaths
from xtreemos.node.config import load_node
from xtreemos.node.supervise import start_ticks
from xtreemos.xtreemfs.fuse import syscalls
from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.nodeidentities import NodeIdentities

READY_S = 30.0
END_S = 30.0
LOOK_S = 0.3
USERS_MAX = 8  # processes named when a mount is busy
NOBODY = 65534


class MountBusy(XosError):
    """Programs have files of the mount open or work in it; nothing was unmounted. End them, or use --lazy."""

    fault = "caller"
    code = "mount-busy"


class NotWritten(XosError):
    """Not everything that was written could be brought to the object servers; the text says whether it is still mounted."""

    fault = "environment"
    code = "mount-not-written"


class Record(msgspec.Struct, frozen=True):
    """One mount. `owner` is whose ticket it acts by as the volume's root, "" if everybody acts as themselves."""

    dir: str
    vo: str
    volume: str
    owner: str
    pid: int
    ticks: int
    """Start time of the process, in clock ticks after boot."""
    since: float

    @property
    def name(self) -> str:
        """Stem of its files."""
        return name_of(self.dir)

    def is_alive(self) -> bool:
        """Whether its process is there."""
        return start_ticks(self.pid) == self.ticks

    def is_mounted(self) -> bool:
        """Whether its folder is (still) a mount, dead or alive. Asks the kernel's list only, so it never hangs."""
        return syscalls.device_of(self.dir) is not None


def name_of(folder: str) -> str:
    """Return the stem of the files of a mount at this folder."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


def folder_of(paths: NodePaths, vo: str) -> Path:
    """Where a VO's mounts are noted."""
    return paths.run / "fs" / vo / "mounts"


def control_of(paths: NodePaths, record: Record) -> Path:
    """Control socket of a mount."""
    return folder_of(paths, record.vo) / f"{record.name}.sock"


def records(paths: NodePaths) -> list[Record]:
    """Return the mounts of this machine, by folder; what has ended and left nothing mounted is forgotten."""
    found = []
    for path in sorted((paths.run / "fs").glob("*/mounts/*.json")):
        record = msgspec.json.decode(path.read_bytes(), type=Record)
        if record.is_alive() or record.is_mounted():
            found.append(record)
        else:
            _forget(paths, record)
    return sorted(found, key=lambda record: record.dir)


def _forget(paths: NodePaths, record: Record) -> None:
    folder = folder_of(paths, record.vo)
    shutil.rmtree(folder / f"{record.name}.tickets", ignore_errors=True)
    for kind in ("sock", "sessions", "json"):  # the log stays: it may say why
        (folder / f"{record.name}.{kind}").unlink(missing_ok=True)


def find(paths: NodePaths, folder: str) -> Record:
    """Return the mount at a folder; NotFound if there is none of ours."""
    for record in records(paths):
        if record.dir == folder:
            return record
    raise NotFound(f"{folder} is no mount that `xos fs mount` made", "`xos fs mount` without words lists them")


# -- beginning -------------------------------------------------------------------------------------------------------------


async def check_ticket(paths: NodePaths, vo: str, owner: str) -> None:
    """Raise PermissionRefused unless this node may act for `owner`, whose ticket it needs."""
    people = NodeIdentities(paths.snapshot, paths.run / "fs" / vo / "tickets", vo=vo)
    uid = people.local_id("u", owner)
    if uid == NOBODY or not await people.ticket(uid):
        raise PermissionRefused(
            f"{owner} is not logged in on this machine, so it may not act for them",
            f"have them log in here: xos login {owner}@{vo}",
        )


def start(paths: NodePaths, *, vo: str, volume: str, folder: Path, owner: str = "", read_only: bool = False) -> Record:
    """Mount a volume at a folder; returns when it is mounted.

    Args:
        paths: the node's.
        vo: the VO.
        volume: its name.
        folder: where; an existing folder, as `realpath` gives it.
        owner: act as root of the volume by the ticket of this user (see `check_ticket`); "": everybody acts as themselves.
        read_only: refuse changes.

    Raises:
        UsageError: the folder is no folder or taken. TryLater: the process ended, or did not get ready; nothing is left behind.
    """
    _check_folder(paths, folder)
    name, notes = name_of(str(folder)), folder_of(paths, vo)
    notes.mkdir(parents=True, exist_ok=True, mode=0o700)
    tickets, log = notes / f"{name}.tickets", notes / f"{name}.log"
    _copy_tickets(paths.run / "fs" / vo / "tickets", tickets, owner)
    argv = [sys.executable, "-m", "xtreemos.xtreemfs.client", str(folder), "--vo", vo, "--node", load_node(paths).name]
    argv += ["--volume", volume, "--directory", str(paths.admin_socket), "--credential", str(paths.private / "vo" / vo)]
    argv += ["--control", str(notes / f"{name}.sock"), "--snapshot", str(paths.snapshot), "--tickets", str(tickets)]
    argv += [*(["--root", "--as", owner] if owner else []), *(["--read-only"] if read_only else [])]
    source = str(Path(__file__).resolve().parents[2])
    with log.open("wb") as file:
        process = subprocess.Popen(  # its own session: it outlives this command and its terminal
            argv, env={**os.environ, "PYTHONPATH": source}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    record = Record(str(folder), vo, volume, owner, process.pid, start_ticks(process.pid) or 0, time.time())
    write_atomically(notes / f"{name}.json", msgspec.json.encode(record))
    try:
        _wait_mounted(process, log)
    except BaseException:
        process.kill()
        process.wait()
        _detach(record)
        _forget(paths, record)
        raise
    return record


def _check_folder(paths: NodePaths, folder: Path) -> None:
    taken = next((record for record in records(paths) if record.dir == str(folder)), None)
    if taken is not None:
        state = "" if taken.is_alive() else ", and its process has died"
        raise UsageError(f"volume {taken.volume} is mounted at {folder} already{state}", f"to end that: xos fs umount {folder}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "make it first")


def _copy_tickets(source: Path, target: Path, owner: str) -> None:
    """Give a mount what it may use: everybody's tickets, or the owner's alone."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    for path in [source / owner] if owner else source.iterdir():
        shutil.copyfile(path, target / path.name)


def _wait_mounted(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.stdout is not None
    with process.stdout:
        readable, _w, _x = select.select([process.stdout], [], [], READY_S)
        line = process.stdout.readline().strip() if readable else b""
    if line == b"mounted":
        return
    if not readable:
        raise TryLater(f"the volume was not mounted within {READY_S:g} s", f"see {log}")
    process.wait()
    words = log.read_text(errors="replace").strip().splitlines()
    raise TryLater(f"the volume was not mounted: {words[-1] if words else 'the process ended'}", f"see {log}")


# -- ending ----------------------------------------------------------------------------------------------------------------


async def end(paths: NodePaths, record: Record, *, lazy: bool, tell: Callable[[int], None]) -> bool:
    """Unmount: when it returns all that was written is on the object servers' disks (not so with `lazy`).

    Args:
        paths: the node's.
        record: which one.
        lazy: out of sight at once; programs that have files open there go on, and the process ends after the last of them.
        tell: called now and then with the bytes that are still to be sent.

    Returns:
        False if its process had died: what it had not sent is lost (programs that had synced lost nothing).

    Raises:
        MountBusy, NotWritten: it is still mounted.
    """
    if not record.is_alive():
        _detach(record)
        _forget(paths, record)
        return False
    peer = await rpc.connect_unix(control_of(paths, record))
    try:
        ending = asyncio.ensure_future(peer.call("fs.unmount", {"lazy": lazy}))
        while not ending.done():
            await asyncio.wait([ending], timeout=LOOK_S)
            if not ending.done():
                tell(int((await peer.call("fs.status", timeout_s=END_S))["dirty_bytes"]))
        try:
            answer = ending.result()
        except Unreachable:
            raise
        except XosError as error:
            raise _refusal(record, error) from error
    finally:
        peer.close()
    if not lazy and not answer["mounted"] and await asyncio.to_thread(_wait_ended, record):
        _forget(paths, record)
    if answer["failed"]:
        state = f"{record.dir} is still mounted" if answer["mounted"] else "it is unmounted"
        log = folder_of(paths, record.vo) / f"{record.name}.log"
        raise NotWritten(f"{answer['failed']} files could not be written back; {state}", f"see {log}; --lazy gives up on them")
    return True


def _refusal(record: Record, error: XosError) -> XosError:
    users = list(users_of(record.dir))
    if not users and "busy" not in error.message:
        return error
    named = ", ".join(f"{pid} ({word})" for pid, word in users[:USERS_MAX]) or "a program"
    return MountBusy(f"{record.dir} is in use by {named}{' and more' if len(users) > USERS_MAX else ''}", "end them, or use --lazy")


def users_of(folder: str) -> Iterator[tuple[int, str]]:
    """Yield (pid, command) of processes that work in a folder or have files below it open, without touching it."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        links = [process / "cwd", process / "root"]
        with contextlib.suppress(OSError):  # it has ended meanwhile
            links += (process / "fd").iterdir()
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target == folder or target.startswith(f"{folder}/"):
                    yield int(process.name), (process / "comm").read_text().strip()
                    break


def _wait_ended(record: Record) -> bool:
    """Wait until the process is gone; it is killed after END_S. Returns whether it is."""
    try:
        watched = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if record.is_alive() and not select.select([watched], [], [], END_S)[0]:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
            select.select([watched], [], [], END_S)
    finally:
        os.close(watched)
    return not record.is_alive()


def _detach(record: Record) -> None:
    """Take away what a dead process left mounted."""
    if record.is_mounted():
        with contextlib.suppress(MountFailed):  # somebody else was faster
            syscalls.unmount(record.dir, lazy=True, force=True)


def end_all(paths: NodePaths, say: Callable[[str], None]) -> None:
    """End every mount before the node stops: what is busy is taken away under its users, after all was written back."""
    for record in records(paths):
        try:
            asyncio.run(end(paths, record, lazy=False, tell=lambda _left: None))
        except (XosError, OSError) as error:
            say(f"{record.dir}: {error}; it is taken away")
            _terminate(record)
            _detach(record)
            _forget(paths, record)


def _terminate(record: Record) -> None:
    if record.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        _wait_ended(record)
