"""Mounting and unmounting as the kernel and fusermount3 offer it; also in other mount name spaces. Blocking; raises MountFailed.

A mount name space is entered by a thread that gives up sharing its root and working directory first (unshare CLONE_FS): the kernel lets
a single thread do that, so neither the process nor its other threads notice, and no helper process is needed.
"""

from __future__ import annotations

import array
import ctypes
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from xtreemos.xtreemfs.fuse.errors import MountFailed
from xtreemos.xtreemfs.fuse.options import MountOptions

DEVICE = "/dev/fuse"
FUSERMOUNT_TIMEOUT_S = 30.0
READ_AHEAD_ROOT = "/sys/class/bdi"

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 1, 2, 4, 8, 1024
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
CLONE_FS, CLONE_NEWNS = 0x00000200, 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _check(result: int, what: str, hint: str = "") -> None:
    if result != 0:
        raise MountFailed(f"{what}: {os.strerror(ctypes.get_errno())}", hint)


def in_mount_namespace(pid: int | None, action: Callable[[], None]) -> None:
    """Run `action` in the mount name space of process `pid` (None: ours), in a thread of its own if it is another one.

    Raises:
        MountFailed: the name space cannot be entered (root only), or what `action` raises.
    """
    if pid is None:
        action()
        return
    failures: list[BaseException] = []

    def run() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.unshare(CLONE_FS), "unsharing the thread's root")
                _check(_libc.setns(namespace, CLONE_NEWNS), f"entering the mount name space of process {pid}")
            finally:
                os.close(namespace)
            action()
        except (OSError, MountFailed) as failed:
            failures.append(failed)

    thread = threading.Thread(target=run, name="fuse-mount-ns")
    thread.start()
    thread.join()
    if failures:
        if isinstance(failures[0], MountFailed):
            raise failures[0]
        raise MountFailed(f"the mount name space of process {pid} cannot be entered: {failures[0]}") from failures[0]


def mount_flags(options: MountOptions) -> int:
    """Return the MS_ flags of `options`."""
    chosen = {
        MS_RDONLY: options.readonly,
        MS_NOSUID: options.nosuid,
        MS_NODEV: options.nodev,
        MS_NOEXEC: options.noexec,
        MS_NOATIME: options.noatime,
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


def fuse_data(options: MountOptions) -> list[str]:
    """Return the mount options that FUSE itself knows and that fusermount3 takes, too."""
    words = [
        word
        for word, wanted in (("allow_other", options.allow_other), ("default_permissions", options.default_permissions))
        if wanted
    ]
    if options.max_read_bytes:
        words.append(f"max_read={options.max_read_bytes}")
    return words


def mount_as_root(mountpoint: str, options: MountOptions, *, namespace_pid: int | None = None) -> int:
    """Mount with mount(2) and return the connection's descriptor (close-on-exec, non-blocking).

    Raises:
        MountFailed: no /dev/fuse, not root, no such folder, or the kernel refused. Nothing is mounted then.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failed:
        raise MountFailed(f"{DEVICE}: {failed.strerror}", "load the kernel module `fuse`") from failed
    data = ",".join([f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", *fuse_data(options)])

    def attach() -> None:
        kind = f"fuse.{options.subtype}" if options.subtype else "fuse"
        target = os.fsencode(mountpoint)
        _check(
            _libc.mount(options.source.encode(), target, kind.encode(), mount_flags(options), data.encode()),
            f"mounting on {mountpoint}",
        )

    try:
        in_mount_namespace(namespace_pid, attach)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_by_fusermount(mountpoint: str, options: MountOptions) -> int:
    """Mount with fusermount3, which any user may; return the connection's descriptor.

    Raises:
        MountFailed: fusermount3 is missing or refused (its own words), such as `allow_other` without `user_allow_other` in /etc/fuse.conf.
    """
    words = [f"fsname={options.source}", f"subtype={options.subtype}", *fuse_data(options)]
    words += [
        word for word, wanted in (("ro", options.readonly), ("noexec", options.noexec), ("noatime", options.noatime)) if wanted
    ]
    if os.geteuid() == 0:
        words += [word for word, off in (("suid", not options.nosuid), ("dev", not options.nodev)) if off]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            try:
                done = subprocess.run(
                    ["fusermount3", "-o", ",".join(words), "--", mountpoint],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    capture_output=True,
                    check=False,
                    timeout=FUSERMOUNT_TIMEOUT_S,
                )
            except (OSError, subprocess.TimeoutExpired) as failed:
                raise MountFailed(f"fusermount3: {failed}", "install the package fuse3") from failed
        if done.returncode:
            raise MountFailed(f"mounting on {mountpoint}: {done.stderr.decode(errors='replace').strip()[:300]}")
        return _received(ours)


def _received(ours: socket.socket) -> int:
    ours.settimeout(FUSERMOUNT_TIMEOUT_S)
    size = array.array("i").itemsize
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(size))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(payload) >= size:
            fd = array.array("i", payload[:size])[0]
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            return fd
    raise MountFailed("fusermount3 mounted, but sent no descriptor")


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False, namespace_pid: int | None = None) -> None:
    """Unmount: now (fails if in use), `lazy` (out of sight at once), `force` (also aborts: every waiting program gets an error).

    Raises:
        MountFailed: busy, not mounted, not allowed.
    """
    if os.geteuid() != 0:
        command = ["fusermount3", "-u", *(["-z"] if lazy or force else []), "--", mountpoint]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=FUSERMOUNT_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as failed:
            raise MountFailed(f"fusermount3: {failed}") from failed
        if done.returncode:
            raise MountFailed(f"unmounting {mountpoint}: {done.stderr.decode(errors='replace').strip()[:300]}")
        return
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)

    def detach() -> None:
        hint = "a program has it open: end it, or unmount lazily"
        _check(_libc.umount2(os.fsencode(mountpoint), flags), f"unmounting {mountpoint}", hint)

    in_mount_namespace(namespace_pid, detach)


def device_of(mountpoint: str, *, namespace_pid: int | None = None) -> tuple[int, int] | None:
    """Return (major, minor) of the uppermost mount at `mountpoint` as the kernel lists it, or None. Asks nobody who could hang."""
    found = None
    for line in (
        Path(f"/proc/{namespace_pid or 'thread-self'}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ):
        fields = line.split(" ")
        if re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]) == mountpoint:
            major, _, minor = fields[2].partition(":")
            found = (int(major), int(minor))
    return found


def set_read_ahead(device: tuple[int, int], size_bytes: int) -> None:
    """Let the kernel read `size_bytes` ahead on this mount (root). It keeps the value from the negotiation, at most 128 KiB, otherwise.

    Raises:
        MountFailed: not root, or /sys is read-only.
    """
    path = Path(READ_AHEAD_ROOT, f"{device[0]}:{device[1]}", "read_ahead_kb")
    try:
        path.write_text(str(size_bytes // 1024), encoding="ascii")
    except OSError as failed:
        raise MountFailed(f"{path}: {failed.strerror}") from failed
