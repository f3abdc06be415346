"""Rows of CSV and TSV files, each with the line that it begins on.

A quote is only a quote where the file uses it as one. The published TSV files of GLUE do not: a text there may begin with a
quotation mark that nothing closes, and must not swallow the lines below it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from pldcli.errors import DataError

__all__ = [
    "Joined",
    "Row",
    "declared_delimiter",
    "delimiter_of",
    "is_quoted",
    "large_cells",
    "misplaced_quote",
    "plain_rows",
    "quoted_rows",
    "without_declaration",
]

Row = tuple[int, list[str]]
"""The line that a row begins on, from 1, and its cells."""
Joined = tuple[int, list[list[str]]]
"""The line that a row begins on, and its lines, cut at each delimiter."""

_LARGEST_CELL = 2**31 - 1
_DECLARATION = re.compile(r'"?sep=(?P<mark>[^\w\s"]|\t)"?[\r\n]*', re.IGNORECASE)
_END = "\x1a end of file \x1a"
"""A line that we put behind the last one: where a cell holds it, a quote was never closed."""


def declared_delimiter(line: str) -> str | None:
    """Return the delimiter that a first line tells a spreadsheet program, as `sep=;` does; None where it tells none."""
    found = _DECLARATION.fullmatch(line)
    return found["mark"] if found else None


def without_declaration(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines, with an empty one in place of a first line that only tells the delimiter."""
    for number, line in enumerate(lines):
        yield "\n" if not number and declared_delimiter(line) else line


def delimiter_of(first_line: str, suffix: str) -> str:
    """Find the delimiter: by what the first line declares, the file's ending, or in a `.csv` without commas by its heading."""
    if declared := declared_delimiter(first_line):
        return declared
    if suffix != ".csv":
        return "\t"
    plain = re.sub('"[^"]*"', "", first_line)  # what stands in quotes parts nothing
    return next((mark for mark in (",", ";", "\t") if mark in plain), ",")


def plain_rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Cut lines at each delimiter, quotes being characters like any other; empty lines are left out."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, text.split(delimiter)


def quoted_rows(lines: Iterable[str], delimiter: str, path: Path, joined: list[Joined]) -> Iterator[Row]:
    """Read rows whose cells may stand in quotes, and may then hold delimiters and line ends; empty lines are left out.

    Args:
        lines: The file.
        delimiter: What parts cells.
        path: For errors.
        joined: Collects rows of several lines, each of which has as many cells as the row.

    Raises:
        DataError: A quote is never closed.
    """
    reader = csv.reader(chain(lines, [_END]), delimiter=delimiter)
    start = 1
    try:
        with large_cells():
            for cells in reader:
                if cells == [_END]:
                    return
                if cells and _END in cells[-1]:
                    raise DataError("a quote that opens here is never closed", where=f"{path}:{start}", hint="is the file cut short?")
                if len(cells) > 1 and "\n" in (text := delimiter.join(cells)):
                    cut = [line.split(delimiter) for line in text.split("\n")]
                    if all(len(line) == len(cells) for line in cut):
                        joined.append((start, cut))
                if cells:
                    yield start, cells
                start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"cannot be read ({error})", where=f"{path}:{start}", hint="are all line ends of the same kind?") from error


def is_quoted(lines: Iterable[str], delimiter: str) -> bool:
    """Return whether a file follows the quoting rules of CSV, rather than holding quotation marks as plain characters.

    Both readings are tried; the one that leaves fewer lines with a wrong number of cells is right. Where both fit, a reading
    that joins lines is wrong, because every line by itself is a row already.
    """
    held = list(lines)
    if not any(line.startswith('"') or f'{delimiter}"' in line for line in held):
        return False
    widths = [len(cells) for _, cells in plain_rows(held, delimiter)]
    bad_plain = sum(width != widths[0] for width in widths)
    bad_quoted, num_quoted = _judge_quoted(held, delimiter)
    if bad_plain == bad_quoted:
        return num_quoted == len(widths)
    return bad_quoted < bad_plain


def misplaced_quote(lines: Iterable[str], delimiter: str) -> int | None:
    """Return the line of the first row in which a quoted cell goes on behind its closing quote, as no writer of CSV writes it."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        with large_cells():
            for _ in reader:
                start = reader.line_num + 1
    except csv.Error as error:
        return start if "expected after" in str(error) else None
    return None


def _judge_quoted(lines: list[str], delimiter: str) -> tuple[int, int]:
    """Count the lines in rows with a wrong number of cells, under strict quoting rules, and the rows."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    num_bad = num_rows = line = width = 0
    try:
        with large_cells():
            for cells in reader:
                width = width or len(cells)
                num_rows += bool(cells)
                num_bad += (reader.line_num - line) * (bool(cells) and len(cells) != width)
                line = reader.line_num
    except csv.Error as error:
        # Cut short within quotes: only the lines of the last row are lost. Anything else is not what a writer of CSV writes.
        return (num_bad + len(lines) - line if "unexpected end" in str(error) else len(lines) + 1), num_rows
    return num_bad, num_rows


@contextmanager
def large_cells() -> Iterator[None]:
    """Let cells be of any size while a file is read; the limit belongs to the whole process."""
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
