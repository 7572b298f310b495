"""Everything at once, small: what `make soak` does for long, on a lab of its own with three core nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "bench/soak.py"


@pytest.mark.timeout(300)
def test_programs_and_jobs_end_right_while_daemons_die_and_a_core_node_is_cut_off():
    kept = os.environ.get("XOS_CHAOS_LAB")  # for work on the test: a lab that is up already and stays up
    lab = ["--lab", kept] if kept else ["--name", "t5chaos"]
    sizes = ["--runs=26", "--chaos-runs=26", "--mib=2", "--subs=150", "--cut-after=4", "--cut-for=12"]
    done = subprocess.run([sys.executable, SOAK, *lab, *sizes], capture_output=True, text=True, check=False, timeout=240)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
