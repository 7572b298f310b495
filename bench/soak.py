"""`make soak`: many programs at once, and thousands of detached jobs while daemons are killed and a core node is cut off.

It makes a lab of three core nodes, lets `soak_client.py` use it as a user would, makes the faults from outside, and judges by
what is in the nodes' own files: each job writes into its home where it runs, so a second start cannot hide. Exit code 0: all right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
XOS = str(Path(sys.executable).with_name("xos"))
CLIENT = ROOT / "bench/soak_client.py"
NODES = ("n1", "n2", "n3")
HOME = "home/alice.demo"


class Lab:
    """The lab, as root of the host sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path.home() / ".local/state/xtreemos/lab" / name

    def do(self, *words: str) -> str:
        """Run `xos lab WORDS`; RuntimeError with its last words if it fails."""
        done = subprocess.run([XOS, "lab", *words, "--name", self.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"xos lab {' '.join(words)}: {(done.stderr or done.stdout).strip()[-400:]}")
        return done.stdout

    def init(self, node: str) -> int:
        """The host's process id of a node's init."""
        record = json.loads((self.folder / "lab.json").read_text())
        return next(int(item["init"]["pid"]) for item in record["nodes"] if f"n{item['index']}" == node)

    def inside(self, node: str, script: str, *words: str) -> str:
        """Run a shell script in a node as root, by its namespaces; return what it printed."""
        argv = [
            "nsenter",
            f"--target={self.init(node)}",
            "--pid",
            "--mount",
            "--net",
            "--uts",
            "--",
            "sh",
            "-c",
            script,
            "sh",
            *words,
        ]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def kill(self, node: str, service: str) -> bool:
        """SIGKILL to a service of a node; its supervisor starts it again. False: it was not running."""
        entry = self._pids(node).get(service)
        if entry is None:
            return False  # it waits for its restart
        return "killed" in self.inside(node, f"grep -q {service} /proc/$1/cmdline && kill -9 $1 && echo killed", str(entry["pid"]))

    def _pids(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(f"/proc/{self.init(node)}/root/run/xtreemos/pids.json").read_text())
        return found

    def usage(self, node: str) -> dict[str, dict[str, int]]:
        """Memory (MiB) and open descriptors of a node's services."""
        rows = {}
        pids = {service: str(entry["pid"]) for service, entry in self._pids(node).items()}
        agent = self.inside(node, "pgrep -of '[m] xtreemos.aem.agent'").strip()
        for service, pid in {**pids, **({"agent": agent} if agent else {})}.items():
            text = self.inside(node, "grep VmRSS /proc/$1/status; ls /proc/$1/fd | wc -l", pid)
            words = text.split()
            if len(words) >= 4:
                rows[service] = {"mib": int(words[1]) // 1024, "fds": int(words[-1])}
        return rows

    def lines(self, tag: str) -> dict[str, list[str]]:
        """What jobs wrote, by node."""
        found = {}
        for node in NODES:
            file = self.folder / "nodes" / node / HOME / f"soak-{tag}"
            found[node] = file.read_text().splitlines() if file.exists() else []
        return found

    def client(self, *words: str) -> dict[str, Any]:
        """Run the client side on n1 as alice and return its findings."""
        argv = [XOS, "lab", "exec", "n1", "--name", self.name, "--user", "alice", "--", sys.executable, str(CLIENT), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        try:
            found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return {"bad": [f"the client ended with code {done.returncode}: {done.stderr.strip()[-600:]}"]}
        return found


class Chaos:
    """Kills xosd on every node at a regular pace, each node at its own moment, until stopped; and cuts nodes off."""

    def __init__(self, lab: Lab, every_s: float) -> None:
        self.lab = lab
        self.every_s = every_s
        self.kills: Counter[str] = Counter()
        self.cuts: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._kill_for_ever, args=(node, every_s * index / len(NODES)))
            for index, node in enumerate(NODES)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _kill_for_ever(self, node: str, first_s: float) -> None:
        self._stop.wait(first_s)
        while not self._stop.is_set():
            if self.lab.kill(node, "xosd"):
                self.kills[node] += 1
            self._stop.wait(self.every_s)

    def cut_later(self, node: str, after_s: float, for_s: float) -> threading.Thread:
        """Cut `node` off after a while and heal it again, also if everything is over before."""

        def work() -> None:
            if self._stop.wait(after_s):
                return
            self.lab.do("cut", node)
            self.cuts.append(node)
            self._stop.wait(for_s)
            self.lab.do("heal", node)

        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)
        return thread


def judge(found: dict[str, Any], lines: dict[str, list[str]]) -> list[str]:
    """Compare what jobs wrote with what was submitted: each job without --retry ran once, the others never twice at a time."""
    bad: list[str] = []
    once: Counter[str] = Counter()
    beats: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for node, written in lines.items():
        for line in written:
            job, kind, *rest = line.split()
            if kind == "once":
                once[job] += 1
            else:
                beats[job][node].append(float(rest[0]))
    retried = set(found.get("retried", ()))
    jobs = found.get("jobs", [])
    bad += [f"job {job} ran {once[job]} times" for job in jobs if job not in retried and once[job] != 1]
    strangers = (set(once) | set(beats)) - set(jobs)
    bad += [f"job {job} ran and was not told as submitted" for job in strangers]
    for job in retried:
        bad += overlaps(job, beats[job])
    return bad


def overlaps(job: str, by_node: dict[str, list[float]]) -> list[str]:
    """Attempts on different nodes must not have lived at the same time; the last one ran whole."""
    if not by_node:
        return [f"job {job} never ran"]
    spans = sorted((min(times), max(times), node) for node, times in by_node.items())
    return [
        f"job {job} lived on {one[2]} until {one[1]:.2f} and on {two[2]} from {two[0]:.2f}"
        for one, two in pairwise(spans)
        if two[0] < one[1]
    ]


def say(text: str) -> None:
    """Print one line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def runs(lab: Lab, count: int, mib: int, chaos_s: float | None) -> dict[str, Any]:
    """Mixed programs, all at once; with `chaos_s`, xosd is killed everywhere at that pace meanwhile."""
    if chaos_s is None:
        return lab.client("runs", str(count), str(mib))
    with Chaos(lab, chaos_s) as chaos:
        found = lab.client("runs", str(count), str(mib))
    return {**found, "kills": sum(chaos.kills.values())}


def jobs(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """Detached jobs under all faults."""
    tag = f"{os.getpid()}"
    with Chaos(lab, options.every) as chaos:
        chaos.cut_later(options.cut, options.cut_after, options.cut_for)
        found = lab.client("subs", str(options.subs), tag)
    lines = lab.lines(tag)
    found["bad"] += judge(found, lines)
    found |= {"kills": sum(chaos.kills.values()), "cuts": chaos.cuts, "ran_on": {node: len(text) for node, text in lines.items()}}
    if not chaos.cuts and options.subs:
        found["bad"].append("all jobs had ended before the node was cut off: the run proves nothing, use more jobs")
    del found["jobs"], found["retried"]
    return found


def report(title: str, found: dict[str, Any]) -> bool:
    """Print the verdict of one part; True if it is good."""
    bad = found["bad"]
    figures = ", ".join(f"{key} {value}" for key, value in found.items() if key != "bad")
    say(f"{title}: {'all right' if not bad else f'{len(bad)} WRONG'} ({figures})")
    for line in bad[:20]:
        say(f"  {line}")
    return not bad


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--chaos-runs", type=int, default=60, help="programs at once while xosd is killed")
    parser.add_argument("--mib", type=int, default=8, help="bytes through each big pipe")
    parser.add_argument("--subs", type=int, default=2000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills of the same xosd")
    parser.add_argument("--cut", default=random.choice(NODES[1:]), help="the core node that is cut off")
    parser.add_argument("--cut-after", type=float, default=15.0)
    parser.add_argument("--cut-for", type=float, default=40.0)
    parser.add_argument("--lab", help="use this lab, which is up, and leave it up")
    parser.add_argument("--name", default="soak", help="name of the lab to make")
    return parser.parse_args()


def main() -> int:
    """Soak, and say how it went."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is taken down
    lab = Lab(options.lab or options.name)
    good = True
    try:
        if not options.lab:
            say("making a lab of three core nodes")
            lab.do("down")  # what a killed run left
            # homes of each node alone: what a job wrote where it ran is the evidence, also on the node that is cut off
            lab.do("up", "--nodes", "3", "--files", "local")
        before = {node: lab.usage(node) for node in NODES}
        if options.runs:
            good &= report(f"{options.runs} programs at once", runs(lab, options.runs, options.mib, None))
        if options.chaos_runs:
            title = f"{options.chaos_runs} programs at once, xosd killed everywhere every {options.every:g} s"
            good &= report(title, runs(lab, options.chaos_runs, options.mib, options.every))
        if options.subs:
            title = f"{options.subs} detached jobs, the same and {options.cut} cut off for {options.cut_for:g} s"
            good &= report(title, jobs(lab, options))
        for node in NODES:
            rows = {name: (before[node].get(name), now) for name, now in lab.usage(node).items()}
            say(f"{node} before and after: " + ", ".join(f"{name} {_grown(*pair)}" for name, pair in sorted(rows.items())))
    finally:
        if not options.lab:
            lab.do("down")
    say("soak: PASSED" if good else "soak: FAILED")
    return 0 if good else 1


def _grown(before: dict[str, int] | None, now: dict[str, int]) -> str:
    old = before or {"mib": 0, "fds": 0}
    return f"{old['mib']}->{now['mib']} MiB {old['fds']}->{now['fds']} fds"


if __name__ == "__main__":
    sys.exit(main())
