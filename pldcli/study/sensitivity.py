"""How the final loss depends on a setting: the systems of grids as lines over their values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli import presets
from pldcli.config import flatten
from pldcli.plots.canvas import COLOURS, STYLE, new_figure, save_figure
from pldcli.study.halving import Outcome
from pldcli.study.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Line", "Point", "draw_lines", "find_lines"]

_ROW = 0.05
"""Height of a row of crosses, as a share of the picture."""

_GEOMETRIC_SPAN = 8.0
"""Values that reach so many times their smallest are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """One value of a setting and what came of it."""

    system: str
    value: Any
    label: str
    """The value as the file spells it."""
    outcomes: tuple[Outcome, ...]
    """Of each seed."""

    @property
    def losses(self) -> tuple[float, ...]:
        """List the final losses of the runs that finished."""
        return tuple(outcome.loss for outcome in self.outcomes if outcome.loss is not None)

    @property
    def diverged(self) -> tuple[int, ...]:
        """List the steps at which runs diverged."""
        return tuple(outcome.step for outcome in self.outcomes if outcome.state == "diverged")


@dataclass(frozen=True)
class Line:
    """The points of a grid along its first key, the others held."""

    name: str
    points: tuple[Point, ...]


def find_lines(spec: Spec, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, list[Line]]:
    """Put the systems of every grid into lines.

    Args:
        spec: The study.
        outcomes: System to the outcome of each of its runs.

    Returns:
        First key of a grid to the lines over it, in the order of the file.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for name, members in spec.grids.items():
        for system in members:
            if system.name not in outcomes:
                continue
            (key, value), *others = system.values
            held = ", ".join(f"{other.rpartition('.')[2]} {one}" for other, one in others)
            line = f"{name}, {held}" if held else name
            number = flatten(presets.resolve(system.preset, system.overrides).config)[key]
            point = Point(system.name, number, str(value), tuple(outcomes[system.name]))
            found.setdefault(key, {}).setdefault(line, []).append(point)
    return {key: [Line(name, _in_order(points)) for name, points in lines.items()] for key, lines in found.items()}


def draw_lines(key: str, lines: Sequence[Line], path: Path) -> bool:
    """Draw final validation loss over a setting; a cross at the upper edge marks a run that diverged.

    Args:
        key: The setting.
        lines: Over it.
        path: Of the picture.

    Returns:
        Whether there was anything to draw.

    Raises:
        OutputError: The file cannot be written.
    """
    if not any(point.losses or point.diverged for line in lines for point in line.points):
        return False
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=6.4, height=4.2)
        axes = figure.subplots()
        places = _places(axes, {point.value: point.label for line in lines for point in line.points})
        for number, line in enumerate(lines):
            _draw_line(axes, line, places, COLOURS[number % len(COLOURS)], dashed=number >= len(COLOURS))
        _mark_diverged(axes, lines, places)
        axes.set(xlabel=key, ylabel="final validation loss, nats per masked token")
        axes.set_title(f"Final validation loss over {key}")
        handles = dict(sorted(zip(*axes.get_legend_handles_labels()[::-1], strict=True)))
        axes.legend(handles.values(), handles.keys())
        save_figure(figure, path)
    return True


def _draw_line(axes: Axes, line: Line, places: Mapping[Any, float], colour: str, *, dashed: bool) -> None:
    done = [point for point in line.points if point.losses]
    spreads = [statistics.stdev(point.losses) if len(point.losses) > 1 else 0.0 for point in done]
    axes.errorbar(
        [places[point.value] for point in done],
        [statistics.fmean(point.losses) for point in done],
        spreads if any(spreads) else None,
        color=colour,
        linestyle="--" if dashed else "-",
        marker="o",
        markersize=4.5,
        capsize=3,
        label=line.name,
    )


def _mark_diverged(axes: Axes, lines: Sequence[Line], places: Mapping[Any, float]) -> None:
    """Put crosses above everything, a row for each line."""
    low, high = axes.get_ylim()
    rows = [number for number, line in enumerate(lines) if any(point.diverged for point in line.points)]
    axes.set_ylim(low, high + (high - low) * _ROW * 1.3 * len(rows))
    for row, number in enumerate(rows):
        gone = [places[point.value] for point in lines[number].points if point.diverged]
        height = 1.0 - _ROW * (row + 0.6)
        axes.plot(
            gone,
            [height] * len(gone),
            "x",
            color=COLOURS[number % len(COLOURS)],
            transform=axes.get_xaxis_transform(),
            markersize=7,
            markeredgewidth=2,
            label=f"{lines[number].name}: diverged",
        )


def _places(axes: Axes, labels: Mapping[Any, str]) -> dict[Any, float]:
    """Choose where each value stands: at its number where all are numbers, else side by side."""
    if not all(_is_number(value) for value in labels):
        axes.set_xticks(range(len(labels)), list(labels.values()))
        axes.margins(x=0.2)
        return {value: float(number) for number, value in enumerate(labels)}
    if min(labels) > 0 and max(labels) / min(labels) >= _GEOMETRIC_SPAN:
        axes.set_xscale("log")
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xticks([], minor=True)
    return {value: float(value) for value in labels}


def _in_order(points: Sequence[Point]) -> tuple[Point, ...]:
    if all(_is_number(point.value) for point in points):
        return tuple(sorted(points, key=lambda point: float(point.value)))
    return tuple(points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
