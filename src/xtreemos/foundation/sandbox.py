"""The sandbox of a job: an OCI bundle for crun made out of a `SandboxSpec`.

`bundle_config` is pure; `probe_system` looks at the machine once per node; `write_bundle` makes the folder that jobd starts.

What a job sees: the machine's programs and libraries read-only, its own /tmp, /run and /dev, its home and working folders, its
own PID, mount, IPC, UTS, network and cgroup namespaces, no capability, no way to gain one, the filter of `seccomp`.
There is **no user namespace**: CRIU cannot dump binds of files outside of one as external mounts of a container inside one, so
it would cost migration; a grid user has a uid of its own per VO and node, which keeps people apart, and a job is refused to
make user namespaces of its own. PID 1 is `native/init.c`; the job is its child (see there why).
A job may write to the FIFO of its own init: what comes through it is the job's word about itself, never more.

Layout of a job's folder: `bundle/` (config.json, rootfs/), `fifo/events`, later `exit.json`, `crun.log`, `spool/`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from xtreemos.errors import UsageError
from xtreemos.foundation.jobd.model import FDS_FROM, FIFO_NAME
from xtreemos.foundation.seccomp import seccomp_profile

INNER_INIT = "/run/xos/init"
INNER_FIFO_DIR = "/run/xos/events"
OOM_SCORE = 300  # the node's own processes outlive its jobs
TMP_BYTES = 2 << 30

_MASKED = (
    "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi",
    "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu", "/snap",
    "/var/lib", "/var/cache",
)  # fmt: skip

RLIMITS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
}  # fmt: skip


class BadSandbox(UsageError):
    """A sandbox was described that cannot be: the text names the part. Nothing was made."""

    code = "bad-sandbox"


@dataclass(frozen=True, slots=True)
class SystemTree:
    """What of the machine every job sees: `folders` bound read-only, `links` (path, target) made again."""

    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path shown inside. `target` None: at the same path."""

    source: str
    target: str | None = None
    writable: bool = True


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One job's sandbox. Paths are absolute; `argv` non-empty; `rlimits` rows of (RLIMIT_X, soft, hard), -1 is unlimited.

    `home` must exist on the host and is shown writable at the same path. `netns` None is a network with nothing but loopback.
    `terminal` is (rows, columns) or None. `stderr_apart`: beside the terminal
    jobd gives a pipe for standard error. `stdio_fds`: jobd passes the caller's own descriptors. `serves_tasks`: init starts `argv`
    once for each order of jobd's, and not before (the tasks of an array). `root` is a folder that `make_root` made, for jobs of one
    user in one VO only (mount points stay in it, and tell names); None: one of the job's own. `cwd` missing inside: the job
    gets a warning line and works in `home`. `hidden` paths show as empty. `nice` below 0 needs a privilege no job has: 0 then.
    """

    uid: int
    gid: int
    hostname: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    home: str
    cwd: str
    fifo_dir: str
    init_path: str
    cgroup_path: str
    system: SystemTree
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    nice: int = 0
    rlimits: tuple[tuple[str, int, int], ...] = ()
    ignored_signals: tuple[int, ...] = ()
    terminal: tuple[int, int] | None = None
    stderr_apart: bool = False
    stdio_fds: bool = False
    serves_tasks: bool = False
    root: str | None = None
    work: tuple[Bind, ...] = ()
    userdb_dir: str | None = None
    netns: str | None = None
    hidden: tuple[str, ...] = ()
    tmp_bytes: int = TMP_BYTES

    def __post_init__(self) -> None:
        if not self.argv or any("\0" in word for word in self.argv):
            raise BadSandbox("a job needs a program", "give PROG [ARG]...")
        for path in (self.home, self.fifo_dir, self.init_path, self.root or "/", *(bind.source for bind in self.work)):
            if not path.startswith("/") or "\0" in path or "/../" in f"{path}/":
                raise BadSandbox(f"{path[:80]!r} is not an absolute path without ..")
        for name, _, _ in self.rlimits:
            if name not in RLIMITS:
                raise BadSandbox(f"unknown resource limit {name[:40]!r}")
        if self.uid == 0:
            raise BadSandbox("a job never runs as root", "log in as a member of the VO")


def _mount(kind: str, target: str, *options: str, source: str | None = None) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


def _bind(source: str, target: str, *, writable: bool = False) -> dict[str, Any]:
    return _mount("bind", target, "bind", "rprivate", "nosuid", "nodev", "rw" if writable else "ro", source=source)


def _mounts(spec: SandboxSpec) -> list[dict[str, Any]]:
    quiet = ("nosuid", "nodev", "noexec")
    mounts = [_bind(path, path) for path in spec.system.folders]
    mounts += [
        _mount("proc", "/proc", *quiet),
        _mount("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        _mount("tmpfs", "/dev/shm", *quiet, "mode=1777", f"size={spec.tmp_bytes}"),  # noqa: S108  # the job's own
        _mount("mqueue", "/dev/mqueue", *quiet),
        _mount("sysfs", "/sys", *quiet, "ro"),
        _mount("tmpfs", "/run", "nosuid", "nodev", "mode=755", "size=64m"),
        _mount("tmpfs", "/tmp", "nosuid", "nodev", "mode=1777", f"size={spec.tmp_bytes}"),  # noqa: S108  # the job's own
        _mount("tmpfs", "/var/tmp", "nosuid", "nodev", "mode=1777", f"size={spec.tmp_bytes}"),  # noqa: S108  # the same
        _bind(spec.init_path, INNER_INIT),
        _bind(spec.fifo_dir, INNER_FIFO_DIR, writable=True),
    ]
    if spec.userdb_dir:
        mounts.append(_bind(spec.userdb_dir, "/run/systemd/userdb"))
    binds = {(bind.target or bind.source): bind for bind in (Bind(spec.home), *spec.work)}
    # outer folders first: a bind below another must not be covered by it
    mounts += [_bind(bind.source, target, writable=bind.writable) for target, bind in sorted(binds.items())]
    return mounts


def _init_argv(spec: SandboxSpec) -> list[str]:
    argv = [INNER_INIT, "--fifo", f"{INNER_FIFO_DIR}/{FIFO_NAME}", "--umask", f"{spec.umask & 0o777:o}"]
    argv += ["--cwd", spec.cwd, "--home", spec.home]
    if spec.nice > 0:
        argv += ["--nice", str(min(spec.nice, 19))]
    for name, soft, hard in spec.rlimits:
        argv += ["--rlimit", f"{RLIMITS[name]}={soft}:{hard}"]
    for number in spec.ignored_signals:
        argv += ["--ignore", str(number)]
    if spec.terminal:
        argv += ["--tty", "--winsize", f"{spec.terminal[0]}x{spec.terminal[1]}"]
        argv += ["--stderr-from", str(FDS_FROM)] if spec.stderr_apart else []
    elif spec.serves_tasks:
        argv += ["--serve", str(FDS_FROM)]
    elif spec.stdio_fds:
        argv += ["--stdio-from", str(FDS_FROM)]
    return [*argv, "--", *spec.argv]


def bundle_config(spec: SandboxSpec) -> dict[str, Any]:
    """Return the OCI `config.json` of the job. Limits are not in it: jobd's groups keep them (see `cgroups`)."""
    empty: list[str] = []
    network = {"type": "network", "path": spec.netns} if spec.netns else {"type": "network"}
    spaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")]
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": spec.terminal is not None,
            "user": {"uid": spec.uid, "gid": spec.gid, "additionalGids": list(spec.groups), "umask": 0o022},
            "args": _init_argv(spec),
            "env": [f"{name}={value}" for name, value in spec.env],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), empty),
            "noNewPrivileges": True,
            "oomScoreAdj": OOM_SCORE,
        },
        "root": {"path": spec.root or "rootfs", "readonly": True},
        "hostname": spec.hostname,
        "mounts": _mounts(spec),
        "linux": {
            "namespaces": [*spaces, network],
            "cgroupsPath": spec.cgroup_path,
            "maskedPaths": [*_MASKED, *spec.hidden],
            "readonlyPaths": list(_READ_ONLY),
            "seccomp": seccomp_profile(),
        },
    }


def probe_system() -> SystemTree:
    """Look which system folders this machine has; once per node, the answer serves every job."""
    folders, links = [], []
    for path in _SYSTEM:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            folders.append(path)
    resolver = os.path.realpath("/etc/resolv.conf")
    if resolver.startswith("/run/") and os.path.exists(resolver):
        folders.append(resolver)
    return SystemTree(tuple(folders), (*links, ("/var/run", "/run"), ("/var/lock", "/run/lock")))


def make_root(root: Path, system: SystemTree) -> None:
    """Make the folder `root` and the links of `system` in it; what is there already stays."""
    root.mkdir(parents=True, exist_ok=True)
    for path, target in system.links:
        link = root / path[1:]
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


def write_bundle(folder: Path, spec: SandboxSpec) -> Path:
    """Make `folder/bundle` and the FIFO folder named in `spec`; return the bundle's path.

    `folder` must exist, 0700 and root's. Making it again over an old one is allowed.
    """
    bundle = folder / "bundle"
    bundle.mkdir(parents=True, exist_ok=True)
    if spec.root is None:
        make_root(bundle / "rootfs", spec.system)
    make_fifo(Path(spec.fifo_dir), spec.uid)
    (bundle / "config.json").write_bytes(msgspec.json.encode(bundle_config(spec)))  # ten times as fast as the json module
    return bundle


def make_fifo(folder: Path, uid: int) -> None:
    """Make the folder and FIFO through which the job's init (uid `uid`) reports; only that user and root may use it."""
    folder.mkdir(exist_ok=True, mode=0o755)
    path = folder / FIFO_NAME
    if not (path.exists() and stat.S_ISFIFO(path.stat().st_mode)):
        os.mkfifo(path, 0o600)
    os.chown(path, uid, -1)
