"""Job control of ghosts under real shells on a real pty: what the shell sees of the ghost and what happens to the program agree."""

from __future__ import annotations

import os
import re
import signal

import pytest

from ghostkit import PROMPT, Shell, state, until, watches_signals


@pytest.fixture
def shell(ghost, agent):
    one = Shell(ghost, agent)
    yield one
    one.end()


def begin(shell: Shell, program: str = "sleep 1000", end: str = "", options: str = "") -> int:
    """Start a program in the fore- or background; return its process id on the far side.

    `exec`, because a signal that meets dash between its echo and its vfork is now and then lost, grid or no grid.
    """
    shell.sendline(f"xos run {options} -- sh -c 'echo PID=$$; exec {program}' {end}")
    if end:  # the prompt comes before or after what a background program prints
        shell.expect_exact(PROMPT)
        early = re.search(r"PID=(\d+)", shell.before)
        if early:
            return int(early[1])
    shell.expect(r"PID=(\d+)\r")
    return int(shell.match[1])


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x1c", 131)])
def test_a_typed_signal_ends_program_and_ghost(shell, key, code):
    pid = begin(shell)
    shell.send(key)
    shell.answer()
    assert shell.code() == code
    until(lambda: not state(pid))


@pytest.mark.parametrize("options", ["", "-T"])
def test_ctrl_z_fg_and_bg_act_on_both(shell, options):
    pid = begin(shell, options=options)
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    until(lambda: state(pid) == "T")
    assert "Stopped" in shell.do("jobs -l")
    shell.do("bg")
    until(lambda: state(pid) == "S")
    assert "Running" in shell.do("jobs -l")
    shell.sendline("fg")
    shell.expect_exact("xos run")
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    until(lambda: state(pid) == "T")
    shell.sendline("fg")
    until(lambda: state(pid) == "S")
    shell.send("\x03")
    shell.answer()
    assert shell.code() == 130


def test_kill_stop_and_cont_are_mirrored(shell):
    pid = begin(shell, end="&")
    for _ in range(2):
        shell.do("kill -STOP %1")
        until(lambda: state(pid) == "T")
        until(lambda: "Stopped" in shell.do("jobs"))
        shell.do("kill -CONT %1")
        until(lambda: state(pid) == "S")
        until(lambda: "Running" in shell.do("jobs"))
    shell.do("kill -9 %1; wait %1")
    assert shell.code() == 137
    until(lambda: not state(pid))


def test_kill_then_wait_gives_143(shell):
    pid = begin(shell, end="&")
    shell.do("kill %1; wait %1")
    assert shell.code() == 143
    until(lambda: not state(pid))


def test_a_killed_stopped_job_ends(shell):
    pid = begin(shell)
    shell.send("\x1a")
    shell.answer()
    shell.do("kill %1; wait %1")
    until(lambda: not state(pid))
    until(lambda: "sleep" not in shell.do("jobs"))


def test_a_program_that_stops_itself_stops_its_ghost(shell):
    shell.sendline("xos run -- sh -c 'kill -STOP $$; echo went on; exit 5'")
    assert "Stopped" in shell.answer()
    assert "went on" in shell.do("fg")
    assert shell.code() == 5


def test_a_program_continued_elsewhere_wakes_its_ghost(shell):
    pid = begin(shell)
    shell.send("\x1a")
    shell.answer()
    until(lambda: state(pid) == "T")
    os.killpg(os.getpgid(pid), signal.SIGCONT)
    until(lambda: "Running" in shell.do("jobs"))
    shell.do("kill -9 %1")
    until(lambda: not state(pid))


def test_a_stopped_program_killed_elsewhere_ends_its_ghost(shell):
    pid = begin(shell)
    shell.send("\x1a")
    shell.answer()
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    until(lambda: "Killed" in shell.do("jobs"))


def test_typed_text_and_end_of_file_reach_a_filter(shell):
    shell.sendline("xos run cat | cat")
    shell.sendline("hello grid")
    shell.expect_exact("hello grid")
    shell.expect_exact("hello grid")  # once echoed by the terminal, once by cat
    shell.send("\x04")
    shell.answer()
    assert shell.code() == 0


def test_typed_text_and_end_of_file_reach_a_far_terminal(shell):
    shell.sendline("xos run -- sh -c 'stty -echo; echo READY; cat'")
    shell.expect_exact("READY\r\n")
    shell.send("hello pty\n\x04")
    shell.answer()
    assert shell.before == "hello pty\r\n"
    assert shell.code() == 0


def test_what_is_typed_before_the_program_runs_reaches_it(shell):
    shell.send("xos run -- sh -c 'echo READY; cat; echo OVER'\nahead\n\x04")
    shell.expect_exact("OVER\r\n")
    assert "ahead\r\n" in shell.before
    shell.expect_exact(PROMPT)


def test_a_background_cat_leaves_the_terminal_alone(shell):
    shell.do("xos run cat &")
    for number in range(5):
        assert f"line{number}" in shell.do(f"echo line{number}")
    shell.do("kill -9 %1")


def test_a_running_background_program_gets_input_after_fg(shell):
    shell.sendline("xos run -- sh -c 'stty -echo; echo READY; read x; echo got $x' &")
    shell.expect_exact("READY\r\n")
    shell.do("true")
    shell.sendline("fg")
    shell.expect_exact("xos run")
    shell.expect_exact("\n")
    shell.send("typed\n")
    shell.expect_exact("got typed")
    shell.expect_exact(PROMPT)


def test_tostop_stops_a_background_writer(shell):
    shell.do("stty tostop")
    shell.do("xos run -T -- sh -c 'echo x; sleep 1000' &")
    until(lambda: "Stopped" in shell.do("jobs"))
    shell.do("stty -tostop; kill -9 %1")


def test_the_far_terminal_has_the_size_of_ours_and_follows(shell):
    shell.sendline("""xos run -- sh -c 'trap "stty size" WINCH; stty size; while :; do sleep 0.05; done'""")
    shell.expect_exact("30 100")
    shell.setwinsize(40, 90)
    shell.expect_exact("40 90")
    shell.send("\x03")
    shell.answer()


def test_a_size_changed_during_a_stop_is_told_on_fg(shell):
    shell.sendline("""xos run -- python3 -uc 'import signal, os; signal.signal(signal.SIGCONT, lambda *_: print(*os.get_terminal_size())); print("READY")
while 1: signal.pause()'""")  # a shell loop would be in vfork now and then, where nothing stops
    shell.expect_exact("READY\r\n")
    shell.send("\x1a")
    shell.answer()
    shell.setwinsize(33, 77)
    shell.sendline("fg")
    shell.expect_exact("77 33")
    shell.send("\x03")
    shell.answer()


@pytest.mark.parametrize("program", ["true", "false", "kill -9 $$", "kill -TERM $$", "stty raw -echo; exit 3", "kill -STOP $$"])
def test_the_terminal_is_as_before_after_every_end(shell, program):
    before = shell.settings()
    shell.do(f"xos run -- sh -c '{program}'")
    assert shell.settings() == before
    shell.do("kill -9 %1 2>/dev/null")
    assert shell.settings() == before


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "STOP"])
def test_the_terminal_is_as_before_when_the_ghost_is_signalled(shell, name):
    before = shell.settings()
    begin(shell)
    ghost = foreground(shell)
    os.kill(ghost, getattr(signal, f"SIG{name}"))
    shell.expect_exact(PROMPT)
    assert shell.settings() == before
    shell.do("kill -9 %1 2>/dev/null")


def foreground(shell: Shell) -> int:
    """The ghost: leader of the terminal's foreground group."""
    found = []
    until(lambda: (found.append(os.tcgetpgrp(shell.child_fd)) or found[-1] != shell.pid))
    return found[-1]


def test_a_shell_without_line_editing_gets_a_sane_terminal_after_sigkill(ghost, agent):
    """dash does not restore settings itself: the agent does."""
    shell = Shell(ghost, agent, "dash")
    try:
        before = shell.settings()
        begin(shell)
        os.kill(foreground(shell), signal.SIGKILL)
        shell.expect_exact(PROMPT)
        until(lambda: shell.settings() == before)
    finally:
        shell.end()


def test_pipelines_report_each_member(shell):
    assert "y\n" in shell.do("xos run yes | head -1; echo ${PIPESTATUS[@]} > /tmp/xos-ps.$$; cat /tmp/xos-ps.$$; rm /tmp/xos-ps.$$")
    assert "141 0" in shell.before
    assert "141 0" in shell.do("yes | xos run head -1 > /dev/null; echo ${PIPESTATUS[@]}")
    assert "7 0 9" in shell.do("xos run sh -c 'exit 7' | xos run true | xos run sh -c 'exit 9'; echo ${PIPESTATUS[@]}")


def test_ctrl_c_ends_a_script_as_with_a_local_program(shell):
    shell.sendline("""bash -c 'xos run -- sh -c "echo READY; exec sleep 1000"; echo SURVIVED'""")
    shell.expect_exact("READY\r\n")
    shell.send("\x03")
    assert "SURVIVED" not in shell.answer()
    assert shell.code() == 130


def test_ctrl_z_stops_a_whole_script(shell):
    shell.sendline("""bash -c 'xos run -- sh -c "echo READY; exec sleep 1000"; echo SURVIVED'""")
    shell.expect_exact("READY\r\n")
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    shell.do("kill -9 %1")


def test_ctrl_c_twice_while_no_node_answers_ends_the_ghost(shell):
    """The first one is kept for the program, which may be running already; the second gives up."""
    shell.sendline("xos wait j1")
    until(lambda: os.tcgetpgrp(shell.child_fd) != shell.pid)
    until(lambda: watches_signals(os.tcgetpgrp(shell.child_fd)))
    shell.send("\x03")
    shell.expect_exact("^C")
    shell.send("\x03")
    shell.answer()
    assert shell.code() == 130


def test_ctrl_z_while_no_node_answers_stops_the_ghost(shell):
    shell.sendline("xos wait j1")
    until(lambda: os.tcgetpgrp(shell.child_fd) != shell.pid)
    until(lambda: watches_signals(os.tcgetpgrp(shell.child_fd)))
    shell.send("\x1a")
    assert "Stopped" in shell.answer()
    shell.do("kill -9 %1")


def test_ctrl_s_and_ctrl_c_do_not_hang(shell):
    shell.sendline("xos run -T yes")
    shell.expect_exact("y\r\ny\r\n")
    shell.send("\x13")
    shell.send("\x03")
    shell.answer()
    assert shell.code() == 130


@pytest.mark.parametrize("name", ["dash", "zsh"])
def test_other_shells_stop_continue_and_end_ghosts(ghost, agent, name):
    if not any(os.access(f"{folder}/{name}", os.X_OK) for folder in ("/usr/bin", "/bin")):
        pytest.skip(f"{name} is not installed")
    shell = Shell(ghost, agent, name)
    try:
        pid = begin(shell)
        shell.send("\x1a")
        shell.expect("(?i)(stopped|suspended)")
        shell.expect_exact(PROMPT)
        until(lambda: state(pid) == "T")
        shell.sendline("fg")
        until(lambda: state(pid) == "S")
        shell.send("\x03")
        shell.expect_exact(PROMPT)
        assert shell.code() == 130
        until(lambda: not state(pid))
    finally:
        shell.end()


def test_hang_up_of_the_terminal_reaches_the_program(ghost, agent):
    shell = Shell(ghost, agent)
    pid = begin(shell)
    shell.end()
    until(lambda: not state(pid))
