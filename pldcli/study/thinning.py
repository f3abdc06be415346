"""Fewer rows of a run, so that a study can be kept beside code; and its seconds as measured alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pldcli.bench.step_time import StepTime
from pldcli.comparison.runs import Measurement, Run

__all__ = ["calibrated", "thin_rows"]

_MOST_ROWS = 100
_DIGITS = 6


def thin_rows(rows: Sequence[Mapping[str, Any]], *, most: int = _MOST_ROWS) -> list[dict[str, Any]]:
    """Keep every validation and at most so many of the other rows, the last one among them; six digits of each number are enough."""
    others = [number for number, row in enumerate(rows) if "eval/mlm_loss" not in row]
    every = max(1, math.ceil(len(others) / most))
    kept = set(others[::-1][::every])
    return [
        {key: _rounded(value) for key, value in row.items()} for number, row in enumerate(rows) if number in kept or "eval/mlm_loss" in row
    ]


def calibrated(run: Run, time: StepTime, *, most: int = _MOST_ROWS) -> Run:
    """Replace a run's clock by steps x step time, and average neighbours among its training losses.

    Runs that train side by side, or beside other programs, slow each other: their own clocks are no fair measure.

    Args:
        run: As it is on the disk.
        time: What its steps take where nothing else runs.
        most: Training losses to keep, about.
    """
    schedule = run.config.pld_schedule

    def on_clock(point: Measurement) -> Measurement:
        return replace(point, train_seconds=time.seconds_until(schedule, min(point.step, schedule.total_steps)))

    every = max(1, math.ceil(len(run.training) / most))
    # From the end, so that the last stretch is a whole one.
    ends = range(len(run.training) - 1, -1, -every)
    training = [on_clock(_average(run.training[max(0, end - every + 1) : end + 1])) for end in reversed(ends)]
    starts = tuple({key: value for key, value in start.items() if key != "started"} for start in run.starts[-1:])
    return replace(run, validation=tuple(map(on_clock, run.validation)), training=tuple(training), starts=starts, wall_seconds=0.0)


def _average(points: Sequence[Measurement]) -> Measurement:
    """Stand at the last of some points with the mean of their losses; what is not finite stays so."""
    losses = [point.loss for point in points]
    return replace(points[-1], loss=None if None in losses else math.fsum(loss or 0.0 for loss in losses) / len(losses))


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}")
