"""Range queries over a node's attributes: `cpus>=2 and memory>=1G and (arch==x86_64 or tag==gpu)`.

The node evaluates the query about itself, so nothing is registered anywhere and nothing goes stale. A list attribute (tags,
runtimes) matches if one of its elements does. An attribute that a node does not have matches nothing but `!=`.

    query   = or ; or = and {"or" and} ; and = not {"and" not} ; not = "not" not | "(" or ")" | test
    test    = NAME [OP VALUE] ; OP = >= <= > < == = != ; VALUE = number with K M G T (binary), word or 'quoted text'
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xtreemos.errors import UsageError

QUERY_CHARS_MAX = 4096
DEPTH_MAX = 50

Scalar = int | float | str | bool
Facts = Mapping[str, Scalar | list[str]]


class BadQuery(UsageError):
    """A query cannot be understood; the text says where."""

    code = "bad-query"


_TOKEN = re.compile(r"\s*(?:(>=|<=|==|!=|>|<|=|\(|\))|'([^']*)'|\"([^\"]*)\"|([A-Za-z0-9_.:/+-]+))")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OPS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
KEYWORDS = frozenset({"and", "or", "not"})
ALIASES = {"mem": "memory", "cpu": "cpus", "cores": "cpus", "tag": "tags", "runtime": "runtimes", "gpu": "gpus", "name": "node"}


def number(text: str) -> float | int | None:
    """Return what `text` counts (`2G` = 2147483648), or None if it is no number."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    value = float(found[1]) * _SUFFIX[found[2].upper()]
    return int(value) if value == int(value) else value


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison."""

    name: str
    op: str
    value: str

    def matches(self, facts: Facts) -> bool:
        """Tell whether the facts pass this comparison."""
        have = facts.get(self.name)
        if have is None:
            return self.op == "!="
        if isinstance(have, list):
            found = any(_compare(item, "==" if self.op == "!=" else self.op, self.value) for item in have)
            return not found if self.op == "!=" else found
        return _compare(have, self.op, self.value)


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    part: Query

    def matches(self, facts: Facts) -> bool:
        """Tell whether the part does not match."""
        return not self.part.matches(facts)


@dataclass(frozen=True, slots=True)
class Group:
    """All (`and`) or any (`or`) of several queries; an empty `and` matches everything."""

    every: bool
    parts: tuple[Query, ...]

    def matches(self, facts: Facts) -> bool:
        """Tell whether all, or any, of the parts match."""
        results = (part.matches(facts) for part in self.parts)
        return all(results) if self.every else any(results)


Query = Test | Not | Group
EVERYTHING: Query = Group(True, ())


def _compare(have: Scalar, op: str, text: str) -> bool:
    if op == "truthy":
        return bool(have)
    if isinstance(have, bool):
        return _OPS[op](have, text.lower() in ("1", "true", "yes"))
    if isinstance(have, (int, float)):
        wanted = number(text)
        return wanted is not None and _OPS[op](have, wanted)
    if op in ("==", "=", "!="):
        return _OPS[op](have, text)
    return _OPS[op](_natural(have), _natural(text))


def _natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Key that orders versions as people do: 6.9 before 6.18."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", text))


def parse(text: str | None) -> Query:
    """Understand a query; None or blank matches everything.

    Raises:
        BadQuery: the text breaks the grammar. Caller's fault; definite.
    """
    if text is None or not text.strip():
        return EVERYTHING
    if len(text) > QUERY_CHARS_MAX:
        raise BadQuery(f"a query of {len(text)} characters is longer than {QUERY_CHARS_MAX}")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, bool, int]] = []  # (text, is a symbol, position)
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if not found:
                raise self._bad(at)
            symbol, single, double, word = found.groups()
            quoted = single if single is not None else double
            self.tokens.append((symbol or word or quoted or "", symbol is not None, found.start(found.lastindex or 0)))
            at = found.end()
        self.at = 0
        self.depth = 0

    def _bad(self, position: int) -> BadQuery:
        return BadQuery(
            f"the query is not clear at {self.text[position : position + 20]!r}", "write for example cpus>=2 and memory>=1G"
        )

    def _peek(self) -> tuple[str, bool]:
        return self.tokens[self.at][:2] if self.at < len(self.tokens) else ("", True)

    def _here(self) -> int:
        return self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)

    def whole(self) -> Query:
        query = self._or()
        if self.at < len(self.tokens):
            raise self._bad(self._here())
        return query

    def _or(self) -> Query:
        return self._chain("or", self._and)

    def _and(self) -> Query:
        return self._chain("and", self._not)

    def _chain(self, word: str, part: Callable[[], Query]) -> Query:
        parts = [part()]
        while self._peek()[0].lower() == word and not self._peek()[1]:
            self.at += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Group(word == "and", tuple(parts))

    def _not(self) -> Query:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise BadQuery(f"the query nests deeper than {DEPTH_MAX}")
        try:
            text, symbol = self._peek()
            if text.lower() == "not" and not symbol:
                self.at += 1
                return Not(self._not())
            if text == "(" and symbol:
                self.at += 1
                query = self._or()
                if self._peek() != (")", True):
                    raise self._bad(self._here())
                self.at += 1
                return query
            return self._test()
        finally:
            self.depth -= 1

    def _test(self) -> Query:
        position = self._here()
        name, symbol = self._peek()
        if symbol or name.lower() in KEYWORDS or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise self._bad(position)
        self.at += 1
        name = ALIASES.get(name.lower(), name.lower())
        op, symbol = self._peek()
        if not symbol or op not in _OPS:
            return Test(name, "truthy", "")
        self.at += 1
        value, symbol = self._peek()
        if symbol:
            raise self._bad(self._here())
        self.at += 1
        return Test(name, op, value)
