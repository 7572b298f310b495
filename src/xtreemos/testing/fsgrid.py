"""A small file system of real processes on this machine, without a grid: one MRC, some OSDs, some mounts, each mount "a node" of its own.

The directory is a folder; every server is reached by its Unix socket from everywhere. Root only. Use it as a context manager: whatever happens,
mounts, processes and (if it made it) the folder are gone afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from xtreemos.fabric import rpc
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.fuse.keeping import ENV, Keeper
from xtreemos.xtreemfs.model import VolumePolicy, VolumeRecord

READY_S = 20.0
END_S = 10.0
VO = "fsgrid"
USER = "tester"


class Process:
    """One of our processes: started, killed, paused, started again with the same words."""

    def __init__(self, words: list[str], log: Path, *, ready: str = "") -> None:
        self.words = words
        self.log = log
        self._ready = ready
        self.keeper: Keeper | None = None
        """What it keeps outlives it (see `fuse.keeping`), as on a node with a supervisor."""
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else 0

    def start(self) -> None:
        """Start it; returns when it said that it is ready, if it does say so."""
        kept = self.keeper.filenos() if self.keeper is not None else ()
        if self._popen is not None and self._popen.stdout is not None:
            self._popen.stdout.close()
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *self.words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=kept,
                env={**os.environ, ENV: ",".join(map(str, kept))},
            )
        if self._ready:
            self._wait_ready()

    def _wait_ready(self) -> None:
        assert self._popen is not None
        assert self._popen.stdout is not None
        readable, _w, _x = select.select([self._popen.stdout], [], [], READY_S)
        line = self._popen.stdout.readline().decode() if readable else ""
        if line.strip() != self._ready:
            self.kill()
            raise RuntimeError(f"{self.words[0]} did not start:\n{self.text()[-3000:]}")

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.pid:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()
            if self._popen.stdout is not None:
                self._popen.stdout.close()

    def pause(self) -> None:
        """Freeze it."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def stop(self) -> int:
        """End it in good order; return its exit code. It is killed after END_S."""
        if self._popen is None:
            return 0
        self.resume()
        self.send(signal.SIGTERM)
        try:
            return self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


class MountProcess(Process):
    """One mount. `path` is where; `node` the name of its node."""

    def __init__(self, node: str, path: Path, words: list[str], log: Path, control: Path) -> None:
        super().__init__(words, log, ready="mounted")
        self.node = node
        self.path = path
        self.control = control

    def start(self) -> None:
        """See `Process`."""
        if self.keeper is None:
            _unmount(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        super().start()

    def kill(self) -> None:
        """See `Process`; what is left of the mount goes, too."""
        super().kill()
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None
        _unmount(self.path)

    def begin_keeping(self) -> None:
        """Start it anew, so that its mount will outlive it."""
        self.stop()
        self.keeper = Keeper.made()
        self.start()

    def kill_and_restart(self, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """What the supervisor of a node does about a mount process that was killed."""
        super().kill()
        meanwhile()
        super().start()

    def ask(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Make a call on its control socket."""

        async def call() -> Any:
            peer = await rpc.connect_unix(self.control)
            try:
                return await peer.call(method, dict(params or {}), timeout_s=60)
            finally:
                peer.close()

        return asyncio.run(call())


def _unmount(path: Path) -> None:
    """Take a mount away, also one whose daemon is dead; without asking the mount anything."""
    subprocess.run(["umount", "-l", str(path)], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=END_S)


class FsGrid:
    """See the module. `mounts`: one for each, on nodes c1, c2, ..., or with `together` beside the OSDs; OSDs are on nodes n1, n2, ..., the MRC on n1.

    `passthrough`: files of the mount's own node of so many bytes are read by the kernel itself, None: none are.
    """

    def __init__(
        self,
        *,
        osds: int = 1,
        mounts: int = 1,
        volume: str = "vol",
        policy: VolumePolicy | None = None,
        folder: Path | None = None,
        verbose: bool = False,
        together: bool = False,
        passthrough: int | None = None,
    ) -> None:
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="xos-fsgrid-", dir="/var/tmp"))
        self.volume = volume
        self._policy = policy or VolumePolicy()
        self._verbose = verbose
        self._letter = "n" if together else "c"
        self._passthrough = "off" if passthrough is None else str(passthrough)
        self.directory = self.folder / "dir"
        self.mrc = Process(
            ["xtreemos.xtreemfs.mrc", "--vo", VO, "--node", "n1", "--folder", str(self.folder / "mrc"),
             "--directory", str(self.directory), "--socket", str(self.mrc_socket)], self.folder / "mrc.log",
        )  # fmt: skip
        self.osds = [self._osd(f"n{number}") for number in range(1, osds + 1)]
        self.mounts = [self._mount(f"{self._letter}{number}") for number in range(1, mounts + 1)]

    @property
    def mrc_socket(self) -> Path:
        """Where the MRC listens."""
        return self.folder / "mrc.socket"

    def osd_socket(self, node: str) -> Path:
        """Where an OSD listens."""
        return self.folder / f"osd-{node}.socket"

    def _osd(self, node: str) -> Process:
        words = ["xtreemos.xtreemfs.osd", "--vo", VO, "--node", node, "--disk", str(self.folder / f"disk-{node}"),
                 "--directory", str(self.directory), "--socket", str(self.osd_socket(node))]  # fmt: skip
        return Process(words, self.folder / f"osd-{node}.log")

    def _mount(self, node: str) -> MountProcess:
        path, control = self.folder / node, self.folder / f"{node}.control"
        words = ["xtreemos.xtreemfs.client", str(path), "--vo", VO, "--node", node, "--directory", str(self.directory),
                 "--volume", self.volume, "--root", "--allow-devices", "--control", str(control), "--passthrough", self._passthrough]  # fmt: skip
        return MountProcess(node, path, words + ["--verbose"] * self._verbose, self.folder / f"{node}.log", control)

    def add_mount(self) -> MountProcess:
        """Mount once more, as another node."""
        mounted = self._mount(f"{self._letter}{len(self.mounts) + 1}")
        self.mounts.append(mounted)
        mounted.start()
        return mounted

    @property
    def paths(self) -> list[Path]:
        """Where the mounts are."""
        return [mounted.path for mounted in self.mounts]

    # -------------------------------------------------------------------------------------------------------------- life

    def start(self) -> Self:
        """Start everything, make the volume, mount it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for osd in self.osds:
            disk = Path(osd.words[osd.words.index("--disk") + 1])
            disk.mkdir(exist_ok=True)
            osd.start()
        self.mrc.start()
        for node in range(1, len(self.osds) + 1):
            wait_for((self.directory / f"osd.n{node}.json").exists, f"OSD n{node}")
        wait_for((self.directory / "mrc.n1.json").exists, "the MRC")
        asyncio.run(self._make_volume())
        for mounted in self.mounts:
            mounted.start()
        if self.mounts:
            os.chown(self.mounts[0].path, 0, 0)
        return self

    async def _make_volume(self) -> VolumeRecord:
        peer = await rpc.connect_unix(self.mrc_socket)
        try:
            acting = calls.answer_of(
                await peer.call("mrc.act", calls.params(protocol.Act(f"local:{USER}".encode()))), protocol.Acting
            )
            message = protocol.MakeVolume(
                protocol.Who(acting.actor), self.volume, "shared", 0o755, msgspec.to_builtins(self._policy)
            )
            return msgspec.convert(await peer.call("mrc.mkvol", calls.params(message)), VolumeRecord)
        finally:
            peer.close()

    def close(self) -> None:
        """End everything."""
        with contextlib.ExitStack() as last:
            if self._own:
                last.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for process in (self.mrc, *self.osds):
                last.callback(process.kill)
            for mounted in self.mounts:
                last.callback(_unmount, mounted.path)
                last.callback(mounted.kill)
            for mounted in self.mounts:
                mounted.resume()
                mounted.send(signal.SIGTERM)
            for mounted in self.mounts:
                mounted.stop()
            for process in (self.mrc, *self.osds):
                process.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def logs(self) -> Iterator[tuple[str, str]]:
        """(name, text) of every process's log."""
        for path in sorted(self.folder.glob("*.log")):
            yield path.stem, path.read_text(errors="replace")


def wait_for(condition: Any, what: str, timeout_s: float = READY_S) -> None:
    """Wait until `condition()` is true; RuntimeError names `what` if it does not become so."""
    end = time.monotonic() + timeout_s
    poll = select.poll()
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not ready after {timeout_s:g} s")
        poll.poll(20)


def carry_out(grid: FsGrid, command: Sequence[str]) -> int:
    """Run a command with `{1}`, `{2}`, ... for the mounts; return its exit code, or 1 if a process of ours broke meanwhile.

    What each process needed goes to standard error: CPU seconds, MiB at the begin and at the end.
    """
    processes = {"mrc": grid.mrc} | {osd.log.stem: osd for osd in grid.osds} | {mounted.node: mounted for mounted in grid.mounts}
    before = {name: usage(process.pid) for name, process in processes.items()}
    words = [word.format("", *grid.paths) for word in command]
    code = subprocess.run(words, check=False).returncode
    for name, process in processes.items():
        if not process.pid:
            sys.stderr.write(f"{name} has ended\n")
            code = 1
            continue
        cpu_s, mib = usage(process.pid)
        sys.stderr.write(f"{name}: {cpu_s - before[name][0]:.0f} s of CPU, {before[name][1]} MiB then {mib} MiB\n")
    for mounted in grid.mounts:
        if mounted.pid and (bugs := mounted.ask("fs.status")["bugs"]):
            sys.stderr.write(f"{mounted.node}: {bugs} faults inside\n")
            code = 1
    for name, text in grid.logs():
        if "Traceback" in text:
            sys.stderr.write(f"{name} logged:\n{text[max(0, text.index('Traceback') - 300) :][:3000]}\n")
            code = 1
    return code


def usage(pid: int) -> tuple[float, int]:
    """What a process has used: seconds of CPU, and the MiB that it has now."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages >> 8


def main(argv: Sequence[str]) -> int:
    """Run one until a line comes on standard input, or as long as a command does."""
    parser = argparse.ArgumentParser(
        prog="python -m xtreemos.testing.fsgrid",
        description="A small file system of real processes on this machine, with one volume mounted at several places.",
    )
    parser.add_argument("--mounts", type=int, default=1)
    parser.add_argument("--osds", type=int, default=1)
    parser.add_argument("--width", type=int, default=1, help="OSDs that each file is striped over")
    parser.add_argument(
        "--object-kib",
        type=int,
        default=VolumePolicy().object_bytes >> 10,
        help="bytes of one file that follow one another on an OSD",
    )
    parser.add_argument("command", nargs="*", help="what to run, with {1} for the first mount and so on; the exit code is its own")
    said = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts, processes and folders go
    with FsGrid(
        mounts=said.mounts, osds=said.osds, policy=VolumePolicy(width=said.width, object_bytes=said.object_kib << 10)
    ) as grid:
        if said.command:
            return carry_out(grid, said.command)
        sys.stdout.write(f"{grid.folder}\n{' '.join(map(str, grid.paths))}\n")
        sys.stdout.flush()
        sys.stdin.readline()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
