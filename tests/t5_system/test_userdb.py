"""The userdb responder under the machine's own glibc: real getent and id, in a mount namespace with its own /run/systemd/userdb."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtreemos.foundation import userdb
from xtreemos.foundation.accounts import Account, Accounts, write_snapshot
from xtreemos.names import FIRST_GRID_UID

SRC = Path(__file__).parents[2] / "src"
RUN = "/run/systemd/userdb"
NSS = any(line.startswith("passwd:") and "systemd" in line for line in Path("/etc/nsswitch.conf").read_text().splitlines())
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace"),
    pytest.mark.skipif(not NSS, reason="libnss-systemd is not set up in /etc/nsswitch.conf"),
]
SECOND = 1.0  # a lookup takes about a millisecond; 45 s is what a hanging service would cost


def wait_until(condition, what, limit_s=10.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.02)


class Namespace:
    """A mount namespace whose /run/systemd/userdb is private; dies with its holder."""

    def __init__(self, folder):
        self.folder = folder
        self.snapshot = folder / "users.json"
        self.vos = folder / "vos"
        script = (
            f"mkdir -p {RUN} && mount -t tmpfs tmpfs {RUN} && mount -t tmpfs tmpfs /var/empty 2>/dev/null; echo ready; exec cat"
        )
        self.holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout.readline() == "ready\n"
        self.server = None

    def enter(self, *argv):
        return ["nsenter", "-t", str(self.holder.pid), "-m", "--", *argv]

    def run(self, *argv):
        started = time.monotonic()
        done = subprocess.run(self.enter(*argv), check=False, capture_output=True, text=True, timeout=60)
        return done, time.monotonic() - started

    def start(self):
        argv = [sys.executable, "-m", "xtreemos.foundation.userdb", "--snapshot", str(self.snapshot)]
        argv += ["--socket", f"{RUN}/{userdb.SERVICE}", "--vo-sockets", str(self.vos)]
        with (self.folder / "log").open("a") as log:
            self.server = subprocess.Popen(self.enter(*argv), env={**os.environ, "PYTHONPATH": str(SRC)}, stderr=log)
        wait_until(lambda: answers(self.socket), "the socket answers")
        return self.server

    @property
    def socket(self):
        return Path(f"/proc/{self.holder.pid}/root{RUN}/{userdb.SERVICE}")

    @property
    def child(self):
        [child] = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()
        return int(child)

    def stop(self):
        if self.server and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(10)

    def close(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        if self.server and self.server.poll() is None:
            self.server.kill()
            self.server.wait()
        self.holder.kill()
        self.holder.wait()
        self.holder.stdin.close()
        self.holder.stdout.close()


USERS = [Account("alice", "demo", FIRST_GRID_UID), Account("bob", "demo", FIRST_GRID_UID + 1)]
USERS += [Account("alice", "physics", FIRST_GRID_UID + 2), Account("daemon", "demo", FIRST_GRID_UID + 3)]


@pytest.fixture
def namespace(tmp_path):
    namespace = Namespace(tmp_path)
    write_snapshot(namespace.snapshot, USERS)
    namespace.vos.mkdir()
    try:
        yield namespace
    finally:
        namespace.close()


def answers(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return path.exists() and sock.connect_ex(str(path)) == 0


def call(path, method, **parameters):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        message = {"method": f"io.systemd.UserDatabase.{method}", "parameters": {"service": userdb.SERVICE, **parameters}}
        sock.sendall(json.dumps(message).encode() + b"\0")
        data = b""
        while not data.endswith(b"\0"):
            data += sock.recv(65536)
    return json.loads(data[:-1])


def test_getent_and_id_know_grid_users_and_unknown_names_are_answered_at_once(namespace):
    namespace.start()
    uid = FIRST_GRID_UID
    table = {
        ("getent", "passwd", "alice.demo"): f"alice.demo:x:{uid}:{uid}:alice.demo:/home/alice.demo:/bin/bash\n",
        ("getent", "passwd", str(uid)): f"alice.demo:x:{uid}:{uid}:alice.demo:/home/alice.demo:/bin/bash\n",
        ("getent", "group", "alice.demo"): f"alice.demo:x:{uid}:\n",
        ("getent", "group", str(uid + 2)): f"alice.physics:x:{uid + 2}:\n",
        ("id", "bob.demo"): f"uid={uid + 1}(bob.demo) gid={uid + 1}(bob.demo) groups={uid + 1}(bob.demo)\n",
        ("getent", "shadow", "alice.demo"): "alice.demo:*:::::::\n",
    }
    for argv, wanted in table.items():
        done, took = namespace.run(*argv)
        assert (done.stdout, done.returncode) == (wanted, 0), argv
        assert took < SECOND
    for name in ("mallory.demo", "alice", "a*", "alice.demo.demo", "x" * 40):
        done, took = namespace.run("getent", "passwd", name)
        assert (done.returncode, done.stdout) == (2, ""), name
        assert took < SECOND
    assert namespace.run("getent", "passwd", "root")[0].stdout.startswith("root:x:0:")
    assert "alice.demo" not in namespace.run("getent", "passwd")[0].stdout  # no enumeration


def test_a_socket_of_a_vo_gives_plain_names_of_that_vo_only(namespace):
    namespace.start()
    wait_until((namespace.vos / "physics" / userdb.SERVICE).exists, "the VO's socket")
    done, _ = namespace.run(
        "sh",
        "-c",
        f"mount --bind {namespace.vos}/demo {RUN} && id alice && getent passwd bob && ! getent passwd {FIRST_GRID_UID + 2}",
    )
    uid = FIRST_GRID_UID
    assert done.stdout == (
        f"uid={uid}(alice) gid={uid}(alice) groups={uid}(alice)\nbob:x:{uid + 1}:{uid + 1}:bob.demo:/home/bob.demo:/bin/bash\n"
    )
    path = namespace.vos / "demo" / userdb.SERVICE
    assert call(path, "GetUserRecord", userName="daemon")["error"].endswith("NoRecordFound")  # /etc/passwd has it
    assert call(path, "GetUserRecord", uid=uid + 3)["parameters"]["record"]["userName"] == "daemon.demo"


def test_a_new_snapshot_is_seen_at_the_next_lookup_and_a_bad_one_changes_nothing(namespace):
    namespace.start()
    write_snapshot(namespace.snapshot, [*USERS, Account("carol", "chem", FIRST_GRID_UID + 9)])
    assert namespace.run("id", "-u", "carol.chem")[0].stdout == f"{FIRST_GRID_UID + 9}\n"
    wait_until((namespace.vos / "chem" / userdb.SERVICE).exists, "the new VO's socket")
    namespace.snapshot.write_text('{"users": [{"user": "carol"')
    assert namespace.run("id", "-u", "carol.chem")[0].stdout == f"{FIRST_GRID_UID + 9}\n"
    write_snapshot(namespace.snapshot, USERS)
    wait_until(lambda: not (namespace.vos / "chem" / userdb.SERVICE).exists(), "the VO's socket goes")
    assert namespace.run("id", "-u", "carol.chem")[0].returncode == 1


@pytest.mark.parametrize("target", ["watcher", "server"])
def test_lookups_do_not_hang_when_a_process_is_killed(namespace, target):
    server = namespace.start()
    os.kill(server.pid if target == "watcher" else namespace.child, signal.SIGKILL)
    server.wait(10)
    done, took = namespace.run("getent", "passwd", "nobodyknows")
    assert done.returncode == 2
    assert took < SECOND
    namespace.start()
    assert namespace.run("id", "-u", "alice.demo")[0].returncode == 0


def test_a_stuck_server_loses_its_sockets(namespace):
    server = namespace.start()
    os.kill(namespace.child, signal.SIGSTOP)
    assert server.wait(10) == 1
    assert not namespace.socket.exists()
    assert not (namespace.vos / "demo" / userdb.SERVICE).exists()
    assert namespace.run("getent", "passwd", "nobodyknows")[1] < SECOND


def test_stopping_takes_the_sockets_away(namespace):
    server = namespace.start()
    namespace.stop()
    assert server.returncode == 0
    assert not namespace.socket.exists()


def test_silent_and_noisy_clients_hurt_nobody_else(namespace):
    namespace.start()
    clients = []
    for number in range(userdb.CONNECTIONS_MAX + 20):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(namespace.vos / "demo" / userdb.SERVICE))
        client.send((b"", b"{", b"\xff\0", b"[]\0")[number % 4])
        clients.append(client)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        clients[-1].sendall(b"x" * (8 << 20))
    assert namespace.run("id", "-u", "bob.demo")[0].stdout == f"{FIRST_GRID_UID + 1}\n"
    for client in clients:
        client.close()


def test_the_password_field_is_for_root_only(namespace):
    namespace.start()
    path = namespace.vos / "demo" / userdb.SERVICE
    assert call(path, "GetUserRecord", userName="alice")["parameters"]["record"]["privileged"] == {"hashedPassword": ["*"]}
    (namespace.folder).chmod(0o755)
    probe = "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.sendall(sys.argv[2].encode()+b'\\0');print(s.recv(9999)[:-1].decode())"
    message = {
        "method": "io.systemd.UserDatabase.GetUserRecord",
        "parameters": {"service": userdb.SERVICE, "userName": "alice.demo"},
    }
    done, _ = namespace.run(
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        probe,
        f"{RUN}/{userdb.SERVICE}",
        json.dumps(message),
    )
    answer = json.loads(done.stdout)["parameters"]
    assert answer["incomplete"] is True
    assert "privileged" not in answer["record"]


def test_uids_are_durable_distinct_and_never_reused(tmp_path):
    accounts = Accounts(tmp_path / "accounts.db")
    given = [accounts.uid_for(user, vo) for user in ("alice", "bob") for vo in ("demo", "physics")]
    accounts.close()
    assert given == list(range(FIRST_GRID_UID, FIRST_GRID_UID + 4))
    again = Accounts(tmp_path / "accounts.db")
    assert again.uid_for("bob", "demo") == given[2]
    assert again.uid_for("carol", "demo") == FIRST_GRID_UID + 4
    assert again.by_uid(given[3]) == Account("bob", "physics", given[3])
    assert again.by_uid(0) is None
    assert again.find("mallory", "demo") is None
    again.close()
