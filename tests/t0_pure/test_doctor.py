"""What xos doctor concludes from facts; the real machine is asked once, at the end."""

from __future__ import annotations

import json

import pytest

from xtreemos.cli import doctor as command
from xtreemos.foundation import doctor, doctor_probe
from xtreemos.foundation.doctor import Check

PURE_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
CRUN = "crun version 1.21\ncommit: 10269840\n+SYSTEMD +CRIU +YAJL"
GOOD = [
    doctor.judge_python((3, 11, 2)),
    doctor.judge_user(0),
    doctor.judge_kernel("6.12.1-amd64"),
    doctor.judge_namespaces(frozenset(doctor.NAMESPACES), (0, "")),
    doctor.judge_virtual_network((0, "")),
    doctor.judge_cgroups(PURE_V2, "cpuset cpu io memory pids", writable=True),
    doctor.judge_fuse(""),
    doctor.judge_crun(CRUN),
    doctor.judge_criu("Version: 4.1.1", (0, "Looks good."), root=True),
    doctor.judge_seccomp("kill_process kill_thread trap errno user_notif trace log allow"),
    doctor.judge_nss("passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\n", library=True),
    doctor.judge_clock(1.7e9, 1.6e9, 0),
    doctor.judge_ports((), node_runs=False),
    doctor.judge_nats("nats-server: v2.12.1"),
    doctor.judge_sshd("/usr/sbin/sshd"),
    doctor.judge_nft((0, ""), root=True),
    doctor.judge_keyrings(present=True),
    doctor.judge_userfaultfd(present=True, allowed=True),
    doctor.judge_native(()),
]
BAD = [
    (doctor.judge_python((3, 10, 4)), "fail"),
    (doctor.judge_user(1000), "warn"),
    (doctor.judge_kernel("5.10.0-30-amd64"), "fail"),
    (doctor.judge_kernel("6.1.0-30-amd64"), "warn"),
    (doctor.judge_namespaces(frozenset(doctor.NAMESPACES) - {"user"}, (0, "")), "fail"),
    (doctor.judge_namespaces(frozenset(doctor.NAMESPACES), (1, "unshare: Operation not permitted\n")), "fail"),
    (doctor.judge_virtual_network((2, "RTNETLINK answers: Not supported")), "warn"),
    (doctor.judge_cgroups(HYBRID, "", writable=True), "warn"),
    (doctor.judge_cgroups(PURE_V2, "cpu memory", writable=True), "fail"),
    (doctor.judge_cgroups(PURE_V2, "cpu memory pids", writable=False), "warn"),
    (doctor.judge_cgroups("", "", writable=True), "fail"),
    (doctor.judge_fuse("No such file or directory"), "warn"),
    (doctor.judge_crun(None), "fail"),
    (doctor.judge_crun("crun version 1.8.1\n+SYSTEMD"), "warn"),
    (doctor.judge_criu(None, (0, ""), root=True), "warn"),
    (doctor.judge_criu("Version: 3.17.1", (0, ""), root=True), "warn"),
    (doctor.judge_criu("Version: 4.1.1", (1, "Error: vDSO"), root=True), "warn"),
    (doctor.judge_criu("Version: 4.1.1", (0, ""), root=False), "warn"),
    (doctor.judge_seccomp(""), "fail"),
    (doctor.judge_nss("passwd: files systemd\ngroup: files systemd\n", library=False), "fail"),
    (doctor.judge_nss("passwd: files\ngroup: files systemd\n", library=True), "fail"),
    (doctor.judge_clock(0.0, 1.6e9, 0), "fail"),
    (doctor.judge_clock(1.7e9, 1.6e9, doctor.TIME_ERROR), "warn"),
    (doctor.judge_ports((7601,), node_runs=False), "fail"),
    (doctor.judge_nats(None), "fail"),
    (doctor.judge_nats("nats-server: v2.10.3"), "fail"),
    (doctor.judge_sshd(None), "warn"),
    (doctor.judge_nft(None, root=True), "warn"),
    (doctor.judge_nft((1, "Operation not permitted"), root=True), "warn"),
    (doctor.judge_keyrings(present=False), "warn"),
    (doctor.judge_userfaultfd(present=False, allowed=True), "warn"),
    (doctor.judge_userfaultfd(present=True, allowed=False), "warn"),
    (doctor.judge_native(("init",)), "warn"),
]


@pytest.mark.parametrize("check", GOOD, ids=lambda check: check.name)
def test_a_good_machine_needs_no_mending(check):
    assert (check.state, check.cost, check.mend) == ("ok", "", "")


@pytest.mark.parametrize(("check", "state"), BAD, ids=lambda value: value.name if isinstance(value, Check) else value)
def test_what_is_missing_says_what_it_costs_and_how_to_mend_it(check, state):
    assert check.state == state
    assert check.detail
    assert check.cost
    assert check.mend


def test_every_subject_has_a_good_and_a_bad_verdict():
    assert {check.name for check in GOOD} == {check.name for check, _ in BAD}


def test_own_node_may_hold_the_ports():
    assert doctor.judge_ports((7601, 7602), node_runs=True).state == "ok"


def test_mending_nss_names_only_the_databases_that_lack_systemd():
    assert "(group)" in doctor.judge_nss("passwd: files systemd\ngroup: files\n", library=True).mend


@pytest.mark.parametrize(
    ("text", "version"), [("crun version 1.21", (1, 21)), ("nats-server: v2.15.1", (2, 15, 1)), ("6.18.44-fc-v595", (6, 18, 44)), ("none", ())]
)
def test_the_first_dotted_number_is_the_version(text, version):
    assert doctor.version_of(text) == version


def _pretend(monkeypatch, *checks):
    monkeypatch.setattr(command, "examine", lambda: iter(checks))


def test_a_failed_check_sets_the_exit_code_and_is_named(monkeypatch, capsys):
    _pretend(monkeypatch, doctor.judge_user(0), doctor.judge_crun(None))
    assert command.doctor() == 1
    assert "mend crun" in capsys.readouterr().out


def test_a_warning_does_not_set_the_exit_code(monkeypatch, capsys):
    _pretend(monkeypatch, doctor.judge_kernel("6.1.0"))
    assert command.doctor() == 0
    assert "less than all works: kernel" in capsys.readouterr().out


def test_text_of_the_machine_is_not_read_as_markup(monkeypatch, capsys):
    _pretend(monkeypatch, Check("nft", "warn", "[/bold] [link]x", "c", "m"))
    command.doctor()
    assert "[/bold] [link]x" in capsys.readouterr().out


def test_json_has_every_field_of_every_row(monkeypatch, capsys):
    _pretend(monkeypatch, doctor.judge_crun(None))
    assert command.doctor(json=True) == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows == [
        {"name": "crun", "state": "fail", "detail": "not installed", "cost": "no sandbox: this machine cannot run jobs", "mend": "make setup"}
    ]


def test_every_subject_is_probed_on_this_machine():
    found = {check.name: check for check in doctor_probe.examine()}
    assert set(found) == {check.name for check in GOOD}
    assert found["python"].state == "ok"
