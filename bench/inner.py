"""The measuring program. It runs where the client of a contender runs: inside a lab node, or inside a peer's namespaces.

Reads one JSON request a line on stdin, does it, writes one JSON answer a line: `{"ok": true, ...}` or `{"ok": false, "error": text}`.
Every contender is measured by this same program, so its own cost (a fork, an exec, a poll) is in every row alike; the row
"local process" shows that cost. Standard library only, and small: a large process forks slowly. It must not know who is measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Any

OUTPUT_KEPT_BYTES = 64 * 1024
BLOCK = bytes(256 * 1024)


class Failed(Exception):
    """The measured command did not do what it should; the text goes into the report."""


# ---------------------------------------------------------------- processes


class PtyChild:
    """A program on a fresh terminal of 24 x 80; `fd` is our end of it."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = os.forkpty()
        if self.pid == 0:
            try:
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.pidfd = os.pidfd_open(self.pid)
        self.output = bytearray()

    def read_some(self, deadline: float) -> bool:
        """Take output until there was some (True) or the program ended (False); raise Failed after `deadline`."""
        left = deadline - time.perf_counter()
        ready = select.select([self.fd, self.pidfd], [], [], max(0.0, left))[0]
        if not ready:
            raise Failed("timed out")
        if self.fd in ready:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: the other end of the terminal is closed
                data = b""
            if data:
                self.output += data
                return True
            select.select([self.pidfd], [], [], max(0.0, left))
        return False

    def finish(self) -> int:
        """Reap the ended program (kill it first if it still runs); return its wait status as an exit code."""
        if not select.select([self.pidfd], [], [], 0)[0]:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def timed_pty(argv: list[str], timeout_s: float) -> float:
    """Seconds from start to exit of a program on a terminal."""
    start = time.perf_counter()
    child = PtyChild(argv)
    failure = ""
    try:
        while child.read_some(start + timeout_s):
            pass
        took = time.perf_counter() - start
    except Failed as error:
        failure = str(error)
    code = child.finish()
    if failure or code:
        raise Failed(f"{argv[0]}: {failure or f'exit code {code}'}: {tail(child.output)}")
    return took


def timed_plain(argv: list[str], timeout_s: float, text: str = "") -> tuple[float, str]:
    """Seconds from start to exit of a program without a terminal, and its output; `text` is its standard input."""
    start = time.perf_counter()
    stdin = subprocess.PIPE if text else subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            out, err = child.communicate(text.encode() or None, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise Failed(f"{argv[0]}: timed out after {timeout_s:g} s") from error
        took = time.perf_counter() - start
    if child.returncode:
        raise Failed(f"{argv[0]}: exit code {child.returncode}: {tail(err or out)}")
    return took, out.decode(errors="replace")


def tail(data: bytes | bytearray) -> str:
    """Return the last line or so of a program's words."""
    return bytes(data[-300:]).decode(errors="replace").strip().replace("\r\n", " | ").replace("\n", " | ")


# ---------------------------------------------------------------- operations


def op_run(
    argv: list[str], pty: bool = False, timeout_s: float = 60, before: list[dict[str, Any]] | None = None, lines_min: int = 0
) -> dict[str, Any]:
    """One start-to-exit time; `before` are commands `{argv, input}` to do first, not timed. `lines_min`: its output has as many."""
    for command in before or []:
        timed_plain(command["argv"], timeout_s, command.get("input", ""))
    if pty:
        return {"s": timed_pty(argv, timeout_s)}
    took, text = timed_plain(argv, timeout_s)
    if text.count("\n") < lines_min:
        raise Failed(f"{argv[0]}: {text.count(chr(10))} lines came, {lines_min} were wanted")
    return {"s": took}


def op_text(argv: list[str], timeout_s: float = 60) -> dict[str, Any]:
    """A command's output, for versions and listings."""
    took, text = timed_plain(argv, timeout_s)
    return {"s": took, "text": text[-OUTPUT_KEPT_BYTES:]}


SESSIONS: dict[str, PtyChild] = {}


def op_echo_open(key: str, argv: list[str], timeout_s: float = 60) -> dict[str, Any]:
    """Start an echoing program on a terminal; it must print READY once its terminal is raw."""
    child = SESSIONS[key] = PtyChild(argv)
    deadline = time.perf_counter() + timeout_s
    while b"READY" not in child.output:
        if not child.read_some(deadline):
            raise Failed(f"{argv[0]}: ended before it was ready: {tail(child.output)}")
    return {}


def op_echo(key: str, count: int, pause_s: float = 0.004, timeout_s: float = 10) -> dict[str, Any]:
    """Times of `count` single bytes from write to echo. The pause is a (fast) typist, not a wait for something."""
    child = SESSIONS.get(key)
    if child is None:
        raise Failed("there is no such echo session")
    samples = []
    for number in range(count):
        byte = b"%c" % (97 + number % 26)
        child.output.clear()
        start = time.perf_counter()
        os.write(child.fd, byte)
        while byte not in child.output:
            if not child.read_some(start + timeout_s):
                raise Failed("the echoing program ended")
        samples.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return {"samples": samples}


def op_echo_close(key: str) -> dict[str, Any]:
    """End an echo session by closing its terminal, as a user closing a window would."""
    child = SESSIONS.pop(key, None)
    if child is None:
        raise Failed("there is no such echo session")
    child.finish()
    return {}


def op_pipe(argv: list[str], send_bytes: int, want_bytes: int, timeout_s: float = 600) -> dict[str, Any]:
    """Push `send_bytes` zeros into a program and take all its output, which must be `want_bytes` long; time of the whole."""
    start = time.perf_counter()
    deadline = start + timeout_s
    child = subprocess.Popen(argv, stdin=subprocess.PIPE if send_bytes else subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert child.stdout is not None
    got, left, open_end = 0, send_bytes, True
    sink, source = child.stdout.fileno(), child.stdin.fileno() if child.stdin else -1
    if child.stdin:
        os.set_blocking(source, False)
    try:
        while open_end or left:  # a program may close its output long before it has read its input
            wait_s = max(0.0, deadline - time.perf_counter())
            readable, writable, _ = select.select([sink] if open_end else [], [source] if left else [], [], wait_s)
            if not readable and not writable:
                raise Failed(f"{argv[0]}: timed out with {left} bytes to send and {got} received")
            if readable:
                size = len(os.read(sink, 1 << 20))
                got += size
                open_end = size > 0
            if writable:
                left -= os.write(source, BLOCK[: min(left, len(BLOCK))])
                if not left and child.stdin:
                    child.stdin.close()
        code = child.wait(max(1.0, deadline - time.perf_counter()))
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code or got != want_bytes:
        raise Failed(f"{argv[0]}: exit code {code}, {got} of {want_bytes} bytes came back")
    return {"s": time.perf_counter() - start}


def op_batch(
    submit: list[str], repeat: int, done: list[str], done_when: str, poll_s: float = 0.1, timeout_s: float = 900
) -> dict[str, Any]:
    """Submit `repeat` times, one after the other, then wait until all is done.

    `done_when`: "empty" polls `done` until it prints nothing; "exit" runs it once with every submitted id (the last word of each
    submission's output) appended. Returns `submit_s` (all submissions accepted) and `s` (all done).
    """
    start = time.perf_counter()
    ids = []
    for _ in range(repeat):
        _, text = timed_plain(submit, timeout_s)
        ids += text.split()[-1:] if repeat > 1 else text.split()
    submitted = time.perf_counter() - start
    left = timeout_s - submitted
    if done_when == "exit":
        timed_plain(done + ids, left)
    else:
        while timed_plain(done, left)[1].strip():
            if time.perf_counter() - start > timeout_s:
                raise Failed(f"not done after {timeout_s:g} s")
            time.sleep(poll_s)
    return {"submit_s": submitted, "s": time.perf_counter() - start, "ids": len(ids)}


def op_kill(start: list[str], find: list[str] | None, kill: list[str], timeout_s: float = 60) -> dict[str, Any]:
    """Time from starting a kill command until a foreground job's client has seen its end.

    `start` prints `READY ID`; `find` (if given) prints the id instead. `{id}` in `kill` stands for it, `{pid}` for the client's process.
    """
    child = PtyChild(start)
    failure, took = "", 0.0
    try:
        deadline = time.perf_counter() + timeout_s
        while b"\n" not in child.output.partition(b"READY ")[2]:
            if not child.read_some(deadline):
                raise Failed(f"ended before it was ready: {tail(child.output)}")
        name = child.output.partition(b"READY ")[2].split(b"\n")[0].strip().decode()
        if find:
            name = timed_plain(find, timeout_s)[1].split()[-1]
        begin = time.perf_counter()
        timed_plain([word.replace("{id}", name).replace("{pid}", str(child.pid)) for word in kill], timeout_s)
        while child.read_some(deadline):
            pass
        took = time.perf_counter() - begin
    except (Failed, IndexError) as error:
        failure = str(error)
    child.finish()
    if failure:
        raise Failed(failure)
    return {"s": took}


# ---------------------------------------------------------------- daemons


def op_daemons(seconds: float, skip: list[str]) -> dict[str, Any]:
    """Memory (proportional share, bytes) and CPU (share of one core over `seconds`) of every process seen in /proc.

    Rows of {name, pid, pss_bytes, cpu}; kernel threads, this program and command lines containing a word of `skip` are left out.
    """
    before = {pid: ticks for pid in all_pids() if (ticks := cpu_ticks(pid)) is not None}
    start = time.perf_counter()
    time.sleep(seconds)  # the length of the observation
    hertz = os.sysconf("SC_CLK_TCK")
    rows = []
    for pid, was in before.items():
        now, words = cpu_ticks(pid), command_line(pid)
        if now is None or not words or pid in {os.getpid(), os.getppid()} or any(s in " ".join(words) for s in skip):
            continue
        pss = pss_bytes(pid)
        if pss is not None:
            cpu = (now - was) / hertz / (time.perf_counter() - start)
            rows.append({"name": short_name(words), "pid": pid, "pss_bytes": pss, "cpu": cpu})
    return {"rows": rows}


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def cpu_ticks(pid: int) -> int | None:
    """User plus system time of a process in clock ticks; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


def command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [word.decode(errors="replace") for word in file.read().split(b"\0") if word]
    except OSError:
        return []


def pss_bytes(pid: int) -> int | None:
    """Proportional set size, bytes; None if the process is gone or not ours to look at."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), None)
    except OSError:
        return None


def short_name(words: list[str]) -> str:
    """`python -m xtreemos.node.xosd ...` is `xosd`; other programs go by their file name."""
    if "-m" in words[:6] and words.index("-m") + 1 < len(words):
        return words[words.index("-m") + 1].rpartition(".")[2]
    first = os.path.basename(words[0].rstrip(":"))
    if first.startswith("python") and len(words) > 1:
        scripts = [word for word in words[1:] if not word.startswith("-")]
        return os.path.basename(scripts[0]) if scripts else first
    return first


OPERATIONS = {name[3:]: function for name, function in globals().items() if name.startswith("op_")}


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for line in sys.stdin:
        request = json.loads(line)
        operation = OPERATIONS[request.pop("op")]
        try:
            answer = {"ok": True, **operation(**request)}
        except (Failed, OSError, subprocess.SubprocessError) as error:
            answer = {"ok": False, "error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for key in list(SESSIONS):
        op_echo_close(key)


if __name__ == "__main__":
    main()
