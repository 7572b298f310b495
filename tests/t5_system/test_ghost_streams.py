"""Bytes, codes and signals through ghosts without a terminal, and what happens when somebody dies."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ghostkit import Agent, Shell, state, until, watches_signals

FATAL = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 50, 64]
PIPE_BYTES = 64 * 1024 * 1024


@pytest.fixture
def env(ghost, agent):
    return {**os.environ, "PATH": f"{ghost.parent}:/usr/bin:/bin", "XOS_AGENT_DIR": str(agent.folder), "LC_ALL": "C"}


def sh(script: str, env, **more) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, check=False, timeout=60, restore_signals=True, **more)


def test_every_exit_code_is_mirrored(ghost, env):
    step = 1 if ghost.read_bytes()[:4] == b"\x7fELF" else 15
    done = sh(f"for i in $(seq 0 {step} 255); do xos nodes $i </dev/null; [ $? = $i ] || echo bad $i; done", env)
    assert done.stdout == b""
    assert sh("xos run -- sh -c 'exit 42'", env).returncode == 42


@pytest.mark.parametrize("number", FATAL)
def test_death_by_signal_is_mirrored(env, number):
    done = subprocess.run(["xos", "run", "--", "sh", "-c", f"ulimit -c 0; kill -{number} $$"], env=env, stdin=subprocess.DEVNULL, timeout=20, check=False)
    assert done.returncode == -number


def test_streams_stay_separate_and_closed_ones_are_closed(env):
    done = sh("xos run -- sh -c 'cat; echo error >&2' < <(printf 'a\\0b\\n')", env)
    assert (done.stdout, done.stderr) == (b"a\0b\n", b"error\n")
    assert sh("xos run -- cat <&-", env).stdout == b""
    assert sh("xos run -- sh -c 'echo x; exit 3' >&-", env).returncode == 3


def test_one_pipe_for_both_streams_keeps_their_order(env):
    script = "xos run -- sh -c 'for i in 1 2 3 4 5 6 7 8 9; do echo $i; echo e$i >&2; done' 2>&1 | cat"
    assert sh(script, env).stdout.decode().split() == [word for i in range(1, 10) for word in (str(i), f"e{i}")]


def test_64_mib_pass_two_ghosts_unchanged(env, tmp_path):
    source = tmp_path / "big"
    block = os.urandom(1024 * 1024)
    with source.open("wb") as out:
        for number in range(PIPE_BYTES // len(block)):
            out.write(number.to_bytes(8, "big") + block[8:])
    wanted = hashlib.sha256(source.read_bytes()).hexdigest()
    done = sh(f"xos run cat < {source} | xos run cat > {tmp_path}/copy; echo ${{PIPESTATUS[@]}}", env)
    assert done.stdout == b"0 0\n"
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).hexdigest() == wanted


def test_broken_pipes_reach_the_writer(env):
    assert sh("xos run yes | head -1; echo ${PIPESTATUS[@]}", env).stdout == b"y\n141 0\n"
    assert sh("yes | xos run head -1; echo ${PIPESTATUS[@]}", env).stdout == b"y\n141 0\n"
    assert sh("yes | xos run -- sh -c 'exec <&-; sleep 0.5' ; echo ${PIPESTATUS[@]}", env).stdout == b"141 0\n"


def test_a_slow_reader_holds_the_program_back(env, tmp_path):
    done = sh(f"xos run -- sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do head -c 1M /dev/zero; echo $i >> {tmp_path}/n; done' | (sleep 1; wc -l < {tmp_path}/n; wc -c)", env)
    written, total = done.stdout.split()
    assert int(written) < 6
    assert int(total) == 10 * 1024 * 1024


def test_appending_shares_the_offset_with_the_shell(env, tmp_path):
    sh(f"(echo one; xos run echo two; echo three) > {tmp_path}/f; xos run echo four >> {tmp_path}/f", env)
    assert (tmp_path / "f").read_text() == "one\ntwo\nthree\nfour\n"


def test_a_seekable_input_is_left_behind_what_the_program_read(env, tmp_path):
    (tmp_path / "lines").write_text("".join(f"line {n}\n" for n in range(5000)))
    assert sh(f"exec < {tmp_path}/lines; read a; xos run true; read b; echo $a $b", env).stdout == b"line 0 line 1\n"
    assert sh(f"while read x; do xos run echo $x; done < <(head -3 {tmp_path}/lines) | tail -1", env).stdout == b"line 0\n"  # a pipe is over-read, as by ssh
    assert sh(f"while read x; do xos run -n -- echo $x; done < <(head -3 {tmp_path}/lines) | tail -1", env).stdout == b"line 2\n"
    assert sh(f"head -3 {tmp_path}/lines > {tmp_path}/three; while read x; do xos run echo $x; done < {tmp_path}/three", env).stdout.count(b"line") == 3
    assert sh(f"exec < {tmp_path}/lines; xos run -- sh -c 'dd bs=7 count=1 status=none'; read a; echo $a", env).stdout == b"line 0\nline 1\n"


def test_a_full_disk_is_said(env):
    done = sh("xos run -- sh -c 'echo x; sleep 0.3; echo y' > /dev/full; echo $?", env)
    assert b"No space left" in done.stderr


def test_the_flag_of_a_shared_pipe_is_left_alone(env):
    read, write = os.pipe()
    done = subprocess.run(["xos", "run", "--", "echo", "x"], env=env, stdin=read, stdout=write, timeout=20, check=False)
    assert done.returncode == 0
    assert os.get_blocking(read)
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)


def test_sockets_serve_as_standard_streams(env):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(["xos", "run", "--", "tr", "a-z", "A-Z"], env=env, stdin=theirs, stdout=theirs)
        theirs.close()
        ours.sendall(b"abc" * 100_000)
        ours.shutdown(socket.SHUT_WR)
        got = b""
        while data := ours.recv(65536):
            got += data
        assert got == b"ABC" * 100_000
        assert process.wait(20) == 0


def started(env, program: str, **more) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(["xos", "run", "--", "sh", "-c", f"echo $$; {program}"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **more)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT])
def test_a_signal_to_the_ghost_reaches_the_program(env, number):
    code = f"import signal; signal.signal({int(number)}, lambda *_: print('got', flush=True)); print('set', flush=True)\nwhile 1: signal.pause()"
    process, pid = started(env, f'exec {sys.executable} -c "{code}"')
    with process:
        assert process.stdout.readline() == b"set\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"got\n"
        process.kill()
    until(lambda: not state(pid))


def test_a_killed_ghost_kills_its_program(env):
    process, pid = started(env, "exec sleep 1000")
    with process:
        process.kill()
    until(lambda: not state(pid))


def test_what_was_ignored_stays_ignored(env):
    process, pid = started(env, "exec sleep 1000", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    with process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == -signal.SIGUSR1
    until(lambda: not state(pid))


def test_niceness_umask_folder_environment_and_limits_are_inherited(env, tmp_path):
    done = sh(f"cd {tmp_path}; umask 027; ulimit -n 77; export A='x y' B=$'\\xff'; xos run -- nice -n 5 sh -c 'pwd; umask; ulimit -n; nice; echo \"$A\"; printf %s \"$B\"'", env)
    assert done.stdout.split(b"\n") == [bytes(tmp_path), b"0027", b"77", b"5", b"x y", b"\xff"]


def test_a_command_line_of_megabytes_arrives(env):
    done = sh("xos run -- sh -c 'echo $#' x $(seq 1 60000); X=$(head -c 100000 /dev/zero | tr '\\0' x) xos run -- sh -c 'echo ${#X}'", env)
    assert done.stdout == b"60000\n100000\n"


def test_a_refusal_is_one_line_and_its_code(env):
    done = subprocess.run(["xos", "sub", "x"], env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (75, b"xos: no node takes it; try again\n")


def test_a_link_of_another_name_runs_that_program(ghost, env, tmp_path):
    if ghost.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("the fallback is a script, its wrapper decides on the name")
    (tmp_path / "tr").symlink_to(ghost)
    assert subprocess.run([tmp_path / "tr", "a", "b"], env=env, input=b"aha", capture_output=True, timeout=20, check=False).stdout == b"bhb"
    (tmp_path / "xps").symlink_to(ghost)
    assert subprocess.run([tmp_path / "xps"], env={**env, "N": "3"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False).stdout == b"job\n" * 3


def test_without_an_agent_the_python_command_line_takes_over(ghost, env, tmp_path):
    if ghost.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("the fallback looks beside its own source")
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    shutil.copy(ghost, folder / "xos")
    (folder / "python").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "python").chmod(0o755)
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(folder / "xos")
    for words in (["doctor"], ["run", "--help"], ["vo", "create"], []):
        done = subprocess.run([folder / "xos", *words], env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False)
        assert done.stdout.split() == [b"-I", b"-m", b"xtreemos.cli", *(word.encode() for word in words)]
    (tmp_path / "open").mkdir(mode=0o755)
    for place in (tmp_path / "none", tmp_path / "open"):
        done = subprocess.run(["xos", "ps"], env={**env, "XOS_AGENT_DIR": str(place)}, executable=folder / "xos", capture_output=True, timeout=20, check=False)
        assert done.stdout.split()[-1] == b"ps"


def test_an_agent_that_dies_ends_ghosts_with_pipes_at_once(ghost, tmp_path, env):
    agent = Agent(tmp_path / "a")
    process, pid = started({**env, "XOS_AGENT_DIR": str(agent.folder)}, "exec sleep 1000", stderr=subprocess.PIPE)
    agent.kill()
    with process:
        assert process.wait(10) == 75
        assert process.stderr.read().startswith(b"xos: the session's agent ended")
    os.kill(pid, signal.SIGKILL)


def test_a_ghost_with_a_terminal_waits_for_the_next_agent(ghost, tmp_path):
    agent = Agent(tmp_path / "a")
    shell = Shell(ghost, agent)
    try:
        before = shell.settings()
        shell.sendline("xos run -- sh -c 'echo PID=$$; exec sleep 1000'")
        shell.expect(r"PID=(\d+)\r")
        pid = int(shell.match[1])
        until(lambda: watches_signals(os.tcgetpgrp(shell.child_fd)))
        agent.kill()
        shell.expect_exact("waiting 30 s")
        os.kill(pid, signal.SIGKILL)
        agent.start()
        shell.expect(r"xos: no program [0-9a-f]+ here")  # the test's agent remembers nothing: it was asked by token
        shell.answer()
        assert shell.settings() == before
        shell.sendline("xos run -- sh -c 'echo PID=$$; exec sleep 1000'")
        shell.expect(r"PID=(\d+)\r")
        pid = int(shell.match[1])
        agent.kill()
        shell.expect_exact("waiting 30 s")
        shell.send("\x03")
        shell.answer()
        assert shell.code() == 130
        assert shell.settings() == before
        os.kill(pid, signal.SIGKILL)
    finally:
        shell.end()
        agent.stop()


def test_a_hundred_ghosts_at_once_all_end_right(env):
    script = 'for i in $(seq 100); do (xos run -- sh -c "cat; exit $i" <<< $i; [ $? = $i ] && echo ok) & done; wait'
    assert sorted(sh(script, env).stdout.split()) == sorted([b"ok"] * 100 + [str(i).encode() for i in range(1, 101)])


def test_memory_of_a_c_ghost_is_small(ghost, env):
    process, pid = started(env, "exec sleep 1000")
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:])
    with process:
        process.kill()
    until(lambda: not state(pid))
    limit_kb = 1000 if ghost.read_bytes()[:4] == b"\x7fELF" else 12000
    assert int(fields["Pss"].split()[0]) < limit_kb, fields["Pss"]
