"""The real supervisor on real processes; needs no root."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtreemos.node import supervise


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("condition did not become true")


class Bench:
    """One supervisor with a list, a run and a log folder."""

    def __init__(self, folder):
        self.folder = folder
        self.run, self.log, self.list = str(folder / "run"), folder / "log", folder / "services.json"
        self.process = None
        self.seen = set()

    def write(self, **scripts):
        self.list.write_text(json.dumps([{"name": name, "argv": ["sh", "-c", text]} for name, text in scripts.items()]))

    def start(self):
        argv, env = supervise.command(str(self.list), self.run, str(self.log))
        with open(self.folder / "supervise.err", "ab") as err:
            self.process = subprocess.Popen(argv, env={**os.environ, **env}, stderr=err, start_new_session=True)
        wait_until(lambda: "supervise" in self.pids())

    def pids(self):
        table = supervise.read_pids(self.run)
        self.seen |= {(int(facts["pid"]), facts["start_ticks"]) for facts in table.values()}
        return table

    def said(self, name):
        """What a service has written; it may not have begun."""
        log = self.log / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def pid(self, name):
        return wait_until(lambda: self.pids().get(name, {}).get("pid"))

    def close(self):
        self.pids()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            self.pids()
        for pid, ticks in self.seen:
            if supervise.start_ticks(pid) == ticks:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def test_killed_service_is_back_and_the_others_are_untouched(bench):
    bench.write(a="exec sleep 1000", b="exec sleep 1000")
    bench.start()
    a, b = bench.pid("a"), bench.pid("b")
    os.kill(a, signal.SIGKILL)
    assert wait_until(lambda: bench.pids().get("a", {}).get("pid") not in {None, a})
    assert bench.pids()["a"]["restarts"] == 1
    assert bench.pid("b") == b


def test_failing_service_is_tried_again_ever_more_slowly(bench):
    bench.write(a="echo tried; exit 3")
    bench.start()
    log = bench.log / "a.log"
    time.sleep(1.2)  # the claim is about a rate: after 0, 0, 0.1, 0.3, 0.7 s
    assert 4 <= log.read_text().count("tried") <= 6
    assert "exited with code 3" in (bench.folder / "supervise.err").read_text()


def test_services_survive_the_supervisor_and_are_adopted(bench):
    bench.write(a="exec sleep 1000", b="exec sleep 1000")
    bench.start()
    a, b = bench.pid("a"), bench.pid("b")
    bench.process.kill()
    bench.process.wait()
    os.kill(b, signal.SIGKILL)
    wait_until(lambda: supervise.start_ticks(b) is None)
    bench.start()
    assert bench.pid("a") == a
    assert bench.pid("b") != b
    os.kill(a, signal.SIGKILL)  # an adopted one is watched as well
    assert wait_until(lambda: bench.pids().get("a", {}).get("pid") not in {None, a})


KEEPING = """
import os, sys, time
from xtreemos.xtreemfs.fuse.keeping import Keeper
keeper = Keeper.inherited()
kept = keeper.look()
number = 0 if kept is None else int(kept.text)
assert kept is None or os.pread(kept.fds[0], 9, 0) == b"%d" % number
memory = os.memfd_create("kept")
os.pwrite(memory, b"%d" % (number + 1), 0)
keeper.clear()
keeper.put(b"%d" % (number + 1), [memory])
print(number, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take descriptors from another process everywhere")
def test_what_a_service_keeps_outlives_it_and_the_supervisor(bench):
    row = {"name": "a", "argv": [sys.executable, "-c", KEEPING], "keeps": True}
    bench.list.write_text(json.dumps([row]))
    bench.start()

    def kill_service(times):
        wait_until(lambda: bench.said("a").split() == [str(number) for number in range(times)])
        os.kill(bench.pid("a"), signal.SIGKILL)

    kill_service(1)
    wait_until(lambda: bench.said("a").split() == ["0", "1"])
    bench.process.kill()
    bench.process.wait()
    bench.start()
    kill_service(2)
    kill_service(3)
    wait_until(lambda: bench.said("a").split() == ["0", "1", "2", "3"])
    bench.list.write_text("[]")
    bench.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "a" not in bench.pids())
    bench.list.write_text(json.dumps([row]))
    bench.process.send_signal(signal.SIGHUP)
    wait_until(lambda: bench.said("a").split()[4:] == ["0"])  # what was stopped has left nothing


def test_hangup_reads_the_list_again(bench):
    bench.write(a="exec sleep 1000", b="exec sleep 1000")
    bench.start()
    a, b = bench.pid("a"), bench.pid("b")
    bench.write(a="exec sleep 1000", c="exec sleep 1000")
    bench.process.send_signal(signal.SIGHUP)
    assert bench.pid("c")
    wait_until(lambda: supervise.start_ticks(b) is None)
    assert bench.pid("a") == a
    bench.list.write_text("[broken")
    bench.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "changes nothing" in (bench.folder / "supervise.err").read_text())
    assert bench.pid("a") == a


def test_terminate_stops_all_in_reverse_order(bench):
    stop = "trap 'echo {0} >> {1}/order; exit' TERM; echo up; while :; do sleep 0.05; done"
    bench.write(**{name: stop.format(name, bench.folder) for name in "abc"})
    bench.start()
    wait_until(lambda: all((bench.log / f"{name}.log").exists() and (bench.log / f"{name}.log").read_text() for name in "abc"))
    bench.process.terminate()
    assert bench.process.wait(10) == 0
    assert (bench.folder / "order").read_text().split() == ["c", "b", "a"]
    assert bench.pids() == {}


def test_second_supervisor_on_the_same_folder_is_refused(bench):
    bench.write(a="exec sleep 1000")
    bench.start()
    argv, env = supervise.command(str(bench.list), bench.run, str(bench.log))
    assert subprocess.run(argv, env={**os.environ, **env}, check=False, capture_output=True).returncode == 75


def test_it_weighs_about_ten_megabytes(bench):
    compileall.compile_dir(os.path.dirname(supervise.__file__), quiet=2, maxlevels=0)  # as set-up does: the compiler is heavy
    bench.write(a="exec sleep 1000")
    bench.start()
    bench.pid("a")
    status = Path(f"/proc/{bench.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 10.5 * 1024


def test_service_has_no_descriptor_of_ours_and_a_session_of_its_own(bench):
    bench.write(a="ls -l /proc/self/fd >&2; ps -o pid=,sid= $$; exec sleep 1000")
    bench.start()
    bench.pid("a")
    text = wait_until(lambda: (t := bench.said("a")) and t.count("\n") >= 6 and t)
    assert "pids.json" not in text
    assert "supervise.lock" not in text
    assert "pipe:" not in text
    pid, sid = text.splitlines()[-1].split()
    assert pid == sid


def test_service_may_let_the_kernel_be_late_and_others_are_on_time(bench):
    show = ["sh", "-c", "cat /proc/self/timerslack_ns; exec sleep 1000"]
    bench.list.write_text(json.dumps([{"name": "late", "argv": show, "slack_us": 5000}, {"name": "sharp", "argv": show}]))
    bench.start()
    wait_until(lambda: len(list(bench.log.glob("*.log"))) == 2)
    said = [wait_until((bench.log / f"{name}.log").read_text) for name in ("late", "sharp")]
    assert [text.strip() for text in said] == ["5000000", "50000"]


def test_long_log_is_emptied_and_kept_once(tmp_path):
    log = tmp_path / "a.log"
    with open(log, "ab", buffering=0) as writer:
        writer.write(b"x" * 1000)
        supervise.rotate(str(log))
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 1000


def test_wrong_options_are_a_usage_error():
    done = subprocess.run([sys.executable, "-m", "xtreemos.node.supervise", "--run"], capture_output=True, check=False)
    assert done.returncode == 2
