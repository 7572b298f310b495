"""Things that happen at the same moment: all daemons die, a job is called off while it starts, a user logs in twice."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from gridkit import until

JOBS = 20
LABS = Path(os.environ.get("HOME", "/root")) / ".local/state/xtreemos/lab"


def started(grid, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        grid.inside("n1", "bash", "-c", script, user="alice"), env=grid.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip


class Together:
    """Kills xosd of every node at one instant: each killer waits for a byte."""

    def __init__(self, grid, names):
        self.grid = grid
        self.before = {name: grid.pid(name, "xosd") for name in names}
        self.killers = [
            subprocess.Popen(grid.inside(name, "sh", "-c", f"echo; read x; kill -9 {pid}"), env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for name, pid in self.before.items()
        ]  # fmt: skip
        for killer in self.killers:
            killer.stdout.readline()

    def strike(self):
        for killer in self.killers:
            killer.stdin.write(b"\n")
            killer.stdin.flush()
        for killer in self.killers:
            killer.communicate(timeout=10)
            assert killer.returncode == 0

    def wait_back(self):
        def back():
            pids = {name: self.grid.pid(name, "xosd") for name in self.before}
            return all(pid not in (0, self.before[name]) for name, pid in pids.items())

        until(back, "every xosd runs again", 30)
        until(lambda: self.grid.sh("xos nodes").stdout.count(b"\n") > len(self.before), "every node answers", 30)


@pytest.mark.parametrize("when", ["all run", "they start"])
def test_every_xosd_dies_at_one_instant_and_all_programs_and_jobs_end_right_and_once(grid, when):
    names = sorted(row["node"] for row in json.loads(grid.out("xos nodes --json")))
    strike = Together(grid, names)
    grid.out("rm -f seen.*")
    job = "echo $XOS_JOB; sleep 3; exit $((NUMBER % 7))"
    subs = started(grid, f"for i in $(seq {JOBS}); do xos sub -- sh -c '{job}'; done".replace("NUMBER", "'$i'"))
    program = "for i in 1 2 3 4; do echo line $i; sleep 1; done; exit CODE"
    runs = [
        started(grid, f"xos run --node {names[index % len(names)]} -- sh -c '{program}'".replace("CODE", str(41 + index)))
        for index in range(3)
    ]
    if when == "all run":
        jobs, trouble = subs.communicate(timeout=60)
        strike.strike()
    else:
        assert runs[0].stdout.readline() == b"line 1\n"
        strike.strike()
        jobs, trouble = subs.communicate(timeout=60)
    ids = jobs.decode().split()
    assert (len(ids), trouble) == (JOBS, b"")
    for index, run in enumerate(runs):
        out, trouble = run.communicate(timeout=60)
        lines = out.decode().split("\n")[:-1]
        wanted = [f"line {number}" for number in range(2 if when == "they start" and index == 0 else 1, 5)]
        assert (run.returncode, lines) == (41 + index, wanted), trouble
    grid.sh("xos wait " + " ".join(ids), timeout_s=90)
    rows = {row["job"]: row for row in grid.ps()}
    assert [rows[job]["exit"]["code"] for job in ids] == [number % 7 for number in range(1, JOBS + 1)]
    for job in ids:
        assert grid.out(f"xos logs {job}").split() == [job]  # it ran once
    for name in names:  # or a daemon that dies between that note and the start could not tell that nothing was started
        store = LABS / grid.name / "nodes" / name / "state/node/jobs.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
            assert db.execute("SELECT count(*) FROM attempt WHERE life = ''").fetchone() == (0,), (
                "jobs were given to no life of jobd"
            )
    strike.wait_back()


def test_a_job_that_is_called_off_while_it_starts_gets_the_signal_that_was_sent(grid):
    script = """
    for i in 0 1 2 3 4 5; do
        j=$(xos sub --node n2 -- sh -c 'trap "exit 7" TERM; while :; do sleep 0.05; done'); sleep 0.0$i; xos kill $j; echo $j
        j=$(xos sub --node n2 -- sleep 100); xos kill $j; echo $j
    done"""
    jobs = grid.out(script).split()
    assert len(jobs) == 12
    grid.sh("xos wait " + " ".join(jobs), timeout_s=60)
    rows = {row["job"]: row for row in grid.ps()}
    for job in jobs:
        record = rows[job]["exit"] or {}
        never = record.get("reason") == "killed before it started"
        assert never or (record["code"], record["signal"]) in ((7, None), (None, 15)), rows[job]


def test_a_second_log_in_is_refused_leaves_the_first_as_it_was_and_opens_no_session(grid):
    password = json.loads((LABS / grid.name / "users.json").read_text())["alice"]
    before = grid.out("xos whoami --json; xos vo sessions")
    running = started(grid, "xos run --node n2 -- sh -c 'echo up; sleep 4; exit 9'")
    assert running.stdout.readline() == b"up\n"
    again = grid.sh("xos login alice@demo --password-stdin", stdin=password.encode() + b"\n")
    assert again.returncode == 1
    assert b"log out first" in again.stderr
    assert grid.out("xos whoami --json; xos vo sessions") == before
    assert grid.out("xos run --node n2 -- echo goes on") == "goes on\n"
    running.communicate(timeout=30)
    assert running.returncode == 9
