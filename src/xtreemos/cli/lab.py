"""`xos lab ...`: the grid in a box. Options and output only; the work is in xtreemos.lab, imported when a command runs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from xtreemos.lab.model import DEFAULT_NAME

app = typer.Typer(help="A real grid on this one machine, for trying out, teaching and testing. Needs root.", no_args_is_help=True)

Name = Annotated[str, typer.Option("--name", metavar="L", help="Name of the lab.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="n1, n2, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    sites: Annotated[int, typer.Option(help="How many sites; nodes go round them in turn.")] = 1,
    name: Name = DEFAULT_NAME,
    core: Annotated[int | None, typer.Option(help="How many nodes carry the fabric: 1 or 3; 3 by default if there are 3.")] = None,
    bare: Annotated[bool, typer.Option(help="Machines only: start none of our software on them.")] = False,
    files: Annotated[str, typer.Option(metavar="grid|local", help="Homes: the same on all nodes, or folders of each node.")] = "grid",
) -> None:
    """Make a lab; ready when every node is a resource of VO demo."""
    from xtreemos.lab import lab

    for line in lab.up(name, nodes=nodes, sites=sites, core=core, bare=bare, files=files, say=_say):
        _say(line)


@app.command()
def down(
    name: Name = DEFAULT_NAME,
    every: Annotated[bool, typer.Option("--all", help="All labs of yours.")] = False,
) -> None:
    """Remove a lab with all it has; nothing is left behind, also after a crash."""
    from xtreemos.lab import lab

    for line in lab.down_all() if every else [lab.down(name)]:
        _say(line)


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Option("--name", metavar="L", help="Only this lab.")] = None,
    as_json: Json = False,
) -> None:
    """List nodes with their sites, addresses and states."""
    from xtreemos.lab import lab

    rows = lab.rows(name)
    if as_json:
        _say(json.dumps(rows, indent=1))
        return
    _table(["lab", "name", "site", "address", "state", "core"], rows)


@app.command("exec")
def exec_(
    node: NodeArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="The command and its arguments.")],
    user: Annotated[str | None, typer.Option(metavar="U", help="A user of VO demo, logged in if need be; else root.")] = None,
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command inside a node; streams, terminal, signals and exit status pass through."""
    from xtreemos.lab import enter

    enter.run(enter.Request(node, tuple(command), user, name))


@app.command()
def kill(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Cut a node's power: all its processes die at once; its disk stays as it is."""
    from xtreemos.lab import lab

    _say(lab.kill(name, node))


@app.command()
def start(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Switch a node on again."""
    from xtreemos.lab import lab

    _say(lab.start(name, node))


@app.command()
def freeze(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Stop every process of a node where it stands."""
    from xtreemos.lab import lab

    _say(lab.freeze(name, node))


@app.command()
def thaw(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Let a frozen node go on."""
    from xtreemos.lab import lab

    _say(lab.thaw(name, node))


@app.command()
def cut(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Cut a node off: its packets vanish silently, both ways."""
    from xtreemos.lab import lab

    _say(lab.cut(name, node))


@app.command()
def heal(node: NodeArgument, name: Name = DEFAULT_NAME) -> None:
    """Connect a node again that was cut off."""
    from xtreemos.lab import lab

    _say(lab.heal(name, node))


@app.command()
def add(
    site: Annotated[str | None, typer.Option(metavar="sK", help="Which site; the next in turn by default.")] = None,
    name: Name = DEFAULT_NAME,
) -> None:
    """Add a node, which joins VO demo."""
    from xtreemos.lab import lab

    _say(lab.add(name, site))


@app.command()
def delay(
    one: Annotated[str, typer.Argument(metavar="A")],
    other: Annotated[str, typer.Argument(metavar="B")],
    delay_ms: Annotated[int, typer.Argument(metavar="MS", help="Added to every packet in each direction; 0 ends it.")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Put two nodes further apart, where the kernel can (netem)."""
    from xtreemos.lab import lab

    _say(lab.delay(name, one, other, delay_ms))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    cells = [[column.upper() for column in columns]]
    cells += [[{True: "yes", False: "no"}.get(row[column], str(row[column])) for column in columns] for row in rows]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
