"""Control groups of a lab: one per lab and one per member (a node, or the switch) below it, in the v2 tree and in the v1 trees that hold controllers.

A node's own view starts at its group (cgroup namespace), as if it were the machine's root: v2 at /sys/fs/cgroup; where the
host holds `memory`, `cpu` or `pids` in v1 trees, those are at /run/cgroup1/CONTROLLER, a generic extra place that
`foundation/cgroups.py` looks at on every machine. Processes of a node live in the child group `system`, so that the node may
hand controllers down to its other groups (v2 forbids processes beside them).

Knows cgroup files; must not know namespaces or networks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xtreemos.lab.model import LabError

WANTED = ("cpu", "memory", "pids")
SYSTEM = "system"  # the node's own processes, beside its job groups
KILL_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Tree:
    """One mounted cgroup hierarchy of the host: where, and for v1 its exact controller set (what a second mount must say)."""

    root: Path
    controllers: str  # "" for v2

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy."""
        return not self.controllers


def trees() -> list[Tree]:
    """Find the host's v2 tree (first) and the v1 trees that hold a wanted controller; raise LabError without v2."""
    found: list[Tree] = []
    held = _v1_sets()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, kind, options = Path(left.split()[4]), right.split()[0], right.split()[-1].split(",")
        if kind == "cgroup2" and not any(tree.is_v2 for tree in found):
            found.insert(0, Tree(root, ""))
        elif kind == "cgroup":
            names = next((held[word] for word in WANTED if word in options and word in held), None)
            if names and all(tree.controllers != names for tree in found):
                found.append(Tree(root, names))
    if not found or not found[0].is_v2:
        raise LabError("this machine has no cgroup v2 tree mounted", "a lab needs one; see `xos doctor`")
    return found


def _v1_sets() -> dict[str, str]:
    """Map each v1 controller to the set it is mounted with: {"cpu": "cpu,cpuacct", "memory": "memory"}."""
    sets = (line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines())
    return {name: group for group in sets for name in group.split(",") if name and not group.startswith("name=")}


def lab_group(tree: Tree, lab_name: str) -> Path:
    """Folder of the lab's group in one tree."""
    return tree.root / f"xtreemos-lab.{lab_name}"


def exists(lab_name: str) -> bool:
    """Tell whether a lab of that name has groups on this machine."""
    return lab_group(trees()[0], lab_name).is_dir()


def any_lab() -> bool:
    """Tell whether there is any lab on this machine, whoever's."""
    return any(trees()[0].root.glob("xtreemos-lab.*"))


def make(lab_name: str, member: str) -> None:
    """Make the member's groups in every tree, with the v2 controllers handed down to them."""
    for tree in trees():
        group = lab_group(tree, lab_name) / member
        for folder in (group.parent, group):
            folder.mkdir(exist_ok=True)
            if tree.is_v2:
                _hand_down(folder.parent)
        if tree.is_v2:
            _hand_down(group)
            (group / SYSTEM).mkdir(exist_ok=True)


def _hand_down(folder: Path) -> None:
    """Enable the wanted controllers for the children of `folder`.

    Where that is busy (a container's root group with processes in it) nodes do without limits, and their `xos doctor` says so.
    """
    available = (folder / "cgroup.controllers").read_text().split()
    words = " ".join(f"+{name}" for name in WANTED if name in available)
    if words:
        try:
            (folder / "cgroup.subtree_control").write_text(words)
        except OSError as refused:
            if refused.errno not in {errno.EBUSY, errno.EOPNOTSUPP}:
                raise


def join_files(lab_name: str, member: str) -> tuple[list[int], int]:
    """Open what a process must write "0" to in order to join: (the member's groups in all trees, its v2 `system` group)."""
    roots: list[int] = []
    system = -1
    for tree in trees():
        group = lab_group(tree, lab_name) / member
        roots.append(os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        if tree.is_v2:
            system = os.open(group / SYSTEM / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    return roots, system


def set_frozen(lab_name: str, member: str, frozen: bool) -> None:
    """Stop or continue every process of the member, and wait until that is so (a cgroup v2 freeze)."""
    group = lab_group(trees()[0], lab_name) / member
    (group / "cgroup.freeze").write_text("1" if frozen else "0")
    _wait_event(group, f"frozen {int(frozen)}", f"{member} did not {'freeze' if frozen else 'thaw'}")


def is_frozen(lab_name: str, member: str) -> bool:
    """Tell whether the member was frozen by `set_frozen`."""
    try:
        return (lab_group(trees()[0], lab_name) / member / "cgroup.freeze").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def processes(lab_name: str, member: str) -> int:
    """Count the processes of the member, jobs included; 0 if it is off."""
    return sum(1 for group in _below(lab_group(trees()[0], lab_name) / member) for _ in _pids(group))


def held_pids(lab_name: str) -> list[int]:
    """Process ids, as the host sees them, of everything in a lab."""
    return [int(pid) for group in _below(lab_group(trees()[0], lab_name)) for pid in _pids(group)]


def kill_and_remove(lab_name: str, member: str = "") -> None:
    """SIGKILL everything in the groups of one member, or of the whole lab; wait until it is gone; remove the groups."""
    for tree in trees():
        group = lab_group(tree, lab_name) / member
        if not group.is_dir():
            continue
        if tree.is_v2:
            (group / "cgroup.kill").write_text("1")
            _wait_event(group, "populated 0", f"processes of {member or lab_name} survive SIGKILL")
        for folder in reversed(list(_below(group))):
            _remove_group(folder)


def _below(group: Path) -> Iterator[Path]:
    """Yield `group` and all groups below it, parents first."""
    if group.is_dir():
        yield group
        for child in sorted(group.iterdir()):
            if child.is_dir():
                yield from _below(child)


def _pids(group: Path) -> list[str]:
    with contextlib.suppress(OSError):  # the group has just gone, or is threaded
        return (group / "cgroup.procs").read_text().split()
    return []


def _remove_group(folder: Path) -> None:
    """Remove an empty group; the kernel may hold one for a moment after its last process was reaped."""
    end = time.monotonic() + KILL_WAIT_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as busy:
            if busy.errno != errno.EBUSY or time.monotonic() > end:
                raise LabError(f"the group {folder} cannot be removed: {busy.strerror}") from busy
            time.sleep(0.005)
        else:
            return


def _wait_event(group: Path, wanted: str, complaint: str) -> None:
    """Wait until cgroup.events has the line `wanted`; the kernel wakes us by POLLPRI."""
    end = time.monotonic() + KILL_WAIT_S
    with open(group / "cgroup.events", encoding="ascii") as events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while True:
            events.seek(0)
            if wanted in events.read().splitlines():
                return
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise LabError(complaint)
            poller.poll(min(left_s, 1.0) * 1000)
