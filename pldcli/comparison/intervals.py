"""Differences between paired measurements, with the interval that Student's t gives their mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "mean_interval", "t_quantile"]


@dataclass(frozen=True)
class Interval:
    """The mean of some differences and how far from it the true mean may lie."""

    mean: float
    half_width: float | None
    """Of the two-sided interval; None of a single difference, which says nothing about spread."""
    n: int
    """Number of differences."""

    @property
    def low(self) -> float | None:
        """Compute the lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Compute the upper end."""
        return None if self.half_width is None else self.mean + self.half_width

    @property
    def holds_zero(self) -> bool | None:
        """Return whether no difference at all is among the plausible ones; None without an interval."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width


def mean_interval(differences: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Compute the mean of at least one difference with its t interval."""
    assert differences, "there is nothing to average"
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, None, 1)
    return Interval(mean, t_quantile(confidence, n - 1) * statistics.stdev(differences) / math.sqrt(n), n)


def t_quantile(confidence: float, degrees: int) -> float:
    """Find t with P(|T| <= t) = confidence for Student's T.

    Args:
        confidence: In (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    assert 0.0 < confidence < 1.0 and degrees >= 1
    low, high = 0.0, math.pi / 2  # of the angle: its tangent is t / sqrt(degrees)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """Compute P(|T| <= sqrt(degrees) tan(angle)); a finite sum, since the degrees are whole.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    cosine = math.cos(angle)
    first = degrees % 2  # powers of the cosine are odd for odd degrees
    term, total = cosine**first, 0.0
    for power in range(first, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2.0 / math.pi * (angle + total) if first else total
