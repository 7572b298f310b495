"""`xos fs ...`: volumes and what is in them. Words, questions and tables; the work is in the modules beside it, loaded when needed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from xtreemos.cli import context, fs_share
from xtreemos.cli import fs_text as text
from xtreemos.errors import RemoteError, UsageError, XosError

app = typer.Typer(help="The grid's files: volumes, quotas, mounts, health.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Vo = Annotated[str | None, typer.Option("--vo", metavar="VO", help="The VO, if this machine is in several.")]
Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the volume, as `xos fs volumes` lists it.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

USE_S = 5.0  # a metadata server that is away must not hold up the list of volumes
ASKING_MAX = 16


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return context.run(work)


async def _ask(vo: str | None, method: str, **params: Any) -> Any:
    from xtreemos.cli import fs_desk

    return await fs_desk.choose(vo).ask(method, params)


app.add_typer(fs_share.app)


# -- volumes -------------------------------------------------------------------------------------------------------------


@app.command()
def mkvol(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a-z, 0-9, . _ -, not beginning with home-.")],
    width: Annotated[int, typer.Option(metavar="N", help="Over how many object servers each new file is striped.")] = 1,
    object_size: Annotated[str, typer.Option("--object", metavar="SIZE", help="Bytes of a striped file in one piece.")] = "4M",
    placement: Annotated[str, typer.Option(metavar="near|spread", help="New files: on the writer's node, or evenly.")] = "near",
    quota: Annotated[str, typer.Option(metavar="SIZE", help="The most it may hold; none by default.")] = "none",
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="Permissions of its top folder; 0700 by default, 2770 with --group.")
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            metavar="GROUP", help="For this group of the VO: all of it is the group's to change, whatever umask its members have."
        ),
    ] = "",
    as_json: Json = False,
    vo: Vo = None,
) -> None:
    """Make a volume of your own; it is at /xos/VO/NAME on every node at once."""

    async def work() -> None:
        if placement not in ("near", "spread"):
            raise UsageError(f"--placement {placement[:20]!r} is neither near nor spread")
        policy: dict[str, int | str] = {
            "width": width,
            "object_bytes": text.parse_size(object_size, "--object"),
            "placement": placement,
        }
        policy["quota_bytes"] = text.parse_size(quota, "--quota")
        try:
            bits = text.parse_mode(mode or ("2770" if group else "0700"))
            made = await _ask(vo, "mkvol", name=name, mode=bits, policy=policy, group=group)
        except RemoteError as error:
            if error.code == "EEXIST":
                raise UsageError(f"a volume {name} exists already", "`xos fs volumes` lists them") from error
            raise
        text.show(made, as_json, f"volume {made['name']} is at {made['path']} (metadata on {made['mrc']})")

    _run(work())


@app.command()
def rmvol(
    name: Volume,
    force: Annotated[bool, typer.Option("--force", help="With everything in it.")] = False,
    yes: Yes = False,
    vo: Vo = None,
) -> None:
    """Remove a volume (its owner or an administrator); one that is not empty only with --force, after a question."""

    async def work() -> None:
        rows = await _ask(vo, "volstat", name=name)
        files, held = rows[0]["files_used"] - 1, text.size(rows[0]["bytes_used"])
        if force and files > 0:
            text.agree(f"Remove volume {name} with {files} files, {held}B, for good?", yes)
        try:
            await _ask(vo, "rmvol", name=name, force=force)
        except RemoteError as error:
            if error.code == "ENOTEMPTY":
                raise XosError(
                    f"volume {name} is not empty: {files} files, {held}B", "--force removes it with all of them"
                ) from error
            raise
        print(f"volume {name} is removed")

    _run(work())


@app.command()
def volumes(as_json: Json = False, vo: Vo = None) -> None:
    """List the volumes of the VO: owner, use, quota, where."""

    async def work() -> None:
        from xtreemos.cli import fs_desk

        place = fs_desk.choose(vo)
        gate = asyncio.Semaphore(ASKING_MAX)
        async with place.peer("users") as peer:

            async def use(row: dict[str, Any]) -> dict[str, Any]:
                async with gate:
                    try:
                        held = (await peer.call("volstat", {"name": row["name"]}, timeout_s=USE_S))[0]
                    except XosError as error:
                        return {**row, "used_bytes": None, "used_files": None, "trouble": error.line()}
                return {**row, "used_bytes": held["bytes_used"], "used_files": held["files_used"], "quota_bytes": held["bytes_max"]}

            rows = await asyncio.gather(*map(use, await peer.call("volumes", timeout_s=fs_desk.CALL_S)))
        _list_volumes(rows, as_json)

    _run(work())


def _list_volumes(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    lines = []
    for row in rows:
        used = "?" if row["used_bytes"] is None else text.size(row["used_bytes"])
        quota = text.size(row["quota_bytes"]) if row["quota_bytes"] else "-"
        files = "?" if row["used_files"] is None else row["used_files"]
        layout = f"{row['width']} {row['placement']}"
        lines.append((row["name"], row["owner"], used, quota, files, layout, row["mrc"], row["path"]))
    print(text.table(("name", "owner", "used", "quota", "files", "width", "mrc", "path"), lines))
    for trouble in sorted({row["trouble"] for row in rows if row.get("trouble")}):
        text.note(trouble)


@app.command()
def quota(
    volume: Volume,
    user: Annotated[str | None, typer.Option(metavar="U", help="Of this user in the volume; else of the whole volume.")] = None,
    most: Annotated[str | None, typer.Option("--bytes", metavar="SIZE", help="Set: the most bytes; none ends the limit.")] = None,
    files: Annotated[str | None, typer.Option(metavar="N", help="Set: the most files, folders and links; none ends it.")] = None,
    as_json: Json = False,
    vo: Vo = None,
) -> None:
    """Show or set what a volume, or a user in it, may hold. Setting is for its owner and administrators."""

    async def work() -> None:
        rows = await _ask(vo, "volstat", name=volume)
        if most is not None or files is not None:
            old = next((row for row in rows if row["user"] == (user or "")), {"bytes_max": 0, "files_max": 0})
            bytes_max = old["bytes_max"] if most is None else text.parse_size(most, "--bytes")
            files_max = old["files_max"] if files is None else text.parse_count(files, "--files")
            await _ask(vo, "setquota", name=volume, user=user or "", bytes_max=bytes_max, files_max=files_max)
            rows = await _ask(vo, "volstat", name=volume)
        if user is not None:
            rows = [row for row in rows if row["user"] == user]
        lines = [
            (row["user"] or f"({volume})", text.size(row["bytes_used"]), text.size(row["bytes_max"]) if row["bytes_max"] else "-",
             row["files_used"], row["files_max"] or "-") for row in rows
        ]  # fmt: skip
        text.show(rows, as_json, text.table(("user", "bytes", "most", "files", "most"), lines))

    _run(work())


@app.command()
def stat(
    path: Annotated[list[Path], typer.Argument(metavar="PATH...", help="A file or folder in the grid.")],
    as_json: Json = False,
) -> None:
    """Show what the file system knows of a file: owner, layout, object servers, lease, what is not written back yet."""

    def work() -> None:
        from xtreemos.cli import fs_stat

        found = [fs_stat.look(one) for one in path]
        text.show(found if len(found) > 1 else found[0], as_json, "\n\n".join(map(fs_stat.text_of, found)))

    context.guarded(work)


@app.command()
def events(
    volume: Volume,
    after: Annotated[int, typer.Option(metavar="N", help="Begin after change N, if it is still known; -1: from now on.")] = -1,
    vo: Vo = None,
) -> None:
    """Follow the changes of a volume (its owner, administrators): a line of JSON for each, until Ctrl-C."""

    async def work() -> None:
        from xtreemos.cli import fs_desk

        async with fs_desk.choose(vo).peer("users") as peer:
            call = peer.open("events", {"name": volume, "after": after})
            while True:
                row = (await call.receive()).body
                if isinstance(row, dict) and isinstance(row.get("name"), bytes):
                    row["name"] = os.fsdecode(row["name"])
                print(json.dumps(row), flush=True)

    _run(work())


# -- mounts --------------------------------------------------------------------------------------------------------------


@app.command()
def mount(
    volume: Annotated[str | None, typer.Argument(metavar="[VOLUME", help="Which volume; without it the mounts are listed.")] = None,
    folder: Annotated[Path | None, typer.Argument(metavar="DIR]", help="An existing folder.")] = None,
    root: Annotated[
        bool, typer.Option("--root", help="Act as root of the volume: plain uids, any owner. For imports and backups.")
    ] = False,
    owner: Annotated[str | None, typer.Option("--as", metavar="USER", help="With --root: by the ticket of this user.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse changes.")] = False,
    as_json: Json = False,
    vo: Vo = None,
) -> None:
    """Mount one volume at a folder of this machine (root), beside /xos/VO; or list such mounts.

    With --root by the ticket of the volume's owner, who must be logged in on this machine.
    """

    def work() -> None:
        from xtreemos.cli import fs_mount

        if volume is None or folder is None:
            if volume is not None:
                raise UsageError("say where to mount it", "xos fs mount VOLUME DIR")
            found = fs_mount.rows()
            text.show(found, as_json, fs_mount.text_of(found))
            return
        context.need_root()
        record = _run(fs_mount.mount(vo, volume, folder, root=root, owner=owner, read_only=read_only))
        power = f" as its root, by the ticket of {record.owner}" if record.owner else ""
        print(f"volume {record.volume} is mounted at {record.dir}{power}")

    context.guarded(work)


@app.command()
def umount(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    lazy: Annotated[bool, typer.Option("--lazy", help="Out of sight at once; programs with open files go on, and end it.")] = False,
) -> None:
    """Unmount what `xos fs mount` mounted (root); returns when everything written is safe on the object servers' disks."""

    def work() -> None:
        from xtreemos.cli import fs_mount

        context.need_root()
        how = _run(fs_mount.umount(folder, lazy=lazy))
        print(f"{folder} is unmounted; {how}")

    context.guarded(work)


# -- in and out ----------------------------------------------------------------------------------------------------------

Jobs = Annotated[int, typer.Option(metavar="N", min=1, max=64, help="How many files at a time.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read everything again and compare.")]
Inside = Annotated[str, typer.Argument(metavar="VOLUME[:DIR]", help="A folder in a volume; it is made if need be.")]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder (its contents are copied) or a file.")],
    target: Inside,
    jobs: Jobs = 8,
    verify: Verify = False,
    vo: Vo = None,
) -> None:
    """Copy files into a volume: modes, times, xattrs, links and holes are kept. Said again, it goes on where it was stopped.

    As root over a mount made by `xos fs mount --root`; then owners are kept, too.
    """

    def work() -> None:
        from xtreemos.cli import fs_transfer

        fs_transfer.transfer("imported", source, fs_transfer.place_of(vo, target), threads=jobs, verify=verify)

    context.guarded(work)


@app.command()
def export(
    source: Inside,
    target: Annotated[Path, typer.Argument(metavar="DEST", help="A folder; it is made if need be.")],
    jobs: Jobs = 8,
    verify: Verify = False,
    vo: Vo = None,
) -> None:
    """Copy files out of a volume, as `import` does into one."""

    def work() -> None:
        from xtreemos.cli import fs_transfer

        fs_transfer.transfer("exported", fs_transfer.place_of(vo, source), target, threads=jobs, verify=verify)

    context.guarded(work)


# -- health --------------------------------------------------------------------------------------------------------------


@app.command()
def scrub(
    node: Annotated[
        str | None, typer.Option(metavar="NODE", help="Which object server: from a core node any, else this one.")
    ] = None,
    as_json: Json = False,
    vo: Vo = None,
) -> None:
    """Read everything that an object server keeps and compare it with its checksums (root). It is slow on purpose, others go first."""

    def work() -> None:
        from xtreemos.cli import fs_check

        context.need_root()
        answer = _run(fs_check.scrub(vo, node))
        if as_json:
            print(json.dumps(answer, indent=1))
            raise typer.Exit(1 if answer["damaged"] else 0)
        raise typer.Exit(fs_check.tell_scrub(answer))

    context.guarded(work)


@app.command()
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found; the metadata server is stopped meanwhile.")] = False,
    vo: Vo = None,
) -> None:
    """Check this node's metadata server against itself and against all object servers (root of a core node).

    Without --repair nobody is disturbed. Exit code 1: something is wrong that is not mended.
    """

    def work() -> None:
        from xtreemos.cli import fs_check

        context.need_root()
        raise typer.Exit(_run(fs_check.check(vo, repair=repair)))

    context.guarded(work)


@app.command()
def osds(as_json: Json = False, vo: Vo = None) -> None:
    """List the object servers of the VO: state, space, when they were last heard of."""

    async def work() -> None:
        from xtreemos.cli import fs_desk, fs_top

        rows = await fs_top.osds(fs_desk.choose(vo))
        text.show(rows, as_json, fs_top.osds_text(rows))

    _run(work())


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="One look (it takes a second), then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line each second.")] = False,
    vo: Vo = None,
) -> None:
    """Show what the file system does on this node, again every second: requests, bytes, unsent data, leases, and the space of all servers."""

    async def work() -> None:
        from xtreemos.cli import fs_desk, fs_top

        await fs_top.top(fs_desk.choose(vo), once=once, as_json=as_json)

    _run(work())
