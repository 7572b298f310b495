"""What a machine must have to be a node, judged: facts in, one `Check` per subject out.

Pure: probing is in doctor_probe.py, printing in cli/doctor.py. `fail` is for what a node cannot do without, `warn` for what costs
a feature or speed. Every check that is not ok says what that costs and how to mend it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CONTROLLERS = ("cpu", "memory", "pids")
SETUP = "make setup"
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table."""

    name: str
    state: State
    detail: str  # what was found, or what is missing
    cost: str = ""  # what cannot be done because of it; empty if ok
    mend: str = ""  # a command or a setting; empty if ok or if nothing helps


def ok(name: str, detail: str) -> Check:
    """Return a row with nothing to mend."""
    return Check(name, "ok", detail)


def version_of(text: str) -> tuple[int, ...]:
    """Return the first dotted number in `text` as integers, () if there is none: `crun version 1.21` -> (1, 21)."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def judge_python(version: tuple[int, ...]) -> Check:
    """Judge the interpreter's version."""
    text = ".".join(map(str, version[:3]))
    if version < (3, 11):
        return Check("python", "fail", f"Python {text} is too old", "nothing runs", "install Python 3.11 or newer, then make setup")
    return ok("python", text)


def judge_user(uid: int) -> Check:
    """Judge who asks: a node needs root, a client does not."""
    if uid:
        return Check("user", "warn", f"not root (uid {uid})", "xos up, xos join and xos lab need root; log-in and xos run do not", "sudo xos ...")
    return ok("user", "root")


def judge_kernel(release: str) -> Check:
    """Judge the kernel's version against the newest feature that we use."""
    version = version_of(release)
    if version < (5, 14):
        return Check("kernel", "fail", f"{release} is too old", "no cgroup.kill: jobs cannot be ended for certain", "boot a kernel >= 5.14")
    if version < (6, 9):
        return Check("kernel", "warn", release, "no FUSE passthrough: local replicas are read more slowly", "boot a kernel >= 6.9")
    return ok("kernel", release)


def judge_namespaces(present: frozenset[str], trial: tuple[int, str]) -> Check:
    """Judge namespaces by the kernel's list and by (exit code, output) of a trial `unshare`."""
    missing = [name for name in NAMESPACES if name not in present]
    cost = "no sandbox: this machine cannot run jobs"
    if missing:
        return Check("namespaces", "fail", "missing: " + ", ".join(missing), cost, "boot a kernel with all namespaces")
    if trial[0]:
        mend = "run as root outside containers, or let the container create namespaces (CAP_SYS_ADMIN)"
        return Check("namespaces", "fail", f"unshare failed: {one_line(trial[1])}", cost, mend)
    return ok("namespaces", "all seven")


def judge_virtual_network(trial: tuple[int, str]) -> Check:
    """Judge whether veth pairs and bridges can be made."""
    if trial[0]:
        return Check("virtual network", "warn", one_line(trial[1]), "xos lab and jobs with a network of their own", "modprobe -a veth bridge; make setup")
    return ok("virtual network", "veth and bridge")


def judge_cgroups(mountinfo: str, controllers: str, *, writable: bool) -> Check:
    """Judge control groups.

    Args:
        mountinfo: text of /proc/self/mountinfo.
        controllers: text of the v2 tree's cgroup.controllers, "" without such a tree.
        writable: whether the caller may make groups in the v2 tree.
    """
    tail = [line.partition(" - ")[2].split() for line in mountinfo.splitlines()]
    v1 = sorted({opt for t in tail if t[:1] == ["cgroup"] for opt in t[-1].split(",") if opt in CONTROLLERS})
    missing = [name for name in CONTROLLERS if name not in controllers.split()]
    mend = "boot with systemd.unified_cgroup_hierarchy=1"
    if not any(t[:1] == ["cgroup2"] for t in tail):
        return Check("cgroups", "fail", "no cgroup v2 tree is mounted", "jobs cannot be accounted, frozen or ended together", mend)
    if missing:
        where = f"{', '.join(v1)} held by v1" if v1 else "the v2 tree lacks " + ", ".join(missing)
        state: State = "warn" if set(missing) <= set(v1) else "fail"
        cost = "limits go through v1 groups" if state == "warn" else f"no limits of {', '.join(m for m in missing if m not in v1)}"
        return Check("cgroups", state, f"hybrid: {where}" if v1 else where, cost, mend)
    if not writable:
        return Check("cgroups", "warn", "v2, not writable by this user", "only root can limit jobs", "sudo xos ...")
    return ok("cgroups", "v2 with " + ", ".join(CONTROLLERS))


def judge_fuse(error: str) -> Check:
    """Judge /dev/fuse by the error of opening it, "" if it opened."""
    if error:
        return Check("fuse", "warn", f"/dev/fuse: {error}", "XtreemFS volumes cannot be mounted", "modprobe fuse; in a container pass --device /dev/fuse")
    return ok("fuse", "/dev/fuse opens")


def judge_crun(version_text: str | None) -> Check:
    """Judge crun by the text of `crun --version`, None if it is not there."""
    if version_text is None:
        return Check("crun", "fail", "not installed", "no sandbox: this machine cannot run jobs", SETUP)
    version = version_text.partition("\n")[0].removeprefix("crun version ")
    if "+CRIU" not in version_text:
        return Check("crun", "warn", f"{version}, built without CRIU", "no checkpoint, restart, migration", SETUP)
    return ok("crun", f"{version} with CRIU")


def judge_criu(version_text: str | None, trial: tuple[int, str], *, root: bool) -> Check:
    """Judge CRIU by its version and by (exit code, output) of `criu check`."""
    cost = "no checkpoint, restart, migration"
    if version_text is None:
        return Check("criu", "warn", "not installed", cost, SETUP)
    number = version_of(version_text)
    text = ".".join(map(str, number))
    if number < (4, 1):
        return Check("criu", "warn", f"{text or 'unknown version'} is too old", cost, SETUP)
    if not root:
        return Check("criu", "warn", f"{text}, not tried", "only root can check it", "sudo xos doctor")
    if trial[0]:
        return Check("criu", "warn", f"{text}, criu check: {one_line(trial[1])}", cost, "see `criu check`; a kernel with CONFIG_CHECKPOINT_RESTORE is needed")
    return ok("criu", f"{text}, criu check is content")


def judge_seccomp(actions: str) -> Check:
    """Judge the system-call filter by the text of kernel/seccomp/actions_avail."""
    if "errno" not in actions.split():
        return Check("seccomp", "fail", "the kernel has no seccomp filters", "jobs could reach dangerous system calls", "boot a kernel with CONFIG_SECCOMP_FILTER")
    return ok("seccomp", "filters")


def judge_nss(nsswitch: str, *, library: bool) -> Check:
    """Judge name service: the text of nsswitch.conf, and whether libnss_systemd is installed."""
    cost = "grid users have no names here; ssh log-in as a grid user is refused"
    if not library:
        return Check("nss", "fail", "libnss_systemd is not installed", cost, "apt-get install libnss-systemd")
    databases = {line.partition(":")[0].strip(): line.partition(":")[2].split() for line in nsswitch.splitlines()}
    missing = [name for name in ("passwd", "group") if "systemd" not in databases.get(name, [])]
    if missing:
        mend = f"sed -i -E '/^({'|'.join(missing)}):/ s/$/ systemd/' /etc/nsswitch.conf"
        return Check("nss", "fail", "nsswitch.conf does not ask systemd for " + ", ".join(missing), cost, mend)
    return ok("nss", "systemd answers for passwd and group")


def judge_clock(now_s: float, newest_source_s: float, adjtimex_state: int) -> Check:
    """Judge the clock: seconds since 1970 now, of our newest source file, and what adjtimex(2) returned (-1: not told)."""
    if now_s < newest_source_s - 86400:
        return Check("clock", "fail", "more than a day behind this software's own files", "every certificate looks not yet valid", "timedatectl set-ntp true")
    if adjtimex_state == TIME_ERROR:
        cost = "a clock that drifts by minutes makes credentials look expired"
        return Check("clock", "warn", "not known to be synchronised", cost, "timedatectl set-ntp true, or install chrony")
    return ok("clock", "synchronised" if adjtimex_state >= 0 else "sane")


def judge_ports(busy: tuple[int, ...], *, node_runs: bool) -> Check:
    """Judge our TCP ports by those that cannot be bound."""
    if not busy:
        return ok("ports", "free")
    listed = ", ".join(map(str, busy))
    if node_runs:
        return ok("ports", f"{listed} in use by this machine's node")
    return Check("ports", "fail", f"{listed} in use by another program", "xos up cannot start a node", f"ss -ltnp 'sport = :{busy[0]}'")


def judge_nats(version_text: str | None) -> Check:
    """Judge nats-server by the text of `nats-server --version`, None if it is not there."""
    if version_text is None:
        return Check("nats-server", "fail", "not installed", "no core node can run here", SETUP)
    text = ".".join(map(str, version_of(version_text)))
    if version_of(version_text) < (2, 12):
        return Check("nats-server", "fail", f"{text or version_text} is too old", "no core node can run here", SETUP)
    return ok("nats-server", text)


def judge_sshd(path: str | None) -> Check:
    """Judge OpenSSH's server by its path, None if it is not there."""
    if path is None:
        return Check("sshd", "warn", "not installed", "stock ssh, scp and sftp cannot reach this node", "apt-get install openssh-server")
    return ok("sshd", path)


def judge_nft(trial: tuple[int, str] | None, *, root: bool) -> Check:
    """Judge packet filtering by (exit code, output) of `nft list tables`, None if nft is not there."""
    cost = "jobs' outgoing network cannot be filtered"
    if trial is None:
        return Check("nft", "warn", "not installed", cost, "apt-get install nftables")
    if not root:
        return ok("nft", "installed, not tried without root")
    if trial[0]:
        return Check("nft", "warn", one_line(trial[1]), cost, "modprobe nf_tables; in a container give CAP_NET_ADMIN")
    return ok("nft", "works")


def judge_keyrings(*, present: bool) -> Check:
    """Judge kernel keyrings by /proc/keys."""
    if not present:
        return Check("keyrings", "warn", "the kernel has no keyrings", "session keys live in the agent only", "boot a kernel with CONFIG_KEYS")
    return ok("keyrings", "present")


def judge_userfaultfd(*, present: bool, allowed: bool) -> Check:
    """Judge user-space page faults: known to the kernel, and open to this user."""
    cost = "no shared memory objects, no post-copy migration"
    if not present:
        return Check("userfaultfd", "warn", "the kernel has none", cost, "boot a kernel with CONFIG_USERFAULTFD")
    if not allowed:
        return Check("userfaultfd", "warn", "for root only", cost, "sysctl vm.unprivileged_userfaultfd=1")
    return ok("userfaultfd", "usable")


def judge_native(missing: tuple[str, ...]) -> Check:
    """Judge our own compiled programs."""
    if missing:
        return Check("native programs", "warn", "not built: " + ", ".join(missing), "xos run starts about 10 ms later", "apt-get install gcc libc6-dev; make setup")
    return ok("native programs", "built")


def one_line(text: str) -> str:
    """Return the last line of a program's output that says something, at most 120 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it failed without a word"
