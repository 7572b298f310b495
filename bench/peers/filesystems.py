"""Network file systems as contenders: a server and a client in two boxes joined by a cable, each with its package's defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from box import Box
from peers.ssh import PORT, SSHD_CONFIG

LOAD = Path(__file__).resolve().parents[1] / "fsload.py"
SERVER, CLIENT = "10.79.0.2", "10.79.0.1"
READY_S = 60.0


class FileSystem(ABC):
    """One contender. `open` leaves `mounted` usable; `close` leaves nothing."""

    name = ""
    mounted: Path

    @abstractmethod
    def open(self, work: Path) -> None:
        """Set it up, with its state below `work`."""

    @abstractmethod
    def run(self, argv: list[str], timeout_s: float) -> str:
        """Run a command where the file system is mounted; RuntimeError with its words if it fails."""

    @abstractmethod
    def close(self) -> None:
        """Take everything down; also after a failed `open`."""

    @abstractmethod
    def facts(self) -> str:
        """One line: version, what is durable when."""

    def load(self, folder: str, group: str, scale: float, timeout_s: float) -> dict[str, float]:
        """Run one group of loads in `folder`."""
        said = self.run([sys.executable, "-I", str(LOAD), folder, "--only", group, "--scale", str(scale)], timeout_s)
        rates: dict[str, float] = json.loads(said.strip().splitlines()[-1])
        return rates

    def fresh_folder(self) -> str:
        """Make a folder for one turn."""
        folder = f"{self.mounted}/turn-{time.time_ns()}"
        self.run(["mkdir", folder], 60)
        return folder

    def remove_folder(self, folder: str) -> None:
        """Remove it."""
        self.run(["rm", "-rf", folder], 600)

    def forget_caches(self) -> None:
        """Drop the page cache of the machine, all servers' included; those who cache elsewhere drop that too."""
        subprocess.run(["sync"], check=True, timeout=300)
        Path("/proc/sys/vm/drop_caches").write_text("3\n")

    def memory_mib(self) -> float:
        """Resident memory of all its daemons."""
        return 0.0


class LocalDisk(FileSystem):
    """The disk that all the others store on."""

    name = "local"

    def open(self, work: Path) -> None:
        """A folder."""
        work.mkdir(parents=True)
        self.mounted = work

    def run(self, argv: list[str], timeout_s: float) -> str:
        """Run it here."""
        return _run(argv, timeout_s)

    def facts(self) -> str:
        """Which file system."""
        kind = _run(["stat", "-f", "-c", "%T", str(self.mounted)], 10).strip()
        return f"local: {kind} of this machine; what the others store on"

    def close(self) -> None:
        """Nothing stays but `work`, which the caller removes."""


class Boxed(FileSystem):
    """A peer with a server box and a client box."""

    def open(self, work: Path) -> None:
        """Make the boxes, then the peer's own `serve` and `mount`."""
        work.mkdir(parents=True)
        self.work = work
        self.boxes: list[Box] = []
        self.server, self.client = self._box("server"), self._box("client")
        self.client.join(self.server, f"{CLIENT}/24", f"{SERVER}/24")
        self.mounted = work / "mnt"
        self.mounted.mkdir()
        self.serve()
        self.mount()

    def _box(self, kind: str) -> Box:
        self.boxes.append(Box(f"{type(self).__name__.lower()}-{kind}"))
        return self.boxes[-1]

    @abstractmethod
    def serve(self) -> None:
        """Start the server's daemons."""

    @abstractmethod
    def mount(self) -> None:
        """Mount on the client."""

    def run(self, argv: list[str], timeout_s: float) -> str:
        """Run it in the client's box."""
        return self.client.call(argv, timeout_s)

    def forget_caches(self) -> None:
        """Mount again, and drop the page cache."""
        self.client.call(["umount", str(self.mounted)], 120)
        super().forget_caches()
        self.mount()

    def memory_mib(self) -> float:
        """Of all processes in the two boxes."""
        total = 0
        for box in self.boxes:
            said = box.call(["sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null | grep ^VmRSS || true"])
            total += sum(int(line.split()[1]) for line in said.splitlines())
        return total / 1024

    def close(self) -> None:
        """The kernel ends what is in the boxes."""
        for box in reversed(getattr(self, "boxes", [])):
            box.close()

    def _until(self, what: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + READY_S
        while not ready():
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not come up within {READY_S:.0f} s")
            time.sleep(0.2)

    def _can(self, box: Box, argv: list[str]) -> bool:
        try:
            box.call(argv, 30)
        except (RuntimeError, subprocess.SubprocessError):
            return False
        return True


class Sshfs(Boxed):
    """sshfs with its defaults over one ssh connection."""

    name = "sshfs"

    def serve(self) -> None:
        """An sshd with a key for us."""
        work = self.work
        for key in ("host_key", "user_key"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / key)], 30)
        (work / "known_hosts").write_text(f"[{SERVER}]:{PORT} {(work / 'host_key.pub').read_text()}")
        text = SSHD_CONFIG.format(work=work, port=PORT, address=SERVER) + "Subsystem sftp internal-sftp\n"
        (work / "sshd_config").write_text(text)
        (work / "export").mkdir()
        self.server.call(["mkdir", "-m", "755", "/run/sshd"])
        self.server.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", str(work / "sshd_config")], work / "sshd.log")

    def mount(self) -> None:
        """Mount; the first try may come before sshd listens."""
        options = f"IdentityFile={self.work}/user_key,UserKnownHostsFile={self.work}/known_hosts,allow_other,Port={PORT}"
        argv = ["sshfs", "-o", options, f"root@{SERVER}:{self.work}/export", str(self.mounted)]
        self._until("sshd", lambda: self._can(self.client, argv))

    def facts(self) -> str:
        """Its version."""
        return f"{_run(['sshfs', '--version'], 10).splitlines()[0]}: defaults (caches up to 20 s old); creates are not durable when they return"


class Gluster(Boxed):
    """GlusterFS, one brick."""

    name = "GlusterFS"

    def serve(self) -> None:
        """One glusterd with its state in `work`, one volume of one brick."""
        for place in ("/var/lib/glusterd", "/var/log/glusterfs"):
            own = self.work / place.replace("/", "_")
            own.mkdir()
            Path(place).mkdir(exist_ok=True)
            for box in self.boxes:
                box.call(["mount", "--bind", str(own), place])
        self.server.call(["mkdir", "-p", "/run/gluster"])
        self.server.spawn(["glusterd", "-N"], self.work / "glusterd.log")
        brick = self.work / "brick"
        brick.mkdir()
        gluster = ["gluster", "--mode=script"]
        self._until("glusterd", lambda: self._can(self.server, [*gluster, "pool", "list"]))
        self.server.call([*gluster, "volume", "create", "bench", f"{SERVER}:{brick}", "force"])
        self.server.call([*gluster, "volume", "start", "bench"])

    def mount(self) -> None:
        """The FUSE client."""
        argv = ["glusterfs", f"--volfile-server={SERVER}", "--volfile-id=bench", str(self.mounted)]
        self.client.call(argv)
        self._until("the mount", lambda: self._can(self.client, ["mountpoint", "-q", str(self.mounted)]))

    def facts(self) -> str:
        """Its version."""
        return (
            f"{_run(['gluster', '--version'], 10).splitlines()[0]}: one brick, defaults; creates are not durable when they return"
        )


class Moose(Boxed):
    """MooseFS, one master and one chunk server."""

    name = "MooseFS"

    def serve(self) -> None:
        """Master and chunk server with their state in `work`."""
        for kind in ("master", "chunk", "disk"):
            (self.work / kind).mkdir()
            shutil.chown(self.work / kind, "mfs", "mfs")
        (self.work / "master" / "metadata.mfs").write_bytes(b"MFSM NEW")  # what the package calls an empty file system
        shutil.chown(self.work / "master" / "metadata.mfs", "mfs", "mfs")
        for folder in (self.work, *self.work.parents):
            if folder.stat().st_mode & 0o001 == 0:
                folder.chmod(folder.stat().st_mode | 0o011)  # the daemons run as user mfs
        (self.work / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0:0\n* . rw\n")
        (self.work / "hdd.cfg").write_text(f"{self.work}/disk\n")
        master = f"DATA_PATH={self.work}/master\nEXPORTS_FILENAME={self.work}/exports.cfg\nMATOML_LISTEN_HOST={SERVER}\n"
        (self.work / "master.cfg").write_text(master + "WORKING_USER=mfs\nWORKING_GROUP=mfs\n")
        chunk = f"DATA_PATH={self.work}/chunk\nHDD_CONF_FILENAME={self.work}/hdd.cfg\nMASTER_HOST={SERVER}\n"
        (self.work / "chunk.cfg").write_text(chunk + "WORKING_USER=mfs\nWORKING_GROUP=mfs\n")
        self.server.call(["mfsmaster", "-c", f"{self.work}/master.cfg", "start"], 60)
        self.server.call(["mfschunkserver", "-c", f"{self.work}/chunk.cfg", "start"], 60)

    def mount(self) -> None:
        """The FUSE client; retried until master and chunk server know each other."""
        argv = ["mfsmount", str(self.mounted), "-H", SERVER]
        self._until("mfsmaster", lambda: self._can(self.client, argv))
        probe = f"echo x > {self.mounted}/.probe && sync {self.mounted}/.probe && rm {self.mounted}/.probe"
        self._until("the chunk server", lambda: self._can(self.client, ["sh", "-c", probe]))

    def facts(self) -> str:
        """Its version."""
        said = subprocess.run(["mfsmaster", "-v"], capture_output=True, text=True, check=False, timeout=10)
        version = (said.stdout + said.stderr).strip().splitlines()[0]
        return f"MooseFS {version}: one master, one chunk server, defaults; creates are not durable when they return"


class Ours(FileSystem):
    """XtreemFS in a lab of three nodes, as alice: her home on n1, whose OSD keeps it."""

    name = "XtreemFS"
    node = "n1"

    def open(self, work: Path) -> None:
        """Bring the lab up and log in."""
        self.lab = f"benchfs{os.getpid()}"
        self.xos = str(Path(__file__).resolve().parents[2] / ".venv" / "bin" / "xos")
        _run([self.xos, "lab", "up", "--name", self.lab, "--nodes", "3"], 180)
        self.mounted = Path(_run(self._in(["pwd"]), 60).strip())
        del work

    def _in(self, argv: list[str], node: str | None = None) -> list[str]:
        return [self.xos, "lab", "exec", "--name", self.lab, node or self.node, "--user", "alice", "--", *argv]

    def run(self, argv: list[str], timeout_s: float) -> str:
        """Run it as alice on the node."""
        return _run(self._in(argv), timeout_s)

    def facts(self) -> str:
        """What is durable when."""
        return "XtreemFS: three nodes, TLS, every metadata change on disk before it is answered, data at fsync; permission checked by the VO"

    def memory_mib(self) -> float:
        """MRC, OSD and mount process of the three nodes."""
        total = 0
        for node in ("n1", "n2", "n3"):
            count = "for p in $(pgrep -f xtreemos.xtreemfs); do grep ^VmRSS /proc/$p/status; done"
            said = _run([self.xos, "lab", "exec", "--name", self.lab, node, "--", "sh", "-c", count], 60)
            total += sum(int(line.split()[1]) for line in said.splitlines())
        return total / 1024

    def close(self) -> None:
        """Take the lab down."""
        if hasattr(self, "lab"):
            _run([self.xos, "lab", "down", "--name", self.lab], 120)


def _run(argv: list[str], timeout_s: float) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)[:200]}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


CONTENDERS: dict[str, Callable[[], FileSystem]] = {
    "local": LocalDisk,
    "xtreemfs": Ours,
    "sshfs": Sshfs,
    "gluster": Gluster,
    "moose": Moose,
}
