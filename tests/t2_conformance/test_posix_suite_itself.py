"""The POSIX suite is right: it passes on a local folder, it fails on a broken one, and it leaves nothing behind."""

import json
import os
import subprocess
import sys

import pytest

from xtreemos.testing.posix import known, report, suite
from xtreemos.testing.posix.calls import vocabulary
from xtreemos.testing.posix.execute import last_change
from xtreemos.testing.posix.model import (
    Fails,
    Gives,
    Has,
    Like,
    Meets,
    Moved,
    Outcome,
    Result,
    Succeeds,
    attrs,
    case,
    do,
    fails,
    has,
    mark,
    moved,
)
from xtreemos.testing.posix.pool import Plan, run

HOST = suite.host_facts()
CASES = list(suite.all_cases(HOST))
CHECKS_MIN = 8800  # what pjdfstest has


def results(folder, cases, **more):
    plan = Plan(str(folder), HOST, 2, **{name: value for name, value in more.items() if name == "pretend"})
    return {one.id: one for one in run(plan, cases, more.get("calls"))}


def problems(folder, *cases, calls=None):
    return [one.problem for one in results(folder, cases, calls=calls).values()]


def test_the_suite_has_as_many_cases_as_pjdfstest_has_checks():
    assert len(CASES) >= CHECKS_MIN
    assert sum(step.call != "tick" for one in CASES for step in one.steps) >= 4 * CHECKS_MIN


def test_every_case_judges_something_and_calls_only_what_there_is():
    calls = set(vocabulary()) | {"tick", "die"}
    assert not [one.id for one in CASES if not one.steps]
    assert not {step.call for one in CASES for step in one.steps} - calls


def test_ids_can_be_typed():
    assert not [one.id for one in CASES if not one.id.isascii() or any(letter.isspace() for letter in one.id)]


@pytest.mark.root
def test_a_part_of_the_suite_passes_on_a_local_folder(tmp_path):
    deviations = known.for_folder(str(tmp_path))
    part = [one for one in CASES[::23] if not one.uses_actors]
    verdicts = [report.judge(result, deviations) for result in results(tmp_path, part).values()]
    assert len(verdicts) == len(part)
    assert list(report.failures(verdicts, trace=True)) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize("pattern", ["lock/waits*", "ofd_lock/death*", "flock/waits*", "fifo/*", "append/whole*", "mmap/*"])
def test_cases_with_several_processes_pass_on_a_local_folder(tmp_path, pattern):
    part = suite.chosen(CASES, [pattern])[::3]
    assert [one for one in results(tmp_path, part).values() if one.problem] == []


BREAKERS = {
    "chmod": ("chmod/caller/file/owner/*", "forgets"),
    "lchown": ("chown/caller/file/root/*", "forgets"),
    "mkdir": ("mkdir/mode/*", "forgets"),
    "unlink": ("unlink/removes/*", "forgets"),
    "rename": ("rename/kinds/*", "forgets"),
    "link": ("link/counts/*", "forgets"),
    "truncate": ("truncate/length/*", "forgets"),
    "utimensat": ("utimensat/form/*", "forgets"),
    "setxattr": ("setxattr/value/*", "forgets"),
    "setacl": ("acl/mode-shows-it/*", "forgets"),
    "fallocate": ("fallocate/punch/*", "forgets"),
    "copy_file_range": ("copy_file_range/*", "forgets"),
    "access": ("access/matrix/file/other/*", "forgets"),
    "open": ("open/permission/other/0*", "as-root"),
    "rmdir": ("rmdir/sticky/*", "as-root"),
    "symlink": ("symlink/permission/other/*", "as-root"),
    "pwrite": ("pwrite/at/*", "shifts"),
}


def broken(name, how):
    """A vocabulary in which one call does nothing, asks nobody's rights, or writes one byte too late."""
    calls = dict(vocabulary())
    right = calls[name]

    def forgets(process, place, *args):
        return None

    def as_root(process, place, *args):
        process.become("root")
        return right(process, place, *args)

    def shifts(process, place, fd, data, offset):
        return right(process, place, fd, data, offset + 1)

    calls[name] = {"forgets": forgets, "as-root": as_root, "shifts": shifts}[how]
    return calls


@pytest.mark.root
@pytest.mark.parametrize("name", sorted(BREAKERS))
def test_a_broken_call_is_found(tmp_path, name):
    pattern, how = BREAKERS[name]
    part = suite.chosen(CASES, [pattern])[:60]
    failed = [one for one in results(tmp_path, part, calls=broken(name, how)).values() if one.problem]
    assert len(failed) > len(part) // 4


@pytest.mark.root
def test_most_changes_are_looked_at_afterwards(tmp_path):
    """With its last change only pretended, a case should fail; what still passes proves that a call was refused or changed nothing."""
    part = [one for one in CASES[::19] if not one.uses_actors and last_change(one) >= 0]
    passed = [one.id for one in results(tmp_path, part, pretend=True).values() if not one.problem]
    assert len(passed) < 0.08 * len(part), passed


@pytest.mark.root
def test_a_time_that_does_not_move_on_is_found(tmp_path):
    still = case("x/still", has("file", "n"), mark("n"), moved("n", "c"))
    moves = case("x/moves", has("file", "n"), mark("n"), do("chmod", "n", 0o600), moved("n", ""))
    assert [("ctime was not moved on" in one, "ctime changed" in one) for one in problems(tmp_path, still, moves)] in (
        [(True, False), (False, True)],
        [(False, True), (True, False)],
    )


@pytest.mark.root
def test_a_case_that_leaves_a_helper_waiting_does_not_harm_the_next(tmp_path):
    stuck = next(one for one in CASES if one.id == "fifo/open-waits-for-the-other-end")
    stuck = case("fifo/left-waiting", stuck.steps[:3])
    after = next(one for one in CASES if one.id == "fifo/read-waits-for-bytes")
    assert problems(tmp_path, stuck, after) == ["", ""]


@pytest.mark.root
def test_a_helper_that_dies_fails_its_case_only(tmp_path):
    dies = case("x/dies", do("open", "n", os.O_RDWR | os.O_CREAT, actor="a", keep="f"), do("ftruncate", "@f", 4096, actor="a"),
                do("mmap", "@f", 4096, 1, 3, actor="a"), do("ftruncate", "@f", 0, actor="a"), do("peek", 0, 3, actor="a"))  # fmt: skip
    fine = case("x/fine", do("spew", "n", b"abc", actor="a"), attrs("n", size=3))
    found = results(tmp_path, [dies, fine])
    assert "died" in found["x/dies"].problem
    assert found["x/fine"].problem == ""


def test_judges_tell_right_from_wrong():
    seen = {"mode": 0o644, "ctime": 5, "mtime": 5}
    table = [
        (Succeeds(), Outcome(0), True), (Succeeds(), Outcome(13), False), (Fails((13,)), Outcome(13), True), (Fails((13,)), Outcome(0), False),
        (Fails((13,)), Outcome(1), False), (Gives(3), Outcome(0, 3), True), (Gives(3), Outcome(0, 4), False), (Gives(3), Outcome(5), False),
        (Has({"mode": 0o644}), Outcome(0, seen), True), (Has({"mode": 0o600}), Outcome(0, seen), False), (Has({"mode": 0o644}), Outcome(2), False),
        (Like("s", ("mode",)), Outcome(0, seen), True), (Like("s", ("ctime",)), Outcome(0, seen), False), (Like("s", ("ctime",), differs=True), Outcome(0, seen), True),
        (Moved("s", ("ctime",), ("mtime",)), Outcome(0, seen), True), (Moved("s", ("mtime",), ()), Outcome(0, seen), False),
        (Moved("s", (), ("ctime",)), Outcome(0, seen), False), (Meets("odd", lambda v: v % 2 == 1), Outcome(0, 3), True), (Meets("odd", lambda v: v % 2 == 1), Outcome(0, 2), False),
    ]  # fmt: skip
    memory = {"s": {"mode": 0o644, "ctime": 4, "mtime": 5}}
    for want, outcome, right in table:
        assert (want.judge(outcome, memory) == "") is right, (want, outcome)


def test_a_declared_failure_is_a_deviation_and_a_stale_one_is_named():
    deviations = known.parse('[[deviation]]\ncases = "chmod/*"\nreason = "why"\n[[deviation]]\ncases = "link/*"\nreason = "old"\n')
    verdicts = [
        report.judge(result, deviations) for result in (Result("chmod/a", "bad"), Result("open/b", "bad"), Result("link/c"))
    ]
    assert [one.state for one in verdicts] == [report.DEVIATED, report.FAILED, report.PASSED]
    assert [one.reason for one in report.unused(verdicts, deviations)] == ["old"]


@pytest.mark.parametrize(
    "text", ['[[deviation]]\ncases = "a"\n', '[[deviation]]\ncases = "a"\nreason = " "\n', '[[deviation]]\nreason = "a"\n']
)
def test_a_deviation_without_a_reason_is_refused(text):
    with pytest.raises(ValueError, match="reason"):
        known.parse(text)


def test_tap_marks_deviations_and_skips():
    verdicts = [
        report.Verdict(Result("a"), report.PASSED),
        report.Verdict(Result("b", "bad"), report.DEVIATED, "why"),
        report.Verdict(Result("c", skipped="no"), report.SKIPPED, "no"),
    ]
    assert list(report.tap(verdicts)) == [
        "TAP version 13",
        "1..3",
        "ok 1 - a",
        "not ok 2 - b # TODO why",
        "# bad",
        "ok 3 - c # SKIP no",
    ]


@pytest.mark.root
def test_the_command_tells_in_json_and_by_its_code(tmp_path):
    command = [sys.executable, "-m", "xtreemos.testing.posix", tmp_path, "--only", "rename/kinds/file-*", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "src"})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["calls"]["rename"]["passed"] == told["calls"]["rename"]["cases"] > 10
    assert told["cases"] == []


def test_a_case_may_be_refused_by_errnos_of_choice():
    step = fails((1, 13), "unlink", "n")
    assert step.want.judge(Outcome(13), {}) == ""
