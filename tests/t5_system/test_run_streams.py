"""Streams of a program on another node: byte exact, separate, with end of file and back-pressure, in pipelines."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

from gridkit import until

MIB = 1 << 20
BIG_BYTES = 64 * MIB
GROWTH_MIB_MAX = 24  # of any process that carries the bytes: a few windows, never the data


@pytest.fixture(scope="module")
def big():
    """64 MiB that nothing can compress or repeat."""
    return os.urandom(BIG_BYTES)


def resident_mib(grid, node, pid):
    status = grid.file(node, f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def agent_pid(grid):
    return int(grid.out("pgrep -f '[a]em.agent .*--user alice'", user=None).split()[0])


def test_64_mib_go_there_and_back_byte_exact(grid, big):
    done = grid.sh("xos run --node n2 -- cat", stdin=big)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(big).digest()
    assert done.stderr == b""


def test_both_outputs_are_separate_and_byte_exact(grid, big):
    part = big[: 8 * MIB]
    done = grid.sh("xos run --node n2 -- tee /dev/stderr", stdin=part)
    assert (done.returncode, done.stdout == part, done.stderr == part) == (0, True, True)


def test_a_file_passes_as_standard_input_and_output(grid, big):
    path = grid.home("n1", "part")
    path.write_bytes(big[: 4 * MIB])
    path.chmod(0o644)
    grid.out("r -- cat < part > copy; cmp part copy")


def test_order_of_merged_outputs_is_kept(grid):
    script = "for i in $(seq 200); do echo o$i; echo e$i >&2; done"
    text = grid.out(f"r -- sh -c '{script}' 2>&1")
    assert text == "".join(f"o{i}\ne{i}\n" for i in range(1, 201))


def test_end_of_file_passes_both_ways(grid):
    assert grid.out("printf abc | r -- sh -c 'cat; echo .eof'") == "abc.eof\n"
    assert grid.out("r -- sh -c 'cat; echo .eof' < /dev/null") == ".eof\n"
    assert grid.out("r -n -- sh -c 'cat; echo .eof'") == ".eof\n"


def test_a_reader_sees_the_end_of_output_while_the_program_goes_on(grid):
    done = grid.sh(
        "rm -f wake; mkfifo wake; exec 9<>wake; rm wake\n"
        "r -- sh -c 'echo x; exec >&-; read line; echo got $line >&2' <&9 9>&- | (cat; echo ended; echo go >&9)"
    )
    assert (done.stdout, done.stderr) == (b"x\nended\n", b"got go\n")


def test_lines_of_a_file_stay_for_the_loop_that_reads_it(grid):
    text = grid.out("printf 'a\\nb\\nc\\n' > lines; while read x; do r -- echo got $x; done < lines; (r -- true; cat) < lines")
    assert text == "got a\ngot b\ngot c\na\nb\nc\n"


def test_pipelines_of_far_programs_end_and_sigpipe_reaches_back(grid):
    text = grid.out("seq 300000 | r -- sort -n | r -- uniq -c | head -3; echo ${PIPESTATUS[0]} ${PIPESTATUS[3]}")
    assert text.split() == ["1", "1", "1", "2", "1", "3", "0", "0"]
    assert grid.out("yes | r -- head -1; echo ${PIPESTATUS[@]}").split() == ["y", "141", "0"]
    assert grid.out("r -- yes | head -1; echo ${PIPESTATUS[@]}").split() == ["y", "141", "0"]
    assert grid.out("yes | r -- cat | r -- cat | head -1; echo ${PIPESTATUS[@]}").split() == ["y", "141", "141", "141", "0"]
    assert grid.out("r -- sh -c 'exit 7' | r -- true | r -- sh -c 'exit 9'; echo ${PIPESTATUS[@]}").split() == ["7", "0", "9"]


def test_a_closed_standard_input_is_felt_by_the_writer(grid):
    text = grid.out(
        "yes | r -- sh -c 'exec <&-; until test -e go; do sleep 0.02; done' & while pgrep -x yes; do sleep 0.02; done > /dev/null; r -- touch go; wait; r -- rm go; echo felt"
    )
    assert text == "felt\n"


def test_a_slow_reader_holds_the_program_back_and_nobody_hoards(grid):
    """64 MiB are written by the program as fast as it may; the reader takes the first byte and then nothing."""
    carriers = {("n1", agent_pid(grid)), ("n2", grid.pid("n2", "xosd")), ("n2", grid.pid("n2", "jobd"))}
    before = {who: resident_mib(grid, *who) for who in carriers}
    words = grid.inside(
        "n1", "bash", "-c", "xos run --node n2 -- sh -c 'head -c 67108864 /dev/zero; echo done > $HOME/held'", user="alice"
    )
    held = grid.home("n2", "held")
    held.unlink(missing_ok=True)
    with subprocess.Popen(words, env=grid.env, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"\0"
        job = until(
            lambda: [row for row in grid.ps() if "67108864" in row["command"] and row["state"] == "running"], "the job runs"
        )[0]["job"]
        settled = until(lambda: _same_twice(lambda: _written(grid, job)), "the program is held back")
        assert settled < 8 * MIB
        assert not held.exists()
        after = {who: resident_mib(grid, *who) for who in carriers}
        assert {who: after[who] - before[who] for who in carriers if after[who] - before[who] > GROWTH_MIB_MAX} == {}
        rest = 0
        while data := process.stdout.read(MIB):
            rest += len(data)
        assert rest == BIG_BYTES - 1
        assert process.wait() == 0
    assert held.exists()


def _written(grid, job):
    """Bytes that `head` of a job wrote so far, by the kernel's count."""
    pids = grid.out("pgrep -f '[h]ead -c 67108864'", user=None, node="n2").split()
    text = [grid.file("n2", f"/proc/{pid}/io").read_text() for pid in pids]
    return max(int(one.partition("wchar: ")[2].split()[0]) for one in text)


def _same_twice(read):
    one = read()
    return one if one and one == read() else 0


def test_a_slow_program_holds_the_writer_back(grid, big):
    """The program reads nothing for a while: what lies between is a few windows."""
    words = grid.inside(
        "n1",
        "bash",
        "-c",
        "xos run --node n2 -- sh -c 'until test -e $HOME/go; do sleep 0.02; done; cat | sha256sum'",
        user="alice",
    )
    go = grid.home("n2", "go")
    go.unlink(missing_ok=True)
    with subprocess.Popen(words, env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        os.set_blocking(process.stdin.fileno(), False)
        sent = until(lambda: _fill(process.stdin.fileno(), big), "the pipe is full")
        assert sent < 8 * MIB
        go.touch()
        os.set_blocking(process.stdin.fileno(), True)
        out, _ = process.communicate(big[sent:])
        assert out.split()[0].decode() == hashlib.sha256(big).hexdigest()


def _fill(fd, data):
    """Write until half a second long nothing fits; return how much went."""
    import select

    sent = 0
    while select.select([], [fd], [], 0.5)[1]:
        try:
            sent += os.write(fd, data[sent : sent + 65536])
        except BlockingIOError:
            continue
    return sent


def test_descriptors_of_every_kind_work(grid):
    grid.home("n1", "x").unlink(missing_ok=True)
    assert grid.out("r -- sh -c 'echo 1; echo 2 >&2' > x 2> y; cat x y") == "1\n2\n"
    assert grid.out("r -- echo appended >> x; cat x") == "1\nappended\n"
    assert grid.out("r -- cat <<< here") == "here\n"
    assert grid.out("r -- cat < <(echo sub)") == "sub\n"
    assert grid.out("r -- echo nowhere > /dev/null; echo $?") == "0\n"
    assert b"No space left" in grid.sh("r -- echo x > /dev/full").stderr
