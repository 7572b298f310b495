"""The system calls that Python 3.11 lacks and a lab node is made of.

Knows flags and numbers of Linux; must not know nodes or labs. Every function raises OSError as the `os` module does.
Source: man pages mount(2), mount_setattr(2), setns(2), unshare(2), keyctl(2), close_range(2), kernel `include/uapi`.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NODE_NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_MOUNT_ATTR_RDONLY = 1
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100
_SYS_MOUNT_SETATTR = 442  # the same on every architecture: numbers above 423 are shared
_PR_SET_PDEATHSIG = 1
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones; a new PID namespace is for children only."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespaces `flags` of the process behind a pidfd (or the one namespace of a /proc/PID/ns file)."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)), "setns")


def mount(source: str, target: str, kind: str, *, flags: int = 0, data: str = "") -> None:
    """Mount `source` (type `kind`, may be empty) at `target`."""
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None),
        f"{source} on {target}",
    )


def bind(descriptor: int, target: str, *, read_only: bool = False) -> None:
    """Bind what an open descriptor (O_PATH will do) names to `target`; works also when no path leads there any more."""
    mount(f"/proc/self/fd/{descriptor}", target, "", flags=MS_BIND)
    set_read_only(target, on=read_only)  # said either way: a bind takes over what the mount of its source says


def detach(target: str) -> None:
    """Unmount `target` and all below it, now or when its last user leaves."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(MNT_DETACH)), target)


def set_read_only(target: str, *, on: bool = True, recursive: bool = False) -> None:
    """Make the mount at `target` read-only (or writable), with all mounts below it if `recursive`; other attributes stay."""
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY) if on else _MountAttr(attr_clr=_MOUNT_ATTR_RDONLY)
    flags = _AT_RECURSIVE if recursive else 0
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(target.encode()),
            ctypes.c_uint(flags),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        f"read-only {target}",
    )


def die_with_parent(signal_number: int) -> None:
    """Ask for `signal_number` when the parent (the thread that forked us) ends."""
    _check(_libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal_number), 0, 0, 0), "prctl")


def join_fresh_session_keyring() -> None:
    """Give the calling process an empty session keyring of its own; kernels without keyrings are left as they are."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), ctypes.c_void_p(None))


def close_from(first: int) -> None:
    """Close every descriptor from `first` up."""
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
