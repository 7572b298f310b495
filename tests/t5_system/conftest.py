"""One grid for every test that runs programs as processes: two nodes of a lab, with real shells in them.

It lives as long as the tier; a test that hurts a node puts it right again. For work on the tests, XOS_T5_LAB=NAME uses a lab
that is up already and leaves it up.
"""

from __future__ import annotations

import contextlib
import os

import pexpect
import pytest

from ghostkit import Agent, build, python_ghost
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
def shells(grid):
    """The shell of a module, kept as long as tests leave it at its prompt."""
    kept: list[Shell] = []
    yield kept
    for one in kept:
        one.end()


@pytest.fixture
def shell(grid, shells):
    """A shell for tests that leave it as they found it; the next test gets another if one did not."""
    if not shells:
        shells.append(Shell(grid))
    yield shells[0]
    with contextlib.suppress(pexpect.ExceptionPexpect):
        shells[0].sync()
        return
    broken = shells.pop()
    broken.end()
    grid.kill_all()
    pytest.fail(f"the shell is not at its prompt any more: {broken.before!r}")


@pytest.fixture
def own_shell(grid):
    """A shell of the test's own."""
    one = Shell(grid)
    yield one
    one.end()


@pytest.fixture(scope="module", params=["c", "python"])
def ghost(request, tmp_path_factory):
    """The ghost program, built, and its fallback."""
    folder = tmp_path_factory.mktemp(request.param)
    return build(folder) if request.param == "c" else python_ghost(folder)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """An agent for ghosts that runs programs on this machine; it must have had nothing to complain of."""
    one = Agent(tmp_path_factory.mktemp("agent") / "s")
    yield one
    one.stop()
    assert one.log.read_text() == ""
