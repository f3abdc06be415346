"""The texts in a column of a table: CSV and TSV files, Parquet and Arrow files."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

from pldcli.corpus.addresses import Location
from pldcli.corpus.delimited import declared_delimiter, delimiter_of, is_quoted
from pldcli.errors import DataError
from pldcli.system.arrow import DAMAGE, record_batches

__all__ = ["LONG_CELL", "NoTextError", "UndecodedText", "columnar_rows", "columnar_texts", "csv_texts", "row_group_starts"]

_ROWS = 64
"""Of a columnar file, read at a time: each may be a book."""
_BUFFER_BYTES = 1 << 20
_TELLING_CHARACTERS = 1 << 20
"""Of a table, from which it is told whether its quotes are quotes."""


LONG_CELL = object()
"""In place of a cell that is too long."""


class NoTextError(DataError):
    """A line or a row holds no text; the cause is said of all such together."""

    def __init__(self, cause: str, what: str, *, hint: str) -> None:
        super().__init__(what, hint=f"{hint}; in `pld prepare-data` --skip-bad leaves out such lines")
        self.cause = cause

    def at(self, where: str) -> DataError:
        """Say where it is, for the user."""
        return DataError(self.what, where=where, hint=self.hint)


class UndecodedText(bytes):
    """A text that is not UTF-8."""


class _LongLineError(csv.Error):
    """A line of a table may have been cut."""


def csv_texts(lines: Iterable[str], path: Location, *, field: str, is_tsv: bool, most_characters: int) -> Iterator[tuple[str, Any]]:
    """Yield the cells of a column, each with its place; in place of what is no cell, an error, or `LONG_CELL`.

    Args:
        lines: Of the file, the first one the columns' names; those that have more characters than a cell may be cut behind these.
        path: For places.
        field: The column.
        is_tsv: Tabs part the cells, and a quote may be a character like any other.
        most_characters: Of a cell; a quote that is never closed would take in the rest of the file.

    Raises:
        DataError: There is no such column.
    """
    csv.field_size_limit(most_characters)
    lines = iter(lines)
    heading = next(lines, "")
    delimiter = delimiter_of(heading, ".tsv" if is_tsv else ".csv")
    lines_before = 0
    if declared_delimiter(heading):
        heading, lines_before = next(lines, ""), 1
    rows = ((lines_before + line, row) for line, row in _rows(heading, lines, delimiter, most_characters))
    _, first = next(rows, (1, []))
    if isinstance(first, NoTextError):
        raise first.at(str(path))
    names = [name.strip() for name in first] if isinstance(first, list) else []
    place = _place(names, field, path)
    for line, row in rows:
        if not isinstance(row, list):
            yield f"{path}:{line}", row
        elif any(row[len(names) :]):
            what = f"has {len(row)} columns, the heading has {len(names)}"
            hint = "put a text that holds the character between columns in quotes"
            yield f"{path}:{line}", NoTextError("row with more columns than the heading", what, hint=hint)
        elif row:  # an empty line is no row
            yield f"{path}:{line}", row[place] if place < len(row) else None


def _rows(heading: str, lines: Iterator[str], delimiter: str, most_characters: int) -> Iterator[tuple[int, Any]]:
    """Read rows, each with the line that it begins on. Of a TSV file the first cell in quotes tells whether quotes are quotes."""
    before, lines = 0, chain([heading], lines)
    if delimiter == "\t":
        held: list[str] = []
        for before, line in enumerate(_until_quote(lines, held), 1):
            yield before, _plain_cells(line, most_characters)
        held += _some(lines)
        telling = [line for line in ([heading, *held] if before else held) if len(line) <= most_characters]
        if not is_quoted(telling, delimiter):
            for number, line in enumerate(chain(held, lines), before + 1):
                yield number, _plain_cells(line, most_characters)
            return
        lines = chain(held, lines)

    again: deque[str] = deque()
    taken: list[str] = []

    def left() -> Iterator[str]:
        while again:
            yield again.popleft()
        yield from lines

    def whole(line: str) -> str:
        taken.append(line)
        if len(line) > most_characters:
            raise _LongLineError
        return line

    def begin_anew(start: int) -> Any:
        """Read the lines behind the one on which a bad row began as rows by themselves: a quote never closed takes in all of them."""
        nonlocal before
        before = start
        again.extendleft(reversed(taken[1:]))
        return csv.reader(map(whole, left()), delimiter=delimiter, strict=True)

    reader = csv.reader(map(whole, lines), delimiter=delimiter, strict=True)
    while True:
        start = before + reader.line_num + 1
        taken.clear()
        try:
            row = next(reader, None)
        except _LongLineError:
            yield start, LONG_CELL
            reader = begin_anew(start)
        except csv.Error as error:
            if "expected after" in str(error):
                what, hint = "a quote that opens here closes in the middle of a cell", "write a quote within a cell in quotes twice"
            else:
                what, hint = f"is not CSV ({error})", f"is a quote never closed? A cell may have {most_characters:,} characters"
            yield start, NoTextError("row that is not CSV", what, hint=hint)
            reader = begin_anew(start)
        else:
            if row is None:
                return
            yield start, row


def _plain_cells(line: str, most_characters: int) -> Any:
    if len(line) > most_characters:
        return LONG_CELL
    text = line.rstrip("\n")
    return text.split("\t") if text else []


def _until_quote(lines: Iterable[str], held: list[str]) -> Iterator[str]:
    """Yield the lines before the first one with a cell that begins with a quote; that one is held."""
    for line in lines:
        if line.startswith('"') or '\t"' in line:
            held.append(line)
            return
        yield line


def _some(lines: Iterable[str]) -> Iterator[str]:
    """Take so many lines that they tell how the file is written."""
    left = _TELLING_CHARACTERS
    for line in lines:
        yield line
        left -= len(line)
        if left < 0:
            return


def columnar_texts(path: Location, *, field: str, is_parquet: bool, span: tuple[int, int], most_bytes: int) -> Iterator[tuple[str, Any]]:
    """Yield the values of a column of a Parquet or Arrow file, each with its place; `LONG_CELL` in place of those that are too long.

    Args:
        path: The file.
        field: The column.
        is_parquet: It is a Parquet file.
        span: Of a Parquet file the row groups that begin in these bytes are read: all, where they do not follow each other.
        most_bytes: Of a text.

    Raises:
        DataError: There is no such column, or the file is damaged.
    """
    with _damage_named(path):
        for start, batch in _parquet_batches(path, field, span) if is_parquet else _arrow_batches(path, field):
            for number, value in enumerate(batch.column(0), start + 1):
                yield f"{path}, row {number}", _value_of(value, most_bytes)


def _value_of(scalar: Any, most_bytes: int) -> Any:
    text = getattr(scalar, "value", scalar)  # of a dictionary
    content = text.as_buffer() if hasattr(text, "as_buffer") else None
    if content is not None and content.size > most_bytes:
        return LONG_CELL
    try:
        return scalar.as_py()
    except UnicodeDecodeError:  # not every writer looks
        return UndecodedText(content or b"")


def columnar_rows(path: Path, *, is_parquet: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of a small Parquet or Arrow file.

    Raises:
        DataError: It is damaged.
    """
    with _damage_named(path):
        for _, batch in _parquet_batches(path, None, (0, _num_bytes(path))) if is_parquet else _arrow_batches(path, None):
            yield from batch.to_pylist()


@contextmanager
def _damage_named(path: Location) -> Iterator[None]:
    """Turn what pyarrow says of a file that it cannot read into one line.

    Raises:
        DataError: It is damaged.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of what the file holds
        raise DataError("is truncated or damaged", where=str(path), hint="copy it again") from error


def row_group_starts(path: Location) -> list[int]:
    """Return about where each row group of a Parquet file begins, in bytes; none where it cannot be read, or one of them is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(_file_of(path)) as file:
            starts = _starts(file.metadata, _num_bytes(path))
    except (pa.ArrowException, OSError, *DAMAGE):
        return []  # reading it will say why
    return starts if all(one < other for one, other in pairwise(starts)) else []


def _file_of(path: Location) -> Any:
    """Return what pyarrow opens itself, or reads from."""
    return path if isinstance(path, Path) else path.open()


def _num_bytes(path: Location) -> int:
    return path.stat().st_size if isinstance(path, Path) else path.num_bytes or 0


def _starts(metadata: Any, num_bytes: int) -> list[int]:
    """Return where row groups would begin if all were packed alike.

    Where they do begin, their columns say; but pyarrow ends the process over the metadata of a column that is damaged.
    """
    sizes = [max(0, metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups)]
    return [num_bytes * before // max(1, sum(sizes)) for before in accumulate([0, *sizes[:-1]])] if sizes else []


def _parquet_batches(path: Location, field: str | None, span: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """Yield rows, of a column or of all, together with the number of those before them."""
    import pyarrow.parquet as pq

    # Otherwise it holds the bytes of all row groups until the file is closed.
    with pq.ParquetFile(_file_of(path), pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        columns = None if field is None else [file.schema_arrow.names[_place(file.schema_arrow.names, field, path)]]
        first, end = (bisect_left(_starts(file.metadata, _num_bytes(path)), edge) for edge in span)
        before = sum(file.metadata.row_group(number).num_rows for number in range(first))
        for batch in file.iter_batches(_ROWS, columns=columns, row_groups=range(first, end)):
            yield before, batch
            before += batch.num_rows


def _arrow_batches(path: Location, field: str | None) -> Iterator[tuple[int, Any]]:
    """Read either format; yield rows, of a column or of all, together with the number of those before them."""
    import pyarrow as pa

    with pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open()) as source:
        _, batches = record_batches(source, str(path), lambda names: range(len(names)) if field is None else [_place(names, field, path)])
        before = 0
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield before + start, batch.slice(start, _ROWS)
            before += batch.num_rows


def _place(names: Sequence[str], field: str, path: Location) -> int:
    if field not in names:
        hint = f"name it with --text-field; its columns are: {', '.join(names) or 'none'}"
        raise DataError(f"has no column {field!r}", where=str(path), hint=hint)
    return list(names).index(field)
