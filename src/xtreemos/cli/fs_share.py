"""`xos fs share` and its kin: volumes that two VOs of one grid share by agreement."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from xtreemos.cli import context
from xtreemos.cli import fs_text as text
from xtreemos.errors import UsageError

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Vo = Annotated[str | None, typer.Option("--vo", metavar="VO", help="The VO, if this machine is in several.")]
Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="Name of a volume, see `xos fs volumes`.")]


async def _ask(vo: str | None, method: str, **params: Any) -> Any:
    from xtreemos.cli import fs_desk

    return await fs_desk.choose(vo).ask(method, params)


@app.command()
def share(
    volume: Volume,
    with_vo: Annotated[str, typer.Option("--with", metavar="VO", help="The other VO.")],
    write: Annotated[bool, typer.Option("--rw/--ro", help="Whether its members may change files, too.")] = False,
    days: Annotated[int, typer.Option(metavar="N", help="For so many days; 0: until `xos fs unshare`.")] = 0,
    vo: Vo = None,
) -> None:
    """Share a volume with another VO (administrators); an administrator of that VO then accepts it."""

    def work() -> None:
        if days < 0:
            raise UsageError("--days is a number of days from now on")
        until = int(time.time()) + days * 86400 if days else 0
        context.run(_ask(vo, "share", name=volume, other=with_vo, mode="rw" if write else "r", until=until))
        print(f"volume {volume} is shared with VO {with_vo}; there an administrator says: xos fs accept {volume}@YOUR-VO")

    context.guarded(work)


@app.command()
def unshare(
    volume: Volume, with_vo: Annotated[str, typer.Option("--with", metavar="VO", help="The other VO.")], vo: Vo = None
) -> None:
    """Share a volume with another VO no more (administrators): at once, for programs that run as well."""
    context.run(_ask(vo, "share", name=volume, other=with_vo, mode="", until=0))
    print(f"volume {volume} is not shared with VO {with_vo} (any more)")


@app.command()
def accept(
    which: Annotated[str, typer.Argument(metavar="VOLUME@VO", help="A volume of another VO.")],
    end: Annotated[bool, typer.Option("--end", help="Accept it no more.")] = False,
    vo: Vo = None,
) -> None:
    """Accept that another VO shares a volume with yours (administrators): members find it at /xos/VO/VOLUME."""

    def work() -> None:
        volume, _at, owner = which.rpartition("@")
        if not volume:
            raise UsageError(f"{which[:64]!r} names no volume of another VO", "write VOLUME@VO")
        params = {"vo": owner, "volume": volume, "accepted": not end}
        context.run(context.agent_call("cda", {"method": "accept_share", "params": params}, vo=vo))
        print(
            f"volume {volume} of VO {owner} is accepted no more"
            if end
            else f"members find it at /xos/{owner}/{volume}, in programs started from now on"
        )

    context.guarded(work)


@app.command()
def shares(as_json: Json = False, vo: Vo = None) -> None:
    """List what your VO shares with others, and what it has accepted from others."""

    async def work() -> None:
        found = await _ask(vo, "shares")
        now = time.time()
        lines = [
            ("given", row["volume"], row["vo"], "rw" if row["write"] else "ro", "-" if not row["until"] else "over" if row["until"] <= now
             else time.strftime("%Y-%m-%d", time.localtime(row["until"]))) for row in found["given"]
        ]  # fmt: skip
        lines += [("accepted", row["volume"], row["vo"], "", "") for row in found["accepted"]]
        text.show(found, as_json, text.table(("half", "volume", "other vo", "may", "until"), lines))

    context.run(work())
