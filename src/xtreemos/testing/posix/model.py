"""What a check is: callers, steps, what each step must answer, and the case that holds them. Pure values.

A case is a small program over one fresh folder: each step names a call of `calls`, its arguments, who makes it and what must come of
it. Nothing here touches a file; `execute` runs cases, the modules under `tables` write them down.

Arguments are str (a path, or `@slot` for what an earlier step kept), bytes (data), int, None, and tuples of these. A path may begin
with `%ro/` (the same folder through a read-only mount), `%xdev/` (a folder on another file system) or `%abs/` (an absolute path).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

OWNER, PEER, MEMBER, OTHER, ROOT = "owner", "peer", "member", "other", "root"
CALLERS = (OWNER, PEER, MEMBER, OTHER, ROOT)
USERS = (OWNER, PEER, MEMBER, OTHER)
KINDS = ("file", "dir", "fifo", "block", "char", "socket", "symlink")
PLAIN_KINDS = ("file", "dir", "fifo", "block", "char", "socket")
TIMES = ("atime", "mtime", "ctime")
UID_BASE_DEFAULT = 61000


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who makes calls: numeric ids, `groups` are the supplementary ones."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tables and the machine must know of this run: who the callers are, and switches of the host's kernel."""

    callers: Mapping[str, Caller]
    groups: Mapping[str, int]
    protected_hardlinks: bool = True

    def uid(self, who: str | int) -> int:
        return who if isinstance(who, int) else self.callers[who].uid

    def gid(self, group: str | int) -> int:
        return group if isinstance(group, int) else self.groups[group]

    def user_name(self, uid: int) -> str | int:
        return next((caller.name for caller in self.callers.values() if caller.uid == uid), uid)

    def group_name(self, gid: int) -> str | int:
        return next((name for name, number in self.groups.items() if number == gid), gid)


def facts(uid_base: int = UID_BASE_DEFAULT, *, protected_hardlinks: bool = True) -> Facts:
    """The five callers, with ids `uid_base` to `uid_base + 5`.

    owner and peer have the group `team` as their own, owner is in `extra` besides; member is in `team` by a supplementary group only;
    other is in none of these.
    """
    groups = {name: uid_base + number for number, name in enumerate(("team", "members", "others", "extra", "elsewhere"))} | {
        "root": 0
    }
    people = (
        Caller(OWNER, uid_base, groups["team"], (groups["extra"],)),
        Caller(PEER, uid_base + 1, groups["team"]),
        Caller(MEMBER, uid_base + 2, groups["members"], (groups["team"],)),
        Caller(OTHER, uid_base + 3, groups["others"], (groups["elsewhere"],)),
        Caller(ROOT, 0, 0),
    )
    return Facts({caller.name: caller for caller in people}, groups, protected_hardlinks)


def names_of(numbers: Iterable[int]) -> str:
    """Names of errnos, joined by `|`."""
    return "|".join(errno.errorcode.get(number, str(number)) for number in numbers)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call did: `error` is an errno or 0, `value` what it returned."""

    error: int
    value: object = None

    def __str__(self) -> str:
        return names_of([self.error]) if self.error else repr(self.value)[:200]


Memory = Mapping[str, object]
Judge = Callable[[Outcome, Memory], str]
"""Returns "" if the outcome is right, else what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Succeeds:
    """The call succeeds, whatever it returns."""

    def judge(self, got: Outcome, _memory: Memory) -> str:
        return f"wanted success, got {got}" if got.error else ""


@dataclass(frozen=True, slots=True)
class Fails:
    """The call fails with one of these errnos."""

    errors: tuple[int, ...]

    def judge(self, got: Outcome, _memory: Memory) -> str:
        return "" if got.error in self.errors else f"wanted {names_of(self.errors)}, got {got if got.error else f'success ({got})'}"


@dataclass(frozen=True, slots=True)
class Gives:
    """The call succeeds and returns exactly this."""

    value: object

    def judge(self, got: Outcome, _memory: Memory) -> str:
        return "" if not got.error and got.value == self.value else f"wanted {self.value!r}"[:240] + f", got {got}"


@dataclass(frozen=True, slots=True)
class Has:
    """The call returns a mapping with at least these entries; a callable entry is a predicate."""

    entries: Mapping[str, object]

    def judge(self, got: Outcome, _memory: Memory) -> str:
        if got.error or not isinstance(got.value, Mapping):
            return f"wanted {dict(self.entries)}, got {got}"
        bad = [
            f"{key} is {shown(key, got.value.get(key))}, wanted {shown(key, want)}"
            for key, want in self.entries.items()
            if got.value.get(key) != want
        ]
        return "; ".join(bad)


@dataclass(frozen=True, slots=True)
class Like:
    """The call returns a mapping whose named entries equal those of one that was kept in `slot`."""

    slot: str
    keys: tuple[str, ...]
    differs: bool = False

    def judge(self, got: Outcome, memory: Memory) -> str:
        before = memory[self.slot]
        if got.error or not isinstance(got.value, Mapping) or not isinstance(before, Mapping):
            return f"wanted attributes, got {got}"
        bad = [key for key in self.keys if (got.value[key] == before[key]) == self.differs]
        return "; ".join(f"{key} {'stayed' if self.differs else 'became'} {got.value[key]}, was {before[key]}" for key in bad)


@dataclass(frozen=True, slots=True)
class Moved:
    """Of the times of a file, `up` are later than in the attributes kept in `slot`, and `same` are unchanged."""

    slot: str
    up: tuple[str, ...]
    same: tuple[str, ...]

    def judge(self, got: Outcome, memory: Memory) -> str:
        before = memory[self.slot]
        if got.error or not isinstance(got.value, Mapping) or not isinstance(before, Mapping):
            return f"wanted attributes, got {got}"
        bad = [f"{key} was not moved on" for key in self.up if got.value[key] <= before[key]]
        bad += [f"{key} changed by {got.value[key] - before[key]} ns" for key in self.same if got.value[key] != before[key]]
        return "; ".join(bad)


@dataclass(frozen=True, slots=True)
class Meets:
    """The call succeeds and its value meets a condition; `words` say which."""

    words: str
    test: Callable[[object], bool]

    def judge(self, got: Outcome, _memory: Memory) -> str:
        return "" if not got.error and self.test(got.value) else f"wanted {self.words}, got {got}"


Want = Succeeds | Fails | Gives | Has | Like | Moved | Meets


def shown(key: str, value: object) -> str:
    """An entry for a message: modes in octal."""
    return f"{value:#06o}" if key == "mode" and isinstance(value, int) else repr(value)


@dataclass(frozen=True, slots=True)
class Step:
    """One call. `actor` is a process of its own ("" is the worker); `phase` splits a call that blocks."""

    call: str
    args: tuple[object, ...] = ()
    who: str = OWNER
    want: Want = Succeeds()
    keep: str = ""
    actor: str = ""
    phase: str = "run"  # run | begin | blocked | end

    def __str__(self) -> str:
        words = " ".join(
            f"{arg:#o}" if isinstance(arg, int) and not isinstance(arg, bool) and arg > 7 else repr(arg)[:80] for arg in self.args
        )  # one octal digit
        place = f" in {self.actor}" if self.actor else ""
        return f"{self.who}{place}{'' if self.phase == 'run' else f' ({self.phase})'}: {self.call} {words}"


@dataclass(frozen=True, slots=True)
class Case:
    """A check with a name: `call/topic/parameters`. `needs` says what it cannot do without: mount, mknod, or devices that open."""

    id: str
    steps: tuple[Step, ...]
    needs: str = ""

    @property
    def uses_actors(self) -> bool:
        return any(step.actor for step in self.steps)


@dataclass(frozen=True, slots=True)
class Result:
    """How a case ended: `problem` is "" if it passed; `skipped` is the reason if it was not run. `checks` counts judged steps."""

    id: str
    problem: str = ""
    skipped: str = ""
    checks: int = 0
    trace: tuple[str, ...] = field(default=())


def do(call: str, *args: object, who: str = OWNER, keep: str = "", actor: str = "") -> Step:
    """A step that must succeed."""
    return Step(call, args, who, Succeeds(), keep, actor)


def fails(error: int | tuple[int, ...], call: str, *args: object, who: str = OWNER, actor: str = "") -> Step:
    """A step that must fail with `error`, or with one of them."""
    return Step(call, args, who, Fails(error if isinstance(error, tuple) else (error,)), "", actor)


def gives(value: object, call: str, *args: object, who: str = OWNER, actor: str = "") -> Step:
    """A step that must return `value`."""
    return Step(call, args, who, Gives(value), "", actor)


def meets(words: str, test: Callable[[object], bool], call: str, *args: object, who: str = OWNER, actor: str = "") -> Step:
    """A step whose value must meet `test`, said in `words`."""
    return Step(call, args, who, Meets(words, test), "", actor)


def tries(error: int | tuple[int, ...], call: str, *args: object, who: str = OWNER, keep: str = "") -> Step:
    """A step that must fail with `error`, or succeed if that is 0: for tables."""
    return fails(error, call, *args, who=who) if error else do(call, *args, who=who, keep=keep)


def has(kind: str, path: str, mode: int = 0o644, *, user: str | int = OWNER, group: str | int = "team") -> Step:
    """Set-up by root: there is a `kind` at `path`."""
    return Step("make", (kind, path, mode, user, group), ROOT)


def attrs(path: str, **entries: object) -> Step:
    """The attributes of what is at `path`, a symlink itself included; `user` and `group` are names, `kind` one of KINDS."""
    return Step("lstat", (path,), ROOT, Has(entries))


def absent(path: str) -> Step:
    """There is nothing at `path`."""
    return Step("lstat", (path,), ROOT, Fails((errno.ENOENT,)))


def listing(path: str, *names: str) -> Step:
    """The folder holds exactly these names."""
    return Step("names", (path,), ROOT, Gives(sorted(names)))


def mark(*paths: str) -> tuple[Step, ...]:
    """Keep the attributes of paths, then let the clock of the file system move on."""
    return (*(Step("lstat", (path,), ROOT, keep=f"mark:{path}") for path in paths), Step("tick"))


def moved(path: str, up: str, *, since: str = "", same: str | None = None) -> Step:
    """Since `mark`, of m (mtime), c (ctime) and a (atime) those in `up` moved on; those in `same` (default: the rest of m and c) did not."""
    letters = {"a": "atime", "m": "mtime", "c": "ctime"}
    quiet = "".join(letter for letter in "mc" if letter not in up) if same is None else same
    return Step(
        "lstat",
        (path,),
        ROOT,
        Moved(f"mark:{since or path}", tuple(letters[one] for one in up), tuple(letters[one] for one in quiet)),
    )


def like(path: str, slot: str, *keys: str, differs: bool = False) -> Step:
    """The attributes `keys` equal (or differ from) those kept in `slot`."""
    return Step("lstat", (path,), ROOT, Like(slot, keys, differs))


Group = Step | Iterable["Group"]


def flat(steps: Iterable[Group]) -> Iterator[Step]:
    """The steps of groups, in order."""
    for step in steps:
        if isinstance(step, Step):
            yield step
        else:
            yield from flat(step)


def case(name: str, *steps: Group, needs: str = "") -> Case:
    """A case out of steps and groups of steps."""
    return Case(name, tuple(flat(steps)), needs)


def in_process(one: Case, actor: str) -> Case:
    """The same case, with all that users do made in a process of its own: for calls that a broken file system answers with a signal."""
    return replace(one, steps=tuple(replace(step, actor=step.actor or actor) if step.who != ROOT else step for step in one.steps))
