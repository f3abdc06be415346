"""Durations and quantities as people read them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["MISSING", "duration", "number", "quantity", "with_spread"]

MISSING = "-"
"""Stands in a table where there is no number."""


def number(value: float | None, form: str) -> str:
    """Write a number in a format, or that there is none."""
    return MISSING if value is None else format(value, form)


def with_spread(values: Sequence[float], *, digits: int = 4) -> str:
    """Write a mean, with the standard deviation of several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def duration(seconds: float) -> str:
    """Write seconds as people say them: 42 s, 7 min 05 s, 3 h 12 min, 5.2 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole / 86400:,.1f} days"


def quantity(number: float) -> str:
    """Write a number with three figures and k, M, G, T, P or E."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:  # what rounds to it
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
