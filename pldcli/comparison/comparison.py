"""What runs come to beside one another: final losses, the way to the baseline's loss, time and FLOPs.

Losses are compared at full depth, on validation text. Runs that differ in their seed alone are one system, and systems
are paired by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli.comparison.intervals import Interval, mean_interval
from pldcli.comparison.runs import Measurement, Run, System, group_runs
from pldcli.comparison.words import check_runs, differences, find_controls, incomparable, unlike_seconds
from pldcli.errors import UsageError

__all__ = ["Comparison", "Contrast", "Difference", "Reach", "Saving", "compare_runs", "compare_systems", "reach_loss"]

_EQUAL_TOKENS, _EQUAL_TIME = 0.001, 0.03
"""Two systems are said to be at equal tokens or time when they differ by no more than this share."""


@dataclass(frozen=True)
class Difference:
    """Final validation loss of a system less that of the baseline."""

    interval: Interval
    seeds: tuple[int, ...]
    """Of the pairs; none where the systems share no seed, and then means are compared and there is no interval."""
    is_complete: bool
    """Every run that went in had come to its end."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where a run first has the loss that the baseline ended with."""

    run: str
    reference: str
    """The baseline's run: that with the same seed, else the first."""
    target: float
    reference_at: Measurement
    """Where the reference first had that loss: at its end, unless its loss rose again."""
    at: Measurement | None
    """Between two validations, by a straight line; None where the loss was not reached."""
    is_first_validation: bool
    """It was there at the first validation already: the true crossing may lie before it."""
    schedule_share: float | None
    """Part of the run's schedule that had passed; below 1 the schedule was not finished."""
    learning_rate_share: float | None
    """Learning rate at this point as a share of its peak."""
    is_unfinished_pair: bool
    """The run or the reference has not come to its end."""
    seconds_compare: bool = True
    """Both trained on such hardware, in such a format, with as many threads and processes."""

    def ratio(self, axis: str) -> float | None:
        """Divide what it took by what the baseline's own run took to the same loss."""
        own = getattr(self.reference_at, axis)
        if self.at is None or not own or (axis == "train_seconds" and not self.seconds_compare):
            return None
        return float(getattr(self.at, axis) / own)

    @property
    def schedule_finished(self) -> bool | None:
        """Return whether the schedule had come to its end there; None where the loss was not reached."""
        return None if self.schedule_share is None else self.schedule_share >= 1.0


@dataclass(frozen=True)
class Saving:
    """Shares saved per token against the baseline; None where something was not measured."""

    predicted_flops: float
    """From shapes and schedules."""
    executed_flops: float
    step_time: float | None
    """Of the median step, so that a disturbance counts little."""
    run_time: float | None
    """Of all training seconds."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One system beside the baseline."""

    system: System
    difference: Difference | None
    """None where the losses do not compare, or one diverged."""
    reaches: tuple[Reach, ...]
    saving: Saving
    equal: tuple[str, ...]
    """In what the runs of `difference` are alike: `tokens`, `time`, both or neither."""
    differs: tuple[str, ...]
    """In words, a line each."""
    controls: tuple[str, ...]
    """Systems that tell what dropping did; empty where it drops nothing or there is none."""
    finetuned: Mapping[str, Interval]
    """Task to score less that of the baseline, paired by the seed of pre-training; of 0 pairs where they share no seed."""


@dataclass(frozen=True)
class Comparison:
    """Systems beside one another."""

    systems: tuple[System, ...]
    baseline: System
    contrasts: tuple[Contrast, ...]
    """Of every other system."""
    warnings: tuple[str, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """List the runs, system by system."""
        return tuple(run for system in self.systems for run in system.runs)


def compare_runs(runs: Sequence[Run], *, baseline: str | None = None) -> Comparison:
    """Compare runs with a baseline.

    Args:
        runs: At least two.
        baseline: A run's path or name, or a system's name; the first run by default.

    Raises:
        UsageError: There are fewer than two runs, or none is the baseline.
    """
    if len(runs) < 2:
        named = f"there is only {runs[0].path}" if runs else "none is named"
        raise UsageError(f"a comparison needs two runs, {named}", hint="name the run to compare with; `pld runs` lists the runs here")
    systems = group_runs(runs)
    return compare_systems(systems, systems[0] if baseline is None else _find(baseline, systems))


def compare_systems(systems: Sequence[System], reference: System) -> Comparison:
    """Compare systems with one of them.

    Args:
        systems: At least one.
        reference: The baseline, one of them.
    """
    contrasts = tuple(_contrast(system, reference, systems) for system in systems if system is not reference)
    return Comparison(tuple(systems), reference, contrasts, tuple(check_runs(systems, reference)))


def reach_loss(target: float, run: Run) -> tuple[Measurement | None, bool]:
    """Find where a run first has a loss of at most `target`.

    Returns:
        The point, on a straight line between two validations, or None; and whether it is the first validation.
    """
    for number, row in enumerate(run.validation):
        if row.loss is None or row.loss > target:
            continue
        before = run.validation[number - 1] if number else None
        if before is None or before.loss is None:
            return row, number == 0
        part = (before.loss - target) / (before.loss - row.loss)
        return _between(before, row, part, target), False
    return None, False


def _find(name: str, systems: Sequence[System]) -> System:
    for system in systems:
        if name == system.name or any(name in (run.name, run.path) or Path(name) == Path(run.path) for run in system.runs):
            return system
    names = ", ".join(run.name for system in systems for run in system.runs)
    raise UsageError(f"no run called {name} is among those to compare", where="--baseline", hint=f"choose one of {names}")


def _contrast(system: System, baseline: System, systems: Sequence[System]) -> Contrast:
    seconds_compare = not unlike_seconds([*system.runs, *baseline.runs])
    compares = not any(incomparable(run, other) for run in system.runs for other in baseline.runs)
    reaches = [reach for run in system.runs if (reach := _reach(run, _partner(run, baseline)))] if compares else []
    difference = _difference(system, baseline) if compares else None
    equal = _equal(system, baseline, difference.seeds if difference else ())
    controls = [control.name for control in find_controls(system, systems)] if not system.config.pld_schedule.is_dense else []
    return Contrast(
        system=system,
        difference=difference,
        reaches=tuple(reaches),
        saving=_saving(system, baseline, seconds_compare=seconds_compare),
        equal=tuple(one for one in equal if one != "time" or seconds_compare),
        differs=tuple(differences(system, baseline)),
        controls=tuple(controls),
        finetuned=_score_differences(system, baseline),
    )


def _partner(run: Run, baseline: System) -> Run:
    """Choose the baseline's run with the same seed, else its first."""
    return next((other for other in baseline.runs if other.seed == run.seed), baseline.runs[0])


def _reach(run: Run, reference: Run) -> Reach | None:
    target = reference.final.loss
    if target is None:
        return None
    at, is_first = reach_loss(target, run)
    return Reach(
        run=run.name,
        reference=reference.name,
        target=target,
        reference_at=reach_loss(target, reference)[0] or reference.final,
        at=at,
        is_first_validation=is_first,
        schedule_share=None if at is None else at.step / run.config.train.total_steps,
        learning_rate_share=None if at is None else run.learning_rate_share(at.step),
        is_unfinished_pair=not (run.is_complete and reference.is_complete),
        seconds_compare=not unlike_seconds([run, reference]),
    )


def _between(before: Measurement, after: Measurement, part: float, loss: float) -> Measurement:
    def mix(one: float, other: float) -> float:
        return one + part * (other - one)

    return Measurement(
        math.ceil(mix(before.step, after.step) - 1e-9),  # the first whole step at which the line is there
        mix(before.tokens, after.tokens),
        mix(before.executed_flops, after.executed_flops),
        mix(before.train_seconds, after.train_seconds),
        loss,
    )


def _difference(system: System, baseline: System) -> Difference | None:
    """Compare final losses seed by seed; runs that have not come to their end count only where there are no others."""
    for complete in (True, False):
        ours, theirs = (_loss_of_seeds(one, complete=complete) for one in (system, baseline))
        if ours and theirs:
            return Difference(_paired(ours, theirs), tuple(seed for seed in ours if seed in theirs), complete)
    return None


def _score_differences(system: System, baseline: System) -> dict[str, Interval]:
    """Compare fine-tuning scores seed by seed of pre-training."""
    ours, theirs = system.finetuned_by_seed, baseline.finetuned_by_seed
    return {task: _paired(ours[task], theirs[task]) for task in ours if task in theirs}


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Average the differences of the seeds in both, or compare means where there are none, and then there is no interval."""
    seeds = [seed for seed in ours if seed in theirs]
    if seeds:
        return mean_interval([ours[seed] - theirs[seed] for seed in seeds])
    return Interval(statistics.fmean(ours.values()) - statistics.fmean(theirs.values()), None, 0)


def _loss_of_seeds(system: System, *, complete: bool) -> dict[int, float]:
    """Average the final losses of each seed."""
    losses: dict[int, list[float]] = {}
    for run in system.runs:
        if run.final.loss is not None and (run.is_complete or not complete):
            losses.setdefault(run.seed, []).append(run.final.loss)
    return {seed: statistics.fmean(values) for seed, values in losses.items()}


def _saving(system: System, baseline: System, *, seconds_compare: bool) -> Saving:
    names = ("predicted_flops_per_token", "flops_per_token", "step_seconds_per_token", "run_seconds_per_token")
    predicted, executed, step_time, run_time = (_saved(system.mean(name), baseline.mean(name)) for name in names)
    return Saving(predicted or 0.0, executed or 0.0, *((step_time, run_time) if seconds_compare else (None, None)))


def _saved(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else 1.0 - ours / theirs


def _equal(system: System, baseline: System, seeds: Sequence[int]) -> tuple[str, ...]:
    """Return in what the runs that are compared were given the same: those that have come to their end, of these seeds if there are any."""
    ours, theirs = ([run for run in one.runs if run.is_complete and (run.seed in seeds or not seeds)] for one in (system, baseline))
    if not (ours and theirs):
        return ()
    shares = {}
    for name, attribute in (("tokens", "tokens"), ("time", "train_seconds")):
        mine, other = (statistics.fmean(getattr(run.final, attribute) for run in runs) for runs in (ours, theirs))
        shares[name] = abs(mine - other) / other if other else 0.0
    return tuple(name for name, limit in (("tokens", _EQUAL_TOKENS), ("time", _EQUAL_TIME)) if shares[name] <= limit)
