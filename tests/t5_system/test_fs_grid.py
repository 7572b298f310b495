"""The grid's files in a real grid: they outlive the processes that serve them, and nobody gets at them without their user's leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest

from gridkit import ROOT, until
from xtreemos.xtreemfs.ticket import peek_ticket

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")

TICKETS = "/run/xtreemos/fs/demo/tickets"
WRITER = """
import os, select, sys
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
number = 0
while not select.select([0], [], [], 0.02)[0]:
    os.write(out, b"%07d\\n" % number)
    os.fsync(out)
    print(number, flush=True)
    number += 1
"""
ACT = """
import asyncio, sys
from pathlib import Path
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.client.__main__ import make_dialer
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.model import MrcRecord

async def main():
    dial = make_dialer("n2", CredentialFolder(Path("/var/lib/xtreemos/node/vo/demo")))
    peer = await dial(MrcRecord(node="n1", address=sys.argv[1], keys=()))
    for ticket in sys.argv[2:]:
        try:
            print((await peer.call("mrc.act", calls.params(protocol.Act(bytes.fromhex(ticket), 0)), timeout_s=10)))
        except Exception as error:
            print(error.code, error)

asyncio.run(main())
"""


def kill(grid, node: str, service: str) -> int:
    """Kill a service with SIGKILL and wait until the supervisor has started it again; return the new process's id."""
    old = grid.pid(node, service)
    grid.out(f"kill -9 {old}", user=None, node=node)
    return until(lambda: (pid := grid.pid(node, service)) != old and pid, f"{service} on {node} runs again")


def as_uid(grid, node: str, user: str, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script as root of the node does it who takes a user's uid: without a log-in of theirs."""
    return grid.sh(
        f"uid=$(id -u {user}.demo); exec setpriv --reuid $uid --regid $uid --clear-groups sh -c '{script}'", user=None, node=node
    )


def fs_mounts(grid, node: str) -> list[str]:
    """Places of the node where files of the grid are mounted."""
    text = grid.out("cat /proc/self/mountinfo", user=None, node=node)
    places = [line.split(" ")[4] for line in text.splitlines() if " - fuse.xtreemfs demo " in line]
    return sorted(place for place in places if place.startswith(("/xos/", "/home/")))


def audited(grid, node: str = "n1") -> list[dict]:
    return json.loads(grid.out("xos vo audit demo --json -n 200", user=None, node=node))


def records(held: bytes) -> list[bytes]:
    """Split what a node keeps of a user's tickets: each behind its length, 4 bytes, big end first."""
    found = []
    while held:
        size = int.from_bytes(held[:4], "big")
        found.append(held[4 : 4 + size])
        held = held[4 + size :]
    return found


def forget(grid, node: str, user: str) -> None:
    """Have a node in the state as if the user had never been there."""
    grid.out(f"rm -f {TICKETS}/{user}; umount -l /home/{user}.demo 2>/dev/null; true", user=None, node=node)
    kill(grid, node, "xosd")  # or agents would think that it has their tickets
    kill(grid, node, "mount.demo")
    until(lambda: grid.sh("stat -f /xos/demo/home-alice", user=None, node=node).returncode == 0, f"files of {node}")


# -- processes die -----------------------------------------------------------------------------------------------------------


def test_a_shell_goes_on_in_its_home_after_its_mount_process_was_killed(grid, own_shell):
    own_shell.do("cd ~ && echo one > t5-mount && sync t5-mount && echo unsynced > t5-lost")
    kill(grid, "n1", "mount.demo")
    until(lambda: "one" in own_shell.do("cd ~ 2>/dev/null && cat t5-mount && echo two >> t5-mount", 20), "the home is back", 10)
    assert own_shell.do("cat t5-mount; rm t5-mount t5-lost").split() == ["one", "two"]
    mounts = fs_mounts(grid, "n1")
    assert len(mounts) == len(set(mounts)), f"dead mounts are left: {mounts}"


GOES_ON = """
import os, sys
kept = os.open("t5-kept", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
for number in range(100):
    os.write(kept, b"%d\\n" % number)
    os.fsync(kept)
    with open("t5-again", "a" if number else "w") as again:
        print(number, file=again)
    print(number, flush=True)
    if not sys.stdin.readline().strip():
        break
print(os.getcwd(), sorted(name for name in os.listdir() if name.startswith("t5-")), flush=True)
"""


def test_a_running_job_keeps_its_home_when_the_mount_process_of_its_node_is_killed(grid):
    words = grid.inside("n1", "bash", "-c", 'exec xos run --node n2 -- python3 -c "$1"', "-", GOES_ON, user="bob")
    with subprocess.Popen(words, env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        for number in range(4):
            assert job.stdout.readline() == f"{number}\n"
            if number == 1:
                kill(grid, "n2", "mount.demo")
            job.stdin.write("on\n" if number < 3 else "\n")
            job.stdin.flush()
        assert job.stdout.readline().split(" ", 1) == ["/home/bob.demo", "['t5-again', 't5-kept']\n"]
        assert job.wait(20) == 0
    assert grid.out("cd; cat t5-kept t5-again; rm t5-kept t5-again", user="bob").split() == list("01230123")
    mounts = fs_mounts(grid, "n2")
    assert len(mounts) == len(set(mounts)), f"dead mounts are left: {mounts}"


def test_homes_are_bound_anew_for_everybody_when_nobody_asks(grid):
    grid.out("xos run --node n2 -- touch t5-bob", user="bob")
    kill(grid, "n2", "mount.demo")
    until(lambda: as_uid(grid, "n2", "bob", "ls /home/bob.demo").stdout.split().count(b"t5-bob"), "bob's home on n2", 10)
    grid.out("rm ~/t5-bob", user="bob")


def test_a_job_that_writes_and_syncs_loses_nothing_when_servers_are_killed(grid):
    words = grid.inside("n1", "bash", "-c", 'exec xos run --node n2 -- python3 -c "$1" t5-acks', "-", WRITER, user="alice")
    with subprocess.Popen(words, env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        last = 0
        for node, service in (("n1", "mrc.demo"), ("n2", "osd.demo"), ("n1", "osd.demo"), ("n2", "xosd"), ("n1", "xosd")):
            kill(grid, node, service)
            wanted = last + 8
            while last < wanted:
                line = job.stdout.readline()
                assert line, f"the job ended after {service} on {node} was killed: {job.wait(10)}"
                last = int(line)
        job.stdin.write("\n")
        job.stdin.close()
        rest = job.stdout.read().split()
        assert job.wait(20) == 0
    last = int(rest[-1]) if rest else last
    lines = grid.home("n1", "t5-acks").read_text().split()
    assert lines == [f"{number:07d}" for number in range(last + 1)]
    grid.home("n1", "t5-acks").unlink()


def test_what_cannot_be_reached_fails_in_time_and_works_again_later(grid):
    forget(grid, "n2", "bob")
    grid.out("touch ~/t5-there")
    grid.out("ls", user="bob")  # n1 has it in its cache: bob's shell there is not what waits
    stopped = grid.pid("n1", "mrc.demo")
    grid.out(f"kill -STOP {stopped}", user=None)
    try:
        began = time.monotonic()
        asking = subprocess.Popen(
            grid.inside("n1", "xos", "run", "--node", "n2", "--", "true", user="bob"), env=grid.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )  # fmt: skip
        listing = subprocess.Popen(
            grid.inside("n2", "sh", "-c", "uid=$(id -u alice.demo); exec setpriv --reuid $uid --regid $uid --clear-groups ls /xos/demo/home-alice/t5-never"),
            env=grid.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        refusal = asking.communicate(timeout=40)[1].decode()
        took_s = time.monotonic() - began
        trouble = listing.communicate(timeout=40)[1].decode()
        both_s = time.monotonic() - began
    finally:
        grid.out(f"kill -CONT {stopped}", user=None)
    assert asking.returncode != 0
    assert "home of bob@demo cannot be reached" in refusal, refusal
    assert re.search(r"waits \d+ s", refusal), refusal
    assert listing.returncode != 0
    assert "timed out" in trouble or "Input/output error" in trouble, trouble
    assert max(took_s, both_s) < 22
    until(lambda: grid.sh("xos run --node n2 -- pwd", user="bob").stdout == b"/home/bob.demo\n", "bob's home is back", 20)
    grid.out("xos run --node n2 -- rm t5-there")


# -- nobody without a ticket -------------------------------------------------------------------------------------------------


def test_root_of_a_node_without_the_users_ticket_is_refused_and_ssh_brings_one(grid):
    grid.out("echo secret > ~/t5-secret", user="bob")
    forget(grid, "n2", "bob")
    refused = as_uid(grid, "n2", "bob", "cat /xos/demo/home-bob/t5-secret")
    assert refused.returncode != 0
    assert b"Permission denied" in refused.stderr
    grid.out("xos ssh-config > /tmp/t5-fs-ssh; ssh -F /tmp/t5-fs-ssh n2 'pwd; cat t5-secret' > /tmp/t5-fs-out", user="bob")
    assert grid.out("cat /tmp/t5-fs-out", user="bob").split() == ["/home/bob.demo", "secret"]
    grid.out("scp -q -F /tmp/t5-fs-ssh /etc/hostname n2:t5-scp && grep n1 ~/t5-scp && rm ~/t5-scp ~/t5-secret", user="bob")


def test_tickets_of_other_nodes_forged_and_altered_ones_are_refused_and_audited(grid):
    grid.out("true")
    held = records(grid.file("n1", f"{TICKETS}/alice").read_bytes())
    record = next(one for one in held if peek_ticket(one).node == "n1")  # a detached job's would do on every node
    address = json.loads(grid.out("ip -j addr show", user=None, node="n1"))
    host = next(a["local"] for link in address for a in link["addr_info"] if a["family"] == "inet" and a["local"].startswith("10."))
    altered = record.replace(b"\xa2n1", b"\xa2n2", 1)
    assert altered != record
    words = grid.inside("n2", "env", f"PYTHONPATH={ROOT / 'src'}", sys.executable, "-c", ACT, f"{host}:7610")
    tickets = [one.hex() for one in (record, altered, b"nonsense")]
    done = subprocess.run([*words, *tickets], env=grid.env, capture_output=True, text=True, check=False, timeout=30)
    found = [row["why"] for row in audited(grid) if row["what"] == "mrc.act" and not row["allowed"]]
    reasons = ("is for node n1", "was changed after it was signed", "cannot be read")
    for line, why in zip(done.stdout.splitlines(), reasons, strict=True):
        assert line.startswith("ticket-refused "), line
        assert why in line
        assert any(why in text for text in found), why


def test_a_home_is_its_users_alone(grid):
    grid.out("mkdir -p ~/t5-folder && touch ~/t5-folder/name")
    for node, run in (("n1", ""), ("n2", "xos run --node n2 -- ")):
        for what in ("ls /xos/demo/home-alice", "cat /xos/demo/home-alice/t5-folder/name", "touch /xos/demo/home-alice/mine"):
            done = grid.sh(f"{run}{what}", user="bob")
            assert done.returncode != 0, (node, what)
            assert b"Permission denied" in done.stderr, (node, what)
    grid.out("rm -r ~/t5-folder")


def test_a_shared_volume_shows_the_right_owners_on_every_node(grid):
    grid.out("xos fs mkvol t5-shared --mode 1777")
    try:
        grid.out("echo a > /xos/demo/t5-shared/a; xos run --node n2 -- sh -c 'echo a2 > /xos/demo/t5-shared/a2'")
        grid.out("echo b > /xos/demo/t5-shared/b; xos run --node n2 -- sh -c 'echo b2 > /xos/demo/t5-shared/b2'", user="bob")
        here = grid.out("cd /xos/demo/t5-shared && stat -c '%n %U' *")
        assert here.split() == ["a", "alice.demo", "a2", "alice.demo", "b", "bob.demo", "b2", "bob.demo"]
        there = grid.out("xos run --node n2 -- sh -c 'cd /xos/demo/t5-shared && stat -c \"%n %U\" *; cat a b2'", user="bob")
        assert there.split() == ["a", "alice", "a2", "alice", "b", "bob", "b2", "bob", "a", "b2"]
        for script in ("rm -f /xos/demo/t5-shared/a2", "echo x >> /xos/demo/t5-shared/a"):
            assert grid.sh(script, user="bob").returncode != 0, script
    finally:
        grid.out("xos fs rmvol t5-shared --force --yes")


def test_a_log_out_ends_the_sessions_ticket_and_a_detached_job_works_on(grid):
    job = grid.out(
        "xos sub --node n2 -- sh -c 'n=0; while [ ! -e t5-stop ]; do n=$((n+1)); echo $n > t5-n; sleep 0.2; done; echo $n'",
        user="bob",
    ).split()[-1]
    until(lambda: grid.home("n1", "t5-n", "bob").exists(), "the job writes")
    grid.out("xos logout", user="bob")
    until(lambda: b"Permission denied" in as_uid(grid, "n1", "bob", "ls /home/bob.demo").stderr, "n1 refuses bob", 3)
    first = int(as_uid(grid, "n2", "bob", "cat /home/bob.demo/t5-n").stdout or 0)
    until(lambda: int(as_uid(grid, "n2", "bob", "cat /home/bob.demo/t5-n").stdout or 0) > first > 0, "the job works on")
    assert int(grid.out("cat ~/t5-n; touch ~/t5-stop", user="bob")) > 0
    grid.out(f"xos wait {job}; rm ~/t5-stop ~/t5-n", user="bob")


def test_a_suspended_users_files_are_closed_at_once_on_every_node(grid):
    grid.out("echo text > ~/t5-open; xos run --node n2 -- true", user="bob")
    reader = "exec 5</xos/demo/home-bob/t5-open; while head -c 4 /xos/demo/home-bob/t5-open && cat <&5; do sleep 0.05; done; date +%s.%N >&2"
    words = grid.inside(
        "n1", "sh", "-c", f"uid=$(id -u bob.demo); exec setpriv --reuid $uid --regid $uid --clear-groups sh -c '{reader}'"
    )
    with subprocess.Popen(words, env=grid.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as open_file:
        try:
            assert open_file.stdout.read(4) == "text"
            grid.out("xos vo suspend bob")
            began = time.time()
            errors = open_file.communicate(timeout=10)[1].split("\n")
            assert float(errors[-2]) - began < 2
            assert "Permission denied" in errors[0]
            refused = as_uid(grid, "n2", "bob", "ls /xos/demo/home-bob")
            assert b"Permission denied" in refused.stderr
            assert any(row["what"] == "mrc.actor" and "bob acts no more" in row["why"] for row in audited(grid))
        finally:
            open_file.kill()
            grid.out("xos vo restore bob")
            grid.sh("xos logout", user="bob")
    until(lambda: grid.sh("xos run --node n2 -- cat t5-open", user="bob").stdout == b"text\n", "bob is back")
    grid.out("rm ~/t5-open", user="bob")


def test_a_node_that_is_down_leaves_nothing_mounted_and_none_of_its_processes(grid):
    grid.out("xos run --node n2 -- true")
    grid.out("xos down", user=None, node="n2")
    try:
        assert fs_mounts(grid, "n2") == []
        assert "xtreemfs" not in grid.out("ps -eo args", user=None, node="n2")
    finally:
        grid.out("xos up", user=None, node="n2")
    until(lambda: grid.sh("xos run --node n2 -- pwd").stdout == b"/home/alice.demo\n", "n2 is back", 30)
