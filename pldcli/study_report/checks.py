"""Can this study answer anything? A known difference must show above the noise of the seeds first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from pldcli.study.spec import Check

__all__ = ["CheckResult", "judge"]


@dataclass(frozen=True)
class CheckResult:
    """What came of a check."""

    check: Check
    num_seeds: int
    """That both systems have finished."""
    difference: float | None
    """Mean over seeds of the worse system's final loss less the better one's; positive is as expected. None without a pair."""
    deviation: float | None
    """The largest of three standard deviations over seeds: of each system's losses, and of the differences. None below two pairs."""
    num_diverged: int = 0
    """Runs of the better system, which then is not."""

    @property
    def ratio(self) -> float | None:
        """Divide the difference by the deviation; None where that is not decided yet."""
        if self.difference is None or self.deviation is None:
            return None
        if self.deviation == 0.0:
            return math.inf if self.difference > 0 else 0.0 if self.difference == 0 else -math.inf
        return self.difference / self.deviation

    @property
    def passed(self) -> bool | None:
        """Return whether it holds; None where that is not decided yet."""
        if self.num_diverged:
            return False
        return None if self.ratio is None else self.ratio > self.check.by_seed_deviations


def judge(check: Check, better: Mapping[int, float], than: Mapping[int, float], *, num_diverged: int = 0) -> CheckResult:
    """Compare two systems, paired by seed.

    Args:
        check: What is expected.
        better: Seed to final validation loss of the system that should be better.
        than: The same of the other.
        num_diverged: Runs of the former that have no loss.
    """
    seeds = [seed for seed in better if seed in than]
    differences = [than[seed] - better[seed] for seed in seeds]
    if not differences:
        return CheckResult(check, 0, None, None, num_diverged)
    mean = math.fsum(differences) / len(differences)
    if len(seeds) < 2:
        return CheckResult(check, 1, mean, None, num_diverged)
    samples = ([better[seed] for seed in seeds], [than[seed] for seed in seeds], differences)
    return CheckResult(check, len(seeds), mean, max(map(statistics.stdev, samples)), num_diverged)
