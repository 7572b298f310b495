"""What every command shares: which grid, how an error is printed, how to reach this machine's xosd and the session's agent."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from xtreemos.errors import EXIT_FAILURE, PermissionRefused, Unreachable, UsageError, XosError
from xtreemos.foundation.paths import NodePaths, agent_dir, find_grid_dir

ROOT_NEEDED = "this needs root on the machine"
_state: dict[str, str | None] = {"grid": None, "vo": None}


def choose(grid: str | None, vo: str | None) -> None:
    """Remember the options that stand before the subcommand."""
    _state["grid"] = grid
    _state["vo"] = vo
    if grid is not None:
        os.environ["XOS_GRID"] = grid


def grid_dir() -> Path:
    """The folder of the grid in use."""
    return find_grid_dir(_state["grid"])


def node_paths() -> NodePaths:
    """Paths of this machine's node."""
    return NodePaths(grid_dir())


def vo_option() -> str | None:
    """The VO named before the subcommand."""
    return _state["vo"]


def need_root() -> None:
    """Refuse politely without root."""
    if os.geteuid() != 0:
        raise PermissionRefused(ROOT_NEEDED, "run it with sudo")


def fail(error: XosError) -> NoReturn:
    """Print an error as one line and leave with its code."""
    print(f"xos: {error.line()}", file=sys.stderr)
    cause = error.__cause__
    if os.environ.get("XOS_DEBUG") and cause is not None:
        traceback.print_exception(cause)
    sys.exit(error.exit_code)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine; errors become one line and an exit code."""
    logging.basicConfig(level=logging.CRITICAL)
    try:
        return asyncio.run(work)
    except XosError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


async def admin_call(method: str, params: dict[str, Any] | None = None, timeout_s: float | None = 120.0) -> Any:
    """Call this machine's xosd."""
    from xtreemos.fabric import rpc

    peer = await rpc.connect_unix(node_paths().admin_socket)
    try:
        return await peer.call(method, params, timeout_s=timeout_s)
    finally:
        peer.close()


def agent_socket(vo: str | None = None) -> Path:
    """Where the session's agent answers the command line."""
    vo = vo or vo_option()
    return agent_dir() / (f"agent-{vo}.sock" if vo else "agent.sock")


async def agent_call(method: str, params: dict[str, Any] | None = None, *, vo: str | None = None) -> Any:
    """Call the session's agent.

    Raises:
        Unreachable: nobody is logged in here.
    """
    from xtreemos.fabric import rpc

    try:
        peer = await rpc.connect_unix(agent_socket(vo))
    except Unreachable as error:
        raise Unreachable("you are not logged in here", "log in first: xos login USER@VO") from error
    try:
        return await peer.call(method, params, timeout_s=60.0)
    finally:
        peer.close()


def read_password(stdin: bool, prompt: str, *, twice: bool = False) -> str:
    """Read a password from standard input (one line) or the terminal."""
    if stdin:
        line = sys.stdin.readline()
        if not line:
            raise UsageError("no password came on standard input")
        return line.rstrip("\n")
    if not sys.stdin.isatty():
        raise UsageError("a password is needed and there is no terminal", "give it with --password-stdin")
    password = getpass.getpass(f"{prompt}: ")
    if twice and getpass.getpass(f"{prompt} again: ") != password:
        raise UsageError("the two passwords differ")
    return password


def guarded(command: Callable[[], Any]) -> None:
    """Run a command's plain function; errors become one line and an exit code."""
    try:
        command()
    except XosError as error:
        fail(error)
    except BrokenPipeError:
        sys.exit(EXIT_FAILURE)
