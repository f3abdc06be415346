"""Figures as files: one style, .png and .svg, the same input gives the same bytes.

Matplotlib is imported inside the functions that draw, always as a bare Figure with the Agg or SVG backend: no window,
no pyplot, no state shared with the caller. Whatever takes the path of a picture, here and in the packages of the verbs,
raises what `picture` raises.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli.errors import UsageError
from pldcli.system import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "PICTURES",
    "as_svg",
    "check_picture_path",
    "colour",
    "evenly_spaced",
    "gaps",
    "legend_label",
    "picture",
    "save_figure",
    "styled_figure",
    "thousands",
    "whole_numbers",
]

PICTURES = (".png", ".svg")
"""Endings of the files that can be drawn."""

COLOURS = ("#1f6fb4", "#d1602a", "#2a8a57", "#8a4fb0", "#b8930b", "#c03a6b", "#4d7f8f", "#6b6b6b")
"""Told apart on paper and by most colour-blind readers."""

_STYLE: dict[str, Any] = {
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


@contextmanager
def picture(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """Open a figure of so many inches; what the block drew is written when it ends.

    Args:
        path: A .png or .svg file.
        width: In inches.
        height: In inches.

    Raises:
        UsageError: The ending is neither .png nor .svg.
        OutputError: The file cannot be written.
    """
    check_picture_path(path)
    with styled_figure(width=width, height=height) as figure:
        yield figure
        save_figure(figure, path)


@contextmanager
def styled_figure(*, width: float, height: float) -> Iterator[Figure]:
    """Open a figure of so many inches in the style of all pictures, which holds until the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; its ending says how."""
    kind = path.suffix.lower().lstrip(".")
    atomic.write_bytes(path, _drawn(figure, kind, "Software" if kind == "png" else "Date"))


def as_svg(figure: Figure) -> str:
    """Draw a figure as SVG without metadata."""
    return _drawn(figure, "svg", "Date", "Creator", "Format", "Type").decode()


def _drawn(figure: Figure, kind: str, *left_out: str) -> bytes:
    """Draw a figure without these metadata, and without formulas in what users called their files; ticks have theirs, but no text yet."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)
    buffer, metadata = io.BytesIO(), dict.fromkeys(left_out)
    if kind == "png":
        figure.canvas.print_png(buffer, metadata=metadata)  # type: ignore[attr-defined]  # which draws once, `savefig` twice
    else:
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def colour(number: int) -> str:
    """Return the colour of the series of this number; after the last one they begin again."""
    return COLOURS[number % len(COLOURS)]


def evenly_spaced(total: int, points: int) -> list[int]:
    """Choose `points` of the numbers 0..total-1, evenly, the first and the last among them; all when there are fewer."""
    if points >= total:
        return list(range(total))
    return [i * (total - 1) // (points - 1) for i in range(points)]


def gaps(values: Iterable[float | None]) -> list[float]:
    """Return values to draw: those that are missing or not finite leave a gap."""
    return [math.nan if value is None or not math.isfinite(value) else value for value in values]


def thousands(value: float, _position: object = None) -> str:
    """Write a tick with commas."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,g}"


def legend_label(name: str) -> str:
    """Return what a legend shows as this name: matplotlib takes a label that begins with an underscore for none."""
    return f" {name}" if name.startswith("_") else name


def whole_numbers() -> Any:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=8, integer=True)
