"""The spread of scores over seeds, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from pldcli.plots.canvas import colour, picture

__all__ = ["plot_spread"]


def plot_spread(series: Sequence[tuple[str, Sequence[float]]], path: Path, *, title: str, x_label: str) -> None:
    """Draw every value of each labelled series as a point in a row of its own, with mean and standard deviation.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    with picture(path, width=8.0, height=1.4 + 0.42 * max(2, len(series))) as figure:
        axes = figure.subplots()
        for row, (label, values) in enumerate(series):
            mean = statistics.fmean(values)
            if len(values) > 1:
                spread = statistics.stdev(values)
                axes.plot([mean - spread, mean + spread], [row, row], color=colour(row), linewidth=5, alpha=0.25, solid_capstyle="butt")
            axes.plot(values, [row] * len(values), "o", color=colour(row), markersize=5, alpha=0.75, label=label)
            axes.plot([mean], [row], "|", color=colour(row), markersize=17, markeredgewidth=2)
        axes.set(title=title, xlabel=x_label, yticks=range(len(series)), yticklabels=[label for label, _ in series])
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
