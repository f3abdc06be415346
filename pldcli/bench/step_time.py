"""Step time to training time and back: a measured step with all blocks, and what a dropped block saves, under any schedule.

The arithmetic of equal time and of `--budget`; the steps are measured by `budget` and, for studies, by `pldcli.study.calibration`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pldcli.config import Config, PldConfig
from pldcli.errors import UsageError
from pldcli.pld import Schedule
from pldcli.settings import parse

__all__ = ["StepTime", "always_dropped", "budget_seconds", "half_dropped", "parse_seconds"]

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)\s*(min|[smhd])"
_ROUNDS = 4
"""The mean over a schedule depends on its length a little: so often is the length corrected."""


@dataclass(frozen=True)
class StepTime:
    """What a step takes where all blocks run, and how much less for each that does not."""

    dense_seconds: float
    block_seconds: float
    """Saved by one dropped block."""

    def seconds_until(self, schedule: Schedule, steps: int) -> float:
        """Return the training seconds of the first `steps` steps (at least 1) of a schedule."""
        return self.seconds_between(schedule, 0, steps)

    def seconds_between(self, schedule: Schedule, first: int, stop: int) -> float:
        """Return the training seconds of steps first..stop-1 of a schedule."""
        dropped = schedule.num_blocks * (1.0 - schedule.mean_kept_fraction_between(first, stop))
        return (stop - first) * (self.dense_seconds - self.block_seconds * dropped)

    def mean_seconds(self, schedule: Schedule) -> float:
        """Average over the whole schedule."""
        return self.seconds_until(schedule, schedule.total_steps) / schedule.total_steps

    def steps_within(self, seconds: float, schedule: Schedule) -> float:
        """Find how long the schedule has to be to take so many seconds; not rounded, and less than 1 where no step fits."""
        steps = seconds / self.mean_seconds(schedule)
        for _ in range(_ROUNDS):
            steps = seconds / self.mean_seconds(replace(schedule, total_steps=max(1, round(steps))))
        return steps


def parse_seconds(text: str, where: str) -> float:
    """Read a time such as 24h, 90m, 1.5d or 1h30m, in seconds.

    Args:
        text: What was written.
        where: Option or key, for the error.

    Raises:
        UsageError: It is no time.
    """
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    if not seconds or re.sub(_PART, "", text).strip():
        raise UsageError(f"{text!r} is not a time", where=where, hint="write 24h, 90m or 1h30m")
    return seconds


def budget_seconds(text: str, overrides: Sequence[str]) -> float:
    """Read a --budget, in seconds, beside `KEY=VALUE` that leave it to find the number of steps.

    Raises:
        UsageError: It is no time, or the number of steps is set, too.
    """
    if "train.total_steps" in parse(overrides):
        raise UsageError("is what --budget finds", where="train.total_steps", hint="leave one of them out")
    return parse_seconds(text, "--budget")


def half_dropped(config: Config) -> Config:
    """Drop half of the blocks: what a block takes is then the half of the difference that matters."""
    return always_dropped(config, theta=0.5)


def always_dropped(config: Config, *, theta: float) -> Config:
    """Keep this share of the blocks, whichever, as many in every step."""
    same: dict[str, Any] = {"draws_per_step": config.pld.draws_per_step, "residual": config.pld.residual}
    return config.replace(pld=PldConfig(schedule="constant", theta_bar=theta, depth_rule="uniform", draw="fixed-depth", **same))
