"""How a study is told: tables and sentences, the same on the screen and in its report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pldcli.comparison import tables as comparison_tables
from pldcli.comparison.runs import unit_of_losses
from pldcli.console.section import Section
from pldcli.console.units import MISSING, duration, quantity, with_spread
from pldcli.study.calibration import QUIET
from pldcli.study.jobs import Outcome, State
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study_report.checks import CheckResult
from pldcli.study_report.results import Results, verdict
from pldcli.study_report.sensitivity import Line

__all__ = ["check_lines", "differences", "finetuned", "halving", "results_table", "run_table", "sensitivity", "step_times"]

_DIFFERENCE = ("difference", "95 % interval", "pairs", "against", "verdict")
_DIFFERENCE_NOTE = "negative is better than what it is held against; the interval is Student's t over pairs of runs with the same seed"


def results_table(results: Results, *, differences: bool = False) -> Section:
    """Lay out what each system spent and where it ended, and beside it, if wanted, its difference to its baseline."""
    rows = []
    for group, runs in results.groups.items():
        system, first = results.systems.get(group), runs[0]
        spent = (MISSING, MISSING)
        if system is not None:
            finals = [run.final for run in system.runs]
            spent = (quantity(statistics.fmean(f.tokens for f in finals)), quantity(statistics.fmean(f.executed_flops for f in finals)))
        seeds, steps = ", ".join(str(run.seed) for run in runs), f"{first.config.train.total_steps:,}"
        losses = _losses([results.outcomes[run.name] for run in runs])
        row = (group, seeds, steps, *spent, duration(first.seconds), losses)
        no_difference = ("", "", "", "", "" if results.baseline_of(group) else "baseline")
        rows.append((*row, *(_difference(group, results) or no_difference)) if differences else row)
    headings = ("system", "seeds", "steps", "tokens", "FLOPs", "time", "final loss", *(_DIFFERENCE if differences else ()))
    unit = unit_of_losses(list(results.trained.values()))
    notes = (
        f"final loss: last validation, at full depth, {unit}; ± is the standard deviation over seeds",
        "time: steps x step time, measured alone and in turn before the first run; FLOPs: as executed",
        *([_DIFFERENCE_NOTE] if differences and results.comparisons else []),
    )
    return Section("Results", headings, tuple(rows), notes=notes, words=("against", "verdict") if differences else ("final loss",))


def differences(results: Results) -> Section | None:
    """Lay out the paired differences to each system's baseline."""
    found = {group: cells for group in results.groups if (cells := _difference(group, results))}
    if not found:
        return None
    rows = tuple((group, against, verdict, *numbers) for group, (*numbers, against, verdict) in found.items())
    headings = ("system", *_DIFFERENCE[3:], *_DIFFERENCE[:3])
    return Section("Differences of final loss", headings, rows, left=3, notes=(_DIFFERENCE_NOTE,))


def _difference(group: str, results: Results) -> tuple[str, ...] | None:
    baseline, contrast = results.baseline_of(group), results.contrast(group)
    if baseline is None or contrast is None:
        return None
    difference = contrast.difference
    numbers = (MISSING,) * 3 if difference is None else comparison_tables.interval_cells(difference.interval)
    return (*numbers, baseline, verdict(contrast, num_diverged=results.num_diverged(group, baseline)))


def finetuned(results: Results) -> dict[str, Section]:
    """Lay out the scores after fine-tuning, a table per baseline that has any."""
    tables = {baseline: comparison_tables.finetuned(comparison) for baseline, comparison in results.comparisons.items()}
    return {baseline: table for baseline, table in tables.items() if table is not None}


def check_lines(results: Results) -> list[str]:
    """Return whether the study can answer, a line per check."""
    return [_check_line(result) for result in results.checks]


def sensitivity(key: str, lines: Sequence[Line]) -> Section:
    """Lay out final losses over the values of a setting."""
    labels = {point.value: point.label for line in lines for point in line.points}
    numbers = all(isinstance(value, int | float) for value in labels)
    rows = []
    for value in sorted(labels) if numbers else labels:
        cells = []
        for line in lines:
            point = next((point for point in line.points if point.value == value), None)
            cells.append(MISSING if point is None else _losses(point.outcomes))
        rows.append((labels[value], *cells))
    return Section(f"Final loss over {key}", (key.rpartition(".")[2], *(line.name for line in lines)), tuple(rows))


def halving(results: Results) -> Section | None:
    """Lay out what was tried at each rung, and how it ranked."""
    spec = results.spec.halving
    if spec is None:
        return None
    headings = ["candidate"]
    for number, rung in enumerate(spec.rungs, 1):
        headings.append(f"rung {number}: {rung.fraction:g}, seeds {', '.join(map(str, rung.seeds))}")
    rows = [
        (name, *(_standing(name, results, number) for number in range(len(spec.rungs)))) for name in _best_first(spec.candidates, results)
    ]
    note = "rank and mean final loss at each rung; a rung's number is its fraction of each candidate's whole length"
    return Section("Successive halving", tuple(headings), tuple(rows), notes=(note,))


def step_times(results: Results) -> Section:
    """Lay out what the steps of each shape take."""
    rows = []
    for shape in results.study.timings.shapes.values():
        dense, block = shape.time.dense_seconds, shape.time.block_seconds
        rows.append(
            (
                shape.label,
                f"{dense * 1e3:,.1f}",
                f"{shape.least_seconds * 1e3:,.1f} to {shape.most_seconds * 1e3:,.1f}",
                f"{block * 1e3:,.1f}",
                str(shape.steps),
            )
        )
    headings = ("shape", "ms/step", "of rounds", "ms less per dropped block", "steps")
    notes = ["medians; measured with all blocks and with half of them, before the first run, nothing else of the study running"]
    worst = max(shape.spread for shape in results.study.timings.shapes.values())
    if worst > QUIET:
        notes.append(f"rounds differ by {worst:.0%}: THE MACHINE WAS NOT QUIET, and times are no more certain than that")
    return Section("Step times", headings, tuple(rows), notes=tuple(notes))


def run_table(plan: Plan, runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> Section:
    """Lay out every run: how long it is and how far."""
    rows = [
        (run.group, str(run.seed), f"{run.config.train.total_steps:,}", quantity(run.tokens), duration(run.seconds), str(outcome))
        for run, outcome in zip(runs, outcomes, strict=True)
    ]
    halving = plan.spec.halving
    known = max((run.rung for run in runs), default=0)
    for number in range(known, len(halving.rungs) if halving else 0):
        assert halving is not None
        rung = halving.rungs[number]
        length = f"{rung.fraction:g} of whole"
        rows.append(
            (f"best {halving.takes_part(number)} of rung {number}", ", ".join(map(str, rung.seeds)), length, "", "", "not known yet")
        )
    return Section("Runs", ("system", "seed", "steps", "tokens", "time", "state"), tuple(rows), words=("state",))


def _check_line(result: CheckResult) -> str:
    check = result.check
    asked = f"{check.better} must beat {check.than} by more than {check.by_seed_deviations:g} standard deviations over seeds"
    if result.difference is None:
        return f"Not decided: {asked}; no seed has finished in both."
    by = f"{result.difference:+.4f} over {result.num_seeds} seed(s)"
    if result.ratio is None or result.deviation is None:
        return f"Not decided: {asked}; it is {by}, and one seed has no standard deviation."
    found = f"it is {by}, {result.ratio:.1f} times the standard deviation of {result.deviation:.4f}"
    if result.passed:
        return f"Passed: {asked}; {found}."
    return f"NOT PASSED, SO THIS SIZE CANNOT ANSWER: {asked}; {found}."


def _standing(name: str, results: Results, number: int) -> str:
    if number >= len(results.rungs):
        return MISSING
    rung = results.rungs[number]
    runs = [run for run in rung.runs if run.system == name]
    if not runs:
        return ""
    outcomes = _losses([results.outcomes[run.name] for run in runs])
    place = rung.place(name)
    return outcomes if place is None else f"{place}. {outcomes}"


def _best_first(candidates: Sequence[str], results: Results) -> list[str]:
    """Order candidates by how far they came, then by their rank there."""

    def standing(name: str) -> tuple[int, int]:
        for rung in reversed(results.rungs):
            if any(run.system == name for run in rung.runs):
                return -rung.number, rung.place(name) or 0
        return 0, 0

    return sorted(candidates, key=standing)


def _losses(outcomes: Sequence[Outcome]) -> str:
    """Return mean and spread of the runs that finished, and what became of the others."""
    losses = [outcome.loss for outcome in outcomes if outcome.loss is not None and math.isfinite(outcome.loss)]
    parts = [with_spread(losses)] if losses else []
    diverged = [f"{outcome.step:,}" for outcome in outcomes if outcome.state == State.DIVERGED]
    parts += [f"diverged at step {', '.join(diverged)}"] if diverged else []
    left = len(outcomes) - len(losses) - len(diverged)
    parts += [f"{left} of {len(outcomes)} left" if left < len(outcomes) else "to do"] if left else []
    return "; ".join(parts)
