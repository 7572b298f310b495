"""The client side of `make soak`: runs inside a lab's node as a grid user, standard library only.

`runs N MIB`: N programs at once of every kind that a shell knows, each judged by what a local process would have done.
`subs N TAG`: N detached jobs submitted one by one by a few hands, awaited, their ends compared.
Writes one JSON object to standard output: `{"bad": [text], ...figures}`. It must not know of faults: whoever calls makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = ["xos", "run", "--"]
ENDS_S = 120.0
HANDS = 4
LOSSES = 2  # how often a job with --retry may be started again


SAID = threading.local()  # code and standard error of the last program of a thread


class Wrong(Exception):
    """A program did not behave as a local one would have."""


def expect(what: str, found: Any, wanted: Any) -> None:
    """Raise Wrong if two values differ."""
    if found != wanted:
        raise Wrong(f"{what}: {str(found)[:300]!r} instead of {str(wanted)[:100]!r}")


def ours(text: bytes) -> str:
    """Return the program's lines of a standard error: without what the grid tells the user."""
    return "".join(line for line in text.decode(errors="replace").splitlines(keepends=True) if not line.startswith("xos: "))


def finish(process: subprocess.Popen[bytes], data: bytes | None = None) -> tuple[bytes, bytes]:
    """Give `data`, take everything, wait for the end; Wrong if there is none."""
    try:
        out, err = process.communicate(data, timeout=ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Wrong(f"no end after {ENDS_S:g} s") from None
    SAID.last = (process.returncode, err)
    return out, err


def start(argv: list[str], *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start `xos run` with pipes for its outputs."""
    command = ["xos", "run", *options, "--", *argv]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def code(index: int, _mib: int) -> None:
    """Any exit code, both outputs apart."""
    process = start(["sh", "-c", f"echo out {index}; echo err {index} >&2; exit {index % 256}"])
    out, err = finish(process)
    expect("stdout", out, b"out %d\n" % index)
    expect("stderr", ours(err), f"err {index}\n")
    expect("code", process.returncode, index % 256)


def death(index: int, _mib: int) -> None:
    """Death by a signal is the same signal here."""
    number = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT)[index % 4]
    process = start(["sh", "-c", f"ulimit -c 0; kill -{int(number)} $$"])
    finish(process)
    expect("code", process.returncode, -number)


def through(index: int, mib: int) -> None:
    """Many bytes in and back."""
    data = random.Random(index).randbytes(mib << 20)
    process = start(["cat"], stdin=subprocess.PIPE)
    out, err = finish(process, data)
    expect("stderr", ours(err), "")
    expect("bytes", (len(out), hashlib.sha256(out).digest()), (len(data), hashlib.sha256(data).digest()))
    expect("code", process.returncode, 0)


def sink(index: int, mib: int) -> None:
    """Many bytes in, from a file."""
    data = random.Random(index).randbytes(mib << 20)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        process = start(["sha256sum"], stdin=file.fileno())
        out, _err = finish(process)
    expect("sum", out.split()[:1], [hashlib.sha256(data).hexdigest().encode()])
    expect("code", process.returncode, 0)


def source(_index: int, mib: int) -> None:
    """Many bytes out, on both outputs."""
    process = start(["sh", "-c", f"head -c {mib << 20} /dev/zero; head -c 100000 /dev/zero >&2; exit 3"])
    out, err = finish(process)
    expect("bytes", (len(out), out.count(0)), (mib << 20, mib << 20))
    expect("stderr bytes", err.count(0), 100000)
    expect("code", process.returncode, 3)


def broken_pipe(_index: int, _mib: int) -> None:
    """Nobody reads any more: SIGPIPE reaches back."""
    process = start(["yes"])
    assert process.stdout is not None
    expect("first bytes", process.stdout.read(6), b"y\ny\ny\n")
    process.stdout.close()
    process.stdout = None
    finish(process)
    expect("code", process.returncode, -signal.SIGPIPE)


def terminal(index: int, _mib: int) -> None:
    """A terminal of its own there, if there is one here."""
    main, other = pty.openpty()
    script = "test -t 0 && test -t 1 || exit 9; stty size; read x; echo got $x; exit 7"
    process = subprocess.Popen(["setsid", "--ctty", *RUN, "sh", "-c", script], stdin=other, stdout=other, stderr=other)
    os.close(other)
    os.write(main, b"word%d\n" % index)
    text = b""
    try:
        while chunk := os.read(main, 65536):
            text += chunk
    except OSError:  # EIO: the last one on the other side is gone
        pass
    os.close(main)
    finish(process)
    expect("answer", f"got word{index}\r\n".encode() in text, True)
    expect("code", process.returncode, 7)


def sleeper(index: int, _mib: int) -> None:
    """Time passes."""
    begun = time.monotonic()
    process = start(["sleep", str(0.5 + index % 5 / 2)])
    finish(process)
    expect("code", process.returncode, 0)
    expect("time passed", time.monotonic() - begun >= 0.5 + index % 5 / 2, True)


def caught(_index: int, _mib: int) -> None:
    """A signal to the ghost reaches the program."""
    process = start(["sh", "-c", 'trap "echo bye; exit 3" USR1; echo ready; while :; do sleep 0.1; done'])
    assert process.stdout is not None
    expect("first line", process.stdout.readline(), b"ready\n")
    process.send_signal(signal.SIGUSR1)
    out, _err = finish(process)
    expect("answer", out, b"bye\n")
    expect("code", process.returncode, 3)


def ended(_index: int, _mib: int) -> None:
    """TERM to the ghost ends the whole tree there."""
    process = start(["sh", "-c", "echo ready; sleep 1000 & sleep 1000"])
    assert process.stdout is not None
    expect("first line", process.stdout.readline(), b"ready\n")
    process.terminate()
    finish(process)
    expect("code", process.returncode, -signal.SIGTERM)


def unknown(_index: int, _mib: int) -> None:
    """No such program: as a shell says it."""
    process = start(["no-such-program-here"])
    _out, err = finish(process)
    expect("code", process.returncode, 127)
    expect("line", b"no-such-program-here" in err, True)


def no_program(_index: int, _mib: int) -> None:
    """Something that cannot be executed."""
    process = start(["/etc/passwd"])
    finish(process)
    expect("code", process.returncode, 126)


def carried(index: int, _mib: int) -> None:
    """Environment and working folder go along."""
    process = start(["sh", "-c", 'echo "$SOAK $PWD"'], "--env", f"SOAK=value {index}")
    out, _err = finish(process)
    expect("answer", out, f"value {index} {os.environ['HOME']}\n".encode())
    expect("code", process.returncode, 0)


KINDS: tuple[Callable[[int, int], None], ...] = (
    code, through, terminal, death, sleeper, sink, caught, unknown, source, broken_pipe, carried, ended, no_program,
)  # fmt: skip


def at_once(count: int, mib: int) -> dict[str, Any]:
    """Run `count` programs of all kinds, all started at once."""
    bad: list[str] = []
    begun = time.monotonic()

    def one(index: int) -> None:
        kind = KINDS[index % len(KINDS)]
        SAID.last = None
        try:
            kind(index, mib)
        except Exception as error:  # noqa: BLE001  # whatever went wrong is the finding
            bad.append(f"{kind.__name__} {index}: {error!r}; it ended with {str(SAID.last)[-300:]}")

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"bad": bad, "runs": count, "seconds": round(time.monotonic() - begun, 1)}


def job_script(index: int, tag: str) -> list[str]:
    """What job `index` does: a line in a file of its home first, then its time, then its code."""
    file = f'"$HOME/soak-{tag}"'
    if index % 20 == 7:  # lives long enough to be lost; says at every moment that it lives
        return [
            "sh",
            "-c",
            f'for i in 1 2 3 4 5 6 7 8; do echo "$XOS_JOB beat $(date +%s.%N)" >> {file}; sleep 1; done; exit {index % 5}',
        ]
    nap = "" if index % 3 else f"; sleep {index % 7 / 3:.1f}"
    return ["sh", "-c", f'echo "$XOS_JOB once" >> {file}{nap}; exit {index % 5}']


def submit_all(count: int, tag: str, bad: list[str]) -> dict[str, int]:
    """Submit jobs one by one, a few hands side by side; returns job -> index."""
    jobs: dict[str, int] = {}

    def hand(first: int) -> None:
        for index in range(first, count, HANDS):
            options = ["--retry", str(LOSSES)] if index % 20 == 7 else []
            done = subprocess.run(
                ["xos", "sub", *options, "--", *job_script(index, tag)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                bad.append(f"submission {index}: code {done.returncode} {done.stderr.strip()[:200]}")
            else:
                jobs[done.stdout.strip()] = index

    threads = [threading.Thread(target=hand, args=(first,)) for first in range(HANDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return jobs


def subs(count: int, tag: str) -> dict[str, Any]:
    """Submit, wait, compare."""
    bad: list[str] = []
    begun = time.monotonic()
    jobs = submit_all(count, tag, bad)
    submitted_s = time.monotonic() - begun
    ends: dict[str, Any] = {}
    names = list(jobs)
    done = subprocess.run(["xos", "wait", "--json", *names], capture_output=True, text=True, check=False)
    try:
        ends = {row["job"]: row["exit"] for row in json.loads(done.stdout)}
    except ValueError:
        bad.append(f"xos wait: code {done.returncode} {done.stderr.strip()[-300:]}")
    for job, index in jobs.items():
        found = (ends.get(job) or {}).get("code")
        if found != index % 5:
            bad.append(f"job {job} ({index}): ended with {ends.get(job)} instead of code {index % 5}")
    ended_s = time.monotonic() - begun
    asked = time.monotonic()
    listed = json.loads(subprocess.run(["xos", "ps", "-a", "--json"], capture_output=True, check=True).stdout)
    listing_ms = (time.monotonic() - asked) * 1000
    states = {row["job"]: row["state"] for row in listed}
    bad += [f"job {job} is listed as {states.get(job)}" for job in names if states.get(job) != "ended"]
    return {
        "bad": bad, "jobs": names, "retried": [job for job, index in jobs.items() if index % 20 == 7],
        "submitted_s": round(submitted_s, 1), "ended_s": round(ended_s, 1), "listing_ms": round(listing_ms),
    }  # fmt: skip


def main() -> int:
    """Carry out one command."""
    os.chdir(Path.home())
    found = subs(int(sys.argv[2]), sys.argv[3]) if sys.argv[1] == "subs" else at_once(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
