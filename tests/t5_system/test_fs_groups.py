"""A VO's groups on the grid's files: real groups on every node, and who has left one is out at once."""

from __future__ import annotations

import os
import subprocess

import pytest

from gridkit import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")

MEMBER = """
import grp, os, sys, time
os.umask(0o077)
here, (team,) = "/xos/demo/t5-class", os.getgroups()
tried = {"list": lambda: os.listdir(here), "read": lambda: open(here + "/a").read(), "write": lambda: open(here + "/a", "a").write("-"),
         "own": lambda: open(here + "/b/c").read(), "chgrp": lambda: [os.chown("t5-mine", -1, gid) for gid in (os.getgid(), team)]}
open(here + "/a", "a").write("b")
os.mkdir(here + "/b")
open(here + "/b/c", "w").write("c")
open("t5-mine", "w").close()
os.chown("t5-mine", -1, team)
print(grp.getgrgid(team).gr_name, grp.getgrgid(os.stat(here + "/b/c").st_gid).gr_name, oct(os.stat(here + "/b").st_mode), flush=True)
sys.stdin.readline()
end = time.monotonic() + 2
while time.monotonic() < end:
    said = []
    for what, call in tried.items():
        try:
            call()
        except PermissionError as error:
            said.append(what + str(error.errno))
    if len(said) == len(tried):
        break
    time.sleep(0.05)
os.unlink("t5-mine")
print(*said, flush=True)
"""


def test_a_group_shares_a_volume_on_every_node_and_who_has_left_it_is_out_at_once(grid):
    grid.out("xos vo group alice students && xos vo group bob students")
    until(
        lambda: all(b"bob" in grid.sh("getent group students.demo", user=None, node=node).stdout for node in ("n1", "n2")),
        "the group",
    )
    grid.out("xos fs mkvol t5-class --group students && umask 077 && echo a > /xos/demo/t5-class/a")
    words = grid.inside("n1", "bash", "-c", 'exec xos run --node n2 -- python3 -c "$1"', "-", MEMBER, user="bob")
    try:
        with subprocess.Popen(words, env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout.readline().split() == ["students", "students", "0o42770"]
            assert grid.out("cd /xos/demo/t5-class && cat a b/c && stat -c '%U %G %A' b/c").split() == [
                "a", "bcbob.demo", "students.demo", "-rw-rw----"
            ]  # fmt: skip
            grid.out("xos vo group bob")
            job.stdin.write("\n")
            job.stdin.close()
            assert job.stdout.readline().split() == ["list13", "read13", "write13", "own13", "chgrp1"], "a program from before"
        claim = "u=$(id -u bob.demo); g=$(getent group students.demo | cut -d: -f3); setpriv --reuid $u --regid $u --groups $g sh -c '{}'"
        for node in ("n1", "n2"):  # root of a node gives itself the number: the MRC goes by the registry
            done = grid.sh(
                claim.format("ls /xos/demo/t5-class; cat /xos/demo/t5-class/a; chgrp students.demo /home/bob.demo"),
                user=None,
                node=node,
            )
            assert (done.stdout, done.stderr.count(b"Permission denied"), done.stderr.count(b"Operation not permitted")) == (
                b"",
                2,
                1,
            )
        assert b"bob is not in group students" in grid.sh("xos fs mkvol t5-no --group students", user="bob").stderr
    finally:
        grid.out("xos fs rmvol t5-class --force --yes; xos vo group alice; xos vo group bob")  # also after a failure in the midst
