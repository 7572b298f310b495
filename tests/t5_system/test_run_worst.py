"""The worst days of a running program: its services are killed, its network is cut, its node loses power. Nothing hangs, nothing is lost in silence.

These tests hurt the grid, so they come last; each puts right what it broke.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time

import pytest

from gridkit import Shell, until

MIB = 1 << 20
FLOW_BYTES = 96 * MIB
NUMBERS = "import sys, time\nfor i in range({count}):\n    print(i, flush=True)\n    time.sleep(0.01)\n"
LOST_WAIT_S = 45.0  # the agent gives a node 15 s


def kill_xosd(grid, node):
    """SIGKILL; wait for its successor to serve."""
    before = grid.pid(node, "xosd")
    grid.sh(f"kill -9 {before}", user=None, node=node)
    return lambda: until(
        lambda: grid.pid(node, "xosd") not in (0, before) and grid.sh("xos nodes").stdout.count(b"\n") >= 3,
        f"xosd of {node} is back",
        30,
    )


class Flow:
    """Feeds numbered lines at a steady pace and checks that they come back exactly."""

    def __init__(self, grid):
        script = f"""python3 -c '{NUMBERS.format(count=1200)}' | xos run --node n2 -- sh -c "tee /dev/stderr" 2> errors.txt > numbers.txt; echo ${{PIPESTATUS[@]}}"""
        words = grid.inside("n1", "bash", "-c", script, user="alice")
        self.grid = grid
        self.process = subprocess.Popen(words, env=grid.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.out = grid.home("n1", "numbers.txt")
        until(lambda: self.out.exists() and self.lines() > 20, "numbers flow")

    def lines(self):
        return self.out.read_bytes().count(b"\n")

    def check(self):
        assert self.process.communicate(timeout=60)[0].split() == [b"0", b"0"]
        wanted = "".join(f"{number}\n" for number in range(1200))
        assert self.out.read_text() == wanted
        assert self.grid.home("n1", "errors.txt").read_text().replace("\r", "") == wanted


@pytest.fixture
def numbers(grid):
    grid.sh("rm -f numbers.txt errors.txt")
    one = Flow(grid)
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()
        grid.kill_all()


def test_killed_daemons_of_both_nodes_leave_terminals_and_pipes_untouched(grid, numbers, own_shell):
    """xosd is killed on the node of the program and on the core node; jobd keeps the job, the agent finds it again."""
    own_shell.begin('stty -echo; while read line; do echo "got $line"; done; exit 5')
    own_shell.send("one\n")
    own_shell.expect_exact("got one\r\n")
    job = next(row["job"] for row in grid.ps() if row["tty"] and row["state"] == "running")
    back = [kill_xosd(grid, "n2"), kill_xosd(grid, "n1")]
    for wait in back:
        wait()
    own_shell.send("two\n")
    own_shell.expect_exact("got two\r\n", timeout=20)
    assert until(lambda: grid.row(job), "the job is known again")["state"] == "running"
    own_shell.send("\x04")
    said = own_shell.answer()
    assert own_shell.code() == 5, said
    numbers.check()


def test_bulk_data_is_byte_exact_over_killed_daemons(grid):
    data = (hashlib.sha512(b"seed").digest() * (FLOW_BYTES // 64))[:FLOW_BYTES]
    digest = hashlib.sha256(data).hexdigest()
    path = grid.home("n1", "bulk")
    path.write_bytes(data)
    path.chmod(0o644)
    words = grid.inside(
        "n1",
        "bash",
        "-c",
        "cat bulk | xos run --node n2 -- cat | (head -c 1000000; echo started >&2; cat) | sha256sum",
        user="alice",
    )
    with subprocess.Popen(words, env=grid.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr.readline() == b"started\n"
        kill_xosd(grid, "n2")()
        out, said = process.communicate(timeout=90)
    path.unlink()
    assert out.split()[0].decode() == digest, said


def test_a_network_cut_of_five_seconds_is_healed_byte_exact_and_said(grid, numbers, own_shell):
    own_shell.begin('stty -echo; while read line; do echo "got $line"; done; exit 5')
    own_shell.send("one\n")
    own_shell.expect_exact("got one\r\n")
    grid.lab("cut", "n2")
    try:
        time.sleep(5)  # the length of the cut is what is tested
    finally:
        grid.lab("heal", "n2")
    own_shell.send("two\n")
    own_shell.expect_exact("got two\r\n", timeout=30)
    own_shell.send("\x04")
    said = own_shell.answer()
    assert own_shell.code() == 5, said
    numbers.check()


def test_a_frozen_node_goes_on_when_it_is_thawed(grid, own_shell):
    own_shell.begin('stty -echo; while read line; do echo "got $line"; done; exit 5')
    grid.lab("freeze", "n2")
    try:
        own_shell.send("typed while frozen\n")
        time.sleep(1.5)
    finally:
        grid.lab("thaw", "n2")
    own_shell.expect_exact("got typed while frozen\r\n", timeout=30)
    own_shell.send("\x04")
    said = own_shell.answer()
    assert own_shell.code() == 5, said


def test_a_killed_agent_ends_piped_programs_with_a_word_and_75(grid):
    words = grid.inside(
        "n1", "bash", "-c", "xos run --node n2 -- sh -c 'echo READY; sleep 300' | cat; echo ${PIPESTATUS[0]}", user="bob"
    )
    with subprocess.Popen(words, env=grid.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"READY\n"
        grid.out("pkill -KILL -f '[a]em.agent .*--user bob'", user=None)
        out, said = process.communicate(timeout=60)
    assert out.split() == [b"75"]
    assert (said.count(b"\n"), b"agent" in said) == (1, True), said
    assert grid.out("xos run --node n2 -- echo again", user="bob") == "again\n"
    grid.sh("for j in $(xos ps | awk 'NR>1 {print $1}'); do xos kill -9 $j; done", user="bob")


def test_a_killed_jobd_ends_programs_with_a_word_and_75_and_retried_ones_start_again(grid):
    """jobd is the parent of what runs: its programs die with it, and only `--retry` starts them again, once."""
    grid.sh("rm -rf retried")
    grid.out("mkdir retried")
    twice = "mkdir retried/{0} 2>/dev/null && {{ echo READY; exec sleep 300; }}; echo $XOS_NODE; exit {1}"
    plain = _begin(grid, "xos run --node n2 -- sh -c 'echo READY; exec sleep 300'")
    retried = _begin(grid, f"xos run --node n2 --retry 1 -- sh -c '{twice.format('run', 7)}'")
    given_up, again = (
        grid.out(f"xos sub --node n2 {retry} -- sh -c '{twice.format(name, code)}'").strip()
        for name, retry, code in (("lost", "", 8), ("sub", "--retry 1", 9))
    )
    until(lambda: {"lost", "sub"} <= set(grid.out("ls retried").split()), "the detached jobs run")
    grid.sh(f"kill -9 {grid.pid('n2', 'jobd')}", user=None, node="n2")
    out, said = plain.communicate(timeout=30)
    assert (plain.returncode, out, said.count(b"\n"), b"jobd died" in said) == (75, b"", 1, True), said
    out, said = retried.communicate(timeout=30)
    assert (retried.returncode, out) == (7, b"n2\n"), said
    done = grid.sh(f"xos wait {given_up}")
    assert (done.returncode, done.stderr.count(b"\n"), b"jobd died" in done.stderr) == (75, 1, True), done
    assert (grid.sh(f"xos wait {again}").returncode, grid.out(f"xos logs {again}")) == (9, "n2\n")
    assert grid.out("ls retried; rm -r retried").split() == ["lost", "run", "sub"]


HERE = "test $XOS_NODE = n1 || sleep 300"


@pytest.fixture
def busy_n1(grid):
    """So many programs sleep on n1 that new ones go to n2."""
    grid.out("xos sub --node n1 --count 12 -- sleep 300")
    until(lambda: grid.out("xos run -- hostname") == "n2\n", "n2 is the better node", 30)
    yield
    grid.kill_all()


def test_a_dead_node_ends_programs_with_75_and_retried_ones_start_elsewhere(grid, busy_n1):
    """Power cut of n2 under six programs at once: with and without terminal, input and retries."""
    terminal, retried = Shell(grid), Shell(grid)
    try:
        before = terminal.settings()
        terminal.begin("stty raw -echo; sleep 300")
        retried.sendline(f"xos run --retry -- sh -c 'stty size; echo RUN=$XOS_NODE; {HERE}; tty; exit 9'")
        retried.expect_exact("RUN=n2\r\n")
        piped = _begin(grid, "xos run --node n2 -- sh -c 'echo READY; sleep 300'")
        plenty = _begin(grid, f"head -c 3000000 /dev/zero | xos run --retry 2 -- sh -c 'head -c 2500000 | wc -c; {HERE}'")
        little = _begin(
            grid,
            f"(echo input; sleep 0.1; echo more) | xos run --retry 2 -- sh -c 'read x; echo $XOS_NODE $x; {HERE}; cat; exit 6'",
        )
        detached = grid.out(f"xos sub --retry 2 -- sh -c '{HERE}; echo $XOS_NODE'").strip()
        until(lambda: grid.row(detached).get("node") == "n2", "the detached job runs on n2")
        grid.lab("kill", "n2")
        try:
            _check_after_death(grid, terminal, before, piped, plenty)
            retried.expect_exact("RUN=n1\r\n", timeout=LOST_WAIT_S)
            retried.expect_exact("/dev/pts/")
            retried.answer()
            assert retried.code() == 9
            out, said = little.communicate(timeout=LOST_WAIT_S)
            assert (little.returncode, out) == (6, b"n1 input\nmore\n"), said
            done = grid.sh("xos run --node n2 -- true", timeout_s=LOST_WAIT_S)
            said = done.stderr.decode().splitlines()  # that it is waited for, if it is, and the outcome
            assert (done.returncode in (69, 75), len(said) <= 2, "n2" in said[-1]) == (True, True, True), done
            assert grid.out("xos run -- hostname") == "n1\n"
            assert grid.sh(f"xos wait {detached}", timeout_s=90).returncode == 0
            assert grid.out(f"xos logs {detached}") == "n1\n"
        finally:
            grid.lab("start", "n2")
            until(lambda: len(json.loads(grid.out("xos nodes --json"))) == 2, "n2 is back", 60)
        assert grid.out("xos run --node n2 -- hostname") == "n2\n"
        assert [row for row in grid.ps() if row["node"] == "n2" and row["state"] == "running"] == []
    finally:
        terminal.end()
        retried.end()


def _check_after_death(grid, terminal, settings, piped, plenty):
    terminal.expect("no contact with node n2", timeout=LOST_WAIT_S)
    assert "node n2 died" in terminal.answer(LOST_WAIT_S)
    assert terminal.code() == 75
    assert terminal.settings() == settings
    for process, word in ((piped, b"node n2 died"), (plenty, b"standard input is used up")):
        _, said = process.communicate(timeout=LOST_WAIT_S)
        assert (process.returncode, word in said) == (75, True), said


def _begin(grid, command, lines=1):
    """Start a command without a terminal; return it when its program has printed so many lines."""
    process = subprocess.Popen(grid.inside("n1", "bash", "-o", "pipefail", "-c", command, user="alice"), env=grid.env,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    for _ in range(lines):
        assert process.stdout.readline()
    return process
