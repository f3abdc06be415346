"""Figures as files: one style, .png and .svg, the same input gives the same bytes.

Matplotlib is imported inside the functions that draw, always as a bare Figure with the Agg or SVG backend: no window,
no pyplot, no state shared with the caller.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli.errors import UsageError
from pldcli.system import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "PICTURES", "STYLE", "check_picture_path", "new_figure", "save_figure", "whole_numbers"]

PICTURES = (".png", ".svg")
"""Endings of the files that can be drawn."""

COLOURS = ("#1f6fb4", "#d1602a", "#2a8a57", "#8a4fb0", "#b8930b", "#c03a6b", "#4d7f8f", "#6b6b6b")
"""Told apart on paper and by most colour-blind readers."""

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "pldcli",
    "svg.fonttype": "none",
}


def check_picture_path(path: Path) -> None:
    """Refuse a file name that cannot become a picture.

    Raises:
        UsageError: The ending is neither .png nor .svg.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"a picture's name must end in {' or '.join(PICTURES)}", where=str(path))


def whole_numbers() -> Any:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=8, integer=True)


def new_figure(*, width: float, height: float) -> Figure:
    """Make a figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; its ending says how."""
    kind = path.suffix.lower().lstrip(".")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    atomic.write_bytes(path, buffer.getvalue())
