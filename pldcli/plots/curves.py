"""Curves over steps or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pldcli.plots.canvas import colour, gaps, legend_label, picture, thousands

__all__ = ["Curve", "plot_curves"]


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
    """
    with picture(path, width=8.0, height=4.8) as figure:
        axes = figure.subplots()
        for number, curve in enumerate(series):
            if curve.style == "points" or len(curve.x) == 1:
                axes.plot(curve.x, gaps(curve.y), "o-", color=colour(number), markersize=4, linewidth=0.9, label=legend_label(curve.label))
            else:
                axes.plot(curve.x, gaps(curve.y), color=colour(number), linewidth=1.5, label=legend_label(curve.label))
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_formatter(thousands)
        if any(len(curve.x) for curve in series):
            axes.legend()
        else:
            axes.text(0.5, 0.5, "nothing was recorded", ha="center", va="center", transform=axes.transAxes, color="#777777")
