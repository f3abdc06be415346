"""A table with its title and notes, and how it is written: Markdown, HTML, CSV (`screen` prints it)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Section", "bullets", "csv_text", "html", "markdown", "markdown_table"]


@dataclass(frozen=True)
class Section:
    """A table with a title above and notes below."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Cells as plain text, at least one row."""
    left: int = 1
    """So many first columns are words; the others are numbers and stand to the right."""
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """Headings of further columns that hold words."""
    fold_headings: bool = False
    """On a narrow screen headings of numbers wrap too."""

    def holds_words(self, column: int) -> bool:
        """Return whether a column stands to the left, and may wrap where there is little room."""
        return column < self.left or self.headings[column] in self.words


def markdown(section: Section) -> str:
    """Write a section with a heading of the second level."""
    marks = [":--" if section.holds_words(column) else "--:" for column in range(len(section.headings))]
    table = markdown_table(section.headings, section.rows, marks=marks)
    return "\n\n".join([f"## {section.title}", table, *(f"{note[0].upper()}{note[1:]}." for note in section.notes)])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, marks: Sequence[str] = ()) -> str:
    """Write a table; `marks` align its columns, `---` as the reader likes. Names that users gave stay one cell of plain text."""
    lines = [headings, marks or ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(cell: str) -> str:
    return " ".join(cell.splitlines()).replace("|", "\\|").replace("<", "&lt;")


def _no_formula(value: Any) -> Any:
    """Source: OWASP, "CSV Injection"."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def bullets(lines: Iterable[str]) -> str:
    """Write a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def html(section: Section) -> str:
    """Write a section with a heading of the second level; words have the class `word`, notes `note`, and `scroll` surrounds the table."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        opened = [f'<{tag} class="word">' if section.holds_words(number) else f"<{tag}>" for number in range(len(texts))]
        return "".join(f"{start}{escape(text)}</{tag}>" for start, text in zip(opened, texts, strict=True))

    rows = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in section.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    table = f"<table>\n<thead><tr>{cells('th', section.headings)}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"
    return f'<h2>{escape(section.title)}</h2>\n<div class="scroll">{table}</div>{notes}'


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Write a head and a line per row; texts that a spreadsheet would take for a formula begin with an apostrophe.

    Args:
        rows: Column to value; a column that a row lacks is empty.
        columns: In this order; by default all that there are, as they first appear.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _no_formula(value) for column, value in row.items()} for row in rows)
    return text.getvalue()
