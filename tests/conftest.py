"""What holds for every test: cheap tiers first, a clean environment, no log warning unsaid, no process left over."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding: speed is measured by bench, and the per-test timeout still holds.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("house")

HERE = Path(__file__).parent
RUN_MARK = f"XOS_TEST_RUN={uuid.uuid4().hex}"
LEFTOVER_GRACE_S = 5.0


def pytest_configure(config):
    config.addinivalue_line("markers", "log_warnings(pattern): log lines of warning level or above that match are expected")
    for name in ("XOS_GRID", "XOS_AGENT_DIR"):  # a grid of the person who runs the tests must not be touched
        os.environ.pop(name, None)
    name, _, value = RUN_MARK.partition("=")
    os.environ[name] = value
    os.umask(0o022)


def _tier(item: pytest.Item) -> str:
    folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
    return folder if re.match(r"t\d_", folder) else "t0"


def pytest_collection_modifyitems(items):
    items.sort(key=_tier)  # stable: order within a tier is pytest's
    if os.geteuid() != 0:
        for item in items:
            if _tier(item).startswith("t5") or item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _no_unexpected_log_warning(request, caplog):
    """A warning of ours that the test does not expect fails it."""
    yield
    expected = [mark.args[0] for mark in request.node.iter_markers("log_warnings")]
    records = [record for phase in ("setup", "call") for record in caplog.get_records(phase)]
    for record in records:
        text = record.getMessage()
        ours = record.name.split(".")[0] == "xtreemos"
        if ours and record.levelno >= logging.WARNING and not any(re.search(pattern, text) for pattern in expected):
            pytest.fail(f"unexpected {record.levelname} in the log of {record.name}: {text}", pytrace=False)


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def _leftovers() -> dict[int, str]:
    """Processes that carry this run's mark in their environment and are not on the way to us."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if RUN_MARK.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
        except OSError:
            continue  # gone meanwhile, or not ours to look at
    return {pid: words for pid, words in found.items() if pid not in _ancestors()}


@pytest.fixture(autouse=True, scope="session")
def _no_process_left_over():
    """At the end of the run nothing that a test started is alive; what is gets killed and named."""
    yield
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while (left := _leftovers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left over by tests: {left}"
