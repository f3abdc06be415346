"""A study as JSON, for other programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pldcli.study.jobs import Outcome
from pldcli.study.plan import PlannedRun
from pldcli.study_report.results import Results, verdict

__all__ = ["as_json", "runs_json"]


def as_json(results: Results) -> dict[str, Any]:
    """Name every number of a study's results; what is not known or not finite is null."""
    out = results.study.out
    return {
        "study": results.spec.name,
        "out": str(out),
        "report": str(out / "report" / "report.md"),
        "is_complete": results.is_complete,
        "runs": runs_json(results.runs, [results.outcomes[run.name] for run in results.runs]),
        "systems": [_system(results, group) for group in results.groups],
        "checks": [
            {
                "better": result.check.better,
                "than": result.check.than,
                "by_seed_deviations": result.check.by_seed_deviations,
                "difference": result.difference,
                "deviation": result.deviation,
                "num_seeds": result.num_seeds,
                "passed": result.passed,
            }
            for result in results.checks
        ],
        "scores": [
            {"run": one.run.name, "task": one.task, "state": outcome.state, "score": outcome.score, "note": outcome.note}
            for one, outcome in results.scorings.items()
        ],
        "rungs": [
            {
                "number": rung.number,
                "fraction": rung.rung.fraction,
                "standing": [{"system": name, "loss": loss if math.isfinite(loss) else None} for name, loss in rung.standing],
            }
            for rung in results.rungs
        ],
    }


def runs_json(runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """List runs, and how far each came."""
    return [
        {
            "run": run.name,
            "system": run.group,
            "seed": run.seed,
            "total_steps": run.config.train.total_steps,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "state": outcome.state,
            "step": outcome.step,
            "validation_loss": outcome.loss,
            "note": outcome.note,
        }
        for run, outcome in zip(runs, outcomes, strict=True)
    ]


def _system(results: Results, group: str) -> dict[str, Any]:
    contrast, system, baseline = results.contrast(group), results.systems.get(group), results.baseline_of(group)
    diverged = results.num_diverged(group, *([] if baseline is None else [baseline]))
    interval = None if contrast is None or contrast.difference is None else contrast.difference.interval
    return {
        "system": group,
        "against": baseline,
        "num_diverged": results.num_diverged(group),
        "validation_losses": list(system.final_losses) if system else [],
        "difference": None if interval is None else {"mean": interval.mean, "low": interval.low, "high": interval.high},
        "verdict": None if contrast is None else verdict(contrast, num_diverged=diverged),
    }
