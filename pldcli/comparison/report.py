"""A comparison as files: numbers, pictures, and a page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pldcli import __version__

if TYPE_CHECKING:
    from pldcli.comparison.comparison import Comparison

__all__ = ["FILES", "write_comparison"]

FILES = ("comparison.json", "comparison.csv", "curves.csv", "metrics.csv.gz", "comparison.png", "comparison.svg", "index.html")
"""What is written."""

_VALIDATION_CAPTION = (
    "Validation loss at full depth. A circle marks where a run first has the final loss of the baseline; it is hollow where the run's "
    "schedule was not finished there."
)
_TRAINING_CAPTION = "Training loss, averaged over the last 5 % of the steps; where blocks are dropped, of the smaller network."


def write_comparison(comparison: Comparison, out: Path, *, title: str | None = None, remarks: Sequence[str] = ()) -> None:
    """Write every file of a comparison.

    Args:
        comparison: What was compared.
        out: A directory.
        title: Of the page; by default it names the systems.
        remarks: Lines that stand on the page before what came out.

    Raises:
        OutputError: They cannot be written.
    """
    from pldcli.comparison.files import as_json, curves_csv, runs_csv
    from pldcli.comparison.metrics_table import table_bytes
    from pldcli.comparison.page import render_page
    from pldcli.comparison.plots import draw_curves, plot_comparison
    from pldcli.comparison.tables import sections, summary, words
    from pldcli.system import atomic

    numbers, rows, curves, metrics, *pictures, page = (out / name for name in FILES)
    atomic.write_text(numbers, json.dumps(as_json(comparison), indent=1) + "\n")
    atomic.write_text(rows, runs_csv(comparison))
    atomic.write_text(curves, curves_csv(comparison))
    atomic.write_bytes(metrics, table_bytes(comparison.runs))
    for picture in pictures:
        plot_comparison(comparison, picture)
    html = render_page(
        title or f"Compared: {', '.join(system.name for system in comparison.systems)}",
        summary=[*remarks, *summary(comparison)],
        warnings=comparison.warnings,
        sections=sections(comparison),
        words=words(comparison),
        figures=[(_VALIDATION_CAPTION, draw_curves(comparison, "validation")), (_TRAINING_CAPTION, draw_curves(comparison, "training"))],
        footer=f"Written by pld {__version__}. The numbers are in comparison.json, comparison.csv and curves.csv beside this page.",
    )
    atomic.write_text(page, html)
