"""Types what a documentation page says in its ```console blocks, in a lab of its own, and compares what comes out.

`python tools/run_tutorial.py [--name LAB] [PAGE]`; root. A block holds commands behind a prompt, `host# `, `alice@n1$ ` or
`root@n2# `, each followed by what it prints. A page with `root@` prompts gets a lab of three bare machines. The comparison is loose: numbers, job names and blanks may differ, `...` stands for any lines. A line
`^Z` or `^C` is a key, pressed once a job of alice runs. Exit codes are compared as they are. Comments before a block:

    <!-- password: USER -->       her password is typed when it is asked for
    <!-- keys: TEXT -->           is typed into the program once it has drawn its screen; escapes as in Python
    <!-- once: PROMPT TEXT -->    the keys are typed when the window of PROMPT shows TEXT
    <!-- WORD is: REGEX -->       from here on, WORD in commands is what group 1 of REGEX found last in all output so far
    <!-- type: TEXT -->           is typed, with Enter, each time the program asks for a password
    <!-- leave: yes -->           the command still runs when the reader goes on
    <!-- within: SECONDS -->      how long each command of the block may take, in place of WAIT_S
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

ROOT = Path(__file__).resolve().parent.parent
XOS = str(ROOT / ".venv" / "bin" / "xos")
WAIT_S = 40.0
UP_WAIT_S = 180.0
QUIET_S = 1.0
PROMPT = "next-command> "
KEYS = {"^Z": "\x1a", "^C": "\x03"}
_PROMPTS = re.compile(r"(host#|alice@n\d\$|root@n\d#) (.*)")
_BLOCK = re.compile(r"((?:^<!-- .*? -->\n)*)^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"<!-- (.*?): (.*?) -->")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?|[\r\x03\x1a]")


@dataclass(slots=True)
class Command:
    """One typed line: where, what, which lines are to come, and the directives of its block."""

    prompt: str
    text: str
    line: int
    expected: list[str] = field(default_factory=list)
    directives: dict[str, str] = field(default_factory=dict)


class Differs(Exception):
    """What came out is not what the page says."""


def commands(page: str) -> list[Command]:
    """Return the commands of a page in order."""
    found: list[Command] = []
    for block in _BLOCK.finditer(page):
        directives = dict(_DIRECTIVE.findall(block[1]))
        first = page.count("\n", 0, block.start(2)) + 1
        for number, line in enumerate(block[2].splitlines(), first):
            typed = _PROMPTS.fullmatch(line)
            if typed:
                found.append(Command(typed[1], typed[2], number, directives=directives))
            else:
                found[-1].expected.append(line)
    return found


def normal(line: str) -> str:
    """Return a line without what may differ from run to run."""
    line = re.sub(r"\bj[a-z2-7]{12}\b", "JOB", line)
    line = re.sub(r"session [0-9a-f]{8}", "session SID", line)
    line = re.sub(r"\bxos1\.[\w-]+", "TOKEN", line).replace("xos1.…", "TOKEN")
    line = re.sub(r"\b[0-9a-f]{32}\b", "SID", line)
    if not line.startswith("exit code"):
        line = re.sub(r"exit \d+|\d+(?:[.:]\d+)*[KMGs]?", lambda found: found[0] if found[0].startswith("exit") else "0", line)
    return " ".join(line.split())


def matches(expected: list[str], got: list[str]) -> bool:
    """Compare lines; `...` stands for any number of them."""
    if not expected:
        return not got
    if expected[0] == "...":
        return any(matches(expected[1:], got[skip:]) for skip in range(len(got) + 1))
    return bool(got) and normal(expected[0]) == normal(got[0]) and matches(expected[1:], got[1:])


class Window:
    """A bash on a terminal."""

    def __init__(self) -> None:
        env = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        words = ["--norc", "--noprofile", "--noediting", "-i"]
        self.child: pexpect.spawn[str] = pexpect.spawn("bash", words, env=env, dimensions=(24, 500), encoding="utf-8", codec_errors="replace", cwd=ROOT)
        self.child.delaybeforesend = None
        self.text = ""
        self.left = False  # a command still runs here
        self.set_prompt()

    def set_prompt(self) -> None:
        """Make the shell's prompt ours; it never stands in the command itself."""
        self.child.sendline(f"PS1='{PROMPT[:4]}''{PROMPT[4:]}'; bind 'set enable-bracketed-paste off' 2>/dev/null; stty -echoctl")
        self.child.expect_exact(PROMPT, timeout=WAIT_S)

    def read(self) -> bool:
        """Take in what came within a moment; False if nothing did."""
        try:
            self.text += self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return False
        return True

    def wait_quiet(self, timeout_s: float) -> None:
        """Wait until something was printed and then nothing for QUIET_S."""
        end = time.monotonic() + timeout_s
        last = time.monotonic()
        while not self.text.partition("\n")[2] or time.monotonic() - last < QUIET_S:
            if self.read():
                last = time.monotonic()
            if time.monotonic() > end:
                raise Differs(f"the screen was not drawn within {timeout_s:.0f} s")

    def printed(self) -> list[str]:
        """Lines printed since the command was typed, without its echo and the prompts."""
        text = _ESCAPES.sub("", self.text).partition("\n")[2].replace(PROMPT, "")
        return [line.rstrip() for line in text.split("\n") if line.strip()]


class Reader:
    """Somebody who follows the page in lab `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.windows: dict[str, Window] = {"host#": Window()}
        self.everything = ""
        self.words: dict[str, str] = {}

    def follow(self, command: Command) -> None:
        """Do what one command line says; raises Differs."""
        for word, value in command.directives.items():
            if word.endswith(" is"):
                self.words[word.removesuffix(" is")] = re.findall(value, self.everything)[-1]
        text = self.localized(command.text)
        for word, value in self.words.items():
            text = re.sub(rf"\b{word}\b", value, text)
        if command.prompt.startswith("root@") and command.prompt not in self.windows:
            self.windows[command.prompt] = window = Window()
            window.child.sendline(f"{XOS} lab exec --name {self.name} {command.prompt[5:-1]} -- bash --norc --noprofile --noediting")
            window.child.expect(r"bash-.*# ", timeout=WAIT_S)
            window.set_prompt()
        opened = re.fullmatch(r"xos lab exec (n\d) --user alice -- bash", command.text)
        if opened:
            self.windows[f"alice@{opened[1]}$"] = window = Window()
            window.child.sendline(text)
            window.child.expect(r"@n\d:.*\$ ", timeout=WAIT_S)
            window.set_prompt()
            return
        window = self.windows[command.prompt]
        if window.left:
            self.wait_text(command.prompt, PROMPT)
            window.left = False
        window.text = ""
        window.child.sendline(text)
        self.press(command, window)
        if "leave" in command.directives:
            self.wait_lines(command.expected, window)
            window.left = True
            return
        self.wait(command, window)

    def localized(self, text: str) -> str:
        """Let a command speak to our lab in place of the default one."""
        return re.sub(r"\bxos lab (\w+)", rf"xos lab \1 --name {self.name}", text).replace("/lab/default/", f"/lab/{self.name}/")

    def press(self, command: Command, window: Window) -> None:
        """Type into the program that the command started, as its block says."""
        for _ in range(command.text.count("xos login") + 2 * command.text.count("xos vo accept") if "type" in command.directives else 0):
            window.child.expect("assword[^\n]*: ?", timeout=WAIT_S)
            window.text += f"{window.child.before}{window.child.after}"
            window.child.sendline(command.directives["type"])
        user = command.directives.get("password")
        if user:
            window.child.expect("Password[^\n]*: ?", timeout=WAIT_S)
            window.text += f"{window.child.before}{window.child.after}"
            passwords = json.loads((Path.home() / ".local/state/xtreemos/lab" / self.name / "users.json").read_text())
            window.child.sendline(passwords[user])
        if "once" in command.directives:
            self.wait_text(*command.directives["once"].split(" ", 1))
        elif "keys" in command.directives:
            window.wait_quiet(WAIT_S)
        if "keys" in command.directives:
            window.child.send(command.directives["keys"].encode().decode("unicode_escape"))
        for place, line in enumerate(command.expected):
            if line in KEYS:
                self.wait_job()
                self.wait_lines(command.expected[:place], window)
                window.child.send(KEYS[line])

    def wait_text(self, prompt: str, text: str) -> None:
        """Wait until a window shows a text."""
        window = self.windows[prompt]
        end = time.monotonic() + WAIT_S
        while text not in window.text:
            window.read()
            if time.monotonic() > end:
                raise Differs(f"the window {prompt} does not show {text!r}")

    def wait_lines(self, expected: list[str], window: Window) -> None:
        """Wait until exactly these lines have been printed."""
        end = time.monotonic() + WAIT_S
        while not matches(expected, window.printed()):
            window.read()
            if time.monotonic() > end:
                raise Differs(f"expected {expected} before a key, got {window.printed()}")

    def wait_job(self) -> None:
        """Wait until a job of alice runs."""
        end = time.monotonic() + WAIT_S
        words = [XOS, "lab", "exec", "--name", self.name, "n1", "--user", "alice", "--", "xos", "ps", "--json"]
        while '"running"' not in subprocess.run(words, capture_output=True, text=True, check=True).stdout:
            if time.monotonic() > end:
                raise Differs("no job came to run")

    def wait(self, command: Command, window: Window) -> None:
        """Wait for the prompt and for what is to be printed (a background job may print behind the prompt)."""
        expected = [line for line in command.expected if line.strip() and line not in KEYS]
        timeout_s = UP_WAIT_S if " lab up" in command.text else float(command.directives.get("within", WAIT_S))
        end = time.monotonic() + timeout_s
        while True:
            window.read()
            got = [line.replace(f" --name {self.name}", "").replace(f"lab {self.name}", "lab default") for line in window.printed()]
            got = [re.sub(rf"^{self.name} ", "default ", line) for line in got]
            if PROMPT in window.text and matches(expected, [line for line in got if line not in KEYS]):
                self.everything += "\n".join(got) + "\n"
                return
            if time.monotonic() > end:
                raise Differs(f"expected {expected}, got {got}")


def main() -> int:
    """Follow a page from its first to its last block; exit code 1 and the line if something differs."""
    parser = argparse.ArgumentParser(description="Type what a documentation page says, and compare.")
    parser.add_argument("page", nargs="?", default=str(ROOT / "docs" / "tutorial.md"))
    parser.add_argument("--name", default="tutorial", help="name of the lab; removed first and at the end")
    chosen = parser.parse_args()
    down = [XOS, "lab", "down", "--name", chosen.name]
    subprocess.run(down, check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    reader = Reader(chosen.name)
    todo = commands(Path(chosen.page).read_text(encoding="utf-8"))
    if any(command.prompt.startswith("root@") for command in todo):
        subprocess.run([XOS, "lab", "up", "--bare", "--nodes", "3", "--name", chosen.name], check=True, stdout=subprocess.DEVNULL)
    try:
        for command in todo:
            print(f"{time.monotonic() - began:6.1f}  {command.prompt} {command.text[:100]}", flush=True)
            try:
                reader.follow(command)
            except (Differs, pexpect.TIMEOUT, pexpect.EOF) as problem:
                print(f"{chosen.page}:{command.line}: {command.text}: {problem}")
                return 1
    finally:
        for window in reader.windows.values():
            window.child.close(force=True)
        subprocess.run(down, check=True, stdout=subprocess.DEVNULL)
    print(f"{len(todo)} commands as the page says, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
