"""Sizes, modes, tables and the rows of `xos fs`."""

from __future__ import annotations

import pytest

from xtreemos.cli import fs_text, fs_top
from xtreemos.errors import UsageError


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("none", 0), ("999", 999), ("64K", 65536), ("1.5G", 3 << 29), ("4MiB", 4 << 20)])
def test_sizes_are_read(text, count):
    assert fs_text.parse_size(text, "--bytes") == count


@pytest.mark.parametrize("text", ["", "much", "-1", "1Q", "K"])
def test_what_is_no_size_is_told_with_its_option(text):
    with pytest.raises(UsageError, match="--bytes"):
        fs_text.parse_size(text, "--bytes")


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (1023, "1023"), (1024, "1.0K"), (3 << 29, "1.5G"), (1 << 70, "1024.0E")])
def test_sizes_are_shown(count, text):
    assert fs_text.size(count) == text


@pytest.mark.parametrize("text", ["8", "rwx", "-1", "10000", "0x7"])
def test_what_is_no_mode_is_refused(text):
    with pytest.raises(UsageError):
        fs_text.parse_mode(text)
    assert fs_text.parse_mode("2770") == 0o2770


def test_columns_are_as_wide_as_their_widest_cell():
    assert fs_text.table(("a", "name"), [(1, "x"), (100, "yy")]).splitlines() == ["A    NAME", "1    x", "100  yy"]


def test_no_terminal_means_no_agreement(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match="no terminal"):
        fs_text.agree("Really?", yes=False)
    fs_text.agree("Really?", yes=True)


def status(requests: int, read: int) -> dict:
    return {
        "vo": "demo", "up_s": 3700, "requests": {"READ": requests, "LOOKUP": 5}, "errors": {"ENOENT": 2}, "bugs": 0, "outstanding": 1, "lock_waits": 0,
        "inodes": 9, "open_files": 1, "locks": 0, "dirty_bytes": 2048, "ahead_bytes": 0, "read_bytes": read, "written_bytes": 0,
        "mrcs": {"n1": {"up": True, "calls": 3, "failures": 0, "leases": 4, "recalls": 1, "waiting": 0}},
        "osds": {"n1": {"up": True, "calls": 7, "failures": 0}},
        "osd_records": [{"node": "n1", "state": "online", "total_bytes": 4096, "free_bytes": 1024, "beat_at": 0, "address": "h:1"}],
    }  # fmt: skip


def test_rates_are_differences_of_two_looks():
    row = fs_top.sample(status(30, 4096), status(10, 0), 2.0)
    assert row["per_s"] == {"requests": 10.0, "read": 2048.0, "written": 0.0}
    assert (row["requests"], row["leases"]) == (35, 4)
    text = fs_top.screen(row)
    assert "10 requests/s" in text
    assert "read 2.0KB/s" in text
    assert "ENOENT 2" in text


def test_an_object_server_that_was_not_heard_of_is_silent():
    assert fs_top.sample(status(1, 1), None, 1.0)["osds"][0]["state"] == "silent"
