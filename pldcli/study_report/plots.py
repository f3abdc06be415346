"""The sensitivity of the final loss to a setting, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli.plots.canvas import COLOURS, colour, picture
from pldcli.study_report.sensitivity import Line, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_lines"]

_ROW = 0.05
"""Height of a row of crosses, as a share of the picture."""

_GEOMETRIC_SPAN = 8.0
"""Values that reach so many times their smallest are drawn on a logarithmic axis."""


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
    with picture(path, width=6.4, height=4.2) as figure:
        axes = figure.subplots()
        places = _places(axes, {point.value: point.label for line in lines for point in line.points})
        for number, line in enumerate(lines):
            _draw_line(axes, line, places, number)
        _mark_diverged(axes, lines, places)
        axes.set(xlabel=key, ylabel="final validation loss, nats per target")
        axes.set_title(f"Final validation loss over {key}")
        handles = dict(sorted(zip(*axes.get_legend_handles_labels()[::-1], strict=True)))
        axes.legend(handles.values(), handles.keys())
    return True


def _draw_line(axes: Axes, line: Line, places: Mapping[Any, float], number: int) -> None:
    done = [point for point in line.points if point.losses]
    spreads = [statistics.stdev(point.losses) if len(point.losses) > 1 else 0.0 for point in done]
    axes.errorbar(
        [places[point.value] for point in done],
        [statistics.fmean(point.losses) for point in done],
        spreads if any(spreads) else None,
        color=colour(number),
        linestyle="--" if number >= len(COLOURS) else "-",
        marker="o",
        markersize=4.5,
        capsize=3,
        label=line.name,
    )


def _mark_diverged(axes: Axes, lines: Sequence[Line], places: Mapping[Any, float]) -> None:
    """Draw crosses above everything, a row for each line."""
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
            color=colour(number),
            transform=axes.get_xaxis_transform(),
            markersize=7,
            markeredgewidth=2,
            label=f"{lines[number].name}: diverged",
        )


def _places(axes: Axes, labels: Mapping[Any, str]) -> dict[Any, float]:
    """Choose where each value stands: at its number where all are numbers, else side by side."""
    if not all(is_number(value) for value in labels):
        axes.set_xticks(range(len(labels)), list(labels.values()))
        axes.margins(x=0.2)
        return {value: float(number) for number, value in enumerate(labels)}
    if min(labels) > 0 and max(labels) / min(labels) >= _GEOMETRIC_SPAN:
        axes.set_xscale("log")
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xticks([], minor=True)
    return {value: float(value) for value in labels}
