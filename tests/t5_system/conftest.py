"""One grid for every test that runs programs as processes: two nodes of a lab, with real shells in them.

It lives as long as the tier; a test that hurts a node puts it right again. For work on the tests, XOS_T5_LAB=NAME uses a lab
that is up already and leaves it up.
"""

from __future__ import annotations

import contextlib
import os

import pexpect
import pytest
from gridkit import Grid, Shell


@pytest.fixture(scope="session")
def grid():
    """Two nodes, n1 the core, alice and bob in VO demo."""
    kept = os.environ.get("XOS_T5_LAB")
    one = Grid(kept or "t5")
    try:
        if not kept:
            one.lab("up", "--nodes", "2", "--core", "1")
        yield one
    finally:
        if not kept:
            one.lab("down")


@pytest.fixture(scope="module")
def module_shell(grid):
    """One shell for the tests of a module that leave it as they found it."""
    one = Shell(grid)
    yield one
    one.end()


@pytest.fixture
def shell(grid, module_shell):
    """The module's shell, at its prompt; a new one where a test broke it."""
    yield module_shell
    with contextlib.suppress(pexpect.ExceptionPexpect):
        if module_shell.isalive() and module_shell.ready():
            return
    pytest.fail(f"the shell is not at its prompt any more: {module_shell.before!r}")


@pytest.fixture
def own_shell(grid):
    """A shell of the test's own."""
    one = Shell(grid)
    yield one
    one.end()
