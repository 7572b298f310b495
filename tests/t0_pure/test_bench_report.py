"""The benchmark's arithmetic and tables: what is printed is what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = str(Path(__file__).resolve().parents[2] / "bench")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    names = ("report", "entry", "stats", "driver")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report as module

    yield module
    for name in names:
        sys.modules.pop(name, None)


def entry(report: Any, group: str, label: str, samples: list[float], amount: int = 0) -> Any:
    return report.Entry(group, label, None, {}, len(samples), amount=amount, samples=samples)


def test_percentile_interpolates_between_neighbours(report: Any) -> None:
    assert report.summarise([3.0, 1.0, 2.0]).median == 2.0
    assert report.summarise([1.0, 2.0]).median == 1.5
    assert report.summarise([float(n) for n in range(101)]).p95 == 95.0


def test_ratio_is_ours_over_theirs_and_ours_stands_first(report: Any) -> None:
    rows = report.group_rows(
        report.GROUPS[0],
        [entry(report, "pty", "ssh, multiplexed", [0.010]), entry(report, "pty", "xos run", [0.015])],
    )
    assert [row[0] for row in rows] == ["xos run", "ssh, multiplexed"]
    assert rows[1][-1] == "1.50 x"


def test_rates_compare_jobs_a_second_even_if_the_counts_differ(report: Any) -> None:
    group = next(group for group in report.GROUPS if group.key == "batch-one")
    ours = entry(report, "batch-one", "xos sub", [10.0], amount=1000)
    theirs = entry(report, "batch-one", "Slurm, plain (200 jobs)", [200.0], amount=200)
    rows = report.group_rows(group, [theirs, ours])
    assert rows[0][1] == "100 jobs/s"
    assert rows[1][-1] == "100 x"


def test_a_goal_without_figures_is_not_measured_rather_than_met(report: Any) -> None:
    assert {row[3] for row in report.goals_rows([])} == {"-"}
    measured = [entry(report, "echo", "xos run", [0.002]), entry(report, "echo", "ssh", [0.001])]
    assert next(row for row in report.goals_rows(measured) if row[0].startswith("keystroke"))[2:] == ["2.00 x", "not met"]


def test_a_failed_contender_is_shown_with_its_reason(report: Any) -> None:
    failed = entry(report, "pty", "crun run", [])
    failed.failure = "no | such thing"
    rows = report.group_rows(report.GROUPS[0], [failed])
    assert "no | such thing" in rows[0][1]
    assert "\\|" in report.table(report.heads(report.GROUPS[0]), rows)


def test_page_keeps_what_stands_outside_the_markers(report: Any) -> None:
    page = f"head\n{report.BEGIN}\nold\n{report.END}\ntail\n"
    assert report.splice(page, "new") == f"head\n{report.BEGIN}\n\nnew\n\n{report.END}\ntail\n"
    with pytest.raises(ValueError, match="lacks"):
        report.splice("no markers", "new")
