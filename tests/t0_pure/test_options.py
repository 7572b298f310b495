"""The words of `xos run`, what a job may be, and which parts of a caller go with it."""

import resource

import pytest

from xtreemos.aem.agent.core import carried_limits, choose, split_command
from xtreemos.aem.agent.nodes import Candidate, order
from xtreemos.aem.agent.ports import GoTo, NotMine
from xtreemos.aem.agent.tables import exit_code_of, ps_table, signal_words
from xtreemos.aem.jobspec import BadSpec, JobSpec, Winsize, carried_env, from_wire, to_wire
from xtreemos.aem.options import HelpWanted, duration_s, parse, size_bytes
from xtreemos.errors import UsageError, XosError

JOB = "jabcdefghijkl"


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["ls", "-l"], ["ls", "-l"]),
        (["--", "ls", "-l"], ["ls", "-l"]),
        (["ls", "--", "x"], ["ls", "--", "x"]),
        (["--cpus", "2", "--", "bash", "-c", "echo -- hi"], ["bash", "-c", "echo -- hi"]),
        (["--retry", "--", "x"], ["x"]),
        (["x", "--cpus", "3"], ["x", "--cpus", "3"]),
        (["--", "--weird"], ["--weird"]),
    ],
)
def test_everything_from_the_program_on_is_the_programs(words, argv):
    assert parse("run", words).argv == argv


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--cpus", "x", "ls"],
        ["--memory", "2Q", "ls"],
        ["--time", "1y", "ls"],
        ["--on", "cpus>=", "ls"],
        ["--env", "1A=2", "ls"],
        ["--nope", "ls"],
    ],
)
def test_words_that_are_off_are_a_usage_error_and_never_an_exit(words):
    with pytest.raises(UsageError) as caught:
        parse("run", words)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()


def test_help_is_an_answer():
    with pytest.raises(HelpWanted, match="Run a program"):
        parse("run", ["--help"])


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("500ms", 0.5)])
def test_durations(text, seconds):
    assert duration_s(text) == seconds


def test_sizes_are_binary():
    assert size_bytes("2G") == 2 << 30


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["xos", "run", "ls"], ("run", ["ls"])),
        (["/a/b/xos", "--grid", "/g", "--vo", "v", "run", "ls"], ("run", ["ls"])),
        (["xps", "-a"], ("ps", ["-a"])),
        (["gcc", "-O2", "x.c"], ("run", ["--", "gcc", "-O2", "x.c"])),
    ],
)
def test_a_command_line_is_split_by_its_name(argv, expected):
    assert split_command(argv) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["xos", "run", "ls"], None),
        (["xos", "--vo", "demo", "run", "ls"], None),
        (["xos", "--vo", "other", "run", "ls"], GoTo("other")),
        (["xos", "run", "--vo", "other", "--", "ls"], GoTo("other")),
        (["xos", "run", "ls", "--vo", "other"], None),  # the program's own words
        (["xos", "ps", "--vo", "other"], GoTo("other")),
        (["xps", "--vo", "other"], GoTo("other")),
        (["gcc", "--vo", "other"], None),
        (["xos", "--grid", "/g", "ps"], NotMine()),
    ],
)
def test_the_named_vos_agent_answers(argv, expected):
    assert choose(argv, "demo") == expected


def test_a_command_line_without_a_command_is_refused():
    for argv in (["xos"], ["xos", "--vo", "v"], ["xos", "up"]):
        with pytest.raises(UsageError):
            split_command(argv)


def test_a_spec_survives_the_wire():
    spec = JobSpec(
        job=JOB, vo="demo", user="alice", argv=["a", "é"], env={"A": "b"}, tty=Winsize(3, 4), rlimits={"CPU": (1, -1)}, retry=2
    )
    assert from_wire(to_wire(spec)) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"job": "../../x"}, {"job": JOB + "x"}, {"vo": "a b"}, {"user": "root"}, {"user": "-rf"}, {"argv": []}, {"argv": [""]}, {"argv": ["a\0b"]},
        {"argv": "ls"}, {"env": {"A=B": "c"}}, {"env": {"A": "b\0"}}, {"cpus": -1}, {"cpus": 1e9}, {"memory_bytes": 5}, {"wall_s": 0}, {"umask": 0o7777},
        {"retry": -1}, {"node": "a/b"}, {"argv": ["x" * 200_000]}, {"env": {"A": "x" * 300_000}},
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_is_refused_when_it_arrives(change):
    wire = {"job": JOB, "vo": "demo", "user": "alice", "argv": ["ls"], **change}
    with pytest.raises(XosError) as caught:
        from_wire(wire)
    assert caught.value.definite


def test_spec_of_the_wrong_shape_is_refused():
    for wire in (None, [], {"job": JOB}, "x"):
        with pytest.raises(BadSpec):
            from_wire(wire)


def test_environment_goes_along_without_what_is_unsafe_or_the_far_sides_own():
    env = {
        "LANG": "C",
        "LD_PRELOAD": "x",
        "LD_LIBRARY_PATH": "x",
        "SSH_AUTH_SOCK": "x",
        "HOME": "/root",
        "PATH": "/x",
        "BASH_FUNC_a%%": "() {}",
        "TERM": "xterm",
    }
    assert carried_env(env) == {"LANG": "C", "TERM": "xterm"}


def test_lowered_limits_go_along_and_infinite_ones_do_not():
    rows = [(2**64 - 1, 2**64 - 1)] * 16
    rows[resource.RLIMIT_CPU] = (10, 2**64 - 1)
    rows[resource.RLIMIT_NPROC] = (5, 5)
    assert carried_limits(tuple(rows)) == {"CPU": (10, -1)}


def test_candidates_are_tried_least_loaded_first_and_avoided_ones_last():
    def node(name: str, running: int, free: int = 9, cpus: int = 2) -> Candidate:
        return Candidate(name, "10.0.0.1", 1, free=free, running=running, facts={"cpus": cpus})

    nodes = [node("a", 3), node("b", 1), node("c", 4, cpus=16), node("d", 0, free=0)]
    assert [one.node for one in order(nodes, frozenset({"b"}), {})] == ["c", "a", "d", "b"]
    assert order(nodes, frozenset(), {"b": 4})[0].node == "c"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["j1"], (15, ["j1"])),
        (["-9", "j1", "j2"], (9, ["j1", "j2"])),
        (["-s", "HUP", "j"], (1, ["j"])),
        (["-SIGUSR1", "--", "j"], (10, ["j"])),
    ],
)
def test_kill_understands_signals_as_kill_does(words, expected):
    assert signal_words(words) == expected


def test_kill_refuses_what_is_no_signal():
    for words in ([], ["-9"], ["-NOPE", "j"], ["-99", "j"]):
        with pytest.raises(UsageError):
            signal_words(words)


@pytest.mark.parametrize(
    ("record", "code"), [({"code": 3}, 3), ({"code": None, "signal": 9}, 137), ({"code": None, "signal": None}, 75)]
)
def test_exit_records_become_what_a_shell_shows(record, code):
    assert exit_code_of(record) == code


def test_listing_is_cut_at_the_terminals_width():
    row = {"job": JOB, "node": "n1", "state": "running", "command": "x" * 300}
    assert max(len(line) for line in ps_table([row], 80).splitlines()) == 80
    assert "x" * 300 in ps_table([row], None)
