"""The words of `xos run` and `xos sub`, understood once for the agent's fast path and for the Python CLI.

Everything from the program's name on belongs to the program, with or without `--`.
"""

from __future__ import annotations

import argparse
import functools
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from xtreemos.errors import UsageError
from xtreemos.foundation import query
from xtreemos.names import ARRAY_TASKS_MAX

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process (the agent must live on)."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", f"see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or self.prog) if status else HelpWanted(self.format_help())


class HelpWanted(Exception):
    """The user asked for --help; `str()` is the text."""


def duration_s(text: str) -> float:
    """Return seconds: `90`, `90s`, `10m`, `2h`, `1d`, `500ms`."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 90s, 10m or 2h")
    return float(found[1]) * _UNITS_S[found[2] or ""]


def size_bytes(text: str) -> int:
    """Return bytes: `512M`, `2G`."""
    value = query.number(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 512M or 2G")
    return int(value)


def _variable(text: str) -> str:
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME or NAME=VALUE")
    return text


def _query_text(text: str) -> str:
    try:
        query.parse(text)
    except query.BadQuery as error:
        raise argparse.ArgumentTypeError(error.line()) from error
    return text


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the user wants of a run. `env` rows are NAME=VALUE, or NAME to take the caller's value."""

    argv: list[str]
    vo: str | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    wall_s: float | None = None
    where: str | None = None
    node: str | None = None
    env: list[str] = field(default_factory=list)
    retry: int = 0
    no_stdin: bool = False
    force_tty: bool | None = None
    times: bool = False
    count: int = 1


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpus", type=float, metavar="N", help="cores the program may use, fractions allowed")
    parser.add_argument("--memory", type=size_bytes, metavar="SIZE", help="memory limit, for example 2G")
    parser.add_argument("--time", type=duration_s, metavar="TIME", help="wall-clock limit, for example 90s, 10m, 2h")
    parser.add_argument(
        "--on", type=_query_text, metavar="EXPR", help="only nodes that match, for example 'cpus>=8 and arch==x86_64'"
    )
    parser.add_argument("--node", metavar="NAME", help="this node and no other")
    parser.add_argument("--vo", metavar="VO", help="the VO, if you are logged in to several")
    parser.add_argument(
        "--env", "-e", type=_variable, action="append", default=[], metavar="NAME[=VALUE]", help="set a variable; may be repeated"
    )
    parser.add_argument(
        "--retry", type=int, nargs="?", const=3, default=0, metavar="N", help="start again elsewhere if the node dies (3 times)"
    )


@functools.cache  # making one costs a tenth of a start
def _parser(name: str) -> Parser:
    if name == "run":
        parser = Parser(
            prog="xos run",
            usage="xos run [OPTIONS] [--] PROGRAM [ARGUMENTS]",
            description="Run a program on a node of the VO as if it were local.",
        )
        parser.add_argument("-n", "--no-stdin", action="store_true", help="give the program no standard input (like ssh -n)")
        parser.add_argument(
            "-t",
            "--tty",
            dest="tty",
            action="store_true",
            default=None,
            help="a terminal on the far side even if only one side is one",
        )
        parser.add_argument("-T", "--no-tty", dest="tty", action="store_false", help="no terminal on the far side")
        parser.add_argument(
            "--times",
            action="store_true",
            help="at the end print real, user and sys seconds of the program itself, as `time -p` does",
        )
    else:
        parser = Parser(
            prog="xos sub",
            usage="xos sub [OPTIONS] [--] PROGRAM [ARGUMENTS]",
            description="Submit a program that runs detached; prints its job id.",
        )
        parser.add_argument(
            "--count", type=int, default=1, metavar="N", help="submit N jobs; each finds its number in XOS_INDEX, from 0"
        )
    _add_common(parser)
    return parser


def _split(parser: argparse.ArgumentParser, words: list[str]) -> tuple[list[str], list[str]]:
    """Split our options from the program and its arguments, of which not one word may be touched (argparse would drop a `--`)."""
    takes = {option: action for action in parser._actions for option in action.option_strings}  # noqa: SLF001  # no public way to ask
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return words[:at], words[at + 1 :]
        if not word.startswith("-") or word == "-":
            break
        action = takes.get(word)
        if action is None or action.nargs == 0:  # unknown, or --option=value, or a flag: one word
            at += 1
        elif action.nargs == "?":
            at += 2 if at + 1 < len(words) and words[at + 1].isdigit() else 1
        else:
            at += 2
    return words[:at], words[at:]


def own_words(name: str, words: list[str]) -> list[str]:
    """Return the options of `xos run` (or `sub`) without the program and its arguments."""
    return _split(_parser(name), words)[0]


def parse(name: str, words: list[str]) -> RunOptions:
    """Understand the words behind `xos run` (or `sub`).

    Raises:
        UsageError: they are off; the text says how. HelpWanted: --help was given.
    """
    parser = _parser(name)
    ours, argv = _split(parser, words)
    found: Any = parser.parse_args(ours)
    if not argv:
        raise UsageError(f"xos {name}: no program given", f"write: xos {name} [OPTIONS] -- PROGRAM ARGUMENTS")
    count = int(getattr(found, "count", 1))
    if not 1 <= count <= ARRAY_TASKS_MAX:
        raise UsageError(f"--count {count} is not between 1 and {ARRAY_TASKS_MAX}")
    return RunOptions(
        argv=argv,
        vo=found.vo,
        cpus=found.cpus,
        memory_bytes=found.memory,
        wall_s=found.time,
        where=found.on,
        node=found.node,
        env=list(found.env),
        retry=found.retry,
        no_stdin=bool(getattr(found, "no_stdin", False)),
        force_tty=getattr(found, "tty", None),
        times=bool(getattr(found, "times", False)),
        count=count,
    )
