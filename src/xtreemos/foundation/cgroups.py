"""Control groups of jobs: limits, statistics, who is inside, freeze and kill. Knows nothing of jobs but a name.

Every current distribution mounts cgroup v2 alone; there v2 does it all. Older and odd machines are *hybrid*: v1 holds the
controllers and v2 has none. crun refuses such a tree, and a v1 freezer hangs checkpoints for ever. So in a node's private
mount namespace `/sys/fs/cgroup` is v2 (freeze, kill, membership, CPU time), and the v1 controllers are mounted elsewhere and
used for limits only (`make_private_view`). Callers see one `Group`. The machine's own groups are left alone: ours live in one
group of our own per node (`tag`). Source: notes/crun-criu.md, "Hybrid cgroups".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xtreemos.errors import XosError

V2_MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_US = 100_000
MIN_MEMORY_BYTES = 16 * 1024 * 1024
MIN_PIDS = 8


class CgroupError(XosError):
    """The machine's control groups cannot be used as asked. Nothing was started."""

    fault = "environment"
    code = "cgroup"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use; None is no limit. `cpus` in cores (0.5 is half a core)."""

    cpus: float | None = None
    memory_bytes: int | None = None
    pids_max: int | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """What a job uses now. CPU times are totals since its start."""

    cpu_s: float
    user_s: float
    system_s: float
    memory_bytes: int
    pids: int


@dataclass(frozen=True, slots=True)
class Group:
    """One job's groups: `v2` for membership, freezing and killing; `v1` where limits live on a hybrid machine."""

    path: str
    v2: Path
    v1: tuple[tuple[str, Path], ...] = ()

    def folder(self, controller: str) -> Path | None:
        """Folder where `controller` acts, v1 before v2; None when neither has it."""
        for name, folder in self.v1:
            if name == controller:
                return folder
        return self.v2 if (self.v2 / f"{controller}.max").exists() else None

    @property
    def join_folders(self) -> tuple[str, ...]:
        """v1 folders that the job's first process must join itself (crun knows only v2)."""
        return tuple(dict.fromkeys(str(folder) for _, folder in self.v1))


def cgroup_path(tag: str, job: str) -> str:
    """The path of a job's group, as OCI's `cgroupsPath` and below every hierarchy. `tag` is the node's own name here."""
    return f"/xtreemos-{tag}/{job}"


def _mounts(mountinfo: str) -> Iterator[tuple[str, Path, frozenset[str]]]:
    """Rows of (type, mount point, super options) for cgroup mounts. Pure."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) > 4 and tail[0] in ("cgroup", "cgroup2"):
            point = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
            yield tail[0], Path(point), frozenset(tail[-1].split(","))


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 20).decode()
    finally:
        os.close(fd)


def _table(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


class Cgroups:
    """The control groups that this process can see, and our part of them."""

    def __init__(self, tag: str, v2: Path, v1: dict[str, Path]) -> None:
        self.tag = tag
        self._v2 = v2
        self._v1 = v1

    @classmethod
    def detect(cls, tag: str) -> Cgroups:
        """Find the hierarchies of this mount namespace and make our own group in each.

        Raises:
            CgroupError: there is no cgroup v2 at /sys/fs/cgroup (on a hybrid machine: call make_private_view first).
        """
        rows = list(_mounts(Path("/proc/self/mountinfo").read_text()))
        if not any(kind == "cgroup2" and point == V2_MOUNT for kind, point, _ in rows):
            raise CgroupError("no cgroup v2 at /sys/fs/cgroup", "start the node through its supervisor, which arranges it")
        native = set(_read(V2_MOUNT / "cgroup.controllers").split())
        v1 = {
            name: point
            for name in (*CONTROLLERS, "cpuacct")
            for kind, point, options in rows
            if kind == "cgroup" and name in options and name not in native
        }
        groups = cls(tag, V2_MOUNT, v1)
        groups._make_roots(native)
        return groups

    def _make_roots(self, native: set[str]) -> None:
        wanted = [f"+{name}" for name in CONTROLLERS if name in native]
        own = self._v2 / f"xtreemos-{self.tag}"
        own.mkdir(exist_ok=True)
        for folder in (self._v2, own):
            if wanted:
                try:
                    _write(folder / "cgroup.subtree_control", " ".join(wanted))
                except OSError as cause:
                    raise CgroupError(f"cannot hand out {' '.join(wanted)} in {folder}", "delegate them to this node") from cause
        for mount in set(self._v1.values()):
            (mount / f"xtreemos-{self.tag}").mkdir(exist_ok=True)

    def create(self, job: str, limits: Limits) -> Group:
        """Make the groups of `job` with `limits`, empty.

        Raises:
            CgroupError: a limit was asked for that no hierarchy here can keep, or the kernel refused it.
        """
        path = cgroup_path(self.tag, job)
        names = ("memory", "pids", "cpu")
        wanted = {"memory": limits.memory_bytes, "pids": limits.pids_max, "cpu": limits.cpus}
        # a v1 group is made only for a limit: each one costs the kernel a fraction of a millisecond per job
        v1 = tuple((name, self._v1[name] / path[1:]) for name in names if name in self._v1 and wanted[name] is not None)
        group = Group(path, self._v2 / path[1:], v1)
        try:
            for folder in {group.v2, *(folder for _, folder in v1)}:
                folder.mkdir(parents=True, exist_ok=True)
            self._limit(group, limits)
        except OSError as cause:
            self.remove(group)
            raise CgroupError(f"the kernel refused limits of job {job}: {cause.strerror}") from cause
        except CgroupError:
            self.remove(group)
            raise
        return group

    def _limit(self, group: Group, limits: Limits) -> None:
        if limits.memory_bytes is not None:
            self._limit_memory(group, max(limits.memory_bytes, MIN_MEMORY_BYTES))
        if limits.pids_max is not None:
            _write(self._need(group, "pids") / "pids.max", str(max(limits.pids_max, MIN_PIDS)))
        if limits.cpus is not None:
            quota = max(1000, int(limits.cpus * CPU_PERIOD_US))
            folder = self._need(group, "cpu")
            if folder == group.v2:
                _write(folder / "cpu.max", f"{quota} {CPU_PERIOD_US}")
            else:
                _write(folder / "cpu.cfs_period_us", str(CPU_PERIOD_US))
                _write(folder / "cpu.cfs_quota_us", str(quota))

    def _limit_memory(self, group: Group, limit_bytes: int) -> None:
        folder = self._need(group, "memory")
        v2 = folder == group.v2
        _write(folder / ("memory.max" if v2 else "memory.limit_in_bytes"), str(limit_bytes))
        # without this the limit would only push the job out to swap; absent where the machine has no swap accounting
        swap, value = ("memory.swap.max", "0") if v2 else ("memory.memsw.limit_in_bytes", str(limit_bytes))
        if (folder / swap).exists():
            _write(folder / swap, value)

    def _need(self, group: Group, controller: str) -> Path:
        folder = group.folder(controller)
        if folder is None:
            raise CgroupError(f"this machine has no {controller} controller", f"ask for no {controller} limit, or another node")
        return folder

    def adopt(self, job: str) -> Group:
        """Return the group of a job of an earlier life, whatever of it exists."""
        path = cgroup_path(self.tag, job)
        v1 = tuple((name, mount / path[1:]) for name, mount in self._v1.items() if (mount / path[1:]).exists())
        return Group(path, self._v2 / path[1:], v1)

    def stats(self, group: Group) -> Stats:
        """Read what the job uses; a job that is gone uses nothing more (zeros)."""
        try:
            cpu = _table(_read(group.v2 / "cpu.stat"))
            pids = len(self.pids(group))
            memory = group.folder("memory")
            name = "memory.current" if memory == group.v2 else "memory.usage_in_bytes"
            memory_bytes = int(_read(memory / name)) if memory else _resident_bytes(self.pids(group))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return Stats(0.0, 0.0, 0.0, 0, 0)
            raise
        return Stats(cpu["usage_usec"] / 1e6, cpu["user_usec"] / 1e6, cpu["system_usec"] / 1e6, memory_bytes, pids)

    def oom_kills(self, group: Group) -> int:
        """How many processes the kernel killed for the memory limit; 0 without a limit."""
        folder = group.folder("memory")
        if folder is None:
            return 0
        name = "memory.events" if folder == group.v2 else "memory.oom_control"
        return _table(_read(folder / name)).get("oom_kill", 0)

    def pids(self, group: Group) -> list[int]:
        """Process ids of the job's whole tree as seen from here; [] when the group is gone."""
        try:
            return [int(pid) for pid in _read(group.v2 / "cgroup.procs").split()]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return []
            raise

    def kill(self, group: Group) -> None:
        """KILL every process of the group at once; nothing can fork away from it."""
        if group.v2.exists():
            _write(group.v2 / "cgroup.kill", "1")

    def freeze(self, group: Group) -> None:
        """Ask that the tree stands still; `frozen` tells when it does."""
        _write(group.v2 / "cgroup.freeze", "1")

    def thaw(self, group: Group) -> None:
        """Let the tree run again."""
        _write(group.v2 / "cgroup.freeze", "0")

    def frozen(self, group: Group) -> bool:
        """Whether the whole tree stands still."""
        return _table(_read(group.v2 / "cgroup.events")).get("frozen") == 1

    def remove(self, group: Group) -> bool:
        """Remove empty groups. False: something still lives in one (or is being buried); ask again."""
        done = True
        for folder in {group.v2, *(folder for _, folder in group.v1)}:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                done = False
        return done

    def remove_root(self) -> bool:
        """Remove our own group of every hierarchy, when the node leaves; False while a job's group is in it."""
        roots = [self._v2, *self._v1.values()]
        left = Group("", roots[0] / f"xtreemos-{self.tag}", tuple(("", r / f"xtreemos-{self.tag}") for r in roots[1:]))
        return self.remove(left)


def _resident_bytes(pids: list[int]) -> int:
    """Sum of resident sets, where no memory controller counts for this job. Shared pages count once per process."""
    total = 0
    for pid in pids:
        try:
            total += int(_read(Path(f"/proc/{pid}/statm")).split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total * os.sysconf("SC_PAGESIZE")


def make_private_view(v1_dir: Path) -> None:
    """Make `/sys/fs/cgroup` pure v2 for this process and its children, v1 controllers mounted below `v1_dir`.

    The caller must have its own mount namespace (`unshare -m`); its mounts become private. On a pure v2 machine nothing is
    changed. Raises CgroupError when a mount fails.
    """
    import subprocess  # here: jobd, which also imports this module, starts nothing this way and stays small

    rows = list(_mounts(Path("/proc/self/mountinfo").read_text()))
    if rows and all(kind == "cgroup2" for kind, _, _ in rows):
        return
    commands = [["mount", "--make-rprivate", "/"]]
    sets = {options & {*CONTROLLERS, "cpuacct"}: options for kind, _, options in rows if kind == "cgroup"}
    for controllers in sets:
        if controllers & set(CONTROLLERS):
            names = ",".join(sorted(controllers))
            (v1_dir / names).mkdir(parents=True, exist_ok=True)
            commands.append(["mount", "-t", "cgroup", "-o", names, "none", str(v1_dir / names)])
    commands += [["umount", "-R", "-l", str(V2_MOUNT)], ["mount", "-t", "cgroup2", "none", str(V2_MOUNT)]]
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise CgroupError(f"{' '.join(command)}: {result.stderr.strip()}", "the node needs a mount namespace of its own")
