"""`xos`: one file per group of commands; this one only puts them together.

The C front (native/ghost.c) answers `run`, `ps` and the like through the session's agent without starting Python; they come here
only if there is no agent, no compiler at set-up, or somebody asks for help.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from xtreemos import __version__
from xtreemos.cli import agent_commands, context, fs, node, session
from xtreemos.cli import lab as lab_commands
from xtreemos.cli import vo as vo_commands
from xtreemos.errors import XosError

app = typer.Typer(
    name="xos",
    help="XtreemOS: the machines of a virtual organisation as one Linux machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"xos {__version__}")
        raise typer.Exit


@app.callback()
def main(
    grid: Annotated[
        str | None, typer.Option("--grid", metavar="DIR", help="Folder of the grid; else XOS_GRID, else the default.")
    ] = None,
    vo: Annotated[str | None, typer.Option("--vo", metavar="VO", help="The VO, if you are logged in to several.")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the subcommand."""
    del version
    context.choose(grid, vo)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine: what works, what is missing, what that costs, how to mend it."""
    from xtreemos.cli.doctor import doctor as check

    raise typer.Exit(check(as_json))


app.command()(node.up)
app.command()(node.down)
app.command()(node.status)
app.command()(node.join)
app.command()(node.leave)
app.command()(session.login)
app.command()(session.logout)
app.add_typer(vo_commands.app, name="vo")
app.add_typer(fs.app, name="fs")
app.add_typer(lab_commands.app, name="lab")
agent_commands.register(app)


def run() -> None:
    """Entry point: one line for an error, never a traceback for what a user did."""
    words = sys.argv[1:]
    if agent_commands.is_agent_command(words):
        agent_commands.run(["xos", *words])
    try:
        app(prog_name="xos")
    except XosError as error:
        context.fail(error)
    except BrokenPipeError:
        os._exit(1)  # the reader is gone; flushing at exit would complain


if __name__ == "__main__":
    run()
