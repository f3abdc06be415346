"""The terminal as commands see it: how wide it is, and where tables and pictures go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pldcli.console.section import Section

__all__ = ["NARROW", "PICTURE_COLUMNS", "print_sections", "screen", "table"]

NARROW = 100
"""Below this many columns a screen is narrow: long texts go below their row instead of beside it."""

PICTURE_COLUMNS = 100
"""Pictures made of characters are no wider than this."""

_LEAST = 8
"""Characters that a column which may wrap needs."""

_PIPED = 240
"""Columns of a stdout that is no terminal: wide enough that nothing wraps, so that grep and cut see whole lines."""


def screen() -> Console:
    """Open stdout as wide as the terminal (or COLUMNS); what is piped is not wrapped."""
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED
    return Console(width=wide, highlight=False)


def print_sections(console: Console, sections: Iterable[Section]) -> None:
    """Print tables, each between its title and its notes."""
    for section in sections:
        headings = [escape(heading) for heading in section.headings]
        words = [heading for column, heading in enumerate(headings) if section.holds_words(column)]
        rows = [[escape(cell) for cell in row] for row in section.rows]
        numbers = [heading for heading in headings if heading not in words]
        console.print(f"[bold cyan]{escape(section.title)}[/]")
        console.print(table(headings, rows, right=numbers, fold=headings[1:] if section.fold_headings else words))
        for note in section.notes:
            console.print(f"[dim]{escape(note)}[/]")
        console.print()


def table(headings: Sequence[str] | None, rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """Lay out rows under headings, without a box; markup in cells counts.

    Args:
        headings: One per column; None for none, and then only the last column may wrap.
        rows: Cells as text, at least one row.
        right: Headings of the columns to align right.
        fold: Headings of the columns that may wrap; the others keep their width, where the screen has room for it.
    """
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=headings is not None)
    last = len(rows[0]) - 1
    columns = [(heading, heading in fold if headings else number == last) for number, heading in enumerate(headings or [""] * (last + 1))]
    least = [_LEAST if wraps else _width(heading, *(row[number] for row in rows)) for number, (heading, wraps) in enumerate(columns)]
    has_room = sum(least) + 2 * last <= screen().width
    for heading, wraps in columns:
        # What may not wrap is cut without a mark where there is no room, and a number then reads as a smaller one.
        grid.add_column(heading, justify="right" if heading in right else "left", no_wrap=has_room and not wraps, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _width(*cells: str) -> int:
    return max(Text.from_markup(cell).cell_len for cell in cells)
