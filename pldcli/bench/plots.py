"""Speed as pictures: where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pldcli.plots.canvas import colour, picture

__all__ = ["plot_phases"]

_NARROWEST_LABEL = 0.06
"""A phase that takes less of the longest step has no number written into it."""


def plot_phases(modes: Mapping[str, Mapping[str, float]], path: Path, *, title: str) -> None:
    """Draw a bar per mode, cut into the phases of its step.

    Args:
        modes: Per mode, seconds of each phase; the same phases in all.
        path: A .png or .svg file.
        title: What was measured.
    """
    names, longest = list(modes), max(sum(phases.values()) for phases in modes.values())
    with picture(path, width=9.0, height=1.5 + 0.55 * len(names)) as figure:
        axes = figure.subplots()
        lefts = [0.0] * len(names)
        for number, phase in enumerate(next(iter(modes.values()))):
            widths = [modes[name][phase] * 1e3 for name in names]
            axes.barh(range(len(names)), widths, left=lefts, color=colour(number), height=0.6, label=phase)
            for row, (left, width) in enumerate(zip(lefts, widths, strict=True)):
                if width > _NARROWEST_LABEL * longest * 1e3:
                    axes.text(left + width / 2, row, f"{width:,.1f}", ha="center", va="center", color="white", fontsize=8.5)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
        axes.set(xlabel="milliseconds per step", yticks=range(len(names)), yticklabels=names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        figure.suptitle(title, fontsize=10.5)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(modes[names[0]]))
