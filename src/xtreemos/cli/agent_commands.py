"""The commands that the session's agent answers: `run`, `sub`, `ps`, `kill`, `wait`, `logs`, `attach`, `top`, `nodes`, `whoami`.

Their words are understood by the agent (aem/options.py, aem/agent/commands.py); here they are listed for `xos --help` and handed to
the ghost.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

import typer

from xtreemos.cli import context
from xtreemos.errors import Unreachable, XosError

COMMANDS = {
    "run": "Run a program on a node of the VO as if it were local.",
    "sub": "Submit a program that runs detached; prints its job id.",
    "ps": "List your jobs.",
    "kill": "Send a signal to jobs: xos kill [-SIGNAL] JOB...",
    "wait": "Wait until jobs have ended; the exit code is that of the last one.",
    "logs": "Show what a detached job wrote; -f goes on until it ends.",
    "attach": "Connect this terminal to a running job.",
    "top": "Show your jobs and the nodes, again every second.",
    "nodes": "List nodes of the VO: --where 'cpus>=2 and memory>=1G'.",
    "whoami": "Tell who you are in the grid.",
    "ssh-config": "Print what makes plain ssh, scp and sftp work with your session.",
}
_OPTIONS_WITH_VALUE = ("--grid", "--vo")


def is_agent_command(words: list[str]) -> bool:
    """Tell whether a command line is for the agent (options may stand before the subcommand)."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] in ("-h", "--help"):
            return False
        at += 2 if words[at] in _OPTIONS_WITH_VALUE else 1
    return at < len(words) and words[at] in COMMANDS


def without_grid(words: list[str]) -> list[str]:
    """Return a command line without `--grid DIR` before the subcommand: the agent's session has its grid, and would send us back here."""
    at = 0
    kept = []
    while at < len(words) and words[at].startswith("-"):
        width = 2 if words[at] in _OPTIONS_WITH_VALUE else 1
        if words[at] != "--grid":
            kept += words[at : at + width]
        at += width
    return kept + words[at:]


def run(argv: list[str]) -> NoReturn:
    """Become the ghost of this command line; says so if nobody is logged in."""
    if len(argv) >= 3 and argv[-1] in ("--help", "-h") and argv[1] in ("run", "sub"):
        from xtreemos.aem import options

        try:
            options.parse(argv[1], argv[2:])
        except options.HelpWanted as text:
            print(text, end="")
            sys.exit(0)
    _ensure_agent()
    from xtreemos.aem import ghost_fallback

    ghost_fallback.main(argv[0], without_grid(argv[1:]))
    sys.exit(0)


def _ensure_agent() -> None:
    """If the session's agent died, start it again from the keyring; say so if there is no session at all."""
    link = context.agent_socket()
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(link))
        return
    except OSError:
        if not link.is_symlink():
            context.fail(Unreachable("you are not logged in here", "log in first: xos login USER@VO"))
    finally:
        probe.close()
    vo = os.path.basename(os.readlink(link)).removeprefix("agent-").removesuffix(".sock")
    from xtreemos.aem.agent import launcher

    try:
        launcher.resume(context.grid_dir(), vo)
    except XosError:
        context.fail(Unreachable(f"your session in VO {vo} ended with its agent", f"log in again: xos login USER@{vo}"))


def register(app: typer.Typer) -> None:
    """List the commands in `xos --help`; `run` above takes them before typer sees them."""
    for name, text in COMMANDS.items():

        def command() -> None:
            raise AssertionError("taken before")

        app.command(name, help=text, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(command)
