"""How a comparison is told: sentences and tables, the same on the screen and on the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pldcli.comparison.comparison import Comparison, Contrast, Difference, Reach
from pldcli.comparison.intervals import Interval
from pldcli.comparison.runs import Run, System, unit_of_losses
from pldcli.comparison.scores import MINIMAL_PAIRS
from pldcli.config import describe_dropping
from pldcli.console.section import Section
from pldcli.console.units import MISSING, duration, number, quantity, with_spread

__all__ = ["finetuned", "interval_cells", "sections", "summary", "words"]

_STEADY = 0.03
"""A saving of the median step and of the whole run that differ by no more are one."""


def summary(comparison: Comparison) -> list[str]:
    """Return what came out, a paragraph per system."""
    if not comparison.contrasts:
        losses = comparison.baseline.final_losses
        spread = f", standard deviation {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        return [f"All {len(comparison.runs)} runs are one system, {comparison.baseline.name}: there is nothing to compare it with{spread}."]
    return [_sentences(contrast, comparison.baseline) for contrast in comparison.contrasts]


def sections(comparison: Comparison) -> list[Section]:
    """Lay out every table that has something to say."""
    tables = [_ends(comparison), _differences(comparison), _reaches(comparison), _speed(comparison), _savings(comparison)]
    return [table for table in (*tables, finetuned(comparison)) if table is not None]


def words(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """List what each system drops, and how it differs from the baseline."""
    baseline = comparison.baseline
    told = [(f"{baseline.name} (baseline)", [describe_dropping(baseline.config)])]
    for contrast in comparison.contrasts:
        lines = list(contrast.differs)
        if contrast.controls:
            lines.append(f"control (Pre-LN, same shape, objective and optimizer, nothing dropped): {', '.join(contrast.controls)}")
        told.append((contrast.system.name, lines))
    return told


def _sentences(contrast: Contrast, baseline: System) -> str:
    parts = [_difference_sentence(contrast, baseline), _reach_sentence(contrast)]
    saving = contrast.saving
    time, of = saving.step_time, "median step"
    if time is not None and saving.run_time is not None and abs(time - saving.run_time) > _STEADY:
        time, of = saving.run_time, "whole run"  # steps of one schedule may differ, and then the median is one of several
    told = "" if time is None else f" {_change(time, 'less')} time ({of}) and"
    parts.append(
        f"Per token it takes{told} {_change(saving.executed_flops, 'fewer')} FLOPs; "
        f"{_change(saving.predicted_flops, 'fewer')} are predicted from the schedules."
    )
    return " ".join(part for part in parts if part)


def _difference_sentence(contrast: Contrast, baseline: System) -> str:
    difference = contrast.difference
    if difference is None:
        return f"{contrast.system.name}: its losses and those of {baseline.name} do not compare."
    mean, half = difference.interval.mean, difference.interval.half_width
    at = f"at equal {' and '.join(contrast.equal)}" if contrast.equal else "at neither equal tokens nor equal time"
    place = "above" if mean > 0 else "below"
    where = f"{abs(mean):.4f} {place}" if half is None else f"{abs(mean):.4f} ± {half:.4f} {place}"
    how = _pairs(difference)
    chance = ", which may be chance" if difference.interval.holds_zero else ""
    ends = "ends" if difference.is_complete else "stands, unfinished,"
    return f"{contrast.system.name} {ends} {where} the validation loss of {baseline.name} ({how}){chance}, {at}."


def _pairs(difference: Difference) -> str:
    n = difference.interval.n
    if n == 0:
        return "no seed in common: means, no interval"
    return "one pair of runs: no interval" if n == 1 else f"{n} pairs by seed, 95 % interval"


def _reach_sentence(contrast: Contrast) -> str:
    reaches = contrast.reaches
    there = [reach for reach in reaches if reach.at is not None]
    if len(there) < len(reaches):
        return "It does not reach that loss." if len(reaches) == 1 else f"{len(there)} of its {len(reaches)} runs reach that loss."
    if not there:
        return ""
    tokens, seconds = (_mean_ratio(there, axis) for axis in ("tokens", "train_seconds"))
    who, on_average = ("It reaches", "") if len(there) == 1 else (f"All {len(there)} runs reach", " on average")
    speed = f" and {seconds:.0%} of the training time ({1 / seconds:.2f}x as fast)" if seconds else ""
    early = " SCHEDULES NOT FINISHED there." if any(not reach.schedule_finished for reach in there) else ""
    return f"{who} that loss after {number(tokens, '.0%')} of the tokens{speed}{on_average}.{early}"


def _change(saved: float, less: str) -> str:
    return f"{abs(saved):.1%} {less if saved > -0.0005 else 'more'}"


def _ends(comparison: Comparison) -> Section:
    rows = []
    for system in comparison.systems:
        first, losses = system.runs[0], system.final_losses
        planned = system.config.train.total_steps
        last = min(run.final.step for run in system.runs)
        rows.append(
            (
                system.name,
                str(len(system.runs)),
                f"{last:,}" if system.is_complete else f"{last:,}/{planned:,}",
                quantity(first.final.tokens),
                quantity(statistics.fmean(run.final.executed_flops for run in system.runs)),
                duration(statistics.fmean(run.final.train_seconds for run in system.runs)),
                with_spread(losses) if losses else "diverged",
                number(system.mean("final_training_loss"), ".4f"),
            )
        )
    notes = [f"validation: last one, at full depth, {unit_of_losses(comparison.runs)}{_spread_note(comparison)}"]
    notes.append("training: mean of the last 5 % of the steps; where blocks are dropped it is that of the smaller network")
    headings = ("system", "runs", "steps", "tokens", "FLOPs", "time", "validation", "training")
    return Section("Final losses", headings, tuple(rows), notes=tuple(notes))


def _differences(comparison: Comparison) -> Section | None:
    rows = []
    for contrast in comparison.contrasts:
        difference = contrast.difference
        equal = " and ".join(contrast.equal) or "neither"
        if difference is None:
            rows.append((contrast.system.name, "does not compare", MISSING, MISSING, equal))
            continue
        mean, ends, pairs = interval_cells(difference.interval)
        unfinished = "" if difference.is_complete else " unfinished"
        rows.append((contrast.system.name, f"{mean}{unfinished}", ends, pairs, equal))
    if not rows:
        return None
    headings = ("system", "difference", "95 % interval", "pairs", "equal")
    notes = ["negative is better than the baseline; the interval is Student's t over pairs of runs with the same seed"]
    if any(contrast.difference is not None and contrast.difference.interval.n < 2 for contrast in comparison.contrasts):
        notes.append("fewer than two pairs: no interval, and the difference may be chance")
    return Section(f"Final validation loss less that of {comparison.baseline.name}", headings, tuple(rows), notes=tuple(notes))


def _reaches(comparison: Comparison) -> Section | None:
    if not any(contrast.reaches for contrast in comparison.contrasts):
        return None
    rows = [_own_row(run) for run in comparison.baseline.runs]
    notes = ["percentages are of what the baseline's own run took to the same loss; between two validations on a straight line"]
    for contrast in comparison.contrasts:
        rows += [_reach_row(reach) for reach in contrast.reaches]
        if len(contrast.reaches) > 1 and all(reach.at is not None for reach in contrast.reaches):
            rows.append(_mean_row(contrast))
        notes += [f"{reach.run}: {label}" for reach in contrast.reaches if (label := _label(reach))]
    headings = ("run", "loss", "tokens", "time", "% tokens", "% FLOPs", "% time", "speed")
    return Section(f"To the final validation loss of {comparison.baseline.name}", headings, tuple(rows), notes=tuple(notes))


def _own_row(run: Run) -> tuple[str, ...]:
    final = run.final
    loss = "diverged" if final.loss is None else f"{final.loss:.4f}"
    return (run.name, loss, quantity(final.tokens), duration(final.train_seconds), "100%", "100%", "100%", "1.00x")


def _reach_row(reach: Reach) -> tuple[str, ...]:
    if reach.at is None:
        return (reach.run, f"{reach.target:.4f}", MISSING, "not reached", *[MISSING] * 4)
    star = "" if reach.schedule_finished and not reach.is_unfinished_pair else "*"
    tokens, flops, seconds = (reach.ratio(axis) for axis in ("tokens", "executed_flops", "train_seconds"))
    return (
        reach.run + star,
        f"{reach.target:.4f}",
        quantity(reach.at.tokens),
        duration(reach.at.train_seconds),
        number(tokens, ".0%"),
        number(flops, ".0%"),
        number(seconds, ".0%"),
        _times(seconds),
    )


def _mean_row(contrast: Contrast) -> tuple[str, ...]:
    tokens, flops, seconds = (_mean_ratio(contrast.reaches, axis) for axis in ("tokens", "executed_flops", "train_seconds"))
    speed = _times(seconds)
    return (f"{contrast.system.name}: mean", "", "", "", number(tokens, ".0%"), number(flops, ".0%"), number(seconds, ".0%"), speed)


def _label(reach: Reach) -> str:
    """Return what makes a crossing less than a fair one."""
    if reach.at is None:
        return ""
    labels = []
    if not reach.schedule_finished:
        rate = "" if reach.learning_rate_share is None else f", learning rate at {reach.learning_rate_share:.0%} of its peak"
        labels.append(f"* SCHEDULE NOT FINISHED: read at {reach.schedule_share:.0%} of its steps{rate}; no run of that length was done")
    if reach.is_unfinished_pair:
        labels.append(f"* UNFINISHED: this run or {reach.reference} has not come to its end")
    if reach.is_first_validation:
        labels.append("at its first validation already, so perhaps earlier")
    return "; ".join(labels)


def _speed(comparison: Comparison) -> Section:
    rows = []
    for system in comparison.systems:
        step, speed, flops = (system.mean(name) for name in ("seconds_per_step", "tokens_per_second", "flops_per_token"))
        rows.append((system.name, MISSING if step is None else f"{1e3 * step:,.1f}", quantity(speed or 0.0), quantity(flops or 0.0)))
    notes = ("ms/step: median over the stretches between logged rows; the others: over the whole run",)
    return Section("Speed", ("system", "ms/step", "tokens/s", "FLOPs/token"), tuple(rows), notes=notes)


def _savings(comparison: Comparison) -> Section | None:
    if not comparison.contrasts:
        return None
    rows = []
    for contrast in comparison.contrasts:
        saving = contrast.saving
        shares = (saving.predicted_flops, saving.executed_flops, saving.step_time, saving.run_time)
        # Adding zero takes the sign from what rounds to nothing.
        rows.append((contrast.system.name, *(MISSING if share is None else f"{round(share, 3) + 0.0:.1%}" for share in shares)))
    notes = (
        "FLOPs: predicted from shapes and schedules, and as executed; time: of the median step, and of all training seconds",
        "a negative share is more than the baseline took",
    )
    headings = ("system", "FLOPs predicted", "FLOPs executed", "step time", "run time")
    return Section(f"Saved per token against {comparison.baseline.name}", headings, tuple(rows), notes=notes)


def finetuned(comparison: Comparison) -> Section | None:
    """Lay out the scores after fine-tuning, task by task; None where there are none."""
    differences = {contrast.system.name: contrast.finetuned for contrast in comparison.contrasts}
    rows = []
    for task in sorted({task for system in comparison.systems for task in system.finetuned}):
        for system in comparison.systems:
            if (scores := system.finetuned.get(task)) is None:
                continue
            means = [100 * score for score in system.finetuned_by_seed.get(task, {}).values()]
            interval = differences.get(system.name, {}).get(task)
            held = ("", "", "") if interval is None else interval_cells(interval, scale=100, digits=2)
            rows.append((task, system.name, with_spread(means, digits=2) if means else "diverged", str(len(scores)), *held))
    if not rows:
        return None
    pairs = MINIMAL_PAIRS in {row[0] for row in rows}
    notes = (
        *([f"{MINIMAL_PAIRS}: the share of right choices, without fine-tuning, the mean over files"] if pairs else []),
        "score x 100 of each task's best setting: the mean over seeds of pre-training, each the mean of its fine-tunings; "
        "± is the standard deviation over seeds of pre-training; n fine-tunings in all",
        f"difference: to {comparison.baseline.name}, in points, over pairs of the same seed of pre-training; positive is better",
    )
    headings = ("task", "system", "score", "n", "difference", "95 % interval", "pairs")
    return Section("After fine-tuning", headings, tuple(rows), left=2, notes=notes)


def interval_cells(interval: Interval, *, scale: float = 1.0, digits: int = 4) -> tuple[str, str, str]:
    """Write a difference: its mean, its ends, its pairs."""
    mean, low, high = (
        "none" if value is None else f"{scale * value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return mean, low if interval.low is None else f"{low} to {high}", str(interval.n)


def _spread_note(comparison: Comparison) -> str:
    several = any(len(system.final_losses) > 1 for system in comparison.systems)
    return "; ± is the standard deviation over runs" if several else ""


def _mean_ratio(reaches: Sequence[Reach], axis: str) -> float | None:
    ratios = [ratio for reach in reaches if (ratio := reach.ratio(axis)) is not None]
    return statistics.fmean(ratios) if ratios else None


def _times(seconds: float | None) -> str:
    return f"{1 / seconds:.2f}x" if seconds else MISSING
