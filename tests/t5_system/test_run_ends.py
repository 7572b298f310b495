"""How a program ends, what it used and what it was given: the ghost passes it on as a local exec would."""

from __future__ import annotations

import json
import re
import signal

import pytest

CODES = (0, 1, 2, 3, 64, 125, 126, 127, 128, 129, 200, 255)
SIGNALS = ("HUP", "INT", "QUIT", "ABRT", "KILL", "SEGV", "USR1", "PIPE", "ALRM", "TERM", "USR2")
BUSY = 'python3 -c "import time\nwhile time.process_time() < 0.5: pass"'


def test_exit_codes_pass(grid):
    text = grid.out(f'for c in {" ".join(map(str, CODES))}; do r -- sh -c "exit $c"; echo $?; done')
    assert [int(word) for word in text.split()] == list(CODES)


def test_death_by_a_signal_is_the_same_death_for_the_shell(grid):
    """The shell sees WIFSIGNALED: `wait` gives 128+n, and python's returncode is -n, which no exit code can fake."""
    ask = (
        "import subprocess, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(subprocess.run(['xos', 'run', '--node', 'n2', '--', 'sh', '-c', f'kill -{name} $$']).returncode)\n"
    )
    text = grid.out(f"python3 - {' '.join(SIGNALS)} <<'EOF'\n{ask}EOF\n")
    assert [int(word) for word in text.split()] == [-int(getattr(signal, f"SIG{name}")) for name in SIGNALS]


def test_the_shell_names_the_signal(grid, shell):
    assert "Killed" in shell.do("r -- sh -c 'kill -9 $$'")
    assert shell.code() == 137
    assert "Segmentation fault" in shell.do("r -- sh -c 'kill -SEGV $$'")
    assert shell.code() == 139


def test_a_core_dump_is_reported(grid):
    """Whether one is written is the node's affair (core_pattern); the record says what the kernel said, and so does the ghost's status."""
    job = grid.out("xos sub --node n2 -- sh -c 'ulimit -c unlimited; kill -SEGV $$'").strip()
    record = json.loads(grid.sh(f"xos wait --json {job}").stdout)[0]["exit"]
    assert (record["code"], record["signal"]) == (None, 11)
    assert isinstance(record["core"], bool)
    done = grid.out("r -- sh -c 'ulimit -c 0; kill -SEGV $$'; echo $?")
    assert done == "139\n"


def test_a_program_that_is_not_there_or_not_executable_fails_as_in_a_shell(grid):
    done = grid.sh("r nosuchprogram; echo $?; r -- /etc/passwd; echo $?; r -- /nosuch/x; echo $?; r -- /tmp; echo $?")
    assert done.stdout.split() == [b"127", b"126", b"127", b"126"]
    assert done.stderr.decode().splitlines() == [
        "xos: nosuchprogram: command not found",
        "xos: /etc/passwd: Permission denied",
        "xos: /nosuch/x: No such file or directory",
        "xos: /tmp: Permission denied",
    ]


def test_times_are_those_of_the_program(grid):
    done = grid.sh(f"xos run --times --node n2 -- {BUSY}")
    times = dict(line.split() for line in done.stderr.decode().splitlines())
    assert 0.5 <= float(times["user"]) + float(times["sys"]) < 3
    assert float(times["real"]) >= 0.5
    assert done.stdout == b""


def test_ps_tells_the_job_s_own_time_and_memory(grid):
    program = (
        "import sys, time\nx = bytearray(100 << 20)\nwhile time.process_time() < 1: pass\nprint(1, flush=True)\nsys.stdin.read()"
    )
    job = grid.out(
        f"rm -f out; mkfifo hold; exec 9<>hold; rm hold; xos run --node n2 -- python3 -c '{program}' <&9 > out 2> err & "
        "until test -s out; do sleep 0.05; done; xos ps --json; xos ps > table; xos kill -9 $(awk 'NR==2 {print $1}' table); wait"
    )
    row = json.loads(job)[0]
    assert row["cpu_s"] >= 0.9
    assert 90 << 20 < row["memory_bytes"] < 300 << 20
    assert row["pids"] >= 1
    assert row["node"] == "n2"
    assert row["command"].startswith("python3 -c")
    assert re.search(rf"{row['job']} +n2 +running +0:\d\d +\d\.\d\ds +1\d\d\.\dM python3", grid.out("cat table"))


def test_umask_folder_limits_and_niceness_are_carried(grid):
    script = "umask; pwd; ulimit -n; ulimit -f; ulimit -v; nice; ulimit -Ss"
    text = grid.out(
        f"umask 027; cd /tmp; ulimit -n 333; ulimit -f 4096; ulimit -v 9000000; ulimit -Ss 4096; nice -n 5 xos run --node n2 -- bash -c '{script}'"
    )
    assert text.split() == ["0027", "/tmp", "333", "4096", "9000000", "5", "4096"]


def test_a_folder_that_is_not_there_is_replaced_by_home_and_said(grid):
    done = grid.sh("mkdir -p /tmp/only-here; cd /tmp/only-here; r pwd")
    assert done.stdout == b"/home/alice.demo\n"
    assert b"cannot enter /tmp/only-here here" in done.stderr


def test_a_program_starts_in_the_same_folder_and_finds_what_was_written_before_and_leaves_what_it_writes(grid):
    done = grid.sh("rm -rf ~/here; mkdir ~/here; cd ~/here; echo before > f; r sh -c 'pwd; cat f; echo after >> f'; cat f; cd; rm -r here")
    assert (done.stdout, done.stderr) == (b"/home/alice.demo/here\nbefore\nbefore\nafter\n", b"")


def test_environment_is_carried_minus_what_is_unsafe(grid):
    kept = {"FOO": "a b\nc", "EMPTY": "", "LC_TIME": "C", "BASH_ENV_X": "1", "TZ": "UTC"}
    unsafe = {
        "LD_PRELOAD": "/nosuch.so",
        "LD_LIBRARY_PATH": "/x",
        "SSH_AUTH_SOCK": "/x",
        "TMUX": "1",
        "DBUS_SESSION_BUS_ADDRESS": "x",
        "KRB5CCNAME": "x",
    }
    exports = "".join(f"export {name}=$'{value}'\n".replace("\nc", "\\nc") for name, value in {**kept, **unsafe}.items())
    rows = grid.sh(exports + "f() { :; }; export -f f; r -- env -0").stdout.decode().split("\0")
    env = dict(row.split("=", 1) for row in rows if row)
    assert {name: env.get(name) for name in kept} == kept
    assert not set(unsafe) & set(env)
    assert not any(name.startswith(("BASH_FUNC", "LD_", "XDG_RUNTIME")) for name in env)
    assert {name: env[name] for name in ("USER", "LOGNAME", "HOME", "XOS_NODE", "XOS_VO")} == {
        "USER": "alice", "LOGNAME": "alice", "HOME": "/home/alice.demo", "XOS_NODE": "n2", "XOS_VO": "demo",
    }  # fmt: skip
    assert env["PATH"].startswith("/usr/local/sbin")


def test_env_option_sets_and_takes_variables(grid):
    text = grid.out("export TAKEN=2; r --env A=1 -e TAKEN -e C= -- sh -c 'echo $A $TAKEN ${C-unset}.'")
    assert text == "1 2 .\n"


def test_arguments_pass_exactly(grid):
    text = grid.out(r"""r -- printf '%s|' 'a b' '' $'\n' '*' '\' '$x' --help -- é""")
    assert text == "a b||\n|*|\\|$x|--help|--|é|"


def test_time_limit_ends_the_program_and_says_so(grid):
    done = grid.sh("xos run --node n2 --time 0.5 -- sleep 100; echo $?")
    assert done.stdout == b"143\n"
    assert b"time limit" in done.stderr


def test_memory_limit_ends_the_program_and_says_so(grid):
    done = grid.sh("""xos run --node n2 --memory 40M -- python3 -c 'x = bytearray(200 << 20)'; echo $?""")
    assert done.stdout == b"137\n"
    assert b"memory limit" in done.stderr


def test_cpus_limit_holds(grid):
    """Half a core for one second of work takes about two seconds."""
    done = grid.sh(f"xos run --times --cpus 0.5 --node n2 -- {BUSY}")
    times = dict(line.split() for line in done.stderr.decode().splitlines())
    assert float(times["real"]) >= 0.75


def test_on_and_node_choose(grid):
    assert grid.out("xos run --on \"node=='n2'\" -- hostname; xos run --node n1 -- hostname") == "n2\nn1\n"
    assert set(grid.out("for i in 1 2 3 4 5 6; do xos run --on 'cpus>=1' -- hostname; done").split()) <= {"n1", "n2"}


def test_options_before_the_subcommand_are_understood(grid):
    assert grid.out("xos --grid /var/lib/xtreemos run --node n2 -- hostname; xos --vo demo run --node n2 -- hostname") == "n2\nn2\n"
    assert "Usage: xos" in grid.out("xos --help run")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--on 'cpus>=4000' -- true", 75, "no node matches 'cpus>=4000'"),
        ("--node n9 -- true", 75, "n9"),
        ("--node 'N 9' -- true", 2, "node"),
        ("--vo other -- true", 69, "you are not logged in to VO other; log in first: xos login USER@other"),
        ("--cpus 4000 -- true", 75, "4000 are wanted"),
        ("--memory 4000G -- true", 75, "are wanted"),
        ("--cpus 0 -- true", 2, "--cpus"),
        ("--time 0 -- true", 2, "--time"),
        ("--memory x -- true", 2, "is no size"),
        ("--on 'cpus>>' -- true", 2, "cpus"),
        ("--bogus true", 2, "unrecognized arguments: --bogus"),
        ("", 2, "PROGRAM"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_not_started(grid, words, code, said):
    done = grid.sh(f"xos run {words}")
    assert done.returncode == code, done
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


def test_the_owner_s_policy_refuses_with_77_and_a_reason(grid):
    policy = grid.file("n2", "/var/lib/xtreemos/node/policy.cedar")
    before = policy.read_text() if policy.exists() else None
    grid.home("n2", "started").unlink(missing_ok=True)
    try:
        policy.write_text('@why("no games here") forbid(principal == User::"alice", action, resource);\n')
        done = grid.sh("r -- touch /home/alice.demo/started")
        assert done.returncode == 77, done
        line = done.stderr.decode()
        assert line.count("\n") == 1
        assert line.startswith("xos: the node's owner refuses run on n2: policy0: no games here"), line
        assert grid.out("xos run --node n2 -- echo fine", user="bob") == "fine\n"
        assert grid.out("xos run -- hostname") == "n1\n"
    finally:
        if before is None:
            policy.unlink()
        else:
            policy.write_text(before)
    assert grid.out("r -- sh -c 'test -e started || echo never'") == "never\n"
