"""Fewer rows of a run, so that a study can be kept beside code; and its seconds as measured alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pldcli.bench.step_time import StepTime
from pldcli.comparison.runs import Run
from pldcli.runs.metrics import validation_key

__all__ = ["calibrated"]

_MOST_ROWS = 100
_DIGITS = 6
_EXACT = ("eval/", "train/", "progress/")
"""Metrics that a comparison is computed from; of the others six digits are enough."""


def calibrated(run: Run, time: StepTime, *, most: int = _MOST_ROWS) -> Run:
    """Replace a run's clock by steps x step time, and average neighbours among its training losses.

    Runs that train side by side, or beside other programs, slow each other: their own clocks are no fair measure. What they say is kept
    as `progress/measured_seconds`.

    Args:
        run: As it is on the disk.
        time: What its steps take where nothing else runs.
        most: Rows with a training loss to keep, about; every validation stays.
    """
    logged = [row for row in run.rows if "train/loss" in row]
    every = max(1, math.ceil(len(logged) / most))
    # From the end, so that the last stretch is a whole one.
    kept = {logged[end]["step"]: _average(logged[max(0, end - every + 1) : end + 1]) for end in range(len(logged) - 1, -1, -every)}
    thin = [kept.get(row["step"], row) if "train/loss" in row else row for row in run.rows if row["step"] in kept or validation_key(row)]
    schedule = run.config.pld_schedule

    def on_clock(row: Mapping[str, Any]) -> dict[str, Any]:
        seconds = time.seconds_until(schedule, min(row["step"], schedule.total_steps))
        return {**row, "progress/train_seconds": seconds, "progress/measured_seconds": row["progress/train_seconds"]}

    return replace(
        run,
        rows=tuple({name: _rounded(name, value) for name, value in on_clock(row).items()} for row in thin),
        starts=tuple({key: value for key, value in start.items() if key != "started"} for start in run.starts[-1:]),
    )


def _average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last of some rows with the mean of their losses, as far as they have them; one that is not finite makes the mean so."""
    losses: dict[str, list[Any]] = {
        name: [row[name] for row in rows if name in row] for name in rows[-1] if name.startswith("train/") and name.endswith("loss")
    }
    return {**rows[-1], **{name: None if None in found else math.fsum(found) / len(found) for name, found in losses.items()}}


def _rounded(name: str, value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) and not name.startswith(_EXACT) else value
