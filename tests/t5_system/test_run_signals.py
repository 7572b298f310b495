"""Signals sent to the ghost reach the whole process tree of the program on the other node, with and without a terminal."""

from __future__ import annotations

import pytest

from gridkit import until

CATCHER = """
import os, signal, sys
names = ["TERM", "INT", "HUP", "USR1", "USR2", "WINCH", "CONT"]
child = os.fork()
who = "parent" if child else "child"
for name in names:
    signal.signal(getattr(signal, "SIG" + name), lambda number, _: os.write(1, f"{who} {signal.Signals(number).name}\\n".encode()))
os.write(1, f"{who} ready\\n".encode())
while True:
    signal.pause()
"""
GHOST = "^xos run --node n2 .*"


def state(grid, job):
    return grid.row(job).get("state")


def tree(grid, mark):
    """States of the processes on n2 whose command line has `mark`, by the kernel."""
    text = grid.sh(f"ps -eo stat=,args= | grep '[{mark[0]}]{mark[1:]}'", user=None, node="n2").stdout.decode()
    return [line.split()[0][0] for line in text.splitlines() if "init" not in line]


@pytest.mark.parametrize("options", ["", "-T"], ids=["terminal", "pipes"])
def test_every_signal_reaches_parent_and_child(grid, shell, options):
    grid.home("n2", "catcher.py").write_text(CATCHER)
    grid.home("n1", "caught").unlink(missing_ok=True)
    shell.do(f"r {options} -- python3 -u catcher.py > caught < /dev/null &" if options else "r -- python3 -u catcher.py &")
    caught = grid.home("n1", "caught")
    read = (lambda: caught.exists() and caught.read_text()) if options else None

    def both(word):
        if read:
            until(lambda: all(f"{who} {word}" in (read() or "") for who in ("parent", "child")), word)
        else:
            seen = set()
            while len(seen) < 2:
                shell.expect(rf"(parent|child) {word}\r")
                seen.add(shell.match[1])

    both("ready")
    for name in ("TERM", "INT", "HUP", "USR1", "USR2", "WINCH", "CONT"):
        shell.sendline(f"kill -{name} %1")
        both(f"SIG{name}")
    shell.sendline("kill -KILL %1; wait %1; echo rc''=$?")
    shell.expect_exact("rc=137")
    until(lambda: not tree(grid, "catcher.py"), "the whole tree is gone")
    shell.do("")


def test_stop_and_continue_reach_the_whole_tree(grid, shell):
    job = shell.begin("sleep 1234 & sleep 1234", end="&", options="-T")
    until(lambda: tree(grid, "sleep 1234") == ["S", "S", "S"])
    for _ in range(2):
        shell.do("kill -STOP %1")
        until(lambda: tree(grid, "sleep 1234") == ["T", "T", "T"], "all are stopped")
        until(lambda: state(grid, job) == "stopped")
        shell.do("kill -CONT %1")
        until(lambda: tree(grid, "sleep 1234") == ["S", "S", "S"], "all run again")
        until(lambda: state(grid, job) == "running")
    shell.do("kill -9 %1; wait %1")
    assert shell.code() == 137
    until(lambda: not tree(grid, "sleep 1234"))


def test_sigkill_of_the_ghost_kills_the_program(grid, shell):
    shell.begin("sleep 1235 & sleep 1235")
    grid.out(f"pkill -KILL -f '{GHOST}sleep 1235'")
    assert "Killed" in shell.answer()
    assert shell.code() == 137
    until(lambda: not tree(grid, "sleep 1235"))


def test_a_program_that_stops_itself_stops_its_ghost(shell):
    shell.sendline("r -- sh -c 'kill -STOP $$; echo went on; exit 5'")
    assert "Stopped" in shell.answer()
    assert "went on" in shell.do("fg")
    assert shell.code() == 5


def test_ignored_signals_stay_ignored(shell):
    assert "HUP ignored" in shell.do("(trap '' HUP; xos run --node n2 -- sh -c 'kill -HUP $$; echo HUP ignored')")


def test_a_hung_up_terminal_ends_the_program(grid, own_shell):
    own_shell.begin("sleep 1236")
    own_shell.end()
    until(lambda: not tree(grid, "sleep 1236"))


def test_a_nohup_program_outlives_its_terminal(grid, own_shell):
    own_shell.do("nohup xos run --node n2 -- sh -c 'echo JOB; sleep 1237; sleep 1237' > nohup.txt 2>&1 < /dev/null &")
    said = grid.home("n1", "nohup.txt")
    until(lambda: said.exists() and "JOB" in said.read_text())
    own_shell.end()
    assert tree(grid, "sleep 1237")
    grid.kill_all()
    until(lambda: not tree(grid, "sleep 1237"))


def test_renice_of_the_ghost_reaches_the_program(grid, shell):
    shell.begin("sleep 1238", end="&")
    shell.do("renice -n 7 $! > /dev/null")

    def nices():
        text = grid.sh("ps -eo ni=,args= | grep '[s]leep 1238'", user=None, node="n2").stdout.decode()
        return [line.split()[0] for line in text.splitlines() if "/init" not in line]

    until(lambda: nices() == ["7", "7"], "both processes are nice")
    shell.do("kill -9 %1; wait %1")


def test_xos_kill_sends_any_signal_by_job(grid, shell):
    job = shell.begin('trap "echo got it" USR1; while :; do sleep 0.05; done')
    assert grid.sh(f"xos kill -USR1 {job}").returncode == 0
    shell.expect_exact("got it\r\n")
    assert grid.sh(f"xos kill -s STOP {job}").returncode == 0
    shell.expect_exact("Stopped")
    shell.expect_exact("xos-t5> ")
    assert grid.sh(f"xos kill -CONT {job}; xos kill {job}").returncode == 0
    until(lambda: state(grid, job) in (None, "exited"))
    shell.do("wait")
    shell.do("")
