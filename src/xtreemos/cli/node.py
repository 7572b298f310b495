"""`xos up`, `down`, `status`, `join`, `leave`: this machine as a node."""

from __future__ import annotations

import json
import socket
import sys
from typing import Annotated, Any, Literal

import typer

from xtreemos.cli import context
from xtreemos.errors import UsageError, XosError

STORAGE_HELP = "What this machine gives to each VO's files, for example 100G; none, or auto: half of what is free."
FILES_HELP = "grid: homes are the same on every node (XtreemFS); local: homes are folders of this node alone."


def storage_bytes(text: str | None) -> int | None:
    """Read --storage: bytes, 0 for none, -1 for auto; None if it was not given."""
    if text is None:
        return None
    if text in ("none", "auto"):
        return 0 if text == "none" else -1
    from xtreemos.foundation import query

    value = query.number(text)
    if value is None:
        raise UsageError(f"--storage {text[:40]!r} is no size", "write for example 100G, none or auto")
    return int(value)


def files_kind(text: str | None) -> Literal["grid", "local"] | None:
    """Read --files."""
    if text in (None, "grid", "local"):
        return text  # type: ignore[return-value]  # one of the two words
    raise UsageError(f"--files {text[:40]!r} is neither grid nor local")


def up(
    name: Annotated[str | None, typer.Option(help="Name of this node; the host name by default.")] = None,
    address: Annotated[str | None, typer.Option(help="IP address at which others reach this machine.")] = None,
    grid_name: Annotated[str, typer.Option(help="Name of the grid, if this founds one.")] = "grid",
    core: Annotated[bool, typer.Option("--core", help="Carry the fabric (a founding node always does).")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Let xosd start anew, with the software and settings of now; jobs go on.")
    ] = False,
    storage: Annotated[str | None, typer.Option(metavar="SIZE", help=STORAGE_HELP)] = None,
    files: Annotated[str | None, typer.Option(metavar="grid|local", help=FILES_HELP)] = None,
) -> None:
    """Start this machine's node; the first one founds a grid."""

    def work() -> None:
        from xtreemos.node import start

        context.need_root()
        paths = context.node_paths()
        if not start.is_node(paths):
            start.found(paths, name or host_name(), address or own_address(), grid_name)
            print(f"founded grid {grid_name} on {name or host_name()}; make a VO next: xos vo create NAME --admin USER")
        start.set_files(paths, start.Gives(files_kind(files), storage_bytes(storage)))
        status = start.up(paths, restart=restart)
        print(f"node {status['node']} is up ({status['address']})")

    del core  # accepted so that scripts may say it; see the help text
    context.guarded(work)


def down() -> None:
    """Stop this machine's node; running jobs of it end."""

    def work() -> None:
        from xtreemos.node import start

        context.need_root()
        stopped = start.down(context.node_paths())
        print("the node is down" if stopped else "the node was not up")

    context.guarded(work)


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show this machine's node: its VOs, jobs, and how it is connected."""
    found: dict[str, Any] = context.run(context.admin_call("status"))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"node {found['node']}  {found['address']}  {'core' if found['core'] else 'resource'}  {found['jobs']} jobs, takes {found['free']} more"
    )
    for row in found["vos"]:
        fabric = f"connected to {row['server']}" if row["connected"] else f"cut off for {row['cut_s']:.0f} s ({row['reason']})"
        print(f"VO {row['vo']}: {fabric}{'; manages its jobs' if row.get('manager') else ''}")
    if not found["vos"]:
        print("in no VO yet: xos vo create NAME --admin USER, or xos join TOKEN")


def join(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From `xos vo resource invite`, - reads it from standard input.")],
    name: Annotated[str | None, typer.Option(help="Name of this node; the host name by default.")] = None,
    address: Annotated[str | None, typer.Option(help="IP address at which others reach this machine.")] = None,
    core: Annotated[bool, typer.Option("--core", help="Agree to carry the fabric and the VO's issuing keys too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked: you are the machine's owner.")] = False,
    storage: Annotated[str | None, typer.Option(metavar="SIZE", help=STORAGE_HELP)] = None,
    files: Annotated[str | None, typer.Option(metavar="grid|local", help=FILES_HELP)] = None,
) -> None:
    """Make this machine a resource of a VO. You, its owner, keep the last word on what guests may do."""

    def work() -> None:
        from xtreemos.node import start

        context.need_root()
        text = sys.stdin.readline() if token == "-" else token  # noqa: S105  # not a secret but a sign
        chosen = name or host_name()
        if not yes:
            _ask_owner(chosen)
        gives = start.Gives(files_kind(files), storage_bytes(storage))
        status = start.join(context.node_paths(), text, name=chosen, address=address or own_address(), core=core, gives=gives)
        print(f"node {status['node']} is a resource of VO {status['joined']}")

    context.guarded(work)


def leave(
    vo: Annotated[str, typer.Argument(metavar="VO")],
    drain: Annotated[bool, typer.Option("--drain", help="Take no new jobs and wait until the running ones have ended.")] = False,
) -> None:
    """Take this machine out of a VO; its running jobs end."""
    context.guarded(context.need_root)
    context.run(context.admin_call("leave", {"vo": vo, "drain": drain}, None))
    print(f"this machine is no longer a resource of VO {vo}")


def _ask_owner(name: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("the machine's owner must agree", "say --yes if you are the owner")
    print(
        f"Joining makes {name} run programs of the VO's members, in sandboxes, as users that exist only for the grid.\n"
        "You can say at any time who may do what (node/policy.cedar), and leave (xos leave)."
    )
    if input("Do you, the owner of this machine, agree? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("not joined: the owner did not agree")


def host_name() -> str:
    """This machine's name as a node name."""
    return socket.gethostname().partition(".")[0].lower()


def own_address() -> str:
    """The address this machine uses towards others; raises UsageError if there is none but loopback."""
    from xtreemos.node.start import guess_address

    try:
        return guess_address()
    except XosError as error:
        raise UsageError(error.message, "give it with --address") from error
