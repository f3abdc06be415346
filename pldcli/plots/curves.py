"""Curves over steps or time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pldcli.plots.canvas import COLOURS, STYLE, check_picture_path, new_figure, save_figure

if TYPE_CHECKING:
    pass

__all__ = ["Curve", "_endless_colours", "_thousands", "plot_curves"]


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "points"] = "line"


def plot_curves(series: Sequence[Curve], path: Path, *, title: str, x_label: str, y_label: str) -> None:
    """Draw curves of runs over one another.

    Args:
        series: The curves; an empty one is left out, and values that are not finite leave gaps.
        path: A .png or .svg file.
        title: What the picture shows.
        x_label: Meaning and unit of x.
        y_label: Meaning and unit of y.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    check_picture_path(path)
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=8.0, height=4.8)
        axes = figure.subplots()
        for curve, colour in zip(series, _endless_colours(), strict=False):
            y = [value if math.isfinite(value) else math.nan for value in curve.y]
            if curve.style == "points" or len(curve.x) == 1:
                axes.plot(curve.x, y, "o-", color=colour, markersize=4, linewidth=0.9, label=curve.label)
            else:
                axes.plot(curve.x, y, color=colour, linewidth=1.5, label=curve.label)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_formatter(_thousands)
        if any(len(curve.x) for curve in series):
            axes.legend()
        else:
            axes.text(0.5, 0.5, "nothing was recorded", ha="center", va="center", transform=axes.transAxes, color="#777777")
        save_figure(figure, path)


def _endless_colours() -> Iterable[str]:
    from itertools import cycle

    return cycle(COLOURS)


def _thousands(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,g}"
