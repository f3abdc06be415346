"""Rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Section", "csv_text"]


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Write a head and a line per row.

    Args:
        rows: Column to value; a column that a row lacks is empty.
        columns: In this order; by default all that there are, as they first appear.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclass(frozen=True)
class Section:
    """A table with a heading and lines below it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Cells as plain text, at least one row."""
    left: int = 1
    """So many first columns are words; the others are numbers and stand to the right."""
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """Headings of further columns that hold words."""

    def holds_words(self, column: int) -> bool:
        """Tell whether a column stands to the left, and may wrap where there is little room."""
        return column < self.left or self.headings[column] in self.words
