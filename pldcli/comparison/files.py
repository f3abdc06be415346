"""A comparison as JSON and CSV: every number in full, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pldcli.comparison.comparison import Comparison, Contrast, Reach
from pldcli.comparison.intervals import Interval
from pldcli.comparison.runs import AXES, Measurement, Run, System
from pldcli.console.section import csv_text

__all__ = ["as_json", "curves_csv", "runs_csv"]

_RATIOS = {"tokens": "tokens_ratio", "step": "steps_ratio", "executed_flops": "flops_ratio", "train_seconds": "seconds_ratio"}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Name every number of a comparison, curves and all; what was not measured or not reached is null."""
    return {
        "baseline": comparison.baseline.name,
        "warnings": list(comparison.warnings),
        "systems": [_system(system) for system in comparison.systems],
        "comparisons": [_contrast(contrast) for contrast in comparison.contrasts],
        "runs": [_run(run, system.name) for system in comparison.systems for run in system.runs],
    }


def runs_csv(comparison: Comparison) -> str:
    """Write a row per run: its final losses, what it spent, its speed, and its way to the baseline's final loss."""
    reaches = {reach.run: _reach(reach) for contrast in comparison.contrasts for reach in contrast.reaches}
    rows = []
    for system in comparison.systems:
        for run in system.runs:
            row = {key: value for key, value in _run(run, system.name).items() if key not in ("curves", "finetuned")}
            row |= {key: value for key, value in reaches.get(run.name, {}).items() if key != "run"}
            rows.append(row | {f"finetuned {task}": _mean(scores) for task, scores in run.finetuned.items()})
    return csv_text(rows)


def curves_csv(comparison: Comparison) -> str:
    """Write a row per validation and per logged training loss (smoothed) of every run."""
    rows = []
    for system in comparison.systems:
        for run in system.runs:
            for kind, curve in (("validation", run.validation), ("training_smoothed", run.smoothed)):
                rows += [{"run": run.name, "system": system.name, "seed": run.seed, "kind": kind, **asdict(point)} for point in curve]
    return csv_text(rows)


def _system(system: System) -> dict[str, Any]:
    losses = system.final_losses
    return {
        "name": system.name,
        "runs": [run.name for run in system.runs],
        "seeds": list(system.seeds),
        "is_complete": system.is_complete,
        "validation_loss_mean": _mean(losses),
        "validation_losses": list(losses),
        "training_loss_mean": system.mean("final_training_loss"),
        "seconds_per_step": system.mean("seconds_per_step"),
        "tokens_per_second": system.mean("tokens_per_second"),
        "flops_per_token": system.mean("flops_per_token"),
        "predicted_flops_per_token": system.mean("predicted_flops_per_token"),
        "predicted_total_flops_saved": system.runs[0].planned_flops.saved,
        "finetuned": {task: {"mean": _mean(scores), "n": len(scores)} for task, scores in system.finetuned.items()},
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    difference = contrast.difference
    return {
        "system": contrast.system.name,
        "equal": list(contrast.equal),
        "differs": list(contrast.differs),
        "controls": list(contrast.controls),
        "final_validation_loss_difference": None
        if difference is None
        else _interval(difference.interval) | {"seeds": list(difference.seeds), "is_complete": difference.is_complete},
        "finetuned_difference": {task: _interval(interval) for task, interval in contrast.finetuned.items()},
        "reaches": [_reach(reach) for reach in contrast.reaches],
        "saving_per_token": asdict(contrast.saving),
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "confidence": 0.95, "low": interval.low, "high": interval.high, "num_pairs": interval.n}


def _reach(reach: Reach) -> dict[str, Any]:
    return {
        "run": reach.run,
        "reference": reach.reference,
        "target_loss": reach.target,
        "reached": reach.at is not None,
        **{f"reached_at_{axis}": getattr(reach.at, axis, None) for axis in AXES},
        **{name: reach.ratio(axis) for axis, name in _RATIOS.items()},
        "at_first_validation": reach.is_first_validation,
        "schedule_finished": reach.schedule_finished,
        "schedule_share": reach.schedule_share,
        "learning_rate_share": reach.learning_rate_share,
        "run_or_reference_unfinished": reach.is_unfinished_pair,
    }


def _run(run: Run, system: str) -> dict[str, Any]:
    return {
        "run": run.name,
        "path": run.path,
        "system": system,
        "seed": run.seed,
        "state": run.state,
        "is_complete": run.is_complete,
        "last_validated_step": run.final.step,
        "total_steps": run.config.train.total_steps,
        "tokens": run.final.tokens,
        "executed_flops": run.final.executed_flops,
        "train_seconds": run.final.train_seconds,
        "validation_loss": run.final.loss,
        "training_loss": run.final_training_loss,
        "seconds_per_step": run.seconds_per_step,
        "tokens_per_second": run.tokens_per_second,
        "flops_per_token": run.flops_per_token,
        "predicted_flops_per_token": run.predicted_flops_per_token,
        "finetuned": {task: list(scores) for task, scores in run.finetuned.items()},
        "curves": {"validation": _points(run.validation), "training_smoothed": _points(run.smoothed)},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _points(curve: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [asdict(point) for point in curve]
