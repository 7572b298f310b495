"""`xos ps`, `kill`, `wait`, `sub`, `logs`, `attach`, `top`: a user's jobs from any shell of the session."""

from __future__ import annotations

import json
import re

import pytest

from gridkit import Shell, until

JOB = re.compile(r"j[a-z2-7]{12}")


def submit(grid, script, options="--node n2"):
    job = grid.out(f"xos sub {options} -- sh -c '{script}'").strip()
    assert JOB.fullmatch(job)
    return job


def state(grid, job):
    return grid.row(job).get("state")


@pytest.fixture
def held(grid):
    """A name of a file on n2; jobs may wait until it is there. It is made at the end, so that none stays."""
    path = grid.home("n2", "release")
    path.unlink(missing_ok=True)
    yield path
    path.touch()


HOLD = "until test -e release; do sleep 0.05; done"


def test_ps_lists_ghosts_jobs_as_a_table_and_as_json(grid, shell):
    job = shell.begin("sleep 300", end="&")
    table = grid.out("xos ps")
    assert re.search(rf"^{job} +n2 +running +\d+:\d\d +\d+\.\d\ds +\d+\.\dM sh -c", table, re.MULTILINE)
    row = next(row for row in json.loads(grid.out("xos ps --json")) if row["job"] == job)
    assert (row["user"], row["vo"], row["node"], row["tty"], row["detached"]) == ("alice", "demo", "n2", True, False)
    assert job not in grid.out("xos ps", user="bob")
    assert grid.sh(f"xos kill {job}", user="bob").returncode != 0
    shell.do("kill -9 %1; wait %1")
    until(lambda: job not in grid.out("xos ps"))


def test_plain_ps_shows_the_ghost_under_the_program_s_command_line(grid, shell):
    shell.begin("sleep 301", end="&")
    assert "xos run --node n2 -- sh -c" in shell.do("ps -o args= -p $!")
    assert shell.do("ps -o stat= -p $!").strip().startswith("S")
    shell.do("kill -STOP %1")
    until(lambda: shell.do("ps -o stat= -p $!").strip().startswith("T"))
    shell.do("kill -9 %1; wait %1")


def test_wait_gives_the_exit_code_of_a_foreground_and_a_detached_job(grid, shell, held):
    job = shell.begin(f"{HOLD}; sleep 1; exit 7", end="&")
    other = submit(grid, f"{HOLD}; exit 9")
    killed = submit(grid, "sleep 300")
    until(lambda: state(grid, killed) == "running")
    assert grid.sh(f"xos kill -INT {killed}; xos wait {killed}").returncode == 130
    shell.sendline(f"xos wait {job}; echo rc''=$?")
    waits = lambda: grid.sh(f"pgrep -f '^xos wait {job}'", user=None).stdout  # noqa: E731
    until(waits)
    held.touch()
    shell.expect_exact("rc=7")
    done = grid.sh(f"xos wait {other}; echo $?; xos wait --json {other}")
    words = done.stdout.decode()
    assert words.splitlines()[0] == "9"
    assert json.loads(words[words.index("[") : words.rindex("]") + 1])[0]["exit"]["code"] == 9
    shell.do("wait")


def test_a_detached_job_outlives_the_log_out_and_its_output_is_kept(grid, held):
    job = submit(grid, f"echo before; {HOLD}; echo after; echo wrong >&2; exit 3")
    until(lambda: state(grid, job) == "running")
    assert grid.sh("xos logout").returncode == 0
    held.touch()
    done = grid.sh(f"xos wait {job}; echo $?; xos logs --stdout {job}; xos logs --stderr {job} 2>&1")  # logs in again
    assert done.stdout.decode().splitlines() == ["3", "before", "after", "wrong"]
    row = grid.row(job)
    assert (row["detached"], row["exit"]["code"]) == (True, 3)


def test_logs_follow_a_running_job_to_its_end(grid, own_shell, held):
    job = submit(grid, f"echo first; {HOLD}; echo last")
    own_shell.sendline(f"xos logs -f {job}; echo rc''=$?")
    own_shell.expect_exact("first\r\n")
    held.touch()
    own_shell.expect_exact("last\r\n")
    own_shell.expect_exact("rc=0")


def test_ctrl_c_ends_logs_and_not_the_job(grid, own_shell, held):
    job = submit(grid, f"echo first; {HOLD}")
    own_shell.sendline(f"xos logs -f {job}")
    own_shell.expect_exact("first\r\n")
    own_shell.send("\x03")
    own_shell.answer()
    assert own_shell.code() == 130
    assert state(grid, job) == "running"


def test_many_jobs_by_one_submission_know_their_number(grid):
    jobs = grid.out("xos sub --count 5 -- sh -c 'exit $XOS_INDEX'").split()
    assert len(set(jobs)) == 5
    assert grid.out(f"for j in {' '.join(jobs)}; do xos wait $j; echo $?; done").split() == ["0", "1", "2", "3", "4"]


def test_attach_takes_a_terminal_over(grid, held):
    """The first terminal is told and let go; the program goes on under the second, with its size."""
    one, two = Shell(grid), Shell(grid)
    try:
        two.setwinsize(20, 70)
        job = one.begin('trap "stty size" WINCH; stty -echo; while :; do read line && echo "got $line"; done')
        one.send("one\n")
        one.expect_exact("got one\r\n")
        two.sendline(f"xos attach {job}")
        two.expect_exact("20 70")
        one.expect_exact("attached from elsewhere")
        one.sync()
        two.send("two\n")
        two.expect_exact("got two\r\n")
        two.send("\x03")
        two.answer()
        assert two.code() == 130
    finally:
        one.end()
        two.end()


def test_attach_brings_back_a_job_whose_session_s_agent_died(grid, held):
    """The agent is killed with SIGKILL: the program waits for somebody, and a new log-in's agent takes it over with all its output."""
    shell = Shell(grid, user="bob")
    try:
        job = shell.begin("stty -echo; echo READY; while read line; do echo got $line; done; exit 6")
        shell.expect_exact("READY\r\n")
        grid.out("pkill -KILL -f '[a]em.agent .*--user bob'", user=None)
        second = Shell(grid, user="bob")
        try:
            second.sendline(f"xos attach {job}")
            until(
                lambda: (
                    next(
                        (row["state"] for row in json.loads(second.grid.out("xos ps --json", user="bob")) if row["job"] == job), ""
                    )
                    == "running"
                )
            )
            second.send("again\n")
            second.expect_exact("got again\r\n")
            second.send("\x04")
            second.answer()
            assert second.code() == 6
        finally:
            second.end()
    finally:
        shell.end()


def test_top_shows_nodes_and_jobs(grid, own_shell):
    job = own_shell.begin("sleep 302", end="&")
    text = grid.out("xos top -n 1")
    assert "2 nodes" in text
    assert re.search(rf"{job} +n2 +running", text)
    own_shell.sendline("xos top -d 0.2")
    own_shell.expect_exact("xos top - ")
    own_shell.expect_exact("xos top - ")
    own_shell.send("\x03")
    own_shell.sync()
    own_shell.do("kill -9 %1; wait %1")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("kill", 2, "no job given"),
        ("kill -NOSUCH jaaaaaaaaaaaa", 2, "is no signal"),
        ("kill jaaaaaaaaaaaa", 1, "there is no job jaaaaaaaaaaaa of yours"),
        ("wait jaaaaaaaaaaaa", 1, "there is no job"),
        ("logs jaaaaaaaaaaaa", 1, "there is no job"),
        ("attach jaaaaaaaaaaaa", 1, "there is no job"),
        ("kill notajob", 2, "notajob"),
    ],
)
def test_commands_on_nothing_say_so_in_one_line(grid, words, code, said):
    done = grid.sh(f"xos {words}")
    assert done.returncode == code, done
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_nodes_answer_range_queries_about_themselves(grid):
    rows = json.loads(grid.out("xos nodes --json --where 'cpus>=1 and memory>=1G'"))
    assert sorted(row["node"] for row in rows) == ["n1", "n2"]
    assert json.loads(grid.out("xos nodes --json --where 'cpus>=5000'")) == []
