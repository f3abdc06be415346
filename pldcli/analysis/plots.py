"""An analysis as pictures: a column of panels per run, a line per moment of its training, light for early and dark for late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli.analysis.results import Analysis, AnalyzedRun, Measure
from pldcli.plots.canvas import colour, evenly_spaced, gaps, legend_label, picture, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gradients", "plot_removal", "plot_similarity"]

_MOST_LINES = 7
_MOST_TICKS = 16
_MARKERS = "os^Dv<>"
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo")
_LIGHTEST, _DARKEST = 0.28, 1.0
"""Part of the colour map that shows on white; its lightness falls throughout, so grey print keeps the order."""

_Row = tuple[Measure, str, str]
"""A measure, the title of its row of panels, and the label of its axis."""

_GRADIENTS: tuple[_Row, ...] = (
    ("weight_gradient_norm", "Gradient of the block's weights", "Euclidean norm"),
    ("input_gradient_norm", "Gradient of the block's input", "Euclidean norm"),
)
_SIMILARITY: tuple[_Row, ...] = (
    ("distance", "Distance between input and output", "L2, mean over tokens"),
    ("relative_distance", "That distance relative to the input's norm", "multiple, mean over tokens"),
    ("angle_degrees", "Angle between input and output", "degrees, mean over tokens"),
)


def plot_gradients(analysis: Analysis, path: Path, *, dropped: bool = False) -> None:
    """Draw the norms of both gradients by block.

    Args:
        analysis: The runs.
        path: A .png or .svg file.
        dropped: Under gates: means over draws, and for the last moment the range of the draws.
    """
    how = f"blocks dropped\n{analysis.dropping}\nshaded: range of the draws at the last step" if dropped else "every block running"
    _plot(analysis, _GRADIENTS, path, title=f"Gradients of the masked-LM loss, {how}", dropped=dropped, logarithmic=True)


def plot_similarity(analysis: Analysis, path: Path) -> None:
    """Draw distance and angle between the input and the output of each block.

    Args:
        analysis: The runs.
        path: A .png or .svg file.
    """
    _plot(analysis, _SIMILARITY, path, title="What each block does to its input, every block running", dropped=False, logarithmic=False)


def plot_removal(analysis: Analysis, path: Path) -> None:
    """Draw what each trained model loses without single blocks, and without all from a block on.

    Args:
        analysis: The runs.
        path: A .png or .svg file.
    """
    with picture(path, width=11.0, height=4.3) as figure:
        figure.suptitle("Blocks left out of the trained model", fontsize=11)
        alone, from_here = figure.subplots(1, 2)
        width = 0.8 / len(analysis.runs)
        for number, run in enumerate(analysis.runs):
            blocks = range(1, run.num_blocks + 1)
            label = legend_label(f"{run.title}, step {run.removal.step:,}, loss {run.removal.loss:.3f}")
            places = [block + (number - (len(analysis.runs) - 1) / 2) * width for block in blocks]
            hatch = _HATCHES[number % len(_HATCHES)]
            alone.bar(places, gaps(run.removal.increases()), width, color=colour(number), hatch=hatch, edgecolor="white", label=label)
            marker = _MARKERS[number % len(_MARKERS)]
            increases = gaps(run.removal.increases(from_here=True))
            from_here.plot(blocks, increases, color=colour(number), marker=marker, markersize=5, linewidth=1.5)
        alone.set(title="One block left out", ylabel="increase of the loss, nats per target")
        from_here.set(title="A block and all after it left out", ylabel="increase of the loss, nats per target")
        for axes in (alone, from_here):
            axes.axhline(0.0, color="#777777", linewidth=0.8)
            _mark_blocks(axes, max(run.num_blocks for run in analysis.runs))
        figure.legend(*alone.get_legend_handles_labels(), loc="outside lower center", ncols=min(2, len(analysis.runs)))


def _plot(analysis: Analysis, rows: Sequence[_Row], path: Path, *, title: str, dropped: bool, logarithmic: bool) -> None:
    with picture(path, width=max(6.0, 0.6 + 4.3 * len(analysis.runs)), height=1.3 + 2.5 * len(rows)) as figure:
        figure.suptitle(title, fontsize=11)
        panels: Any = figure.subplots(len(rows), len(analysis.runs), squeeze=False, sharey="row")
        drawn = [False] * len(rows)
        for column, run in enumerate(analysis.runs):
            for row, (measure, heading, _) in enumerate(rows):
                axes = panels[row, column]
                drawn[row] = _draw_run(axes, run, measure, dropped=dropped) or drawn[row]
                axes.set_title(f"{run.title}\n{heading}" if row == 0 else heading)
                _mark_blocks(axes, run.num_blocks)
            panels[-1, column].legend(title="step", loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, columnspacing=1.2)
        # Only now: a shared axis that is given a limit no longer grows with what is drawn.
        for (_, _, label), first, any_value in zip(rows, panels[:, 0], drawn, strict=True):
            first.set_ylabel(label)
            if not logarithmic:
                first.set_ylim(bottom=0.0)
            elif any_value:
                first.set_yscale("log")


def _draw_run(axes: Axes, run: AnalyzedRun, measure: Measure, *, dropped: bool) -> bool:
    """Draw a line per moment; tell whether there was anything to draw."""
    import matplotlib

    blocks = range(1, run.num_blocks + 1)
    shown = [run.states[number] for number in evenly_spaced(len(run.states), _MOST_LINES)]
    drawn = False
    for number, state in enumerate(shown):
        share = number / max(1, len(shown) - 1)
        shade = matplotlib.colormaps["viridis_r"](_LIGHTEST + (_DARKEST - _LIGHTEST) * share)
        values = gaps(state.values(measure, dropped=dropped))
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(blocks, values, color=shade, marker=marker, markersize=4, linewidth=1.4, label=f"{state.step:,}")
        if dropped and state is shown[-1]:
            low, high = (gaps(bounds) for bounds in zip(*state.ranges(measure), strict=True))
            axes.fill_between(blocks, low, high, color=shade, alpha=0.15, linewidth=0)
        drawn = drawn or any(math.isfinite(value) for value in values)
    return drawn


def _mark_blocks(axes: Axes, num_blocks: int) -> None:
    axes.set(xlabel="block", xlim=(0.5, num_blocks + 0.5))
    if num_blocks <= _MOST_TICKS:
        axes.set_xticks(range(1, num_blocks + 1))
    else:
        axes.xaxis.set_major_locator(whole_numbers())
    axes.grid(visible=False, axis="x")
