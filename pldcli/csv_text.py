"""Rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["csv_text"]


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
