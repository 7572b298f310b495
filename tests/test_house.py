"""What must stay true of the code as text: who imports whom, pure cores, errors, documentation, banned calls, sizes."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT / "tools"))
import ratchet  # noqa: E402  # tools are scripts, not a package

# Imports go down only (docs/notes/0001-architecture.md). Equal rank may not import each other.
RANK = {
    "errors": 0, "names": 0,
    "foundation": 10, "fabric": 20, "infra": 30, "vo": 40, "oss": 50, "xtreemfs": 60, "aem": 70,
    "ssi": 80, "mobile": 80, "saga": 90, "xosaga": 91, "adapters": 92,
    "node": 100, "lab": 110, "console": 111, "cli": 120, "testing": 130,
}  # fmt: skip
LOWEST_MAY_SHARE = {("names", "errors")}

PURE_FILES = {"model.py", "machine.py", "wire.py", "frames.py", "names.py", "errors.py", "query.py"}
PURE_PATHS = {"foundation/doctor.py"}
IMPURE_MODULES = {
    "asyncio", "asyncssh", "ctypes", "fcntl", "io", "multiprocessing", "nats", "os", "pathlib", "pty", "pyroute2", "random", "secrets", "select",
    "selectors", "shutil", "socket", "ssl", "subprocess", "sqlite3", "tempfile", "termios", "threading", "time", "uuid", "uvloop",
}  # fmt: skip
IMPURE_CALLS = {"open", "input", "print", "datetime.now", "datetime.utcnow", "date.today", "datetime.datetime.now"}

# By beginning of the path, each with the reason why no event can be waited for.
SLEEP_ALLOWED = {
    "lab/": "whole machines and emptied cgroups become ready without telling anybody; every wait there has a deadline",
    "testing/fsjepsen": "how long a fault lasts and a program rests is what is tried, nothing is waited for",
}

REGISTRY_HOSTS = [
    ".".join(parts)  # not written out, or this file would be the first to break the rule
    for parts in [
        ("pypi", "org"), ("pythonhosted", "org"), ("debian", "org", "/debian"), ("deb", "debian", "org"), ("snapshot", "debian"),
        ("archive", "ubuntu", "com"), ("registry", "npmjs"), ("crates", "io"), ("proxy", "golang"), ("docker", "io"), ("quay", "io"), ("ghcr", "io"),
    ]
]  # fmt: skip


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees of the package by path below src/xtreemos."""
    return {str(p.relative_to(SRC / "xtreemos")): ast.parse(p.read_text(), str(p)) for p in sorted((SRC / "xtreemos").rglob("*.py"))}


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Dotted names of the modules that a module imports, functions' own imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            yield node.module or ""
            if node.module == "xtreemos":
                yield from (f"xtreemos.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, "" for anything else."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    return ((dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def room(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def test_imports_go_down_only():
    wrong = []
    for path, tree in trees().items():
        own = room(path)
        for target in imports(path, tree):
            words = target.split(".")
            if words[0] != "xtreemos" or len(words) < 2 or words[1] == own or own == "__init__":
                continue
            if words[1].startswith("_"):
                continue  # a name of the package itself, such as __version__
            assert own in RANK, f"{own} has no rank: add it to RANK and to the architecture note"
            assert words[1] in RANK, f"{path} imports {target}, which has no rank"
            if RANK[words[1]] >= RANK[own] and (own, words[1]) not in LOWEST_MAY_SHARE:
                wrong.append(f"{path} imports {target}")
    assert not wrong


def pure(path: str) -> bool:
    return Path(path).name in PURE_FILES or path in PURE_PATHS


def test_pure_modules_have_no_io_clock_or_randomness():
    wrong = []
    for path, tree in trees().items():
        if pure(path):
            wrong += [f"{path} imports {name}" for name in imports(path, tree) if name.split(".")[0] in IMPURE_MODULES]
            wrong += [f"{path}:{node.lineno} calls {name}" for name, node in calls(tree) if name in IMPURE_CALLS]
    assert not wrong


@functools.cache
def error_classes() -> dict[str, tuple[str, ast.ClassDef]]:
    """Every subclass of XosError by name, found through base names until nothing new turns up."""
    classes = [(path, node) for path, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known: dict[str, tuple[str, ast.ClassDef]] = {}
    while True:
        bases = {"XosError", *known}
        new = {c.name: (p, c) for p, c in classes if c.name not in known and any(dotted(b).split(".")[-1] in bases for b in c.bases)}
        if not new:
            return known
        known |= new


def code_of(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AnnAssign) else []
        if any(dotted(target) == "code" for target in targets) and isinstance(statement.value, ast.Constant):
            return str(statement.value.value)
    return None


def test_every_error_explains_itself():
    assert not [f"{path}: {node.name}" for path, node in error_classes().values() if not ast.get_docstring(node)]


def test_every_error_has_a_code_of_its_own():
    codes: dict[str, list[str]] = {}
    for path, node in error_classes().values():
        if node.name != "RemoteError":  # its code is the peer's word
            codes.setdefault(code_of(node) or "(none)", []).append(f"{path}: {node.name}")
    assert "(none)" not in codes, codes["(none)"]
    assert not {code: where for code, where in codes.items() if len(where) > 1}


def documented(page: str) -> str:
    path = REFERENCE / page
    if not path.exists():
        pytest.skip(f"docs/reference/{page} is not written yet")
    return path.read_text()


def commands() -> list[str]:
    """Every command as a person types it: `xos vo create`."""
    import typer.main

    from xtreemos.cli.__main__ import app

    def walk(command, words: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if not inner:
            yield words
        for name, child in (inner or {}).items():
            if not child.hidden:
                yield from walk(child, f"{words} {name}")

    return list(walk(typer.main.get_command(app), "xos"))


def test_every_command_is_documented():
    page = documented("commands.md")
    assert not [command for command in commands() if not re.search(rf"`{re.escape(command)}[`\s]", page)]


def test_every_error_is_documented():
    page = documented("errors.md")
    assert not [node.name for _, node in error_classes().values() if (code := code_of(node)) and f"`{code}`" not in page]


def test_every_setting_is_documented():
    page = documented("settings.md")
    words = {n.value for tree in trees().values() for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not [word for word in sorted(words) if re.fullmatch(r"XOS_[A-Z_]+", word) and word not in page]


def swallows(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler hides everything: bare, or `except Exception` with nothing in it."""
    if handler.type is None:
        return True
    return dotted(handler.type) in {"Exception", "BaseException"} and all(isinstance(s, (ast.Pass, ast.Continue)) for s in handler.body)


def banned(path: str, tree: ast.Module) -> Iterator[str]:
    for name, node in calls(tree):
        if name == "time.sleep" and not path.startswith(tuple(SLEEP_ALLOWED)):
            yield f"{path}:{node.lineno} sleeps: wait for a condition, or say in SLEEP_ALLOWED why there is none"
        if name in {"os.system", "os.popen", "eval", "exec", "pickle.loads", "pickle.load", "yaml.load"}:
            yield f"{path}:{node.lineno} calls {name}"
        shell = [k.value for k in node.keywords if k.arg == "shell" and name.startswith(("subprocess.", "asyncio."))]
        if shell and not (isinstance(shell[0], ast.Constant) and shell[0].value is False):
            yield f"{path}:{node.lineno} uses a shell"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and swallows(node):
            yield f"{path}:{node.lineno} swallows exceptions"


def test_no_banned_calls():
    assert not [line for path, tree in trees().items() for line in banned(path, tree)]


@pytest.mark.parametrize(
    "code", ["import time\ntime.sleep(1)", "try: x()\nexcept: y()", "try: x()\nexcept Exception: pass", "subprocess.run('x', shell=True)", "eval('1')"]
)
def test_the_ban_catches(code):
    assert list(banned("x.py", ast.parse(code)))


def test_allowed_sleeps_are_still_there():
    sleeping = [path for path, tree in trees().items() if any(name == "time.sleep" for name, _ in calls(tree))]
    assert all(any(path.startswith(place) for path in sleeping) for place in SLEEP_ALLOWED)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_registry_host_in_any_file():
    pattern = re.compile("|".join(re.escape(host.replace("./", "/")) for host in REGISTRY_HOSTS), re.IGNORECASE)
    wrong = []
    for path in tracked():
        match = pattern.search(path.read_bytes().decode(errors="replace"))
        if match:
            wrong.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not wrong


def test_nothing_long_gets_longer():
    accepted = ratchet.recorded()
    grown = {name: lines for name, lines in ratchet.measure().items() if lines > accepted.get(name, 0)}
    assert not grown, "split it, or run `python tools/ratchet.py --accept` and say why in the commit"


def test_every_test_has_a_tier():
    here = Path(__file__).parent
    stray = [str(p.relative_to(here)) for p in here.rglob("test_*.py") if p != Path(__file__) and not re.match(r"t\d_", p.relative_to(here).parts[0])]
    assert not stray


def test_dependencies_are_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    assert not [name for name in wanted if re.sub(r"[-_.]+", "-", name).lower() not in pins]
    assert not [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "://" in line or "@" in line]


def test_lint_and_types_are_clean():
    """tools/test.sh ran them before pytest and tells us here, so that the closing line of the run is true."""
    failed = os.environ.get("XOS_FAILED_CHECKS")  # a local: pytest would print the whole environment
    assert not failed, "see the top of the output"


def test_the_package_comes_from_this_checkout():
    spec = importlib.util.find_spec("xtreemos")
    assert spec is not None
    assert Path(str(spec.origin)).is_relative_to(SRC)
