"""The texts in a column of a table: CSV and TSV files, Parquet and Arrow files."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pldcli.corpus.addresses import Location
from pldcli.errors import DataError

__all__ = ["columnar_texts", "csv_texts", "row_group_starts"]

_ROWS = 1000
"""Of a columnar file, read at a time."""


def csv_texts(lines: Iterable[str], path: Location, *, field: str, delimiter: str, most_characters: int) -> Iterator[tuple[str, Any]]:
    """Yield the cells of a column, each with its place.

    Args:
        lines: Of the file, the first one the columns' names.
        path: For places.
        field: The column.
        delimiter: Between cells.
        most_characters: Of a cell; a quote that is never closed would take in the rest of the file.

    Raises:
        DataError: There is no such column, or a row is not CSV.
    """
    csv.field_size_limit(most_characters)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        place = _place(names, field, path)
        for row in reader:
            if row:  # an empty line is no row
                yield f"{path}:{reader.line_num}", row[place] if place < len(row) else None
    except csv.Error as error:
        hint = f"is a quote never closed? A cell may have {most_characters:,} characters"
        raise DataError(f"is not CSV ({error})", where=f"{path}:{reader.line_num}", hint=hint) from error


def columnar_texts(path: Location, *, field: str, is_parquet: bool, span: tuple[int, int]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a column of a Parquet or Arrow file, each with its place.

    Args:
        path: The file.
        field: The column.
        is_parquet: It is a Parquet file.
        span: Of a Parquet file the row groups that begin in these bytes are read: all, where they do not follow each other.

    Raises:
        DataError: There is no such column, or the file is damaged.
    """
    import pyarrow as pa

    try:
        for start, batch in _parquet_batches(path, field, span) if is_parquet else _arrow_batches(path, field):
            for number, value in enumerate(batch.column(0).to_pylist(), start + 1):
                yield f"{path}, row {number}", value
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of what the file holds
        raise DataError("is truncated or damaged", where=str(path), hint="copy it again") from error


def row_group_starts(path: Location) -> list[int]:
    """Return the byte at which each row group of a Parquet file begins; none where it cannot be read, or where they do not follow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(_file_of(path)) as file:
            starts = _starts(file.metadata)
    except (pa.ArrowException, OSError):
        return []  # reading it will say why
    return starts if all(one < other for one, other in pairwise(starts)) else []


def _file_of(path: Location) -> Any:
    """Return what pyarrow opens itself, or reads from."""
    return path if isinstance(path, Path) else path.open()


def _starts(metadata: Any) -> list[int]:
    return [_start_of_group(metadata.row_group(number)) for number in range(metadata.num_row_groups)]


def _start_of_group(group: Any) -> int:
    return min(_start(group.column(number)) for number in range(group.num_columns))


def _start(column: Any) -> int:
    """Return where a column of a row group begins: at its dictionary, where it has one."""
    return int(min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset))


def _parquet_batches(path: Location, field: str, span: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """Yield rows together with the number of those before them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(_file_of(path)) as file:
        _place(file.schema_arrow.names, field, path)
        group, numbers = file.metadata.row_group, range(file.metadata.num_row_groups)
        first, end = (bisect_left(numbers, edge, key=lambda number: _start_of_group(group(number))) for edge in span)
        before = sum(group(number).num_rows for number in range(first))
        for batch in file.iter_batches(_ROWS, columns=[field], row_groups=numbers[first:end]):
            yield before, batch
            before += batch.num_rows


def _arrow_batches(path: Location, field: str) -> Iterator[tuple[int, Any]]:
    """Read a file with a footer, or a stream as `datasets` writes it; yield rows together with the number of those before them."""
    import pyarrow as pa

    with pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open()) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        _place(file.schema.names, field, path)
        before = 0
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield before + start, batch.select([field]).slice(start, _ROWS)
            before += batch.num_rows


def _place(names: Sequence[str], field: str, path: Location) -> int:
    if field not in names:
        hint = f"name it with --text-field; its columns are: {', '.join(names) or 'none'}"
        raise DataError(f"has no column {field!r}", where=str(path), hint=hint)
    return list(names).index(field)
