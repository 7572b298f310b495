"""`crun run` of /bin/true, bare: what a sandbox alone costs. And a local process: what the measuring itself costs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from box import Box
from driver import Driver
from entry import Entry, Sizes

BUILT = Path(__file__).resolve().parents[2] / "build" / "tools" / "bin" / "crun"
SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32")


class Crun:
    """One container after the other, with every usual namespace, a read-only system and no network."""

    name = "crun"

    def __init__(self) -> None:
        self.box: Box | None = None
        self.driver: Driver | None = None

    def open(self, work: Path, sizes: Sizes) -> None:
        self.sizes, self.work = sizes, work
        self.crun = str(BUILT) if BUILT.exists() else shutil.which("crun") or ""
        if not self.crun:
            raise RuntimeError("crun is not installed; `make setup` builds it")
        self.box = box = Box("crun")
        # crun refuses machines with cgroup v1 beside v2; in here a pure v2 tree serves, as in our own nodes
        box.call(["sh", "-c", "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"])
        for kind in ("plain", "tty"):
            bundle = work / kind
            self._write_bundle(bundle, terminal=kind == "tty")
        self.driver = Driver(box.inside([]))

    def _write_bundle(self, bundle: Path, *, terminal: bool) -> None:
        """A bundle whose root has the machine's own system folders, read-only."""
        assert self.box is not None
        root = bundle / "rootfs"
        root.mkdir(parents=True)
        self.box.call([self.crun, "spec", "-b", str(bundle)])
        config: dict[str, Any] = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
        config["process"].update({"terminal": terminal, "args": ["/bin/true"], "cwd": "/"})
        for name in SYSTEM_FOLDERS:
            source = Path("/") / name
            if source.is_symlink():
                (root / name).symlink_to(source.readlink())
            elif source.is_dir():
                (root / name).mkdir()
                options = ["rbind", "ro"]
                config["mounts"].append({"destination": f"/{name}", "source": f"/{name}", "type": "bind", "options": options})
        (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def entries(self) -> list[Entry]:
        assert self.driver is not None
        plain = [self.crun, "run", "--bundle", str(self.work / "plain"), "bench-plain"]
        tty = [self.crun, "run", "--bundle", str(self.work / "tty"), "bench-tty"]
        rounds = self.sizes.rounds
        return [
            Entry("pty", "crun run", self.driver, {"op": "run", "argv": tty, "pty": True}, rounds),
            Entry("plain", "crun run", self.driver, {"op": "run", "argv": plain}, rounds),
        ]

    def facts(self) -> list[str]:
        version = subprocess.run(
            [self.crun, "--version"], check=True, capture_output=True, text=True, timeout=10
        ).stdout.splitlines()[0]
        return [f"{version}: a container on this machine, no network hop, no queue, no record"]

    def configuration(self) -> dict[str, str]:
        return {}

    def daemons(self) -> list[tuple[str, Driver]]:
        return []

    def close(self) -> None:
        if self.driver:
            self.driver.close()
        if self.box:
            self.box.close()


class Local:
    """A process of this machine, in a box of its own: the floor of every row."""

    name = "local process"

    def __init__(self) -> None:
        self.box: Box | None = None
        self.driver: Driver | None = None

    def open(self, work: Path, sizes: Sizes) -> None:
        del work
        self.sizes = sizes
        self.box = Box("local")
        self.driver = Driver(self.box.inside([]))

    def entries(self) -> list[Entry]:
        assert self.driver is not None
        size, driver, label = self.sizes, self.driver, "local process"
        echo = ["sh", "-c", "stty raw -echo; printf READY; exec cat"]
        return [
            Entry("pty", label, driver, {"op": "run", "argv": ["true"], "pty": True}, size.rounds),
            Entry("plain", label, driver, {"op": "run", "argv": ["true"]}, size.rounds),
            Entry(
                "echo",
                "local terminal",
                driver,
                {"op": "echo", "key": "local", "count": size.keystrokes},
                size.echo_rounds,
                before={"op": "echo_open", "key": "local", "argv": echo},
                after={"op": "echo_close", "key": "local"},
            ),
            Entry(
                "pipe-through",
                "local pipe",
                driver,
                {"op": "pipe", "argv": ["cat"], "send_bytes": size.pipe_bytes, "want_bytes": size.pipe_bytes},
                size.pipe_rounds,
                amount=size.pipe_bytes,
            ),
        ]

    def facts(self) -> list[str]:
        return ["local process: fork, exec and wait as done by the measuring program itself"]

    def configuration(self) -> dict[str, str]:
        return {}

    def daemons(self) -> list[tuple[str, Driver]]:
        return []

    def close(self) -> None:
        if self.driver:
            self.driver.close()
        if self.box:
            self.box.close()
