"""The texts in a column of a table: CSV and TSV files, Parquet and Arrow files."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pldcli.corpus.addresses import Location
from pldcli.errors import DataError
from pldcli.system.arrow import DAMAGE, record_batches

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


def _parquet_batches(path: Location, field: str, span: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """Yield rows together with the number of those before them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(_file_of(path)) as file:
        _place(file.schema_arrow.names, field, path)
        first, end = (bisect_left(_starts(file.metadata, _num_bytes(path)), edge) for edge in span)
        before = sum(file.metadata.row_group(number).num_rows for number in range(first))
        for batch in file.iter_batches(_ROWS, columns=[field], row_groups=range(first, end)):
            yield before, batch
            before += batch.num_rows


def _arrow_batches(path: Location, field: str) -> Iterator[tuple[int, Any]]:
    """Read either format; yield rows together with the number of those before them."""
    import pyarrow as pa

    with pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open()) as source:
        _, batches = record_batches(source, str(path), lambda names: [_place(names, field, path)])
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
