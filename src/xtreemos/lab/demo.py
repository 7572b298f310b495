"""`make demo`: a grid of three nodes on this machine, used the way a person would, and taken down again.

Every step types real commands, prints what they print and checks it; the first thing that is not as it should be ends the demo with
exit code 1. The lab goes away on every way out, Ctrl-C included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from types import FrameType
from typing import NoReturn, Self

from xtreemos.errors import XosError
from xtreemos.lab import lab, store
from xtreemos.lab.screen import Screen
from xtreemos.lab.stage import Stage, StepFailed

NODES = 3
LAB = "demo"
NUMBERS = 40_000_000
PROMPT = "alice@n1$ "

SOURCE = r"""/* Reads numbers, one a line: how many, which digits, and a checksum over every byte. */
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
static char block[1 << 20];
int main(void) {
    uint64_t sum = 14695981039346656037u, lines = 0, bytes = 0, digit[10] = {0};
    size_t got;
    while ((got = fread(block, 1, sizeof block, stdin)) > 0) {
        bytes += got;
        for (size_t i = 0; i < got; i++) {
            unsigned char c = block[i];
            sum = (sum ^ c) * 1099511628211u;
            if (c == '\n') lines++;
            else if (c >= '0' && c <= '9') digit[c - '0']++;
        }
    }
    printf("%llu bytes, %llu lines, checksum %016llx\n", (unsigned long long)bytes, (unsigned long long)lines, (unsigned long long)sum);
    for (int d = 0; d < 10; d++) printf("%d:%llu ", d, (unsigned long long)digit[d]);
    putchar('\n');
    return ferror(stdin) ? EXIT_FAILURE : EXIT_SUCCESS;
}
"""

PARTS = r"""mkdir -p parts && cd parts
for i in $(seq 0 19); do
    echo "int part$i(void) { int s = 0; for (int k = $i * 5; k < $i * 5 + 5; k++) s += k; return s; }" > part$i.c
done
{ for i in $(seq 0 19); do echo "int part$i(void);"; done
  echo '#include <stdio.h>'; printf 'int main(void) { printf("%%d\\n", 0'; for i in $(seq 0 19); do printf ' + part%d()' $i; done; echo '); }'
} > main.c
printf 'OBJ := $(patsubst %%.c,%%.o,$(wildcard *.c))\nwhole: $(OBJ)\n\t$(CC) -o $@ $^\n%%.o: %%.c\n\t$(CC) -c -o $@ $<\n' > Makefile
"""


# -- steps: each returns one line that says what was seen ------------------------------------------------------------------------


def start_grid(stage: Stage) -> str:
    """Make the lab."""
    stage.prompt(f"xos lab up --nodes {NODES}{_option(stage)}", "root@host#")
    for line in lab.up(stage.lab, nodes=NODES, sites=1, say=lambda line: stage.say(f"    {line}"))[:1]:
        stage.say(f"    {line}")
    return f"{NODES} nodes, each with its own network, processes, disk and certificates"


def log_in(stage: Stage) -> str:
    """Log in by typing the password, in a shell on a real terminal."""
    with _Shell(stage) as shell:
        shell.type("xos logout")  # `lab exec --user` logs users in by itself; here we want to see it done
        shell.clear()
        shell.screen.keys("xos login alice@demo\r")
        shell.screen.wait(lambda lines: any("Password" in line for line in lines), "the password prompt")
        shell.screen.keys(store.load_users(stage.lab)["alice"] + "\r")
        shell.wait_prompt()
        shell.type("xos whoami")
        lines = shell.show()
    stage.check("logged in once; no password is asked from here on", any("session" in line and "alice@demo" in line for line in lines))
    return "one password, once; three short-lived credentials on three keys"


def find_nodes(stage: Stage) -> str:
    """Ask the nodes about themselves."""
    everything = stage.run("xos nodes")
    stage.check("all three nodes answer", all(re.search(rf"^n{n} ", everything, re.MULTILINE) for n in (1, 2, 3)))
    stage.run("xos nodes --where 'cpus>=1 and memory>=256M and node!=n1'")
    none = stage.run("xos nodes --where 'cpus>=4096' --json")
    stage.check("no node claims to have 4096 cores", json.loads(none) == [])
    return "range queries, answered by the nodes themselves"


def be_a_process(stage: Stage) -> str:
    """Exit codes, signals, streams."""
    stage.run("xos run --node n2 -- hostname")
    stage.check("the program ran on n2", stage.run("xos run --node n2 -- hostname", show=False) == "n2\n")
    stage.run("xos run --node n2 -- sh -c 'exit 7'; echo exit code $?")
    text = stage.run("xos run --node n2 -- sh -c 'kill -SEGV $$'; echo exit code $?")
    stage.check("death by a signal reaches the shell as the same signal", "exit code 139" in text)
    text = stage.run("xos run --node n2 -- sh -c 'echo to stdout; echo to stderr >&2' 2>err | tr a-z A-Z; echo; cat err")
    stage.check("standard output and error stay apart", "TO STDOUT" in text and "to stderr" in text)
    return "exit codes, signals and streams are those of a local process"


def compile_and_run(stage: Stage) -> str:
    """Build a C program on another node, stream hundreds of megabytes through it on a third, compare with a local run."""
    stage.run("cat > digits.c", show=False, stdin=SOURCE.encode())
    stage.run("wc -l digits.c")
    stage.run("xos run --node n2 -- gcc -O2 -Wall digits.c -o digits")
    stage.run("xos run --node n3 -- ls -l digits")
    began = time.monotonic()
    far = stage.run(f"seq {NUMBERS} | xos run --node n3 -- ./digits")
    took_s = time.monotonic() - began
    found = re.search(r"(\d+) bytes", far)
    if not found:
        raise StepFailed(f"the program did not say how much it read: {far[-200:]}")
    megabytes = int(found[1]) / 1e6
    stage.say("  the same program, on this side:")
    near = stage.run(f"seq {NUMBERS} | ./digits")
    stage.check(f"{megabytes:.0f} MB went through n3, and its result equals the local one byte for byte", far == near)
    return f"compiled on n2, run on n3: {megabytes:.0f} MB streamed through it in {took_s:.1f} s ({megabytes / took_s:.0f} MB/s), same result as on n1"


def one_home(stage: Stage) -> str:
    """Files are the same on every node: written in one job, read in the next elsewhere; a build spread over the nodes."""
    stage.run("xos run --node n2 -- sh -c 'echo written on $XOS_NODE > note; ls -l note'")
    text = stage.run("xos run --node n3 -- cat note; cat note")
    stage.check("what a job wrote on n2 is there on n3 and on n1", text == "written on n2\n" * 2)
    stage.run("cat > make-parts", show=False, stdin=PARTS.encode())
    stage.run("sh make-parts && cd parts && ls | wc -l")
    began = time.monotonic()
    stage.run("cd parts && make -s -j4 CC='xos run -- gcc' && ./whole")
    took_s = time.monotonic() - began
    said = stage.run("cd parts && ./whole", show=False)
    stage.check("each object was compiled by a job somewhere in the grid, and the program linked from them is right", said == "4950\n")
    stage.run("df -h --output=fstype,size,target ~")
    return f"one home on three machines; 20 files compiled by jobs on all of them and linked in {took_s:.0f} s"


def full_screen(stage: Stage) -> str:
    """Use vi on another node, and look at its screen."""
    name = "letter.txt"
    with _Shell(stage, rows=12, cols=76) as shell:
        command = f"xos run --node n2 -- vi {name}"
        stage.prompt(command)
        shell.screen.keys(command + "\r")
        shell.screen.wait(lambda lines: any(line.startswith("~") for line in lines) and any(name in line for line in lines), "vi's screen")
        shell.screen.keys("i")
        for line in ("Dear reader,", "", "these keys were pressed on n1, and vi runs on n2.", "The terminal is a real one: arrow keys, colours, size."):
            shell.screen.keys(line + "\r")
        shell.screen.keys("\x1b")
        shell.screen.wait(lambda lines: any("a real one" in line for line in lines), "what was typed")
        stage.box(shell.screen.wait_still(), f"terminal of alice on n1: vi {name} on n2")
        shell.screen.keys(":wq\r")
        shell.wait_prompt()
    text = stage.run(f"xos run --node n2 -- cat {name}")
    stage.check("what was typed in vi is in the file on n2", "these keys were pressed on n1" in text)
    return "vi on n2, driven by keys on n1, its screen drawn right"


def pipeline(stage: Stage) -> str:
    """A pipe over two nodes."""
    text = stage.run("seq 200000 | sed 's/.*\\(.\\)$/\\1/' | xos run --node n2 -- sort | xos run --node n3 -- uniq -c | head -3")
    stage.check("sorted on n2, counted on n3, cut here", text.split() == ["20000", "0", "20000", "1", "20000", "2"])
    began = time.monotonic()
    stage.run("xos run --node n2 -- yes | head -1")
    stage.check("the broken pipe reached `yes` on n2, which would run for ever", time.monotonic() - began < 30)
    return "bytes flow through n2 and n3 as through local programs; a closed pipe stops the far end"


def job_control(stage: Stage) -> str:
    """Ctrl-Z, bg, fg, kill and Ctrl-C in a shell on a terminal."""
    with _Shell(stage) as shell:
        shell.screen.keys("xos run --node n2 -- sleep 1000\r")
        _wait_state(stage, "sleep 1000", "running")
        shell.screen.keys("\x1a")
        shell.wait_prompt()
        _wait_state(stage, "sleep 1000", "stopped")
        shell.type("xos ps")
        shell.type("bg")
        _wait_state(stage, "sleep 1000", "running")
        shell.type("xos ps")
        shell.screen.keys("fg\r")
        shell.screen.wait(lambda lines: sum("sleep 1000" in line for line in lines) >= 5, "the program in the foreground")
        shell.screen.keys("\x03")
        shell.wait_prompt()
        shell.type("echo exit code $?")
        shell.type("xos run --node n3 -- sleep 2000 &")
        _wait_state(stage, "sleep 2000", "running")
        shell.type("kill %1; wait %1; echo exit code $?")
        lines = shell.show()
    stage.check("Ctrl-Z stopped it on n2, bg let it go on, Ctrl-C ended it", any("Stopped" in line for line in lines) and "exit code 130" in lines)
    stage.check("`kill` of the local process ended the one on n3", "exit code 143" in lines)
    _wait_gone(stage, "sleep 1000", "sleep 2000")
    return "Ctrl-Z, bg, fg, Ctrl-C, kill: the shell does not know that its jobs are elsewhere"


def detached(stage: Stage) -> str:
    """Jobs that need no shell."""
    text = stage.run("xos sub --count 4 -- sh -c 'sleep 3; echo part $XOS_INDEX ran on $XOS_NODE; exit $XOS_INDEX' | tee ids")
    jobs = text.split()
    stage.run("xos ps")
    stage.run('xos wait $(cat ids); echo "exit code of the last: $?"')
    logs = stage.run("for job in $(cat ids); do xos logs $job; done")
    stage.check("four jobs ran once each", sorted(re.findall(r"part (\d)", logs)) == ["0", "1", "2", "3"] and len(jobs) == 4)
    rows = {row["job"]: row for row in json.loads(stage.run("xos ps -a --json", show=False))}
    stage.check("and each exit code is kept", [rows[job]["exit"]["code"] for job in jobs] == [0, 1, 2, 3])
    return "four detached jobs, placed by the grid, outputs and exit codes kept"


def power_cut(stage: Stage) -> str:
    """Cut the power of the node where a program runs."""
    killed: list[str] = []
    cut_at: list[float] = []
    moved_s: list[float] = []

    def on_line(line: str) -> None:
        found = re.match(r"(n\d): begins", line)
        if found and not killed:
            killed.append(found[1])
            stage.prompt(f"xos lab kill {found[1]}{_option(stage)}", "root@host#")
            stage.say(f"    {lab.kill(stage.lab, found[1])}")
            cut_at.append(time.monotonic())
        elif found:
            moved_s.append(time.monotonic() - cut_at[0])

    text = stage.run("xos run --retry --on 'node!=n1' -- sh -c 'echo $XOS_NODE: begins; sleep 4; echo $XOS_NODE: has the answer, 42'", on_line=on_line)
    ran_on = re.findall(r"(n\d): begins", text)
    stage.check("the program began again on the other node, and ended there with exit code 0", len(set(ran_on)) == 2 and f"{ran_on[1]}: has the answer" in text)
    stage.prompt(f"xos lab start {killed[0]}{_option(stage)}", "root@host#")
    stage.say(f"    {lab.start(stage.lab, killed[0])}")
    stage.run(f"until xos nodes | grep -q ^{killed[0]}; do sleep 0.3; done; xos nodes", shown_as="xos nodes")
    stage.run(f"xos run --node {killed[0]} -- hostname")
    return f"{killed[0]} lost its power; the program began again on {ran_on[1]} after {moved_s[0]:.0f} s; {killed[0]} came back by itself"


STEPS = (
    ("Start a grid of three machines", start_grid),
    ("Log in, once", log_in),
    ("Find machines", find_nodes),
    ("Run programs elsewhere, as processes", be_a_process),
    ("Build a program in the grid and run it over real data", compile_and_run),
    ("One home on every machine", one_home),
    ("Use a full-screen program", full_screen),
    ("Pipe through two machines", pipeline),
    ("Job control", job_control),
    ("Detached jobs", detached),
    ("A machine loses its power", power_cut),
)


# -- helpers ---------------------------------------------------------------------------------------------------------------------


class _Shell:
    """Alice's bash on a terminal; a context."""

    def __init__(self, stage: Stage, *, rows: int = 40, cols: int = 110) -> None:
        self.stage = stage
        self.screen: Screen = stage.screen(rows=rows, cols=cols)

    def __enter__(self) -> Self:
        self.screen.wait(lambda lines: any(line.endswith("$") for line in lines), "a prompt")
        self.screen.keys(f"bind 'set enable-bracketed-paste off'; PS1='{PROMPT}'\r")
        self.clear()
        return self

    def clear(self) -> None:
        """Clear the screen."""
        self.screen.keys("clear\r")
        self.screen.wait(lambda lines: lines[0] == PROMPT.strip() and not any(lines[1:]), "a clear screen")

    def __exit__(self, *_: object) -> None:
        self.screen.close()

    def wait_prompt(self) -> None:
        """Wait until the last line is an empty prompt."""
        self.screen.wait(lambda lines: _last(lines) == PROMPT.strip(), "the shell's prompt")

    def type(self, command: str) -> None:
        """Type a command and wait until the shell has ended it."""
        self.screen.keys(command + "\r")
        self.screen.wait(lambda lines: any(line.endswith(command[-40:]) for line in lines), f"the command {command!r}")
        self.wait_prompt()

    def show(self) -> list[str]:
        """Print the screen without the last, empty prompt; return its lines."""
        lines = [line for line in self.screen.wait_still() if line][:-1]
        for line in lines:
            if line.startswith(PROMPT):
                self.stage.prompt(line.removeprefix(PROMPT))
            else:
                self.stage.say(f"    {line}")
        return lines


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line), "")


def _wait_state(stage: Stage, command: str, state: str) -> None:
    """Wait until a job with that command line is in that state."""
    _wait_rows(stage, f"{command} to be {state}", lambda rows: any(row["command"] == command and row["state"] == state for row in rows))


def _wait_gone(stage: Stage, *commands: str) -> None:
    _wait_rows(stage, "the jobs to be gone", lambda rows: not any(row["command"] in commands for row in rows))


def _wait_rows(stage: Stage, what: str, fits: object) -> None:
    assert callable(fits)
    end = time.monotonic() + 20
    while not fits(json.loads(stage.run("xos ps --json", show=False))):
        if time.monotonic() > end:
            raise StepFailed(f"waited in vain for {what}: {stage.run('xos ps', show=False)}")


def _option(stage: Stage) -> str:
    return f" --name {stage.lab}"


def _summary(stage: Stage, took_s: float) -> None:
    stage.say("\nWhat was shown", "1;36")
    for number, done in enumerate(stage.done, 1):
        stage.say(f"  {number:>2}. {done.title.ljust(60)} {done.took_s:6.1f} s", "1")
        stage.say(f"      {done.seen}")
    stage.say(f"\nAll {len(stage.done)} steps as they should be, {took_s:.0f} s. Try it yourself: xos lab up, and docs/tutorial.md.", "1;32")


def play(name: str) -> int:
    """Run the whole demo in a lab `name`, which must be ours alone; return the exit code."""
    stage = Stage(name)
    began = time.monotonic()
    failed = ""
    try:
        lab.down(name)  # what a demo that was killed may have left
        for title, work in STEPS:
            stage.step(title, work)
    except XosError as error:
        failed = error.line()
    except KeyboardInterrupt:
        failed = "interrupted"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # taking down must be whole
        stage.say()
        stage.prompt(f"xos lab down{_option(stage)}", "root@host#")
        stage.say(f"    {lab.down(name)}")
    if failed:
        title = STEPS[min(len(stage.done), len(STEPS) - 1)][0]
        stage.say(f"\nDEMO FAILED in step {len(stage.done) + 1} ({title}): {failed}", "1;31")
        return 130 if failed == "interrupted" else 1
    _summary(stage, time.monotonic() - began)
    return 0


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def main() -> int:
    """Entry point of `make demo`."""
    parser = argparse.ArgumentParser(prog="demo", description="Start a small grid on this machine, use it, take it down.")
    parser.add_argument("--name", default=LAB, help="name of the lab, which is removed first if it exists")
    name = parser.parse_args().name
    if os.geteuid() != 0:
        os.execvp("sudo", ["sudo", sys.executable, "-m", "xtreemos.lab.demo", "--name", name])  # noqa: S606  # as set-up does
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    return play(name)


if __name__ == "__main__":
    sys.exit(main())
