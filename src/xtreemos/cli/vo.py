"""`xos vo ...`: the life of a virtual organisation."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from xtreemos.cli import context
from xtreemos.names import check_user, check_vo

app = typer.Typer(help="Found a VO, invite its people and machines, look after it.", no_args_is_help=True)
resource = typer.Typer(help="Machines of a VO.", no_args_is_help=True)
app.add_typer(resource, name="resource")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Vo = Annotated[str | None, typer.Option("--vo", metavar="VO", help="The VO, if you are logged in to several.")]


def _print(answer: Any, as_json: bool, text: str) -> None:
    print(json.dumps(answer, indent=1, default=str) if as_json else text)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    admin: Annotated[str, typer.Option(metavar="USER", help="Name of its first administrator.")],
    as_json: Json = False,
) -> None:
    """Found a VO on this grid (root of the founding node); prints the administrator's invitation."""

    def check() -> None:
        context.need_root()
        check_vo(name)
        check_user(admin)

    context.guarded(check)
    answer = context.run(context.admin_call("vo.create", {"vo": name, "admin": admin}))
    _print(
        answer,
        as_json,
        f"VO {name} exists. Its root key is in {answer['root_key']}: move it off this machine and keep it safe.\n"
        f"{admin} becomes its administrator by:\n  xos vo accept {answer['invite']}",
    )


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the VOs that this machine knows."""

    def work() -> None:
        from xtreemos.vo.grid import load_grid

        grid = load_grid(context.grid_dir())
        rows = [
            {"vo": vo, "default": vo == grid.default_vo, "endpoints": entry.endpoints} for vo, entry in sorted(grid.vos.items())
        ]
        text = "\n".join(
            f"{row['vo']:<20} {' '.join(grid.vos[str(row['vo'])].endpoints)}{'  (default)' if row['default'] else ''}"
            for row in rows
        )
        _print(rows, as_json, text or "no VO is known here")

    context.guarded(work)


@app.command()
def show(as_json: Json = False, vo: Vo = None) -> None:
    """Show your VO: its members and machines."""
    answer = {**_cda("members", {}, vo), **_cda("node_list", {}, vo)}
    rows = [f"{row['user']:<20} {row['state']:<10} {','.join(row['roles'])}" for row in answer["members"]]
    rows += [
        f"{row['node']:<20} {'core' if row['core'] else 'resource':<10} {' '.join(row['addresses'])}" for row in answer["nodes"]
    ]
    _print(answer, as_json, "\n".join(rows))


def _cda(method: str, params: dict[str, Any], vo: str | None) -> Any:
    return context.run(context.agent_call("cda", {"method": method, "params": params}, vo=vo))


@app.command()
def invite(
    who: Annotated[str, typer.Argument(metavar="USER[@VO]")],
    role: Annotated[list[str] | None, typer.Option(metavar="ROLE", help="member (default), admin; may be repeated.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="A new token for somebody invited already, or who forgot the password.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Invite a person (administrators); prints a one-time token to hand over."""
    user, _at, vo = who.partition("@")
    answer = _cda("invite", {"user": user, "roles": sorted({"member", *(role or [])}), "again": again}, vo or None)
    answer = {"invite": answer["token"], "user": answer["user"], "expires_at": answer["expires_at"]}
    _print(answer, as_json, f"{user} joins by:\n  xos vo accept {answer['invite']}")


@app.command()
def accept(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="- reads it from standard input, before the password.")],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, for scripts.")
    ] = False,
) -> None:
    """Accept an invitation: set your password; this machine then knows the VO."""

    def work() -> None:
        from xtreemos.node.start import accept_invitation

        text = sys.stdin.readline() if token == "-" else token  # noqa: S105  # not a secret but a sign
        password = context.read_password(password_stdin, "New password", twice=True)
        answer = accept_invitation(context.grid_dir(), text, password)
        print(f"you are {answer['user']}@{answer['vo']}; log in: xos login {answer['user']}@{answer['vo']}")

    context.guarded(work)


@app.command()
def password(
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Old and new password, a line each.")] = False,
    vo: Vo = None,
) -> None:
    """Change your password; your other sessions end."""

    def work() -> None:
        old = context.read_password(password_stdin, "Old password")
        new = context.read_password(password_stdin, "New password", twice=True)
        answer = _cda("set_password", {"old": old, "new": new}, vo)
        print(f"password changed; {answer['ended']} other sessions ended")

    context.guarded(work)


@app.command()
def members(as_json: Json = False, vo: Vo = None) -> None:
    """List the members of your VO."""
    rows = _cda("members", {}, vo)["members"]
    _print(rows, as_json, "\n".join(f"{row['user']:<20} {row['state']:<10} {','.join(row['roles'])}" for row in rows))


@app.command()
def suspend(user: Annotated[str, typer.Argument(metavar="USER")], vo: Vo = None) -> None:
    """Stop a member at once: sessions end, running programs too (administrators)."""
    _cda("suspend", {"user": user}, vo)
    print(f"{user} is suspended; back again: xos vo restore {user}")


@app.command()
def restore(user: Annotated[str, typer.Argument(metavar="USER")], vo: Vo = None) -> None:
    """Let a suspended member log in again (administrators)."""
    _cda("restore", {"user": user}, vo)
    print(f"{user} may log in again")


@app.command()
def remove(user: Annotated[str, typer.Argument(metavar="USER")], vo: Vo = None) -> None:
    """End a membership for good (administrators)."""
    _cda("remove", {"user": user}, vo)
    print(f"{user} is no longer a member")


@app.command()
def role(
    user: Annotated[str, typer.Argument(metavar="USER")],
    roles: Annotated[list[str], typer.Argument(metavar="ROLE...", help="All roles the member has from now on: member, admin.")],
    vo: Vo = None,
) -> None:
    """Set the roles of a member (administrators)."""
    answer = _cda("set_roles", {"user": user, "roles": roles}, vo)
    print(f"{user} has the roles {', '.join(answer['roles'])}")


@app.command()
def group(
    user: Annotated[str, typer.Argument(metavar="USER")],
    groups: Annotated[list[str] | None, typer.Argument(metavar="GROUP...", help="All groups the member is in from now on; none: no group.")] = None,
    vo: Vo = None,
) -> None:
    """Set the groups of a member (administrators): owners of machines may ask for them in their policies."""
    answer = _cda("set_groups", {"user": user, "groups": groups or []}, vo)
    print(f"{user} is in {', '.join(answer['groups']) or 'no group'}")


@app.command()
def revoke(
    sid: Annotated[str, typer.Argument(metavar="SESSION", help="Whole session id, from `xos vo sessions`.")], vo: Vo = None
) -> None:
    """End one session: your own, or as administrator anybody's."""
    answer = _cda("revoke_session", {"sid": sid}, vo)
    print(f"session {answer['sid']} of {answer['user']} is void")


@app.command()
def sessions(as_json: Json = False, vo: Vo = None) -> None:
    """List your sessions in the VO."""
    rows = _cda("sessions", {}, vo)["sessions"]
    _print(rows, as_json, "\n".join(f"{row['sid']}  {','.join(row['roles'])}" for row in rows))


@app.command()
def audit(
    name: Annotated[str, typer.Argument(metavar="VO")],
    lines: Annotated[int, typer.Option("-n", help="How many of the last decisions.")] = 20,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with what the VO noted of it: was the end cut off, or the file exchanged?")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show and check this node's audit of a VO (root of the node)."""
    context.guarded(context.need_root)
    noted = context.run(context.admin_call("audit.noted", {"vo": name})) if verify else None

    def work() -> None:
        from xtreemos.node import auditing, start

        if verify:
            said = auditing.check_noted(auditing.audit_path(context.node_paths(), check_vo(name)), noted)
            _print({"said": said, "noted": noted}, as_json, said)
            return
        count, rows = start.audit_lines(context.node_paths(), check_vo(name), lines)
        text = "\n".join(f"{'yes' if row['allowed'] else 'NO ':<4}{row['who']:<28} {row['what']:<24} {row['why']}" for row in rows)
        _print(rows, as_json, f"{text}\n{count} decisions, the chain is whole as far as it goes (see --verify)")

    context.guarded(work)


@resource.command("invite")
def resource_invite(
    core: Annotated[bool, typer.Option("--core", help="The machine shall carry the fabric and the VO's issuing keys.")] = False,
    as_json: Json = False,
    vo: Vo = None,
) -> None:
    """Make a one-time token with which a machine's owner lets it join (administrators)."""
    answer = _cda("resource_invite", {"core": core}, vo)
    _print(answer, as_json, f"on the machine, its owner says:\n  xos join {'--core ' if core else ''}{answer['token']}")


@resource.command("list")
def resource_list(as_json: Json = False, vo: Vo = None) -> None:
    """List the machines of your VO, up or not."""
    rows = _cda("node_list", {}, vo)["nodes"]
    text = "\n".join(f"{row['node']:<20} {'core' if row['core'] else 'resource':<10} {' '.join(row['addresses'])}" for row in rows)
    _print(rows, as_json, text)


@resource.command("remove")
def resource_remove(node: Annotated[str, typer.Argument(metavar="NODE")], vo: Vo = None) -> None:
    """Take a machine out of the VO (administrators)."""
    _cda("remove_node", {"node": node}, vo)
    print(f"{node} is no longer a resource of the VO")
