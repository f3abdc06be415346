"""The texts in a column of a table: CSV and TSV files, Parquet and Arrow files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pldcli.errors import DataError

__all__ = ["columnar_texts", "csv_texts"]

_ROWS = 1000
"""Of a columnar file, read at a time."""


def csv_texts(lines: Iterable[str], path: Path, *, field: str, delimiter: str, most_characters: int) -> Iterator[tuple[str, Any]]:
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


def columnar_texts(path: Path, *, field: str, is_parquet: bool) -> Iterator[tuple[str, Any]]:
    """Yield the values of a column of a Parquet or Arrow file, each with its place.

    Raises:
        DataError: There is no such column, or the file is damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in _parquet_batches(path, field) if is_parquet else _arrow_batches(path, field):
            for value in batch.column(0).to_pylist():
                number += 1
                yield f"{path}, row {number}", value
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of what the file holds
        raise DataError("is truncated or damaged", where=str(path), hint="copy it again") from error


def _parquet_batches(path: Path, field: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _place(file.schema_arrow.names, field, path)
        yield from file.iter_batches(_ROWS, columns=[field])


def _arrow_batches(path: Path, field: str) -> Iterator[Any]:
    """Read a file with a footer, or a stream as `datasets` writes it."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        _place(file.schema.names, field, path)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.select([field]).slice(start, _ROWS)


def _place(names: Sequence[str], field: str, path: Path) -> int:
    if field not in names:
        hint = f"name it with --text-field; its columns are: {', '.join(names) or 'none'}"
        raise DataError(f"has no column {field!r}", where=str(path), hint=hint)
    return list(names).index(field)
