"""Durations and quantities as people read them."""

from __future__ import annotations

__all__ = ["duration", "quantity"]


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
