"""A table with its title and notes, and how it is written: Markdown, HTML, CSV (`screen` prints it)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Section", "bullets", "code_block", "csv_cell", "csv_text", "html", "markdown", "markdown_table", "markdown_text"]

_MEANS_SOMETHING = re.compile(r"[\\|\[\]]|&(?=#?\w+;)")
"""In Markdown, wherever it stands; `<` becomes an entity, since not every reader knows it behind a backslash."""


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
    notes = (markdown_text(f"{note[0].upper()}{note[1:]}.") for note in section.notes)
    return "\n\n".join([f"## {markdown_text(section.title)}", table, *notes])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, marks: Sequence[str] = ()) -> str:
    """Write a table; `marks` align its columns, `---` as the reader likes. Names that users gave stay one cell of plain text."""
    lines = [headings, marks or ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """Write text so that it ends no line or cell, and makes no tag, link or picture; a word in backquotes stays code.

    Every text that a user's names, labels, files or settings are part of goes through this on its way into Markdown.
    """
    return _MEANS_SOMETHING.sub(r"\\\g<0>", " ".join(text.splitlines())).replace("<", "&lt;")


def code_block(text: str, language: str = "") -> str:
    """Write lines between fences that none of them ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def csv_cell(value: Any) -> Any:
    """Return what a spreadsheet does not take for a formula: texts that it would begin with an apostrophe.

    Source: OWASP, "CSV Injection".
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def bullets(lines: Iterable[str]) -> str:
    """Write a Markdown list of plain text."""
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


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
    names = columns or list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in names})
    writer.writerows({column: csv_cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()
