"""Runs beside one another as pictures: a colour per system, a thin line per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pldcli.comparison.comparison import Comparison
from pldcli.comparison.runs import AXES, Measurement, Run, System, unit_of_losses
from pldcli.comparison.words import unlike_seconds
from pldcli.plots.canvas import COLOURS, as_svg, colour, evenly_spaced, gaps, legend_label, picture, styled_figure, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "plot_comparison"]

Kind = Literal["validation", "training"]
T = TypeVar("T")

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""Of the first eight systems, the next eight, and the rest."""

_MOST_POINTS = 300
_STEEP_PART = 0.25
"""The fall in this first part of a run does not stretch the axis of losses."""

_TITLES = {"validation": "Validation loss", "training": "Training loss, smoothed"}


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw validation loss against tokens and against training seconds."""
    names = ["tokens", "train_seconds"]
    with picture(path, **_size(comparison, names)) as figure:
        _fill(figure, comparison, names, "validation")


def draw_curves(comparison: Comparison, kind: Kind) -> str:
    """Draw a loss against tokens, steps, executed FLOPs and training seconds, as SVG without metadata."""
    names = list(AXES)
    with styled_figure(**_size(comparison, names)) as figure:
        _fill(figure, comparison, names, kind)
        return as_svg(figure)


def _size(comparison: Comparison, axes_names: Sequence[str]) -> dict[str, float]:
    legend_rows = math.ceil((len(comparison.systems) + 1) / 3)
    return {"width": 10.5, "height": 3.7 * math.ceil(len(axes_names) / 2) + 0.2 + 0.22 * legend_rows}


def _fill(figure: Figure, comparison: Comparison, axes_names: Sequence[str], kind: Kind) -> None:
    panels: Any = figure.subplots(math.ceil(len(axes_names) / 2), 2, squeeze=False)
    limits = _limits(comparison.runs, kind)
    for panel, name in zip(panels.flat, axes_names, strict=True):
        _draw_panel(panel, comparison, name, kind)
        unlike = name == "train_seconds" and unlike_seconds(comparison.runs)
        panel.set(
            xlabel=AXES[name] + (", which do not compare between these runs" if unlike else ""), ylabel=unit_of_losses(comparison.runs)
        )
        panel.set_title(f"{_TITLES[kind]} against {AXES[name]}")
        panel.set_xlim(left=0)
        if limits is not None:
            panel.set_ylim(*limits)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _draw_panel(axes: Axes, comparison: Comparison, name: str, kind: Kind) -> None:
    for number, system in enumerate(comparison.systems):
        dashes = _DASHES[min(number // len(COLOURS), len(_DASHES) - 1)]
        several = len(system.runs) > 1
        told = system.name + (f" ({len(system.runs)} runs)" if several else "") + ("" if system.is_complete else ", unfinished")
        label = legend_label(told)
        for run in system.runs:
            points = _thinned(_curve(run, kind))
            marker = "." if kind == "validation" and not several else ""
            axes.plot(
                [getattr(point, name) for point in points],
                gaps(point.loss for point in points),
                color=colour(number),
                linestyle=dashes,
                linewidth=0.8 if several else 1.5,
                alpha=0.55 if several else 1.0,
                marker="o" if len(points) == 1 else marker,
                label=None if several else label,
            )
        if several:
            mean = _mean_curve(system, kind)
            axes.plot([x[name] for x, _ in mean], [y for _, y in mean], color=colour(number), linestyle=dashes, linewidth=2.0, label=label)
    if kind == "validation":
        _draw_target(axes, comparison, name)
    axes.xaxis.set_major_formatter(_quantity)
    axes.locator_params(axis="x", nbins=6)


def _draw_target(axes: Axes, comparison: Comparison, name: str) -> None:
    """Mark the loss that the baseline ended with, and where other runs first have it: hollow where their schedule was not finished."""
    losses = comparison.baseline.final_losses
    if not losses:
        return
    axes.axhline(
        sum(losses) / len(losses), color="#777777", linewidth=0.9, linestyle=":", label=f"final loss of {comparison.baseline.name}"
    )
    for contrast in comparison.contrasts:
        own = colour(comparison.systems.index(contrast.system))
        for reach in contrast.reaches:
            if reach.at is not None and (reach.seconds_compare or name != "train_seconds"):
                inside = own if reach.schedule_finished else "white"
                x = getattr(reach.at, name)
                axes.plot([x], [reach.target], "o", markersize=7, markerfacecolor=inside, markeredgecolor=own, markeredgewidth=1.5)


def _curve(run: Run, kind: Kind) -> tuple[Measurement, ...]:
    return run.validation if kind == "validation" else run.smoothed


def _mean_curve(system: System, kind: Kind) -> list[tuple[dict[str, float], float]]:
    """Average losses, and what was spent, at the steps that all runs of a system share."""
    curves = [{point.step: point for point in _curve(run, kind) if point.loss is not None} for run in system.runs]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    mean = []
    for step in _thinned(steps):
        points = [curve[step] for curve in curves]
        spent = {name: sum(getattr(point, name) for point in points) / len(points) for name in AXES}
        mean.append((spent, sum(point.loss or 0.0 for point in points) / len(points)))
    return mean


def _thinned(points: Sequence[T]) -> list[T]:
    """Leave out points where there are more than a picture shows; the first and the last stay."""
    return [points[number] for number in evenly_spaced(len(points), _MOST_POINTS)]


def _limits(runs: Sequence[Run], kind: Kind) -> tuple[float, float] | None:
    """Choose limits that show the later part of each run; None where there is too little to choose from."""
    shown = [
        point.loss for run in runs for point in _curve(run, kind) if point.loss is not None and point.step > _STEEP_PART * run.last_step
    ]
    if len(shown) < 2 or max(shown) == min(shown):
        return None
    margin = 0.05 * (max(shown) - min(shown))
    return min(shown) - margin, max(shown) + margin


def _quantity(value: float, _position: object = None) -> str:
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return thousands(value)
