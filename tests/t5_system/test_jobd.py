"""jobd with real containers: streams, ends, terminals, limits, restarts."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from xtreemos.errors import RemoteError
from xtreemos.foundation.frames import WINDOW_BYTES, Kind
from xtreemos.foundation.tools import crun_path
from xtreemos.testing.jobkit import JobKit, collect, in_background

PY = "/usr/bin/python3"


@pytest.fixture(scope="module")
def kit():
    with JobKit(Path(tempfile.mkdtemp(prefix="xosjob")), f"t{os.getpid()}") as it:
        it.folder.chmod(0o755)
        yield it


@pytest.fixture
def client(kit):
    it = kit.client()
    yield it
    it.close()


def sh(script):
    return ["/bin/sh", "-c", script]


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
    return value


def state_of(client, job):
    return next(row for row in client.call("list") if row["job"] == job)


def procs_of(kit, job):
    """Process ids of the job, container init first."""
    return kit.space.run("cat", f"/sys/fs/cgroup/xtreemos-{kit.tag}/{job}/cgroup.procs").split()


def read_until(client, channel, text, out):
    """Read a terminal until `text` was seen; everything is acknowledged."""
    for frame in client.frames(channel):
        if frame.kind is Kind.DATA:
            out += frame.body
            client.send(Kind.ACK, channel, stream=1, offset=frame.offset + len(frame.body))
        if text in out:
            return
    raise AssertionError(out)


# --- streams -----------------------------------------------------------------------------------------------------------------


def test_bytes_pass_exactly_both_ways_and_end_of_file_too(kit):
    data = os.urandom(WINDOW_BYTES - 7)
    outcome = kit.run_job(sh("tee /dev/stderr"), data)
    assert bytes(outcome.out[1]) == data == bytes(outcome.out[2])
    assert outcome.exit["code"] == 0


def test_input_larger_than_the_window_flows_as_it_is_acknowledged(kit, client):
    data = os.urandom(3 * WINDOW_BYTES + 11)
    job = kit.start(client, ["md5sum"])
    channel = client.open("attach", {"job": job})
    sent = acked = 0
    out = bytearray()
    ended = False
    for frame in client.frames(channel):
        if frame.kind is Kind.ACK:
            acked = frame.offset
        elif frame.kind is Kind.DATA:
            out += frame.body
            client.send(Kind.ACK, channel, stream=1, offset=len(out))
        while sent < len(data) and sent - acked < WINDOW_BYTES:
            piece = data[sent : sent + min(65536, WINDOW_BYTES - (sent - acked))]
            client.send(Kind.DATA, channel, piece, offset=sent)
            sent += len(piece)
        if sent == len(data) and not ended:
            client.send(Kind.EOF, channel, offset=sent)
            ended = True
    assert out.split()[0].decode() == hashlib.md5(data).hexdigest()


def test_nobody_reading_makes_the_job_wait_and_nothing_is_lost(kit, client):
    job = kit.start(client, [PY, "-c", "import os\nn=0\nwhile n < 4<<20: n += os.write(1, b'%07d\\n' % (n//8) * 1024)"])
    channel = client.open("attach", {"job": job})
    next(client.frames(channel))
    group = kit.space.run("sh", "-c", f"cat /sys/fs/cgroup/xtreemos-{kit.tag}/{job}/cgroup.procs").split()
    blocked = Path(f"/proc/{group[-1]}/wchan")
    until(lambda: "pipe_write" in blocked.read_text())
    outcome = collect(client, channel)
    assert bytes(outcome.out[1]) == b"".join(b"%07d\n" % (i * 1024) * 1024 for i in range(512))


def test_output_resumes_by_offset_after_the_client_is_cut_mid_stream(kit):
    first = kit.client()
    job = kit.start(first, sh("i=0; while [ $i -lt 300000 ]; do echo line $i; i=$((i+1)); done"))
    channel = first.open("attach", {"job": job})
    got = bytearray()
    for frame in first.frames(channel):
        if frame.kind is Kind.DATA:
            got += frame.body
            if len(got) > 300_000:
                break
            if len(got) < 200_000:
                first.send(Kind.ACK, channel, stream=1, offset=len(got))
    first.close()
    second = kit.client()
    del got[250_000:]
    channel = until_attached(second, job, {"1": len(got), "2": 0})
    outcome = collect(second, channel, {1: got, 2: bytearray()})
    second.close()
    assert bytes(outcome.out[1]) == b"".join(b"line %d\n" % i for i in range(300000))


def until_attached(client, job, offsets=None):
    return client.open("attach", {"job": job, "offsets": offsets or {}, "steal": True})


def test_a_killed_client_leaves_the_job_running_and_its_streams_to_the_next(kit, client):
    job = kit.start(client, sh("read a; echo got $a; sleep 1000"))
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2] / "src")!r})
from pathlib import Path
from xtreemos.foundation.jobd.client import JobdClient
c = JobdClient(Path({str(kit.socket)!r})); ch = c.open('attach', {{'job': {job!r}}}); next(c.frames(ch)); print('in', flush=True); time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(RemoteError, match="attached elsewhere"):
        client.call("attach", {"job": job})
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not state_of(client, job)["attached"])
    channel = client.open("attach", {"job": job})
    client.send(Kind.DATA, channel, b"word\n")
    out = bytearray()
    read_until(client, channel, b"got word\n", out)
    client.call("signal", {"job": job, "signal": 9})
    assert collect(client, channel, {1: out, 2: bytearray()}).exit["signal"] == 9


def test_a_second_attachment_with_steal_ends_the_first(kit, client):
    job = kit.start(client, ["cat"])
    other = kit.client()
    first = other.open("attach", {"job": job})
    assert next(other.frames(first)).body["type"] == "attached"
    channel = client.open("attach", {"job": job, "steal": True})
    with pytest.raises(RemoteError) as caught:
        list(other.frames(first))
    assert caught.value.code == "taken-over"
    client.send(Kind.EOF, channel)
    assert collect(client, channel).exit["code"] == 0
    other.close()


def test_a_reader_that_is_gone_gives_the_job_sigpipe(kit, client):
    job = kit.start(client, ["yes"])
    channel = client.open("attach", {"job": job})
    for frame in client.frames(channel):
        if frame.kind is Kind.DATA:
            client.send(Kind.EVENT, channel, {"type": "broken", "stream": 1})
        if frame.kind is Kind.RESULT:
            assert frame.body["exit"]["signal"] == signal.SIGPIPE


def test_a_job_that_closes_its_input_says_so_and_its_writer_is_not_blocked(kit, client):
    job = kit.start(client, sh("exec 0<&-; sleep 1000"))
    channel = client.open("attach", {"job": job})
    for frame in client.frames(channel):
        if frame.kind is Kind.EVENT and frame.body["type"] == "stdin-closed":
            break
    client.send(Kind.DATA, channel, b"x" * 100_000)
    client.send(Kind.EOF, channel, offset=100_000)
    client.call("signal", {"job": job, "signal": 9})
    assert collect(client, channel).exit["signal"] == 9


def test_output_closed_early_is_end_of_file_at_once(kit, client):
    job = kit.start(client, sh("exec 1>&-; sleep 1000"))
    channel = client.open("attach", {"job": job})
    assert any(frame.kind is Kind.EOF and frame.stream == 1 for frame in until_eof(client, channel))
    client.call("signal", {"job": job, "signal": 15})


def until_eof(client, channel):
    for frame in client.frames(channel):
        yield frame
        if frame.kind is Kind.EOF:
            return


def test_spooled_output_is_whole_when_the_end_is_told(kit, client):
    job = kit.start(client, sh("seq 100000; echo bad >&2; exit 4"), stdio="spool")
    watch = kit.client()
    channel = watch.open("watch")
    for frame in watch.frames(channel):
        if frame.body.get("job") == job and frame.body["state"] == "exited":
            break
    watch.close()
    spool = kit.jobs / job / "spool"
    assert spool.joinpath("stdout").read_bytes() == b"".join(b"%d\n" % i for i in range(1, 100001))
    assert spool.joinpath("stderr").read_bytes() == b"bad\n"
    assert json.loads((kit.jobs / job / "exit.json").read_text())["code"] == 4
    outcome = collect(client, client.open("attach", {"job": job, "offsets": {"1": 0}}))
    assert len(outcome.out[1]) == spool.joinpath("stdout").stat().st_size


def test_given_descriptors_are_the_jobs_own_and_keep_their_owner(kit, client):
    with tempfile.TemporaryDirectory() as folder:
        out = os.open(f"{folder}/out", os.O_RDWR | os.O_CREAT)
        source = os.open("/etc/hostname", os.O_RDONLY)
        job = kit.start(client, sh("cat; ls /proc/self/fd | wc -l; exit 9"), fds=[source, out, out])
        assert collect(client, client.open("attach", {"job": job})).exit["code"] == 9
        text = Path(f"{folder}/out").read_text()
        assert text.startswith(Path("/etc/hostname").read_text())
        assert text.split()[-1] == "4"  # 0, 1, 2 and ls' own
        assert os.fstat(out).st_uid == 0
        assert Path("/dev/null").stat().st_uid == 0
        os.close(out)
        os.close(source)


# --- ends --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "sig"),
    [
        (["/bin/true"], 0, None),
        (sh("exit 42"), 42, None),
        (sh("kill -TERM $$"), None, 15),
        (sh("kill -KILL $$"), None, 9),
        (["/nonexistent/prog"], 127, None),
        (["/etc/passwd"], 126, None),
    ],
)
def test_exit_code_and_signal_are_the_jobs(kit, argv, code, sig):
    end = kit.run_job(argv).exit
    assert (end["code"], end["signal"]) == (code, sig)


def test_core_flag_and_own_times_are_told(kit):
    end = kit.run_job([PY, "-c", "import os,time\nwhile time.process_time() < .3: pass\nb=bytearray(64<<20)\nos.abort()"]).exit
    assert end["signal"] == 6
    assert end["core"] is False or (kit.home / "core").exists()
    assert 0.25 < end["user_s"] + end["system_s"] < 1.0
    assert 64 << 20 < end["rss_bytes_max"] < 128 << 20
    core = kit.run_job([PY, "-c", "import os,resource\nresource.setrlimit(resource.RLIMIT_CORE,(-1,-1))\nos.abort()"])
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() == "core":
        assert core.exit["core"] is True
    for left in kit.home.glob("core*"):
        left.unlink()


def test_not_found_is_said_in_one_clear_line(kit):
    outcome = kit.run_job(["nosuchprogram"])
    assert outcome.out[2] == b"xos: nosuchprogram: command not found\n"
    assert outcome.exit["reason"] == "program not found"


def test_a_signal_sent_again_over_a_new_line_is_taken_once(kit, client):
    job = kit.start(client, sh("n=0; trap 'n=$((n+1)); echo usr1 $n' USR1; trap 'exit $n' TERM; echo ready; while :; do sleep 0.05; done"))
    channel = client.open("attach", {"job": job})
    output = b""
    for frame in client.frames(channel):
        output += frame.body if frame.kind is Kind.DATA else b""
        if output == b"ready\n" and frame.kind is Kind.DATA:
            client.send(Kind.EVENT, channel, {"type": "signal", "signal": 10, "number": 1})
        if b"usr1 1" in output:
            break
    again = client.open("attach", {"job": job, "steal": True})
    first = next(frame for frame in client.frames(again) if frame.kind is Kind.EVENT)
    assert (first.body["type"], first.body["signals"]) == ("attached", 1)
    client.send(Kind.EVENT, again, {"type": "signal", "signal": 10, "number": 1})
    client.send(Kind.EVENT, again, {"type": "signal", "signal": 15, "number": 2})
    assert collect(client, again).exit["code"] == 1


def test_stop_and_continue_reach_the_whole_tree_and_are_reported(kit, client):
    job = kit.start(client, sh("sleep 1000 & sleep 1000; true"))
    # not while the shell waits in vfork: the kernel stops it only when its child has gone on, here as anywhere
    until(lambda: sum("sleep" in Path(f"/proc/{pid}/comm").read_text() for pid in procs_of(kit, job)) == 2)
    channel = client.open("attach", {"job": job})
    client.send(Kind.EVENT, channel, {"type": "signal", "signal": 19})
    seen = []
    for frame in client.frames(channel):
        if frame.kind is Kind.EVENT and frame.body["type"] == "state":
            seen.append((frame.body["state"], frame.body.get("signal")))
            if frame.body["state"] == "stopped":
                procs = procs_of(kit, job)
                states = sorted(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] for p in procs)
                assert states == ["S", "T", "T", "T"]  # init sleeps, the job's three stand
                client.send(Kind.EVENT, channel, {"type": "signal", "signal": 18})
            elif len(seen) == 3:
                break
    assert seen == [("running", None), ("stopped", 19), ("running", None)]
    client.call("signal", {"job": job, "signal": 15})
    assert collect(client, channel).exit["signal"] == 15


def test_orphaned_grandchildren_are_ended_with_the_job(kit, client):
    job = kit.start(client, sh("(trap '' HUP; exec setsid sleep 1234) & exec sleep 0.1"))
    started = time.monotonic()
    assert collect(client, client.open("attach", {"job": job})).exit["code"] == 0
    assert time.monotonic() - started < 3
    until(lambda: not group_exists(kit, job))


def group_exists(kit, job):
    return kit.space.run("sh", "-c", f"[ -d /sys/fs/cgroup/xtreemos-{kit.tag}/{job} ] && echo yes || true") == "yes\n"


def test_wall_time_ends_the_job_with_its_reason(kit, client):
    job = kit.start(client, ["sleep", "1000"], wall_s=0.3)
    end = collect(client, client.open("attach", {"job": job})).exit
    assert (end["signal"], end["reason"]) == (15, "time limit")


def test_names_are_used_once_and_forgotten_on_demand(kit, client):
    job = kit.start(client, ["cat"])
    with pytest.raises(RemoteError, match="started before"):
        client.call("start", {"job": job, "bundle": str(kit.jobs / job / "bundle")})
    with pytest.raises(RemoteError, match="not ended"):
        client.call("forget", {"job": job})
    channel = client.open("attach", {"job": job})
    client.send(Kind.EOF, channel)
    collect(client, channel)
    client.call("forget", {"job": job})
    with pytest.raises(RemoteError, match="not known"):
        client.call("signal", {"job": job, "signal": 15})


def test_a_start_that_fails_says_why_and_leaves_nothing(kit, client):
    job, bundle = kit.prepare(["true"], home="/nonexistent/home")
    with pytest.raises(RemoteError, match="nonexistent") as caught:
        client.call("start", {"job": job, "bundle": bundle})
    assert caught.value.definite
    assert job not in {row["job"] for row in client.call("list")}
    assert not group_exists(kit, job)


# --- terminals -----------------------------------------------------------------------------------------------------------------


def test_terminal_has_size_and_changes_it_and_line_discipline_signals_work(kit, client):
    job = kit.start(
        client,
        sh("trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.05; done"),
        stdio="pty",
        spec={"terminal": (33, 101)},
        rows=33,
        cols=101,
    )
    channel = client.open("attach", {"job": job})
    out = bytearray()
    read_until(client, channel, b"ready", out)
    assert b"33 101" in out
    client.send(Kind.EVENT, channel, {"type": "winsize", "rows": 40, "cols": 90})
    read_until(client, channel, b"40 90", out)
    client.send(Kind.DATA, channel, b"\x03", offset=0)
    for frame in client.frames(channel):
        if frame.kind is Kind.DATA:
            client.send(Kind.ACK, channel, stream=1, offset=frame.offset + len(frame.body))
        if frame.kind is Kind.RESULT:
            assert frame.body["exit"]["signal"] == 2


def test_suspend_character_stops_the_job_and_continue_resumes_it(kit, client):
    job = kit.start(client, ["cat"], stdio="pty")
    channel = client.open("attach", {"job": job})
    client.send(Kind.DATA, channel, b"\x1a", offset=0)
    out = bytearray()
    states = []
    for frame in client.frames(channel):
        if frame.kind is Kind.EVENT and frame.body["type"] == "state":
            states.append((frame.body["state"], frame.body.get("signal")))
            if frame.body["state"] == "stopped":
                client.send(Kind.EVENT, channel, {"type": "signal", "signal": 18})
            elif len(states) == 3:
                client.send(Kind.DATA, channel, b"hi\n", offset=1)
                client.send(Kind.EOF, channel, offset=4)
        elif frame.kind is Kind.DATA:
            out += frame.body
            client.send(Kind.ACK, channel, stream=1, offset=len(out))
        elif frame.kind is Kind.RESULT:
            assert frame.body["exit"]["code"] == 0
    assert states[:3] == [("running", None), ("stopped", 20), ("running", None)]
    assert out.count(b"hi\r\n") == 2  # the echo and cat's


def test_terminal_output_is_complete_when_the_job_ends(kit):
    outcome = kit.run_job(["seq", "20000"], stdio="pty")
    assert bytes(outcome.out[1]) == b"".join(b"%d\r\n" % i for i in range(1, 20001))


def test_an_interactive_shell_has_job_control(kit, client):
    job = kit.start(
        client,
        ["/bin/bash", "--norc", "-i"],
        stdio="pty",
        spec={"env": (("PATH", "/usr/bin:/bin"), ("PS1", "> "), ("TERM", "dumb"))},
    )
    channel = client.open("attach", {"job": job})
    out = bytearray()
    read_until(client, channel, b"> ", out)
    assert b"no job control" not in out
    client.send(Kind.DATA, channel, b"sleep 1000\n", offset=0)
    read_until(client, channel, b"sleep 1000\r\n", out)
    until(lambda: any("sleep" in Path(f"/proc/{pid}/comm").read_text() for pid in procs_of(kit, job)))
    client.send(Kind.DATA, channel, b"\x1a", offset=11)
    read_until(client, channel, b"Stopped", out)
    client.send(Kind.DATA, channel, b"kill -9 %1\n", offset=12)
    until(lambda: len(procs_of(kit, job)) == 2)
    client.send(Kind.DATA, channel, b"exit 5\nexit 5\n", offset=23)  # bash warns once if it has not yet seen the kill
    for frame in client.frames(channel):
        if frame.kind is Kind.DATA:
            client.send(Kind.ACK, channel, stream=1, offset=frame.offset + len(frame.body))
        if frame.kind is Kind.RESULT:
            assert frame.body["exit"]["code"] == 5


# --- limits --------------------------------------------------------------------------------------------------------------------


def test_memory_limit_kills_and_the_record_says_why(kit):
    end = kit.run_job([PY, "-c", "b = bytearray(256 << 20)"], cgroup={"memory_bytes": 64 << 20}).exit
    assert (end["signal"], end["reason"]) == (9, "memory limit")


def test_a_fork_bomb_stays_in_its_box(kit, client):
    job = kit.start(client, ["/bin/bash", "-c", ":(){ :|:& };: 2>/dev/null; sleep 1000"], cgroup={"pids_max": 30})
    procs = f"/sys/fs/cgroup/xtreemos-{kit.tag}/{job}/cgroup.procs"
    until(lambda: len(kit.space.run("cat", procs).split()) > 5)
    assert len(kit.space.run("cat", procs).split()) <= 30
    channel = client.open("attach", {"job": job})
    client.call("signal", {"job": job, "signal": 9})
    collect(client, channel)
    until(lambda: not group_exists(kit, job))


def test_cpu_limit_slows_the_job(kit):
    end = kit.run_job([PY, "-c", "import time\nwhile time.process_time() < .3: pass"], cgroup={"cpus": 0.25}).exit
    assert end["ended_at"] - end["started_at"] > 0.8


# --- lives of jobd ----------------------------------------------------------------------------------------------------------------


def test_jobs_of_a_dead_jobd_are_ended_and_recorded_as_lost():
    with JobKit(Path(tempfile.mkdtemp(prefix="xosjob")), f"r{os.getpid()}") as kit:
        kit.folder.chmod(0o755)
        client = kit.client()
        job = kit.start(client, ["sleep", "1000"])
        ended = kit.start(client, sh("exit 6"))
        until(lambda: state_of(client, ended)["state"] == "exited")
        procs = procs_of(kit, job)
        kit.kill_jobd()
        client.close()
        kit.start_jobd()
        client = kit.client()
        rows = {row["job"]: row["exit"] for row in client.call("list")}
        assert (rows[job]["reason"], rows[job]["code"], rows[ended]["code"]) == ("jobd died", None, 6)
        assert not any(Path(f"/proc/{pid}").exists() and "sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in procs)
        assert not group_exists(kit, job)
        assert client.call("attach", {"job": job})["exit"]["reason"] == "jobd died"
        client.call("forget", {"job": job})
        client.close()


def test_jobd_is_for_root_alone(kit):
    assert kit.socket.stat().st_mode & 0o777 == 0o600
    kit.socket.chmod(0o666)  # even so the kernel's word about the peer decides
    kit.run.chmod(0o755)
    script = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect({str(kit.socket)!r}); s.settimeout(5); print(s.recv(1))"
    result = subprocess.run(
        [PY, "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False
    )
    assert result.stdout == "b''\n", result.stderr


def test_bad_frames_cost_the_connection_and_nothing_else(kit, client):
    for junk in (b"\xff" * 64, b"\x05\0\0\0\x63\0\0\0\0", b"\x06\0\0\0\x01\x01\0\0\0\xc1"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(kit.socket))
            sock.sendall(junk)
            sock.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    assert client.call("hello")["pid"] > 1
    for method, params in (
        ("nosuch", {}),
        ("start", None),
        ("attach", {}),
        ("signal", {"job": "x", "signal": 99}),
        ("start", {"job": "x", "bundle": "/q/bundle", "stdio": "fds"}),
    ):
        with pytest.raises(RemoteError):
            client.call(method, params)


def test_many_jobs_at_once_all_end_right(kit):
    results = {}

    def one(number):
        results[number] = kit.run_job(sh(f"cat; exit {number}"), b"x" * number)

    prepared = [in_background(one, number) for number in range(24)]
    for thread in prepared:
        thread.join(60)
    assert {n: (o.exit["code"], len(o.out[1])) for n, o in results.items()} == {n: (n, n) for n in range(24)}


# --- fit for checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdio", ["spool", "pipes"])
def test_a_job_started_this_way_survives_checkpoint_and_restore(kit, client, stdio):
    crun = [str(crun_path()), "--root", str(kit.run / "crun"), "--cgroup-manager", "cgroupfs"]
    if "+CRIU" not in subprocess.run([crun[0], "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("crun without CRIU")
    # CRIU raises this limit, which needs a capability that some machines withhold
    Path("/proc/sys/fs/nr_open").write_text(str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    job = kit.start(client, sh("i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"), stdio=stdio)
    channel = client.open("attach", {"job": job})
    out = bytearray()
    read_until(client, channel, b"\n5\n", out)
    images = kit.folder / f"images-{stdio}"
    images.mkdir()
    places = ["--image-path", str(images), "--work-path", str(images), "--manage-cgroups-mode=ignore", "--network-lock", "skip"]
    # a shell that just waits in vfork cannot be seized: CRIU then gives up after a while, the job goes on, and one tries again
    until(lambda: run_ok(kit, [*readable_limits(kit), *crun, "checkpoint", *places, job]), 40.0)
    collect(client, channel, {1: out, 2: bytearray()})
    # the restored cgroup name space is entered through the group of the old name, which jobd removed with the job
    old = f"/sys/fs/cgroup/xtreemos-{kit.tag}/{job}"
    until(lambda: not group_exists(kit, job))
    kit.space.run("mkdir", "-p", old)
    second = bundle_for_restore(kit, job)
    read_end, write_end = os.pipe()
    lines = os.fdopen(read_end)
    command = kit.space.argv([*crun, "restore", "-d", "--bundle", str(kit.jobs / second / "bundle"), *places, second])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    try:
        # its stderr is the job's as well now: it does not end with crun
        assert process.wait(30) == 0, os.read(process.stderr.fileno(), 4096)
        last = int(bytes(out).split(b"\n")[-2])
        assert [int(lines.readline()) for _ in range(3)] == [last + 1, last + 2, last + 3]
        # crun moves only the first process into the new group; whoever restores moves the rest
        new = f"/sys/fs/cgroup/xtreemos-{kit.tag}/{second}/cgroup.procs"
        kit.space.run(
            "sh",
            "-c",
            f"until rmdir {old} 2>/dev/null; do while read p; do echo $p > {new} || true; done < {old}/cgroup.procs; done",
        )
        assert len(procs_of(kit, second)) >= 2
    finally:
        kit.space.run(*crun, "delete", "-f", second)
        lines.close()
        process.stdin.close()
        process.stderr.close()


def run_ok(kit, command):
    return subprocess.run(kit.space.argv(command), capture_output=True, check=False).returncode == 0


def readable_limits(kit):
    """Words before a command that lets CRIU read other users' limits where the machine withholds CAP_SYS_RESOURCE."""
    capabilities = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    if capabilities >> 24 & 1:
        return []
    source = Path(__file__).parents[2] / "src/xtreemos/native/preload/criu_limits.c"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", kit.folder / "limits.so", source], check=True
    )
    return ["env", f"LD_PRELOAD={kit.folder}/limits.so"]


def bundle_for_restore(kit, job):
    """A bundle like the one of `job` under a new name, as another node would make it."""
    second, bundle = kit.prepare(["true"])
    config = json.loads((kit.jobs / job / "bundle" / "config.json").read_text())
    config["linux"]["cgroupsPath"] = f"/xtreemos-{kit.tag}/{second}"
    Path(bundle, "config.json").write_text(json.dumps(config))
    return second
