"""A real jobd in a node namespace, and jobs for it in one line: for tests and measurements of whatever lies on jobd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xtreemos.errors import Unreachable
from xtreemos.foundation.cgroups import cgroup_path
from xtreemos.foundation.frames import Kind
from xtreemos.foundation.jobd.client import JobdClient
from xtreemos.foundation.jobd.launch import command, init_path
from xtreemos.foundation.sandbox import SandboxSpec, probe_system, write_bundle
from xtreemos.testing.nodens import NodeNamespace

UID = 1879048192 + 77
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Outcome:
    """What an attachment saw."""

    exit: dict[str, Any]
    out: dict[int, bytearray]
    events: list[dict[str, Any]] = field(default_factory=list)


class JobKit:
    """Context: jobd with everything it needs below `folder`, named `tag` in the control groups (unique on this machine)."""

    def __init__(self, folder: Path, tag: str) -> None:
        self.folder, self.tag = folder, tag
        self.run, self.jobs, self.home = folder / "run", folder / "jobs", folder / "home"
        for path in (self.run, self.jobs, self.home):
            path.mkdir(parents=True, exist_ok=True)
        os.chown(self.home, UID, UID)
        self.space = NodeNamespace(folder / "cgroup1")
        self._count = 0
        self._jobd: subprocess.Popen[bytes] | None = None
        self._system = probe_system()
        self.start_jobd()

    @property
    def socket(self) -> Path:
        """Where jobd listens."""
        return self.run / "jobd.sock"

    def start_jobd(self, preexec: Any = None) -> None:
        """Start jobd and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        log = (self.folder / "jobd.log").open("ab")
        argv = self.space.argv(command(self.run, self.jobs, self.tag))
        self._jobd = subprocess.Popen(argv, stderr=log, close_fds=preexec is None, preexec_fn=preexec)  # noqa: PLW1509  # tests: no threads yet
        log.close()
        end = time.monotonic() + 10
        while not self._answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._jobd.wait(0.005)
                raise AssertionError(f"jobd ended: {(self.folder / 'jobd.log').read_text()}")
            assert time.monotonic() < end, "jobd does not answer"

    def _answers(self) -> bool:
        try:
            self.client().close()
        except Unreachable:
            return False
        return True

    def kill_jobd(self, number: int = signal.SIGKILL) -> None:
        """End jobd with a signal."""
        assert self._jobd is not None
        self._jobd.send_signal(number)
        self._jobd.wait(10)

    @property
    def pid(self) -> int:
        """Process id of jobd."""
        assert self._jobd is not None
        return self._jobd.pid

    def client(self) -> JobdClient:
        """Connect to jobd."""
        return JobdClient(self.socket)

    def prepare(self, argv: Sequence[str], **changes: Any) -> tuple[str, str]:
        """Write a bundle for `argv`; return (job, bundle). `changes` go into the SandboxSpec."""
        self._count += 1
        job = f"job{self._count}.1"
        folder = self.jobs / job
        folder.mkdir(mode=0o700)
        spec = SandboxSpec(
            uid=UID, gid=UID, hostname="n1", argv=tuple(argv), env=(("PATH", PATH), ("HOME", str(self.home)), ("TERM", "xterm")),
            home=str(self.home), cwd=str(self.home), fifo_dir=str(folder / "fifo"), init_path=str(init_path()),
            cgroup_path=cgroup_path(self.tag, job), system=self._system,
        )  # fmt: skip
        return job, str(write_bundle(folder, replace(spec, **changes)))

    def start(
        self, client: JobdClient, argv: Sequence[str], *, spec: dict[str, Any] | None = None, fds: Sequence[int] = (), **params: Any
    ) -> str:
        """Prepare and start a job; return its name. `params` go into the call."""
        changes = dict(spec or {})
        if params.get("stdio") == "pty":
            changes.setdefault("terminal", (24, 80))
        if fds:
            params["stdio"] = "fds"
            changes["stdio_fds"] = True
        job, bundle = self.prepare(argv, **changes)
        if params.get("stdio") == "spool":
            (self.jobs / job / "spool").mkdir()
            params["spool_dir"] = str(self.jobs / job / "spool")
        client.call("start", {"job": job, "bundle": bundle, **params}, fds)
        return job

    def run_job(self, argv: Sequence[str], stdin: bytes = b"", **params: Any) -> Outcome:
        """Run a job to its end with `stdin` (at most a window of it) and return everything it said."""
        client = self.client()
        try:
            job = self.start(client, argv, **params)
            channel = client.open("attach", {"job": job})
            if stdin:
                client.send(Kind.DATA, channel, stdin)
            client.send(Kind.EOF, channel, offset=len(stdin))
            return collect(client, channel)
        finally:
            client.close()

    def close(self) -> None:
        """End jobd and every job, remove groups and folders."""
        if self._jobd and self._jobd.poll() is None:
            self.kill_jobd(signal.SIGTERM)
        script = (
            'for g in /sys/fs/cgroup/xtreemos-$0 "$1"/cgroup1/*/xtreemos-$0; do [ -d "$g" ] || continue; '
            "[ -e $g/cgroup.kill ] && echo 1 > $g/cgroup.kill; "
            "n=0; until find $g -depth -type d -exec rmdir {} + 2>/dev/null || [ $n = 100 ]; do n=$((n+1)); sleep 0.02; done; done"
        )
        self.space.run("sh", "-c", script, self.tag, str(self.folder))
        self.space.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def collect(client: JobdClient, channel: int, out: dict[int, bytearray] | None = None, *, ack: bool = True) -> Outcome:
    """Read an attachment to its end, acknowledging everything; offsets must join without gap or repeat."""
    out = out if out is not None else {1: bytearray(), 2: bytearray()}
    events: list[dict[str, Any]] = []
    for frame in client.frames(channel):
        if frame.kind is Kind.DATA:
            assert frame.offset == len(out[frame.stream]), "a gap or a repeat in the stream"
            out[frame.stream] += frame.body
            if ack:
                client.send(Kind.ACK, channel, stream=frame.stream, offset=len(out[frame.stream]))
        elif frame.kind is Kind.EVENT:
            events.append(frame.body)
        elif frame.kind is Kind.EOF:
            assert frame.offset == len(out[frame.stream])
        elif frame.kind is Kind.RESULT:
            return Outcome(frame.body["exit"], out, events)
    raise AssertionError("the attachment ended without a result")


def in_background(action: Any, *args: Any) -> threading.Thread:
    """Run `action` in a thread; for feeding one end while the other is read."""
    thread = threading.Thread(target=action, args=args, daemon=True)
    thread.start()
    return thread
