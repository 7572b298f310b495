"""All tables together, and the facts of this host that they depend on."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from xtreemos.testing.posix import tables
from xtreemos.testing.posix.model import UID_BASE_DEFAULT, Case, Facts, facts

SHARED = {"kit"}


def host_facts(uid_base: int = UID_BASE_DEFAULT) -> Facts:
    """Callers with these ids, and the kernel's switches as they stand."""
    switch = Path("/proc/sys/fs/protected_hardlinks")
    return facts(uid_base, protected_hardlinks=switch.exists() and switch.read_text(encoding="ascii").strip() != "0")


def tables_of() -> list[str]:
    """Names of the modules below `tables` that hold cases."""
    return sorted(info.name for info in pkgutil.iter_modules(tables.__path__) if info.name not in SHARED)


def all_cases(known: Facts) -> Iterator[Case]:
    """Every case of every table, in a fixed order. Two with one id are a fault of the suite."""
    seen = set()
    for name in tables_of():
        for one in importlib.import_module(f"{tables.__name__}.{name}").cases(known):
            assert one.id not in seen, f"two cases are called {one.id}"
            seen.add(one.id)
            yield one


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases whose id matches a pattern as of a shell, or begins with it; all if there are no patterns."""
    return [one for one in cases if not patterns or any(fnmatch.fnmatchcase(one.id, p) or one.id.startswith(p) for p in patterns)]
