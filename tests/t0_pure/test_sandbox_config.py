"""The bundle that a sandbox becomes, as far as it can be judged without a kernel."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from xtreemos.foundation.cgroups import _mounts, cgroup_path
from xtreemos.foundation.sandbox import BadSandbox, Bind, SandboxSpec, SystemTree, bundle_config, make_root, write_bundle
from xtreemos.foundation.seccomp import seccomp_profile

SPEC = SandboxSpec(
    uid=1879048192, gid=1879048192, hostname="n1", argv=("make", "-j2"), env=(("PATH", "/usr/bin"),), home="/home/alice", cwd="/home/alice/src",
    fifo_dir="/j/fifo", init_path="/x/init", cgroup_path=cgroup_path("n1", "j.1"), system=SystemTree(("/usr", "/etc"), (("/bin", "usr/bin"),)),
)  # fmt: skip


def test_job_is_never_pid_one():
    args = bundle_config(SPEC)["process"]["args"]
    assert args[0] == "/run/xos/init"
    assert args[args.index("--") + 1 :] == ["make", "-j2"]


def test_job_has_no_privilege_and_cannot_gain_one():
    process = bundle_config(SPEC)["process"]
    assert process["noNewPrivileges"] is True
    assert set(map(tuple, process["capabilities"].values())) == {()}
    assert len(process["capabilities"]) == 5


def test_only_home_work_and_the_fifo_are_writable():
    spec = replace(SPEC, work=(Bind("/data"), Bind("/ro", "/mnt/ro", writable=False)), userdb_dir="/u")
    config = bundle_config(spec)
    binds = {m["destination"]: m["options"] for m in config["mounts"] if m["type"] == "bind"}
    assert {target for target, options in binds.items() if "rw" in options} == {"/home/alice", "/data", "/run/xos/events"}
    assert all("nosuid" in options and "nodev" in options for options in binds.values())
    assert "ro" in binds["/run/systemd/userdb"]
    assert config["root"]["readonly"] is True


def test_name_spaces_are_its_own_and_there_is_no_user_name_space():
    kinds = {space["type"] for space in bundle_config(SPEC)["linux"]["namespaces"]}
    assert kinds == {"pid", "mount", "ipc", "uts", "cgroup", "network"}
    spaces = bundle_config(replace(SPEC, netns="/run/netns/x"))["linux"]["namespaces"]
    assert {"type": "network", "path": "/run/netns/x"} in spaces


def test_outer_folders_are_bound_before_inner_ones():
    config = bundle_config(replace(SPEC, work=(Bind("/home"), Bind("/home/alice/a/b"))))
    order = [m["destination"] for m in config["mounts"] if m["destination"].startswith("/home")]
    assert order == ["/home", "/home/alice", "/home/alice/a/b"]


def test_terminal_and_local_exec_facts_reach_init():
    args = bundle_config(
        replace(SPEC, terminal=(40, 132), umask=0o77, nice=5, rlimits=(("RLIMIT_CPU", 3, -1),), ignored_signals=(1,))
    )["process"]["args"]
    text = " ".join(args)
    for part in ("--tty --winsize 40x132", "--umask 77", "--nice 5", "--rlimit 0=3:-1", "--ignore 1", "--cwd /home/alice/src"):
        assert part in text


@pytest.mark.parametrize(
    "change",
    [{"argv": ()}, {"argv": ("a\0b",)}, {"home": "x"}, {"home": "/a/../b"}, {"uid": 0}, {"rlimits": (("RLIMIT_X", 1, 1),)}],
)
def test_sandboxes_that_cannot_be_are_refused(change):
    with pytest.raises(BadSandbox):
        replace(SPEC, **change)


def test_filter_names_what_the_security_note_asks_for():
    denied = {name for rule in seccomp_profile()["syscalls"] for name in rule["names"]}
    assert denied >= {"keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "mount", "kexec_load", "unshare",
                      "clone", "clone3", "setns", "open_by_handle_at", "init_module", "ioctl"}  # fmt: skip
    assert "ptrace" not in denied


def test_hierarchies_are_read_from_mountinfo():
    text = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 none rw\n31 25 0:27 / /x/a\\040b rw shared:3 - cgroup none rw,memory\n32 25 0:28 / /tmp rw - tmpfs x rw"
    rows = [(kind, str(point), "memory" in options) for kind, point, options in _mounts(text)]
    assert rows == [("cgroup2", "/sys/fs/cgroup", False), ("cgroup", "/x/a b", True)]


def test_a_root_that_is_made_already_is_used_read_only_and_spares_the_bundle_its_own(tmp_path):
    root, folder = tmp_path / "roots" / "7", tmp_path / "job"
    root.parent.mkdir()
    folder.mkdir()
    make_root(root, SPEC.system)
    make_root(root, SPEC.system)
    spec = replace(SPEC, root=str(root), uid=os.getuid() or 1, fifo_dir=str(folder / "fifo"))
    bundle = write_bundle(folder, spec)
    assert bundle_config(spec)["root"] == {"path": str(root), "readonly": True}
    assert (root / "bin").readlink() == Path("usr/bin")
    assert [entry.name for entry in bundle.iterdir()] == ["config.json"]
    with pytest.raises(BadSandbox):
        replace(SPEC, root="roots/7")
