"""The Debian packages of the peers, installed when a benchmark first runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[1] / "tools" / "apt-packages-bench.txt"


def install_packages() -> None:
    """Install the Debian packages of the peers that are missing; their services are not started."""
    wanted = [
        line.strip() for line in PACKAGES.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")
    ]
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted]
    have = subprocess.run(query, check=False, capture_output=True, text=True, timeout=60).stdout.splitlines()
    missing = [name for name in wanted if f"{name} installed" not in have]
    if not missing:
        return
    print(f"bench: installing {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
    for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=600)
