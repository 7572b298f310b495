"""OpenSSH: a server and a client in two boxes joined by a cable; fresh and multiplexed connections."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from box import Box
from driver import Driver
from entry import Entry, Sizes

SERVER, CLIENT, PORT = "10.78.0.2", "10.78.0.1", 2222
SSHD_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {work}/host_key
PidFile none
AuthorizedKeysFile {work}/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
MaxStartups 200:30:400
MaxSessions 200
"""
SSH_CONFIG = """\
Host fresh mux aes light
  HostName {address}
  Port {port}
  User root
  IdentityFile {work}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {work}/known_hosts
  StrictHostKeyChecking yes
  LogLevel ERROR
Host aes
  Ciphers aes128-gcm@openssh.com
Host light
  KexAlgorithms curve25519-sha256
Host mux
  ControlMaster auto
  ControlPersist 600
  ControlPath /run/mux.sock
"""
SINGLES = (
    ("mux", "ssh, multiplexed"),
    ("fresh", "ssh, new connection"),
    ("light", "ssh, new connection, curve25519"),  # Debian's default key exchange (sntrup761) is most of a new connection's time
)


class Ssh:
    """Stock OpenSSH, no sandbox, root to root, keys on Ed25519."""

    name = "OpenSSH"

    def open(self, work: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.work = work
        self.boxes: list[Box] = []
        self.drivers: list[Driver] = []
        self._write_keys()
        self.server = self._box("ssh-server")
        self.client = self._box("ssh-client")
        self.client.join(self.server, f"{CLIENT}/24", f"{SERVER}/24")
        self.server.call(["mkdir", "-m", "755", "/run/sshd"])
        self._give_root_an_empty_home()
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        self.server.spawn([sshd, "-D", "-e", "-f", str(work / "sshd_config")], work / "sshd.log")
        self._driver(self.server)
        self.driver = self._driver(self.client)
        until_ready = 'for i in $(seq 100); do ssh -F "$0" -n fresh true && exit 0; read -t 0.1 < /dev/zero; done; exit 1'
        self.client.call(["bash", "-c", until_ready, str(work / "ssh_config")])
        self.client.call([*self._ssh("mux"), "-fNM"])

    def _box(self, name: str) -> Box:
        self.boxes.append(Box(name))
        return self.boxes[-1]

    def _driver(self, box: Box) -> Driver:
        self.drivers.append(Driver(box.inside([])))
        return self.drivers[-1]

    def _give_root_an_empty_home(self) -> None:
        """In the server's box only. bash under sshd reads ~/.bashrc, and whatever this machine's one does is not ssh's cost."""
        home, passwd = self.work / "home", self.work / "passwd"
        home.mkdir()
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        fields = [line.split(":") for line in lines]
        moved = [[*row[:5], str(home), *row[6:]] if row[0] == "root" else row for row in fields]
        passwd.write_text("".join(":".join(row) + "\n" for row in moved), encoding="utf-8")
        self.server.call(["mount", "--bind", str(passwd), "/etc/passwd"])

    def _write_keys(self) -> None:
        work = self.work
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True, timeout=30)
        host = (work / "host_key.pub").read_text(encoding="utf-8")
        (work / "known_hosts").write_text(f"[{SERVER}]:{PORT} {host}", encoding="utf-8")
        values = {"work": work, "port": PORT, "address": SERVER}
        (work / "sshd_config").write_text(SSHD_CONFIG.format(**values), encoding="utf-8")
        (work / "ssh_config").write_text(SSH_CONFIG.format(**values), encoding="utf-8")

    def _ssh(self, alias: str, *options: str) -> list[str]:
        return ["ssh", "-F", str(self.work / "ssh_config"), *options, alias]

    def entries(self) -> list[Entry]:
        size, driver = self.sizes, self.driver
        rows = []
        for alias, words in SINGLES:
            tty, plain = [*self._ssh(alias, "-tt"), "true"], [*self._ssh(alias, "-n"), "true"]
            rows.append(Entry("pty", words, driver, {"op": "run", "argv": tty, "pty": True}, size.rounds))
            rows.append(Entry("plain", words, driver, {"op": "run", "argv": plain}, size.rounds))
        for alias, words in SINGLES[1:]:
            cold = [*self._ssh(alias, "-tt"), "true"]
            rows.append(Entry("cold", words, driver, {"op": "run", "argv": cold, "pty": True}, size.cold_rounds))
        echo = [*self._ssh("mux", "-tt"), "stty raw -echo; printf READY; exec cat"]
        rows.append(
            Entry(
                "echo",
                "ssh",
                driver,
                {"op": "echo", "key": "ssh", "count": size.keystrokes},
                size.echo_rounds,
                before={"op": "echo_open", "key": "ssh", "argv": echo},
                after={"op": "echo_close", "key": "ssh"},
            )
        )
        for alias, words in (("fresh", "ssh"), ("aes", "ssh, -c aes128-gcm")):
            rows += pipe_entries(words, driver, lambda *command, at=alias: [*self._ssh(at), shlex.join(command)], size)
        return rows

    def facts(self) -> list[str]:
        version = subprocess.run(["ssh", "-V"], check=True, capture_output=True, text=True, timeout=10).stderr.strip()
        return [
            f"{version}; Debian's default ciphers unless said; no sandbox, no job record; client and server in two network namespaces"
        ]

    def configuration(self) -> dict[str, str]:
        values = {"work": "DIR", "port": PORT, "address": SERVER}
        return {"sshd_config": SSHD_CONFIG.format(**values), "ssh_config": SSH_CONFIG.format(**values)}

    def daemons(self) -> list[tuple[str, Driver]]:
        return [("ssh server (one connection open)", self.drivers[0])]

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        for box in reversed(self.boxes):
            box.close()


def pipe_entries(label: str, driver: Driver, command: Callable[..., list[str]], size: Sizes) -> list[Entry]:
    """The three throughput rows; `command(*argv)` gives the local command that runs argv on the far side."""
    many = size.pipe_bytes
    wait = {"timeout_s": 60.0 + size.pipe_bytes / 10e6}
    asks = {
        "pipe-in": {"argv": command("sh", "-c", "exec cat >/dev/null"), "send_bytes": many, "want_bytes": 0},
        "pipe-out": {"argv": command("head", "-c", str(many), "/dev/zero"), "send_bytes": 0, "want_bytes": many},
        "pipe-through": {"argv": command("cat"), "send_bytes": many, "want_bytes": many},
    }
    return [
        Entry(group, label, driver, {"op": "pipe", **ask, **wait}, size.pipe_rounds, amount=many) for group, ask in asks.items()
    ]
