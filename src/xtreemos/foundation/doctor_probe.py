"""Asks this machine what doctor.py judges. Leaves nothing behind: trials happen in namespaces that end with them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from xtreemos.foundation import doctor, paths, tools
from xtreemos.foundation.doctor import Check

PROBE_S_MAX = 20.0
PORTS = (paths.RPC_PORT, paths.NATS_PORT, paths.ROUTE_PORT, paths.SSHD_PORT)


def _try(*argv: str | Path) -> tuple[int, str]:
    """Run a short program; return its exit code and all it said, (127, reason) if it cannot be run."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROBE_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not end in {PROBE_S_MAX:.0f} s"
    except OSError as error:
        return 127, f"{argv[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode(errors="replace")


def _read(path: str) -> str:
    """Return a small file's text, "" if it is not there or not for us."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_root() -> bool:
    return os.geteuid() == 0


def _unshare() -> list[str]:
    """The words that make a private set of namespaces as this user."""
    return ["unshare", *([] if _is_root() else ["--user", "--map-root-user"])]


def _version(find: Callable[[], Path]) -> str | None:
    """Return what a tool says of its version, None if it is missing or broken."""
    try:
        code, text = _try(find(), "--version")
    except tools.ToolMissing:
        return None
    return text if code == 0 else None


def _probe_python() -> Check:
    return doctor.judge_python(tuple(sys.version_info[:3]))


def _probe_user() -> Check:
    return doctor.judge_user(os.geteuid())


def _probe_kernel() -> Check:
    return doctor.judge_kernel(platform.release())


def _probe_namespaces() -> Check:
    trial = _try(*_unshare(), "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--cgroup", "true")
    return doctor.judge_namespaces(frozenset(os.listdir("/proc/self/ns")), trial)


def _probe_virtual_network() -> Check:
    script = "ip link add xd0 type veth peer name xd1 && ip link add xd2 type bridge"
    return doctor.judge_virtual_network(_try(*_unshare(), "--net", "sh", "-c", script))


def _probe_cgroups() -> Check:
    mountinfo = _read("/proc/self/mountinfo")
    points = [line.split()[4] for line in mountinfo.splitlines() if " - cgroup2 " in line]
    root = points[0] if points else "/nonexistent"
    return doctor.judge_cgroups(mountinfo, _read(f"{root}/cgroup.controllers"), writable=os.access(root, os.W_OK))


def _probe_fuse() -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return doctor.judge_fuse(error.strerror or str(error))
    return doctor.judge_fuse("")


def _probe_crun() -> Check:
    return doctor.judge_crun(_version(tools.crun_path))


def _probe_criu() -> Check:
    version = _version(tools.criu_path)
    trial = _try(tools.criu_path(), "check") if version is not None and _is_root() else (0, "")
    return doctor.judge_criu(version, trial, root=_is_root())


def _probe_seccomp() -> Check:
    return doctor.judge_seccomp(_read("/proc/sys/kernel/seccomp/actions_avail"))


def _probe_nss() -> Check:
    library = any(True for folder in ("/lib", "/usr/lib", "/usr/lib64") for _ in Path(folder).glob("**/libnss_systemd.so.2"))
    return doctor.judge_nss(_read("/etc/nsswitch.conf"), library=library)


def _adjtimex_state() -> int:
    """Return what adjtimex(2) says of the clock; -1 if it is not allowed to say. Mode 0 only reads."""
    timex = ctypes.create_string_buffer(512)  # larger than struct timex on any architecture
    return int(ctypes.CDLL(None).adjtimex(timex))


def _probe_clock() -> Check:
    newest_s = max(path.stat().st_mtime for path in Path(__file__).parents[1].glob("**/*.py"))
    return doctor.judge_clock(time.time(), newest_s, _adjtimex_state())


def _busy(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return True
    return False


def _probe_ports() -> Check:
    node_runs = paths.NodePaths(paths.find_grid_dir()).admin_socket.exists()
    return doctor.judge_ports(tuple(port for port in PORTS if _busy(port)), node_runs=node_runs)


def _probe_nats() -> Check:
    return doctor.judge_nats(_version(tools.nats_server_path))


def _probe_sshd() -> Check:
    try:
        return doctor.judge_sshd(str(tools.sshd_path()))
    except tools.ToolMissing:
        return doctor.judge_sshd(None)


def _probe_nft() -> Check:
    nft = shutil.which("nft", path=tools.SYSTEM_PATH)
    return doctor.judge_nft(_try(nft, "list", "tables") if nft else None, root=_is_root())


def _probe_keyrings() -> Check:
    return doctor.judge_keyrings(present=os.path.exists("/proc/keys"))


def _probe_userfaultfd() -> Check:
    knob = _read("/proc/sys/vm/unprivileged_userfaultfd").strip()
    device = os.access("/dev/userfaultfd", os.R_OK | os.W_OK)
    return doctor.judge_userfaultfd(present=bool(knob) or device, allowed=_is_root() or knob == "1" or device)


def _probe_native() -> Check:
    return doctor.judge_native(tuple(name for name in ("xos", "init") if tools.native(name) is None))


PROBES: tuple[Callable[[], Check], ...] = (
    _probe_python,
    _probe_user,
    _probe_kernel,
    _probe_namespaces,
    _probe_virtual_network,
    _probe_cgroups,
    _probe_seccomp,
    _probe_crun,
    _probe_criu,
    _probe_nats,
    _probe_native,
    _probe_nss,
    _probe_sshd,
    _probe_nft,
    _probe_fuse,
    _probe_keyrings,
    _probe_userfaultfd,
    _probe_clock,
    _probe_ports,
)


def examine() -> Iterator[Check]:
    """Run every probe in the order of the table, one row at a time, in about a second."""
    for probe in PROBES:
        yield probe()
