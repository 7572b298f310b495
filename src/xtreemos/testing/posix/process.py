"""One process that makes calls as different callers: identity, place, descriptors. It knows calls by name and judges nothing.

The identity is changed by setresuid with 0 kept as the saved id, so that a check costs no new process: permission checks of the kernel
look at the effective ids and capabilities, which are the caller's in full (access(2) at the real id, which is the caller's too).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from xtreemos.testing.posix.model import ROOT, Facts, Outcome


class Closable(Protocol):
    """Anything that a case keeps open."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Views:
    """Where the tested folder is seen: itself, an absolute path all may walk, read-only, and a folder on another file system ("" if none)."""

    folder: str
    absolute: str
    readonly: str = ""
    elsewhere: str = ""


@dataclass(slots=True)
class Place:
    """What one case has in one process: its folder below the tested one, its umask, and what it keeps open."""

    name: str
    umask: int = 0
    slots: dict[str, object] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)
    objects: list[Closable] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Close all that the case left open; what it closed itself is skipped."""
        for thing in self.objects:
            with contextlib.suppress(OSError, BufferError, ValueError):  # closed by the case, or by its own fault
                thing.close()
        for fd in self.fds:
            with contextlib.suppress(OSError):  # the same
                os.close(fd)


Call = Callable[..., object]


class Process:
    """Makes calls in places; the vocabulary is given, so that a test can put a broken one in."""

    def __init__(self, facts: Facts, views: Views, calls: Mapping[str, Call]) -> None:
        self.facts = facts
        self.views = views
        self._calls = calls
        self._who = ROOT
        self._place: Place | None = None

    def become(self, who: str) -> None:
        """Take the effective and real ids and the groups of a caller."""
        if who == self._who:
            return
        caller = self.facts.callers[who]
        if self._who != ROOT:
            os.setresuid(0, 0, 0)
        os.setgroups(caller.groups)
        os.setresgid(caller.gid, caller.gid, 0)
        if caller.uid:
            os.setresuid(caller.uid, caller.uid, 0)
        self._who = who

    def enter(self, place: Place) -> None:
        if self._place is not place:
            self.become(ROOT)
            os.chdir(os.path.join(self.views.folder, place.name))
            self._place = place
        os.umask(place.umask)

    def leave(self) -> None:
        """Be root in the tested folder again, with nothing of a case."""
        self.become(ROOT)
        os.chdir(self.views.folder)
        self._place = None

    def perform(self, place: Place, call: str, args: tuple[object, ...], who: str) -> Outcome:
        """Make one call. Every OSError is an outcome; anything else is a fault of the suite and goes up."""
        self.enter(place)
        function = self._calls[call]
        try:
            given = [self._resolved(place, arg) for arg in args]
            self.become(who)
            value = function(self, place, *given)
        except OSError as refused:
            return Outcome(refused.errno or errno.EIO)
        return Outcome(0, value)

    def _resolved(self, place: Place, arg: object) -> object:
        if not isinstance(arg, str) or not arg:
            return arg
        if arg[0] == "@":
            return place.slots[arg[1:]]
        if arg[0] != "%":
            return arg
        kind, _, rest = arg.partition("/")
        base = {"%abs": self.views.absolute, "%ro": self.views.readonly}.get(kind)
        if kind == "%xdev":
            return os.path.join(self.views.elsewhere, place.name.replace("/", "-") + rest)
        return arg if base is None else os.path.join(base, place.name, rest)
