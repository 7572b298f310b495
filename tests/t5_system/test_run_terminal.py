"""Programs of another node on a real terminal in bash: size, keys, job control, full screens, and a sane terminal after every end."""

from __future__ import annotations

import time

import pexpect
import pyte
import pytest

from gridkit import PROMPT, Shell, until

VIM_MODE = "-- INSERT --"


class _Pyte(pyte.Screen):
    """pyte knows no private graphic renditions, which vim asks for."""

    def select_graphic_rendition(self, *attrs, private=False):
        if not private:
            super().select_graphic_rendition(*attrs)


class Screen:
    """What a person would see: the shell's bytes through a terminal emulator."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        rows, cols = shell.getwinsize()
        self.screen = _Pyte(cols, rows)
        self.stream = pyte.Stream(self.screen)

    def shows(self, text: str, timeout_s: float = 15.0) -> list[str]:
        """Wait until `text` is on the screen; return its lines."""
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.screen.display):
            assert time.monotonic() < deadline, f"no {text!r} on\n" + "\n".join(self.screen.display)
            try:
                self.stream.feed(self.shell.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
        return [line.rstrip() for line in self.screen.display]


@pytest.fixture
def sane(shell):
    """The terminal's settings after the test are those before it."""
    before = shell.settings()
    yield
    assert shell.settings() == before


def test_a_terminal_is_there_exactly_if_both_ends_are_one(shell):
    assert "/dev/pts/" in shell.do("r tty")
    assert shell.do("r tty < /dev/null").strip() == "not a tty"
    assert shell.do("r -- sh -c 'test -t 1 && echo yes || echo no' | cat").strip() == "no"
    assert shell.do("r -T -- sh -c 'test -t 1 && echo yes || echo no'").strip() == "no"
    assert shell.do("r -- sh -c 'test -t 0 && test -t 1 && test -t 2 && echo all'").strip() == "all"
    assert shell.do("r -- sh -c 'tty > /dev/null; stty size; echo $TERM' 2> /dev/null").split() == ["30", "100", "xterm"]


def test_standard_error_of_a_program_on_a_terminal_can_go_elsewhere(shell):
    """Beside a terminal on 0 and 1 a redirected 2 stays apart, as locally."""
    assert shell.do("r -- sh -c 'echo out; echo err >&2' 2> err.txt").split() == ["out"]
    assert shell.do("cat err.txt").split() == ["err"]


def test_the_size_is_carried_and_followed(shell, sane):
    shell.begin('trap "stty size" WINCH; stty size; while :; do sleep 0.05; done')
    shell.expect_exact("30 100")
    shell.setwinsize(41, 93)
    shell.expect_exact("41 93")
    shell.setwinsize(30, 100)
    shell.expect_exact("30 100")
    shell.send("\x03")
    shell.answer()


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x1c", 131)])
def test_a_typed_signal_ends_the_program(shell, sane, key, code):
    job = shell.begin("sleep 1000; echo SURVIVED")
    shell.send(key)
    assert "SURVIVED" not in shell.answer()
    assert shell.code() == code
    until(lambda: shell.grid.row(job).get("state") in (None, "exited"))


def test_ctrl_c_can_be_caught_by_the_program(shell, sane):
    shell.begin('trap "echo caught; exit 9" INT; while :; do sleep 0.05; done')
    shell.send("\x03")
    assert "caught" in shell.answer()
    assert shell.code() == 9


def test_ctrl_z_fg_and_bg_act_on_program_and_ghost(shell, sane):
    job = shell.begin("sleep 1000")
    state = lambda: shell.grid.row(job).get("state")  # noqa: E731
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    until(lambda: state() == "stopped")
    assert "Stopped" in shell.do("jobs")
    shell.do("bg")
    until(lambda: state() == "running")
    assert "Running" in shell.do("jobs")
    shell.sendline("fg")
    shell.expect_exact("sleep 1000")
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    until(lambda: state() == "stopped")
    shell.sendline("fg")
    until(lambda: state() == "running")
    shell.send("\x03")
    shell.answer()
    assert shell.code() == 130


def test_ctrl_z_stops_a_pipeline_of_both_sides_and_fg_goes_on(shell, sane):
    shell.sendline("r -- sh -c 'echo READ''Y >&2; sleep 1; echo through' | cat")
    shell.expect_exact("READY\r\n")
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    shell.sendline("fg")
    shell.expect_exact("through\r\n")
    shell.answer()
    assert shell.code() == 0


def test_a_stopped_program_can_be_killed(shell, sane):
    job = shell.begin("sleep 1000")
    shell.send("\x1a")
    shell.answer()
    shell.do("kill %1; wait %1")
    until(lambda: shell.grid.row(job).get("state") in (None, "exited"))
    shell.do("jobs")


def test_typed_lines_and_end_of_file_reach_the_program(shell, sane):
    shell.sendline("r -- sh -c 'stty -echo; echo READY; cat; echo over'")
    shell.expect_exact("READY\r\n")
    shell.send("hello grid\n")
    shell.expect_exact("hello grid\r\n")
    shell.send("\x04")
    shell.expect_exact("over\r\n")
    shell.answer()
    assert shell.code() == 0


def test_a_background_program_leaves_the_terminal_alone(shell):
    shell.do("r cat &")
    for number in range(3):
        assert f"line{number}" in shell.do(f"echo line{number}")
    shell.do("kill -9 %1; wait %1")


def test_an_interactive_shell_afar_has_its_own_job_control(shell, sane):
    shell.sendline("r -- bash --norc --noprofile --noediting -i")
    shell.expect(r"bash-[\d.]+\$ ")
    shell.sendline("hostname; sleep 1000")
    shell.expect_exact("n2\r\n")
    until(lambda: any("sleep 1000" in line for line in shell.grid.sh("ps ax", user=None, node="n2").stdout.decode().splitlines()))
    shell.send("\x1a")
    shell.expect_exact("Stopped")
    shell.expect(r"bash-[\d.]+\$ ")
    shell.sendline("fg")
    shell.expect_exact("sleep 1000\r\n")
    shell.send("\x03")
    shell.expect(r"bash-[\d.]+\$ ")
    shell.sendline("exit 4")
    shell.expect_exact(PROMPT)
    assert shell.code() == 4


def test_vim_edits_a_file_on_the_other_node(shell, sane):
    screen = Screen(shell)
    shell.sendline("r -- sh -c 'rm -f note; vim -n -u NONE -N note'")
    screen.shows("~")
    shell.send("i")
    shell.send("written by vim afar")
    screen.shows("written by vim afar")
    shell.send("\x1b")
    shell.send(":wq\r")
    shell.expect_exact(PROMPT)
    assert shell.do("r cat note").strip() == "written by vim afar"


def test_vim_can_be_stopped_and_resumed(shell, sane):
    shell.do("r -- sh -c 'seq 1 100 > lines.txt'")
    screen = Screen(shell)
    shell.sendline("r -- vim -n -u NONE -N lines.txt")
    screen.shows("100L")
    shell.send("\x1a")
    shell.expect_exact("Stopped")
    shell.expect_exact(PROMPT)
    shell.sync()
    again = Screen(shell)
    shell.sendline("fg")
    again.shows("29")
    shell.send(":q!\r")
    shell.expect_exact(PROMPT)
    assert shell.code() == 0


def test_less_pages_and_follows_the_size(shell, sane):
    screen = Screen(shell)
    shell.sendline("r -- sh -c 'seq 1 1000 | less'")
    screen.shows("29")
    shell.send("G")
    screen.shows("1000")
    shell.send("q")
    shell.expect_exact(PROMPT)
    assert shell.code() == 0


def test_htop_draws_and_quits(shell, sane):
    screen = Screen(shell)
    shell.sendline("r htop")
    lines = screen.shows("F10")
    assert any("PID" in line and "CPU%" in line for line in lines)
    shell.send("q")
    shell.expect_exact(PROMPT)
    assert shell.code() == 0


@pytest.mark.parametrize(
    "script",
    [
        "true",
        "exit 3",
        "kill -9 $$",
        "kill -SEGV $$",
        "stty raw -echo; exit 3",
        "stty -icanon; kill -9 $$",
        "tput smcup 2>/dev/null; kill -TERM $$",
    ],
)
def test_the_terminal_is_sane_after_every_end_of_the_program(shell, sane, script):
    shell.do(f"r -- sh -c '{script}'")


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP"])
def test_the_terminal_is_sane_when_the_ghost_is_killed_and_the_program_ends_too(shell, sane, name):
    job = shell.begin("stty raw -echo; sleep 1000")
    shell.grid.out(f"pkill -{name} -f '^xos run --node n2 .*echo JOB'")
    shell.answer()
    until(lambda: shell.grid.row(job).get("state") in (None, "exited"), "the program ended")


def test_nothing_typed_ahead_is_lost(shell):
    shell.send("r -- sh -c 'sleep 0.3; head -1'\nfor the program\necho for the shell\n")
    shell.expect_exact("for the shell\r\n")
    assert "for the program\r\n" in shell.before
    shell.expect_exact(PROMPT)
    shell.do("")
