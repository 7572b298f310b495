"""Plain OpenSSH against the sshd of a node: the session's certificate opens it, programs are jobs, what is bad is refused and audited."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pexpect
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from xtreemos.vo.founding import IssuingKeys, load_vo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")

CONFIG = "/tmp/t5-ssh-config"
WAIT_S = 20.0
AUDIT = "/var/lib/xtreemos/node/vo/demo/audit.jsonl"


def until(condition, what: str):
    """Wait for the first true value of `condition()` and return it."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.05)
    return value


def configured(grid, user: str) -> str:
    """Write the user's configuration on n1; return the words of ssh."""
    path = f"{CONFIG}-{user}"
    grid.out(f"xos ssh-config > {path}", user=user)
    return f"-F {path}"


@pytest.fixture(scope="module")
def config(grid) -> str:
    return configured(grid, "alice")


def connect(grid, words: str, *, user: str = "alice", dimensions: tuple[int, int] = (30, 100)) -> pexpect.spawn:
    """Type `ssh WORDS` on n1 on a terminal of our own."""
    argv = grid.inside("n1", "bash", "-c", f"exec ssh {words}", user=user)
    env = {**grid.env, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    one = pexpect.spawn(argv[0], argv[1:], env=env, encoding="utf-8", timeout=WAIT_S, dimensions=dimensions)
    one.delaybeforesend = None
    return one


def audit_lines(grid, node: str, what: str) -> list[dict]:
    text = grid.file(node, AUDIT).read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["what"] == what]


# -- programs --------------------------------------------------------------------------------------------------------------------


def test_a_command_runs_in_the_sandbox_of_its_user_with_streams_and_code(grid, config):
    script = "cat; echo complaint >&2; hostname; id -un; echo $HOME; test ! -e /var/lib/xtreemos/node && cat /proc/1/comm; exit 7"
    done = grid.sh(f"ssh {config} n2 '{script}'", stdin=b"typed\n")
    assert done.returncode == 7
    assert done.stdout.decode().split() == ["typed", "n2", "alice", "/home/alice.demo", "init"]
    assert done.stderr == b"complaint\n"


def test_a_running_command_is_listed_as_a_job_and_a_kill_ends_the_session(grid, config):
    argv = grid.inside("n1", "bash", "-c", f"ssh {config} n2 'echo up $XOS_JOB; exec sleep 100'", user="alice")
    with subprocess.Popen(argv, env=grid.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as session:
        word, job = session.stdout.readline().split()
        assert word == "up"
        assert grid.row(job)["node"] == "n2"
        grid.out(f"xos kill {job}")
        assert session.wait(WAIT_S) == 255  # what ssh says of a program that died by a signal


def test_scp_sftp_and_pipes_bring_every_byte_both_ways(grid, config):
    script = f"""
        cd $(mktemp -d) && head -c 8000000 /dev/urandom > a
        scp -q {config} a n2:t5-a && scp -q {config} n2:t5-a b && cmp a b
        echo 'get t5-a c' | sftp -q {config} -b - n2 >/dev/null && cmp a c
        ssh {config} n2 'cat > t5-d; cat t5-d; rm t5-a t5-d' < a | cmp a - && echo same
    """
    assert grid.out("set -e\n" + script).endswith("same\n")


def test_an_interactive_shell_has_job_control_size_changes_and_signals(grid, config):
    shell = connect(grid, f"{config} n2")
    try:
        shell.expect(r"\$ ")
        shell.sendline("bind 'set enable-bracketed-paste off'; PS1='now''> '; stty size; tty")
        shell.expect(r"30 100\r\n/dev/pts/\d+\r\n")
        shell.expect("now> ")
        shell.sendline("sh -c 'echo be\"\"gins; exec sleep 300'")
        shell.expect("begins")
        shell.send("\x1a")
        shell.expect("Stopped")
        shell.sendline("fg")
        shell.expect("exec sleep 300'\r\n")
        shell.expect("exec sleep 300'\r\n")
        shell.send("\x03")
        shell.expect("now> ")
        shell.sendline("echo code=$?")
        shell.expect("code=130")
        shell.setwinsize(41, 90)
        shell.sendline("until [ \"$(stty size)\" = '41 90' ]; do :; done; echo re''sized")
        shell.expect("resized")
        shell.sendline("exit 9")
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 9
    finally:
        shell.close(force=True)


def test_an_interactive_shell_goes_on_when_xosd_is_killed(grid, config):
    shell = connect(grid, f"{config} n2")
    try:
        shell.expect(r"\$ ")
        shell.sendline("PS1='now''> '; x=kept")
        shell.expect("now> ")
        before = grid.pid("n2", "xosd")
        grid.sh(f"kill -9 {before}", user=None, node="n2")
        shell.sendline("for i in 1 2 3; do echo $x-$i; done")
        shell.expect("kept-1\r\nkept-2\r\nkept-3")
        assert until(lambda: grid.pid("n2", "xosd") != before, "xosd is started again")
        until(lambda: grid.sh(f"ssh {config} n2 true").returncode == 0, "ssh is offered again")
        shell.sendline("exit 4")
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 4
    finally:
        shell.close(force=True)


def test_a_job_that_ignores_the_hang_up_ends_when_the_client_is_killed(grid, config):
    argv = grid.inside("n1", "bash", "-c", f"exec ssh {config} n2 'trap \"\" HUP; echo $XOS_JOB; exec sleep 100'", user="alice")
    with subprocess.Popen(argv, env=grid.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as session:
        job = session.stdout.readline().strip()
        assert grid.row(job)
        session.terminate()
    until(lambda: grid.row(job).get("state") in (None, "exited"), "the job is gone")


# -- forwarding ------------------------------------------------------------------------------------------------------------------

SERVE = 'import socket; s=socket.create_server(("127.0.0.1", 8123)); print("up", flush=True); c,_=s.accept(); c.sendall(c.recv(9)*2)'
FETCH = "import socket; s=socket.create_connection(('127.0.0.1', 9123)); s.sendall(b'hello'); print(s.makefile().read())"
NODE = "import socket,time; s=socket.create_server(('127.0.0.1', 8124)); print('up', flush=True); time.sleep(60)"


def test_local_forwarding_leads_to_the_programs_of_the_session(grid, config):
    argv = grid.inside("n1", "bash", "-c", f"ssh {config} -L 9123:localhost:8123 n2 'python3 -c '\"'\"'{SERVE}'\"'\"", user="alice")
    with subprocess.Popen(argv, env=grid.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout.readline() == "up\n"
        assert grid.out(f'/usr/bin/python3 -c "{FETCH}"') == "hellohello\n"
        assert session.wait(WAIT_S) == 0


def test_local_forwarding_does_not_reach_the_loopback_of_the_node(grid, config):
    with subprocess.Popen(grid.inside("n2", "/usr/bin/python3", "-c", NODE), env=grid.env, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout.readline() == b"up\n"
            done = grid.sh(f"ssh {config} -W localhost:8124 n2 </dev/null")
            assert b"open failed" in done.stderr
        finally:
            server.terminate()


X_CLIENT = """
import os, re, socket, subprocess, struct
display = os.environ["DISPLAY"]
number = int(re.search(r":(\\d+)", display)[1])
cookie = bytes.fromhex(subprocess.check_output(["xauth", "list", display], text=True).split()[2])
name = b"MIT-MAGIC-COOKIE-1"
s = socket.create_connection(("localhost", 6000 + number))
s.sendall(struct.pack("<BxHHHHxx", 0x6C, 11, 0, len(name), len(cookie)) + name + b"\\0\\0" + cookie)
print(s.recv(100).decode())
"""


def test_x11_is_carried_to_the_display_of_the_client(grid, config):
    """A listener stands in for the X server: it sees the greeting of a client in the grid, with the cookie put right by ssh."""
    server = "import os, socket\nos.makedirs('/tmp/.X11-unix', exist_ok=True)\ns = socket.socket(socket.AF_UNIX)\n"
    server += "s.bind('/tmp/.X11-unix/X77')\ns.listen()\nprint('up', flush=True)\nc, _ = s.accept()\n"
    server += "assert c.recv(100)[:1] == b'l'\nc.sendall(b'display-77')\nos.unlink('/tmp/.X11-unix/X77')\n"
    argv = grid.inside("n1", "/usr/bin/python3", "-c", server, user="alice")
    with subprocess.Popen(argv, env=grid.env, stdout=subprocess.PIPE) as display:
        try:
            assert display.stdout.readline() == b"up\n"
            done = grid.sh(f"DISPLAY=:77 ssh {config} -Y n2 /usr/bin/python3 -", stdin=X_CLIENT.encode())
            assert done.stdout == b"display-77\n", done
            assert display.wait(WAIT_S) == 0
        finally:
            display.terminate()


# -- who gets in -----------------------------------------------------------------------------------------------------------------


def test_a_host_that_the_vo_does_not_vouch_for_is_refused(grid, config):
    key = "/tmp/t5-foreign"
    script = f"""
        rm -f {key} {key}.pub; ssh-keygen -q -t ed25519 -N '' -f {key}
        printf 'HostKey {key}\\nPidFile none\\nUsePAM no\\n' > {key}.conf
        mkdir -p /run/sshd; /usr/sbin/sshd -D -f {key}.conf -p 7999 -E /dev/null & echo $! > {key}.pid
    """
    server = subprocess.Popen(grid.inside("n2", "bash", "-c", script + "\nwait"), env=grid.env)
    try:
        until(lambda: grid.sh("ssh-keyscan -p 7999 n2 2>/dev/null | grep -q ed25519", user=None).returncode == 0, "a foreign sshd listens")
        done = grid.sh(f"ssh {config} -p 7999 n2 true")
        assert done.returncode == 255
        assert b"no matching host key" in done.stderr or b"Host key verification failed" in done.stderr
    finally:
        grid.sh(f"kill $(cat {key}.pid); rm -f {key}*", user=None, node="n2")
        server.wait(WAIT_S)


def test_the_agent_signs_log_ins_and_nothing_else(grid, config):
    script = """
        export SSH_AUTH_SOCK=$XDG_RUNTIME_DIR/xtreemos/ssh-demo.sock; cd $(mktemp -d)
        ssh-add -L > key.pub; grep -c alice.demo key.pub; echo text > file
        ssh-keygen -Y sign -q -n file -f key.pub file; echo rc=$?
        ssh-add -D 2>&1; ssh-keygen -q -t ed25519 -N '' -f own; ssh-add own 2>&1
    """
    said = grid.sh(script).stdout.decode()
    assert said.startswith("1\n")
    assert "rc=0" not in said
    assert "Failed to remove" in said
    assert "Could not add" in said


NOW = int(time.time())


def certificate(ca, public, **changes) -> str:
    """A certificate as the VO issues it, but for `changes`."""
    facts = {
        "serial": 77, "key_id": b"xos:demo:alice:" + b"ab" * 16, "principals": [b"alice.demo"],
        "after": NOW - 60, "before": NOW + 3600, "critical": (), "vo": b"demo", **changes,
    }  # fmt: skip
    builder = serialization.SSHCertificateBuilder().public_key(public).serial(facts["serial"]).type(serialization.SSHCertificateType.USER).key_id(facts["key_id"])
    builder = builder.valid_principals(facts["principals"]) if facts["principals"] else builder.valid_for_all_principals()
    builder = builder.valid_after(facts["after"]).valid_before(facts["before"])
    for name in facts["critical"]:
        builder = builder.add_critical_option(name, b"")
    for name, value in ((b"permit-pty", b""), (b"roles@xtreemos.org", b"member"), (b"sid@xtreemos.org", b"ab" * 16), (b"vo@xtreemos.org", facts["vo"])):
        builder = builder.add_extension(name, value)
    return builder.sign(ca).public_bytes().decode()


BAD = {
    "by a stranger": ("stranger", {}),
    "by the host CA": ("host", {}),
    "expired": ("user", {"after": NOW - 7200, "before": NOW - 3600}),
    "of the future": ("user", {"after": NOW + 3600, "before": NOW + 7200}),
    "lives too long": ("user", {"before": NOW + 10 * 86400}),
    "no principals": ("user", {"principals": []}),
    "a pattern": ("user", {"principals": [b"*"]}),
    "two principals": ("user", {"principals": [b"alice.demo", b"root"]}),
    "somebody else": ("user", {"principals": [b"bob.demo"]}),
    "unknown critical option": ("user", {"critical": (b"verify@example.org",)}),
    "another VO": ("user", {"vo": b"other"}),
    "bad session id": ("user", {"key_id": b"xos:demo:alice:no"}),
    "nobody's key id": ("user", {"key_id": b"alice"}),
}


def test_bad_certificates_are_refused_by_the_real_sshd_with_one_audit_line_each(grid, config):
    keys = IssuingKeys(load_vo(grid.file("n1", "/var/lib/xtreemos/node/vo/demo")))
    authorities = {"stranger": ed25519.Ed25519PrivateKey.generate(), "user": keys.ssh_user_ca, "host": keys.ssh_host_ca}
    key = ed25519.Ed25519PrivateKey.generate()
    folder = grid.home("n1", "t5-bad")
    folder.mkdir()
    try:
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        names = {"good": certificate(authorities["user"], key.public_key())}
        names |= {name.replace(" ", "-").replace("'", ""): certificate(authorities[ca], key.public_key(), **changes) for name, (ca, changes) in BAD.items()}
        for name, line in names.items():
            (folder / name).write_bytes(pem)
            (folder / f"{name}-cert.pub").write_text(line + "\n")
        grid.out("chmod 600 t5-bad/*")
        before = len(audit_lines(grid, "n2", "admit.ssh"))
        options = f"{config} -o IdentityAgent=none -o IdentitiesOnly=yes"
        script = f"""
            cd t5-bad; for one in *-cert.pub; do one=${{one%-cert.pub}}
            ssh {options} -i $one n2 true >/dev/null 2>&1 </dev/null; echo $one $?; done
        """
        codes = dict(line.split() for line in grid.out(script).splitlines())
        assert codes == {name: "0" if name == "good" else "255" for name in names}
        lines = audit_lines(grid, "n2", "admit.ssh")[before:]
        assert len(lines) == len(BAD), [line["why"] for line in lines]
        assert not any(line["allowed"] for line in lines)
        assert audit_lines(grid, "n2", "ssh.open")[-1]["who"] == "user alice@demo"
    finally:
        grid.out("rm -r t5-bad")


def test_a_suspended_user_loses_running_sessions_and_tunnels_and_gets_no_new_ones(grid, config):
    words = configured(grid, "bob")
    shell = connect(grid, f"{words} n2", user="bob")
    tunnel = connect(grid, f"{words} -N n2", user="bob")
    try:
        shell.expect(r"\$ ")
        shell.sendline("echo li''ve; sleep 100")
        shell.expect("live")
        notes = "cat /run/xtreemos/ssh/*"
        until(lambda: grid.out(notes, user=None, node="n2").count('"user":"bob"') == 2, "both connections are known")
        since = time.monotonic()
        grid.out("xos vo suspend bob")
        shell.expect(pexpect.EOF, timeout=WAIT_S)
        tunnel.expect(pexpect.EOF, timeout=WAIT_S)
        assert time.monotonic() - since < 4  # 2 s from the suspension itself, the command included in this
        refused = grid.sh(f"ssh {words} n2 true", user="bob")
        assert refused.returncode == 255
    finally:
        grid.sh("xos vo restore bob")
        grid.sh("xos logout", user="bob")  # the next command logs him in again
        for one in (shell, tunnel):
            one.close(force=True)
