"""Sizes that may only shrink: tests/ratchet.json lists every file and function of src that is longer than we like, with its length.

`python tools/ratchet.py` lowers what shrank and drops what is short now; it never raises. `--accept` also takes over what grew:
the commit then says why. tests/test_house.py compares.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "ratchet.json"
FILE_LINES = 400
FUNCTION_LINES = 70


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield (dotted name, lines) of every function and method, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1
            yield from functions(node, f"{name}.")


def measure() -> dict[str, int]:
    """Return the lines of every file and function beyond the limits, by `path` or `path::function`."""
    sizes = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        lines = text.count("\n")
        if lines > FILE_LINES:
            sizes[name] = lines
        sizes |= {f"{name}::{function}": count for function, count in functions(ast.parse(text)) if count > FUNCTION_LINES}
    return sizes


def recorded() -> dict[str, int]:
    """Return the lengths that are accepted so far."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))) if RECORD.exists() else {}


def main() -> int:
    now, before = measure(), recorded()
    grown = {name: lines for name, lines in now.items() if lines > before.get(name, 0)}
    accept = "--accept" in sys.argv[1:]
    after = now if accept else {name: min(lines, before[name]) for name, lines in now.items() if name in before}
    RECORD.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, lines in grown.items():
        print(f"{'accepted' if accept else 'too long'}: {name} has {lines} lines")
    return 1 if grown and not accept else 0


if __name__ == "__main__":
    sys.exit(main())
