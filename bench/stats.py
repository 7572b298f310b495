"""Medians, percentiles and ratios. Pure; knows nothing of what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list of samples says: count, median, 95th percentile, smallest and largest, in the samples' own unit."""

    count: int
    median: float
    p95: float
    low: float
    high: float


def percentile(samples: list[float], share: float) -> float:
    """Return the value below which `share` (0..1) of the samples lie, linear between neighbours.

    Raises:
        ValueError: no samples, or `share` outside 0..1.
    """
    if not samples or not 0 <= share <= 1:
        raise ValueError("percentile needs samples and a share between 0 and 1")
    ordered = sorted(samples)
    at = share * (len(ordered) - 1)
    low, high = math.floor(at), math.ceil(at)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summarise(samples: list[float]) -> Summary:
    """Return the summary of at least one sample."""
    return Summary(len(samples), percentile(samples, 0.5), percentile(samples, 0.95), min(samples), max(samples))


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return ours / theirs, or None where either is missing or theirs is zero."""
    if ours is None or not theirs:
        return None
    return ours / theirs


def time_text(seconds: float) -> str:
    """Return a time with three significant figures and a unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{three(seconds * 1e3)} ms"
    return f"{three(seconds)} s"


def three(value: float) -> str:
    """Return `value` with three significant figures, without an exponent."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, digits)}f}"
