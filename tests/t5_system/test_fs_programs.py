"""Everyday programs in jobs on two nodes, in one home on XtreemFS. The longer list, beside the local disk: bench/fs_programs.py."""

from __future__ import annotations

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from xtreemos.testing.fsprograms import PROGRAMS, Program

FILES, ROUNDS, MIB = 20, 20, 8
NAMES = (
    "git init add commit", "git on two nodes", "sqlite, journal, two nodes at once", "sqlite, WAL, two nodes at once", "make on two nodes at once",
    "tar, untar, diff -r", "rsync -a twice", "vim: write, swap file, recovery", "venv without pip, pip install",
    "fifo, socket, link, flock, O_TMPFILE, inotify, mmap", "cp: folders, reflink, sparse", "flock on two nodes", "append on two nodes",
)  # fmt: skip


@pytest.fixture
def folder(grid):
    """A folder in alice's home."""
    name = f"programs-{os.getpid()}"
    grid.out(f"rm -rf {name} && mkdir {name}")
    yield name
    grid.out(f"rm -rf {name}")


def run(grid, folder: str, node: str, script: str) -> subprocess.CompletedProcess[bytes]:
    text = f"set -e; export FILES={FILES} ROUNDS={ROUNDS} MIB={MIB} GIT_CONFIG_GLOBAL=/dev/null\n{script}"
    return grid.sh(f"cd {folder} && exec xos run --node {node} -- bash -c {shlex.quote(text)}", timeout_s=120)


@pytest.mark.parametrize("program", [one for one in PROGRAMS if one.name in NAMES], ids=lambda one: one.name.replace(" ", "-"))
def test_programs_find_a_home_on_xtreemfs_like_a_local_disk(grid, folder, program: Program):
    for step in program.steps:
        with ThreadPoolExecutor(len(step.scripts)) as pool:
            done = list(pool.map(lambda item: run(grid, folder, *item), step.scripts))
        for (node, script), result in zip(step.scripts, done, strict=True):
            assert result.returncode == 0, f"on {node}: {script}\n{result.stdout.decode()}\n{result.stderr.decode()}"


def test_every_name_in_this_list_is_a_program():
    assert set(NAMES) <= {one.name for one in PROGRAMS}
