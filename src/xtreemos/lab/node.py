"""Turns a prepared process into a machine of the lab: namespaces, mounts, host name, init.

What a node sees: the host's file system read-only, with its own /proc, /sys, cgroups, /dev/pts, /dev/shm, /run, /tmp, /var/tmp;
overlays of /etc and /var whose changes last as long as the power; and its own folders (LAB/nodes/N/...), which outlive it:
/var/lib/xtreemos (state), /var/log/xtreemos (log), /home, /root. The checkout and its Python keep their paths, also where the
host hides them from other users (a clone in /root): grid users must be able to run `xos`.

Everything mounted here is private to the node's mount namespace and goes with its last process. Source: namespaces(7),
mount_namespaces(7), Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from xtreemos.lab import groups, linux
from xtreemos.lab.launch import launch
from xtreemos.lab.model import Lab, Node, Running, hosts_file
from xtreemos.lab.view import search_path, visible_trees

_PERSISTENT = {"state": "/var/lib/xtreemos", "log": "/var/log/xtreemos", "home": "/home", "root": "/root"}
_FRESH_TMPFS = {"/tmp": "mode=1777", "/var/tmp": "mode=1777", "/run": "mode=0755", "/dev/shm": "mode=1777"}  # noqa: S108
PLACES = ("/xos",)
"""Folders that a node's software makes on a machine's root. A lab's root is the host's, read-only, so these stand there while there is a lab."""
_HIDDEN = ("/home", "/root", "/tmp", "/run", "/var/tmp", "/var/lib/xtreemos", "/var/log/xtreemos")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Machine:
    """What the set-up of one node needs: its lab, itself, and the folder whose parts outlive a power cut."""

    lab: Lab
    node: Node
    folder: Path


def power_on(machine: Machine) -> Running:
    """Start the node's init in fresh namespaces and return it; raise LabError with the step that failed.

    The network is plugged in afterwards.
    """
    lab, node = machine.lab, machine.node
    groups.make(lab.name, node.name)
    return launch(lab.name, node.name, linux.NODE_NAMESPACES, lambda: _prepare(machine))


def _prepare(machine: Machine) -> None:
    socket.sethostname(machine.node.name)
    build_root(machine)


def build_root(machine: Machine) -> None:
    """Give the calling process, alone in its mount namespace, the node's view of the file system."""
    own = {target: _path_handle(machine.folder / part) for part, target in _PERSISTENT.items()}
    trees = {path: _path_handle(path) for path in visible_trees()}
    v1 = [tree for tree in groups.trees() if not tree.is_v2]
    machine_id = _machine_id(machine.folder)
    for place in PLACES:
        os.makedirs(place, exist_ok=True)
    linux.mount("", "/", "", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.set_read_only("/", recursive=True)
    _mount_kernel_trees()
    _mount_overlays(("/etc", "/var"))
    for target, options in {**_FRESH_TMPFS, **dict.fromkeys(PLACES, "mode=0755")}.items():
        linux.mount("tmpfs", target, "tmpfs", flags=linux.MS_NOSUID | linux.MS_NODEV, data=options)
    for target, handle in own.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        linux.bind(handle, target)
    for path, handle in trees.items():
        _show(path, handle)
    _mount_v1(v1)
    _write_identity(machine, machine_id)


def _path_handle(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_kernel_trees() -> None:
    """Own /proc, /sys with a v2-only cgroup tree (crun refuses a hybrid one), terminals and message queues."""
    plain = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    for target in ("/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue"):  # noqa: S108
        with contextlib.suppress(OSError):  # not mounted (any more): mounts may be stacked
            while True:
                linux.detach(target)
    linux.mount("proc", "/proc", "proc", flags=plain)
    linux.mount("sysfs", "/sys", "sysfs", flags=plain)
    linux.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags=plain)
    options = "newinstance,gid=5,mode=620,ptmxmode=666"
    linux.mount("devpts", "/dev/pts", "devpts", flags=linux.MS_NOSUID | linux.MS_NOEXEC, data=options)
    if os.path.isdir("/dev/mqueue"):
        linux.mount("mqueue", "/dev/mqueue", "mqueue", flags=plain)


def _mount_overlays(targets: tuple[str, ...]) -> None:
    """Make folders of the shared root writable for this node alone. The changes live in a tmpfs: no trace on the host."""
    staging = "/tmp"  # noqa: S108  # exists on every machine; covered by the node's own right after
    linux.mount("tmpfs", staging, "tmpfs", data="mode=0700")
    for target in targets:
        upper, work = (f"{staging}/{part}{target}" for part in ("upper", "work"))
        os.makedirs(upper)
        os.makedirs(work)
        linux.mount("overlay", target, "overlay", data=f"lowerdir={target},upperdir={upper},workdir={work}")
    linux.detach(staging)


def _show(path: Path, handle: int) -> None:
    """Let everybody in the node reach `path`, read-only, where the node's own folders or the host's modes hide it."""
    closed = not os.fstat(handle).st_mode & 0o001
    hidden_by = next((Path(top) for top in _HIDDEN if path.is_relative_to(top)), None) or _closed_ancestor(path)
    if hidden_by is None and not closed:
        return
    if hidden_by is not None and str(hidden_by) not in _HIDDEN:
        linux.mount("tmpfs", str(hidden_by), "tmpfs", data="mode=0711")
    elif hidden_by is not None and hidden_by != path:
        hidden_by.chmod(hidden_by.stat().st_mode | 0o011)
    path.mkdir(parents=True, exist_ok=True)
    if not closed:
        linux.bind(handle, str(path), read_only=True)
        return
    linux.mount("tmpfs", str(path), "tmpfs", data="mode=0755")
    for name in os.listdir(f"/proc/self/fd/{handle}"):  # a clone into a private folder: what is in it is open
        _show_entry(handle, name, path / name)


def _show_entry(folder: int, name: str, target: Path) -> None:
    entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    mode = os.fstat(entry).st_mode
    if stat.S_ISLNK(mode):
        target.symlink_to(os.readlink(name, dir_fd=folder))
    elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        target.mkdir() if stat.S_ISDIR(mode) else target.touch()
        linux.bind(entry, str(target), read_only=True)
    os.close(entry)


def _closed_ancestor(path: Path) -> Path | None:
    """The topmost folder above `path` that strangers may not pass through."""
    return next((top for top in reversed(path.parents) if not top.stat().st_mode & 0o001), None)


def _mount_v1(trees: list[groups.Tree]) -> None:
    """Show the node its own v1 groups at /run/cgroup1/CONTROLLER, for the controllers that v2 does not hold here."""
    for tree in trees:
        for name in tree.controllers.split(","):
            if name in groups.WANTED:
                target = f"/run/cgroup1/{name}"
                os.makedirs(target)
                linux.mount("cgroup", target, "cgroup", data=tree.controllers)


def _machine_id(folder: Path) -> str:
    """The node's /etc/machine-id, made once and kept through power cuts."""
    file = folder / "machine-id"
    if not file.exists():
        file.write_text(os.urandom(16).hex() + "\n")
    return file.read_text()


def _write_identity(machine: Machine, machine_id: str) -> None:
    """Who this machine is, and nobody to ask for other names: outside the lab there is nothing to reach."""
    for name, text in {
        "hosts": hosts_file(machine.lab, machine.node),
        "hostname": machine.node.name + "\n",
        "resolv.conf": "# no name server: an unknown name is refused at once\n",
        "machine-id": machine_id,
        "profile.d/xtreemos.sh": f"PATH={search_path()}\nexport PATH\n",  # login shells set PATH anew
    }.items():
        file = Path("/etc") / name
        file.unlink(missing_ok=True)  # it may be a link to somewhere in the host's /run
        file.write_text(text)
    for folder in ("/run/lock", "/run/user"):
        os.makedirs(folder, exist_ok=True)
