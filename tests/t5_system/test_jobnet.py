"""Job networks in the kernel: who reaches whom. Two nested name spaces stand for the outside world and the node."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from xtreemos.foundation.jobnet import CONTROL_PORTS, ruleset

SCRIPT = r"""
import json, os, subprocess, sys, time
from pathlib import Path
from xtreemos.foundation.jobnet import JobNetPool
folder, outgoing = Path(sys.argv[1]), sys.argv[2] == "yes"
def sh(text): subprocess.run(["sh", "-ec", text], check=True, capture_output=True)
# we are the node; beside us the world, at 192.0.2.1
(folder / "world").touch()
subprocess.run(["unshare", f"--net={folder}/world", "true"], check=True)
sh(f"ip link set lo up; ip link add wan type veth peer name far netns {folder}/world; ip addr add 192.0.2.2/24 dev wan; ip link set wan up")
sh(f"nsenter --net={folder}/world sh -ec 'ip link set lo up; ip addr add 192.0.2.1/24 dev far; ip link set far up'")
SERVE = "import socket,sys\nss=[]\nfor p in map(int,sys.argv[1:]):\n s=socket.create_server(('0.0.0.0',p)); ss.append(s)\nprint('up',flush=True); sys.stdin.read()"
def serve(netns, *ports):
    prefix = ["nsenter", f"--net={netns}"] if netns else []
    p = subprocess.Popen([*prefix, sys.executable, "-c", SERVE, *map(str, ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b"up\n"
    return p
TRY = "import socket,sys\ntry:\n socket.create_connection((sys.argv[1],int(sys.argv[2])),0.5); print('yes')\nexcept OSError: print('no')"
def reach(netns, host, port):
    prefix = ["nsenter", f"--net={netns}"] if netns else []
    return subprocess.run([*prefix, sys.executable, "-c", TRY, host, str(port)], capture_output=True, text=True).stdout.strip() == "yes"
pool = JobNetPool(folder / "netns", size=2, outgoing=outgoing, node_ports=(8080,))
answers = {}
servers = []
try:
    pool.open()
    pool.open()  # a second life sweeps the first
    t = time.perf_counter(); pool.fill(); answers["make_ms"] = (time.perf_counter() - t) * 500
    t = time.perf_counter(); a, b = pool.take("red"), pool.take("red"); answers["take_ms"] = (time.perf_counter() - t) * 500
    servers = [serve(f"{folder}/world", 80, 7601), serve(None, 7601, 7622, 8080, 9000), serve(b.path, 5000)]
    answers.update(
        world=reach(a.path, "192.0.2.1", 80), world_control=reach(a.path, "192.0.2.1", 7601), other_job=reach(a.path, b.address, 5000),
        own_loopback=reach(b.path, "127.0.0.1", 5000), node_rpc=reach(a.path, "10.244.0.1", 7601), node_sshd=reach(a.path, "192.0.2.2", 7622),
        node_listed=reach(a.path, "10.244.0.1", 8080), node_other=reach(a.path, "192.0.2.2", 9000),
        into_job=reach(f"{folder}/world", b.address, 5000), node_into_job=reach(None, b.address, 5000), node_self=reach(None, "127.0.0.1", 7601),
        addresses=[a.address, b.address])
    pool.give_back(a, "red"); pool.give_back(a, "red"); pool.give_back(a, "blue")
    other, c, d = pool.take("blue"), pool.take("red"), pool.take("red")
    answers["once"] = c.address == a.address and d.address not in (a.address, b.address)
    answers["foreign"] = other.address in (a.address, b.address, c.address, d.address)
finally:
    for s in servers: s.stdin.close(); s.wait()
    pool.destroy_all()
    answers["left"] = [l.split(":")[0].strip() for l in Path("/proc/self/net/dev").read_text().splitlines()[2:] if ":" in l and l.strip().startswith("xj")]
    answers["files"] = [p.name for p in (folder / "netns").iterdir()]
    subprocess.run(["umount", "-l", f"{folder}/world"], check=True)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module", params=["yes", "no"])
def answers(request):
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-n", "-m", sys.executable, "-c", SCRIPT, folder, request.param]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
        assert result.returncode == 0, result.stderr
        yield {**json.loads(result.stdout), "outgoing": request.param == "yes"}


def test_jobs_reach_the_world_if_and_only_if_policy_says_so(answers):
    assert answers["world"] == answers["outgoing"]


def test_jobs_never_reach_each_other_nor_control_ports(answers):
    assert not any(
        answers[name] for name in ("other_job", "world_control", "node_rpc", "node_sshd", "node_other", "into_job", "node_into_job")
    )


def test_listed_ports_of_the_node_and_the_own_loopback_are_open(answers):
    assert answers["node_listed"]
    assert answers["own_loopback"]
    assert answers["node_self"]


def test_a_prepared_network_costs_nothing_and_one_given_back_twice_serves_one_job(answers):
    assert answers["take_ms"] < 5
    assert answers["once"]
    assert not answers["foreign"]
    assert len(set(answers["addresses"])) == 2


def test_nothing_is_left_behind(answers):
    assert answers["left"] == []
    assert answers["files"] == []


def test_rules_name_every_control_port_that_policy_does_not_list():
    text = ruleset(outgoing=True, node_ports=(7601,))
    for port in CONTROL_PORTS[1:]:
        assert str(port) in text.split("chain forward")[1]
    assert "7601" not in text.split("chain forward")[1]
