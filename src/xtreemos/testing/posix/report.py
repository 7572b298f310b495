"""What a run says: verdicts by case, counts by call, as a summary, as TAP or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from xtreemos.testing.posix.known import Deviation
from xtreemos.testing.posix.model import Result

PASSED, FAILED, DEVIATED, SKIPPED = "passed", "failed", "deviated", "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result seen in the light of the declared deviations; `reason` is that of the deviation or of the skip."""

    result: Result
    state: str
    reason: str = ""


def judge(result: Result, deviations: Sequence[Deviation]) -> Verdict:
    """A failure that is declared is a deviation; what is declared and passes all the same simply passed."""
    if result.skipped:
        return Verdict(result, SKIPPED, result.skipped)
    if not result.problem:
        return Verdict(result, PASSED)
    declared = next((one for one in deviations if one.covers(result.id)), None)
    return Verdict(result, DEVIATED, declared.reason) if declared else Verdict(result, FAILED)


def unused(verdicts: Iterable[Verdict], deviations: Sequence[Deviation]) -> list[Deviation]:
    """Deviations that no failing case needed: they are out of date, or their cases were not run."""
    failed = [one.result.id for one in verdicts if one.state == DEVIATED]
    return [one for one in deviations if not any(one.covers(name) for name in failed)]


def counts(verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """By call: cases, checks (judged steps), and cases by state."""
    table: dict[str, Counter[str]] = {}
    for one in verdicts:
        row = table.setdefault(one.result.id.partition("/")[0], Counter())
        row.update({"cases": 1, "checks": one.result.checks, one.state: 1})
    return {
        call: {key: row[key] for key in ("cases", "checks", PASSED, FAILED, DEVIATED, SKIPPED)}
        for call, row in sorted(table.items())
    }


def summary(verdicts: Sequence[Verdict], seconds: float) -> Iterator[str]:
    """Lines for a person: one row per call and a total; what failed is printed by `failures`."""
    table = counts(verdicts)
    yield f"{'call':<18}{'cases':>8}{'checks':>9}{'passed':>8}{'failed':>8}{'deviated':>10}{'skipped':>9}"
    total: Counter[str] = Counter()
    for call, row in [*table.items(), ("total", total)]:
        yield f"{call:<18}{row['cases']:>8}{row['checks']:>9}{row[PASSED]:>8}{row[FAILED]:>8}{row[DEVIATED]:>10}{row[SKIPPED]:>9}"
        if row is not total:
            total.update(row)
    yield f"{seconds:.1f} s"


def failures(verdicts: Iterable[Verdict], *, trace: bool) -> Iterator[str]:
    """A line for each failed case, and with `trace` its steps."""
    for one in verdicts:
        if one.state == FAILED:
            yield f"FAILED {one.result.id}: {one.result.problem}"
            if trace:
                yield from (f"    {line}" for line in one.result.trace)


def tap(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Test Anything Protocol, version 13: deviations are TODO, skips are SKIP."""
    yield "TAP version 13"
    yield f"1..{len(verdicts)}"
    for number, one in enumerate(verdicts, 1):
        verb = "ok" if one.state in {PASSED, SKIPPED} else "not ok"
        note = {SKIPPED: f" # SKIP {one.reason}", DEVIATED: f" # TODO {one.reason}"}.get(one.state, "")
        yield f"{verb} {number} - {one.result.id}{note}"
        if one.result.problem:
            yield from (f"# {line}" for line in (one.result.problem, *one.result.trace))


def as_json(verdicts: Sequence[Verdict], seconds: float) -> str:
    """All of it: `{seconds, calls: {call: counts}, cases: [{id, state, problem, reason, checks, trace}]}`; passed cases are not listed."""
    cases = [
        {
            "id": v.result.id,
            "state": v.state,
            "problem": v.result.problem,
            "reason": v.reason,
            "checks": v.result.checks,
            "trace": v.result.trace,
        }
        for v in verdicts
        if v.state != PASSED
    ]
    return json.dumps({"seconds": round(seconds, 3), "calls": counts(verdicts), "cases": cases}, indent=1)
