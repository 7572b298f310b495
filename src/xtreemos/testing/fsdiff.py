"""The same random operations on a local folder and on the tested one; whatever differs is a finding. Needs root and hypothesis.

    python -m xtreemos.testing.fsdiff TRUTH TESTED

Most paths are drawn from what is there: `?7` is the entry with number 7 of the sorted tree, `<7` its folder number 7 from the end, `>7/a` the name `a` in its folder number 7;
callers, calls and the vocabulary are those of the POSIX suite. After each
operation its result or errno is compared, and the two trees: kind, mode, owner, links, size, content, targets, xattrs and ACLs of
every entry. hypothesis shrinks what it finds to a short program. MAX_EXAMPLES (default 50) and STEP_COUNT (default 60) in the
environment say how much is tried.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from errno import EEXIST, ENOTEMPTY

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.calls import attributes, vocabulary
from xtreemos.testing.posix.model import CALLERS, OWNER, ROOT
from xtreemos.testing.posix.morecalls import decode_acl
from xtreemos.testing.posix.process import Call, Place, Process, Views
from xtreemos.testing.posix.suite import host_facts

MAX_EXAMPLES_DEFAULT = 50
STEP_COUNT_DEFAULT = 60
FILE_BYTES_MAX = 20_000
SAME_ERRORS = {EEXIST: ENOTEMPTY}
"""POSIX leaves the choice between these to the system."""
BYTES_SHOWN = 24
SEEDS = {"a": 0o755, "b": 0o777, "a/c": 0o644, "b/c": 0o666, "d": 0o664}
"""What is there at the start: folders and files of owner and team."""
COMPARED = ("kind", "mode", "user", "group", "nlink", "rdev")

names = st.sampled_from(("a", "b", "c", "d", "e", "f", "g", "h"))
there = st.integers(0, 15).map("?{}".format)
fresh = st.builds(">{}/{}".format, st.integers(0, 5), names)
wild = st.lists(names, min_size=1, max_size=3).map("/".join)
paths = st.one_of(there, there, fresh, wild)
places = st.one_of(fresh, fresh, there, wild)
folders = st.one_of(st.integers(0, 9).map("<{}".format), there)
who = st.sampled_from((*[OWNER] * 8, ROOT, ROOT, *CALLERS))
modes = st.sampled_from((0o777, 0o755, 0o700, 0o644, 0o664, 0o606, 0o000, 0o2775, 0o1777, 0o4755, 0o111, 0o444))
users = st.sampled_from((-1, *CALLERS))
groups = st.sampled_from((-1, "team", "members", "others", "extra", "elsewhere"))
texts = st.sampled_from((b"", b"x", b"hello", b"y" * 5000))
attribute_names = st.sampled_from(("user.a", "user.b", "trusted.c"))
acls = st.sampled_from((
    "u::rwx,g::r-x,o::r--", "u::rwx,u:peer:rwx,g::---,m::rwx,o::---", "u::rw-,u:other:r--,g::rw-,g:members:rwx,m::r-x,o::---",
    "u::rwx,g::rwx,g:others:-w-,m::rw-,o::--x", "u::---,u:peer:rwx,g::rwx,m::rwx,o::rwx",
))  # fmt: skip
which_acl = st.sampled_from(("access", "default"))
slots = st.sampled_from(("f", "g"))
open_flags = st.sets(st.sampled_from((os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW)), max_size=3).map(sum)
accesses = st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
offsets = st.integers(0, FILE_BYTES_MAX)


class Difference(AssertionError):
    """The tested folder did not do what the local one did."""


def shown(value: object) -> str:
    """A value for a message: long contents by their length and their first bytes."""
    if isinstance(value, bytes) and len(value) > BYTES_SHOWN:
        return f"{len(value)} bytes {value[:BYTES_SHOWN]!r}..."
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(one) for one in value) + ")"
    return f"{value:#o}" if isinstance(value, int) and value > BYTES_SHOWN else repr(value)


class Pair:
    """Both folders, and one process that works in either."""

    def __init__(self, truth: str, tested: str, calls: Mapping[str, Call] | None = None) -> None:
        self._parents = (os.path.abspath(truth), os.path.abspath(tested))
        self._process = Process(host_facts(), Views("/", "/"), calls or vocabulary())
        self._places: tuple[Place, ...] = ()
        self._entries: tuple[str, ...] = ()
        self._folders: tuple[str, ...] = (".",)
        self._story: list[str] = []
        self._umask, self._cwd = 0o022, os.getcwd()

    def begin(self) -> None:
        """Make an empty folder in each, that everybody may write to."""
        self._umask, self._cwd = os.umask(0), os.getcwd()
        made = []
        for parent in self._parents:
            folder = tempfile.mkdtemp(prefix="fsdiff-", dir=parent)
            os.chmod(folder, 0o777)  # noqa: S103  # several users work here
            made.append(Place(folder, umask=0o022))
        self._places = tuple(made)
        self._entries, self._folders, self._story = (), (".",), []
        for path, mode in SEEDS.items():
            self.both("make", "dir" if mode & 0o111 else "file", path, mode, OWNER, "team", caller=ROOT)
        self.both("open", "a/c", os.O_RDWR, caller=OWNER, keep="f")
        self.both("open", "b/c", os.O_RDWR, caller=OWNER, keep="g")

    def _resolved(self, arg: object) -> object:
        """A path for `?n`, `<n` and `>n/name`, by what is there now; anything else as it is."""
        if not isinstance(arg, str) or arg[:1] not in {"?", ">", "<"}:
            return arg
        number, _, name = arg[1:].partition("/")
        if arg[0] == "?":
            return self._entries[int(number) % len(self._entries)] if self._entries else "gone"
        if arg[0] == "<":
            return self._folders[-1 - int(number) % len(self._folders)]
        return os.path.normpath(os.path.join(self._folders[int(number) % len(self._folders)], name))

    def both(self, call: str, *args: object, caller: str = OWNER, keep: str = "") -> None:
        """Make a call in both folders and compare its outcomes, then the trees."""
        outcomes = []
        args = tuple(self._resolved(arg) for arg in args)
        for place in self._places:
            if any(isinstance(arg, str) and arg.startswith("@") and arg[1:] not in place.slots for arg in args):
                return  # a descriptor that was never opened, in neither
            outcome = self._process.perform(place, call, args, caller)
            if keep and not outcome.error:
                place.slots[keep] = outcome.value
            outcomes.append(outcome)
        said = [(SAME_ERRORS.get(one.error, one.error), None if call in {"open", "dup"} else one.value) for one in outcomes]
        self._story.append(f"{caller}: {call}{shown(args)} -> {outcomes[0]}")
        if said[0] != said[1]:
            raise Difference(self._told(f"the last gave {outcomes[1]} on the tested folder"))
        self._compare()

    def _told(self, end: str) -> str:
        return "\n".join(["what was done, with the local folder's answers:", *self._story, end])

    def _compare(self) -> None:
        self._process.leave()
        truth, tested = (self._tree(place.name) for place in self._places)
        if truth != tested:
            keys = sorted(key for key in truth.keys() | tested.keys() if truth.get(key) != tested.get(key))
            lines = [f"  {key}: local {shown(truth.get(key))}, tested {shown(tested.get(key))}" for key in keys]
            raise Difference(self._told("\n".join(["the trees differ then:", *lines])))
        self._entries = tuple(sorted(truth))
        self._folders = (".", *(path for path in self._entries if truth[path]["kind"] == "dir"))

    def _tree(self, top: str) -> dict[str, dict[str, object]]:
        """Every entry below `top` by its path."""
        found = {}
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, top)] = self._entry(path)
        return found

    def _entry(self, path: str) -> dict[str, object]:
        seen = os.lstat(path)
        all_of_it = attributes(self._process, seen)
        entry: dict[str, object] = {key: all_of_it[key] for key in COMPARED}
        if stat.S_ISLNK(seen.st_mode):
            return entry | {"target": os.readlink(path), "size": seen.st_size}
        if stat.S_ISREG(seen.st_mode):
            with open(path, "rb") as file:
                entry |= {"size": seen.st_size, "content": file.read()}
        for name in os.listxattr(path, follow_symlinks=False):
            if not name.startswith("security."):
                value = os.getxattr(path, name, follow_symlinks=False)
                entry[name] = decode_acl(self._process, value) if name.startswith("system.posix_acl") else value
        return entry

    def end(self) -> None:
        """Close and remove everything; the process is root's again, with its own folder and umask."""
        self._process.leave()
        for place in self._places:
            place.close()
            shutil.rmtree(place.name)
        self._places = ()
        os.chdir(self._cwd)
        os.umask(self._umask)


class FileSystemMachine(RuleBasedStateMachine):
    """Operations as rules; `machine` gives it its two folders."""

    pair: Pair

    @initialize()
    def begin(self) -> None:
        self.pair.begin()

    def teardown(self) -> None:
        self.pair.end()

    @rule(path=places, mode=modes, who=who)
    def mkdir(self, path: str, mode: int, who: str) -> None:
        self.pair.both("mkdir", path, mode, caller=who)

    @rule(path=places, text=texts, who=who)
    def write_file(self, path: str, text: bytes, who: str) -> None:
        self.pair.both("open", path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o664, caller=who, keep="w")
        self.pair.both("write", "@w", text, caller=who)
        self.pair.both("close", "@w", caller=who)

    @rule(path=places, kind=st.sampled_from(("fifo", "socket", "file")), mode=modes, who=who)
    def mknod(self, path: str, kind: str, mode: int, who: str) -> None:
        self.pair.both("mknod", path, kind, mode, caller=who)

    @rule(path=places, to=wild, who=who)
    def symlink(self, path: str, to: str, who: str) -> None:
        self.pair.both("symlink", to, path, caller=who)

    @rule(source=paths, to=places, who=who)
    def link(self, source: str, to: str, who: str) -> None:
        self.pair.both("link", source, to, caller=who)

    @rule(path=paths, who=who)
    def unlink(self, path: str, who: str) -> None:
        self.pair.both("unlink", path, caller=who)

    @rule(path=folders, who=who)
    def rmdir(self, path: str, who: str) -> None:
        self.pair.both("rmdir", path, caller=who)

    @rule(source=paths, to=places, flags=st.sampled_from((0, 0, libc.RENAME_NOREPLACE, libc.RENAME_EXCHANGE)), who=who)
    def rename(self, source: str, to: str, flags: int, who: str) -> None:
        self.pair.both("renameat2", source, to, flags, caller=who)

    @rule(path=paths, mode=modes, who=who)
    def chmod(self, path: str, mode: int, who: str) -> None:
        self.pair.both("chmod", path, mode, caller=who)

    @rule(path=paths, user=users, group=groups, who=who)
    def chown(self, path: str, user: str | int, group: str | int, who: str) -> None:
        self.pair.both("lchown", path, user, group, caller=who)

    @rule(path=paths, length=offsets, who=who)
    def truncate(self, path: str, length: int, who: str) -> None:
        self.pair.both("truncate", path, length, caller=who)

    @rule(path=paths, times=st.sampled_from((None, (1, 2, 3, 4), (0, libc.UTIME_NOW, 5, 6), (0, libc.UTIME_OMIT, 7, 8))), who=who)
    def utimensat(self, path: str, times: tuple[int, int, int, int] | None, who: str) -> None:
        self.pair.both("utimensat", libc.AT_FDCWD, path, times, 0, caller=who)

    @rule(path=paths, wanted=st.integers(0, 7), who=who)
    def access(self, path: str, wanted: int, who: str) -> None:
        self.pair.both("access", path, wanted, caller=who)

    @rule(path=folders, who=who)
    def listing(self, path: str, who: str) -> None:
        self.pair.both("names", path, caller=who)

    @rule(path=paths, who=who)
    def readlink(self, path: str, who: str) -> None:
        self.pair.both("readlink", path, caller=who)

    @rule(path=paths, name=attribute_names, text=texts, flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)), who=who)
    def setxattr(self, path: str, name: str, text: bytes, flags: int, who: str) -> None:
        self.pair.both("setxattr", path, name, text[:500], flags, caller=who)

    @rule(path=paths, name=attribute_names, who=who)
    def getxattr(self, path: str, name: str, who: str) -> None:
        self.pair.both("getxattr", path, name, caller=who)
        self.pair.both("listxattr", path, caller=who)

    @rule(path=paths, name=attribute_names, who=who)
    def removexattr(self, path: str, name: str, who: str) -> None:
        self.pair.both("removexattr", path, name, caller=who)

    @rule(path=folders, which=which_acl, acl=acls, who=who)
    def setacl(self, path: str, which: str, acl: str, who: str) -> None:
        self.pair.both("setacl", path, which, acl, caller=who)

    @rule(path=paths, which=which_acl, who=who)
    def removeacl(self, path: str, which: str, who: str) -> None:
        self.pair.both("getacl", path, which, caller=who)
        self.pair.both("removeacl", path, which, caller=who)

    @rule(mask=st.sampled_from((0, 0o022, 0o077)))
    def umask(self, mask: int) -> None:
        self.pair.both("umask", mask)

    @rule(slot=slots, path=paths, access=accesses, flags=open_flags, mode=modes, who=who)
    def open(self, slot: str, path: str, access: int, flags: int, mode: int, who: str) -> None:
        self.pair.both("open", path, access | flags | os.O_NONBLOCK, mode, caller=who, keep=slot)

    @rule(slot=slots, text=texts, who=who)
    def write(self, slot: str, text: bytes, who: str) -> None:
        self.pair.both("write", f"@{slot}", text, caller=who)

    @rule(slot=slots, text=texts, offset=offsets, who=who)
    def pwrite(self, slot: str, text: bytes, offset: int, who: str) -> None:
        self.pair.both("pwrite", f"@{slot}", text, offset, caller=who)

    @rule(slot=slots, count=offsets, offset=offsets)
    def read(self, slot: str, count: int, offset: int) -> None:
        self.pair.both("pread", f"@{slot}", count, offset)
        self.pair.both("read", f"@{slot}", count)

    @rule(slot=slots, length=offsets, who=who)
    def ftruncate(self, slot: str, length: int, who: str) -> None:
        self.pair.both("ftruncate", f"@{slot}", length, caller=who)

    @rule(
        slot=slots,
        mode=st.sampled_from((0, libc.FALLOC_KEEP_SIZE, libc.FALLOC_PUNCH_HOLE | libc.FALLOC_KEEP_SIZE)),
        offset=offsets,
        length=offsets,
    )
    def fallocate(self, slot: str, mode: int, offset: int, length: int) -> None:
        self.pair.both("fallocate", f"@{slot}", mode, offset, length)

    @rule(slot=slots, mode=modes, who=who)
    def fchmod(self, slot: str, mode: int, who: str) -> None:
        self.pair.both("chmod", f"@{slot}", mode, caller=who)

    @rule(source=slots, to=slots, count=offsets)
    def copy(self, source: str, to: str, count: int) -> None:
        if source != to:
            self.pair.both("copy_file_range", f"@{source}", f"@{to}", count, 0, 0)


def machine(truth: str, tested: str, calls: Mapping[str, Call] | None = None) -> type[FileSystemMachine]:
    """The machine for two folders; its `TestCase` is a test class. `truth` is on a local file system, both are left as they were.

    `calls` is another vocabulary than that of the POSIX suite: with a wrong call in it, one sees that the machine finds it.
    """
    return type("Differential", (FileSystemMachine,), {"pair": Pair(truth, tested, calls)})


def check(
    truth: str,
    tested: str,
    *,
    examples: int | None = None,
    steps: int | None = None,
    calls: Mapping[str, Call] | None = None,
    shrink: bool = True,
) -> None:
    """Compare two folders; raises Difference with the program that shows it. Numbers that are not given come from the environment.

    Without `shrink` the program is the first that was found, not the shortest: sooner told, harder to read.
    """
    phases = [phase for phase in Phase if shrink or phase not in {Phase.shrink, Phase.explain}]
    chosen = settings(
        max_examples=examples or int(os.environ.get("MAX_EXAMPLES", MAX_EXAMPLES_DEFAULT)),
        stateful_step_count=steps or int(os.environ.get("STEP_COUNT", STEP_COUNT_DEFAULT)),
        deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), phases=phases, report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(machine(truth, tested, calls), settings=chosen)


def main(argv: Sequence[str]) -> int:
    """Run from the command line; a difference is a traceback with the program that shows it."""
    if len(argv) != 2:  # the two folders
        print("usage: python -m xtreemos.testing.fsdiff TRUTH TESTED", file=sys.stderr)
        return 2
    check(argv[0], argv[1])
    print("no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
