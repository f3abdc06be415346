"""Scores and speed of a model against its depth, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pldcli.plots.canvas import colour, gaps, picture, whole_numbers

__all__ = ["plot_depths"]


def plot_depths(
    depths: Sequence[int], scores: Sequence[float], speeds: Sequence[float], path: Path, *, title: str, score_label: str, num_blocks: int
) -> None:
    """Draw score and speed (1 for the whole model) against the number of blocks that run; a score that is not finite leaves a gap.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    order = sorted(range(len(depths)), key=lambda place: depths[place])
    x = [depths[place] for place in order]
    with picture(path, width=10.0, height=4.2) as figure:
        figure.suptitle(title, fontsize=11)
        left, right = figure.subplots(1, 2)
        left.plot(x, gaps(scores[place] for place in order), "o-", color=colour(0), markersize=5, linewidth=1.5)
        left.set(title=f"Score: {score_label}", xlabel="blocks that run", ylabel=score_label)
        right.plot(x, [speeds[place] for place in order], "o-", color=colour(1), markersize=5, linewidth=1.5, label="measured")
        every = range(min(x), num_blocks + 1)
        right.plot(every, [num_blocks / depth for depth in every], ":", color="#777777", linewidth=1.2, label="if only blocks took time")
        right.set(title=f"Speed, all {num_blocks} blocks = 1", xlabel="blocks that run", ylabel="times as fast")
        right.legend()
        for axes in (left, right):
            axes.set_xlim(min(x) - 0.5, max(*x, num_blocks) + 0.5)
            axes.xaxis.set_major_locator(whole_numbers())
