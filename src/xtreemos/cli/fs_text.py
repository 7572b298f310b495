"""Sizes, modes and tables as `xos fs` reads and prints them. Text in and out; it knows no sockets or files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from xtreemos.errors import UsageError
from xtreemos.foundation import query

_UNITS = "KMGTPE"
NO_LIMIT = ("none", "0")


def size(count: float) -> str:
    """Return bytes for people: 999, 1.0K, 2.5G (of 1024)."""
    if count < 1024:
        return f"{int(count)}"
    for unit in _UNITS:
        count /= 1024
        if count < 1024 or unit == _UNITS[-1]:
            break
    return f"{count:.1f}{unit}"


def parse_size(text: str, what: str) -> int:
    """Read bytes: 1048576, 64K, 1.5G; `none` is 0. UsageError names the option `what`."""
    if text.lower() in NO_LIMIT:
        return 0
    value = query.number(text)
    if value is None or value < 0:
        raise UsageError(f"{what} {text[:40]!r} is no size", "write for example 64K, 4M, 100G or none")
    return int(value)


def parse_count(text: str, what: str) -> int:
    """Read a count of files; `none` is 0."""
    if text.lower() in NO_LIMIT:
        return 0
    if not text.isdecimal():
        raise UsageError(f"{what} {text[:40]!r} is no number", "write for example 100000 or none")
    return int(text)


def parse_mode(text: str) -> int:
    """Read permission bits: 0755, 2770."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise UsageError(f"--mode {text[:20]!r} is no mode", "write it in octal, for example 0755")
    return mode


def limit(used: str, most: str) -> str:
    """Return use and limit in one word: `1.2G of 10.0G`, or the use alone where there is no limit."""
    return f"{used} of {most}" if most else used


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned columns under their heads; the last column is not padded."""
    cells = [[head.upper() for head in heads], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def show(answer: Any, as_json: bool, text: str) -> None:
    """Print an answer as JSON or as its text."""
    print(json.dumps(answer, indent=1) if as_json else text)


def note(line: str) -> None:
    """Say something beside the answer: on standard error."""
    print(f"xos: {line}", file=sys.stderr)


def agree(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone. UsageError: nobody is there to be asked, or they said no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this must be agreed to, and there is no terminal to ask on", "say --yes if you mean it")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")
