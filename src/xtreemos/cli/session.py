"""`xos login`, `logout`: single sign-on. The agent that holds the keys is started here and stays."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from xtreemos.cli import context
from xtreemos.errors import RemoteError, Unreachable, XosError
from xtreemos.names import split_user_at_vo


def login(
    who: Annotated[str, typer.Argument(metavar="USER@VO")],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, for scripts.")
    ] = False,
) -> None:
    """Log in to a VO, once: from then on programs run in it without asking again."""

    def work() -> None:
        from xtreemos.aem.agent import launcher
        from xtreemos.vo.grid import load_grid

        user, vo = split_user_at_vo(who)
        load_grid(context.grid_dir()).entry(vo)
        password = context.read_password(password_stdin, f"Password of {user}@{vo}")
        answer = launcher.login(context.grid_dir(), vo, user, password)
        hours, minutes = divmod(int(answer["valid_s"]) // 60, 60)
        print(f"logged in as {user}@{vo}; the session renews itself (credentials valid {hours} h {minutes:02d} min)")

        if problem := answer.get("home_problem"):
            print(f"xos: your home is not mounted on this machine: {problem}", file=sys.stderr)

    context.guarded(work)


def logout(vo: Annotated[str | None, typer.Option(help="The VO, if you are logged in to several.")] = None) -> None:
    """End the session everywhere: its credentials are void, programs in the foreground are hung up."""
    try:
        answer = context.run(_logout(vo))
    except XosError as error:
        context.fail(error)
    print(answer)


async def _logout(vo: str | None) -> str:
    try:
        found = await context.agent_call("logout", vo=vo)
    except RemoteError:
        raise
    except Unreachable as error:
        if "not logged in" in error.message:
            raise
        raise Unreachable("the agent ended before it answered", "see `xos whoami`") from error
    return f"logged out of VO {found['vo']}" + (
        "" if found["revoked"] else "; the VO could not be told, the credentials expire by themselves"
    )
