"""Slurm from Debian packages, the whole of it in one box. Two contenders: tuned for short jobs, and near the package's example."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from box import Box
from driver import Driver
from entry import Entry, Sizes, listed

COMMON = """\
ClusterName=peer
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.sock
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile=/run/ctld.pid
SlurmdPidFile=/run/d.pid
SlurmctldLogFile={work}/ctld.log
SlurmdLogFile={work}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MaxJobCount=20000
MaxArraySize=10001
ReturnToService=2
SlurmctldDebug=error
SlurmdDebug=error
"""
TUNED = """\
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,default_queue_depth=1000
PriorityType=priority/basic
MinJobAge=10
SlurmdParameters=config_overrides
NodeName=localhost CPUs=16 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
PLAIN = """\
SchedulerType=sched/backfill
PriorityType=priority/basic
NodeName=localhost CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
CGROUP_V1 = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
CGROUP_V2 = "CgroupPlugin=autodetect\nIgnoreSystemd=yes\n"


class Slurm:
    """slurmctld, slurmd and munged on one machine; state on the same disk as everything else."""

    def __init__(self, *, tuned: bool) -> None:
        self.tuned = tuned
        self.kind = "tuned" if tuned else "plain"
        self.name = f"Slurm, {self.kind}"
        self.box: Box | None = None
        self.drivers: list[Driver] = []

    def open(self, work: Path, sizes: Sizes) -> None:
        self.sizes, self.work = sizes, work
        for folder in ("state", "spool"):
            (work / folder).mkdir(mode=0o755)
        for name, text in self.configuration().items():
            (work / name).write_text(text.replace("DIR", str(work)), encoding="utf-8")
        (work / "job.sh").write_text("#!/bin/sh\ntrue\n", encoding="utf-8")
        key = work / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.box = box = Box(f"slurm-{self.kind}")
        for command in (
            # an address besides loopback: with `lo` alone Slurm's look-up of "localhost" fails
            ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
            ["ip", "addr", "add", "10.77.0.1/24", "dev", "v0"],
            ["ip", "link", "set", "v0", "up"],
            ["ip", "link", "set", "v1", "up"],
            ["munged", "--force", f"--key-file={key}", "--socket=/run/munge.sock", "--pid-file=/run/munged.pid", f"--log-file={work}/munged.log",
             f"--seed-file={work}/munged.seed", "--num-threads=10"],
            ["slurmctld", "-f", str(work / "slurm.conf"), "-c"],
            ["slurmd", "-f", str(work / "slurm.conf"), "-N", "localhost"],
        ):  # fmt: skip
            box.call(command)
        self.drivers.append(Driver(box.inside(["env", f"SLURM_CONF={work}/slurm.conf"])))
        until_idle = (
            "for i in $(seq 150); do sinfo -h -o %T | grep -qx idle && exit 0; read -t 0.2 < /dev/zero; done; sinfo; exit 1"
        )
        box.call(["env", f"SLURM_CONF={work}/slurm.conf", "bash", "-c", until_idle])

    def entries(self) -> list[Entry]:
        size, driver = self.sizes, self.drivers[0]
        rounds = size.rounds if self.tuned else size.slow_rounds
        jobs, batch_rounds = (size.jobs, size.batch_rounds) if self.tuned else (size.plain_jobs, 1)
        submit = ["sbatch", "-Q", "-o", "/dev/null"]
        job = str(self.work / "job.sh")
        done = {"done": ["squeue", "-h"], "done_when": "empty"}
        title = f"Slurm, {self.kind}"
        note = "" if jobs == size.jobs else f" ({jobs} jobs)"
        one = {"op": "batch", "submit": [*submit, job], "repeat": jobs, **done}
        array = {"op": "batch", "submit": [*submit, f"--array=1-{jobs}", job], "repeat": 1, **done}
        rows = [
            Entry(
                "pty",
                f"srun --pty, {self.kind}",
                driver,
                {"op": "run", "argv": ["srun", "-n1", "--pty", "true"], "pty": True},
                rounds,
            ),
            Entry("plain", f"srun, {self.kind}", driver, {"op": "run", "argv": ["srun", "-n1", "true"]}, rounds),
            Entry("batch-one", f"{title}{note}", driver, one, batch_rounds, amount=jobs),
            Entry("batch-array", f"{title}{note}", driver, array, batch_rounds, amount=jobs),
        ]
        if self.tuned:
            rows += self._tuned_only(driver)
        return rows

    def _tuned_only(self, driver: Driver) -> list[Entry]:
        """Rows where the configuration does not matter: no scheduling is in them."""
        size = self.sizes
        echo = ["srun", "-n1", "--pty", "sh", "-c", "stty raw -echo; printf READY; exec cat"]
        ready = ["srun", "-n1", "sh", "-c", "echo READY $SLURM_JOB_ID; exec sleep 1000"]
        hold = {"op": "batch", "submit": ["sbatch", "-Q", "-H", "-o", "/dev/null", f"--array=1-{size.jobs}", str(self.work / "job.sh")], "repeat": 1,
                "done": ["true"], "done_when": "empty"}  # fmt: skip
        return [
            Entry(
                "echo",
                "srun --pty",
                driver,
                {"op": "echo", "key": "slurm", "count": size.keystrokes},
                size.echo_rounds,
                before={"op": "echo_open", "key": "slurm", "argv": echo},
                after={"op": "echo_close", "key": "slurm"},
            ),
            Entry(
                "kill",
                "scancel",
                driver,
                {"op": "kill", "start": ready, "find": None, "kill": ["scancel", "{id}"]},
                size.slow_rounds,
            ),
            Entry(
                "ps",
                listed("squeue", size.jobs),
                driver,
                {"op": "run", "argv": ["squeue", "-h", "-r"], "lines_min": size.jobs},
                size.slow_rounds,
                before=hold,
                after={"op": "text", "argv": ["scancel", "--full", "-u", "root"]},
            ),
        ]

    def facts(self) -> list[str]:
        version = subprocess.run(["slurmd", "-V"], check=True, capture_output=True, text=True, timeout=10).stdout.strip()
        return [f"{version}, {self.kind}: durable job state on disk, no accounting database, no sandbox, no cgroup limits"]

    def configuration(self) -> dict[str, str]:
        text = COMMON + (TUNED if self.tuned else PLAIN)
        v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        slurm_conf = text.format(work="DIR", cpus=os.cpu_count() or 1)
        return {"slurm.conf": slurm_conf, "cgroup.conf": CGROUP_V2 if v2 else CGROUP_V1}

    def daemons(self) -> list[tuple[str, Driver]]:
        return [(self.name, self.drivers[0])]

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        if self.box:
            self.box.close()
