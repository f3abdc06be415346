"""Scores of models as pictures: against depth, and their spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from pldcli.plots.canvas import COLOURS, STYLE, check_picture_path, new_figure, save_figure, whole_numbers

__all__ = ["plot_depths", "plot_spread"]


def plot_depths(
    depths: Sequence[int], scores: Sequence[float], speeds: Sequence[float], path: Path, *, title: str, score_label: str, num_blocks: int
) -> None:
    """Draw the score and the speed of a model against the number of its blocks that run.

    Args:
        depths: Numbers of blocks.
        scores: Of each; what is not finite leaves a gap.
        speeds: Of each, 1 for the whole model.
        path: A .png or .svg file.
        title: What was scored on what.
        score_label: Name and unit of the score.
        num_blocks: Of the whole model.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    check_picture_path(path)
    import matplotlib

    order = sorted(range(len(depths)), key=lambda place: depths[place])
    x = [depths[place] for place in order]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=10.0, height=4.2)
        figure.suptitle(title, fontsize=11)
        left, right = figure.subplots(1, 2)
        y = [scores[place] if math.isfinite(scores[place]) else math.nan for place in order]
        left.plot(x, y, "o-", color=COLOURS[0], markersize=5, linewidth=1.5)
        left.set(title=f"Score: {score_label}", xlabel="blocks that run", ylabel=score_label)
        right.plot(x, [speeds[place] for place in order], "o-", color=COLOURS[1], markersize=5, linewidth=1.5, label="measured")
        every = range(min(x), num_blocks + 1)
        right.plot(every, [num_blocks / depth for depth in every], ":", color="#777777", linewidth=1.2, label="if only blocks took time")
        right.set(title=f"Speed, all {num_blocks} blocks = 1", xlabel="blocks that run", ylabel="times as fast")
        right.legend()
        for axes in (left, right):
            axes.set_xlim(min(x) - 0.5, max(*x, num_blocks) + 0.5)
            axes.xaxis.set_major_locator(whole_numbers())
        save_figure(figure, path)


def plot_spread(series: Sequence[tuple[str, Sequence[float]]], path: Path, *, title: str, x_label: str) -> None:
    """Draw every value of each series as a point in a row of its own, with mean and standard deviation.

    Args:
        series: Label and values; the first is the top row.
        path: A .png or .svg file.
        title: What the picture shows.
        x_label: Meaning and unit of the values.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    check_picture_path(path)
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=8.0, height=1.4 + 0.42 * max(2, len(series)))
        axes = figure.subplots()
        for row, (label, values) in enumerate(series):
            colour = COLOURS[row % len(COLOURS)]
            mean = statistics.fmean(values)
            if len(values) > 1:
                spread = statistics.stdev(values)
                axes.plot([mean - spread, mean + spread], [row, row], color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
            axes.plot(values, [row] * len(values), "o", color=colour, markersize=5, alpha=0.75, label=label)
            axes.plot([mean], [row], "|", color=colour, markersize=17, markeredgewidth=2)
        axes.set(title=title, xlabel=x_label, yticks=range(len(series)), yticklabels=[label for label, _ in series])
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        save_figure(figure, path)
