"""The machines of a lab without our software on them: namespaces, network, power, terminal. Needs root."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
NAME = f"t5-{os.getpid()}"
CONNECT = """
import socket, sys
plug = socket.socket()
plug.settimeout(0.5)
try:
    plug.connect((sys.argv[1], 9))
except ConnectionRefusedError:
    print("reached")
except OSError as error:
    print("lost")
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")]


class Shell:
    """The commands as a user types them, with a HOME of their own."""

    def __init__(self, home):
        self.env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT / "src")}
        self.words = [sys.executable, "-m", "xtreemos.cli"]
        self.lab = Path(home) / ".local" / "state" / "xtreemos" / "lab" / NAME

    def __call__(self, *words, stdin="", code=0):
        done = subprocess.run(
            [*self.words, "lab", *words], env=self.env, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    def inside(self, node, *argv, stdin="", code=0):
        words = [sys.executable, "-m", "xtreemos.lab.enter", "--name", NAME, node, "--", *argv]  # `xos lab exec` without the rest
        done = subprocess.run(words, env=self.env, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    def reaches(self, node, other):
        return self.inside(node, "python3", "-c", CONNECT, other).strip() == "reached"

    def states(self):
        return {row["name"]: row["state"] for row in json.loads(self("list", "--name", NAME, "--json"))}


def leftovers(name):
    """What a lab could leave on the host."""
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/xtreemos-lab.{name}")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    named = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return groups + mounts + [line for line in named.splitlines() if name in line]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    shell = Shell(tmp_path_factory.mktemp("home"))
    try:
        shell("up", "--bare", "--nodes", "3", "--sites", "2", "--name", NAME)
        yield shell
    finally:
        shell("down", "--name", NAME)
    assert leftovers(NAME) == []
    assert not shell.lab.parent.exists()


def test_a_node_is_a_machine_of_its_own(lab):
    assert lab.inside("n1", "hostname") == "n1\n"
    assert lab.inside("n2", "sh", "-c", "ip -4 -br addr show eth0").split()[2] == "10.78.2.12/24"
    assert lab.inside("n1", "ps", "-eo", "pid", "--no-headers").split()[0] == "1"
    assert lab.inside("n1", "stat", "-fc", "%T", "/sys/fs/cgroup").strip() == "cgroup2fs"
    assert "/system" in lab.inside("n1", "cat", "/proc/self/cgroup")
    assert "10.78.1.13 n3" in lab.inside("n1", "cat", "/etc/hosts")
    assert lab.inside("n1", "cat", "/etc/machine-id") != lab.inside("n2", "cat", "/etc/machine-id")


def test_a_node_cannot_write_to_the_host(lab):
    script = "for d in / /usr /opt /srv /boot; do touch $d/xos-lab-test 2>/dev/null && echo $d; done; true"
    assert lab.inside("n1", "sh", "-c", script) == ""
    for folder in ("/etc", "/var/lib", "/tmp", "/run", "/home", "/root", "/dev/shm"):
        lab.inside("n1", "touch", f"{folder}/xos-lab-test")
        assert not Path(folder, "xos-lab-test").exists()
        lab.inside("n2", "test", "!", "-e", f"{folder}/xos-lab-test")


def test_own_folders_outlive_a_power_cut_and_the_others_do_not(lab):
    for folder in ("/var/lib/xtreemos", "/var/log/xtreemos", "/home", "/run", "/tmp"):
        lab.inside("n3", "touch", f"{folder}/kept")
    lab("kill", "n3", "--name", NAME)
    assert lab.states()["n3"] == "off"
    assert (lab.lab / "nodes" / "n3" / "state" / "kept").exists()
    assert "is off" in lab.inside("n3", "true", code=1)
    assert "is off" in lab("kill", "n3", "--name", NAME, code=1)
    lab("start", "n3", "--name", NAME)
    assert lab.inside("n3", "sh", "-c", "ls -d /var/lib/xtreemos/kept /home/kept; ls /run/kept /tmp/kept 2>/dev/null; true") == (
        "/home/kept\n/var/lib/xtreemos/kept\n"
    )
    assert lab.reaches("n1", "n3")


def test_xos_is_on_the_path_of_every_node(lab):
    path = lab.inside("n1", "sh", "-c", "echo $PATH")
    assert path.startswith(f"{sys.prefix}/bin:")
    assert lab.inside("n1", "bash", "-lc", "echo $PATH") == path


def test_nodes_reach_each_other_within_and_between_sites(lab):
    assert lab.reaches("n1", "n3")
    assert lab.reaches("n1", "n2")


def test_cut_node_is_lost_silently_until_healed(lab):
    lab("cut", "n2", "--name", NAME)
    assert lab.states()["n2"] == "cut"
    assert not lab.reaches("n1", "n2")
    assert not lab.reaches("n2", "n1")
    assert lab.reaches("n1", "n3")
    assert "UP" in lab.inside("n2", "ip", "-br", "link", "show", "eth0")
    lab("heal", "n2", "--name", NAME)
    assert lab.reaches("n1", "n2")


def test_frozen_node_stands_still_until_thawed(lab):
    ticking = "i=0; while :; do i=$((i+1)); echo $i > /tmp/ticks; sleep 0.01; done"
    lab.inside("n2", "sh", "-c", f"({ticking}) >/dev/null 2>&1 & while ! test -s /tmp/ticks; do sleep 0.01; done")
    ticks = Path(f"/proc/{init_pid(lab, 'n2')}/root/tmp/ticks")
    lab("freeze", "n2", "--name", NAME)
    assert lab.states()["n2"] == "frozen"
    before = ticks.read_text()
    time.sleep(0.1)
    assert ticks.read_text() == before
    assert "is frozen" in lab.inside("n2", "true", code=1)
    lab("thaw", "n2", "--name", NAME)
    end = time.monotonic() + 5
    while ticks.read_text() == before:
        assert time.monotonic() < end


def init_pid(lab, node):
    record = json.loads((lab.lab / "lab.json").read_text())
    return next(item["init"]["pid"] for item in record["nodes"] if f"n{item['index']}" == node)


def test_power_cut_kills_everything_and_says_nothing_to_the_network(lab):
    server = "import socket,time; s=socket.create_server(('',7)); c,_=s.accept(); c.recv(1); time.sleep(1000)"
    client = (
        "import socket,sys,time\n"
        "for _ in range(200):\n"
        "    try: c=socket.create_connection(('n2',7)); break\n"
        "    except OSError: time.sleep(0.02)\n"
        "c.send(b'x'); print('open', flush=True); sys.stdin.readline(); c.settimeout(0.5)\n"
        "try: print('told' if c.recv(1) == b'' else 'data')\n"
        "except TimeoutError: print('silence')\n"
    )
    lab.inside("n2", "sh", "-c", f'python3 -c "{server}" >/dev/null 2>&1 &')
    words = [*lab.words, "lab", "exec", "--name", NAME, "n1", "--", "python3", "-c", client]
    with subprocess.Popen(words, env=lab.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout.readline() == "open\n"
        pid = init_pid(lab, "n2")
        assert "power cut" in lab("kill", "n2", "--name", NAME)
        assert not Path(f"/proc/{pid}/root/etc").exists()
        peer.stdin.write("\n")
        peer.stdin.flush()
        assert peer.stdout.readline() == "silence\n"
    lab("start", "n2", "--name", NAME)


def test_added_node_is_known_to_the_others(lab):
    assert "n4" in lab("add", "--name", NAME)
    assert lab.reaches("n1", "n4")
    assert lab.reaches("n4", "n1")
    assert "has no site" in lab("add", "--name", NAME, "--site", "s9", code=2)


def test_delay_works_or_says_that_the_kernel_cannot(lab):
    words = [*lab.words, "lab", "delay", "n1", "n2", "100", "--name", NAME]
    done = subprocess.run(words, env=lab.env, capture_output=True, text=True, check=False)
    if done.returncode:
        assert (done.returncode, "sch_netem" in done.stderr) == (1, True)
        return
    begin = time.monotonic()
    assert lab.reaches("n1", "n2")
    assert time.monotonic() - begin > 0.2
    lab("delay", "n1", "n2", "0", "--name", NAME)


def test_lab_commands_at_the_same_time_take_turns(lab):
    words = [[*lab.words, "lab", verb, node, "--name", NAME] for node in ("n1", "n2", "n3") for verb in ("freeze", "thaw", "cut")]
    running = [subprocess.Popen(line, env=lab.env, stdout=subprocess.DEVNULL) for line in words]
    assert [process.wait(30) for process in running] == [0] * len(words)
    for node in ("n1", "n2", "n3"):
        lab("thaw", node, "--name", NAME)
        lab("heal", node, "--name", NAME)
    assert set(lab.states().values()) == {"running"}


def test_second_lab_of_the_name_is_refused(lab):
    assert "exists already" in lab("up", "--bare", "--name", NAME, code=1)


# exec


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exec_exits_as_the_command_does(lab, code):
    lab("exec", "--name", NAME, "n1", "--", "sh", "-c", f"exit {code}", code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_exec_dies_by_the_signal_that_killed_the_command(lab, number):
    lab("exec", "--name", NAME, "n1", "--", "sh", "-c", f"kill -{number.value} $$", code=-number)


def test_exec_passes_bytes_and_keeps_the_streams_apart(lab):
    words = [*lab.words, "lab", "exec", "--name", NAME, "n1", "--", "sh", "-c", "cat; echo oops >&2"]
    data = os.urandom(3_000_000)
    done = subprocess.run(words, env=lab.env, input=data, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (data, b"oops\n")


def test_exec_passes_signals_on(lab):
    script = "trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.02; done"
    words = [*lab.words, "lab", "exec", "--name", NAME, "n1", "--", "sh", "-c", script]
    with subprocess.Popen(words, env=lab.env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGUSR1)
        assert running.stdout.readline() == "got\n"
        assert running.wait(5) == 3


def test_exec_refuses_what_is_not_there_in_one_line(lab):
    assert lab.inside("n1", "no-such-command", code=127).startswith("xos: n1 has no command")
    assert "no node 'n9'" in lab.inside("n9", "true", code=1)
    assert "there is no lab" in lab("exec", "--name", "no-such-lab", "n1", "--", "true", code=1)
    assert "knows no user" in lab("exec", "--name", NAME, "n1", "--user", "nobody-here", "--", "true", code=1)


def test_exec_gives_no_descriptor_and_no_environment_of_ours(lab):
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    words = [*lab.words, "lab", "exec", "--name", NAME, "n1", "--", "sh", "-c", "ls /proc/self/fd; env"]
    done = subprocess.run(
        words, env={**lab.env, "SECRET_OF_THE_HOST": "x"}, capture_output=True, text=True, check=True, pass_fds=[writing]
    )
    os.close(reading)
    os.close(writing)
    assert done.stdout.split()[:4] == ["0", "1", "2", "3"]  # 3 is the folder that ls reads
    assert "SECRET_OF_THE_HOST" not in done.stdout
    assert "HOME=/root\n" in done.stdout


@pytest.fixture
def terminal(lab):
    words = [*lab.words[1:], "lab", "exec", "--name", NAME, "n1", "--", "bash", "--norc", "-i"]
    child = pexpect.spawn(lab.words[0], words, env={**lab.env, "TERM": "xterm"}, encoding="utf-8", timeout=15, dimensions=(33, 101))
    child.expect("# ")
    child.sendline("PS1='ready''> '; bind 'set enable-bracketed-paste off'")
    child.expect("ready> ")
    yield child
    child.close(force=True)


def test_terminal_is_one_of_the_node(terminal):
    terminal.sendline("tty; stty size; ps -o tty= -p $$")
    terminal.expect(r"/dev/pts/(\d+)\r\n33 101\r\npts/(\d+)")
    assert terminal.match[1] == terminal.match[2]
    terminal.setwinsize(44, 111)
    terminal.expect("ready> ")
    terminal.sendline("stty size")
    terminal.expect("44 111")


def test_job_control_works_in_the_terminal(terminal):
    terminal.sendline("sleep 1000")
    terminal.expect_exact("sleep 1000\r\n")
    waiting_for_foreground(terminal)
    terminal.sendcontrol("z")
    terminal.expect("Stopped .*sleep 1000")
    terminal.sendline("bg; jobs")
    terminal.expect("Running .*sleep 1000")
    terminal.sendline("fg")
    terminal.expect_exact("fg\r\nsleep 1000\r\n")
    waiting_for_foreground(terminal)
    terminal.sendcontrol("c")
    terminal.expect("ready> ")
    terminal.sendline("echo code=$?")
    terminal.expect("code=130")
    terminal.sendline("exit 5")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 5


def waiting_for_foreground(terminal):
    """Until `sleep` is what the inner terminal's keys go to: the relay shows it in no other way than ps inside would."""
    time.sleep(0.3)
    assert terminal.isalive()


def test_outer_terminal_is_restored_after_exit(lab):
    command = f"{' '.join(lab.words)} lab exec --name {NAME} n1 -- bash -c 'stty raw -echo; kill -9 $$'"
    script = f"stty -a > before; {command}; stty -a > after; echo done"
    child = pexpect.spawn("bash", ["-c", script], env=lab.env, encoding="utf-8", timeout=15, cwd=lab.env["HOME"])
    child.expect("done")
    child.close()
    home = Path(lab.env["HOME"])
    assert (home / "before").read_text() == (home / "after").read_text()


def test_output_before_the_end_is_not_lost_on_a_terminal(lab):
    words = [*lab.words[1:], "lab", "exec", "--name", NAME, "n1", "--", "seq", "20000"]
    child = pexpect.spawn(lab.words[0], words, env=lab.env, encoding="utf-8", timeout=20)
    text = child.read()
    child.close()
    assert text.split() == [str(number) for number in range(1, 20001)]


# removal


def test_down_removes_a_lab_that_crashed_half_way(tmp_path):
    shell = Shell(tmp_path)
    other = f"half-{os.getpid()}"
    process = subprocess.Popen(
        [*shell.words, "lab", "up", "--bare", "--nodes", "20", "--name", other], env=shell.env, stdout=subprocess.DEVNULL
    )
    group = next(Path("/sys/fs/cgroup").glob("**/cgroup.controllers")).parent / f"xtreemos-lab.{other}" / "n5"
    end = time.monotonic() + 20
    while not group.exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    pids = [int(line) for file in group.parent.glob("**/cgroup.procs") for line in file.read_text().split()]
    process.kill()
    process.wait()
    (shell.lab.parent / other / "lab.json").write_text("{half")
    assert "is gone" in shell("down", "--name", other)
    assert leftovers(other) == []
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not shell.lab.parent.exists()
    assert "there is no lab" in shell("down", "--name", other)


@pytest.mark.parametrize("top", ["/root", "/opt"])
def test_software_in_a_private_folder_is_visible_to_every_user_of_a_node(tmp_path, top):
    """A clone whose folders are closed to others: grid users still reach it at the same path, and cannot change it."""
    clone = Path(tempfile.mkdtemp(prefix="xos-lab-test-", dir=top))  # 0700
    name = f"hid-{os.getpid()}"
    try:
        shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__"))
        env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(clone / "src")}
        script = (
            "import sys\nfrom xtreemos.lab import lab, product, store\n"
            "try:\n"
            "    lab.up(sys.argv[1], nodes=1, sites=1, bare=True, say=print)\n"
            "    lab.kill(sys.argv[1], 'n1'); lab.start(sys.argv[1], 'n1')\n"
            "    made = store.load(sys.argv[1])\n"
            "    look = ['setpriv', '--reuid', '65534', '--clear-groups', 'python3', '-c', 'import xtreemos.names']\n"
            "    look = ['env', 'PYTHONDONTWRITEBYTECODE=1', f'PYTHONPATH={sys.argv[2]}', *look]\n"
            "    print(product.run_in(made, made.nodes[0], look))\n"
            "    print(product.run_in(made, made.nodes[0], ['touch', f'{sys.argv[2]}/x']))\n"
            "finally:\n"
            "    lab.down(sys.argv[1])\n"
        )
        words = ["/usr/bin/python3", "-c", script, name, str(clone / "src")]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "returncode=0" in done.stdout
        assert "Read-only file system" in done.stdout
    finally:
        shutil.rmtree(clone)


def test_without_root_everything_is_refused_with_code_77():
    home = "/nonexistent"
    words = [sys.executable, "-m", "xtreemos.cli", "lab"]
    env = {**os.environ, "HOME": home, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    for tail in (["up"], ["down"], ["list"], ["kill", "n1"], ["exec", "n1", "--", "true"]):
        done = subprocess.run([*words, *tail], env=env, user=65534, group=65534, capture_output=True, text=True, check=False)
        assert (done.returncode, "needs root" in done.stderr) == (77, True), done
