"""Writes the reference pages that come from the code: docs/reference/{commands,errors,settings}.md.

`python tools/reference.py` rewrites them, `--check` only tells whether they are out of date (exit 1). Commands come from the typer
application, errors from the subclasses of XosError, settings from the XOS_ names in the source with the meanings given here.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import xtreemos
from xtreemos.aem import options
from xtreemos.errors import RemoteError, XosError

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
AGENT_PARSED = ("run", "sub")  # by argparse, in aem/options.py
FROM_CODE = "<!-- Written by tools/reference.py out of the code; change it there. -->\n"

SETTINGS = {
    "XOS_AGENT_DIR": "Folder of the session agent's sockets, in place of `$XDG_RUNTIME_DIR/xtreemos`.",
    "XOS_DEBUG": "Not empty: an error's causes are printed below its line.",
    "XOS_GRID": "Folder of the grid that commands speak to, as `--grid` does.",
    "XOS_INDEX": "Set in a job: its place in its array, from 0.",
    "XOS_JOB": "Set in a job: its job id.",
    "XOS_KEEP": "Set by the supervisor for a mount process: two descriptors, in which its mount outlives it.",
    "XOS_NODE": "Set in a job: the node that it runs on.",
    "XOS_VO": "Set in a job: the virtual organisation that it runs in.",
}
EXIT_CODES = """| exit code | means |
|---|---|
| 0 | done |
| 1 | any other failure |
| 2 | usage: the words of the command are off |
| 69 | a service is unreachable |
| 75 | try again later |
| 77 | permission denied |

`xos run` and `xos wait` exit as the job does.
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _walk(command: Any, words: str) -> Iterator[str]:
    """Yield the sections of a typer command or group (typer's own types are private: it carries its parser inside)."""
    inner = getattr(command, "commands", None) or {}
    if not inner:
        yield _agent_command(words) or "".join(_command(command, words))
    for name, child in sorted(inner.items()):
        if not child.hidden:
            yield from _walk(child, f"{words} {name}")


def _agent_command(words: str) -> str:
    """Return the section of a command that the session's agent parses, "" for all others."""
    name = words.removeprefix("xos ")
    if name not in AGENT_PARSED:
        return ""
    os.environ["COLUMNS"] = "100"  # argparse wraps by it; pages must not depend on who writes them
    return f"## `{words}`\n\n```\n{options._parser(name).format_help().strip()}\n```\n\n"  # noqa: SLF001  # one public door would exist for us alone


def _command(command: Any, words: str) -> Iterator[str]:
    kinds = [(p, p.param_type_name) for p in command.params if not getattr(p, "hidden", False)]
    arguments = [(p.metavar or p.name.upper()) + ("..." if p.nargs == -1 else "") for p, kind in kinds if kind == "argument"]
    flags = [p for p, kind in kinds if kind == "option"]
    yield f"## `{words}`\n\n{(command.help or '').strip()}\n\n```\n{' '.join([words, *(['[OPTIONS]'] if flags else []), *arguments])}\n```\n"
    if flags:
        yield "\n| option | does |\n|---|---|\n"
    for flag in flags:
        yield f"| {', '.join(f'`{name}`' for name in [*flag.opts, *flag.secondary_opts])} | {_cell(getattr(flag, 'help', None) or '')} |\n"
    yield "\n"


def commands() -> str:
    """Return the page of all commands."""
    app = importlib.import_module("xtreemos.cli.__main__").app
    return f"# Commands\n\n{FROM_CODE}\n{EXIT_CODES}\n" + "".join(_walk(typer.main.get_command(app), "xos"))


def _subclasses(base: type[XosError]) -> Iterator[type[XosError]]:
    for child in base.__subclasses__():
        yield child
        yield from _subclasses(child)


def errors() -> str:
    """Return the page of all errors, by code."""
    for module in pkgutil.walk_packages(xtreemos.__path__, "xtreemos."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    head = "| code | whose fault | exit | retry | certainly not done | means |\n|---|---|---|---|---|---|\n"
    classes: list[type[XosError]] = [XosError, *_subclasses(XosError)]
    rows = {
        f"| `{e.code}` | {e.fault} | {e.exit_code} | {'yes' if e.retry else 'no'} | {'yes' if e.definite else 'no'} | {_cell(e.__doc__ or '')} |\n"
        for e in classes
        if e is not RemoteError and e.__module__.startswith("xtreemos.")
    }
    intro = "Every error has a code, which `--json` output and other programs may rely on, and one line of text, which they may not.\n\n"
    return f"# Errors\n\n{FROM_CODE}\n{intro}{head}" + "".join(sorted(rows))


def settings() -> str:
    """Return the page of environment variables; a name without a meaning here is an error."""
    source = "".join(p.read_text(encoding="utf-8") for suffix in ("py", "c") for p in (ROOT / "src").rglob(f"*.{suffix}"))
    names = sorted(set(re.findall(r'"(XOS_[A-Z_]+)"', source)))
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        sys.exit(f"say in tools/reference.py what {', '.join(unknown)} means")
    return f"# Environment variables\n\n{FROM_CODE}\n| name | meaning |\n|---|---|\n" + "".join(f"| `{n}` | {SETTINGS[n]} |\n" for n in names)


def main() -> int:
    stale = []
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, write in (("commands", commands), ("errors", errors), ("settings", settings)):
        path, text = PAGES / f"{name}.md", write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv[1:] and stale:
        print(f"out of date: {', '.join(stale)}; run `python tools/reference.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
