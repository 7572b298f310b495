"""The system call filter of every job, as the `linux.seccomp` section of an OCI configuration. Pure.

A deny list: programs of the node run unchanged, and what is denied is what a job without capabilities could still use against
the kernel (bpf, io_uring, userfaultfd, keyrings), to leave its namespaces (user namespaces, setns, mounts), or to type into
somebody's terminal (TIOCSTI). io_uring would also make a job immovable: CRIU cannot dump its descriptors.
A long allow list was rejected: it takes crun milliseconds to compile and breaks programs with every new libc.
Source: notes/vo-security.md 5.6; Docker's default profile for the list of calls.
"""

from __future__ import annotations

from typing import Any

EPERM = 1
ENOSYS = 38
CLONE_NEWUSER = 0x10000000
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
KEYCTL_JOIN_SESSION_KEYRING = 1

# ENOSYS where the C library or programs then take another way; EPERM where the answer is simply no.
ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "perf_event_open")
REFUSED = (
    # keys of the machine
    "add_key", "request_key",
    # kernel code and kernel life
    "bpf", "init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load", "reboot",
    # mounts and name spaces
    "mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "pivot_root", "chroot", "setns", "open_by_handle_at", "name_to_handle_at", "swapon", "swapoff", "quotactl",
    "quotactl_fd",
    # machine-wide state
    "acct", "settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "adjtimex", "syslog", "lookup_dcookie",
    "nfsservctl", "vhangup", "iopl", "ioperm", "uselib", "fanotify_init",
)  # fmt: skip


def _rule(names: tuple[str, ...], errno: int, *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    if args:
        rule["args"] = list(args)
    return rule


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    """True when `argument & mask == value`."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _differs(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_NE"}


def seccomp_profile() -> dict[str, Any]:
    """Return the filter: everything is allowed but what the module's header names."""
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            _rule(ABSENT, ENOSYS),
            _rule(REFUSED, EPERM),
            _rule(("clone", "unshare"), EPERM, _masked(0, CLONE_NEWUSER, CLONE_NEWUSER)),
            # the request is 32 bits wide in the kernel: high bits set by a caller must not slip past the comparison
            _rule(("ioctl",), EPERM, _masked(1, 0xFFFFFFFF, TIOCSTI)),
            _rule(("ioctl",), EPERM, _masked(1, 0xFFFFFFFF, TIOCLINUX)),
            # container init joins a fresh anonymous session keyring; nothing else of keyctl is open
            _rule(("keyctl",), EPERM, _differs(0, KEYCTL_JOIN_SESSION_KEYRING)),
            _rule(("keyctl",), EPERM, _differs(1, 0)),
        ],
    }
